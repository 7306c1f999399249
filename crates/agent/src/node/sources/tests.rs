use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use compile::Compiler;
use model::{Pod, Sources as Asked};
use node::Record;
use proptest::prelude::*;
use types::{number, offset};

use super::*;
use crate::forgetter::{Forgot, Owed};
use crate::inbox::Inbox;
use crate::store::Store;

const NET: &str = "198.51.100.0/28";

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// No two of them overlap, as the compiler and the records have it.
fn several() -> impl Strategy<Value = Vec<Vec<IpNet>>> {
    let net = (0..16_u128, 28..=32_u8).prop_map(|(at, length)| {
        let first = NET.parse::<IpNet>().unwrap().network();
        IpNet::new(offset(first, at), length).unwrap().trunc()
    });
    prop::collection::vec(prop::collection::vec(net, 0..3), 4).prop_map(|all| {
        let mut taken = Vec::new();
        let apart = all.into_iter().map(|nets| {
            let apart = all_without(&IpNet::aggregate(&nets), &taken);
            taken.extend(apart.iter().copied());
            apart
        });
        apart.collect()
    })
}

fn addresses(nets: &[IpNet]) -> BTreeSet<u128> {
    let first = NET.parse::<IpNet>().unwrap().network();
    let all = (0..16).map(|by| offset(first, by));
    all.filter(|ip| nets.iter().any(|net| net.contains(ip))).map(number).collect()
}

proptest! {
    #[test]
    fn a_source_has_one_pod_at_most_and_none_while_it_is_lost(due in several(), had in several()) {
        let of_pods = |all: &[Vec<IpNet>]| -> Nets {
            ["a", "b", "c"].into_iter().map(str::to_owned).zip(all.iter().cloned()).collect()
        };
        let lost: BTreeSet<IpNet> = had[3].iter().copied().collect();
        let (due, had) = (of_pods(&due), of_pods(&had));
        let share = share(&due, &had, &lost);
        for (pod, due) in &due {
            let [due, had] = [&due[..], of(&had, pod)].map(addresses);
            let [grown, withheld] = [&share.grown, &share.withheld].map(|all| addresses(of(all, pod)));
            prop_assert!(withheld.is_disjoint(&had), "what it has goes on");
            let got: BTreeSet<u128> = had.intersection(&due).chain(&grown).copied().collect();
            prop_assert!(got.is_disjoint(&withheld));
            prop_assert_eq!(&got.union(&withheld).copied().collect::<BTreeSet<_>>(), &due);
        }
        for (pod, grown) in &share.grown {
            let others = had.iter().filter(|(other, _)| *other != pod).flat_map(|(_, nets)| nets);
            let nobodys: Vec<IpNet> = others.chain(&lost).copied().collect();
            prop_assert!(addresses(grown).is_disjoint(&addresses(&nobodys)));
        }
    }
}

struct Scene {
    node: Node,
    data: PathBuf,
    _inbox: Inbox,
}

impl Scene {
    /// Two pods are wired.
    fn new(directory: &std::path::Path) -> Self {
        let (mut node, inbox) = crate::bench::held(directory).unwrap();
        for kind in Kind::ALL {
            node.apply(Event::Start(kind));
            node.apply(Event::Done(kind));
        }
        let mut records = node.attachments.records().clone();
        for (at, pod) in ["a", "b"].into_iter().enumerate() {
            let json = format!(
                r#"{{"container":"{pod}","ifname":"eth0","netns":"/n","pod":{{"namespace":"x","name":"{pod}"}},"uid":"","ips":["10.244.1.{at}"],"host_if":"veth-{pod}","mac":"00:00:00:00:00:0{at}"}}"#
            );
            let record: Record = serde_json::from_str(&json).unwrap();
            node.apply(Event::Upsert(Row::Attachment(Box::new(record.row()))));
            records.insert(record);
        }
        node.attachments = node::Attachments::new(records);
        let settings = semantics::Settings::new("node1", nets(&["10.244.0.0/16"]), 1450);
        node.compiler = Some(Compiler::new(semantics::Settings { allow_sources: nets(&[NET]), ..settings }));
        Self { node, data: directory.join("data"), _inbox: inbox }
    }

    fn asks(&mut self, pod: &str, asked: &[&str]) {
        let sources = (!asked.is_empty()).then(|| Box::new(Asked { created: 1, nets: nets(asked) }));
        let pod = Pod { key: ObjectName::new("x", pod), sources, ..Pod::default() };
        self.node.apply(Event::Upsert(Row::Pod(Box::new(pod))));
    }

