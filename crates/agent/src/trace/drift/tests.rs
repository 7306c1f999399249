use std::collections::BTreeMap;

use kstate::nft::TableId;
use kstate::nft::build::encode;
use model::{Cluster, Event, Kind, Node, Row};
use types::wire::TABLE;

use super::*;

/// The fixed part of both families' tables, as a node with its own DNS has it.
fn tables() -> kstate::nft::Ruleset {
    let mut cluster = Cluster::default();
    for kind in Kind::ALL {
        cluster.apply(Event::Start(kind));
        cluster.apply(Event::Done(kind));
    }
    let node = Node {
        name: "node1".into(),
        addresses: vec!["192.168.1.10".parse().unwrap(), "fd00::10".parse().unwrap()],
        pod_cidrs: vec!["10.244.1.0/24".parse().unwrap(), "fd00:10:244:1::/64".parse().unwrap()],
        ..Node::default()
    };
    cluster.apply(Event::Upsert(Row::Node(node)));
    let pods = vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/48".parse().unwrap()];
    let settings = compile::Settings {
        service_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
        dns_ips: vec!["10.96.0.10".parse().unwrap(), "fd00:10:96::a".parse().unwrap()],
        ..compile::Settings::new("node1", pods, 1450)
    };
    compile::whole(cluster.synced().unwrap(), settings).nft
}

#[test]
fn every_chain_that_a_pods_packet_meets_belongs_to_a_stage() {
    // What the node itself sends, what comes from a wire, what goes back to a pod as ICMP, what is for the node, and
    // how a pod finds its gateway.
    let unmet = [
        "output",
        "redirects",
        "from_wire",
        "inner",
        "tunnel",
        "from_tunnel",
        "to_tunnel",
        "service_to_tunnel",
        "from_port",
        "unexpected",
        "discovery",
        "adverts",
        "targets",
        "misplaced",
    ];
    let concern = Concern::default();
    for (id, table) in &tables().tables {
        let emptied = |chain: &String| {
            concern.nft(&NftOp::SetRules { table: id.clone(), chain: chain.clone(), rules: Vec::new() })
        };
        let stages: BTreeMap<_, _> =
            table.chains.keys().map(|chain| (chain.as_str(), emptied(chain))).collect();
        for (chain, stage) in &stages {
            assert_eq!(stage.is_none(), unmet.contains(chain), "{id} {chain}: {stage:?}");
        }
        let of_family = Family::ALL.iter().any(|family| id.family == (*family).into());
        for chain in ["raw_output", "input", "dns"].into_iter().filter(|_| of_family) {
            assert_eq!(stages.get(chain), Some(&Some(Stage::Resolve)), "{id} {chain}");
        }
    }
}

#[test]
fn elements_of_the_frontend_concern_it_in_both_families() {
    for (frontend, other) in [("10.96.0.7:80", "10.96.0.7:81"), ("[fd00:10:96::7]:80", "[fd00:10:96::8]:80")]
    {
        let [frontend, other]: [SocketAddr; 2] = [frontend, other].map(|text| text.parse().unwrap());
        let concern = Concern { frontend: Some(frontend), ..Concern::default() };
        let key = |slot: Option<u32>, at: SocketAddr| {
            let at = [at.ip().into(), types::Protocol::Tcp.into(), at.port().into()];
            let values: Vec<_> = slot.map(Into::into).into_iter().chain(at).collect();
            ElemKey::point(encode(&values))
        };
        assert_eq!(concern.set("svc", Some(&key(None, frontend))), Some(Stage::Service));
        assert_eq!(concern.set("ep", Some(&key(Some(3), frontend))), Some(Stage::Service));
        assert_eq!(concern.set("svc", Some(&key(None, other))), None);
    }
}

/// A tunnel by IPv6 brings IPv4, so of the other family's table only what is outside of it counts.
#[test]
fn of_the_other_familys_table_only_tunnels_concern_a_packet() {
    let arrived = Concern {
        family: Some(Family::V4),
        bridge_hop: Some(Stage::Node),
        arrives_by_tunnel: true,
        ..Concern::default()
    };
    let emptied = |family: Family, chain: &str| NftOp::SetRules {
        table: TableId { family: family.into(), name: TABLE.into() },
        chain: chain.into(),
        rules: Vec::new(),
    };
    for chain in ["from_pods", "onward", "no_pod", "forward"] {
        assert_eq!(arrived.nft(&emptied(Family::V6, chain)), None, "{chain}");
        assert!(arrived.nft(&emptied(Family::V4, chain)).is_some(), "{chain}");
    }
    for (chain, family) in
        ["inner", "to_tunnel", "input"].into_iter().flat_map(|c| Family::ALL.map(|f| (c, f)))
    {
        assert_eq!(arrived.nft(&emptied(family, chain)), Some(Stage::Node), "{family} {chain}");
    }
    let near = Concern { arrives_by_tunnel: false, ..arrived };
    assert_eq!(near.nft(&emptied(Family::V6, "inner")), None);
}

/// A difference is one line of words, whoever mends it: kind, table and name, and nothing of nft's own language.
#[test]
fn what_differs_is_told_in_words() {
    let desired = tables();
    let nothing = kstate::nft::Ruleset::default();
    let plans = [(&desired, &nothing), (&nothing, &desired)];
    for (desired, actual) in plans {
        for op in &kstate::nft::diff(desired, actual).ops {
            let text = told(kstate::nft::Difference { op, desired, actual }, true);
            assert!(!text.contains(['{', '}', '\n']), "{text}");
            assert!(
                text.contains(" plumb") && text.ends_with("; the agent is paused and leaves it so"),
                "{text}"
            );
        }
    }
    let gone = NftOp::DeleteTable(TableId { family: TableFamily::Ip, name: TABLE.into() });
    let text = told(kstate::nft::Difference { op: &gone, desired: &nothing, actual: &desired }, false);
    assert_eq!(text, "table ip plumb should not be there");
}
