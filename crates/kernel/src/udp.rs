//! Datagrams in batches: one system call receives up to 64 queries, one sends their answers.
//!
//! ```text
//!   recvmmsg ─> inbox[0..n] ─ answer(bytes, peer, out) ─> outbox[0..k] ─> sendmmsg
//! ```

use std::io;
use std::mem::size_of;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, sockopt};

use crate::error::{Error, Named};

/// Datagrams per system call.
pub const BATCH: usize = 64;
/// Bytes of a datagram that are received; what a longer one has more is cut off.
pub const INBOX: usize = 1536;
/// Bytes that an answer may have.
pub const OUTBOX: usize = 1280;
/// What is asked for as the socket's buffers. An ordinary user gets less (net.core.rmem_max).
const BUFFER: usize = 4 << 20;

/// A UDP socket on exactly this address, which need not be on an interface yet (IP_FREEBIND). Its datagrams
/// carry no DF and ignore path MTUs: a forged ICMP message cannot make answers shrink (RFC 8900, unbound, nsd).
pub fn bind(address: SocketAddr) -> Result<UdpSocket, Error> {
    let what = || format!("bind udp {address}");
    let fd = socket(address, SocketType::DGRAM).named(what)?;
    if sockopt::set_socket_recv_buffer_size_force(&fd, BUFFER).is_err() {
        sockopt::set_socket_recv_buffer_size(&fd, BUFFER).named(what)?;
        sockopt::set_socket_send_buffer_size(&fd, BUFFER).named(what)?;
    }
    if address.is_ipv4() {
        no_path_mtu(&fd).named(what)?;
    }
    rustix::net::bind(&fd, &address).named(what)?;
    Ok(fd.into())
}

/// A TCP listener on exactly this address, which need not be on an interface yet. Non-blocking.
pub fn listen(address: SocketAddr) -> Result<TcpListener, Error> {
    let what = || format!("listen on tcp {address}");
    let fd = socket(address, SocketType::STREAM).named(what)?;
    sockopt::set_socket_reuseaddr(&fd, true).named(what)?;
    rustix::net::bind(&fd, &address).named(what)?;
    rustix::net::listen(&fd, 1024).named(what)?;
    let listener = TcpListener::from(fd);
    listener.set_nonblocking(true).named(what)?;
    Ok(listener)
}

fn socket(address: SocketAddr, kind: SocketType) -> rustix::io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let fd = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    if address.is_ipv4() {
        sockopt::set_ip_freebind(&fd, true)?;
    } else {
        sockopt::set_ipv6_freebind(&fd, true)?;
        sockopt::set_ipv6_v6only(&fd, true)?;
    }
    Ok(fd)
}

fn no_path_mtu(fd: &OwnedFd) -> io::Result<()> {
    set_int(fd, (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER), libc::IP_PMTUDISC_OMIT)
}

/// Datagrams of this connected socket leave whole, with DF, as large as the interface takes them, whatever was heard
/// of smaller MTUs on the way.
pub fn whole_datagrams(socket: &UdpSocket) -> io::Result<()> {
    // The values of both families are the same (include/uapi/linux/in.h, in6.h).
    let option = match socket.peer_addr()? {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER),
    };
    set_int(socket, option, libc::IP_PMTUDISC_PROBE)
}

fn set_int(
    fd: &impl AsRawFd,
    (level, option): (libc::c_int, libc::c_int),
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the option's value is an int that lives across the call, and its size is given.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sends one datagram without ever waiting for room.
pub fn send_now(socket: &UdpSocket, bytes: &[u8], to: SocketAddr) -> io::Result<usize> {
    Ok(rustix::net::sendto(socket, bytes, SendFlags::DONTWAIT, &to)?)
}

/// Wakes a thread that waits in [`Batch::receive`] on this socket, for good: it receives empty datagrams from
/// now on.
pub fn wake(socket: &UdpSocket) {
    // An unconnected socket says ENOTCONN and is shut all the same (inet_shutdown, net/ipv4/af_inet.c).
    let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
}

/// Turns the socket away from whatever is sent from now on, as if it were closed; what it holds already can still be
/// received and answered. It is connected to itself, and the kernel passes a connected socket by for the datagrams of
/// all others (compute_score, net/ipv4/udp.c).
pub fn turn_away(socket: &UdpSocket) -> io::Result<()> {
    Ok(rustix::net::connect(socket, &socket.local_addr()?)?)
}

/// Has [`Batch::ended`] say so once everything has been received that the socket holds. It can still send.
pub fn end(socket: &UdpSocket) {
    // As in `wake`.
    let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Read);
}

