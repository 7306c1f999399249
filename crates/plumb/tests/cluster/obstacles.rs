//! What `plumb install` finds in its way, what its remedies do, and what it leaves when it fails.

use serde_json::json;

use crate::cluster::{Cluster, Kubectl, Stack};
use crate::install::{bare, image};
use crate::said::Said;

/// As kubeadm has it, and as CoreDNS's manifest has its Service.
const OF_OTHERS: &str = r#"
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: kube-proxy, namespace: kube-system}
spec:
  selector: {matchLabels: {k8s-app: kube-proxy}}
  template:
    metadata: {labels: {k8s-app: kube-proxy}}
    spec:
      hostNetwork: true
      tolerations: [{operator: Exists}]
      terminationGracePeriodSeconds: 0
      containers: [{name: kube-proxy, image: "plumb.test/pause:1", imagePullPolicy: Never}]
---
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system, labels: {k8s-app: kube-dns}}
spec:
  clusterIP: 10.96.0.10
  selector: {k8s-app: kube-dns}
  ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53, protocol: TCP}]
"#;

fn all_of(said: &Said) -> String {
    format!("{}{}", said.out, said.err)
}

/// Refused before anything was changed; what it said.
#[track_caller]
fn refused(cluster: &Cluster, words: &[&str]) -> String {
    let said = cluster.plumb_install(&[]);
    let all = all_of(&said);
    assert!(!said.ok && all.contains("nothing was changed"), "{said:?}");
    for word in words {
        assert!(all.contains(word), "{word}: {all}");
    }
    assert!(!cluster.remains().iter().any(|line| line.contains("plumb")), "{:?}", cluster.remains());
    all
}

#[test]
fn others_on_the_cluster_are_found_first_and_their_remedies_work() {
    let cluster = bare(Stack::Single);
    cluster.apply(OF_OTHERS);
    cluster.wait_for("kube-proxy is scheduled", || {
        let set = cluster.kubectl_ok(&["-n", "kube-system", "get", "daemonset", "kube-proxy", "-o", "json"]);
        let set: serde_json::Value = serde_json::from_str(&set).map_err(|error| error.to_string())?;
        if set["status"]["desiredNumberScheduled"] == 2 { Ok(()) } else { Err(set["status"].to_string()) }
    });
    let all = refused(&cluster, &["DaemonSet kube-system/kube-proxy", "--accept kube-proxy"]);
    // The remedy as it is printed, by a shell.
    let (_, rest) = all.split_once("kubectl -n kube-system patch").expect("the command");
    let (command, _) = rest.split_once(" (pods keep").expect("the command's end");
    let script = format!("\"$KUBECTL\" -n kube-system patch{command}");
    let mut shell = std::process::Command::new("sh");
    shell.args(["-ec", &script]).env("KUBECTL", crate::said::kubectl_binary());
    let said = crate::said::run(shell.env("KUBECONFIG", &cluster.kubeconfig));
    assert!(said.ok, "{said:?}");
    on_nodes(&cluster);
    // Docker's policy stays, and so does what its remedy has put before it.
    let dockers = docker(&cluster);
    let said = cluster.plumb_install(&["--accept", "firewall"]);
    assert!(
        said.ok && said.out.contains("Service kube-system/kube-dns belongs to another DNS server"),
        "{said:?}"
    );
    // Whose Service it is has not changed, and our agents answer at its address.
    let labels = cluster.kubectl_ok(&[
        "-n",
        "kube-system",
        "get",
        "service",
        "kube-dns",
        "-o",
        "jsonpath={.metadata.labels}",
    ]);
    assert_eq!(labels, r#"{"k8s-app":"kube-dns"}"#);
    let said = cluster.plumb(&["connectivity", "test", "--only", "dns,pod-to-pod,service", "--settle", "30"]);
    assert!(said.ok, "{said:?}");
    let said = cluster.plumb(&["uninstall"]);
    assert!(said.ok && said.out.contains("Left service/kube-dns: it is not Plumb's"), "{said:?}");
    cluster.kubectl_ok(&["-n", "kube-system", "get", "service", "kube-dns"]);
    assert_eq!(cluster.node_ok("node2", RULES), dockers);
}

/// What the short pods see: processes, rules and files of others, each with the command that ends it.
fn on_nodes(cluster: &Cluster) {
    let run = |node: &str, script: &str| cluster.node_ok(node, &["sh", "-ec", script]);
    run("node1", "nft add table ip kube-proxy; nft add table ip nat; nft add chain ip nat KUBE-SERVICES");
    run(
        "node1",
        "nft add table ip filter; nft add chain ip filter FORWARD '{ type filter hook forward priority 0; policy drop; }'",
    );
    run(
        "node2",
        "nft add table inet firewalld; touch /etc/cni/net.d/10-flannel.conflist; cp /bin/sleep /run/kube-proxy; cp /bin/sleep /run/dockerd",
    );
    cluster.tool_ok(&["start", "node2", "proxy", "/run/kube-proxy", "infinity"]);
    let found = [
        ("node node1: table ip kube-proxy", "nft delete table ip kube-proxy"),
        (
            "node node1: chain FORWARD of table ip filter",
            "nft add chain ip filter FORWARD '{ policy accept; }'",
        ),
        ("node node2: /etc/cni/net.d/10-flannel.conflist", "rm /etc/cni/net.d/10-flannel.conflist"),
    ];
    let words: Vec<&str> = found.iter().flat_map(|(object, next)| [*object, *next]).collect();
    let more = [
        "node node1: chain KUBE-SERVICES of table ip nat",
        "iptables-save | grep -v KUBE- | iptables-restore",
        "node node2: the process kube-proxy",
        "node node2: firewalld",
        "firewall-cmd --permanent --zone=trusted --add-source=10.244.0.0/16",
    ];
    refused(cluster, &[&words, &more[..]].concat());
    for (object, next) in found {
        let node = object.split([' ', ':']).nth(1).expect("a node's name");
        run(node, next);
    }
    cluster.tool_ok(&["kill", "node2", "proxy"]);
    run("node1", "nft delete chain ip nat KUBE-SERVICES");
    let all = refused(cluster, &["node node2: firewalld"]);
    assert!(
        !all.contains("kube-proxy") && !all.contains("node1: chain") && !all.contains("flannel"),
        "{all}"
    );
    run("node2", "nft delete table inet firewalld");
}

const RULES: &[&str] = &["iptables", "-t", "filter", "-S"];

/// Where Docker runs, it is Docker that drops what is forwarded, and would again. Its rules with the remedy typed.
fn docker(cluster: &Cluster) -> String {
    let run = |script: &str| cluster.node_ok("node2", &["sh", "-ec", script]);
    run("iptables -N DOCKER-USER; iptables -A FORWARD -j DOCKER-USER; iptables -P FORWARD DROP");
    cluster.tool_ok(&["start", "node2", "docker", "/run/dockerd", "infinity"]);
    let all = refused(cluster, &["ip-forward-no-drop", "--accept firewall"]);
    let (_, rest) = all.split_once("docker, or: ").expect("the commands");
    let (typed, _) = rest.split_once(" (again after every boot)").expect("their end");
    run(typed);
    let rules = cluster.node_ok("node2", RULES);
    assert!(rules.contains("-A DOCKER-USER -s 10.244.0.0/16 -j ACCEPT"), "{rules}");
    rules
}

/// No DaemonSet may be made: the last object of an installation fails.
const NO_DAEMONSET: &str = r#"
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: no-daemonset}
spec:
  matchConstraints: {resourceRules: [{apiGroups: [apps], apiVersions: [v1], operations: [CREATE], resources: [daemonsets]}]}
  validations: [{expression: "false", message: "no DaemonSet today"}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: no-daemonset}
