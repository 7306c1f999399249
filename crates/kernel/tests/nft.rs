//! nf_tables against the kernel, each test in a network namespace of its own.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kernel::Netns;
use kernel::nft::{ApplyError, Changes, Nft, Notice, TraceEvents};
use kstate::nft::build::*;
use kstate::nft::{
    BaseChain, Chain, ChainKind, CmpOp, ElemData, ElemKey, Expr, Field, Hook, Op, Plan, Reg, Rule, Ruleset,
    Set, SetData, Table, TableFamily, TableId, Verdict, diff,
};
use netlink::nft::{Trace, TraceVerdict};
use types::Protocol;

fn id(name: &str) -> TableId {
    TableId { family: TableFamily::Ip, name: name.into() }
}

fn set(key: &[Field], data: SetData) -> Set {
    Set::new(key, data)
}

fn key(values: &[Value<'_>]) -> ElemKey {
    ElemKey::point(encode(values))
}

fn range(from: &[Value<'_>], to: &[Value<'_>]) -> ElemKey {
    ElemKey::range(encode(from), encode(to))
}

fn goto_chain(chain: &str) -> ElemData {
    ElemData::Verdict(Verdict::Goto(chain.into()))
}

fn ip(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    Ipv4Addr::new(a, b, c, d).into()
}

fn base(kind: ChainKind, hook: Hook, priority: i32, rules: Vec<Rule>) -> Chain {
    Chain { base: Some(BaseChain { kind, hook, priority, drop: false }), rules }
}

fn regular(rules: Vec<Rule>) -> Chain {
    Chain { base: None, rules }
}

const TUPLE: [Field; 3] = [Field::Ipv4, Field::Proto, Field::Port];
const TCP: Value<'static> = Value::Proto(6);

fn tuple(reg: u8) -> Vec<Expr> {
    vec![ip_daddr(Reg(reg)), l4proto(Reg(reg + 1)), th_dport(Reg(reg + 2))]
}

/// `front`, then `rest`, as one rule.
fn line(comment: &str, parts: impl IntoIterator<Item = Vec<Expr>>) -> Rule {
    rule(comment, parts.into_iter().flatten())
}

fn sets() -> BTreeMap<Arc<str>, Set> {
    let r = |name: &str, set: Set| (Arc::from(name), set);
    let mut ep = set(
        &[Field::Mark, Field::Ipv4, Field::Proto, Field::Port],
        SetData::Values(vec![Field::Ipv4, Field::Port]),
    );
    let vip = Value::Addr(ip(10, 96, 14, 7));
    for slot in 0..3_u32 {
        let data = encode(&[Value::Addr(ip(10, 244, 2, 9 + slot as u8)), Value::Port(8080)]);
        ep.elements.insert(key(&[slot.into(), vip, TCP, 80_u16.into()]), ElemData::Value(data));
    }
    let mut svc = set(&TUPLE, SetData::Verdicts);
    svc.elements.insert(key(&[vip, TCP, 80_u16.into()]), goto_chain("n3"));
    svc.elements.insert(
        key(&[Value::Addr(ip(10, 96, 0, 10)), Value::Proto(17), 53_u16.into()]),
        ElemData::Verdict(Verdict::Drop),
    );
    let mut nets = Set { interval: true, ..set(&[Field::Ipv4], SetData::None) };
    nets.elements.insert(range(&[ip(10, 0, 0, 0).into()], &[ip(10, 0, 0, 255).into()]), ElemData::None);
    nets.elements.insert(range(&[ip(10, 0, 1, 0).into()], &[ip(10, 0, 1, 9).into()]), ElemData::None);
    nets.elements.insert(range(&[ip(255, 0, 0, 0).into()], &[ip(255, 255, 255, 255).into()]), ElemData::None);
    let mut ranges =
        Set { interval: true, size: Some(64), ..set(&[Field::Ipv4, Field::Port], SetData::Verdicts) };
    let (from, to) = (Value::Addr(ip(192, 168, 0, 0)), Value::Addr(ip(192, 168, 0, 255)));
    ranges
        .elements
        .insert(range(&[from, 8000_u16.into()], &[to, 8100_u16.into()]), ElemData::Verdict(Verdict::Return));
    let mut ports = Set { interval: true, ..set(&[Field::Port], SetData::Verdicts) };
    ports.elements.insert(range(&[30000_u16.into()], &[32767_u16.into()]), goto_chain("rej"));
    let mut links = set(&[Field::IfName], SetData::None);
    links.elements.insert(key(&[Value::IfName("cni0")]), ElemData::None);
    let mut v6 = set(&[Field::Ipv6], SetData::Values(vec![Field::Mark]));
    v6.elements.insert(
        key(&["fd00::1".parse::<IpAddr>().expect("an address").into()]),
        ElemData::Value(encode(&[7_u32.into()])),
    );
    let affinity = Set {
        dynamic: true,
        timeout_ms: Some(10_800_000),
        size: Some(65535),
        ..set(
            &[Field::Ipv4, Field::Ipv4, Field::Proto, Field::Port],
            SetData::Values(vec![Field::Ipv4, Field::Port]),
        )
    };
    [
        r("ep", ep),
        r("svc", svc),
        r("nets", nets),
        r("ranges", ranges),
        r("ports", ports),
        r("links", links),
        r("v6", v6),
        r("aff", affinity),
    ]
    .into()
}

/// A rule of every expression that we write.
fn chains() -> BTreeMap<String, Chain> {
    let r = Reg(0);
    let pick = line("", [vec![numgen(r, 3)], tuple(1), vec![map("ep", r, r), dnat_ip(r, Reg(1))]]);
    let local =
        line("", [vec![numgen_from(r, 1, 65536)], tuple(1), vec![map("ep", r, r), dnat_ip(r, Reg(1))]]);
    let services = regular(vec![
        line("services", [tuple(0), vec![vmap("svc", r)]]),
        line(
            "",
            [
                vec![fib_daddr_type(r), is(r, RTN_LOCAL)],
                tuple(1),
                vec![lookup_not("nets", Reg(1)), jump("rej")],
            ],
        ),
        rule("", [th_dport(r), vmap("ports", r)]),
        rule("", [ip_saddr(r), th_dport(Reg(1)), vmap("ranges", r)]),
        rule(
            "",
            [
                Expr::Fib { dreg: r, key: kstate::nft::FibKey::SaddrType },
                cmp(r, CmpOp::Ne, 2_u32.to_ne_bytes()),
                counter(),
            ],
        ),
        rule("", [iifname(r), lookup("links", r), ret()]),
        rule("", [oifname(r), is(r, Value::IfName("eth0")), accept()]),
        rule("", [iifname(r), cmp(r, CmpOp::Eq, *b"veth"), accept()]),
    ]);
    let learn = rule(
        "",
        [
            l4proto(r),
            is(r, Protocol::Tcp),
            ct_original_saddr(r),
            ct_original_daddr(Reg(1)),
            l4proto(Reg(2)),
            ct_original_dport(Reg(3)),
            ip_daddr(Reg(4)),
            th_dport(Reg(5)),
            Expr::Update {
                set: "aff".into(),
                key: r,
                data: Some(Reg(4)),
                timeout_ms: 10_800_000,
                counts: false,
            },
        ],
    );
    let postrouting = vec![
        line("", [vec![ct_status(r)], has_bits(r, ct_status::DST_NAT).to_vec(), vec![jump("learn")]]),
        line(
            "marked",
            [
                vec![mark(r)],
                has_bits(r, 0x4000).to_vec(),
                vec![mark(r), and(r, !0x4000), set_mark(r), masquerade_random()],
            ],
        ),
        line(
            "",
            [
                vec![ip_saddr(r)],
                in_prefix(r, "10.244.0.0/16".parse().expect("a prefix")),
                vec![ip_daddr(r)],
                not_in_prefix(r, "10.244.0.0/16".parse().expect("a prefix")),
                vec![masquerade()],
            ],
        ),
        rule("", [immediate(r, [192, 168, 1, 10]), Expr::Snat { family: TableFamily::Ip, addr: r }]),
    ];
    let forward = vec![
        line(
            "",
            [
                vec![ct_state(r)],
                has_bits(r, ct_state::ESTABLISHED | ct_state::RELATED).to_vec(),
                vec![accept()],
            ],
        ),
        line(
            "",
            [vec![
                l4proto(r),
                is(r, Protocol::Tcp),
                th_dport(r),
                within(r, 8000_u16, 8100_u16),
                counter(),
                log(100, 64, "p1"),
                drop(),
            ]],
        ),
        line("", [vec![mark(r), or(r, 1), set_ct_mark(r), ct_mark(r), is_not(r, 0_u32), reject_tcp_reset()]]),
    ];
    let prerouting = vec![
        rule("", [jump("services")]),
        rule("", [l4proto(r), is(r, Protocol::Udp), Expr::Redirect { port: None }]),
        rule("", [l4proto(r), is(r, Protocol::Tcp), immediate(r, [0, 80]), Expr::Redirect { port: Some(r) }]),
    ];
    let raw = vec![
        line("trace", [vec![ip_daddr(r), is(r, ip(10, 96, 14, 7))], nftrace(r).to_vec()]),
        line(
            "dns",
            [vec![
                l4proto(r),
                is(r, Protocol::Udp),
                th_dport(r),
                is(r, 53_u16),
                socket_wildcard(r),
                is(r, Value::Proto(0)),
                notrack(),
            ]],
        ),
    ];
    let output = vec![rule(
        "",
        [
            immediate(r, [10, 0, 0, 1]),
            immediate(Reg(1), [0, 80]),
            l4proto(Reg(2)),
            is(Reg(2), Protocol::Tcp),
            dnat_ip(r, Reg(1)),
        ],
    )];
    [
        ("n3", regular(vec![pick, local, rule("", [drop()])])),
        ("rej", regular(vec![rule("no endpoints", [reject()])])),
        ("services", services),
        ("learn", regular(vec![learn])),
        ("prerouting", base(ChainKind::Nat, Hook::Prerouting, -100, prerouting)),
        ("raw", base(ChainKind::Filter, Hook::Prerouting, -300, raw)),
        ("output", base(ChainKind::Nat, Hook::Output, -100, output)),
        ("forward", base(ChainKind::Filter, Hook::Forward, 0, forward)),
        ("postrouting", base(ChainKind::Nat, Hook::Postrouting, 100, postrouting)),
        ("route", base(ChainKind::Route, Hook::Output, -150, vec![rule("", [goto("rej")])])),
        (
            "input",
            Chain {
                base: Some(BaseChain { kind: ChainKind::Filter, hook: Hook::Input, priority: 5, drop: true }),
                rules: vec![rule("", [nfproto(r), is(r, Value::Proto(2)), accept()])],
            },
        ),
    ]
    .map(|(name, chain)| (name.to_owned(), chain))
    .into()
}

fn everything() -> Ruleset {
    Ruleset { tables: [(id("plumb"), Table { chains: chains(), sets: sets() })].into() }
}

/// Runs `body` in a fresh network namespace, which goes away with it.
fn in_fresh_netns(body: impl FnOnce() + Send) {
    Netns::fresh().expect("a network namespace").run(body).expect("the test's body");
}

fn apply(nft: &mut Nft, desired: &Ruleset) -> Result<(), ApplyError> {
    let ids: Vec<TableId> = desired.tables.keys().cloned().collect();
    let actual = nft.observe(&ids)?.ruleset;
    nft.apply(&diff(desired, &actual), desired)
}

fn nft_command(arguments: &[&str]) -> String {
    let output = Command::new("nft").args(arguments).output().expect("nft is installed");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "nft {arguments:?}: {}\n{text}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

#[test]
fn what_is_applied_is_observed() {
    in_fresh_netns(|| {
        let (mut nft, desired) = (Nft::open().expect("a socket"), everything());
        apply(&mut nft, &desired).expect("apply");
        let observed = nft.observe(&[id("plumb")]).expect("observe");
        assert_eq!(observed.ruleset.to_string(), desired.to_string());
        assert_eq!(observed.ruleset, desired);
        assert!(diff(&desired, &observed.ruleset).is_empty());
        let (chain, handles) = observed.handles.iter().next().expect("handles");
        let rule = handles.first().and_then(|handle| observed.rule(&chain.0, &chain.1, *handle));
        assert_eq!(rule, desired.tables[&id("plumb")].chains[&chain.1].rules.first());
        let listed = nft_command(&["list", "ruleset"]);
        for shown in [
            "comment \"services\"",
            "numgen random mod 3",
            "map @ep",
            "10.96.14.7 . tcp . 80 : goto n3",
            "10.0.0.0/24",
        ] {
            assert!(listed.contains(shown), "{shown} is not in\n{listed}");
        }
        // And away again.
        let nothing = Ruleset::default();
        nft.apply(&diff(&nothing, &observed.ruleset), &nothing).expect("clean up");
        assert!(nft.observe(&[id("plumb")]).expect("observe").ruleset.tables.is_empty());
    });
}

#[test]
fn a_refused_step_is_named() {
    in_fresh_netns(|| {
        let mut nft = Nft::open().expect("a socket");
        let mut desired = everything();
        apply(&mut nft, &desired).expect("apply");
        let (table, set) = (id("plumb"), Arc::<str>::from("svc"));
        let element = |last, chain| Op::AddElement {
            table: table.clone(),
            set: set.clone(),
            key: key(&[Value::Addr(ip(10, 96, 1, last)), TCP, 80_u16.into()]),
            data: goto_chain(chain),
        };
        let plan =
            Plan { ops: vec![element(1, "n3"), element(2, "n3"), element(3, "nowhere"), element(4, "n3")] };
        let error = nft.apply(&plan, &desired).expect_err("a chain is missing");
        let said = error.to_string();
        let words = "refused to add element 10.96.1.3 . tcp . 80 of map ip plumb svc, which leads to goto nowhere: No such";
        assert!(said.contains(words), "{said}");
        assert_eq!(error.errno(), Some(2));
        // Nothing of the transaction has happened, and the socket goes on.
        assert_eq!(nft.observe(&[id("plumb")]).expect("observe").ruleset, desired);
        if let Some(table) = desired.tables.get_mut(&id("plumb")) {
            table.chains.remove("route");
        }
        apply(&mut nft, &desired).expect("apply after a refusal");
        assert_eq!(nft.observe(&[id("plumb")]).expect("observe").ruleset, desired);
    });
}

#[test]
fn a_foreign_flush_is_seen_and_mended() {
    in_fresh_netns(|| {
        let (mut nft, desired) = (Nft::open().expect("a socket"), everything());
        let mut changes = Changes::open().expect("a listener");
        apply(&mut nft, &desired).expect("apply");
        let seen = changes.take().expect("changes");
        assert!(!seen.is_empty());
        for change in seen {
            let Notice::Event(change) = change else { panic!("lost notices") };
            assert_eq!(change.portid, nft.portid());
        }
        nft_command(&[
            "add", "rule", "ip", "plumb", "forward", "tcp", "dport", "{ 1, 2 }", "limit", "rate", "1/second",
            "drop",
        ]);
        nft_command(&[
            "delete",
            "element",
            "ip",
            "plumb",
            "ep",
            "{",
            "0x00000001 . 10.96.14.7 . tcp . 80",
            "}",
        ]);
        let seen = changes.take().expect("changes");
        let Some(Notice::Event(change)) = seen.last() else { panic!("no change was seen: {seen:?}") };
        assert_ne!(change.portid, nft.portid());
        assert_eq!(change.process, "nft");
        let observed = nft.observe(&[id("plumb")]).expect("observe").ruleset;
        let plan = diff(&desired, &observed);
        assert!(!plan.is_empty());
        nft.apply(&plan, &desired).expect("mend");
        assert_eq!(nft.observe(&[id("plumb")]).expect("observe").ruleset, desired);
        nft_command(&["flush", "ruleset"]);
        assert!(nft.observe(&[id("plumb")]).expect("observe").ruleset.tables.is_empty());
        apply(&mut nft, &desired).expect("mend again");
        assert_eq!(nft.observe(&[id("plumb")]).expect("observe").ruleset, desired);
    });
}

/// The flat layout with `services` services of `endpoints` endpoints each.
fn load(services: u32, endpoints: u32) -> Ruleset {
    let mut ruleset = everything();
    let table = ruleset.tables.get_mut(&id("plumb")).expect("the table");
    for service in 0..services {
        let vip = Value::Addr(Ipv4Addr::from((10 << 24) + (100 << 16) + service).into());
        for slot in 0..endpoints {
            let pod = Ipv4Addr::from((10 << 24) + (128 << 16) + service * endpoints + slot);
            let data = ElemData::Value(encode(&[pod.into(), 8080_u16.into()]));
            let key = key(&[slot.into(), vip, TCP, 80_u16.into()]);
            table.sets.get_mut("ep").expect("ep").elements.insert(key, data);
        }
        let key = key(&[vip, TCP, 80_u16.into()]);
        table.sets.get_mut("svc").expect("svc").elements.insert(key, goto_chain("n3"));
    }
    ruleset
}

#[test]
fn ten_thousand_services_fit_a_stock_buffer() {
    in_fresh_netns(|| {
        let (mut nft, mut desired) = (Nft::open().expect("a socket"), load(10_000, 10));
        nft.stock_send_buffer().expect("set the send buffer");
        let began = Instant::now();
        apply(&mut nft, &desired).expect("load");
        let loaded = began.elapsed();
        let began = Instant::now();
        assert_eq!(nft.observe(&[id("plumb")]).expect("observe").ruleset, desired);
        let observed = began.elapsed();
        let before = desired.clone();
        let table = desired.tables.get_mut(&id("plumb")).expect("the table");
        let element =
            table.sets.get_mut("ep").and_then(|ep| ep.elements.values_mut().last()).expect("an element");
        *element = ElemData::Value(encode(&[ip(10, 200, 0, 1).into(), 9090_u16.into()]));
        let began = Instant::now();
        let plan = diff(&desired, &before);
        let compared = began.elapsed();
        assert_eq!(plan.ops.len(), 2, "{plan}");
        let began = Instant::now();
        nft.apply(&plan, &desired).expect("one changed endpoint");
        let changed = began.elapsed();
        println!(
            "10,000 services of 10 endpoints: diff and load {loaded:?}, observe {observed:?}; \
             one changed endpoint: diff of everything {compared:?}, apply {changed:?}"
        );
        assert_eq!(nft.observe(&[id("plumb")]).expect("observe").ruleset, desired);
    });
}

/// A traced packet tells the rules it meets, from the address it was sent to, to the verdict that drops it.
#[test]
fn a_traced_packet_names_its_rules() {
    in_fresh_netns(|| {
        loopback_up();
        let r = Reg(0);
        let mark_it = line("trace", [vec![th_dport(r), is(r, 9_u16)], nftrace(r).to_vec()]);
        let verdict = line("dropped here", [vec![th_dport(r), is(r, 9_u16), counter(), goto("denied")]]);
        let chains = [
            ("output".to_owned(), base(ChainKind::Filter, Hook::Output, -300, vec![mark_it])),
            (
                "input".to_owned(),
                base(
                    ChainKind::Filter,
                    Hook::Input,
                    0,
                    vec![rule("other", [l4proto(r), is(r, Protocol::Tcp)]), verdict],
                ),
            ),
            ("denied".to_owned(), regular(vec![rule("the end", [drop()])])),
        ];
        let desired = Ruleset {
            tables: [(id("plumb"), Table { chains: chains.into(), sets: BTreeMap::new() })].into(),
        };
        let mut nft = Nft::open().expect("a socket");
        apply(&mut nft, &desired).expect("apply");
        let mut traces = TraceEvents::open().expect("a listener");
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.set_nonblocking(true).expect("nonblocking");
        socket.send_to(b"hello", "127.0.0.1:9").expect("send");
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut events = Vec::new();
        while Instant::now() < deadline
            && !events.iter().any(|trace: &Trace| trace.verdict == TraceVerdict::Verdict(Verdict::Drop))
        {
            wait(&traces, deadline);
            for notice in traces.take().expect("traces") {
                let Notice::Event(trace) = notice else { panic!("lost traces") };
                events.push(trace);
            }
        }
        let observed = nft.observe(&[id("plumb")]).expect("observe");
        let told: Vec<String> = events
            .iter()
            .map(|trace| {
                let rule = trace.handle.and_then(|handle| observed.rule(&trace.table, &trace.chain, handle));
                format!(
                    "{} {:?} {}",
                    trace.chain,
                    trace.kind,
                    rule.map(|rule| rule.comment.as_str()).unwrap_or_default()
                )
            })
            .collect();
        assert_eq!(
            told,
            ["output Rule trace", "output Policy ", "input Rule dropped here", "denied Rule the end"],
            "{events:#?}"
        );
        let first = events.iter().find(|trace| !trace.network_header.is_empty()).expect("headers");
        assert_eq!(first.network_header.get(16..20), Some(&[127, 0, 0, 1][..]));
        assert_eq!(first.transport_header.get(2..4), Some(&[0, 9][..]));
        // A new input interface is a new id: what leaves by loopback comes in as another packet.
        let mut ids: Vec<u32> = events.iter().map(|trace| trace.id).collect();
        ids.dedup();
        assert_eq!(ids.len(), 2, "{events:#?}");
        assert!(
            events.iter().any(|trace| trace.iif.is_some()) && events.iter().any(|trace| trace.oif.is_some())
        );
    });
}

fn loopback_up() {
    let output = Command::new("ip").args(["link", "set", "lo", "up"]).output().expect("ip is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Until something has come, or the deadline.
fn wait(listener: &impl AsFd, deadline: Instant) {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout =
        rustix::event::Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
    let mut fds = [rustix::event::PollFd::new(listener, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut fds, Some(&timeout)).expect("poll");
}

/// So a look knows in one question whether anybody else has changed anything since.
#[test]
fn the_generation_is_raised_by_each_of_our_transactions_and_by_others() {
    in_fresh_netns(|| {
        let mut nft = Nft::open().expect("a socket");
        let before = nft.generation().expect("a generation");
        let desired = everything();
        apply(&mut nft, &desired).expect("the kernel takes it");
        assert!(nft.committed() > 0);
        assert_eq!(nft.generation().expect("a generation"), before + nft.committed());
        nft_command(&["add", "table", "ip", "other"]);
        assert_eq!(nft.generation().expect("a generation"), before + nft.committed() + 1);
    });
}

/// Whoever holds a table by its socket is named as the likely cause, and nobody is told to be root.
#[test]
fn a_table_that_another_program_owns_is_named() {
    use std::io::Write;
    use std::process::{Command, Stdio};
    in_fresh_netns(|| {
        let mut holder =
            Command::new("nft").arg("-i").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("nft");
        let mut stdin = holder.stdin.take().expect("its input");
        stdin.write_all(b"add table ip plumb { flags owner; }\n").expect("tell nft");
        let mut nft = Nft::open().expect("a socket");
        let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while nft.observe(&[id("plumb")]).expect("observe").ruleset.tables.is_empty() {
            assert!(std::time::Instant::now() < end, "nft has made no table");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let desired = everything();
        let refused = apply(&mut nft, &desired).expect_err("it is another program's");
        let said = refused.to_string();
        for words in ["refused to add ", " ip plumb ", "another program owns the table"] {
            assert!(said.contains(words), "{said}");
        }
        assert!(!said.contains(['{', '\n']) && said.matches("not permitted").count() == 1, "{said}");
        std::mem::drop(stdin);
        holder.wait().expect("nft ends");
        apply(&mut nft, &desired).expect("nobody has it any more");
    });
}
