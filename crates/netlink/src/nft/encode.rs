//! Plans as nf_tables transactions: `begin, message…, commit` in one datagram each, which the kernel performs
//! whole or not at all. A datagram must fit the socket's send buffer, which an ordinary user cannot raise, so a
//! big plan is cut between steps; [`kstate::nft::diff`] orders them so that every cut is safe. Others are cut for packets
//! that are on their way ([`super::cuts`]).
//!
//! Only the last message asks for an acknowledgement, so nothing overflows on the way back. What failed is found
//! by the sequence number and offset that the error carries.

use kstate::nft::{BaseChain, ChainKind, ElemData, Hook, Op, Plan, Rule, Ruleset, Set, TableFamily, TableId};
use thiserror::Error;

use super::cuts::Cuts;
use super::set::{self, Shape};
use super::{
    DELCHAIN, DELRULE, DELSET, DELSETELEM, DELTABLE, NEWCHAIN, NEWRULE, NEWSET, NEWSETELEM, NEWTABLE,
};
use super::{expr, family_number};
use crate::message::{Head, Open, Writer, flags};
use crate::nfnetlink;

/// NFNL_MSG_BATCH_BEGIN and _END; their resource id is the subsystem.
const BEGIN: u16 = 0x10;
const COMMIT: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
/// A stock `net.core.wmem_default` is 212,992, of which the kernel's own bookkeeping takes a part.
pub const STOCK_LIMIT: usize = 180 * 1024;
/// A nest's length has 16 bits.
const LIST_LIMIT: usize = 60_000;
/// NFTNL_UDATA_COMMENT_MAXLEN with its zero.
const COMMENT_LIMIT: usize = 127;

#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum EncodeError {
    #[error("cannot write {op}: set {set} is in neither the plan nor the known state; observe again")]
    UnknownSet { op: String, set: String },
    #[error(
        "cannot write a rule of {table} {chain}: its comment of {length} bytes is longer than {COMMENT_LIMIT}, which nft cannot list; shorten it"
    )]
    CommentTooLong { table: TableId, chain: String, length: usize },
    #[error("cannot write a rule of {table} {chain}: its expressions take more than 64 KiB; split the rule")]
    RuleTooLong { table: TableId, chain: String },
}

/// One datagram, and which step each part of it performs.
#[derive(Clone, Debug, Default)]
pub struct Transaction {
    pub bytes: Vec<u8>,
    pub first_seq: u32,
    /// Its acknowledgement comes last.
    pub ack_seq: u32,
    /// The steps it performs, as indices into the plan.
    pub ops: std::ops::Range<usize>,
    marks: Vec<Mark>,
}

/// From this byte of this message on, the bytes are of that step.
#[derive(Clone, Copy, Debug)]
struct Mark {
    seq: u32,
    offset: u32,
    op: usize,
}

impl Transaction {
    /// The step that an error speaks of, as an index into the plan.
    pub fn op_at(&self, seq: u32, offset: Option<u32>) -> Option<usize> {
        let of_message = || self.marks.iter().filter(|mark| mark.seq == seq);
        let exact = offset.and_then(|offset| of_message().take_while(|mark| mark.offset <= offset).last());
        exact.or_else(|| of_message().next()).map(|mark| mark.op)
    }

    /// Whether `seq` is of this transaction.
    pub fn contains(&self, seq: u32) -> bool {
        seq.wrapping_sub(self.first_seq) <= self.ack_seq.wrapping_sub(self.first_seq).wrapping_add(1)
    }
}

/// Yields a plan's transactions one by one, so that a big load never lies in memory whole.
#[derive(Debug)]
pub struct Transactions<'a> {
    plan: &'a Plan,
    known: &'a Ruleset,
    cuts: Cuts<'a>,
    next: usize,
    seq: u32,
    limit: usize,
}

impl<'a> Transactions<'a> {
    /// `known` tells the layout of sets that the plan does not add itself; `seq` must grow from plan to plan.
    pub fn new(plan: &'a Plan, known: &'a Ruleset, seq: u32, limit: usize) -> Self {
        Self { plan, known, cuts: Cuts::new(plan, known), next: 0, seq, limit }
    }

