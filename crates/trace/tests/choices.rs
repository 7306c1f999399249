//! What trace says again of each choice is what compile does: neither has the other's table.

use std::net::IpAddr;

use compile::{fabric, net, wiring};
use kstate::nft::{Reg, build};
use model::{Announced, Cluster, Event, Kind, Node, Row};
use semantics::Settings;
use trace::eval;
use trace::hop::Fact;
use types::{Fabric, IfName, Wiring};

fn node(number: u8, choice: Fabric) -> Node {
    let name = format!("node{number}");
    Node {
        addresses: vec![[192, 168, 1, number].into()],
        pod_cidrs: vec![format!("10.244.{number}.0/24").parse().unwrap()],
        announced: fabric::of(choice).announces(&name),
        name,
        ..Node::default()
    }
}

#[test]
fn compile_and_trace_have_one_opinion_of_each_fabric() {
    for choice in Fabric::ALL.iter().copied() {
        let (made, expected) = (fabric::of(choice), trace::fabric::of(choice));
        assert_eq!((made.device(), made.port()), (expected.device, expected.port), "{choice}");
        assert!(made.device().is_none_or(|link| net::own_links().any(|own| own == link)), "{choice}");
        let mut cluster = Cluster::default();
        [1, 2].into_iter().for_each(|n| drop(cluster.apply(Event::Upsert(Row::Node(node(n, choice))))));
        Kind::ALL.into_iter().for_each(|kind| drop(cluster.apply(Event::Done(kind))));
        let ranges = vec!["10.244.0.0/16".parse().unwrap()];
        let settings = Settings { fabric: choice, ..Settings::new("node1", ranges, 1400) };
        let desired = compile::whole(cluster.synced().unwrap(), settings);
        assert!(desired.diagnostics.is_empty(), "{choice}: {:?}", desired.diagnostics);

        let (to, peer): (IpAddr, Node) = ([10, 244, 2, 9].into(), node(2, choice));
        let exit = eval::route_of(&desired.net, &[], to).expect("it leaves");
        assert!(expected.leads(&exit, &peer), "{choice}: {exit:?}");
        let around = expected.wrapped.map(|wrapped| wrapped(&desired.net, &exit, None));
        let bytes = match around {
            None => 0,
            Some(Some(Fact::Tunnel { extra_bytes, outer_destination, .. })) => {
                assert_eq!(outer_destination, peer.addresses[0], "{choice}");
                extra_bytes
            }
            Some(other) => panic!("{choice}: {other:?}"),
        };
        assert_eq!(bytes, made.overhead(peer.addresses[0]), "{choice}");

        let silent = Node { announced: Announced::default(), ..peer.clone() };
        for (peer, said) in [(&peer, true), (&silent, peer.announced == silent.announced)] {
            assert_eq!((expected.is_told_of)(peer), said, "{choice}");
        }
    }
}

/// By the link on which trace expects pods, and by no other of ours.
#[test]
fn compile_and_trace_have_one_opinion_of_each_wiring() {
    for choice in Wiring::ALL.iter().copied() {
        let load = build::iifname(Reg(0));
        let exprs = wiring::of(choice).behind(load.clone(), true);
        assert_eq!(exprs.first(), Some(&load), "{choice}");
        let Some(link) = choice.link() else { continue };
        let name = build::is(Reg(0), &IfName::new(link).unwrap());
        assert_eq!(exprs, [load, name], "{choice}");
        assert!(net::own_links().any(|own| own == link) && trace::wiring::links().any(|own| own == link));
    }
}
