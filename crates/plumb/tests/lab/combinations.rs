//! Labs of other combinations than the default: all that a pod can ask of the network, in each family that it has. (What
//! the default does, more finely: [`crate::network`].) `PLUMB_COMBINATIONS` chooses; [`combine::from_environment`] says how.
//!
//! ```text
//!   node1  echo1 echo3 friend1 mute1         echo, far, self, nobody: Services of every family of the lab
//!   node2  echo2 guarded2
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use combine::Combination;
use serde_json::Value;
use types::{Families, Family};

use crate::cluster::{Checks, Kubectl, Lab, plumb, run};

const NS: &str = "fam";
const ECHOS: [&str; 3] = ["echo1", "echo2", "echo3"];
const OUTSIDE: [&str; 2] = ["203.0.113.10", "2001:db8::10"];

#[test]
fn a_lab_of_each_chosen_combination() {
    let chosen = combine::from_environment();
    assert!(!chosen.is_empty(), "there is nothing beside the default");
    std::thread::scope(|scope| {
        let labs = chosen.iter().map(|combination| (combination, scope.spawn(|| a_lab_of(*combination))));
        let labs: Vec<_> = labs.collect();
        let failed = labs.into_iter().filter_map(|(of, lab)| lab.join().is_err().then(|| of.to_string()));
        let failed: Vec<String> = failed.collect();
        assert!(failed.is_empty(), "alone: PLUMB_COMBINATIONS={}", failed.join(","));
    });
}

fn a_lab_of(combination: Combination) {
    let families = combination.families;
    let stage = Stage::up(combination);
    let mut checks = Checks::of(&combination);
    checks.check("every object has addresses of the lab's families, and of no other", || addresses(&stage));
    for family in families.list() {
        let mut check = |what: &str, test: fn(&Stage, Family)| {
            checks.check(&format!("{family}: {what}"), || test(&stage, *family));
        };
        check("every pod reaches every pod, and is seen under its own address", every_pair);
        check("a service spreads over its endpoints and keeps the caller's address", spread);
        check("a service over UDP", udp);
        check("a pod reaches itself through its own service", hairpin);
        check("a service without endpoints refuses at once", nobody);
        check("names", names);
        check("a policy of ingress, on the node of the pod and from another", ingress);
        check("a policy of egress, judged after the service's translation", egress);
        check("what leaves the cluster bears the node's address, and the answer finds the pod", outside);
        check("a trace tells the whole way", trace);
    }
    if families.list().contains(&Family::V6) {
        checks.check("a trace of a link-local address", || link_local(&stage));
    }
    checks.check("plumb connectivity test leaves nothing out", || connectivity(&stage));
    checks.check("a family that the lab has not: no record, no error", || absent(&stage));
    checks.check("down leaves nothing", || down(&stage));
}

struct Stage {
    lab: Lab,
    families: Families,
    pods: BTreeMap<String, Vec<IpAddr>>,
    services: BTreeMap<String, Vec<IpAddr>>,
}

impl Stage {
    fn up(combination: Combination) -> Self {
        let flags = combination.flags();
        let lab = Lab::up_with(2, &flags.iter().map(String::as_str).collect::<Vec<_>>());
        let mut manifest = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NS}}}\n");
        for (name, node) in [
            ("echo1", "node1"),
            ("echo2", "node2"),
            ("echo3", "node1"),
            ("friend1", "node1"),
            ("guarded2", "node2"),
            ("mute1", "node1"),
        ] {
            let serve = r#"serve, --http, "8080", --udp, "9001""#;
            manifest += &Lab::pod(NS, name, &format!("nodeName: {node}"), serve);
        }
        lab.apply(&format!("{manifest}---\n{}", include_str!("combinations/manifest.yaml")));
        lab.wait_ready(NS);
        let pods = named(&lab, "pods", |pod| {
            let ips = pod["status"]["podIPs"].as_array().expect("podIPs");
            ips.iter().map(|ip| parse(&ip["ip"])).collect()
        });
        let services = named(&lab, "services", |service| {
            let ips = service["spec"]["clusterIPs"].as_array().expect("clusterIPs");
            ips.iter().filter(|ip| *ip != "None").map(parse).collect()
        });
        Self { lab, families: combination.families, pods, services }
    }

    #[track_caller]
    fn pod(&self, name: &str, family: Family) -> IpAddr {
        of(family, &self.pods[name])
    }

    #[track_caller]
    fn service(&self, name: &str, family: Family) -> IpAddr {
        of(family, &self.services[name])
    }

    /// `plumb demo get` of an address, from a pod: who answered and under which address he was asked.
    #[track_caller]
    fn get(&self, from: &str, to: IpAddr, port: u16) -> (String, IpAddr) {
        let url = format!("http://{}/", SocketAddr::new(to, port));
        said_by(&self.lab.demo_ok(NS, from, &["get", &url]))
    }

    /// Whether an answer comes; if none does, the question was dropped and not refused: no rule of a policy answers.
    #[track_caller]
    fn reaches(&self, from: &str, to: IpAddr, port: u16) -> bool {
        let url = format!("http://{}/", SocketAddr::new(to, port));
        let said = self.lab.demo(NS, from, &["get", &url, "--timeout", "1"]);
        assert!(said.ok || said.err.contains("timed out"), "{from} → {url}: {said:?}");
        said.ok
    }
}

