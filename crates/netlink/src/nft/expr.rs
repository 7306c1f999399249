//! Expressions of rules. Decoding accepts exactly what encoding writes and what the kernel adds to it on its way
//! back; anything else is [`Expr::Foreign`], so a rule of somebody else's never looks like ours.

use kstate::nft::{CmpOp, CtKey, Expr, FibKey, MetaKey, PayloadBase, Reg, RejectWith, TableFamily, Verdict};

use super::{DATA_VALUE, DATA_VERDICT, family_number, family_of, read_verdict, write_verdict};
use crate::message::{Writer, attributes};
use crate::nfnetlink;

/// NFT_REG_VERDICT.
const VERDICT_REGISTER: u32 = 0;
/// NFT_REG32_00; before it are the old 16-byte names 1..=4.
const FIRST_WORD: u32 = 8;
const NAT_SOURCE: u32 = 0;
const NAT_DESTINATION: u32 = 1;
/// NF_NAT_RANGE_PROTO_SPECIFIED: the kernel adds it where a port register is given.
const PORT_GIVEN: u32 = 1 << 1;
/// NF_NAT_RANGE_PROTO_RANDOM_FULLY.
const FULLY_RANDOM: u32 = 1 << 4;
const NUMGEN_RANDOM: u32 = 1;
const FIB_ADDRTYPE: u32 = 3;
const SOCKET_WILDCARD: u32 = 2;
const DYNSET_UPDATE: u32 = 1;
/// NFTA_DYNSET_EXPR: what each element has of its own.
const DYNSET_EXPR: u16 = 7;
const LOOKUP_INVERT: u32 = 1;

fn wire(reg: Reg) -> u32 {
    FIRST_WORD + u32::from(reg.0)
}

fn register(number: u32) -> Option<Reg> {
    let word = match number {
        1..=4 => (number - 1) * 4,
        8..=23 => number - FIRST_WORD,
        _ => return None,
    };
    u8::try_from(word).ok().map(Reg)
}

fn meta_number(key: MetaKey) -> u32 {
    match key {
        MetaKey::Mark => 3,
        MetaKey::IifName => 6,
        MetaKey::OifName => 7,
        MetaKey::Nftrace => 12,
        MetaKey::NfProto => 15,
        MetaKey::L4Proto => 16,
    }
}

const META_KEYS: [MetaKey; 6] =
    [MetaKey::Mark, MetaKey::L4Proto, MetaKey::IifName, MetaKey::OifName, MetaKey::Nftrace, MetaKey::NfProto];

/// The key, and the direction where it needs one (0: original, 1: reply).
fn ct_number(key: CtKey) -> (u32, Option<u8>) {
    match key {
        CtKey::State => (0, None),
        CtKey::Status => (2, None),
        CtKey::Mark => (3, None),
        CtKey::OriginalSrc => (19, Some(0)),
        CtKey::OriginalDst => (20, Some(0)),
        CtKey::OriginalSrc6 => (21, Some(0)),
        CtKey::OriginalDst6 => (22, Some(0)),
        CtKey::OriginalProtoDst => (12, Some(0)),
        CtKey::ReplySrc => (19, Some(1)),
        CtKey::ReplySrc6 => (21, Some(1)),
        CtKey::ReplyProtoSrc => (11, Some(1)),
        CtKey::Direction => (1, None),
    }
}

const CT_KEYS: [CtKey; 12] = [
    CtKey::State,
    CtKey::Status,
    CtKey::Mark,
    CtKey::OriginalSrc,
    CtKey::OriginalDst,
    CtKey::OriginalSrc6,
    CtKey::OriginalDst6,
    CtKey::OriginalProtoDst,
    CtKey::ReplySrc,
    CtKey::ReplySrc6,
    CtKey::ReplyProtoSrc,
    CtKey::Direction,
];

const CMP_OPS: [CmpOp; 6] = [CmpOp::Eq, CmpOp::Ne, CmpOp::Lt, CmpOp::Le, CmpOp::Gt, CmpOp::Ge];
const BASES: [PayloadBase; 3] = [PayloadBase::Link, PayloadBase::Network, PayloadBase::Transport];

fn position<T: PartialEq>(all: &[T], one: &T) -> u32 {
    all.iter().position(|each| each == one).unwrap_or(0) as u32
}

