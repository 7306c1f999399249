//! What is broken, one at a time: the ten kinds of the issue, some in several forms.

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
    /// What shows it, and what the Event about it says; empty: not ours.
    pub look: &'static str,
    pub told: &'static str,
}

const NONE: Fault =
    Fault { name: "", node: "node1", plant: "", undo: "", target: FAR, hop: (0, "", ""), look: "", told: "" };

const TUNNEL: (u64, &str, &str) = (8, "tunnel", "node1");
const FDB: &str = "bridge fdb show dev plumb.1";
const PORT: &str = "bridge -d link show dev $SOURCE | grep -oE '(master|isolated) [a-z0-9]+'";

/// In the order of the issue.
pub const FAULTS: &[Fault] = &[
    Fault {
        name: "FDB entry gone",
        plant: "bridge fdb del $MAC dev plumb.1 self",
        hop: TUNNEL,
        look: FDB,
        told: "fdb $MAC",
        ..NONE
    },
    Fault {
        name: "FDB entry to the wrong node",
        plant: "bridge fdb replace $MAC dev plumb.1 dst 192.168.1.99 self permanent",
        hop: TUNNEL,
        look: FDB,
        told: "fdb $MAC",
        ..NONE
    },
    Fault {
        name: "FDB entry of the way back gone",
        node: "node2",
        plant: "bridge fdb del $MAC_BACK dev plumb.1 self",
        hop: (12, "return", "node1"),
        look: FDB,
        told: "fdb $MAC_BACK",
        ..NONE
    },
    Fault {
        name: "neighbour",
        plant: "ip neigh del 10.244.2.0 dev plumb.1",
        hop: TUNNEL,
        look: "ip neigh show dev plumb.1 nud permanent",
        told: "neighbour 10.244.2.0",
        ..NONE
    },
    Fault {
        name: "route",
        plant: "ip route del 10.244.2.0/24",
        hop: (5, "route", "node1"),
        look: "ip route show 10.244.2.0/24",
        told: "route 10.244.2.0/24",
        ..NONE
    },
    Fault {
        name: "ep element gone",
        plant: "nft delete element ip plumb ep { 0x0 . $VIP . tcp . 8080 }",
        hop: (4, "service", "node1"),
        look: "nft get element ip plumb ep { 0x0 . $VIP . tcp . 8080 }",
        told: "ep",
        ..NONE
    },
    Fault {
        name: "ep element to the wrong pod",
        plant: "nft delete element ip plumb ep { 0x0 . $VIP . tcp . 8080 } && \
                nft add element ip plumb ep { 0x0 . $VIP . tcp . 8080 : 10.244.2.99 . 8080 }",
        hop: (4, "service", "node1"),
        look: "nft get element ip plumb ep { 0x0 . $VIP . tcp . 8080 }",
        told: "ep",
        ..NONE
    },
    Fault {
        name: "foreign drop rule",
        plant: "nft add table ip stranger && \
                nft add chain ip stranger stop '{ type filter hook forward priority 10; }' && \
                nft add rule ip stranger stop ip daddr $FAR drop",
        undo: "nft delete table ip stranger",
        hop: (6, "egress", "node1"),
        ..NONE
    },
    Fault {
        name: "foreign drop rule on the way back",
        node: "node2",
        plant: "nft add table ip stranger && \
                nft add chain ip stranger stop '{ type filter hook forward priority 10; }' && \
                nft add rule ip stranger stop ip saddr $FAR drop",
        undo: "nft delete table ip stranger",
        hop: (12, "return", "node1"),
        ..NONE
    },
    Fault {
        name: "MTU of the tunnel",
        plant: "ip link set plumb.1 mtu 1000",
        hop: TUNNEL,
        look: "ip -o link show plumb.1 | grep -o 'mtu [0-9]*'",
        told: "plumb.1",
        ..NONE
    },
    Fault {
        name: "MTU of a veth",
        node: "node2",
        plant: "ip link set $TARGET mtu 1000",
        hop: (9, "node", "node2"),
        look: "ip -o link show $TARGET | grep -o 'mtu [0-9]*'",
        told: "$TARGET",
        ..NONE
    },
    Fault {
        name: "stale conntrack entry",
        plant: "conntrack -I -p tcp -s $WEB -d $VIP --sport 40999 --dport 8080 --state SYN_SENT --timeout 120 \
                --dst-nat 10.244.2.99:8080",
        undo: "conntrack -D -p tcp -s $WEB --sport 40999",
        hop: (4, "service", "node1"),
        ..NONE
    },
    Fault {
        name: "missing masquerade",
        plant: "nft flush chain ip plumb postrouting",
        target: "203.0.113.10:80",
        hop: (7, "masq", "node1"),
        look: "nft -s list chain ip plumb postrouting",
        told: "postrouting",
        ..NONE
    },
    Fault {
        name: "source's port out of the bridge",
        plant: "ip link set $SOURCE nomaster",
        hop: (3, "veth", "node1"),
        look: PORT,
        told: "$SOURCE",
        ..NONE
    },
    Fault {
        name: "source's port down",
        plant: "ip link set $SOURCE down",
        hop: (3, "veth", "node1"),
        look: "ip -o link show $SOURCE | grep -o ',UP,'",
        told: "$SOURCE",
        ..NONE
    },
    Fault {
        name: "source's port not isolated",
        plant: "bridge link set dev $SOURCE isolated off",
        hop: (3, "veth", "node1"),
        look: PORT,
        told: "$SOURCE",
        ..NONE
    },
    Fault {
        name: "destination's port out of the bridge",
        node: "node2",
        plant: "ip link set $TARGET nomaster",
        hop: (9, "node", "node2"),
        look: "bridge -d link show dev $TARGET | grep -oE '(master|isolated) [a-z0-9]+'",
        told: "$TARGET",
        ..NONE
    },
    Fault {
        name: "destination's port on the same node down",
        plant: "ip link set $BESIDE down",
        target: "http://near:8080",
        hop: (9, "node", "node1"),
        look: "ip -o link show $BESIDE | grep -o ',UP,'",
        told: "$BESIDE",
        ..NONE
    },
    Fault {
        name: "DNS address",
        plant: "ip address del 10.96.0.10/32 dev lo",
        hop: (1, "resolve", "node1"),
        look: "ip -o address show dev lo",
        told: "10.96.0.10/32",
        ..NONE
    },
];
