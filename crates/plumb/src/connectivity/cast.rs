//! Who takes part: the pods and Services of the test, as objects to be made, and where they came to be.

use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};
use types::{Family, IpNet, Mac};

use crate::demo::probe::Check;

/// Where servers serve. A policy leaves `SHUT` closed for strangers.
pub const HTTP: u16 = 8080;
pub const SHUT: u16 = 8081;
pub const UDP: u16 = 9001;

/// Marks the namespace as ours, so that one that a killed test left behind can be removed and another's cannot.
pub const OWNER: (&str, &str) = ("app.kubernetes.io/managed-by", "plumb-connectivity");

/// One node and what stands on it. Addresses are those of both families, as far as there are any.
#[derive(Clone, Debug, Default)]
pub struct Place {
    pub index: usize,
    pub node: String,
    pub node_ips: Vec<IpAddr>,
    pub pod_cidrs: Vec<IpNet>,
    /// Of the node's tunnel, which agents write on their Node.
    pub vtep: Option<Mac>,
    pub server: Vec<IpAddr>,
    pub locked: Vec<IpAddr>,
    /// Whose place on the bridge is claimed: where that succeeds it hears nobody for some seconds.
    pub prey: Vec<IpAddr>,
    /// Of the Services in front of `server` and `mirror`.
    pub service: Vec<IpAddr>,
    pub mirror: Vec<IpAddr>,
}

fn of(addresses: &[IpAddr], family: Family) -> Option<IpAddr> {
    addresses.iter().copied().find(|address| Family::of(*address) == family)
}

impl Place {
    pub fn pod(&self, role: &str) -> String {
        format!("{role}-{}", self.index)
    }

    pub fn node_ip(&self, family: Family) -> Option<IpAddr> {
        of(&self.node_ips, family)
    }

    pub fn pod_cidr(&self, family: Family) -> Option<IpNet> {
        self.pod_cidrs.iter().copied().find(|net| Family::of_net(net) == family)
    }

    pub fn server(&self, family: Family) -> Option<IpAddr> {
        of(&self.server, family)
    }

    pub fn locked(&self, family: Family) -> Option<IpAddr> {
        of(&self.locked, family)
    }

    pub fn prey(&self, family: Family) -> Option<IpAddr> {
        of(&self.prey, family)
    }

    pub fn service(&self, family: Family) -> Option<IpAddr> {
        of(&self.service, family)
    }

    pub fn mirror(&self, family: Family) -> Option<IpAddr> {
        of(&self.mirror, family)
    }
}

/// Everything that checks are made from.
#[derive(Clone, Debug, Default)]
pub struct Cast {
    pub namespace: String,
    pub domain: String,
    pub image: String,
    /// Seconds that a check may take to hold.
    pub settle: u64,
    /// The node's port that `host-k` listens on.
    pub host_port: u16,
    pub places: Vec<Place>,
    /// Of the Service `all`.
    pub all: Vec<IpAddr>,
    pub node_port: Option<u16>,
    /// Of the Service default/kubernetes.
    pub api: Vec<IpAddr>,
    /// HOST:PORT, of each family one or none.
    pub outside: Vec<String>,
    pub outside_name: Option<String>,
    /// The outside says whom it sees.
    pub lab: bool,
}

impl Cast {
    /// The families in which pods have addresses.
    pub fn families(&self) -> Vec<Family> {
        let has = |family: &Family| self.places.iter().any(|place| place.server(*family).is_some());
        Family::ALL.into_iter().filter(has).collect()
    }

    /// The family in which something outside is met. A name may have addresses of both; it is asked for once.
    pub fn leads(&self, outside: &str) -> Option<Family> {
        match outside.parse::<SocketAddr>() {
            Ok(address) => Some(Family::of(address.ip())),
            Err(_) => self.families().first().copied(),
        }
    }

    pub fn servers(&self) -> Vec<String> {
        self.places.iter().map(|place| place.pod("server")).collect()
    }

