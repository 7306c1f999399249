//! Registers, expressions and the call stack of nf_tables (net/netfilter/nf_tables_core.c, `nft_do_chain`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use kstate::nft::build::{RTN_LOCAL, ct_state, ct_status};
use kstate::nft::{
    Bytes, CmpOp, CtKey, ElemData, ElemKey, Expr, FibKey, Hook, MetaKey, PayloadBase, Reg, Set, Table,
    Verdict,
};

use super::route::is_local;
use super::{Kernel, Step, ct_bits, rules, word};
use crate::packet::{CtState, Packet};

/// How a base chain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    Accept,
    Drop,
    Reject,
    /// The last rule was passed: the chain's policy decides.
    End,
}

/// How one rule ended.
enum Turn {
    Next,
    Stop(Stop),
    Verdict(Verdict),
}

pub struct Machine<'a> {
    pub packet: &'a Packet,
    pub hook: Hook,
    pub oif: Option<String>,
    pub steps: Vec<Step>,
    pub masquerade: bool,
    pub drawn: Option<u32>,
    /// A rule kept conntrack from seeing it: no flow, no NAT.
    pub untracked: bool,
    destination: SocketAddr,
    kernel: &'a Kernel<'a>,
    draw: u32,
    mark: u32,
    registers: [u8; 64],
}

impl<'a> Machine<'a> {
    pub fn new(packet: &'a Packet, kernel: &'a Kernel<'a>, draw: u32) -> Self {
        Self {
            packet,
            hook: Hook::Prerouting,
            oif: None,
            steps: Vec::new(),
            masquerade: false,
            drawn: None,
            untracked: false,
            destination: packet.destination(),
            kernel,
            draw,
            mark: 0,
            registers: [0; 64],
        }
    }

    pub fn destination(&self) -> SocketAddr {
        self.destination
    }

    /// Runs one base chain.
    pub fn run(&mut self, table_name: &str, table: &Table, base: &str) -> Stop {
        let mut chain = base.to_owned();
        let mut next = 0;
        let mut saved: Vec<(String, usize)> = Vec::new();
        // The kernel refuses loops, so a walk is no longer than all rules once per jump; a value may lie.
        for _ in 0..100_000 {
            let Some(rule) = rules(table, &chain).get(next) else {
                match saved.pop() {
                    Some((back, at)) => (chain, next) = (back, at),
                    None => return Stop::End,
                }
                continue;
            };
            self.registers = [0; 64];
            let mut element = None;
            let turn = self.rule(table, &rule.exprs, &mut element);
            let mut note = |action: String| {
                self.steps.push(Step {
                    hook: self.hook,
                    table: table_name.to_owned(),
                    chain: chain.clone(),
                    rule: next,
                    comment: rule.comment.clone(),
                    element: element.clone(),
                    action,
                });
            };
            match turn {
                Turn::Next => next += 1,
                Turn::Stop(stop) => {
                    note(format!("{stop:?}").to_lowercase());
                    return stop;
                }
                Turn::Verdict(verdict) => {
                    note(word(&verdict));
                    match verdict {
                        Verdict::Accept => return Stop::Accept,
                        Verdict::Drop => return Stop::Drop,
                        Verdict::Return => match saved.pop() {
                            Some((back, at)) => (chain, next) = (back, at),
                            None => return Stop::End,
                        },
                        Verdict::Jump(to) => {
                            saved.push((chain, next + 1));
                            (chain, next) = (to, 0);
                        }
                        Verdict::Goto(to) => (chain, next) = (to, 0),
                    }
                }
            }
        }
        Stop::Drop
    }

    fn rule(&mut self, table: &Table, exprs: &[Expr], element: &mut Option<(String, Bytes)>) -> Turn {
        for expr in exprs {
            match expr {
                Expr::Verdict(verdict) => return Turn::Verdict(verdict.clone()),
                Expr::Reject(_) => return Turn::Stop(Stop::Reject),
                Expr::Dnat { addr, port, .. } => {
                    self.dnat(*addr, *port);
                    return Turn::Stop(Stop::Accept);
                }
                Expr::Masquerade { .. } | Expr::Snat { .. } => {
                    self.masquerade = true;
                    return Turn::Stop(Stop::Accept);
                }
                Expr::LookupVerdict { set, sreg } => {
                    let Some((key, data)) = self.find(table, set, *sreg) else { return Turn::Next };
                    // What a map said before is asked for here: its element says whose packet it is.
                    element.get_or_insert_with(|| (set.clone(), key.start().clone()));
                    if let ElemData::Verdict(verdict) = data {
                        return Turn::Verdict(verdict.clone());
                    }
                }
                Expr::LookupMap { set, sreg, dreg } => {
                    let Some((key, data)) = self.find(table, set, *sreg) else { return Turn::Next };
                    *element = Some((set.clone(), key.start().clone()));
                    if let ElemData::Value(value) = data {
                        let value = value.clone();
                        self.write(*dreg, &value);
                    }
                }
                Expr::Lookup { set, sreg, invert } => match self.find(table, set, *sreg) {
                    Some((key, _)) if !invert => *element = Some((set.clone(), key.start().clone())),
                    None if *invert => {}
                    _ => return Turn::Next,
                },
                other => {
                    if !self.simple(other) {
                        return Turn::Next;
                    }
                }
            }
        }
        Turn::Next
    }

