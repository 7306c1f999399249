//! What rulesets and plans look like as text.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use kstate::nft::build::*;
use kstate::nft::{
    BaseChain, Chain, ChainKind, CmpOp, ElemData, ElemKey, Expr, Field, Hook, Reg, Rule, Ruleset, Set,
    SetData, Table, TableFamily, TableId, Verdict, diff,
};
use types::Protocol;

const R: Reg = Reg(0);

#[track_caller]
fn prints(exprs: impl IntoIterator<Item = Expr>, text: &str) {
    assert_eq!(rule("", exprs).to_string(), text);
}

#[test]
fn rules_read_as_nft_writes_them() {
    prints(
        [ip_saddr(R), ip_daddr(Reg(1)), lookup("hairpin", R), masquerade_random()],
        "ip saddr . ip daddr @hairpin masquerade fully-random",
    );
    prints([ip_daddr(R), lookup_not("clusterips", R), goto("rej")], "ip daddr != @clusterips goto rej");
    prints(
        [l4proto(R), is(R, Protocol::Tcp), th_dport(R), is(R, 8080_u16), ret()],
        "meta l4proto tcp th dport 8080 return",
    );
    prints([th_dport(R), within(R, 8000_u16, 8100_u16), drop()], "th dport 8000-8100 drop");
    prints(
        [ip6_daddr(R), is(R, "fd00::1".parse::<IpAddr>().expect("an address")), accept()],
        "ip6 daddr fd00::1 accept",
    );
    prints([iifname(R), is(R, Value::IfName("cni0")), counter()], "iifname \"cni0\" counter");
    prints([oifname(R), cmp(R, CmpOp::Ne, *b"veth"), reject()], "oifname != \"veth*\" reject");
    prints(
        [immediate(R, [10, 0, 0, 1]), immediate(Reg(1), [0x1f, 0x90]), dnat_ip(R, Reg(1))],
        "dnat to 10.0.0.1:8080",
    );
    prints([socket_wildcard(R), is(R, Value::Proto(0)), notrack()], "socket wildcard 0 notrack");
    prints(
        [fib_daddr_type(R), is(R, RTN_LOCAL), reject_tcp_reset()],
        "fib daddr type local reject with tcp reset",
    );
    prints(nftrace(R), "meta nftrace set 1");
    prints([log(100, 64, "np-7"), drop()], "log prefix \"np-7\" group 100 snaplen 64 drop");
    let mark_it = [mark(R), or(R, 0x4000), set_mark(R), goto("n3")];
    prints(mark_it, "meta mark set meta mark | 0x4000 goto n3");
    let marked = [mark(R), and(R, 0x4000), cmp(R, CmpOp::Eq, 0x4000_u32.to_ne_bytes()), masquerade()];
    prints(marked, "meta mark & 0x4000 == 0x4000 masquerade");
    let state = has_bits(R, ct_state::ESTABLISHED | ct_state::RELATED);
    prints([ct_state(R)].into_iter().chain(state).chain([accept()]), "ct state established,related accept");
    let inside = in_prefix(R, "10.244.0.0/16".parse().expect("a prefix"));
    prints([ip_saddr(R)].into_iter().chain(inside).chain([accept()]), "ip saddr 10.244.0.0/16 accept");
    let learn = [ip_saddr(R), ip_daddr(Reg(1)), ip_daddr(Reg(3)), th_dport(Reg(4))];
    let update =
        Expr::Update { set: "aff".into(), key: R, data: Some(Reg(3)), timeout_ms: 10_800_000, counts: false };
    prints(
        learn.into_iter().chain([update]),
        "update @aff { ip saddr . ip daddr timeout 3h : ip daddr . th dport }",
    );
    prints([ip_saddr(R), count_by("seen", R, 3_600_000)], "update @seen { ip saddr timeout 1h counter }");
}

