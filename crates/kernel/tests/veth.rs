//! Pods' veth pairs in fresh namespaces.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use kernel::veth::{self, PodRoute, PodVeth, Port};
use kernel::{Error, Netns, Rtnl};
use kstate::net::PortOptions;
use types::IfName;

fn name(text: &str) -> IfName {
    IfName::new(text).expect("a good name")
}

/// A node with a bridge, made with our own codec.
fn node() -> (Netns, Rtnl) {
    let ns = Netns::fresh().expect("fresh");
    let mut rtnl = Rtnl::open_in(&ns).expect("open");
    let link = kstate::net::Link {
        kind: kstate::net::LinkKind::Bridge,
        mac: "0a:58:0a:f4:01:01".parse().ok(),
        mtu: Some(1450),
        up: true,
        port: None,
    };
    let mut batch = rtnl.socket_mut().batch();
    batch.add(|writer, seq| netlink::route::add_link(writer, seq, &name("cni0"), &link, None));
    assert_eq!(rtnl.socket_mut().run(batch).expect("run"), []);
    let mut batch = rtnl.socket_mut().batch();
    let index = rtnl.index(&name("cni0")).expect("index");
    batch.add(|writer, seq| {
        let address = "10.244.1.1/24".parse().expect("address");
        netlink::route::add_address(writer, seq, index, address);
    });
    assert_eq!(rtnl.socket_mut().run(batch).expect("run"), []);
    (ns, rtnl)
}

/// On a port that is isolated, and learns.
fn add_pod(rtnl: &mut Rtnl, pod: &Netns, host: &str, last: u8) -> Result<veth::Created, Error> {
    add_pod_at(rtnl, pod, (host, PortOptions::OF_KERNEL.and(PortOptions::ISOLATED)), last)
}

fn add_pod_at(
    rtnl: &mut Rtnl,
    pod: &Netns,
    (host, options): (&str, PortOptions),
    last: u8,
) -> Result<veth::Created, Error> {
    let bridge = name("cni0");
    veth::create(
        rtnl,
        &PodVeth {
            host: &name(host),
            host_mac: None,
            netns: pod,
            interface: &name("eth0"),
            mac: Some(types::Mac([0x0a, 0x58, 10, 244, 1, last])),
            mtu: Some(1450),
            addresses: &[format!("10.244.1.{last}/32").parse().expect("address")],
            routes: &[
                PodRoute { dst: "10.244.1.1/32".parse().expect("route"), via: None },
                PodRoute {
                    dst: "0.0.0.0/0".parse().expect("route"),
                    via: Some("10.244.1.1".parse().expect("gateway")),
                },
            ],
            bridge: Some(Port { bridge: &bridge, options }),
            loopback: true,
        },
    )
}

#[test]
fn a_pod_reaches_its_node_and_isolated_ports_do_not_exchange_frames() {
    let (node, mut rtnl) = node();
    let (one, two) = (Netns::fresh().expect("fresh"), Netns::fresh().expect("fresh"));
    let created = add_pod(&mut rtnl, &one, "veth1", 4).expect("create");
    add_pod(&mut rtnl, &two, "veth2", 5).expect("create");

    let link = rtnl.links().expect("links").into_iter().find(|link| link.index == created.host_index);
    let link = link.expect("the host side");
    assert_eq!((link.name.as_str(), link.up), ("veth1", true));
    let isolated = PortOptions::OF_KERNEL.and(PortOptions::ISOLATED);
    assert_eq!(link.port, Some((isolated, PortOptions::default())));

    let server = node.run(|| UdpSocket::bind("10.244.1.1:9")).expect("run").expect("bind");
    server.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
    let client = one.run(|| UdpSocket::bind("10.244.1.4:0")).expect("run").expect("bind");
    client.send_to(b"hello", "10.244.1.1:9").expect("send");
    let mut buffer = [0; 16];
    let (length, from) = server.recv_from(&mut buffer).expect("receive");
    assert_eq!((buffer.get(..length), from.ip().to_string().as_str()), (Some(&b"hello"[..]), "10.244.1.4"));

    // A broadcast of one pod reaches the node but no other isolated port.
    let bind = || UdpSocket::bind("0.0.0.0:7");
    let (on_node, on_two) = (node.run(bind).expect("run"), two.run(bind).expect("run"));
    let (on_node, on_two) = (on_node.expect("bind"), on_two.expect("bind"));
    on_node.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
    client.set_broadcast(true).expect("broadcast");
    client.send_to(b"all", "255.255.255.255:7").expect("send");
    on_node.recv_from(&mut buffer).expect("the node hears it");
    // The bridge floods before it delivers locally: if it were to reach the pod, it would be there by now.
    on_two.set_nonblocking(true).expect("nonblocking");
    assert!(on_two.recv_from(&mut buffer).is_err(), "an isolated port got a frame of another");
}

