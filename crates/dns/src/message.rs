//! Whole messages off the hot path, through the `domain` crate: queries of ours, and answers read as values.

use std::net::IpAddr;

use domain::base::iana::Class;
use domain::base::message_builder::TreeCompressor;
use domain::base::{Message, MessageBuilder, ParsedName, RecordData, ToName, Ttl};
use domain::rdata::AllRecordData;

use crate::name::Name;
use crate::query::{HEADER, OPT_LENGTH, Rcode, Type, UDP_LIMIT};

/// What a record says; types nobody here asks for keep their printed form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    Address(IpAddr),
    Alias(String),
    Pointer(String),
    Service { priority: u16, weight: u16, port: u16, target: String },
    Text(String),
    Other { kind: Type, text: String },
}

/// A record of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub owner: String,
    pub ttl: u32,
    pub data: Data,
}

/// An answer as values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub id: u16,
    pub rcode: Rcode,
    pub truncated: bool,
    pub authoritative: bool,
    pub answers: Vec<Record>,
    pub authority: Vec<Record>,
    pub additional: Vec<Record>,
}

/// A query with RD and an OPT that takes 1,232 bytes.
pub fn encode_query(id: u16, name: &Name, kind: Type) -> Vec<u8> {
    let mut query = Vec::with_capacity(16 + name.wire().len() + OPT_LENGTH);
    query.extend_from_slice(&id.to_be_bytes());
    query.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
    query.extend_from_slice(name.wire());
    query.extend_from_slice(&kind.0.to_be_bytes());
    query.extend_from_slice(&[0, 1]);
    query.extend_from_slice(&[0, 0, 41]);
    query.extend_from_slice(&(UDP_LIMIT as u16).to_be_bytes());
    query.extend_from_slice(&[0; 6]);
    query
}

/// Draws the case of a query's name anew, a bit of `chance` for each letter; of names of more than 64 bytes bits are
/// used again.
pub fn draw_case(query: &mut [u8], name: &Name, chance: u64) {
    for (index, byte) in query.iter_mut().skip(HEADER).take(name.wire().len()).enumerate() {
        // Lengths of labels are at most 63, which is no letter.
        if chance.rotate_right(index as u32 % 64) & 1 == 1 {
            byte.make_ascii_uppercase();
        }
    }
}

/// Reads an answer; `None` when it is none or broken.
pub fn decode(bytes: &[u8]) -> Option<Reply> {
    let message = Message::from_octets(bytes).ok().filter(|message| message.header().qr())?;
    let (_, answer, authority, additional) = message.sections().ok()?;
    Some(Reply {
        id: message.header().id(),
        rcode: Rcode(u16::from(message.header().rcode().to_int())),
        truncated: message.header().tc(),
        authoritative: message.header().aa(),
        answers: section(answer)?,
        authority: section(authority)?,
        additional: section(additional)?,
    })
}

fn section(section: domain::base::message::RecordSection<'_, &[u8]>) -> Option<Vec<Record>> {
    let mut records = Vec::new();
    for record in section {
        let record = record.ok()?;
        if record.rtype().to_int() == Type::OPT.0 {
            continue;
        }
        let record = record.into_any_record::<AllRecordData<_, ParsedName<_>>>().ok()?;
        let ttl = record.ttl().as_secs();
        records.push(Record { owner: record.owner().to_string(), ttl, data: datum(record.data()) });
    }
    Some(records)
}

fn datum<O, N>(data: &AllRecordData<O, N>) -> Data
where
    O: AsRef<[u8]> + domain::dep::octseq::Octets,
    N: ToName + std::fmt::Display,
{
    match data {
        AllRecordData::A(data) => Data::Address(IpAddr::V4(data.addr())),
        AllRecordData::Aaaa(data) => Data::Address(IpAddr::V6(data.addr())),
        AllRecordData::Cname(data) => Data::Alias(data.cname().to_string()),
        AllRecordData::Ptr(data) => Data::Pointer(data.ptrdname().to_string()),
        AllRecordData::Srv(data) => Data::Service {
            priority: data.priority(),
            weight: data.weight(),
            port: data.port(),
            target: data.target().to_string(),
        },
        AllRecordData::Txt(data) => {
            let text: Vec<u8> = data.iter().flatten().copied().collect();
            Data::Text(String::from_utf8_lossy(&text).into_owned())
        }
        other => Data::Other { kind: Type(other.rtype().to_int()), text: other.to_string() },
    }
}

/// Adds an upstream's answers to an answer of ours that ends in a CNAME (DNS-07): what `ours` begins, `theirs`
/// ends, with its code and its TC. `limit` bounds the whole; past it records are left out with TC.
pub fn append(ours: &[u8], theirs: &[u8], limit: usize) -> Option<Vec<u8>> {
    let ours = Message::from_octets(ours).ok()?;
    let theirs = Message::from_octets(theirs).ok()?;
    let edns = ours.opt().is_some();
    let mut builder = MessageBuilder::from_target(TreeCompressor::new(Vec::new())).ok()?;
    *builder.header_mut() = ours.header();
    builder.header_mut().set_aa(false);
    builder.header_mut().set_rcode(theirs.header().rcode());
    builder.header_mut().set_tc(theirs.header().tc());
    builder.set_push_limit(limit.saturating_sub(if edns { OPT_LENGTH } else { 0 }));
    let mut builder = builder.question();
    for question in ours.question() {
        builder.push(question.ok()?).ok()?;
    }
    let mut builder = builder.answer();
    'all: for message in [&ours, &theirs] {
        for record in message.answer().ok()? {
            let record = record.ok()?.into_any_record::<AllRecordData<_, ParsedName<_>>>().ok()?;
            if builder.push(record).is_err() {
                builder.header_mut().set_tc(true);
                break 'all;
            }
        }
    }
    let mut builder = builder.additional();
    if edns {
        builder.clear_push_limit();
        builder
            .opt(|opt| {
                opt.set_udp_payload_size(UDP_LIMIT as u16);
                Ok(())
            })
            .ok()?;
    }
    Some(builder.finish().into_target())
}

/// A message with `question` and address records of its own: for small servers and for tests.
pub fn address_reply(query: &[u8], ttl: u32, addresses: &[IpAddr]) -> Option<Vec<u8>> {
    use domain::base::iana::Rcode as Code;
    let query = Message::from_octets(query).ok()?;
    let mut builder = MessageBuilder::new_vec().start_answer(&query, Code::NOERROR).ok()?;
    builder.header_mut().set_ra(true);
    let question = query.sole_question().ok()?;
    for address in addresses {
        let owner = question.qname();
        let ttl = Ttl::from_secs(ttl);
        match address {
            IpAddr::V4(a) => builder.push((owner, Class::IN, ttl, domain::rdata::A::new(*a))).ok()?,
            IpAddr::V6(a) => builder.push((owner, Class::IN, ttl, domain::rdata::Aaaa::new(*a))).ok()?,
        }
    }
    Some(builder.finish())
}
