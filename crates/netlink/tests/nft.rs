//! The nf_tables codec without a kernel: what is written reads back, cuts are where they may be, and no bytes
//! make it panic.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use kstate::nft::build::{Value, encode};
use kstate::nft::{
    Bytes, Chain, CmpOp, CtKey, ElemData, ElemKey, Expr, FibKey, Field, MetaKey, Op, PayloadBase, Plan, Reg,
    RejectWith, Rule, Ruleset, Set, SetData, Table, TableFamily, TableId, Verdict, diff,
};
use netlink::message::{Message, messages};
use netlink::nft::{Change, Dump, EncodeError, Trace, Transaction, Transactions, touches};
use proptest::prelude::*;

fn id(family: TableFamily) -> TableId {
    TableId { family, name: "plumb".into() }
}

fn transactions(plan: &Plan, known: &Ruleset, limit: usize) -> Vec<Transaction> {
    Transactions::new(plan, known, 1, limit).collect::<Result<_, _>>().expect("the plan can be written")
}

/// What the kernel would make of the plan, if it answered dumps with what it was sent.
fn read_back(plan: &Plan, known: &Ruleset) -> Ruleset {
    let mut dump = Dump::default();
    for transaction in transactions(plan, known, 180 << 10) {
        let inner = |message: &Message<'_>| message.kind >> 8 == 10;
        for message in messages(&transaction.bytes).filter(inner) {
            dump.take(&message).expect("a message of ours");
        }
    }
    dump.finish().0
}

fn verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        Just(Verdict::Accept),
        Just(Verdict::Drop),
        Just(Verdict::Return),
        "[a-z]{1,9}".prop_map(Verdict::Jump),
        "[a-z]{1,9}".prop_map(Verdict::Goto),
    ]
}

fn reg() -> impl Strategy<Value = Reg> {
    (0..16_u8).prop_map(Reg)
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 1..17)
}

fn meta() -> impl Strategy<Value = MetaKey> {
    use MetaKey::*;
    prop::sample::select(vec![Mark, L4Proto, IifName, OifName, Nftrace, NfProto])
}

fn ct() -> impl Strategy<Value = CtKey> {
    use CtKey::*;
    prop::sample::select(vec![
        State,
        Status,
        Mark,
        OriginalSrc,
        OriginalDst,
        OriginalSrc6,
        OriginalDst6,
        OriginalProtoDst,
        ReplySrc,
        ReplySrc6,
        ReplyProtoSrc,
        Direction,
    ])
}

fn reading() -> impl Strategy<Value = Expr> {
    let base = prop::sample::select(vec![PayloadBase::Link, PayloadBase::Network, PayloadBase::Transport]);
    let op = prop::sample::select(vec![CmpOp::Eq, CmpOp::Ne, CmpOp::Lt, CmpOp::Le, CmpOp::Gt, CmpOp::Ge]);
    let fib = prop::sample::select(vec![FibKey::DaddrType, FibKey::SaddrType]);
    prop_oneof![
        (reg(), base, 0..64_u32, 1..17_u32).prop_map(|(dreg, base, offset, len)| Expr::Payload {
            dreg,
            base,
            offset,
            len
        }),
        (reg(), meta()).prop_map(|(dreg, key)| Expr::Meta { dreg, key }),
        (reg(), ct()).prop_map(|(dreg, key)| Expr::Ct { dreg, key }),
        (reg(), op, bytes()).prop_map(|(sreg, op, value)| Expr::Cmp { sreg, op, value }),
        (reg(), any::<bool>(), bytes(), bytes()).prop_map(|(sreg, invert, from, to)| Expr::Range {
            sreg,
            invert,
            from,
            to
        }),
        (reg(), reg(), bytes(), bytes()).prop_map(|(sreg, dreg, mask, xor)| Expr::Bitwise {
            sreg,
            dreg,
            mask,
            xor
        }),
        ("[a-z]{1,9}", reg(), any::<bool>()).prop_map(|(set, sreg, invert)| Expr::Lookup {
            set,
            sreg,
            invert
        }),
        ("[a-z]{1,9}", reg(), reg()).prop_map(|(set, sreg, dreg)| Expr::LookupMap { set, sreg, dreg }),
        ("[a-z]{1,9}", reg()).prop_map(|(set, sreg)| Expr::LookupVerdict { set, sreg }),
        (reg(), any::<u32>(), any::<u32>()).prop_map(|(dreg, modulus, offset)| Expr::Numgen {
            dreg,
            modulus,
            offset
        }),
        (reg(), fib).prop_map(|(dreg, key)| Expr::Fib { dreg, key }),
        reg().prop_map(|dreg| Expr::SocketWildcard { dreg }),
    ]
}