    /// Services and policies, which need no address of anybody.
    pub fn services(&self) -> Vec<Value> {
        let ports = json!([
            {"name": "http", "port": HTTP, "targetPort": "http"},
            {"name": "udp", "port": UDP, "protocol": "UDP"},
        ]);
        let service = |name: &str, spec: Value| self.object("Service", name, json!({}), spec);
        let behind = |role: &str, place: &Place| {
            let spec = json!({"selector": {"role": role, "place": place.index.to_string()}, "ports": ports,
                "ipFamilyPolicy": "PreferDualStack"});
            service(&place.pod(role), spec)
        };
        let all = json!({"role": "server"});
        let first = self.places.first().map(|place| place.pod("server")).unwrap_or_default();
        let target = format!("{first}.{}.svc.{}", self.namespace, self.domain);
        let mut objects = vec![
            service("all", json!({"selector": all, "ports": ports, "ipFamilyPolicy": "PreferDualStack"})),
            service(
                "headless",
                json!({"selector": all, "ports": ports, "clusterIP": "None", "ipFamilyPolicy": "PreferDualStack"}),
            ),
            service(
                "ports",
                json!({"selector": all, "type": "NodePort", "ipFamilyPolicy": "PreferDualStack",
                    "ports": [{"name": "http", "port": HTTP, "targetPort": "http"}]}),
            ),
            service("external", json!({"type": "ExternalName", "externalName": target})),
        ];
        for place in &self.places {
            objects.extend([behind("server", place), behind("mirror", place)]);
        }
        objects
    }

    pub fn policies(&self) -> Vec<Value> {
        let policy = |name: &str, spec: Value| self.object("NetworkPolicy", name, json!({}), spec);
        let friends = json!({"podSelector": {"matchLabels": {"role": "client"}}});
        let dns = json!({"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]});
        let open = json!({"ports": [{"port": HTTP, "protocol": "TCP"}]});
        vec![
            policy(
                "locked",
                json!({"podSelector": {"matchLabels": {"role": "locked"}}, "policyTypes": ["Ingress"],
                    "ingress": [{"from": [friends]}]}),
            ),
            policy(
                "stranger",
                json!({"podSelector": {"matchLabels": {"role": "stranger"}}, "policyTypes": ["Egress"],
                    "egress": [dns, open]}),
            ),
        ]
    }

    /// Pods that answer.
    pub fn servers_of(&self, place: &Place) -> Vec<Value> {
        let host = ["--http", &self.host_port.to_string(), "--name", &place.node].map(str::to_owned);
        vec![
            self.pod("server", place, vec![self.server(&place.pod("server"))]),
            self.pod("locked", place, vec![self.server(&place.pod("locked"))]),
            self.pod("prey", place, vec![self.server(&place.pod("prey"))]),
            self.pod(
                "host",
                place,
                vec![self.container("server", &[&["serve".to_owned()], &host[..]].concat())],
            ),
        ]
    }

    /// The pod that carries out these checks.
    pub fn prober(&self, name: &str, place: &Place, checks: &[Check]) -> Value {
        let checks = serde_json::to_string(checks).unwrap_or_default();
        let settle = self.settle.to_string();
        let probe = self.container("probe", &["probe".to_owned(), checks, "--settle".to_owned(), settle]);
        let role = name.rsplit_once('-').map_or(name, |(role, _)| role);
        match role {
            "mirror" => self.pod(role, place, vec![self.server(name), probe]),
            _ => self.pod(role, place, vec![probe]),
        }
    }

    fn server(&self, name: &str) -> Value {
        let words = ["serve", "--http", "8080", "--http", "8081", "--udp", "9001", "--name", name];
        let mut container = self.container("server", &words.map(str::to_owned));
        container["ports"] = json!([
            {"name": "http", "containerPort": HTTP}, {"name": "udp", "containerPort": UDP, "protocol": "UDP"},
        ]);
        container["readinessProbe"] =
            json!({"httpGet": {"path": "/readyz", "port": HTTP}, "periodSeconds": 1});
        container
    }

    fn container(&self, name: &str, args: &[String]) -> Value {
        json!({"name": name, "image": self.image, "command": ["plumb", "demo"], "args": args})
    }

    fn pod(&self, role: &str, place: &Place, containers: Vec<Value>) -> Value {
        let mut spec = json!({
            "nodeName": place.node,
            "containers": containers,
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "tolerations": [{"operator": "Exists"}],
        });
        if role.starts_with("host") {
            spec["hostNetwork"] = true.into();
        }
        let labels = json!({"role": role, "place": place.index.to_string()});
        self.object("Pod", &place.pod(role), labels, spec)
    }

    fn object(&self, kind: &str, name: &str, labels: Value, spec: Value) -> Value {
        let version = if kind == "NetworkPolicy" { "networking.k8s.io/v1" } else { "v1" };
        json!({"apiVersion": version, "kind": kind, "spec": spec,
            "metadata": {"name": name, "namespace": self.namespace, "labels": labels}})
    }
}
