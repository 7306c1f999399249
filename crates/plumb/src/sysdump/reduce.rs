//! What of an object goes into an archive: a list of what may, never one of what may not. What was left out and is
//! long enough to be a secret is blotted out of every text, since it may have come into a log or an Event.

use std::collections::BTreeSet;

use aho_corasick::{AhoCorasick, MatchKind};
use anyhow::{Context, Result};
use serde_json::{Map, Value};

/// Paths by kind; `*` steps into every element of a list. A path keeps everything below it.
const POD: &[&str] = &[
    "spec.nodeName",
    "spec.hostNetwork",
    "spec.dnsPolicy",
    "spec.dnsConfig",
    "spec.hostname",
    "spec.subdomain",
    "spec.containers.*.name",
    "spec.containers.*.image",
    "spec.containers.*.ports",
    "status.phase",
    "status.podIP",
    "status.podIPs",
    "status.hostIP",
    "status.hostIPs",
    "status.startTime",
    "status.conditions.*.type",
    "status.conditions.*.status",
    "status.conditions.*.reason",
    "status.containerStatuses.*.name",
    "status.containerStatuses.*.ready",
    "status.containerStatuses.*.restartCount",
    "status.containerStatuses.*.state.waiting.reason",
];
const NODE: &[&str] = &[
    "spec.podCIDR",
    "spec.podCIDRs",
    "spec.taints",
    "spec.unschedulable",
    "status.addresses",
    "status.nodeInfo",
    "status.conditions.*.type",
    "status.conditions.*.status",
    "status.conditions.*.reason",
];
const WHOLE: &[&str] = &["spec", "status"];
const SLICE: &[&str] = &["addressType", "endpoints", "ports"];
const EVENT: &[&str] =
    &["involvedObject", "reason", "message", "type", "source", "count", "firstTimestamp", "lastTimestamp"];
const METADATA: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "metadata.resourceVersion",
    "metadata.generation",
    "metadata.creationTimestamp",
    "metadata.deletionTimestamp",
    "metadata.labels",
    "metadata.ownerReferences",
    "metadata.finalizers",
    "metadata.annotations.plumb.dev/vtep-mac",
];

/// The kept part. Events of others are no business of ours; `None` leaves the object out.
pub fn reduce(kind: &str, object: &Value, blots: &mut Blots) -> Option<Value> {
    let paths = match kind {
        "pods" => POD,
        "nodes" => NODE,
        "endpointslices" => SLICE,
        "events" => EVENT,
        "namespaces" => &[],
        _ => WHOLE,
    };
    if kind == "events" {
        let component = object["source"]["component"].as_str().unwrap_or_default();
        let about_network =
            ["FailedCreatePodSandBox", "NetworkNotReady"].iter().any(|r| object["reason"] == *r);
        if !component.starts_with("plumb") && !about_network {
            return None;
        }
    }
    for name in ["name", "namespace"] {
        blots.names.extend(object["metadata"][name].as_str().map(str::to_owned));
    }
    let kept = |path: &str| METADATA.iter().chain(paths).any(|known| *known == path);
    let leads = |path: &str| METADATA.iter().chain(paths).any(|known| known.starts_with(&format!("{path}.")));
    Some(walk(object, "", &(&kept, &leads), blots))
}

type Rules<'a> = (&'a dyn Fn(&str) -> bool, &'a dyn Fn(&str) -> bool);

fn walk(value: &Value, path: &str, rules: &Rules<'_>, blots: &mut Blots) -> Value {
    let join = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match value {
        Value::Object(map) => {
            let mut rest = Map::new();
            for (key, inner) in map {
                let path = join(key);
                if rules.0(&path) {
                    rest.insert(key.clone(), inner.clone());
                } else if rules.1(&path) {
                    rest.insert(key.clone(), walk(inner, &path, rules, blots));
                } else {
                    search(inner, &path, blots);
                }
            }
            Value::Object(rest)
        }
        Value::Array(list) => list.iter().map(|inner| walk(inner, &join("*"), rules, blots)).collect(),
        // A word on the way to something deeper is nothing that was asked for.
        _ => Value::Null,
    }
}