/// Eight random bytes from the kernel: ids and seeds that nobody can guess.
pub fn random() -> Result<u64, Error> {
    let mut bytes = [0u8; 8];
    // SAFETY: the buffer has the length that is given. Eight bytes are never cut short (getrandom(2)).
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if got == 8 {
        Ok(u64::from_ne_bytes(bytes))
    } else {
        Err(Error::system("read random bytes", io::Error::last_os_error()))
    }
}

/// Two CPUs that this thread may run on, for a server and its client; the same one twice if there is no other.
pub fn two_cpus() -> Result<(usize, usize), Error> {
    let allowed =
        rustix::thread::sched_getaffinity(None).named(|| "read the CPUs of this thread".to_owned())?;
    let mut cpus = (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
    let first = cpus.next().unwrap_or(0);
    Ok((first, cpus.next().unwrap_or(first)))
}

/// Keeps this thread, and the threads that it starts from now on, on one CPU.
pub fn pin(cpu: usize) -> Result<(), Error> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set).named(|| format!("pin a thread to CPU {cpu}"))
}

/// Who sent a datagram; decoded only when asked for.
#[derive(Clone, Copy)]
pub struct Peer<'a>(&'a libc::sockaddr_in6);

impl Peer<'_> {
    pub fn address(&self) -> SocketAddr {
        let raw = self.0;
        if i32::from(raw.sin6_family) == libc::AF_INET6 {
            let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
            return SocketAddr::new(ip.into(), u16::from_be(raw.sin6_port));
        }
        // A sockaddr_in: family, port, and the address where an IPv6 one has its flow label.
        let ip = Ipv4Addr::from(u32::from_be(raw.sin6_flowinfo));
        SocketAddr::new(ip.into(), u16::from_be(raw.sin6_port))
    }
}

/// The buffers of one serving thread. They are made once; the headers that point at them too.
pub struct Batch {
    inbox: Heap<[u8; INBOX]>,
    outbox: Heap<[u8; OUTBOX]>,
    peers: Heap<libc::sockaddr_in6>,
    received: Heap<libc::mmsghdr>,
    replies: Heap<libc::mmsghdr>,
    /// Never read here, but `received` and `replies` point into them.
    _parts: [Heap<libc::iovec>; 2],
    /// Where each reply's size is set.
    sizes: *mut libc::iovec,
    count: usize,
    used: usize,
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl Batch {
    pub fn new() -> Self {
        // SAFETY: all of these are plain C structs and byte arrays for which zero is a value.
        let (inbox, outbox, peers) = unsafe { (Heap::zeroed(), Heap::zeroed(), Heap::zeroed()) };
        // SAFETY: as above; null pointers with zero lengths until they are set below.
        let (received, replies, inward, outward) =
            unsafe { (Heap::zeroed(), Heap::zeroed(), Heap::zeroed(), Heap::zeroed()) };
        let batch = Self {
            inbox,
            outbox,
            peers,
            received,
            replies,
            sizes: Heap::slot(&outward, 0),
            _parts: [inward, outward],
            count: 0,
            used: BATCH,
        };
        for index in 0..BATCH {
            batch.point(index);
        }
        batch
    }

    /// Sets what never changes in the headers of one slot. A reply's peer is set with the reply.
    fn point(&self, index: usize) {
        let [inward, outward] = &self._parts;
        // SAFETY: every pointer comes from a live heap block of BATCH elements and `index` is below BATCH; nobody
        // holds references into them.
        unsafe {
            *inward.slot(index) = libc::iovec { iov_base: self.inbox.slot(index).cast(), iov_len: INBOX };
            *outward.slot(index) = libc::iovec { iov_base: self.outbox.slot(index).cast(), iov_len: 0 };
            let header = &raw mut (*self.received.slot(index)).msg_hdr;
            (*header).msg_iov = inward.slot(index);
            (*header).msg_iovlen = 1;
            (*header).msg_name = self.peers.slot(index).cast();
            let header = &raw mut (*self.replies.slot(index)).msg_hdr;
            (*header).msg_iov = outward.slot(index);
            (*header).msg_iovlen = 1;
        }
    }

    /// Waits for datagrams and takes all that are there, up to [`BATCH`].
    pub fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        for index in 0..self.used {
            // SAFETY: `used` never exceeds BATCH. The kernel wrote the length of the last sender's address here.
            unsafe {
                (*self.received.slot(index)).msg_hdr.msg_namelen = size_of::<libc::sockaddr_in6>() as u32;
            }
        }
        self.count = 0;
        // SAFETY: BATCH headers, each of which points at a buffer and an address of the size that it says, all
        // alive as long as `self`.
        let got = unsafe {
            libc::recvmmsg(
                socket.as_fd().as_raw_fd(),
                self.received.slot(0),
                BATCH as libc::c_uint,
                libc::MSG_WAITFORONE as _,
                std::ptr::null_mut(),
            )
        };
        self.count = usize::try_from(got).map_err(|_| io::Error::last_os_error())?.min(BATCH);
        self.used = self.count;
        Ok(self.count)
    }