/// No table of nf_tables is there.
#[test]
fn a_pod_is_heard_from_the_first_frame_on_and_by_its_own_mac_only() {
    let (node, mut rtnl) = node();
    let pod = Netns::fresh().expect("fresh");
    let made = add_pod_at(&mut rtnl, &pod, ("veth1", PortOptions::OF_POD), 4).expect("create");
    let server = node.run(|| UdpSocket::bind("10.244.1.1:9")).expect("run").expect("bind");
    server.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
    let client = pod.run(|| UdpSocket::bind("10.244.1.4:0")).expect("run").expect("bind");
    let mut inside = Rtnl::open_in(&pod).expect("open");
    let mut take_mac = |mac: types::Mac| {
        let link = kstate::net::Link {
            kind: kstate::net::LinkKind::Veth,
            mac: Some(mac),
            mtu: None,
            up: true,
            port: None,
        };
        let mut batch = inside.socket_mut().batch();
        batch.add(|writer, seq| netlink::route::change_link(writer, seq, made.pod_index, &link, None));
        assert_eq!(inside.socket_mut().run(batch).expect("run"), []);
    };
    let own = types::Mac([0x0a, 0x58, 10, 244, 1, 4]);
    let mut buffer = [0; 16];
    let mut hears = |word: &[u8]| {
        client.send_to(word, "10.244.1.1:9").expect("send");
        let (length, _) = server.recv_from(&mut buffer).expect("receive");
        assert_eq!(buffer.get(..length), Some(word));
    };
    hears(b"first");
    let bridge = rtnl.index(&name("cni0")).expect("an index");
    let at_port = |rtnl: &mut Rtnl| {
        let rows = rtnl.bridge_fdb(bridge).expect("entries").into_iter();
        let rows = rows.filter(|row| row.link == made.host_index && !row.permanent);
        rows.map(|row| (row.mac, row.port)).collect::<Vec<_>>()
    };
    assert_eq!(at_port(&mut rtnl), [(Some(own), true)]);
    // A MAC of nobody, and that of the bridge. What was sent under them would come before what is sent afterwards.
    for other in [types::Mac([2, 0, 0, 0, 0, 9]), types::Mac([0x0a, 0x58, 10, 244, 1, 1])] {
        take_mac(other);
        let _ = client.send_to(b"forged", "10.244.1.1:9");
        assert_eq!(at_port(&mut rtnl), [(Some(own), true)]);
        take_mac(own);
        hears(b"honest");
    }
}

#[test]
fn what_fails_leaves_nothing_and_says_why() {
    let (_node, mut rtnl) = node();
    let (pod, other) = (Netns::fresh().expect("fresh"), Netns::fresh().expect("fresh"));
    add_pod(&mut rtnl, &pod, "veth1", 4).expect("create");
    let before = rtnl.links().expect("links").len();
    let error = add_pod(&mut rtnl, &other, "veth1", 5).expect_err("the host name is taken");
    assert!(error.to_string().contains("exists on the host"), "{error}");
    let error = add_pod(&mut rtnl, &pod, "veth2", 5).expect_err("the pod name is taken");
    assert!(error.to_string().contains("exists in the pod's namespace"), "{error}");
    let bad = [PodRoute {
        dst: "0.0.0.0/0".parse().expect("route"),
        via: Some("192.0.2.1".parse().expect("gateway")),
    }];
    let error = veth::create(
        &mut rtnl,
        &PodVeth {
            host: &name("veth2"),
            host_mac: None,
            netns: &other,
            interface: &name("eth0"),
            mac: None,
            mtu: None,
            addresses: &[],
            routes: &bad,
            bridge: None,
            loopback: false,
        },
    )
    .expect_err("no such gateway");
    assert!(error.to_string().contains("add the route 0.0.0.0/0 via 192.0.2.1 of eth0"), "{error}");
    assert_eq!(rtnl.links().expect("links").len(), before);
    assert_eq!(veth::delete(&mut rtnl, &[name("veth1"), name("nothere")]).expect("delete"), 1);
    assert_eq!(veth::delete(&mut rtnl, &[name("veth1")]).expect("delete again"), 0);
    assert_eq!(rtnl.links().expect("links").len(), before - 1);
}

/// Prints what a pod's pair costs, with and without what keeps it in its place; `cargo test -- --nocapture` shows it.
#[test]
fn pairs_are_made_and_deleted_together() {
    let (_node, mut rtnl) = node();
    let pods: Vec<Netns> = (0..50).map(|_| Netns::fresh().expect("fresh")).collect();
    let options = [PortOptions::OF_KERNEL.and(PortOptions::ISOLATED), PortOptions::OF_POD];
    let mut times = [Vec::new(), Vec::new()];
    for (number, pod) in pods.iter().enumerate() {
        let [isolated, kept] = &mut times;
        let (times, options) = if number % 2 == 0 { (isolated, options[0]) } else { (kept, options[1]) };
        let start = Instant::now();
        add_pod_at(&mut rtnl, pod, (&format!("veth{number}"), options), number as u8 + 2).expect("create");
        times.push(start.elapsed());
    }
    times.iter_mut().for_each(|times| times.sort());
    let names: Vec<IfName> = (0..pods.len()).map(|number| name(&format!("veth{number}"))).collect();
    let start = Instant::now();
    assert_eq!(veth::delete(&mut rtnl, &names).expect("delete"), pods.len());
    let each = start.elapsed() / pods.len() as u32;
    for (times, what) in times.iter().zip(["isolated", "kept in its place"]) {
        let median = times.get(times.len() / 2).copied().unwrap_or_default();
        println!("pod veth, {what}: {:?} min, {median:?} median; deletion {each:?} each", times.first());
    }
}
