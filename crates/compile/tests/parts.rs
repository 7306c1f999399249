//! What changed is made in parts, with the cluster already ahead of them: whatever the parts and their order, it ends as the
//! whole does. What pods wait for is there after the first part.

use compile::backend::nftables::Composed;
use compile::{Compiled, Compiler, Pieces, whole};
use kstate::nft::{Ruleset, diff};
use model::{
    Attachment, Cluster, Endpoint, EndpointSlice, Event, Key, Kind, Node, Row, Service, ServicePort,
    SlicePort,
};
use proptest::prelude::*;
use semantics::Settings;
use types::{IfName, Mac, ObjectName};

#[path = "../../trace/tests/battery/world.rs"]
#[allow(dead_code, reason = "shared with the battery, which needs all of it")]
mod world;

/// Two threads: what one has made the other composes later, all of it together.
#[derive(Default)]
struct Kernel {
    tables: Composed,
    made: Option<Pieces>,
    ruleset: Ruleset,
}

impl Kernel {
    fn take(&mut self, compiled: Compiled) -> Compiled {
        let Compiled { pieces, .. } = compiled;
        if let Some(pieces) = pieces {
            self.made = Some(match self.made.take() {
                Some(before) => before.then(pieces),
                None => pieces,
            });
        }
        Compiled { pieces: None, ..compiled }
    }

    fn follow(&mut self) {
        if let Some(Pieces::Nftables(pieces)) = self.made.take() {
            let plan = self.tables.compose(pieces);
            self.ruleset.edit(&plan);
        }
    }
}

/// One part of the changed keys, then so many units of what is left, now and then carried out.
type Part = (usize, usize, bool);

