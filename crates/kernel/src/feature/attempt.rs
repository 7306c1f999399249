//! One attempt per feature: what the product does, once and small.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;

use kstate::net::{Link, LinkKind, Op, Plan, PortOptions};
use kstate::nft::build::{self, encode};
use kstate::nft::key;
use kstate::nft::{
    BaseChain, Chain, ChainKind, ElemData, ElemKey, Field, Hook, Reg, Rule, Ruleset, Set, SetData, Table,
    TableFamily, TableId, Verdict, diff,
};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use types::{Family, IfName, Mac, Protocol, Vni};

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
    Interval,
    Dynset,
    Mark,
    Fib,
    Counter,
    Log,
    Links,
    Ports,
    Ipv6,
    Table6,
    Reject,
    Socket,
    Conntrack,
    NfTrace,
    Packet,
}

const R0: Reg = Reg(0);
const R1: Reg = Reg(1);
const R2: Reg = Reg(2);
/// Of the rooms' own tables.
const FRONTENDS: &str = "svc";
const ENDPOINTS: &str = "ep";
const PORTS: &str = "ports";
const CLIENTS: &str = "clients";
const SENDERS: &str = "senders";
/// The same group of nflog as the product's: a number is all that it is.
const LOG_GROUP: u16 = 100;

impl Attempt {
    /// In `room`, a network namespace of nobody else's, as far as it needs one.
    pub(super) fn run(self, room: &Result<Netns, Error>) -> Result<(), Refused> {
        match self {
            Self::MountNs => aside(UnshareFlags::NEWNS, entered_again),
            Self::UtsNs => aside(UnshareFlags::NEWUTS, || Ok(())),
            // For the thread's children: it has none.
            Self::PidNs => aside(UnshareFlags::NEWPID, || Ok(())),
            Self::Pidfd => pidfd(),
            // First where the process is: a new network namespace need not be as the node.
            Self::Ipv6 => {
                ipv6_enabled()?;
                room.as_ref().map_err(Refused::from)?.run(ipv6)?
            }
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
            Self::Forwarding => Ok(crate::sysctl::write("net/ipv4/ip_forward", "1")?),
            Self::Conntrack => Ok(Conntrack::open()?
                .entries(Family::V4, &netlink::conntrack::Filter::default())
                .map(drop)?),
            Self::Packet => Ok(Capture::open(None, &Filter::default()).map(drop)?),
            Self::NfTrace => {
                TraceEvents::open()?;
                filter(build::nftrace(R0))
            }
            Self::Table => filter([]),
            Self::Ct => {
                filter([build::ct_state(R0), build::ct_status(R0), build::original_daddr(Family::V4, R0)])
            }
            Self::Reject => {
                let tcp = [build::l4proto(R0), build::is(R0, Protocol::Tcp), build::reject_tcp_reset()];
                filter(tcp)?;
                filter([build::reject()])
            }
            Self::Interval => filter([build::th_dport(R0), build::vmap(PORTS, R0)]),
            Self::Dynset => filter([build::ip_saddr(R0), build::update(CLIENTS, R0, 1000)]),
            Self::Mark => {
                let bits = types::wire::MASQUERADE_MARK;
                filter([build::mark(R0), build::or(R0, bits), build::set_mark(R0)])
            }
            Self::Fib => nat(Hook::Postrouting, [build::fib_saddr_type(R0)]),
            Self::Counter => filter([build::counter()]),
            Self::Log => filter([build::log(LOG_GROUP, 64, "try")]),
            Self::Links => links(),
            Self::Ports => ports(),
            Self::Table6 => table6(),
            Self::Numgen => filter([build::numgen(R0, 2)]),
            Self::Nat => nat(
                Hook::Prerouting,
                [build::mark(R0), build::map(ENDPOINTS, R0, R1), build::dnat_ip(R1, R2)],
            ),
            Self::Masquerade => nat(Hook::Postrouting, [build::masquerade_random()]),
            Self::Socket => nat(Hook::Prerouting, [build::socket_wildcard(R0)]),
            Self::Concatenation => {
                let tuple = [build::ip_daddr(R0), build::l4proto(R1), build::th_dport(R2)];
                nat(Hook::Prerouting, tuple.into_iter().chain([build::vmap(FRONTENDS, R0)]))
            }
            Self::Room
            | Self::Ipv6
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

/// A mount namespace is made by one and entered by others, which is another right. In one of the thread's own.
fn entered_again() -> Result<(), Error> {
    let path = "/proc/thread-self/ns/mnt";
    let first = std::fs::File::open(path).named(|| format!("open {path}"))?;
    // SAFETY: the thread was made for this; no file descriptor or memory is unshared.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.named(|| "make a mount namespace".into())?;
    move_into_link_name_space(first.as_fd(), Some(LinkNameSpaceType::Mount))
        .named(|| "enter a mount namespace".into())
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
    perform(Plan { grow: vec![Op::AddLink { name: name(text)?, link }], shrink: Vec::new() })
}

fn perform(plan: Plan) -> Result<(), Refused> {
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
        mac: Some(Mac([0x0a, 0x58, 0, 0, 0, 2])),
        mtu: None,
        addresses: &[],
        routes: &[],
        bridge: Some(Port { bridge: &bridge, options: PortOptions::OF_POD }),
        loopback: false,
    };
    Ok(veth::create(&mut Rtnl::open()?, &pair).map(drop)?)
}

/// As the node's devices will have it.
fn ipv6_enabled() -> Result<(), Refused> {
    for of in ["all", "default"] {
        let path = format!("net/ipv6/conf/{of}/disable_ipv6");
        if std::fs::read_to_string(format!("/proc/sys/{path}"))?.trim() != "0" {
            return Err(refused(&format!("{} is 1", path.replace('/', "."))));
        }
    }
    Ok(())
}

fn ipv6() -> Result<(), Refused> {
    crate::sysctl::write("net/ipv6/conf/all/forwarding", "1")?;
    let link = name("try-ipv6")?;
    add_link(link.as_str(), LinkKind::Bridge)?;
    let address = IpAddr::from(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1)).into();
    perform(Plan { grow: vec![Op::AddAddress { link, address }], shrink: Vec::new() })
}

/// What the IPv6 table needs beyond the IPv4 one.
fn table6() -> Result<(), Refused> {
    let (v6, nat) = (Family::V6, ChainKind::Nat);
    let after = key::after(R1, key::address(v6));
    let endpoint = [build::mark(R0), build::map(ENDPOINTS, R0, R1), build::dnat(v6, R1, after)];
    table(v6, (nat, Hook::Prerouting), build::rule("", endpoint))?;
    let source = [build::fib_saddr_type(R0), build::masquerade_random()];
    table(v6, (nat, Hook::Postrouting), build::rule("", source))?;
    let refusal = [build::original_daddr(v6, R0), build::reject()];
    table(v6, (ChainKind::Filter, Hook::Forward), build::rule("", refusal))
}

/// What is asked of links before conntrack, and after it.
fn links() -> Result<(), Refused> {
    let filter = ChainKind::Filter;
    for family in [TableFamily::Ip, TableFamily::Ip6] {
        let local = [build::fib_daddr_type(R0), build::is(R0, build::RTN_LOCAL)];
        table(family, (filter, Hook::Prerouting), build::rule("", local))?;
        table(family, (filter, Hook::Forward), build::rule("", [build::reject_host()]))?;
        let socket = [build::ct_state(R0), build::socket_wildcard(R0)];
        table(family, (filter, Hook::Input), build::rule("", socket))?;
    }
    Ok(())
}

fn ports() -> Result<(), Refused> {
    let sender = [build::iifname(R0), build::ether_saddr(Reg(4)), build::ip_saddr(Reg(6))];
    let rule = build::rule("", sender.into_iter().chain([build::lookup(SENDERS, R0)]));
    table(TableFamily::Bridge, (ChainKind::Filter, Hook::Prerouting), rule)
}

fn filter(exprs: impl IntoIterator<Item = kstate::nft::Expr>) -> Result<(), Refused> {
    table(Family::V4, (ChainKind::Filter, Hook::Forward), build::rule("", exprs))
}

fn nat(hook: Hook, exprs: impl IntoIterator<Item = kstate::nft::Expr>) -> Result<(), Refused> {
    table(Family::V4, (ChainKind::Nat, hook), build::rule("", exprs))
}

/// Maps as the product's, each with an element.
fn sets(family: Family) -> [(&'static str, Set); 5] {
    let address: IpAddr = match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    };
    let accept = || ElemData::Verdict(Verdict::Accept);
    let mut svc = Set::new([key::address(family), Field::Proto, Field::Port], SetData::Verdicts);
    let front = encode(&[address.into(), Protocol::Tcp.into(), 80_u16.into()]);
    svc.elements.insert(ElemKey::point(front), accept());
    let ep = Set::new([Field::Mark], SetData::Values(vec![key::address(family), Field::Port]));
    let mut ports = Set { interval: true, ..Set::new([Field::Port], SetData::Verdicts) };
    let range = ElemKey::range(encode(&[80_u16.into()]), encode(&[90_u16.into()]));
    ports.elements.insert(range, accept());
    let clients = Set::new([key::address(family)], SetData::None);
    let clients = Set { dynamic: true, timeout_ms: Some(1000), size: Some(16), ..clients };
    let senders = Set::new([Field::IfName, Field::Mac, Field::Ipv4], SetData::None);
    [(FRONTENDS, svc), (ENDPOINTS, ep), (PORTS, ports), (CLIENTS, clients), (SENDERS, senders)]
}

/// A table with one rule, and the maps for it to look into. It goes when its attempt is over.
fn table(family: impl Into<TableFamily>, (kind, hook): (ChainKind, Hook), rule: Rule) -> Result<(), Refused> {
    let family = family.into();
    let wanted = kstate::nft::sets_of(&rule);
    let address = if family == TableFamily::Ip6 { Family::V6 } else { Family::V4 };
    let sets = sets(address).into_iter().filter(|(name, _)| wanted.contains(name));
    let base = BaseChain { kind, hook, priority: 0, drop: false };
    let table = Table {
        sets: sets.map(|(name, set)| (name.into(), set)).collect(),
        chains: BTreeMap::from([("try".to_owned(), Chain { base: Some(base), rules: vec![rule] })]),
    };
    let id = TableId { family, name: "try".into() };
    let (full, empty) = (Ruleset { tables: BTreeMap::from([(id, table)]) }, Ruleset::default());
    let mut nft = Nft::open()?;
    nft.apply(&diff(&full, &empty), &full).map_err(|error| said(&error))?;
    nft.apply(&diff(&empty, &full), &full).map_err(|error| said(&error))
}

/// The kernel's own words: the hints of a table that others share do not fit here.
fn said(error: &ApplyError) -> Refused {
    let answer = match error {
        ApplyError::Refused { op, answer, .. } | ApplyError::Owned { op, answer, .. } => {
            format!("nf_tables refused to {op}: {answer}")
        }
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

    /// A mistake of ours is refused as invalid (EINVAL); what a kernel lacks is not.
    #[test]
    fn every_attempt_is_well_formed() {
        for found in probe(&User::ALL) {
            println!("{:<18} {} {}", found.feature.name, found.state(), found.answer().unwrap_or_default());
            assert!(!found.answer().is_some_and(|answer| answer.contains("Invalid argument")), "{found:?}");
        }
    }

    #[test]
    fn names_are_unique() {
        let names: std::collections::BTreeSet<_> = FEATURES.iter().map(|feature| feature.name).collect();
        assert_eq!(names.len(), FEATURES.len());
    }
}
