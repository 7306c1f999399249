//! Writing rules: one short function per expression, named as `nft` names it, so that a rule is one line of code
//! that reads like the rule:
//!
//! ```
//! use kstate::nft::build::*;
//! use kstate::nft::Reg;
//!
//! let r = Reg(0);
//! let svc = rule("services", [ip_daddr(r), l4proto(Reg(1)), th_dport(Reg(2)), vmap("svc", r)]);
//! assert_eq!(svc.to_string(), "ip daddr . meta l4proto . th dport vmap @svc comment \"services\"");
//! ```
//!
//! and the bytes of keys and data, field by field ([`encode`], [`decode`]).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use types::{Family, IfName, Mac, Protocol};

use super::{Bytes, CmpOp, CtKey, Expr, FibKey, Field, MetaKey, PayloadBase, Reg, RejectWith, Rule, Verdict};

/// A conntrack state as `ct state` yields it (NF_CT_STATE_BIT, nf_conntrack_tuple_common.h).
pub mod ct_state {
    pub const INVALID: u32 = 1;
    pub const ESTABLISHED: u32 = 2;
    pub const RELATED: u32 = 4;
    pub const NEW: u32 = 8;
    pub const UNTRACKED: u32 = 64;
}

/// Bits of `ct status` (enum ip_conntrack_status).
pub mod ct_status {
    pub const SRC_NAT: u32 = 1 << 4;
    pub const DST_NAT: u32 = 1 << 5;
}

/// What `fib … type` yields for an address of this node (RTN_LOCAL).
pub const RTN_LOCAL: u32 = 2;
/// The lowest type of an address that many have.
pub const RTN_BROADCAST: u32 = 3;
/// The highest type of an address that this node hears: after RTN_LOCAL come broadcast, anycast and this
/// (linux/rtnetlink.h).
pub const RTN_MULTICAST: u32 = 5;

pub fn rule(comment: impl Into<String>, exprs: impl IntoIterator<Item = Expr>) -> Rule {
    Rule { exprs: exprs.into_iter().collect(), comment: comment.into() }
}

// ---- reading the packet ----

/// Any other bytes of the packet.
pub fn payload(dreg: Reg, base: PayloadBase, offset: u32, len: u32) -> Expr {
    Expr::Payload { dreg, base, offset, len }
}

pub fn ip_saddr(dreg: Reg) -> Expr {
    payload(dreg, PayloadBase::Network, 12, 4)
}

pub fn ip_daddr(dreg: Reg) -> Expr {
    payload(dreg, PayloadBase::Network, 16, 4)
}

pub fn ip6_saddr(dreg: Reg) -> Expr {
    payload(dreg, PayloadBase::Network, 8, 16)
}

pub fn ip6_daddr(dreg: Reg) -> Expr {
    payload(dreg, PayloadBase::Network, 24, 16)
}

/// [`ip_saddr`] or [`ip6_saddr`]: one register or four.
pub fn saddr(family: Family, dreg: Reg) -> Expr {
    if family == Family::V4 { ip_saddr(dreg) } else { ip6_saddr(dreg) }
}

/// [`ip_daddr`] or [`ip6_daddr`]: one register or four.
pub fn daddr(family: Family, dreg: Reg) -> Expr {
    if family == Family::V4 { ip_daddr(dreg) } else { ip6_daddr(dreg) }
}

/// 6 bytes, two registers.
pub fn ether_saddr(dreg: Reg) -> Expr {
    payload(dreg, PayloadBase::Link, 6, 6)
}

/// What the frame carries, as it is on the wire: a tagged frame is of the tag's type (802.1Q), also where the device
/// took the tag out of the frame (nft_payload_copy_vlan).
pub fn ether_type(dreg: Reg) -> Expr {
    payload(dreg, PayloadBase::Link, 12, 2)
}

pub fn th_sport(dreg: Reg) -> Expr {
    payload(dreg, PayloadBase::Transport, 0, 2)
}

pub fn th_dport(dreg: Reg) -> Expr {
    payload(dreg, PayloadBase::Transport, 2, 2)
}

pub fn l4proto(dreg: Reg) -> Expr {
    Expr::Meta { dreg, key: MetaKey::L4Proto }
}

pub fn nfproto(dreg: Reg) -> Expr {
    Expr::Meta { dreg, key: MetaKey::NfProto }
}

pub fn mark(dreg: Reg) -> Expr {
    Expr::Meta { dreg, key: MetaKey::Mark }
}

pub fn set_mark(sreg: Reg) -> Expr {
    Expr::MetaSet { sreg, key: MetaKey::Mark }
}

/// 16 bytes, four registers.
pub fn iifname(dreg: Reg) -> Expr {
    Expr::Meta { dreg, key: MetaKey::IifName }
}

