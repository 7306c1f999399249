//! Further sources: who has the annotation speaks from them, and nobody else; policies see them as they are.

use std::collections::BTreeSet;
use std::time::Duration;

use types::Family;
use types::wire::SOURCES_ANNOTATION;

use super::{GATEWAYS, NODES, NS, OUTSIDE, SERVICE, Siege};
use crate::cluster::{Kubectl, wait_for};

pub const ALLOWED: &str = "198.18.0.0/15,192.168.0.0/16,10.0.0.0/8,2001:db8:18::/48,fd00::/8";
const SOURCE: [&str; 2] = ["198.18.0.7", "2001:db8:18::7"];
/// In a prefix that is granted as a whole.
const OTHER: [&str; 2] = ["198.18.64.9", "2001:db8:18:64::9"];
const PREFIX: [&str; 2] = ["198.18.64.0/24", "2001:db8:18:64::/64"];

pub fn further(siege: &Siege, family: Family) {
    let (source, other) = (family.pick(SOURCE), family.pick(OTHER));
    assert_eq!(outside(siege, "thief1", family, &[source, other]), told(&[]), "without annotation");
    let never = [
        siege.ip("victim2", family),
        siege.ip("victim1", family),
        family.pick(NODES[1]),
        family.pick(SERVICE),
    ];
    let asked = [&[source, family.pick(PREFIX)][..], &never[..]].concat().join(",");
    annotate(siege, "thief1", family, Some(&asked));
    let spoken = outside(siege, "thief1", family, &[&[source, other][..], &never[..]].concat());
    assert_eq!(spoken, told(&[source, other]), "as the annotation says, under these very addresses");
    assert_eq!(outside(siege, "friend1", family, &[source, other]), told(&[]), "by another pod");
    refused(siege, &never);
    if family == Family::V4 {
        misspelt(siege);
        let ask = |pod: &str| siege.python(pod, &format!("ask_gateway({:?}, {source:?})", GATEWAYS[0]));
        assert_eq!(
            (ask("thief1").trim(), ask("friend1").trim()),
            ("answered", "silence"),
            "ARP from {source}"
        );
        // The node remembers who asked; what is tried next looks for neighbours that are no pod's.
        siege.lab.node_ok("node1", &["ip", "neigh", "del", source, "dev", "cni0"]);
    }
    policies(siege, family);
    annotate(siege, "thief1", family, None);
    assert_eq!(outside(siege, "thief1", family, &[source, other]), told(&[]), "after the annotation went");
}