/// One NFTA_LIST_ELEM { name, data }.
pub fn encode(writer: &mut Writer, expr: &Expr, family: TableFamily) {
    let name = name_of(expr);
    writer.nest(1, |w| {
        w.text(1, name);
        match expr {
            Expr::Foreign { body, .. } => w.bytes(2 | 0x8000, body),
            expr => w.nest(2, |w| encode_matching(w, expr, family)),
        }
    });
}

fn name_of(expr: &Expr) -> &str {
    match expr {
        Expr::Payload { .. } => "payload",
        Expr::Meta { .. } | Expr::MetaSet { .. } => "meta",
        Expr::Ct { .. } | Expr::CtSet { .. } => "ct",
        Expr::Cmp { .. } => "cmp",
        Expr::Range { .. } => "range",
        Expr::Bitwise { .. } => "bitwise",
        Expr::Lookup { .. } | Expr::LookupMap { .. } | Expr::LookupVerdict { .. } => "lookup",
        Expr::Numgen { .. } => "numgen",
        Expr::Immediate { .. } | Expr::Verdict(_) => "immediate",
        Expr::Dnat { .. } | Expr::Snat { .. } => "nat",
        Expr::Masquerade { .. } => "masq",
        Expr::Redirect { .. } => "redir",
        Expr::Reject(_) => "reject",
        Expr::Counter => "counter",
        Expr::Log { .. } => "log",
        Expr::Fib { .. } => "fib",
        Expr::SocketWildcard { .. } => "socket",
        Expr::Notrack => "notrack",
        Expr::Update { .. } => "dynset",
        Expr::Foreign { name, .. } => name,
    }
}

fn value(writer: &mut Writer, kind: u16, bytes: &[u8]) {
    writer.nest(kind, |w| w.bytes(DATA_VALUE, bytes));
}

fn encode_matching(w: &mut Writer, expr: &Expr, family: TableFamily) {
    match expr {
        Expr::Payload { dreg, base, offset, len } => {
            w.be32(1, wire(*dreg));
            w.be32(2, position(&BASES, base));
            w.be32(3, *offset);
            w.be32(4, *len);
        }
        Expr::Meta { dreg, key } => {
            w.be32(1, wire(*dreg));
            w.be32(2, meta_number(*key));
        }
        Expr::Ct { dreg, key } => {
            let (number, direction) = ct_number(*key);
            w.be32(1, wire(*dreg));
            w.be32(2, number);
            if let Some(direction) = direction {
                w.bytes(3, &[direction]);
            }
        }
        Expr::Cmp { sreg, op, value: bytes } => {
            w.be32(1, wire(*sreg));
            w.be32(2, position(&CMP_OPS, op));
            value(w, 3, bytes);
        }
        Expr::Range { sreg, invert, from, to } => {
            w.be32(1, wire(*sreg));
            w.be32(2, u32::from(*invert));
            value(w, 3, from);
            value(w, 4, to);
        }
        Expr::Bitwise { sreg, dreg, mask, xor } => {
            w.be32(1, wire(*sreg));
            w.be32(2, wire(*dreg));
            w.be32(3, mask.len() as u32);
            value(w, 4, mask);
            value(w, 5, xor);
        }
        Expr::Lookup { set, sreg, invert } => {
            lookup(w, set, *sreg, None);
            if *invert {
                w.be32(5, LOOKUP_INVERT);
            }
        }
        Expr::LookupMap { set, sreg, dreg } => lookup(w, set, *sreg, Some(wire(*dreg))),
        Expr::LookupVerdict { set, sreg } => lookup(w, set, *sreg, Some(VERDICT_REGISTER)),
        Expr::Numgen { dreg, modulus, offset } => {
            w.be32(1, wire(*dreg));
            w.be32(2, *modulus);
            w.be32(3, NUMGEN_RANDOM);
            w.be32(4, *offset);
        }
        Expr::Fib { dreg, key } => {
            w.be32(1, wire(*dreg));
            w.be32(2, FIB_ADDRTYPE);
            w.be32(3, fib_flags(*key));
        }
        Expr::SocketWildcard { dreg } => {
            w.be32(1, SOCKET_WILDCARD);
            w.be32(2, wire(*dreg));
        }
        acting => encode_acting(w, acting, family),
    }
}

