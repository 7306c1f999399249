//! Performing a plan. Everything is tried; what fails is named, and the rest goes on (law 5).

use kstate::net::{Asked, BridgePort, Link, LinkKind, Op, Plan, PortOptions};
use netlink::message::Ack;
use netlink::route;
use types::IfName;

use crate::checksums;
use crate::error::Error;
use crate::rtnl::Rtnl;
use crate::socket::{Batch, refusal};
use crate::sysctl;

/// An operation that did not succeed, and the kernel's reason with a likely cause.
#[derive(Debug, thiserror::Error)]
#[error("{}: {error}{}", Asked(.op), likely_cause(.op, .error))]
pub struct Failure {
    pub op: Op,
    #[source]
    pub error: Error,
}

/// Acknowledgements of one batch must fit the socket's receive buffer.
const BATCH: usize = 64;

/// Performs a plan, in order. An operation whose outcome is there already is a success. Returns what failed;
/// the outer error means that the kernel could not be spoken to. `rtnl` must be of the calling thread's
/// namespace when the plan sets sysctls.
pub fn apply(rtnl: &mut Rtnl, plan: &Plan) -> Result<Vec<Failure>, Error> {
    let mut failures = Vec::new();
    let mut waiting = Vec::new();
    for op in plan.ops() {
        // Links and sysctls one by one, since the indices of links are needed by what follows; entries together.
        if is_entry(op) {
            waiting.push(op);
            if waiting.len() < BATCH {
                continue;
            }
        }
        apply_entries(rtnl, &mut waiting, &mut failures)?;
        if !is_entry(op)
            && let Err(error) = apply_one(rtnl, op)
        {
            failures.push(Failure { op: op.clone(), error });
        }
    }
    apply_entries(rtnl, &mut waiting, &mut failures)?;
    Ok(failures)
}

fn is_entry(op: &Op) -> bool {
    !matches!(op, Op::AddLink { .. } | Op::ChangeLink { .. } | Op::DeleteLink { .. } | Op::SetSysctl { .. })
}

/// Sends the waiting entries (addresses, routes, neighbours, forwarding entries) as one batch.
fn apply_entries(rtnl: &mut Rtnl, waiting: &mut Vec<&Op>, failures: &mut Vec<Failure>) -> Result<(), Error> {
    let mut batch = rtnl.batch();
    let mut sent = Vec::new();
    for op in waiting.drain(..) {
        match op.link().map(|name| rtnl.index(name).ok_or(name)) {
            None => add_entry(&mut batch, op, None),
            Some(Ok(index)) => add_entry(&mut batch, op, Some(index)),
            // Gone with its link, which is what was wanted.
            Some(Err(_)) if is_removal(op) => continue,
            Some(Err(name)) => {
                let op = op.clone();
                failures.push(Failure { op, error: no_link(name) });
                continue;
            }
        }
        sent.push(op);
    }
    for (position, ack) in rtnl.socket.run(batch)? {
        if let Some(op) = sent.get(position).filter(|op| !is_done(op, &ack)) {
            failures.push(Failure { op: (*op).clone(), error: refusal("the kernel refuses", ack) });
        }
    }
    Ok(())
}

fn is_removal(op: &Op) -> bool {
    matches!(
        op,
        Op::DeleteAddress { .. } | Op::DeleteRoute { .. } | Op::DeleteNeighbour { .. } | Op::DeleteFdb { .. }
    )
}

/// Whether the refusal only says that it is so already.
fn is_done(op: &Op, ack: &Ack) -> bool {
    match op {
        Op::AddAddress { .. } => ack.errno == libc::EEXIST,
        Op::DeleteAddress { .. } => ack.errno == libc::EADDRNOTAVAIL,
        Op::DeleteRoute { .. } => ack.errno == libc::ESRCH,
        Op::DeleteNeighbour { .. } | Op::DeleteFdb { .. } => ack.errno == libc::ENOENT,
        Op::DeleteLink { .. } => ack.errno == libc::ENODEV,
        _ => false,
    }
}

fn add_entry(batch: &mut Batch, op: &Op, index: Option<u32>) {
    debug_assert!(is_entry(op), "{op}");
    let link = index.unwrap_or_default();
    batch.add(|writer, seq| match op {
        Op::AddAddress { address, .. } => route::add_address(writer, seq, link, *address),
        Op::DeleteAddress { address, .. } => route::delete_address(writer, seq, link, *address),
        Op::SetSubnet { address, .. } => route::set_subnet_route(writer, seq, link, *address),
        Op::SetRoute { key, route } => route::set_route(writer, seq, key, route, index),
        Op::DeleteRoute { key } => route::delete_route(writer, seq, key),
        Op::SetNeighbour { ip, mac, .. } => route::set_neighbour(writer, seq, link, *ip, *mac),
        Op::DeleteNeighbour { ip, .. } => route::delete_neighbour(writer, seq, link, *ip),
        Op::SetFdb { mac, to, .. } => route::set_fdb(writer, seq, link, *mac, *to),
        Op::DeleteFdb { mac, to, .. } => route::delete_fdb(writer, seq, link, *mac, *to),
        // Not entries: `apply` sends them by themselves.
        Op::AddLink { .. } | Op::ChangeLink { .. } | Op::DeleteLink { .. } | Op::SetSysctl { .. } => {}
    });
}

