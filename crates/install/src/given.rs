//! What the command line gives is read before any cluster is asked or anything is printed: as the agents will read it.

mod servers;
mod values;

use std::net::IpAddr;

use anyhow::{Error, Result, anyhow, bail, ensure};
use ipnet::IpNet;
use model::Ranges;
use model::ranges::joined;
use types::wire::{POD_CIDRS, SERVICE_CIDRS};
use types::{Family, offset, range};

use crate::cluster::usual_dns;
use crate::findings::WORDS;
use crate::install::Args;
use crate::settings::Settings;

pub use values::image;

/// Each value by itself, and those that were given together; how they fit the rest, a cluster may still have to say.
pub fn check(args: &Args) -> Result<()> {
    let wanted = &args.wanted;
    let of = |text: &Option<String>, what: &Given| text.as_deref().map(|text| what.read(text)).transpose();
    let pods = of(&wanted.cluster_cidr, &PODS)?.unwrap_or_default();
    let services = of(&wanted.service_cidr, &SERVICES)?;
    let dns = wanted.dns_ip.as_deref().map(addresses).transpose()?.unwrap_or_default();
    let ranges = Ranges { pods: &pods, services: services.as_deref().unwrap_or_default(), dns: &dns };
    // Where Services are, the cluster says.
    let known = if services.is_some() { ranges } else { Ranges { dns: &[], ..ranges } };
    known.fit().and_then(|()| ranges.meet()).map_err(Error::msg)?;
    if let Some(family) = Family::several(dns.iter().copied().map(Family::of)) {
        bail!("--dns-ip {} has more than one {family} address; give one of each family", joined(&dns));
    }
    // 0 is what nobody has chosen.
    if let Some(mtu) = args.mtu.filter(|mtu| *mtu != 0) {
        ranges.mtu(mtu).map_err(Error::msg)?;
    }
    if let Some(domain) = &wanted.cluster_domain {
        let numbers = domain.rsplit('.').next().is_some_and(|last| last.chars().all(|c| c.is_ascii_digit()));
        ensure!(
            is_domain(domain) && !numbers,
            "--cluster-domain {domain:?} is no domain; give it as the kubelets have it (clusterDomain), such as \
             cluster.local"
        );
    }
    servers::check(wanted.api_servers.as_deref().unwrap_or_default(), &ranges)?;
    sources(&args.allow_sources, &ranges)?;
    if let Some(word) = args.accept.iter().find(|word| !WORDS.contains(&word.as_str())) {
        bail!("--accept {word}: there is no such finding; the words are {}", WORDS.join(", "));
    }
    values::check(args)?;
    Ok(())
}

/// Whether each is of a family of pods', and nobody else's address.
fn sources(text: &str, ranges: &Ranges<'_>) -> Result<()> {
    for source in text.split(',').map(str::trim).filter(|text| !text.is_empty()) {
        let net = range::source(source).map_err(|error| anyhow!("--allow-sources {error}"))?;
        if let Some((flag, other)) = holding(ranges).find(|(_, other)| range::overlap(other, &net)) {
            bail!(
                "--allow-sources {source} and {flag} {other} overlap: a pod could send as another; give addresses that are \
                 no pod's and no Service's"
            );
        }
        let family = Family::of_net(&net);
        let known = ranges.pods.is_empty() || ranges.pods.iter().any(|pods| Family::of_net(pods) == family);
        ensure!(
            known,
            "--allow-sources {source}: pods have no {family} address; leave it out, or give --cluster-cidr one"
        );
    }
    Ok(())
}

fn holding<'a>(ranges: &Ranges<'a>) -> impl Iterator<Item = (&'static str, &'a IpNet)> + use<'a> {
    let pods = ranges.pods.iter().map(|net| (PODS.flag, net));
    pods.chain(ranges.services.iter().map(|net| (SERVICES.flag, net)))
}

/// What was typed, as agents are given it: without blanks and leading zeros.
pub fn plain(settings: &mut Settings) -> Result<()> {
    settings.cluster_cidr = joined(&PODS.read(&settings.cluster_cidr)?);
    settings.service_cidr = joined(&SERVICES.read(&settings.service_cidr)?);
    settings.dns_ip = joined(&addresses(&settings.dns_ip)?);
    Ok(())
}

/// A list with commas, without blanks and what is empty.
pub fn list(text: &str) -> String {
    text.split(',').map(str::trim).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(",")
}

/// `--allow-sources`, and the ranges that a cluster has.
pub fn apart(settings: &Settings) -> Result<()> {
    let (pods, services) = (PODS.found(&settings.cluster_cidr)?, SERVICES.found(&settings.service_cidr)?);
    sources(&settings.allow_sources, &Ranges { pods: &pods, services: &services, dns: &[] })
}

