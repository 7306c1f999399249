//! Expected beside observed, hop by hop, in the order of the way. The first hop where they differ is the answer;
//! what comes after it is its consequence and is not judged, as far as the packet did not come there all the same.

mod evidence;
mod judge;
mod there;

use serde::{Deserialize, Serialize};

use crate::hop::{Fact, Hop, Stage};
use crate::observed::Observed;
use evidence::Evidence;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HopResult {
    pub hop: Hop,
    pub outcome: Outcome,
    /// When it was first seen there, nanoseconds on that node's clock.
    pub at: Option<u64>,
    /// Nanoseconds since it was last seen before on the same node: clocks of two nodes are not compared.
    pub took: Option<u64>,
    /// Of the way back: nanoseconds of each step since the last sighting before on its node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<Option<u64>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Outcome {
    Agree {
        seen: String,
    },
    Disagree {
        why: String,
    },
    /// Nobody could tell, and the answer came back all the same.
    NotAsked {
        why: String,
    },
    NotReached,
}

/// `Ok`: as expected, and what was seen. `Err`: why not.
type Judged = Result<String, String>;

pub fn compare(expected: &[Hop], observed: &[Observed]) -> Vec<HopResult> {
    let evidence = Evidence::new(expected, observed);
    let judged: Vec<Judged> = expected.iter().map(|hop| evidence.judge(hop)).collect();
    let (broken, reach) = (broken(expected, &judged, &evidence), evidence.reach(expected));
    let mut clock = Clock::default();
    let follows_from_nothing = |at| expected.get(at).is_some_and(|hop| evidence.is_wrong_itself(hop));
    let is_unasked = |at| expected.get(at).is_some_and(|hop: &Hop| matches!(hop.fact, Fact::Unasked { .. }));
    let outcome = |(at, judged): (usize, Judged)| match (broken, judged) {
        (Some(broken), Err(why)) if at == broken => Outcome::Disagree { why },
        // The packet came there all the same.
        (Some(broken), Err(why)) if at > broken && at <= reach && follows_from_nothing(at) => {
            Outcome::Disagree { why }
        }
        (Some(broken), Ok(_)) if at > broken && at > reach => Outcome::NotReached,
        // An error before the broken hop is a consequence too: the question for a name goes the same way.
        (_, Err(_)) => Outcome::NotReached,
        (_, Ok(why)) if is_unasked(at) => Outcome::NotAsked { why },
        (_, Ok(seen)) => Outcome::Agree { seen },
    };
    let outcomes: Vec<Outcome> = judged.into_iter().enumerate().map(outcome).collect();
    let result = |(hop, outcome): (&Hop, Outcome)| {
        let reached = outcome != Outcome::NotReached;
        let at = reached.then(|| evidence.first_seen(hop)).flatten();
        let took = evidence.took(hop).or_else(|| at.and_then(|at| clock.since(hop, at, &evidence)));
        let steps = if reached { evidence.steps(hop) } else { Vec::new() };
        HopResult { hop: hop.clone(), outcome, at, took, steps }
    };
    expected.iter().zip(outcomes).map(result).collect()
}

/// The first hop at which they differ. A name that nobody answers for is a consequence when nothing at all comes
/// out of the pod's veth: the question goes that way too.
fn broken(expected: &[Hop], judged: &[Judged], evidence: &Evidence<'_>) -> Option<usize> {
    let first = judged.iter().position(Result::is_err)?;
    let veth = expected.iter().position(|hop| hop.stage == Stage::Veth);
    let is_resolve = expected.get(first).is_some_and(|hop| hop.stage == Stage::Resolve);
    let cause =
        veth.filter(|at| is_resolve && evidence.unresolved() && judged.get(*at).is_some_and(Result::is_err));
    Some(cause.unwrap_or(first))
}

/// The last sighting on the node at hand.
#[derive(Default)]
struct Clock(Option<(String, u64)>);

impl Clock {
    fn since(&mut self, hop: &Hop, at: u64, evidence: &Evidence<'_>) -> Option<u64> {
        let before = match &self.0 {
            Some((node, before)) if *node == hop.node => Some(*before),
            _ if matches!(hop.fact, Fact::Node { .. }) => evidence.came_by_tunnel(&hop.node),
            _ => None,
        };
        self.0 = Some((hop.node.clone(), at));
        before.and_then(|before| at.checked_sub(before))
    }
}
