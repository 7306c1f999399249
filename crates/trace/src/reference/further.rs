//! Which pod of a node may send from an address that no pod has: its annotation asks for it, the agents allow it, and it
//! is nobody's in the cluster.

use std::net::IpAddr;

use model::{Attachment, Cluster, Pod};
use types::range::overlap;
use types::{Family, IpNet};

use crate::packet::Place;

/// The oldest pod of the node that has it, unless the node withholds it for a while.
pub fn speaker<'a>(address: IpAddr, cluster: &'a Cluster, place: &Place) -> Option<&'a Attachment> {
    let mut found: Option<(&Pod, &Attachment)> = None;
    for net in candidates(cluster, place).filter(|(_, _, net)| net.contains(&address)) {
        let (pod, attachment, asked) = net;
        let taken =
            candidates(cluster, place).any(|(other, _, net)| age(other) < age(pod) && overlap(net, asked));
        let withheld = attachment.withheld.iter().any(|net| net.contains(&address));
        if !taken && !withheld && found.is_none_or(|(before, _)| age(pod) < age(before)) {
            found = Some((pod, attachment));
        }
    }
    found.map(|(_, attachment)| attachment)
}

fn age(pod: &Pod) -> (u64, &types::ObjectName) {
    (pod.sources.as_ref().map_or(u64::MAX, |sources| sources.created), &pod.key)
}

/// What pods of the node ask for, without what no pod may have.
fn candidates<'a>(
    cluster: &'a Cluster,
    place: &Place,
) -> impl Iterator<Item = (&'a Pod, &'a Attachment, &'a IpNet)> {
    let here = cluster.attachments.values().filter_map(|attachment| {
        let pod = cluster.pods.get(&attachment.pod)?;
        (attachment.uid.is_empty() || attachment.uid == pod.uid).then_some((&**pod, &**attachment))
    });
    let asked = here.flat_map(|(pod, attachment)| {
        let nets = pod.sources.iter().flat_map(|sources| sources.nets.iter().take(64));
        nets.map(move |net| (pod, attachment, net))
    });
    asked.filter(move |(_, _, net)| may_be_had(net, cluster, place))
}

fn may_be_had(net: &IpNet, cluster: &Cluster, place: &Place) -> bool {
    let apart = |other: &IpNet| !net.contains(other) && !other.contains(net);
    let family = |other: &IpNet| Family::of_net(other) == Family::of_net(net);
    let nodes = || cluster.nodes.values();
    let addresses = nodes()
        .flat_map(|node| node.addresses.iter().chain(&node.others))
        .copied()
        .chain(place.api.iter().map(|api| api.ip()));
    let of_services = cluster.services.values().flat_map(|service| {
        service.cluster_ips.iter().chain(&service.external_ips).chain(&service.load_balancer_ips)
    });
    let listed = cluster
        .slices
        .values()
        .filter(|slice| (&*slice.key.namespace, &*slice.service) == ("default", "kubernetes"));
    let api = listed.flat_map(|slice| slice.endpoints.iter().map(|endpoint| endpoint.address));
    place.allow_sources.iter().any(|allowed| allowed.contains(net))
        && place.pod_pools.iter().any(family)
        && place.pod_pools.iter().chain(&place.service_cidrs).all(apart)
        && nodes().flat_map(|node| &node.pod_cidrs).all(apart)
        && !addresses.chain(of_services.copied()).chain(api).any(|address| net.contains(&address))
        && !is_special(net)
}

/// RFC 6890; a prefix that reaches into such a range holds one of its ends.
fn is_special(net: &IpNet) -> bool {
    let ranges = ["0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32"];
    let ranges6 = ["::/128", "::1/128", "::ffff:0:0/96", "fe80::/10", "ff00::/8"];
    let ranges = ranges.iter().chain(&ranges6).filter_map(|range| range.parse::<IpNet>().ok());
    ranges.into_iter().any(|range| {
        net.contains(&range.network()) || range.contains(&net.network()) || range.contains(&net.broadcast())
    })
}
