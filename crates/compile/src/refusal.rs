//! Why a packet goes no further in the tables of Services and policies (`ip plumb`, `ip6 plumb`): one word for metrics, told
//! by the comment of the rule that counts it. The guards have causes of their own ([`crate::guard::cause`]).

use kstate::nft::build::{self, rule};
use kstate::nft::{Expr, Rule};

use semantics::policy::resolve::Direction;

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

            /// Of the rule; those of policies go on with the policies' names.
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

    /// Counts and drops what these expressions let through.
    pub(crate) fn dropped(self, of: impl IntoIterator<Item = Expr>) -> Rule {
        rule(self.comment(), of.into_iter().chain([build::counter(), build::drop()]))
    }

    pub fn of_comment(comment: &str) -> Option<Self> {
        // The name of a policy has no colon, and so no policy can take another's word.
        let policies = comment.split_once(": ").map(|(begin, _)| begin);
        Self::ALL.iter().copied().find(|refusal| match refusal {
            Self::Ingress | Self::Egress => policies == Some(refusal.comment()),
            other => other.comment() == comment,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_tells_its_refusal_and_no_other() {
        for refusal in Refusal::ALL {
            let comment = match refusal {
                Refusal::Ingress | Refusal::Egress => format!("{}: shop/web, shop/db", refusal.comment()),
                other => other.comment().to_owned(),
            };
            assert_eq!(Refusal::of_comment(&comment), Some(*refusal));
        }
        for other in ["deny ingress", "deny everything: shop/web", "no endpoints", ""] {
            assert_eq!(Refusal::of_comment(other), None, "{other}");
        }
        assert_eq!(Refusal::of_policy(Direction::Egress).comment(), "deny egress");
    }
}
