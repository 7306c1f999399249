//! Plumb as its users have it: a DaemonSet that `plumb install` made, looked at by `plumb status`, `plumb connectivity
//! test` and `plumb sysdump`, upgraded and rolled back while everything goes on.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::cluster::{Cluster, Kubectl, Namespace, Stack, pod, server};
use crate::install::bare;
use crate::said::{plumb, run};
use crate::watchers;

const PODS: &str = "10.244.0.0/16,fd00:10:244::/56";

/// What `plumb install` cannot find out where no kubeadm made the cluster.
fn flags(stack: Stack) -> &'static [&'static str] {
    match stack {
        Stack::Single => &[],
        Stack::Dual => &["--cluster-cidr", PODS],
    }
}

fn operated(stack: Stack) {
    let cluster = bare(stack);
    let said = cluster.plumb(&["status"]);
    assert!(!said.ok && said.err.contains("Plumb is not installed in this cluster"), "{said:?}");
    let said = cluster.plumb_install(flags(stack));
    assert!(said.ok, "{said:?}\n{}", cluster.kubectl_ok(&["describe", "pods", "-A"]));
    all_is_well(&cluster);
    watchers::rights_to_look_and_trace(&cluster);
    everything_connects(&cluster);
    an_archive_says_all_but_secrets(&cluster);
    upgrade_and_rollback_are_not_felt(&cluster);
    all_is_well(&cluster);
}

#[test]
fn an_ipv4_cluster_is_operated() {
    operated(Stack::Single);
}

#[test]
fn a_dual_stack_cluster_is_operated() {
    operated(Stack::Dual);
}

fn all_is_well(cluster: &Cluster) {
    let said = cluster.plumb(&["status"]);
    assert!(said.ok && said.out.contains("all is well on 2 of 2 nodes"), "{said:?}");
    let status = cluster.plumb(&["status", "-o", "json"]).json();
    assert_eq!(status["ok"], true, "{status:#}");
    for (line, node) in status["nodes"].as_array().expect("nodes").iter().zip(&cluster.nodes) {
        assert_eq!((&line["node"], &line["problems"]), (&Value::from(node.as_str()), &serde_json::json!([])));
        assert_eq!(line["agent"]["version"], env!("CARGO_PKG_VERSION"), "{line:#}");
        assert!(line["agent"]["last_sync"].is_u64() && line["agent"]["dns"]["error"].is_null(), "{line:#}");
    }
}

/// All tests but that of names outside, whose resolvers are this machine's.
fn everything_connects(cluster: &Cluster) {
    let program = plumb();
    let program = program.to_string_lossy();
    cluster.tool_ok(&["start", "out", "web", &program, "demo", "serve", "--http", "8080"]);
    let outside = match cluster.stack {
        Stack::Single => "203.0.113.10:8080",
        Stack::Dual => "203.0.113.10:8080,[2001:db8::10]:8080",
    };
    let said = cluster.plumb(&["connectivity", "test", "--json", "--settle", "30", "--outside", outside]);
    let report = said.json();
    let failed: Vec<&Value> = checks(&report).filter(|check| check["ok"] != true).collect();
    assert!(said.ok && report["ok"] == true, "{failed:#?}\n{}", cluster.logs("kubelet"));
    let done: BTreeSet<&str> = checks(&report).filter_map(|check| check["test"].as_str()).collect();
    let listed = cluster.plumb(&["connectivity", "test", "--list"]).out;
    let wanted =
        listed.lines().filter_map(|line| line.split(' ').next()).filter(|name| *name != "dns-outside");
    assert_eq!(done, wanted.collect());
    let families: BTreeSet<&str> = checks(&report).filter_map(|check| check["family"].as_str()).collect();
    assert_eq!(families.len(), if cluster.stack == Stack::Dual { 2 } else { 1 }, "{families:?}");
    let egress = checks(&report).filter(|check| check["test"] == "egress");
    assert_eq!(egress.filter_map(|check| check["family"].as_str()).collect::<BTreeSet<_>>(), families);
    let skipped: Vec<&Value> = report["skipped"].as_array().into_iter().flatten().map(|it| &it[0]).collect();
    assert_eq!(skipped, ["dns-outside"], "{report:#}");
    let left = cluster.kubectl(&["get", "namespace", "plumb-connectivity"]);
    assert!(!left.ok, "it is cleaned up: {left:?}");
}

