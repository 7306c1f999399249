//! Watches one flow on this node: frames on every interface, rules of every table, the conntrack entry.
//!
//! Nothing runs in the background: the kernel queues what it sees, with its own times, and the queues are read
//! once when the trace has ended. Nobody else's packets are copied: captures have a filter, and only packets of
//! the flow are marked for nft's trace ([`super::mark`]).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use compile::guard::cause::Cause;
use compile::guard::links;
use kernel::Rtnl;
use kernel::conntrack::{Beginnings, Conntrack};
use kernel::nft::{Nft, Notice, Observed, TraceEvents};
use kstate::nft::{BaseChain, Ruleset, TableId, Verdict};
use netlink::conntrack::{Entry, Filter};
use netlink::nft::{Trace, TraceKind, TraceVerdict};
use netlink::packet::Packet;
use trace::Sighting;
use trace::exchange::{Flow, Masqueraded};
use trace::observed::{Decision, Seen, Tuple};

use types::{Family, IfName};

use super::frames::{Ends, Frames};
use super::guards::Guards;
use super::mark::{Mark, Marked, TABLE};
use super::views::CAPTURED;

/// Nanoseconds of CLOCK_REALTIME, the clock of captures.
pub fn now() -> u64 {
    nanos(SystemTime::now())
}

pub fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// An open watch. Dropping it ends the marking.
#[derive(Debug)]
pub struct Watch {
    flow: Flow,
    events: TraceEvents,
    beginnings: Beginnings,
    frames: Frames,
    guards: Guards,
    _mark: Marked,
}

/// What a watch has seen.
#[derive(Debug)]
pub struct Caught {
    pub sightings: Vec<Sighting>,
    /// Where conntrack sends the flow, and whom it lets the answers go to.
    pub endpoint: Option<SocketAddr>,
    pub answers_to: Option<SocketAddr>,
}

impl Watch {
    /// On the sender's node. `masqueraded`: where to the flow may leave under another address and port. `port`: of the
    /// pod that sends it.
    pub async fn start(flow: Flow, masqueraded: Vec<IpAddr>, port: Option<IfName>) -> Result<Self> {
        Self::open(Mark::of(flow, &[]), masqueraded, port).await
    }

    /// On a node that it may come to.
    pub async fn await_flow(flow: Flow, masqueraded: &[Masqueraded]) -> Result<Self> {
        let masqueraded = masqueraded.get(..CAPTURED).unwrap_or(masqueraded);
        let addresses = masqueraded.iter().map(|to| to.destination.ip()).collect();
        Self::open(Mark::of(flow, masqueraded), addresses, None).await
    }

    async fn open(mark: Mark, masqueraded: Vec<IpAddr>, port: Option<IfName>) -> Result<Self> {
        let flow = mark.flow;
        tokio::task::spawn_blocking(move || {
            let events = TraceEvents::open().context("listen to nft's trace")?;
            let beginnings = Beginnings::open().context("listen to conntrack")?;
            let frames = Frames::open(flow, masqueraded).context("capture the flow")?;
            let guards = Guards::begin(port)?;
            let mark = mark.set().context("mark the flow for nft's trace")?;
            Ok(Self { flow, events, beginnings, frames, guards, _mark: mark })
        })
        .await
        .context("the watch ended early")?
    }

    /// Reads the queues. To be called after the packet has come to its end. `came_as`: as what it came to this node, if it
    /// did not start here.
    pub async fn finish(mut self, came_as: Option<Ends>) -> Result<Caught> {
        tokio::task::spawn_blocking(move || {
            let client = came_as.map_or(self.flow.source, |[client, _]| client);
            let entry = self.connection(client).context("look the flow up in conntrack")?;
            let ends = came_as.or_else(|| entry.map(|(_, reply)| [reply.destination, reply.source]));
            let mut sightings = self.frames.take(ends).context("read captured frames")?;
            let rules = self.rules(client).context("read nft's trace")?;
            // A packet that is dropped leaves no entry, and yet it was sent somewhere.
            let endpoint = match &entry {
                Some((_, reply)) => Some(reply.source),
                None => rules.iter().rev().filter(|rule| !rule.answer).find_map(translated),
            };
            let answers_to = entry.map(|(_, reply)| reply.destination);
            let dropped = self.guards.finish()?;
            sightings.extend(rules.into_iter().chain(dropped).map(|rule| Sighting::Nft { rule }));
            sightings.extend(entry.map(|(original, reply)| Sighting::Conntrack { original, reply }));
            Ok(Caught { sightings, endpoint, answers_to })
        })
        .await
        .context("the watch ended early")?
    }

    /// The flow's entry: original and reply direction. One that is gone already was told of when it began.
    fn connection(&mut self, client: SocketAddr) -> Result<Option<(Tuple, Tuple)>> {
        let family = Family::of(client.ip());
        let filter = Filter {
            protocol: Some(self.flow.protocol.number_in(family)),
            src: Some(client.ip()),
            ..Filter::default()
        };
        let is = |entry: &Entry| filter.matches(entry) && tuple(entry.original).source == client;
        let begun = self.beginnings.last(is)?;
        let entries = Conntrack::open()?.entries(family, &filter)?;
        let entry = entries.into_iter().find(is).or(begun);
        Ok(entry.map(|entry| (tuple(entry.original), tuple(entry.reply))))
    }

