//! Any bytes as a query, and any bytes as an upstream's answer to it: nothing panics, and what goes out is a message
//! of at most the size that was allowed.
//!
//! Input: transport and rotation (1 byte), room for the answer (1 byte, times 8), length of the query (2 bytes), the
//! query, the upstream's answer.
#![no_main]

use std::sync::LazyLock;

use dns::{Outcome, Settings, Transport, Zone, cache, message};
use libfuzzer_sys::fuzz_target;

#[path = "world.rs"]
mod world;

static ZONE: LazyLock<Zone> = LazyLock::new(|| {
    let objects: serde_json::Value =
        serde_json::from_str(include_str!("../seeds/objects/shop.json")).expect("the seed is JSON");
    let settings = Settings {
        addresses: vec!["10.96.0.10".parse().expect("an address")],
        ranges: vec!["10.244.0.0/16".parse().expect("a range"), "10.96.0.0/12".parse().expect("a range")],
        ..Settings::new("cluster.local").expect("a domain")
    };
    Zone::build(settings, &world::listed(world::rows(&objects)), 1)
});

fuzz_target!(|data: &[u8]| {
    let [how, room, high, low, rest @ ..] = data else { return };
    let length = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
    let (query, upstream) = rest.split_at(length);
    let transport = if how & 1 == 0 { Transport::Udp } else { Transport::Tcp };
    let mut out = vec![0; usize::from(*room) * 8];
    match ZONE.answer(query, &mut out, transport, u32::from(how >> 1)) {
        Outcome::Answered(length) => assert!(length <= out.len()),
        Outcome::Follow { length, .. } => {
            assert!(length <= out.len());
            if let Some(both) = message::append(&out[..length], upstream, out.len()) {
                assert!(both.len() <= out.len());
            }
        }
        Outcome::Forward | Outcome::Drop => {}
    }
    let _ = message::decode(upstream);
    if let (Some(_), Some(kept)) = (cache::key(query), cache::Message::accept(query, upstream.to_vec())) {
        let _ = kept.lifetime();
        assert!(kept.relay(query, &mut out, 512) <= out.len());
    }
});
