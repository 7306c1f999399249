//! Network state and plans as text: a plan prints itself, one operation per line, `+` and `-` in front.

use std::fmt;

use super::{Link, LinkKind, NetState, Op, Plan, Route, RouteKey, RouteKind};

impl fmt::Display for LinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bridge => f.write_str("bridge"),
            Self::Veth => f.write_str("veth"),
            Self::Vxlan { vni, local, port } => write!(f, "vxlan {} local {local} port {port}", vni.0),
        }
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        if let Some(mac) = self.mac {
            write!(f, " mac {mac}")?;
        }
        if let Some(mtu) = self.mtu {
            write!(f, " mtu {mtu}")?;
        }
        f.write_str(if self.up { " up" } else { " down" })?;
        match &self.port {
            Some(port) if port.options.is_empty() => write!(f, " port of {}", port.bridge),
            Some(port) => write!(f, " port of {}, {}", port.bridge, port.options),
            None => Ok(()),
        }
    }
}

impl fmt::Display for RouteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.dst)?;
        // The main table needs no word.
        if self.table == Self::MAIN { Ok(()) } else { write!(f, " table {}", self.table) }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        if self.kind == RouteKind::Unreachable {
            words.push("unreachable".to_owned());
        }
        words.extend(self.via.map(|via| format!("via {via}")));
        words.extend(self.dev.as_ref().map(|dev| format!("dev {dev}")));
        words.extend(self.onlink.then(|| "onlink".to_owned()));
        words.extend(self.src.map(|src| format!("src {src}")));
        f.write_str(&words.join(" "))
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddLink { name, link } => write!(f, "+ link {name} {link}"),
            Self::ChangeLink { name, link } => write!(f, "~ link {name} {link}"),
            Self::DeleteLink { name } => write!(f, "- link {name}"),
            Self::AddAddress { link, address } => write!(f, "+ address {address} dev {link}"),
            Self::SetSubnet { link, address } => {
                write!(f, "+ route {} dev {link} proto kernel", address.trunc())
            }
            Self::DeleteAddress { link, address } => write!(f, "- address {address} dev {link}"),
            Self::SetRoute { key, route } => write!(f, "+ route {key} {route}"),
            Self::DeleteRoute { key } => write!(f, "- route {key}"),
            Self::SetNeighbour { link, ip, mac } => write!(f, "+ neighbour {ip} {mac} dev {link}"),
            Self::DeleteNeighbour { link, ip } => write!(f, "- neighbour {ip} dev {link}"),
            Self::SetFdb { link, mac, to } => write!(f, "+ fdb {mac} {to} dev {link}"),
            Self::DeleteFdb { link, mac, .. } => write!(f, "- fdb {mac} dev {link}"),
            Self::SetSysctl { path, value } => write!(f, "+ sysctl {path} = {value}"),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ops().try_for_each(|op| writeln!(f, "{op}"))
    }
}

impl fmt::Display for NetState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (path, value) in &self.sysctls {
            writeln!(f, "sysctl {path} = {value}")?;
        }
        for (name, link) in &self.links {
            writeln!(f, "link {name} {link}")?;
        }
        for (link, address) in &self.addresses {
            writeln!(f, "address {address} dev {link}")?;
        }
        for (link, address) in &self.subnets {
            writeln!(f, "route {} dev {link} proto kernel", address.trunc())?;
        }
        for ((link, ip), mac) in &self.neighbours {
            writeln!(f, "neighbour {ip} {mac} dev {link}")?;
        }
        for ((link, mac), to) in &self.fdb {
            writeln!(f, "fdb {mac} {to} dev {link}")?;
        }
        for (key, route) in &self.routes {
            writeln!(f, "route {key} {route}")?;
        }
        Ok(())
    }
}