/// Settings that no cluster completes fit together, or no agent would work with them.
pub fn fit(settings: &Settings) -> Result<()> {
    let (pods, services) = (PODS.read(&settings.cluster_cidr)?, SERVICES.read(&settings.service_cidr)?);
    let dns = addresses(&settings.dns_ip)?;
    let ranges = Ranges { pods: &pods, services: &services, dns: &dns };
    ranges.fit().and_then(|()| ranges.meet()).map_err(Error::msg)?;
    if let Some(mtu) = settings.mtu.parse().ok().filter(|mtu| *mtu != 0) {
        ranges.mtu(mtu).map_err(Error::msg)?;
    }
    servers::check(&settings.api_servers, &ranges)?;
    sources(&settings.allow_sources, &ranges)?;
    for range in &services {
        dns.iter().filter(|ip| range.contains(*ip)).try_for_each(|ip| is_free(*ip, range))?;
    }
    Ok(())
}

/// Which addresses of their range Services never have, or another one has.
fn is_free(dns: IpAddr, range: &IpNet) -> Result<()> {
    let whose = match dns {
        ip if ip == range.network() => "the range's first address, which no Service has",
        ip if ip == offset(range.network(), 1) => "the API's own, of Service default/kubernetes",
        ip if ip.is_ipv4() && ip == range.broadcast() => "the range's last address, which no Service has",
        _ => return Ok(()),
    };
    let usual = usual_dns(range).map(|ip| format!(", such as {ip}")).unwrap_or_default();
    bail!("--dns-ip {dns} is {whose}; give the one that the kubelets have as clusterDNS{usual}")
}

/// A flag that takes one range of each family.
pub struct Given {
    pub flag: &'static str,
    /// So many bits of an address are the pods' or the Services' at least.
    bits: u8,
    why: &'static str,
    instead: [&'static str; 2],
}

/// kubeadm wants 14 addresses for pods (MinimumAddressesInPodSubnet).
pub const PODS: Given = Given {
    flag: "--cluster-cidr",
    bits: 4,
    why: "each node takes a part of it for its pods",
    instead: POD_CIDRS,
};
/// The API server wants 8 (ServiceIPRange).
pub const SERVICES: Given =
    Given { flag: "--service-cidr", bits: 3, why: "each Service takes one", instead: SERVICE_CIDRS };

impl Given {
    /// What somebody typed.
    pub fn read(&self, text: &str) -> Result<Vec<IpNet>> {
        text.split(',').try_for_each(|word| self.not_all(word))?;
        let nets: Vec<IpNet> =
            text.split(',').map(|word| self.of(range::range(word))).collect::<Result<_>>()?;
        for net in &nets {
            let bits = net.max_prefix_len() - net.prefix_len();
            ensure!(
                bits >= self.bits,
                "{} {net} has {} addresses, and {}; give one such as {}",
                self.flag,
                1u32 << bits,
                self.why,
                Family::of_net(net).pick(self.instead)
            );
        }
        Ok(nets)
    }

    /// What a program of Kubernetes was told: it does not mind bits beyond a range's length.
    pub fn found(&self, text: &str) -> Result<Vec<IpNet>> {
        text.split(',').map(|word| self.of(range::lenient(word))).collect()
    }

    /// Everything is a range as well, and nobody's.
    fn not_all(&self, text: &str) -> Result<()> {
        let all = text.trim().parse::<IpNet>().is_ok_and(|net| net.prefix_len() == 0);
        ensure!(
            !all,
            "{} {} holds all addresses there are, those of nodes and of the world too; give a range of a private network, \
             such as {}",
            self.flag,
            text.trim(),
            self.instead.join(" or ")
        );
        Ok(())
    }

