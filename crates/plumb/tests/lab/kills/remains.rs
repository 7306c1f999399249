//! What a lab holds at rest, to see that nothing has leaked.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::cluster::{Lab, wait_for};

/// Lines, each with how often it occurs, by where they are from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remains(BTreeMap<String, u32>);

/// Asked in each node; ids that change with a process are no part of the answers.
const QUESTIONS: [(&str, &str); 8] = [
    ("link", "ip -o link | sed 's/^[0-9]*: //; s/@if[0-9]*//; s/link-netns.*//'"),
    ("route", "ip -4 route show table all"),
    ("rule", "ip rule"),
    ("fdb", "bridge fdb show | grep -v self; bridge fdb show dev plumb.1"),
    ("neighbour", "ip neigh show nud permanent"),
    ("nft", "nft list ruleset | sed 's/packets [0-9]* bytes [0-9]*//'"),
    ("file", "find /run /etc/cni /var/lib/plumb ! -name '*.log*'"),
    ("mount", "cut -d' ' -f4,5 /proc/self/mountinfo"),
];

impl Remains {
    pub fn of(lab: &Lab) -> Self {
        let mut lines = BTreeMap::new();
        let mut count = |line: String| *lines.entry(line).or_default() += 1;
        for node in ["node1", "node2"] {
            for (what, script) in QUESTIONS {
                let out = lab.node_ok(node, &["sh", "-c", script]);
                // Elements of a set come in any order and are wrapped anywhere: each is a line of its own.
                let parts: Vec<&str> = if what == "nft" {
                    out.split([',', '\n', '{', '}']).collect()
                } else {
                    out.lines().collect()
                };
                parts
                    .iter()
                    .map(|part| part.split_whitespace().collect::<Vec<_>>().join(" "))
                    .filter(|part| !part.is_empty())
                    .for_each(|part| count(format!("{node} {what}: {part}")));
            }
            addresses(lab, node).into_iter().for_each(|line| count(format!("{node} address: {line}")));
        }
        processes(lab).into_iter().for_each(|line| count(format!("process: {line}")));
        Self(lines)
    }

    /// Waits until all is as it was in `self`.
    pub fn wait_for_same(&self, lab: &Lab) {
        wait_for("everything is as before the kills", Duration::from_secs(60), || {
            let now = Self::of(lab);
            let differ = |line: &&String| self.0.get(*line) != now.0.get(*line);
            let mut all: Vec<&String> = self.0.keys().chain(now.0.keys()).filter(differ).collect();
            all.sort();
            all.dedup();
            let count = |remains: &Self, line: &String| remains.0.get(line).copied().unwrap_or_default();
            let said: Vec<String> = all
                .iter()
                .map(|line| format!("{} → {}  {line}", count(self, line), count(&now, line)))
                .collect();
            if said.is_empty() { Ok(()) } else { Err(format!("\n{}", said.join("\n"))) }
        });
    }
}

/// What the agent has given out.
fn addresses(lab: &Lab, node: &str) -> Vec<String> {
    let text = lab.node_ok(node, &["sh", "-c", "cat /var/lib/plumb/attachments-*.json"]);
    let store: serde_json::Value =
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let records = store["records"].as_object().expect("records");
    let pools = store["pools"].as_array().filter(|pools| !pools.is_empty());
    let pools = pools.unwrap_or_else(|| panic!("no pools: {text}"));
    let leases = pools.iter().flat_map(|pool| {
        let leases = pool["leases"].as_object().unwrap_or_else(|| panic!("no leases: {text}"));
        leases.keys()
    });
    records
        .values()
        .map(|record| format!("{} {}", record["pod"], record["ips"]))
        .chain(leases.map(|lease| format!("lease of {lease}")))
        .collect()
}

/// Every process of the lab by its words, but for what this question itself starts.
fn processes(lab: &Lab) -> Vec<String> {
    let script = "for dir in /proc/[0-9]*; do tr '\\0' ' ' < $dir/cmdline 2>/dev/null && echo; done";
    let out = lab.node_ok("node1", &["sh", "-c", script]);
    out.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with("tr ") && !line.starts_with("sh -c"))
        .map(str::to_owned)
        .collect()
}
