//! What a pod with a container's usual rights, or somebody outside, sends by hand: under addresses of others, into the
//! tunnel, about connections of others, and to steal their frames. Each check has the honest way beside the forged one.
//!
//! ```text
//!   node1  victim1 friend1 thief1 mute1      victims admit UDP 9001 and TCP 8080 of friends only
//!   node2  victim2 friend2 thief2            mute1 may send nothing at all
//! ```

mod counted;
mod locked;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use types::Family;

use crate::cluster::{Checks, Kubectl, Lab, run, wait_for};

mod astray;
mod closed;
mod misplaced;
mod own;
mod sources;

const NS: &str = "siege";
const FRAMES: &str = include_str!("attacks/frames.py");
const GATEWAYS: [&str; 2] = ["10.244.1.1", "fd00:10:244:1::1"];
const NODES: [[&str; 2]; 2] =
    [["192.168.1.10", "fd00:192:168:1::10"], ["192.168.1.11", "fd00:192:168:1::11"]];
const NOBODY: [&str; 2] = ["10.244.1.250", "fd00:10:244:1::fa"];
const SERVICE: [&str; 2] = ["10.96.0.10", "fd00:10:96::a"];
const OUTSIDE: [&str; 2] = ["203.0.113.10", "2001:db8::10"];

#[test]
fn nobody_passes_by_forging() {
    let siege = Siege::up();
    let mut checks = Checks::default();
    for family in Family::ALL {
        let mut check = |what: &str, test: fn(&Siege, Family)| {
            checks.check(&format!("{family}: {what}"), || test(&siege, family));
        };
        check("honest packets arrive, and forged sources do not", forged_sources);
        check("no address but its own opens a connection", connections);
        check("nobody but a node sends into a tunnel", tunnels);
        check("an error about a flow of others is no part of it", errors);
        check("nobody takes another's place on the bridge", places);
        check("a frame to the bridge group is a frame as any other", locked::groups);
        check("no checksum is written where a packet has none", misplaced::checksums);
        check("no pod says how large a packet of the node may be", own::path_mtu);
        check("the node hears what it sends to a group by the pods' bridge", own::groups);
        check("a segment out of the window ends no masqueraded connection", beyond_the_window);
        check("a conversation ends both ways when a policy no longer allows it", closed::both_ways);
        check(
            "a pod sends from further addresses only as its annotation and the agents say",
            sources::further,
        );
    }
    checks.check("a router outside gets nothing that is for pods", || astray::adverts(&siege));
    checks.check("a pod fills neither the bridge's table nor that of neighbours", || tables(&siege));
    checks.check("a node that calls its own process by a Service is seen as itself", || own_process(&siege));
    checks.check("the bridge and the node alone keep pods in their places", || locked::unguarded(&siege));
}

struct Siege {
    lab: Lab,
    pods: BTreeMap<String, [String; 2]>,
    vteps: [String; 2],
}

