//! One attempt per feature: what the product does, once and small.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use kstate::net::{Link, LinkKind, Op, Plan};
use kstate::nft::build::{self, encode};
use kstate::nft::{
    BaseChain, Chain, ChainKind, ElemData, ElemKey, Field, Hook, Reg, Rule, Ruleset, Set, SetData, Table,
    TableFamily, TableId, Verdict, diff,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use types::{Family, IfName, Vni};

use super::Refused;
use crate::capture::{Capture, Filter};
use crate::conntrack::Conntrack;
use crate::error::{Error, Named};
use crate::mount::Mount;
use crate::netns::Netns;
use crate::nft::{ApplyError, Nft, TraceEvents};
use crate::rtnl::Rtnl;
use crate::veth::{self, PodVeth, Port};

#[derive(Clone, Copy, Debug)]
pub enum Attempt {
    Room,
    MountNs,
    UtsNs,
    PidNs,
    Pidfd,
    Tmpfs,
    ReadOnly,
    Bridge,
    Veth,
    Vxlan,
    Forwarding,
    Table,
    Ct,
    Nat,
    Masquerade,
    Numgen,
    Concatenation,
    Reject,
    Socket,
    Conntrack,
    NfTrace,
    Packet,
}

const R0: Reg = Reg(0);
const R1: Reg = Reg(1);
const R2: Reg = Reg(2);

impl Attempt {
    /// In `room`, a network namespace of nobody else's, as far as it needs one.
    pub(super) fn run(self, room: &Result<Netns, Error>) -> Result<(), Refused> {
        match self {
            Self::MountNs => aside(UnshareFlags::NEWNS, || Ok(())),
            Self::UtsNs => aside(UnshareFlags::NEWUTS, || Ok(())),
            // For the thread's children: it has none.
            Self::PidNs => aside(UnshareFlags::NEWPID, || Ok(())),
            Self::Pidfd => pidfd(),
            Self::Tmpfs => aside(UnshareFlags::NEWNS, tmpfs),
            Self::ReadOnly => aside(UnshareFlags::NEWNS, || {
                tmpfs()?;
                Mount::read_only("/")?.apply()
            }),
            _ => {
                let room = room.as_ref().map_err(Refused::from)?;
                room.run(|| self.inside())?
            }
        }
    }

    fn inside(self) -> Result<(), Refused> {
        match self {
            Self::Bridge => add_link("try-bridge", LinkKind::Bridge),
            Self::Vxlan => {
                let vni = Vni(types::wire::VXLAN_VNI);
                let local = Ipv4Addr::LOCALHOST.into();
                add_link("try-vxlan", LinkKind::Vxlan { vni, local, port: types::wire::VXLAN_PORT })
            }
            Self::Veth => pair(),
            Self::Forwarding => Ok(std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?),
            Self::Conntrack => Ok(Conntrack::open()?
                .entries(Family::V4, &netlink::conntrack::Filter::default())
                .map(drop)?),
            Self::Packet => Ok(Capture::open(None, &Filter::default()).map(drop)?),
            Self::NfTrace => {
                TraceEvents::open()?;
                filter(build::nftrace(R0))
            }
            Self::Table => filter([]),
            Self::Ct => filter([build::ct_state(R0)]),
            Self::Reject => filter([build::reject()]),
            Self::Numgen => filter([build::numgen(R0, 2)]),
            Self::Nat => {
                nat(Hook::Prerouting, [build::mark(R0), build::map("ep", R0, R1), build::dnat_ip(R1, R2)])
            }
            Self::Masquerade => nat(Hook::Postrouting, [build::masquerade()]),
            Self::Socket => nat(Hook::Prerouting, [build::socket_wildcard(R0)]),
            Self::Concatenation => {
                let tuple = [build::ip_daddr(R0), build::l4proto(R1), build::th_dport(R2)];
                nat(Hook::Prerouting, tuple.into_iter().chain([build::vmap("svc", R0)]))
            }
            Self::Room
            | Self::MountNs
            | Self::UtsNs
            | Self::PidNs
            | Self::Pidfd
            | Self::Tmpfs
            | Self::ReadOnly => Ok(()),
        }
    }
}

fn refused(why: &impl ToString) -> Refused {
    Refused { errno: None, answer: why.to_string() }
}

/// On a thread of its own, which has left what it shared with the others, and ends.
fn aside(kinds: UnshareFlags, work: fn() -> Result<(), Error>) -> Result<(), Refused> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("feature".into()).spawn_scoped(scope, move || {
            // SAFETY: the thread was made for this; no file descriptor or memory is unshared.
            unsafe { unshare_unsafe(kinds) }.named(|| format!("leave namespaces ({kinds:?})"))?;
            work()
        })?;
        let done = thread.join().map_err(|_| refused(&"the attempt panicked"))?;
        Ok(done?)
    })
}

