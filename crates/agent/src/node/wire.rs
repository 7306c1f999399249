//! CNI requests on the loop's thread.
//!
//! ```text
//!   ADD   address, record saved, attachment ─> model ─ settle: policies in the kernel ─> veth ─> reply
//!   DEL   reaper deletes the veth (with others) ─> address released, record gone, model ─> reply
//! ```
//! A process killed between any two of these leaves either a record whose veth is missing (it is released at the next start)
//! or a veth with its record (which DEL removes). Flows are forgotten before anybody has the address next (flows.rs).

use std::net::IpAddr;
use std::time::{Duration, Instant};

use cni::{Attach, Code, Error, Interface, Ip, Request, Route, Success};
use compile::wiring::{self, PodSide};
use compile::{Compiler, net};
use kernel::Netns;
use kernel::veth::{self, PodRoute, PodVeth, Port};
use model::{Event, HostPort, Row};
use semantics::service::reserved;
use tokio::sync::oneshot;
use types::{Family, IfName, IpNet, Mac, ObjectName, hash8};

use super::Node;
use super::host_port;
use crate::clock;
use crate::inbox::{CniInput, Subsystem, Verdict};
use crate::store::{Record, namespace_id};

/// So long a request waits for the first lists and the first rules, before the runtime is told to try again.
const PATIENCE: Duration = Duration::from_secs(20);

/// An ADD whose policies are on their way into the kernel.
pub struct Wiring {
    record: Record,
    version: cni::Version,
    reply: oneshot::Sender<Verdict>,
}

impl Wiring {
    pub fn handle(&self) -> String {
        self.record.handle()
    }
}

/// How many names or addresses are tried before it is said that all are taken.
const TRIES: u32 = 16;

/// Names of the host side: the same for the same attachment, whoever asks and when, the first of which nobody else has.
/// They are short hashes, for an interface has 15 characters.
pub fn host_ifs(handle: &str) -> impl Iterator<Item = IfName> + '_ {
    let name = move |attempt| match attempt {
        0 => format!("veth{}", hash8(handle)),
        again => format!("veth{}", hash8(&format!("{handle} {again}"))),
    };
    (0..TRIES).filter_map(move |attempt| IfName::new(&name(attempt)).ok())
}

impl Node {
    pub(super) fn cni(&mut self, input: CniInput) {
        let CniInput { request, pod, received, reply } = input;
        let answer = match &request {
            Request::Add(attach) => match self.begin_add(attach, pod.clone()) {
                Ok(Begun::Wiring(record)) => {
                    let version = attach.config.version;
                    self.wiring.push(Wiring { record: *record, version, reply });
                    return;
                }
                Ok(Begun::NeedPod(name)) => Verdict::NeedPod(name),
                Ok(Begun::NotYet) => {
                    self.waiting.push(CniInput { request, pod, received, reply });
                    return;
                }
                Err(error) => Verdict::Done(Err(error)),
            },
            Request::Del(attach) => return self.begin_del(&attach.id, reply),
            Request::Gc(gc) => return self.collect_garbage(gc, reply),
            Request::Check(attach) => Verdict::Done(self.check(attach).map(|()| String::new())),
            Request::Status(_) => Verdict::Done(self.status().map(|()| String::new())),
            Request::Version(version) => Verdict::Done(Ok(Request::versions(*version))),
        };
        // A runtime that hung up has nobody to tell.
        let _ = reply.send(answer);
    }

    /// Requests that came too early: again, or over.
    pub(super) fn retry_waiting(&mut self) {
        for input in std::mem::take(&mut self.waiting) {
            if input.received.elapsed() < PATIENCE {
                self.cni(input);
                continue;
            }
            let why = self.trouble().map_or_else(|| "it is starting".to_owned(), |fault| fault.to_string());
            let details = "the runtime will try again; kubectl describe node shows what is missing";
            let error =
                Error::new(Code::TryAgainLater, format!("this node cannot wire pods yet: {why}"), details);
            let _ = input.reply.send(Verdict::Done(Err(error)));
        }
    }

