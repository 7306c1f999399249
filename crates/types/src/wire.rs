//! Well-known numbers and names that several crates must agree on. Defaults, not settings: a setting's default
//! lives here, its override with its owner.

use crate::net::Protocol;

/// UDP port of VXLAN, the kernel's own default (and Flannel's).
pub const VXLAN_PORT: u16 = 8472;
/// The VXLAN network of the pod fabric, and its device.
pub const VXLAN_VNI: u32 = 1;
pub const VXLAN_DEVICE: &str = "plumb.1";
/// The bridge that pods' veths are (isolated) ports of.
pub const BRIDGE: &str = "cni0";
/// The agent's HTTP port on the node's address: health, metrics, traces.
pub const AGENT_PORT: u16 = 9475;
/// Where the agents' pods are, and the labels by which they are found there.
pub const AGENT_NAMESPACE: &str = "kube-system";
pub const AGENT_LABELS: [(&str, &str); 2] =
    [("app.kubernetes.io/name", "plumb"), ("app.kubernetes.io/component", "agent")];
/// The service account, in kube-system, whose tokens agents take from who traces. It may do nothing: what a token of it
/// is worth is what agents tell.
pub const TRACE_ACCOUNT: &str = "plumb-trace";
/// The audience that these tokens are made for.
pub const TRACE_AUDIENCE: &str = "plumb";
/// What a TokenReview says of a token that is bound to a node (KEP-4193).
pub const TOKEN_NODE: &str = "authentication.kubernetes.io/node-name";
/// Where an agent answers DNS for other nodes whose agent is away, on the node's address.
pub const DNS_PEER_PORT: u16 = 9476;
/// The kubelet's port, for the API server and for metrics.
pub const KUBELET_PORT: u16 = 10250;
/// kube-proxy's port for health checks of a cloud's load balancers, where agents answer in its place.
pub const PROXY_HEALTH_PORT: u16 = 10256;
/// Where whoever is on the node asks which proxy it has.
pub const PROXY_MODE_PORT: u16 = 10249;
/// What runs on every node, at its own addresses, that no Service and no pod may take away there.
pub const NODE_PORTS: [(Protocol, u16, &str); 6] = [
    (Protocol::Udp, VXLAN_PORT, "the nodes' tunnel"),
    (Protocol::Tcp, AGENT_PORT, "the agent's health, metrics and traces"),
    (Protocol::Udp, DNS_PEER_PORT, "the cluster's DNS between nodes"),
    (Protocol::Tcp, DNS_PEER_PORT, "the cluster's DNS between nodes"),
    (Protocol::Tcp, KUBELET_PORT, "the kubelet"),
    (Protocol::Tcp, PROXY_HEALTH_PORT, "health checks of load balancers"),
];
/// What runs on every node at 127.0.0.1, where no pod may take it away: `--healthz-port` of kubelets, and what kube-proxy
/// has at its `--metrics-bind-address` and agents answer in its place.
pub const LOOPBACK_PORTS: [(Protocol, u16, &str); 2] =
    [(Protocol::Tcp, 10248, "the kubelet's health"), (Protocol::Tcp, PROXY_MODE_PORT, "kube-proxy's mode")];
/// What the version of a lab's API has after that of Kubernetes, before that of Plumb.
pub const LAB_VERSION: &str = "+plumb.";
/// The agent's unix socket for the CNI executable and local tools, relative to the node's root.
pub const AGENT_SOCKET: &str = "/run/plumb/agent.sock";
/// Where a pod that is an agent finds its host's `/proc/sys`, writable (only `net` of it): its own is read-only.
pub const HOST_SYSCTLS: &str = "/host/proc/sys";
/// In the environment of all that runs in a lab: its name; and of what belongs to one of its nodes, that node's name.
pub const LAB_VARIABLE: &str = "PLUMB_LAB";
pub const NODE_VARIABLE: &str = "PLUMB_NODE";
/// Where a lab's node has this program for its kubelet, and pods of the demo image for whoever has a shell in them; below
/// it what stands in for programs that the machine may lack.
pub const PROGRAM_DIR: &str = "/run/program";
pub const SPARE_DIR: &str = "/run/program/spare";
/// The network configuration that agents write for the container runtime.
pub const CONFLIST: &str = "10-plumb.conflist";
/// The name of the network in it.
pub const NETWORK: &str = "plumb";
/// Where agents look for the certificate of their metrics, and a pod that is one finds the Secret with it.
pub const METRICS_CERT_DIR: &str = "/etc/plumb/metrics";
/// The headless Service of the agents' metrics, for a ServiceMonitor.
pub const METRICS_SERVICE: &str = "plumb-metrics";
/// Where a pod that is an agent finds the directory of its host with the kubelet's kubeconfig, read-only.
pub const HOST_KUBERNETES: &str = "/host/etc/kubernetes";
/// Our nf_tables table.
pub const TABLE: &str = "plumb";
/// That of traces, for the packets that one is to follow.
pub const TRACE_TABLE: &str = "plumb_trace";
/// Fwmark bit for packets that must be masqueraded, as kube-proxy uses it (M-04).
pub const MASQUERADE_MARK: u32 = 0x4000;
/// The addresses of a cluster that nobody gave others, IPv4 and IPv6: of all pods, of Services, of the API's own
/// Service (the first) and of the cluster's DNS (the tenth).
pub const POD_CIDRS: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/48"];
pub const SERVICE_CIDRS: [&str; 2] = ["10.96.0.0/12", "fd00:10:96::/112"];
pub const API_IPS: [&str; 2] = ["10.96.0.1", "fd00:10:96::1"];
pub const DNS_IPS: [&str; 2] = ["10.96.0.10", "fd00:10:96::a"];
/// Annotation on a Pod: addresses and prefixes that it may send from beside its own, with commas between.
pub const SOURCES_ANNOTATION: &str = "plumb.dev/allowed-sources";
/// Annotation on a Node: hardware address of its VTEP.
pub const VTEP_MAC_ANNOTATION: &str = "plumb.dev/vtep-mac";
/// The label by which an EndpointSlice belongs to a Service.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The kubelet's unix socket inside a node: `GET /containerLogs/{ns}/{pod}/{container}` with the query of kubectl's
/// `log`, and `POST /exec/{ns}/{pod}/{container}` with that of `exec`, upgraded (`Upgrade: plumb-exec`, 101) to frames
/// in both directions:
///
/// ```text
/// 4 bytes, big endian: length of what follows │ 1 byte: channel of v5.channel.k8s.io │ payload
/// ```
/// so a frame with an empty payload has length 1. Channel 0 stdin, 1 stdout, 2 stderr, 3 the final Status as JSON,
/// 4 terminal size as JSON, 255 closes the channel in its payload.
///
/// `POST /portForward/{ns}/{pod}/{port}` is upgraded (`Upgrade: plumb-forward`, 101) to a TCP connection to that port of
/// the pod's loopback.
pub const KUBELET_SOCKET: &str = "/run/kubelet.sock";
/// The protocol in the `Upgrade` header of an exec.
pub const EXEC_PROTOCOL: &str = "plumb-exec";
pub const FORWARD_PROTOCOL: &str = "plumb-forward";
