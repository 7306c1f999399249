//! `plumb status`: well, and each thing that can be wrong.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Scratch, operate};
use crate::cluster::{Checks, Kubectl, Lab, Said, kubectl_binary, plumb, run, wait_for};

const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until the status of this node says these problems and no others.
fn says(lab: &Lab, node: &str, words: &[&str]) -> Said {
    wait_for(&format!("{node}: {words:?}"), PATIENCE, || {
        let status = operate(lab, &["status", "-o", "json"]).json();
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        let line = nodes.into_iter().find(|line| line["node"] == node).unwrap_or_default();
        let found: Vec<&str> =
            line["problems"].as_array().into_iter().flatten().filter_map(|p| p["word"].as_str()).collect();
        (found == words).then_some(()).ok_or_else(|| format!("{line:#}"))
    });
    operate(lab, &["status"])
}

/// The same, until it also says these: what is wrong of a paused agent becomes known after it is paused.
fn tells(lab: &Lab, node: &str, words: &[&str], parts: &[&str]) -> Said {
    wait_for(&format!("{node}: {parts:?}"), PATIENCE, || {
        let said = says(lab, node, words);
        let lacks = parts.iter().find(|part| !said.out.contains(**part));
        lacks.map_or(Ok(()), |part| Err(format!("{part}: {said:?}")))
    });
    says(lab, node, words)
}

/// Nobody has to look again until it is well.
fn mended(lab: &Lab) {
    let broken = |what: &str, waits: &str, mended: &[&str]| {
        lab.node_ok("node2", &["sh", "-c", what]);
        let up = format!("plumb lab up --name {}", lab.name);
        lab.lab(&["wait", "--timeout", "1"]).refused(&[&format!("node2: {waits}"), &up]);
        let said = lab.lab_ok(&["up"]);
        for line in mended {
            assert!(said.contains(&format!("node2: {line}\n")), "{line}: {said}");
        }
        let said = operate(lab, &["status"]);
        assert!(said.ok, "{said:?}");
    };
    let route = "it has its default route of IPv4 again";
    broken("ip link set eth0 down", "its eth0 is down", &["eth0 is up again", route]);
    broken("ip route del default", "its default route of IPv4 is gone", &[route]);
    let address = "it has its address 192.168.1.11 again";
    broken("ip address flush dev eth0", "its address 192.168.1.11 is on no interface", &[address]);
    broken("ip link del eth0", "its eth0 is gone", &["its eth0 is there again"]);
}

