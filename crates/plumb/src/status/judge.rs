//! What of an agent's own words is wrong, and what a person does about it.

use std::collections::{BTreeMap, BTreeSet};

use agent::fault::{Fault, READ_LOG};
use agent::report::{Drift, NodeStatus};
use serde::Serialize;

use super::known::Known;
use super::{NodeLine, NotReady};
use crate::advice::Advice;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The short word of the table.
    pub word: &'static str,
    pub what: String,
    pub next: String,
}

/// Comparisons that may be missed before the loop counts as stuck.
const MISSED: u64 = 3;

/// What is said, by whomever, of an address at which nobody answers; who refuses a connection has it.
const UNHEARD: [&str; 5] = ["no route to host", "unreachable", "timed out", "timeout", "no answer within"];

/// The node that is judged, and how commands speak of it.
#[derive(Clone, Copy)]
pub struct About<'a> {
    pub node: &'a str,
    /// The agent's.
    pub pod: Option<&'a str>,
    /// By the API, where the agent says nothing or the node is not Ready.
    pub known: &'a Known,
    pub advice: &'a Advice,
}

impl About<'_> {
    /// Everything that is wrong on a node.
    pub fn problems(self, answer: &Result<NodeStatus, String>) -> Vec<Problem> {
        let status = match answer {
            Ok(status) => status,
            Err(error) => {
                return vec![self.silence(error)];
            }
        };
        let trouble = status.trouble.as_ref().map(|fault| self.told("degraded", fault));
        let found = [
            trouble,
            self.paused(status),
            self.drift(status),
            self.sync(status),
            full(status),
            self.dns(status),
        ];
        // The first of them is the trouble already; where that is another, such as an address that is gone, the kernel refuses
        // for its sake.
        let refused = || status.refused.iter().map(|refused| &refused.fault);
        let is_first = |fault: &&Fault| status.trouble.as_ref() == Some(fault);
        let refused = refused().filter(|fault| refused().any(|of| is_first(&of)) && !is_first(fault));
        let refused = refused.map(|fault| self.told("degraded", fault));
        let lacks = status.lacks.iter().map(|fault| self.lack(fault));
        let too_large = status.too_large.iter().map(|fault| self.told("MTU", fault));
        let detours = status.detours.iter().map(|fault| self.told("detour", fault));
        let ways = status.out_of_reach.iter().map(|fault| self.told("no route", fault));
        found
            .into_iter()
            .flatten()
            .chain(refused)
            .chain(lacks)
            .chain(detours)
            .chain(too_large)
            .chain(ways)
            .chain(self.watches(status))
            .collect()
    }

    /// Of an agent that says nothing. Where nobody is heard at its address, that is looked for first.
    fn silence(self, error: &str) -> Problem {
        let Known { is_ready, said, addresses } = self.known;
        let cause = self.advice.cut_off(self.node).map(|cause| format!("; {cause}")).unwrap_or_default();
        let nobody = UNHEARD.iter().any(|words| error.to_lowercase().contains(words));
        let next = match (is_ready, addresses.first()) {
            (false, _) => self.advice.unheard(self.node),
            (true, Some(address)) if nobody => self.advice.nobody_at(self.node, address, self.pod),
            (true, _) => self.advice.silent(self.node, self.pod),
        };
        let what = format!("the agent does not answer: {error}; {said}{cause}");
        Problem { word: "no answer", what, next }
    }

    /// Of a node that the API does not have Ready while its agent answers.
    pub fn not_ready(self, answers: bool, is_well: bool) -> Option<NotReady> {
        (answers && !self.known.is_ready).then(|| NotReady {
            what: format!(
                "{}; Plumb's {} there",
                self.known.said,
                if is_well { "network works" } else { "agent answers" }
            ),
            next: self.advice.kubelet(self.node),
        })
    }

    /// One line for one cause: where the API is away, every watch of it is broken. Refusals differ by their objects only.
    fn watches(self, status: &NodeStatus) -> Vec<Problem> {
        let mut causes: BTreeMap<&str, (Vec<&str>, &str)> = BTreeMap::new();
        for broken in &status.watches {
            let next = broken.next.as_deref().unwrap_or(ANY_WATCH);
            causes.entry(next).or_insert_with(|| (Vec::new(), &broken.error)).0.push(&broken.kind);
        }
        let told = |(next, (kinds, error)): (&str, (Vec<&str>, &str))| Problem {
            word: "API",
            what: match &kinds[..] {
                [kind] => format!("its watch of {kind} is broken: {error}"),
                _ => format!("its watches of {} are broken: {error}", kinds.join(", ")),
            },
            next: self.advice.of_agent(self.node, next),
        };
        causes.into_iter().map(told).collect()
    }

    fn told(self, word: &'static str, fault: &Fault) -> Problem {
        let next = match fault.next == READ_LOG {
            true => self.advice.log(self.node, self.pod),
            false => self.advice.of_agent(self.node, &fault.next),
        };
        // The line names the node already.
        let what = fault.what.strip_prefix(&format!("node {}: ", self.node)).unwrap_or(&fault.what);
        Problem { word, what: self.advice.of_agent(self.node, what), next }
    }

    /// What a machine has lost of its own, a lab gives back.
    fn lack(self, fault: &Fault) -> Problem {
        let told = self.told("uplink", fault);
        Problem { next: self.advice.rewire().unwrap_or(told.next), ..told }
    }

    /// One line for one cause: what is away or differs because it is paused ends with the pause.
    fn paused(self, status: &NodeStatus) -> Option<Problem> {
        status.paused.then(|| {
            let paused = "the agent is paused: what others change is told and not put back".to_owned();
            let dns = (status.dns.error.as_deref() == Some(agent::dns::PAUSED))
                .then(|| "DNS does not serve here meanwhile, other nodes answer its pods".to_owned());
            let what =
                [Some(paused), dns, differs(status)].into_iter().flatten().collect::<Vec<_>>().join("; ");
            Problem { word: "paused", what, next: self.advice.resume(self.node) }
        })
    }

    /// Of an agent that is not paused: somebody changes it again and again.
    fn drift(self, status: &NodeStatus) -> Option<Problem> {
        let what = differs(status).filter(|_| !status.paused)?;
        let events = format!("get events --field-selector involvedObject.name={}", self.node);
        Some(Problem { word: "drift", what, next: self.advice.kubectl(&events) })
    }

    fn sync(self, status: &NodeStatus) -> Option<Problem> {
        // Drift and trouble say more than their age.
        if status.trouble.is_some() || !status.drift.is_empty() {
            return None;
        }
        let age = status.last_sync?;
        let late = status.refresh.saturating_mul(MISSED).saturating_add(5);
        (age > late).then(|| Problem {
            word: "late",
            what: format!(
                "the kernel was last compared with the model {age} s ago, and should be every {} s: the node's loop is \
                 stuck, or starved of CPU",
                status.refresh
            ),
            next: self.advice.log(self.node, self.pod),
        })
    }

    fn dns(self, status: &NodeStatus) -> Option<Problem> {
        let error =
            status.dns.error.as_ref().filter(|error| !status.paused || *error != agent::dns::PAUSED)?;
        let next = match error == agent::dns::PAUSED {
            true => self.advice.resume(self.node),
            false => self.advice.on_node(self.node, "ss -lunp 'sport = :53'"),
        };
        let what = format!("DNS does not serve here, other nodes answer its pods: {error}");
        Some(Problem { word: "DNS", what, next })
    }
}

