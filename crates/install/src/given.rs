//! What the command line gives is read before any cluster is asked or anything is printed: as the agents will read it.

use std::net::IpAddr;

use anyhow::{Context, Result, bail, ensure};
use ipnet::IpNet;
use types::Family;

use crate::cluster::{joined, overlap, ranges};
use crate::findings::WORDS;
use crate::install::Args;
use crate::settings::Settings;

/// Each value by itself; how they fit together, a cluster may still have to say.
pub fn check(args: &Args) -> Result<()> {
    let wanted = &args.wanted;
    for (flag, text) in [("--cluster-cidr", &wanted.cluster_cidr), ("--service-cidr", &wanted.service_cidr)] {
        text.as_deref().map(|text| ranges(text, flag)).transpose()?;
    }
    wanted.dns_ip.as_deref().map(addresses).transpose()?;
    if let Some(domain) = &wanted.cluster_domain {
        ensure!(
            is_domain(domain),
            "--cluster-domain {domain:?} is no domain; give it as the kubelets have it (clusterDomain), such as \
             cluster.local"
        );
    }
    for server in wanted.api_servers.iter().flat_map(|text| text.split(',')) {
        ensure!(
            is_server(server),
            "--api-servers {server:?} is not the address of a server; give such as https://192.0.2.10:6443"
        );
    }
    for source in args.allow_sources.split(',').map(str::trim).filter(|text| !text.is_empty()) {
        ensure!(
            source.parse::<IpNet>().is_ok() || source.parse::<IpAddr>().is_ok(),
            "--allow-sources {source:?} is neither an address nor a prefix; give such as 203.0.113.0/24"
        );
    }
    // Every host takes 576 bytes (RFC 791); 0 is what nobody has chosen.
    if let Some(mtu) = args.mtu.filter(|mtu| *mtu != 0) {
        ensure!((576..=65_535).contains(&mtu), "--mtu {mtu} is none; give 576 to 65535, or leave it out");
    }
    for (flag, path) in [
        ("--cni-bin-dir", &args.cni_bin_dir),
        ("--cni-conf-dir", &args.cni_conf_dir),
        ("--kubernetes-dir", &args.kubernetes_dir),
    ] {
        ensure!(path.starts_with('/'), "{flag} {path:?} is no directory of a node; give its whole path");
    }
    if let Some(word) = args.accept.iter().find(|word| !WORDS.contains(&word.as_str())) {
        bail!("--accept {word}: there is no such finding; the words are {}", WORDS.join(", "));
    }
    if let Some(image) = &args.target.image {
        ensure!(
            !image.is_empty() && !image.contains(char::is_whitespace),
            "--image {image:?} is neither the name of an image nor an archive"
        );
    }
    Ok(())
}

/// Settings that no cluster completes fit together, or no agent would start with them.
pub fn fit(settings: &Settings) -> Result<()> {
    let pods = ranges(&settings.cluster_cidr, "--cluster-cidr")?;
    let services = ranges(&settings.service_cidr, "--service-cidr")?;
    let dns = addresses(&settings.dns_ip)?;
    for (flag, families) in [
        ("--cluster-cidr", pods.iter().map(Family::of_net).collect::<Vec<_>>()),
        ("--service-cidr", services.iter().map(Family::of_net).collect()),
        ("--dns-ip", dns.iter().copied().map(Family::of).collect()),
    ] {
        if let Some(family) = Family::several(families) {
            bail!("{flag} has more than one of {family}; give one of each family");
        }
    }
    if let Some((a, b)) =
        pods.iter().flat_map(|a| services.iter().map(move |b| (a, b))).find(|(a, b)| overlap(a, b))
    {
        bail!("--cluster-cidr {a} and --service-cidr {b} overlap; give ranges that do not");
    }
    if let Some(ip) = dns.iter().find(|ip| !services.iter().any(|range| range.contains(*ip))) {
        bail!(
            "--dns-ip {ip} is not in --service-cidr {}; give the address that the kubelets have as clusterDNS",
            joined(&services)
        );
    }
    Ok(())
}

/// `--dns-ip`.
pub fn addresses(text: &str) -> Result<Vec<IpAddr>> {
    let one = |word: &str| {
        let address = word.trim().parse();
        address.with_context(|| format!("--dns-ip {word:?} is not an address; give such as 10.96.0.10"))
    };
    text.split(',').map(one).collect()
}

/// Labels of RFC 1123 with dots between.
fn is_domain(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    text.len() <= 253
        && text.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.chars().all(plain)
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

/// `https://HOST:PORT` or `HOST:PORT`, as the agents read it (`agent::api::server`).
fn is_server(text: &str) -> bool {
    let text = text.trim();
    let whole = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let Ok(uri) = whole.parse::<http::Uri>() else { return false };
    let Some(authority) = uri.authority() else { return false };
    let alone = authority.as_str() == authority.host();
    matches!(uri.scheme_str(), Some("https" | "http"))
        && !authority.host().is_empty()
        && (alone || authority.port_u16().is_some_and(|port| port > 0))
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
            ("--service-cidr", "10.96.0.0", "10.96.0.0/12"),
            ("--dns-ip", "10.96.0", "10.96.0.10,fd00:10:96::a"),
            ("--cluster-domain", "no domain", "corp.example"),
            (
                "--api-servers",
                "https://192.0.2.1:port",
                "https://192.0.2.1:6443,api.example:6443,[2001:db8::1]:6443",
            ),
            ("--allow-sources", "203.0.113.0-9", "203.0.113.0/24,2001:db8::1"),
            ("--mtu", "12", "1400"),
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
    fn settings_that_no_agent_would_start_with_are_refused() {
        fit(&Settings::default()).unwrap();
        let of = |change: fn(&mut Settings)| {
            let mut settings = Settings::default();
            change(&mut settings);
            fit(&settings).unwrap_err().to_string()
        };
        assert!(of(|s| s.dns_ip = "10.1.0.1".into()).contains("--dns-ip 10.1.0.1 is not in"));
        assert!(of(|s| s.cluster_cidr = "10.96.0.0/11".into()).contains("overlap"));
        assert!(of(|s| s.cluster_cidr = "10.1.0.0/16,10.2.0.0/16".into()).contains("more than one of IPv4"));
    }
}
