//! A netlink socket: sends batches of requests, reads acknowledgements and dumps, listens to groups.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use netlink::message::{Ack, Message, NLMSG_DONE, Writer, flags, messages};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::error::{Error, Named};
use crate::mount::last_errno;

/// Which part of the kernel the socket speaks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subsystem {
    Route,
    Netfilter,
}

/// An open netlink socket, in the network namespace of the thread that opened it, whoever uses it later.
#[derive(Debug)]
pub struct NetlinkSocket {
    fd: OwnedFd,
    seq: u32,
    buffer: Vec<u8>,
}

/// Large enough for every datagram of a dump (the kernel fills at most 32 KiB) and for any notice.
const BUFFER: usize = 64 << 10;

impl NetlinkSocket {
    /// Opens a blocking socket with extended acknowledgements, short acks and strict dump filters.
    pub fn open(subsystem: Subsystem) -> Result<Self, Error> {
        let protocol = match subsystem {
            Subsystem::Route => None, // NETLINK_ROUTE is 0
            Subsystem::Netfilter => Some(rustix::net::netlink::NETFILTER),
        };
        let what = || format!("open a netlink socket ({subsystem:?})");
        let fd =
            rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)
                .named(what)?;
        let socket = Self { fd, seq: 0, buffer: vec![0; BUFFER] };
        socket.set_option(libc::NETLINK_EXT_ACK, 1).named(what)?;
        socket.set_option(libc::NETLINK_CAP_ACK, 1).named(what)?;
        // Not known for netfilter before 5.x; there it changes nothing.
        let _ = socket.set_option(libc::NETLINK_GET_STRICT_CHK, 1);
        Ok(socket)
    }

    /// Listens to multicast groups, nonblocking.
    pub fn listen(subsystem: Subsystem, groups: &[u32]) -> Result<Self, Error> {
        let socket = Self::open(subsystem)?;
        let what = || format!("listen to kernel notices ({subsystem:?})");
        // A burst of notices should not overrun the queue: as much as the system lets us (4 MiB as root).
        if rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket.fd, 4 << 20).is_err() {
            rustix::net::sockopt::set_socket_recv_buffer_size(&socket.fd, 4 << 20).named(what)?;
        }
        rustix::net::bind(&socket.fd, &SocketAddrNetlink::new(0, 0)).named(what)?;
        for group in groups {
            socket.set_option(libc::NETLINK_ADD_MEMBERSHIP, *group).named(what)?;
        }
        rustix::io::ioctl_fionbio(&socket.fd, true).named(what)?;
        Ok(socket)
    }

    fn set_option(&self, option: i32, value: u32) -> Result<(), Errno> {
        let (value, length) = (&raw const value, size_of::<u32>() as libc::socklen_t);
        // SAFETY: the value lives through the call and its length is given.
        match unsafe {
            libc::setsockopt(self.fd.as_raw_fd(), libc::SOL_NETLINK, option, value.cast(), length)
        } {
            0 => Ok(()),
            _ => Err(last_errno()),
        }
    }

    /// The next sequence number.
    pub fn next_seq(&mut self) -> u32 {
        self.seq = self.seq.wrapping_add(1).max(1);
        self.seq
    }

    /// Sends one datagram of messages.
    pub fn send(&self, bytes: &[u8]) -> Result<(), Error> {
        rustix::io::retry_on_intr(|| rustix::net::send(&self.fd, bytes, SendFlags::empty()))
            .map(drop)
            .named(|| format!("send {} bytes over netlink", bytes.len()))
    }

    /// Gives the socket its address and tells it: the kernel names us by it to listeners.
    pub fn bind(&self) -> Result<u32, Error> {
        let what = || "bind a netlink socket".to_owned();
        rustix::net::bind(&self.fd, &SocketAddrNetlink::new(0, 0)).named(what)?;
        let address = rustix::net::getsockname(&self.fd).named(what)?;
        let address = SocketAddrNetlink::try_from(address).named(what)?;
        Ok(address.pid())
    }

    /// Continues the sequence numbers at `seq`, after somebody else has counted on.
    pub fn skip_to(&mut self, seq: u32) {
        self.seq = seq;
    }

    /// Shows everything that has come, without waiting.
    pub fn drain(&mut self, mut each: impl FnMut(Message<'_>)) -> Result<Received, Error> {
        let mut overrun = false;
        loop {
            match self.receive_with(RecvFlags::TRUNC | RecvFlags::DONTWAIT, &mut each)? {
                Received::Messages => {}
                Received::Overrun => overrun = true,
                Received::Nothing if overrun => return Ok(Received::Overrun),
                Received::Nothing => return Ok(Received::Nothing),
            }
        }
    }

    /// Sends a request for one object and shows the answer.
    pub fn ask(
        &mut self,
        what: &str,
        seq: u32,
        request: impl FnOnce(&mut Writer),
        mut each: impl FnMut(Message<'_>),
    ) -> Result<(), Error> {
        let mut writer = Writer::new();
        request(&mut writer);
        self.send(writer.as_bytes())?;
        // The kernel has answered when `send` returns.
        let (mut answered, mut refused) = (false, None);
        self.drain(|message| match message.ack() {
            _ if message.seq != seq => {}
            Some(ack) if ack.errno != 0 => refused = Some(ack),
            Some(_) => answered = true,
            None => {
                answered = true;
                each(message);
            }
        })?;
        match refused {
            Some(ack) => Err(refusal(what, ack)),
            None if answered => Ok(()),
            None => Err(Error::Answer { what: what.into(), why: "there was none".into() }),
        }
    }

    /// Reads one datagram and shows its messages; `Ok(false)` when there is none (nonblocking).
    /// [`Received::Overrun`]: the queue was full and notices are lost.
    pub fn receive(&mut self, mut each: impl FnMut(Message<'_>)) -> Result<Received, Error> {
        self.receive_with(RecvFlags::TRUNC, &mut each)
    }

    fn receive_with(
        &mut self,
        flags: RecvFlags,
        mut each: impl FnMut(Message<'_>),
    ) -> Result<Received, Error> {
        let received = rustix::io::retry_on_intr(|| rustix::net::recv(&self.fd, &mut self.buffer[..], flags));
        match received {
            Ok((length, full)) if length == full => {
                messages(self.buffer.get(..length).unwrap_or_default()).for_each(&mut each);
                Ok(Received::Messages)
            }
            // Longer than the buffer: what is lost must be read again, as after an overrun.
            Ok(_) | Err(Errno::NOBUFS) => Ok(Received::Overrun),
            Err(Errno::AGAIN) => Ok(Received::Nothing),
            Err(error) => Err(Error::system("read from netlink", error)),
        }
    }

    /// An empty batch, to be filled and given to [`NetlinkSocket::run`].
    pub fn batch(&mut self) -> Batch {
        Batch { writer: Writer::new(), first: self.seq.wrapping_add(1).max(1), count: 0 }
    }

    /// Sends a batch of which every message asks for an acknowledgement, and returns the refusals by position.
    /// The kernel performs all messages in order, also those after a refused one.
    pub fn run(&mut self, batch: Batch) -> Result<Vec<(usize, Ack)>, Error> {
        let mut refused = Vec::new();
        let Some(last) = batch.count.checked_sub(1) else { return Ok(refused) };
        self.seq = batch.first.wrapping_add(last);
        self.send(batch.writer.as_bytes())?;
        let mut open = batch.count;
        while open > 0 {
            let received = self.receive(|message| {
                let position = message.seq.wrapping_sub(batch.first);
                if let (Some(ack), true) = (message.ack(), position < batch.count) {
                    open = open.saturating_sub(1);
                    if ack.errno != 0 {
                        refused.push((position as usize, ack));
                    }
                }
            })?;
            if received == Received::Overrun {
                return Err(Error::system("read acknowledgements", Errno::NOBUFS));
            }
        }
        Ok(refused)
    }

    /// Sends a dump request and shows each message of the answer. A dump that the kernel marks as
    /// inconsistent (something changed meanwhile) is still shown: who needs exactness asks again, as the
    /// returned flag says.
    pub fn dump(
        &mut self,
        what: &str,
        request: impl FnOnce(&mut Writer, u32),
        mut each: impl FnMut(Message<'_>),
    ) -> Result<Consistency, Error> {
        let seq = self.next_seq();
        let mut writer = Writer::new();
        request(&mut writer, seq);
        self.send(writer.as_bytes())?;
        let (mut done, mut consistency) = (None, Consistency::Exact);
        while done.is_none() {
            let received = self.receive(|message| {
                if message.seq != seq {
                    return;
                }
                if message.flags & flags::DUMP_INTR != 0 {
                    consistency = Consistency::Interrupted;
                }
                match message.ack() {
                    Some(ack) => done = Some((message.kind, ack)),
                    None => each(message),
                }
            })?;
            if received == Received::Overrun {
                return Err(Error::system(format!("dump {what}"), Errno::NOBUFS));
            }
        }
        match done {
            Some((NLMSG_DONE, ack)) if ack.errno == 0 => Ok(consistency),
            Some((_, ack)) if ack.errno != 0 => Err(refusal(format!("dump {what}"), ack)),
            _ => Ok(consistency),
        }
    }
}

impl AsFd for NetlinkSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    Messages,
    Nothing,
    Overrun,
}

/// Whether a dump shows one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    Exact,
    Interrupted,
}

/// Requests that travel in one datagram.
#[derive(Debug)]
pub struct Batch {
    writer: Writer,
    first: u32,
    count: u32,
}

impl Batch {
    /// Adds one message: `encode` gets the sequence number to use.
    pub fn add(&mut self, encode: impl FnOnce(&mut Writer, u32)) {
        encode(&mut self.writer, self.first.wrapping_add(self.count));
        self.count += 1;
    }

    pub fn len(&self) -> usize {
        self.count as usize
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// The kernel's refusal as an error.
pub fn refusal(what: impl Into<String>, ack: Ack) -> Error {
    Error::Netlink {
        what: what.into(),
        answer: std::io::Error::from_raw_os_error(ack.errno),
        detail: ack.detail,
    }
}
