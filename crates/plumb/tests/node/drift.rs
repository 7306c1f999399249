//! What others change is put back and told; while paused it is only told. How soon is printed, never asserted.

use std::io::Write;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use types::Families;

use crate::stage::{Node, Stage, wait_for, within};

/// What was told is not told again sooner.
const QUIET: Duration = Duration::from_secs(30);

/// What `nft list` shows of a table in the order in which it was made: its objects, each as it is.
fn objects(shown: &str) -> Vec<&str> {
    let inside = shown.split_once('\n').map_or(shown, |(_head, inside)| inside);
    let mut all: Vec<&str> = inside.trim_end().trim_end_matches('}').split("\n\n").map(str::trim).collect();
    all.sort_unstable();
    all
}

/// Breaks something and measures until the look is as before.
fn mended(node: &Node, broken: &str, look: &str) -> Duration {
    let before = node.run(look);
    let began = Instant::now();
    node.run(broken);
    wait_for(&format!("{broken} is mended"), || {
        let now = node.try_run(look).ok()?;
        let same = if look.starts_with("nft ") { objects(&now) == objects(&before) } else { now == before };
        same.then(|| began.elapsed())
    })
}

#[test]
fn what_others_change_is_mended_and_told() {
    let stage = Stage::new(2);
    let (_pod, _) = stage.wired(0, "web");
    let node = &stage.nodes[0];
    wait_for("the tunnel's peer is known", || node.run("ip route").contains("10.244.2.0/24").then_some(()));
    let port = node.run("ip -o link show master cni0");
    let veth = port.split([' ', '@']).nth(1).unwrap();
    let fdb = node.run("bridge fdb show dev plumb.1");
    let mac = fdb.split(' ').next().unwrap();
    let entry = format!("bridge fdb show brport {veth}");
    let entries = node.run(&entry);
    let own = entries.lines().find(|line| line.contains("static")).and_then(|line| line.split(' ').next());
    let own = own.unwrap_or_else(|| panic!("{entries}"));
    let settled = "ip neigh show dev cni0 nud permanent";
    let neighbour = node.run(settled);
    let neighbour = neighbour.split(' ').next().unwrap();
    let sorted = "nft -s list table ip plumb";
    let filter = format!("tc filter show dev {veth} ingress");
    // An ordinary user can have none.
    let programs = match kernel::checksums::program() {
        Ok(_) => vec![format!("tc qdisc del dev {veth} clsact"), format!("tc filter del dev {veth} ingress")],
        Err(_) => Vec::new(),
    };
    for (broken, look) in [
        ("ip route del 10.244.2.0/24", "ip route"),
        ("ip route replace blackhole 10.244.2.0/24", "ip route"),
        ("ip neigh del 10.244.2.0 dev plumb.1", "ip neigh show dev plumb.1 nud permanent"),
        (&format!("bridge fdb del {mac} dev plumb.1 self"), "bridge fdb show dev plumb.1"),
        ("ip link set cni0 mtu 1400", "ip -o link show cni0"),
        (&format!("ip link set {veth} nomaster"), "bridge link show"),
        (&format!("bridge link set dev {veth} isolated off"), "bridge -d link show"),
        (&format!("bridge link set dev {veth} locked off learning on"), "bridge -d link show"),
        (
            &format!("bridge link set dev {veth} flood on mcast_flood on bcast_flood on"),
            "bridge -d link show",
        ),
        (&format!("bridge fdb del {own} dev {veth} master"), &entry),
        (&format!("bridge fdb replace {own} dev {veth} master dynamic"), &entry),
        (&format!("ip neigh del {neighbour} dev cni0"), settled),
        (&format!("ip neigh replace {neighbour} lladdr 02:00:00:00:00:09 dev cni0 nud permanent"), settled),
        ("ip addr del 10.244.1.1/24 dev cni0", "ip -4 -o addr show cni0"),
        ("nft flush chain ip plumb postrouting", sorted),
        ("nft add rule ip plumb forward drop", sorted),
        ("nft delete table ip plumb", sorted),
    ]
    .into_iter()
    .chain(programs.iter().map(|broken| (broken.as_str(), filter.as_str())))
    {
        let took = mended(node, broken, look);
        println!("{broken}: {took:?}");
    }
    let told = wait_for("an Event says so", || Some(stage.events("DriftMended")).filter(|e| e.len() >= 5));
    assert!(told.iter().any(|message| message.contains("10.244.2.0/24")), "{told:#?}");
    assert!(
        told.iter().any(|message| message.contains("somebody put `blackhole 10.244.2.0/24` in its place")),
        "{told:#?}"
    );
    // In words, not in nft's: `set rules … {` says nothing to who reads Events.
    assert!(told.iter().all(|message| !message.contains(['{', '}', '\n'])), "{told:#?}");
    for words in ["the rules of chain ip plumb postrouting differ", "table ip plumb is missing"] {
        assert!(told.iter().any(|message| message.contains(words)), "{words}: {told:#?}");
    }
    assert!(node.metrics().contains("plumb_drift_mended_total{subsystem=\"nft\"}"));
}

