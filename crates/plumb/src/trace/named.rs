//! What only the cluster can say of a target: which port has a name, and which address a pod has.

use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use trace::exchange::Ask;
use types::{Family, Protocol};

use super::ask::Target;
use crate::advice::Cluster;

/// What has a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Service,
    Pod,
    Node,
}

impl Kind {
    /// As kubectl writes it before the name.
    pub fn of(word: &str) -> Option<Self> {
        match word {
            "svc" | "service" | "services" => Some(Self::Service),
            "pod" | "pods" | "po" => Some(Self::Pod),
            "node" | "nodes" | "no" => Some(Self::Node),
            _ => None,
        }
    }

    pub fn word(self) -> &'static str {
        match self {
            Self::Service => "svc",
            Self::Pod => "pod",
            Self::Node => "node",
        }
    }
}

/// An object and its port, by number or name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    kind: Kind,
    /// `None`: that of the pod that sends.
    namespace: Option<String>,
    name: String,
    port: String,
}

impl Named {
    /// The name of a Service may have its namespace behind it, as in DNS.
    pub fn new(kind: Kind, namespace: Option<&str>, name: &str, port: &str) -> Self {
        let mut labels = name.split('.');
        let (first, second) =
            (labels.next().unwrap_or_default(), labels.next().filter(|label| !label.is_empty()));
        let (name, behind) = if kind == Kind::Service { (first, second) } else { (name, None) };
        let namespace = namespace.or(behind).map(str::to_owned);
        Self { kind, namespace, name: name.to_owned(), port: port.to_owned() }
    }
}

/// One port of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Port {
    name: String,
    number: i32,
    protocol: String,
}

/// What was asked for, with its port as a number. `from`: the namespace of the pod that sends.
pub async fn aim(cluster: &Cluster, from: &str, target: Target) -> Result<Ask> {
    let Target { mut ask, named } = target;
    let Some(named) = named else { return Ok(ask) };
    let (namespace, name) = (named.namespace.as_deref().unwrap_or(from), named.name.as_str());
    let list = |what: &str| cluster.advice.kubectl(&format!("get {what} -n {namespace}"));
    match named.kind {
        Kind::Service => {
            let api: Api<Service> = Api::namespaced(cluster.client.clone(), namespace);
            let what = format!("Service {namespace}/{name}");
            let found = api
                .get_opt(name)
                .await
                .map_err(|error| install::explain(error, &format!("read the {what}")))?;
            let service = found.with_context(|| {
                format!("there is no {what}; `{}` lists those that are", list("services"))
            })?;
            ask.port = port(&ports_of_service(&service), &named.port, ask.protocol, &what)?;
        }
        Kind::Pod => {
            let api: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
            let what = format!("pod {namespace}/{name}");
            let pod = listed(&api, name, &format!("the pods of namespace {namespace}")).await?;
            let pod =
                pod.with_context(|| format!("there is no {what}; `{}` lists those that are", list("pods")))?;
            ask.port = match named.port.parse() {
                Ok(number) => number,
                Err(_) => port(&ports_of_pod(&pod), &named.port, ask.protocol, &what)?,
            };
            ask.host = address(addresses_of_pod(&pod), ask.family, &what)?.to_string();
        }
        Kind::Node => {
            let node = listed(&Api::<Node>::all(cluster.client.clone()), name, "the nodes").await?;
            let all = cluster.advice.kubectl("get nodes");
            let node =
                node.with_context(|| format!("there is no node {name}; `{all}` lists those that are"))?;
            ask.port = named.port.parse().context("a node's port is a number")?;
            ask.host = address(addresses_of_node(&node), ask.family, &format!("node {name}"))?.to_string();
        }
    }
    Ok(ask)
}

/// One by its name: whoever traces may list them.
async fn listed<K>(api: &Api<K>, name: &str, what: &str) -> Result<Option<K>>
where
    K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let listed = api.list(&ListParams::default()).await;
    let listed = listed.map_err(|error| install::explain(error, &format!("list {what}")))?;
    Ok(listed.into_iter().find(|object| object.name_any() == name))
}

/// What no name of the cluster is meant by, where a pod or a node is called so. `from`: the namespace of the pod that sends.
pub async fn hint(cluster: &Cluster, from: &str, ask: &Ask) -> Option<String> {
    let (host, port) = (ask.host.as_str(), ask.port);
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), from);
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let kind = match (listed(&pods, host, "pods").await, listed(&nodes, host, "nodes").await) {
        (Ok(Some(_)), _) => Kind::Pod,
        (_, Ok(Some(_))) => Kind::Node,
        _ => return None,
    };
    let word = kind.word();
    Some(match ask.protocol {
        Protocol::Icmp => format!("{host} is a {word}, which DNS does not know: ping:{word}/{host}"),
        _ => format!("{host} is a {word}, which DNS does not know: {word}/{host}:{port}"),
    })
}

fn ports_of_service(service: &Service) -> Vec<Port> {
    let rows = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    let port = |row: &k8s_openapi::api::core::v1::ServicePort| Port {
        name: row.name.clone().unwrap_or_default(),
        number: row.port,
        protocol: row.protocol.clone().unwrap_or_else(|| "TCP".into()),
    };
    rows.map(port).collect()
}

