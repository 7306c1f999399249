//! Every name of the zone that leads to an address, for people.

use std::net::IpAddr;

use crate::hosts::Hosts;
use crate::query::Type;
use crate::resolv::ResolvConf;
use crate::zone::Zone;
use crate::zone::records::RrSet;

/// A name of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// Without the closing dot.
    pub name: String,
    pub addresses: Vec<IpAddr>,
    /// Where a Service of type ExternalName leads.
    pub alias: Option<String>,
}

impl Zone {
    /// In the order of the names. Reverse names, SRV names and names of pods by their address are not listed.
    pub fn listing(&self) -> Vec<Listed> {
        let domain = plain(&self.settings.domain.to_string());
        let below = |name: &str| name.strip_suffix(&domain).is_some_and(|rest| rest.ends_with('.'));
        let mut all: Vec<Listed> = self
            .nodes
            .iter()
            .map(|(name, node)| Listed {
                name: plain(&name.to_string()),
                addresses: [Type::A, Type::AAAA]
                    .iter()
                    .filter_map(|kind| node.set(*kind))
                    .flat_map(of)
                    .collect(),
                alias: node.alias.as_ref().map(|alias| plain(&alias.to_string())),
            })
            .filter(|listed| below(&listed.name) && (!listed.addresses.is_empty() || listed.alias.is_some()))
            .collect();
        all.sort_unstable();
        all
    }
}

fn plain(name: &str) -> String {
    name.trim_end_matches('.').to_owned()
}

/// The data of each record, behind owner, type, class, TTL and length.
fn of(set: &RrSet) -> impl Iterator<Item = IpAddr> {
    set.iter().filter_map(|record| {
        let data = record.get(12..)?;
        match (<[u8; 4]>::try_from(data), <[u8; 16]>::try_from(data)) {
            (Ok(v4), _) => Some(IpAddr::from(v4)),
            (_, Ok(v6)) => Some(IpAddr::from(v6)),
            _ => None,
        }
    })
}

/// The least that a pod with these files has to say for a name, and at which step its resolver comes to it. `known`: the
/// names that would be found before. What is in /etc/hosts is found there, as it is written, before anybody is asked
/// (`hosts: files dns`, nsswitch.conf(5)).
pub fn shortest(
    full: &str,
    (conf, hosts): (&ResolvConf, &Hosts),
    known: impl Fn(&str) -> bool,
) -> (String, usize) {
    let suffixes = conf.search.iter().map(|suffix| suffix.trim_matches('.'));
    let short = suffixes.filter_map(|suffix| full.strip_suffix(suffix)?.strip_suffix('.'));
    for name in short.chain([full]).filter(|name| hosts.addresses(name).is_empty()) {
        for (candidate, step) in conf.candidates(name).iter().zip(1..) {
            if candidate == full {
                return (name.to_owned(), step);
            }
            if known(candidate) {
                break;
            }
        }
    }
    (format!("{full}."), 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_says_as_little_as_leads_there() {
        let conf = ResolvConf::parse(
            "nameserver 10.96.0.10\nsearch shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n",
        );
        let names = ["db.shop.svc.cluster.local", "db.other.svc.cluster.local", "a.b.shop.svc.cluster.local"];
        let known = |name: &str| names.contains(&name) || name == "a.b.svc.cluster.local";
        for (full, short, step) in [
            ("db.shop.svc.cluster.local", "db", 1),
            ("db.other.svc.cluster.local", "db.other", 2),
            // Found before: that of a pod of `a.b` of the pod's own namespace.
            ("a.b.svc.cluster.local", "a.b.svc", 3),
            ("ns.dns.cluster.local", "ns.dns", 3),
        ] {
            assert_eq!(shortest(full, (&conf, &Hosts::default()), known), (short.to_owned(), step), "{full}");
        }
    }

    /// Its file wins for what is written in it, and for nothing that it is searched as.
    #[test]
    fn a_name_of_the_pods_own_file_leads_nowhere_else() {
        let conf = ResolvConf::parse(
            "nameserver 10.96.0.10\nsearch shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n",
        );
        let full = "db.shop.svc.cluster.local";
        for (hosts, short, step) in [
            ("10.9.9.9 other", "db", 1),
            ("10.9.9.9 other DB", "db.shop", 2),
            ("10.9.9.9 db db.shop\n::1 db.shop.svc", full, 4),
            ("10.9.9.9 db.shop.svc.cluster.local", "db", 1),
            ("10.9.9.9 db db.shop db.shop.svc db.shop.svc.cluster.local", "db.shop.svc.cluster.local.", 1),
        ] {
            let found = shortest(full, (&conf, &Hosts::parse(hosts)), |name| name == full);
            assert_eq!(found, (short.to_owned(), step), "{hosts}");
        }
    }
}
