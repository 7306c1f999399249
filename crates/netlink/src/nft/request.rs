//! Questions: what to ask for to see whole tables.

use kstate::nft::TableId;

use super::{GETCHAIN, GETGEN, GETRULE, GETSET, GETSETELEM, GETTABLE, family_number};
use crate::message::{Head, Writer, flags};
use crate::nfnetlink;

/// One question; all but `Table` and `Generation` are dumps that end with NLMSG_DONE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// The number that every transaction raises.
    Generation,
    /// One message, or ENOENT.
    Table(&'a TableId),
    /// Of the table's whole family: the kernel cannot narrow it.
    Chains(&'a TableId),
    Rules(&'a TableId),
    /// Of one chain; none where there is no such chain.
    RulesOf(&'a TableId, &'a str),
    Sets(&'a TableId),
    Elements(&'a TableId, &'a str),
}

impl Request<'_> {
    pub fn is_dump(&self) -> bool {
        !matches!(self, Self::Generation | Self::Table(_))
    }

    pub fn encode(&self, writer: &mut Writer, seq: u32) {
        let (kind, table) = match self {
            Self::Generation => (GETGEN, None),
            Self::Table(table) => (GETTABLE, Some(table)),
            Self::Chains(table) => (GETCHAIN, Some(table)),
            Self::Rules(table) | Self::RulesOf(table, _) => (GETRULE, Some(table)),
            Self::Sets(table) => (GETSET, Some(table)),
            Self::Elements(table, _) => (GETSETELEM, Some(table)),
        };
        let flags = if self.is_dump() { flags::DUMP } else { 0 };
        let family = table.map_or(0, |table| family_number(table.family));
        let open = nfnetlink::open(writer, Head { kind, flags, seq }, (family, 0));
        if let Some(table) = table {
            writer.text(1, &table.name);
        }
        // NFTA_SET_ELEM_LIST_SET, NFTA_RULE_CHAIN
        if let Self::Elements(_, name) | Self::RulesOf(_, name) = self {
            writer.text(2, name);
        }
        writer.close_message(open);
    }
}
