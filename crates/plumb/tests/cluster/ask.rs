//! Calls from pods, nodes and outside, and what their answers have to become.
//!
//! What the API says reaches each node in its own time, so a finding counts once a whole bunch of calls agrees on it.

use std::collections::BTreeSet;

use crate::cluster::{Cluster, Kubectl, Namespace, Said, Stack, plumb};

/// Calls of one bunch. One of three pods is left out by chance once in 17,000 bunches, and then asked again.
const BUNCH: &str = "24";

/// Where a call comes from.
#[derive(Clone, Copy, Debug)]
pub enum Place<'a> {
    /// A pod of the namespace.
    Pod(&'a str),
    /// A node's own network (`out`: the world outside).
    Node(&'a str),
}

pub const OUT: Place<'static> = Place::Node("out");

/// `http://ADDRESS:PORT/` in both families.
pub fn url(address: &str, port: u16) -> String {
    format!("http://{}/", at(address, port))
}

/// `ADDRESS:PORT` in both families.
pub fn at(address: &str, port: u16) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

/// What follows `KEY=` in a server's answer.
pub fn word<'a>(said: &'a str, key: &str) -> Option<&'a str> {
    said.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

/// The address in `peer=` of a server's answer.
pub fn peer(said: &str) -> String {
    let peer = word(said, "peer").unwrap_or_else(|| panic!("no peer in {said:?}"));
    let (address, _) = peer.rsplit_once(':').unwrap_or_else(|| panic!("no port in {peer}"));
    address.trim_matches(['[', ']']).to_owned()
}

impl Namespace<'_> {
    /// `plumb demo …` there.
    pub fn call(&self, from: Place<'_>, args: &[&str]) -> Said {
        match from {
            Place::Pod(pod) => self.demo(pod, args),
            Place::Node(node) => {
                let program = plumb();
                self.cluster.node(node, &[&[&*program.to_string_lossy(), "demo"], args].concat())
            }
        }
    }

    /// Waits until it succeeds.
    #[track_caller]
    pub fn until(&self, from: Place<'_>, args: &[&str]) -> String {
        self.cluster.wait_for(&format!("{from:?}: {args:?}"), || self.call(from, args).or_missing())
    }

    /// Waits until a bunch of calls over HTTP is answered by all of these and nobody else.
    #[track_caller]
    pub fn until_answered_by(&self, from: Place<'_>, url: &str, names: &[&str]) {
        let want: BTreeSet<&str> = names.iter().copied().collect();
        self.cluster.wait_for(&format!("{from:?} → {url}: answers of {names:?}"), || {
            let said = self.bunch(from, url);
            let have = said.ok.then(|| answered(&said.out));
            if have.as_ref() == Some(&want) { Ok(()) } else { Err(format!("{said:?}")) }
        });
    }

    /// Waits until a bunch of calls over HTTP is answered by one pod alone, and says which.
    #[track_caller]
    pub fn until_one_answers(&self, from: Place<'_>, url: &str) -> String {
        self.cluster.wait_for(&format!("{from:?} → {url}: answers of one pod alone"), || {
            let said = self.bunch(from, url);
            let have = if said.ok { answered(&said.out) } else { BTreeSet::new() };
            match have.first() {
                Some(one) if have.len() == 1 => Ok((*one).to_owned()),
                _ => Err(format!("{said:?}")),
            }
        })
    }

    fn bunch(&self, from: Place<'_>, url: &str) -> Said {
        self.call(from, &["loop", url, "--every", "0", "--count", BUNCH, "--timeout", "2"])
    }

    /// Waits until a call is refused at once, as where nobody listens. On the node that refuses, the datagram that is
    /// rejected on its way out is EPERM to its sender, and only the next one meets the ICMP error.
    #[track_caller]
    pub fn until_refused(&self, from: Place<'_>, args: &[&str]) {
        self.cluster.wait_for(&format!("{from:?}: {args:?} is refused"), || {
            let said = self.call(from, args);
            let refused = said.err.contains("refused") || said.err.contains("not permitted");
            if !said.ok && refused { Ok(()) } else { Err(format!("{said:?}")) }
        });
    }

    /// Waits until a call fails, in whatever way.
    #[track_caller]
    pub fn until_unanswered(&self, from: Place<'_>, args: &[&str]) {
        let args = [args, &["--timeout", "1"]].concat();
        self.cluster.wait_for(&format!("{from:?}: {args:?} is not answered"), || {
            let said = self.call(from, &args);
            if said.ok { Err(format!("{said:?}")) } else { Ok(()) }
        });
    }

    /// The addresses of a Service in each family.
    #[track_caller]
    pub fn service_ips(&self, name: &str) -> Vec<String> {
        let object = self.get(&["service", name]);
        let ips = object["spec"]["clusterIPs"].as_array();
        let ips = ips.unwrap_or_else(|| panic!("no address: {object}"));
        ips.iter().filter_map(|ip| ip.as_str()).map(str::to_owned).collect()
    }

    /// The node port of a Service's port.
    #[track_caller]
    pub fn node_port(&self, name: &str, port: &str) -> u16 {
        let object = self.get(&["service", name]);
        let ports = object["spec"]["ports"].as_array().cloned().unwrap_or_default();
        let port =
            ports.iter().find(|found| found["name"] == port).and_then(|port| port["nodePort"].as_u64());
        port.and_then(|port| port.try_into().ok()).unwrap_or_else(|| panic!("no node port: {object}"))
    }

    #[track_caller]
    pub fn patch(&self, object: &str, patch: &str) {
        self.kubectl_ok(&["patch", object, "--type=merge", "-p", patch]);
    }

    /// Ends a pod without any grace, and waits until its object is gone.
    #[track_caller]
    pub fn kill(&self, pod: &str) {
        self.kubectl_ok(&["delete", "pod", pod, "--grace-period=0", "--force"]);
    }
}

/// Who answered the calls of a `plumb demo loop`.
fn answered(said: &str) -> BTreeSet<&str> {
    said.lines().filter_map(|line| word(line, "name")).collect()
}

impl Cluster {
    /// In how many families Services have addresses.
    pub fn service_families(&self) -> usize {
        if self.stack == Stack::Dual { 2 } else { 1 }
    }

    /// A node's own addresses, one of each family.
    #[track_caller]
    pub fn node_ips(&self, node: &str) -> Vec<String> {
        let path = "jsonpath={.status.addresses[?(@.type==\"InternalIP\")].address}";
        self.kubectl_ok(&["get", "node", node, "-o", path]).split_whitespace().map(str::to_owned).collect()
    }

    /// `http://ADDRESS:PORT/` by every address of a node.
    #[track_caller]
    pub fn node_urls(&self, node: &str, port: u16) -> Vec<String> {
        self.node_ips(node).iter().map(|address| url(address, port)).collect()
    }

    /// Where the cluster's names are asked for.
    pub fn dns_ips(&self) -> &'static [&'static str] {
        match self.stack {
            Stack::Single => &["10.96.0.10"],
            Stack::Dual => &["10.96.0.10", "fd00:10:96::a"],
        }
    }

    /// Sends what the world outside has for an address to a node, as a load balancer or a router would.
    #[track_caller]
    pub fn route_outside(&self, address: &str, node: &str) {
        let family = address.contains(':');
        let of_node = self.node_ips(node).into_iter().find(|ip| ip.contains(':') == family);
        let of_node = of_node.unwrap_or_else(|| panic!("{node} has no address of the family of {address}"));
        self.node_ok("out", &["ip", "route", "replace", address, "via", &of_node]);
    }
}
