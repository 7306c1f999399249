//! A socket in another network namespace that sends one packet from a known address and port: the port is taken
//! before the packet leaves, so that whoever watches the way knows what to look for.

use std::io;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, getsockname, socket_with, sockopt};

use crate::error::Error;
use crate::netns::Netns;

/// A bound socket that has sent nothing yet.
#[derive(Debug)]
pub struct Probe {
    socket: OwnedFd,
    source: SocketAddr,
}

/// How an attempt to connect ended, as a client sees it.
#[derive(Debug)]
pub enum Connected {
    Yes(TcpStream),
    /// A reset, or ICMP port unreachable.
    Refused,
    /// ICMP unreachable of another kind, or the node's own kernel knows no way.
    Unreachable(io::Error),
    /// Nothing came in time.
    Silent,
}

impl Probe {
    /// A TCP socket in `netns`, bound to `source`; port 0 lets the kernel choose one.
    pub fn tcp(netns: &Netns, source: SocketAddr) -> Result<Self, Error> {
        Self::bound(netns, source, SocketType::STREAM)
    }

    pub fn udp(netns: &Netns, source: SocketAddr) -> Result<Self, Error> {
        Self::bound(netns, source, SocketType::DGRAM)
    }

    fn bound(netns: &Netns, source: SocketAddr, kind: SocketType) -> Result<Self, Error> {
        let family = if source.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let open = || -> Result<(OwnedFd, SocketAddr), Errno> {
            let socket = socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
            sockopt::set_socket_reuseaddr(&socket, true)?;
            bind(&socket, &source)?;
            let bound = SocketAddr::try_from(getsockname(&socket)?)?;
            Ok((socket, bound))
        };
        let failed = |errno: Errno| Error::Input {
            what: format!("bind a socket to {source} in {}", netns.origin().display()),
            why: match errno {
                Errno::ADDRNOTAVAIL => "the namespace has no such address; is the pod still wired?".into(),
                Errno::ADDRINUSE => "the port is taken there; choose another source port".into(),
                other => other.to_string(),
            },
        };
        let (socket, source) = netns.run(open)?.map_err(failed)?;
        Ok(Self { socket, source })
    }

    pub fn source(&self) -> SocketAddr {
        self.source
    }

    /// Sends the first packet of a connection and waits for what comes of it. Blocks for up to `timeout`.
    pub fn connect(self, to: SocketAddr, timeout: Duration) -> Result<Connected, Error> {
        let outcome = match connect(&self.socket, &to) {
            Ok(()) => Ok(()),
            Err(Errno::INPROGRESS) => {
                if !ready(&self.socket, PollFlags::OUT, timeout)? {
                    return Ok(Connected::Silent);
                }
                sockopt::socket_error(&self.socket).unwrap_or(Ok(()))
            }
            Err(errno) => Err(errno),
        };
        Ok(match outcome {
            Ok(()) => {
                let stream = TcpStream::from(self.socket);
                stream
                    .set_nonblocking(false)
                    .map_err(|e| Error::system("make a probe's socket blocking", e))?;
                Connected::Yes(stream)
            }
            Err(Errno::CONNREFUSED) => Connected::Refused,
            Err(Errno::TIMEDOUT) => Connected::Silent,
            Err(errno) => Connected::Unreachable(errno.into()),
        })
    }

    /// Sends one datagram and waits for one answer.
    pub fn exchange(self, to: SocketAddr, payload: &[u8], timeout: Duration) -> Result<Answer, Error> {
        let socket = UdpSocket::from(self.socket);
        let failed = |error: io::Error| match error.raw_os_error() {
            Some(libc::ECONNREFUSED) => Answer::Refused,
            _ => Answer::Unreachable(error),
        };
        if let Err(error) = socket.connect(to).and_then(|()| socket.send(payload)) {
            return Ok(failed(error));
        }
        if !ready(&socket, PollFlags::IN, timeout)? {
            return Ok(Answer::Silent);
        }
        let mut buffer = vec![0; 65_535];
        Ok(match socket.recv(&mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                Answer::Datagram(buffer)
            }
            Err(error) => failed(error),
        })
    }
}

/// What came of a datagram.
#[derive(Debug)]
pub enum Answer {
    Datagram(Vec<u8>),
    Refused,
    Unreachable(io::Error),
    Silent,
}

/// Whether the socket became ready in time; a signal in between costs no time.
pub(crate) fn ready(socket: &impl AsFd, flags: PollFlags, timeout: Duration) -> Result<bool, Error> {
    let end = Instant::now() + timeout;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        match poll(&mut [PollFd::new(socket, flags)], Some(&timeout)) {
            Ok(count) => return Ok(count > 0),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::system("wait for a probe's answer", errno)),
        }
    }
}

/// Bytes of payload that one packet of the connection takes (`TCP_MAXSEG`, tcp(7)).
pub fn segment(stream: &TcpStream) -> Option<usize> {
    let mut size: libc::c_int = 0;
    let mut length = libc::socklen_t::try_from(size_of::<libc::c_int>()).ok()?;
    let (level, name) = (libc::IPPROTO_TCP, libc::TCP_MAXSEG);
    // SAFETY: the descriptor is open, and the kernel writes at most `length` bytes, which is the size of `size`.
    let done =
        unsafe { libc::getsockopt(stream.as_raw_fd(), level, name, (&raw mut size).cast(), &mut length) };
    (done == 0).then(|| usize::try_from(size).ok()).flatten().filter(|size| *size > 0)
}

/// Bytes that were sent and that the other end has not acknowledged (`SIOCOUTQ`, tcp(7)).
pub fn unacknowledged(stream: &TcpStream) -> Option<usize> {
    let mut size: libc::c_int = 0;
    // SAFETY: the descriptor is open, and the kernel writes one int.
    let done = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut size) };
    (done == 0).then(|| usize::try_from(size).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    #[test]
    fn a_probe_connects_from_the_port_it_announced() {
        let here = Netns::current().unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let to = listener.local_addr().unwrap();
        let probe = Probe::tcp(&here, (Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let source = probe.source();
        let Connected::Yes(mut stream) = probe.connect(to, Duration::from_secs(5)).unwrap() else {
            panic!("not connected");
        };
        let (mut peer, from) = listener.accept().unwrap();
        assert_eq!(from, source);
        stream.write_all(b"x").unwrap();
        let mut byte = [0];
        peer.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }

    #[test]
    fn a_closed_port_refuses() {
        let here = Netns::current().unwrap();
        let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let probe = Probe::tcp(&here, (Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        assert!(matches!(probe.connect(closed, Duration::from_secs(5)).unwrap(), Connected::Refused));
        let probe = Probe::udp(&here, (Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        assert!(matches!(probe.exchange(closed, b"x", Duration::from_secs(5)).unwrap(), Answer::Refused));
    }
}