fn acting() -> impl Strategy<Value = Expr> {
    let family = || prop::sample::select(vec![TableFamily::Ip, TableFamily::Ip6]);
    let port = || prop::option::of(reg());
    let reject = prop::sample::select(vec![
        RejectWith::PortUnreachable,
        RejectWith::HostUnreachable,
        RejectWith::TcpReset,
    ]);
    prop_oneof![
        (reg(), meta()).prop_map(|(sreg, key)| Expr::MetaSet { sreg, key }),
        reg().prop_map(|sreg| Expr::CtSet { sreg, key: CtKey::Mark }),
        (reg(), bytes()).prop_map(|(dreg, value)| Expr::Immediate { dreg, value }),
        verdict().prop_map(Expr::Verdict),
        (family(), reg(), port()).prop_map(|(family, addr, port)| Expr::Dnat { family, addr, port }),
        (family(), reg()).prop_map(|(family, addr)| Expr::Snat { family, addr }),
        any::<bool>().prop_map(|fully_random| Expr::Masquerade { fully_random }),
        port().prop_map(|port| Expr::Redirect { port }),
        reject.prop_map(Expr::Reject),
        Just(Expr::Counter),
        (any::<u16>(), any::<u32>(), "[a-z]{0,20}").prop_map(|(group, snaplen, prefix)| Expr::Log {
            group,
            snaplen,
            prefix
        }),
        Just(Expr::Notrack),
        ("[a-z]{1,9}", reg(), port(), any::<u64>(), any::<bool>()).prop_map(
            |(set, key, data, timeout_ms, counts)| Expr::Update { set, key, data, timeout_ms, counts }
        ),
        // Whatever it is, it comes back as it was.
        prop::collection::vec(any::<u8>(), 0..9)
            .prop_map(|body| Expr::Foreign { name: "quota".into(), body: body.into() }),
    ]
}

fn rules() -> impl Strategy<Value = Vec<Rule>> {
    let exprs = prop::collection::vec(prop_oneof![reading(), acting()], 0..8);
    let rule = (exprs, "[ -~]{0,127}").prop_map(|(exprs, comment)| Rule { exprs, comment });
    prop::collection::vec(rule, 0..5)
}

fn field() -> impl Strategy<Value = Field> {
    use Field::*;
    prop::sample::select(vec![Ipv4, Ipv6, Proto, Port, Mark, IfName, Mac])
}

/// Random bytes of the right length as key; in interval sets a range of some of them.
fn set() -> impl Strategy<Value = Set> {
    let key = prop::collection::vec(field(), 1..4);
    let data = prop_oneof![
        Just(SetData::None),
        Just(SetData::Verdicts),
        prop::collection::vec(field(), 1..3).prop_map(SetData::Values)
    ];
    let seeds = prop::collection::btree_set(any::<[u8; 4]>(), 0..9);
    let options = (prop::option::of(1..9_u64), prop::option::of(1..9_u32), verdict());
    (key, data, any::<bool>(), seeds, options).prop_map(
        |(key, data, interval, seeds, (timeout_ms, size, verdict))| {
            let length =
                if key.len() == 1 { key[0].len() } else { key.iter().map(|field| field.padded()).sum() };
            let stretch = |seed: &[u8; 4]| -> Vec<u8> { seed.iter().copied().cycle().take(length).collect() };
            let mut points: Vec<Bytes> = seeds.iter().map(|seed| stretch(seed).as_slice().into()).collect();
            points.sort();
            points.dedup();
            let pairs: Vec<ElemKey> = match interval {
                true => points
                    .chunks_exact(2)
                    .map(|pair| ElemKey::range(pair[0].clone(), pair[1].clone()))
                    .collect(),
                false => points.into_iter().map(ElemKey::point).collect(),
            };
            let value = |key: &ElemKey| match &data {
                SetData::None => ElemData::None,
                SetData::Verdicts => ElemData::Verdict(verdict.clone()),
                SetData::Values(_) => ElemData::Value(key.start().clone()),
            };
            let elements = pairs.into_iter().map(|key| (key.clone(), value(&key))).collect();
            Set { key, data, interval, dynamic: false, timeout_ms, size, elements }
        },
    )
}

fn ruleset() -> impl Strategy<Value = Ruleset> {
    let family =
        prop::sample::select(vec![TableFamily::Ip, TableFamily::Ip6, TableFamily::Inet, TableFamily::Bridge]);
    let chains = prop::collection::btree_map(
        "[a-z]{1,5}",
        rules().prop_map(|rules| Chain { base: None, rules }),
        0..4,
    );
    let sets = prop::collection::btree_map("[a-z]{1,5}".prop_map(Arc::from), set(), 0..4);
    (family, chains, sets)
        .prop_map(|(family, chains, sets)| Ruleset { tables: [(id(family), Table { chains, sets })].into() })
}

