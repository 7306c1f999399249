//! What of an agent's own words is wrong, and what a person does about it.

use std::collections::{BTreeMap, BTreeSet};

use agent::fault::{Fault, READ_LOG};
use agent::report::{Drift, NodeStatus};
use serde::Serialize;

use super::NodeLine;
use super::known::Known;
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
    /// By the API, where the agent says nothing.
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
        let ways = status.out_of_reach.iter().map(|fault| self.told("no route", fault));
        found
            .into_iter()
            .flatten()
            .chain(refused)
            .chain(lacks)
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
        Problem { word, what: what.to_owned(), next }
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
        next: "move pods to other nodes, or lower the kubelet's maxPods below that".to_owned(),
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
mod tests {
    use super::*;
    use agent::report::{BrokenWatch, Datapath, Dns, Refused, Resting};

    fn healthy() -> NodeStatus {
        NodeStatus {
            node: "node1".into(),
            version: "0.1.0".into(),
            kernel: "6.1".into(),
            up: 60,
            datapath: Datapath { kind: "nftables".into(), tables: vec!["ip plumb".into()], mtu: Some(1450) },
            trouble: None,
            out_of_reach: Vec::new(),
            lacks: Vec::new(),
            paused: false,
            pods: 3,
            pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
            pod_addresses: 253,
            held: Vec::new(),
            resting: Resting::default(),
            too_large: Vec::new(),
            services: 2,
            policies: 0,
            last_sync: Some(3),
            refresh: 30,
            drift: Vec::new(),
            refused: Vec::new(),
            watches: Vec::new(),
            dns: Dns { addresses: vec!["10.96.0.10:53".into()], error: None, names: 9 },
            findings: Vec::new(),
        }
    }

    fn problems(answer: &Result<NodeStatus, String>) -> Vec<Problem> {
        told(&Advice::default(), answer)
    }

    fn told(advice: &Advice, answer: &Result<NodeStatus, String>) -> Vec<Problem> {
        let known =
            Known { is_ready: true, said: "the API has the node Ready".into(), addresses: Vec::new() };
        About { node: "node1", pod: Some("plumb-node1"), known: &known, advice }.problems(answer)
    }

    #[test]
    fn a_healthy_agent_has_no_problem() {
        assert_eq!(problems(&Ok(healthy())), []);
    }

    /// Each next step for a lab's node names the lab.
    #[test]
    fn what_a_lab_is_advised_names_it() {
        type Plant = fn(&mut NodeStatus);
        let cases: [(Plant, &str); 7] = [
            (|status| status.paused = true, "plumb lab agent resume --name ci node1"),
            (
                |status| {
                    status.out_of_reach =
                        vec![Fault::new("no route", "give it: `ip route get 192.0.2.1` shows it")];
                },
                "give it: `plumb lab exec --name ci node1 ip route get 192.0.2.1` shows it",
            ),
            (
                |status| {
                    status.lacks = vec![Fault::new("no default route", "`ip route replace default dev eth0`")]
                },
                "plumb lab up --name ci",
            ),
            (|status| status.last_sync = Some(300), "plumb lab logs --tail 50 --name ci node1 agent"),
            (
                |status| status.dns.error = Some(agent::dns::PAUSED.into()),
                "plumb lab agent resume --name ci node1",
            ),
            (
                |status| status.dns.error = Some("the port is taken".into()),
                "plumb lab exec --name ci node1 ss -lunp 'sport = :53'",
            ),
            (
                |status| status.drift = vec![Drift { subsystem: "net".into(), steps: 1, first: Vec::new() }],
                "kubectl get events --field-selector involvedObject.name=node1",
            ),
        ];
        for (plant, next) in cases {
            let mut status = healthy();
            plant(&mut status);
            let found = told(&Advice::of_lab("ci"), &Ok(status));
            assert_eq!(found.iter().map(|problem| problem.next.as_str()).collect::<Vec<_>>(), [next]);
        }
        let silent = told(&Advice::of_lab("ci"), &Err("connection refused".into()));
        assert_eq!(silent[0].next, "plumb lab logs --tail 50 --name ci node1 agent");
    }

