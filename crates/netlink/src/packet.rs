//! Packets on the wire as values: Ethernet, IPv4, IPv6, TCP, UDP, ICMP and what VXLAN carries. For traces and
//! tests, which look at captured frames; lengths and checksums are not judged.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use types::{Mac, Vni};

pub const ETHERTYPE_IPV4: u16 = 0x0800;
pub const ETHERTYPE_ARP: u16 = 0x0806;
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

/// An Ethernet frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    pub dst: Mac,
    pub src: Mac,
    pub ethertype: u16,
    pub payload: &'a [u8],
}

/// An IP packet of either family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    pub src: IpAddr,
    pub dst: IpAddr,
    /// Hops left: TTL or hop limit.
    pub ttl: u8,
    /// As the header says: with the header.
    pub length: usize,
    /// IPv4's identification, which stays the same from hop to hop and under DNAT.
    pub id: u16,
    pub dont_fragment: bool,
    /// DSCP and ECN.
    pub tos: u8,
    pub transport: Transport<'a>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport<'a> {
    Tcp {
        src: u16,
        dst: u16,
        seq: u32,
        ack: u32,
        flags: TcpFlags,
        payload: &'a [u8],
    },
    Udp {
        src: u16,
        dst: u16,
        payload: &'a [u8],
    },
    Icmp {
        kind: u8,
        code: u8,
        rest: [u8; 4],
        payload: &'a [u8],
    },
    /// A later fragment, or a protocol that is not taken apart.
    Other {
        protocol: u8,
        payload: &'a [u8],
    },
}

/// The flag byte of TCP, printed as tcpdump does: `S`, `S.`, `P.`, `F.`, `R`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const PSH: u8 = 0x08;
    pub const ACK: u8 = 0x10;

    pub fn has(self, flag: u8) -> bool {
        self.0 & flag == flag
    }
}

impl<'a> Frame<'a> {
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (dst, rest) = bytes.split_first_chunk()?;
        let (src, rest) = rest.split_first_chunk()?;
        let (ethertype, payload) = rest.split_first_chunk()?;
        let ethertype = u16::from_be_bytes(*ethertype);
        Some(Self { dst: Mac(*dst), src: Mac(*src), ethertype, payload })
    }

    /// The IP packet inside, when there is one.
    pub fn packet(&self) -> Option<Packet<'a>> {
        match self.ethertype {
            ETHERTYPE_IPV4 | ETHERTYPE_IPV6 => Packet::parse(self.payload),
            _ => None,
        }
    }
}

impl<'a> Packet<'a> {
    /// Either family, as the first four bits say.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        match bytes.first()? >> 4 {
            4 => parse_v4(bytes),
            6 => parse_v6(bytes),
            _ => None,
        }
    }

    /// Protocol number of the transport.
    pub fn protocol(&self) -> u8 {
        match self.transport {
            Transport::Tcp { .. } => 6,
            Transport::Udp { .. } => 17,
            Transport::Icmp { .. } if self.src.is_ipv4() => 1,
            Transport::Icmp { .. } => 58,
            Transport::Other { protocol, .. } => protocol,
        }
    }

    /// Source and destination port, of TCP and UDP.
    pub fn ports(&self) -> Option<(u16, u16)> {
        match self.transport {
            Transport::Tcp { src, dst, .. } | Transport::Udp { src, dst, .. } => Some((src, dst)),
            _ => None,
        }
    }

    /// Source and destination with ports, of TCP and UDP.
    pub fn sockets(&self) -> Option<(SocketAddr, SocketAddr)> {
        let (src, dst) = self.ports()?;
        Some((SocketAddr::new(self.src, src), SocketAddr::new(self.dst, dst)))
    }

    /// Of an echo: whether it is the request, and its identifier.
    pub fn echo(&self) -> Option<(bool, u16)> {
        let Transport::Icmp { kind, rest: [a, b, ..], .. } = self.transport else { return None };
        let id = u16::from_be_bytes([a, b]);
        match (kind, self.src.is_ipv4()) {
            (8, true) | (128, false) => Some((true, id)),
            (0, true) | (129, false) => Some((false, id)),
            _ => None,
        }
    }

    /// What travels inside when this is a VXLAN packet to the given port (RFC 7348 §5).
    pub fn vxlan(&self, port: u16) -> Option<(Vni, Frame<'a>)> {
        let Transport::Udp { dst, payload, .. } = self.transport else { return None };
        let (header, inner) = payload.split_first_chunk::<8>()?;
        let &[flags, _, _, _, a, b, c, _] = header;
        if dst != port || flags & 0x08 == 0 {
            return None;
        }
        Some((Vni(u32::from_be_bytes([0, a, b, c])), Frame::parse(inner)?))
    }

    /// The packet that an ICMP error quotes: whose sender it tells that it did not arrive.
    pub fn quoted(&self) -> Option<Packet<'a>> {
        match self.transport {
            // Unreachable, time exceeded, parameter problem; in ICMPv6 all errors are below 128.
            Transport::Icmp { kind: 3 | 11 | 12, payload, .. } if self.src.is_ipv4() => {
                Packet::parse(payload)
            }
            Transport::Icmp { kind: 1..128, payload, .. } if self.src.is_ipv6() => Packet::parse(payload),
            _ => None,
        }
    }
}