proptest! {
    #[test]
    fn what_is_written_reads_back(desired in ruleset()) {
        let plan = diff(&desired, &Ruleset::default());
        prop_assert_eq!(read_back(&plan, &desired), desired);
    }

    /// Cut as small as it may be: every transaction is whole messages, fits or is one step, asks for one
    /// acknowledgement, and knows the step of each of its messages; together they are the plan.
    #[test]
    fn cuts_fall_between_steps(desired in ruleset(), limit in 300..3000_usize) {
        let plan = diff(&desired, &Ruleset::default());
        let mut next = 0;
        for transaction in transactions(&plan, &desired, limit) {
            prop_assert_eq!(transaction.ops.start, next);
            next = transaction.ops.end;
            // The end of the transaction is 20 bytes of its own.
            prop_assert!(transaction.bytes.len() <= limit + 20 || transaction.ops.len() == 1);
            let all: Vec<Message<'_>> = messages(&transaction.bytes).collect();
            let inner = all.iter().map(|message| message.body.len() + 16).map(|length| length.next_multiple_of(4)).sum::<usize>();
            prop_assert_eq!(inner, transaction.bytes.len());
            let acked: Vec<u32> = all.iter().filter(|message| message.flags & 4 != 0).map(|message| message.seq).collect();
            prop_assert_eq!(acked, vec![transaction.ack_seq]);
            for message in all.iter().filter(|message| message.kind >> 8 == 10) {
                prop_assert!(transaction.contains(message.seq));
                let op = transaction.op_at(message.seq, None);
                prop_assert!(op.is_some_and(|op| transaction.ops.contains(&op)));
            }
        }
        prop_assert_eq!(next, plan.ops.len());
    }

    #[test]
    fn no_bytes_panic(number in 0..20_u16, family in 0..12_u8, rest in prop::collection::vec(any::<u8>(), 0..400)) {
        feed(number, family, &rest);
    }

    /// Damaged messages of ours reach deeper than random ones.
    #[test]
    fn no_damage_panics(desired in ruleset(), at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()) {
        let plan = diff(&desired, &Ruleset::default());
        for mut transaction in transactions(&plan, &desired, 180 << 10) {
            let at = at.index(transaction.bytes.len());
            transaction.bytes[at] = byte;
            transaction.bytes.truncate(cut.index(transaction.bytes.len()) + 1);
            let mut dump = Dump::default();
            for message in messages(&transaction.bytes) {
                let _ = dump.take(&message);
                let _ = (Change::decode(&message), Trace::decode(&message), touches(&message, &[]));
            }
            let _ = dump.finish().0.to_string();
        }
    }
}

fn feed(number: u16, family: u8, rest: &[u8]) {
    let body = [&[family, 0, 0, 0], rest].concat();
    let message = Message { kind: (10 << 8) | number, flags: 0, seq: 1, portid: 0, body: &body };
    let mut dump = Dump::default();
    let _ = dump.take(&message);
    let _ = (Change::decode(&message), Trace::decode(&message), touches(&message, &[]));
    let _ = dump.finish();
}

fn endpoint(last: u8) -> (ElemKey, ElemData) {
    let vip: IpAddr = Ipv4Addr::new(10, 96, 14, 7).into();
    let pod: IpAddr = Ipv4Addr::new(10, 244, 2, last).into();
    let key = encode(&[0_u32.into(), vip.into(), Value::Proto(6), 80_u16.into()]);
    (ElemKey::point(key), ElemData::Value(encode(&[pod.into(), 8080_u16.into()])))
}

fn ep() -> Ruleset {
    let key = vec![Field::Mark, Field::Ipv4, Field::Proto, Field::Port];
    let data = SetData::Values(vec![Field::Ipv4, Field::Port]);
    let ep = Set::new(key, data);
    let table = Table { chains: BTreeMap::new(), sets: [("ep".into(), ep)].into() };
    Ruleset { tables: [(id(TableFamily::Ip), table)].into() }
}

/// The bytes of one changed endpoint, as a little-endian kernel gets them.
#[test]
#[cfg(target_endian = "little")]
fn a_changed_endpoint_in_bytes() {
    let (key, data) = endpoint(9);
    let (table, set) = (id(TableFamily::Ip), Arc::<str>::from("ep"));
    let delete = Op::DeleteElement { table: table.clone(), set: set.clone(), key: key.clone() };
    let plan = Plan { ops: vec![delete, Op::AddElement { table, set, key, data }] };
    let all = transactions(&plan, &ep(), 100);
    assert_eq!(all.len(), 1, "a changed element is not cut");
    let lines: Vec<String> =
        all[0].bytes.chunks(4).map(|word| word.iter().map(|byte| format!("{byte:02x}")).collect()).collect();
    let text: Vec<String> = lines.chunks(8).map(|words| words.join(" ")).collect();
    let expected = include_str!("changed-endpoint.hex");
    assert_eq!(text.join("\n"), expected.trim_end());
}

