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
    /// The first mainline kernel that can do all of the attempt. Distributions carry some of it back: the attempt counts.
    pub since: &'static str,
    /// The option of the kernel's build (`make menuconfig`), or what else it takes.
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
                 (linux-modules-extra on Ubuntu, linux-image-amd64 on Debian), or build one with {} (Linux {} or newer)",
                self.config, self.since
            ),
            None => format!("use a kernel with {} (Linux {} or newer)", self.config, self.since),
        }
    }
}

const BOTH: &[User] = &[User::Agent, User::Lab];

const fn feature(
    name: &'static str,
    purpose: &'static str,
    needed_by: &'static [User],
    (since, config, module): (&'static str, &'static str, Option<&'static str>),
    attempt: Attempt,
) -> Feature {
    Feature { name, purpose, needed_by, since, config, module, attempt }
}

/// In the order of what builds on what. Versions are of unshare(2), setns(2), pidfd_open(2), mount_setattr(2), ip(7),
/// ipv6(7), packet(7) and tmpfs(5), of the nftables wiki's "List of updates since Linux kernel 3.13", and, where these say
/// nothing, of the commit that is named.
pub const FEATURES: &[Feature] = &[
    feature(
        "netns",
        "a pod's own network namespace",
        BOTH,
        ("3.0", "CONFIG_NET_NS, and /proc/sys/user/max_net_namespaces above 0", None),
        Attempt::Room,
    ),
    feature(
        "mntns",
        "a node's own files",
        &[User::Lab],
        ("2.6.16", "CONFIG_NAMESPACES", None),
        Attempt::MountNs,
    ),
    feature(
        "utsns",
        "a node's own host name",
        &[User::Lab],
        ("2.6.19", "CONFIG_UTS_NS", None),
        Attempt::UtsNs,
    ),
    feature("pidns", "a lab ends as a whole", &[User::Lab], ("3.8", "CONFIG_PID_NS", None), Attempt::PidNs),
    feature(
        "pidfd",
        "processes by handle",
        &[User::Lab],
        ("5.3", "the system call pidfd_open", None),
        Attempt::Pidfd,
    ),
    feature("tmpfs", "a node's own root", &[User::Lab], ("2.4", "CONFIG_TMPFS", None), Attempt::Tmpfs),
    feature(
        "mount_setattr",
        "read-only roots of pods",
        &[User::Lab],
        ("5.12", "the system call mount_setattr", None),
        Attempt::ReadOnly,
    ),
    // Since bridges are made by rtnetlink.
    feature(
        "bridge",
        "cni0, which pods are ports of",
        BOTH,
        ("3.0", "CONFIG_BRIDGE", Some("bridge")),
        Attempt::Bridge,
    ),
    // 7d850abd5f4e: isolated ports.
    feature(
        "veth",
        "a pod's eth0, on an isolated port",
        BOTH,
        ("4.18", "CONFIG_VETH", Some("veth")),
        Attempt::Veth,
    ),
    // d342894c5d2f
    feature(
        "vxlan",
        "the way to other nodes' pods",
        BOTH,
        ("3.7", "CONFIG_VXLAN", Some("vxlan")),
        Attempt::Vxlan,
    ),
    feature(
        "ip_forward",
        "a node that routes",
        BOTH,
        ("1.2", "CONFIG_SYSCTL, and /proc/sys writable", None),
        Attempt::Forwarding,
    ),
    feature(
        "nf_tables",
        "Services, policies, masquerade",
        BOTH,
        ("3.13", "CONFIG_NF_TABLES and CONFIG_NF_TABLES_IPV4", Some("nf_tables")),
        Attempt::Table,
    ),
    // d719e3f21cf9: the addresses of a flow by family.
    feature(
        "nft-ct",
        "answers of allowed connections",
        BOTH,
        ("4.17", "CONFIG_NFT_CT", Some("nft_ct")),
        Attempt::Ct,
    ),
    // Since there are concatenations: an address with a port.
    feature(
        "nft-nat",
        "a ClusterIP becomes an endpoint",
        BOTH,
        ("4.1", "CONFIG_NFT_NAT", Some("nft_chain_nat")),
        Attempt::Nat,
    ),
    feature(
        "nft-masquerade",
        "pods reach what is outside",
        BOTH,
        ("3.18", "CONFIG_NFT_MASQ", Some("nft_masq")),
        Attempt::Masquerade,
    ),
    // 91dbc6be0a62
    feature(
        "nft-numgen",
        "a random endpoint",
        BOTH,
        ("4.9", "CONFIG_NFT_NUMGEN", Some("nft_numgen")),
        Attempt::Numgen,
    ),
    feature(
        "nft-concatenation",
        "maps of address, protocol and port to a chain or endpoint",
        BOTH,
        ("4.1", "CONFIG_NF_TABLES", None),
        Attempt::Concatenation,
    ),
    feature(
        "nft-interval",
        "address blocks and port ranges of policies",
        BOTH,
        ("3.13", "CONFIG_NF_TABLES", Some("nf_tables")),
        Attempt::Interval,
    ),
    feature(
        "nft-dynset",
        "clients stay at their endpoint (sessionAffinity)",
        BOTH,
        ("4.1", "CONFIG_NF_TABLES", Some("nf_tables")),
        Attempt::Dynset,
    ),
    feature(
        "nft-mark",
        "what is to be masqueraded",
        BOTH,
        ("3.14", "CONFIG_NF_TABLES", Some("nf_tables")),
        Attempt::Mark,
    ),
    feature(
        "nft-fib",
        "calls of the node itself to a Service",
        BOTH,
        ("4.10", "CONFIG_NFT_FIB_IPV4", Some("nft_fib_ipv4")),
        Attempt::Fib,
    ),
    feature(
        "nft-counter",
        "how many packets a rule dropped",
        BOTH,
        ("3.13", "CONFIG_NFT_COUNTER before Linux 5.18", Some("nft_counter")),
        Attempt::Counter,
    ),
    feature(
        "nft-log",
        "packets that a policy denied, for who listens",
        BOTH,
        ("3.17", "CONFIG_NFT_LOG and CONFIG_NETFILTER_NETLINK_LOG", Some("nft_log")),
        Attempt::Log,
    ),
    // bee11dc78fc8: TCP resets.
    feature(
        "nft-reject",
        "a Service without endpoints refuses",
        BOTH,
        ("3.14", "CONFIG_NFT_REJECT", Some("nft_reject_ipv4")),
        Attempt::Reject,
    ),
    // 67407a406db3: `socket wildcard`. IPv6 is guarded whether or not pods have it, because the kernel speaks it.
    feature(
        "nft-fib-ipv6",
        "each link brings only what may come by it",
        BOTH,
        ("5.10", "CONFIG_NF_TABLES_IPV6 and CONFIG_NFT_FIB_IPV6", Some("nft_fib_ipv6")),
        Attempt::Links,
    ),
    // Since there are concatenations: port, MAC and address.
    feature(
        "nft-bridge",
        "a pod sends under its own addresses only",
        BOTH,
        ("4.1", "CONFIG_NF_TABLES_BRIDGE", Some("nf_tables")),
        Attempt::Ports,
    ),
    // 67407a406db3
    feature(
        "nft-socket",
        "another node's DNS while the agent is away",
        BOTH,
        ("5.10", "CONFIG_NFT_SOCKET", Some("nft_socket")),
        Attempt::Socket,
    ),
    // 080774a243f5
    feature(
        "ctnetlink",
        "stale UDP connections are forgotten",
        BOTH,
        ("2.6.14", "CONFIG_NF_CT_NETLINK", Some("nf_conntrack_netlink")),
        Attempt::Conntrack,
    ),
    feature(
        "ipv6",
        "pods with IPv6 addresses",
        &[User::Ipv6],
        (
            "2.2",
            "CONFIG_IPV6, booted without ipv6.disable=1, with sysctl net.ipv6.conf.all.disable_ipv6=0 and \
             net.ipv6.conf.default.disable_ipv6=0",
            None,
        ),
        Attempt::Ipv6,
    ),
    // As nft-ct.
    feature(
        "nft-ip6",
        "Services, policies and masquerade of IPv6",
        &[User::Ipv6],
        ("4.17", "CONFIG_NF_TABLES_IPV6, CONFIG_NFT_FIB_IPV6 and CONFIG_NFT_REJECT", Some("nft_fib_ipv6")),
        Attempt::Table6,
    ),
    // 33d5a7b14bfd
    feature(
        "nft-trace",
        "which rules a packet meets",
        &[User::Trace],
        ("4.5", "CONFIG_NF_TABLES", Some("nf_tables")),
        Attempt::NfTrace,
    ),
    feature(
        "packet-socket",
        "which interfaces a packet passes",
        &[User::Trace],
        ("2.2", "CONFIG_PACKET", Some("af_packet")),
        Attempt::Packet,
    ),
];
