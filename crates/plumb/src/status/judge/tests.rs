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
        detours: Vec::new(),
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
    let known = Known { is_ready: true, said: "the API has the node Ready".into(), addresses: Vec::new() };
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
    let cases: [(&str, Plant); 11] = [
        ("detour", |status| status.detours = vec![Fault::new("somebody's route", "take it away")]),
        ("MTU", |status| status.too_large = vec![Fault::new("1250 bytes", "give it 1330")]),
        ("degraded", |status| status.trouble = Some(Fault::new("no pod CIDR yet", "set it"))),
        ("no route", |status| status.out_of_reach = vec![Fault::new("no route to b", "give it")]),
        ("uplink", |status| status.lacks = vec![Fault::new("no default route", "give it")]),
        ("paused", |status| status.paused = true),
        ("drift", |status| {
            status.drift = vec![Drift { subsystem: "net".into(), steps: 1, first: vec!["+ route".into()] }];
        }),
        ("late", |status| status.last_sync = Some(300)),
        ("full", |status| status.pods = 253),
        ("DNS", |status| status.dns.error = Some("the port is taken".into())),
        ("API", |status| {
            status.watches = vec![BrokenWatch { kind: "Pod".into(), error: "refused".into(), next: None }];
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
        NodeLine { node: "a".into(), agent: Some(agent), known: None, problems: Vec::new(), not_ready: None }
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
        assert!(found[0].what.ends_with("within 5 s; the API has the node NotReady for 60s"), "{found:?}");
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
        assert!(next.contains("on node1") && next.contains("ip address add 192.0.2.7/PREFIX dev"), "{next}");
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
        known: None,
        node: node.into(),
        agent: Some(NodeStatus {
            version: version.into(),
            findings: vec!["service a/b: x".into()],
            held: if node == "a" { vec!["10.244.1.7 is held".into()] } else { Vec::new() },
            ..healthy()
        }),
        problems: Vec::new(),
        not_ready: None,
    };
    let notes = notes(&[line("a", "1"), line("b", "2"), line("c", "2")]);
    assert_eq!(notes.len(), 3, "{notes:?}");
    assert_eq!(notes[1], "a: 10.244.1.7 is held");
    assert!(notes[0].contains("1 on a; 2 on b, c"), "{notes:?}");
}