/// What was left out may hold a secret at any depth: the environment of an init container, say.
fn search(value: &Value, path: &str, blots: &mut Blots) {
    match value {
        _ if is_secretive(path) => blots.learn(value),
        Value::Object(map) => {
            map.iter().for_each(|(key, inner)| search(inner, &format!("{path}.{key}"), blots));
        }
        Value::Array(list) => list.iter().for_each(|inner| search(inner, path, blots)),
        _ => {}
    }
}

/// Where people put secrets that other texts might repeat; times, addresses and images are no secrets.
fn is_secretive(path: &str) -> bool {
    ["env", "args", "command", "annotations", "message", "httpHeaders"].iter().any(|word| path.contains(word))
}

/// Words that must not be in the archive.
#[derive(Debug, Default)]
pub struct Blots {
    words: BTreeSet<String>,
    /// Of objects in the archive. They come up in arguments and annotations, and are no secrets.
    names: BTreeSet<String>,
}

/// A shorter value is blotted out by nobody's wish: `8080` or `true` would take half of the archive along.
const SHORTEST: usize = 8;
const BLOT: &str = "(left out)";

impl Blots {
    /// The whole value, what follows a `=` in it, and every word of it.
    fn learn(&mut self, value: &Value) {
        match value {
            Value::Object(map) => {
                let names = ["name", "fieldPath", "apiVersion", "key", "kind"];
                map.iter()
                    .filter(|(key, _)| !names.contains(&key.as_str()))
                    .for_each(|(_, inner)| self.learn(inner));
            }
            Value::Array(list) => list.iter().for_each(|inner| self.learn(inner)),
            Value::String(text) => {
                // An annotation of kubectl's holds a whole object.
                if let Ok(inner @ Value::Object(_)) = serde_json::from_str(text) {
                    return self.learn(&inner);
                }
                let words = text.split(|c: char| c.is_whitespace() || "=,;'\"&?".contains(c));
                let value = text.split_once('=').map(|(_, value)| value.trim());
                let all = words.chain([text.trim()]).chain(value);
                self.words.extend(all.filter(|word| is_likely_secret(word)).map(str::to_owned));
            }
            _ => {}
        }
    }

    /// What takes them out of a text, once every object was seen.
    pub fn eraser(&self) -> Result<Eraser> {
        let words: Vec<&String> = self.words.difference(&self.names).collect();
        // One may hold another.
        let found = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&words);
        Ok(Eraser { blots: vec![BLOT; words.len()], words: found.context("look for all secrets at once")? })
    }
}

/// Finds every word in one pass: thousands of words would else read megabytes thousands of times.
#[derive(Debug)]
pub struct Eraser {
    words: AhoCorasick,
    blots: Vec<&'static str>,
}

impl Eraser {
    /// The text without what was left out, without tokens and private keys.
    pub fn apply(&self, text: &str) -> String {
        let text = self.words.replace_all(text, &self.blots);
        keys(&text).split_inclusive(char::is_whitespace).map(token).collect()
    }
}

/// Letters and digits, or long: neither a plain word nor an address nor a name with dots.
fn is_likely_secret(word: &str) -> bool {
    let has = |of: fn(&char) -> bool| word.chars().any(|c| of(&c));
    let mixed = has(char::is_ascii_digit) && has(char::is_ascii_alphabetic);
    let of_ip = word.parse::<std::net::IpAddr>().is_ok() || word.parse::<types::IpNet>().is_ok();
    let address = of_ip || word.parse::<types::Mac>().is_ok();
    word.len() >= SHORTEST && !address && !is_server(word) && (mixed || word.len() >= 24)
}

/// `https://192.0.2.10:6443`, without a user or a path in which more might be said.
fn is_server(word: &str) -> bool {
    let rest = word.strip_prefix("https://").or_else(|| word.strip_prefix("http://"));
    rest.is_some_and(|rest| rest.trim_end_matches('/').parse::<std::net::SocketAddr>().is_ok())
}

/// A JSON Web Token begins with `{"`, which is `eyJ` in base64.
fn token(word: &str) -> String {
    match word.find("eyJ") {
        Some(at) if word.matches('.').count() >= 2 => {
            let end = word.len() - word.chars().rev().take_while(|c| c.is_whitespace()).count();
            format!("{}{BLOT}{}", word.get(..at).unwrap_or_default(), word.get(end..).unwrap_or_default())
        }
        _ => word.to_owned(),
    }
}

