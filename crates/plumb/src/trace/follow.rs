//! From node to node with the packet. Only the pod's own node must answer: of another that cannot be asked, the way is
//! shown as the pod's node expects it.

use std::collections::BTreeMap;
use std::net::IpAddr;
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
            Ok(part) => followed.parts.extend(part.map(|part| with_doors(part, &elsewhere))),
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

/// Agents of earlier versions know no way behind a port of their node's, and take its address for that of a pod.
fn with_doors(mut part: Collected, elsewhere: &[Hop]) -> Collected {
    let first = part.expected.hops.first().map(|hop| &hop.fact);
    let of_nodes = |to: IpAddr| {
        elsewhere.iter().any(
            |hop| matches!(&hop.fact, Fact::Pod { pod: None, destination, .. } if destination.ip() == to),
        )
    };
    if let Some(Fact::Refused { frontend, service: None, why, .. }) = first
        && why.starts_with("no node has pods")
        && of_nodes(frontend.ip())
    {
        part.expected.hops = elsewhere.to_vec();
    }
    part
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

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    #[test]
    fn an_earlier_agent_is_not_believed_of_its_nodes_port() {
        let pod = |at: &str| {
            let destination: SocketAddr = at.parse().unwrap();
            vec![Hop::new(
                Stage::Pod,
                "node2",
                Fact::Pod { pod: None, destination, on: Some("node2".into()) },
            )]
        };
        let said = |at: &str, why: &str| {
            let fact = Fact::Refused {
                frontend: at.parse().unwrap(),
                service: None,
                rejected: false,
                why: why.into(),
                leaves: false,
            };
            let hops = vec![Hop::new(Stage::Node, "node2", fact)];
            let expected = Expected { hops, onward: None, elsewhere: Vec::new() };
            Collected { expected, observed: Observed::default() }
        };
        let door = "192.168.1.11:30080";
        let part = with_doors(said(door, "no node has pods with such an address"), &pod(door));
        assert_eq!(part.expected.hops, pod(door));
        let nobody = said("10.244.2.250:80", "no pod of node2 has this address");
        assert_eq!(with_doors(nobody.clone(), &pod("10.244.2.250:80")), nobody);
    }
}