fn pidfd() -> Result<(), Refused> {
    let own = rustix::process::getpid();
    rustix::process::pidfd_open(own, rustix::process::PidfdFlags::empty())
        .map(drop)
        .map_err(|error| std::io::Error::from(error).into())
}

/// In a mount namespace of the thread's own.
fn tmpfs() -> Result<(), Error> {
    Mount::private("/")?.apply()?;
    Mount::tmpfs("/", "mode=755")?.apply()
}

fn name(text: &str) -> Result<IfName, Refused> {
    IfName::new(text).map_err(|why| refused(&why))
}

fn add_link(text: &str, kind: LinkKind) -> Result<(), Refused> {
    let link = Link { kind, mac: None, mtu: None, up: true, port: None };
    let plan = Plan { grow: vec![Op::AddLink { name: name(text)?, link }], shrink: Vec::new() };
    match crate::net::apply(&mut Rtnl::open()?, &plan)?.into_iter().next() {
        None => Ok(()),
        Some(failure) => Err(failure.error.into()),
    }
}

/// A pair as ADD makes it, into another namespace.
fn pair() -> Result<(), Refused> {
    let (bridge, host, inside) = (name("try-port")?, name("try-veth")?, name("eth0")?);
    add_link(bridge.as_str(), LinkKind::Bridge)?;
    let other = Netns::fresh()?;
    let pair = PodVeth {
        host: &host,
        host_mac: None,
        netns: &other,
        interface: &inside,
        mac: None,
        mtu: None,
        addresses: &[],
        routes: &[],
        bridge: Some(Port { bridge: &bridge, isolated: true }),
        loopback: false,
    };
    Ok(veth::create(&mut Rtnl::open()?, &pair).map(drop)?)
}

fn filter(exprs: impl IntoIterator<Item = kstate::nft::Expr>) -> Result<(), Refused> {
    table(ChainKind::Filter, Hook::Forward, build::rule("", exprs))
}

fn nat(hook: Hook, exprs: impl IntoIterator<Item = kstate::nft::Expr>) -> Result<(), Refused> {
    table(ChainKind::Nat, hook, build::rule("", exprs))
}

/// A table with one rule, and the maps of the product for it to look into. It stays: the next attempt replaces the rule.
fn table(kind: ChainKind, hook: Hook, rule: Rule) -> Result<(), Refused> {
    let mut svc = Set::new([Field::Ipv4, Field::Proto, Field::Port], SetData::Verdicts);
    let key = encode(&[Ipv4Addr::LOCALHOST.into(), types::Protocol::Tcp.into(), 80_u16.into()]);
    svc.elements.insert(ElemKey { start: key, end: None }, ElemData::Verdict(Verdict::Accept));
    let ep = Set::new([Field::Mark], SetData::Values(vec![Field::Ipv4, Field::Port]));
    let wanted = kstate::nft::sets_of(&rule);
    let sets = [("svc", svc), ("ep", ep)].into_iter().filter(|(name, _)| wanted.contains(name));
    let base = BaseChain { kind, hook, priority: 0, drop: false };
    let table = Table {
        sets: sets.map(|(name, set)| (name.to_owned(), set)).collect(),
        chains: BTreeMap::from([("try".to_owned(), Chain { base: Some(base), rules: vec![rule] })]),
    };
    let id = TableId { family: TableFamily::Ip, name: "try".to_owned() };
    let (full, empty) = (Ruleset { tables: BTreeMap::from([(id, table)]) }, Ruleset::default());
    let mut nft = Nft::open()?;
    nft.apply(&diff(&full, &empty), &full).map_err(|error| said(&error))?;
    nft.apply(&diff(&empty, &full), &full).map_err(|error| said(&error))
}

/// The kernel's own words: the hints of a table that others share do not fit here.
fn said(error: &ApplyError) -> Refused {
    let answer = match error {
        ApplyError::Refused { op, source, .. } => format!("nf_tables refused to {op}: {source}"),
        other => other.to_string(),
    };
    Refused { errno: error.errno(), answer }
}

#[cfg(test)]
mod tests {
    use super::super::{FEATURES, Outcome, User, probe, refusal};

    #[test]
    fn what_is_refused_is_told_with_its_next_step() {
        let mut found = probe(&[User::Agent]);
        assert!(found.iter().all(|found| found.feature.needed_by.contains(&User::Agent)));
        for found in &mut found {
            found.outcome = Outcome::There;
        }
        assert_eq!(refusal("the agent of node1", &found), None);
        found[0].outcome = Outcome::Missing("Unknown device type".into());
        let said = refusal("the agent of node1", &found).unwrap();
        for words in ["the agent of node1", found[0].feature.name, "Unknown device type", "next: "] {
            assert!(said.contains(words), "{said}");
        }
    }

    #[test]
    fn names_are_unique() {
        let names: std::collections::BTreeSet<_> = FEATURES.iter().map(|feature| feature.name).collect();
        assert_eq!(names.len(), FEATURES.len());
    }
}
