//! nf_tables: observe the tables that are ours, apply plans, and listen: who changed the ruleset, and which rules
//! a traced packet meets.
//!
//! A plan goes out in transactions that fit a stock socket buffer. The kernel performs each whole or not at all,
//! and answers before `send` returns, so what failed is known at once, by sequence number and offset.

use std::collections::BTreeMap;

use kstate::nft::{Asked, Bytes, ElemData, ElemKey, Plan, Ruleset, TableId};
use netlink::message::Message;
use netlink::nft::{
    Change, CountedRule, Dump, EncodeError, Handles, Request, STOCK_LIMIT, Transaction, Transactions,
};
use thiserror::Error;

use crate::error::{Error, hint};
use crate::netns::Netns;
use crate::socket::{Consistency, NetlinkSocket, Received, Subsystem};

mod listen;

pub use listen::{Changes, ForeignChanges, Notice, TraceEvents};

/// A ruleset that somebody keeps changing is given up after so many tries.
const TRIES: usize = 10;
const CHANGING: &str = "somebody changed the ruleset during each of 10 tries; `nft monitor` shows who";

/// A plan was not carried out whole. Steps before `done` are in the kernel, which [`kstate::nft::diff`] orders
/// to be a safe state; observe and diff again to go on.
#[derive(Debug, Error)]
pub enum ApplyError {
    #[error(
        "nf_tables refused to {op}: {answer}{}{}",
        detail.as_deref().map(|d| format!(" ({d})")).unwrap_or_default(),
        cause(answer)
    )]
    Refused { op: String, done: usize, answer: std::io::Error, detail: Option<String> },
    /// Who may not speak to nf_tables at all is refused no single step.
    #[error(
        "nf_tables refused to {op}: {answer}; likely another program owns the table (`flags owner`), which goes when that \
         program ends"
    )]
    Owned { op: String, done: usize, answer: std::io::Error },
    #[error("nf_tables did not answer whether it did: {op}; observe again")]
    Unanswered { op: String, done: usize },
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error(transparent)]
    Socket(#[from] Error),
}

impl ApplyError {
    /// The kernel's error number, where there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { answer, .. } | Self::Owned { answer, .. } => answer.raw_os_error(),
            Self::Socket(error) => error.errno(),
            Self::Unanswered { .. } | Self::Encode(_) => None,
        }
    }
}

fn cause(error: &std::io::Error) -> String {
    let likely = match error.raw_os_error() {
        Some(libc::ENOENT) => {
            "; likely somebody removed what it names, or the kernel lacks an expression: observe and diff again"
        }
        Some(libc::EEXIST) => "; likely somebody added it with other contents: observe and diff again",
        Some(libc::EBUSY) => {
            "; likely something that is not ours still uses it (`nft list ruleset` shows what)"
        }
        Some(libc::ENFILE | libc::ENOSPC) => "; the set is full: raise its size",
        Some(libc::ELOOP | libc::EMLINK) => "; chains lead in a circle or too deep",
        Some(libc::ERESTART) => "; the ruleset changed meanwhile: observe and diff again",
        Some(libc::EMSGSIZE) => "; a single step is larger than the socket's buffer: raise net.core.wmem_max",
        _ => return hint("", error),
    };
    likely.to_owned()
}

/// What the kernel holds: the tables asked for that exist, and the numbers of their rules.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    pub ruleset: Ruleset,
    pub handles: Handles,
    /// Raised by every transaction of anybody in this network namespace.
    pub generation: u32,
}

impl Observed {
    /// The rule that a trace event names.
    pub fn rule(&self, table: &TableId, chain: &str, handle: u64) -> Option<&kstate::nft::Rule> {
        let key = (table.clone(), chain.to_owned());
        let index = self.handles.get(&key)?.iter().position(|known| *known == handle)?;
        self.ruleset.tables.get(table)?.chains.get(chain)?.rules.get(index)
    }
}

/// An nf_tables socket in one network namespace.
#[derive(Debug)]
pub struct Nft {
    socket: NetlinkSocket,
    portid: u32,
    limit: usize,
    committed: u32,
}

fn changing() -> Error {
    Error::Answer { what: "observe the nf_tables ruleset".into(), why: CHANGING.into() }
}

impl Nft {
    /// In the namespace of the calling thread.
    pub fn open() -> Result<Self, Error> {
        let socket = NetlinkSocket::open(Subsystem::Netfilter)?;
        let portid = socket.bind()?;
        Ok(Self { socket, portid, limit: STOCK_LIMIT, committed: 0 })
    }

    /// In another namespace; the socket stays there and may be used from anywhere.
    pub fn open_in(netns: &Netns) -> Result<Self, Error> {
        netns.run(Self::open)?
    }