#[test]
fn status_names_what_is_wrong_and_the_next_step() {
    let lab = Lab::up(2);
    let mut checks = Checks::default();
    checks.check("well", || {
        let said = says(&lab, "node1", &[]);
        assert!(said.ok && said.out.contains("all is well on 2 of 2 nodes"), "{said:?}");
        let yaml = operate(&lab, &["status", "--output", "yaml"]);
        assert!(yaml.ok && yaml.out.starts_with("---\nok: true\nnodes:\n- node: node1\n"), "{yaml:?}");
    });
    checks.check("its own start is no alarm", || {
        let events = lab.get(&["events", "-A"]);
        let warns =
            |event: &&Value| event["source"]["component"] == "plumb-agent" && event["type"] == "Warning";
        let told: Vec<&Value> = events["items"].as_array().into_iter().flatten().filter(warns).collect();
        assert!(told.is_empty(), "{told:#?}");
    });
    checks.check("as kubectl plumb, with kubectl's flags", || as_plugin(&lab));
    checks.check("drift that nobody mends", || {
        lab.lab_ok(&["agent", "pause", "node1"]);
        lab.node_ok("node1", &["ip", "route", "del", "10.244.2.0/24"]);
        let said = tells(&lab, "node1", &["paused"], &["10.244.2.0/24", "wrong on 1 of 2 nodes"]);
        assert!(!said.ok, "{said:?}");
        pasted(&said, &format!("plumb lab agent resume --name {} node1", lab.name));
        assert!(says(&lab, "node1", &[]).ok);
    });
    checks.check("no route to another node", || {
        lab.node_ok("node1", &["ip", "route", "add", "unreachable", "192.168.1.11"]);
        let said = says(&lab, "node1", &["no route"]);
        assert!(!said.ok, "{said:?}");
        let look = format!("`plumb lab exec --name {} node1 ip route get 192.168.1.11 ", lab.name);
        for part in
            ["node node2 at 192.168.1.11", "next: give this machine the route", &look, "on 1 of 2 nodes"]
        {
            assert!(said.out.contains(part), "{part}: {said:?}");
        }
        lab.node_ok("node1", &["ip", "route", "del", "unreachable", "192.168.1.11"]);
        assert!(says(&lab, "node1", &[]).ok);
    });
    checks.check("what the machine has lost, and `lab up` gives back", || {
        lab.node_ok("node1", &["sh", "-c", "ip link set eth0 down && ip link set eth0 up"]);
        let said = says(&lab, "node1", &["uplink"]);
        assert!(!said.ok, "{said:?}");
        for part in ["default via 192.168.1.1 dev eth0", "wrong on 1 of 2 nodes"] {
            assert!(said.out.contains(part), "{part}: {said:?}");
        }
        pasted(&said, &format!("plumb lab up --name {}", lab.name));
        assert!(says(&lab, "node1", &[]).ok);
        assert!(lab.node_ok("node1", &["ip", "route"]).contains("default via 192.168.1.1"));
    });
    checks.check("a node without its address, and `lab up` gives it back", || {
        lab.node_ok("node1", &["ip", "address", "del", "192.168.1.10/24", "dev", "eth0"]);
        let said = says(&lab, "node1", &["no answer"]);
        assert!(said.out.contains("its address 192.168.1.10 is on no interface"), "{said:?}");
        pasted(&said, &format!("plumb lab up --name {}", lab.name));
        assert!(says(&lab, "node1", &[]).ok);
    });
    checks
        .check("`lab wait` names it, and `lab up` says what it has mended and waits for the agents", || {
            mended(&lab)
        });
    checks.check("a machine that forwards nothing, and whose packets are smaller", || {
        lab.lab_ok(&["agent", "pause", "node1"]);
        lab.node_ok("node1", &["sysctl", "-qw", "net.ipv4.ip_forward=0"]);
        lab.node_ok("node1", &["ip", "link", "set", "eth0", "mtu", "1400"]);
        let parts = ["ip_forward should be 1", "mtu 1350", "1350 on node1; 1450 on node2"];
        tells(&lab, "node1", &["paused"], &parts);
        lab.node_ok("node1", &["ip", "link", "set", "eth0", "mtu", "1500"]);
        // Paused again before it has followed, it would tell of the MTU.
        wait_for("the MTU is followed", PATIENCE, || {
            let status = operate(&lab, &["status", "-o", "json"]).json();
            let mtu = &status["nodes"][0]["agent"]["datapath"]["mtu"];
            (*mtu == 1450).then_some(()).ok_or_else(|| mtu.to_string())
        });
        lab.lab_ok(&["agent", "resume", "node1"]);
        assert!(says(&lab, "node1", &[]).ok);
        assert_eq!(lab.node_ok("node1", &["sysctl", "-n", "net.ipv4.ip_forward"]).trim(), "1");
    });
    checks.check("DNS away", || {
        lab.lab_ok(&["agent", "pause", "node1", "--no-dns"]);
        let said = tells(&lab, "node1", &["paused"], &["other nodes answer its pods"]);
        assert!(!said.ok, "{said:?}");
        pasted(&said, &format!("plumb lab agent resume --name {} node1", lab.name));
        assert!(says(&lab, "node1", &[]).ok);
    });
    checks.check("no agent", || {
        lab.lab_ok(&["agent", "stop", "node2"]);
        let said = says(&lab, "node2", &["no answer"]);
        assert!(!said.ok, "{said:?}");
        for part in ["Connection refused", "wrong on 1 of 2 nodes"] {
            assert!(said.out.contains(part), "{part}: {said:?}");
        }
        let start = format!("plumb lab agent start --name {} node2", lab.name);
        // What is tested meanwhile says so, too, and leaves nothing.
        let began = Instant::now();
        let test = ["connectivity", "test", "--patience", "5", "--nodes", "node2", "--only", "pod-to-pod"];
        operate(&lab, &test).refused(&["Ready", "✗ node2: the agent does not answer", "Connection refused"]);
        println!("with an agent away: over after {:?}", began.elapsed());
        lab.kubectl(&["get", "namespace", "plumb-connectivity"]).refused(&["NotFound"]);
        pasted(&said, &start);
        assert!(says(&lab, "node2", &[]).ok);
    });
    checks.check("an API that was away and is back", || api_away(&lab));
    checks.check("without a token nobody is told anything", || {
        let path = "/api/v1/namespaces/kube-system/pods/plumb-node1:9475/proxy/v1/node/status";
        lab.kubectl(&["get", "--raw", path]).refused(&["logged in"]);
    });
    checks.check("a token is for tracing, and for one node", || tokens(&lab));
    checks.check("no such cluster", || {
        let said = run(Command::new(plumb()).args(["status", "--kubeconfig", "/no/such/file"]));
        said.refused(&["/no/such/file"]);
    });
}

/// The advice, carried out as it stands: by a shell that knows of no kubeconfig.
fn pasted(said: &Said, advice: &str) {
    assert!(said.out.lines().any(|line| line == format!("  next: {advice}")), "{advice}: {said:?}");
    let program = plumb();
    let directory = program.parent().expect("a directory").display();
    let path = format!("{directory}:{}", std::env::var("PATH").unwrap_or_default());
    let said = run(Command::new("sh").args(["-c", advice]).env("PATH", path).env_remove("KUBECONFIG"));
    assert!(said.ok, "{advice}: {said:?}");
}

