//! A machine with a runtime, a disk, a kernel and an API, as far as attachments see them, and a faulty interpreter.

mod actions;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use cni::Request;
use ipam::Pool;
use model::{Cluster, Event, Kind, Node, Phase, Pod, Row};
use node::{
    Attachments, Bounds, Doubt, Input, Live, Network, Output, Recording, Records, Replay, Reply, RequestId,
    Situation,
};
use semantics::Settings;
use serde_json::json;
use types::{IfName, ObjectName};

pub const CONTAINERS: usize = 6;
/// So few addresses that they are given out again and again.
const POOL: &str = "10.244.1.0/29";
const NODE: &str = "node1";
const GRACE: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    pub disk_full: bool,
    pub refuses: bool,
    pub deaf: bool,
    pub paused: bool,
    pub wire_fails: bool,
    pub forget_fails: bool,
    /// Namespaces are entered by another thread, and the kernel follows by the next round.
    pub slow: bool,
}

#[derive(Debug)]
struct Veth {
    handle: String,
    ips: Vec<IpAddr>,
}

/// What dies with the process.
#[derive(Debug, Default)]
struct Process {
    attachments: Attachments,
    recording: Option<Recording>,
    wires: Vec<node::Record>,
    unwires: Vec<(String, IfName)>,
    doubts: Vec<Doubt>,
    /// Who waits for an answer.
    open: BTreeMap<RequestId, Request>,
    /// Flows of all addresses that nobody has were forgotten once.
    looked: bool,
    /// Generations of rows.
    sent: u64,
    /// What the last of them makes of the tables, as long as the kernel has not followed.
    on_its_way: Option<BTreeSet<String>>,
}

pub struct World {
    /// Each process records what it hears, if so.
    recorded: Option<Bounds>,
    pub faults: Faults,
    process: Process,
    cluster: Cluster,
    /// What the API has; what the watch shows is in `cluster`.
    api: BTreeSet<ObjectName>,
    settings: Settings,
    disk: Records,
    /// Network namespaces of sandboxes that run, by number of the container: which one of it that is.
    sandboxes: BTreeMap<usize, u64>,
    veths: BTreeMap<IfName, Veth>,
    /// Attachments whose policies the kernel has.
    tables: BTreeSet<String>,
    /// Addresses of flows that the kernel knows and whose pod is gone.
    flows: BTreeSet<IpAddr>,
    /// Wired as far as their runtime knows, and not asked to go: they must be.
    wanted: BTreeSet<usize>,
    now: Duration,
    counter: u64,
    kill: Option<(usize, bool)>,
    requests: Vec<[Request; 2]>,
    starts: usize,
}

fn handle(n: usize) -> String {
    format!("c{n}/eth0")
}

fn number(handle: &str) -> usize {
    handle.trim_start_matches('c').trim_end_matches("/eth0").parse().unwrap()
}

fn pod(n: usize) -> ObjectName {
    ObjectName::new("shop", format!("web{n}"))
}

fn request(command: &str, n: usize, attachments: &serde_json::Value) -> Request {
    let config = json!({
        "cniVersion": "1.1.0", "name": "plumb", "type": "plumb-cni",
        "cni.dev/valid-attachments": attachments, "cni.dev/attachments": attachments,
    });
    let env = [
        ("CNI_COMMAND", command.to_owned()),
        ("CNI_CONTAINERID", format!("c{n}")),
        ("CNI_IFNAME", "eth0".to_owned()),
        ("CNI_NETNS", format!("/run/netns/c{n}")),
        ("CNI_PATH", "/opt/cni/bin".to_owned()),
        ("CNI_ARGS", format!("K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web{n};K8S_POD_UID=u{n}")),
    ];
    let env = env.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    Request::parse(&env, config.to_string().as_bytes()).unwrap()
}

