//! Names as a pod asks for them, by its own resolv.conf: Services with and without an address of their own, ports,
//! pods, aliases, and the way back from addresses.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::cluster::{Cluster, Kubectl, Namespace, pod, server};

on_each_stack!(
    a_service_is_found_by_every_form_of_its_name,
    a_headless_service_is_its_pods,
    pods_have_names_of_their_own,
    an_external_name_is_an_alias,
    a_pod_in_the_hosts_network_may_ask_the_cluster,
);

fn echo(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  selector: {{app: echo}}\n  ipFamilyPolicy: \
         PreferDualStack\n  ports: [{{name: http, port: 8080}}, {{name: gram, port: 9001, protocol: UDP}}]\n{spec}"
    )
}

/// The data of all records of the answer; the search ends at the first name that has any.
fn records(ns: &Namespace<'_>, from: &str, name: &str, kind: &str) -> Result<BTreeSet<String>, String> {
    let said = ns.demo(from, &["dns", name, kind]);
    // Names that do not exist are told by the exit code; a server that is silent is no answer.
    if said.err.contains("plumb: ") {
        return Err(format!("{said:?}"));
    }
    let lines = said.out.lines().filter_map(|line| line.strip_prefix("   "));
    let data = |line: &str| line.split_whitespace().skip(2).map(str::to_owned).reduce(join);
    Ok(lines.filter_map(data).collect())
}

fn join(left: String, right: String) -> String {
    left + " " + &right
}

/// Waits until the answer is this, names without their last dot; none at all, if nothing is named.
#[track_caller]
fn becomes(ns: &Namespace<'_>, from: &str, (name, kind): (&str, &str), want: &[String]) {
    let want: BTreeSet<String> = want.iter().map(|data| data.trim_end_matches('.').to_owned()).collect();
    ns.cluster.wait_for(&format!("{from}: {name} {kind} is {want:?}"), || {
        let have = records(ns, from, name, kind)?;
        if have == want { Ok(()) } else { Err(format!("{have:?}")) }
    });
}

/// `A …` and `AAAA …` of addresses, by the kind.
fn of_kind(addresses: &[String], kind: &str) -> Vec<String> {
    let fits = |address: &&String| address.contains(':') == (kind == "AAAA");
    addresses.iter().filter(fits).map(|address| format!("{kind} {address}")).collect()
}

/// Both kinds; the one that there is no address of is answered too, with nothing.
#[track_caller]
fn addresses_become(ns: &Namespace<'_>, from: &str, name: &str, addresses: &[String]) {
    for kind in ["A", "AAAA"] {
        becomes(ns, from, (name, kind), &of_kind(addresses, kind));
    }
}

/// The name that PTR records of an address have.
fn reverse(address: &str) -> String {
    match address.parse().unwrap_or_else(|e| panic!("{address}: {e}")) {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa.")
        }
        IpAddr::V6(address) => {
            let digits = address.octets().into_iter().rev().flat_map(|byte| [byte & 15, byte >> 4]);
            digits.map(|digit| format!("{digit:x}.")).collect::<String>() + "ip6.arpa."
        }
    }
}

fn a_service_is_found_by_every_form_of_its_name(cluster: &Cluster) {
    let ns = cluster.namespace("forms");
    ns.apply(&[&echo("echo", ""), &server("client1", "node1"), &server("client2", "node2")]);
    ns.wait_ready();
    let (own, addresses) = (&ns.name, ns.service_ips("echo"));
    let zone = format!("{own}.svc.cluster.local.");
    for client in ["client1", "client2"] {
        for name in
            ["echo".to_owned(), format!("echo.{own}"), format!("echo.{own}.svc"), format!("echo.{zone}")]
        {
            addresses_become(&ns, client, &name, &addresses);
        }
        // One of the two is at least in every cluster; its name is the same everywhere.
        addresses_become(&ns, client, "kubernetes.default", &["10.96.0.1".to_owned()]);
        for (port, number) in [("_http._tcp", 8080), ("_gram._udp", 9001)] {
            let name = format!("{port}.echo.{zone}");
            ns.cluster.wait_for(&name, || {
                let have = records(&ns, client, &name, "SRV")?;
                let (begin, end) = ("SRV 0 ", format!(" {number} echo.{}", zone.trim_end_matches('.')));
                let right =
                    have.len() == 1 && have.iter().all(|it| it.starts_with(begin) && it.ends_with(&end));
                if right { Ok(()) } else { Err(format!("{have:?}, not …{end}")) }
            });
        }
        becomes(&ns, client, (&format!("_gram._tcp.echo.{zone}"), "SRV"), &[]);
        for address in &addresses {
            becomes(&ns, client, (&reverse(address), "PTR"), &[format!("PTR echo.{zone}")]);
        }
    }
    // The kubelet names one server to pods; the other is there for whoever asks it.
    for server in cluster.dns_ips() {
        for address in &addresses {
            let kind = if address.contains(':') { "AAAA" } else { "A" };
            let query = ["dns", &format!("echo.{zone}"), kind, "--server", server];
            let said = ns.until_demo("client2", &query);
            assert!(said.contains(&format!("{kind} {address}")), "{query:?}: {said}");
        }
    }
    ns.kubectl_ok(&["delete", "service", "echo"]);
    addresses_become(&ns, "client1", "echo", &[]);
    ns.apply(&[&echo("echo", "")]);
    addresses_become(&ns, "client2", "echo", &ns.service_ips("echo"));
}

