//! With which rights an installation runs, which of them it uses, and nodes as clouds make them.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::cluster::{Cluster, Kubectl, Stack};
use crate::install::bare;

/// Verb and resource, as `patch nodes/status`.
type Right = String;

/// What the role gives.
fn granted(cluster: &Cluster) -> BTreeSet<Right> {
    let role = cluster.kubectl_ok(&["get", "clusterrole", "plumb", "-o", "json"]);
    let role: Value = serde_json::from_str(&role).expect("a ClusterRole");
    let words = |rule: &Value, field: &str| -> Vec<String> {
        let list = rule[field].as_array().into_iter().flatten();
        list.filter_map(|word| word.as_str().map(str::to_owned)).collect()
    };
    let rules = role["rules"].as_array().expect("rules").iter();
    rules
        .flat_map(|rule| {
            let resources = words(rule, "resources");
            words(rule, "verbs")
                .into_iter()
                .flat_map(move |verb| resources.clone().into_iter().map(move |of| format!("{verb} {of}")))
        })
        .collect()
}

/// What the API server wrote down that the agents asked for, and how it answered.
fn asked(cluster: &Cluster) -> Vec<(Right, u64)> {
    let log = cluster.directory().join("cp/log/audit");
    let log = std::fs::read_to_string(&log).unwrap_or_else(|error| panic!("{}: {error}", log.display()));
    // The last line may be half written.
    let entries = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    entries
        .map(|entry| {
            let of = &entry["objectRef"];
            let part = of["subresource"].as_str().map(|part| format!("/{part}")).unwrap_or_default();
            let (verb, resource) = (entry["verb"].as_str(), of["resource"].as_str());
            let right = format!("{} {}{part}", verb.unwrap_or_default(), resource.unwrap_or_default());
            (right, entry["responseStatus"]["code"].as_u64().unwrap_or_default())
        })
        .collect()
}

/// What a healthy, current cluster gives no occasion for.
fn is_for_others(right: &str) -> bool {
    // API servers that do not stream lists (KEP-3157), and a pod whose sandbox is made before the watch shows it.
    right.starts_with("list ") || right == "get pods"
}

/// A node that its cloud has not initialized, and one whose routes the cloud has not made: agents run there, and say
/// that the network is there. With the rights of their role and no others, each of which is used.
#[test]
fn nodes_of_clouds_work_and_every_right_is_used() {
    let cluster = bare(Stack::Single);
    let uninitialized = "node.cloudprovider.kubernetes.io/uninitialized=true:NoSchedule";
    cluster.kubectl_ok(&["taint", "node", "node1", uninitialized]);
    let condition = r#"{"status": {"conditions": [{"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated"}]}}"#;
    cluster.kubectl_ok(&[
        "patch",
        "node",
        "node2",
        "--subresource=status",
        "--type=strategic",
        "-p",
        condition,
    ]);
    let of_node2 = |path: &str| cluster.kubectl_ok(&["get", "node", "node2", "-o", path]);
    let taints = || of_node2("jsonpath={.spec.taints[*].key}");
    cluster.wait_for("the taint of the condition", || {
        if taints().contains("network-unavailable") { Ok(()) } else { Err(taints()) }
    });
    let said = cluster.plumb_install(&[]);
    assert!(said.ok, "{said:?}");
    cluster.wait_for("the taint is gone", || {
        if taints().contains("network-unavailable") { Err(taints()) } else { Ok(()) }
    });
    let reason = of_node2("jsonpath={.status.conditions[?(@.type==\"NetworkUnavailable\")].reason}");
    assert_eq!(reason, "PlumbIsUp");
    // Whose taint it is takes it away; that of a node which was not ready goes with its cause.
    cluster.wait_for("the cloud's taint alone is left", || {
        let taints = cluster.kubectl_ok(&["get", "node", "node1", "-o", "jsonpath={.spec.taints[*].key}"]);
        if taints == "node.cloudprovider.kubernetes.io/uninitialized" { Ok(()) } else { Err(taints) }
    });
    // Whoever asks is looked up (tokenreviews); what somebody changes is mended and told (events).
    let said = cluster.plumb(&["status"]);
    assert!(said.ok, "{said:?}");
    cluster.node_ok("node1", &["nft", "flush", "chain", "ip", "plumb", "postrouting"]);
    cluster.wait_for("every right is used", || {
        let (granted, asked) = (granted(&cluster), asked(&cluster));
        let used: BTreeSet<Right> = asked.into_iter().map(|(right, _)| right).collect();
        let idle: Vec<&Right> = granted.difference(&used).filter(|right| !is_for_others(right)).collect();
        if idle.is_empty() { Ok(()) } else { Err(format!("granted and not used: {idle:?}")) }
    });
    let refused: Vec<(Right, u64)> = asked(&cluster).into_iter().filter(|(_, code)| *code == 403).collect();
    assert!(refused.is_empty(), "asked for and not granted: {refused:?}");
}

