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