impl Siege {
    fn up() -> Self {
        let lab = Lab::up_with(2, &["--families", "dual", "--allow-sources", sources::ALLOWED]);
        let mut manifest = include_str!("attacks/siege.yaml").to_owned();
        for (name, node) in [
            ("victim1", 1),
            ("victim2", 2),
            ("friend1", 1),
            ("friend2", 2),
            ("thief1", 1),
            ("thief2", 2),
            ("mute1", 1),
        ] {
            manifest += &format!(
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {NS}, labels: {{role: {role}{more}}}}}\n\
                 spec:\n  nodeName: node{node}\n  terminationGracePeriodSeconds: 1\n  containers:\n  - name: main\n    \
                 image: host\n    command: [sleep, \"100000\"]\n",
                role = name.trim_end_matches(char::is_numeric),
                more = match name {
                    "friend2" => ", stray: server",
                    "victim1" => ", talk: server",
                    _ => "",
                },
            );
        }
        lab.apply(&manifest);
        lab.wait_ready(NS);
        let list = lab.get(&["-n", NS, "pods"]);
        let pods = list["items"].as_array().expect("a list").iter().map(|pod| {
            let name = pod["metadata"]["name"].as_str().expect("a name").to_owned();
            let ip = |n: usize| pod["status"]["podIPs"][n]["ip"].as_str().expect("an address").to_owned();
            (name, [ip(0), ip(1)])
        });
        let pods = pods.collect();
        let vteps = ["node1", "node2"].map(|node| {
            let node = lab.get(&["node", node]);
            let mac = &node["metadata"]["annotations"][types::wire::VTEP_MAC_ANNOTATION];
            mac.as_str().expect("a hardware address").to_owned()
        });
        Self { lab, pods, vteps }
    }

    fn ip(&self, pod: &str, family: Family) -> &str {
        family.pick([&*self.pods[pod][0], &*self.pods[pod][1]])
    }

    /// Hardware addresses go by the first address.
    fn mac(&self, pod: &str) -> String {
        let first: Ipv4Addr = self.ip(pod, Family::V4).parse().expect("an address");
        let [a, b, c, d] = first.octets();
        types::Mac([0x0a, 0x58, a, b, c, d]).to_string()
    }

    fn command(pod: &str) -> [&str; 7] {
        ["-n", NS, "exec", "-i", pod, "--", "python3"]
    }

    /// Python in a pod, after the functions of `frames.py`.
    #[track_caller]
    fn python(&self, pod: &str, code: &str) -> String {
        let said =
            self.lab.kubectl_fed(&[&Self::command(pod)[..], &["-u", "-"]].concat(), &self.program(code));
        assert!(said.ok, "{pod}: {code}: {said:?}");
        said.out
    }

    fn program(&self, code: &str) -> String {
        format!("{FRAMES}\nVTEPS = {:?}\n{code}\n", self.vteps)
    }

    /// Python in the lab's outside, to its end.
    #[track_caller]
    fn outside(&self, code: &str) -> String {
        let said = run(self.outside_command().args(["-c", &self.program(code)]));
        assert!(said.ok, "{said:?}");
        said.out
    }

    /// Python in the lab's outside.
    fn outside_command(&self) -> Command {
        let marked = format!("PLUMB_LAB={}\0", self.lab.name).into_bytes();
        let holds = |entry: &std::fs::DirEntry| {
            let of = |file| std::fs::read(entry.path().join(file)).unwrap_or_default();
            let words = of("cmdline");
            let has = |word: &[u8]| words.split(|byte| *byte == 0).any(|other| other == word);
            has(b"hold")
                && has(b"outside")
                && of("environ").windows(marked.len()).any(|bytes| bytes == marked)
        };
        let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
        let holder = processes.into_iter().find(holds).expect("who holds the outside").path();
        let user = |path: &std::path::Path| std::fs::read_link(path.join("ns/user")).expect("a namespace");
        let apart = user(&holder) != user("/proc/self".as_ref());
        let mut enter = Command::new("nsenter");
        if apart {
            enter.arg("--preserve-credentials").arg(format!("--user={}", holder.join("ns/user").display()));
        }
        enter.arg(format!("--net={}", holder.join("ns/net").display())).arg("python3");
        enter
    }

    /// Sees what comes to a pod.
    fn watch(&self, pod: &str) -> Watch {
        self.start(pod, "watch()")
    }

    /// What says that it is ready, and more later.
    fn start(&self, pod: &str, code: &str) -> Watch {
        let mut command = self.lab.kubectl_command();
        command.args(Self::command(pod));
        self.begin(command, code)
    }

    fn begin(&self, mut python: Command, code: &str) -> Watch {
        python.args(["-u", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = python.spawn().expect("a program");
        let mut input = child.stdin.take().expect("a pipe");
        input.write_all(self.program(code).as_bytes()).expect("the program");
        drop(input);
        let mut watch = Watch { out: BufReader::new(child.stdout.take().expect("a pipe")), child };
        assert_eq!(watch.line(), "ready", "{code}");
        watch
    }

    /// What came to the pods while `attack` ran; each hears a friend at last.
    fn seen(&self, pods: &[&str], family: Family, attack: impl FnOnce()) -> BTreeSet<String> {
        let watches: Vec<Watch> = pods.iter().map(|pod| self.watch(pod)).collect();
        attack();
        let heard = |(watch, pod): (Watch, &&str)| {
            // From the other node, so that the tunnel is seen to work.
            let friend = if pod.ends_with('1') { "friend2" } else { "friend1" };
            watch.words(|| self.end(friend, self.ip(pod, family), 9001))
        };
        let mut words: BTreeSet<String> = watches.into_iter().zip(pods).flat_map(heard).collect();
        assert!(words.remove("END"), "the honest packet did not arrive");
        words
    }

    /// Says to a watch that this was all.
    fn end(&self, pod: &str, to: &str, port: u16) {
        self.python(pod, &format!("say({to:?}, {port}, 'END')"));
    }
}

struct Watch {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Watch {
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).expect("a line");
        line.trim_end().to_owned()
    }

    /// What it saw. The last word is said again while it is not heard: a datagram may get lost.
    fn words(mut self, end: impl Fn()) -> BTreeSet<String> {
        let mut said = Instant::now();
        end();
        wait_for("an honest packet arrives", Duration::from_secs(120), || {
            if said.elapsed() > Duration::from_secs(5) {
                end();
                said = Instant::now();
            }
            self.child.try_wait().expect("a child").map(drop).ok_or_else(|| "nothing".to_owned())
        });
        let mut text = String::new();
        self.out.read_to_string(&mut text).expect("text");
        assert!(self.child.wait().expect("an end").success(), "{text}");
        text.lines().map(str::to_owned).collect()
    }
}

