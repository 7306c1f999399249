//! What is tested: from whom to whom, what should come of it, and what is likely wrong if it does not.
//!
//! ```text
//!   node k     client-k  stranger-k  host-client-k (host network)  mirror-k (calls itself)  forger-k
//!                  │          │            │                                                   │
//!   node k and  server-k   locked-k     host-k (host network)                         server-k, prey-k
//!   node k+1       (locked: only `friend` pods may; stranger: only to `open` ports)
//! ```

mod spoofing;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use types::Family;

use super::cast::{Cast, HTTP, Place, SHUT, UDP};
use crate::demo::probe::{Ask, Expect, Outcome, SeenAs};

/// Everything that can be asked for by name: what it proves, and where to look when it fails.
pub const TESTS: &[(&str, &str, &str)] = &[
    ("pod-to-pod", "pods reach pods, unchanged, on one node and across", "routes, tunnel or veth"),
    ("pod-to-pod-udp", "the same with datagrams", "routes, tunnel or veth"),
    (
        "full-size",
        "packets as large as the pod's MTU get through",
        "an MTU on the way is smaller than the pod's",
    ),
    (
        "service",
        "a Service's address leads to its pods, TCP and UDP",
        "rules of Services, or their endpoints",
    ),
    (
        "service-any",
        "a Service of several pods leads to one of them",
        "rules of Services, or their endpoints",
    ),
    ("headless", "a headless Service's name has the addresses of its pods", "DNS, or EndpointSlices"),
    ("external-name", "an ExternalName leads on to the name that it stands for", "DNS"),
    ("node-port", "a NodePort leads to its pods on every node's address", "rules of NodePorts"),
    ("hairpin", "a pod reaches itself through its own Service", "masquerade of hairpin packets"),
    ("dns", "names of Services, short and full", "DNS on that node, or the DNS address on lo"),
    ("dns-outside", "names outside of the cluster", "the node's own resolvers (/etc/resolv.conf there)"),
    ("egress", "pods reach the outside, seen as their node", "masquerade, or the node's default route"),
    (
        "pod-to-host",
        "pods reach nodes; other nodes see this node's address",
        "masquerade, or the node's firewall",
    ),
    (
        "host-to-pod",
        "nodes reach pods, their own and others",
        "routes, tunnel, or a policy that stops probes",
    ),
    ("host-to-service", "nodes reach Services", "rules of Services at the node's own packets"),
    ("api", "pods reach the API server at its Service", "rules of Services, or the API's own EndpointSlice"),
    ("policy-allow", "what NetworkPolicies allow gets through", "policy rules or sets"),
    ("policy-deny-ingress", "what an ingress policy does not allow is stopped", "policy rules or sets"),
    ("policy-deny-egress", "what an egress policy does not allow is stopped", "policy rules or sets"),
    (
        "spoofing-tunnel",
        "no pod sends into the nodes' tunnel",
        "the chains from_pods, onward and to_tunnel of tables ip plumb and ip6 plumb on that node",
    ),
    (
        "spoofing-source",
        "no pod is heard under another's address",
        "tables bridge plumb, ip plumb and ip6 plumb (chain from_pods) on the sender's node",
    ),
    ("spoofing-place", "no pod gets another's packets", "table bridge plumb on that node"),
];

/// The role that sends frames by hand, for which a pod needs more than a socket.
pub const FORGER: &str = "forger";

/// One check, before a probe has carried it out.
#[derive(Clone, Debug)]
pub struct Planned {
    pub id: usize,
    pub test: &'static str,
    /// The pod that sends.
    pub pod: String,
    pub on: String,
    /// In words.
    pub to: String,
    pub family: Family,
    pub ask: Ask,
    pub expect: Expect,
}

impl Planned {
    /// What `plumb trace` is to be asked for, and whether over UDP; pods of the host network have no veth to follow.
    pub fn trace(&self) -> Option<(String, bool)> {
        if self.pod.starts_with("host-") {
            return None;
        }
        Some(match &self.ask {
            Ask::Http { url } => (url.clone(), false),
            Ask::Bulk { target } => (format!("http://{target}"), false),
            Ask::Connect { target } => (target.clone(), false),
            Ask::Udp { target, .. } => (target.clone(), true),
            Ask::Dns { name, .. } => (format!("{name}:{HTTP}"), false),
            // A trace's own packet is honest.
            Ask::Forge(_) => return None,
        })
    }
}

/// All checks, and what is left out with the reason.
#[derive(Debug, Default)]
pub struct Plan {
    pub checks: Vec<Planned>,
    pub skipped: BTreeSet<(String, String)>,
}

/// Who sends, in which family.
#[derive(Clone, Copy)]
struct From<'a> {
    pod: &'a str,
    place: &'a Place,
    family: Family,
}

