//! Each cause for which a guard drops has its counter, and an Event that names it: on the pod that sent where that is
//! known, else on the Node. Traces name it too, and a flood makes few Events.

use std::time::Duration;

use serde_json::Value;
use types::Family;

use super::{GATEWAYS, NOBODY, NODES, NS, SERVICE, Siege};
use crate::cluster::{Checks, Kubectl, plumb, run, wait_for};

/// A look each 5 s, and 30 s between two Events of one object.
const PATIENCE: Duration = Duration::from_secs(120);
const FLOOD: u64 = 10_000;
/// Of an Event each 10 minutes, and one for each cause that is new; a test takes none of these times.
const FEW: usize = 4;

/// Where a packet starts.
#[derive(Clone, Copy, Debug)]
enum At {
    Pod(&'static str),
    Node(&'static str),
    Outside,
}

/// A cause, what is sent from where, and where it is counted and told.
struct Attack {
    cause: &'static str,
    from: At,
    code: String,
    node: &'static str,
    /// `None`: the Node has the Event; without one when it is not forged.
    told: Option<&'static str>,
}

const NOT_FORGED: [&str; 2] = ["stray_segment", "no_such_pod"];

#[test]
fn each_drop_is_counted_and_told_of() {
    let siege = Siege::up();
    let mut checks = Checks::default();
    checks.check("nothing is dropped where nobody attacks", || {
        for node in ["node1", "node2"] {
            let dropped = all(&siege, node);
            let forged = dropped.iter().filter(|(cause, _)| !NOT_FORGED.contains(&&**cause));
            assert!(
                forged.clone().count() > 10 && forged.clone().all(|(_, count)| *count == 0),
                "{dropped:?}"
            );
        }
    });
    let attacks: Vec<Attack> = Family::ALL.into_iter().flat_map(|family| attacks(&siege, family)).collect();
    for attack in &attacks {
        checks.check(&format!("{} from {:?}", attack.cause, attack.from), || counted(&siege, attack));
    }
    checks.check("every cause was tried", || {
        for (cause, _) in all(&siege, "node1") {
            assert!(attacks.iter().any(|attack| attack.cause == cause), "{cause}");
        }
    });
    checks.check("each is told of", || attacks.iter().for_each(|attack| told(&siege, attack)));
    checks.check("counters outlive their rules", || outlive(&siege));
    checks.check("a flood of forged packets makes few Events", || flood(&siege));
    checks.check("a trace names the guard that drops at the pod's port", || traced_port(&siege));
    checks.check("a trace names the guard of the tunnel's port", || traced_tunnel(&siege));
    checks.check("a trace names the guard inside of the tunnel", || traced_inside(&siege));
}

fn all(siege: &Siege, node: &str) -> Vec<(String, u64)> {
    let path = format!("/api/v1/nodes/{node}:9475/proxy/metrics");
    let metrics = siege.lab.kubectl_ok(&["get", "--raw", &path]);
    let series = metrics.lines().filter_map(|line| {
        let line = line.strip_prefix("plumb_guard_dropped_packets_total{cause=\"")?;
        let (cause, count) = line.split_once("\"} ")?;
        Some((cause.to_owned(), count.parse().ok()?))
    });
    series.collect()
}

fn count(siege: &Siege, node: &str, cause: &str) -> u64 {
    let found = all(siege, node).into_iter().find(|(of, _)| of == cause);
    found.unwrap_or_else(|| panic!("no counter of {cause}")).1
}

fn attacks(siege: &Siege, family: Family) -> Vec<Attack> {
    let mut found = from_pods(siege, family);
    found.extend(from_elsewhere(siege, family));
    found
}

/// What a pod's frame begins with: to its gateway, from its own MAC.
fn framed(code: &str) -> String {
    format!("raw, me, to = wire(), own_mac(), gateway_mac({:?})\n{code}", GATEWAYS[0])
}

fn from_pods(siege: &Siege, family: Family) -> Vec<Attack> {
    let (me, victim) = (siege.ip("thief1", family), siege.ip("victim1", family));
    let (nobody, gateway) = (family.pick(NOBODY), family.pick(GATEWAYS));
    let attack =
        |cause, code| Attack { cause, from: At::Pod("thief1"), code, node: "node1", told: Some("thief1") };
    let source = format!("raw.send(to + me + kind({nobody:?}) + datagram({nobody:?}, {victim:?}, 'forged'))");
    let beside =
        format!("raw.send(b'\\xff' * 6 + me + kind({me:?}) + datagram({me:?}, {victim:?}, 'beside'))");
    let mut found = vec![
        attack(family.pick(["ipv4_source", "ipv6_source"]), framed(&source)),
        attack("past_bridge", framed(&beside)),
        attack("frame_type", framed("raw.send(to + me + b'\\x88\\xb5' + b'.' * 60)")),
        attack(
            "checksum_place",
            format!(
                "misplace(gateway_mac({:?}), {me:?}, {victim:?}, 'misplaced', 'port', 9002)",
                GATEWAYS[0]
            ),
        ),
        attack(
            "pod_to_tunnel",
            format!("tunnel([('own', {:?}, 8472, {victim:?}, {me:?})])", family.pick(NODES[0])),
        ),
        attack(
            "pod_to_tunnel",
            format!("tunnel([('far', {:?}, 8472, {victim:?}, {me:?})])", family.pick(NODES[1])),
        ),
    ];
    let advert = |source: &str, target: &str| {
        let body = format!("struct.pack('!I', 0x60000000) + packed({target}) + b'\\2\\1' + me");
        let message = format!("icmp6({source}, {gateway:?}, 136, {body})");
        framed(&format!("raw.send(to + me + kind({gateway:?}) + ip({source}, {gateway:?}, 58, {message}))"))
    };
    match family {
        Family::V4 => {
            let claim = "b'\\0\\1\\x08\\0\\6\\4\\0\\1' + me";
            let code = format!(
                "raw.send(to + me + b'\\x08\\x06' + {claim} + packed({victim:?}) + to + packed({gateway:?}))"
            );
            found.push(attack("arp_sender", framed(&code)));
        }
        Family::V6 => {
            let victim = format!("{victim:?}");
            found.push(attack("advertisement_source", advert(&victim, &victim)));
            found.push(attack("advertised_address", advert("link_local(me)", &victim)));
            let echo = format!("icmp6(link_local(me), {gateway:?}, 128, b'....')");
            let code =
                format!("raw.send(to + me + kind('::') + ip(link_local(me), {gateway:?}, 58, {echo}))");
            found.push(attack("link_local_source", framed(&code)));
        }
    }
    found
}

/// Sends IP packets as they are.
fn raw_ip(family: Family, packet: &str, to: &str) -> String {
    let family = family.pick(["AF_INET", "AF_INET6"]);
    format!(
        "socket.socket(socket.{family}, socket.SOCK_RAW, socket.IPPROTO_RAW).sendto({packet}, ({to:?}, 0))"
    )
}

fn from_elsewhere(siege: &Siege, family: Family) -> Vec<Attack> {
    let (victim, friend) = (siege.ip("victim1", family), siege.ip("friend1", family));
    let (node, nobody) = (family.pick(NODES[0]), family.pick(NOBODY));
    let attack = |cause, from, code| Attack { cause, from, code, node: "node1", told: None };
    let forged = |source: &str| raw_ip(family, &format!("datagram({source:?}, {node:?}, 'outside')"), node);
    let reset = format!(
        "mine = [line for line in os.popen('ip -o addr show scope global').read().split() if '/' in line and ({:?} in line)]\n\
         me = mine[0].split('/')[0]\n\
         head = struct.pack('!HHIIBBHHH', 40000, 9, 1, 1, 5 << 4, 4, 0, 0, 0)\n\
         head = head[:16] + struct.pack('!H', sum16(pseudo(me, {node:?}, 6, 20) + head)) + head[18:]\n{}",
        family.pick([".", ":"]),
        raw_ip(family, &format!("ip(me, {node:?}, 6, head)"), node)
    );
    let misplaced = format!(
        "misplace(mac({:?}), {:?}, {node:?}, 'misplaced', 'port', 9002, 30475, {victim:?})",
        siege.lab.node_ok("node1", &["cat", "/sys/class/net/eth0/address"]).trim(),
        family.pick(["192.168.1.1", "fd00:192:168:1::1"]),
    );
    let odd = format!(
        "os.system('ip link add odd0 type veth peer name odd1; ip link set odd0 master cni0 up; ip link set odd1 up')\n\
         raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)\nraw.bind(('odd1', 0))\n\
         to = mac(open('/sys/class/net/cni0/address').read().strip())\n\
         end = time.time() + 20\n\
         while time.time() < end and 'forwarding' not in os.popen('bridge link show dev odd0').read(): pass\n\
         raw.send(to + b'\\2\\0\\0\\0\\0\\1' + kind({nobody:?}) + datagram({nobody:?}, {victim:?}, 'odd'))\n\
         os.system('ip link del odd0')"
    );
    vec![
        attack("unknown_pod", At::Node("node1"), odd),
        attack(
            "tunnel_to_tunnel",
            At::Node("node2"),
            format!("say({:?}, 8472, 'deep')", family.pick(GATEWAYS)),
        ),
        attack(
            "inner_source",
            At::Node("node2"),
            format!("tunnel([('inner', {node:?}, 8472, {friend:?}, {victim:?})])"),
        ),
        attack(
            "stranger_to_tunnel",
            At::Outside,
            format!("tunnel([('out', {node:?}, 8472, {friend:?}, {victim:?})])"),
        ),
        attack(
            "service_to_tunnel",
            At::Outside,
            format!("tunnel([('service', {node:?}, 30472, {friend:?}, {victim:?})] * 40)"),
        ),
        attack("pod_from_outside", At::Outside, forged(friend)),
        attack("service_from_outside", At::Outside, forged(family.pick(SERVICE))),
        attack("checksum_from_outside", At::Outside, misplaced),
        attack("stray_segment", At::Outside, reset),
        attack("no_such_pod", At::Pod("friend2"), format!("say({nobody:?}, 9001, 'nobody')")),
    ]
}

/// Somebody took the pod's port out of the bridge, and nobody puts it back meanwhile.
fn beside_the_bridge(siege: &Siege, attack: impl FnOnce()) {
    let report = trace(siege, "thief1", &format!("{}:9001", siege.ip("victim1", Family::V4)), &["--udp"]);
    let mut hops = report["hops"].as_array().expect("hops").iter();
    let port = hops.find_map(|hop| hop["hop"]["fact"]["host_if"].as_str()).expect("the pod's port");
    siege.lab.lab_ok(&["agent", "pause", "node1"]);
    siege.lab.node_ok("node1", &["ip", "link", "set", port, "nomaster"]);
    attack();
    siege.lab.lab_ok(&["agent", "resume", "node1"]);
    wait_for("the port is back", PATIENCE, || {
        let link = siege.lab.node_ok("node1", &["ip", "-o", "link", "show", port]);
        if link.contains(" master cni0 ") { Ok(()) } else { Err(link) }
    });
}

fn launch(siege: &Siege, attack: &Attack) {
    match attack.from {
        At::Pod(pod) if attack.cause == "past_bridge" => {
            beside_the_bridge(siege, || drop(siege.python(pod, &attack.code)));
        }
        At::Pod(pod) => drop(siege.python(pod, &attack.code)),
        At::Node(node) => drop(siege.lab.node_ok(node, &["python3", "-c", &siege.program(&attack.code)])),
        At::Outside => drop(siege.outside(&attack.code)),
    }
}

fn counted(siege: &Siege, attack: &Attack) {
    let before = count(siege, attack.node, attack.cause);
    launch(siege, attack);
    wait_for("it is counted", PATIENCE, || {
        let now = count(siege, attack.node, attack.cause);
        if now > before { Ok(()) } else { Err(format!("{before} → {now}: {:?}", all(siege, attack.node))) }
    });
}

/// Messages of the Events on an object.
fn events(siege: &Siege, object: &str) -> Vec<Value> {
    let events = siege.lab.get(&["events", "-A"]);
    let of =
        |event: &&Value| event["reason"] == "PacketsDropped" && event["involvedObject"]["name"] == object;
    events["items"].as_array().expect("a list").iter().filter(of).cloned().collect()
}

fn told(siege: &Siege, attack: &Attack) {
    let object = attack.told.unwrap_or(attack.node);
    if NOT_FORGED.contains(&attack.cause) {
        assert!(
            !siege.lab.get(&["events", "-A"]).to_string().contains(attack.cause),
            "few are nobody's news"
        );
        return;
    }
    wait_for(&format!("an Event of {object} names {}", attack.cause), PATIENCE, || {
        let events = events(siege, object);
        let says = |event: &Value| {
            let message = event["message"].as_str().unwrap_or_default();
            message.contains(&format!("{}: ", attack.cause)) && message.contains("Next: ")
        };
        if events.iter().any(says) { Ok(()) } else { Err(format!("{events:#?}")) }
    });
    if attack.told.is_some() {
        let described = siege.lab.kubectl_ok(&["-n", NS, "describe", "pod", object]);
        assert!(described.contains("PacketsDropped"), "{described}");
    }
}

/// A look just before is in the total; the rules are made anew, and count from zero.
fn outlive(siege: &Siege) {
    let mut before = all(siege, "node1");
    for table in ["bridge", "ip", "ip6"] {
        siege.lab.node_ok("node1", &["nft", "delete", "table", table, "plumb"]);
        wait_for("the table is back", PATIENCE, || {
            let listed = siege.lab.node("node1", &["nft", "list", "table", table, "plumb"]);
            if listed.ok { Ok(()) } else { Err(format!("{listed:?}")) }
        });
    }
    let after = all(siege, "node1");
    before.retain(|(cause, count)| after.iter().any(|(of, now)| of == cause && now < count));
    assert_eq!(before, [], "{after:?}");
    let family = Family::V4;
    from_pods(siege, family).iter().for_each(|attack| counted(siege, attack));
}

fn flood(siege: &Siege) {
    let sent = |node| {
        all(siege, node)
            .into_iter()
            .filter(|(cause, _)| !NOT_FORGED.contains(&&**cause))
            .map(|(_, n)| n)
            .sum::<u64>()
    };
    let before = sent("node2");
    let code = format!(
        "raw, me, to = wire(), own_mac(), gateway_mac('10.244.2.1')\n\
         for n in range({FLOOD}):\n    \
             src = '10.%d.%d.%d' % (random.randrange(256), random.randrange(256), random.randrange(256))\n    \
             raw.send(to + b'\\2' + os.urandom(5) + kind(src) + datagram(src, {:?}, 'flood'))",
        siege.ip("victim2", Family::V4)
    );
    siege.python("thief2", &code);
    let counted = wait_for("it is counted", PATIENCE, || {
        let more = sent("node2") - before;
        // Some of them may not get past the queue of the receiving side.
        if more >= FLOOD / 2 { Ok(more) } else { Err(more.to_string()) }
    });
    wait_for("it is told", PATIENCE, || {
        let events = events(siege, "thief2");
        if events.is_empty() { Err("not yet".to_owned()) } else { Ok(()) }
    });
    let events = events(siege, "thief2");
    println!("        {counted} packets, {} Events", events.len());
    assert!(events.len() <= FEW, "{events:#?}");
    let senders = siege.lab.node_ok("node2", &["nft", "list", "set", "bridge", "plumb", "ipv4_source"]);
    assert_eq!(senders.matches("counter packets").count(), 1, "a flood fills no set: {senders}");
}

/// What `plumb trace` says, in JSON.
fn trace(siege: &Siege, pod: &str, target: &str, more: &[&str]) -> Value {
    let pod = format!("{NS}/{pod}");
    let args = [&["trace", &pod, target, "--json"][..], more].concat();
    let said = run(std::process::Command::new(plumb()).args(args).env("KUBECONFIG", &siege.lab.kubeconfig));
    serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {said:?}"))
}

/// A pod whose MAC somebody changed.
fn traced_port(siege: &Siege) {
    let (of, to) = (siege.ip("friend1", Family::V4), siege.ip("victim1", Family::V4));
    let find = format!(
        "for n in $(ip netns list | cut -d' ' -f1); do ip netns exec $n ip -o addr | grep -q ' {of}/' && echo $n; done"
    );
    let namespace = siege.lab.node_ok("node1", &["sh", "-c", &format!("{find}; true")]);
    let set = |mac: &str| {
        siege.lab.node_ok(
            "node1",
            &["ip", "netns", "exec", namespace.trim(), "ip", "link", "set", "eth0", "address", mac],
        );
    };
    set("02:00:00:00:00:99");
    let report = trace(siege, "friend1", &format!("{to}:8080"), &[]);
    set(&siege.mac("friend1"));
    assert_eq!(
        (&report["broken"]["n"], &report["broken"]["stage"]),
        (&3.into(), &"veth".into()),
        "{report:#}"
    );
    let why = report["broken"]["why"].as_str().expect("a reason");
    let named = ["arp_sender: ", "ipv4_source: "].iter().any(|cause| why.contains(cause));
    assert!(named && why.contains("of table bridge plumb"), "{why}");
}

fn traced_tunnel(siege: &Siege) {
    for family in Family::ALL {
        let service = siege.lab.get(&["-n", NS, "service", "tunnel"]);
        let ips = service["spec"]["clusterIPs"].as_array().expect("addresses").iter();
        let of_family = |ip: &&str| ip.contains(':') == (family == Family::V6);
        let service = ips.filter_map(Value::as_str).find(of_family).expect("of each family");
        let to = [family.pick(NODES[0]), family.pick(NODES[1]), family.pick(GATEWAYS), service];
        for address in to {
            let address: std::net::IpAddr = address.parse().expect("an address");
            let report =
                trace(siege, "thief1", &std::net::SocketAddr::new(address, 8472).to_string(), &["--udp"]);
            assert_eq!(report["conclusion"], "refused", "{address}: {report:#}");
            assert!(report["broken"].is_null() && report["agree"] == report["of"], "{address}: {report:#}");
            let hops = report["hops"].as_array().expect("hops");
            let seen = hops.last().and_then(|hop| hop["outcome"]["seen"].as_str()).unwrap_or_default();
            assert!(
                seen.contains("pod_to_tunnel: a pod, to a tunnel's port"),
                "{address}: {seen}: {report:#}"
            );
        }
    }
}

/// node1 is told that node2's pods are elsewhere; nobody mends it meanwhile.
fn traced_inside(siege: &Siege) {
    siege.lab.lab_ok(&["agent", "pause", "node1"]);
    for family in Family::ALL {
        let (node, net) = (NODES[1][0], family.pick(["10.244.2.0", "fd00:10:244:2::"]));
        let set = family.pick(["inside4_24", "inside6_64"]);
        let element = format!("element ip plumb {set} {{ {node} . {net} }}");
        siege.lab.node_ok("node1", &["nft", &format!("delete {element}")]);
        let to: std::net::IpAddr = siege.ip("victim1", family).parse().expect("an address");
        let report = trace(siege, "friend2", &std::net::SocketAddr::new(to, 8080).to_string(), &[]);
        siege.lab.node_ok("node1", &["nft", &format!("add {element}")]);
        assert_eq!(
            (&report["broken"]["n"], &report["broken"]["node"]),
            (&9.into(), &"node1".into()),
            "{report:#}"
        );
        let said = report.to_string();
        assert!(said.contains("inner_source: inside is no source of the node that sends it"), "{report:#}");
    }
    siege.lab.lab_ok(&["agent", "resume", "node1"]);
}
