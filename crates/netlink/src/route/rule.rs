//! Rules that choose the table of routes: RTM_GETRULE, and the notice of one. Plumb makes none.

use std::fmt;

use types::{Family, IfName, IpNet};

use super::{AF_INET, AF_INET6, RTM_GETRULE, head};
use crate::message::{Attributes, Message, Writer, flags, u32_at};

const FRA_DST: u16 = 1;
const FRA_SRC: u16 = 2;
const FRA_IIFNAME: u16 = 3;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_TABLE: u16 = 15;
const FRA_OIFNAME: u16 = 17;
const FRA_L3MDEV: u16 = 19;
const FRA_UID_RANGE: u16 = 20;
const INVERTED: u32 = 2;
const LENGTH: usize = 12; // struct fib_rule_hdr

/// What follows for a packet that a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleAction {
    Table(u32),
    /// `blackhole`, `unreachable`, `prohibit`
    End(&'static str),
    /// Another rule is next, or nothing follows.
    Nothing,
}

/// A rule as the kernel tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleRow {
    pub family: Family,
    pub priority: u32,
    pub from: Option<IpNet>,
    pub to: Option<IpNet>,
    pub iif: Option<IfName>,
    /// About packets with a mark.
    pub marked: bool,
    /// Not about what is forwarded, or about what a link's own table is for.
    pub aside: bool,
    /// About all but what it says.
    pub inverted: bool,
    /// Routes of its table with a prefix up to this one do not count.
    pub suppress: Option<u32>,
    pub action: RuleAction,
}

impl fmt::Display for RuleRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = [
            self.inverted.then(|| "not".to_owned()),
            self.from.map(|from| format!("from {from}")),
            self.to.map(|to| format!("to {to}")),
            self.iif.as_ref().map(|iif| format!("iif {iif}")),
            self.marked.then(|| "fwmark …".to_owned()),
            match self.action {
                RuleAction::Table(table) => Some(format!("lookup {table}")),
                RuleAction::End(word) => Some(word.to_owned()),
                RuleAction::Nothing => None,
            },
        ];
        f.write_str(&words.into_iter().flatten().collect::<Vec<_>>().join(" "))
    }
}

pub fn dump_rules(writer: &mut Writer, seq: u32, family: Family) {
    let family = family.pick([AF_INET, AF_INET6]);
    writer.message(head(RTM_GETRULE, flags::DUMP, seq), |writer| {
        writer.raw(&[family, 0, 0, 0, 0, 0, 0, 0]);
        writer.raw(&[0; 4]);
    });
}

pub fn decode_rule(message: &Message<'_>) -> Option<RuleRow> {
    let (fixed, attributes) = message.split(LENGTH)?;
    let &[family, to, from, _, table, _, _, action] = fixed.first_chunk::<8>()?;
    let family = match family {
        AF_INET => Family::V4,
        AF_INET6 => Family::V6,
        _ => return None,
    };
    let has = |kind| attributes.find(kind).is_some();
    let number = |kind| attributes.find(kind).and_then(|attribute| attribute.u32());
    let action = match action {
        1 => RuleAction::Table(number(FRA_TABLE).unwrap_or_else(|| table.into())),
        6 => RuleAction::End("blackhole"),
        7 => RuleAction::End("unreachable"),
        8 => RuleAction::End("prohibit"),
        _ => RuleAction::Nothing,
    };
    Some(RuleRow {
        family,
        priority: number(FRA_PRIORITY).unwrap_or(0),
        from: network(&attributes, FRA_SRC, from),
        to: network(&attributes, FRA_DST, to),
        iif: attributes.find(FRA_IIFNAME).and_then(|name| IfName::new(name.text()?).ok()),
        marked: number(FRA_FWMARK).is_some_and(|mark| mark != 0),
        aside: has(FRA_OIFNAME)
            || has(FRA_UID_RANGE)
            || attributes.find(FRA_L3MDEV).and_then(|on| on.u8()) == Some(1),
        inverted: u32_at(fixed, 8)? & INVERTED != 0,
        suppress: number(FRA_SUPPRESS_PREFIXLEN).filter(|length| *length != u32::MAX),
        action,
    })
}

fn network(attributes: &Attributes<'_>, kind: u16, length: u8) -> Option<IpNet> {
    IpNet::new(attributes.find(kind)?.ip()?, length).ok()
}
