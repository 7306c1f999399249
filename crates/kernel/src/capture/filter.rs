//! A classic BPF program from what a trace looks for, so that the kernel copies only that
//! (Documentation/networking/filter.rst).
//!
//! ```text
//!   Ethernet (14) ─ IPv4 or IPv6 ─ TCP/UDP                                 plain blocks at 0
//!   Ethernet (14) ─ IPv4 (20) ─ UDP (8) ─ VXLAN (8) ─ Ethernet ─ IP ─ …    inner blocks at 50
//!   Ethernet (14) ─ IPv6 (40) ─ UDP (8) ─ VXLAN (8) ─ Ethernet ─ IP ─ …    inner blocks at 70
//! ```
//!
//! It is coarse where exactness costs instructions (of an IPv6 address only the last four bytes are compared): who
//! reads the packets tells them apart.

use std::net::IpAddr;

use types::Family;

use crate::error::Error;

/// Which packets to capture: those that meet every condition given; empty and `None` mean any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// One of these is source or destination.
    pub addresses: Vec<IpAddr>,
    /// One of these is source or destination port.
    pub ports: Vec<u16>,
    /// Protocol number. ICMP passes as well, its ports unasked: errors about the flow are part of its story.
    pub protocol: Option<u8>,
    /// VXLAN packets to this UDP port pass when what they carry meets the conditions.
    pub tunnel: Option<u16>,
}

const LD_W: u16 = 0x20;
const LD_H: u16 = 0x28;
const LD_B: u16 = 0x30;
/// Loads with the index register added.
const LD_H_IND: u16 = 0x48;
/// X = 4 × (byte & 15): the length of an IPv4 header.
const LDX_MSH: u16 = 0xb1;
const JEQ: u16 = 0x15;
const JSET: u16 = 0x45;
const JA: u16 = 0x05;
const RET: u16 = 0x06;

/// Offset of the carried frame in a VXLAN packet without IP options or extension headers.
const INNER: [u32; 2] = [14 + 20 + 8 + 8, 14 + 40 + 8 + 8];
/// ICMP and ICMPv6.
const ICMP: [u32; 2] = [1, 58];
const ETHERTYPES: [u32; 2] = [0x0800, 0x86dd];
/// Offsets in a frame: the protocol; where the last four bytes of either address are.
const PROTOCOL: [u32; 2] = [23, 20];
const ENDS: [[u32; 2]; 2] = [[26, 30], [34, 50]];

impl Filter {
    fn is_everything(&self) -> bool {
        self.addresses.is_empty() && self.ports.is_empty() && self.protocol.is_none()
    }

    /// The program, `None` when everything is wanted.
    pub(super) fn program(&self) -> Result<Option<Vec<libc::sock_filter>>, Error> {
        if self.is_everything() {
            return Ok(None);
        }
        // A jump reaches 255 instructions; each entry takes two.
        if self.addresses.len() + self.ports.len() > 100 {
            return Err(Error::input("make a capture filter", "more than 100 addresses and ports"));
        }
        let mut program = Vec::new();
        for family in self.families() {
            let mut code = Code::default();
            self.block(&mut code, 0, family);
            program.extend(code.finish());
        }
        if let Some(port) = self.tunnel {
            for outer in Family::ALL {
                for inner in self.families() {
                    let mut code = Code::default();
                    code.require(LD_H, 12, outer.pick(ETHERTYPES));
                    if outer == Family::V4 {
                        code.require(LD_B, 14, 0x45);
                    }
                    code.require(LD_B, outer.pick(PROTOCOL), 17);
                    code.require(LD_H, outer.pick([36, 56]), port.into());
                    self.block(&mut code, outer.pick(INNER), inner);
                    program.extend(code.finish());
                }
            }
        }
        program.push(op(RET, 0));
        Ok(Some(program))
    }

    /// Of which families packets can meet the conditions.
    fn families(&self) -> impl Iterator<Item = Family> + '_ {
        let named = |family: &Family| self.addresses.iter().any(|ip| Family::of(*ip) == *family);
        Family::ALL.into_iter().filter(move |family| self.addresses.is_empty() || named(family))
    }

    /// Returns from the program with "accept" when the frame at `base` is of the family and meets the conditions;
    /// goes to the end of the code otherwise.
    fn block(&self, code: &mut Code, base: u32, family: Family) {
        code.require(LD_H, base + 12, family.pick(ETHERTYPES));
        if !self.addresses.is_empty() {
            let addresses: Vec<u32> = self
                .addresses
                .iter()
                .filter(|ip| Family::of(**ip) == family)
                .map(|ip| last_word(*ip))
                .collect();
            let [src, dst] = family.pick(ENDS);
            code.require_any(&[(LD_W, base + src), (LD_W, base + dst)], &addresses);
        }
        let icmp = family.pick(ICMP);
        if let Some(protocol) = self.protocol {
            code.require_any(&[(LD_B, base + family.pick(PROTOCOL))], &[protocol.into(), icmp]);
        }
        if !self.ports.is_empty() {
            // ICMP has no ports and is accepted at once; later fragments have none to look at.
            let protocol = op(LD_B, base + family.pick(PROTOCOL));
            code.0.extend([protocol, jump(JEQ, icmp, 0, 1), op(RET, u32::MAX)]);
            let ports: Vec<u32> = self.ports.iter().map(|port| (*port).into()).collect();
            match family {
                Family::V4 => {
                    code.0.push(op(LD_H, base + 20));
                    code.0.extend([jump(JSET, 0x1fff, 0, 1), jump(JA, FAIL, 0, 0)]);
                    code.0.push(op(LDX_MSH, base + 14));
                    code.require_any(&[(LD_H_IND, base + 14), (LD_H_IND, base + 16)], &ports);
                }
                Family::V6 => code.require_any(&[(LD_H, base + 54), (LD_H, base + 56)], &ports),
            }
        }
        code.0.push(op(RET, u32::MAX));
    }
}

fn last_word(ip: IpAddr) -> u32 {
    match ip {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => u128::from(v6) as u32,
    }
}

/// Target of jumps to the end of a block, until it is known.
const FAIL: u32 = u32::MAX;

#[derive(Default)]
struct Code(Vec<libc::sock_filter>);

impl Code {
    fn require(&mut self, load: u16, at: u32, value: u32) {
        self.require_any(&[(load, at)], &[value]);
    }

    /// One of the places holds one of the values, or the block fails.
    fn require_any(&mut self, places: &[(u16, u32)], values: &[u32]) {
        let mut left = places.len() * (values.len() + 1);
        for (load, at) in places {
            self.0.push(op(*load, *at));
            left -= 1;
            for value in values {
                // Found: over the remaining tests and the failing jump.
                self.0.push(jump(JEQ, *value, u8::try_from(left).unwrap_or(u8::MAX), 0));
                left -= 1;
            }
        }
        self.0.push(jump(JA, FAIL, 0, 0));
    }

    fn finish(mut self) -> Vec<libc::sock_filter> {
        let end = self.0.len();
        for (at, code) in self.0.iter_mut().enumerate() {
            if code.code == JA && code.k == FAIL {
                code.k = u32::try_from(end - at - 1).unwrap_or(0);
            }
        }
        self.0
    }
}

fn op(code: u16, k: u32) -> libc::sock_filter {
    jump(code, k, 0, 0)
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}
