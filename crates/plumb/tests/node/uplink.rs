//! What the machine gives its node: one that lives on router advertisements keeps what it has by them, and what others take
//! away from the machine is said.

use std::process::Command;

use types::Families;

use crate::stage::{Node, Stage, wait_for};

/// One advertisement (RFC 4861, 4.2) from the bridge of the underlay: a default router for half an hour. The kernel
/// fills in the checksum.
const ADVERTISE: &str = "
import socket, struct
s = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex('br0'))
s.sendto(struct.pack('!BBHBBHII', 134, 0, 0, 64, 0, 1800, 0, 0), ('ff02::1', 0))
";

fn advertise(stage: &Stage) {
    let send = || Command::new("python3").args(["-c", ADVERTISE]).output();
    let sent = stage.underlay.run(send).unwrap().unwrap();
    // Until the bridge has its link-local address there is none to send from.
    assert!(sent.status.success() || sent.stderr.ends_with(b"Cannot assign requested address\n"), "{sent:?}");
}

#[test]
fn an_uplink_that_lives_on_router_advertisements_keeps_its_default_route() {
    let mut stage = Stage::new(1);
    stage.nodes[0].kill();
    let routes = |stage: &Stage| stage.nodes[0].run("ip -6 route show default proto ra dev eth0");
    wait_for("the advertised default route", || {
        advertise(&stage);
        (!routes(&stage).is_empty()).then_some(())
    });
    let node = &mut stage.nodes[0];
    node.flags = [
        "--cluster-cidr=10.244.0.0/16,fd00:10:244::/56",
        "--service-cidr=10.96.0.0/12,fd00:10:96::/112",
        "--dns-ip=10.96.0.10,fd00:10:96::a",
    ]
    .map(str::to_owned)
    .to_vec();
    node.start();
    wait_for("the node forwards IPv6", || {
        let forwards = stage.nodes[0].run("cat /proc/sys/net/ipv6/conf/all/forwarding");
        (forwards.trim() == "1").then_some(())
    });
    assert!(!routes(&stage).is_empty(), "the default route went when forwarding came");
    // And the next one is taken too: without it the first would last half an hour.
    stage.nodes[0].run("ip -6 route del default proto ra dev eth0");
    wait_for("the default route advertised again", || {
        advertise(&stage);
        (!routes(&stage).is_empty()).then_some(())
    });
}

fn log(node: &Node) -> String {
    std::fs::read_to_string(node.dir.join("agent.log")).unwrap()
}

/// `ip link set eth0 down`, then `up`: addresses of IPv4 and the routes to their networks come again by themselves, IPv6
/// addresses and default routes are lost for good.
#[test]
fn what_an_uplink_loses_when_it_goes_down_is_said() {
    let stage = Stage::of(2, Families::Dual);
    let node = &stage.nodes[0];
    wait_for("the tunnel's peer is known", || node.run("ip route").contains("10.244.2.0/24").then_some(()));
    node.run("ip route add default via 192.168.1.2");
    node.run("ip -6 route add default via fd00:192:168:1::2");
    for family in ["IPv4", "IPv6"] {
        let known = format!("the way to the outside by {family} is default via");
        wait_for(&known, || log(node).contains(&known).then_some(()));
    }
    node.run("ip link set eth0 down");
    wait_for("the link is down", || log(node).contains("its uplink eth0 is down").then_some(()));
    node.run("ip link set eth0 up");
    let lacks = [
        "had an IPv4 route to the outside (default via 192.168.1.2 dev eth0)",
        "had an IPv6 route to the outside (default via fd00:192:168:1::2 dev eth0)",
        "its InternalIP fd00:192:168:1::10 is on no interface",
    ];
    for words in lacks {
        let told =
            wait_for(words, || stage.events("NetworkDegraded").into_iter().find(|told| told.contains(words)));
        assert!(told.contains("ip -6 route replace default") || !words.contains("IPv6 route"), "{told}");
        let back = "`ip address add fd00:192:168:1::10/64 dev eth0`";
        assert!(told.contains(back) || !words.contains("InternalIP"), "{told}");
    }
    wait_for("the link is up", || {
        log(node).contains("no longer: node node1: uplink: its uplink eth0").then_some(())
    });
    // With what was said to do all is well again.
    node.run("ip address add fd00:192:168:1::10/64 dev eth0 nodad");
    node.run("ip route replace default via 192.168.1.2 dev eth0");
    node.run("ip -6 route replace default via fd00:192:168:1::2 dev eth0");
    for words in lacks {
        let over = || log(node).lines().any(|line| line.contains("no longer") && line.contains(words));
        wait_for(&format!("over: {words}"), || over().then_some(()));
        let mended = || stage.events("NetworkMended").into_iter().filter(|told| told.contains(words)).count();
        wait_for(&format!("an Event says so: {words}"), || (mended() > 0).then_some(()));
        assert_eq!(mended(), 1, "{words}");
    }
}

/// The kernel takes IPv6 from links of less than 1280 bytes: pods keep that many, and what the uplink lacks is said.
#[test]
fn an_uplink_that_is_too_small_for_ipv6_leaves_it_and_is_named() {
    let stage = Stage::of(2, Families::Dual);
    let node = &stage.nodes[0];
    wait_for("the tunnel's peer is known", || node.run("ip route").contains("10.244.2.0/24").then_some(()));
    let addresses = || node.run("ip -6 -o address show dev cni0 scope global");
    let before = addresses();
    assert!(!before.is_empty());
    node.run("ip link set eth0 mtu 1300");
    let words = "eth0's MTU of 1300 leaves 1250 bytes for pods";
    let told =
        wait_for(words, || stage.events("NetworkDegraded").into_iter().find(|told| told.contains(words)));
    assert!(told.contains("`ip link set eth0 mtu 1330`"), "{told}");
    wait_for("as small as may be", || {
        let links = ["cni0", "plumb.1"].map(|link| node.run(&format!("ip -o link show {link}")));
        links.iter().all(|line| line.contains("mtu 1280 ")).then_some(())
    });
    assert_eq!(addresses(), before);
    node.run("ip link set eth0 mtu 1330");
    let over = || log(node).lines().any(|line| line.contains("no longer") && line.contains(words));
    wait_for("over", || over().then_some(()));
}

/// Routes and rules of others that take what is for pods: they stay, and are said at once.
#[test]
fn what_others_lead_away_from_pods_is_said() {
    let stage = Stage::new(2);
    let node = &stage.nodes[0];
    wait_for("the tunnel's peer is known", || node.run("ip route").contains("10.244.2.0/24").then_some(()));
    for (command, words) in [
        (
            "ip route {} unreachable 10.244.2.0/25",
            "route `unreachable 10.244.2.0/25` takes packets to pods of node node2",
        ),
        (
            "ip route {} blackhole 10.244.1.128/25",
            "route `blackhole 10.244.1.128/25` takes packets to its own pods",
        ),
        (
            "ip rule {} to 10.244.2.0/24 prohibit priority 50",
            "rule `to 10.244.2.0/24 prohibit` takes packets",
        ),
    ] {
        node.run(&command.replace("{}", "add"));
        let told = |reason: &str| stage.events(reason).into_iter().any(|told| told.contains(words));
        wait_for(words, || told("NetworkDegraded").then_some(()));
        node.run(&command.replace("{}", "del"));
        wait_for(&format!("over: {words}"), || told("NetworkMended").then_some(()));
    }
}
