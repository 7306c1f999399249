//! Names of chains and sets of policies: equal if their meanings are, and only then. What people read in them is cut.

use semantics::meaning::{Check, Meaning};
use semantics::policy::resolve::{AddressSet, Direction};
use semantics::policy::tier::{Identity, Verdict};
use types::Protocol;

use crate::refusal::shortened;

/// Characters of a chain's name, the end of which is for people; the log of a denied packet begins with it
/// (NF_LOG_PREFIXLEN, linux/netfilter/nf_log.h: 128).
const NAME_MAX: usize = 76;

/// The kernel's name of a set of addresses.
pub fn set_name(set: &AddressSet) -> (String, Check) {
    let (kind, meaning) = set.meaning();
    let (hash, check) = meaning.digest();
    (format!("{kind}_{hash}"), check)
}

pub fn prefix(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "in",
        Direction::Egress => "out",
    }
}

/// `in_<hash>_<namespace>.<object>[.<object>…]`. `next`: the chain of the next tier, which is another's for other pods. A
/// fixed tier that is the last one is alone of its name, and nothing can be taken for it.
pub fn chain_name(identity: &Identity, next: Option<&str>, direction: Direction) -> (String, Option<Check>) {
    let prefix = prefix(direction);
    let people = match identity {
        Identity::Fixed(word) if next.is_none() => return (format!("{prefix}_{word}"), None),
        Identity::Fixed(word) => (*word).to_owned(),
        Identity::Objects { names, .. } => {
            let namespace = names.first().map_or("", |name| &name.namespace);
            let short = names.iter().map(|n| &*n.name).collect::<Vec<_>>().join(".");
            format!("{namespace}.{short}")
        }
    };
    let whole = identity.mean(Meaning::of(identity.sort()).text(prefix));
    let (hash, check) = next.into_iter().fold(whole, Meaning::text).digest();
    (shortened(&format!("{prefix}_{hash}_{people}"), NAME_MAX), Some(check))
}

/// Of what is not accepted the verdict is said, too.
pub(super) fn of_class(place: &str, verdict: Verdict) -> Meaning {
    let meaning = Meaning::of("class").text(place);
    match verdict {
        Verdict::Accept => meaning,
        Verdict::Deny => meaning.text("deny"),
        Verdict::Pass => meaning.text("pass"),
    }
}

pub(super) fn dispatch_meaning(protocol: Protocol, ranges: &[(u16, u16, &String)]) -> Meaning {
    let whole = Meaning::of("ports").shown(protocol).count(ranges.len());
    ranges.iter().fold(whole, |meaning, (from, to, class)| meaning.shown(from).shown(to).text(class))
}