impl World {
    pub fn new(recorded: Option<Bounds>) -> Self {
        let pool = POOL.parse().unwrap();
        let mut cluster = Cluster::default();
        for kind in Kind::ALL {
            cluster.apply(Event::Start(kind));
            cluster.apply(Event::Done(kind));
        }
        let own = Node { name: NODE.into(), pod_cidrs: vec![pool], ..Node::default() };
        cluster.apply(Event::Upsert(Row::Node(own)));
        let mut disk = Records::default();
        disk.pools_mut().push(Pool::new(pool, Duration::from_secs(2)));
        let mut world = Self {
            recorded,
            faults: Faults::default(),
            process: Process::default(),
            cluster,
            api: BTreeSet::new(),
            settings: Settings::new(NODE, vec!["10.244.0.0/16".parse().unwrap()], 1450),
            disk,
            sandboxes: BTreeMap::new(),
            veths: BTreeMap::new(),
            tables: BTreeSet::new(),
            flows: BTreeSet::new(),
            wanted: BTreeSet::new(),
            now: Duration::from_secs(1_000),
            counter: 0,
            kill: None,
            requests: (0..CONTAINERS)
                .map(|n| ["ADD", "DEL"].map(|command| request(command, n, &json!([]))))
                .collect(),
            starts: 0,
        };
        world.start();
        world
    }

    fn count(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    /// Attachments whose veth is there, and those whose namespace is.
    fn seen(&self) -> (BTreeSet<String>, BTreeSet<String>) {
        let records = self.process.attachments.records().all().iter();
        let is_it =
            |number: usize, id: Option<(u64, u64)>| self.sandboxes.get(&number) == id.map(|id| id.1).as_ref();
        let veths = records.clone().filter(|(_, record)| self.veths.contains_key(&record.host_if));
        let namespaces = records.filter(|(handle, record)| is_it(number(handle), record.netns_id));
        (
            veths.map(|(handle, _)| handle.clone()).collect(),
            namespaces.map(|(handle, _)| handle.clone()).collect(),
        )
    }

    fn start(&mut self) {
        self.starts += 1;
        let attachments = Attachments::new(self.disk.clone());
        let recording = self.recorded.map(|bounds| Recording::new(NODE, bounds));
        self.process = Process { attachments, recording, ..Process::default() };
        let (veths, namespaces) = self.seen();
        self.hear(Input::Started { veths, namespaces });
        for (handle, record) in self.process.attachments.records().all() {
            let is_wired = self.veths.contains_key(&record.host_if);
            assert!(is_wired || record.cut_off, "{handle} has no veth, and nobody is wiring it");
        }
    }

    fn facts(&self) -> Live<'_> {
        let situation = Situation {
            network: Some(Network::new(&self.cluster, &self.settings)),
            hears_pods: !self.faults.deaf,
            paused: self.faults.paused,
            orphan_grace: GRACE,
        };
        let generation = self.process.sent + 1;
        Live { cluster: &self.cluster, settings: Some(&self.settings), situation, generation }
    }

    fn step(&mut self, input: Input) -> Vec<Output> {
        let mut attachments = std::mem::take(&mut self.process.attachments);
        let mut recording = self.process.recording.take();
        let facts = self.facts();
        let outputs = match &mut recording {
            Some(recording) => recording.step(&mut attachments, input, &facts, self.now),
            None => attachments.step(input, &facts, self.now),
        };
        (self.process.attachments, self.process.recording) = (attachments, recording);
        outputs
    }

    /// Performs what follows from an input, and what follows from that. A kill ends it at any output.
    fn hear(&mut self, input: Input) {
        let mut outputs = VecDeque::from(self.step(input));
        while let Some(output) = outputs.pop_front() {
            if let Some((left, done)) = self.kill {
                let Some(left) = left.checked_sub(1) else { return self.restart(done) };
                self.kill = Some((left, done));
            }
            if let Some(answer) = self.perform(output) {
                let follows = self.step(answer);
                follows.into_iter().rev().for_each(|output| outputs.push_front(output));
            }
        }
    }