    #[test]
    fn each_fault_is_named_alone_and_has_a_next_step() {
        type Plant = fn(&mut NodeStatus);
        let cases: [(&str, Plant); 10] = [
            ("MTU", |status| status.too_large = vec![Fault::new("1250 bytes", "give it 1330")]),
            ("degraded", |status| status.trouble = Some(Fault::new("no pod CIDR yet", "set it"))),
            ("no route", |status| status.out_of_reach = vec![Fault::new("no route to b", "give it")]),
            ("uplink", |status| status.lacks = vec![Fault::new("no default route", "give it")]),
            ("paused", |status| status.paused = true),
            ("drift", |status| {
                status.drift =
                    vec![Drift { subsystem: "net".into(), steps: 1, first: vec!["+ route".into()] }];
            }),
            ("late", |status| status.last_sync = Some(300)),
            ("full", |status| status.pods = 253),
            ("DNS", |status| status.dns.error = Some("the port is taken".into())),
            ("API", |status| {
                status.watches =
                    vec![BrokenWatch { kind: "Pod".into(), error: "refused".into(), next: None }];
            }),
        ];
        for (word, plant) in cases {
            let mut status = healthy();
            plant(&mut status);
            let found = problems(&Ok(status));
            let words: Vec<&str> = found.iter().map(|problem| problem.word).collect();
            assert_eq!(words, [word]);
            assert!(found.iter().all(|problem| !problem.next.is_empty()));
        }
        let silent = problems(&Err("connection refused".into()));
        assert!(silent[0].what.contains("connection refused") && silent[0].next.contains("node1"));
    }

    #[test]
    fn one_pause_is_one_line_and_steps_are_told_without_their_rules() {
        let first = vec![
            "add set ip plumb allow { type ipv4_addr; }".to_owned(),
            "set rules ip plumb forward {\n  drop\n}".to_owned(),
        ];
        let drift = vec![Drift { subsystem: "nft".into(), steps: 32, first }];
        let differs = "the kernel differs from what it should be in 32 steps: add set ip plumb allow; set rules \
                       ip plumb forward; and 30 more";
        let found = problems(&Ok(NodeStatus { drift: drift.clone(), ..healthy() }));
        assert_eq!(found.iter().map(|problem| &*problem.what).collect::<Vec<_>>(), [differs]);
        let mut paused = NodeStatus { drift, paused: true, ..healthy() };
        paused.dns.error = Some(agent::dns::PAUSED.into());
        let found = problems(&Ok(paused));
        assert_eq!(found.iter().map(|problem| problem.word).collect::<Vec<_>>(), ["paused"]);
        assert!(found[0].what.contains(differs) && found[0].what.contains("DNS does not serve"), "{found:?}");
        let drift = vec![Drift { subsystem: "net".into(), steps: 1, first: vec!["+ route".into()] }];
        let found = problems(&Ok(NodeStatus { drift, ..healthy() }));
        assert!(found[0].what.ends_with("in 1 step: + route"), "{found:?}");
    }

    #[test]
    fn what_the_kernel_refuses_is_one_line_and_no_drift() {
        let fault =
            |subsystem: &str| Fault::new(format!("node node1: kernel: it did not take {subsystem}"), "look");
        let refused = |subsystem: &str| Refused { subsystem: subsystem.into(), fault: fault(subsystem) };
        let drift =
            |subsystem: &str| Drift { subsystem: subsystem.into(), steps: 1, first: vec![subsystem.into()] };
        let told = |status: NodeStatus| -> Vec<String> {
            problems(&Ok(status)).into_iter().map(|problem| problem.what).collect()
        };
        let nft = NodeStatus {
            trouble: Some(fault("nft")),
            refused: vec![refused("nft")],
            drift: vec![drift("nft")],
            ..healthy()
        };
        assert_eq!(told(nft.clone()), ["kernel: it did not take nft"]);
        // Somebody changes something else, which is not refused.
        let more = NodeStatus { drift: vec![drift("nft"), drift("net")], ..nft.clone() };
        assert!(told(more)[1].ends_with("in 1 step: net"));
        let both = NodeStatus { refused: vec![refused("nft"), refused("net")], ..nft.clone() };
        assert_eq!(told(both), ["kernel: it did not take nft", "kernel: it did not take net"]);
        let paused = told(NodeStatus { paused: true, ..nft });
        assert_eq!((paused.len(), paused[1].contains("differs")), (2, false), "{paused:?}");
    }

    #[test]
    fn a_line_names_its_node_once() {
        let lacks = vec![Fault::new("node node1: uplink: eth0 is down", "bring it up")];
        let found = problems(&Ok(NodeStatus { lacks, ..healthy() }));
        assert_eq!(found[0].what, "uplink: eth0 is down");
    }

