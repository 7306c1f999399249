//! Upstreams' messages: what is believed, how long it is kept, and how it is given on.
//!
//! The cluster's own names never come here: they are answered from the zone, so a new service is seen at once
//! and no negative answer outlives its reason.

mod bailiwick;

use std::collections::HashMap;

use crate::answer::Writer;
use crate::name::{MAX_NAME, fold};
use crate::query::{HEADER, Query, Rcode, Type, record_name_length};

/// Longest lives (DNS-27), in seconds.
const MAX_POSITIVE: u32 = 3600;
const MAX_NEGATIVE: u32 = 1800;
/// SERVFAIL is kept as long as RFC 2308 §7.1 wants at least to be useful, which is far less than its most.
const FAILURE: u32 = 5;

/// A record's place in a message.
#[derive(Clone, Copy, Debug)]
struct Place {
    section: usize,
    start: usize,
    end: usize,
    kind: Type,
    /// Where its TTL is.
    ttl: usize,
}

/// A message that answers the question that was put, without its OPT.
#[derive(Clone, Debug)]
pub struct Message {
    bytes: Vec<u8>,
    question: usize,
    records: Vec<Place>,
}

impl Message {
    /// Takes what came from an upstream if it is the answer to `query` (RFC 5452 §9.1: id and question), and of
    /// that what was asked for. The sender's address is the socket's business.
    pub fn accept(query: &[u8], mut bytes: Vec<u8>) -> Option<Self> {
        let asked = Query::parse(query).ok()?;
        let header = bytes.first_chunk::<HEADER>()?;
        if header[..2] != query[..2] || header[2] & 0x80 == 0 || header[4..6] != [0, 1] {
            return None;
        }
        let question = HEADER + asked.question().len();
        if !bytes.get(HEADER..question)?.eq_ignore_ascii_case(asked.question()) {
            return None;
        }
        let mut records = places(&bytes, question)?;
        if let Some(opt) = records.iter().position(|place| place.kind == Type::OPT) {
            // The OPT is between us and the upstream. Cutting there loses at most additional records.
            let start = records.get(opt)?.start;
            records.truncate(opt);
            bytes.truncate(start);
        } else if let Some(last) = records.last() {
            bytes.truncate(last.end);
        } else {
            bytes.truncate(question);
        }
        let kept = bailiwick::kept(&bytes, HEADER, &records)?;
        if let Some(first) = records.get(kept) {
            bytes.truncate(first.start);
            records.truncate(kept);
        }
        let mut message = Self { bytes, question, records };
        message.count();
        Some(message)
    }

    /// Whether the question came back letter for letter. One that was drawn with random case is harder to guess by a
    /// bit for each letter (draft-vixie-dnsext-dns0x20).
    pub fn has_case_of(&self, query: &[u8]) -> bool {
        self.bytes.get(HEADER..self.question) == query.get(HEADER..self.question)
    }

    /// Gives the question a name of the same letters, and the records whose owner it is in full; others point to it.
    pub fn write_name(&mut self, name: &[u8]) {
        let starts = self.records.iter().map(|place| place.start);
        for start in std::iter::once(HEADER).chain(starts) {
            let place = self.bytes.get_mut(start..start + name.len());
            if let Some(place) = place.filter(|place| place.eq_ignore_ascii_case(name)) {
                place.copy_from_slice(name);
            }
        }
    }

    pub fn rcode(&self) -> Rcode {
        Rcode(u16::from(self.bytes.get(3).copied().unwrap_or_default() & 0x0f))
    }

