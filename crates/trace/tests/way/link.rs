//! On a pod's link is the node alone: link-local addresses of IPv6.

use model::{Event, Row};
use trace::observed::SocketEnd;
use trace::{Fact, Hop, Observed, Outcome, Sighting, Stage, Target, View, compare, departure};
use types::Protocol;

use super::{cluster, desired, name, place, to};

/// Of shop/web, which has an IPv6 address, too.
fn hops(destination: &str) -> Vec<Hop> {
    let mut cluster = cluster("node1", "web");
    let mut row = cluster.attachments.values().next().expect("web").clone();
    row.ips.push(to("[fd00:10:244:1::4]:1").ip());
    cluster.apply(Event::Upsert(Row::Attachment(row)));
    let (state, place) = (desired(&cluster, "node1"), place("node1"));
    let view = View { cluster: &cluster, nft: &state.nft, net: &state.net, place: &place };
    let target = Target {
        protocol: Protocol::Tcp,
        destination: to(destination),
        sport: 41224,
        endpoint: None,
        answers_to: None,
    };
    departure(&view, &name("shop/web"), &target).expect("wired").hops
}

fn stages(hops: &[Hop]) -> Vec<Stage> {
    hops.iter().map(|hop| hop.stage).collect()
}

#[test]
fn the_nodes_own_leads_to_the_node() {
    let hops = hops("[fe80::858:aff:fef4:101]:80");
    assert_eq!(stages(&hops), [Stage::Socket, Stage::Veth, Stage::Route, Stage::Pod]);
}

#[test]
fn the_pods_own_never_leaves_it() {
    // That of its MAC, which is 00:00:00:00:00:00 here.
    let hops = hops("[fe80::200:ff:fe00:0]:80");
    assert_eq!(stages(&hops), [Stage::Socket, Stage::Veth, Stage::Pod]);
    assert!(matches!(hops[1].fact, Fact::Own { .. }), "{hops:#?}");
}

/// Nobody answers for it on the link, so that nothing comes out of the veth, and no route is to blame.
#[test]
fn nobodys_ends_in_the_pod_and_names_the_nodes() {
    let hops = hops("[fe80::1]:80");
    assert_eq!(stages(&hops), [Stage::Socket, Stage::Veth]);
    assert_eq!(
        hops[1].text,
        "[fe80::1]:80 is dropped: nobody on the pod's link has it; the node is alone there, as \
         fe80::858:aff:fef4:101%eth0"
    );
    let sent = |end| Sighting::Sent {
        at: 1,
        source: to("[fd00:10:244:1::4]:41224"),
        destination: to("[fe80::1]:80"),
        end,
    };
    for end in [SocketEnd::Silent, SocketEnd::Unreachable] {
        let observed = Observed { node: "node1".into(), sightings: vec![sent(end)] };
        for result in compare(&hops, &[observed]) {
            assert!(matches!(result.outcome, Outcome::Agree { .. }), "{result:#?}");
        }
    }
}
