//! What the way needs of a node and of the pod, and what is not Plumb's or nobody mends while the agents are held: each on
//! the sender's node, on that of the destination, and where both are one.

use super::list::{ARRIVAL, Fault, RETURN, RETURN_THERE, SOURCE, TUNNEL, fault, stranger};

const ROUTE: (u64, &str, &str) = (5, "route", "node1");
const BESIDE: (u64, &str, &str) = (9, "node", "node1");
const NEAR: &str = "http://near:8080";
const OUTSIDE: &str = "203.0.113.10:80";
const FORWARD_NOT: &str = "sysctl -qw net.ipv4.ip_forward=0";

pub const GROUND: &[Fault] = &[
    fault("forwarding off, to another node", ROUTE, FORWARD_NOT),
    fault("forwarding off, on one node", ROUTE, FORWARD_NOT).towards(NEAR),
    fault("forwarding off, to the outside", ROUTE, FORWARD_NOT).towards(OUTSIDE),
    fault("forwarding off on the other node", ARRIVAL, FORWARD_NOT).on("node2"),
    fault(
        "forwarding of the bridge off, to another node",
        ROUTE,
        "sysctl -qw net.ipv4.conf.cni0.forwarding=0",
    )
    .undone_by("sysctl -qw net.ipv4.conf.cni0.forwarding=1"),
    fault("forwarding of the bridge off, on one node", ROUTE, "sysctl -qw net.ipv4.conf.cni0.forwarding=0")
        .towards(NEAR)
        .undone_by("sysctl -qw net.ipv4.conf.cni0.forwarding=1"),
    fault(
        "forwarding of the other node's tunnel off",
        ARRIVAL,
        "echo 0 > /proc/sys/net/ipv4/conf/plumb.1/forwarding",
    )
    .on("node2")
    .undone_by("echo 1 > /proc/sys/net/ipv4/conf/plumb.1/forwarding"),
    fault("default route lost", ROUTE, "ip route del default")
        .towards(OUTSIDE)
        .undone_by("ip route add default via 192.168.1.1"),
    fault("route to the other node lost", TUNNEL, "ip route add unreachable 192.168.1.11/32")
        .undone_by("ip route del unreachable 192.168.1.11/32"),
    fault("the other node's route back lost", RETURN_THERE, "ip route add blackhole 192.168.1.10/32")
        .on("node2")
        .undone_by("ip route del blackhole 192.168.1.10/32"),
    fault("route to the node's pods lost, on one node", ROUTE, OWN_PODS_LOST)
        .towards("$NEAR:8080")
        .undone_by(OWN_PODS),
    fault("route to the node's pods lost, asking for a name", (1, "resolve", "node1"), OWN_PODS_LOST)
        .undone_by(OWN_PODS),
    fault("route to the node's pods lost, the way back", RETURN, OWN_PODS_LOST)
        .towards("$FAR:8080")
        .undone_by(OWN_PODS),
    fault("route to the other node's pods lost", ARRIVAL, "ip route del 10.244.2.0/24 dev cni0")
        .on("node2")
        .undone_by("ip route add 10.244.2.0/24 dev cni0 proto kernel scope link src 10.244.2.1"),
    // What others of the list are between two nodes.
    fault("destination's neighbour gone, on one node", BESIDE, "ip neigh del $NEAR dev cni0").towards(NEAR),
    fault("source's neighbour gone, on one node", RETURN, "ip neigh del $WEB dev cni0").towards(NEAR),
    stranger!("foreign drop rule, on one node", (6, "egress", "node1"), "ip daddr $NEAR").towards(NEAR),
    stranger!("foreign drop rule on the way back, on one node", RETURN, "ip saddr $NEAR").towards(NEAR),
    fault("the pod's default route lost, to another node", SOURCE, POD_ROUTE_LOST)
        .towards("$FAR:8080")
        .undone_by(POD_ROUTE_BACK),
    fault("the pod's default route lost, on one node", SOURCE, POD_ROUTE_LOST)
        .towards("$NEAR:8080")
        .undone_by(POD_ROUTE_BACK),
];

const OWN_PODS_LOST: &str = "ip route del 10.244.1.0/24 dev cni0";
const OWN_PODS: &str = "ip route add 10.244.1.0/24 dev cni0 proto kernel scope link src 10.244.1.1";
const POD_ROUTE_LOST: &str = "for n in $(ip netns list | cut -d' ' -f1); do ip netns exec $n ip -o addr | \
     grep -q ' $WEB/' && ip netns exec $n ip route del default; done; true";
const POD_ROUTE_BACK: &str = "for n in $(ip netns list | cut -d' ' -f1); do ip netns exec $n ip -o addr | \
     grep -q ' $WEB/' && ip netns exec $n ip route add default via 10.244.1.1 dev eth0; done; true";
