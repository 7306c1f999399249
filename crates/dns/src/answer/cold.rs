//! The rarer ways of a query: faults, names that are not there, aliases, and names computed when asked.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Outcome, Writer, pointer, write_set};
use crate::name::{Name, labels, suffix_offset};
use crate::query::{HEADER, Query, Rcode, Type};
use crate::zone::{Node, RrSet, Zone};

/// Follow at most so many aliases (RFC 1034 leaves the number open; CoreDNS has 10).
const MAX_ALIASES: usize = 10;

const V4_TREE: &[u8] = b"\x07in-addr\x04arpa\0";
const V6_TREE: &[u8] = b"\x03ip6\x04arpa\0";

/// A reply to what could not be read as a query of ours; repeats `question` bytes of it.
#[cold]
pub fn reject(query: &[u8], out: &mut [u8], rcode: Rcode, question: usize) -> Outcome {
    let Some(asked) = query.first_chunk::<HEADER>() else { return Outcome::Drop };
    let question = query.get(HEADER..HEADER + question).unwrap_or_default();
    let bad_version = rcode == Rcode::BADVERS;
    // BADVERS is 16: it lives in the OPT (RFC 6891 §6.1.3).
    let opt: &[u8] = if bad_version { &[0, 0, 41, 4, 0xd0, 1, 0, 0, 0, 0, 0] } else { &[] };
    let length = HEADER + question.len() + opt.len();
    let Some(out) = out.get_mut(..length) else { return Outcome::Drop };
    let mut header = [0; HEADER];
    header[..2].copy_from_slice(&asked[..2]);
    header[2] = 0x80 | (asked[2] & 0x79);
    header[3] = rcode.0 as u8 & 0x0f;
    header[5] = u8::from(!question.is_empty());
    header[11] = u8::from(bad_version);
    let (head, tail) = out.split_at_mut(HEADER);
    head.copy_from_slice(&header);
    let (middle, end) = tail.split_at_mut(question.len());
    middle.copy_from_slice(question);
    end.copy_from_slice(opt);
    Outcome::Answered(length)
}

/// A reply with no records, such as SERVFAIL when no upstream answers. 0 if `query` cannot be read.
pub fn plain_reply(query: &[u8], out: &mut [u8], rcode: Rcode) -> usize {
    let Ok(query) = Query::parse(query) else { return 0 };
    let limit = out.len();
    let mut writer = Writer::new(out, &query, limit);
    writer.not_authoritative();
    writer.finish(rcode)
}

/// The name has no node, or nothing may be said yet.
#[cold]
pub fn miss(zone: &Zone, query: &Query<'_>, name: &[u8], mut writer: Writer<'_>) -> Outcome {
    let domain = &zone.settings.domain;
    let Some(offset) = suffix_offset(name, domain.wire()) else {
        return reverse_miss(zone, query, name, writer);
    };
    if !zone.synced {
        writer.authority(&zone.soa, pointer(offset));
        return Outcome::Answered(writer.finish(Rcode::SERVFAIL));
    }
    let node = pod_node(zone, name);
    if let Some(set) = node.as_ref().and_then(|node| node.set(query.kind)) {
        write_set(&mut writer, set, 0);
        return Outcome::Answered(writer.finish(Rcode::NOERROR));
    }
    writer.authority(&zone.soa, pointer(offset));
    Outcome::Answered(writer.finish(if node.is_some() { Rcode::NOERROR } else { Rcode::NXDOMAIN }))
}

/// What a pod's own name has: computed when it is asked for, also by an alias.
fn pod_node(zone: &Zone, name: &[u8]) -> Option<Node> {
    let address = pod_address(zone, name)?;
    Some(Node::of(RrSet::addresses(zone.settings.ttl, &[address])))
}