spec: {policyName: no-daemonset, validationActions: [Deny]}
"#;

#[test]
fn what_fails_is_undone_or_resumed() {
    let cluster = bare(Stack::Single);
    let before = cluster.remains();
    cluster.apply(NO_DAEMONSET);
    let probe = json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "x", "namespace": "default"},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "x", "image": "x"}]}}}});
    let file = cluster.directory().join("probe.json");
    std::fs::write(&file, probe.to_string()).expect("the cluster's directory can be written");
    cluster.wait_for("the admission policy works", || {
        let said = cluster.kubectl(&["create", "--dry-run=server", "-f", &file.to_string_lossy()]);
        if said.err.contains("no DaemonSet today") { Ok(()) } else { Err(format!("{said:?}")) }
    });
    let said = cluster.plumb_install(&[]);
    let all = all_of(&said);
    assert!(!said.ok && all.contains("the installation was taken back"), "{said:?}");
    assert!(all.contains("daemonset/plumb") && all.contains("no DaemonSet today"), "{said:?}");
    assert_eq!(cluster.remains(), before);
    cluster.kubectl_ok(&[
        "delete",
        "validatingadmissionpolicybinding,validatingadmissionpolicy",
        "no-daemonset",
    ]);

    // No agent starts anywhere: its directory cannot be made below a file.
    let said = cluster.plumb_install(&["--cni-bin-dir", "/etc/passwd/bin", "--timeout", "15"]);
    let all = all_of(&said);
    assert!(
        !said.ok
            && all.contains("no agent has started within 15 s")
            && all.contains("the installation was taken back"),
        "{said:?}"
    );
    // The pods of a DaemonSet that was deleted go after it.
    cluster.wait_for("nothing of it remains", || {
        let remains = cluster.remains();
        if remains == before { Ok(()) } else { Err(format!("{remains:?}")) }
    });
    resumed(&cluster);
}

/// One node works and another does not: nothing is taken back, and the rest follows when its cause is gone.
fn resumed(cluster: &Cluster) {
    cluster.node_ok("node2", &["sh", "-ec", "rmdir /opt/cni/bin; touch /opt/cni/bin"]);
    let said = cluster.plumb_install(&["--timeout", "60"]);
    let all = all_of(&said);
    assert!(!said.ok && all.contains("1 of 2 nodes do not work"), "{said:?}");
    assert!(all.contains("node1: works") && all.contains("plumb install --resume"), "{said:?}");
    assert!(all.contains("kubectl describe node node2"), "{said:?}");
    cluster.node_ok("node2", &["sh", "-ec", "rm /opt/cni/bin; mkdir /opt/cni/bin"]);
    // kubelet tries a failed mount again after up to two minutes.
    let image = image();
    let said =
        cluster.plumb(&["install", "--resume", "--timeout", "300", "--image", &image.to_string_lossy()]);
    assert!(said.ok && said.out.contains("node2: works") && !said.out.contains("Checking"), "{said:?}");
    let said = cluster.plumb(&["status"]);
    assert!(said.ok, "{said:?}");
}