pub fn plan(cast: &Cast) -> Plan {
    let mut plan = Plan::default();
    for (index, place) in cast.places.iter().enumerate() {
        let next = match cast.places.len() {
            1 => None,
            count => cast.places.get((index + 1) % count),
        };
        for family in cast.families() {
            let others: Vec<&Place> = std::iter::once(place).chain(next).collect();
            let [client, stranger, host, mirror] =
                ["client", "stranger", "host-client", "mirror"].map(|role| place.pod(role));
            let from = |pod| From { pod, place, family };
            plan.client(from(&client), cast, &others);
            plan.stranger(from(&stranger), &others);
            plan.host(from(&host), cast, &others);
            plan.mirror(from(&mirror));
            plan.spoofing((from(&client), from(&place.pod(FORGER))), &others);
        }
    }
    if cast.places.len() < 2 {
        plan.skip("everything across nodes", "the cluster has one node that is Ready");
    }
    let unmet = |family: &Family| !cast.outside.iter().any(|outside| cast.leads(outside) == Some(*family));
    for family in cast.families().into_iter().filter(unmet) {
        let why = format!("no {family} address outside is known: give --outside {}", example(family));
        plan.skip("egress", &why);
    }
    if cast.outside_name.is_none() {
        plan.skip("dns-outside", "no name outside is known: give --outside-name NAME");
    }
    plan
}

fn example(family: Family) -> &'static str {
    match family {
        Family::V4 => "ADDRESS:PORT",
        Family::V6 => "[ADDRESS]:PORT",
    }
}

fn at(address: IpAddr, port: u16) -> String {
    SocketAddr::new(address, port).to_string()
}

fn http(address: IpAddr, port: u16) -> Ask {
    Ask::Http { url: format!("http://{}", at(address, port)) }
}

fn named(name: &str) -> Expect {
    Expect { names: vec![name.to_owned()], ..Expect::default() }
}

fn stopped() -> Expect {
    Expect { stopped: true, ..Expect::default() }
}

impl Plan {
    /// Leaves out what a pod would have done.
    pub fn without(&mut self, pod: &str, why: &str) {
        self.leave(why, |check| check.pod == pod);
    }

    /// Leaves out what could not be tried.
    pub fn leave_out(&mut self, outcomes: &BTreeMap<usize, Outcome>) {
        for outcome in outcomes.values().filter(|outcome| outcome.unable) {
            self.leave(&outcome.said, |check| check.id == outcome.id);
        }
    }

    fn leave(&mut self, why: &str, is: impl Fn(&Planned) -> bool) {
        let (left, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.checks).into_iter().partition(is);
        self.checks = kept;
        self.skipped.extend(left.into_iter().map(|check| (check.test.to_owned(), why.to_owned())));
    }

    fn skip(&mut self, test: &str, why: &str) {
        self.skipped.insert((test.to_owned(), why.to_owned()));
    }

    fn add(&mut self, test: &'static str, from: From<'_>, to: &str, (ask, expect): (Ask, Expect)) {
        self.checks.push(Planned {
            id: self.checks.len(),
            test,
            pod: from.pod.to_owned(),
            on: from.place.node.clone(),
            to: to.to_owned(),
            family: from.family,
            ask,
            expect,
        });
    }

    fn client(&mut self, from: From<'_>, cast: &Cast, places: &[&Place]) {
        for place in places {
            self.pods(from, place);
            self.services(from, place);
            self.nodes(from, cast, place);
        }
        self.names(from, cast);
        if let Some(api) = cast.api.iter().find(|api| Family::of(**api) == from.family) {
            let target = at(*api, 443);
            self.add("api", from, "the API server", (Ask::Connect { target }, Expect::default()));
        }
        self.outside(from, cast);
    }

    fn pods(&mut self, from: From<'_>, place: &Place) {
        let Some(server) = place.server(from.family) else { return };
        let name = place.pod("server");
        let own = Expect { seen_as: SeenAs::Self_, ..named(&name) };
        self.add("pod-to-pod", from, &name, (http(server, HTTP), own.clone()));
        let small = Ask::Udp { target: at(server, UDP), full: false };
        self.add("pod-to-pod-udp", from, &name, (small, own.clone()));
        let large = Ask::Udp { target: at(server, UDP), full: true };
        self.add("full-size", from, &name, (large, own));
        let bulk = Ask::Bulk { target: at(server, HTTP) };
        self.add("full-size", from, &name, (bulk, Expect::default()));
        if let Some(locked) = place.locked(from.family) {
            let name = place.pod("locked");
            self.add("policy-allow", from, &name, (http(locked, HTTP), named(&name)));
        }
    }

    fn services(&mut self, from: From<'_>, place: &Place) {
        let Some(address) = place.service(from.family) else { return };
        let (name, to) = (place.pod("server"), format!("Service {}", place.pod("server")));
        self.add("service", from, &to, (http(address, HTTP), named(&name)));
        let udp = Ask::Udp { target: at(address, UDP), full: false };
        self.add("service", from, &to, (udp, named(&name)));
    }