fn plumb(endpoints: u32) -> Ruleset {
    let vip = Value::Addr(Ipv4Addr::new(10, 96, 14, 7).into());
    let key = |values: &[Value<'_>]| ElemKey::point(encode(values));
    let (field, mut ep) = (vec![Field::Ipv4, Field::Proto, Field::Port], BTreeMap::new());
    for slot in 0..endpoints {
        let pod = Ipv4Addr::new(10, 244, 2, 9 + slot as u8);
        let data = ElemData::Value(encode(&[pod.into(), 8080_u16.into()]));
        ep.insert(key(&[slot.into(), vip, Value::Proto(6), 80_u16.into()]), data);
    }
    let chain = format!("n{endpoints}");
    let svc = BTreeMap::from([(
        key(&[vip, Value::Proto(6), 80_u16.into()]),
        ElemData::Verdict(Verdict::Goto(chain.clone())),
    )]);
    let set = |key: Vec<Field>, data, elements| Set { elements, ..Set::new(key, data) };
    let tuple = |reg: u8| [ip_daddr(Reg(reg)), l4proto(Reg(reg + 1)), th_dport(Reg(reg + 2))];
    let pick =
        [numgen(R, endpoints)].into_iter().chain(tuple(1)).chain([map("ep", R, R), dnat_ip(R, Reg(1))]);
    let services = rule("services", tuple(0).into_iter().chain([vmap("svc", R)]));
    let regular = |rules: Vec<Rule>| Chain { base: None, rules };
    let hook = BaseChain { kind: ChainKind::Nat, hook: Hook::Prerouting, priority: -100, drop: false };
    let table = Table {
        chains: BTreeMap::from([
            (chain, regular(vec![rule("", pick), rule("", [drop()])])),
            ("prerouting".into(), Chain { base: Some(hook), rules: vec![services] }),
        ]),
        sets: BTreeMap::from([
            (
                "ep".into(),
                set(
                    [vec![Field::Mark], field.clone()].concat(),
                    SetData::Values(vec![Field::Ipv4, Field::Port]),
                    ep,
                ),
            ),
            ("svc".into(), set(field, SetData::Verdicts, svc)),
        ]),
    };
    Ruleset { tables: [(TableId { family: TableFamily::Ip, name: "plumb".into() }, table)].into() }
}

#[test]
fn a_ruleset_is_its_own_documentation() {
    let expected = "\
table ip plumb {
  map ep {
    type mark . ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service
    elements = {
      0 . 10.96.14.7 . tcp . 80 : 10.244.2.9 . 8080,
      1 . 10.96.14.7 . tcp . 80 : 10.244.2.10 . 8080,
    }
  }
  map svc {
    type ipv4_addr . inet_proto . inet_service : verdict
    elements = {
      10.96.14.7 . tcp . 80 : goto n2,
    }
  }
  chain n2 {
    dnat to numgen random mod 2 . ip daddr . meta l4proto . th dport map @ep
    drop
  }
  chain prerouting {
    type nat hook prerouting priority -100; policy accept;
    ip daddr . meta l4proto . th dport vmap @svc comment \"services\"
  }
}
";
    assert_eq!(plumb(2).to_string(), expected);
}

/// One endpoint more: the new slot, then the verdict that leads to it, then what is left over.
#[test]
fn a_plan_tells_its_steps() {
    let (desired, actual) = (plumb(3), plumb(2));
    let expected = "\
add chain ip plumb n3
set rules ip plumb n3 {
    dnat to numgen random mod 3 . ip daddr . meta l4proto . th dport map @ep
    drop
}
add element ip plumb ep { 2 . 10.96.14.7 . tcp . 80 : 10.244.2.11 . 8080 }
delete element ip plumb svc { 10.96.14.7 . tcp . 80 }
add element ip plumb svc { 10.96.14.7 . tcp . 80 : goto n3 }
flush chain ip plumb n2
delete chain ip plumb n2
";
    assert_eq!(diff(&desired, &actual).show(&desired).to_string(), expected);
}
