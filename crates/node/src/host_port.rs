//! Host ports that a runtime asks for: one pod each.

use cni::{Attach, Code, Error};
use model::HostPort;

use crate::record::Record;

/// The host ports of an attachment, unless another pod of this node has one of them. The scheduler keeps such pods
/// apart; a pod that names its node itself it never sees.
pub fn wanted<'a>(
    attach: &Attach,
    reserved: impl Fn(&HostPort) -> Option<String>,
    wired: impl Iterator<Item = &'a Record> + Clone,
) -> Result<Vec<HostPort>, Error> {
    let own = attach.pod.as_ref().map_or_else(|| attach.id.to_string(), |pod| pod.name.to_string());
    let mut found: Vec<HostPort> = Vec::new();
    for mapping in &attach.config.runtime.ports {
        let port = HostPort {
            protocol: mapping.protocol,
            port: mapping.host_port,
            container_port: mapping.container_port,
            host_ip: mapping.host_ip,
        };
        if let Some(what) = reserved(&port) {
            let msg = format!("pod {own} wants host port {port}, which is kept for {what}");
            return Err(Error::new(Code::HostPortTaken, msg, "give the pod another hostPort"));
        }
        let clash = |other: &&HostPort| other.clashes(&port);
        let holder = wired.clone().find_map(|record| {
            let held = record.host_ports.iter().find(clash)?;
            Some((record.pod.to_string(), held))
        });
        let twice = || found.iter().find(clash).map(|held| (own.clone(), held));
        // The same line twice is one.
        if found.contains(&port) {
            continue;
        }
        if let Some((holder, held)) = holder.or_else(twice) {
            let msg = format!("pod {own} wants host port {port}, and pod {holder} has {held} of this node");
            let details = "give one of the pods another hostPort, or another node";
            return Err(Error::new(Code::HostPortTaken, msg, details));
        }
        found.push(port);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use cni::Request;
    use serde_json::{Value, json};
    use types::{IfName, Mac, ObjectName, Protocol};

    use super::*;

    fn attach(ports: &Value) -> Attach {
        let config = json!({
            "cniVersion": "1.1.0", "name": "plumb", "type": "plumb-cni",
            "runtimeConfig": { "portMappings": ports },
        });
        let args = "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=late;K8S_POD_UID=u2";
        let env = [
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "c2"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", "/proc/7/ns/net"),
            ("CNI_ARGS", args),
        ];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter().collect();
        match Request::parse(&env, config.to_string().as_bytes()) {
            Ok(Request::Add(attach)) => attach,
            other => panic!("{other:?}"),
        }
    }

    fn free(_: &HostPort) -> Option<String> {
        None
    }

    fn record(port: u16) -> Record {
        let host_port = HostPort { protocol: Protocol::Tcp, port, container_port: 80, host_ip: None };
        Record {
            container: "c1".into(),
            ifname: IfName::new("eth0").unwrap(),
            network: "plumb".into(),
            netns: String::new(),
            pod: ObjectName::new("shop", "early"),
            uid: "u1".into(),
            ips: Vec::new(),
            wiring: types::Wiring::default(),
            host_if: IfName::new("veth1").unwrap(),
            mac: Mac::default(),
            host_ports: vec![host_port],
            netns_id: None,
            grace: 30,
            cut_off: false,
            further: Vec::new(),
        }
    }

    #[test]
    fn two_pods_that_want_one_port_are_both_named() {
        let wired = [record(8080)];
        let asked = attach(&json!([{"hostPort": 8080, "containerPort": 81, "hostIP": "127.0.0.1"}]));
        let error = wanted(&asked, free, wired.iter()).unwrap_err().to_string();
        for part in ["shop/late", "shop/early", "8080/tcp of 127.0.0.1"] {
            assert!(error.contains(part), "{error}");
        }
        let other = attach(&json!([
            {"hostPort": 8080, "containerPort": 81, "protocol": "udp"},
            {"hostPort": 8080, "containerPort": 81, "protocol": "udp"},
            {"hostPort": 8081, "containerPort": 81},
        ]));
        let ports = wanted(&other, free, wired.iter()).unwrap();
        assert_eq!(ports.iter().map(ToString::to_string).collect::<Vec<_>>(), ["8080/udp", "8081/tcp"]);
    }

    #[test]
    fn a_port_of_the_node_itself_is_refused_by_its_name() {
        let asked = attach(&json!([{"hostPort": 8472, "containerPort": 9000, "protocol": "udp"}]));
        let reserved = |port: &HostPort| (port.port == 8472).then(|| "the nodes' tunnel".to_owned());
        let error = wanted(&asked, reserved, [].iter()).unwrap_err().to_string();
        for part in ["shop/late", "8472/udp", "the nodes' tunnel"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn one_pod_cannot_have_a_port_twice() {
        let asked = attach(&json!([
            {"hostPort": 8080, "containerPort": 81}, {"hostPort": 8080, "containerPort": 82},
        ]));
        let error = wanted(&asked, free, [].iter()).unwrap_err().to_string();
        assert_eq!(error.matches("shop/late").count(), 2, "{error}");
    }
}