fn parts() -> impl Strategy<Value = Vec<Part>> {
    proptest::collection::vec((1..9_usize, 0..6_usize, any::<bool>()), 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    /// `before`: so many of the events are followed before the rest comes at once.
    #[test]
    fn parts_in_any_order_end_as_the_whole(
        (history, order) in world::history().prop_flat_map(|history| {
            let places: Vec<usize> = (0..history.len() * 4).collect();
            (Just(history), Just(places).prop_shuffle())
        }),
        before in 0..30_usize,
        parts in parts(),
    ) {
        let mut cluster = Cluster::default();
        let mut compiler = Compiler::new(world::settings());
        let mut kernel = Kernel::default();
        let mut findings = std::collections::BTreeSet::new();
        let mut tell = |round: Compiled| {
            findings.extend(round.raised);
            round.cleared.iter().for_each(|gone| assert!(findings.remove(gone), "{gone}"));
        };
        world::start().into_iter().for_each(|event| drop(cluster.apply(event)));
        let before = before.min(history.len());
        let mut changed: Vec<Key> = Vec::new();
        let mut sizes = parts.iter().cycle();
        for (at, event) in history.into_iter().enumerate() {
            let keys = cluster.apply(event);
            match at < before {
                // The first lists may still be on their way when the next change comes.
                true => {
                    tell(kernel.take(compiler.take(cluster.synced().expect("all are listed"), &keys)));
                    let (_, more, _) = sizes.next().expect("a cycle");
                    tell(kernel.take(compiler.advance(cluster.synced().expect("still"), *more)));
                }
                false => changed.extend(keys),
            }
        }
        let mut shuffled: Vec<(usize, Key)> = order.into_iter().cycle().zip(changed).collect();
        shuffled.sort_by_key(|(place, _)| *place);
        let mut left: Vec<Key> = shuffled.into_iter().map(|(_, key)| key).collect();
        let synced = cluster.synced().expect("all are listed");
        while !left.is_empty() || compiler.is_behind() || !compiler.has_begun() {
            let (keys, units, now) = sizes.next().expect("a cycle");
            let part: Vec<Key> = left.drain(..left.len().min(*keys)).collect();
            tell(kernel.take(compiler.take(synced, &part)));
            tell(kernel.take(compiler.advance(synced, *units + usize::from(left.is_empty()))));
            if *now {
                kernel.follow();
            }
        }
        kernel.follow();
        let whole = whole(synced, world::settings());
        prop_assert_eq!(kernel.ruleset, whole.nft.clone());
        prop_assert_eq!(&**kernel.tables.ruleset(), &whole.nft);
        prop_assert_eq!(compiler.net(), &whole.net);
        prop_assert_eq!(findings, whole.diagnostics);
        prop_assert_eq!(compiler.made_through(), compiler.round());
    }
}

const SERVICES: u16 = 10_000;
const PIECE: usize = 512;

fn service(number: u16, port: u16) -> [Event; 2] {
    let [high, low] = number.to_be_bytes();
    let name = format!("s{number}");
    let ports = vec![SlicePort { name: "http".into(), port: Some(port), ..SlicePort::default() }];
    let service = Service {
        key: ObjectName::new("shop", &name),
        cluster_ips: vec![[10, 96, high, low].into()],
        ports: vec![ServicePort { name: "http".into(), port: 80, ..ServicePort::default() }],
        ..Service::default()
    };
    let slice = EndpointSlice {
        key: ObjectName::new("shop", format!("{name}-1")),
        service: name,
        ports,
        endpoints: vec![Endpoint::ready([10, 244, 2, 9])],
        ..EndpointSlice::default()
    };
    [Event::Upsert(Row::Service(Box::new(service))), Event::Upsert(Row::EndpointSlice(slice))]
}

fn pod() -> Event {
    Event::Upsert(Row::Attachment(Box::new(Attachment {
        wiring: types::Wiring::default(),
        container: "c/eth0".into(),
        pod: ObjectName::new("shop", "web"),
        uid: String::new(),
        ips: vec![[10, 244, 1, 4].into()],
        host_if: IfName::new("veth1").expect("a name"),
        mac: Mac([2, 0, 0, 0, 0, 1]),
        host_ports: Vec::new(),
        withheld: Vec::new(),
    })))
}

/// What an ADD waits for is in the next part, however many Services have changed; and that part has nothing else in it.
#[test]
fn a_pod_waits_for_no_service() {
    let settings = Settings::new("node1", vec!["10.244.0.0/16".parse().expect("a prefix")], 1450);
    let (mut cluster, mut compiler) = (Cluster::default(), Compiler::new(settings.clone()));
    Kind::ALL.into_iter().for_each(|kind| drop(cluster.apply(Event::Done(kind))));
    let node = Node {
        name: "node1".into(),
        addresses: vec![[192, 168, 1, 10].into()],
        pod_cidrs: vec!["10.244.1.0/24".parse().expect("a prefix")],
        ..Node::default()
    };
    cluster.apply(Event::Upsert(Row::Node(node)));
    let mut kernel = Kernel::default();
    kernel.take(compiler.update(cluster.synced().expect("listed"), &[]));
    let changed: Vec<Key> =
        (0..SERVICES).flat_map(|n| service(n, 8080)).flat_map(|event| cluster.apply(event)).collect();
    let mut pieces = 1;
    kernel.take(compiler.take(cluster.synced().expect("listed"), &changed));
    kernel.take(compiler.advance(cluster.synced().expect("listed"), PIECE));
    kernel.follow();
    let before = kernel.ruleset.clone();
    let keys = cluster.apply(pod());
    kernel.take(compiler.take(cluster.synced().expect("listed"), &keys));
    kernel.follow();
    let own = diff(&kernel.ruleset, &before);
    assert!(!own.is_empty() && own.ops.len() < 20, "{} steps", own.ops.len());
    assert!(compiler.is_behind() && compiler.made_through() < compiler.round());
    while compiler.is_behind() {
        kernel.take(compiler.advance(cluster.synced().expect("listed"), PIECE));
        pieces += 1;
    }
    assert_eq!(pieces, usize::from(SERVICES).div_ceil(PIECE));
    kernel.follow();
    assert_eq!(kernel.ruleset, whole(cluster.synced().expect("listed"), settings).nft);
}
