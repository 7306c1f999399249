//! The list itself: a feature per line of what would fail without it.

use types::Family;

use super::attempt::Attempt;

/// Whose work ends without the feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// The node's agent.
    Agent,
    /// Nodes as namespaces, and their small kubelet.
    Lab,
    /// An agent whose cluster has IPv6 ranges.
    Ipv6,
    /// `plumb trace`: the agent works without, but cannot show a packet's way.
    Trace,
}

impl User {
    pub const ALL: [Self; 4] = [Self::Agent, Self::Lab, Self::Ipv6, Self::Trace];

    /// Without which an agent does not start whose pods have addresses of these families.
    pub fn of_agent(families: impl IntoIterator<Item = Family>) -> Vec<Self> {
        let ipv6 = families.into_iter().any(|family| family == Family::V6).then_some(Self::Ipv6);
        [Self::Agent].into_iter().chain(ipv6).collect()
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Lab => "lab",
            Self::Ipv6 => "ipv6",
            Self::Trace => "trace",
        }
    }

    /// The name in more words.
    pub fn means(self) -> &'static str {
        match self {
            Self::Agent => "A node's agent",
            Self::Lab => "Nodes as namespaces of one machine",
            Self::Ipv6 => "The agent of a cluster with IPv6 ranges",
            Self::Trace => "`plumb trace`",
        }
    }
}

/// One thing that the kernel must be able to do.
#[derive(Debug)]
pub struct Feature {
    /// Stable: allow-lists and scripts name it.
    pub name: &'static str,
    pub purpose: &'static str,
    pub needed_by: &'static [User],
    /// The option of the kernel's build (`make menuconfig`), or the version that brought it.
    pub config: &'static str,
    /// The module that distributions have it in.
    pub module: Option<&'static str>,
    pub(super) attempt: Attempt,
}

impl Feature {
    /// How a kernel without it gets it.
    pub fn remedy(&self) -> String {
        match self.module {
            Some(module) => format!(
                "modprobe {module}; if there is no such module, install the distribution's full kernel \
                 (linux-modules-extra on Ubuntu, linux-image-amd64 on Debian), or build one with {}",
                self.config
            ),
            None => format!("use a kernel with {}", self.config),
        }
    }
}

const BOTH: &[User] = &[User::Agent, User::Lab];

const fn feature(
    name: &'static str,
    purpose: &'static str,
    needed_by: &'static [User],
    (config, module): (&'static str, Option<&'static str>),
    attempt: Attempt,
) -> Feature {
    Feature { name, purpose, needed_by, config, module, attempt }
}