    #[test]
    fn addresses_that_rest_are_counted() {
        let line = |count: u8, last| {
            let addresses = (0..count).map(|last| [10, 244, 1, last].into()).collect();
            let agent = NodeStatus { resting: Resting { addresses, last }, ..healthy() };
            NodeLine { node: "a".into(), agent: Some(agent), problems: Vec::new() }
        };
        assert_eq!(notes(&[line(0, 0)]), Vec::<String>::new());
        assert_eq!(notes(&[line(1, 9)]), ["a: 1 address rests after release, for 9 s more"]);
        assert_eq!(notes(&[line(3, 21)]), ["a: 3 addresses rest after release, the last for 21 s more"]);
    }

    #[test]
    fn a_node_that_nobody_hears_of_is_told_as_the_api_has_it() {
        let said = "the API has the node NotReady for 60s".to_owned();
        let known = Known { is_ready: false, said, addresses: Vec::new() };
        let next = |advice: &Advice| {
            let about = About { node: "node1", pod: Some("plumb-node1"), known: &known, advice };
            let found = about.problems(&Err("no answer within 5 s".into()));
            assert!(
                found[0].what.ends_with("within 5 s; the API has the node NotReady for 60s"),
                "{found:?}"
            );
            found[0].next.clone()
        };
        assert_eq!(next(&Advice::of_lab("ci")), "plumb lab up --name ci");
        assert!(next(&Advice::default()).contains("ip -br link"));
    }

    /// A node that lost its address: Ready until its kubelet is missed.
    #[test]
    fn a_node_at_whose_address_nobody_answers_is_told_what_to_give_back() {
        let addresses = vec!["192.0.2.7".to_owned()];
        let known = Known { is_ready: true, said: "the API has the node Ready".into(), addresses };
        let advice = Advice::default();
        let about = About { node: "node1", pod: Some("plumb-x"), known: &known, advice: &advice };
        for error in ["dial tcp 192.0.2.7:9475: connect: no route to host", "no answer within 5 s"] {
            let next = &about.problems(&Err(error.into()))[0].next;
            assert!(
                next.contains("on node1") && next.contains("ip address add 192.0.2.7/PREFIX dev"),
                "{next}"
            );
        }
        let next = &about.problems(&Err("Connection refused".into()))[0].next;
        assert_eq!(next, "kubectl -n kube-system describe pod plumb-x");
    }

    #[test]
    fn one_api_that_is_away_is_one_line() {
        let broken = |kind: &str, error: &str, next: &str| BrokenWatch {
            kind: kind.into(),
            error: error.into(),
            next: Some(next.into()),
        };
        let watches = ["Node", "Pod", "Service"].map(|kind| broken(kind, "refused", "see that it runs"));
        let forbidden = broken("Policy", "403 Forbidden", "give it the right");
        let status = NodeStatus { watches: watches.into_iter().chain([forbidden]).collect(), ..healthy() };
        let found: Vec<String> = problems(&Ok(status)).into_iter().map(|problem| problem.what).collect();
        assert_eq!(
            found,
            [
                "its watch of Policy is broken: 403 Forbidden",
                "its watches of Node, Pod, Service are broken: refused"
            ]
        );
    }

    #[test]
    fn an_older_agents_answer_is_judged() {
        let mut answer = serde_json::to_value(healthy()).unwrap();
        answer["trouble"] = "node node1 has no pod CIDR yet; wait".into();
        answer["out_of_reach"] = serde_json::json!(["no route to node b; give it"]);
        answer["watches"] = serde_json::json!([{ "kind": "Pod", "error": "refused; see that it runs" }]);
        let found = problems(&Ok(serde_json::from_value(answer).unwrap()));
        let words: Vec<&str> = found.iter().map(|problem| problem.word).collect();
        assert_eq!(words, ["degraded", "no route", "API"]);
        assert!(found.iter().all(|problem| !problem.next.is_empty()));
        assert!(found[0].what.contains("no pod CIDR") && found[1].what.contains("node b"), "{found:?}");
    }

    #[test]
    fn versions_and_findings_are_notes() {
        let line = |node: &str, version: &str| NodeLine {
            node: node.into(),
            agent: Some(NodeStatus {
                version: version.into(),
                findings: vec!["service a/b: x".into()],
                held: if node == "a" { vec!["10.244.1.7 is held".into()] } else { Vec::new() },
                ..healthy()
            }),
            problems: Vec::new(),
        };
        let notes = notes(&[line("a", "1"), line("b", "2"), line("c", "2")]);
        assert_eq!(notes.len(), 3, "{notes:?}");
        assert_eq!(notes[1], "a: 10.244.1.7 is held");
        assert!(notes[0].contains("1 on a; 2 on b, c"), "{notes:?}");
    }
}
