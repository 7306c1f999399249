//! The pods, policies and Services of the test. What is recorded was made of the same objects: whoever changes them
//! records anew.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};
use types::Family;

use super::traffic::{self, Watch};
use crate::stage::{Pod, Stage, config, wait_for};

const POLICIES: &str = "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies";
const SERVICES: &str = "/api/v1/namespaces/default/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";

/// Of what servers serve; nobody is to come to the other two: by the guard of the Service, and from mute1 to outside.
const SERVED: u16 = 9000;
const GUARDED: u16 = 9001;
const BEYOND: u16 = 9002;

const CLUSTER_IPS: [&str; 2] = ["10.96.14.7", "fd00:10:96::e7"];
const BALANCED: [&str; 2] = ["198.51.100.7", "2001:db8:51::7"];
const OUTSIDE: [&str; 2] = ["192.168.1.2", "fd00:192:168:1::2"];
const NODE1: [&str; 2] = ["192.168.1.10", "fd00:192:168:1::10"];
/// Somebody outside who is not among the Service's source ranges.
pub const STRANGER: &str = "203.0.113.9";
/// Clients outside, of each family.
const CLIENTS: u16 = 16;

const PODS: [(usize, &str); 9] = [
    (0, "vault1"),
    (0, "echo1"),
    (0, "friend1"),
    (0, "stranger1"),
    (0, "mute1"),
    (1, "vault2"),
    (1, "echo2"),
    (1, "friend2"),
    (1, "stranger2"),
];

pub struct World {
    pub pods: BTreeMap<&'static str, Pod>,
    ips: BTreeMap<&'static str, [IpAddr; 2]>,
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn client(family: Family, number: u16) -> String {
    family.pick([format!("192.168.1.{}", 100 + number), format!("fd00:192:168:1::{:x}", 0x100 + number)])
}

impl World {
    pub fn new(stage: &Stage) -> Self {
        let mut world = Self { pods: BTreeMap::new(), ips: BTreeMap::new() };
        for (node, name) in PODS {
            let pod = stage.pod(node, name);
            let result = stage.nodes[node].cni("ADD", &pod, &config()).unwrap();
            let address =
                |n: usize| ip(result["ips"][n]["address"].as_str().unwrap().split('/').next().unwrap());
            let ips = [address(0), address(1)];
            // A pod's address depends on who was wired before, and the recorded rules hold it.
            let last = PODS.iter().filter(|(at, _)| *at == node).position(|(_, n)| *n == name).unwrap() + 2;
            let right = [format!("10.244.{}.{last}", node + 1), format!("fd00:10:244:{}::{last}", node + 1)];
            assert_eq!(ips, right.map(|text| ip(&text)), "{name}");
            let ips_of = json!(ips.map(|ip| json!({ "ip": ip })));
            let status = json!({ "status": { "phase": "Running", "podIP": ips[0], "podIPs": ips_of } });
            stage.patch(&format!("/api/v1/namespaces/default/pods/{name}/status"), &status);
            if name.starts_with("vault") || name.starts_with("echo") {
                traffic::serve(&pod, SERVED);
            }
            world.pods.insert(name, pod);
            world.ips.insert(name, ips);
        }
        policies(stage);
        world.services(stage);
        world.outsiders(stage);
        world.wait(stage);
        world
    }

    fn services(&self, stage: &Stage) {
        let port = |name: &str, protocol: &str, port: u16, to: u16, node_port: u16| json!({ "name": name, "protocol": protocol, "port": port, "targetPort": to, "nodePort": node_port });
        let ports = json!([
            port("tcp", "TCP", 80, SERVED, 30080),
            port("udp", "UDP", 80, SERVED, 30081),
            port("guarded", "UDP", 81, GUARDED, 30082),
        ]);
        let ranges = ["192.168.1.0/24", "fd00:192:168:1::/64", "10.244.0.0/16", "fd00:10:244::/48"];
        let spec = json!({
            "type": "LoadBalancer", "clusterIP": CLUSTER_IPS[0], "clusterIPs": CLUSTER_IPS,
            "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"],
            "sessionAffinity": "ClientIP", "ports": ports, "loadBalancerSourceRanges": ranges,
        });
        let metadata = json!({ "name": "pinned", "namespace": "default" });
        let object = json!({ "apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec });
        stage.create(SERVICES, &object);
        let ingress = json!(BALANCED.map(|ip| json!({ "ip": ip })));
        let status = json!({ "status": { "loadBalancer": { "ingress": ingress } } });
        stage.patch(&format!("{SERVICES}/pinned/status"), &status);
        let ports = json!([
            { "name": "tcp", "protocol": "TCP", "port": SERVED },
            { "name": "udp", "protocol": "UDP", "port": SERVED },
            { "name": "guarded", "protocol": "UDP", "port": GUARDED },
        ]);
        for family in Family::ALL {
            let endpoint = |(at, name): (usize, &str)| {
                let address = family.pick(self.ips[name]);
                json!({ "addresses": [address], "nodeName": stage.nodes[at].name, "conditions": {} })
            };
            let kind = family.pick(["IPv4", "IPv6"]);
            let labels = json!({ "kubernetes.io/service-name": "pinned" });
            let name = format!("pinned-{}", kind.to_lowercase());
            let object = json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": kind,
                "metadata": { "name": name, "namespace": "default", "labels": labels },
                "ports": ports, "endpoints": [endpoint((0, "echo1")), endpoint((1, "echo2"))],
            });
            stage.create(SLICES, &object);
        }
    }

