//! From a query's bytes to the answer's bytes. The way of nearly all queries is [`Zone::answer`] itself: parse,
//! fold, one hash lookup, copy; nothing is allocated. What is rare lives in [`cold`].

mod cold;
mod writer;

use crate::name::{MAX_NAME, Name, fold};
use crate::query::{Fault, OPT_LENGTH, Query, Rcode, Type};
use crate::zone::{RrSet, Zone};

pub use cold::plain_reply;
pub(crate) use writer::Writer;

/// How the query came, which bounds the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
}

impl Transport {
    fn limit(self, query: &Query<'_>) -> usize {
        match self {
            Self::Udp => query.udp_limit(),
            Self::Tcp => usize::from(u16::MAX),
        }
    }
}

/// What became of a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// So many bytes of the buffer are the answer.
    Answered(usize),
    /// Not the cluster's business: ask an upstream.
    Forward,
    /// The buffer holds an answer that ends in a CNAME out of the cluster: ask an upstream for `target` and add
    /// what it says, see [`crate::message::append`].
    Follow { length: usize, target: Name },
    /// No answer at all.
    Drop,
}

impl Zone {
    /// Answers one query into `out`, whose length also bounds the answer; 1,232 bytes always do for UDP.
    /// `chance` rotates sets of several records (DNS-26). Never panics, whatever the query.
    #[inline]
    pub fn answer(&self, query: &[u8], out: &mut [u8], transport: Transport, chance: u32) -> Outcome {
        if out.len() < SMALLEST {
            return Outcome::Drop;
        }
        let query = match Query::parse(query) {
            Ok(query) => query,
            Err(Fault::Drop) => return Outcome::Drop,
            Err(Fault::Reply { rcode, question }) => return cold::reject(query, out, rcode, question),
        };
        let mut folded = [0; MAX_NAME + 1];
        let name = fold(query.name, &mut folded);
        let mut writer = Writer::new(out, &query, transport.limit(&query));
        let Some(node) = self.nodes.get(name).filter(|_| self.synced) else {
            return cold::miss(self, &query, name, writer);
        };
        match node.set(query.kind) {
            Some(set) => {
                let start = writer.position();
                write_set(&mut writer, set, chance);
                if query.kind == Type::SRV && query.name != name {
                    cold::keep_case(self, &query, name, &mut writer, start);
                }
                Outcome::Answered(writer.finish(Rcode::NOERROR))
            }
            None => cold::no_data(self, &query, (name, node), writer, chance),
        }
    }
}

/// Every transport carries this much (RFC 1035 §4.2.1); in less, a long question alone would not fit.
const SMALLEST: usize = 512;

/// Copies a set beginning at a random record. As many whole records as fit are written, with TC if some do not:
/// resolvers that never retry over TCP (musl before 1.2.4) then still have addresses to use.
#[inline]
fn write_set(writer: &mut Writer<'_>, set: &RrSet, chance: u32) {
    let start = if set.count < 2 { 0 } else { chance as usize % set.count };
    match set.size {
        Some(size) => {
            let (head, tail) = set.records.split_at_checked(start * size).unwrap_or((&set.records, &[]));
            let rest = (writer.room() / size.max(1)).min(set.count);
            let first = rest.min(set.count - start);
            writer.answers(tail.get(..first * size).unwrap_or_default(), first);
            writer.answers(head.get(..(rest - first) * size).unwrap_or_default(), rest - first);
            if rest < set.count {
                writer.truncated();
            }
        }
        None => {
            for record in set.iter().skip(start).chain(set.iter().take(start)) {
                if record.len() > writer.room() {
                    writer.truncated();
                    break;
                }
                writer.answers(record, 1);
            }
        }
    }
    if !set.additional.is_empty() {
        writer.additional(&set.additional);
    }
}

/// Bytes kept free for the OPT.
fn reserve(query: &Query<'_>) -> usize {
    if query.edns.is_some() { OPT_LENGTH } else { 0 }
}

/// The pointer to `offset` within the question's name.
fn pointer(offset: usize) -> [u8; 2] {
    (0xc000 | (crate::query::HEADER + offset) as u16).to_be_bytes()
}

#[cfg(test)]
mod tests;