    /// The rules that the flow's first packet met, and those that its first answer met.
    fn rules(&mut self, client: SocketAddr) -> Result<Vec<Decision>> {
        let mut steps: Vec<Trace> = Vec::new();
        for notice in self.events.take()? {
            match notice {
                Notice::Event(step) if *step.table.name != *TABLE => steps.push(step),
                Notice::Event(_) => {}
                Notice::Lost => tracing::warn!("nft's trace lost events: the queue was full"),
            }
        }
        // Steps without headers belong to the packet of their id.
        let id = |is: &dyn Fn(Seen) -> bool| {
            steps.iter().find(|step| packet(step).is_some_and(is)).map(|step| step.id)
        };
        let forth = id(&|packet| packet.source == client);
        let back = id(&|packet| packet.destination == client);
        let decider = Decider::new(&steps)?;
        let mut rules = Vec::new();
        for (id, answer) in [(forth, false), (back, true)] {
            let mut hook = String::new();
            let of_packet = steps.iter().filter(|step| id == Some(step.id));
            let mut decided: Vec<_> =
                of_packet.map(|step| decider.decision(step, &mut hook, answer)).collect();
            // Numbers come again with later packets, whose way begins anew.
            let turn =
                decided.windows(2).position(|two| matches!(two, [a, b] if order(&a.hook) > order(&b.hook)));
            decided.truncate(turn.map_or(decided.len(), |at| at + 1));
            rules.extend(decided);
        }
        Ok(rules)
    }
}

/// An echo's identifier stands where the asking side's port is, as in [`super::frames::addresses`].
fn tuple(tuple: netlink::conntrack::Tuple) -> Tuple {
    let (mut source, mut destination) = (tuple.src, tuple.dst);
    match tuple.icmp {
        Some(icmp) if [8, 128].contains(&icmp.kind) => source.set_port(icmp.id),
        Some(icmp) => destination.set_port(icmp.id),
        None => {}
    }
    Tuple { source, destination }
}

/// The hooks in the order in which a packet meets them.
fn order(hook: &str) -> usize {
    ["prerouting", "input", "forward", "output", "postrouting"].iter().position(|h| *h == hook).unwrap_or(0)
}

/// Where a rule after prerouting saw the packet go.
fn translated(rule: &Decision) -> Option<SocketAddr> {
    let later = ["forward", "input", "postrouting"].contains(&rule.hook.as_str());
    rule.packet.filter(|_| later).map(|packet| packet.destination)
}

/// What the numbers in trace events mean.
struct Decider {
    known: BTreeMap<TableId, Observed>,
    names: BTreeMap<u32, IfName>,
}

impl Decider {
    fn new(steps: &[Trace]) -> Result<Self> {
        let links = Rtnl::open()?.links()?;
        Ok(Self {
            known: known(steps.iter().map(|step| step.table.clone()).collect()),
            names: links.into_iter().map(|link| (link.index, link.name)).collect(),
        })
    }

    /// `hook`: that of the base chain that the packet is in, kept from step to step.
    fn decision(&self, step: &Trace, hook: &mut String, answer: bool) -> Decision {
        let seen = self.known.get(&step.table);
        if let Some(base) = seen.and_then(|seen| base(&seen.ruleset, step)) {
            *hook = format!("{:?}", base.hook).to_lowercase();
        }
        let rule = seen.zip(step.handle).and_then(|(seen, h)| seen.rule(&step.table, &step.chain, h));
        let ours = &*step.table.name == types::wire::TABLE;
        let its_own = links::dropping().any(|own| own == step.chain) && step.chain != links::UNEXPECTED;
        let guard = ours && (its_own || rule.is_some_and(|rule| Cause::of_comment(&rule.comment).is_some()));
        Decision {
            hook: hook.clone(),
            family: format!("{:?}", step.table.family).to_lowercase(),
            table: step.table.name.to_string(),
            chain: step.chain.clone(),
            verdict: verdict(step),
            comment: rule.map(|rule| rule.comment.clone()).unwrap_or_default(),
            packet: packet(step),
            oif: step.oif.and_then(|index| self.names.get(&index).cloned()),
            answer,
            guard,
        }
    }
}

/// The tables as they are now, each by itself: one that cannot be read hides no other.
fn known(mut tables: Vec<TableId>) -> BTreeMap<TableId, Observed> {
    tables.sort();
    tables.dedup();
    let Ok(mut nft) = Nft::open() else { return BTreeMap::new() };
    let observe = |id: TableId| {
        let seen = nft.observe(std::slice::from_ref(&id));
        seen.inspect_err(|error| tracing::debug!(%error, table = &*id.name, "not readable"))
            .ok()
            .map(|s| (id, s))
    };
    tables.into_iter().filter_map(observe).collect()
}

fn base(ruleset: &Ruleset, step: &Trace) -> Option<BaseChain> {
    ruleset.tables.get(&step.table)?.chains.get(&step.chain)?.base
}

fn verdict(step: &Trace) -> String {
    let word = match &step.verdict {
        TraceVerdict::Verdict(Verdict::Accept) => "accept".to_owned(),
        TraceVerdict::Verdict(Verdict::Drop) => "drop".to_owned(),
        TraceVerdict::Verdict(Verdict::Return) => "return".to_owned(),
        TraceVerdict::Verdict(Verdict::Jump(chain)) => format!("jump {chain}"),
        TraceVerdict::Verdict(Verdict::Goto(chain)) => format!("goto {chain}"),
        TraceVerdict::Continue => "continue".to_owned(),
        TraceVerdict::Other(code) => format!("verdict {code}"),
    };
    match step.kind {
        TraceKind::Policy => format!("policy {word}"),
        TraceKind::Rule | TraceKind::Return => word,
    }
}

/// The packet as the step saw it; only the first step of each table and hook carries its headers.
fn packet(step: &Trace) -> Option<Seen> {
    let bytes = [&step.network_header[..], &step.transport_header[..]].concat();
    super::frames::addresses(&Packet::parse(&bytes)?)
}
