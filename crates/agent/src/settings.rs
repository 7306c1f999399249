//! What a person can set, with the lab's defaults.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args as ClapArgs;
use ipnet::IpNet;

/// `plumb agent`
#[derive(Clone, Debug, ClapArgs)]
pub struct Args {
    /// The Node object that this machine is
    #[arg(long)]
    pub node: String,
    /// How to reach the Kubernetes API
    #[arg(long, default_value = "/etc/plumb/kubeconfig")]
    pub kubeconfig: PathBuf,
    /// What must outlive the process: addresses that were given out, attachments
    #[arg(long, default_value = "/var/lib/plumb")]
    pub data: PathBuf,
    /// Where the runtime looks for network configurations
    #[arg(long, default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,
    /// Unix socket for plumb-cni and local tools
    #[arg(long, default_value = types::wire::AGENT_SOCKET)]
    pub socket: PathBuf,
    /// Addresses of all pods of the cluster; what leaves it is masqueraded
    #[arg(long, default_value = "10.244.0.0/16")]
    pub cluster_cidr: IpNet,
    /// Addresses of Services
    #[arg(long, default_value = "10.96.0.0/12")]
    pub service_cidr: IpNet,
    /// The address at which pods ask for names
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)))]
    pub dns_ip: IpAddr,
    /// The cluster's domain
    #[arg(long, default_value = "cluster.local")]
    pub cluster_domain: String,
    /// MTU of pods, bridge and tunnel [default: that of the node's interface, less 50]
    #[arg(long)]
    pub mtu: Option<u32>,
    /// Seconds that a released pod address rests before it is given out again
    #[arg(long, default_value_t = 30)]
    pub cool_down: u64,
    /// Seconds between two full comparisons of the kernel with what it should be (a backstop: changes by
    /// others are seen at once)
    #[arg(long, default_value_t = 30)]
    pub refresh: u64,
}

/// Settings that fit together.
#[derive(Clone, Debug)]
pub struct Settings {
    pub node: String,
    pub args: Args,
}

impl Settings {
    pub fn new(args: Args) -> Result<Self> {
        if args.node.is_empty() {
            bail!("--node is empty; give the name of this machine's Node object (kubectl get nodes)");
        }
        if !args.service_cidr.contains(&args.dns_ip) {
            let (ip, cidr) = (args.dns_ip, args.service_cidr);
            bail!(
                "--dns-ip {ip} is not in --service-cidr {cidr}; give the clusterIP of kube-system/kube-dns"
            );
        }
        if args.cluster_cidr.contains(&args.service_cidr) || args.service_cidr.contains(&args.cluster_cidr) {
            let (pods, services) = (args.cluster_cidr, args.service_cidr);
            bail!("--cluster-cidr {pods} and --service-cidr {services} overlap; give ranges that do not");
        }
        Ok(Self { node: args.node.clone(), args })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn settings(flags: &[&str]) -> Result<Settings> {
        let words = ["agent", "--node", "node1"].iter().chain(flags);
        Settings::new(Cli::try_parse_from(words)?.args)
    }

    #[test]
    fn the_labs_defaults_fit_together() {
        let settings = settings(&[]).unwrap();
        assert_eq!(settings.args.dns_ip.to_string(), "10.96.0.10");
    }

    #[test]
    fn ranges_that_do_not_fit_are_named() {
        for (flags, word) in [
            (["--dns-ip", "10.1.0.1"], "10.1.0.1"),
            (["--service-cidr", "10.244.0.0/16"], "--dns-ip"),
            (["--cluster-cidr", "10.96.0.0/11"], "overlap"),
        ] {
            let error = settings(&flags).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
