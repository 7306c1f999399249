//! Names of the cluster, as the DNS specification has them and as real CoreDNS answers them: the same objects, the same
//! queries, both servers.

use std::collections::{BTreeMap, BTreeSet};

use crate::cluster::{Cluster, Namespace, pod, repository, run, server};

on_each_stack!(coredns_answers_the_same_queries_alike, pods_have_names_below_their_headless_services,);

/// No pods: slices by hand say everything, so that both servers see the same endpoints at the same time.
const OBJECTS: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {ipFamilyPolicy: PreferDualStack, ports: [{name: http, port: 80}, {name: dns, port: 53, protocol: UDP}, {name: sig, port: 5060, protocol: SCTP}]}
---
apiVersion: v1
kind: Service
metadata: {name: plain}
spec: {ipFamilyPolicy: PreferDualStack, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: hosts}
spec: {clusterIP: None, ipFamilyPolicy: PreferDualStack, ports: [{name: http, port: 80}, {name: pg, port: 5432}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: hosts-4, labels: {kubernetes.io/service-name: hosts}}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}, {name: pg, port: 5432, protocol: TCP}]
endpoints:
- {addresses: [10.9.0.1], hostname: first, conditions: {ready: true}}
- {addresses: [10.9.0.2], hostname: twin, conditions: {ready: true}}
- {addresses: [10.9.0.3], hostname: twin}
- {addresses: [10.9.0.4], conditions: {ready: true, serving: false, terminating: true}}
- {addresses: [10.9.0.5], hostname: late, conditions: {ready: false, serving: true}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: hosts-6, labels: {kubernetes.io/service-name: hosts}}
addressType: IPv6
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints:
- {addresses: ["2001:db8:9::1"], hostname: first}
- {addresses: ["2001:db8:9::"]}
---
apiVersion: v1
kind: Service
metadata: {name: silent}
spec: {clusterIP: None}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: silent-4, labels: {kubernetes.io/service-name: silent}}
addressType: IPv4
endpoints: [{addresses: [10.9.0.9]}]
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec: {clusterIP: None, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: away}
spec: {type: ExternalName, externalName: ext.interwebs.test}
---
apiVersion: v1
kind: Service
metadata: {name: inside}
spec: {type: ExternalName, externalName: "web.NAMESPACE.svc.cluster.local."}
---
apiVersion: v1
kind: Service
metadata: {name: lost}
spec: {type: ExternalName, externalName: gone.NAMESPACE.svc.cluster.local}
"#;

/// What both must answer alike. `@`: the namespace's own zone, `NS.svc.cluster.local`.
const ALIKE: &[(&str, &str)] = &[
    // DNS-01, DNS-02: versions, addresses, the other family.
    ("dns-version.cluster.local", "TXT"),
    ("web.@", "A"),
    ("web.@", "AAAA"),
    ("web.@", "TXT"),
    ("web.@", "MX"),
    ("web.@", "SOA"),
    ("web.@", "NS"),
    ("web.@", "HTTPS"),
    ("plain.@", "A"),
    ("kubernetes.default.svc.cluster.local", "A"),
    // DNS-03: named ports, and the service's own SRV.
    ("_http._tcp.web.@", "SRV"),
    ("_dns._udp.web.@", "SRV"),
    ("_sig._sctp.web.@", "SRV"),
    ("_http._udp.web.@", "SRV"),
    ("_nope._tcp.web.@", "SRV"),
    ("web.@", "SRV"),
    ("plain.@", "SRV"),
    // DNS-05, DNS-06: headless services.
    ("hosts.@", "A"),
    ("hosts.@", "AAAA"),
    ("hosts.@", "TXT"),
    ("hosts.@", "SRV"),
    ("_http._tcp.hosts.@", "SRV"),
    ("_pg._tcp.hosts.@", "SRV"),
    ("first.hosts.@", "A"),
    ("first.hosts.@", "AAAA"),
    ("twin.hosts.@", "A"),
    ("twin.hosts.@", "AAAA"),
    ("10-9-0-4.hosts.@", "A"),
    ("2001-db8-9--0.hosts.@", "AAAA"),
    ("late.hosts.@", "A"),
    ("10-9-0-1.hosts.@", "A"),
    ("silent.@", "A"),
    ("silent.@", "AAAA"),
    ("10-9-0-9.silent.@", "A"),
    ("nobody.@", "A"),
    ("nobody.@", "AAAA"),
    ("_http._tcp.nobody.@", "SRV"),
    // DNS-07: external names.
    ("away.@", "CNAME"),
    ("x.away.@", "A"),
    ("inside.@", "A"),
    ("inside.@", "CNAME"),
    // DNS-08: the case of the question.
    ("wEb.@", "A"),
    ("WEB.@", "AAAA"),
    // DNS-21, table 1.7: what exists and what does not.
    ("cluster.local", "SOA"),
    ("cluster.local", "A"),
    ("cluster.local", "HINFO"),
    ("svc.cluster.local", "A"),
    ("pod.cluster.local", "A"),
    ("@", "A"),
    ("@", "SRV"),
    ("gone.@", "A"),
    ("gone.@", "AAAA"),
    ("a.b.c.web.@", "A"),
    ("x.gone.@", "A"),
    ("foo.cluster.local", "A"),
    ("web.no-such-namespace.svc.cluster.local", "A"),
    ("no-such-namespace.svc.cluster.local", "A"),
    // DNS-24: pods by their address.
    ("10-9-0-1.default.pod.cluster.local", "A"),
    ("10-9-0-1.default.pod.cluster.local", "AAAA"),
    ("fd00--1.default.pod.cluster.local", "AAAA"),
    ("nonsense.default.pod.cluster.local", "A"),
    ("10-9-0-1.no-such-namespace.pod.cluster.local", "A"),
    ("default.pod.cluster.local", "A"),
    // DNS-04, DNS-25: back from addresses.
    ("1.0.96.10.in-addr.arpa", "PTR"),
    ("1.0.9.10.in-addr.arpa", "PTR"),
    ("2.0.9.10.in-addr.arpa", "PTR"),
    ("4.0.9.10.in-addr.arpa", "PTR"),
    ("1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.9.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa", "PTR"),
    ("254.254.96.10.in-addr.arpa", "PTR"),
];