fn checks(report: &Value) -> impl Iterator<Item = &Value> {
    report["checks"].as_array().into_iter().flatten()
}

const SECRET: &str = "hunter2-Sesame-42";

fn an_archive_says_all_but_secrets(cluster: &Cluster) {
    let ns = cluster.namespace("bank");
    ns.kubectl_ok(&["create", "secret", "generic", "vault", &format!("--from-literal=key={SECRET}")]);
    ns.kubectl_ok(&["create", "configmap", "notes", &format!("--from-literal=key={SECRET}")]);
    let image = format!("plumb.dev/plumb:{}", env!("CARGO_PKG_VERSION"));
    let env = format!("--env=PASSWORD={SECRET}");
    ns.kubectl_ok(&["run", "teller", "--image", &image, &env, "--command", "--", "/bin/plumb", "pause"]);
    let archive = cluster.directory().join("dump.tar.gz");
    let said = cluster.plumb(&["sysdump", "-o", &archive.to_string_lossy()]);
    assert!(said.ok && said.err.is_empty(), "{said:?}");
    let unpacked = run(Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(cluster.directory()));
    assert!(unpacked.ok, "{unpacked:?}");
    let root = cluster.directory().join("plumb-sysdump");
    for secret in ["hunter2", "eyJhbGci", "PRIVATE KEY", "last-applied"] {
        let found = run(Command::new("grep").args(["-rlF", "-e", secret]).arg(&root));
        assert!(found.out.is_empty(), "{secret}: {found:?}");
    }
    assert!(read(&root, "objects/pods.json").contains("\"teller\""));
    assert!(read(&root, "versions.json").contains("\"gitVersion\""));
    assert_eq!(read(&root, "failures.txt"), "");
    let tables: &[&str] = if cluster.stack == Stack::Dual {
        &["table ip plumb", "table ip6 plumb"]
    } else {
        &["table ip plumb"]
    };
    let api = "https://192.168.1.2:6443";
    for node in &cluster.nodes {
        for (file, parts) in [
            ("status.json", &["\"last_sync\""][..]),
            ("log.txt", &["everything is listed", api]),
            ("metrics.txt", &["plumb_synced 1"]),
            ("settings.txt", &["cluster_cidr", api]),
            ("drift.txt", &["none: the kernel holds what it should"]),
            ("plan/nft.txt", tables),
            ("kernel/nft.txt", tables),
            ("kernel/links.txt", &["cni0", "plumb.1"]),
            ("kernel/routes.txt", &["proto 112"]),
            ("kernel/neighbours.txt", &["plumb.1"]),
            ("kernel/conntrack.txt", &["tcp"]),
        ] {
            let text = read(&root, &format!("nodes/{node}/{file}"));
            for part in parts {
                assert!(text.contains(part), "{node}/{file} does not say {part:?}: {text}");
            }
        }
    }
}

