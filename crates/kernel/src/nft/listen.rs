//! Listening to nf_tables. Both listeners are nonblocking and show their descriptor, so that an async loop can
//! wait for them (`AsyncFd`) and then take what is there.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use netlink::nft::{Change, NEWGEN, Trace};

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
/// queue and wake the listener for nothing. The program compares the message's type, two bytes at offset 4.
fn only_generations(socket: &NetlinkSocket) -> Result<(), Error> {
    // BPF loads in network order, netlink writes in host order.
    let wanted = u32::from(u16::from_be_bytes(NEWGEN.to_ne_bytes()));
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut program = [
        step(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, 0, 0, 4),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, wanted),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
    ];
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