    /// Whether the last datagrams were received that will ever come: after them [`end`] has the kernel say so, by
    /// empty ones of nobody.
    pub fn ended(&self) -> bool {
        // SAFETY: `used` never exceeds BATCH; the kernel wrote the headers below it.
        self.used > 0 && unsafe { (*self.received.slot(self.used - 1)).msg_hdr.msg_namelen == 0 }
    }

    /// Lets `answer` write a reply to each datagram received last (0 bytes: none) and sends them all. Returns how
    /// many the kernel took; one that it refuses (no route, a policy) does not hold back the others.
    pub fn reply(
        &mut self,
        socket: &UdpSocket,
        mut answer: impl FnMut(&[u8], Peer<'_>, &mut [u8]) -> usize,
    ) -> usize {
        let mut replies = 0;
        for index in 0..self.count {
            // SAFETY: `index` and `replies` are below BATCH; the kernel filled `msg_len` bytes of the inbox and
            // the sender's address; the three references are to different blocks and end with this iteration.
            unsafe {
                let header = &*self.received.slot(index);
                let length = (header.msg_len as usize).min(INBOX);
                let inbox = &*self.inbox.slot(index);
                let outbox = &mut *self.outbox.slot(replies);
                let peer = Peer(&*self.peers.slot(index));
                let size = answer(inbox.get(..length).unwrap_or_default(), peer, outbox).min(OUTBOX);
                if size == 0 || header.msg_hdr.msg_namelen == 0 {
                    continue;
                }
                (*self.sizes.add(replies)).iov_len = size;
                let reply = &raw mut (*self.replies.slot(replies)).msg_hdr;
                (*reply).msg_name = self.peers.slot(index).cast();
                (*reply).msg_namelen = header.msg_hdr.msg_namelen;
            }
            replies += 1;
        }
        self.count = 0;
        self.send(socket, replies)
    }

    fn send(&mut self, socket: &UdpSocket, replies: usize) -> usize {
        let (mut at, mut sent) = (0, 0);
        while at < replies {
            // SAFETY: headers `at..replies` were set by `reply` and point at live buffers of the given sizes.
            let took = unsafe {
                libc::sendmmsg(
                    socket.as_fd().as_raw_fd(),
                    self.replies.slot(at),
                    (replies - at) as libc::c_uint,
                    0,
                )
            };
            match usize::try_from(took) {
                Ok(took) if took > 0 => {
                    at += took;
                    sent += took;
                }
                _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
                // The first of the rest was refused.
                _ => at += 1,
            }
        }
        sent
    }
}

/// [`BATCH`] values at an address that stays, reached only through raw pointers: the kernel's headers point at
/// them while we write them.
struct Heap<T>(*mut T);

impl<T> Heap<T> {
    /// # Safety
    /// All zero bytes must be a value of `T`, and `T` must have no destructor.
    unsafe fn zeroed() -> Self {
        let block: Box<[T; BATCH]> = {
            // SAFETY: the caller vouches for zero bytes as a `T`, so an array of them is initialised.
            unsafe { Box::new(std::mem::MaybeUninit::<[T; BATCH]>::zeroed()).assume_init() }
        };
        Self(Box::into_raw(block).cast())
    }