    fn of<T>(&self, read: Result<T, impl std::fmt::Display>) -> Result<T> {
        read.map_err(|error| anyhow!("{} {error}", self.flag))
    }
}

/// `--dns-ip`.
pub fn addresses(text: &str) -> Result<Vec<IpAddr>> {
    let one = |word: &str| range::address(word).map_err(|error| anyhow!("--dns-ip {error}"));
    text.split(',').map(one).collect()
}

/// Labels of RFC 1123 with dots between.
pub fn is_domain(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    text.len() <= 253
        && text.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.chars().all(plain)
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

#[cfg(test)]
mod tests {
    use clap::FromArgMatches;

    use super::*;

    fn args(flags: &[&str]) -> Args {
        let command = <Args as clap::Args>::augment_args(clap::Command::new("install")).no_binary_name(true);
        Args::from_arg_matches(&command.try_get_matches_from(flags).unwrap()).unwrap()
    }

    #[test]
    fn what_is_no_value_of_its_flag_is_refused_by_both() {
        for (flag, bad, good) in [
            ("--cluster-cidr", "garbage", "10.1.0.0/16,fd00::/48"),
            ("--cluster-cidr", "10.1.2.3/16", "10.1.0.0/16"),
            ("--cluster-cidr", "10.1.0.0/30", "10.1.0.0/28"),
            ("--cluster-cidr", "127.0.0.0/8", "fd00::/124"),
            ("--service-cidr", "10.96.0.0", "10.96.0.0/12"),
            ("--service-cidr", "10.96.0.1/12", "10.96.0.0/12, fd00::/112"),
            ("--service-cidr", "10.96.0.0/30", "10.96.0.0/29"),
            ("--dns-ip", "10.96.0", "10.96.0.10,fd00:10:96::a"),
            ("--dns-ip", "10.96.0.10/32", "10.96.0.10"),
            ("--dns-ip", "127.0.0.53", "10.0.0.10"),
            ("--cluster-domain", "no domain", "corp.example"),
            (
                "--api-servers",
                "https://192.0.2.1:port",
                "https://192.0.2.1:6443,api.example:6443,[2001:db8::1]:6443",
            ),
            ("--allow-sources", "203.0.113.0-9", "203.0.113.0/24,2001:db8::1"),
            ("--allow-sources", "203.0.113.9/24", "203.0.113.9"),
            ("--cluster-cidr", "0.0.0.0/0", "10.0.0.0/8"),
            ("--cluster-domain", "10.96.0.10", "k8s.local"),
            ("--api-servers", "https://192.0.2.1:6443/path", "https://192.0.2.1:6443/"),
            ("--cni-bin-dir", "/opt/../bin", "/opt/cni/bin"),
            ("--cni-bin-dir", "/", "/opt/cni/bin/"),
            ("--cni-bin-dir", "/etc/cni/net.d", "/opt/cni/bin"),
            ("--cni-bin-dir", "/opt/cni:/bin", "/opt/cni/bin"),
            ("--cni-bin-dir", "/var/lib/plumb", "/opt/cni/bin"),
            ("--cni-conf-dir", "/run/netns/", "/etc/cni/net.d"),
            ("--cni-conf-dir", "/opt/cni/bin/", "/etc/cni/net.d"),
            ("--kubernetes-dir", "/etc/cni/net.d", "/var/lib/rancher/k3s/agent"),
            ("--kubernetes-dir", "/proc/sys", "/etc/kubernetes"),
            ("--api-servers", "https://0.0.0.0:6443", "https://127.0.0.1:6443"),
            ("--api-servers", "https://192.0.2.1:06443", "https://192.0.2.1:6443"),
            ("--image", "https://registry.example/plumb:1", "registry.example:5000/a/plumb"),
            ("--image", "registry.example/Plumb", "localhost/plumb_1:v1.2-a"),
            ("--cni-bin-dir", "bin", "/opt/cni/bin"),
            ("--cni-conf-dir", "net.d", "/etc/cni/net.d"),
            ("--kubernetes-dir", "", "/etc/kubernetes"),
            ("--accept", "everything", "kube-proxy,firewall"),
            ("--image", "two words", "registry.example/plumb:1"),
        ] {
            let error = check(&args(&[flag, bad])).unwrap_err().to_string();
            assert!(error.contains(flag) && error.contains(bad), "{flag} {bad}: {error}");
            check(&args(&[flag, good])).unwrap();
        }
    }

    #[test]
    fn what_was_given_together_fits_before_a_cluster_is_asked() {
        for (flags, words) in [
            (
                &["--cluster-cidr", "10.1.0.0/16,10.2.0.0/16"][..],
                "10.1.0.0/16,10.2.0.0/16 has more than one IPv4",
            ),
            (&["--dns-ip", "10.96.0.10,10.96.0.11"], "--dns-ip 10.96.0.10,10.96.0.11 has more than one IPv4"),
            (&["--cluster-cidr", "10.96.1.0/24", "--service-cidr", "10.96.0.0/12"], "overlap"),
            (
                &["--cluster-cidr", "10.1.0.0/16", "--service-cidr", "fd00::/112"],
                "--service-cidr fd00::/112 has no IPv4",
            ),
            (&["--cluster-cidr", "fd00::/48", "--dns-ip", "10.96.0.10"], "--dns-ip 10.96.0.10 has no IPv6"),
            (&["--service-cidr", "10.1.0.0/16", "--dns-ip", "10.96.0.10"], "--dns-ip 10.96.0.10 is not in"),
            (
                &["--cluster-cidr", "10.1.0.0/16", "--api-servers", "https://10.1.0.1:6443"],
                "--api-servers https://10.1.0.1:6443 is in --cluster-cidr 10.1.0.0/16",
            ),
            (
                &["--service-cidr", "fd01::/112", "--api-servers", "[fd01::1]:443"],
                "--api-servers [fd01::1]:443 is in --service-cidr fd01::/112",
            ),
            (
                &["--cluster-cidr", "10.1.0.0/16", "--allow-sources", "10.0.0.0/8"],
                "--allow-sources 10.0.0.0/8 and --cluster-cidr 10.1.0.0/16 overlap",
            ),
            (
                &["--cluster-cidr", "10.1.0.0/16", "--allow-sources", "2001:db8::1"],
                "--allow-sources 2001:db8::1: pods have no IPv6 address",
            ),
            (&["--print", "--resume"], "--print asks no cluster, and --resume"),
            (&["--print", "--accept", "version"], "--print asks no cluster, and --accept"),
            (&["--print", "--timeout", "5"], "--print asks no cluster, and --timeout"),
            (
                &["--print", "--api-servers", "http://192.0.2.1:6443"],
                "over http anybody on the way reads the agents' tokens",
            ),
            (&["--print", "--context", "a"], "--print asks no cluster, and --context"),
            (
                &["--secure-metrics", "--metrics-cert-secret", ""],
                "--metrics-cert-secret \"\" is no name of a Secret",
            ),
            (
                &["--secure-metrics", "--metrics-cert-secret", "A_b"],
                "--metrics-cert-secret \"A_b\" is no name",
            ),
            (
                &["--cluster-cidr", "fd00::/48", "--mtu", "1000"],
                "--mtu 1000: give a whole number from 576 to 65535 (from 1280 where",
            ),
        ] {
            let error = check(&args(flags)).unwrap_err().to_string();
            assert!(error.contains(words), "{flags:?}: {error}");
        }
        check(&args(&["--secure-metrics", "--metrics-cert-secret", "certs.example"])).unwrap();
        // Where Services are, is found in the cluster.
        check(&args(&["--cluster-cidr", "10.1.0.0/16", "--dns-ip", "10.43.0.10"])).unwrap();
    }

    #[test]
    fn what_is_printed_has_no_blanks_and_leading_zeros() {
        let mut settings = Settings {
            cluster_cidr: " 10.0.0.0/08, fd00:0::/48".into(),
            service_cidr: "10.96.0.0/12 ".into(),
            dns_ip: " 10.96.0.10".into(),
            ..Settings::default()
        };
        plain(&mut settings).unwrap();
        let Settings { cluster_cidr, service_cidr, dns_ip, .. } = settings;
        assert_eq!(
            [cluster_cidr, service_cidr, dns_ip],
            ["10.0.0.0/8,fd00::/48", "10.96.0.0/12", "10.96.0.10"]
        );
        assert_eq!(list("https://a:1, https://b:1,,"), "https://a:1,https://b:1");
    }

    #[test]
    fn settings_that_no_agent_would_work_with_are_refused() {
        fit(&Settings::default()).unwrap();
        let of = |change: fn(&mut Settings)| {
            let mut settings = Settings::default();
            change(&mut settings);
            fit(&settings).unwrap_err().to_string()
        };
        assert!(of(|s| s.dns_ip = "10.1.0.1".into()).contains("--dns-ip 10.1.0.1 is not in"));
        assert!(of(|s| s.cluster_cidr = "10.96.0.0/11".into()).contains("overlap"));
        assert!(of(|s| s.cluster_cidr = "10.1.0.0/16,10.2.0.0/16".into()).contains("more than one IPv4"));
        assert!(
            of(|s| s.cluster_cidr = "fd00::/48".into()).contains("such as --service-cidr fd00:10:96::/112")
        );
        for (ip, whose) in
            [("10.96.0.0", "first address"), ("10.96.0.1", "the API's"), ("10.111.255.255", "last")]
        {
            let mut settings = Settings { dns_ip: ip.into(), ..Settings::default() };
            let error = fit(&settings).unwrap_err().to_string();
            assert!(error.contains(whose) && error.ends_with("such as 10.96.0.10"), "{error}");
            settings.dns_ip = "10.96.0.2".into();
            fit(&settings).unwrap();
        }
    }
}
