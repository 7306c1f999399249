//! One rule as text: a tiny symbolic run over the register file.

use std::net::IpAddr;

use super::super::build::{Value, ct_state, ct_status, decode};
use super::super::{
    CmpOp, CtKey, Expr, FibKey, Field, MetaKey, PayloadBase, Reg, RejectWith, Rule, SetData, Table,
};
use super::hex;

/// How the bytes of a term are to be read.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Value(Field),
    CtState,
    CtStatus,
    AddressType,
    Direction,
    Flag,
    Raw,
}

/// What a register holds.
#[derive(Clone)]
struct Term {
    text: String,
    kind: Kind,
    words: usize,
    /// A mask that was just applied: `ip saddr & 255.0.0.0 == 10.0.0.0` prints as a prefix.
    mask: Option<Masked>,
    /// An immediate: what it means depends on what it is written to.
    constant: Option<Vec<u8>>,
}

#[derive(Clone)]
struct Masked {
    plain: String,
    mask: Vec<u8>,
}

impl Rule {
    /// The rule as text; `table` tells how long the keys of its sets are.
    pub(super) fn within(&self, table: Option<&Table>) -> String {
        let mut run = Run { registers: vec![None; 20], table, words: Vec::new() };
        for expr in &self.exprs {
            run.step(expr);
        }
        if !self.comment.is_empty() {
            run.words.push(format!("comment {:?}", self.comment));
        }
        run.words.join(" ")
    }
}

struct Run<'a> {
    registers: Vec<Option<Term>>,
    table: Option<&'a Table>,
    words: Vec<String>,
}

