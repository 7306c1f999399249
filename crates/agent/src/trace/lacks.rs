//! Why a name of the cluster has no address of a family, as its Service tells.

use std::collections::BTreeSet;
use std::net::IpAddr;

use model::{Cluster, Service, ServiceType};
use types::{Family, ObjectName, Protocol};

/// Aliases that are followed; as many as the zone follows.
const MOST: usize = 10;

/// `name`: a whole name without its last dot. `None`: no Service has it.
pub fn why(name: &str, domain: &str, cluster: &Cluster) -> Option<String> {
    let mut row = service(name, domain, cluster)?;
    let Some(mut leads) = alias(row) else { return Some(families(row, cluster)) };
    if leads.parse::<IpAddr>().is_ok() {
        return Some(format!(
            "it leads to {leads}, an address: an externalName is a name, and no name is {leads}"
        ));
    }
    for _ in 0..MOST {
        let Some(next) = service(&leads, domain, cluster) else { break };
        row = next;
        match alias(row) {
            Some(further) => leads = further,
            None => return Some(format!("it leads to {leads}: {}", families(row, cluster))),
        }
    }
    Some(format!("it leads to {leads}, which has none"))
}

fn service<'a>(name: &str, domain: &str, cluster: &'a Cluster) -> Option<&'a Service> {
    let of_services = name.strip_suffix(domain)?.strip_suffix(".svc.")?;
    let (service, namespace) = of_services.split_once('.')?;
    cluster.services.get(&ObjectName::new(namespace, service)).map(Box::as_ref)
}

fn alias(row: &Service) -> Option<String> {
    let leads = row.external_name.as_deref().filter(|_| row.kind == ServiceType::ExternalName)?;
    Some(leads.trim_end_matches('.').to_ascii_lowercase())
}

fn families(row: &Service, cluster: &Cluster) -> String {
    let list = |addresses: &mut dyn Iterator<Item = IpAddr>| {
        let families: BTreeSet<String> = addresses.map(|ip| Family::of(ip).to_string()).collect();
        families.into_iter().collect::<Vec<_>>().join(", ")
    };
    if !row.headless {
        let found = list(&mut row.cluster_ips.iter().copied());
        return match found.is_empty() {
            true => "the API has given it no ClusterIP yet".to_owned(),
            false => format!("ipFamilies: {found}"),
        };
    }
    let ends = cluster.slices_of(&row.key).flat_map(|slice| &slice.endpoints);
    let ready = ends.filter(|end| end.ready || row.publish_not_ready);
    let found = list(&mut ready.map(|end| end.address));
    match found.is_empty() {
        true => "a headless Service, and none of its pods is ready".to_owned(),
        false => format!("a headless Service, and those of its pods are {found}"),
    }
}

/// What a headless Service does not do for who asks for its port: its name is that of its pods, which listen on another.
pub fn port(name: &str, domain: &str, asked: (Protocol, u16), cluster: &Cluster) -> Option<String> {
    let name = name.trim_end_matches('.');
    // Of one pod by its hostname, too.
    let row = service(name, domain, cluster).or_else(|| service(name.split_once('.')?.1, domain, cluster))?;
    let port = row.ports.iter().find(|port| (port.protocol, port.port) == asked).filter(|_| row.headless)?;
    let slices = cluster.slices_of(&row.key).flat_map(|slice| &slice.ports);
    let targets = slices.filter(|slice| slice.name == port.name && slice.protocol == port.protocol);
    let numbers: BTreeSet<u16> = targets.filter_map(|slice| slice.port).collect();
    let listed = || numbers.iter().map(u16::to_string).collect::<Vec<_>>().join(" or ");
    let other = !numbers.is_empty() && !numbers.contains(&asked.1);
    other.then(|| format!("headless, so that no port is translated: ask for {}, not {}", listed(), asked.1))
}

#[cfg(test)]
mod tests {
    use model::{EndpointSlice, Event, Row, ServicePort, SlicePort};

    use super::*;

    fn put(cluster: &mut Cluster, name: &str, service: Service) {
        let key = ObjectName::new("shop", name);
        cluster.apply(Event::Upsert(Row::Service(Box::new(Service { key, ..service }))));
    }

    fn leads(to: &str) -> Service {
        let external_name = Some(to.to_owned());
        Service { kind: ServiceType::ExternalName, external_name, ..Service::default() }
    }

    #[test]
    fn an_alias_says_what_it_leads_to_has() {
        let mut cluster = Cluster::default();
        let own = Service { cluster_ips: vec![[10, 96, 0, 7].into()], ..Service::default() };
        put(&mut cluster, "pay", own);
        put(&mut cluster, "heads", Service { headless: true, ..Service::default() });
        put(&mut cluster, "new", Service::default());
        put(&mut cluster, "ext", leads("pay.shop.svc.cluster.local"));
        put(&mut cluster, "twice", leads("EXT.shop.svc.cluster.local."));
        put(&mut cluster, "to-heads", leads("heads.shop.svc.cluster.local"));
        put(&mut cluster, "gone", leads("nosuch.shop.svc.cluster.local"));
        put(&mut cluster, "number", leads("203.0.113.10"));
        put(&mut cluster, "circle", leads("circle.shop.svc.cluster.local"));
        let to = |name: &str| format!("it leads to {name}.shop.svc.cluster.local");
        for (name, told) in [
            ("pay", "ipFamilies: IPv4".to_owned()),
            ("new", "the API has given it no ClusterIP yet".to_owned()),
            ("ext", format!("{}: ipFamilies: IPv4", to("pay"))),
            ("twice", format!("{}: ipFamilies: IPv4", to("pay"))),
            ("to-heads", format!("{}: a headless Service, and none of its pods is ready", to("heads"))),
            ("gone", format!("{}, which has none", to("nosuch"))),
            (
                "number",
                "it leads to 203.0.113.10, an address: an externalName is a name, and no name is 203.0.113.10"
                    .to_owned(),
            ),
            ("circle", format!("{}, which has none", to("circle"))),
        ] {
            let full = format!("{name}.shop.svc.cluster.local");
            assert_eq!(why(&full, "cluster.local", &cluster).as_deref(), Some(told.as_str()), "{name}");
        }
        assert_eq!(why("web.default.svc.cluster.local", "cluster.local", &cluster), None);
    }

    #[test]
    fn a_headless_service_is_asked_for_its_pods_port() {
        let mut cluster = Cluster::default();
        let ports = vec![ServicePort { name: "http".into(), port: 80, ..ServicePort::default() }];
        put(&mut cluster, "heads", Service { headless: true, ports: ports.clone(), ..Service::default() });
        put(&mut cluster, "plain", Service { ports, ..Service::default() });
        for of in ["heads", "plain"] {
            let slice = SlicePort { name: "http".into(), port: Some(8080), ..SlicePort::default() };
            cluster.apply(Event::Upsert(Row::EndpointSlice(EndpointSlice {
                key: ObjectName::new("shop", of),
                service: of.into(),
                headless: of == "heads",
                ports: vec![slice],
                ..EndpointSlice::default()
            })));
        }
        let said = |name: &str, number| {
            port(
                &format!("{name}.shop.svc.cluster.local."),
                "cluster.local",
                (Protocol::Tcp, number),
                &cluster,
            )
        };
        for name in ["heads", "web-0.heads"] {
            assert!(said(name, 80).is_some_and(|said| said.ends_with("ask for 8080, not 80")), "{name}");
        }
        assert_eq!((said("heads", 8080), said("plain", 80)), (None, None));
    }
}
