//! Echo requests and their answers (RFC 792, RFC 4443 §4), over a raw socket of another network namespace. The identifier
//! stands where TCP has the sender's port.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use netlink::packet::{Packet, Transport};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, ipproto, recv, sendto,
};
use types::Family;

use crate::error::{Error, Named};
use crate::netns::Netns;
use crate::probe::{Answer, ready};

/// As much as ping(8) sends.
const PAYLOAD: usize = 56;
/// Type of the request and of the answer, by family.
const REQUEST: [u8; 2] = [8, 128];
const REPLY: [u8; 2] = [0, 129];
/// Of the errors: destination unreachable, and its code for a port (or for what is rejected).
const UNREACHABLE: [u8; 2] = [3, 1];
const PORT: [u8; 2] = [3, 4];

/// A raw socket that has sent nothing yet.
#[derive(Debug)]
pub struct Echo {
    socket: OwnedFd,
    source: SocketAddr,
}

impl Echo {
    /// In `netns`, from `source`, whose port is the identifier; 0 takes one by chance.
    pub fn open(netns: &Netns, source: SocketAddr) -> Result<Self, Error> {
        netns.run(|| Self::here(source))?
    }

    /// The same in the namespace of the calling thread.
    pub fn here(source: SocketAddr) -> Result<Self, Error> {
        let (family, protocol) = match source {
            SocketAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
            SocketAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
        };
        let identifier = match source.port() {
            0 => (crate::udp::random()? as u16).max(1),
            given => given,
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let what = || format!("open a raw socket at {}", source.ip());
        let socket = rustix::net::socket_with(family, SocketType::RAW, flags, Some(protocol));
        let socket = socket.map_err(|answer| Error::Socket { what: what(), answer: answer.into() })?;
        bind(&socket, &SocketAddr::new(source.ip(), 0)).named(what)?;
        Ok(Self { socket, source: SocketAddr::new(source.ip(), identifier) })
    }

    /// With the identifier as its port.
    pub fn source(&self) -> SocketAddr {
        self.source
    }

    /// Sends one request and waits for what comes of it; a datagram is what follows the header of the answer.
    pub fn exchange(&self, to: SocketAddr, sequence: u16, timeout: Duration) -> Result<Answer, Error> {
        let mut to = to;
        // The kernel takes a protocol's number there, or nothing (rawv6_sendmsg, net/ipv6/raw.c).
        to.set_port(0);
        let asked = Asked { family: Family::of(to.ip()), identifier: self.source.port(), sequence };
        if let Err(errno) = sendto(&self.socket, &asked.request(), SendFlags::empty(), &to) {
            return Ok(Answer::Unreachable(errno.into()));
        }
        let end = Instant::now() + timeout;
        let mut buffer = vec![0; 65_535];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || !ready(&self.socket, PollFlags::IN, left)? {
                return Ok(Answer::Silent);
            }
            let length = match recv(&self.socket, &mut buffer[..], RecvFlags::empty()) {
                Ok((length, _)) => length,
                Err(Errno::AGAIN | Errno::INTR) => continue,
                Err(errno) => return Ok(Answer::Unreachable(errno.into())),
            };
            if let Some(answer) = asked.answer(buffer.get(..length).unwrap_or_default()) {
                return Ok(answer);
            }
        }
    }
}

/// What tells the answer from everybody else's: raw sockets hear all.
#[derive(Clone, Copy, Debug)]
struct Asked {
    family: Family,
    identifier: u16,
    sequence: u16,
}

impl Asked {
    fn request(self) -> Vec<u8> {
        let mut bytes = vec![self.family.pick(REQUEST), 0, 0, 0];
        bytes.extend(self.identifier.to_be_bytes());
        bytes.extend(self.sequence.to_be_bytes());
        bytes.extend((0..PAYLOAD).map(|at| at as u8));
        // Of ICMPv6 the kernel does it, since it covers the addresses.
        let sum = checksum(&bytes).to_be_bytes();
        if let (Family::V4, Some(place)) = (self.family, bytes.get_mut(2..4)) {
            place.copy_from_slice(&sum);
        }
        bytes
    }

    fn is(self, rest: [u8; 4]) -> bool {
        let [a, b, c, d] = rest;
        u16::from_be_bytes([a, b]) == self.identifier && u16::from_be_bytes([c, d]) == self.sequence
    }

    /// An IPv4 socket gives the IP header as well, one of IPv6 what follows it.
    fn answer(self, bytes: &[u8]) -> Option<Answer> {
        let message = match self.family {
            Family::V4 => bytes.get(usize::from(bytes.first()? & 0xf) * 4..)?,
            Family::V6 => bytes,
        };
        let (header, body) = message.split_first_chunk::<8>()?;
        let &[kind, code, _, _, r0, r1, r2, r3] = header;
        if kind == self.family.pick(REPLY) && self.is([r0, r1, r2, r3]) {
            return Some(Answer::Datagram(body.to_vec()));
        }
        let Transport::Icmp { kind: quoted, rest, .. } = Packet::parse(body)?.transport else { return None };
        let ours = quoted == self.family.pick(REQUEST) && self.is(rest);
        if kind != self.family.pick(UNREACHABLE) || !ours {
            return None;
        }
        Some(match code == self.family.pick(PORT) {
            true => Answer::Refused,
            false => Answer::Unreachable(io::ErrorKind::HostUnreachable.into()),
        })
    }
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| match *pair {
        [high, low] => u32::from(u16::from_be_bytes([high, low])),
        [high] => u32::from(high) << 8,
        _ => 0,
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(family: Family) -> Asked {
        Asked { family, identifier: 0x1234, sequence: 7 }
    }

    #[test]
    fn a_request_sums_up() {
        let request = asked(Family::V4).request();
        assert_eq!((request.len(), checksum(&request)), (8 + PAYLOAD, 0));
        assert_eq!(request[..2], [8, 0]);
        assert_eq!(asked(Family::V6).request()[..4], [128, 0, 0, 0]);
    }

    /// `message` behind an IPv4 header of 20 bytes.
    fn in_ipv4(message: &[u8]) -> Vec<u8> {
        let length = (20 + message.len()) as u16;
        let mut packet = vec![0x45, 0, (length >> 8) as u8, length as u8, 0, 0, 0, 0, 64, 1, 0, 0];
        packet.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        packet.extend(message);
        packet
    }

    #[test]
    fn only_its_own_answer_counts() {
        let asked = asked(Family::V4);
        let reply = |sequence: u8| in_ipv4(&[0, 0, 0, 0, 0x12, 0x34, 0, sequence, 1, 2]);
        assert!(matches!(asked.answer(&reply(7)), Some(Answer::Datagram(body)) if body == [1, 2]));
        assert!(asked.answer(&reply(8)).is_none());
        let error =
            |code: u8, quoted: &[u8]| in_ipv4(&[&[3, code, 0, 0, 0, 0, 0, 0], &in_ipv4(quoted)[..]].concat());
        assert!(matches!(asked.answer(&error(3, &asked.request())), Some(Answer::Refused)));
        assert!(matches!(asked.answer(&error(1, &asked.request())), Some(Answer::Unreachable(_))));
        let others = Asked { sequence: 9, ..asked }.request();
        assert!(asked.answer(&error(3, &others)).is_none());
    }
}