fn parse_v4(bytes: &[u8]) -> Option<Packet<'_>> {
    let header: &[u8; 20] = bytes.first_chunk()?;
    let &[first, tos, l0, l1, i0, i1, f0, f1, ttl, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] = header;
    let length = usize::from(u16::from_be_bytes([l0, l1]));
    let header_length = usize::from(first & 0xf) * 4;
    // Frames are padded to 60 bytes, and the total length may be 0 with segmentation offload.
    let end = if length > header_length { length.min(bytes.len()) } else { bytes.len() };
    let payload = bytes.get(header_length..end)?;
    let offset = u16::from_be_bytes([f0 & 0x1f, f1]);
    Some(Packet {
        src: Ipv4Addr::new(s0, s1, s2, s3).into(),
        dst: Ipv4Addr::new(d0, d1, d2, d3).into(),
        ttl,
        length,
        id: u16::from_be_bytes([i0, i1]),
        dont_fragment: f0 & 0x40 != 0,
        tos,
        transport: transport(protocol, payload, offset > 0),
    })
}

fn parse_v6(bytes: &[u8]) -> Option<Packet<'_>> {
    let (header, mut payload) = bytes.split_first_chunk::<40>()?;
    let (fixed, addresses) = header.split_first_chunk::<8>()?;
    let &[v0, v1, _, _, l0, l1, mut next, ttl] = fixed;
    let (src, dst) = addresses.split_first_chunk::<16>()?;
    let mut later_fragment = false;
    // Hop-by-hop, routing, fragment and destination options, at most as many as make sense (RFC 8200 §4.1).
    for _ in 0..8 {
        let &[following, length, o0, o1] = match (next, payload.first_chunk::<4>()) {
            (0 | 43 | 44 | 60, Some(extension)) => extension,
            _ => break,
        };
        let skip = if next == 44 { 8 } else { (usize::from(length) + 1) * 8 };
        later_fragment |= next == 44 && u16::from_be_bytes([o0, o1]) >> 3 > 0;
        (next, payload) = (following, payload.get(skip..)?);
    }
    Some(Packet {
        src: Ipv6Addr::from(*src).into(),
        dst: Ipv6Addr::from(<[u8; 16]>::try_from(dst).ok()?).into(),
        ttl,
        length: usize::from(u16::from_be_bytes([l0, l1])) + 40,
        id: 0,
        dont_fragment: true,
        tos: (v0 << 4) | (v1 >> 4),
        transport: transport(next, payload, later_fragment),
    })
}

fn transport(protocol: u8, payload: &[u8], later_fragment: bool) -> Transport<'_> {
    let known = match protocol {
        _ if later_fragment => None,
        6 => parse_tcp(payload),
        17 => parse_udp(payload),
        1 | 58 => parse_icmp(payload),
        _ => None,
    };
    known.unwrap_or(Transport::Other { protocol, payload })
}

fn parse_tcp(bytes: &[u8]) -> Option<Transport<'_>> {
    let header: &[u8; 14] = bytes.first_chunk()?;
    let &[s0, s1, d0, d1, q0, q1, q2, q3, a0, a1, a2, a3, offset, flags] = header;
    Some(Transport::Tcp {
        src: u16::from_be_bytes([s0, s1]),
        dst: u16::from_be_bytes([d0, d1]),
        seq: u32::from_be_bytes([q0, q1, q2, q3]),
        ack: u32::from_be_bytes([a0, a1, a2, a3]),
        flags: TcpFlags(flags),
        // ICMP errors quote as little as eight bytes more than the IP header; those parse as `Other`.
        payload: bytes.get(usize::from(offset >> 4) * 4..).unwrap_or_default(),
    })
}

fn parse_udp(bytes: &[u8]) -> Option<Transport<'_>> {
    let (header, payload) = bytes.split_first_chunk::<8>()?;
    let &[s0, s1, d0, d1, ..] = header;
    Some(Transport::Udp { src: u16::from_be_bytes([s0, s1]), dst: u16::from_be_bytes([d0, d1]), payload })
}