    /// The sequence number after the last used one.
    pub fn next_seq(&self) -> u32 {
        self.seq
    }

    /// How many steps from `at` on must stay together: two for a changed element.
    fn together(&self, at: usize) -> usize {
        match (self.plan.ops.get(at), self.plan.ops.get(at + 1)) {
            (
                Some(Op::DeleteElement { table, set, .. }),
                Some(Op::AddElement { table: next_table, set: next_set, .. }),
            ) if table == next_table && set == next_set => 2,
            _ => 1,
        }
    }
}

impl Iterator for Transactions<'_> {
    type Item = Result<Transaction, EncodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.plan.ops.len() {
            return None;
        }
        let mut batch = Batch::begin(self.seq);
        let first = self.next;
        self.cuts.begin();
        while self.next < self.plan.ops.len() {
            let before = batch.position();
            let until = self.next + self.together(self.next);
            if self.plan.ops.get(self.next..until).is_some_and(|steps| self.cuts.before(steps)) {
                break;
            }
            for at in self.next..until {
                if let Err(error) = batch.step(at, self.plan, self.known) {
                    self.next = self.plan.ops.len();
                    return Some(Err(error));
                }
            }
            // One step alone may exceed the limit: then the kernel decides.
            if batch.writer.len() > self.limit && self.next > first {
                batch.back_to(before);
                break;
            }
            self.next = until;
        }
        let (transaction, seq) = batch.commit(first..self.next);
        self.seq = seq;
        Some(Ok(transaction))
    }
}

/// A transaction in the making.
struct Batch {
    writer: Writer,
    first_seq: u32,
    marks: Vec<Mark>,
    position: Position,
    /// The layout of the set that elements were last written for.
    shape: Option<(TableId, String, Shape)>,
}

#[derive(Clone, Copy)]
struct Position {
    length: usize,
    marks: usize,
    /// Of the next message.
    seq: u32,
    last: Open,
    list: Option<List>,
}

/// An open list of elements, to which more of the same set may be added.
#[derive(Clone, Copy)]
struct List {
    nest: Open,
    kind: u16,
}

impl Batch {
    fn begin(seq: u32) -> Self {
        let mut writer = Writer::default();
        let last = nfnetlink::open(&mut writer, Head { kind: BEGIN, flags: 0, seq }, (0, SUBSYSTEM));
        let position = Position { length: 0, marks: 0, seq: seq.wrapping_add(1), last, list: None };
        Self { writer, first_seq: seq, marks: Vec::new(), position, shape: None }
    }

    fn position(&self) -> Position {
        Position { length: self.writer.len(), marks: self.marks.len(), ..self.position }
    }

    fn back_to(&mut self, position: Position) {
        self.writer.truncate(position.length);
        self.marks.truncate(position.marks);
        self.position = position;
        self.close();
    }

    /// Writes the lengths of the message that is open.
    fn close(&mut self) {
        if let Some(list) = self.position.list {
            self.writer.close_nest(list.nest);
        }
        self.writer.close_message(self.position.last);
    }

    fn commit(mut self, ops: std::ops::Range<usize>) -> (Transaction, u32) {
        self.close();
        self.writer.add_flags(self.position.last, flags::ACK);
        let end = Head { kind: COMMIT, flags: 0, seq: self.position.seq };
        nfnetlink::open(&mut self.writer, end, (0, SUBSYSTEM));
        let ack_seq = self.position.seq.wrapping_sub(1);
        let next = self.position.seq.wrapping_add(1);
        let (bytes, marks) = (self.writer.into_bytes(), self.marks);
        (Transaction { bytes, first_seq: self.first_seq, ack_seq, ops, marks }, next)
    }