    /// Makes the send buffer what an ordinary user has on a stock system, whoever we are: a load that works with
    /// it works everywhere.
    pub fn stock_send_buffer(&self) -> Result<(), Error> {
        // The kernel doubles what it is asked for.
        rustix::net::sockopt::set_socket_send_buffer_size(&self.socket, 212_992 / 2)
            .map_err(|error| Error::system("set the send buffer", error))
    }

    /// What [`Change::portid`] says of our own changes.
    pub fn portid(&self) -> u32 {
        self.portid
    }

    /// How many transactions of this socket the kernel took: as often we ourselves have raised
    /// [`Nft::generation`].
    pub fn committed(&self) -> u32 {
        self.committed
    }

    /// The given tables as they are at one moment; those that do not exist are left out.
    pub fn observe(&mut self, tables: &[TableId]) -> Result<Observed, Error> {
        self.observe_while(tables, &|| true)?.ok_or_else(changing)
    }

    /// The same, as long as this holds: it is asked between one question to the kernel and the next. `None`: given up.
    pub fn observe_while(
        &mut self,
        tables: &[TableId],
        go_on: &dyn Fn() -> bool,
    ) -> Result<Option<Observed>, Error> {
        for _ in 0..TRIES {
            let before = self.generation()?;
            let dump = self.dump(tables, go_on)?;
            if !go_on() {
                return Ok(None);
            }
            if let Some(dump) = dump
                && self.generation()? == before
                && !dump.tells_an_element_twice()
            {
                let (ruleset, handles) = dump.finish();
                return Ok(Some(Observed { ruleset, handles, generation: before }));
            }
        }
        Err(changing())
    }

