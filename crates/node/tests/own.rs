//! The node's own Node object: whatever is said of it, in whatever order, pods that run keep their network, pools move only
//! where it says so, and nothing is said or saved twice.

use std::net::IpAddr;
use std::time::Duration;

use ipam::Pool;
use model::{Announced, Cluster, Event, Key, Kind, Node, Row};
use node::{Asked, Attachments, Input, Live, Network, Outcome, Output, Own, Record, Records, Situation};
use proptest::collection::vec;
use proptest::prelude::*;
use types::{Family, IpNet, Mac, ObjectName};

const NODE: &str = "node1";
const REST: Duration = Duration::from_secs(30);
const WIRED: [&str; 2] = ["10.244.1.2", "fd00:1::2"];

#[derive(Clone, Debug)]
enum Action {
    /// The object, with so many of its pod CIDRs and addresses, some of them others than before.
    Said(Node),
    Deleted,
    /// A list, in which it is, or is not.
    Listed(Option<Node>),
    Other(Event),
    /// Everything is in the kernel, or it is time to look.
    Follow,
    /// The process begins anew.
    Restart,
}

fn own() -> impl Strategy<Value = Node> {
    let nets = || {
        let v4 = prop::option::of((1..3_u8).prop_map(|n| format!("10.244.{n}.0/24")));
        let v6 = prop::option::of((1..3_u8).prop_map(|n| format!("fd00:{n}::/64")));
        (v4, v6, any::<bool>()).prop_map(|(v4, v6, turned)| {
            let nets = v4.into_iter().chain(v6).map(|text| text.parse::<IpNet>().unwrap());
            let mut nets: Vec<IpNet> = nets.collect();
            if turned {
                nets.reverse();
            }
            nets
        })
    };
    let ips = |net: u8| vec((1..3_u8).prop_map(move |n| IpAddr::from([192, 168, net, n])), 0..2);
    (nets(), ips(1), ips(2), any::<bool>()).prop_map(|(pod_cidrs, addresses, others, says)| Node {
        name: NODE.into(),
        pod_cidrs,
        addresses,
        others,
        announced: if says { announced() } else { Announced::default() },
        ..Node::default()
    })
}

fn action() -> impl Strategy<Value = Action> {
    let other = |n: u8| Node { name: format!("node{n}"), ..Node::default() };
    let key = |name: &str| Key::new(Kind::Node, ObjectName::cluster(name));
    prop_oneof![
        6 => own().prop_map(Action::Said),
        2 => Just(Action::Deleted),
        2 => prop::option::of(own()).prop_map(Action::Listed),
        1 => (2..4_u8).prop_map(move |n| Action::Other(Event::Upsert(Row::Node(other(n))))),
        1 => Just(Action::Other(Event::Delete(key("node2")))),
        4 => Just(Action::Follow),
        1 => Just(Action::Restart),
    ]
}

fn announced() -> Announced {
    Announced { vtep_mac: Some(Mac([2, 0, 0, 0, 0, 1])) }
}

/// What performs the outcomes, and counts them.
#[derive(Default)]
struct World {
    cluster: Cluster,
    attachments: Attachments,
    /// What the object last said of each, if it ever did.
    said: Vec<IpNet>,
    presence: Vec<IpAddr>,
    disk: Records,
    saves: usize,
}

