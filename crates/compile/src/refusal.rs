//! Why a packet goes no further in the tables of Services and policies (`ip plumb`, `ip6 plumb`): one word for metrics, told
//! by the comment of the rule that counts it. The guards have causes of their own ([`crate::guard::cause`]).

use std::fmt;

use kstate::nft::build::{self, rule};
use kstate::nft::{Expr, Rule};
use semantics::policy::resolve::Direction;
use semantics::service::cause::{Cause, Lack};

use crate::layout::{LOG_BYTES, LOG_GROUP};

/// The longest comment that the kernel's tools read back (NFTNL_UDATA_COMMENT_MAXLEN less its zero), and the longest prefix of a
/// log (NF_LOG_PREFIXLEN, linux/netfilter/nf_log.h).
const LONGEST: usize = 127;

macro_rules! refusals {
    ($($name:ident, $word:literal, $comment:literal;)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Refusal {
            $($name,)*
        }

        impl Refusal {
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The label of metrics.
            pub fn word(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }

            /// Of the rule; where a rule is of certain objects it goes on with their names.
            pub fn comment(self) -> &'static str {
                match self { $(Self::$name => $comment,)* }
            }
        }
    };
}

refusals! {
    Ingress, "policy_ingress", "deny ingress";
    Egress, "policy_egress", "deny egress";
    NoEndpoint, "no_endpoint", "no endpoint";
    NoLocalEndpoint, "no_local_endpoint", "no endpoint on this node";
    EndpointsLeft, "endpoints_left", "the service lost its endpoints meanwhile";
    NoService, "no_service", "no Service has this address";
    SourceRange, "source_range", "not among loadBalancerSourceRanges";
    NoConnection, "no_connection", "no connection";
    OthersError, "others_error", "an error about a flow of others";
    ToLoopback, "to_loopback", "to the node's loopback";
    FromLoopback, "from_loopback", "from the node's loopback";
    Astray, "astray", "a pod's address, by a link without pods";
    NoDnsHere, "no_dns_here", "no agent here: ask again";
    NoDnsAnywhere, "no_dns_anywhere", "no agent anywhere: ask again";
    TwoMeanings, "two_meanings", "two meanings under one name";
}

impl Refusal {
    pub fn of_policy(direction: Direction) -> Self {
        match direction {
            Direction::Ingress => Self::Ingress,
            Direction::Egress => Self::Egress,
        }
    }

    pub fn of_service(cause: Cause) -> Self {
        match cause {
            Cause::Lack(Lack::Endpoint) => Self::NoEndpoint,
            Cause::Lack(Lack::LocalEndpoint) => Self::NoLocalEndpoint,
            Cause::SourceRange => Self::SourceRange,
        }
    }

    /// Whether the rules for it are of certain objects, which their comments name.
    fn names_objects(self) -> bool {
        matches!(self, Self::Ingress | Self::Egress | Self::SourceRange)
    }

    pub(crate) fn comment_about(self, objects: impl fmt::Display) -> String {
        truncate(&format!("{}: {objects}", self.comment()))
    }

    /// Counts a packet and logs it with the word as its id. The rule is nobody's own: whose it is the packet's destination says.
    pub(crate) fn logged(self) -> [Expr; 2] {
        logged(self.word())
    }

    /// The same in the chain of an object, which follow in the id.
    pub(crate) fn logged_in(self, chain: &str, object: impl fmt::Display) -> [Expr; 2] {
        logged(&format!("{} {chain} {object}", self.word()))
    }

    /// Counts and drops what these expressions let through.
    pub(crate) fn dropped(self, of: impl IntoIterator<Item = Expr>) -> Rule {
        rule(self.comment(), of.into_iter().chain([build::counter(), build::drop()]))
    }

    pub fn of_comment(comment: &str) -> Option<Self> {
        // The name of an object has no colon, and so none can take another's word.
        let objects = comment.split_once(": ").map(|(begin, _)| begin);
        Self::ALL.iter().copied().find(|refusal| match refusal.names_objects() {
            true => objects == Some(refusal.comment()),
            false => refusal.comment() == comment,
        })
    }
}

/// Counts a packet, and logs it with an id.
pub(crate) fn logged(id: &str) -> [Expr; 2] {
    [build::counter(), build::log(LOG_GROUP, LOG_BYTES, truncate(id))]
}

/// As much of it as the kernel and its tools take.
pub(crate) fn truncate(text: &str) -> String {
    shortened(text, LONGEST)
}

/// As much of it as so many bytes hold.
pub(crate) fn shortened(text: &str, max: usize) -> String {
    let end = text.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= max).last();
    text.get(..end.unwrap_or(0)).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_tells_its_refusal_and_no_other() {
        for refusal in Refusal::ALL {
            let comment = match refusal.names_objects() {
                true => refusal.comment_about("shop/web, shop/db"),
                false => refusal.comment().to_owned(),
            };
            assert_eq!(Refusal::of_comment(&comment), Some(*refusal));
        }
        for other in ["deny ingress", "deny everything: shop/web", "no endpoints", ""] {
            assert_eq!(Refusal::of_comment(other), None, "{other}");
        }
        assert_eq!(Refusal::of_policy(Direction::Egress).comment(), "deny egress");
    }
}
