//! nf_tables over nfnetlink: plans as transactions, dumps as rulesets, and the kernel's notifications.
//! Numbers are those of include/uapi/linux/netfilter/nf_tables.h.

mod counted;
mod cuts;
mod decode;
mod encode;
mod event;
mod expr;
mod request;
mod set;

pub use counted::{CountedRule, counted_elements, counted_rule};
pub use decode::{Dump, Handles};
pub use encode::{EncodeError, STOCK_LIMIT, Transaction, Transactions};
pub use event::{Change, Trace, TraceKind, TraceVerdict, touches};
pub use request::Request;

use kstate::nft::{TableFamily, Verdict};

use crate::message::Writer;
use crate::nfnetlink;

/// nfnetlink's subsystem in the high byte, the message in the low one.
const fn message(number: u16) -> u16 {
    (10 << 8) | number
}

const NEWTABLE: u16 = message(0);
const GETTABLE: u16 = message(1);
const DELTABLE: u16 = message(2);
const NEWCHAIN: u16 = message(3);
const GETCHAIN: u16 = message(4);
const DELCHAIN: u16 = message(5);
const NEWRULE: u16 = message(6);
const GETRULE: u16 = message(7);
const DELRULE: u16 = message(8);
const NEWSET: u16 = message(9);
const GETSET: u16 = message(10);
const DELSET: u16 = message(11);
const NEWSETELEM: u16 = message(12);
const GETSETELEM: u16 = message(13);
const DELSETELEM: u16 = message(14);
/// The type of the notification that ends a transaction: who changed the ruleset.
pub const NEWGEN: u16 = message(15);
const GETGEN: u16 = message(16);
const TRACE: u16 = message(17);

fn family_number(family: TableFamily) -> u8 {
    match family {
        TableFamily::Inet => 1,
        TableFamily::Ip => 2,
        TableFamily::Bridge => 7,
        TableFamily::Ip6 => 10,
    }
}

fn family_of(number: u8) -> Option<TableFamily> {
    [TableFamily::Ip, TableFamily::Ip6, TableFamily::Inet, TableFamily::Bridge]
        .into_iter()
        .find(|family| family_number(*family) == number)
}

const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;

fn verdict_code(verdict: &Verdict) -> i32 {
    match verdict {
        Verdict::Drop => 0,
        Verdict::Accept => 1,
        Verdict::Jump(_) => -3,
        Verdict::Goto(_) => -4,
        Verdict::Return => -5,
    }
}

/// NFTA_DATA_VERDICT { code, chain }.
fn write_verdict(writer: &mut Writer, verdict: &Verdict) {
    writer.nest(DATA_VERDICT, |w| {
        w.be32(1, verdict_code(verdict) as u32);
        if let Some(chain) = kstate::nft::targets(verdict) {
            w.text(2, chain);
        }
    });
}

/// Code and chain of a NFTA_DATA_VERDICT.
fn read_verdict(bytes: &[u8]) -> Option<Result<Verdict, i32>> {
    let code = nfnetlink::be32(nfnetlink::find(bytes, 1)?)? as i32;
    let chain = || nfnetlink::find(bytes, 2).and_then(nfnetlink::text).map(str::to_owned);
    Some(Ok(match code {
        0 => Verdict::Drop,
        1 => Verdict::Accept,
        -3 => Verdict::Jump(chain()?),
        -4 => Verdict::Goto(chain()?),
        -5 => Verdict::Return,
        other => return Some(Err(other)),
    }))
}