    fn begin_add(&mut self, attach: &Attach, pod: Option<model::Pod>) -> Result<Begun, Error> {
        if self.whole().is_none() || !self.base.store.has_pool() {
            return Ok(Begun::NotYet);
        }
        let handle = attach.id.to_string();
        if self.leaving.has(&handle) {
            let msg = format!("attachment {handle} is being removed");
            return Err(Error::new(Code::TryAgainLater, msg, "the runtime will try again"));
        }
        if let Some(record) = self.base.store.records().get(&handle) {
            let msg = format!("attachment {handle} exists, with address {:?}", record.ips);
            return Err(Error::new(Code::InterfaceExists, msg, "DEL comes before another ADD"));
        }
        if let Some(name) = self.unknown_pod(attach, pod) {
            return Ok(Begun::NeedPod(name));
        }
        let record = self.reserve(attach, &handle)?;
        self.apply(Event::Upsert(Row::Attachment(Box::new(record.row()))));
        Ok(Begun::Wiring(Box::new(record)))
    }

    /// The pod's name when neither the watch nor the API has shown it: its labels decide its policies.
    fn unknown_pod(&mut self, attach: &Attach, pod: Option<model::Pod>) -> Option<ObjectName> {
        let wanted = attach.pod.as_ref()?;
        let known = self.cluster.pods.get(&wanted.name);
        if known.is_some_and(|pod| wanted.uid.is_empty() || pod.uid == wanted.uid) {
            return None;
        }
        let Some(pod) = pod else { return Some(wanted.name.clone()) };
        self.apply(Event::Upsert(Row::Pod(Box::new(pod))));
        None
    }

    fn reserve(&mut self, attach: &Attach, handle: &str) -> Result<Record, Error> {
        let now = clock::since_boot();
        let records = self.base.store.records();
        let named = |name: &IfName| records.values().any(|record| record.host_if == *name);
        let host_if = host_ifs(handle).find(|name| !named(name)).ok_or_else(|| {
            let msg = format!("every interface name that attachment {handle} could have is another's");
            Error::new(Code::TryAgainLater, msg, "the runtime will try again, with another container id")
        })?;
        let again = |msg: String| Error::new(Code::TryAgainLater, msg, "the runtime will try again");
        let host_ports = self.host_ports(attach)?;
        if let Some(mac) = attach.mac.filter(|mac| self.has_mac(*mac)) {
            let msg = format!("hardware address {mac} is that of another pod of this node, or of its bridge");
            return Err(Error::new(
                Code::AddressRefused,
                msg,
                "ask for another hardware address, or for none",
            ));
        }
        let ips = match self.allocate(attach, handle) {
            Ok(ips) => ips,
            Err(error) => {
                // What one family gave when the other had nothing.
                self.base.store.release(handle, now);
                return Err(error);
            }
        };
        let Some(first) = ips.iter().min() else {
            return Err(again("this node has no pod CIDR".into()));
        };
        let mac = attach.mac.unwrap_or_else(|| self.free_mac(*first));
        let outside_kubernetes = || (ObjectName::cluster(&attach.id.container), String::new());
        let (pod, uid) = attach.pod.clone().map_or_else(outside_kubernetes, |pod| (pod.name, pod.uid));
        let record = Record {
            container: attach.id.container.clone(),
            ifname: attach.id.ifname.clone(),
            network: attach.config.name.clone(),
            netns_id: attach.netns.as_deref().and_then(namespace_id),
            netns: attach.netns.clone().unwrap_or_default(),
            grace: self.cluster.pods.get(&pod).map_or(0, |pod| pod.grace),
            cut_off: false,
            further: Vec::new(),
            pod,
            uid,
            ips,
            wiring: self.base.settings.wiring,
            host_if,
            mac,
            host_ports,
        };
        self.base.store.insert(record.clone());
        if let Err(error) = self.base.store.save() {
            self.base.store.release(handle, now);
            let details = "see that the agent's data directory is writable and has room";
            return Err(Error::new(Code::Io, format!("the address cannot be recorded: {error:#}"), details));
        }
        Ok(record)
    }

