//! What rules and elements have counted, against the kernel.

use std::collections::BTreeMap;
use std::net::{IpAddr, UdpSocket};
use std::process::Command;

use kernel::Netns;
use kernel::nft::Nft;
use kstate::nft::build::*;
use kstate::nft::{
    BaseChain, Chain, ChainKind, Field, Hook, Op, Plan, Reg, Rule, Ruleset, Set, SetData, Table, TableFamily,
    TableId, diff,
};

const R: Reg = Reg(0);

fn id() -> TableId {
    TableId { family: TableFamily::Inet, name: "plumb".into() }
}

fn rules() -> Vec<Rule> {
    vec![
        rule("", [nfproto(R), is(R, Value::Proto(2)), ip_daddr(R), count_by("seen", R, 3_600_000)]),
        rule("word: text", [l4proto(R), is(R, types::Protocol::Udp), counter(), drop()]),
        rule("counts nothing", [accept()]),
    ]
}

fn counting() -> Ruleset {
    let base = BaseChain { kind: ChainKind::Filter, hook: Hook::Input, priority: 0, drop: false };
    let seen = Set {
        dynamic: true,
        timeout_ms: Some(3_600_000),
        size: Some(16),
        ..Set::new([Field::Ipv4], SetData::None)
    };
    let table = Table {
        chains: BTreeMap::from([("in".to_owned(), Chain { base: Some(base), rules: rules() })]),
        sets: BTreeMap::from([("seen".into(), seen)]),
    };
    Ruleset { tables: BTreeMap::from([(id(), table)]) }
}

#[test]
fn rules_and_elements_tell_what_they_have_counted() {
    let body = || {
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("ip is installed");
        assert!(up.success());
        let (mut nft, desired) = (Nft::open().expect("a socket"), counting());
        assert!(nft.counted_rules(&id()).expect("no table").is_empty());
        assert!(nft.counted_elements(&id(), "seen").expect("no table").is_empty());
        nft.apply(&diff(&desired, &Ruleset::default()), &desired).expect("apply");
        let sender = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        for to in ["127.0.0.2:9", "127.0.0.2:9", "127.0.0.3:9"] {
            sender.send_to(b"x", to).expect("sent");
        }
        assert_eq!(
            nft.observe(&[id()]).expect("observe").ruleset,
            desired,
            "counts are no part of the value"
        );
        let counted = nft.counted_rules(&id()).expect("rules");
        let [one] = &counted[..] else { panic!("one rule counts: {counted:?}") };
        assert_eq!((&*one.chain, &*one.comment, one.packets), ("in", "word: text", 3));
        assert_eq!(nft.counted_rules_of(&id(), "in").expect("a chain"), counted);
        assert!(nft.counted_rules_of(&id(), "out").expect("no chain").is_empty());
        let seen = |nft: &mut Nft| {
            let elements = nft.counted_elements(&id(), "seen").expect("elements");
            let address =
                |key: &[u8]| IpAddr::from(<[u8; 4]>::try_from(key).expect("four bytes")).to_string();
            elements.iter().map(|(key, count)| (address(key), *count)).collect::<BTreeMap<_, _>>()
        };
        let by_address = BTreeMap::from([("127.0.0.2".to_owned(), 2), ("127.0.0.3".to_owned(), 1)]);
        assert_eq!(seen(&mut nft), by_address);
        let again = Op::SetRules { table: id(), chain: "in".into(), rules: rules() };
        nft.apply(&Plan { ops: vec![again] }, &desired).expect("apply");
        let anew = nft.counted_rules(&id()).expect("rules");
        assert!(anew.iter().all(|rule| rule.packets == 0 && rule.handle > one.handle), "{anew:?}");
        assert_eq!(seen(&mut nft), by_address, "elements stay");
    };
    Netns::fresh().expect("a network namespace").run(body).expect("the test's body");
}
