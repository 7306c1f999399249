//! What is broken, one at a time: ten kinds, some in several forms.

use super::FAR;

/// Something that somebody breaks on a node.
pub struct Fault {
    pub name: &'static str,
    pub node: &'static str,
    /// Shell in which `$MAC`, `$VIP`, … stand for what [`Stage::names`] found.
    pub plant: &'static str,
    /// Needed where it is not ours to mend.
    pub undo: &'static str,
    pub target: &'static str,
    /// Number and stage of the hop, and its node.
    pub hop: (u64, &'static str, &'static str),
    /// Further hops that have a fault of their own, and that the packet comes to.
    pub also: &'static [u64],
    /// What the trace says of each once the agent knows; empty: at once.
    pub sign: &'static str,
    /// What shows it, and what the Event about it says; empty: not ours.
    pub look: &'static str,
    pub told: &'static str,
}

/// Something of ours on node1 that a packet to the far pod meets.
pub const fn fault(name: &'static str, hop: (u64, &'static str, &'static str), plant: &'static str) -> Fault {
    Fault { name, node: "node1", plant, undo: "", target: FAR, hop, also: &[], sign: "", look: "", told: "" }
}

impl Fault {
    pub const fn on(self, node: &'static str) -> Self {
        Self { node, ..self }
    }

    pub const fn towards(self, target: &'static str) -> Self {
        Self { target, ..self }
    }

    pub const fn also(self, also: &'static [u64], sign: &'static str) -> Self {
        Self { also, sign, ..self }
    }

    pub const fn seen(self, look: &'static str, told: &'static str) -> Self {
        Self { look, told, ..self }
    }

    pub const fn undone_by(self, undo: &'static str) -> Self {
        Self { undo, ..self }
    }
}

/// A table of somebody else that drops these packets.
macro_rules! stranger {
    ($name:literal, $hop:expr, $packets:literal) => {
        fault(
            $name,
            $hop,
            concat!(
                "nft add table ip stranger && ",
                "nft add chain ip stranger stop '{ type filter hook forward priority 10; }' && ",
                "nft add rule ip stranger stop ",
                $packets,
                " drop"
            ),
        )
        .undone_by("nft delete table ip stranger")
    };
}
pub(super) use stranger;

pub const TUNNEL: (u64, &str, &str) = (8, "tunnel", "node1");
const SERVICE: (u64, &str, &str) = (4, "service", "node1");
pub const SOURCE: (u64, &str, &str) = (3, "veth", "node1");
pub const ARRIVAL: (u64, &str, &str) = (9, "node", "node2");
pub const RETURN: (u64, &str, &str) = (12, "return", "node1");
/// The hop is the sender's, the fault the other's.
pub const RETURN_THERE: (u64, &str, &str) = (12, "return", "node2");
const FDB: &str = "bridge fdb show dev plumb.1";
const ELEMENT: &str = "nft get element ip plumb ep { 0x0 . $VIP . tcp . 8080 }";
const PORT: &str =
    "bridge -d link show dev $SOURCE | grep -oE '(master|isolated|locked|learning|flood) [a-z0-9]+'";
const ENTRY: &str = "bridge fdb show brport $SOURCE | grep -w static";
/// Permanent ones.
const NEIGHBOURS: &str = "ip neigh show dev cni0 nud permanent | sort";

/// Which the agents of an ordinary user's lab cannot load.
pub const NO_PROGRAM: &str = "source's port without its program";