/// Forwarding and its kin: of some the kernel tells, others are looked at every second.
#[test]
fn sysctls_and_routes_that_packets_need_are_mended() {
    let stage = Stage::of(2, Families::Dual);
    let node = &stage.nodes[0];
    wait_for("the tunnel's peer is known", || node.run("ip route").contains("10.244.2.0/24").then_some(()));
    wait_for("the uplink is known", || {
        node.metrics().contains("plumb_looks_total{subsystem=\"net\"}").then_some(())
    });
    let forwarding = "sysctl net.ipv4.ip_forward net.ipv4.conf.all.forwarding net.ipv4.conf.cni0.forwarding \
                      net.ipv4.conf.plumb/1.forwarding net.ipv4.conf.eth0.forwarding net.ipv6.conf.all.forwarding";
    for (broken, look) in [
        ("sysctl -qw net.ipv4.ip_forward=0", forwarding),
        ("sysctl -qw net.ipv4.conf.cni0.forwarding=0", forwarding),
        ("sysctl -qw net.ipv4.conf.plumb/1.forwarding=0", forwarding),
        ("sysctl -qw net.ipv4.conf.eth0.forwarding=0", forwarding),
        ("sysctl -qw net.ipv6.conf.all.forwarding=0", forwarding),
        ("sysctl -qw net.ipv4.conf.cni0.send_redirects=1", "sysctl net.ipv4.conf.cni0.send_redirects"),
        ("sysctl -qw net.ipv6.conf.cni0.disable_ipv6=1", "ip -6 -o address show dev cni0 scope global"),
        ("sysctl -qw net.ipv6.conf.plumb/1.disable_ipv6=1", "ip -6 route show dev plumb.1 proto 112"),
        ("ip route del 10.244.1.0/24 dev cni0", "ip route show dev cni0"),
        ("ip -6 route del fd00:10:244:1::/64 dev cni0", "ip -6 -o route get fd00:10:244:1::9"),
        ("ip route replace unreachable 10.244.1.0/24", "ip route show dev cni0"),
    ] {
        let took = mended(node, broken, look);
        println!("{broken}: {took:?}");
    }
    let told = wait_for("an Event says so", || {
        let told = stage.events("DriftMended");
        let all = [
            "ip_forward should be 1",
            "conf/eth0/forwarding should be 1",
            "route 10.244.1.0/24 should be dev cni0",
        ];
        all.iter().all(|words| told.iter().any(|message| message.contains(words))).then_some(told)
    });
    assert!(told.iter().all(|message| !message.contains("rp_filter")), "{told:#?}");
}

/// What is ours follows the MTU of the machine's link, in pods too; while paused it is drift.
#[test]
fn the_mtu_of_the_uplink_is_followed() {
    let stage = Stage::new(2);
    let (pod, ip) = stage.wired(0, "web");
    let (far, _) = stage.wired(1, "far");
    let _server = crate::stage::listen(&pod, 8080);
    let node = &stage.nodes[0];
    wait_for("the tunnel's peer is known", || node.run("ip route").contains("10.244.2.0/24").then_some(()));
    let inside = || {
        let look = || std::process::Command::new("ip").args(["-o", "link", "show", "eth0"]).output();
        String::from_utf8(pod.netns.run(look).unwrap().unwrap().stdout).unwrap()
    };
    let has = |mtu: &str| {
        let links = ["cni0", "plumb.1"].map(|link| node.run(&format!("ip -o link show {link}")));
        let pods = node.run("ip -o link show master cni0");
        links.iter().chain([&pods, &inside()]).all(|line| line.contains(&format!("mtu {mtu} ")))
    };
    wait_for("that of the beginning", || has("1450").then_some(()));
    for (uplink, ours) in [("1400", "1350"), ("1500", "1450")] {
        let began = Instant::now();
        node.run(&format!("ip link set eth0 mtu {uplink}"));
        wait_for("it is followed", || has(ours).then_some(()));
        println!("an uplink of {uplink}: followed after {:?}", began.elapsed());
        assert!(crate::stage::connects(&far.netns, std::net::SocketAddr::new(ip, 8080)));
    }
    let drift = "plumb_drift_mended_total{subsystem=\"net\"}";
    assert!(
        !node.metrics().contains(drift),
        "what the agent follows is nobody's drift: {:?}",
        stage.events("DriftMended")
    );
    node.ask("POST", "/v1/pause", &json!({ "paused": true }).to_string()).unwrap();
    node.run("ip link set eth0 mtu 1400");
    wait_for("it is drift", || stands(node, "net"));
    node.run("sysctl -qw net.ipv4.conf.cni0.route_localnet=1");
    node.run("sysctl -qw net.ipv4.ip_forward=0");
    wait_for("an Event names all", || {
        let told = stage.events("DriftSeen");
        let all = ["cni0 should be bridge", "ip_forward should be 1: it is 0"];
        all.iter().all(|words| told.iter().any(|message| message.contains(words))).then_some(())
    });
    assert!(has("1450"), "a paused agent changes nothing");
    node.ask("POST", "/v1/pause", &json!({ "paused": false }).to_string()).unwrap();
    wait_for("it is mended", || has("1350").then_some(()));
    wait_for("and forwards", || node.run("sysctl -n net.ipv4.ip_forward").starts_with('1').then_some(()));
}

