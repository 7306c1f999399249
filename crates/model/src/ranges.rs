//! The ranges of a cluster, as agents and `plumb install` are told them by the same flags, and whether they fit together.

use std::net::IpAddr;

use types::range::overlap;
use types::wire::{DNS_IPS, SERVICE_CIDRS};
use types::{Family, IpNet};

/// `--cluster-cidr`, `--service-cidr` and `--dns-ip`.
#[derive(Clone, Copy, Debug)]
pub struct Ranges<'a> {
    pub pods: &'a [IpNet],
    pub services: &'a [IpNet],
    pub dns: &'a [IpAddr],
}

impl Ranges<'_> {
    /// Why no cluster works with them, in words that name the flags and what to give.
    pub fn fit(&self) -> Result<(), String> {
        let Self { pods, services, dns } = *self;
        let nets = |nets: &[IpNet]| Family::several(nets.iter().map(Family::of_net));
        for (flag, values, several, what) in [
            ("--cluster-cidr", joined(pods), nets(pods), "range"),
            ("--service-cidr", joined(services), nets(services), "range"),
            ("--dns-ip", joined(dns), Family::several(dns.iter().copied().map(Family::of)), "address"),
        ] {
            if let Some(family) = several {
                return Err(format!(
                    "{flag} {values} has more than one {family} {what}; give one of each family"
                ));
            }
        }
        let mut pairs = pods.iter().flat_map(|pods| services.iter().map(move |services| (pods, services)));
        if let Some((pods, services)) = pairs.find(|(pods, services)| overlap(pods, services)) {
            return Err(format!(
                "--cluster-cidr {pods} and --service-cidr {services} overlap; give ranges that do not, as the \
                 controller manager (--cluster-cidr) and the API server (--service-cluster-ip-range) have them"
            ));
        }
        if let Some(ip) = dns.iter().find(|ip| !services.iter().any(|range| range.contains(*ip))) {
            return Err(format!(
                "--dns-ip {ip} is not in --service-cidr {}; give the address that the kubelets have as clusterDNS, \
                 the clusterIP of kube-system/kube-dns",
                joined(services)
            ));
        }
        Ok(())
    }

    /// Why pods and Services, or pods and their DNS, have no family in common. An agent works with that, and nobody is served.
    pub fn meet(&self) -> Result<(), String> {
        let pods: Vec<Family> = self.pods.iter().map(Family::of_net).collect();
        let apart =
            |others: &[Family]| !others.is_empty() && !others.iter().any(|other| pods.contains(other));
        let Some(first) = pods.first() else { return Ok(()) };
        for (flag, values, families, instead) in [
            (
                "--service-cidr",
                joined(self.services),
                self.services.iter().map(Family::of_net).collect::<Vec<_>>(),
                first.pick(SERVICE_CIDRS),
            ),
            (
                "--dns-ip",
                joined(self.dns),
                self.dns.iter().copied().map(Family::of).collect(),
                first.pick(DNS_IPS),
            ),
        ] {
            if apart(&families) {
                return Err(format!(
                    "{flag} {values} has no {first} address, and pods of --cluster-cidr {} have no others; give one of \
                     each family that pods have, such as {flag} {instead}",
                    joined(self.pods)
                ));
            }
        }
        Ok(())
    }

    /// Why pods with such addresses cannot have this MTU.
    pub fn mtu(&self, mtu: u32) -> Result<(), String> {
        let with_ipv6 = self.pods.iter().any(|pods| Family::of_net(pods) == Family::V6);
        types::range::mtu_fits(mtu, with_ipv6).map_err(|right| format!("--mtu {mtu}: {right}"))
    }
}

/// With commas between, as the flags have them.
pub fn joined<T: ToString>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    type Check = fn(&Ranges<'_>) -> Result<(), String>;

    fn said_by(check: Check, (pods, services, dns): (&str, &str, &str)) -> String {
        let nets =
            |text: &str| text.split(',').map(|net| net.parse().expect("a range")).collect::<Vec<IpNet>>();
        let dns: Vec<IpAddr> = dns.split(',').map(|ip| ip.parse().expect("an address")).collect();
        let ranges = Ranges { pods: &nets(pods), services: &nets(services), dns: &dns };
        check(&ranges).err().unwrap_or_default()
    }

    #[test]
    fn pods_have_a_family_of_services_and_of_their_dns() {
        let of = |pods, services, dns| said_by(|ranges| ranges.meet(), (pods, services, dns));
        for services in ["10.96.0.0/12", "10.96.0.0/12,fd01::/112"] {
            assert_eq!(of("10.244.0.0/16", services, "10.96.0.10"), "");
        }
        assert_eq!(
            of("10.244.0.0/16", "fd01::/112", "fd01::a"),
            "--service-cidr fd01::/112 has no IPv4 address, and pods of --cluster-cidr 10.244.0.0/16 have no others; give \
             one of each family that pods have, such as --service-cidr 10.96.0.0/12"
        );
        let dns = of("fd00::/48", "10.96.0.0/12,fd01::/112", "10.96.0.10");
        assert!(dns.starts_with("--dns-ip 10.96.0.10 has no IPv6 address"), "{dns}");
        assert!(dns.ends_with("such as --dns-ip fd00:10:96::a"), "{dns}");
    }

    #[test]
    fn ranges_that_no_cluster_works_with_are_named() {
        let (pods, services, dns) = ("10.244.0.0/16", "10.96.0.0/12", "10.96.0.10");
        let both = ("10.244.0.0/16,fd00::/48", "10.96.0.0/12,fd01::/112", "fd01::a,10.96.0.10");
        let said = |ranges| said_by(|ranges| ranges.fit(), ranges);
        assert_eq!((said((pods, services, dns)), said(both)), Default::default());
        for (ranges, words) in [
            (
                ("10.1.0.0/16,10.2.0.0/16", services, dns),
                "--cluster-cidr 10.1.0.0/16,10.2.0.0/16 has more than one IPv4 range",
            ),
            (
                (pods, "fd00::/112,fd01::/112", "fd00::a"),
                "--service-cidr fd00::/112,fd01::/112 has more than one IPv6 range",
            ),
            (
                (pods, services, "10.96.0.10,10.96.0.11"),
                "--dns-ip 10.96.0.10,10.96.0.11 has more than one IPv4 address",
            ),
            (
                ("10.96.0.0/11", services, dns),
                "--cluster-cidr 10.96.0.0/11 and --service-cidr 10.96.0.0/12 overlap",
            ),
            (
                ("10.97.0.0/16", services, dns),
                "--cluster-cidr 10.97.0.0/16 and --service-cidr 10.96.0.0/12 overlap",
            ),
            ((pods, services, "10.1.0.1"), "--dns-ip 10.1.0.1 is not in --service-cidr 10.96.0.0/12"),
        ] {
            let said = said(ranges);
            assert!(said.starts_with(words), "{said}");
        }
    }

    #[test]
    fn an_mtu_fits_the_families_of_pods() {
        let of = |pods: &str, mtu| {
            let pods = [pods.parse().expect("a range")];
            Ranges { pods: &pods, services: &[], dns: &[] }.mtu(mtu).is_ok()
        };
        assert!(of("10.244.0.0/16", 576) && of("fd00::/48", 1280) && of("fd00::/48", 65_535));
        assert!(!of("10.244.0.0/16", 575) && !of("fd00::/48", 1279) && !of("10.244.0.0/16", 65_536));
    }
}