    /// What the process heard leads to the same decisions and states again, from what it recorded alone.
    fn replay(&self) {
        let Some(recording) = &self.process.recording else { return };
        let text = recording.text();
        let replay = Replay::of(&text);
        assert!(replay.agrees() && !replay.turns.is_empty(), "{replay:#?}\n{text}");
    }

    fn restart(&mut self, done: bool) {
        self.kill = None;
        self.replay();
        if done {
            for record in std::mem::take(&mut self.process.wires) {
                let _ = self.wire(&record);
            }
            for (_, host_if) in std::mem::take(&mut self.process.unwires) {
                self.delete_veth(&host_if);
            }
        }
        self.start();
    }

    fn delete_veth(&mut self, host_if: &IfName) {
        if let Some(veth) = self.veths.remove(host_if) {
            self.flows.extend(veth.ips);
        }
    }

    fn perform(&mut self, output: Output) -> Option<Input> {
        match output {
            Output::Save(save) if self.faults.disk_full => {
                return Some(Input::Saved(save, Err("no space left".into())));
            }
            Output::Save(save) => {
                self.disk = self.process.attachments.records().clone();
                return Some(Input::Saved(save, Ok(())));
            }
            Output::Row(event) => _ = self.cluster.apply(event),
            Output::Wire(wire) if self.faults.slow => self.process.wires.push(wire.record),
            Output::Wire(wire) => {
                let handle = wire.record.handle();
                let done = self.wire(&wire.record);
                return Some(Input::Wired(handle, done));
            }
            Output::Unwire { handle, host_if } => self.process.unwires.push((handle, host_if)),
            Output::Confirm(doubt) => self.process.doubts.push(doubt),
            Output::Reply(id, reply) => self.reply(id, &reply),
            Output::PoolsMoved | Output::Granted(_) | Output::Note(_) => {}
        }
        None
    }

    fn wire(&mut self, record: &node::Record) -> Result<(), cni::Error> {
        let handle = record.handle();
        let refused = |why: &str| Err(cni::Error::new(cni::Code::Kernel, why, ""));
        if self.faults.wire_fails {
            return refused("the kernel has no room");
        }
        if self.sandboxes.get(&number(&handle)) != record.netns_id.map(|id| id.1).as_ref() {
            return refused("no such namespace");
        }
        assert_eq!(self.disk.all().get(&handle), Some(record), "what is wired is recorded");
        assert!(self.tables.contains(&handle), "{handle} is open: its policies are not in the kernel");
        for ip in &record.ips {
            assert!(!self.flows.contains(ip), "{handle} gets {ip}, whose flows are known");
            let holder = self.veths.values().find(|veth| veth.ips.contains(ip));
            assert!(holder.is_none(), "{handle} gets {ip}, which {holder:?} has");
        }
        assert!(!self.veths.contains_key(&record.host_if), "{handle}: {} is there", record.host_if);
        self.veths.insert(record.host_if.clone(), Veth { handle, ips: record.ips.clone() });
        Ok(())
    }

    fn reply(&mut self, id: RequestId, reply: &Reply) {
        let request = self.process.open.remove(&id).expect("an answer to whom nobody has answered");
        match (request, reply) {
            (Request::Add(attach), Reply::Done(Ok(_))) => {
                let n = number(&attach.id.to_string());
                let lives = self.sandboxes.contains_key(&n) && self.api.contains(&pod(n));
                if lives {
                    self.wanted.insert(n);
                }
            }
            (Request::Del(attach), Reply::Done(Ok(_))) => {
                let handle = attach.id.to_string();
                let left = self.veths.values().find(|veth| veth.handle == handle);
                assert!(left.is_none(), "DEL of {handle} was answered, and {left:?} is there");
            }
            (Request::Add(attach), Reply::Done(Err(error))) if error.code != cni::Code::InterfaceExists => {
                let handle = attach.id.to_string();
                let has = self.process.attachments.records().all().contains_key(&handle);
                let leaves = self.process.attachments.is_leaving(&handle);
                assert!(!has || leaves, "ADD of {handle} failed ({error}), and its record stays");
            }
            _ => {}
        }
    }