/// In how many steps, and the first of them. What the kernel refuses is told as that.
fn differs(status: &NodeStatus) -> Option<String> {
    let is_refused = |drift: &&Drift| status.refused.iter().any(|of| of.subsystem == drift.subsystem);
    let drift = || status.drift.iter().filter(|drift| !is_refused(drift));
    let steps: usize = drift().map(|drift| drift.steps).sum();
    let mut told: Vec<String> = drift().flat_map(|drift| &drift.first).map(|step| in_a_line(step)).collect();
    let more = steps.saturating_sub(told.len());
    if more > 0 && !told.is_empty() {
        told.push(format!("and {more} more"));
    }
    let colon = if told.is_empty() { "" } else { ": " };
    let count = if steps == 1 { "1 step".to_owned() } else { format!("{steps} steps") };
    (steps > 0)
        .then(|| format!("the kernel differs from what it should be in {count}{colon}{}", told.join("; ")))
}

/// Older agents tell a step as nft would be told it: what is in braces fills many lines.
fn in_a_line(step: &str) -> String {
    step.split(['{', '\n']).next().unwrap_or_default().trim_end().to_owned()
}

/// Of an older agent, which says no next step of its own.
const ANY_WATCH: &str =
    "see that this node reaches the API server and that kube-system/plumb may list and watch";

fn full(status: &NodeStatus) -> Option<Problem> {
    let pods = u64::try_from(status.pods).unwrap_or(u64::MAX);
    (status.pod_addresses > 0 && pods >= status.pod_addresses).then(|| Problem {
        word: "full",
        what: format!(
            "all {} pod addresses of this node are given out: new pods stay pending",
            status.pod_addresses
        ),
        next: "move pods to other nodes, or add nodes where all are full; the kubelet's maxPods below that keeps others away"
            .to_owned(),
    })
}

/// What holds for several nodes, or harms nothing that works.
pub fn notes(lines: &[NodeLine]) -> Vec<String> {
    let agents = || lines.iter().filter_map(|line| Some((&line.node, line.agent.as_ref()?)));
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (node, agent) in agents() {
        versions.entry(&agent.version).or_default().push(node);
    }
    let mut notes = Vec::new();
    if versions.len() > 1 {
        let each = versions.iter().map(|(version, nodes)| format!("{version} on {}", nodes.join(", ")));
        notes.push(format!("agents of several versions: {}", each.collect::<Vec<_>>().join("; ")));
    }
    let mut mtus: BTreeMap<u32, Vec<&str>> = BTreeMap::new();
    for (node, agent) in agents() {
        mtus.entry(agent.datapath.mtu.unwrap_or_default()).or_default().push(node);
    }
    mtus.remove(&0);
    if mtus.len() > 1 {
        let each = mtus.iter().map(|(mtu, nodes)| format!("{mtu} on {}", nodes.join(", ")));
        notes.push(format!(
            "pods have MTUs of their nodes' uplinks, which differ: {}; large datagrams to the smaller may be lost",
            each.collect::<Vec<_>>().join("; ")
        ));
    }
    for (node, agent) in agents() {
        notes.extend(agent.held.iter().map(|held| format!("{node}: {held}")));
        notes.extend(rest(node, agent));
    }
    let findings: BTreeSet<&String> = agents().flat_map(|(_, agent)| &agent.findings).collect();
    notes.extend(findings.into_iter().map(|finding| format!("not carried out as it asks: {finding}")));
    notes
}

/// A deletion leaves some for a while, which harms nothing: which they are is in the JSON.
fn rest(node: &str, NodeStatus { resting, .. }: &NodeStatus) -> Option<String> {
    let last = resting.last;
    match resting.addresses.len() {
        0 => None,
        1 => Some(format!("{node}: 1 address rests after release, for {last} s more")),
        count => Some(format!("{node}: {count} addresses rest after release, the last for {last} s more")),
    }
}

#[cfg(test)]
mod tests;