fn ports_of_pod(pod: &Pod) -> Vec<Port> {
    let spec = pod.spec.iter();
    let containers =
        spec.flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
    let port = |row: &k8s_openapi::api::core::v1::ContainerPort| Port {
        name: row.name.clone().unwrap_or_default(),
        number: row.container_port,
        protocol: row.protocol.clone().unwrap_or_else(|| "TCP".into()),
    };
    containers.flat_map(|container| container.ports.iter().flatten()).map(port).collect()
}

/// The port of this name and protocol; an error lists those that there are.
fn port(ports: &[Port], name: &str, protocol: Protocol, what: &str) -> Result<u16> {
    let word = protocol.to_string().to_uppercase();
    let mut fitting = ports.iter().filter(|port| port.name == name && port.protocol == word);
    if let Some(port) = fitting.next() {
        return u16::try_from(port.number).with_context(|| format!("{what}: port {}", port.number));
    }
    let shown = |port: &Port| match port.name.as_str() {
        "" => format!("{}/{}", port.number, port.protocol),
        name => format!("{name} ({}/{})", port.number, port.protocol),
    };
    let all: Vec<String> = ports.iter().map(shown).collect();
    let all = if all.is_empty() { "none".to_owned() } else { all.join(", ") };
    let other = ports.iter().any(|port| port.name == name);
    let next = match (other, protocol) {
        (true, Protocol::Udp) => "; leave --udp out",
        (true, _) if ports.iter().any(|port| port.name == name && port.protocol == "UDP") => "; add --udp",
        _ => "",
    };
    bail!("{what} has no {word} port {name:?}; it has {all}{next}")
}

fn addresses_of_pod(pod: &Pod) -> Vec<IpAddr> {
    let ips = pod.status.iter().flat_map(|status| status.pod_ips.iter().flatten());
    ips.filter_map(|ip| ip.ip.parse().ok()).collect()
}

fn addresses_of_node(node: &Node) -> Vec<IpAddr> {
    let all = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    all.filter(|address| address.type_ == "InternalIP").filter_map(|ip| ip.address.parse().ok()).collect()
}

fn address(all: Vec<IpAddr>, family: Option<Family>, what: &str) -> Result<IpAddr> {
    let fits = |ip: &&IpAddr| family.is_none_or(|family| Family::of(**ip) == family);
    match (all.iter().find(fits), family, all.as_slice()) {
        (Some(ip), ..) => Ok(*ip),
        (None, Some(family), [ip, ..]) => bail!("{what} has no {family} address; it has {ip}"),
        (None, ..) => bail!("{what} has no address yet"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod() -> Pod {
        let ports =
            json!([{"name": "http", "containerPort": 8080}, {"containerPort": 53, "protocol": "UDP"}]);
        serde_json::from_value(
            json!({"metadata": {}, "spec": {"containers": [{"name": "a", "ports": ports}]},
            "status": {"podIPs": [{"ip": "10.244.1.2"}, {"ip": "fd00::2"}]}}),
        )
        .unwrap()
    }

    #[test]
    fn a_port_is_found_by_its_name() {
        let ports = json!([{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]);
        let service: Service =
            serde_json::from_value(json!({"metadata": {}, "spec": {"ports": ports}})).unwrap();
        let ports = ports_of_service(&service);
        let of = |name, protocol| {
            port(&ports, name, protocol, "Service shop/api").map_err(|error| error.to_string())
        };
        assert_eq!(of("http", Protocol::Tcp), Ok(80));
        assert_eq!(of("dns", Protocol::Udp), Ok(53));
        let has = "it has http (80/TCP), dns (53/UDP)";
        let none = |word, name| format!("Service shop/api has no {word} port {name:?}; {has}");
        assert_eq!(of("web", Protocol::Tcp), Err(none("TCP", "web")));
        assert_eq!(of("dns", Protocol::Tcp), Err(none("TCP", "dns") + "; add --udp"));
        assert_eq!(of("http", Protocol::Udp), Err(none("UDP", "http") + "; leave --udp out"));
    }

    #[test]
    fn a_pod_has_the_ports_of_its_containers_and_its_own_addresses() {
        let pod = pod();
        assert_eq!(port(&ports_of_pod(&pod), "http", Protocol::Tcp, "pod shop/web").unwrap(), 8080);
        let said = port(&ports_of_pod(&pod), "web", Protocol::Tcp, "pod shop/web").unwrap_err().to_string();
        assert_eq!(said, "pod shop/web has no TCP port \"web\"; it has http (8080/TCP), 53/UDP");
        let said = port(&[], "web", Protocol::Tcp, "pod shop/web").unwrap_err().to_string();
        assert!(said.ends_with("it has none"), "{said}");
        let at = |family| address(addresses_of_pod(&pod), family, "pod shop/web").map(|ip| ip.to_string());
        assert_eq!(at(None).unwrap(), "10.244.1.2");
        assert_eq!(at(Some(Family::V6)).unwrap(), "fd00::2");
        assert!(address(addresses_of_pod(&Pod::default()), None, "pod shop/web").is_err());
    }
}