impl Run<'_> {
    fn load(&mut self, reg: Reg, text: impl Into<String>, kind: Kind, bytes: usize) {
        let words = bytes.div_ceil(4).max(1);
        let term = Term { text: text.into(), kind, words, mask: None, constant: None };
        let start = usize::from(reg.0);
        for slot in self.registers.iter_mut().skip(start).take(words) {
            *slot = None;
        }
        if let Some(slot) = self.registers.get_mut(start) {
            *slot = Some(term);
        }
    }

    fn term(&self, reg: Reg) -> Term {
        let known = self.registers.get(usize::from(reg.0)).cloned().flatten();
        known.unwrap_or_else(|| Term {
            text: format!("r{}", reg.0),
            kind: Kind::Raw,
            words: 1,
            mask: None,
            constant: None,
        })
    }

    /// The terms of a key of `fields` fields (or as many as follow one another) from `reg` on.
    fn key(&self, reg: Reg, fields: Option<usize>) -> String {
        let mut texts = Vec::new();
        let mut at = usize::from(reg.0);
        while texts.len() < fields.unwrap_or(usize::MAX) {
            match self.registers.get(at).cloned().flatten() {
                Some(term) => {
                    at += term.words;
                    texts.push(term.text);
                }
                None => break,
            }
        }
        if texts.is_empty() { format!("r{}", reg.0) } else { texts.join(" . ") }
    }

    fn key_of(&self, set: &str, reg: Reg) -> String {
        self.key(reg, self.table.and_then(|table| table.sets.get(set)).map(|set| set.key.len()))
    }

    fn say(&mut self, text: impl Into<String>) {
        self.words.push(text.into());
    }

    fn step(&mut self, expr: &Expr) {
        match expr {
            Expr::Payload { dreg, base, offset, len } => {
                let (text, kind) = payload(*base, *offset, *len);
                self.load(*dreg, text, kind, *len as usize);
            }
            Expr::Meta { dreg, key } => {
                let (text, kind, bytes) = meta(*key);
                self.load(*dreg, text, kind, bytes);
            }
            Expr::Ct { dreg, key } => {
                let (text, kind, bytes) = ct(*key);
                self.load(*dreg, text, kind, bytes);
            }
            Expr::Fib { dreg, key: FibKey::DaddrType } => {
                self.load(*dreg, "fib daddr type", Kind::AddressType, 4)
            }
            Expr::Fib { dreg, key: FibKey::SaddrType } => {
                self.load(*dreg, "fib saddr type", Kind::AddressType, 4)
            }
            Expr::SocketWildcard { dreg } => self.load(*dreg, "socket wildcard", Kind::Flag, 1),
            Expr::Numgen { dreg, modulus, offset } => {
                let offset = if *offset == 0 { String::new() } else { format!(" offset {offset}") };
                self.load(*dreg, format!("numgen random mod {modulus}{offset}"), Kind::Value(Field::Mark), 4);
            }
            Expr::Immediate { dreg, value } => {
                self.load(*dreg, immediate(value), Kind::Raw, value.len());
                if let Some(Some(term)) = self.registers.get_mut(usize::from(dreg.0)) {
                    term.constant = Some(value.clone());
                }
            }
            Expr::Bitwise { sreg, dreg, mask, xor } => self.bitwise((*sreg, *dreg), mask, xor),
            Expr::LookupMap { set, sreg, dreg } => {
                let text = format!("{} map @{set}", self.key_of(set, *sreg));
                let bytes =
                    match self.table.and_then(|table| table.sets.get(set.as_str())).map(|set| &set.data) {
                        Some(SetData::Values(fields)) => fields.iter().map(|field| field.padded()).sum(),
                        _ => 4,
                    };
                self.load(*dreg, text, Kind::Raw, bytes);
            }
            matching => self.matching(matching),
        }
    }

    fn matching(&mut self, expr: &Expr) {
        match expr {
            Expr::Cmp { sreg, op, value } => {
                let text = compare(&self.term(*sreg), *op, value);
                self.say(text);
            }
            Expr::Range { sreg, invert, from, to } => {
                let term = self.term(*sreg);
                let not = if *invert { "!= " } else { "" };
                self.say(format!("{} {not}{}-{}", term.text, term.kind.show(from), term.kind.show(to)));
            }
            Expr::Lookup { set, sreg, invert } => {
                let not = if *invert { "!= " } else { "" };
                self.say(format!("{} {not}@{set}", self.key_of(set, *sreg)));
            }
            Expr::LookupVerdict { set, sreg } => self.say(format!("{} vmap @{set}", self.key_of(set, *sreg))),
            acting => self.acting(acting),
        }
    }

    fn acting(&mut self, expr: &Expr) {
        match expr {
            Expr::MetaSet { sreg, key } => {
                let (text, kind, _) = meta(*key);
                self.say(format!("{text} set {}", self.term(*sreg).written_to(kind)));
            }
            Expr::CtSet { sreg, key } => {
                let (text, kind, _) = ct(*key);
                self.say(format!("{text} set {}", self.term(*sreg).written_to(kind)));
            }
            Expr::Verdict(verdict) => self.say(verdict.to_string()),
            Expr::Dnat { addr, port, .. } => {
                let text = self.nat_target("dnat", *addr, *port);
                self.say(text);
            }
            Expr::Snat { addr, .. } => {
                let text = self.nat_target("snat", *addr, None);
                self.say(text);
            }
            Expr::Masquerade { fully_random } => {
                self.say(if *fully_random { "masquerade fully-random" } else { "masquerade" });
            }
            Expr::Redirect { port: None } => self.say("redirect"),
            Expr::Redirect { port: Some(port) } => {
                self.say(format!("redirect to :{}", self.term(*port).text))
            }
            Expr::Reject(RejectWith::PortUnreachable) => self.say("reject"),
            Expr::Reject(RejectWith::HostUnreachable) => self.say("reject with host-unreachable"),
            Expr::Reject(RejectWith::TcpReset) => self.say("reject with tcp reset"),
            Expr::Counter => self.say("counter"),
            Expr::Log { group, snaplen, prefix } => {
                let snaplen = if *snaplen == 0 { String::new() } else { format!(" snaplen {snaplen}") };
                let prefix = if prefix.is_empty() { String::new() } else { format!(" prefix {prefix:?}") };
                self.say(format!("log{prefix} group {group}{snaplen}"));
            }
            Expr::Notrack => self.say("notrack"),
            Expr::Update { set, key, data, timeout_ms, counts } => {
                let timeout = if *timeout_ms == 0 {
                    String::new()
                } else {
                    format!(" timeout {}", milliseconds(*timeout_ms))
                };
                let key = self.key_of(set, *key);
                let counter = if *counts { " counter" } else { "" };
                let data = data.map(|data| format!(" : {}", self.key(data, None))).unwrap_or_default();
                self.say(format!("update @{set} {{ {key}{timeout}{counter}{data} }}"));
            }
            Expr::Foreign { name, .. } => self.say(format!("<{name}>")),
            _ => {}
        }
    }

    /// A map's data fills address and port at once; else they are two terms.
    fn nat_target(&self, word: &str, addr: Reg, port: Option<Reg>) -> String {
        let text = self.term(addr).text;
        match port.and_then(|port| self.registers.get(usize::from(port.0)).cloned().flatten()) {
            Some(port) if !text.contains(" map @") => format!("{word} to {text}:{}", port.text),
            _ => format!("{word} to {text}"),
        }
    }

    fn bitwise(&mut self, (sreg, dreg): (Reg, Reg), mask: &[u8], xor: &[u8]) {
        let term = self.term(sreg);
        let plain = term.text.clone();
        let set: Vec<u8> = mask.iter().map(|byte| !byte).collect();
        let is_zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
        let word = |bytes: &[u8]| word_of(bytes).map_or_else(|| hex(bytes), |word| format!("0x{word:x}"));
        let masked = is_zero(xor).then(|| Masked { plain: plain.clone(), mask: mask.to_vec() });
        let text = match () {
            () if is_zero(xor) => format!("{plain} & {}", word(mask)),
            () if set == xor => format!("{plain} | {}", word(xor)),
            () if is_zero(&set) => format!("{plain} ^ {}", word(xor)),
            () => format!("{plain} & {} ^ {}", word(mask), word(xor)),
        };
        self.load(dreg, text, term.kind, mask.len());
        if let Some(Some(term)) = self.registers.get_mut(usize::from(dreg.0)) {
            term.mask = masked;
        }
    }
}