/// What one agent's token is worth: its own Node, and nobody else's; and whoever may trace is no agent.
#[test]
fn a_token_of_an_agent_changes_its_own_node_alone() {
    let cluster = bare(Stack::Single);
    let said = cluster.plumb_install(&[]);
    assert!(said.ok, "{said:?}");
    let path = cluster.directory().join("agent-of-one-node");
    let with = |token: &str, args: &[&str]| {
        std::fs::write(&path, cluster.agent_kubeconfig(token)).expect("write a kubeconfig");
        let path = path.to_str().expect("a plain path");
        // The API server's address there is that of the nodes' network.
        let server = cluster.kubectl_ok(&["config", "view", "-o", "jsonpath={.clusters[0].cluster.server}"]);
        let server = format!("--server={server}");
        cluster.kubectl(&[&["--kubeconfig", path, &server], args].concat())
    };
    // By server-side apply: kubectl's patch reads the Node first, which agents may not.
    let apply = |token: &str, node: &str, what: &str, part: &str| {
        let object = format!(
            r#"{{"apiVersion": "v1", "kind": "Node", "metadata": {{"name": "{node}", "annotations": {{"probe": "yes"}}}}, {what}}}"#
        );
        let file = cluster.directory().join("probe.json");
        std::fs::write(&file, object).expect("write a manifest");
        let file = file.to_str().expect("a plain path");
        let mut args = vec!["apply", "--server-side", "--validate=false", "--force-conflicts", "-f", file];
        args.extend(Some(part).filter(|part| !part.is_empty()));
        with(token, &args)
    };
    let write = |token: &str, node: &str, part: &str| {
        let what = match part {
            "--subresource=status" => {
                r#""status": {"conditions": [{"type": "Probe", "status": "True", "reason": "Probed"}]}"#
            }
            _ => r#""spec": {}"#,
        };
        apply(token, node, what, part)
    };
    let (own, nobodys) = (cluster.agent_token(Some("node1")), cluster.agent_token(None));
    for part in ["", "--subresource=status"] {
        // A policy is in force soon after it was made.
        cluster.wait_for("the policy is in force", || {
            let said = write(&own, "node2", part);
            if said.ok { Err(format!("{said:?}")) } else { Ok(()) }
        });
        let refused = format!("{:?}", write(&own, "node2", part));
        assert!(refused.contains("changes its own Node alone"), "{part}: {refused}");
        let done = write(&own, "node1", part);
        assert!(done.ok, "{part}: {done:?}");
        let refused = write(&nobodys, "node1", part);
        assert!(!refused.ok, "{part}: a token without a node: {refused:?}");
    }
    // Others would believe it (docs/security.md).
    for kind in ["InternalIP", "ExternalIP"] {
        let moved =
            format!(r#""status": {{"addresses": [{{"type": "{kind}", "address": "198.51.100.7"}}]}}"#);
        let refused = format!("{:?}", apply(&own, "node1", &moved, "--subresource=status"));
        assert!(refused.contains("does not say where its Node is reached"), "{kind}: {refused}");
    }
    let trace = ["-n", "kube-system", "create", "token", "plumb-trace"];
    let trace = cluster.kubectl_ok(&trace).trim().to_owned();
    for args in [["get", "nodes"], ["get", "secrets"], ["get", "events"]] {
        let said = with(&trace, &args);
        assert!(!said.ok, "the account of traces may {args:?}: {said:?}");
    }
    let said = write(&trace, "node1", "");
    assert!(!said.ok, "the account of traces changes a Node: {said:?}");
}

/// Prints the code and the answer; believes every certificate.
const GET: &str = r#"
import ssl, sys, urllib.error, urllib.request
asked = urllib.request.Request(sys.argv[1], headers={"Authorization": "Bearer " + sys.argv[2]})
try: said = urllib.request.urlopen(asked, timeout=20, context=ssl._create_unverified_context())
except urllib.error.HTTPError as error: said = error
print(said.status, said.read().decode())
"#;

#[test]
fn metrics_are_for_those_whom_rbac_lets_read_them() {
    let cluster = bare(Stack::Single);
    let said = cluster.plumb_install(&["--service-monitor"]);
    assert!(!said.ok && said.err.contains("servicemonitor/plumb: the cluster has no such kind"), "{said:?}");
    let said = cluster.plumb_install(&["--secure-metrics"]);
    assert!(said.ok, "{said:?}");
    for account in ["reader", "stranger"] {
        cluster.kubectl_ok(&["-n", "default", "create", "serviceaccount", account]);
    }
    let url = "--non-resource-url=/metrics";
    cluster.kubectl_ok(&["create", "clusterrole", "metrics-reader", "--verb=get", url]);
    let to = ["--clusterrole=metrics-reader", "--serviceaccount=default:reader"];
    cluster.kubectl_ok(&[&["create", "clusterrolebinding", "metrics-reader"], &to[..]].concat());
    let address = r#"jsonpath={.status.addresses[?(@.type=="InternalIP")].address}"#;
    let address = cluster.kubectl_ok(&["get", "node", "node1", "-o", address]);
    let get = |scheme: &str, account: &str| {
        let token = match account {
            "nobody" => "nobody".to_owned(),
            account => cluster.kubectl_ok(&["-n", "default", "create", "token", account]),
        };
        let url = format!("{scheme}://{}:9475/metrics", address.trim());
        cluster.node_ok("node2", &["python3", "-c", GET, &url, token.trim()])
    };
    for (scheme, account, code, words) in [
        ("http", "reader", "403 ", "by TLS alone"),
        ("https", "nobody", "401 ", "does not confirm the token"),
        ("https", "stranger", "403 ", "system:serviceaccount:default:stranger may not get /metrics"),
        ("https", "reader", "200 ", "plumb_build_info{"),
    ] {
        let said = get(scheme, account);
        assert!(said.starts_with(code) && said.contains(words), "{scheme} {account}: {said}");
    }
    let said = cluster.plumb(&["status"]);
    assert!(said.ok, "{said:?}");
    let said = cluster.plumb(&["uninstall"]);
    assert!(said.ok, "{said:?}");
}
