//! Ports of the node that lead to one pod of it (`hostPort`), whoever asks: another host, a pod, the node itself.
//!
//! ```text
//!   any address of the node : port ──┐
//!   one address of the node : port ──┴─> pod : containerPort      the pod sees who called, except the node and itself
//! ```
//! What Services lead to comes first, as where their rules and a port mapping are made by two programs; so does a port at
//! which the node answers a Service's health checks (`plan/claims.rs`). The pod has the port at the node's other addresses,
//! and an Event says whose it is at that one.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use model::{Attachment, Cluster, HostPort, Key, Kind};
use types::{Family, ObjectName, Protocol};

use super::plan::{holder, node_address};
use super::reserved;
use crate::Settings;
use crate::diagnostic::{Diagnostic, Severity};

/// One port of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostFront {
    /// `None`: every address that the node has, now or later.
    pub address: Option<IpAddr>,
    pub protocol: Protocol,
    pub port: u16,
    pub pod: SocketAddr,
}

/// What leads to a pod in one family.
pub fn fronts(node: (&Cluster, &Settings), attachment: &Attachment, family: Family) -> Vec<HostFront> {
    let Some(pod) = attachment.ips.iter().copied().find(|ip| Family::of(*ip) == family) else {
        return Vec::new();
    };
    let free = attachment.host_ports.iter().filter(|asked| reserved::host_port(node, asked).is_none());
    let asked = free.filter_map(|asked| {
        let address = match asked.host_ip {
            _ if asked.is_everywhere(family) => None,
            Some(one) if Family::of(one) == family && one != Ipv6Addr::LOCALHOST => Some(one),
            _ => return None,
        };
        let pod = SocketAddr::new(pod, asked.container_port);
        Some(HostFront { address, protocol: asked.protocol, port: asked.port, pod })
    });
    asked.collect()
}

/// Names what does not happen although the pod may look as if it did.
pub fn findings(node: (&Cluster, &Settings), attachment: &Attachment) -> Vec<Diagnostic> {
    let finding = |field: &str, message, next_step: &str| Diagnostic {
        object: Key::new(Kind::Pod, attachment.pod.clone()),
        field: field.to_owned(),
        severity: Severity::Warning,
        message,
        next_step: next_step.to_owned(),
    };
    let of_port = |asked: &HostPort| {
        let other = |message| finding("spec.containers[].ports[].hostPort", message, "use another host port");
        if let Some(what) = reserved::host_port(node, asked) {
            return vec![other(format!("host port {asked} is not served: it is kept for {what}"))];
        }
        if asked.host_ip == Some(Ipv6Addr::LOCALHOST.into()) {
            let message = format!("host port {asked} is not served: packets from ::1 cannot leave the node");
            let next_step = "use 127.0.0.1 or an address of the node";
            return vec![finding("spec.containers[].ports[].hostIP", message, next_step)];
        }
        let lost = taken(node, attachment, asked).map(|(at, service)| {
            other(format!("host port {asked} does not lead to this pod at {at}: Service {service} has it"))
        });
        lost.collect()
    };
    attachment.host_ports.iter().flat_map(of_port).collect()
}