    fn message(&mut self, op: usize, kind: u16, flags: u16, family: TableFamily) {
        self.close();
        let head = Head { kind, flags, seq: self.position.seq };
        self.position.last = nfnetlink::open(&mut self.writer, head, (family_number(family), 0));
        self.marks.push(Mark { seq: self.position.seq, offset: 0, op });
        self.position.seq = self.position.seq.wrapping_add(1);
        self.position.list = None;
    }

    /// A message that names an object of a table by attribute 1 and, mostly, another.
    fn named(&mut self, op: usize, (kind, flags): (u16, u16), table: &TableId, name: Option<(u16, &str)>) {
        self.message(op, kind, flags, table.family);
        self.writer.text(1, &table.name);
        if let Some((attribute, name)) = name {
            self.writer.text(attribute, name);
        }
    }

    fn step(&mut self, at: usize, plan: &Plan, known: &Ruleset) -> Result<(), EncodeError> {
        let Some(op) = plan.ops.get(at) else { return Ok(()) };
        match op {
            Op::AddTable(table) => self.named(at, (NEWTABLE, flags::CREATE), table, None),
            Op::DeleteTable(table) => self.named(at, (DELTABLE, 0), table, None),
            Op::AddChain { table, chain, base } => {
                self.named(at, (NEWCHAIN, flags::CREATE), table, Some((3, chain)));
                if let Some(base) = base {
                    encode_base(&mut self.writer, base);
                }
            }
            Op::DeleteChain { table, chain } => self.named(at, (DELCHAIN, 0), table, Some((3, chain))),
            Op::SetRules { table, chain, rules } => self.rules(at, table, chain, rules)?,
            Op::AddSet { table, set, layout } => {
                self.named(at, (NEWSET, flags::CREATE), table, Some((2, set)));
                set::encode_layout(&mut self.writer, layout, self.position.seq);
                self.shape = None;
            }
            Op::DeleteSet { table, set, .. } => self.named(at, (DELSET, 0), table, Some((2, set))),
            Op::AddElement { table, set, key, data } => {
                let shape = self.shape_of(at, (table, set), plan, known)?;
                self.list(at, (NEWSETELEM, flags::CREATE), table, set);
                set::encode_element(&mut self.writer, key, data, shape);
            }
            Op::DeleteElement { table, set, key } => {
                let shape = self.shape_of(at, (table, set), plan, known)?;
                self.list(at, (DELSETELEM, 0), table, set);
                set::encode_element(&mut self.writer, key, &ElemData::None, shape);
            }
        }
        Ok(())
    }

    fn rules(&mut self, at: usize, table: &TableId, chain: &str, rules: &[Rule]) -> Result<(), EncodeError> {
        self.named(at, (DELRULE, 0), table, Some((2, chain)));
        for rule in rules {
            let at_fault = || (table.clone(), chain.to_owned());
            if rule.comment.len() > COMMENT_LIMIT {
                let (table, chain) = at_fault();
                return Err(EncodeError::CommentTooLong { table, chain, length: rule.comment.len() });
            }
            self.named(at, (NEWRULE, flags::CREATE | flags::APPEND), table, Some((2, chain)));
            let list = self.writer.open_nest(4);
            for expr in &rule.exprs {
                expr::encode(&mut self.writer, expr, table.family);
            }
            if self.writer.len() - list.0 > usize::from(u16::MAX) {
                let (table, chain) = at_fault();
                return Err(EncodeError::RuleTooLong { table, chain });
            }
            self.writer.close_nest(list);
            if !rule.comment.is_empty() {
                self.writer.bytes(7, &encode_comment(&rule.comment));
            }
        }
        Ok(())
    }

    /// Opens a list of elements, or goes on with the one that is open.
    fn list(&mut self, at: usize, (kind, flags): (u16, u16), table: &TableId, set: &str) {
        let same = self.shape.as_ref().is_some_and(|(t, s, _)| t == table && s == set);
        if let Some(list) = self.position.list
            && same
            && list.kind == kind
            && self.writer.len() - list.nest.0 < LIST_LIMIT
        {
            let offset = (self.writer.len() - self.position.last.0) as u32;
            self.marks.push(Mark { seq: self.position.seq.wrapping_sub(1), offset, op: at });
            return;
        }
        self.named(at, (kind, flags), table, Some((2, set)));
        let nest = self.writer.open_nest(3);
        self.position.list = Some(List { nest, kind });
    }

