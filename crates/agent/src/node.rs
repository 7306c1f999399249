//! The node's loop: what it hears, what follows for the kernel, whom it answers.
//!
//! ```text
//!   inbox ─ take ─> model.apply ─ settle ─> compile.take ────┬─> links, routes
//!                                 advance ─> compile.advance ┴─> pieces ─ send ─> thread of the tables (datapath/backend.rs)
//!                                 (a piece in each round)                              │
//!                        answer to CNI, DNS, Events <─ followed <─ hear_backend <──────┘
//!                                    mend: observe ─> diff ─> apply  (after foreign changes, and now and then)
//! ```

mod answer;
mod carry;
mod check;
mod detour;
mod diagnose;
mod drifted;
mod dropped;
mod fit;
mod flows;
mod following;
mod ground;
mod held;
mod mend;
mod own;
mod perform;
mod settle;
mod sources;
mod standing;
mod underlay;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use compile::Compiler;
use kstate::net::Told;
use kstate::nft::Ruleset;
use model::{Cluster, Key};
use node::drift::{self, Drift};
use node::{Attachments, Bounds, Record, Recording, Records};
use semantics::service::flows::Frontends;
use tokio::sync::watch as signal;

use crate::api::Api;
use crate::confirm::Confirm;
use crate::datapath::{Datapath, Subsystem};
use crate::dns::SharedZone;
use crate::fault::Fault;
use crate::forgetter::Forgetter;
use crate::health::Wanted;
use crate::inbox::{Inbox, Input};
use crate::metrics::Metrics;
use crate::network::Presence;
use crate::reaper::Reaper;
use crate::settings::Settings;
use crate::store::Store;
use crate::tell::Tell;
use crate::wirer::Wirer;

pub use diagnose::Diagnoses;
use dropped::Accounts;
use flows::Former;
use following::Following;
pub use ground::Ground;
use perform::Requests;
use sources::Sources;
pub use standing::Standing;
use underlay::Underlay;

/// What the loop stands on.
pub struct Base {
    pub settings: Arc<Settings>,
    /// Where the API is, for what is said about it.
    pub api: Api,
    pub store: Store,
    pub datapath: Datapath,
    pub wirer: Wirer,
    pub reaper: Reaper,
    pub forgetter: Forgetter,
    pub tell: Tell,
    pub confirm: Confirm,
    pub metrics: Arc<Metrics>,
    pub zone: SharedZone,
    /// At which addresses the node is, and whether everything is in place.
    pub presence: signal::Sender<Presence>,
    /// Health checks of load balancers that this node answers.
    pub checks: Wanted,
}

/// The loop's state; only its own thread writes.
pub struct Node {
    base: Base,
    /// Shared with who has a snapshot.
    cluster: Arc<Cluster>,
    /// There since Nodes were listed; whole since everything was.
    compiler: Option<Compiler>,
    /// Changed since the last round, of what links and routes are made of, until everything is listed.
    placed: BTreeSet<Key>,
    /// Changed since the last round; a node that waits for something, or is in a conflict, may gather them for days.
    changed: BTreeSet<Key>,
    following: Following,
    stale: Stale,
    paused: bool,
    stopped: bool,
    diagnoses: Diagnoses,
    attachments: Attachments,
    requests: Requests,
    recording: Recording,
    frontends: Frontends,
    standing: Standing,
    drift: Drift,
    underlay: Underlay,
    last_look: Instant,
    loose: Loose,
    /// Why the runtime cannot call us.
    uncalled: Option<Fault>,
    dropped: Accounts,
    former: Former,
    sources: Sources,
    /// Since when nodes lack what comes with joining, as long as that is no news.
    joining: BTreeMap<semantics::Diagnostic, Instant>,
    /// The MTU that pods' own ends were made to have.
    fitted: Option<u32>,
}

/// Subsystems whose state in the kernel may not be what we think.
#[derive(Debug, Default)]
struct Stale {
    /// Somebody else changed something.
    suspected: BTreeSet<Subsystem>,
    /// A plan failed: not what it should be, whoever did it.
    failed: BTreeMap<Subsystem, String>,
    /// What the kernel has said of links, in its order, and nobody has compared with what we know of them.
    told: Vec<Told>,
}

/// Memory that was in use for a moment: many objects read, or the whole kernel looked at.
#[derive(Debug, Default)]
struct Loose {
    objects: usize,
    given_back: Option<Instant>,
}

impl Loose {
    const MANY: usize = 2_000;
    const PAUSE: Duration = Duration::from_secs(10);

    fn add(&mut self, objects: usize) {
        self.objects += objects;
    }