impl World {
    fn own(&self) -> Own<'_> {
        let (known, pools) = (self.cluster.nodes.get(NODE), self.attachments.records().pools());
        Own { name: NODE, known, pools }
    }

    fn hear(&mut self, event: Event) {
        self.own().hear(event).into_iter().for_each(|outcome| self.perform(outcome));
    }

    fn perform(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Row(event) => _ = self.cluster.apply(event),
            Outcome::Presence(addresses) => {
                assert_ne!(addresses, self.presence, "it is there already");
                self.presence = addresses;
            }
            Outcome::Announce(announced) => {
                assert_ne!(self.cluster.nodes[NODE].announced, announced, "it says so already");
            }
            Outcome::Subnets(nets) => self.step(Input::Subnets { nets, rest: REST }),
        }
    }

    fn step(&mut self, input: Input) {
        let situation = Situation::default();
        let facts = Live { cluster: &self.cluster, settings: None, situation, generation: 1 };
        for output in self.attachments.step(input, &facts, Duration::from_secs(100)) {
            if let Output::Save(save) = output {
                assert_ne!(self.disk, *self.attachments.records(), "it is saved already");
                self.saves += 1;
                self.disk = self.attachments.records().clone();
                self.step(Input::Saved(save, Ok(())));
            }
        }
    }

    fn perform_action(&mut self, action: &Action) {
        match action {
            Action::Said(node) => self.say(node),
            Action::Deleted => {
                self.hear(Event::Delete(Key::new(Kind::Node, ObjectName::cluster(NODE))));
            }
            Action::Listed(node) => {
                self.hear(Event::Start(Kind::Node));
                node.iter().for_each(|node| self.say(node));
                self.hear(Event::Done(Kind::Node));
            }
            Action::Other(event) => self.hear(event.clone()),
            Action::Follow => self.follow(),
            Action::Restart => {
                self.cluster = Cluster::default();
                self.attachments = Attachments::new(self.disk.clone());
                self.presence.clear();
            }
        }
    }

    fn say(&mut self, node: &Node) {
        if !node.pod_cidrs.is_empty() {
            self.said.clone_from(&node.pod_cidrs);
        }
        self.hear(Event::Upsert(Row::Node(node.clone())));
    }

    fn follow(&mut self) {
        let before: Vec<IpNet> = self.pools();
        let outcomes = self.own().follow(announced());
        outcomes.into_iter().for_each(|outcome| self.perform(outcome));
        for cidr in self.pools() {
            assert!(before.contains(&cidr) || self.said.contains(&cidr), "{cidr} is nowhere said");
        }
        for net in self.cluster.nodes.get(NODE).into_iter().flat_map(|own| &own.pod_cidrs) {
            assert!(self.pools().contains(net), "the Node says {net}, and pools are {:?}", self.pools());
        }
        let saves = self.saves;
        let again = self.own().follow(announced());
        assert!(!again.iter().any(|outcome| matches!(outcome, Outcome::Subnets(_))), "{again:?}");
        again.into_iter().for_each(|outcome| self.perform(outcome));
        assert_eq!(self.saves, saves, "nothing is new");
    }

    fn pools(&self) -> Vec<IpNet> {
        self.attachments.records().pools().iter().map(Pool::cidr).collect()
    }

    fn check(&self, before: Option<&Node>) {
        let now = self.cluster.nodes.get(NODE);
        if let Some(before) = before {
            let now = now.expect("the node outlives its object");
            assert!(
                before.pod_cidrs.is_empty() || !now.pod_cidrs.is_empty(),
                "pods have no gateway any more"
            );
            assert!(
                before.addresses.is_empty() || !now.addresses.is_empty(),
                "no tunnel leads here any more"
            );
            assert_eq!(now.addresses, self.presence);
        }
        if let Some(now) = now {
            assert!(
                self.pools().is_empty() || !now.pod_cidrs.is_empty(),
                "pools without a CIDR serve nobody"
            );
        }
        let records = self.attachments.records();
        assert_eq!(records.all().len(), 1, "what is wired stays wired");
        let leased: Vec<IpAddr> =
            records.pools().iter().flat_map(Pool::leases).map(|(address, _)| address).collect();
        for address in WIRED {
            assert!(leased.contains(&address.parse().unwrap()), "{address} may be given out: {leased:?}");
        }
    }
}

/// One pod runs, with an address of each family.
fn wired() -> Records {
    let pools = [("10.244.1.0/24", WIRED[0]), ("fd00:1::/64", WIRED[1])].map(|(net, address)| {
        let mut pool = Pool::new(net.parse().unwrap(), REST);
        pool.allocate_this("c1/eth0", address.parse().unwrap(), Duration::ZERO).unwrap();
        pool
    });
    let mut records = Records::new(pools.into(), [].into());
    let record: Record = serde_json::from_value(serde_json::json!({
        "container": "c1", "ifname": "eth0", "netns": "/n", "uid": "u", "ips": WIRED, "host_if": "veth1",
        "pod": { "namespace": "shop", "name": "web" }, "mac": "00:00:00:00:00:00",
    }))
    .unwrap();
    records.insert(record);
    records
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn pods_keep_their_network_whatever_is_said_of_their_node(actions in vec(action(), 0..20)) {
        let records = wired();
        let attachments = Attachments::new(records.clone());
        let mut world = World { attachments, disk: records, ..World::default() };
        world.said = world.pools();
        for action in &actions {
            let before = world.cluster.nodes.get(NODE).cloned();
            world.perform_action(action);
            let restarted = matches!(action, Action::Restart);
            world.check(before.as_ref().filter(|_| !restarted));
        }
    }
}

#[test]
fn the_first_pod_cidr_decides_the_family_of_a_pods_first_address() {
    let mut world = World::default();
    let pod_cidrs: Vec<IpNet> = ["fd00:1::/64", "10.244.1.0/24"].map(|text| text.parse().unwrap()).into();
    world.say(&Node { name: NODE.into(), pod_cidrs, ..Node::default() });
    world.follow();
    assert_eq!(world.pools().iter().map(Family::of_net).collect::<Vec<_>>(), [Family::V6, Family::V4]);
}

/// A pool outlives the pod CIDR that it is of, for the pods that have its addresses; nobody can be wired with another one.
#[test]
fn a_family_that_the_node_has_no_more_is_given_to_nobody() {
    let mut world = World { attachments: Attachments::new(wired()), ..World::default() };
    let own =
        Node { name: NODE.into(), pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()], ..Node::default() };
    world.say(&own);
    world.follow();
    let settings = semantics::Settings::new(NODE, Vec::new(), 1450);
    let network = Some(Network::new(&world.cluster, &settings));
    let facts = Live {
        cluster: &world.cluster,
        settings: Some(&settings),
        situation: Situation { network, ..Situation::default() },
        generation: 1,
    };
    let config = serde_json::json!({ "cniVersion": "1.1.0", "name": "plumb", "type": "plumb-cni" });
    let env = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c2"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", "/run/netns/c2"),
    ];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter().collect();
    let request = cni::Request::parse(&env, config.to_string().as_bytes()).unwrap();
    let asked = Asked { id: 1, request, pod: None, netns_id: None, received: REST };
    world.attachments.step(Input::Asked(Box::new(asked)), &facts, REST);
    let families = world.attachments.records().all()["c2/eth0"].ips.iter().map(|ip| Family::of(*ip));
    assert_eq!(families.collect::<Vec<_>>(), [Family::V4]);
}