    /// The chains of a table, whoever made it, without their rules; `None`: there is no such table.
    pub fn chains(&mut self, table: &TableId) -> Result<Option<BTreeMap<String, kstate::nft::Chain>>, Error> {
        let mut dump = Dump::default();
        for request in [Request::Table(table), Request::Chains(table)] {
            match self.take(request, &mut dump) {
                Ok(_) => {}
                Err(error) if error.errno() == Some(libc::ENOENT) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        let (mut ruleset, _) = dump.finish();
        Ok(ruleset.tables.remove(table).map(|table| table.chains))
    }

    /// What the packet path has put into a dynamic set, each with its time: [`Nft::observe`] leaves it out.
    ///
    /// A set that grows moves its elements to more buckets meanwhile, and a dump passes over those that move
    /// (nft_rhash_walk, net/netfilter/nft_set_hash.c): it is asked until it tells nothing new.
    pub fn remembered(&mut self, table: &TableId, set: &str) -> Result<BTreeMap<ElemKey, ElemData>, Error> {
        let mut found = BTreeMap::new();
        for _ in 0..TRIES {
            let mut dump = Dump::default();
            for request in [Request::Table(table), Request::Elements(table, set)] {
                self.take(request, &mut dump)?;
            }
            let before = found.len();
            found.extend(dump.remembered(table, set));
            if found.len() == before {
                break;
            }
        }
        Ok(found)
    }

    /// The rules of a table that count, in no order, and what they have counted; none of a table that is not there.
    /// What is asked for grows with rules, not with the elements of sets.
    pub fn counted_rules(&mut self, table: &TableId) -> Result<Vec<CountedRule>, Error> {
        self.counted(table, Request::Rules(table))
    }

    /// The same of one chain, whatever else the table has.
    pub fn counted_rules_of(&mut self, table: &TableId, chain: &str) -> Result<Vec<CountedRule>, Error> {
        self.counted(table, Request::RulesOf(table, chain))
    }

    /// The kernel narrows the answer to the table, and says nothing of one that it has not.
    fn counted(&mut self, table: &TableId, request: Request<'_>) -> Result<Vec<CountedRule>, Error> {
        for _ in 0..TRIES {
            let mut found = Vec::new();
            let taken = self.ask(request, |message| found.extend(netlink::nft::counted_rule(message)))?;
            if taken == Consistency::Exact {
                found.retain(|rule| rule.table == *table);
                return Ok(found);
            }
        }
        Err(Error::Answer { what: format!("read the counters of {table}"), why: CHANGING.into() })
    }

    /// The elements of a set that count, and what they have counted; none of a set that is not there.
    pub fn counted_elements(&mut self, table: &TableId, set: &str) -> Result<Vec<(Bytes, u64)>, Error> {
        let mut found = Vec::new();
        let asked = self.ask(Request::Elements(table, set), |message| {
            found.extend(netlink::nft::counted_elements(message));
        });
        match asked {
            Ok(_) => Ok(found),
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// The number that every transaction raises.
    pub fn generation(&mut self) -> Result<u32, Error> {
        let mut generation = None;
        self.ask(Request::Generation, |message| {
            generation = Change::decode(message).map(|change| change.generation).or(generation);
        })?;
        generation.ok_or_else(|| Error::Answer {
            what: "ask for the generation of the nf_tables ruleset".into(),
            why: "there was none".into(),
        })
    }

    /// `None` when the ruleset changed meanwhile, or this no longer holds.
    fn dump(&mut self, tables: &[TableId], go_on: &dyn Fn() -> bool) -> Result<Option<Dump>, Error> {
        let mut dump = Dump::default();
        for table in tables {
            match self.take(Request::Table(table), &mut dump) {
                Ok(_) => {}
                Err(error) if error.errno() == Some(libc::ENOENT) => continue,
                Err(error) => return Err(error),
            }
            for request in [Request::Chains(table), Request::Rules(table), Request::Sets(table)] {
                if !go_on() || !self.take_whole(request, &mut dump)? {
                    return Ok(None);
                }
            }
        }
        for (table, set) in dump.sets() {
            if !go_on() || !self.take_whole(Request::Elements(&table, &set), &mut dump)? {
                return Ok(None);
            }
        }
        Ok(Some(dump))
    }

    /// `false` when the ruleset changed meanwhile.
    fn take_whole(&mut self, request: Request<'_>, dump: &mut Dump) -> Result<bool, Error> {
        match self.take(request, dump) {
            Ok(consistency) => Ok(consistency == Consistency::Exact),
            // What was there a moment ago is gone, or the kernel gave up in the middle.
            Err(error) if matches!(error.errno(), Some(libc::ENOENT | libc::EINTR)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn take(&mut self, request: Request<'_>, dump: &mut Dump) -> Result<Consistency, Error> {
        let mut failed = None;
        let consistency = self.ask(request, |message| {
            if let Err(error) = dump.take(message) {
                failed = Some(error);
            }
        })?;
        match failed {
            Some(error) => Err(Error::Answer { what: format!("read {request:?}"), why: error.to_string() }),
            None => Ok(consistency),
        }
    }

    fn ask(
        &mut self,
        request: Request<'_>,
        mut each: impl FnMut(&Message<'_>),
    ) -> Result<Consistency, Error> {
        let what = format!("nf_tables: {request:?}");
        if request.is_dump() {
            return self.socket.dump(
                &what,
                |writer, seq| request.encode(writer, seq),
                |message| each(&message),
            );
        }
        let seq = self.socket.next_seq();
        self.socket.ask(&what, seq, |writer| request.encode(writer, seq), |message| each(&message))?;
        Ok(Consistency::Exact)
    }

    /// Carries the plan out. `known` tells the layouts of sets that the plan does not add itself: the actual or
    /// the desired state. What was done before an error stays.
    pub fn apply(&mut self, plan: &Plan, known: &Ruleset) -> Result<(), ApplyError> {
        let mut transactions = Transactions::new(plan, known, self.socket.next_seq(), self.limit);
        while let Some(transaction) = transactions.next() {
            let transaction = transaction?;
            self.socket.skip_to(transactions.next_seq());
            self.commit(&transaction, (plan, known))?;
            self.committed = self.committed.wrapping_add(1);
        }
        Ok(())
    }

    fn commit(
        &mut self,
        transaction: &Transaction,
        (plan, known): (&Plan, &Ruleset),
    ) -> Result<(), ApplyError> {
        let done = transaction.ops.start;
        let op_text = |index: Option<usize>| match index.and_then(|index| plan.ops.get(index)) {
            Some(op) => Asked { op, known }.to_string(),
            None => format!("commit steps {} to {} of the plan", done, transaction.ops.end),
        };
        self.socket.send(&transaction.bytes).map_err(|error| match error.errno() {
            Some(errno @ (libc::EMSGSIZE | libc::ENOBUFS)) => ApplyError::Refused {
                op: op_text(Some(done)),
                done,
                answer: std::io::Error::from_raw_os_error(errno),
                detail: Some(format!("{} bytes in one transaction", transaction.bytes.len())),
            },
            _ => error.into(),
        })?;
        let (mut answered, mut refusal) = (false, None);
        let received = self.socket.drain(|message| {
            let Some(ack) = message.ack().filter(|_| transaction.contains(message.seq)) else { return };
            answered |= message.seq == transaction.ack_seq;
            if ack.errno != 0 && refusal.is_none() {
                refusal = Some((transaction.op_at(message.seq, ack.offset), ack));
            }
        })?;
        match refusal {
            Some((at, ack)) => {
                let (op, answer) = (op_text(at), std::io::Error::from_raw_os_error(ack.errno));
                Err(match (at, ack.errno) {
                    (Some(_), libc::EPERM) => ApplyError::Owned { op, done, answer },
                    _ => ApplyError::Refused { op, done, answer, detail: ack.detail },
                })
            }
            None if answered && received != Received::Overrun => Ok(()),
            None => Err(ApplyError::Unanswered { op: op_text(None), done }),
        }
    }
}