fn named(lab: &Lab, kind: &str, ips: impl Fn(&Value) -> Vec<IpAddr>) -> BTreeMap<String, Vec<IpAddr>> {
    let list = lab.get(&["-n", NS, kind]);
    let items = list["items"].as_array().expect("a list");
    let name = |object: &Value| object["metadata"]["name"].as_str().expect("a name").to_owned();
    items.iter().map(|object| (name(object), ips(object))).collect()
}

fn parse(ip: &Value) -> IpAddr {
    ip.as_str().and_then(|ip| ip.parse().ok()).unwrap_or_else(|| panic!("no address: {ip}"))
}

#[track_caller]
fn of(family: Family, ips: &[IpAddr]) -> IpAddr {
    let found = ips.iter().copied().find(|ip| Family::of(*ip) == family);
    found.unwrap_or_else(|| panic!("no {family} among {ips:?}"))
}

/// `name=echo1 peer=[fd00:10:244:1::2]:48248 local=…`
#[track_caller]
fn said_by(out: &str) -> (String, IpAddr) {
    let field = |name: &str| {
        let found = out.split_ascii_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        found.unwrap_or_else(|| panic!("no {name} in {out:?}")).to_owned()
    };
    let peer: SocketAddr = field("peer").parse().expect("address and port");
    (field("name"), peer.ip())
}

fn addresses(stage: &Stage) {
    let wanted: Vec<Family> = stage.families.list().to_vec();
    let found = |ips: &[IpAddr]| ips.iter().map(|ip| Family::of(*ip)).collect::<Vec<_>>();
    for (name, ips) in stage.pods.iter().chain(stage.services.iter().filter(|(name, _)| *name != "each")) {
        assert_eq!(found(ips), wanted, "{name}");
    }
    let nodes = stage.lab.get(&["nodes"]);
    for node in nodes["items"].as_array().expect("a list") {
        let addresses = node["status"]["addresses"].as_array().expect("addresses");
        let internal = addresses.iter().filter(|address| address["type"] == "InternalIP");
        let ips: Vec<IpAddr> = internal.map(|address| parse(&address["address"])).collect();
        assert_eq!(found(&ips), wanted, "{node}");
        assert_eq!(node["spec"]["podCIDRs"].as_array().map(Vec::len), Some(wanted.len()), "{node}");
    }
}

fn every_pair(stage: &Stage, family: Family) {
    for from in ECHOS {
        for to in ECHOS {
            let answer = stage.get(from, stage.pod(to, family), 8080);
            assert_eq!(answer, (to.to_owned(), stage.pod(from, family)), "{from} → {to}");
        }
    }
}

fn spread(stage: &Stage, family: Family) {
    let url = format!("http://{}", SocketAddr::new(stage.service("echo", family), 80));
    let out = stage.lab.demo_ok(NS, "friend1", &["loop", &url, "--every", "0", "--count", "60"]);
    let answers: Vec<(String, IpAddr)> = out.lines().map(said_by).collect();
    let names: BTreeSet<&str> = answers.iter().map(|(name, _)| name.as_str()).collect();
    // 60 draws miss one of three with a chance of 1 in 12 thousand million.
    assert_eq!(names, BTreeSet::from(ECHOS), "{out}");
    assert!(answers.iter().all(|(_, peer)| *peer == stage.pod("friend1", family)), "{out}");
}