/// Where CoreDNS does what the specification does not ask for, or leaves open, and Plumb does not follow it.
const APART: &[(&str, &str, &str)] = &[
    (
        "dns-version.cluster.local",
        "A",
        "the name is there, so its code is NOERROR; CoreDNS denies it to other types",
    ),
    ("_http._tcp.web.@", "A", "a name of RFC 2782 has no address; CoreDNS gives the service's"),
    ("_tcp.web.@", "A", "a name exists when one below it does (RFC 8020); CoreDNS denies it"),
    ("http.tcp.web.@", "SRV", "without underscores it is no name of RFC 2782; CoreDNS does not look at them"),
    ("lost.@", "A", "the code is that of the alias' target, NXDOMAIN (RFC 6604); CoreDNS hides the alias"),
    ("away.@", "SRV", "an alias answers every type (RFC 1034 3.6.2); CoreDNS answers A, AAAA and CNAME"),
    ("ns.dns.cluster.local", "A", "each names the address that it serves at"),
    ("cluster.local", "NS", "the glue is the address that each serves at"),
];

/// Code, AA, and the records of each section, in an order of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Answer {
    code: String,
    authoritative: bool,
    sections: BTreeMap<String, BTreeSet<String>>,
}

/// Asks everything in one dig, which answers in order.
fn ask(
    cluster: &Cluster,
    node: &str,
    server: &[&str],
    queries: &[(String, &str)],
) -> Result<Vec<Answer>, String> {
    let mut command = vec!["in", node, "dig"];
    command.extend(server);
    command.extend(["+nocmd", "+nostats", "+noquestion", "+tries=2", "+timeout=10", "+noidnin"]);
    for (name, kind) in queries {
        command.extend([name.as_str(), kind]);
    }
    let said = cluster.tool(&command).or_missing()?;
    let answers: Vec<Answer> = said.split(";; ->>HEADER<<-").skip(1).map(read).collect();
    if answers.len() == queries.len() { Ok(answers) } else { Err(said) }
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

fn expand(ns: &Namespace<'_>, name: &str) -> String {
    name.replace('@', &format!("{}.svc.cluster.local", ns.name))
}

/// Real CoreDNS beside the control plane, on port 1053, with the zones that a cluster gives it.
fn coredns(cluster: &Cluster) {
    let said = run(std::process::Command::new(repository("tools/peers.sh")).arg("coredns"));
    assert!(said.ok, "tools/peers.sh coredns: {said:?}");
    let kubeconfig = cluster.directory().join("pki/admin.kubeconfig");
    let corefile = cluster.directory().join("Corefile");
    let text = format!(
        ".:1053 {{\n  kubernetes cluster.local 96.10.in-addr.arpa 9.10.in-addr.arpa ip6.arpa {{\n    kubeconfig {}\n    \
         pods insecure\n    ttl 5\n  }}\n}}\n",
        kubeconfig.display()
    );
    std::fs::write(&corefile, text).unwrap();
    let program = format!("{}/coredns", said.out.trim());
    cluster.tool_ok(&["start", "cp", "coredns", &program, "-conf", &corefile.to_string_lossy()]);
}

fn coredns_answers_the_same_queries_alike(cluster: &Cluster) {
    let ns = cluster.namespace("names");
    let manifests = OBJECTS.replace("NAMESPACE", &ns.name);
    ns.apply(&[&manifests]);
    coredns(cluster);
    for server in cluster.dns_ips() {
        answers_alike(&ns, &format!("@{server}"));
    }
}

fn answers_alike(ns: &Namespace<'_>, server: &str) {
    let cluster = ns.cluster;
    let ours = [server];
    let theirs = ["@127.0.0.1", "-p", "1053"];
    let alike: Vec<_> = ALIKE.iter().map(|(name, kind)| (expand(ns, name), *kind)).collect();
    let mut last = Vec::new();
    cluster.wait_for("both know all objects", || {
        let (ours, theirs) = (ask(cluster, "node1", &ours, &alike)?, ask(cluster, "cp", &theirs, &alike)?);
        last = ours.into_iter().zip(theirs).collect();
        let differ = alike.iter().zip(&last).filter(|(_, (ours, theirs))| ours != theirs);
        let differ: Vec<_> = differ
            .map(|((name, kind), (ours, theirs))| {
                format!("{name} {kind}\n  ours   {ours:?}\n  theirs {theirs:?}\n")
            })
            .collect();
        if differ.is_empty() { Ok(()) } else { Err(format!("{} differ:\n{}", differ.len(), differ.concat())) }
    });
    // Equal is not enough: both could know nothing.
    let answered =
        last.iter().filter(|(ours, _)| ours.code == "NOERROR" && ours.sections.contains_key("ANSWER"));
    assert!(answered.count() >= 30);
    assert!(last.iter().filter(|(ours, _)| ours.code == "NXDOMAIN").count() >= 12);
    // What is said to differ does, or the list would rot.
    let apart: Vec<_> = APART.iter().map(|(name, kind, _)| (expand(ns, name), *kind)).collect();
    let (ours, theirs) =
        (ask(cluster, "node1", &ours, &apart).unwrap(), ask(cluster, "cp", &theirs, &apart).unwrap());
    for (index, (name, kind, why)) in APART.iter().enumerate() {
        assert_ne!(ours[index], theirs[index], "{name} {kind} is alike: {why}");
    }
}

/// A pod that is not ready is found by the name of a Service that publishes it, and by its own name below it; the
/// search list of its resolv.conf leads there (DNS-05, DNS-09).
fn pods_have_names_below_their_headless_services(cluster: &Cluster) {
    let ns = cluster.namespace("hostnames");
    let service = |name: &str, publish: bool| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: None, ipFamilyPolicy: \
             PreferDualStack, selector: {{app: db}}, publishNotReadyAddresses: {publish}, ports: [{{name: http, port: 8080}}]}}\n"
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
        &server("client", "node2"),
    ]);
    ns.wait_ready_of("db1");
    ns.wait_ready_of("client");
    for pod in ["db1", "db2"] {
        let name = pod.replace("db", "db-");
        let said = ns.until_demo("client", &["get", &format!("http://{name}.early:8080/")]);
        assert!(said.contains(&format!("name={name} ")) || said.contains(&format!("name={pod} ")), "{said}");
    }
    let zone = format!("{}.svc.cluster.local", ns.name);
    for only in ns.pod_ips("db1") {
        let kind = if only.contains(':') { "AAAA" } else { "A" };
        let asked = ["early", "ready", "db-2.ready"].map(|name| (format!("{name}.{zone}"), kind));
        let server = format!("@{}", cluster.dns_ips()[0]);
        cluster.wait_for("who is not ready has no name where that counts", || {
            let answers = ask(cluster, "node1", &[&server], &asked)?;
            let count = |answer: &Answer| answer.sections.get("ANSWER").map_or(0, BTreeSet::len);
            let alone = answers[1]
                .sections
                .get("ANSWER")
                .is_some_and(|all| all.iter().all(|one| one.contains(&only)));
            let right = (count(&answers[0]), count(&answers[1]), count(&answers[2])) == (2, 1, 0) && alone;
            if right { Ok(()) } else { Err(format!("{answers:?}")) }
        });
    }
}
