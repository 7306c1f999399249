//! What the sender's node can say of the way on another node: which pod has the address and what its policies say, as
//! the objects tell. How it is wired there only that node knows.

use super::{Onward, View, policy_fact};
use crate::hop::{Fact, Hop, Stage};
use crate::reference::{Direction, policy};

pub fn hops(view: &View<'_>, onward: &Onward) -> Vec<Hop> {
    let judgement = policy::judge_elsewhere(&onward.packet(), onward.destination, view.cluster);
    let (pod, allowed) = match &judgement {
        Some(judgement) => (Some(judgement.pod.clone()), judgement.allowed()),
        None => (None, true),
    };
    let fact = judgement.map(|judgement| policy_fact(judgement, Direction::Ingress));
    let policy = fact.map(|fact| Hop::new(Stage::Ingress, &onward.node, fact));
    let (destination, on) = (onward.destination, Some(onward.node.clone()));
    let arrives = allowed.then(|| Hop::new(Stage::Pod, &onward.node, Fact::Pod { pod, destination, on }));
    policy.into_iter().chain(arrives).collect()
}
