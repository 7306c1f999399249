//! Further sources of a pod: addresses that are not its own and that it may send from, because its annotation asks for
//! them and the agents' `--allow-sources` has them.
//!
//! ```text
//!   bridge plumb   the pod's port and MAC, a further source    ─> as an own one; ARP for it, too
//!   ip, ip6 plumb  cni0: a further source of some pod here     ─> as a pod's
//!                  a flow from there, or to there              ─> that pod's policies (policy/further.rs)
//! ```
//!
//! Behind the bridge the address alone says which pod it is, so of two pods of a node only one has it.

use std::net::IpAddr;

use model::{Attachment, Cluster, Key, Kind, Pod};
use types::range::{overlap, without};
use types::wire::SOURCES_ANNOTATION;
use types::{Family, IpNet, range};

use crate::Settings;
use crate::diagnostic::{Diagnostic, Severity};
use crate::service::reserved;

/// So many prefixes are granted to a pod at most: its own packets meet them one after the other.
const MOST: usize = 64;

/// What a pod may send from in a family, beside its own addresses; no two overlap.
pub fn granted(node: (&Cluster, &Settings), attachment: &Attachment, family: Family) -> Vec<IpNet> {
    let all = asked_and_allowed(node, attachment, family);
    IpNet::aggregate(&all.flat_map(|net| without(net, &attachment.withheld)).collect())
}

/// The same, whether or not its node withholds some of it for a while.
pub fn due(node: (&Cluster, &Settings), attachment: &Attachment, family: Family) -> Vec<IpNet> {
    IpNet::aggregate(&asked_and_allowed(node, attachment, family).collect())
}

fn asked_and_allowed<'a>(
    node: (&'a Cluster, &'a Settings),
    attachment: &'a Attachment,
    family: Family,
) -> impl Iterator<Item = IpNet> + 'a {
    let asked = asked(node.0, attachment).into_iter().flatten().copied();
    let of_family = asked.filter(move |net| Family::of_net(net) == family);
    of_family.filter(move |net| refusal(node, attachment, net).is_none())
}

/// Whether some pod of this cluster may have it.
pub fn may_be_had(node: (&Cluster, &Settings), net: &IpNet) -> bool {
    general_refusal(node, net).is_none()
}

/// What the pod asks for, as far as it counts at all.
fn asked<'a>(cluster: &'a Cluster, attachment: &Attachment) -> Option<&'a [IpNet]> {
    let nets = &pod_of(cluster, attachment)?.sources.as_ref()?.nets;
    Some(nets.get(..MOST).unwrap_or(nets))
}

fn pod_of<'a>(cluster: &'a Cluster, attachment: &Attachment) -> Option<&'a Pod> {
    let pod = cluster.pods.get(&attachment.pod)?;
    (attachment.uid.is_empty() || attachment.uid == pod.uid).then_some(pod)
}

/// What the pod asks for and does not get, and why.
pub fn findings(node: (&Cluster, &Settings), attachment: &Attachment) -> Vec<Diagnostic> {
    let finding = |message: String, next_step: String| Diagnostic {
        object: Key::new(Kind::Pod, attachment.pod.clone()),
        field: format!("metadata.annotations[{SOURCES_ANNOTATION}]"),
        severity: Severity::Warning,
        message,
        next_step,
    };
    let refused = asked(node.0, attachment).into_iter().flatten().filter_map(|net| {
        let why = refusal(node, attachment, net)?;
        let message =
            format!("the pod may not send from {net}, which {why}; what it sends from there is dropped");
        Some(finding(message, format!("take {net} out of the annotation, or see docs/security.md")))
    });
    let all = pod_of(node.0, attachment).and_then(|pod| pod.sources.as_ref()).map_or(0, |all| all.nets.len());
    let beyond = (all > MOST).then(|| {
        let message = format!("the pod may send from the first {MOST} of these {all} prefixes only");
        finding(message, "write fewer, larger prefixes".to_owned())
    });
    refused.chain(beyond).collect()
}

/// Why a prefix is not granted, after "which".
fn refusal(node: (&Cluster, &Settings), attachment: &Attachment, net: &IpNet) -> Option<String> {
    general_refusal(node, net).or_else(|| {
        let rank = |pod: &Pod| (pod.sources.as_ref().map_or(u64::MAX, |all| all.created), pod.key.clone());
        let own = rank(pod_of(node.0, attachment)?);
        let others = node.0.attachments.values().filter(|other| other.pod != attachment.pod);
        let earlier = others.filter_map(|other| pod_of(node.0, other)).filter(|pod| rank(pod) < own);
        let has = |pod: &&Pod| {
            let nets = pod.sources.iter().flat_map(|all| all.nets.iter().take(MOST));
            nets.filter(|other| overlap(other, net)).any(|other| general_refusal(node, other).is_none())
        };
        let before = earlier.into_iter().find(has)?;
        Some(format!("the older pod {} of this node has", before.key))
    })
}

/// Why no pod of this cluster may have it.
fn general_refusal((cluster, settings): (&Cluster, &Settings), net: &IpNet) -> Option<String> {
    let meets = |other: &IpNet| overlap(other, net);
    let is_in = |address: IpAddr| net.contains(&address);
    if settings.allow_sources.is_empty() {
        return Some("no agent allows: it was started without --allow-sources".to_owned());
    }
    if !settings.allow_sources.iter().any(|allowed| allowed.contains(net)) {
        let allowed: Vec<_> = settings.allow_sources.iter().map(IpNet::to_string).collect();
        return Some(format!("does not lie within --allow-sources {}", allowed.join(",")));
    }
    if !settings.serves(Family::of_net(net)) {
        return Some(format!("is {}, of which pods have no addresses here", Family::of_net(net)));
    }
    if range::special(net).is_some() {
        return Some("holds special addresses (loopback, link-local, multicast or none)".to_owned());
    }
    if let Some(pods) = settings.pod_pools.iter().find(|cidr| meets(cidr)) {
        return Some(format!("overlaps the addresses of pods, {pods}"));
    }
    if let Some(services) = settings.service_cidrs.iter().find(|cidr| meets(cidr)) {
        return Some(format!("overlaps the addresses of Services, {services}"));
    }
    for node in cluster.nodes.values() {
        if let Some(pods) = node.pod_cidrs.iter().find(|cidr| meets(cidr)) {
            return Some(format!("overlaps the addresses of pods of node {}, {pods}", node.name));
        }
        if let Some(address) = node.every_address().find(|address| is_in(*address)) {
            return Some(format!("holds {address}, an address of node {}", node.name));
        }
    }
    if let Some(service) = cluster.services_within(net).next() {
        return Some(format!("holds an address of Service {}", service.key));
    }
    let api = reserved::api_servers(cluster, settings).find(|api| is_in(api.ip()));
    api.map(|api| format!("holds {}, where the Kubernetes API is", api.ip()))
}