    fn host_ports(&self, attach: &Attach) -> Result<Vec<HostPort>, Error> {
        let reserved = |port: &HostPort| {
            let settings = self.compiler.as_ref().map(Compiler::settings)?;
            reserved::host_port((&self.cluster, settings), port)
        };
        host_port::wanted(attach, reserved, self.base.store.records().values())
    }

    /// Two ports of a bridge with one hardware address would take each other's frames.
    fn has_mac(&self, mac: Mac) -> bool {
        let own = self.cluster.nodes.get(&self.base.settings.node);
        let mut subnets = own.into_iter().flat_map(semantics::node::pod_subnets);
        subnets.any(|subnet| net::mac_of(subnet.gateway) == mac)
            || self.base.store.records().values().any(|record| record.mac == mac)
    }

    /// That of an IPv6 address is a short hash, so somebody may have it.
    fn free_mac(&self, address: IpAddr) -> Mac {
        let mut macs = net::macs_of(address).take(TRIES as usize);
        macs.find(|mac| !self.has_mac(*mac)).unwrap_or_else(|| net::mac_of(address))
    }

    /// One address of each family that the node has.
    fn allocate(&mut self, attach: &Attach, handle: &str) -> Result<Vec<IpAddr>, Error> {
        let now = clock::since_boot();
        let refused = |msg| Error::new(Code::AddressRefused, msg, "ask for another address, or for none");
        let pools = self.base.store.pools();
        let served = |ip: &IpAddr| pools.iter().any(|pool| Family::of_net(&pool.cidr()) == Family::of(*ip));
        if let Some(stranger) = attach.ips.iter().find(|ip| !served(ip)) {
            let family = Family::of(*stranger);
            return Err(refused(format!(
                "address {stranger} is {family}, of which this node has no pod CIDR"
            )));
        }
        let mut ips = Vec::new();
        for pool in pools {
            let family = Family::of_net(&pool.cidr());
            ips.push(match attach.ips.iter().find(|ip| Family::of(**ip) == family) {
                None => pool.allocate(handle, now).map_err(|exhausted| {
                    Error::new(Code::TryAgainLater, exhausted.to_string(), "the runtime will try again")
                })?,
                Some(wanted) => pool
                    .allocate_this(handle, *wanted, now)
                    .map_err(|refusal| refused(refusal.to_string()))?,
            });
        }
        Ok(ips)
    }

    /// The policies of these pods are in the kernel now, or the kernel refused them: then the pods are not wired,
    /// since they would be open.
    pub(super) fn finish_wiring(&mut self) {
        if self.wiring.is_empty() {
            return;
        }
        for Wiring { record, version, reply } in std::mem::take(&mut self.wiring) {
            let refused = self.stale.failed.get(&Subsystem::Nft).map(|error| {
                let msg = format!("the kernel did not take the policies of pod {}: {error}", record.pod);
                Error::new(Code::PolicyNotApplied, msg, "the runtime will try again")
            });
            let wired = refused.map_or_else(|| self.forget_former(&record), Err);
            let wired = wired.and_then(|()| self.create_veth(&record));
            let answer = match wired {
                Ok(success) => {
                    tracing::info!(pod = %record.pod, ip = ?record.ips, veth = %record.host_if, "wired");
                    self.made.insert(record.handle(), Instant::now());
                    Ok(success.render(version))
                }
                Err(error) => {
                    tracing::warn!(pod = %record.pod, %error, "not wired");
                    self.forget(&record.handle());
                    Err(error)
                }
            };
            // Before the answer: whoever has it reads what it says.
            self.base.metrics.attachments(self.base.store.wired().count());
            // A runtime that hung up will DEL or GC it.
            let _ = reply.send(Verdict::Done(answer));
        }
        self.settle();
    }