    /// By the rules, and by the file.
    fn has(&mut self, pod: &str) -> (Vec<IpNet>, Vec<IpNet>) {
        self.node.grant_sources();
        self.node.sources.send();
        let handle = format!("{pod}/eth0");
        let settings = self.node.compiler.as_ref().unwrap().settings();
        let row = &self.node.cluster.attachments[&handle];
        let ruled = further::granted((&self.node.cluster, settings), row, Family::V4);
        let records = Store::open(&self.data, "bench").unwrap().1;
        (ruled, records.all().get(&handle).map(|record| record.further.clone()).unwrap_or_default())
    }

    fn forgets(&mut self, done: Result<usize, kernel::Error>) {
        let any = self.node.attachments.records().lost().iter().copied().collect();
        let owed = Owed { any, began: Vec::new() };
        self.node.forgot(&Forgot { owed, done, took: Duration::ZERO });
    }
}

fn inside(name: &str, story: impl FnOnce(&mut Scene) + Send) {
    let directory = std::env::temp_dir().join(format!("plumb-sources-{name}-{}", std::process::id()));
    crate::dns::tests::inside(async || story(&mut Scene::new(&directory)));
    fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn a_pod_gets_a_source_only_when_it_is_recorded() {
    inside("recorded", |scene| {
        let (none, one) = (Vec::new(), nets(&["198.51.100.7/32"]));
        // No room, no right: what was, is.
        let full = scene.data.join("attachments-bench.new");
        fs::create_dir(&full).unwrap();
        scene.asks("a", &["198.51.100.7/32"]);
        assert_eq!(scene.has("a"), (none.clone(), none.clone()));
        assert!(scene.node.standing.findings().any(|found| found.message.contains("cannot record")));
        fs::remove_dir(&full).unwrap();
        scene.node.changed.clear();
        scene.node.look_after_sources();
        assert!(!scene.node.changed.is_empty(), "it is tried again");
        assert_eq!(scene.has("a"), (one.clone(), one.clone()));
        assert_eq!(scene.node.standing.findings().count(), 0);
        // The other way round: the rules come first.
        fs::create_dir(&full).unwrap();
        scene.asks("a", &[]);
        assert_eq!(scene.has("a"), (none, one));
    });
}

#[test]
fn nobody_gets_a_source_before_the_kernel_has_forgotten_what_another_began() {
    inside("forgotten", |scene| {
        let (none, one) = (Vec::new(), nets(&["198.51.100.7/32"]));
        scene.asks("a", &["198.51.100.7/32"]);
        assert_eq!(scene.has("a").0, one);
        scene.asks("a", &[]);
        scene.asks("b", &["198.51.100.6/31"]);
        let half = nets(&["198.51.100.6/32"]);
        assert_eq!(scene.has("b").0, half, "the rest is another's still");
        assert_eq!(scene.has("a").0, none);
        scene.node.lose_sources();
        assert_eq!(scene.has("b").0, half, "the kernel may know flows");
        scene.forgets(Err(kernel::Error::Answer { what: "dump".into(), why: "a test".into() }));
        assert_eq!(scene.has("b").0, half, "it refused to forget");
        let lost = Store::open(&scene.data, "bench").unwrap().1.lost().iter().copied().collect::<Vec<_>>();
        assert_eq!(lost, one, "the next process goes on");
        scene.node.changed.clear();
        scene.forgets(Ok(1));
        assert!(!scene.node.changed.is_empty(), "who waits is not kept waiting");
        let both = nets(&["198.51.100.6/31"]);
        assert_eq!(scene.has("b"), (both.clone(), both));
    });
}

#[test]
fn what_the_kernel_may_still_let_in_is_not_lost_yet() {
    inside("refused", |scene| {
        scene.asks("a", &["198.51.100.7/32"]);
        scene.has("a");
        scene.asks("a", &[]);
        scene.asks("b", &["198.51.100.7/32"]);
        scene.node.stale.failed.insert(Subsystem::Nft, "a test".into());
        assert_eq!(scene.has("b").0, Vec::new());
        scene.node.lose_sources();
        assert!(scene.node.attachments.records().lost().is_empty());
        assert_eq!(scene.has("b").0, Vec::new());
        scene.node.stale.failed.clear();
        scene.node.lose_sources();
        assert_eq!(scene.node.attachments.records().lost().len(), 1);
    });
}