    /// How the set writes ranges: by the plan's own steps before this one, else by what is known, else by the step that
    /// deletes it later.
    fn shape_of(
        &mut self,
        at: usize,
        (table, name): (&TableId, &str),
        plan: &Plan,
        known: &Ruleset,
    ) -> Result<Shape, EncodeError> {
        if let Some((t, s, shape)) = &self.shape
            && t == table
            && s == name
        {
            return Ok(*shape);
        }
        // An open list is of another set: the next element opens its own.
        self.close();
        self.position.list = None;
        let before = plan.ops.get(..at).unwrap_or(&[]);
        let added = before.iter().rev().find_map(|op| match op {
            Op::AddSet { table: t, set, layout } if t == table && **set == *name => Some(layout.as_ref()),
            _ => None,
        });
        let deleted = || {
            plan.ops.get(at..).unwrap_or(&[]).iter().find_map(|op| match op {
                Op::DeleteSet { table: t, set, layout } if t == table && **set == *name => {
                    Some(layout.as_ref())
                }
                _ => None,
            })
        };
        let there = added.or_else(|| known.tables.get(table)?.sets.get(name));
        let set: Option<&Set> = there.or_else(deleted);
        let shape = match (set, plan.ops.get(at)) {
            (Some(set), _) => Some(Shape::of(set)),
            (None, Some(Op::AddElement { key, .. } | Op::DeleteElement { key, .. })) => Shape::by_key(key),
            (None, _) => None,
        };
        let Some(shape) = shape else {
            let op = plan.ops.get(at).map(Op::to_string).unwrap_or_default();
            return Err(EncodeError::UnknownSet { op, set: format!("{table} {name}") });
        };
        self.shape = Some((table.clone(), name.to_owned(), shape));
        Ok(shape)
    }
}

fn encode_base(w: &mut Writer, base: &BaseChain) {
    w.nest(4, |w| {
        w.be32(1, hook_number(base.hook));
        w.be32(2, base.priority as u32);
    });
    w.text(7, &base.kind.to_string());
    w.be32(5, u32::from(!base.drop));
}

/// NF_INET_*.
fn hook_number(hook: Hook) -> u32 {
    match hook {
        Hook::Prerouting => 0,
        Hook::Input => 1,
        Hook::Forward => 2,
        Hook::Output => 3,
        Hook::Postrouting => 4,
    }
}

/// The base of a NEWCHAIN with a hook; `None` for kinds and hooks that are none of ours.
pub fn decode_base(hook: &[u8], kind: &str, policy: Option<u32>) -> Option<BaseChain> {
    let number = nfnetlink::find(hook, 1).and_then(nfnetlink::be32)?;
    let hooks = [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting];
    let kinds = [ChainKind::Filter, ChainKind::Nat, ChainKind::Route];
    Some(BaseChain {
        kind: kinds.into_iter().find(|known| known.to_string() == kind)?,
        hook: hooks.into_iter().find(|known| hook_number(*known) == number)?,
        priority: nfnetlink::find(hook, 2).and_then(nfnetlink::be32)? as i32,
        drop: policy == Some(0),
    })
}

/// NFTNL_UDATA_RULE_COMMENT: type 0, length, text with its zero.
fn encode_comment(comment: &str) -> Vec<u8> {
    let mut bytes = vec![0, (comment.len() + 1) as u8];
    bytes.extend(comment.as_bytes());
    bytes.push(0);
    bytes
}

/// The comment in a rule's userdata, if there is one.
pub fn decode_comment(mut userdata: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = userdata {
        let (value, tail) = rest.split_at_checked(usize::from(*length))?;
        if *kind == 0 {
            return crate::nfnetlink::text(value).map(str::to_owned);
        }
        userdata = tail;
    }
    None
}