/// A range of 16 bytes may be one address or four fields. The wanted state no longer has the map: the step that deletes it
/// says which.
#[test]
fn an_element_of_a_map_that_goes_is_written_by_the_maps_layout() {
    let (table, set) = (id(TableFamily::Ip6), Arc::<str>::from("further_in"));
    let key = ElemKey::range([0x20; 16].into(), [0x21; 16].into());
    let map = Set { interval: true, ..Set::new([Field::Ipv6], SetData::Verdicts) };
    let element = Op::DeleteElement { table: table.clone(), set: set.clone(), key };
    let whole = Op::DeleteSet { table, set: set.clone(), layout: Box::new(map.clone()) };
    let plan = Plan { ops: vec![element, whole] };
    let nothing = Ruleset::default();
    let known = Table { sets: [(set, map)].into(), ..Table::default() };
    let known = Ruleset { tables: [(id(TableFamily::Ip6), known)].into() };
    let bytes =
        |known| transactions(&plan, known, 180 << 10).into_iter().map(|one| one.bytes).collect::<Vec<_>>();
    assert_eq!(bytes(&nothing), bytes(&known));
    let lone = Plan { ops: plan.ops[..1].to_vec() };
    assert!(Transactions::new(&lone, &nothing, 1, 180 << 10).next().expect("an answer").is_err());
}

#[test]
fn an_error_leads_to_its_element() {
    let (table, set) = (id(TableFamily::Ip), Arc::<str>::from("ep"));
    let add = |last| {
        let (_, data) = endpoint(last);
        let key = ElemKey::point([last; 16].into());
        Op::AddElement { table: table.clone(), set: set.clone(), key, data }
    };
    let plan = Plan { ops: (0..50).map(add).collect() };
    let all = transactions(&plan, &ep(), 180 << 10);
    let transaction = &all[0];
    // Element 33's key is somewhere in the one message; its offset leads back to it.
    let message_at = 20;
    let at =
        transaction.bytes.windows(16).position(|window| window == [33; 16]).expect("the key") - message_at;
    assert_eq!(transaction.op_at(2, Some(at as u32)), Some(33));
    assert_eq!(transaction.op_at(2, None), Some(0));
    assert_eq!(transaction.op_at(99, None), None);
}

#[test]
fn what_nft_could_not_list_is_refused() {
    let rules = vec![Rule { exprs: Vec::new(), comment: "x".repeat(128) }];
    let plan = Plan { ops: vec![Op::SetRules { table: id(TableFamily::Ip), chain: "n3".into(), rules }] };
    let error = Transactions::new(&plan, &Ruleset::default(), 1, 1000)
        .next()
        .expect("a transaction")
        .expect_err("too long");
    assert!(matches!(error, EncodeError::CommentTooLong { length: 128, .. }));
    assert!(error.to_string().contains("ip plumb n3"), "{error}");
}

#[test]
fn every_kind_of_notice_names_its_table() {
    // A request has the layout of the notice about it. Chain, rule, set and element of `ip plumb`:
    let mut desired = ep();
    let table = desired.tables.values_mut().next().expect("the table");
    table.chains.insert("chain".into(), Chain { base: None, rules: vec![Rule::default()] });
    let (key, data) = endpoint(9);
    table.sets.get_mut("ep").expect("the map").elements.insert(key, data);
    let all = transactions(&diff(&desired, &Ruleset::default()), &desired, 180 << 10);
    let others = [TableFamily::Ip6, TableFamily::Inet, TableFamily::Bridge].map(id);
    let mut kinds = BTreeSet::new();
    for message in all.iter().flat_map(|transaction| messages(&transaction.bytes)) {
        if message.kind >> 8 != 10 {
            continue;
        }
        kinds.insert(message.kind & 0xff);
        assert!(touches(&message, &[id(TableFamily::Ip)]), "{message:?}");
        assert!(!touches(&message, &others), "{message:?}");
        let longer = TableId { family: TableFamily::Ip, name: "plumber".into() };
        assert!(!touches(&message, &[longer]), "{message:?}");
        // A name that cannot be read may be ours; that of a device's table (NFPROTO_NETDEV) is not.
        let mut body = message.body.to_vec();
        body.truncate(6);
        assert!(touches(&Message { body: &body, ..message }, &others), "{body:?}");
        body[0] = 5;
        assert!(!touches(&Message { body: &body, ..message }, &others), "{body:?}");
    }
    assert_eq!(
        Vec::from_iter(kinds),
        [0, 3, 6, 8, 9, 12],
        "tables, chains, rules (gone, too), sets, elements"
    );
}