fn forged_sources(siege: &Siege, family: Family) {
    let mut cases = Vec::new();
    for victim in ["victim1", "victim2"] {
        let to = siege.ip(victim, family);
        for (word, from) in [
            ("friend1", siege.ip("friend1", family)),
            ("friend2", siege.ip("friend2", family)),
            ("victim", to),
            ("nobody", family.pick(NOBODY)),
            ("gateway", family.pick(GATEWAYS)),
            ("node1", family.pick(NODES[0])),
            ("node2", family.pick(NODES[1])),
            ("service", family.pick(SERVICE)),
            ("outside", family.pick(OUTSIDE)),
        ] {
            cases.push((format!("{word}-{victim}"), from, to));
        }
    }
    let cases: Vec<String> =
        cases.iter().map(|(word, from, to)| format!("({word:?},{from:?},{to:?})")).collect();
    let forge = format!("forge({:?}, [{}])", GATEWAYS[0], cases.join(","));
    let seen = siege.seen(&["victim1", "victim2"], family, || {
        siege.python("thief1", &forge);
    });
    assert_eq!(seen, BTreeSet::new());
}

fn connections(siege: &Siege, family: Family) {
    let beyond = family.pick(OUTSIDE);
    let connect = |pod: &str, from: &str, seconds: f32| {
        let code = format!("connect({:?}, {from:?}, {beyond:?}, 80, {seconds})", GATEWAYS[0]);
        siege.python(pod, &code).trim().to_owned()
    };
    assert_eq!(connect("thief1", siege.ip("thief1", family), 60.0), "answered", "as itself");
    for from in
        [family.pick(NOBODY), siege.ip("thief1", family), family.pick(NODES[0]), siege.ip("friend2", family)]
    {
        assert_eq!(connect("mute1", from, 1.5), "silence", "mute1 as {from}");
    }
    assert_eq!(connect("mute1", siege.ip("mute1", family), 1.5), "silence", "mute1 as itself");
}

fn tunnels(siege: &Siege, family: Family) {
    let service = siege.lab.get(&["-n", NS, "service", "tunnel"]);
    let service = service["spec"]["clusterIPs"].as_array().expect("addresses").iter();
    let mut to: Vec<(String, u16)> =
        service.map(|ip| (ip.as_str().expect("an address").to_owned(), 8472)).collect();
    to.extend(NODES.iter().flatten().map(|ip| ((*ip).to_owned(), 8472)));
    to.extend(NODES.iter().flatten().map(|ip| ((*ip).to_owned(), 30472)));
    for of_node in
        ["10.244.1.0", "10.244.1.1", "10.244.2.0", "10.244.2.1", "fd00:10:244:2::", "fd00:10:244:2::1"]
    {
        to.push((of_node.to_owned(), 8472));
    }
    let mut cases = Vec::new();
    for (node, port) in &to {
        for victim in ["victim1", "victim2"] {
            let (from, at) = (siege.ip("friend2", family), siege.ip(victim, family));
            cases.push(format!("('{victim}-by-{node}-{port}',{node:?},{port},{from:?},{at:?})"));
        }
    }
    let send = format!("tunnel([{}])", cases.join(","));
    let seen = siege.seen(&["victim1", "victim2"], family, || {
        siege.python("thief1", &send);
        siege.python("thief2", &send);
        siege.outside(&send);
    });
    assert_eq!(seen, BTreeSet::new());
    // What the nodes themselves sent each other meanwhile is no flow, which a flow of a pod could be taken for.
    for node in ["node1", "node2"] {
        let known = siege.lab.node_ok(node, &["conntrack", "-L", "-p", "udp"]);
        let tunnel = |line: &&str| NODES.iter().flatten().any(|ip| line.contains(&format!("src={ip} ")));
        let of_nodes = known.lines().filter(|line| line.contains("dport=8472 ")).filter(tunnel);
        assert_eq!(of_nodes.collect::<Vec<_>>(), Vec::<&str>::new(), "{node}");
    }
}

