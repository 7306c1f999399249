//! Names while agents end and return: no query is refused or lost, in either family, whether its client keeps its
//! socket or takes a new one each time.
//!
//! ```text
//!   node1  asker: 4 clients of the node's DNS addresses, 200 queries a second each, one under way at a time
//!   node2  its agent answers while that of node1 is away
//! ```
//! A killed agent takes along the queries that it has: one of each client at most, which a resolver sends again. One
//! that is asked to end answers them first.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::cluster::{Kubectl, Lab, wait_for};

const NS: &str = "names";
const PATIENCE: Duration = Duration::from_secs(60);
const DNS: [&str; 2] = ["10.96.0.10", "fd00:10:96::a"];
/// Each client goes on for so many answers before it is believed.
const ENOUGH: u64 = 300;
const WEB: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: names}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: names}
spec: {ipFamilyPolicy: RequireDualStack, ports: [{port: 80}]}
";

/// `… 1200 answered 1 again 0 refused 0 wrong 0 lost`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    answered: u64,
    again: u64,
    /// Refused, wrong or lost.
    bad: u64,
}

impl Tally {
    fn parse(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        let count = |word: &str| -> Option<u64> {
            words.get(words.iter().position(|found| *found == word)?.checked_sub(1)?)?.parse().ok()
        };
        let bad = count("refused")? + count("wrong")? + count("lost")?;
        Some(Self { answered: count("answered")?, again: count("again")?, bad })
    }
}

/// Client → what became of its queries so far.
type Tallies = BTreeMap<String, Tally>;

fn tallies(lab: &Lab) -> Tallies {
    let log = lab.kubectl_ok(&["-n", NS, "logs", "asker", "--tail=60"]);
    let lines = log.lines().filter_map(|line| line.rsplit_once(": "));
    lines.filter_map(|(client, text)| Some((client.to_owned(), Tally::parse(text)?))).collect()
}

/// All clients have had many more answers since; what went wrong meanwhile is in the tallies returned.
fn on(lab: &Lab) -> Tallies {
    let all = |found: &Tallies| found.len() == 2 * DNS.len();
    let before = wait_for("four clients ask", PATIENCE, || {
        let found = tallies(lab);
        if all(&found) { Ok(found) } else { Err(format!("{found:?}")) }
    });
    wait_for("every client has answers", PATIENCE, || {
        let now = tallies(lab);
        let more = |(client, was): (&String, &Tally)| {
            now.get(client).is_some_and(|is| is.answered >= was.answered + ENOUGH)
        };
        if all(&now) && before.iter().all(more) { Ok(now) } else { Err(format!("{before:?} {now:?}")) }
    })
}

/// `again`: how many datagrams each client may have sent in vain in the meantime.
#[track_caller]
fn fine(what: &str, before: &Tallies, now: &Tallies, again: u64) {
    println!("{what}: {now:?}");
    for (client, is) in now {
        let was = before.get(client).copied().unwrap_or_default();
        assert_eq!(is.bad, 0, "{what}: {client} was refused, told wrong or lost queries: {now:?}");
        assert!(is.again <= was.again + again, "{what}: {client} asked again: {before:?} {now:?}");
    }
}

/// Waits until the node's own agent holds both DNS addresses.
fn serving(lab: &Lab, node: &str) {
    wait_for("the agent's DNS sockets", PATIENCE, || {
        let sockets = lab.node_ok(node, &["ss", "-Hnul", "sport", "=", ":53"]);
        let ours = DNS.iter().all(|dns| sockets.contains(dns));
        if ours { Ok(()) } else { Err(format!("{node}: {sockets:?}")) }
    });
}

/// Sends the agent a signal, and waits until its successor serves.
fn succeeded(lab: &Lab, node: &str, signal: &str) {
    let file = lab.directory().join("pids").join(format!("agent-{node}"));
    let noted = std::fs::read_to_string(&file).expect("the agent runs");
    let pid = noted.split(' ').next().unwrap_or_default();
    lab.node_ok("node1", &["kill", &format!("-{signal}"), pid]);
    wait_for("another agent", PATIENCE, || match std::fs::read_to_string(&file) {
        Ok(now) if now != noted => Ok(()),
        now => Err(format!("{now:?}")),
    });
    serving(lab, node);
}

#[test]
fn agents_end_and_return_and_no_query_is_lost() {
    let lab = Lab::up_with(2, &["--families", "dual"]);
    let args = format!(r#"ask, web.{NS}.svc.cluster.local, --server, "{}""#, DNS.join(","));
    lab.apply(&format!("{WEB}{}", Lab::pod(NS, "asker", "nodeName: node1", &args)));
    lab.wait_ready(NS);
    let mut before = on(&lab);
    fine("calm", &Tallies::new(), &before, 0);
    let mut step = |what: &str, again: u64, act: &dyn Fn()| {
        act();
        let now = on(&lab);
        fine(what, &before, &now, again);
        before = now;
    };
    step("killed, and node2 answers", 1, &|| {
        lab.lab_ok(&["agent", "stop", "node1"]);
    });
    step("back", 0, &|| {
        lab.lab_ok(&["agent", "start", "node1"]);
        serving(&lab, "node1");
    });
    // Of itself: the other node's agent is of no use to it now.
    step("without node2", 0, &|| {
        lab.lab_ok(&["agent", "stop", "node2"]);
    });
    step("node2 is back", 0, &|| {
        lab.lab_ok(&["agent", "start", "node2"]);
        serving(&lab, "node2");
    });
    for round in 0..3 {
        step(&format!("killed and restarted, {round}"), 1, &|| succeeded(&lab, "node1", "KILL"));
    }
    // As a rolling upgrade goes through the nodes.
    for (round, node) in ["node1", "node2", "node1", "node2", "node1"].iter().enumerate() {
        step(&format!("{node} told to end and restarted, {round}"), 0, &|| succeeded(&lab, node, "TERM"));
    }
}