fn lookup(w: &mut Writer, set: &str, sreg: Reg, dreg: Option<u32>) {
    w.text(1, set);
    w.be32(2, wire(sreg));
    if let Some(dreg) = dreg {
        w.be32(3, dreg);
    }
}

fn fib_flags(key: FibKey) -> u32 {
    match key {
        FibKey::SaddrType => 1,
        FibKey::DaddrType => 2,
    }
}

fn encode_acting(w: &mut Writer, expr: &Expr, family: TableFamily) {
    match expr {
        Expr::MetaSet { sreg, key } => {
            w.be32(2, meta_number(*key));
            w.be32(3, wire(*sreg));
        }
        Expr::CtSet { sreg, key } => {
            w.be32(2, ct_number(*key).0);
            w.be32(4, wire(*sreg));
        }
        Expr::Immediate { dreg, value: bytes } => {
            w.be32(1, wire(*dreg));
            value(w, 2, bytes);
        }
        Expr::Verdict(verdict) => {
            w.be32(1, VERDICT_REGISTER);
            w.nest(2, |w| write_verdict(w, verdict));
        }
        Expr::Dnat { family, addr, port } => nat(w, NAT_DESTINATION, *family, (*addr, *port)),
        Expr::Snat { family, addr } => nat(w, NAT_SOURCE, *family, (*addr, None)),
        Expr::Masquerade { fully_random: true } => w.be32(1, FULLY_RANDOM),
        Expr::Redirect { port: Some(port) } => w.be32(1, wire(*port)),
        Expr::Reject(with) => {
            let (kind, code) = reject(*with, family);
            w.be32(1, kind);
            if let Some(code) = code {
                w.bytes(2, &[code]);
            }
        }
        Expr::Counter => {
            w.be64(1, 0);
            w.be64(2, 0);
        }
        Expr::Log { group, snaplen, prefix } => {
            w.bytes(1, &group.to_be_bytes());
            if !prefix.is_empty() {
                w.text(2, prefix);
            }
            if *snaplen != 0 {
                w.be32(3, *snaplen);
            }
        }
        Expr::Update { set, key, data, timeout_ms, counts } => {
            w.text(1, set);
            w.be32(3, DYNSET_UPDATE);
            w.be32(4, wire(*key));
            if let Some(data) = data {
                w.be32(5, wire(*data));
            }
            if *timeout_ms != 0 {
                w.be64(6, *timeout_ms);
            }
            if *counts {
                w.nest(DYNSET_EXPR, |w| w.text(1, "counter"));
            }
        }
        _ => {}
    }
}

fn nat(w: &mut Writer, kind: u32, family: TableFamily, (addr, port): (Reg, Option<Reg>)) {
    w.be32(1, kind);
    w.be32(2, u32::from(family_number(family)));
    w.be32(3, wire(addr));
    if let Some(port) = port {
        w.be32(5, wire(port));
    }
}

/// NFT_REJECT_* and the code: port unreachable is 3 in ICMP, 4 in ICMPv6, 1 in the family-neutral form; host
/// unreachable 1, 3 and 2.
fn reject(with: RejectWith, family: TableFamily) -> (u32, Option<u8>) {
    match (with, family) {
        (RejectWith::TcpReset, _) => (1, None),
        (RejectWith::PortUnreachable, TableFamily::Ip) => (0, Some(3)),
        (RejectWith::PortUnreachable, TableFamily::Ip6) => (0, Some(4)),
        (RejectWith::PortUnreachable, TableFamily::Inet | TableFamily::Bridge) => (2, Some(1)),
        (RejectWith::HostUnreachable, TableFamily::Ip) => (0, Some(1)),
        (RejectWith::HostUnreachable, TableFamily::Ip6) => (0, Some(3)),
        (RejectWith::HostUnreachable, TableFamily::Inet | TableFamily::Bridge) => (2, Some(2)),
    }
}

/// The expressions of an NFTA_RULE_EXPRESSIONS.
pub fn decode_all(list: &[u8], family: TableFamily) -> Option<Vec<Expr>> {
    attributes(list).map(|element| decode(element.value, family)).collect()
}