    /// Makes the pair with all that is in the pod's namespace.
    pub(super) fn create_veth(&mut self, record: &Record) -> Result<Success, Error> {
        let Some(compiler) = &self.compiler else {
            return Err(Error::new(Code::TryAgainLater, "the node's network is not known yet", ""));
        };
        let netns = Netns::open(&record.netns).map_err(|error| {
            let details = "the container ended meanwhile, or the agent does not see the runtime's /run";
            Error::new(Code::UnknownContainer, error.to_string(), details)
        })?;
        // The path of a process that ended may be another one's by now.
        if !record.namespace_lives() {
            let msg = format!("{} is another network namespace than it was", record.netns);
            return Err(Error::new(Code::UnknownContainer, msg, "the container ended meanwhile"));
        }
        let own = self.cluster.nodes.get(&self.base.settings.node);
        let subnets: Vec<_> = own.into_iter().flat_map(semantics::node::pod_subnets).collect();
        let wiring = wiring::of(record.wiring);
        let side = wiring.pod_side(&record.ips, &subnets).map_err(|family| {
            let msg = format!("this node has no {family} pod CIDR");
            Error::new(Code::TryAgainLater, msg, "the runtime will try again")
        })?;
        let mtu = compiler.settings().mtu;
        let port = wiring.host_link(mtu).and_then(|link| link.port);
        let routes: Vec<PodRoute> =
            side.routes.iter().map(|(dst, via)| PodRoute { dst: *dst, via: *via }).collect();
        let pair = PodVeth {
            host: &record.host_if,
            host_mac: None,
            netns: &netns,
            interface: &record.ifname,
            mac: Some(record.mac),
            mtu: Some(mtu),
            addresses: &side.addresses,
            routes: &routes,
            bridge: port.as_ref().map(|port| Port { bridge: &port.bridge, options: port.options }),
            loopback: false,
        };
        veth::create(&mut self.base.datapath.rtnl, &pair).map_err(|error| explain(&error))?;
        self.base.datapath.believe_veth(&record.host_if, compiler.net());
        Ok(success(record, &side, mtu))
    }

    /// Gives everything of an attachment back: record, address, row.
    pub(super) fn forget(&mut self, handle: &str) {
        self.doubt_flows(handle);
        self.base.store.release(handle, clock::since_boot());
        if let Err(error) = self.base.store.save() {
            tracing::error!(error = format!("{error:#}"), "attachments cannot be saved");
        }
        self.withdraw_row(handle);
    }

    pub(super) fn withdraw_row(&mut self, handle: &str) {
        self.made.remove(handle);
        let key = model::Key::new(model::Kind::Attachment, ObjectName::cluster(handle));
        self.apply(Event::Delete(key));
    }
}

enum Begun {
    Wiring(Box<Record>),
    NeedPod(ObjectName),
    NotYet,
}

/// EEXIST of linux/errno-base.h.
const EEXIST: i32 = 17;

fn explain(error: &kernel::Error) -> Error {
    match error.errno() {
        Some(EEXIST) => Error::new(Code::InterfaceExists, error.to_string(), "DEL comes before another ADD"),
        _ => Error::new(Code::Kernel, error.to_string(), "nothing is left of it; the runtime will try again"),
    }
}

fn success(record: &Record, side: &PodSide, mtu: u32) -> Success {
    let host = Interface { name: record.host_if.to_string(), mac: None, mtu: Some(mtu), sandbox: None };
    let pod = Interface {
        name: record.ifname.to_string(),
        mac: Some(record.mac),
        mtu: Some(mtu),
        sandbox: Some(record.netns.clone()),
    };
    let ips = side.addresses.iter().zip(&side.gateways).map(|(address, gateway)| Ip {
        address: *address,
        gateway: Some(*gateway),
        interface: Some(1),
    });
    // What is on the link goes without saying.
    let through = side.routes.iter().filter(|(_, via)| via.is_some());
    let route = |(dst, gw): &(IpNet, Option<IpAddr>)| Route { dst: *dst, gw: *gw, mtu: None };
    Success {
        interfaces: vec![host, pod],
        ips: ips.collect(),
        routes: through.map(route).collect(),
        dns: cni::Dns::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An interface of a version before must be found by the same name.
    #[test]
    fn an_attachment_has_other_names_for_when_one_is_taken() {
        let names: Vec<String> = host_ifs("c1/eth0").map(|name| name.to_string()).collect();
        assert_eq!(names[0], format!("veth{}", hash8("c1/eth0")));
        let distinct: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), TRIES as usize);
        let again: Vec<String> = host_ifs("c1/eth0").map(|name| name.to_string()).collect();
        assert_eq!(names, again);
    }
}