    fn tick(&mut self) {
        if self.objects >= Self::MANY && self.given_back.is_none_or(|at| at.elapsed() >= Self::PAUSE) {
            kernel::memory::give_back();
            *self = Self { objects: 0, given_back: Some(Instant::now()) };
        }
    }
}

impl Node {
    /// `records`: what the process before has left.
    pub fn new(base: Base, records: Records) -> Self {
        let recording = Recording::new(&base.settings.node, Bounds::default());
        let mut node = Self {
            base,
            cluster: Arc::default(),
            compiler: None,
            placed: BTreeSet::new(),
            changed: BTreeSet::new(),
            following: Following::default(),
            stale: Stale::default(),
            paused: false,
            stopped: false,
            diagnoses: Diagnoses::default(),
            attachments: Attachments::new(records),
            requests: Requests::default(),
            recording,
            frontends: Frontends::default(),
            standing: Standing::default(),
            drift: Drift::default(),
            underlay: Underlay::default(),
            last_look: Instant::now(),
            loose: Loose::default(),
            uncalled: None,
            dropped: Accounts::default(),
            former: Former::default(),
            sources: Sources::default(),
            joining: BTreeMap::new(),
            fitted: None,
        };
        node.reload();
        node
    }

    /// Runs until it is told to stop, or nobody can send any more.
    pub fn run(mut self, mut inbox: Inbox) {
        loop {
            let inputs = if self.may_advance() { inbox.glance() } else { inbox.wait(self.rest()) };
            let Some(inputs) = inputs else { return };
            if let Err(error) = self.round(inputs) {
                tracing::error!("{error:#}");
                return;
            }
            if self.stopped {
                return;
            }
        }
    }

    /// What pods wait for first; of the rest one piece, when the kernel has what was sent before.
    fn round(&mut self, inputs: Vec<Input>) -> anyhow::Result<()> {
        for input in inputs {
            self.take(input);
        }
        if self.stopped {
            return Ok(());
        }
        self.hear_backend()?;
        self.look_for_ways();
        self.settle();
        self.retry_waiting();
        self.settle();
        self.send();
        self.followed();
        self.have_forgotten();
        self.mend();
        self.advance();
        Ok(())
    }