/// 16 bytes, four registers.
pub fn oifname(dreg: Reg) -> Expr {
    Expr::Meta { dreg, key: MetaKey::OifName }
}

/// Has the packet traced from here on (`meta nftrace set 1`): two expressions.
pub fn nftrace(scratch: Reg) -> [Expr; 2] {
    [immediate(scratch, vec![1]), Expr::MetaSet { sreg: scratch, key: MetaKey::Nftrace }]
}

pub fn ct_state(dreg: Reg) -> Expr {
    Expr::Ct { dreg, key: CtKey::State }
}

pub fn ct_status(dreg: Reg) -> Expr {
    Expr::Ct { dreg, key: CtKey::Status }
}

pub fn ct_mark(dreg: Reg) -> Expr {
    Expr::Ct { dreg, key: CtKey::Mark }
}

pub fn set_ct_mark(sreg: Reg) -> Expr {
    Expr::CtSet { sreg, key: CtKey::Mark }
}

pub fn ct_original_saddr(dreg: Reg) -> Expr {
    Expr::Ct { dreg, key: CtKey::OriginalSrc }
}

pub fn ct_original_daddr(dreg: Reg) -> Expr {
    Expr::Ct { dreg, key: CtKey::OriginalDst }
}

/// Who began the flow, whichever way this packet goes.
pub fn original_saddr(family: Family, dreg: Reg) -> Expr {
    let key = if family == Family::V4 { CtKey::OriginalSrc } else { CtKey::OriginalSrc6 };
    Expr::Ct { dreg, key }
}

/// Who answers, after all translation of the destination, whichever way this packet goes.
pub fn reply_saddr(family: Family, dreg: Reg) -> Expr {
    let key = if family == Family::V4 { CtKey::ReplySrc } else { CtKey::ReplySrc6 };
    Expr::Ct { dreg, key }
}

/// The port of whom [`reply_saddr`] names; needs an [`l4proto`] before it for `nft list` to understand the rule.
pub fn ct_reply_sport(dreg: Reg) -> Expr {
    Expr::Ct { dreg, key: CtKey::ReplyProtoSrc }
}

/// [`ct_original_daddr`] of either family.
pub fn original_daddr(family: Family, dreg: Reg) -> Expr {
    let key = if family == Family::V4 { CtKey::OriginalDst } else { CtKey::OriginalDst6 };
    Expr::Ct { dreg, key }
}

/// Needs an [`l4proto`] before it for `nft list` to understand the rule.
pub fn ct_original_dport(dreg: Reg) -> Expr {
    Expr::Ct { dreg, key: CtKey::OriginalProtoDst }
}

pub fn fib_daddr_type(dreg: Reg) -> Expr {
    Expr::Fib { dreg, key: FibKey::DaddrType }
}

pub fn fib_saddr_type(dreg: Reg) -> Expr {
    Expr::Fib { dreg, key: FibKey::SaddrType }
}

pub fn socket_wildcard(dreg: Reg) -> Expr {
    Expr::SocketWildcard { dreg }
}

pub fn numgen(dreg: Reg, modulus: u32) -> Expr {
    numgen_from(dreg, modulus, 0)
}

/// A number in `offset..offset + modulus`.
pub fn numgen_from(dreg: Reg, modulus: u32, offset: u32) -> Expr {
    Expr::Numgen { dreg, modulus, offset }
}

pub fn immediate(dreg: Reg, value: impl Into<Vec<u8>>) -> Expr {
    Expr::Immediate { dreg, value: value.into() }
}

// ---- matching ----

pub fn cmp(sreg: Reg, op: CmpOp, value: impl Into<Vec<u8>>) -> Expr {
    Expr::Cmp { sreg, op, value: value.into() }
}

/// The register holds this very value, such as `is(r, Protocol::Tcp)` or `is(r, 8080_u16)`.
pub fn is<'a>(sreg: Reg, value: impl Into<Value<'a>>) -> Expr {
    cmp(sreg, CmpOp::Eq, encode(&[value.into()]))
}

pub fn is_not<'a>(sreg: Reg, value: impl Into<Value<'a>>) -> Expr {
    cmp(sreg, CmpOp::Ne, encode(&[value.into()]))
}

/// `from..=to`, both of one kind.
pub fn within<'a>(sreg: Reg, from: impl Into<Value<'a>>, to: impl Into<Value<'a>>) -> Expr {
    Expr::Range { sreg, invert: false, from: encode(&[from.into()]).into(), to: encode(&[to.into()]).into() }
}