/// Where Services come first, and which.
fn taken<'a>(
    (cluster, settings): (&'a Cluster, &'a Settings),
    attachment: &'a Attachment,
    asked: &'a HostPort,
) -> impl Iterator<Item = (IpAddr, ObjectName)> + 'a {
    let served = |family: &Family| attachment.ips.iter().any(|ip| Family::of(*ip) == *family);
    settings.families().filter(served).filter_map(move |family| {
        let named = asked.host_ip.filter(|ip| Family::of(*ip) == family && !ip.is_unspecified());
        let everywhere = || asked.is_everywhere(family).then(|| node_address(cluster, settings, family));
        let address = named.or_else(|| everywhere().flatten())?;
        let at = (address, asked.protocol, asked.port);
        Some((address, holder((cluster, settings), at, named.is_some())?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::{IfName, Mac, ObjectName};

    fn settings() -> Settings {
        Settings {
            api: ["192.168.1.10:6443", "127.0.0.1:6444", "192.168.1.100:8443"]
                .map(|api| api.parse().unwrap())
                .to_vec(),
            ..Settings::new("node1", vec!["10.244.0.0/16".parse().unwrap()], 1450)
        }
    }

    /// A pod that was wired before these ports were the node's own goes on without them.
    #[test]
    fn ports_of_the_node_itself_lead_to_no_pod() {
        let port = |protocol, port, host_ip: &str| HostPort {
            protocol,
            port,
            container_port: 80,
            host_ip: host_ip.parse().ok(),
        };
        let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
        let taken = [
            port(udp, 8472, ""),
            port(tcp, 9475, "192.168.1.10"),
            port(tcp, 9476, ""),
            port(udp, 9476, "0.0.0.0"),
            port(tcp, 10250, "127.0.0.1"),
            port(tcp, 10256, ""),
            port(tcp, 6443, ""),
            port(tcp, 6443, "192.168.1.10"),
            port(tcp, 6444, "127.0.0.1"),
            // An address of the API's that is some node's: this one's, if it can be had here at all.
            port(tcp, 8443, "192.168.1.100"),
            // The API server of this node has all of its addresses.
            port(tcp, 6443, "127.0.0.1"),
            port(tcp, 6443, "203.0.113.10"),
            port(tcp, 10248, ""),
            port(tcp, 10249, "127.0.0.1"),
        ];
        let free = [
            port(tcp, 8472, ""),
            port(udp, 9475, ""),
            port(tcp, 10249, "192.168.1.10"),
            port(tcp, 6444, "192.168.1.10"),
            port(udp, 6443, ""),
            port(tcp, 8443, ""),
            port(tcp, 8443, "192.168.1.10"),
        ];
        let attachment = Attachment {
            wiring: types::Wiring::default(),
            container: "c/eth0".into(),
            pod: ObjectName::new("atk", "hijack"),
            uid: String::new(),
            ips: vec!["10.244.1.4".parse().unwrap()],
            host_if: IfName::new("veth1").unwrap(),
            mac: Mac::default(),
            host_ports: taken.iter().chain(&free).cloned().collect(),
            withheld: Vec::new(),
        };
        let (mut cluster, settings) = (Cluster::default(), settings());
        let addresses = vec!["192.168.1.10".parse().unwrap()];
        let own = model::Node { name: "node1".into(), addresses, ..Default::default() };
        cluster.apply(model::Event::Upsert(model::Row::Node(own)));
        let node = (&cluster, &settings);
        assert_eq!(fronts(node, &attachment, Family::V4).len(), free.len());
        let said = findings(node, &attachment);
        assert_eq!(said.len(), taken.len(), "{said:?}");
        assert!(
            said[0].to_string().contains("8472/udp is not served: it is kept for the nodes' tunnel"),
            "{}",
            said[0]
        );
    }

    #[test]
    fn each_family_has_what_is_meant_for_it() {
        let port = |port, host_ip: &str| HostPort {
            protocol: Protocol::Sctp,
            port,
            container_port: 80,
            host_ip: host_ip.parse().ok(),
        };
        let attachment = Attachment {
            wiring: types::Wiring::default(),
            container: "c/eth0".into(),
            pod: ObjectName::new("shop", "web"),
            uid: String::new(),
            ips: vec!["10.244.1.4".parse().unwrap(), "fd00::4".parse().unwrap()],
            host_if: IfName::new("veth1").unwrap(),
            mac: Mac::default(),
            host_ports: vec![
                port(1, ""),
                port(2, "0.0.0.0"),
                port(3, "::"),
                port(4, "127.0.0.1"),
                port(5, "::1"),
            ],
            withheld: Vec::new(),
        };
        let (cluster, settings) = (Cluster::default(), settings());
        let node = (&cluster, &settings);
        let said = |family| -> Vec<_> {
            fronts(node, &attachment, family).iter().map(|f| (f.port, f.address, f.pod.to_string())).collect()
        };
        let four = "127.0.0.1".parse().ok();
        let v4 = |port, address| (port, address, "10.244.1.4:80".to_owned());
        let v6 = |port| (port, None, "[fd00::4]:80".to_owned());
        assert_eq!(said(Family::V4), [v4(1, None), v4(2, None), v4(4, four)]);
        assert_eq!(said(Family::V6), [v6(1), v6(3)]);
        let said: Vec<_> = findings(node, &attachment).into_iter().map(|found| found.message).collect();
        assert!(said.len() == 1 && said[0].contains("5/sctp of ::1"), "{said:?}");
        let single = Attachment { ips: vec!["10.244.1.4".parse().unwrap()], ..attachment };
        assert_eq!(fronts(node, &single, Family::V6), []);
    }
}