fn apply_one(rtnl: &mut Rtnl, op: &Op) -> Result<(), Error> {
    match op {
        Op::AddLink { name, link } => add_link(rtnl, name, link),
        Op::ChangeLink { name, link } => change_link(rtnl, name, link),
        Op::DeleteLink { name } => run(rtnl, op, |batch| {
            batch.add(|writer, seq| route::delete_link(writer, seq, name));
        }),
        Op::SetSysctl { path, value } => sysctl::write(path, value)
            .map_err(|error| Error::system(format!("write /proc/sys/{path}"), error)),
        _ => Ok(()),
    }
}

fn add_link(rtnl: &mut Rtnl, name: &IfName, link: &Link) -> Result<(), Error> {
    let op = Op::AddLink { name: name.clone(), link: link.clone() };
    let master = link.port.as_ref().map(|port| bridge_index(rtnl, port)).transpose()?;
    // A bridge that is born with an MTU takes that of its ports, and 1500 when the last has gone. One that is given it keeps
    // it (br_change_mtu, BROPT_MTU_SET_BY_USER).
    let given = link.kind == LinkKind::Bridge && link.mtu.is_some();
    let born = Link { mtu: link.mtu.filter(|_| !given), ..link.clone() };
    run(rtnl, &op, |batch| {
        batch.add(|writer, seq| route::add_link(writer, seq, name, &born, master));
        if let Some(port) = &link.port {
            batch.add(|writer, seq| route::set_port(writer, seq, name, port.options));
        }
    })?;
    if given { change_link(rtnl, name, link) } else { Ok(()) }
}

fn change_link(rtnl: &mut Rtnl, name: &IfName, link: &Link) -> Result<(), Error> {
    let op = Op::ChangeLink { name: name.clone(), link: link.clone() };
    let index = rtnl.index(name).ok_or_else(|| no_link(name))?;
    let master = link.port.as_ref().map(|port| bridge_index(rtnl, port)).transpose()?;
    run(rtnl, &op, |batch| {
        batch.add(|writer, seq| route::change_link(writer, seq, index, link, Some(master.unwrap_or(0))));
        if let Some(port) = &link.port {
            batch.add(|writer, seq| route::set_port(writer, seq, name, port.options));
        }
    })?;
    match &link.port {
        Some(port) if link.kind == LinkKind::Veth => set_program(rtnl, index, port.options),
        _ => Ok(()),
    }
}

/// The program of a port. Where the machine can have none, nothing is missed: what is observed says so.
fn set_program(rtnl: &mut Rtnl, index: u32, options: PortOptions) -> Result<(), Error> {
    let Ok(program) = checksums::program() else { return Ok(()) };
    let wanted = options.has(PortOptions::CHECKSUMS);
    if program.is_at(rtnl, index)? == wanted {
        return Ok(());
    }
    let mut batch = rtnl.batch();
    match wanted {
        true => program.put(&mut batch, index),
        false => batch.add(|writer, seq| route::delete_program(writer, seq, index)),
    }
    let refused = rtnl.socket.run(batch)?;
    match refused.into_iter().find(|(_, ack)| !checksums::is_done(ack)) {
        None => Ok(()),
        Some((_, ack)) => Err(refusal("the kernel refuses the program for checksums", ack)),
    }
}

fn bridge_index(rtnl: &Rtnl, port: &BridgePort) -> Result<u32, Error> {
    rtnl.index(&port.bridge).ok_or_else(|| no_link(&port.bridge))
}

fn no_link(name: &IfName) -> Error {
    Error::Netlink {
        what: "the kernel refuses".into(),
        answer: std::io::Error::from_raw_os_error(libc::ENODEV),
        detail: Some(format!("there is no link {name}")),
    }
}

fn run(rtnl: &mut Rtnl, op: &Op, fill: impl FnOnce(&mut Batch)) -> Result<(), Error> {
    let mut batch = rtnl.batch();
    fill(&mut batch);
    let refused = rtnl.socket.run(batch)?;
    match refused.into_iter().find(|(_, ack)| !is_done(op, ack)) {
        None => Ok(()),
        Some((_, ack)) => Err(refusal("the kernel refuses", ack)),
    }
}

/// What usually is behind a refusal of this kind, and the next step.
fn likely_cause(op: &Op, error: &Error) -> &'static str {
    match (op, error.errno()) {
        (Op::AddLink { .. }, Some(libc::EEXIST)) => {
            "; likely another network (another CNI plugin, another tunnel on this VNI and port) has it: remove that first"
        }
        (Op::AddLink { .. } | Op::ChangeLink { .. }, Some(libc::EADDRINUSE)) => {
            "; likely another VXLAN device uses this port: see `ip -d link show type vxlan`"
        }
        (Op::SetRoute { .. }, Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EINVAL)) => {
            "; likely its device is down or has no address: the next pass sets it again"
        }
        (Op::SetRoute { .. }, Some(libc::ENETDOWN)) => {
            "; likely its device is down: the next pass brings it up"
        }
        (_, Some(libc::ENODEV)) => "; likely somebody deleted it a moment ago: the next pass makes it again",
        _ => "",
    }
}
