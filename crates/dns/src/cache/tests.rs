use std::net::IpAddr;

use super::*;
use crate::message;
use crate::name::Name;

fn query(id: u16, name: &str) -> Vec<u8> {
    message::encode_query(id, &Name::parse(name).unwrap(), Type::A)
}

fn reply(query: &[u8], ttl: u32, count: u8) -> Vec<u8> {
    let addresses: Vec<IpAddr> = (0..count).map(|n| IpAddr::from([192, 0, 2, n])).collect();
    message::address_reply(query, ttl, &addresses).unwrap()
}

/// NXDOMAIN with an SOA of the given TTL and MINIMUM.
fn denial(query: &[u8], ttl: u32, minimum: u32) -> Vec<u8> {
    let mut bytes = query[..query.len() - 11].to_vec();
    bytes[2] |= 0x80;
    bytes[3] = 3;
    bytes[8..12].copy_from_slice(&[0, 1, 0, 0]);
    bytes.extend_from_slice(&[0xc0, 12, 0, 6, 0, 1]);
    bytes.extend_from_slice(&ttl.to_be_bytes());
    bytes.extend_from_slice(&[0, 22, 0, 0]);
    bytes.extend_from_slice(&[0; 16]);
    bytes.extend_from_slice(&minimum.to_be_bytes());
    bytes
}

#[test]
fn only_the_answer_to_the_question_is_believed() {
    let asked = query(7, "example.com");
    assert!(Message::accept(&asked, reply(&asked, 60, 1)).is_some());
    assert!(Message::accept(&asked, reply(&query(8, "example.com"), 60, 1)).is_none(), "another id");
    assert!(Message::accept(&asked, reply(&query(7, "example.org"), 60, 1)).is_none(), "another name");
    assert!(Message::accept(&asked, asked.clone()).is_none(), "no answer");
    let mut cut = reply(&asked, 60, 3);
    cut.truncate(cut.len() - 1);
    assert!(Message::accept(&asked, cut).is_none(), "cut inside a record");
}

#[test]
fn dns_27_lives_are_those_of_rfc_2308() {
    let asked = query(7, "example.com");
    let life = |bytes| Message::accept(&asked, bytes).unwrap().lifetime();
    assert_eq!(life(reply(&asked, 60, 2)), 60);
    assert_eq!(life(reply(&asked, 86400, 2)), MAX_POSITIVE);
    assert_eq!(life(denial(&asked, 900, 30)), 30);
    assert_eq!(life(denial(&asked, 20, 300)), 20);
    assert_eq!(life(denial(&asked, 86400, 86400)), MAX_NEGATIVE);
    let mut bare = reply(&asked, 60, 0);
    assert_eq!(life(bare.clone()), 0, "NODATA without SOA");
    bare[3] |= 2;
    assert_eq!(life(bare), FAILURE);
    let mut cut = reply(&asked, 60, 2);
    cut[2] |= 2;
    assert_eq!(life(cut), 0, "TC");
}

#[test]
fn ttls_count_down_and_end() {
    let asked = query(7, "example.com");
    let key = key(&asked).unwrap();
    let mut cache = Cache::new(16);
    cache.insert(key.clone(), Message::accept(&asked, reply(&asked, 60, 1)).unwrap(), 100);
    // Another client: other id, other case, no EDNS.
    let mut other = query(99, "example.com");
    other.truncate(other.len() - 11);
    other[11] = 0;
    other[13] = b'E';
    assert_eq!(super::key(&other), Some(key.clone()));
    let mut out = [0; 512];
    let length = cache.get(&key, 120).unwrap().relay(&other, &mut out, 512);
    assert_eq!(out[12..20], other[12..20], "the client's case");
    assert_eq!(out[11], 0, "no OPT for a client without EDNS (RFC 6891 §7)");
    let seen = message::decode(&out[..length]).unwrap();
    assert_eq!((seen.id, seen.answers[0].ttl, seen.authoritative), (99, 40, false));
    assert!(cache.get(&key, 160).is_none());
}

#[test]
fn a_big_message_is_cut_at_a_record() {
    let asked = query(7, "example.com");
    let message = Message::accept(&asked, reply(&asked, 60, 100)).unwrap();
    let mut out = [0; 1232];
    let length = message.relay(&asked, &mut out, 512);
    assert!(length <= 512 && length > 490);
    let seen = message::decode(&out[..length]).unwrap();
    assert!(seen.truncated && seen.answers.len() > 10);
}

#[test]
fn the_cache_is_bounded() {
    let mut cache = Cache::new(100);
    for number in 0..1000 {
        let asked = query(1, &format!("n{number}.example.com"));
        cache.insert(key(&asked).unwrap(), Message::accept(&asked, reply(&asked, 60, 1)).unwrap(), 0);
        assert!(cache.len() <= 100);
    }
    assert!(cache.get(&key(&query(1, "n999.example.com")).unwrap(), 1).is_some());
}

proptest::proptest! {
    #[test]
    fn no_upstream_makes_it_panic(at: usize, byte: u8, cut: usize, limit in 0..1300usize) {
        let asked = query(7, "example.com");
        for mut bytes in [reply(&asked, 60, 3), denial(&asked, 5, 5)] {
            let length = bytes.len();
            bytes[at % length] = byte;
            bytes.truncate(length.saturating_sub(cut % 8));
            if let Some(message) = Message::accept(&asked, bytes) {
                message.lifetime();
                let mut out = [0; 1300];
                message.relay(&asked, &mut out, limit);
            }
        }
    }
}

