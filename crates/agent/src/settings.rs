//! What a person can set, with the lab's defaults.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Error, Result, bail};
use clap::builder::RangedU64ValueParser;
use clap::{Args as ClapArgs, FromArgMatches};
use ipnet::IpNet;
use model::Ranges;
use types::wire::{DNS_IPS, POD_CIDRS, SERVICE_CIDRS};
use types::{Backend, Fabric, Wiring, range};

/// `plumb agent`
#[derive(Clone, Debug, ClapArgs)]
pub struct Args {
    /// The Node object that this machine is
    #[arg(long, env = "PLUMB_NODE")]
    pub node: String,
    /// How to reach the Kubernetes API
    #[arg(long, env = "PLUMB_KUBECONFIG", default_value = "/etc/plumb/kubeconfig")]
    pub kubeconfig: PathBuf,
    /// Addresses of API servers, tried in turn [default: the kubeconfig's; in a pod those in the host's
    /// kubeconfigs]
    #[arg(long, env = "PLUMB_API_SERVERS", value_delimiter = ',')]
    pub api_servers: Vec<String>,
    /// What must outlive the process: addresses that were given out, attachments
    #[arg(long, default_value = "/var/lib/plumb")]
    pub data: PathBuf,
    /// Where the runtime looks for network configurations
    #[arg(long, default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,
    /// Put the CNI executables here before the configuration that names them, for runtimes on the host
    #[arg(long, env = "PLUMB_CNI_BIN_DIR")]
    pub cni_bin_dir: Option<PathBuf>,
    /// Unix socket for plumb-cni and local tools
    #[arg(long, default_value = types::wire::AGENT_SOCKET)]
    pub socket: PathBuf,
    /// Addresses of all pods of the cluster, one range for each family with commas between; what leaves it is
    /// masqueraded
    #[arg(
        long = "cluster-cidr",
        env = "PLUMB_CLUSTER_CIDR",
        default_value = POD_CIDRS[0],
        value_delimiter = ',',
        value_parser = range::lenient
    )]
    pub cluster_cidrs: Vec<IpNet>,
    /// Addresses of Services, one range for each family
    #[arg(
        long = "service-cidr",
        env = "PLUMB_SERVICE_CIDR",
        default_value = SERVICE_CIDRS[0],
        value_delimiter = ',',
        value_parser = range::lenient
    )]
    pub service_cidrs: Vec<IpNet>,
    /// Where pods ask for names, one address for each family
    #[arg(
        long = "dns-ip",
        env = "PLUMB_DNS_IP",
        default_value = DNS_IPS[0],
        value_delimiter = ',',
        value_parser = range::address
    )]
    pub dns_ips: Vec<IpAddr>,
    /// The cluster's domain
    #[arg(long, env = "PLUMB_CLUSTER_DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Addresses and prefixes that pods may send from beside their own, where their annotation
    /// plumb.dev/allowed-sources asks for it [default: none]
    #[arg(long, env = "PLUMB_ALLOW_SOURCES", value_delimiter = ',', value_name = "PREFIX")]
    pub allow_sources: Vec<String>,
    /// MTU of pods, bridge and tunnel [default: that of the node's interface, less 50 on IPv4 and 70 on IPv6]
    #[arg(long, env = "PLUMB_MTU", value_parser = range::mtu)]
    pub mtu: Option<u32>,
    /// Seconds that a released pod address rests before it is given out again
    #[arg(long, default_value_t = 30, value_parser = seconds(0))]
    pub cool_down: u64,
    /// Seconds after which an attachment is released without a DEL when the API no longer has its pod, beyond the pod's
    /// own grace period; at most 10 when its network namespace is gone
    #[arg(long, default_value_t = 30, value_parser = seconds(0))]
    pub orphan_grace: u64,
    /// Answer what kube-proxy answers: health checks of load balancers at port 10256 of all addresses, and
    /// 127.0.0.1:10249/proxyMode
    #[arg(long, env = "PLUMB_PROXY_HEALTH", default_value_t = true, action = clap::ArgAction::Set)]
    pub proxy_health: bool,
    /// Serve metrics by TLS alone, to those whose token may get /metrics (RBAC, nonResourceURLs); at the same port
    #[arg(
        long,
        env = "PLUMB_SECURE_METRICS",
        default_value_t = false,
        num_args = 0..=1,
        default_missing_value = "true",
        action = clap::ArgAction::Set
    )]
    pub secure_metrics: bool,
    /// Where the certificate of metrics is, as tls.crt and tls.key; they are read again when they change. Without them the
    /// agent makes one for itself
    #[arg(long, env = "PLUMB_METRICS_CERT_DIR", default_value = types::wire::METRICS_CERT_DIR)]
    pub metrics_cert_dir: PathBuf,
    /// Seconds between two full comparisons of the kernel with what it should be (a backstop: changes by
    /// others are seen at once)
    #[arg(long, default_value_t = 30, value_parser = seconds(1))]
    pub refresh: u64,
}

