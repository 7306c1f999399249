//! A machine that lives on router advertisements becomes a node, which forwards, and keeps what it has by them.

use std::process::Command;

use crate::stage::{Stage, wait_for};

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
