//! Any bytes as what the kernel says, and as a captured packet: nothing panics.
#![no_main]

use libfuzzer_sys::fuzz_target;
use netlink::conntrack::Entry;
use netlink::message::{attributes, messages};
use netlink::nft::Dump;
use netlink::packet::{Frame, Packet};
use netlink::route::decode_notice;

fuzz_target!(|data: &[u8]| {
    let mut dump = Dump::default();
    for message in messages(data) {
        let _ = message.ack();
        let _ = dump.take(&message);
        let _ = Entry::decode(&message);
        let _ = decode_notice(&message);
    }
    let _ = dump.tells_an_element_twice();
    let _ = dump.finish();
    for attribute in attributes(data) {
        let _ = attribute.nested().count();
    }
    for packet in
        [Packet::parse(data), Frame::parse(data).and_then(|frame| frame.packet())].into_iter().flatten()
    {
        let _ = (packet.sockets(), packet.quoted(), packet.vxlan(8472).and_then(|(_, frame)| frame.packet()));
    }
});