fn decode(element: &[u8], family: TableFamily) -> Option<Expr> {
    let name = nfnetlink::text(nfnetlink::find(element, 1)?)?;
    let body = nfnetlink::find(element, 2).unwrap_or(&[]);
    let known = Attrs(body).known(name, family);
    Some(known.unwrap_or_else(|| Expr::Foreign { name: name.to_owned(), body: body.into() }))
}

/// The attributes of one expression.
#[derive(Clone, Copy)]
struct Attrs<'a>(&'a [u8]);

impl Attrs<'_> {
    fn number(self, kind: u16) -> Option<u32> {
        nfnetlink::be32(nfnetlink::find(self.0, kind)?)
    }

    fn reg(self, kind: u16) -> Option<Reg> {
        register(self.number(kind)?)
    }

    fn has(self, kind: u16) -> bool {
        nfnetlink::find(self.0, kind).is_some()
    }

    fn text(self, kind: u16) -> Option<String> {
        nfnetlink::text(nfnetlink::find(self.0, kind)?).map(str::to_owned)
    }

    fn value(self, kind: u16) -> Option<Vec<u8>> {
        nfnetlink::find(nfnetlink::find(self.0, kind)?, DATA_VALUE).map(<[u8]>::to_vec)
    }

    /// Whether there are attributes beside these (0 pads).
    fn only(self, kinds: &[u16]) -> Option<Self> {
        attributes(self.0).all(|attribute| kinds.contains(&attribute.kind)).then_some(self)
    }

    fn known(self, name: &str, family: TableFamily) -> Option<Expr> {
        match name {
            "payload" => {
                let base = BASES.get(self.number(2)? as usize).copied()?;
                self.only(&[1, 2, 3, 4])?;
                Some(Expr::Payload {
                    dreg: self.reg(1)?,
                    base,
                    offset: self.number(3)?,
                    len: self.number(4)?,
                })
            }
            "meta" => self.meta(),
            "ct" => self.ct(),
            "cmp" => {
                let op = CMP_OPS.get(self.number(2)? as usize).copied()?;
                Some(Expr::Cmp { sreg: self.reg(1)?, op, value: self.value(3)? })
            }
            "range" => {
                let invert = self.number(2)? == 1;
                Some(Expr::Range { sreg: self.reg(1)?, invert, from: self.value(3)?, to: self.value(4)? })
            }
            "bitwise" => {
                let plain = self.number(6).unwrap_or(0) == 0;
                plain.then_some(())?;
                Some(Expr::Bitwise {
                    sreg: self.reg(1)?,
                    dreg: self.reg(2)?,
                    mask: self.value(4)?,
                    xor: self.value(5)?,
                })
            }
            "lookup" => self.lookup(),
            "numgen" => {
                let (dreg, modulus) = (self.reg(1)?, self.number(2)?);
                (self.number(3)? == NUMGEN_RANDOM).then_some(())?;
                Some(Expr::Numgen { dreg, modulus, offset: self.number(4).unwrap_or(0) })
            }
            "immediate" => self.immediate(),
            "fib" => {
                (self.number(2)? == FIB_ADDRTYPE).then_some(())?;
                let flags = self.number(3)?;
                let key = [FibKey::SaddrType, FibKey::DaddrType]
                    .into_iter()
                    .find(|key| fib_flags(*key) == flags)?;
                Some(Expr::Fib { dreg: self.reg(1)?, key })
            }
            "socket" => {
                (self.number(1)? == SOCKET_WILDCARD).then_some(())?;
                Some(Expr::SocketWildcard { dreg: self.reg(2)? })
            }
            acting => self.acting(acting, family),
        }
    }

    fn acting(self, name: &str, family: TableFamily) -> Option<Expr> {
        match name {
            "nat" => self.nat(),
            "masq" => match self.only(&[1])?.number(1).unwrap_or(0) {
                0 => Some(Expr::Masquerade { fully_random: false }),
                FULLY_RANDOM => Some(Expr::Masquerade { fully_random: true }),
                _ => None,
            },
            "redir" => {
                let one = self.number(2).is_none() || self.number(2) == self.number(1);
                (one && self.number(3).unwrap_or(0) & !PORT_GIVEN == 0).then_some(())?;
                Some(Expr::Redirect { port: if self.has(1) { Some(self.reg(1)?) } else { None } })
            }
            "reject" => {
                let found =
                    (self.number(1)?, nfnetlink::find(self.0, 2).and_then(|code| code.first().copied()));
                [RejectWith::PortUnreachable, RejectWith::HostUnreachable, RejectWith::TcpReset]
                    .into_iter()
                    .find(|with| {
                        let (kind, code) = reject(*with, family);
                        kind == found.0 && (code.is_none() || code == found.1)
                    })
                    .map(Expr::Reject)
            }
            "counter" => Some(Expr::Counter),
            "log" => {
                self.only(&[1, 2, 3, 4])?;
                (nfnetlink::find(self.0, 4).and_then(nfnetlink::be16).unwrap_or(0) == 0).then_some(())?;
                let group = nfnetlink::find(self.0, 1).and_then(nfnetlink::be16)?;
                Some(Expr::Log {
                    group,
                    snaplen: self.number(3).unwrap_or(0),
                    prefix: self.text(2).unwrap_or_default(),
                })
            }
            "notrack" => Some(Expr::Notrack),
            "dynset" => self.update(),
            _ => None,
        }
    }

    fn meta(self) -> Option<Expr> {
        let number = self.number(2)?;
        let key = META_KEYS.into_iter().find(|key| meta_number(*key) == number)?;
        if self.has(3) {
            return Some(Expr::MetaSet { sreg: self.reg(3)?, key });
        }
        Some(Expr::Meta { dreg: self.reg(1)?, key })
    }

    fn ct(self) -> Option<Expr> {
        let number = self.number(2)?;
        let direction = nfnetlink::find(self.0, 3).and_then(|value| value.first().copied());
        let key = CT_KEYS.into_iter().find(|key| ct_number(*key) == (number, direction))?;
        if self.has(4) {
            return Some(Expr::CtSet { sreg: self.reg(4)?, key });
        }
        Some(Expr::Ct { dreg: self.reg(1)?, key })
    }

    fn lookup(self) -> Option<Expr> {
        let (set, sreg) = (self.text(1)?, self.reg(2)?);
        let invert = match self.number(5).unwrap_or(0) {
            0 => false,
            LOOKUP_INVERT => true,
            _ => return None,
        };
        match self.number(3) {
            None => Some(Expr::Lookup { set, sreg, invert }),
            Some(VERDICT_REGISTER) => Some(Expr::LookupVerdict { set, sreg }),
            Some(dreg) => Some(Expr::LookupMap { set, sreg, dreg: register(dreg)? }),
        }
    }

    fn immediate(self) -> Option<Expr> {
        if self.number(1)? == VERDICT_REGISTER {
            let verdict: Option<Verdict> =
                read_verdict(nfnetlink::find(nfnetlink::find(self.0, 2)?, DATA_VERDICT)?)?.ok();
            return verdict.map(Expr::Verdict);
        }
        Some(Expr::Immediate { dreg: self.reg(1)?, value: self.value(2)? })
    }

    fn nat(self) -> Option<Expr> {
        let family = family_of(u8::try_from(self.number(2)?).ok()?)?;
        let addr = self.reg(3)?;
        let port = if self.has(5) { Some(self.reg(5)?) } else { None };
        // A range of one: the kernel repeats the lower end.
        let one = |low, high| self.number(high).is_none() || self.number(high) == self.number(low);
        let plain = self.number(7).unwrap_or(0) & !(PORT_GIVEN | 1) == 0 && one(3, 4) && one(5, 6);
        match (plain, self.number(1)?, port) {
            (true, NAT_DESTINATION, port) => Some(Expr::Dnat { family, addr, port }),
            (true, NAT_SOURCE, None) => Some(Expr::Snat { family, addr }),
            _ => None,
        }
    }

    fn update(self) -> Option<Expr> {
        (self.number(3)? == DYNSET_UPDATE && !self.has(10) && self.number(9).unwrap_or(0) == 0)
            .then_some(())?;
        let counts = match nfnetlink::find(self.0, DYNSET_EXPR) {
            None => false,
            Some(own) => (nfnetlink::text(nfnetlink::find(own, 1)?)? == "counter").then_some(true)?,
        };
        let data = if self.has(5) { Some(self.reg(5)?) } else { None };
        let timeout_ms = nfnetlink::find(self.0, 6).and_then(nfnetlink::be64).unwrap_or(0);
        Some(Expr::Update { set: self.text(1)?, key: self.reg(4)?, data, timeout_ms, counts })
    }
}
