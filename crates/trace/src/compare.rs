//! Expected beside observed, hop by hop, in the order of the way. The first hop where they differ is the answer;
//! what comes after it is its consequence and is not judged, as far as the packet did not come there all the same.

mod evidence;
mod homeward;
mod judge;
mod leaves;
mod there;

use serde::{Deserialize, Serialize};

use crate::hop::{Fact, Hop, Stage};
use crate::observed::Observed;
use evidence::Evidence;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HopResult {
    pub hop: Hop,
    pub outcome: Outcome,
    /// Where they disagree: the node on which it is wrong, if that is not the hop's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wrong_on: Option<String>,
    /// When it was first seen there, nanoseconds on that node's clock.
    pub at: Option<u64>,
    /// Nanoseconds since it was last seen before on the same node: clocks of two nodes are not compared.
    pub took: Option<u64>,
    /// Of the way back: nanoseconds of each step since the last sighting before on its node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<Option<u64>>,
}

impl HopResult {
    /// Whose fault it is that they disagree, and whose words say so.
    pub fn node(&self) -> &str {
        self.wrong_on.as_deref().unwrap_or(&self.hop.node)
    }
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

/// What is wrong, and the node that has it.
struct Wrong {
    on: String,
    why: String,
}

pub fn compare(expected: &[Hop], observed: &[Observed]) -> Vec<HopResult> {
    let evidence = Evidence::new(expected, observed);
    let judged: Vec<Result<String, Wrong>> = expected.iter().map(|hop| evidence.judge(hop)).collect();
    let (broken, reach) = (broken(expected, &judged, &evidence), evidence.reach(expected));
    let mut clock = Clock::default();
    let follows_from_nothing = |at| expected.get(at).is_some_and(|hop| evidence.is_wrong_itself(hop));
    let is_unasked = |at| expected.get(at).is_some_and(|hop: &Hop| matches!(hop.fact, Fact::Unasked { .. }));
    let disagree = |Wrong { on, why }| (Outcome::Disagree { why }, Some(on));
    let outcome = |(at, judged): (usize, Result<String, Wrong>)| match (broken, judged) {
        (Some(broken), Err(wrong)) if at == broken => disagree(wrong),
        // The packet came there all the same.
        (Some(broken), Err(wrong)) if at > broken && at <= reach && follows_from_nothing(at) => {
            disagree(wrong)
        }
        (Some(broken), Ok(_)) if at > broken && at > reach => (Outcome::NotReached, None),
        // An error before the broken hop is a consequence too: the question for a name goes the same way.
        (_, Err(_)) => (Outcome::NotReached, None),
        (_, Ok(why)) if is_unasked(at) => (Outcome::NotAsked { why }, None),
        (_, Ok(seen)) => (Outcome::Agree { seen }, None),
    };
    let outcomes: Vec<(Outcome, Option<String>)> = judged.into_iter().enumerate().map(outcome).collect();
    let result = |(hop, (outcome, on)): (&Hop, (Outcome, Option<String>))| {
        let reached = outcome != Outcome::NotReached;
        let at = reached.then(|| evidence.first_seen(hop)).flatten();
        let took = evidence.took(hop).or_else(|| at.and_then(|at| clock.since(hop, at, &evidence)));
        let steps = if reached { evidence.steps(hop) } else { Vec::new() };
        let wrong_on = on.filter(|on| *on != hop.node);
        let hop = match evidence.end().filter(|_| reached) {
            Some(end) => hop.as_told(end.was_told()),
            None => hop.clone(),
        };
        HopResult { hop, outcome, wrong_on, at, took, steps }
    };
    expected.iter().zip(outcomes).map(result).collect()
}

/// The first hop at which they differ. A name that nobody answers for is a consequence when nothing at all comes
/// out of the pod's veth: the question goes that way too.
fn broken(expected: &[Hop], judged: &[Result<String, Wrong>], evidence: &Evidence<'_>) -> Option<usize> {
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