fn parse_icmp(bytes: &[u8]) -> Option<Transport<'_>> {
    let (header, payload) = bytes.split_first_chunk::<8>()?;
    let &[kind, code, _, _, a, b, c, d] = header;
    Some(Transport::Icmp { kind, code, rest: [a, b, c, d], payload })
}

impl fmt::Display for TcpFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (flag, letter) in [(Self::SYN, "S"), (Self::FIN, "F"), (Self::RST, "R"), (Self::PSH, "P")] {
            f.write_str(if self.has(flag) { letter } else { "" })?;
        }
        f.write_str(if self.has(Self::ACK) { "." } else { "" })
    }
}

/// `tcp 10.244.1.4:41224 → 10.96.14.7:8080 [S]`
impl fmt::Display for Packet<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (src, dst) = (self.src, self.dst);
        match &self.transport {
            Transport::Tcp { flags, payload, .. } => {
                let Some((src, dst)) = self.sockets() else { return Ok(()) };
                write!(f, "tcp {src} → {dst} [{flags}]")?;
                if payload.is_empty() { Ok(()) } else { write!(f, " {} bytes", payload.len()) }
            }
            Transport::Udp { payload, .. } => {
                let Some((src, dst)) = self.sockets() else { return Ok(()) };
                write!(f, "udp {src} → {dst} {} bytes", payload.len())
            }
            Transport::Icmp { kind, code, .. } => {
                write!(f, "icmp {src} → {dst} type {kind} code {code}")?;
                self.quoted().map_or(Ok(()), |quoted| write!(f, " about {quoted}"))
            }
            Transport::Other { protocol, .. } => write!(f, "protocol {protocol} {src} → {dst}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An IPv4 header for a payload.
    fn v4(protocol: u8, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(20 + payload.len()).expect("short").to_be_bytes();
        let mut bytes = vec![0x45, 0, length[0], length[1], 0, 7, 0x40, 0, 63, protocol, 0, 0];
        bytes.extend([10, 244, 1, 4, 10, 244, 2, 9]);
        bytes.extend(payload);
        bytes
    }

    fn udp(dst: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = 52113_u16.to_be_bytes().to_vec();
        bytes.extend(dst.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(payload);
        bytes
    }

    fn frame(payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn what_vxlan_carries_is_found() {
        let mut syn = vec![0xa1, 0x08, 0x1f, 0x90];
        syn.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0, 0, 0, 0, 0, 0]);
        let mut carried = vec![8, 0, 0, 0, 0, 0, 1, 0];
        carried.extend(frame(&v4(6, &syn)));
        let bytes = frame(&v4(17, &udp(8472, &carried)));
        let outer = Frame::parse(&bytes).and_then(|frame| frame.packet()).expect("outer");
        assert_eq!((outer.ttl, outer.id, outer.dont_fragment, outer.protocol()), (63, 7, true, 17));
        let (vni, inner) = outer.vxlan(8472).expect("VXLAN");
        assert_eq!((vni, inner.src), (Vni(1), Mac([2, 0, 0, 0, 0, 2])));
        let inner = inner.packet().expect("inner");
        assert_eq!(inner.to_string(), "tcp 10.244.1.4:41224 → 10.244.2.9:8080 [S]");
        assert_eq!(outer.vxlan(4789), None);
    }

    #[test]
    fn an_icmp_error_tells_what_it_is_about() {
        let mut error = vec![3, 13, 0, 0, 0, 0, 0, 0];
        error.extend(v4(17, &udp(53, b"")));
        let bytes = v4(1, &error);
        let packet = Packet::parse(&bytes).expect("a packet");
        let about = "udp 10.244.1.4:52113 → 10.244.2.9:53 0 bytes";
        assert_eq!(packet.to_string(), format!("icmp 10.244.1.4 → 10.244.2.9 type 3 code 13 about {about}"));
    }

    #[test]
    fn ipv6_extension_headers_are_skipped() {
        let mut bytes = vec![0x60, 0, 0, 0, 0, 17, 0, 64];
        bytes.extend([0xfd; 32]);
        bytes.extend([17, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend(udp(53, b"q"));
        let packet = Packet::parse(&bytes).expect("a packet");
        assert_eq!((packet.ports(), packet.ttl), (Some((52113, 53)), 64));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(first in any::<u8>(), bytes in prop::collection::vec(any::<u8>(), 0..150)) {
            // Half of the time something that looks like IP, so that the depths are reached.
            for lead in [vec![], vec![0x45], vec![0x60], vec![first]] {
                let bytes = [lead, bytes.clone()].concat();
                if let Some(packet) = Packet::parse(&bytes) {
                    let _ = (packet.to_string(), packet.vxlan(8472), packet.quoted());
                }
                let _ = Frame::parse(&bytes).and_then(|frame| frame.packet());
            }
        }
    }
}
