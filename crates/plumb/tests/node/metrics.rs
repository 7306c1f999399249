//! Metrics of real packets, and a real Prometheus that reads them by TLS and token.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::said::{repository, run};
use crate::stage::{Node, Stage, ask, connects_at_once, listen, wait_for};

const POLICIES: &str = "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies";

fn close(stage: &Stage, name: &str, app: &str) {
    let object = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "name": name, "namespace": "default" },
        "spec": { "podSelector": { "matchLabels": { "app": app } } },
    });
    stage.create(POLICIES, &object);
}

/// The value of a series.
fn value(node: &Node, series: &str) -> u64 {
    let text = node.metrics();
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {series}: {text}")).parse().unwrap()
}

fn refused(node: &Node, cause: &str) -> u64 {
    value(node, &format!("plumb_dropped_packets_total{{cause=\"{cause}\"}}"))
}

/// What the kernel has counted for this policy now.
fn counted(node: &Node, policy: &str) -> u64 {
    let rules = node.run("nft list table ip plumb");
    let lines = rules.lines().filter(|line| line.contains(&format!("deny ingress: default/{policy}")));
    lines.filter_map(|line| line.split("packets ").nth(1)?.split(' ').next()?.parse::<u64>().ok()).sum()
}

#[test]
fn what_is_refused_is_counted_by_its_cause_over_rules_that_go() {
    let stage = Stage::new(1);
    let node = &stage.nodes[0];
    let (client, _) = stage.wired(0, "client");
    let (server, ip) = stage.wired(0, "server");
    let _server = listen(&server, 8080);
    assert_eq!((refused(node, "policy_ingress"), refused(node, "no_endpoint")), (0, 0));
    close(&stage, "closed", "server");
    wait_for("the policy", || {
        node.run("nft list map ip plumb in_iso").contains("default.closed").then_some(())
    });
    assert!(!connects_at_once(&client.netns, SocketAddr::new(ip, 8080)));
    let first = counted(node, "closed");
    assert!(first > 0);
    // Counters are read once a second at most.
    wait_for("the drops", || (refused(node, "policy_ingress") >= first).then_some(()));
    // Since the last look there is more, and then the rules go, with what they have counted.
    assert!(!connects_at_once(&client.netns, SocketAddr::new(ip, 8080)));
    let second = counted(node, "closed");
    assert!(second > first);
    stage.delete(&format!("{POLICIES}/closed"));
    wait_for("the policy's end", || connects_at_once(&client.netns, SocketAddr::new(ip, 8080)).then_some(()));
    assert_eq!(counted(node, "closed"), 0);
    let kept = || (refused(node, "policy_ingress") >= second).then_some(());
    wait_for("what rules that are gone have counted", kept);

    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "empty", "namespace": "default" },
        "spec": { "clusterIP": "10.96.14.7", "ports": [{ "port": 80 }] },
    });
    stage.create("/api/v1/namespaces/default/services", &service);
    wait_for("the Service refuses", || {
        assert!(!connects_at_once(&client.netns, "10.96.14.7:80".parse().unwrap()));
        (refused(node, "no_endpoint") > 0).then_some(())
    });
    // An address that no Service has is dropped.
    assert!(!connects_at_once(&client.netns, "10.96.14.8:80".parse().unwrap()));
    wait_for("a drop", || (refused(node, "no_service") > 0).then_some(()));

    let limit = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max").unwrap();
    assert_eq!(value(node, "plumb_conntrack_entries_limit"), limit.trim().parse::<u64>().unwrap());
    assert!(value(node, "plumb_conntrack_entries") > 0, "connections were made");
}

/// Ends it when dropped, also when the test panics.
struct Prometheus(Child);

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One job with the token, one without; each second.
fn prometheus(node: &Node, token: &str) -> Prometheus {
    let home = node.dir.join("prometheus");
    std::fs::create_dir_all(&home).unwrap();
    std::fs::write(home.join("token"), token).unwrap();
    let job = |name: &str, more: &str| {
        format!(
            "- {{job_name: {name}, scheme: https, tls_config: {{insecure_skip_verify: true}}, {more} \
             static_configs: [{{targets: ['{}:9475']}}]}}\n",
            node.address
        )
    };
    let config = format!(
        "global: {{scrape_interval: 1s, scrape_timeout: 1s}}\nscrape_configs:\n{}{}",
        job("plumb", "authorization: {credentials_file: token},"),
        job("stranger", ""),
    );
    std::fs::write(home.join("config.yaml"), config).unwrap();
    let said = run(&mut Command::new(repository("tools/prometheus.sh")));
    assert!(said.ok, "tools/prometheus.sh: {said:?}");
    let mut command = Command::new(format!("{}/prometheus", said.out.trim()));
    command.current_dir(&home).stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(std::fs::File::create(home.join("log")).unwrap());
    command.args([
        "--config.file=config.yaml",
        "--storage.tsdb.path=data",
        "--web.listen-address=127.0.0.1:9090",
    ]);
    Prometheus(node.netns.run(|| command.spawn()).unwrap().unwrap())
}

/// Job → the value of a metric; nothing of one that was never scraped.
fn of_jobs(node: &Node, metric: &str) -> Option<Value> {
    let path = format!("/api/v1/query?query={metric}");
    let said = node.netns.run(|| ask("127.0.0.1:9090".parse().unwrap(), &path)).unwrap().ok()?;
    let answer: Value = serde_json::from_str(said.split("\r\n\r\n").nth(1)?).ok()?;
    let of = |one: &Value| Some((one["metric"]["job"].as_str()?.to_owned(), one["value"][1].clone()));
    Some(answer["data"]["result"].as_array()?.iter().filter_map(of).collect())
}

#[test]
fn a_prometheus_reads_metrics_by_tls_and_token_where_plain_ones_are_refused() {
    let mut stage = Stage::new(1);
    stage.nodes[0].kill();
    stage.nodes[0].flags.push("--secure-metrics".into());
    stage.nodes[0].start();
    let node = &stage.nodes[0];
    node.wait_ready();
    let plain = wait_for("the port", || node.http(&node.address, "/metrics").ok());
    assert!(plain.starts_with("HTTP/1.0 403") && plain.contains("by TLS alone"), "{plain}");
    // The kubelet's probe goes on as before.
    let probe = node.http(&node.address, "/healthz").unwrap();
    assert!(probe.starts_with("HTTP/1.0 200"), "{probe}");

    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "prometheus", "namespace": "default" } });
    stage.create(accounts, &account);
    let request = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {} });
    let made = stage.create(&format!("{accounts}/prometheus/token"), &request);
    let token = made["status"]["token"].as_str().expect("a token");
    let _prometheus = prometheus(node, token);
    wait_for("both jobs have scraped", || {
        (of_jobs(node, "up")? == json!({ "plumb": "1", "stranger": "0" })).then_some(())
    });
    assert_eq!(of_jobs(node, "plumb_synced"), Some(json!({ "plumb": "1" })), "the stranger has read metrics");
}