/// Not so many that no clock could count them: up to a year.
fn seconds(least: u64) -> RangedU64ValueParser {
    RangedU64ValueParser::new().range(least..=366 * 86_400)
}

/// Settings that fit together.
#[derive(Clone, Debug)]
pub struct Settings {
    pub node: String,
    /// `--allow-sources`, read.
    pub allow_sources: Vec<IpNet>,
    /// Who carries Services and policies: no flag says so while there is one.
    pub backend: Backend,
    /// How packets reach pods of other nodes: the same.
    pub fabric: Fabric,
    /// How pods are attached: the same.
    pub wiring: Wiring,
    pub args: Args,
}

impl Settings {
    pub fn new(mut args: Args) -> Result<Self> {
        // Manifests always give them, and then empty or 0 means that nothing was chosen.
        args.api_servers.retain(|address| !address.trim().is_empty());
        args.mtu = args.mtu.filter(|mtu| *mtu != 0);
        if args.node.is_empty() {
            bail!("--node is empty; give the name of this machine's Node object (kubectl get nodes)");
        }
        let ranges = Ranges { pods: &args.cluster_cidrs, services: &args.service_cidrs, dns: &args.dns_ips };
        ranges.fit().and_then(|()| args.mtu.map_or(Ok(()), |mtu| ranges.mtu(mtu))).map_err(Error::msg)?;
        let allow_sources = args.allow_sources.iter().map(|text| text.trim()).filter(|text| !text.is_empty());
        let allow_sources = allow_sources.map(source).collect::<Result<_>>()?;
        let (backend, fabric, wiring) = (Backend::default(), Fabric::default(), Wiring::default());
        Ok(Self { node: args.node.clone(), allow_sources, backend, fabric, wiring, args })
    }
}

/// An address or a prefix, whose bits beyond its length are cut off.
fn source(text: &str) -> Result<IpNet> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    let Ok(net) = address.or_else(|_| text.parse::<IpNet>()) else {
        let error = range::source(text).map(drop).err().map(|error| error.to_string()).unwrap_or_default();
        bail!("--allow-sources {error}");
    };
    Ok(net.trunc())
}

impl Args {
    /// Of an agent that no command line starts.
    pub(crate) fn of_flags(
        flags: impl IntoIterator<Item: Into<OsString> + Clone>,
    ) -> clap::error::Result<Self> {
        let command = Self::augment_args(clap::Command::new("agent")).no_binary_name(true);
        Self::from_arg_matches(&command.try_get_matches_from(flags)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(flags: &[&str]) -> Result<Settings> {
        Settings::new(Args::of_flags(["--node", "node1"].iter().chain(flags))?)
    }

    #[test]
    fn the_labs_defaults_fit_together() {
        let settings = settings(&[]).unwrap();
        assert_eq!(settings.args.dns_ips, ["10.96.0.10".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn sources_are_addresses_and_prefixes_and_none_where_nothing_is_chosen() {
        let of = |text| {
            let nets = settings(&["--allow-sources", text]).unwrap().allow_sources;
            nets.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(
            of("203.0.113.7,203.0.113.9/24, 2001:db8::/48"),
            ["203.0.113.7/32", "203.0.113.0/24", "2001:db8::/48"]
        );
        assert!(of("").is_empty() && settings(&[]).unwrap().allow_sources.is_empty());
        let error = settings(&["--allow-sources", "203.0.113.0-9"]).unwrap_err().to_string();
        assert!(error.contains("203.0.113.0-9"), "{error}");
    }

    #[test]
    fn ranges_that_do_not_fit_are_named() {
        for (flags, word) in [
            (["--dns-ip", "10.1.0.1"], "10.1.0.1"),
            (["--mtu", "9"], "give a whole number from 576 to 65535"),
            (
                ["--cluster-cidr", "10.244.0.0"],
                "\"10.244.0.0\" is not a range of addresses: it has no length",
            ),
            (["--cluster-cidr", "127.0.0.0/8"], "127.0.0.0/8 is each host's own"),
            (["--service-cidr", "services"], "--service-cidr"),
            (["--dns-ip", "10.96.0.10/32"], "--dns-ip"),
            (["--refresh", "0"], "0 is not in 1.."),
            (["--cool-down", "18446744073709551615"], "--cool-down"),
            (["--service-cidr", "10.244.0.0/16"], "overlap"),
            (["--service-cidr", "10.97.0.0/16"], "--dns-ip"),
            (["--cluster-cidr", "10.96.0.0/11"], "overlap"),
            (["--cluster-cidr", "10.1.0.0/16,10.2.0.0/16"], "more than one IPv4"),
        ] {
            let error = settings(&flags).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    /// A chart may say `clusterCIDR: 10.244.3.7/16`, as kube-controller-manager takes it.
    #[test]
    fn bits_beyond_a_ranges_length_mean_nothing() {
        let args = settings(&["--cluster-cidr", "10.1.2.3/16,fd00::7/48"]).unwrap().args;
        assert_eq!(args.cluster_cidrs, ["10.1.0.0/16", "fd00::/48"].map(|net| net.parse().unwrap()));
    }
}