fn read(root: &Path, file: &str) -> String {
    let path: PathBuf = root.join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Seconds until a query that is not answered is asked again: longer than a machine is ever busy.
const PATIENCE: u32 = 20;

/// On each node: calls of a ClusterIP, calls of a Service by its name, and one long answer through a ClusterIP.
fn load(cluster: &Cluster) -> Namespace<'_> {
    cluster.load_image();
    let ns = cluster.namespace("load");
    let policy = if cluster.stack == Stack::Dual { "RequireDualStack" } else { "SingleStack" };
    let service = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: echo}}\nspec: {{selector: {{app: echo}}, ports: [{{port: 8080}}], \
         ipFamilyPolicy: {policy}}}\n"
    );
    ns.apply(&[&service, &server("echo1", "node1"), &server("echo2", "node2")]);
    ns.wait_ready();
    ns.until_demo("echo1", &["get", "http://echo:8080/"]);
    let addresses = ns.get(&["service", "echo"])["spec"]["clusterIPs"].clone();
    for (number, address) in
        addresses.as_array().expect("ClusterIPs").iter().filter_map(Value::as_str).enumerate()
    {
        let at = if address.contains(':') { format!("[{address}]:8080") } else { format!("{address}:8080") };
        for node in ["1", "2"] {
            let here = format!("nodeName: node{node}\n  restartPolicy: Never");
            let (caller, reader) = (format!("caller{number}-{node}"), format!("reader{number}-{node}"));
            let call = format!(r#"loop, "http://{at}/", --every, "30", --timeout, "{PATIENCE}""#);
            let read = format!(r#"stream, "{at}", --every, "30", --timeout, "{PATIENCE}""#);
            ns.apply(&[&pod(&caller, &here, &call), &pod(&reader, &here, &read)]);
        }
    }
    for node in ["1", "2"] {
        let here = format!("nodeName: node{node}\n  restartPolicy: Never");
        let by_name = format!(r#"loop, "http://echo:8080/", --every, "5", --timeout, "{PATIENCE}""#);
        ns.apply(&[&pod(&format!("namer{node}"), &here, &by_name)]);
    }
    ns.wait_ready();
    ns
}

/// What must stay as it is: every container, and how often it was started.
fn containers(ns: &Namespace<'_>) -> Vec<String> {
    let pods = ns.get(&["pods"]);
    let pods = pods["items"].as_array().expect("pods").iter();
    pods.map(|pod| format!("{} {}", pod["metadata"]["name"], pod["status"]["containerStatuses"])).collect()
}

fn upgrade_and_rollback_are_not_felt(cluster: &Cluster) {
    let ns = load(cluster);
    let before = containers(&ns);
    let (old, new) = (format!("plumb.dev/plumb:{}", env!("CARGO_PKG_VERSION")), "plumb.dev/plumb:next");
    for node in &cluster.nodes {
        cluster.node_ok(node, &["ctr", "-n", "k8s.io", "images", "tag", &old, new]);
    }
    let said =
        cluster.plumb(&[&["install", "--image", new, "--timeout", "300"], flags(cluster.stack)].concat());
    assert!(said.ok && said.out.contains("will be brought up to date"), "{said:?}");
    assert_eq!(images(cluster), [new, new]);
    unharmed(&ns, "upgrade", &before);
    let rollout = |verb: &[&str]| {
        cluster.kubectl_ok(&[&["-n", "kube-system", "rollout"], verb, &["daemonset/plumb"]].concat());
    };
    rollout(&["undo"]);
    rollout(&["status", "--timeout=300s"]);
    assert_eq!(images(cluster), [old.as_str(), &old]);
    unharmed(&ns, "rollback", &before);
}

fn images(cluster: &Cluster) -> Vec<String> {
    let of = "jsonpath={.items[*].spec.containers[0].image}";
    let agents = ["-n", "kube-system", "get", "pods", "-l", "app.kubernetes.io/component=agent", "-o", of];
    cluster.kubectl_ok(&agents).split(' ').map(str::to_owned).collect()
}

/// No call failed, no query had to be asked again, no line of the long answers was lost, no container restarted.
fn unharmed(ns: &Namespace<'_>, word: &str, before: &[String]) {
    assert_eq!(containers(ns), before, "{word}: a pod is not as it was");
    let mut slowest = 0.0_f64;
    for pod in
        before.iter().filter_map(|line| line.split('"').nth(1)).filter(|name| !name.starts_with("echo"))
    {
        let log = ns.kubectl_ok(&["logs", pod]);
        if pod.starts_with("reader") {
            assert!(log.starts_with("streaming from"), "{word}: {pod}: {log}");
            continue;
        }
        for line in log.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let took: f64 = words.get(2).and_then(|text| text.parse().ok()).unwrap_or(f64::MAX);
            assert!(words.get(1) == Some(&"200"), "{word}: {pod}: {line}");
            assert!(took < f64::from(PATIENCE) * 1e3, "{word}: {pod}: a query was lost: {line}");
            slowest = slowest.max(took);
        }
        let calls = log.lines().count();
        assert!(calls > 0, "{word}: {pod} called nobody");
        println!("{word:<9} {pod:<10} {calls:>6} calls, the slowest so far {slowest:.0} ms");
    }
}