    pub fn truncated(&self) -> bool {
        self.bytes.get(2).is_some_and(|flags| flags & 2 != 0)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn ttl(&self, place: &Place) -> Option<u32> {
        self.bytes.get(place.ttl..place.ttl + 4)?.first_chunk().map(|ttl| u32::from_be_bytes(*ttl))
    }

    /// Seconds that it may be kept: RFC 2308 for negative answers, which without an SOA are not kept at all.
    pub fn lifetime(&self) -> u32 {
        let lowest = || self.records.iter().filter_map(|place| self.ttl(place)).min();
        let answers = self.records.iter().any(|place| place.section == 0);
        match self.rcode() {
            _ if self.truncated() => 0,
            Rcode::SERVFAIL => FAILURE,
            Rcode::NOERROR if answers => lowest().unwrap_or(0).min(MAX_POSITIVE),
            Rcode::NOERROR | Rcode::NXDOMAIN => self.negative().unwrap_or(0).min(MAX_NEGATIVE),
            _ => 0,
        }
    }

    fn negative(&self) -> Option<u32> {
        let soa = self.records.iter().find(|place| place.section == 1 && place.kind == Type::SOA)?;
        let minimum = self.bytes.get(soa.end.checked_sub(4)?..soa.end)?.first_chunk()?;
        Some(self.ttl(soa)?.min(u32::from_be_bytes(*minimum)))
    }

    fn count(&mut self) {
        let mut counts = [0u16; 3];
        for place in &self.records {
            if let Some(count) = counts.get_mut(place.section) {
                *count += 1;
            }
        }
        if let Some(header) = self.bytes.first_chunk_mut::<HEADER>() {
            for (index, count) in counts.into_iter().enumerate() {
                header[6 + index * 2..8 + index * 2].copy_from_slice(&count.to_be_bytes());
            }
        }
    }

    /// Lets `seconds` pass.
    fn age(&mut self, seconds: u32) {
        for place in &self.records {
            if let Some(ttl) = self.bytes.get_mut(place.ttl..place.ttl + 4).and_then(|b| b.first_chunk_mut())
            {
                *ttl = u32::from_be_bytes(*ttl).saturating_sub(seconds).to_be_bytes();
            }
        }
    }

    /// Writes it as the answer to `query`: the client's id, flags and case, its size, and an OPT if it sent one.
    /// What does not fit is left out record by record, with TC. 0 if this is not that question's answer.
    pub fn relay(&self, query: &[u8], out: &mut [u8], limit: usize) -> usize {
        let Ok(query) = Query::parse(query) else { return 0 };
        let question = query.question();
        let ours = self.bytes.get(HEADER..self.question).unwrap_or_default();
        if !ours.eq_ignore_ascii_case(question) {
            return 0;
        }
        let mut writer = Writer::new(out, &query, limit);
        writer.not_authoritative();
        if self.truncated() {
            writer.truncated();
        }
        for place in &self.records {
            let record = self.bytes.get(place.start..place.end).unwrap_or_default();
            if !writer.record(place.section, record) {
                // RFC 2181 §9: only what is left of answer or authority makes it truncated.
                if place.section < 2 {
                    writer.truncated();
                }
                break;
            }
        }
        writer.finish(self.rcode())
    }
}

/// Every record after the question; `None` when the message ends inside one.
fn places(bytes: &[u8], question: usize) -> Option<Vec<Place>> {
    let header = bytes.first_chunk::<HEADER>()?;
    let mut places = Vec::new();
    let mut at = question;
    for section in 0..3 {
        let count = u16::from_be_bytes([header[6 + section * 2], header[7 + section * 2]]);
        for _ in 0..count {
            let fixed = at + record_name_length(bytes.get(at..)?)?;
            let head = bytes.get(fixed..fixed + 10)?;
            let end = fixed + 10 + usize::from(u16::from_be_bytes([head[8], head[9]]));
            bytes.get(at..end)?;
            let kind = Type(u16::from_be_bytes([head[0], head[1]]));
            places.push(Place { section, start: at, end, kind, ttl: fixed + 4 });
            at = end;
        }
    }
    Some(places)
}

/// The key of a question: its name without case, and its type.
pub fn key(query: &[u8]) -> Option<Vec<u8>> {
    let query = Query::parse(query).ok()?;
    let mut folded = [0; MAX_NAME + 1];
    let mut key = fold(query.name, &mut folded).to_vec();
    key.extend_from_slice(&query.kind.0.to_be_bytes());
    Some(key)
}

/// Messages by question, bounded by their number. Full, the older half goes: two generations, no list to keep.
#[derive(Clone, Debug)]
pub struct Cache {
    young: HashMap<Vec<u8>, Kept>,
    old: HashMap<Vec<u8>, Kept>,
    most: usize,
}

#[derive(Clone, Debug)]
struct Kept {
    message: Message,
    since: u64,
    until: u64,
}

impl Cache {
    /// Keeps at most `most` messages.
    pub fn new(most: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), most: most.max(2) }
    }

    /// The message for a question, its TTLs lowered by the time since it came. `now` in seconds of any clock
    /// that does not go back.
    pub fn get(&self, key: &[u8], now: u64) -> Option<Message> {
        let kept = self.young.get(key).or_else(|| self.old.get(key)).filter(|kept| now < kept.until)?;
        let mut message = kept.message.clone();
        message.age(now.saturating_sub(kept.since) as u32);
        Some(message)
    }

    pub fn insert(&mut self, key: Vec<u8>, message: Message, now: u64) {
        let lifetime = message.lifetime();
        if lifetime == 0 {
            return;
        }
        if self.young.len() >= self.most / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, Kept { message, since: now, until: now + u64::from(lifetime) });
    }

    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests;