/// PEM blocks of private keys (RFC 7468).
fn keys(text: &str) -> String {
    let mut rest = text;
    let mut kept = String::new();
    while let Some((before, after)) = rest.split_once("-----BEGIN") {
        kept += before;
        let end = after.split_once("-----END").and_then(|(_, tail)| tail.split_once("-----"));
        kept += BLOT;
        rest = end.map_or("", |(_, tail)| tail);
        if let Some(tail) = rest.strip_prefix("----") {
            rest = tail;
        }
    }
    kept + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const SECRET: &str = "hunter2-Sesame-42";

    #[test]
    fn a_pod_is_cut_to_what_the_network_needs() {
        let applied = format!("{{\"spec\":{{\"x\":\"{SECRET}-applied\"}}}}");
        let pod = json!({
            "metadata": {"name": "p", "labels": {"app": "web"}, "annotations": {
                "kubectl.kubernetes.io/last-applied-configuration": applied, "note": SECRET}},
            "spec": {"nodeName": "node1", "containers": [{"name": "c", "image": "i", "args": [format!("--password={SECRET}1")],
                "env": [{"name": "PASSWORD", "value": SECRET}]}],
                "initContainers": [{"name": "i", "env": [{"name": "KEY", "value": "a;b=hunter2"}]}]},
            "status": {"podIP": "10.244.1.2", "message": SECRET},
        });
        let mut blots = Blots::default();
        let kept = reduce("pods", &pod, &mut blots).unwrap();
        assert_eq!(
            kept,
            json!({
                "metadata": {"name": "p", "labels": {"app": "web"}, "annotations": {}},
                "spec": {"nodeName": "node1", "containers": [{"name": "c", "image": "i"}]},
                "status": {"podIP": "10.244.1.2"},
            })
        );
        let log = format!(
            "init a;b=hunter2, env {SECRET}, arg {SECRET}1, applied {SECRET}-applied, node1 10.244.1.2"
        );
        let blotted = blots.eraser().unwrap().apply(&log);
        assert!(!blotted.contains("hunter2") && blotted.ends_with("node1 10.244.1.2"), "{blotted}");
    }

    #[test]
    fn tokens_and_keys_are_blotted_out_wherever_they_are() {
        let text = "Bearer eyJhbGciOi.eyJpc3Mi.c2ln\nnext -----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY-----\nend";
        let blotted = Blots::default().eraser().unwrap().apply(text);
        assert!(!blotted.contains("c2ln") && !blotted.contains("MII"), "{blotted}");
        assert!(blotted.contains("\nnext ") && blotted.ends_with("end"), "{blotted}");
    }

    #[test]
    fn a_name_that_comes_up_in_an_argument_stays() {
        let mut blots = Blots::default();
        let containers = json!([{"args": ["--name=ip-10-0-1-23", "--key=hunter2-Sesame"]}]);
        let pod = json!({"metadata": {"name": "etcd"}, "spec": {"containers": containers}});
        reduce("pods", &pod, &mut blots).unwrap();
        reduce("nodes", &json!({"metadata": {"name": "ip-10-0-1-23"}}), &mut blots).unwrap();
        assert_eq!(blots.eraser().unwrap().apply("ip-10-0-1-23 hunter2-Sesame"), "ip-10-0-1-23 (left out)");
    }

    #[test]
    fn words_that_are_no_secrets_stay() {
        let mut blots = Blots::default();
        blots.learn(
            &json!([{"name": "PORT", "value": "8080"}, {"name": "H", "value": "192.168.1.10"}, "payments",
                {"name": "S", "value": "https://192.168.1.2:6443,https://[fd00::1]:6443"}]),
        );
        // A network of Multus' says a pod's hardware address in an annotation.
        blots.learn(&json!("mac 0a:58:0a:f4:01:02"));
        let text =
            "8080 192.168.1.10 payments https://192.168.1.2:6443 https://[fd00::1]:6443 0a:58:0a:f4:01:02";
        assert_eq!(blots.eraser().unwrap().apply(text), text);
        blots.learn(&json!("https://me:hunter2@192.168.1.2:6443"));
        assert_eq!(blots.eraser().unwrap().apply("to https://me:hunter2@192.168.1.2:6443"), "to (left out)");
    }
}