/// friend1 has asked victim1 from port 40000, so its node knows of that.
fn errors(siege: &Siege, family: Family) {
    let (victim, friend) = (siege.ip("victim1", family), siege.ip("friend1", family));
    siege.python("friend1", &format!("say({victim:?}, 9001, 'ask')"));
    let complain = |from: &str, word: &str| {
        format!(
            "about = ip({victim:?}, {friend:?}, 17, udp({victim:?}, {friend:?}, 9001, 40000, b'<{word}>'))\n\
             wire().send(gateway_mac({:?}) + own_mac() + kind({from:?}) + complaint({from:?}, {victim:?}, about))",
            GATEWAYS[0]
        )
    };
    let seen = siege.seen(&["victim1"], family, || {
        siege.python("thief1", &complain(siege.ip("thief1", family), "stranger"));
        siege.python("friend1", &complain(friend, "friend"));
    });
    assert_eq!(seen, BTreeSet::from(["friend".to_owned()]));
}

fn places(siege: &Siege, family: Family) {
    let claims =
        ["friend1", "victim1"].map(|pod| format!("({:?},{:?})", siege.ip(pod, family), siege.mac(pod)));
    let thief = siege.watch("thief1");
    siege.python("thief1", &format!("claim({:?}, [{}])", GATEWAYS[0], claims.join(",")));
    let seen = siege.seen(&["victim1"], family, || {
        siege.python("friend2", &format!("say({:?}, 9001, 'theirs')", siege.ip("victim1", family)));
        siege.python("friend2", &format!("say({:?}, 9001, 'theirs', 40001)", siege.ip("friend1", family)));
    });
    assert_eq!(seen, BTreeSet::from(["theirs".to_owned()]));
    let words = thief.words(|| siege.end("friend2", siege.ip("thief1", family), 9001));
    assert_eq!(words, BTreeSet::from(["END".to_owned()]), "the thief sees only what is for it");
}

/// conntrack cannot place it, so it is not translated back, and the node itself would reset it.
fn beyond_the_window(siege: &Siege, family: Family) {
    let service = siege.lab.get(&["-n", NS, "service", "stray"]);
    let ips = service["spec"]["clusterIPs"].as_array().expect("addresses").iter();
    let ips: Vec<&str> = ips.map(|ip| ip.as_str().expect("an address")).collect();
    let cluster_ip =
        ips.iter().find(|ip| ip.contains(':') == (family == Family::V6)).expect("of each family");
    let client = |host: &str, port: u16| format!("stray_client({host:?}, {port})");
    let goes_on = |what: &str, ask: &dyn Fn() -> String| {
        let server = siege.start("friend2", "stray_server(28082)");
        assert_eq!(ask().trim(), "still fine", "{what}");
        assert_eq!(server.words(|| ()), BTreeSet::from(["went on".to_owned()]), "{what}");
    };
    goes_on("pod to ClusterIP", &|| siege.python("thief1", &client(cluster_ip, 80)));
    goes_on("node to ClusterIP", &|| {
        let program = siege.program(&client(cluster_ip, 80));
        siege.lab.node_ok("node1", &["python3", "-c", &program])
    });
    for node in NODES {
        let node = family.pick(node);
        goes_on("outside to a node port", &|| siege.outside(&client(node, 30474)));
    }
}

fn tables(siege: &Siege) {
    let lines = |command: &[&str]| siege.lab.node_ok("node1", command).lines().count();
    let learned = || lines(&["bridge", "fdb", "show", "br", "cni0"]);
    let neighbours = || lines(&["ip", "neigh", "show", "dev", "cni0", "nud", "all"]);
    let before = (learned(), neighbours());
    for (me, prefix) in
        [("10.244.1.", Family::V4), ("fd00:10:244:1::", Family::V6)].map(|(p, f)| (siege.ip("thief1", f), p))
    {
        siege.python("thief1", &format!("exhaust({:?}, {me:?}, {prefix:?}, 2000)", GATEWAYS[0]));
    }
    let after = (learned(), neighbours());
    assert!(after.0 <= before.0 + 8 && after.1 <= before.1 + 8, "{before:?} → {after:?}");
}

fn own_process(siege: &Siege) {
    let name = |object: &str| siege.lab.get(&["-n", NS, object, "host2"]);
    let service = name("service");
    for (family, address) in
        Family::ALL.into_iter().zip(service["spec"]["clusterIPs"].as_array().expect("addresses"))
    {
        let own = family.pick(NODES[1]);
        for (address, port) in [(address.as_str().expect("an address"), 80), (own, 30473)] {
            let address: IpAddr = address.parse().expect("an address");
            let url = format!("http://{}/", std::net::SocketAddr::new(address, port));
            let said = siege.lab.node_demo("node2", &["get", &url]);
            assert!(said.ok, "{url}: {said:?}");
            let peer = said.out.split_ascii_whitespace().find_map(|word| word.strip_prefix("peer="));
            let peer: Option<std::net::SocketAddr> = peer.and_then(|peer| peer.parse().ok());
            assert_eq!(peer.map(|peer| peer.ip().to_string()).as_deref(), Some(own), "{url}: {}", said.out);
        }
    }
}