    fn nodes(&mut self, from: From<'_>, cast: &Cast, place: &Place) {
        let Some(address) = place.node_ip(from.family) else { return };
        let to = format!("node {}", place.node);
        let expect = match std::ptr::eq(place, from.place) {
            // A packet to its own node does not leave it.
            true => named(&place.node),
            false => Expect { seen_as: SeenAs::One(from.place.node_ips.clone()), ..named(&place.node) },
        };
        self.add("pod-to-host", from, &to, (http(address, cast.host_port), expect));
        self.node_port(from, cast, place);
    }

    fn node_port(&mut self, from: From<'_>, cast: &Cast, place: &Place) {
        let (Some(address), Some(port)) = (place.node_ip(from.family), cast.node_port) else { return };
        let expect = Expect { names: cast.servers(), ..Expect::default() };
        self.add(
            "node-port",
            from,
            &format!("node {}, port {port}", place.node),
            (http(address, port), expect),
        );
    }

    fn names(&mut self, from: From<'_>, cast: &Cast) {
        let kind = match from.family {
            Family::V4 => "A",
            Family::V6 => "AAAA",
        };
        let of = |addresses: Vec<IpAddr>| Expect {
            addresses: addresses.into_iter().collect(),
            ..Expect::default()
        };
        let dns = |name: String| Ask::Dns { name, kind: kind.to_owned() };
        let own = from.place.pod("server");
        let vip: Vec<IpAddr> = from.place.service(from.family).into_iter().collect();
        let full = format!("{own}.{}.svc.{}", cast.namespace, cast.domain);
        for name in [own.clone(), format!("{own}.{}", cast.namespace), full] {
            self.add("dns", from, &name, (dns(name.clone()), of(vip.clone())));
        }
        let servers: Vec<IpAddr> = cast.places.iter().filter_map(|place| place.server(from.family)).collect();
        self.add("headless", from, "Service headless", (dns("headless".into()), of(servers)));
        let first = cast.places.first().map(|place| place.pod("server")).unwrap_or_default();
        let url = format!("http://external:{HTTP}");
        self.add("external-name", from, "Service external", (Ask::Http { url }, named(&first)));
        if let Some(all) = cast.all.iter().find(|all| Family::of(**all) == from.family) {
            let expect = Expect { names: cast.servers(), ..Expect::default() };
            self.add("service-any", from, "Service all", (http(*all, HTTP), expect));
        }
        // Once: the way to the name's answer is the same for either type.
        let first = cast.families().first() == Some(&from.family);
        if let Some(name) = cast.outside_name.as_ref().filter(|_| first) {
            self.add("dns-outside", from, name, (dns(name.clone()), Expect::default()));
        }
    }

    fn outside(&mut self, from: From<'_>, cast: &Cast) {
        for outside in cast.outside.iter().filter(|outside| cast.leads(outside) == Some(from.family)) {
            if cast.lab {
                let expect =
                    Expect { seen_as: SeenAs::One(from.place.node_ips.clone()), ..Expect::default() };
                self.add("egress", from, outside, (Ask::Http { url: format!("http://{outside}") }, expect));
            } else {
                let ask = Ask::Connect { target: outside.clone() };
                self.add("egress", from, outside, (ask, Expect::default()));
            }
        }
    }

    /// Its egress is closed but for DNS and the port HTTP; `locked` lets only friends in.
    fn stranger(&mut self, from: From<'_>, places: &[&Place]) {
        for place in places {
            let name = place.pod("server");
            if let Some(server) = place.server(from.family) {
                self.add("policy-allow", from, &name, (http(server, HTTP), named(&name)));
                self.add("policy-deny-egress", from, &name, (http(server, SHUT), stopped()));
                let udp = Ask::Udp { target: at(server, UDP), full: false };
                self.add("policy-deny-egress", from, &name, (udp, stopped()));
            }
            if let Some(locked) = place.locked(from.family) {
                self.add("policy-deny-ingress", from, &place.pod("locked"), (http(locked, HTTP), stopped()));
            }
        }
    }

    fn host(&mut self, from: From<'_>, cast: &Cast, places: &[&Place]) {
        for place in places {
            let name = place.pod("server");
            if let Some(server) = place.server(from.family) {
                self.add("host-to-pod", from, &name, (http(server, HTTP), named(&name)));
            }
            if let Some(address) = place.service(from.family) {
                let to = format!("Service {name}");
                self.add("host-to-service", from, &to, (http(address, HTTP), named(&name)));
            }
            self.node_port(from, cast, place);
        }
    }

    fn mirror(&mut self, from: From<'_>) {
        let Some(address) = from.place.mirror(from.family) else { return };
        let to = format!("Service {}", from.pod);
        self.add("hairpin", from, &to, (http(address, HTTP), named(from.pod)));
    }
}