fn a_headless_service_is_its_pods(cluster: &Cluster) {
    let ns = cluster.namespace("headless");
    ns.apply(&[
        &echo("peers", "  clusterIP: None\n"),
        &server("echo1", "node1"),
        &server("client1", "node1"),
    ]);
    ns.wait_ready();
    addresses_become(&ns, "client1", "peers", &ns.pod_ips("echo1"));
    ns.apply(&[&server("echo2", "node2")]);
    ns.wait_ready();
    let all = [ns.pod_ips("echo1"), ns.pod_ips("echo2")].concat();
    addresses_become(&ns, "client1", "peers", &all);
    let name = format!("_http._tcp.peers.{}.svc.cluster.local.", ns.name);
    ns.cluster.wait_for("a target for every address", || {
        let targets = records(&ns, "client1", &name, "SRV")?;
        let mut found = BTreeSet::new();
        for target in targets.iter().filter_map(|record| record.split(' ').nth(4)) {
            found.extend(records(&ns, "client1", target, "A")?);
            found.extend(records(&ns, "client1", target, "AAAA")?);
        }
        let want: BTreeSet<String> =
            [of_kind(&all, "A"), of_kind(&all, "AAAA")].concat().into_iter().collect();
        if found == want { Ok(()) } else { Err(format!("{targets:?} lead to {found:?}, not {want:?}")) }
    });
    ns.kill("echo1");
    addresses_become(&ns, "client1", "peers", &ns.pod_ips("echo2"));
    ns.kill("echo2");
    addresses_become(&ns, "client1", "peers", &[]);
}

fn pods_have_names_of_their_own(cluster: &Cluster) {
    let ns = cluster.namespace("own-names");
    let spec = "nodeName: node2\n  hostname: first\n  subdomain: peers";
    ns.apply(&[
        &echo("peers", "  clusterIP: None\n"),
        &pod("echo1", spec, r#"serve, --http, "8080", --udp, "9001""#),
        &server("client1", "node1"),
    ]);
    ns.wait_ready();
    let addresses = ns.pod_ips("echo1");
    let full = format!("first.peers.{}.svc.cluster.local", ns.name);
    addresses_become(&ns, "client1", "first.peers", &addresses);
    addresses_become(&ns, "client1", &format!("{full}."), &addresses);
    addresses_become(&ns, "client1", "second.peers", &[]);
    for address in &addresses {
        becomes(&ns, "client1", (&reverse(address), "PTR"), &[format!("PTR {full}.")]);
        let dashed = format!("{}.{}.pod.cluster.local.", address.replace(['.', ':'], "-"), ns.name);
        addresses_become(&ns, "client1", &dashed, std::slice::from_ref(address));
    }
    // What the pod itself is told (by kubelet, in /etc/hosts) is what everybody else is told.
    assert_eq!(ns.exec("echo1", &["busybox", "hostname", "-f"]).out.trim(), full);
    assert!(ns.until_demo("client1", &["get", "http://first.peers:8080/"]).contains("name=first "));
}

fn an_external_name_is_an_alias(cluster: &Cluster) {
    let ns = cluster.namespace("alias");
    let zone = format!("{}.svc.cluster.local", ns.name);
    let alias = |target: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: alias}}\nspec: {{type: ExternalName, externalName: {target}}}\n"
        )
    };
    ns.apply(&[&alias("one.example.com"), &echo("echo", ""), &server("client1", "node2")]);
    ns.wait_ready();
    becomes(&ns, "client1", ("alias", "CNAME"), &["CNAME one.example.com.".to_owned()]);
    ns.apply(&[&alias("two.example.com")]);
    becomes(&ns, "client1", ("alias", "CNAME"), &["CNAME two.example.com.".to_owned()]);
    // Within the cluster the answer goes on to the address. Where there is none of this kind, the alias is still the
    // answer's first part (RFC 1034, section 3.6.2), which CoreDNS leaves out.
    ns.apply(&[&alias(&format!("echo.{zone}"))]);
    let itself = format!("CNAME echo.{zone}");
    for kind in ["A", "AAAA"] {
        let addresses: BTreeSet<String> = of_kind(&ns.service_ips("echo"), kind).into_iter().collect();
        ns.cluster.wait_for(&format!("alias {kind} leads to {addresses:?}"), || {
            let mut have = records(&ns, "client1", "alias", kind)?;
            let led = have.remove(&itself) || addresses.is_empty();
            if led && have == addresses { Ok(()) } else { Err(format!("{have:?}")) }
        });
    }
    ns.kubectl_ok(&["delete", "service", "alias"]);
    becomes(&ns, "client1", ("alias", "CNAME"), &[]);
}

fn a_pod_in_the_hosts_network_may_ask_the_cluster(cluster: &Cluster) {
    let ns = cluster.namespace("host-asks");
    let spec = "nodeName: node2\n  hostNetwork: true\n  dnsPolicy: ClusterFirstWithHostNet";
    ns.apply(&[
        &echo("echo", ""),
        &pod("host1", spec, r#"serve, --http, "18090""#),
        &server("echo1", "node1"),
    ]);
    ns.wait_ready();
    addresses_become(&ns, "host1", "echo", &ns.service_ips("echo"));
    assert!(ns.until_demo("host1", &["get", "http://echo:8080/"]).contains("name=echo1 "));
}