/// A record whose owner is a name in full or, as bytes, a pointer.
fn record(owner: &[u8], kind: u16, data: &[u8]) -> Vec<u8> {
    let mut bytes = owner.to_vec();
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&[0, 1, 0, 0, 0, 60]);
    bytes.extend_from_slice(&(data.len() as u16).to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

fn wire(name: &str) -> Vec<u8> {
    Name::parse(name).unwrap().wire().to_vec()
}

/// A reply to `asked` with so many records in each section.
fn with(asked: &[u8], records: [&[Vec<u8>]; 3]) -> Vec<u8> {
    let mut bytes = asked[..asked.len() - 11].to_vec();
    bytes[2] |= 0x80;
    for (section, records) in records.iter().enumerate() {
        bytes[6 + 2 * section..8 + 2 * section].copy_from_slice(&(records.len() as u16).to_be_bytes());
        records.iter().for_each(|record| bytes.extend_from_slice(record));
    }
    bytes
}

const POINTER: [u8; 2] = [0xc0, 12];

#[test]
fn records_that_were_not_asked_for_are_not_believed() {
    let asked = query(7, "www.example.com");
    let own = record(&POINTER, 1, &[192, 0, 2, 1]);
    let foreign = record(&wire("bank.example.org"), 1, &[192, 0, 2, 66]);
    assert!(Message::accept(&asked, with(&asked, [std::slice::from_ref(&own), &[], &[]])).is_some());
    assert!(Message::accept(&asked, with(&asked, [&[own.clone(), foreign.clone()], &[], &[]])).is_none());
    assert!(Message::accept(&asked, with(&asked, [std::slice::from_ref(&foreign), &[], &[]])).is_none());
    // Beside the answer it is only left out.
    let zone = record(&wire("example.com"), 2, &wire("ns.example.com"));
    let other = record(&wire("example.org"), 2, &wire("ns.example.com"));
    let kept = |authority: &[Vec<u8>], additional: &[Vec<u8>]| {
        let reply = with(&asked, [std::slice::from_ref(&own), authority, additional]);
        Message::accept(&asked, reply).unwrap().records.len()
    };
    assert_eq!(kept(std::slice::from_ref(&zone), std::slice::from_ref(&foreign)), 2);
    assert_eq!(kept(&[zone.clone(), other.clone()], &[]), 2);
    assert_eq!(kept(&[other], std::slice::from_ref(&foreign)), 1);
    let near = record(&wire("xample.com"), 2, &wire("ns.example.com"));
    assert_eq!(kept(&[near], &[]), 1, "a name that only ends alike is another zone");
}

#[test]
fn aliases_are_followed_in_any_order_and_no_further() {
    let asked = query(7, "a.example.com");
    let one = record(&POINTER, 5, &wire("b.example.net"));
    let two = record(&wire("B.example.net".to_lowercase().as_str()), 5, &wire("c.example.org"));
    let address = record(&wire("c.example.org"), 1, &[192, 0, 2, 1]);
    for order in [[&one, &two, &address], [&address, &two, &one]] {
        let reply = with(&asked, [&order.map(Clone::clone), &[], &[]]);
        assert_eq!(Message::accept(&asked, reply).unwrap().records.len(), 3);
    }
    assert!(
        Message::accept(&asked, with(&asked, [&[one, address], &[], &[]])).is_none(),
        "a link is missing"
    );
    // RFC 6672: a DNAME above the name, and the alias that it makes.
    let above = record(&wire("example.com"), 39, &wire("example.net"));
    let made = record(&POINTER, 5, &wire("a.example.net"));
    let end = record(&wire("a.example.net"), 1, &[192, 0, 2, 1]);
    assert!(Message::accept(&asked, with(&asked, [&[above, made, end], &[], &[]])).is_some());
}

#[test]
fn a_pointer_that_leads_nowhere_ends_the_message() {
    let asked = query(7, "example.com");
    for owner in [[0xc0, 29], [0xc0, 255], [0xff, 255]] {
        assert!(
            Message::accept(&asked, with(&asked, [&[record(&owner, 1, &[1, 2, 3, 4])], &[], &[]])).is_none()
        );
    }
}

#[test]
fn drawn_case_is_the_same_question_and_comes_back_as_it_was_asked() {
    let name = Name::parse("www.example.com").unwrap();
    let mut asked = message::encode_query(7, &name, Type::A);
    let plain = asked.clone();
    message::draw_case(&mut asked, &name, u64::MAX);
    assert_eq!(&asked[12..29], b"\x03WWW\x07EXAMPLE\x03COM\0");
    assert_eq!(asked[29..], plain[29..], "nothing but the name");
    let mut whole = Message::accept(&asked, reply(&asked, 60, 1)).unwrap();
    assert!(whole.has_case_of(&asked));
    let other = Message::accept(&asked, reply(&plain, 60, 1)).unwrap();
    assert!(!other.has_case_of(&asked));
    whole.write_name(name.wire());
    assert!(whole.has_case_of(&plain));
}