impl Term {
    fn written_to(&self, kind: Kind) -> String {
        self.constant.as_ref().map_or_else(|| self.text.clone(), |bytes| kind.show(bytes))
    }
}

impl Kind {
    fn show(self, bytes: &[u8]) -> String {
        match self {
            Self::Value(Field::Mark) => {
                word_of(bytes).map_or_else(|| hex(bytes), |word| format!("0x{word:x}"))
            }
            Self::Value(Field::IfName) if !bytes.contains(&0) => {
                format!("\"{}*\"", String::from_utf8_lossy(bytes))
            }
            Self::Value(field) => decode(&[field], bytes)
                .and_then(|values| values.first().map(Value::to_string))
                .unwrap_or_else(|| hex(bytes)),
            Self::CtState => word_of(bytes).map_or_else(|| hex(bytes), |word| names(word, &CT_STATES)),
            Self::CtStatus => word_of(bytes).map_or_else(|| hex(bytes), |word| names(word, &CT_STATUS)),
            Self::AddressType => word_of(bytes).map_or_else(|| hex(bytes), address_type),
            Self::Direction if bytes == [0] => "original".to_owned(),
            Self::Direction if bytes == [1] => "reply".to_owned(),
            Self::Direction | Self::Flag => immediate(bytes),
            Self::Raw => hex(bytes),
        }
    }
}

const CT_STATES: [(u32, &str); 5] = [
    (ct_state::INVALID, "invalid"),
    (ct_state::ESTABLISHED, "established"),
    (ct_state::RELATED, "related"),
    (ct_state::NEW, "new"),
    (ct_state::UNTRACKED, "untracked"),
];
const CT_STATUS: [(u32, &str); 2] = [(ct_status::SRC_NAT, "snat"), (ct_status::DST_NAT, "dnat")];

/// A term compared with bytes, as nft prefers to write it.
fn compare(term: &Term, op: CmpOp, value: &[u8]) -> String {
    let zero = value.iter().all(|byte| *byte == 0);
    let bits = matches!(term.kind, Kind::CtState | Kind::CtStatus);
    if let Some(Masked { plain, mask }) = &term.mask {
        match (prefix_length(term.kind, mask), op) {
            (Some(length), CmpOp::Eq) => return format!("{plain} {}/{length}", term.kind.show(value)),
            (Some(length), CmpOp::Ne) => return format!("{plain} != {}/{length}", term.kind.show(value)),
            (None, CmpOp::Ne) if zero && bits => return format!("{plain} {}", term.kind.show(mask)),
            (None, CmpOp::Eq) if zero && bits => return format!("{plain} ! {}", term.kind.show(mask)),
            _ => {}
        }
    }
    let sign = match op {
        CmpOp::Eq if term.mask.is_some() => "== ",
        CmpOp::Eq => "",
        CmpOp::Ne => "!= ",
        CmpOp::Lt => "< ",
        CmpOp::Le => "<= ",
        CmpOp::Gt => "> ",
        CmpOp::Ge => ">= ",
    };
    let value = if zero && bits { "0".to_owned() } else { term.kind.show(value) };
    format!("{} {sign}{value}", term.text)
}

fn prefix_length(kind: Kind, mask: &[u8]) -> Option<u8> {
    let mask: IpAddr = match kind {
        Kind::Value(Field::Ipv4) => <[u8; 4]>::try_from(mask).ok()?.into(),
        Kind::Value(Field::Ipv6) => <[u8; 16]>::try_from(mask).ok()?.into(),
        _ => return None,
    };
    ipnet::ip_mask_to_prefix(mask).ok()
}