/// What differs now, as metrics have it.
fn stands(node: &Node, subsystem: &str) -> Option<()> {
    (steps(node, subsystem) != "0").then_some(())
}

fn steps(node: &Node, subsystem: &str) -> String {
    let series = format!("plumb_drift{{subsystem=\"{subsystem}\"}} ");
    let metrics = node.metrics();
    metrics.lines().find_map(|line| line.strip_prefix(&series)).unwrap_or("0").to_owned()
}

/// How often the agent has read that part of the kernel as a whole.
fn looks(node: &Node, subsystem: &str) -> u64 {
    let series = format!("plumb_looks_total{{subsystem=\"{subsystem}\"}} ");
    let metrics = node.metrics();
    metrics.lines().find_map(|line| line.strip_prefix(&series)).map_or(0, |count| count.parse().unwrap())
}

/// What firewalls and other proxies do to their own tables costs no look at ours. The agent hears of rules and of routes
/// in one thread, and looks in this order: once a route is back, what was done to rules before has been dealt with.
#[test]
fn what_others_do_to_their_own_tables_costs_no_look() {
    let stage = Stage::new(2);
    let node = &stage.nodes[0];
    wait_for("the tunnel's peer is known", || node.run("ip route").contains("10.244.2.0/24").then_some(()));
    wait_for("a look at all, every 30 s, does not come in between", || {
        let before = looks(node, "nft");
        for foreign in [
            "nft add table ip other",
            "nft add chain ip other forward { type filter hook forward priority 0; }",
            "nft add rule ip other forward counter",
            "nft delete table ip other",
            "nft add table netdev plumb",
            "nft delete table netdev plumb",
        ] {
            node.run(foreign);
        }
        mended(node, "ip route del 10.244.2.0/24", "ip route");
        (looks(node, "nft") == before).then_some(())
    });
    let before = looks(node, "nft");
    let table = "nft -s list table ip plumb";
    mended(node, "nft add rule ip plumb forward drop", table);
    assert!(looks(node, "nft") > before, "looks at the rules are counted");
    for broken in ["nft flush ruleset", "nft add table ip other; flush chain ip plumb postrouting"] {
        mended(node, broken, table);
    }
    for guard in ["ip6 plumb", "bridge plumb"] {
        mended(node, &format!("nft delete table {guard}"), &format!("nft -s list table {guard}"));
    }
}

/// The agent hears of its own doing as of anybody's, in one thread: once a route is back that somebody took, what was told before
/// has been dealt with, and that route is the one thing that there was to look at.
#[test]
fn pods_that_come_and_go_cost_no_look_and_hide_nothing() {
    let stage = Stage::new(2);
    let (_stays, _) = stage.wired(0, "stays");
    let node = &stage.nodes[0];
    wait_for("the tunnel's peer is known", || node.run("ip route").contains("10.244.2.0/24").then_some(()));
    let route = ("ip route del 10.244.2.0/24", "ip route show proto 112");
    mended(node, route.0, route.1);
    let mut count = 0;
    let mut wired = || {
        count += 1;
        stage.wired(0, &format!("pod{count}")).0
    };
    wait_for("a look at all, every 30 s, does not come in between", || {
        let before = looks(node, "net");
        for _ in 0..5 {
            node.del(&wired()).unwrap();
        }
        mended(node, route.0, route.1);
        (looks(node, "net") == before + 1).then_some(())
    });
    let port = node.run("ip -o link show master cni0");
    let veth = port.split([' ', '@']).nth(1).unwrap();
    let mac = node.run("bridge fdb show dev plumb.1");
    let mac = mac.split(' ').next().unwrap();
    let forwarding = format!("bridge fdb del {mac} dev plumb.1 self");
    let gone = format!("ip link del {veth}");
    let neighbour = "ip neigh del 10.244.2.0 dev plumb.1";
    for (broken, look, words) in [
        (vec![route.0], route.1, "10.244.2.0/24"),
        (vec![&forwarding], "bridge fdb show dev plumb.1", mac),
        (vec![neighbour], "ip neigh show dev plumb.1 nud permanent", "10.244.2.0"),
        // Routes go with it without a word.
        (vec!["ip link set plumb.1 down", "ip link set plumb.1 up"], route.1, "10.244.2.0/24"),
        (vec![&gone], "ip -o link show master cni0", veth),
    ] {
        let first = wired();
        broken.iter().for_each(|command| drop(node.run(command)));
        let second = wired();
        node.del(&first).unwrap();
        wait_for(&format!("{broken:?} is mended"), || node.run(look).contains(words).then_some(()));
        node.del(&second).unwrap();
    }
}