    fn slot(&self, index: usize) -> *mut T {
        assert!(index < BATCH);
        // SAFETY: within the block, by the line above.
        unsafe { self.0.add(index) }
    }
}

impl<T> Drop for Heap<T> {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `Box::into_raw` of such an array and is dropped once.
        drop(unsafe { Box::<[T; BATCH]>::from_raw(self.0.cast()) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_answers_every_sender() {
        let server = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = server.local_addr().unwrap();
        let clients: Vec<UdpSocket> = (0..70).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        for (index, client) in clients.iter().enumerate() {
            client.send_to(&[index as u8; 3], address).unwrap();
        }
        let mut batch = Batch::new();
        let (mut seen, mut sizes) = (0, Vec::new());
        while seen < clients.len() {
            let got = batch.receive(&server).unwrap();
            sizes.push(got);
            let sent = batch.reply(&server, |bytes, peer, out| {
                assert_eq!(peer.address().ip(), address.ip());
                out[..3].copy_from_slice(bytes);
                3
            });
            assert_eq!(sent, got);
            seen += got;
        }
        assert_eq!(sizes[0], BATCH, "one call takes a full batch");
        for (index, client) in clients.iter().enumerate() {
            let mut answer = [0; 16];
            let (length, from) = client.recv_from(&mut answer).unwrap();
            assert_eq!((&answer[..length], from), (&[index as u8; 3][..], address));
        }
    }

    #[test]
    fn ipv6_senders_are_named() {
        let server = bind("[::1]:0".parse().unwrap()).unwrap();
        let client = UdpSocket::bind("[::1]:0").unwrap();
        client.send_to(b"x", server.local_addr().unwrap()).unwrap();
        let mut batch = Batch::new();
        batch.receive(&server).unwrap();
        let mut from = None;
        batch.reply(&server, |_, peer, _| {
            from = Some(peer.address());
            0
        });
        assert_eq!(from, client.local_addr().ok());
    }

    #[test]
    fn waking_ends_the_wait() {
        let server = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let other = server.try_clone().unwrap();
        let waiting = std::thread::spawn(move || Batch::new().receive(&server).map(|_| ()));
        wake(&other);
        waiting.join().unwrap().unwrap();
    }

    #[test]
    fn what_came_before_the_end_is_answered_and_nothing_after_it() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let server = bind(any.parse().unwrap()).unwrap();
            let client = UdpSocket::bind(any).unwrap();
            client.connect(server.local_addr().unwrap()).unwrap();
            for number in 0..100 {
                client.send(&[number]).unwrap();
            }
            turn_away(&server).unwrap();
            // The one that is refused has its error reported by the next call.
            client.send(b"late").unwrap();
            assert_eq!(client.send(b"later").unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
            end(&server);
            let mut batch = Batch::new();
            let mut answered = 0;
            loop {
                batch.receive(&server).unwrap();
                answered += batch.reply(&server, |bytes, _, out| {
                    out[..bytes.len()].copy_from_slice(bytes);
                    bytes.len()
                });
                if batch.ended() {
                    break;
                }
            }
            assert_eq!(answered, 100);
            for number in 0..100 {
                let mut answer = [0; 2];
                let length = client.recv(&mut answer).unwrap();
                assert_eq!(&answer[..length], [number]);
            }
        }
    }

    #[test]
    fn a_taken_port_is_named() {
        let first = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let error = bind(first.local_addr().unwrap()).unwrap_err();
        assert_eq!(error.errno(), Some(libc::EADDRINUSE));
        assert!(error.to_string().contains("bind udp 127.0.0.1:"), "{error}");
    }

    #[test]
    fn an_address_need_not_be_there_yet() {
        assert!(bind("192.0.2.53:0".parse().unwrap()).is_ok());
        assert!(listen("192.0.2.53:0".parse().unwrap()).is_ok());
    }
}
