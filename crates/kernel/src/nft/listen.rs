//! Listening to nf_tables. The listeners are nonblocking and show their descriptor, so that an async loop can
//! wait for them (`AsyncFd`) and then take what is there.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use kstate::nft::TableId;
use netlink::nft::{Change, NEWGEN, Trace, touches};

use crate::error::Error;
use crate::mount::last_errno;
use crate::netns::Netns;
use crate::socket::{NetlinkSocket, Received, Subsystem};

/// NFNLGRP_NFTABLES and NFNLGRP_NFTRACE of include/uapi/linux/netfilter/nfnetlink.h.
const CHANGES: u32 = 7;
const TRACES: u32 = 9;

/// What a listener has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice<T> {
    Event(T),
    /// The queue was full and something is lost: observe everything again.
    Lost,
}

/// Who changed the ruleset of a network namespace, transaction by transaction, ours among them
/// ([`super::Nft::portid`] tells them apart).
#[derive(Debug)]
pub struct Changes {
    socket: NetlinkSocket,
}

impl Changes {
    /// In the namespace of the calling thread.
    pub fn open() -> Result<Self, Error> {
        let socket = NetlinkSocket::listen(Subsystem::Netfilter, &[CHANGES])?;
        only_generations(&socket)?;
        Ok(Self { socket })
    }

    pub fn open_in(netns: &Netns) -> Result<Self, Error> {
        netns.run(Self::open)?
    }

    /// What has come since the last call; empty when nothing has. Never waits.
    pub fn take(&mut self) -> Result<Vec<Notice<Change>>, Error> {
        take(&mut self.socket, |message| Change::decode(&message))
    }
}

impl AsFd for Changes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What others change in tables of ours. Of other tables, which some programs rewrite every second, nothing is told.
///
/// ```text
///   one transaction:  NEWTABLE NEWCHAIN NEWRULE … NEWSETELEM │ NEWSETELEM … DELTABLE │ NEWGEN
///                     └──────────── one datagram ──────────┘  └─── another ───┘   by itself
/// ```
#[derive(Debug)]
pub struct ForeignChanges {
    socket: NetlinkSocket,
    tables: Vec<TableId>,
}

impl ForeignChanges {
    /// In the namespace of the calling thread. `own`: whose changes are none of others ([`super::Nft::portid`]).
    pub fn open(tables: Vec<TableId>, own: u32) -> Result<Self, Error> {
        let socket = NetlinkSocket::listen(Subsystem::Netfilter, &[CHANGES])?;
        only_objects_of_others(&socket, own)?;
        Ok(Self { socket, tables })
    }

    /// Whether others have changed our tables since the last call, or may have: what did not fit into the queue may
    /// have told of ours. Never waits.
    pub fn take(&mut self) -> Result<bool, Error> {
        let Self { socket, tables } = self;
        let mut heard = false;
        loop {
            // After an overrun the kernel drops silently until the queue is empty: to be read to its end.
            match socket.receive(|message| heard = heard || touches(&message, tables))? {
                Received::Messages => {}
                Received::Nothing => return Ok(heard),
                Received::Overrun => heard = true,
            }
        }
    }
}

impl AsFd for ForeignChanges {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The rules that packets with `meta nftrace set 1` meet.
#[derive(Debug)]
pub struct TraceEvents {
    socket: NetlinkSocket,
}

impl TraceEvents {
    /// In the namespace of the calling thread.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { socket: NetlinkSocket::listen(Subsystem::Netfilter, &[TRACES])? })
    }

    pub fn open_in(netns: &Netns) -> Result<Self, Error> {
        netns.run(Self::open)?
    }

    /// What has come since the last call; empty when nothing has. Never waits.
    pub fn take(&mut self) -> Result<Vec<Notice<Trace>>, Error> {
        take(&mut self.socket, |message| Trace::decode(&message))
    }
}

impl AsFd for TraceEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn take<T>(
    socket: &mut NetlinkSocket,
    decode: impl Fn(netlink::message::Message<'_>) -> Option<T>,
) -> Result<Vec<Notice<T>>, Error> {
    let mut notices = Vec::new();
    loop {
        match socket.receive(|message| notices.extend(decode(message).map(Notice::Event)))? {
            Received::Messages => {}
            Received::Nothing => return Ok(notices),
            Received::Overrun => notices.push(Notice::Lost),
        }
    }
}

/// Lets only the notice that ends a transaction through: a load of 100,000 elements would else overrun the
/// queue and wake the listener for nothing.
fn only_generations(socket: &NetlinkSocket) -> Result<(), Error> {
    filter(
        socket,
        &mut [
            step(LOAD_HALF, 0, 0, TYPE_AT),
            step(IS, 0, 1, in_network_order(NEWGEN)),
            step(ANSWER, 0, 0, u32::MAX),
            step(ANSWER, 0, 0, 0),
        ],
    )
}

/// Leaves out the notice that ends a transaction, and our own transactions, which may be large. The kernel puts
/// notices of one transaction together into datagrams, never those of two, and each bears the port of who sent that
/// (nft_commit_notify, net/netfilter/nf_tables_api.c): the first tells for all. Of which table they are it does not.
fn only_objects_of_others(socket: &NetlinkSocket, own: u32) -> Result<(), Error> {
    filter(
        socket,
        &mut [
            step(LOAD_HALF, 0, 0, TYPE_AT),
            step(IS, 3, 0, in_network_order(NEWGEN)),
            step(LOAD_WORD, 0, 0, PORT_AT),
            step(IS, 1, 0, u32::from_be_bytes(own.to_ne_bytes())),
            step(ANSWER, 0, 0, u32::MAX),
            step(ANSWER, 0, 0, 0),
        ],
    )
}

/// Of the first `struct nlmsghdr` of a datagram, where a program begins.
const TYPE_AT: u32 = 4;
const PORT_AT: u32 = 12;

const LOAD_HALF: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_ABS;
const LOAD_WORD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const IS: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
/// So many bytes of the datagram are let through.
const ANSWER: u32 = libc::BPF_RET | libc::BPF_K;

/// `yes` and `no`: how many steps are skipped.
fn step(code: u32, yes: u8, no: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: yes, jf: no, k }
}

/// BPF loads in network order, netlink writes in host order.
fn in_network_order(kind: u16) -> u32 {
    u32::from(u16::from_be_bytes(kind.to_ne_bytes()))
}

fn filter(socket: &NetlinkSocket, program: &mut [libc::sock_filter]) -> Result<(), Error> {
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    let length = size_of::<libc::sock_fprog>() as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the filter and the program that it points to live through the call, and the lengths are theirs.
    let result = unsafe {
        libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, (&raw const filter).cast(), length)
    };
    match result {
        0 => Ok(()),
        _ => Err(Error::system("filter the notices of nf_tables", last_errno())),
    }
}