fn payload(base: PayloadBase, offset: u32, len: u32) -> (String, Kind) {
    let known = match (base, offset, len) {
        (PayloadBase::Network, 12, 4) => Some(("ip saddr", Field::Ipv4)),
        (PayloadBase::Network, 16, 4) => Some(("ip daddr", Field::Ipv4)),
        (PayloadBase::Network, 9, 1) => Some(("ip protocol", Field::Proto)),
        (PayloadBase::Network, 8, 16) => Some(("ip6 saddr", Field::Ipv6)),
        (PayloadBase::Network, 24, 16) => Some(("ip6 daddr", Field::Ipv6)),
        (PayloadBase::Link, 6, 6) => Some(("ether saddr", Field::Mac)),
        (PayloadBase::Transport, 0, 2) => Some(("th sport", Field::Port)),
        (PayloadBase::Transport, 2, 2) => Some(("th dport", Field::Port)),
        _ => None,
    };
    if let Some((text, field)) = known {
        return (text.to_owned(), Kind::Value(field));
    }
    let base = match base {
        PayloadBase::Link => "ll",
        PayloadBase::Network => "nh",
        PayloadBase::Transport => "th",
    };
    // nft counts raw payload in bits.
    (format!("@{base},{},{}", u64::from(offset) * 8, u64::from(len) * 8), Kind::Raw)
}

fn meta(key: MetaKey) -> (&'static str, Kind, usize) {
    match key {
        MetaKey::Mark => ("meta mark", Kind::Value(Field::Mark), 4),
        MetaKey::L4Proto => ("meta l4proto", Kind::Value(Field::Proto), 1),
        MetaKey::IifName => ("iifname", Kind::Value(Field::IfName), 16),
        MetaKey::OifName => ("oifname", Kind::Value(Field::IfName), 16),
        MetaKey::Nftrace => ("meta nftrace", Kind::Flag, 1),
        MetaKey::NfProto => ("meta nfproto", Kind::Flag, 1),
    }
}

fn ct(key: CtKey) -> (&'static str, Kind, usize) {
    match key {
        CtKey::State => ("ct state", Kind::CtState, 4),
        CtKey::Status => ("ct status", Kind::CtStatus, 4),
        CtKey::Mark => ("ct mark", Kind::Value(Field::Mark), 4),
        CtKey::OriginalSrc => ("ct original saddr", Kind::Value(Field::Ipv4), 4),
        CtKey::OriginalDst => ("ct original daddr", Kind::Value(Field::Ipv4), 4),
        CtKey::OriginalSrc6 => ("ct original ip6 saddr", Kind::Value(Field::Ipv6), 16),
        CtKey::OriginalDst6 => ("ct original ip6 daddr", Kind::Value(Field::Ipv6), 16),
        CtKey::Direction => ("ct direction", Kind::Direction, 1),
        CtKey::ReplySrc => ("ct reply saddr", Kind::Value(Field::Ipv4), 4),
        CtKey::ReplySrc6 => ("ct reply ip6 saddr", Kind::Value(Field::Ipv6), 16),
        CtKey::ReplyProtoSrc => ("ct reply proto-src", Kind::Value(Field::Port), 2),
        CtKey::OriginalProtoDst => ("ct original proto-dst", Kind::Value(Field::Port), 2),
    }
}

fn names(word: u32, known: &[(u32, &str)]) -> String {
    let mut rest = word;
    let mut texts = Vec::new();
    for (bit, name) in known {
        if word & bit != 0 {
            rest &= !bit;
            texts.push((*name).to_owned());
        }
    }
    if rest != 0 || texts.is_empty() {
        texts.push(format!("0x{rest:x}"));
    }
    texts.join(",")
}

/// RTN_* of include/uapi/linux/rtnetlink.h.
fn address_type(word: u32) -> String {
    match word {
        1 => "unicast".to_owned(),
        2 => "local".to_owned(),
        3 => "broadcast".to_owned(),
        5 => "multicast".to_owned(),
        7 => "unreachable".to_owned(),
        _ => word.to_string(),
    }
}

fn word_of(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

/// Constants have no type in the kernel: by their length, an address, a port or a number.
fn immediate(bytes: &[u8]) -> String {
    match bytes {
        [byte] => byte.to_string(),
        [a, b] => u16::from_be_bytes([*a, *b]).to_string(),
        _ => match (word_of(bytes), <[u8; 16]>::try_from(bytes)) {
            (Some(_), _) => decode(&[Field::Ipv4], bytes)
                .and_then(|values| values.first().map(Value::to_string))
                .unwrap_or_default(),
            (None, Ok(address)) => IpAddr::from(address).to_string(),
            (None, Err(_)) => hex(bytes),
        },
    }
}

/// `3h`, `5s`, `10800500ms`.
pub(super) fn milliseconds(ms: u64) -> String {
    match ms {
        _ if ms.is_multiple_of(3_600_000) => format!("{}h", ms / 3_600_000),
        _ if ms.is_multiple_of(60_000) => format!("{}m", ms / 60_000),
        _ if ms.is_multiple_of(1000) => format!("{}s", ms / 1000),
        _ => format!("{ms}ms"),
    }
}