/// All is well again as soon as the watches are answered, although nothing changes in the cluster.
fn api_away(lab: &Lab) {
    let broke = || -> u64 {
        let path = "/api/v1/namespaces/kube-system/pods/plumb-node1:9475/proxy/metrics";
        let metrics = lab.kubectl(&["get", "--raw", path]).out;
        let lines = metrics.lines().filter(|line| line.starts_with("plumb_watch_troubles_total{"));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    };
    let before = broke();
    let pid = std::fs::read_to_string(lab.directory().join("pids/api")).expect("the API's pid");
    lab.node_ok("node1", &["kill", "-9", pid.split(' ').next().unwrap_or_default()]);
    wait_for("watches broke", PATIENCE, || {
        let now = broke();
        (now > before).then_some(()).ok_or_else(|| format!("{before} before, {now} now"))
    });
    let began = Instant::now();
    assert!(says(lab, "node1", &[]).ok);
    println!("well {:?} after the API was back", began.elapsed());
}

/// An agent is shown a token that opens nothing else: neither the API, nor another agent.
fn tokens(lab: &Lab) {
    let scratch = Scratch::new();
    let token = |account: &str, bound: Value| -> String {
        let body = serde_json::json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"audiences": ["plumb"], "boundObjectRef": bound}});
        let file = scratch.0.join("request.json");
        std::fs::write(&file, body.to_string()).expect("write a request");
        let path = format!("/api/v1/namespaces/kube-system/serviceaccounts/{account}/token");
        let file = file.to_str().expect("a plain path");
        let made: Value =
            serde_json::from_str(&lab.kubectl_ok(&["create", "--raw", &path, "-f", file])).expect("JSON");
        made["status"]["token"].as_str().expect("a token").to_owned()
    };
    let ask = |token: &str| {
        let script = "import sys, urllib.request, urllib.error\n\
            asked = urllib.request.Request('http://192.168.1.10:9475/v1/node/status', headers={'Plumb-Token': sys.argv[1]})\n\
            try: print(urllib.request.urlopen(asked).status)\n\
            except urllib.error.HTTPError as refused: print(refused.code, refused.read().decode())";
        lab.node_ok("node1", &["python3", "-c", script, token])
    };
    let node = |name: &str| serde_json::json!({"apiVersion": "v1", "kind": "Node", "name": name});
    assert_eq!(ask(&token("plumb-trace", node("node1"))).trim(), "200");
    for (account, bound, why) in [
        ("plumb-trace", node("node2"), "bound to node node2; make one for this node"),
        ("plumb-trace", Value::Null, "bound to no node; make one for this node"),
        ("plumb", node("node1"), "use a plumb of this agent's version"),
        ("default", node("node1"), "a trace needs one of system:serviceaccount:kube-system:plumb-trace"),
    ] {
        let said = ask(&token(account, bound));
        assert!(said.starts_with("401") && said.contains(why), "{account}: {said}");
    }
    let server = lab.kubectl_ok(&["config", "view", "-o", "jsonpath={.clusters[0].cluster.server}"]);
    let own = token("plumb-trace", node("node1"));
    let config =
        ["--kubeconfig=/dev/null", "--insecure-skip-tls-verify", "--server", server.trim(), "--token", &own];
    let said = run(Command::new(kubectl_binary()).args(config).args(["get", "nodes"]));
    assert!(!said.ok, "a token of traces opens the API: {said:?}");
}

/// kubectl finds an executable called kubectl-plumb; a link is enough.
fn as_plugin(lab: &Lab) {
    let scratch = Scratch::new();
    std::os::unix::fs::symlink(plumb(), scratch.0.join("kubectl-plumb")).expect("a link");
    let path = std::env::var("PATH").unwrap_or_default();
    let plugin = |args: &[&str]| {
        let mut kubectl = Command::new(kubectl_binary());
        kubectl.env("PATH", format!("{}:{path}", scratch.0.display())).env_remove("KUBECONFIG");
        run(kubectl.arg("plumb").args(args))
    };
    let kubeconfig = lab.kubeconfig.to_str().expect("a path in UTF-8");
    let said = plugin(&["status", "--kubeconfig", kubeconfig, "-o", "json"]);
    assert!(said.ok, "{said:?}");
    assert_eq!(said.json()["nodes"].as_array().map(Vec::len), Some(2), "{said:?}");
    plugin(&["status", "--kubeconfig", kubeconfig, "--context", "nosuch"]).refused(&["nosuch"]);
    let context = lab.kubectl_ok(&["config", "current-context"]);
    let said = plugin(&["status", "--kubeconfig", kubeconfig, "--context", context.trim()]);
    assert!(said.ok, "{said:?}");
    let help = plugin(&["status", "--help"]);
    assert!(help.out.contains("Usage: kubectl plumb status"), "{help:?}");
    let _: Value = plugin(&["status", "--kubeconfig", kubeconfig, "--output=json"]).json();
}
