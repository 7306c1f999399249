//! A classic BPF program from what a trace looks for, so that the kernel copies only that
//! (Documentation/networking/filter.rst).
//!
//! ```text
//!   Ethernet (14) ─ IPv4 ─ TCP/UDP                              plain block at 0
//!   Ethernet (14) ─ IPv4 (20) ─ UDP (8) ─ VXLAN (8) ─ Ethernet ─ IPv4 ─ …    inner block at 50
//! ```

use std::net::Ipv4Addr;

use crate::error::Error;

/// Which packets to capture: those that meet every condition given; empty and `None` mean any. IPv4 only;
/// without any condition, everything of every family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// One of these is source or destination.
    pub addresses: Vec<Ipv4Addr>,
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

/// Offset of the carried frame in a VXLAN packet without IP options.
const INNER: u32 = 14 + 20 + 8 + 8;
const ICMP: u32 = 1;

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
        let mut program = self.block(0);
        if let Some(port) = self.tunnel {
            // IPv4 without options, UDP, to the port; else refuse.
            let conditions = [(LD_H, 12, 0x0800), (LD_B, 14, 0x45), (LD_B, 23, 17), (LD_H, 36, port.into())];
            for (load, at, value) in conditions {
                program.extend([op(load, at), jump(JEQ, value, 1, 0), op(RET, 0)]);
            }
            program.extend(self.block(INNER));
        }
        program.push(op(RET, 0));
        Ok(Some(program))
    }

    /// Returns from the program with "accept" when the frame at `base` meets the conditions; falls out at its
    /// end otherwise.
    fn block(&self, base: u32) -> Vec<libc::sock_filter> {
        let mut code = Code::default();
        code.require(LD_H, base + 12, 0x0800);
        if !self.addresses.is_empty() {
            let addresses: Vec<u32> = self.addresses.iter().map(|ip| u32::from(*ip)).collect();
            code.require_any(&[(LD_W, base + 26), (LD_W, base + 30)], &addresses);
        }
        if let Some(protocol) = self.protocol {
            code.require_any(&[(LD_B, base + 23)], &[protocol.into(), ICMP]);
        }
        if !self.ports.is_empty() {
            // ICMP has no ports and is accepted at once; later fragments have none to look at.
            code.0.extend([op(LD_B, base + 23), jump(JEQ, ICMP, 0, 1), op(RET, u32::MAX)]);
            code.0.push(op(LD_H, base + 20));
            code.0.extend([jump(JSET, 0x1fff, 0, 1), jump(JA, FAIL, 0, 0)]);
            code.0.push(op(LDX_MSH, base + 14));
            let ports: Vec<u32> = self.ports.iter().map(|port| (*port).into()).collect();
            code.require_any(&[(LD_H_IND, base + 14), (LD_H_IND, base + 16)], &ports);
        }
        code.0.push(op(RET, u32::MAX));
        code.finish()
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