/// `10-244-2-9.shop.pod.<domain>`: the address that it spells, if the namespace exists (DNS-24, "insecure").
pub fn pod_address(zone: &Zone, name: &[u8]) -> Option<IpAddr> {
    let offset = suffix_offset(name, zone.pods.wire())?;
    let head = labels(name.get(..offset)?).collect::<Vec<_>>();
    let [text, _] = head.as_slice() else { return None };
    let namespace = name.get(text.len() + 1..)?;
    zone.nodes.get(namespace)?;
    let text = std::str::from_utf8(text).ok()?;
    let v4 = text.matches('-').count() == 3 && !text.contains("--");
    if v4 {
        text.replace('-', ".").parse::<Ipv4Addr>().ok().map(IpAddr::V4)
    } else {
        text.replace('-', ":").parse::<Ipv6Addr>().ok().map(IpAddr::V6)
    }
}

/// A reverse name nobody claims: NXDOMAIN in our ranges, else the upstream's business, as is every other name.
fn reverse_miss(zone: &Zone, query: &Query<'_>, name: &[u8], mut writer: Writer<'_>) -> Outcome {
    let Some(place) = reverse_place(zone, name) else {
        // Somebody else's recursion is not asked for without RD.
        return match query.recursion_desired() {
            true => Outcome::Forward,
            false => {
                writer.not_authoritative();
                Outcome::Answered(writer.finish(Rcode::REFUSED))
            }
        };
    };
    writer.authority(&zone.soa, pointer(place.apex));
    let rcode = match (zone.synced, place.whole) {
        (false, _) => Rcode::SERVFAIL,
        // A shorter name has addresses below it: it exists.
        (true, false) => Rcode::NOERROR,
        (true, true) => Rcode::NXDOMAIN,
    };
    Outcome::Answered(writer.finish(rcode))
}

/// Where in the reverse tree a name lies.
struct Place {
    /// Where the name of the smallest zone within our range begins.
    apex: usize,
    /// The name spells at least a whole address.
    whole: bool,
}

/// `None` outside the ranges that are ours.
fn reverse_place(zone: &Zone, name: &[u8]) -> Option<Place> {
    let (offset, v4) = match suffix_offset(name, V4_TREE) {
        Some(offset) => (offset, true),
        None => (suffix_offset(name, V6_TREE)?, false),
    };
    let (bits, radix, most) = if v4 { (8, 10, 4) } else { (4, 16, 32) };
    let mut starts = Vec::new();
    let mut at = 0;
    while at < offset {
        starts.push(at);
        at += usize::from(*name.get(at)?) + 1;
    }
    let mut address: u128 = 0;
    for start in starts.iter().rev().take(most) {
        let length = usize::from(*name.get(*start)?);
        let label = std::str::from_utf8(name.get(start + 1..start + 1 + length)?).ok()?;
        let digit = u8::from_str_radix(label, radix).ok().filter(|d| v4 || *d < 16)?;
        address = address << bits | u128::from(digit);
    }
    let depth = starts.len().min(most);
    let known = depth * bits;
    let ip = if v4 {
        IpAddr::V4(Ipv4Addr::from_bits(address.checked_shl(32 - known as u32)? as u32))
    } else {
        IpAddr::V6(Ipv6Addr::from_bits(address.checked_shl(128 - known as u32).unwrap_or(0)))
    };
    let range = zone
        .settings
        .ranges
        .iter()
        .find(|range| range.contains(&ip) && known >= usize::from(range.prefix_len()))?;
    let apex_depth = usize::from(range.prefix_len()).div_ceil(bits);
    let apex = starts.iter().rev().nth(apex_depth.checked_sub(1)?).copied()?;
    Some(Place { apex, whole: starts.len() >= most })
}

/// DNS-08: the domain at the end of each SRV target is spelled as the client spelled it. Names of objects are lower
/// case, and what the target shares with the question beyond that are labels of objects. `start`: the first record.
#[cold]
pub fn keep_case(zone: &Zone, query: &Query<'_>, name: &[u8], writer: &mut Writer<'_>, start: usize) {
    let domain = zone.settings.domain.wire();
    let Some(asked) = suffix_offset(name, domain).and_then(|offset| query.name.get(offset..)) else { return };
    let mut at = start;
    for record in writer.answered(start) {
        at += record;
        if let Some(place) = at.checked_sub(domain.len()).and_then(|from| writer.written(from..at)) {
            place.copy_from_slice(asked);
        }
    }
}

