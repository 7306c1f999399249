//! Whoever may look and trace, with the roles of docs/trace.md and nothing else.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::ask::url;
use crate::cluster::{Cluster, Kubectl, server};
use crate::said::{Said, plumb, repository, run};

const DOC: &str = "docs/trace.md";

/// A user of the cluster by his kubeconfig.
struct Watcher<'a> {
    cluster: &'a Cluster,
    kubeconfig: PathBuf,
}

impl Watcher<'_> {
    fn plumb(&self, args: &[&str]) -> Said {
        run(Command::new(plumb()).args(args).env("KUBECONFIG", &self.kubeconfig))
    }

    fn raw(&self, path: &str) -> Said {
        let config = self.kubeconfig.to_str().expect("a plain path");
        self.cluster.kubectl(&["--kubeconfig", config, "get", "--raw", path])
    }
}

/// The manifests in a document, as they stand there.
fn manifests(document: &str) -> String {
    let text = std::fs::read_to_string(repository(document)).expect("a document");
    let blocks = text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks.filter(|block| block.contains("\nkind: ")).collect::<Vec<_>>().join("---\n")
}

/// A ServiceAccount stands for the user, because a token is all that it takes.
fn watcher(cluster: &Cluster) -> Watcher<'_> {
    cluster.apply(&manifests(DOC));
    cluster.kubectl_ok(&["-n", "default", "create", "serviceaccount", "ann"]);
    let who = "--serviceaccount=default:ann";
    let role = ["create", "rolebinding", "ann-traces", "--role=plumb-trace", who];
    cluster.kubectl_ok(&[&["-n", "kube-system"], &role[..]].concat());
    cluster.kubectl_ok(&["create", "clusterrolebinding", "ann-traces", "--clusterrole=plumb-trace", who]);
    let token = cluster.kubectl_ok(&["-n", "default", "create", "token", "ann", "--duration=1h"]);
    let config = cluster.kubectl_ok(&["config", "view", "--raw", "--minify", "-o", "json"]);
    let mut config: Value = serde_json::from_str(&config).expect("a kubeconfig");
    config["users"][0]["user"] = serde_json::json!({ "token": token.trim() });
    let kubeconfig = cluster.directory().join("ann.json");
    std::fs::write(&kubeconfig, config.to_string()).expect("write a kubeconfig");
    Watcher { cluster, kubeconfig }
}

/// They suffice, they reach no kubelet, and what is missing is named.
pub fn rights_to_look_and_trace(cluster: &Cluster) {
    let ann = watcher(cluster);
    // Who was bound just now may be known a moment later.
    let said = cluster.wait_for("plumb status", || {
        let said = ann.plumb(&["status"]);
        if said.ok { Ok(said) } else { Err(format!("{said:?}")) }
    });
    assert!(said.out.contains("all is well on 2 of 2 nodes"), "{said:?}");
    traces(cluster, &ann);
    for path in
        ["/api/v1/nodes/node1/proxy/pods", "/api/v1/nodes/node1:9475/proxy/metrics", "/api/v1/secrets"]
    {
        ann.raw(path).refused(&["Forbidden"]);
    }
    // The kubelet's port by an agent's pod: the API server shows nobody's credentials there.
    let agent = ["-n", "kube-system", "get", "pods", "-l", "app.kubernetes.io/component=agent", "-o", "name"];
    let agent = cluster.kubectl_ok(&agent);
    let agent = agent.lines().next().and_then(|line| line.strip_prefix("pod/")).expect("a pod");
    let path = format!("/api/v1/namespaces/kube-system/pods/https:{agent}:10250/proxy/pods");
    // kubectl's words for the kubelet's 401.
    ann.raw(&path).refused(&["the server has asked for the client to provide credentials"]);
    let without = r#"[{"op": "remove", "path": "/rules/1"}]"#;
    cluster.kubectl_ok(&["-n", "kube-system", "patch", "role", "plumb-trace", "--type=json", "-p", without]);
    cluster.wait_for("what is missing is named", || {
        let said = ann.plumb(&["status"]);
        let named = said.out.contains("whoever asks needs `get` and `create` on pods/proxy in kube-system");
        if !said.ok && named { Ok(()) } else { Err(format!("{said:?}")) }
    });
}

fn traces(cluster: &Cluster, ann: &Watcher<'_>) {
    cluster.load_image();
    let ns = cluster.namespace("watched");
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: echo}\nspec: {selector: {app: echo}, ipFamilyPolicy: \
                   PreferDualStack, ports: [{port: 80, targetPort: 8080}]}\n";
    ns.apply(&[service, &server("echo1", "node2"), &server("client1", "node1")]);
    ns.wait_ready();
    ns.until_demo("client1", &["get", "http://echo/"]);
    let addresses = ns.service_ips("echo");
    for target in addresses.iter().map(|address| url(address, 80)).chain(["http://echo".to_owned()]) {
        ns.until_demo("client1", &["get", &target]);
        let said = ann.plumb(&["trace", &format!("{}/client1", ns.name), &target]);
        assert!(said.ok && said.out.contains("model and kernel agree"), "{target}: {said:?}");
    }
}
