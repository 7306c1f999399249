use std::time::Duration;

use model::Cluster;
use serde_json::{Value, json};

use super::*;
use crate::facts::{Live, Situation};
use crate::input::Asked;
use crate::recording::{Bounds, Recording};

const START: Now = Duration::from_secs(1_000);

fn request(command: &str) -> cni::Request {
    let config = json!({ "cniVersion": "1.1.0", "name": "plumb", "type": "plumb-cni" });
    let env = [
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", "/run/netns/c1"),
        ("CNI_ARGS", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID=u"),
    ];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter().collect();
    cni::Request::parse(&env, config.to_string().as_bytes()).unwrap()
}

/// A node that is never told its network: an ADD waits, until it has waited for long enough.
fn recorded() -> String {
    let cluster = Cluster::default();
    let situation = Situation { hears_pods: true, ..Situation::default() };
    let facts = Live { cluster: &cluster, settings: None, situation, generation: 0 };
    let (mut attachments, mut recording) =
        (Attachments::default(), Recording::new("node1", Bounds::default()));
    let asked = Asked { id: 7, request: request("ADD"), pod: None, netns_id: Some((4, 9)), received: START };
    let none = BTreeSet::new;
    for (after, input) in [
        (0, Input::Started { veths: none(), namespaces: none() }),
        (1, Input::Asked(Box::new(asked))),
        (2, Input::Round { trouble: None }),
        (30, Input::Round { trouble: Some("no list of Nodes".into()) }),
    ] {
        recording.step(&mut attachments, input, &facts, START + Duration::from_secs(after));
    }
    recording.text()
}

/// With what each input said changed.
fn edited(edit: impl Fn(&mut Value)) -> String {
    let lines = recorded();
    let lines = lines.lines().map(|line| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        if let Some(step) = line.get_mut("step") {
            edit(&mut step["said"]);
        }
        format!("{line}\n")
    });
    lines.collect()
}

fn told(turn: &Turn) -> Vec<&str> {
    let waits = turn.waits.iter().map(|waits| waits.why.as_str());
    turn.decided.iter().map(|decided| decided.what.as_str()).chain(waits).collect()
}

#[test]
fn a_replay_says_what_became_of_a_pod_and_why() {
    let mut replay = Replay::of(&recorded());
    assert!(replay.agrees() && replay.node == "node1", "{replay:?}");
    let mut others = replay.clone();
    replay.narrow(&ObjectName::new("shop", "web"));
    let until = replay.turns[0].waits[0].until;
    assert_eq!(until, Some(START + Duration::from_secs(30)));
    let turns: Vec<_> = replay.turns.iter().map(|turn| (turn.heard.as_str(), told(turn))).collect();
    let [(asked, waits), (round, refused)] = &turns[..] else { panic!("{turns:?}") };
    assert_eq!((*asked, *round), ("#7 ADD c1/eth0", "the next round"));
    assert_eq!(waits, &["ADD c1/eth0 (#7) waits until everything is listed and the node has a pod CIDR"]);
    assert!(refused[0].starts_with("#7 ") && refused[0].contains("no list of Nodes"), "{refused:?}");
    others.narrow(&ObjectName::new("shop", "db"));
    assert_eq!(others.turns, []);
}

#[test]
fn a_replay_says_where_this_version_decides_otherwise() {
    let replay = Replay::of(&edited(|said| {
        if let Some(decided) = said.get_mut("decided").and_then(|decided| decided.get_mut(0))
            && decided.as_str().is_some_and(|text| text.starts_with("#7 "))
        {
            *decided = "#7 done".into();
        }
    }));
    let other: Vec<_> = replay.turns.iter().filter_map(|turn| turn.recorded.as_ref()).collect();
    assert_eq!(other, [&["#7 done".to_owned()]]);
    assert!(!replay.agrees());
}

#[test]
fn what_was_not_recorded_is_not_made_up() {
    let replay = Replay::of(&edited(|said| said["read"] = json!({})));
    let unread: Vec<_> = replay.turns.iter().flat_map(|turn| &turn.unread).collect();
    assert!(unread.iter().any(|what| *what == "how the node stood"), "{replay:#?}");
    let text = recorded();
    let other = Replay::of(&text.replacen("\n", "\nwhat is this?\n", 1));
    assert!(!other.agrees() && other.unreadable[0].starts_with("line 2: "), "{other:?}");
    assert_eq!((other.turns.len(), other.left_out), (0, 3), "in which state they were heard is not known");
}

#[test]
fn a_recording_stays_small_however_long_a_node_runs() {
    let cluster = Cluster::default();
    let facts = Live { cluster: &cluster, settings: None, situation: Situation::default(), generation: 0 };
    let after = |inputs: &mut dyn Iterator<Item = Input>| {
        let bounds = Bounds { chapter: 10_000, chapters: 3 };
        let (mut attachments, mut recording) = (Attachments::default(), Recording::new("node1", bounds));
        for (at, input) in inputs.enumerate() {
            recording.step(&mut attachments, input, &facts, Duration::from_secs(at as u64));
        }
        recording.text()
    };
    let ended = |n: usize| Input::Looked { ended: [format!("c{n}/eth0")].into(), unshown: BTreeSet::new() };
    let many = after(&mut (0..10_000).map(ended));
    assert!(many.len() < 60_000, "{}", many.len());
    let last = Replay::of(&many).turns.last().map(|turn| turn.heard.clone());
    assert_eq!(last.as_deref(), Some("looked: ended c9999/eth0; not in the API none"));
    let same = after(&mut (0..100).map(|_| ended(1)));
    assert_eq!(same.lines().count(), 2);
    let times: Vec<Now> = Replay::of(&same).turns.iter().map(|turn| turn.at).collect();
    assert_eq!(times, [0, 99].map(Duration::from_secs));
}
