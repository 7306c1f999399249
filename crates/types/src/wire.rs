//! Well-known numbers and names that several crates must agree on. Defaults, not settings: a setting's default
//! lives here, its override with its owner.

/// UDP port of VXLAN, the kernel's own default (and Flannel's).
pub const VXLAN_PORT: u16 = 8472;
/// The VXLAN network of the pod fabric, and its device.
pub const VXLAN_VNI: u32 = 1;
pub const VXLAN_DEVICE: &str = "plumb.1";
/// The bridge that pods' veths are (isolated) ports of.
pub const BRIDGE: &str = "cni0";
/// The agent's HTTP port on the node's address: health, metrics, traces.
pub const AGENT_PORT: u16 = 9475;
/// Where an agent answers DNS for other nodes whose agent is away, on the node's address.
pub const DNS_PEER_PORT: u16 = 9476;
/// The agent's unix socket for the CNI executable and local tools, relative to the node's root.
pub const AGENT_SOCKET: &str = "/run/plumb/agent.sock";
/// Our nf_tables table.
pub const TABLE: &str = "plumb";
/// Fwmark bit for packets that must be masqueraded, as kube-proxy uses it (M-04).
pub const MASQUERADE_MARK: u32 = 0x4000;
/// Annotation on a Node: hardware address of its VTEP.
pub const VTEP_MAC_ANNOTATION: &str = "plumb.dev/vtep-mac";
