//! Who hears what of nf_tables, each test in a network namespace of its own.

use std::io::Write;
use std::process::{Command, Stdio};

use kernel::Netns;
use kernel::nft::{ForeignChanges, Nft};
use kstate::nft::build::encode;
use kstate::nft::{ElemData, ElemKey, Field, Ruleset, Set, SetData, Table, TableFamily, TableId, diff};

fn ours() -> Vec<TableId> {
    vec![TableId { family: TableFamily::Ip, name: "plumb".into() }]
}

/// Our table with a set of that many numbers.
fn numbers(count: u32) -> Ruleset {
    let mut set = Set::new([Field::Mark], SetData::None);
    let key = |number: u32| ElemKey::point(encode(&[number.into()]));
    set.elements.extend((0..count).map(|number| (key(number), ElemData::None)));
    let table = Table { sets: [("numbers".into(), set)].into(), ..Table::default() };
    Ruleset { tables: ours().into_iter().map(|id| (id, table.clone())).collect() }
}

/// The same as nft's own language.
fn foreign_numbers(table: &str, count: u32) -> String {
    let all: Vec<String> = (0..count).map(|number| number.to_string()).collect();
    format!(
        "add table {table}; add set {table} s {{ type mark; }}; add element {table} s {{ {} }}",
        all.join(",")
    )
}

/// One transaction of another program.
#[track_caller]
fn nft(script: &str) {
    let mut nft = Command::new("nft");
    let mut nft = nft.args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("nft is installed");
    nft.stdin.take().expect("its input").write_all(script.as_bytes()).expect("it reads");
    assert!(nft.wait().expect("it ends").success(), "{:.200}", script);
}

/// A listener in a fresh network namespace, and us.
fn listening(body: impl FnOnce(Nft, ForeignChanges) + Send) {
    let inside = || {
        let nft = Nft::open().expect("a socket");
        let changes = ForeignChanges::open(ours(), nft.portid()).expect("a listener");
        body(nft, changes);
    };
    Netns::fresh().expect("a network namespace").run(inside).expect("the test's body");
}

#[test]
fn only_what_others_do_to_our_tables_is_heard() {
    listening(|mut own, mut changes| {
        let mut heard = |script: &str| {
            nft(script);
            let heard = changes.take().expect("changes");
            assert!(!changes.take().expect("changes"), "heard twice: {script:.200}");
            heard
        };
        let desired = numbers(3);
        own.apply(&diff(&desired, &Ruleset::default()), &desired).expect("apply");
        let large = foreign_numbers("ip other", 2000);
        for foreign in [
            "add table ip other; add chain ip other plumb; add rule ip other plumb counter",
            "add table ip6 plumb; add table inet plumb; add table bridge plumb; add table ip plumber",
            &large,
            "add counter ip other c; add chain ip other gate { type filter hook input priority 0; policy drop; }",
            "flush table ip other; delete table ip other; delete table ip6 plumb",
        ] {
            assert!(!heard(foreign), "{foreign:.200}");
        }
        // Wherever in a transaction that fills many datagrams.
        let (before, after) = (foreign_numbers("ip a", 2000), foreign_numbers("ip b", 2000));
        let amidst = format!("{before}; add element ip plumb numbers {{ 4 }}; {after}");
        for touching in [
            "add chain ip plumb stray",
            "add rule ip plumb stray counter",
            "flush chain ip plumb stray",
            "add set ip plumb strays { type ipv4_addr; }",
            "add element ip plumb strays { 10.0.0.1 }",
            "delete element ip plumb strays { 10.0.0.1 }",
            "flush set ip plumb numbers",
            "add counter ip plumb count",
            "add table ip plumb { flags dormant; }",
            "add table ip other; add chain ip plumb late",
            "add chain ip plumb late2; add table ip other2",
            &amidst,
            "flush ruleset",
            "add table ip plumb",
        ] {
            assert!(heard(touching), "{touching:.200}");
        }
    });
}

/// Our own load does not come near the queue; one of others that does not fit is a doubt.
#[test]
fn what_was_lost_may_have_been_ours() {
    listening(|mut own, mut changes| {
        rustix::net::sockopt::set_socket_recv_buffer_size(&changes, 4096).expect("a short queue");
        let desired = numbers(20_000);
        own.apply(&diff(&desired, &Ruleset::default()), &desired).expect("apply");
        assert!(!changes.take().expect("changes"), "our own transaction");
        nft(&foreign_numbers("ip other", 2000));
        assert!(changes.take().expect("changes"), "nobody knows what was lost");
        // Then it goes on.
        nft("delete table ip other");
        assert!(!changes.take().expect("changes"));
        nft("flush ruleset");
        assert!(changes.take().expect("changes"));
    });
}
