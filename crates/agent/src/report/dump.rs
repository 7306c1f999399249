//! Everything that a maintainer wants to see of one node, as text files by name. No Secret is ever read by an
//! agent, so none can be in here; what else could be one is left out by whoever writes the archive.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::{Context, Result};
use kernel::Rtnl;
use kernel::conntrack::Conntrack;
use netlink::conntrack::Filter;
use serde::{Deserialize, Serialize};
use types::{Family, IfName, Protocol};

use super::Reports;
use crate::actual::{Actual, Drift};
use crate::snapshot::{Desired, Question, Snapshot};

/// Files by name, and what could not be read.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Dump {
    pub files: BTreeMap<String, String>,
    pub failures: Vec<String>,
}

/// The kernel's own view, beside what is ours.
const PROC: [(&str, &str); 7] = [
    ("kernel/version.txt", "/proc/version"),
    ("kernel/snmp.txt", "/proc/net/snmp"),
    ("kernel/netstat.txt", "/proc/net/netstat"),
    ("kernel/sockstat.txt", "/proc/net/sockstat"),
    ("kernel/devices.txt", "/proc/net/dev"),
    ("kernel/conntrack-max.txt", "/proc/sys/net/netfilter/nf_conntrack_max"),
    ("kernel/resolv.conf", "/etc/resolv.conf"),
];

/// Drift is what is still there at the last of so many looks.
const LOOKS: usize = 3;
const SETTLED: &str = "none: the kernel holds what it should\n";

impl Reports {
    pub(super) async fn dump(&self) -> Result<Dump> {
        let mut dump = Dump::default();
        dump.files.insert("log.txt".into(), crate::journal::recent());
        dump.files.insert("metrics.txt".into(), self.metrics.render());
        dump.files.insert("status.json".into(), serde_json::to_string_pretty(&self.status().await?)?);
        for look in 1.. {
            let now = self.ask(Question::Snapshot).await?;
            dump.files.insert("decisions.jsonl".into(), now.recording.clone());
            let Some(desired) = now.desired.clone() else {
                dump.failures
                    .push("the agent has no whole picture of the cluster yet: no plan, no drift".into());
                break;
            };
            let dump = dump.clone();
            let looked = tokio::task::spawn_blocking(move || dump.look(&now, &desired));
            let looked = looked.await.context("look at the kernel")?;
            // The plan and the kernel are read one after the other: a change that was on its way is no drift.
            if look == LOOKS || looked.files.get("drift.txt").is_none_or(|drift| drift == SETTLED) {
                return Ok(looked);
            }
        }
        Ok(dump)
    }
}

impl Dump {
    fn look(mut self, now: &Snapshot, Desired { nft, net }: &Desired) -> Self {
        let mut findings = now.findings.join("\n");
        findings.push('\n');
        for (name, text) in [
            ("findings.txt", findings),
            ("attachments.json", serde_json::to_string_pretty(&now.records).unwrap_or_default()),
            ("settings.txt", format!("{:#?}\n", now.settings.args)),
            ("plan/nft.txt", nft.to_string()),
            ("plan/net.txt", net.to_string()),
        ] {
            self.files.insert(name.to_owned(), text);
        }
        match Actual::observe(&crate::actual::scope(net)) {
            Ok(actual) => {
                self.files.insert("kernel/nft.txt".into(), actual.nft.to_string());
                self.files.insert("kernel/net.txt".into(), actual.net.to_string());
                self.files.insert("drift.txt".into(), drift(&actual.differ(nft, net), &actual));
            }
            Err(error) => self.failures.push(format!("kernel/nft.txt, kernel/net.txt, drift.txt: {error:#}")),
        }
        self.keep("kernel/links.txt", all_links());
        self.keep("kernel/routes.txt", all_routes());
        self.keep("kernel/neighbours.txt", all_neighbours());
        self.keep("kernel/conntrack.txt", connections());
        for (name, path) in PROC {
            self.keep(name, std::fs::read_to_string(path).with_context(|| format!("read {path}")));
        }
        self
    }

    fn keep(&mut self, name: &str, text: Result<String>) {
        match text {
            Ok(text) => drop(self.files.insert(name.to_owned(), text)),
            Err(error) => self.failures.push(format!("{name}: {error:#}")),
        }
    }
}

/// Whether the kernel holds what it should, and what would mend it.
fn drift(drift: &Drift, actual: &Actual) -> String {
    if drift.is_empty() {
        return SETTLED.to_owned();
    }
    let links: String = drift.net.steps().map(|step| step + "\n").collect();
    format!("what would mend it:\n{}{links}", drift.nft.show(&actual.nft))
}

fn names(rtnl: &mut Rtnl) -> Result<BTreeMap<u32, String>> {
    Ok(rtnl.links()?.iter().map(|row| (row.index, row.name.to_string())).collect())
}

fn all_links() -> Result<String> {
    let mut rtnl = Rtnl::open()?;
    let names = names(&mut rtnl)?;
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let mut text = String::new();
    for row in rtnl.links()? {
        let master = row.master.and_then(|index| names.get(&index)).map(|name| format!(" of {name}"));
        let (index, name, state) = (row.index, row.name.as_str(), if row.up { "up" } else { "down" });
        let mtu = or_dash(row.mtu.map(|mtu| mtu.to_string()));
        let mac = or_dash(row.mac.map(|mac| mac.to_string()));
        let _ =
            writeln!(text, "{index:>4} {name:<16} {state} mtu {mtu} mac {mac}{}", master.unwrap_or_default());
    }
    for row in rtnl.addresses()? {
        let link = names.get(&row.link).map_or("?", String::as_str);
        let _ = writeln!(text, "address {} on {link}", row.address);
    }
    Ok(text)
}

/// Every route, of other programs too: a foreign one may lead pods' packets astray.
fn all_routes() -> Result<String> {
    let mut rtnl = Rtnl::open()?;
    let names = names(&mut rtnl)?;
    let mut text = String::new();
    for family in Family::ALL {
        for row in rtnl.all_routes(family)? {
            let dev = row.link.and_then(|index| names.get(&index));
            let dev = dev.and_then(|name| IfName::new(name).ok());
            let _ = writeln!(text, "{} proto {}", row.words(dev.as_ref()), row.protocol);
        }
    }
    Ok(text)
}

fn all_neighbours() -> Result<String> {
    let mut rtnl = Rtnl::open()?;
    let mut text = String::new();
    for link in rtnl.links()? {
        for row in rtnl.neighbours(link.index)? {
            let _ = writeln!(text, "neighbour {} {row:?}", link.name);
        }
        for row in rtnl.fdb(link.index)? {
            let _ = writeln!(text, "fdb {} {row:?}", link.name);
        }
    }
    Ok(text)
}

/// Counts only: who talks to whom is the users' business.
fn connections() -> Result<String> {
    let mut conntrack = Conntrack::open()?;
    let mut text = String::new();
    for family in Family::ALL {
        let mut counts: BTreeMap<(String, bool), usize> = BTreeMap::new();
        for entry in conntrack.entries(family, &Filter::default())? {
            let number = entry.original.protocol;
            let protocol = Protocol::from_number(number);
            let protocol = protocol.map_or_else(|| format!("protocol {number}"), |known| known.to_string());
            let translated = entry.original.dst != entry.reply.src || entry.original.src != entry.reply.dst;
            *counts.entry((protocol, translated)).or_default() += 1;
        }
        for ((protocol, translated), count) in counts {
            let how = if translated { "translated" } else { "as it is" };
            let _ = writeln!(text, "{family:?} {protocol} {how}: {count}");
        }
    }
    Ok(text)
}