    fn find<'t>(&self, table: &'t Table, set: &str, sreg: Reg) -> Option<(&'t ElemKey, &'t ElemData)> {
        let set: &Set = table.sets.get(set)?;
        let wide = set.key.len() > 1;
        let len = set.key.iter().map(|f| if wide { f.padded() } else { f.len() }).sum();
        let key = self.read(sreg, len);
        if !set.interval {
            return set.elements.get_key_value(&ElemKey::point(key.as_slice().into()));
        }
        set.elements.iter().find(|(elem, _)| **elem.start() <= *key && *key <= **elem.last())
    }

    /// Expressions that only read or compare; `false` breaks the rule.
    fn simple(&mut self, expr: &Expr) -> bool {
        match expr {
            Expr::Payload { dreg, base, offset, len } => match self.payload(*base, *offset, *len) {
                Some(bytes) => self.write(*dreg, &bytes),
                None => return false,
            },
            Expr::Meta { dreg, key } => {
                let bytes = self.meta(*key);
                self.write(*dreg, &bytes);
            }
            Expr::MetaSet { sreg, key: MetaKey::Mark } => self.mark = self.word(*sreg),
            Expr::Ct { dreg, key: CtKey::State } if self.untracked => {
                self.write(*dreg, &ct_state::UNTRACKED.to_ne_bytes());
            }
            // There is nothing to ask (nft_ct_get_eval).
            Expr::Ct { .. } if self.untracked => return false,
            Expr::Ct { dreg, key } => {
                let bytes = self.ct(*key);
                self.write(*dreg, &bytes);
            }
            Expr::Cmp { sreg, op, value } => return compare(*op, &self.read(*sreg, value.len()), value),
            Expr::Range { sreg, invert, from, to } => {
                let value = self.read(*sreg, from.len());
                return (from[..] <= value[..] && value[..] <= to[..]) != *invert;
            }
            Expr::Bitwise { sreg, dreg, mask, xor } => {
                let bytes = self.read(*sreg, mask.len());
                let bytes: Vec<u8> =
                    bytes.iter().zip(mask).zip(xor).map(|((byte, mask), xor)| (byte & mask) ^ xor).collect();
                self.write(*dreg, &bytes);
            }
            Expr::Numgen { dreg, modulus, offset } => {
                self.drawn.get_or_insert(*modulus);
                let value = self.draw.checked_rem(*modulus).unwrap_or(0).wrapping_add(*offset);
                self.write(*dreg, &value.to_ne_bytes());
            }
            Expr::Immediate { dreg, value } => self.write(*dreg, value),
            Expr::Fib { dreg, key } => {
                let bytes = self.fib(*key).to_ne_bytes();
                self.write(*dreg, &bytes);
            }
            Expr::SocketWildcard { dreg } => match self.kernel.socket {
                Some(wildcard) => self.write(*dreg, &[u8::from(wildcard)]),
                None => return false,
            },
            Expr::Notrack => self.untracked = true,
            _ => {}
        }
        true
    }

    fn dnat(&mut self, addr: Reg, port: Option<Reg>) {
        let address = match self.destination.ip() {
            IpAddr::V4(_) => <[u8; 4]>::try_from(&*self.read(addr, 4)).map(IpAddr::from).ok(),
            IpAddr::V6(_) => <[u8; 16]>::try_from(&*self.read(addr, 16)).map(IpAddr::from).ok(),
        };
        if let Some(address) = address {
            self.destination.set_ip(address);
        }
        if let Some(port) = port.and_then(|reg| <[u8; 2]>::try_from(&*self.read(reg, 2)).ok()) {
            self.destination.set_port(u16::from_be_bytes(port));
        }
    }

    fn payload(&self, base: PayloadBase, offset: u32, len: u32) -> Option<Vec<u8>> {
        let transport = [self.packet.sport.to_be_bytes(), self.destination.port().to_be_bytes()].concat();
        let header = match (base, self.packet.src, self.destination.ip()) {
            (PayloadBase::Network, IpAddr::V4(src), IpAddr::V4(dst)) => self.ipv4(src, dst),
            (PayloadBase::Network, IpAddr::V6(src), IpAddr::V6(dst)) => self.ipv6(src, dst),
            (PayloadBase::Transport, _, _) => transport,
            _ => return None,
        };
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(usize::try_from(len).ok()?)?;
        header.get(start..end).map(<[u8]>::to_vec)
    }

    /// The fields of an IPv4 header that rules look at (RFC 791 §3.1).
    fn ipv4(&self, src: Ipv4Addr, dst: Ipv4Addr) -> Vec<u8> {
        let head = [0x45, 0, 0, 60, 0, 0, 0x40, 0, 64, self.packet.protocol.number(), 0, 0];
        [&head[..], &src.octets(), &dst.octets()].concat()
    }

    fn ipv6(&self, src: Ipv6Addr, dst: Ipv6Addr) -> Vec<u8> {
        let head = [0x60, 0, 0, 0, 0, 40, self.packet.protocol.number(), 64];
        [&head[..], &src.octets(), &dst.octets()].concat()
    }

    fn meta(&self, key: MetaKey) -> Vec<u8> {
        match key {
            MetaKey::Mark => self.mark.to_ne_bytes().to_vec(),
            MetaKey::L4Proto => vec![self.packet.protocol.number()],
            MetaKey::IifName => name_bytes(self.packet.iif.as_ref().map_or("", |iif| iif.as_str())),
            MetaKey::OifName => name_bytes(self.oif.as_deref().unwrap_or_default()),
            MetaKey::Nftrace => vec![0],
            MetaKey::NfProto => vec![if self.packet.src.is_ipv4() { 2 } else { 10 }],
        }
    }

    fn ct(&self, key: CtKey) -> Vec<u8> {
        let octets = |address| match address {
            IpAddr::V4(v4) => Ipv4Addr::octets(&v4).to_vec(),
            IpAddr::V6(v6) => Ipv6Addr::octets(&v6).to_vec(),
        };
        let asked = self.packet.asked();
        let reply = self.packet.ct == CtState::Reply;
        let answerer = if reply { asked.destination() } else { self.destination };
        match key {
            CtKey::State => ct_bits(self.packet.ct).to_ne_bytes().to_vec(),
            CtKey::Status => {
                let dnat = self.destination != self.packet.destination();
                (if dnat { ct_status::DST_NAT } else { 0 }).to_ne_bytes().to_vec()
            }
            CtKey::Mark => 0_u32.to_ne_bytes().to_vec(),
            CtKey::OriginalSrc | CtKey::OriginalSrc6 => octets(asked.src),
            CtKey::OriginalDst | CtKey::OriginalDst6 => octets(asked.dst),
            CtKey::ReplySrc | CtKey::ReplySrc6 => octets(answerer.ip()),
            CtKey::ReplyProtoSrc => answerer.port().to_be_bytes().to_vec(),
            CtKey::Direction => vec![u8::from(reply)],
            CtKey::OriginalProtoDst => asked.dport.to_be_bytes().to_vec(),
        }
    }

    fn fib(&self, key: FibKey) -> u32 {
        match key {
            FibKey::SaddrType if self.packet.iif.is_none() => RTN_LOCAL,
            FibKey::DaddrType if is_local(self.kernel.net, self.kernel.local, self.destination.ip()) => {
                RTN_LOCAL
            }
            FibKey::DaddrType | FibKey::SaddrType => 1,
        }
    }

    fn word(&self, reg: Reg) -> u32 {
        <[u8; 4]>::try_from(&*self.read(reg, 4)).map(u32::from_ne_bytes).unwrap_or_default()
    }

    fn read(&self, reg: Reg, len: usize) -> Vec<u8> {
        let start = usize::from(reg.0) * 4;
        (start..start + len).map(|at| self.registers.get(at).copied().unwrap_or_default()).collect()
    }

    /// Like the kernel, clears the rest of the last word.
    fn write(&mut self, reg: Reg, bytes: &[u8]) {
        let start = usize::from(reg.0) * 4;
        for at in 0..bytes.len().next_multiple_of(4) {
            if let Some(place) = self.registers.get_mut(start + at) {
                *place = bytes.get(at).copied().unwrap_or_default();
            }
        }
    }
}

fn name_bytes(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(16, 0);
    bytes
}

/// The kernel compares with memcmp, so values of more than one byte order only in network order.
fn compare(op: CmpOp, left: &[u8], right: &[u8]) -> bool {
    match op {
        CmpOp::Eq => left == right,
        CmpOp::Ne => left != right,
        CmpOp::Lt => left < right,
        CmpOp::Le => left <= right,
        CmpOp::Gt => left > right,
        CmpOp::Ge => left >= right,
    }
}