fn udp(stage: &Stage, family: Family) {
    let to = SocketAddr::new(stage.service("echo", family), 9001).to_string();
    let (_, peer) = said_by(&stage.lab.demo_ok(NS, "friend1", &["udp", &to]));
    assert_eq!(peer, stage.pod("friend1", family));
}

fn hairpin(stage: &Stage, family: Family) {
    // Were its own address kept, the answer would stay in the pod, and its client would see a stranger.
    let gateway = family.pick(["10.244.1.1", "fd00:10:244:1::1"]).parse().expect("an address");
    assert_eq!(stage.get("echo1", stage.service("self", family), 80), ("echo1".to_owned(), gateway));
}

fn nobody(stage: &Stage, family: Family) {
    let url = format!("http://{}", SocketAddr::new(stage.service("nobody", family), 80));
    stage.lab.demo(NS, "echo1", &["get", &url]).refused(&["Connection refused"]);
}

/// The addresses in the records that `plumb demo dns` prints.
fn records(out: &str) -> BTreeSet<IpAddr> {
    let record = |line: &str| line.strip_prefix("   ")?.rsplit(' ').next()?.parse().ok();
    out.lines().filter_map(record).collect()
}

fn names(stage: &Stage, family: Family) {
    let kind = family.pick(["A", "AAAA"]);
    let each: BTreeSet<IpAddr> = ECHOS.iter().map(|pod| stage.pod(pod, family)).collect();
    for pod in ["echo1", "echo2"] {
        let ask = |name: &str| records(&stage.lab.demo_ok(NS, pod, &["dns", name, kind]));
        assert_eq!(ask("echo"), BTreeSet::from([stage.service("echo", family)]), "{pod}");
        assert_eq!(ask("each"), each, "{pod}");
        assert_eq!(ask("outside.test."), [family.pick(OUTSIDE).parse().expect("an address")].into(), "{pod}");
    }
    // Each of the resolvers that the pod was told of answers.
    let server = family.pick(types::wire::DNS_IPS);
    let resolver = stage.lab.exec(NS, "echo1", &["cat", "/etc/resolv.conf"]).out;
    assert!(resolver.lines().any(|line| line == format!("nameserver {server}")), "{resolver}");
    let out = stage.lab.demo_ok(NS, "echo1", &["dns", "far", kind, "--server", server]);
    assert_eq!(records(&out), BTreeSet::from([stage.service("far", family)]), "{out}");
}

fn ingress(stage: &Stage, family: Family) {
    let guarded = stage.pod("guarded2", family);
    assert!(stage.reaches("friend1", guarded, 8080), "whom the policy names");
    for from in ["echo1", "echo2"] {
        assert!(!stage.reaches(from, guarded, 8080), "{from}");
    }
}

fn egress(stage: &Stage, family: Family) {
    for (to, port) in [
        (stage.pod("echo3", family), 8080),
        (stage.pod("echo2", family), 8080),
        (stage.service("far", family), 80),
    ] {
        assert!(stage.reaches("mute1", to, port), "mute1 → {to}");
    }
    let beyond = family.pick(OUTSIDE).parse().expect("an address");
    for (to, port) in [(stage.pod("friend1", family), 8080), (beyond, 80)] {
        assert!(!stage.reaches("mute1", to, port), "mute1 → {to}");
    }
}

fn outside(stage: &Stage, family: Family) {
    let there = SocketAddr::new(family.pick(OUTSIDE).parse().expect("an address"), 80);
    for (pod, node) in [
        ("echo1", family.pick(["192.168.1.10", "fd00:192:168:1::10"])),
        ("echo2", family.pick(["192.168.1.11", "fd00:192:168:1::11"])),
    ] {
        let out = stage.lab.demo_ok(NS, pod, &["get", &format!("http://{there}/")]);
        let seen = out.lines().find_map(|line| line.strip_prefix(&format!("outside {there} ")));
        let seen: Option<SocketAddr> = seen.and_then(|peer| peer.parse().ok());
        assert_eq!(seen.map(|peer| peer.ip().to_string()).as_deref(), Some(node), "{out}");
    }
}

