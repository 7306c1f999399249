//! Addresses that pods had and no longer have. Who has one next did not begin what is known of it.

use std::net::IpAddr;

use types::IpNet;

use crate::row::Pod;

/// What pods have left behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vacated {
    /// Their own addresses.
    pub addresses: Vec<IpAddr>,
    /// Where else they asked to send from, each with the pod's node.
    pub sources: Vec<(String, IpNet)>,
}

impl Vacated {
    /// `now`: the pod of that name as it is now.
    pub(super) fn add(&mut self, before: &Pod, now: Option<&Pod>) {
        let same = now.filter(|now| now.uid == before.uid);
        let (addresses, sources) =
            same.map_or((&[][..], &[][..]), |pod| (pod.own_addresses(), pod.further_sources()));
        self.addresses.extend(before.own_addresses().iter().filter(|address| !addresses.contains(address)));
        if let Some(node) = &before.node {
            let left = before.further_sources().iter().filter(|net| !sources.contains(net));
            self.sources.extend(left.map(|net| (node.clone(), *net)));
        }
    }
}

#[cfg(test)]
mod tests {
    use types::ObjectName;

    use super::super::{Cluster, Event, Key, Kind, Row};
    use super::*;
    use crate::row::{Phase, Sources};

    fn key() -> ObjectName {
        ObjectName::new("shop", "web")
    }

    fn gone() -> Event {
        Event::Delete(Key::new(Kind::Pod, key()))
    }

    #[test]
    fn addresses_are_vacated_once_when_their_pod_is_gone_ended_or_another() {
        let pod = |uid: &str, addresses: &[u8], phase, host_network| {
            let ips = addresses.iter().map(|last| [10, 244, 1, *last].into()).collect();
            let pod = Pod { key: key(), uid: uid.into(), ips, phase, host_network, ..Pod::default() };
            Event::Upsert(Row::Pod(Box::new(pod)))
        };
        let (runs, ended) = (Phase::Running, Phase::Succeeded);
        let mut cluster = Cluster::default();
        for (event, vacated) in [
            (pod("a", &[2, 3], runs, false), &[][..]),
            (pod("a", &[2], runs, false), &[3]),
            (pod("b", &[2], runs, false), &[2]),
            (pod("b", &[2], ended, false), &[2]),
            (gone(), &[]),
            (pod("c", &[4], runs, false), &[]),
            (Event::Start(Kind::Pod), &[]),
            (Event::Done(Kind::Pod), &[4]),
            (pod("d", &[5], runs, true), &[]),
            (gone(), &[]),
        ] {
            cluster.apply(event.clone());
            let expected: Vec<IpAddr> = vacated.iter().map(|last| [10, 244, 1, *last].into()).collect();
            assert_eq!(cluster.take_vacated().addresses, expected, "{event:?}");
        }
    }

    #[test]
    fn further_sources_are_vacated_with_the_annotation_and_with_the_pod() {
        let pod = |uid: &str, node: Option<&str>, nets: &[&str], phase| {
            let nets: Vec<IpNet> = nets.iter().map(|net| net.parse().expect("a prefix")).collect();
            let sources = (!nets.is_empty()).then(|| Box::new(Sources { created: 1, nets }));
            let node = node.map(str::to_owned);
            let pod = Pod { key: key(), uid: uid.into(), node, phase, sources, ..Pod::default() };
            Event::Upsert(Row::Pod(Box::new(pod)))
        };
        let (runs, ended, n1) = (Phase::Running, Phase::Failed, Some("node1"));
        let (a, b) = ("198.51.100.0/28", "2001:db8:51::7/128");
        let mut cluster = Cluster::default();
        for (event, vacated) in [
            (pod("a", n1, &[a, b], runs), &[][..]),
            (pod("a", n1, &[b], runs), &[a]),
            (pod("a", n1, &[], runs), &[b]),
            (pod("a", n1, &[a], runs), &[]),
            (pod("b", n1, &[a], runs), &[a]),
            (pod("b", n1, &[a, b], ended), &[a]),
            (gone(), &[]),
            (pod("c", None, &[a], runs), &[]),
            (gone(), &[]),
            (pod("d", n1, &[a, b], runs), &[]),
            (gone(), &[a, b]),
        ] {
            cluster.apply(event.clone());
            let expected: Vec<_> =
                vacated.iter().map(|net| ("node1".to_owned(), net.parse().expect("a prefix"))).collect();
            assert_eq!(cluster.take_vacated().sources, expected, "{event:?}");
        }
    }
}