/// What the others' policies and the pod's own say.
fn policies(siege: &Siege, family: Family) {
    let source = family.pick(SOURCE);
    let to = |victim: &str, word: &str| case(word, source, siege.ip(victim, family), "");
    let hears = |victim: &str, word: &str| {
        let case = to(victim, word);
        let seen = siege.seen(&[victim], family, || speak(siege, "thief1", &case));
        seen.contains(word)
    };
    assert!(!hears("victim1", "stranger"), "no policy admits it");
    let block = format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: by-source, namespace: {NS}}}\nspec:\n  \
         podSelector: {{matchLabels: {{role: victim}}}}\n  ingress: [{{from: [{{ipBlock: {{cidr: \"{}\"}}}}]}}]\n",
        types::IpNet::from(source.parse::<std::net::IpAddr>().expect("an address"))
    );
    siege.lab.apply(&block);
    let eventually = |what: &str, is: &dyn Fn() -> bool| {
        wait_for(what, Duration::from_secs(30), || is().then_some(()).ok_or_else(|| "not yet".to_owned()));
    };
    eventually("a policy by the source on the same node", &|| hears("victim1", "by-source"));
    // There it has the address of the tunnel.
    assert!(!hears("victim2", "across"), "a policy by the source on another node");
    siege.lab.kubectl_ok(&["-n", NS, "delete", "networkpolicy", "by-source"]);
    let label =
        |label: &str| _ = siege.lab.kubectl_ok(&["-n", NS, "label", "--overwrite", "pod", "thief1", label]);
    label("quiet=yes");
    eventually("its own policy for what it sends", &|| {
        outside(siege, "thief1", family, &[source]).is_empty()
    });
    label("quiet-");
    eventually("its policy is away", &|| !outside(siege, "thief1", family, &[source]).is_empty());
}

fn case(word: &str, source: &str, to: &str, mac: &str) -> String {
    format!("({word:?},{source:?},{to:?},{mac:?})")
}

fn speak(siege: &Siege, pod: &str, cases: &str) {
    siege.python(pod, &format!("speak({:?}, [{cases}])", GATEWAYS[0]));
}

/// What the outside hears of a pod that sends from these, with its own MAC and with another: the words, and under which
/// sources.
fn outside(siege: &Siege, pod: &str, family: Family, sources: &[&str]) -> BTreeSet<String> {
    let to = family.pick(OUTSIDE);
    let cases: Vec<String> = sources
        .iter()
        .flat_map(|source| {
            let other = siege.mac("friend1");
            let framed = if pod == "friend1" { siege.mac("thief1") } else { other };
            [case(&word(source), source, to, ""), case(&format!("mac-{}", word(source)), source, to, &framed)]
        })
        .collect();
    let heard = siege.begin(siege.outside_command(), "sources()");
    speak(siege, pod, &cases.join(","));
    let words = heard.words(|| siege.end("friend2", to, 9001));
    let (end, heard): (BTreeSet<_>, BTreeSet<_>) =
        words.into_iter().partition(|line| line.starts_with("END "));
    assert!(!end.is_empty(), "the honest packet did not arrive");
    heard
}

fn word(source: &str) -> String {
    format!("as-{source}")
}

fn told(sources: &[&str]) -> BTreeSet<String> {
    sources.iter().map(|source| format!("{} from {source}", word(source))).collect()
}

/// And waits until its node has it.
fn annotate(siege: &Siege, pod: &str, family: Family, sources: Option<&str>) {
    let change = match sources {
        Some(sources) => format!("{SOURCES_ANNOTATION}={sources}"),
        None => format!("{SOURCES_ANNOTATION}-"),
    };
    siege.lab.kubectl_ok(&["-n", NS, "annotate", "--overwrite", "pod", pod, &change]);
    let chain = format!("chain {}_veth", family.pick(["further4", "further6"]));
    wait_for("the node follows the annotation", Duration::from_secs(30), || {
        let table = siege.lab.node_ok("node1", &["nft", "list", "table", "bridge", "plumb"]);
        (table.contains(&chain) == sources.is_some()).then_some(()).ok_or_else(|| "not yet".to_owned())
    });
}

fn refused(siege: &Siege, never: &[&str]) {
    wait_for("Events name what is refused, and why", Duration::from_secs(30), || {
        let events = siege.lab.get(&["-n", NS, "events", "--field-selector", "involvedObject.name=thief1"]);
        let events = events["items"].as_array().expect("a list").iter();
        let said: Vec<String> = events.map(|event| event["message"].to_string()).collect();
        let missing = never.iter().find(|address| {
            let about = format!("may not send from {address}/");
            !said.iter().any(|message| message.contains(&about) && message.contains("which "))
        });
        missing.map_or(Ok(()), |address| Err(format!("nothing about {address}: {said:#?}")))
    });
}

/// The agent of the pod's node tells of it, where `describe` shows it, and no other does.
fn misspelt(siege: &Siege) {
    siege.lab.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: misspelt, namespace: {NS}, annotations: \
         {{{SOURCES_ANNOTATION}: 198.18.0.x}}}}\nspec: {{nodeName: node2, terminationGracePeriodSeconds: 0, \
         containers: [{{name: c, image: host, command: [sleep, \"1000\"]}}]}}\n"
    ));
    wait_for("describe shows what cannot be read", Duration::from_secs(30), || {
        let described = siege.lab.kubectl_ok(&["-n", NS, "describe", "pod", "misspelt"]);
        described.contains("InvalidField").then_some(()).ok_or(described)
    });
    let mut told =
        vec!["-n", NS, "get", "events", "-o", "jsonpath={.items[*].source.host}", "--field-selector"];
    told.push("involvedObject.name=misspelt,reason=InvalidField");
    assert_eq!(siege.lab.kubectl_ok(&told).trim(), "node2");
    siege.lab.kubectl_ok(&["-n", NS, "delete", "pod", "misspelt"]);
}
