//! From node to node with the packet. Only the pod's own node must answer: of another that cannot be asked, the way is
//! shown as the pod's node expects it.

use std::collections::BTreeMap;
use std::time::Duration;

use ::trace::exchange::{Arm, Collect, Collected, Flow, Opened, Send};
use ::trace::{Expected, Fact, Hop, Observed, Stage};
use anyhow::{Result, anyhow};
use futures::future::join_all;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::reach::Nodes;

/// Another node is asked for so long. The pod's own forgets a trace after 30 s.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the nodes told of the way.
#[derive(Debug, Default)]
pub struct Followed {
    pub parts: Vec<Collected>,
    /// Which node of the way could not be asked, and why.
    pub not_asked: BTreeMap<String, String>,
}

/// Sends the packet and asks every node that it came to.
pub async fn follow(
    nodes: &Nodes,
    node: &str,
    (opened, flow): (&Opened, Flow),
    timeout_ms: u64,
) -> Result<Followed> {
    let id = opened.id.clone();
    let arm = Arm { id: id.clone(), flow, masqueraded: opened.masqueraded.clone() };
    let armed = opened.candidates.iter().map(|candidate| ask::<_, ()>(nodes, candidate, "arm", &arm));
    let mut failed = BTreeMap::new();
    for (candidate, armed) in opened.candidates.iter().zip(join_all(armed).await) {
        failed.extend(armed.err().map(|error| (candidate.clone(), format!("{error:#}"))));
    }
    let sent: Collected = nodes.post(node, "send", &Send { id: id.clone(), timeout_ms }).await?;
    let Expected { onward, elsewhere, .. } = sent.expected.clone();
    let mut followed = Followed { parts: vec![sent], not_asked: BTreeMap::new() };
    for candidate in &opened.candidates {
        if failed.contains_key(candidate) {
            continue;
        }
        let onward = onward.clone().filter(|onward| onward.node == *candidate);
        let collect = Collect { id: id.clone(), onward };
        match ask::<_, Option<Collected>>(nodes, candidate, "collect", &collect).await {
            Ok(part) => followed.parts.extend(part),
            Err(error) => drop(failed.insert(candidate.clone(), format!("{error:#}"))),
        }
    }
    if let Some((node, why)) = onward.and_then(|onward| failed.remove_entry(&onward.node)) {
        followed.parts.push(as_expected(&node, &why, elsewhere));
        followed.not_asked.insert(node, why);
    }
    Ok(followed)
}

async fn ask<T: Serialize, R: DeserializeOwned>(
    nodes: &Nodes,
    node: &str,
    verb: &str,
    body: &T,
) -> Result<R> {
    match tokio::time::timeout(PATIENCE, nodes.post_plainly(node, verb, body)).await {
        Ok(answer) => answer,
        Err(_) => Err(anyhow!("its agent does not answer within {PATIENCE:?}")),
    }
}

/// Whether an agent that had no part in it answers at all.
pub async fn answers(nodes: &Nodes, node: &str) -> Result<()> {
    let asked = nodes.get::<serde_json::Value>(node, "v1/node/status");
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(answer) => answer.map(drop),
        Err(_) => Err(anyhow!("its agent does not answer within {PATIENCE:?}")),
    }
}

/// A node's part by somebody else's word.
fn as_expected(node: &str, why: &str, elsewhere: Vec<Hop>) -> Collected {
    let mut hops = vec![Hop::new(Stage::Node, node, Fact::Unasked { why: why.to_owned() })];
    hops.extend(elsewhere);
    Collected {
        expected: Expected { hops, onward: None, elsewhere: Vec::new() },
        observed: Observed { node: node.to_owned(), sightings: Vec::new() },
    }
}