/// The name exists but has no set of this type.
#[cold]
pub fn no_data(
    zone: &Zone,
    query: &Query<'_>,
    (name, node): (&[u8], &Node),
    mut writer: Writer<'_>,
    chance: u32,
) -> Outcome {
    if node.alias.is_some() {
        return follow(zone, query, node, writer, chance);
    }
    let offset = suffix_offset(name, zone.settings.domain.wire());
    if query.kind == Type::SOA && offset == Some(0) {
        writer.soa_answer(&zone.soa, pointer(0));
        return Outcome::Answered(writer.finish(Rcode::NOERROR));
    }
    writer.authority(&zone.soa, pointer(offset.unwrap_or_else(|| reverse_apex(zone, name))));
    Outcome::Answered(writer.finish(Rcode::NOERROR))
}

/// The authority of a reverse name that exists: our range's, or the name's parent for a foreign address.
fn reverse_apex(zone: &Zone, name: &[u8]) -> usize {
    let parent = || name.first().map_or(0, |length| usize::from(*length) + 1);
    reverse_place(zone, name).map_or_else(parent, |place| place.apex)
}

/// DNS-07: the CNAME, then what it leads to: in the cluster from here, outside by the upstream. It stands for every
/// type but its own (RFC 1034 §3.6.2, RFC 2181 §10.1); who asks for all types is told what there is, the alias alone.
fn follow(zone: &Zone, query: &Query<'_>, first: &Node, mut writer: Writer<'_>, chance: u32) -> Outcome {
    let mut node = Cow::Borrowed(first);
    // Where the owner of the next record stands in the message.
    let mut owner = HEADER;
    let mut passed: Vec<Name> = Vec::new();
    while let (Some(target), Some(set)) = (node.alias.clone(), node.set(Type::CNAME)) {
        let at = writer.position();
        writer.answers(&patched(&set.records, owner), 1);
        if writer.position() == at || query.kind == Type::ANY {
            return Outcome::Answered(writer.finish(Rcode::NOERROR));
        }
        // Owner pointer, type, class, TTL and length stand before the target.
        owner = at + 12;
        let Some(offset) = suffix_offset(target.wire(), zone.settings.domain.wire()) else {
            return match query.recursion_desired() {
                true => {
                    let length = writer.finish(Rcode::NOERROR);
                    Outcome::Follow { length, target }
                }
                false => Outcome::Answered(writer.finish(Rcode::NOERROR)),
            };
        };
        let known = zone.nodes.get(&target).map(Cow::Borrowed);
        let Some(next) = known.or_else(|| pod_node(zone, target.wire()).map(Cow::Owned)) else {
            // The code is that of the last name (RFC 6604).
            writer.authority(&zone.soa, (0xc000 | (owner + offset) as u16).to_be_bytes());
            return Outcome::Answered(writer.finish(Rcode::NXDOMAIN));
        };
        if next.alias.is_none() {
            match next.set(query.kind) {
                Some(set) => write_moved(&mut writer, set, owner, chance),
                None => writer.authority(&zone.soa, (0xc000 | (owner + offset) as u16).to_be_bytes()),
            }
            return Outcome::Answered(writer.finish(Rcode::NOERROR));
        }
        // A circle leads to an alias whose record is in the answer already, the first name's included.
        if passed.contains(&target) || std::ptr::eq(&*next, first) || passed.len() + 1 >= MAX_ALIASES {
            break;
        }
        passed.push(target);
        node = next;
    }
    Outcome::Answered(writer.finish(Rcode::SERVFAIL))
}

/// A set under another owner than the question. Addresses of SRV targets are left to be asked for: their owners are
/// parts of the question.
fn write_moved(writer: &mut Writer<'_>, set: &RrSet, owner: usize, chance: u32) {
    let records: Vec<Vec<u8>> = set.iter().map(|record| patched(record, owner)).collect();
    let start = chance as usize % set.count.max(1);
    for record in records.iter().skip(start).chain(records.iter().take(start)) {
        writer.answers(record, 1);
    }
}

/// The record with its owner pointing at `owner`.
fn patched(record: &[u8], owner: usize) -> Vec<u8> {
    let mut record = record.to_vec();
    if let Some(place) = record.first_chunk_mut::<2>() {
        *place = (0xc000 | owner as u16).to_be_bytes();
    }
    record
}