fn trace(stage: &Stage, family: Family) {
    let report = |from: &str, to: SocketAddr, conclusion: &str| {
        let url = format!("http://{to}");
        let mut trace = Command::new(plumb());
        let pod = format!("{NS}/{from}");
        trace.args(["trace", &pod, &url, "--json"]).env("KUBECONFIG", &stage.lab.kubeconfig);
        let said = run(&mut trace);
        let report = said.json();
        assert_eq!(report["conclusion"], conclusion, "{from} → {url}: {report:#}");
        assert_eq!(report["agree"], report["of"], "{from} → {url}: {report:#}");
    };
    report("echo1", SocketAddr::new(stage.service("far", family), 80), "delivered");
    report("echo1", SocketAddr::new(stage.pod("echo3", family), 8080), "delivered");
    report("echo1", SocketAddr::new(family.pick(OUTSIDE).parse().expect("an address"), 80), "delivered");
    // From another node, and from its own.
    for from in ["echo1", "echo2"] {
        report(from, SocketAddr::new(stage.pod("guarded2", family), 8080), "denied");
    }
}

/// On a pod's link is the node alone, under the address that its kernel has given the bridge; who asks for another there is
/// told which that is, and no route is blamed.
fn link_local(stage: &Stage) {
    let show = ["ip", "-6", "-br", "address", "show", "dev", "cni0", "scope", "link"];
    let shown = stage.lab.node_ok("node1", &show);
    let own = shown.split_whitespace().nth(2).and_then(|word| word.split('/').next()).expect("an address");
    let trace = |target: &str| {
        let mut trace = Command::new(plumb());
        trace.args(["trace", &format!("{NS}/echo1"), target]).env("KUBECONFIG", &stage.lab.kubeconfig);
        run(&mut trace)
    };
    let said = trace(&format!("ping:{own}%eth0"));
    assert!(said.ok && said.out.contains("echo reply"), "{said:?}");
    let told = format!("the node is alone there, as {own}%eth0");
    for target in
        ["http://[fe80::1%eth0]", "http://[fe80::1%25eth0]:8080/", "fe80::1%eth0", "ping:fe80::1%eth0"]
    {
        let said = trace(target);
        assert!(said.ok && said.out.contains(&told) && !said.out.contains("route"), "{target}: {said:?}");
    }
}

fn connectivity(stage: &Stage) {
    let ask = |args: &[&str]| {
        let mut test = Command::new(plumb());
        test.args(["connectivity", "test"]).args(args).env("KUBECONFIG", &stage.lab.kubeconfig);
        run(&mut test)
    };
    let report = ask(&["--json", "--settle", "30"]).json();
    let checks = report["checks"].as_array().expect("checks");
    let failed: Vec<&Value> = checks.iter().filter(|check| check["ok"] != true).collect();
    assert!(failed.is_empty() && report["ok"] == true, "{failed:#?}");
    assert_eq!(report["skipped"], Value::Array(Vec::new()));
    let listed = ask(&["--list"]).out;
    let listed: BTreeSet<&str> = listed.lines().filter_map(|line| line.split(' ').next()).collect();
    for family in stage.families.list() {
        let of_family = checks.iter().filter(|check| check["family"] == family.to_string());
        let mut tested: BTreeSet<&str> = of_family.filter_map(|check| check["test"].as_str()).collect();
        // Once in a cluster: the Service of the API has one address, and a name outside is looked up by one type.
        if *family != stage.families.primary() {
            tested.extend(["api", "dns-outside"]);
        }
        assert_eq!(tested, listed, "{family}");
    }
}

fn absent(stage: &Stage) {
    let missing = Family::ALL.iter().filter(|family| !stage.families.list().contains(family));
    for kind in missing.map(|family| family.pick(["A", "AAAA"])) {
        let said = stage.lab.demo(NS, "echo1", &["dns", "echo.fam.svc.cluster.local.", kind]);
        assert!(!said.ok && said.out.contains(&format!("{kind} NODATA from ")), "{said:?}");
        // A client that asks for both is not held up.
        let out = stage.lab.demo_ok(NS, "echo1", &["get", "http://far"]);
        assert_eq!(said_by(&out).0, "echo2");
    }
}

fn down(stage: &Stage) {
    let of_the_lab = || {
        let marked = format!("PLUMB_LAB={}\0", stage.lab.name).into_bytes();
        let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
        let environments = processes.filter_map(|entry| std::fs::read(entry.path().join("environ")).ok());
        environments.filter(|environ| environ.windows(marked.len()).any(|words| words == marked)).count()
    };
    assert!(of_the_lab() > 0, "a running lab has processes");
    stage.lab.lab_ok(&["down"]);
    assert_eq!(of_the_lab(), 0, "processes are left");
    assert!(!stage.lab.directory().exists(), "{} is left", stage.lab.directory().display());
}
