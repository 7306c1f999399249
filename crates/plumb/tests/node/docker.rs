//! Docker on a node drops what the node forwards for anybody else. `plumb node-check`, which `plumb install` runs on
//! every node, finds that, and what it says to type lets pods through.

use std::net::IpAddr;
use std::process::{Command, Stdio};

use kernel::process::{Process, Signal, Spawn};
use serde_json::Value;
use types::Families;

use crate::stage::{Node, Stage, config, connects, connects_at_once, listen, wait_for};

/// What dockerd calls when it starts on a machine where nobody has let packets through before: its chains, the rules
/// of the default bridge, and the policy. iptables is the one of nf_tables, as on hosts of today.
const DOCKERD: &str = r#"
iptables --version | grep -q nf_tables
for tool in iptables ip6tables; do
  local=127.0.0.0/8; [ $tool = iptables ] || local=::1/128
  $tool -t nat -N DOCKER
  $tool -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
  $tool -t nat -A OUTPUT ! -d $local -m addrtype --dst-type LOCAL -j DOCKER
  for chain in DOCKER DOCKER-BRIDGE DOCKER-CT DOCKER-FORWARD DOCKER-INTERNAL DOCKER-USER; do
    $tool -t filter -N $chain
  done
  $tool -t filter -A FORWARD -j DOCKER-USER
  $tool -t filter -A FORWARD -j DOCKER-FORWARD
  for chain in DOCKER-CT DOCKER-INTERNAL DOCKER-BRIDGE; do $tool -t filter -A DOCKER-FORWARD -j $chain; done
  $tool -t filter -A DOCKER-FORWARD -i docker0 -j ACCEPT
  $tool -t filter -A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
  $tool -t filter -A DOCKER-BRIDGE -o docker0 -j DOCKER
  $tool -t filter -A DOCKER ! -i docker0 -o docker0 -j DROP
  $tool -t filter -P FORWARD DROP
done
iptables -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
"#;

/// A process called dockerd, which does nothing, until the test ends.
struct Dockerd(Process);

impl Dockerd {
    fn start(stage: &Stage) -> Self {
        let program = stage.dir.join("dockerd");
        std::fs::copy("/bin/sleep", &program).unwrap();
        Self(Spawn::program(&program).arg("infinity").start().unwrap())
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        let _ = self.0.signal(Signal::KILL);
        let _ = self.0.wait();
    }
}

#[track_caller]
fn shell(node: &Node, script: &str) -> String {
    let mut shell = Command::new("sh");
    let shell = shell.args(["-ec", script]).stderr(Stdio::inherit());
    let output = node.netns.run(|| shell.output()).unwrap().unwrap();
    assert!(output.status.success(), "{script}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What is in the way of packets there: object and remedy.
fn firewalls(node: &Node) -> Vec<(String, String)> {
    let mut check = Command::new(crate::said::plumb());
    check.args(["node-check", "--node", &node.name, "--cluster-cidr", "10.244.0.0/16,fd00:10:244::/56"]);
    check.arg("--cni-conf-dir").arg(node.dir.join("net.d"));
    let output = node.netns.run(|| check.output()).unwrap().unwrap();
    let findings: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let text = |finding: &Value, field: &str| finding[field].as_str().unwrap().to_owned();
    let found = findings.iter().filter(|finding| finding["word"] == "firewall");
    found.map(|finding| (text(finding, "object"), text(finding, "next"))).collect()
}

#[test]
fn what_docker_drops_is_found_and_its_remedy_lets_pods_through() {
    let stage = Stage::of(2, Families::Dual);
    let (client, _) = stage.wired(0, "client");
    let server = stage.pod(1, "server");
    let result = stage.nodes[1].cni("ADD", &server, &config()).unwrap();
    let addresses: Vec<IpAddr> = result["ips"].as_array().unwrap().iter().map(address).collect();
    assert_eq!(addresses.len(), 2, "{result}");
    let _listening = listen(&server, 8080);
    let reach = |address: &IpAddr| connects(&client.netns, (*address, 8080).into());
    for address in &addresses {
        wait_for(&format!("{address} answers"), || reach(address).then_some(()));
    }

    let [node1, node2] = &stage.nodes[..] else { panic!("two nodes") };
    assert_eq!(firewalls(node2), [], "before there is any");
    shell(node2, DOCKERD);
    let _dockerd = Dockerd::start(&stage);
    // The finding is true.
    for address in &addresses {
        assert!(!connects_at_once(&client.netns, (*address, 8080).into()), "{address}");
    }
    assert_eq!(firewalls(node1), []);
    let found = wait_for("dockerd is seen", || {
        let found = firewalls(node2);
        found.iter().all(|(_, next)| next.starts_with("Docker set it.")).then_some(found)
    });
    let objects: Vec<&str> = found.iter().map(|(object, _)| object.as_str()).collect();
    assert_eq!(
        objects,
        ["ip", "ip6"].map(|family| format!("node node2: chain FORWARD of table {family} filter"))
    );
    // So is the remedy, as it is printed.
    for (object, next) in &found {
        let (_, rest) = next.split_once("or: ").unwrap();
        let (typed, _) = rest.split_once(" (again after every boot)").unwrap();
        println!("{object}: {typed}");
        shell(node2, typed);
    }
    for address in &addresses {
        assert!(reach(address), "{address}");
    }
}

fn address(ip: &Value) -> IpAddr {
    ip["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap()
}
