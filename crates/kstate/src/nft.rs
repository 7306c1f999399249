//! nf_tables as values. Rules are lists of the kernel's own expressions over its register file
//! (include/uapi/linux/netfilter/nf_tables.h), because that is what the kernel gives back: observed and desired
//! rules compare without guessing, and one small interpreter can run them.
//!
//! The register file is 16 words of 4 bytes; a concatenated key is consecutive registers, each field padded to
//! a whole word:
//!
//! ```text
//!   r0          r1         r2           r3
//!   ip saddr    l4proto…   th dport..   slot         lookup sreg=r0 reads as many bytes as the set's key has
//! ```

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub mod build;
mod bytes;
mod diff;
mod edit;
mod heirs;
pub mod key;
mod show;
mod tell;

pub use bytes::Bytes;
pub use diff::{chains_of, diff, target};
pub use heirs::{Heir, heirs};
pub use tell::{Asked, Difference};

/// Which packets a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TableFamily {
    Ip,
    Ip6,
    /// Packets of both families.
    Inet,
    /// Frames that come into a bridge by one of its ports, before it knows where they go.
    Bridge,
}

impl From<types::Family> for TableFamily {
    fn from(family: types::Family) -> Self {
        match family {
            types::Family::V4 => Self::Ip,
            types::Family::V6 => Self::Ip6,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableId {
    pub family: TableFamily,
    pub name: Arc<str>,
}

/// The tables that are ours, whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    pub tables: BTreeMap<TableId, Table>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    pub chains: BTreeMap<String, Chain>,
    /// A plan names the set in each of a hundred thousand steps.
    pub sets: BTreeMap<Arc<str>, Set>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// `None`: a regular chain, entered by a verdict only.
    pub base: Option<BaseChain>,
    pub rules: Vec<Rule>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BaseChain {
    pub kind: ChainKind,
    pub hook: Hook,
    pub priority: i32,
    /// `true`: the chain's policy is drop.
    pub drop: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainKind {
    Filter,
    Nat,
    Route,
}

/// In the order a forwarded packet meets them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
}

/// A rule; `comment` travels in NFTA_RULE_USERDATA as nft writes it, so that `nft list` shows it and a drop can
/// be led back to its object.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    pub exprs: Vec<Expr>,
    pub comment: String,
}

/// One 4-byte register, 0..=15 (NFT_REG32_00 + n).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reg(pub u8);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    Accept,
    Drop,
    Return,
    Jump(String),
    Goto(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PayloadBase {
    Link,
    Network,
    Transport,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MetaKey {
    Mark,
    L4Proto,
    IifName,
    OifName,
    Nftrace,
    NfProto,
}

/// `OriginalSrc`, `OriginalDst` and `ReplySrc` are IPv4 addresses, `OriginalSrc6`, `OriginalDst6` and `ReplySrc6` IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CtKey {
    State,
    Status,
    Mark,
    OriginalSrc,
    OriginalDst,
    OriginalSrc6,
    OriginalDst6,
    OriginalProtoDst,
    ReplySrc,
    ReplySrc6,
    ReplyProtoSrc,
    /// 0: as the client sends; 1: as it is answered. One byte.
    Direction,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CmpOp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

/// What `fib` looks an address up for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FibKey {
    /// The type of the destination address (RTN_LOCAL = 2, …), 4 bytes.
    DaddrType,
    SaddrType,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RejectWith {
    /// ICMP(v6) port unreachable.
    PortUnreachable,
    /// ICMP host unreachable, ICMPv6 address unreachable.
    HostUnreachable,
    TcpReset,
}

/// One expression. Data is in the byte order in which the kernel holds it in registers: packet fields as on the
/// wire, everything else (marks, states, numgen) in host order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Expr {
    Payload {
        dreg: Reg,
        base: PayloadBase,
        offset: u32,
        len: u32,
    },
    Meta {
        dreg: Reg,
        key: MetaKey,
    },
    MetaSet {
        sreg: Reg,
        key: MetaKey,
    },
    Ct {
        dreg: Reg,
        key: CtKey,
    },
    CtSet {
        sreg: Reg,
        key: CtKey,
    },
    Cmp {
        sreg: Reg,
        op: CmpOp,
        value: Vec<u8>,
    },
    /// Both ends inclusive.
    Range {
        sreg: Reg,
        invert: bool,
        from: Vec<u8>,
        to: Vec<u8>,
    },
    /// `dreg = (sreg & mask) ^ xor`.
    Bitwise {
        sreg: Reg,
        dreg: Reg,
        mask: Vec<u8>,
        xor: Vec<u8>,
    },
    /// Breaks the rule unless the key is in the set (or is not, with `invert`).
    Lookup {
        set: String,
        sreg: Reg,
        invert: bool,
    },
    /// Writes the element's data, or breaks the rule.
    LookupMap {
        set: String,
        sreg: Reg,
        dreg: Reg,
    },
    /// Takes the element's verdict, or goes on with the next expression's rule (a miss breaks the rule).
    LookupVerdict {
        set: String,
        sreg: Reg,
    },
    /// A random number in `offset..offset + modulus`, host order.
    Numgen {
        dreg: Reg,
        modulus: u32,
        offset: u32,
    },
    Immediate {
        dreg: Reg,
        value: Vec<u8>,
    },
    Verdict(Verdict),
    Dnat {
        family: TableFamily,
        addr: Reg,
        port: Option<Reg>,
    },
    Snat {
        family: TableFamily,
        addr: Reg,
    },
    Masquerade {
        fully_random: bool,
    },
    Redirect {
        port: Option<Reg>,
    },
    Reject(RejectWith),
    /// Counts; the numbers are the kernel's and no part of the value.
    Counter,
    Log {
        group: u16,
        snaplen: u32,
        prefix: String,
    },
    Fib {
        dreg: Reg,
        key: FibKey,
    },
    /// Breaks the rule when no local socket would take the packet; else 1 if that socket is bound to the
    /// wildcard address, 0 if to this very one (NFT_SOCKET_WILDCARD).
    SocketWildcard {
        dreg: Reg,
    },
    Notrack,
    /// `update @set { key : data timeout }` from the packet path.
    Update {
        set: String,
        key: Reg,
        data: Option<Reg>,
        timeout_ms: u64,
        /// Each element counts the packets that put it there or kept it.
        counts: bool,
    },
    /// Observed only: an expression that we never write, with its attributes as the kernel gave them. A rule
    /// that holds one is somebody else's.
    Foreign {
        name: String,
        body: Box<[u8]>,
    },
}

/// The type of one field of a key or of data: nft's own number (for `nft list`) and its length in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Field {
    Ipv4,
    Ipv6,
    Proto,
    Port,
    Mark,
    IfName,
    Mac,
}

impl Field {
    /// Bytes of the value itself; in a concatenation it fills whole words.
    #[expect(clippy::len_without_is_empty, reason = "a width, not a container")]
    pub fn len(self) -> usize {
        match self {
            Self::Ipv4 | Self::Mark => 4,
            Self::Ipv6 | Self::IfName => 16,
            Self::Mac => 6,
            Self::Proto => 1,
            Self::Port => 2,
        }
    }

    /// Bytes in a concatenated key.
    pub fn padded(self) -> usize {
        self.len().next_multiple_of(4)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetData {
    /// A plain set.
    None,
    /// A verdict map.
    Verdicts,
    /// A map to a concatenation of fields.
    Values(Vec<Field>),
}

/// A set or map; the layout is fixed at its creation, elements come and go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    pub key: Vec<Field>,
    pub data: SetData,
    /// Keys are ranges; such a set has [`ElemKey::Range`]s.
    pub interval: bool,
    /// The packet path adds elements; they are the kernel's and no part of the value.
    pub dynamic: bool,
    pub timeout_ms: Option<u64>,
    pub size: Option<u32>,
    pub elements: BTreeMap<ElemKey, ElemData>,
}

impl Set {
    /// Of plain keys, or a map, with no elements yet.
    pub fn new(key: impl Into<Vec<Field>>, data: SetData) -> Self {
        Self {
            key: key.into(),
            data,
            interval: false,
            dynamic: false,
            timeout_ms: None,
            size: None,
            elements: BTreeMap::new(),
        }
    }
}

/// The bytes of a key as the registers hold them, each field padded to a word when there are several. Ordered by the
/// start, then the end.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ElemKey {
    Point(Bytes),
    /// Start and end, both inclusive: of an interval set.
    Range(Box<[Bytes; 2]>),
}

impl ElemKey {
    pub fn point(at: Bytes) -> Self {
        Self::Point(at)
    }

    pub fn range(start: Bytes, end: Bytes) -> Self {
        Self::Range(Box::new([start, end]))
    }

    pub fn start(&self) -> &Bytes {
        match self {
            Self::Point(at) => at,
            Self::Range(range) => &range[0],
        }
    }

    /// Of a range only.
    pub fn end(&self) -> Option<&Bytes> {
        match self {
            Self::Point(_) => None,
            Self::Range(range) => Some(&range[1]),
        }
    }

    /// The end of a range; a point is its own.
    pub fn last(&self) -> &Bytes {
        self.end().unwrap_or(self.start())
    }
}

impl PartialOrd for ElemKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ElemKey {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.start(), self.end()).cmp(&(other.start(), other.end()))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ElemData {
    None,
    Verdict(Verdict),
    Value(Bytes),
    /// Of a dynamic set, where it is carried from one set to another: its own timeout, if it is not the set's, and what
    /// is left of it.
    Until {
        timeout_ms: Option<u64>,
        left_ms: u64,
    },
}

/// One step of a plan. Each is idempotent against the state it expects, and [`Plan`] keeps them in an order of
/// which every prefix is safe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    AddTable(TableId),
    DeleteTable(TableId),
    /// Made empty; its rules come with [`Op::SetRules`].
    AddChain {
        table: TableId,
        chain: String,
        base: Option<BaseChain>,
    },
    DeleteChain {
        table: TableId,
        chain: String,
    },
    /// Flush and refill, in one transaction.
    SetRules {
        table: TableId,
        chain: String,
        rules: Vec<Rule>,
    },
    /// Made empty; its elements come with [`Op::AddElement`].
    AddSet {
        table: TableId,
        set: Arc<str>,
        layout: Box<Set>,
    },
    /// `layout`: without elements. Steps before may take some of them away, and who writes them down may know no more
    /// of the set than that it is not wanted.
    DeleteSet {
        table: TableId,
        set: Arc<str>,
        layout: Box<Set>,
    },
    AddElement {
        table: TableId,
        set: Arc<str>,
        key: ElemKey,
        data: ElemData,
    },
    DeleteElement {
        table: TableId,
        set: Arc<str>,
        key: ElemKey,
    },
}

/// Steps in order; the writer may cut it into several transactions at any point between steps, except that
/// a `DeleteElement` directly followed by an `AddElement` of the same key (a changed value) stays together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub ops: Vec<Op>,
}

impl Op {
    /// The table the step is about.
    pub fn table(&self) -> &TableId {
        match self {
            Self::AddTable(table)
            | Self::DeleteTable(table)
            | Self::AddChain { table, .. }
            | Self::DeleteChain { table, .. }
            | Self::SetRules { table, .. }
            | Self::AddSet { table, .. }
            | Self::DeleteSet { table, .. }
            | Self::AddElement { table, .. }
            | Self::DeleteElement { table, .. } => table,
        }
    }
}

impl Plan {
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }
}

/// Names used by a rule or an element, for the order of plans and for the laws.
pub fn targets(verdict: &Verdict) -> Option<&str> {
    match verdict {
        Verdict::Jump(chain) | Verdict::Goto(chain) => Some(chain),
        Verdict::Accept | Verdict::Drop | Verdict::Return => None,
    }
}

/// The sets a rule reads or writes.
pub fn sets_of(rule: &Rule) -> BTreeSet<&str> {
    rule.exprs
        .iter()
        .filter_map(|expr| match expr {
            Expr::Lookup { set, .. }
            | Expr::LookupMap { set, .. }
            | Expr::LookupVerdict { set, .. }
            | Expr::Update { set, .. } => Some(set.as_str()),
            _ => None,
        })
        .collect()
}