/// Along the way of a packet.
pub const FAULTS: &[Fault] = &[
    fault("FDB entry gone", TUNNEL, "bridge fdb del $MAC dev plumb.1 self").seen(FDB, "FDB entry $MAC"),
    fault(
        "FDB entry to the wrong node",
        TUNNEL,
        "bridge fdb replace $MAC dev plumb.1 dst 192.168.1.99 self permanent",
    )
    .seen(FDB, "FDB entry $MAC"),
    fault("FDB entry of the way back gone", RETURN_THERE, "bridge fdb del $MAC_BACK dev plumb.1 self")
        .on("node2")
        .seen(FDB, "FDB entry $MAC_BACK"),
    fault("neighbour", TUNNEL, "ip neigh del 10.244.2.0 dev plumb.1")
        .seen("ip neigh show dev plumb.1 nud permanent", "neighbour 10.244.2.0"),
    fault("route", (5, "route", "node1"), "ip route del 10.244.2.0/24")
        .seen("ip route show 10.244.2.0/24", "route 10.244.2.0/24"),
    fault("ep element gone", SERVICE, "nft delete element ip plumb ep { 0x0 . $VIP . tcp . 8080 }")
        .seen(ELEMENT, "ep"),
    // One transaction: between two, the agent puts the right element back.
    fault(
        "ep element to the wrong pod",
        SERVICE,
        "nft delete element ip plumb ep { 0x0 . $VIP . tcp . 8080 } ';' \
         add element ip plumb ep { 0x0 . $VIP . tcp . 8080 : 10.244.2.99 . 8080 }",
    )
    .seen(ELEMENT, "ep"),
    stranger!("foreign drop rule", (6, "egress", "node1"), "ip daddr $FAR"),
    stranger!("foreign drop rule on the way back", RETURN_THERE, "ip saddr $FAR").on("node2"),
    fault("MTU of the tunnel", TUNNEL, "ip link set plumb.1 mtu 1000")
        .seen("ip -o link show plumb.1 | grep -o 'mtu [0-9]*'", "plumb.1"),
    fault("MTU of a veth", ARRIVAL, "ip link set $TARGET mtu 1000")
        .on("node2")
        .seen("ip -o link show $TARGET | grep -o 'mtu [0-9]*'", "$TARGET"),
    fault(
        "stale conntrack entry",
        SERVICE,
        "conntrack -I -p tcp -s $WEB -d $VIP --sport 40999 --dport 8080 --state SYN_SENT --timeout 120 \
         --dst-nat 10.244.2.99:8080",
    )
    .undone_by("conntrack -D -p tcp -s $WEB --sport 40999"),
    fault("missing masquerade", (7, "masq", "node1"), "nft flush chain ip plumb postrouting")
        .towards("203.0.113.10:80")
        .seen("nft -s list chain ip plumb postrouting", "postrouting"),
    fault("source's port out of the bridge", SOURCE, "ip link set $SOURCE nomaster").seen(PORT, "$SOURCE"),
    fault("source's port down", SOURCE, "ip link set $SOURCE down")
        .seen("ip -o link show $SOURCE | grep -o ',UP,'", "$SOURCE"),
    fault("source's port not isolated", SOURCE, "bridge link set dev $SOURCE isolated off")
        .seen(PORT, "$SOURCE"),
    fault("source's port not locked", SOURCE, "bridge link set dev $SOURCE locked off").seen(PORT, "$SOURCE"),
    fault(NO_PROGRAM, SOURCE, "tc qdisc del dev $SOURCE clsact")
        .seen("tc filter show dev $SOURCE ingress | grep -o plumb_checksums", "$SOURCE"),
    fault("source's port learns", SOURCE, "bridge link set dev $SOURCE learning on").seen(PORT, "$SOURCE"),
    fault(
        "source's entry in the bridge gone",
        SOURCE,
        "bridge fdb del $(bridge fdb show brport $SOURCE | grep -w static | cut -d' ' -f1) dev $SOURCE master",
    )
    .seen(ENTRY, "on $SOURCE should be static"),
    fault(
        "destination's entry in the bridge gone",
        ARRIVAL,
        "bridge fdb del $(bridge fdb show brport $TARGET | grep -w static | cut -d' ' -f1) dev $TARGET master",
    )
    .on("node2")
    .seen("bridge fdb show brport $TARGET | grep -w static", "on $TARGET should be static"),
    fault("source's neighbour gone", RETURN, "ip neigh del $WEB dev cni0").seen(NEIGHBOURS, "neighbour $WEB"),
    fault("destination's neighbour gone", ARRIVAL, "ip neigh del $FAR dev cni0")
        .on("node2")
        .seen(NEIGHBOURS, "neighbour $FAR"),
    fault(
        "destination's neighbour is another",
        ARRIVAL,
        "ip neigh replace $FAR lladdr 02:00:00:00:00:09 dev cni0 nud permanent",
    )
    .on("node2")
    .seen(NEIGHBOURS, "neighbour $FAR"),
    fault("destination's port out of the bridge", ARRIVAL, "ip link set $TARGET nomaster")
        .on("node2")
        .seen("bridge -d link show dev $TARGET | grep -oE '(master|isolated) [a-z0-9]+'", "$TARGET"),
    fault("destination's port on the same node down", (9, "node", "node1"), "ip link set $BESIDE down")
        .towards("http://near:8080")
        .seen("ip -o link show $BESIDE | grep -o ',UP,'", "$BESIDE"),
    fault("DNS address", (1, "resolve", "node1"), "ip address del 10.96.0.10/32 dev lo")
        .seen("ip -o address show dev lo", "10.96.0.10/32"),
    fault("rules before conntrack", (3, "veth", "node1"), "nft flush chain ip plumb raw")
        .seen("nft -s list chain ip plumb raw", "raw"),
];