/// The register's address lies in `address/length`: a mask where needed, and a comparison.
pub fn in_prefix(reg: Reg, net: ipnet::IpNet) -> Vec<Expr> {
    prefix_match(reg, net, CmpOp::Eq)
}

pub fn not_in_prefix(reg: Reg, net: ipnet::IpNet) -> Vec<Expr> {
    prefix_match(reg, net, CmpOp::Ne)
}

fn prefix_match(reg: Reg, net: ipnet::IpNet, op: CmpOp) -> Vec<Expr> {
    let bytes = |address: IpAddr| Vec::from(encode(&[Value::Addr(address)]));
    let mut exprs = Vec::new();
    if net.prefix_len() < net.max_prefix_len() {
        let mask = bytes(net.netmask());
        let xor = vec![0; mask.len()];
        exprs.push(Expr::Bitwise { sreg: reg, dreg: reg, mask, xor });
    }
    exprs.push(cmp(reg, op, bytes(net.network())));
    exprs
}

/// Any of `bits` is set in the register (host order): two expressions.
pub fn has_bits(reg: Reg, bits: u32) -> [Expr; 2] {
    [and(reg, bits), cmp(reg, CmpOp::Ne, 0_u32.to_ne_bytes())]
}

/// None of `bits` is set in the register (host order): two expressions.
pub fn has_no_bits(reg: Reg, bits: u32) -> [Expr; 2] {
    [and(reg, bits), cmp(reg, CmpOp::Eq, 0_u32.to_ne_bytes())]
}

/// `reg &= bits`, host order.
pub fn and(reg: Reg, bits: u32) -> Expr {
    bitwise(reg, bits, 0)
}

/// `reg |= bits`, host order.
pub fn or(reg: Reg, bits: u32) -> Expr {
    bitwise(reg, !bits, bits)
}

/// `reg = (reg & mask) ^ xor`, host order.
pub fn bitwise(reg: Reg, mask: u32, xor: u32) -> Expr {
    Expr::Bitwise { sreg: reg, dreg: reg, mask: mask.to_ne_bytes().into(), xor: xor.to_ne_bytes().into() }
}

pub fn lookup(set: impl Into<String>, sreg: Reg) -> Expr {
    Expr::Lookup { set: set.into(), sreg, invert: false }
}

pub fn lookup_not(set: impl Into<String>, sreg: Reg) -> Expr {
    Expr::Lookup { set: set.into(), sreg, invert: true }
}

pub fn map(set: impl Into<String>, sreg: Reg, dreg: Reg) -> Expr {
    Expr::LookupMap { set: set.into(), sreg, dreg }
}

pub fn vmap(set: impl Into<String>, sreg: Reg) -> Expr {
    Expr::LookupVerdict { set: set.into(), sreg }
}

// ---- acting ----

pub fn accept() -> Expr {
    Expr::Verdict(Verdict::Accept)
}

pub fn drop() -> Expr {
    Expr::Verdict(Verdict::Drop)
}

/// `return`.
pub fn ret() -> Expr {
    Expr::Verdict(Verdict::Return)
}

pub fn jump(chain: impl Into<String>) -> Expr {
    Expr::Verdict(Verdict::Jump(chain.into()))
}

pub fn goto(chain: impl Into<String>) -> Expr {
    Expr::Verdict(Verdict::Goto(chain.into()))
}

pub fn dnat_ip(addr: Reg, port: Reg) -> Expr {
    dnat(Family::V4, addr, port)
}

pub fn dnat(family: Family, addr: Reg, port: Reg) -> Expr {
    Expr::Dnat { family: family.into(), addr, port: Some(port) }
}

pub fn masquerade() -> Expr {
    Expr::Masquerade { fully_random: false }
}

/// With ports drawn by a good generator: fewer collisions between connections that start at once.
pub fn masquerade_random() -> Expr {
    Expr::Masquerade { fully_random: true }
}

pub fn reject() -> Expr {
    Expr::Reject(RejectWith::PortUnreachable)
}

/// Nobody has the address.
pub fn reject_host() -> Expr {
    Expr::Reject(RejectWith::HostUnreachable)
}

pub fn reject_tcp_reset() -> Expr {
    Expr::Reject(RejectWith::TcpReset)
}

pub fn counter() -> Expr {
    Expr::Counter
}

/// To userspace through nfnetlink_log; `prefix` identifies the rule there.
pub fn log(group: u16, snaplen: u32, prefix: impl Into<String>) -> Expr {
    Expr::Log { group, snaplen, prefix: prefix.into() }
}

/// Puts the key into a dynamic set, or keeps it there, for so long.
pub fn update(set: impl Into<String>, key: Reg, timeout_ms: u64) -> Expr {
    Expr::Update { set: set.into(), key, data: None, timeout_ms, counts: false }
}

