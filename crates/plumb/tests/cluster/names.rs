//! Names of the cluster, as the DNS specification has them, asked on a node and from pods.

use std::collections::{BTreeMap, BTreeSet};

use crate::cluster::{self, Cluster, pod};

/// Code, AA, and the records of each section, in an order of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Answer {
    code: String,
    authoritative: bool,
    sections: BTreeMap<String, BTreeSet<String>>,
}

/// Asks everything in one dig, which answers in order.
fn ask(cluster: &Cluster, node: &str, server: &[&str], queries: &[(String, &str)]) -> Vec<Answer> {
    let mut command = vec!["in", node, "dig"];
    command.extend(server);
    command.extend(["+nocmd", "+nostats", "+noquestion", "+tries=2", "+timeout=10", "+noidnin"]);
    for (name, kind) in queries {
        command.extend([name.as_str(), kind]);
    }
    let said = cluster.tool_ok(&command);
    let answers: Vec<Answer> = said.split(";; ->>HEADER<<-").skip(1).map(read).collect();
    assert_eq!(answers.len(), queries.len(), "{said}");
    answers
}

fn read(text: &str) -> Answer {
    let mut answer = Answer::default();
    let mut section = String::new();
    for line in text.lines() {
        if let Some(rest) = line.split("status: ").nth(1) {
            answer.code = rest.split(',').next().unwrap_or_default().to_owned();
        } else if let Some(flags) = line.strip_prefix(";; flags:") {
            answer.authoritative = flags.split(';').next().is_some_and(|flags| flags.contains(" aa"));
        } else if let Some(name) = line.strip_prefix(";; ").and_then(|line| line.strip_suffix(" SECTION:")) {
            section = name.to_owned();
        } else if !line.is_empty() && !line.starts_with(';') {
            let mut words: Vec<&str> = line.split_whitespace().collect();
            // The serial is each server's own clock.
            if words.get(3) == Some(&"SOA") && words.len() > 6 {
                words[6] = "SERIAL";
            }
            answer.sections.entry(section.clone()).or_default().insert(words.join(" "));
        }
    }
    answer
}

/// A pod that is not ready is found by the name of a Service that publishes it, and by its own name below it; the
/// search list of its resolv.conf leads there (DNS-05, DNS-09).
#[test]
fn pods_have_names_below_their_headless_services() {
    let ns = cluster::single().namespace("hostnames");
    let service = |name: &str, publish: bool| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: None, selector: {{app: db}}, \
             publishNotReadyAddresses: {publish}, ports: [{{name: http, port: 8080}}]}}\n"
        )
    };
    let spec =
        |n: u32, more: &str| format!("nodeName: node{n}\n  hostname: db-{n}\n  subdomain: early{more}");
    let args = r#"serve, --http, "8080""#;
    // The second one waits for a gate that nobody opens: it runs and is never ready.
    let gate = "\n  readinessGates: [{conditionType: plumb.test/never}]";
    ns.apply(&[
        &service("early", true),
        &service("ready", false),
        &pod("db1", &spec(1, ""), args),
        &pod("db2", &spec(2, gate), args),
        &crate::cluster::server("client", "node2"),
    ]);
    ns.wait_ready_of("db1");
    ns.wait_ready_of("client");
    for pod in ["db1", "db2"] {
        let name = pod.replace("db", "db-");
        let said = ns.until_demo("client", &["get", &format!("http://{name}.early:8080/")]);
        assert!(said.contains(&format!("name={name} ")) || said.contains(&format!("name={pod} ")), "{said}");
    }
    let only = ns.pod_ip("db1");
    let zone = format!("{}.svc.cluster.local", ns.name);
    let asked =
        [(format!("early.{zone}"), "A"), (format!("ready.{zone}"), "A"), (format!("db-2.ready.{zone}"), "A")];
    ns.cluster.wait_for("who is not ready has no name where that counts", || {
        let answers = ask(ns.cluster, "node1", &["@10.96.0.10"], &asked);
        let count = |answer: &Answer| answer.sections.get("ANSWER").map_or(0, BTreeSet::len);
        let alone =
            answers[1].sections.get("ANSWER").is_some_and(|all| all.iter().all(|one| one.contains(&only)));
        let right = (count(&answers[0]), count(&answers[1]), count(&answers[2])) == (2, 1, 0) && alone;
        if right { Ok(()) } else { Err(format!("{answers:?}")) }
    });
}
