//! How many connections are known, how many may be, and what became of packets that could not be tracked.

use super::{GET_STATS, GET_STATS_CPU};
use crate::message::{Attribute, Head, Message, Writer, attributes, flags};
use crate::nfnetlink;

/// Of the socket's network namespace; the limit is the machine's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub entries: u32,
    /// Of each namespace for itself. 0: there is none (`net.netfilter.nf_conntrack_max=0`).
    pub limit: u32,
}

/// What one processor has counted in the socket's network namespace since that was made. Each is a `u32` of the kernel,
/// which begins again at 0 after its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Packets that could not be tracked: malformed, or of a protocol's state that nothing is known of.
    pub invalid: u64,
    /// Entries that could not be inserted, mostly since another packet was faster.
    pub insert_failed: u64,
    /// Packets that were dropped because there was no entry for them: the table was full, or memory was.
    pub drop: u64,
    /// Entries of connections that were not yet answered, which made room for others in a full table.
    pub early_drop: u64,
}

/// Asks for [`Usage`]: one message.
pub fn ask_usage(writer: &mut Writer, seq: u32) {
    let message = nfnetlink::open(writer, Head { kind: GET_STATS, flags: 0, seq }, (0, 0));
    writer.close_message(message);
}

/// Asks for [`Counted`]: a message for each processor.
pub fn ask_counted(writer: &mut Writer, seq: u32) {
    let message = nfnetlink::open(writer, Head { kind: GET_STATS_CPU, flags: flags::DUMP, seq }, (0, 0));
    writer.close_message(message);
}

/// The attribute, if the message is of this kind and has it.
fn number(message: &Message<'_>, kind: u16, of: u16) -> Option<u32> {
    let (_, attrs) = nfnetlink::split(message).filter(|_| message.kind == of)?;
    attributes(attrs).find(kind).and_then(|attribute: Attribute<'_>| attribute.be32())
}

impl Usage {
    /// `None` for other messages. CTA_STATS_GLOBAL_MAX_ENTRIES is there from Linux 4.18 on.
    pub fn decode(message: &Message<'_>) -> Option<Self> {
        let number = |kind| number(message, kind, GET_STATS);
        Some(Self { entries: number(1)?, limit: number(2).unwrap_or(0) })
    }
}

impl Counted {
    /// `None` for other messages. Numbers of enum ctattr_stats_cpu.
    pub fn decode(message: &Message<'_>) -> Option<Self> {
        let number = |kind| number(message, kind, GET_STATS_CPU).map(u64::from);
        Some(Self {
            invalid: number(4)?,
            insert_failed: number(9)?,
            drop: number(10)?,
            early_drop: number(11)?,
        })
    }
}

impl std::iter::Sum for Counted {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            invalid: sum.invalid + one.invalid,
            insert_failed: sum.insert_failed + one.insert_failed,
            drop: sum.drop + one.drop,
            early_drop: sum.early_drop + one.early_drop,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::messages;

    /// As the kernel answers: the kind of the question, numbers in network byte order.
    fn answer(kind: u16, numbers: &[(u16, u32)]) -> Vec<u8> {
        let mut writer = Writer::new();
        let message = nfnetlink::open(&mut writer, Head { kind, flags: 0, seq: 1 }, (0, 0));
        numbers.iter().for_each(|(kind, number)| writer.be32(*kind, *number));
        writer.close_message(message);
        writer.as_bytes().to_vec()
    }

    fn read<T>(bytes: &[u8], decode: fn(&Message<'_>) -> Option<T>) -> Option<T> {
        messages(bytes).next().and_then(|message| decode(&message))
    }

    #[test]
    fn numbers_are_read_by_their_kind() {
        let usage = answer(GET_STATS, &[(1, 7), (2, 65536)]);
        assert_eq!(read(&usage, Usage::decode), Some(Usage { entries: 7, limit: 65536 }));
        let counted = answer(GET_STATS_CPU, &[(2, 1), (4, 3), (8, 1), (9, 4), (10, 5), (11, 6), (12, 1)]);
        let one = Counted { invalid: 3, insert_failed: 4, drop: 5, early_drop: 6 };
        assert_eq!(read(&counted, Counted::decode), Some(one));
        assert_eq!((read(&usage, Counted::decode), read(&counted, Usage::decode)), (None, None));
        assert_eq!(
            [one, one].into_iter().sum::<Counted>(),
            Counted { invalid: 6, insert_failed: 8, drop: 10, early_drop: 12 }
        );
    }
}