    /// In the middle of a long first list.
    fn rest(&self) -> Option<Duration> {
        let long = self.cluster.synced().is_none() && self.changed.len() >= Loose::MANY;
        long.then_some(Duration::from_millis(5))
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Watch(watch::Message::Event(event)) => self.apply(event),
            Input::Watch(watch::Message::Diagnosed(key, found)) => self.diagnosed(key, found),
            Input::Watch(watch::Message::Trouble(kind, error)) => {
                self.base.metrics.watch_trouble(&format!("{kind:?}"));
                let (node, next) = (&self.base.settings.node, error.next_step(&self.api_host()));
                if self.standing.watch_broke(kind, Fault::new(error.cause(), &next)) {
                    tracing::warn!(%error, next, "node {node} does not hear the API at {}", self.base.api.addresses);
                }
            }
            Input::Watch(watch::Message::Answered(kind)) => self.standing.watch_answered(kind),
            Input::Cni(request) => self.cni(*request),
            Input::Wired(wired) => self.wired(*wired),
            Input::Reaped(reaped) => self.reaped(reaped),
            Input::Forgot(forgot) => self.forgot(&forgot),
            Input::Confirmed(doubt, answer) => _ = self.hear(node::Input::Confirmed(doubt, answer)),
            Input::KernelChanged(subsystem) => {
                self.stale.suspected.insert(subsystem);
            }
            Input::Told(told) => self.stale.told.extend(told),
            Input::GroundChanged => self.underlay.look_again(),
            Input::DetoursChanged => self.underlay.look_for_detours(),
            Input::Pause(paused) => {
                self.paused = paused;
                self.base.metrics.paused(paused);
                tracing::info!(paused, "drift is {}", if paused { "reported only" } else { "mended" });
                self.suspect_everything();
            }
            Input::BackendTurned => {}
            Input::Tick => self.tick(),
            Input::Asked(question) => self.answer(question),
            Input::Stop => self.stopped = true,
        }
    }

    fn tick(&mut self) {
        self.loose.tick();
        let net = self.compiler.as_ref().map(Compiler::net);
        if net.is_some_and(|net| self.base.datapath.links.sysctls_were_changed(net)) {
            self.stale.suspected.insert(Subsystem::Net);
        }
        self.tell_who_does_not_join();
        self.tell_what_is_refused();
        self.look_for_drops();
        self.look_for_orphans();
        self.look_after_sources();
        let refresh = Duration::from_secs(self.base.settings.args.refresh);
        let time_to_look = self.last_look.elapsed() >= refresh;
        if time_to_look {
            // The API may not have taken our annotation.
            self.follow_own_node();
        }
        if time_to_look || !self.stale.failed.is_empty() {
            self.suspect_everything();
        }
    }

    fn suspect_everything(&mut self) {
        self.stale.suspected.extend(Subsystem::ALL);
        self.last_look = Instant::now();
    }

    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// What the node means; `None` before everything was listed.
    pub fn compiler(&self) -> Option<&Compiler> {
        self.whole()
    }

    /// The tables as they should be, as they are now: a copy that costs nothing.
    pub fn tables(&self) -> Arc<Ruleset> {
        self.base.datapath.backend.desired()
    }

    fn whole(&self) -> Option<&Compiler> {
        self.compiler.as_ref().filter(|compiler| compiler.is_whole())
    }

    /// The interfaces that are wired here.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.attachments.records().wired()
    }

    pub fn settings(&self) -> &Settings {
        &self.base.settings
    }

    /// What holds beyond one round of the loop.
    pub fn standing(&self) -> &Standing {
        &self.standing
    }

    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// What this node gives pods addresses from.
    pub fn pools(&self) -> &[ipam::Pool] {
        self.attachments.records().pools()
    }

    /// What is wrong with objects, each in a sentence.
    pub fn findings(&self) -> Vec<String> {
        let converted = self.diagnoses.all().map(ToString::to_string);
        converted.chain(self.standing.findings().map(ToString::to_string)).collect()
    }

    /// Other nodes that packets of this one cannot reach.
    pub fn out_of_reach(&self) -> Vec<Fault> {
        self.underlay.out_of_reach().map(Fault::from).collect()
    }

    /// What this node needs of its machine and has not.
    pub fn lacks(&self) -> Vec<Fault> {
        self.underlay.lacks().map(Fault::from).collect()
    }

    /// What of others takes packets to pods.
    pub fn detours(&self) -> Vec<Fault> {
        self.underlay.detoured().map(Fault::from).collect()
    }

    /// Packets that its links are too small for.
    pub fn too_large(&self) -> Vec<Fault> {
        self.underlay.too_large().map(Fault::from).collect()
    }

    /// Of the API's first address.
    fn api_host(&self) -> String {
        let first = self.base.api.addresses.split(" or ").next().unwrap_or_default();
        let uri: Option<http::Uri> = first.parse().ok();
        // `ip` takes an IPv6 address without the brackets of a URI.
        uri.as_ref().and_then(http::Uri::host).unwrap_or(first).trim_matches(['[', ']']).to_owned()
    }

    /// What the kernel refuses, by subsystem.
    pub fn refused_now(&self) -> impl Iterator<Item = (Subsystem, Fault)> {
        let node = &self.base.settings.node;
        let told = move |(subsystem, error): (&Subsystem, &String)| {
            (*subsystem, Fault::from(&drift::refused(node, subsystem.part(), error)))
        };
        self.stale.failed.iter().map(told)
    }

    /// Why this node is not ready, if so.
    pub fn trouble(&self) -> Option<Fault> {
        self.lacking().or_else(|| self.uncalled.clone())
    }

    /// Why this node cannot wire pods or does not have the datapath it should, if so.
    pub fn lacking(&self) -> Option<Fault> {
        let missing: Vec<String> = self.cluster.missing().map(|kind| format!("{kind:?}")).collect();
        if !missing.is_empty() {
            let waiting = format!(
                "waiting for the first list of {} from the API at {}",
                missing.join(", "),
                self.base.api.addresses
            );
            return Some(match self.standing.broken_watches().next() {
                Some((_, broken)) => Fault::new(format!("{waiting}: {}", broken.what), &broken.next),
                None => Fault::unexplained(waiting),
            });
        }
        if let Some(found) = self.underlay.in_the_way() {
            return Some(Fault::from(found));
        }
        if self.whole().is_none() || !self.base.datapath.backend.has_followed() {
            return Some(Fault::unexplained("nothing is made here yet"));
        }
        if let Some((_, refused)) = self.refused_now().next() {
            return Some(refused);
        }
        if !self.pools().is_empty() {
            return None;
        }
        let node = &self.base.settings.node;
        let next = "start kube-controller-manager with --allocate-node-cidrs, which assigns it, or set the Node's \
                    spec.podCIDR";
        Some(Fault::new(format!("node {node} has no pod CIDR yet"), next))
    }
}