/// A program that owns our table for as long as it runs.
struct Holder(Child, ChildStdin);

impl Holder {
    fn of(node: &Node) -> Self {
        let nft = || Command::new("nft").arg("-i").stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
        let mut holder = node.netns.run(nft).unwrap().unwrap();
        let mut words = holder.stdin.take().unwrap();
        words.write_all(b"delete table ip plumb; add table ip plumb { flags owner; }\n").unwrap();
        Self(holder, words)
    }

    fn end(self) {
        let Self(mut holder, words) = self;
        drop(words);
        holder.wait().unwrap();
    }
}

/// Another program owns our table: what the kernel refuses is told once, and its end once, with what was mended; nothing is left
/// of it in what `plumb status` and alerts are made of.
#[test]
fn a_refusal_and_its_end_are_told_once() {
    let stage = Stage::new(2);
    let node = &stage.nodes[0];
    wait_for("the tunnel's peer is known", || node.run("ip route").contains("10.244.2.0/24").then_some(()));
    let holder = Holder::of(node);
    let told = wait_for("the refusal is told", || stage.events("NetworkDegraded").pop());
    assert!(told.contains("another program owns the table") && !told.contains('\n'), "{told}");
    wait_for("it differs", || stands(node, "nft"));
    wait_for("it does not serve", || {
        let health = node.ask("GET", "/healthz", "").unwrap();
        (health.contains("it did not take nft") && !health.contains("differs")).then_some(())
    });
    holder.end();
    let over = wait_for("its end is told", || stage.events("NetworkMended").pop());
    for words in ["kernel: it takes nft again; found and mended: ", " ip plumb ", " is missing"] {
        assert!(over.contains(words), "{words}: {over}");
    }
    node.wait_ready();
    assert!(stands(node, "nft").is_none());
    std::thread::sleep(Duration::from_secs(3));
    let count =
        ["NetworkDegraded", "NetworkMended", "DriftMended", "DriftSeen"].map(|of| stage.events(of).len());
    assert_eq!(count, [1, 1, 0, 0]);
    // It returns within the quiet time, and stays: that is told when it is over.
    let holder = Holder::of(node);
    let again = || (stage.events("NetworkDegraded").len() == 2).then_some(());
    within(2 * QUIET, again).expect("the newest Event says that it holds");
    assert_eq!(stage.events("NetworkMended").len(), 1);
    holder.end();
    wait_for("its end is told", || (stage.events("NetworkMended").len() == 2).then_some(()));
}

#[test]
fn a_paused_agent_reports_and_leaves_it() {
    let stage = Stage::new(2);
    let node = &stage.nodes[0];
    wait_for("the tunnel's peer is known", || node.run("ip route").contains("10.244.2.0/24").then_some(()));
    node.ask("POST", "/v1/pause", &json!({ "paused": true }).to_string()).unwrap();
    node.run("ip route del 10.244.2.0/24");
    wait_for("it is seen", || {
        node.metrics().contains("plumb_drift_seen_total{subsystem=\"net\"}").then_some(())
    });
    assert!(!node.run("ip route").contains("10.244.2.0/24"));
    let seen = |count: usize| move |told: Vec<String>| (told.len() == count).then_some(told);
    wait_for("it is told", || seen(1)(stage.events("DriftSeen")));
    node.run("sysctl -qw net.ipv4.ip_forward=0");
    let told = wait_for("what is new is told", || seen(2)(stage.events("DriftSeen")));
    assert!(told.iter().any(|told| told.contains("paused: net/ipv4/ip_forward should be 1")), "{told:?}");
    node.run("sysctl -qw net.ipv4.ip_forward=1");
    wait_for("one is left", || (steps(node, "net") == "1").then_some(()));
    assert_eq!(stage.events("DriftSeen").len(), 2, "told");
    node.ask("POST", "/v1/pause", &json!({ "paused": false }).to_string()).unwrap();
    wait_for("it is mended", || node.run("ip route").contains("10.244.2.0/24").then_some(()));
    let over = wait_for("that is told", || stage.events("DriftMended").pop());
    assert!(over.contains("found and put back: "), "{over}");
}