    /// Addresses of clients, and the ways by which they reach the Service.
    fn outsiders(&self, stage: &Stage) {
        let mut lines = vec![format!("address add {STRANGER}/32 dev br0")];
        for family in Family::ALL {
            for number in 0..CLIENTS {
                let (address, more) = (client(family, number), family.pick(["/24", "/64"]));
                let nodad = family.pick(["", " nodad"]);
                lines.push(format!("address add {address}{more} dev br0{nodad}"));
            }
            let (to, node) = (family.pick(BALANCED), family.pick(NODE1));
            lines.push(format!("route add {to} via {node}"));
        }
        for line in lines {
            let run = || std::process::Command::new("ip").args(line.split(' ')).output();
            let done = stage.underlay.run(run).unwrap().unwrap();
            assert!(done.status.success(), "ip {line}: {done:?}");
        }
        for node in &stage.nodes {
            node.run(&format!("ip route add {STRANGER} dev eth0"));
        }
    }

    /// Until every node has all of it in its rules.
    fn wait(&self, stage: &Stage) {
        for node in &stage.nodes {
            wait_for(&format!("{} has the policies and the Service", node.name), || {
                let rules = node.run("nft list ruleset");
                let all =
                    ["vault-friends", "vault-many", "198.51.100.7 . udp . 81", "2001:db8:51::7 . udp . 81"];
                let mute = node.name != "node1" || rules.contains("mute");
                let far = family_ips(&self.ips, |name| name.starts_with("friend"));
                let has = |word: &str| rules.contains(word);
                (mute && all.into_iter().all(has) && far.iter().all(|ip| has(ip))).then_some(())
            });
        }
    }

    pub fn at(&self, pod: &str, family: Family) -> SocketAddr {
        SocketAddr::new(family.pick(self.ips[pod]), SERVED)
    }

    /// Its ClusterIP.
    pub fn service(&self, family: Family) -> SocketAddr {
        SocketAddr::new(ip(family.pick(CLUSTER_IPS)), 80)
    }

    /// The load balancer's address of the Service.
    pub fn balanced(&self, family: Family) -> SocketAddr {
        SocketAddr::new(ip(family.pick(BALANCED)), 80)
    }

    /// Its port that only the stranger asks.
    pub fn guarded(&self) -> SocketAddr {
        SocketAddr::new(ip(BALANCED[0]), 81)
    }

    pub fn outside(&self, family: Family) -> SocketAddr {
        SocketAddr::new(ip(family.pick(OUTSIDE)), BEYOND)
    }

    /// Whoever is led by affinity, and what he asks.
    pub fn clients(&self) -> Vec<(IpAddr, SocketAddr)> {
        let of = |family: Family| {
            let at = SocketAddr::new(ip(family.pick(NODE1)), 30080);
            (0..CLIENTS).map(move |number| (ip(&client(family, number)), at))
        };
        Family::ALL.into_iter().flat_map(of).collect()
    }

    /// Counts what must not come, by receiver.
    pub fn watches(&self, stage: &Stage) -> Vec<(&'static str, Watch)> {
        let from = |name: &str| {
            let [v4, v6] = self.ips[name];
            [format!("ip saddr {v4}"), format!("ip6 saddr {v6}")]
        };
        let strangers = [from("stranger1"), from("stranger2")].concat();
        let echo = [from("mute1").to_vec(), vec![format!("udp dport {GUARDED}")]].concat();
        let beyond = [format!("udp dport {BEYOND}"), format!("tcp dport {BEYOND}")];
        vec![
            ("vault1", Watch::start(&self.pods["vault1"].netns, &strangers)),
            ("vault2", Watch::start(&self.pods["vault2"].netns, &strangers)),
            ("echo1", Watch::start(&self.pods["echo1"].netns, &echo)),
            ("echo2", Watch::start(&self.pods["echo2"].netns, &echo)),
            ("the outside", Watch::start(&stage.underlay, &beyond)),
        ]
    }

    /// Allows everything.
    pub fn open(&self, stage: &Stage) {
        for name in ["vault-friends", "vault-many", "mute"] {
            stage.delete(&format!("{POLICIES}/{name}"));
        }
        let all = json!({ "spec": { "loadBalancerSourceRanges": ["0.0.0.0/0", "::/0"] } });
        stage.patch(&format!("{SERVICES}/pinned"), &all);
    }
}

fn family_ips(ips: &BTreeMap<&str, [IpAddr; 2]>, of: impl Fn(&str) -> bool) -> Vec<String> {
    ips.iter().filter(|(name, _)| of(name)).flat_map(|(_, ips)| ips.map(|ip| ip.to_string())).collect()
}

fn policies(stage: &Stage) {
    let policy = |name: &str, spec: Value| {
        let metadata = json!({ "name": name, "namespace": "default" });
        let object = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec,
        });
        stage.create(POLICIES, &object);
    };
    let apps = |values: &[&str]| json!({ "matchExpressions": [{ "key": "app", "operator": "In", "values": values }] });
    let (vaults, friends) = (apps(&["vault1", "vault2"]), apps(&["friend1", "friend2"]));
    let ports = json!([{ "port": SERVED }, { "protocol": "UDP", "port": SERVED }, { "port": "web" }]);
    policy(
        "vault-friends",
        json!({ "podSelector": vaults, "ingress": [{ "from": [{ "podSelector": friends }], "ports": ports }] }),
    );
    // So many that they are merged: classes by port, blocks of addresses.
    let rule = |n: u16| {
        json!({
            "from": [{ "ipBlock": { "cidr": format!("11.0.{n}.0/24") } }, { "podSelector": apps(&["friend1"]) }],
            "ports": [{ "port": 7000 + 10 * n, "endPort": 7009 + 10 * n }],
        })
    };
    let many: Vec<Value> = (0..12).map(rule).collect();
    policy("vault-many", json!({ "podSelector": vaults, "ingress": many }));
    policy("mute", json!({ "podSelector": apps(&["mute1"]), "policyTypes": ["Egress"] }));
}
