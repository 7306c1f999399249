//! Captures: what passes the interfaces of a namespace, with the kernel's time and direction (packet(7)).

mod filter;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, SystemTime};

pub use filter::Filter;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};
use types::IfName;

use crate::error::{Error, Named};
use crate::mount::last_errno;
use crate::netns::Netns;

/// An open capture, nonblocking: readable (poll, tokio's `AsyncFd`) when there is a packet to
/// [`Capture::receive`]. It costs the node's packets a little as long as it is open.
#[derive(Debug)]
pub struct Capture {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Came in through the interface.
    In,
    /// Goes out through it.
    Out,
}

/// A packet as it passed an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Captured<'a> {
    /// When the kernel saw it (CLOCK_REALTIME).
    pub at: SystemTime,
    /// Index of the interface, in the namespace of the capture.
    pub interface: u32,
    pub direction: Direction,
    /// The Ethernet frame, cut at 64 KiB.
    pub frame: &'a [u8],
}

const BUFFER: usize = 64 << 10;
/// Room for bursts between two reads.
const QUEUE: usize = 4 << 20;

impl Capture {
    /// Opens a capture on one interface or, with `None`, on all of the calling thread's namespace.
    /// Only what passes after this returns is seen, and only what the filter wants.
    pub fn open(interface: Option<&IfName>, filter: &Filter) -> Result<Self, Error> {
        let shown = interface.map_or("all interfaces", IfName::as_str);
        let what = || format!("capture on {shown}");
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // No protocol yet: nothing is queued before the filter is in place and the interface bound.
        let fd = rustix::net::socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None);
        let fd = fd.map_err(|answer| Error::Socket { what: what(), answer: answer.into() })?;
        let index = match interface {
            None => 0,
            Some(name) => rustix::net::netdevice::name_to_index(&fd, name.as_str()).named(what)?,
        };
        if rustix::net::sockopt::set_socket_recv_buffer_size_force(&fd, QUEUE).is_err() {
            rustix::net::sockopt::set_socket_recv_buffer_size(&fd, QUEUE).named(what)?;
        }
        let capture = Self { fd, buffer: vec![0; BUFFER] };
        let on: libc::c_int = 1;
        capture.set_option(libc::SO_TIMESTAMPNS, &on).named(what)?;
        if let Some(mut program) = filter.program()? {
            let length =
                u16::try_from(program.len()).map_err(|_| Error::input(what(), "the filter is too long"))?;
            let program = libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
            capture.set_option(libc::SO_ATTACH_FILTER, &program).named(what)?;
        }
        capture.bind(index).named(what)?;
        Ok(capture)
    }

    /// As [`Capture::open`], in another namespace; it may be read from anywhere.
    pub fn open_in(netns: &Netns, interface: Option<&IfName>, filter: &Filter) -> Result<Self, Error> {
        netns.run(|| Self::open(interface, filter))?
    }

    fn set_option<T>(&self, option: libc::c_int, value: &T) -> Result<(), Errno> {
        let (pointer, length) = (std::ptr::from_ref(value).cast(), size_of::<T>() as libc::socklen_t);
        // SAFETY: the value (and a filter program that it points to) lives through the call, in which the
        // kernel copies it.
        match unsafe { libc::setsockopt(self.fd.as_raw_fd(), libc::SOL_SOCKET, option, pointer, length) } {
            0 => Ok(()),
            _ => Err(last_errno()),
        }
    }

    fn bind(&self, index: u32) -> Result<(), Errno> {
        // SAFETY: all-zero is valid for this plain struct.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = i32::try_from(index).map_err(|_| Errno::NODEV)?;
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the address lives through the call and its length is given.
        match unsafe { libc::bind(self.fd.as_raw_fd(), (&raw const address).cast(), length) } {
            0 => Ok(()),
            _ => Err(last_errno()),
        }
    }

    /// The next packet; `None` when there is none now. An interface that went down or away only ends its packets.
    pub fn receive(&mut self) -> Result<Option<Captured<'_>>, Error> {
        // SAFETY: all-zero is valid for these plain structs.
        let (mut from, mut header): (libc::sockaddr_ll, libc::msghdr) = unsafe { std::mem::zeroed() };
        let mut control = [0_u64; 8];
        let mut vector =
            libc::iovec { iov_base: self.buffer.as_mut_ptr().cast(), iov_len: self.buffer.len() };
        header.msg_name = (&raw mut from).cast();
        header.msg_namelen = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        header.msg_iov = &raw mut vector;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = size_of_val(&control);
        let length = loop {
            // SAFETY: every pointer in the header is to memory of this frame or the buffer, with its length.
            let length = unsafe { libc::recvmsg(self.fd.as_raw_fd(), &raw mut header, 0) };
            if let Ok(length) = usize::try_from(length) {
                break length;
            }
            match last_errno() {
                Errno::AGAIN => return Ok(None),
                Errno::INTR | Errno::NETDOWN | Errno::NXIO => {}
                error => return Err(Error::system("read a captured packet", error)),
            }
        };
        Ok(Some(Captured {
            at: timestamp(&header).unwrap_or_else(SystemTime::now),
            interface: u32::try_from(from.sll_ifindex).unwrap_or(0),
            direction: match from.sll_pkttype {
                libc::PACKET_OUTGOING => Direction::Out,
                _ => Direction::In,
            },
            frame: self.buffer.get(..length).unwrap_or_default(),
        }))
    }

    /// Sends a whole Ethernet frame out of the one interface that the capture was opened on.
    pub fn send(&self, frame: &[u8]) -> Result<(), Error> {
        let sent = rustix::io::retry_on_intr(|| rustix::net::send(&self.fd, frame, SendFlags::empty()));
        sent.map(drop).named(|| format!("send a frame of {} bytes", frame.len()))
    }

    /// How many wanted packets were lost since the last call, because nobody read fast enough.
    pub fn lost(&self) -> Result<u32, Error> {
        let mut counters = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        let mut length = size_of_val(&counters) as libc::socklen_t;
        let pointer = (&raw mut counters).cast();
        let fd = self.fd.as_raw_fd();
        // SAFETY: the kernel writes at most `length` bytes, the size of the counters.
        let result = unsafe {
            libc::getsockopt(fd, libc::SOL_PACKET, libc::PACKET_STATISTICS, pointer, &raw mut length)
        };
        match result {
            0 => Ok(counters.tp_drops),
            _ => Err(Error::system("read the counters of a capture", last_errno())),
        }
    }
}

/// The SCM_TIMESTAMPNS control message of a received packet.
fn timestamp(header: &libc::msghdr) -> Option<SystemTime> {
    // SAFETY: the header was filled by recvmsg, and its control buffer is alive and aligned for cmsghdr; the
    // iteration macros stay within it.
    unsafe {
        let mut control = libc::CMSG_FIRSTHDR(header);
        while !control.is_null() {
            let head = &*control;
            if (head.cmsg_level, head.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) {
                let time: libc::timespec = std::ptr::read_unaligned(libc::CMSG_DATA(control).cast());
                let (seconds, nanos) = (u64::try_from(time.tv_sec).ok()?, u32::try_from(time.tv_nsec).ok()?);
                return Some(SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos));
            }
            control = libc::CMSG_NXTHDR(header, control);
        }
    }
    None
}

impl AsFd for Capture {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