    /// The kernel follows the rows, at once or later, and the node hears of it.
    pub fn follow(&mut self) {
        self.hear(Input::Round { trouble: None });
        if let Some(tables) = self.process.on_its_way.take() {
            self.followed(tables);
        }
        self.process.sent += 1;
        let tables = self.cluster.attachments.keys().map(ToString::to_string).collect();
        match self.faults.slow {
            true => self.process.on_its_way = Some(tables),
            false => self.followed(tables),
        }
    }

    fn followed(&mut self, tables: BTreeSet<String>) {
        if !self.faults.refuses {
            self.tables = tables;
        }
        let refused = self.faults.refuses.then(|| "no such expression".to_owned());
        let unforgotten = self.process.attachments.is_wiring().then(|| self.look()).flatten();
        self.hear(Input::Followed { through: self.process.sent, refused, unforgotten });
    }

    /// At flows of all addresses that nobody has, once.
    fn look(&mut self) -> Option<String> {
        if self.process.looked {
            return None;
        }
        if self.faults.forget_fails {
            return Some("no answer".to_owned());
        }
        self.process.looked = true;
        let held: BTreeSet<IpAddr> = self.veths.values().flat_map(|veth| veth.ips.iter().copied()).collect();
        self.flows.retain(|ip| held.contains(ip));
        self.hear(Input::ForgottenAll);
        None
    }

    /// What must hold at any time.
    pub fn check(&self) {
        let mut holders = BTreeMap::new();
        for veth in self.veths.values() {
            for ip in &veth.ips {
                let other = holders.insert(*ip, &veth.handle);
                assert!(other.is_none(), "{ip} is in {} and in {other:?}", veth.handle);
            }
        }
        for n in &self.wanted {
            let handle = handle(*n);
            let records = self.process.attachments.records();
            let record = records.all().get(&handle).unwrap_or_else(|| panic!("{handle} has no record"));
            let veth = self.veths.get(&record.host_if).unwrap_or_else(|| panic!("{handle} has no veth"));
            assert_eq!(veth.ips, record.ips);
            let row = self.cluster.attachments.values().any(|row| row.container == handle);
            assert!(row, "{handle} has no row, so no policy");
        }
    }

    /// Everything works again, and everything ends: nothing is left, and nobody waits.
    pub fn finish(&mut self) {
        self.faults = Faults::default();
        self.kill = None;
        for n in 0..CONTAINERS {
            self.end(n);
            self.del(n);
        }
        for _ in 0..3 {
            self.follow();
            self.work(true);
            self.follow();
            self.forget();
            self.pass(60);
        }
        self.follow();
        self.replay();
        let attachments = &self.process.attachments;
        assert!(attachments.records().all().is_empty(), "{:?}", attachments.records());
        let leases: Vec<_> = attachments.records().pools().iter().flat_map(Pool::leases).collect();
        assert!(leases.is_empty(), "{leases:?}");
        assert_eq!(self.disk, *attachments.records());
        assert!(self.veths.is_empty(), "{:?}", self.veths);
        assert!(self.cluster.attachments.is_empty(), "{:?}", self.cluster.attachments);
        assert!(attachments.unsure().is_empty(), "{:?}", attachments.unsure());
        assert!(self.process.open.is_empty(), "{:?}", self.process.open);
        assert!(!attachments.is_wiring());
    }
}

fn row(n: usize) -> Pod {
    Pod {
        key: pod(n),
        uid: format!("u{n}"),
        node: Some(NODE.into()),
        ips: Vec::new(),
        host_network: false,
        labels: Arc::default(),
        phase: Phase::Running,
        terminating: false,
        ready: true,
        grace: 5,
        ports: Vec::new(),
        hostname: None,
        subdomain: None,
        sources: None,
    }
}