/// In the order of what builds on what.
pub const FEATURES: &[Feature] = &[
    feature(
        "netns",
        "a pod's own network namespace",
        BOTH,
        ("CONFIG_NET_NS, and /proc/sys/user/max_net_namespaces above 0", None),
        Attempt::Room,
    ),
    feature("mntns", "a node's own files", &[User::Lab], ("CONFIG_NAMESPACES", None), Attempt::MountNs),
    feature("utsns", "a node's own host name", &[User::Lab], ("CONFIG_UTS_NS", None), Attempt::UtsNs),
    feature("pidns", "a lab ends as a whole", &[User::Lab], ("CONFIG_PID_NS", None), Attempt::PidNs),
    feature("pidfd", "processes by handle", &[User::Lab], ("Linux 5.3 or later", None), Attempt::Pidfd),
    feature("tmpfs", "a node's own root", &[User::Lab], ("CONFIG_TMPFS", None), Attempt::Tmpfs),
    feature(
        "mount_setattr",
        "read-only roots of pods",
        &[User::Lab],
        ("Linux 5.12 or later", None),
        Attempt::ReadOnly,
    ),
    feature(
        "bridge",
        "cni0, which pods are ports of",
        BOTH,
        ("CONFIG_BRIDGE", Some("bridge")),
        Attempt::Bridge,
    ),
    feature("veth", "a pod's eth0, on an isolated port", BOTH, ("CONFIG_VETH", Some("veth")), Attempt::Veth),
    feature("vxlan", "the way to other nodes' pods", BOTH, ("CONFIG_VXLAN", Some("vxlan")), Attempt::Vxlan),
    feature(
        "ip_forward",
        "a node that routes",
        BOTH,
        ("CONFIG_SYSCTL, and /proc/sys writable", None),
        Attempt::Forwarding,
    ),
    feature(
        "nf_tables",
        "Services, policies, masquerade",
        BOTH,
        ("CONFIG_NF_TABLES and CONFIG_NF_TABLES_IPV4", Some("nf_tables")),
        Attempt::Table,
    ),
    feature("nft-ct", "answers of allowed connections", BOTH, ("CONFIG_NFT_CT", Some("nft_ct")), Attempt::Ct),
    feature(
        "nft-nat",
        "a ClusterIP becomes an endpoint",
        BOTH,
        ("CONFIG_NFT_NAT", Some("nft_chain_nat")),
        Attempt::Nat,
    ),
    feature(
        "nft-masquerade",
        "pods reach what is outside",
        BOTH,
        ("CONFIG_NFT_MASQ", Some("nft_masq")),
        Attempt::Masquerade,
    ),
    feature(
        "nft-numgen",
        "a random endpoint",
        BOTH,
        ("CONFIG_NFT_NUMGEN", Some("nft_numgen")),
        Attempt::Numgen,
    ),
    feature(
        "nft-concatenation",
        "maps of address, protocol and port to a chain or endpoint",
        BOTH,
        ("CONFIG_NF_TABLES of Linux 5.6 or later", None),
        Attempt::Concatenation,
    ),
    feature(
        "nft-interval",
        "address blocks and port ranges of policies",
        BOTH,
        ("CONFIG_NF_TABLES of Linux 4.18 or later", Some("nf_tables")),
        Attempt::Interval,
    ),
    feature(
        "nft-dynset",
        "clients stay at their endpoint (sessionAffinity)",
        BOTH,
        ("CONFIG_NF_TABLES of Linux 4.19 or later", Some("nf_tables")),
        Attempt::Dynset,
    ),
    feature(
        "nft-mark",
        "what is to be masqueraded",
        BOTH,
        ("CONFIG_NF_TABLES of Linux 5.6 or later", Some("nf_tables")),
        Attempt::Mark,
    ),
    feature(
        "nft-fib",
        "calls of the node itself to a Service",
        BOTH,
        ("CONFIG_NFT_FIB_IPV4", Some("nft_fib_ipv4")),
        Attempt::Fib,
    ),
    feature(
        "nft-counter",
        "how many packets a rule dropped",
        BOTH,
        ("CONFIG_NFT_COUNTER before Linux 5.18", Some("nft_counter")),
        Attempt::Counter,
    ),
    feature(
        "nft-log",
        "packets that a policy denied, for who listens",
        BOTH,
        ("CONFIG_NFT_LOG and CONFIG_NETFILTER_NETLINK_LOG", Some("nft_log")),
        Attempt::Log,
    ),
    feature(
        "nft-reject",
        "a Service without endpoints refuses",
        BOTH,
        ("CONFIG_NFT_REJECT", Some("nft_reject_ipv4")),
        Attempt::Reject,
    ),
    feature(
        "nft-inet",
        "each link brings only what may come by it",
        BOTH,
        ("CONFIG_NF_TABLES_INET and CONFIG_NFT_FIB_INET", Some("nft_fib_inet")),
        Attempt::Inet,
    ),
    feature(
        "nft-bridge",
        "a pod sends under its own addresses only",
        BOTH,
        ("CONFIG_NF_TABLES_BRIDGE", Some("nf_tables")),
        Attempt::Ports,
    ),
    feature(
        "nft-socket",
        "another node's DNS while the agent is away",
        BOTH,
        ("CONFIG_NFT_SOCKET of Linux 5.14 or later", Some("nft_socket")),
        Attempt::Socket,
    ),
    feature(
        "ctnetlink",
        "stale UDP connections are forgotten",
        BOTH,
        ("CONFIG_NF_CT_NETLINK", Some("nf_conntrack_netlink")),
        Attempt::Conntrack,
    ),
    feature(
        "ipv6",
        "pods with IPv6 addresses",
        &[User::Ipv6],
        (
            "CONFIG_IPV6, booted without ipv6.disable=1, with sysctl net.ipv6.conf.all.disable_ipv6=0 and \
             net.ipv6.conf.default.disable_ipv6=0",
            None,
        ),
        Attempt::Ipv6,
    ),
    feature(
        "nft-ip6",
        "Services, policies and masquerade of IPv6",
        &[User::Ipv6],
        ("CONFIG_NF_TABLES_IPV6, CONFIG_NFT_FIB_IPV6 and CONFIG_NFT_REJECT", Some("nft_fib_ipv6")),
        Attempt::Table6,
    ),
    feature(
        "nft-trace",
        "which rules a packet meets",
        &[User::Trace],
        ("CONFIG_NF_TABLES of Linux 4.6 or later", Some("nf_tables")),
        Attempt::NfTrace,
    ),
    feature(
        "packet-socket",
        "which interfaces a packet passes",
        &[User::Trace],
        ("CONFIG_PACKET", Some("af_packet")),
        Attempt::Packet,
    ),
];
