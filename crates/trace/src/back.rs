//! The way back, from the hops of the way there: an answer passes the same places in the other order, and conntrack
//! gives it the source that the client asked.

use std::net::SocketAddr;

use types::IfName;

use crate::hop::{Fact, Glimpse, Hop, Stage, Step};
use crate::observed::Way;

/// The last hop; `None` when the packet does not arrive, so that nothing answers.
pub fn way_back(hops: &[Hop]) -> Option<Hop> {
    let (source_before, (host_if, bridge), client, source) = ends(hops)?;
    let home = client.node.as_str();
    let mut steps = Vec::new();
    let arrival = hops.iter().find_map(|hop| match &hop.fact {
        Fact::Node { from, bridge, host_if } => {
            let veth = arrow([Some(host_if), bridge.as_ref()]);
            Some((hop.node.as_str(), from.as_ref(), (host_if, veth)))
        }
        _ => None,
    });
    let before = |dev: &str, direction| glimpse(dev, direction, source_before);
    match arrival {
        Some((node, Some(tunnel), (veth, text))) => {
            let text = format!("{text} → {tunnel}");
            let glimpses = vec![before(veth.as_str(), Way::In), before(tunnel.as_str(), Way::Out)];
            steps.push(Step { word: "veth".into(), node: node.into(), text, glimpses });
            let (text, glimpses) = (tunnel_text(hops), vec![tunnelled(Way::Out, source_before)]);
            steps.push(Step { word: "tunnel".into(), node: node.into(), text, glimpses });
            steps.extend(home_by_tunnel(hops, home, source_before));
        }
        Some((node, None, (veth, text))) => {
            let glimpses = vec![before(veth.as_str(), Way::In)];
            steps.push(Step { word: "veth".into(), node: node.into(), text, glimpses });
        }
        // The answer of a node that could not be asked, or is a node's own.
        None => steps.extend(home_by_tunnel(hops, home, source_before)),
    }
    if let Some(text) = rewrite(hops, source_before, source) {
        steps.push(Step { word: "conntrack".into(), node: home.into(), text, glimpses: Vec::new() });
    }
    let links = bridge.into_iter().chain([host_if]);
    let glimpses = links.map(|link| glimpse(link.as_str(), Way::Out, source)).collect();
    let text = format!("{} → eth0", arrow([bridge, Some(host_if)]));
    steps.push(Step { word: "veth".into(), node: home.into(), text, glimpses });
    Some(Hop::new(Stage::Return, home, Fact::Return { source, source_before, steps }))
}

/// Out of the tunnel, on the sender's node.
fn home_by_tunnel(hops: &[Hop], home: &str, source: SocketAddr) -> Option<Step> {
    let dev = hops.iter().find_map(|hop| match &hop.fact {
        Fact::Tunnel { dev, .. } => Some(dev),
        _ => None,
    })?;
    let glimpses = vec![tunnelled(Way::In, source), glimpse(dev.as_str(), Way::In, source)];
    Some(Step { word: "tunnel".into(), node: home.into(), text: format!("eth0 → {dev}"), glimpses })
}

/// Links in the order of the way.
fn arrow(links: [Option<&IfName>; 2]) -> String {
    let names: Vec<&str> = links.into_iter().flatten().map(IfName::as_str).collect();
    names.join(" → ")
}

/// A pod's own link on its node, and the one that it shares with the others.
type Links<'a> = (&'a IfName, Option<&'a IfName>);

/// Who answers, and through which veth to whom, as what.
fn ends(hops: &[Hop]) -> Option<(SocketAddr, Links<'_>, &Hop, SocketAddr)> {
    let answers = hops.iter().find_map(|hop| match &hop.fact {
        Fact::Pod { destination, .. } => Some(*destination),
        _ => None,
    })?;
    // Another node gives the answer the source of its port back before it comes home.
    let door = hops.iter().find_map(|hop| match &hop.fact {
        Fact::Service { frontend, .. } if hop.stage == Stage::Node => Some(*frontend),
        _ => None,
    });
    let (client, links) = hops.iter().find_map(|hop| match &hop.fact {
        Fact::Veth { host_if, bridge, .. } => Some((hop, (host_if, bridge.as_ref()))),
        _ => None,
    })?;
    let asked = hops.iter().find_map(|hop| match &hop.fact {
        Fact::Socket { destination, .. } => Some(*destination),
        _ => None,
    })?;
    Some((door.unwrap_or(answers), links, client, asked))
}

fn glimpse(dev: &str, direction: Way, source: SocketAddr) -> Glimpse {
    Glimpse { dev: IfName::new(dev).ok(), direction, source }
}

fn tunnelled(direction: Way, source: SocketAddr) -> Glimpse {
    Glimpse { dev: None, direction, source }
}

fn tunnel_text(hops: &[Hop]) -> String {
    hops.iter()
        .find_map(|hop| match &hop.fact {
            Fact::Tunnel { vni, outer_source, outer_destination, .. } => {
                Some(format!("VXLAN {vni}, {outer_destination} → {outer_source}"))
            }
            _ => None,
        })
        .unwrap_or_default()
}

/// What conntrack undoes.
fn rewrite(hops: &[Hop], before: SocketAddr, after: SocketAddr) -> Option<String> {
    let masqueraded = hops.iter().find_map(|hop| match &hop.fact {
        Fact::Masq { source: Some(source), masquerade: true, .. } => Some(*source),
        _ => None,
    });
    let client = hops.iter().find_map(|hop| match &hop.fact {
        Fact::Socket { source, .. } => Some(*source),
        _ => None,
    });
    let shown = (before != after).then(|| format!("source {before} → {after}"));
    let kept = masqueraded.zip(client).map(|(node, pod)| format!("destination {node} → {pod}"));
    let parts: Vec<String> = shown.into_iter().chain(kept).collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}
