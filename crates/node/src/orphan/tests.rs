use super::*;

const GRACE: Duration = Duration::from_secs(30);
const START: Now = Duration::from_secs(1_000);

fn after(seconds: u64) -> Now {
    START + Duration::from_secs(seconds)
}

#[test]
fn a_dead_namespace_is_lost_whatever_the_api_says_and_an_unheard_api_says_nothing() {
    for pod_is_gone in [false, true] {
        assert_eq!(lost(false, pod_is_gone), Some(Lost::Namespace));
    }
    assert_eq!(lost(true, true), Some(Lost::Pod));
    assert_eq!(lost(true, false), None);
    let (cluster, record) = (model::Cluster::default(), record(RECORD));
    assert!(is_gone(&record, &facts(&cluster)));
    let deaf = Situation { hears_pods: false, ..facts(&cluster).situation };
    assert!(!is_gone(&record, &crate::Live { situation: deaf, ..facts(&cluster) }));
    let host = Record { pod: types::ObjectName::cluster("c"), ..record };
    assert!(!is_gone(&host, &facts(&cluster)), "no pod of the API");
}

#[test]
fn what_is_lost_is_released_when_it_is_seen_twice_a_grace_apart() {
    for lost in [Lost::Namespace, Lost::Pod] {
        let first = Suspicion { lost, since: START };
        let grace = |_| GRACE;
        assert_eq!(judge(Some(lost), None, START, grace), Verdict::Suspect(first));
        let judged = |at| judge(Some(lost), Some(first), after(at), grace);
        assert_eq!(judged(29), Verdict::Suspect(first), "its time runs on from the first look");
        assert_eq!(judged(30), Verdict::Release(first));
        assert_eq!(judge(None, Some(first), after(30), grace), Verdict::Keep, "it is back");
    }
}

#[test]
fn nothing_is_released_at_first_sight_however_long_nobody_looked() {
    let no_grace = |_| Duration::ZERO;
    assert!(matches!(judge(Some(Lost::Pod), None, START, no_grace), Verdict::Suspect(_)));
    // What is suspected of another reason begins anew.
    let other = Suspicion { lost: Lost::Pod, since: START };
    let judged = judge(Some(Lost::Namespace), Some(other), after(600), |_| GRACE);
    assert_eq!(judged, Verdict::Suspect(Suspicion { lost: Lost::Namespace, since: after(600) }));
}

/// Of a node that hears the API, and mends.
fn facts(cluster: &model::Cluster) -> crate::Live<'_> {
    let situation = Situation { hears_pods: true, orphan_grace: GRACE, ..Situation::default() };
    crate::Live { cluster, settings: None, situation, generation: 0 }
}

const RECORD: &str = r#"{"container":"c","ifname":"eth0","netns":"/n","pod":{"namespace":"a","name":"web"},"uid":"u","ips":[],"host_if":"veth-c","mac":"00:00:00:00:00:00"}"#;

fn record(json: &str) -> Record {
    serde_json::from_str(json).unwrap()
}

#[test]
fn a_pod_that_may_take_long_to_end_keeps_its_network_so_long() {
    let record = Record { grace: 600, ..record(RECORD) };
    assert_eq!(grace(&record, GRACE)(Lost::Pod), Duration::from_secs(630));
    assert_eq!(grace(&record, GRACE)(Lost::Namespace), NAMESPACE_GRACE);
    assert_eq!(grace(&record, Duration::from_secs(1))(Lost::Namespace), Duration::from_secs(1));
}

/// A watch may be behind. What it does not show is cut off only when the API itself says that it is gone.
#[test]
fn a_pod_that_only_the_watch_does_not_show_stays_wired() {
    let cluster = model::Cluster::default();
    let facts = facts(&cluster);
    let mut attachments = Attachments::default();
    attachments.records.insert(record(RECORD));
    let doubt = Doubt { handle: "c/eth0".into(), pod: types::ObjectName::new("a", "web"), uid: "u".into() };
    let mut after = |doubt: &Doubt, answer: Answer| {
        let suspicion = Suspicion { lost: Lost::Pod, since: START };
        attachments.orphans.suspects.insert("c/eth0".into(), suspicion);
        let out = attachments.step(crate::Input::Confirmed(doubt.clone(), answer), &facts, START);
        let unwires = out.iter().any(|output| matches!(output, Output::Unwire { .. }));
        (unwires, attachments.orphans.suspects.contains_key("c/eth0"))
    };
    assert_eq!(after(&doubt, Answer::There), (false, false), "its time begins anew");
    let unheard = Answer::Unheard("no answer".into());
    assert_eq!(after(&doubt, unheard), (false, false), "its time begins anew");
    assert_eq!(after(&doubt, Answer::Unasked), (false, true), "it is asked again");
    let former = Doubt { uid: "before".into(), ..doubt.clone() };
    assert_eq!(after(&former, Answer::Gone), (false, true), "that was another pod");
    assert_eq!(after(&doubt, Answer::Gone), (true, false));
}

/// Veths are deleted many at once: what a runtime asks of one attachment says nothing about the others.
#[test]
fn an_address_is_held_whoever_else_leaves_at_the_same_time() {
    let cluster = model::Cluster::default();
    let facts = facts(&cluster);
    let mut attachments = Attachments::default();
    for container in ["asked", "orphan"] {
        attachments.records.insert(record(&format!(
            r#"{{"container":"{container}","ifname":"eth0","netns":"/n","pod":{{"namespace":"a","name":"{container}"}},"uid":"u","ips":[],"host_if":"veth-{container}","mac":"00:00:00:00:00:00"}}"#
        )));
    }
    let mut out = Vec::new();
    let id = cni::Id { container: "asked".into(), ifname: types::IfName::new("eth0").unwrap() };
    attachments.delete(1, &id, &mut out);
    attachments.orphans.taken.insert("orphan/eth0".into());
    attachments.depart("orphan/eth0".into(), None, &mut out);
    let handles = vec!["asked/eth0".to_owned(), "orphan/eth0".to_owned()];
    let namespaces = handles.iter().cloned().collect();
    attachments.step(crate::Input::Unwired { handles, deleted: Ok(()), namespaces }, &facts, START);
    let left: Vec<(&String, bool)> =
        attachments.records().all().iter().map(|(handle, record)| (handle, record.cut_off)).collect();
    assert_eq!(left, [(&"orphan/eth0".to_owned(), true)], "its namespace lives");
}
