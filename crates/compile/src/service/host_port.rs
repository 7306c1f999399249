//! Ports of the node that lead to one pod of it (`hostPort`), whoever asks: another host, a pod, the node itself.
//!
//! ```text
//!   any address of the node : port ──┐
//!   one address of the node : port ──┴─> pod : containerPort      the pod sees who called, except the node and itself
//! ```
//! What Services lead to comes first, as where their rules and a port mapping are made by two programs.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use model::{Attachment, HostPort, Key, Kind};
use types::{Family, Protocol};

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
pub fn fronts(attachment: &Attachment, family: Family) -> Vec<HostFront> {
    let Some(pod) = attachment.ips.iter().copied().find(|ip| Family::of(*ip) == family) else {
        return Vec::new();
    };
    let asked = attachment.host_ports.iter().filter_map(|asked| {
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
pub fn findings(attachment: &Attachment) -> impl Iterator<Item = Diagnostic> + '_ {
    let unserved = |asked: &&HostPort| asked.host_ip == Some(Ipv6Addr::LOCALHOST.into());
    attachment.host_ports.iter().filter(unserved).map(|asked| Diagnostic {
        object: Key::new(Kind::Pod, attachment.pod.clone()),
        field: "spec.containers[].ports[].hostIP".to_owned(),
        severity: Severity::Warning,
        message: format!("host port {asked} is not served: packets from ::1 cannot leave the node"),
        next_step: "use 127.0.0.1 or an address of the node".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::{IfName, Mac, ObjectName};

    #[test]
    fn each_family_has_what_is_meant_for_it() {
        let port = |port, host_ip: &str| HostPort {
            protocol: Protocol::Sctp,
            port,
            container_port: 80,
            host_ip: host_ip.parse().ok(),
        };
        let attachment = Attachment {
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
        };
        let said = |family| -> Vec<_> {
            fronts(&attachment, family).iter().map(|f| (f.port, f.address, f.pod.to_string())).collect()
        };
        let four = "127.0.0.1".parse().ok();
        let v4 = |port, address| (port, address, "10.244.1.4:80".to_owned());
        let v6 = |port| (port, None, "[fd00::4]:80".to_owned());
        assert_eq!(said(Family::V4), [v4(1, None), v4(2, None), v4(4, four)]);
        assert_eq!(said(Family::V6), [v6(1), v6(3)]);
        let said: Vec<_> = findings(&attachment).map(|found| found.message).collect();
        assert!(said.len() == 1 && said[0].contains("5/sctp of ::1"), "{said:?}");
        let single = Attachment { ips: vec!["10.244.1.4".parse().unwrap()], ..attachment };
        assert_eq!(fronts(&single, Family::V6), []);
    }
}
