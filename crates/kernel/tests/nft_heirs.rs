//! What the packet path has put into a set goes over to the set that comes in its place, each key with its time.

use std::process::Command;
use std::sync::Arc;

use kernel::{Netns, Nft};
use kstate::nft::build::{encode, goto, immediate, ip_daddr, ip_saddr, lookup, update, vmap};
use kstate::nft::{
    Chain, ElemData, ElemKey, Field, Heir, Reg, Rule, Ruleset, Set, SetData, Table, TableFamily, TableId,
    Verdict, diff, heirs,
};

fn id() -> TableId {
    TableId { family: TableFamily::Ip, name: "plumb".into() }
}

fn nft(line: &str) -> String {
    let output = Command::new("nft").arg(line).output().expect("nft is installed");
    assert!(output.status.success(), "nft {line}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Whoever asks for 10.96.0.7 and is in the set is led on, and kept for a minute more.
fn ruleset(chain: &str, set: &str) -> Ruleset {
    let r = Reg(0);
    let rule = |exprs: Vec<_>| Rule { exprs, comment: String::new() };
    let known =
        rule(vec![ip_saddr(r), lookup(set, r), update(set, r, 60_000), immediate(r, [10, 244, 1, 4])]);
    let mut map = Set::new([Field::Ipv4], SetData::Verdicts);
    let service = ElemKey::point(encode(&[std::net::IpAddr::from([10, 96, 0, 7]).into()]));
    map.elements.insert(service, ElemData::Verdict(Verdict::Goto(chain.to_owned())));
    let clients = Set {
        dynamic: true,
        timeout_ms: Some(86_400_000),
        size: Some(1 << 16),
        ..Set::new([Field::Ipv4], SetData::None)
    };
    let chains = [
        (chain.to_owned(), Chain { base: None, rules: vec![known] }),
        ("services".to_owned(), Chain { base: None, rules: vec![rule(vec![ip_daddr(r), vmap("svc", r)])] }),
        ("start".to_owned(), Chain { base: None, rules: vec![rule(vec![goto("services")])] }),
    ];
    let sets = [(Arc::from("svc"), map), (Arc::from(set), clients)];
    Ruleset { tables: [(id(), Table { chains: chains.into(), sets: sets.into() })].into() }
}

fn carries_over() {
    let mut kernel = Nft::open().expect("a socket");
    let before = ruleset("aff_a", "old");
    kernel.apply(&diff(&before, &Ruleset::default()), &before).expect("the rules");
    // More than one datagram of them; three with times of their own.
    let many: Vec<String> = (0..8_000).map(|n| format!("10.7.{}.{} timeout 2h", n >> 8, n & 255)).collect();
    for part in many.chunks(2_000) {
        nft(&format!("add element ip plumb old {{ {} }}", part.join(", ")));
    }
    nft(
        "add element ip plumb old { 10.8.0.1 timeout 1m expires 30s, 10.8.0.2, 10.8.0.3 timeout 3h expires 1h }",
    );

    let desired = ruleset("aff_b", "new");
    let actual = kernel.observe(&[id()]).expect("a look").ruleset;
    let heir = Heir { table: id(), set: "new".into(), of: "old".into() };
    assert_eq!(heirs(&desired, &actual), [heir]);
    let clients = kernel.remembered(&id(), "old").expect("what is remembered");
    assert_eq!(clients.len(), 8_003);
    let mut plan = diff(&desired, &actual);
    plan.begin_with([((id(), "new".into()), clients)].into());
    kernel.apply(&plan, &actual).expect("the new names");

    assert_eq!(kernel.observe(&[id()]).expect("a look").ruleset, desired);
    let clients = kernel.remembered(&id(), "new").expect("what is remembered");
    assert_eq!(clients.len(), 8_003);
    let of = |last: u8| {
        let client = ElemKey::point(encode(&[std::net::IpAddr::from([10, 8, 0, last]).into()]));
        match clients.get(&client) {
            Some(ElemData::Until { timeout_ms, left_ms }) => (*timeout_ms, *left_ms),
            other => panic!("{other:?}"),
        }
    };
    let near = |found: (Option<u64>, u64), timeout: Option<u64>, left: u64| {
        // This test is over within 20 s of it.
        assert!(found.0 == timeout && found.1 <= left && found.1 + 20_000 > left, "{found:?}, not {left}");
    };
    near(of(1), Some(60_000), 30_000);
    near(of(3), Some(10_800_000), 3_600_000);
    let (timeout, left) = of(2);
    assert!(timeout.is_none_or(|timeout| timeout == 86_400_000) && left > 86_000_000, "{timeout:?} {left}");
    let listed = nft("list set ip plumb new");
    assert!(listed.contains("10.8.0.1 timeout 1m expires"), "nft reads it: {listed:.300}");
}

#[test]
fn what_a_dynamic_set_remembers_goes_over_to_its_heir() {
    Netns::fresh().expect("a network namespace").run(carries_over).expect("the test's body");
}
