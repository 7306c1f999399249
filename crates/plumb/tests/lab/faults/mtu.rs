//! MTUs along the way that are not what they should be: of the machine's own interface, which all of Plumb's links follow,
//! and of each of these; on the sender's node, on that of the destination, and where both are one.

use super::list::{ARRIVAL, Fault, SOURCE, TUNNEL, fault};

const BESIDE: (u64, &str, &str) = (9, "node", "node1");
const NEAR: &str = "http://near:8080";
const OUTSIDE: &str = "203.0.113.10:80";
/// Held agents know what should be, and leave what is.
const SMALLER: &str = "ip link set eth0 mtu 1400";
pub const AS_BEFORE: &str = "ip link set eth0 mtu 1500";
const FOLLOWED: &str = "mtu 1350";
const BRIDGE: &str = "ip link set cni0 mtu 1000";
const OF_BRIDGE: &str = "ip -o link show cni0 | grep -o 'mtu [0-9]*'";
const VETH: &str = "ip link set $SOURCE mtu 1000";
const OF_VETH: &str = "ip -o link show $SOURCE | grep -o 'mtu [0-9]*'";

pub const MTUS: &[Fault] = &[
    fault("MTU of the node's interface, to another node", SOURCE, SMALLER)
        .also(&[8], FOLLOWED)
        .undone_by(AS_BEFORE),
    fault("MTU of the node's interface, to another node's echo", SOURCE, SMALLER)
        .towards("ping:$FAR")
        .also(&[8], FOLLOWED)
        .undone_by(AS_BEFORE),
    fault("MTU of the node's interface, on one node", SOURCE, SMALLER)
        .towards(NEAR)
        .also(&[9], FOLLOWED)
        .undone_by(AS_BEFORE),
    fault("MTU of the node's interface, to the outside", SOURCE, SMALLER)
        .towards(OUTSIDE)
        .also(&[], FOLLOWED)
        .undone_by(AS_BEFORE),
    fault("MTU of the other node's interface", ARRIVAL, SMALLER)
        .on("node2")
        .also(&[], FOLLOWED)
        .undone_by(AS_BEFORE),
    fault("MTU of the bridge, to another node", SOURCE, BRIDGE).seen(OF_BRIDGE, "cni0"),
    fault("MTU of the bridge, on one node", SOURCE, BRIDGE).towards(NEAR),
    fault("MTU of the other node's bridge", ARRIVAL, BRIDGE).on("node2").seen(OF_BRIDGE, "cni0"),
    fault("MTU of the source's veth, to another node", SOURCE, VETH).seen(OF_VETH, "$SOURCE"),
    fault("MTU of the source's veth, on one node", SOURCE, VETH).towards(NEAR),
    fault("MTU of the source's veth, to the outside", SOURCE, VETH).towards(OUTSIDE),
    fault("MTU of the destination's veth, on one node", BESIDE, "ip link set $BESIDE mtu 1000").towards(NEAR),
    fault("MTU of the tunnel too large", TUNNEL, "ip link set plumb.1 mtu 1500"),
    fault("MTU of the other node's tunnel", ARRIVAL, "ip link set plumb.1 mtu 1000")
        .on("node2")
        .seen("ip -o link show plumb.1 | grep -o 'mtu [0-9]*'", "plumb.1"),
];