/// The same, with a count of packets for each key.
pub fn count_by(set: impl Into<String>, key: Reg, timeout_ms: u64) -> Expr {
    Expr::Update { set: set.into(), key, data: None, timeout_ms, counts: true }
}

pub fn notrack() -> Expr {
    Expr::Notrack
}

// ---- bytes of keys and data ----

/// A value of one [`Field`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    Addr(IpAddr),
    Proto(u8),
    Port(u16),
    /// A mark, a slot, a state: 4 bytes, host order.
    Word(u32),
    IfName(&'a str),
    Mac(Mac),
}

impl Value<'_> {
    pub fn field(self) -> Field {
        match self {
            Self::Addr(IpAddr::V4(_)) => Field::Ipv4,
            Self::Addr(IpAddr::V6(_)) => Field::Ipv6,
            Self::Proto(_) => Field::Proto,
            Self::Port(_) => Field::Port,
            Self::Word(_) => Field::Mark,
            Self::IfName(_) => Field::IfName,
            Self::Mac(_) => Field::Mac,
        }
    }

    fn push(self, bytes: &mut Vec<u8>) {
        match self {
            Self::Addr(IpAddr::V4(a)) => bytes.extend(a.octets()),
            Self::Addr(IpAddr::V6(a)) => bytes.extend(a.octets()),
            Self::Proto(p) => bytes.push(p),
            Self::Mac(mac) => bytes.extend(mac.0),
            Self::Port(p) => bytes.extend(p.to_be_bytes()),
            Self::Word(w) => bytes.extend(w.to_ne_bytes()),
            Self::IfName(name) => {
                // 15 bytes and a zero is all an interface can have (IFNAMSIZ).
                let name = &name.as_bytes()[..name.len().min(15)];
                bytes.extend(name);
                bytes.resize(bytes.len() + 16 - name.len(), 0);
            }
        }
    }
}

impl From<IpAddr> for Value<'_> {
    fn from(address: IpAddr) -> Self {
        Self::Addr(address)
    }
}

impl From<Ipv4Addr> for Value<'_> {
    fn from(address: Ipv4Addr) -> Self {
        Self::Addr(address.into())
    }
}

impl From<Ipv6Addr> for Value<'_> {
    fn from(address: Ipv6Addr) -> Self {
        Self::Addr(address.into())
    }
}

impl From<Protocol> for Value<'_> {
    fn from(protocol: Protocol) -> Self {
        Self::Proto(protocol.number())
    }
}

/// A port.
impl From<u16> for Value<'_> {
    fn from(port: u16) -> Self {
        Self::Port(port)
    }
}

/// A mark, a slot, a state.
impl From<u32> for Value<'_> {
    fn from(word: u32) -> Self {
        Self::Word(word)
    }
}

impl<'a> From<&'a IfName> for Value<'a> {
    fn from(name: &'a IfName) -> Self {
        Self::IfName(name.as_str())
    }
}

impl From<Mac> for Value<'_> {
    fn from(mac: Mac) -> Self {
        Self::Mac(mac)
    }
}

/// The bytes as registers hold them: a lone field as it is, several each padded to whole words.
pub fn encode(values: &[Value<'_>]) -> Bytes {
    let mut bytes = Vec::with_capacity(values.iter().map(|v| v.field().padded()).sum());
    for value in values {
        value.push(&mut bytes);
        if values.len() > 1 {
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
    }
    bytes.as_slice().into()
}

/// The reverse of [`encode`]; `None` when the length is not that of the fields.
pub fn decode<'a>(fields: &[Field], bytes: &'a [u8]) -> Option<Vec<Value<'a>>> {
    let mut rest = bytes;
    let mut values = Vec::with_capacity(fields.len());
    for field in fields {
        let width = if fields.len() > 1 { field.padded() } else { field.len() };
        let (head, tail) = rest.split_at_checked(width)?;
        rest = tail;
        values.push(decode_one(*field, head.get(..field.len())?)?);
    }
    rest.is_empty().then_some(values)
}

fn decode_one(field: Field, bytes: &[u8]) -> Option<Value<'_>> {
    Some(match field {
        Field::Ipv4 => Value::Addr(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        Field::Ipv6 => Value::Addr(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        Field::Proto => Value::Proto(*bytes.first()?),
        Field::Mac => Value::Mac(Mac(bytes.try_into().ok()?)),
        Field::Port => Value::Port(u16::from_be_bytes(bytes.try_into().ok()?)),
        Field::Mark => Value::Word(u32::from_ne_bytes(bytes.try_into().ok()?)),
        Field::IfName => {
            let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
            Value::IfName(std::str::from_utf8(bytes.get(..end)?).ok()?)
        }
    })
}
