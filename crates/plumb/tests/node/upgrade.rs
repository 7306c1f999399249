//! Agents of this version take over from those of commit 039c3aa while packets pass and others are denied: sets, classes,
//! chains of affinity and guards get other names, two tables are new. No denied packet arrives, no connection ends, no
//! client of a Service with affinity changes its endpoint, and no name of before is left.
//!
//! ```text
//!   node1: vault1 echo1 friend1 stranger1 mute1     node2: vault2 echo2 friend2 stranger2
//!   vaults hear friends only, mute1 may say nothing, `pinned` (echo1, echo2) has affinity and source ranges
//! ```
//!
//! What the earlier agents leave in nf_tables and on disk is recorded in `upgrade/039c3aa`; links and routes are the same
//! in both versions, so this version's agents make them. With `PLUMB_FORMER`, the path of an agent of that commit, its
//! processes make everything instead, and are killed under traffic.

mod former;
mod traffic;
mod world;

use std::collections::BTreeMap;
use std::path::PathBuf;

use types::{Families, Family};

use crate::stage::{Stage, wait_for};
use traffic::{Denied, Stream};
use world::World;

/// Names of 039c3aa end in 16 digits, those of today in 32.
fn former_names(stage: &Stage) -> Vec<String> {
    let mut found = Vec::new();
    for node in &stage.nodes {
        let rules = node.run("nft -s list ruleset");
        let words = rules.split(|c: char| !(c.is_ascii_alphanumeric() || "_.-".contains(c)));
        let former = words.filter(|word| {
            let hash = |part: &str| part.len() == 16 && part.bytes().all(|b| b.is_ascii_hexdigit());
            word.split('_').any(hash)
        });
        found.extend(former.map(|word| format!("{}: {word}", node.name)));
    }
    found
}

/// Which endpoint each client outside is led to.
fn endpoints(world: &World, stage: &Stage) -> BTreeMap<String, String> {
    let ask = |(client, to)| (format!("{client} → {to}"), traffic::who_answers(&stage.underlay, client, to));
    world.clients().into_iter().map(ask).collect()
}

/// Everything that goes on, and must.
fn streams(world: &World, stage: &Stage) -> Vec<Stream> {
    let mut streams = Vec::new();
    for family in Family::ALL {
        let friends = ["friend1", "friend2"].map(|friend| &world.pods[friend].netns);
        for netns in friends {
            for vault in ["vault1", "vault2"] {
                streams.push(Stream::tcp(netns, world.at(vault, family)));
                streams.push(Stream::udp(netns, world.at(vault, family)));
            }
            streams.push(Stream::tcp(netns, world.service(family)));
            streams.push(Stream::udp(netns, world.service(family)));
        }
        streams.push(Stream::tcp(&stage.underlay, world.balanced(family)));
    }
    streams
}

/// Everything that is tried and must not arrive.
fn attempts(world: &World, stage: &Stage) -> Vec<Denied> {
    let both = |names: [&str; 2]| {
        Family::ALL.iter().flat_map(|f| names.map(|name| world.at(name, *f))).collect::<Vec<_>>()
    };
    let beyond: Vec<_> = Family::ALL.iter().map(|family| world.outside(*family)).collect();
    vec![
        Denied::start(&world.pods["stranger1"].netns, &both(["vault1", "vault2"])),
        Denied::start(&world.pods["stranger2"].netns, &both(["vault1", "vault2"])),
        Denied::start(&world.pods["mute1"].netns, &[both(["echo1", "echo2"]), beyond].concat()),
        Denied::start_from(&stage.underlay, world::STRANGER, &[world.guarded()]),
    ]
}

#[test]
fn agents_that_take_over_from_039c3aa_open_nothing_and_end_nothing() {
    let mut stage = Stage::of(2, Families::Dual);
    let program = std::env::var_os("PLUMB_FORMER").map(PathBuf::from);
    if let Some(program) = &program {
        former::begin(&mut stage, program);
    }
    let world = World::new(&stage);
    if program.is_none() {
        former::load(&mut stage);
    }
    assert!(former_names(&stage).len() > 20, "the rules are of 039c3aa: {:?}", former_names(&stage));
    let led = endpoints(&world, &stage);
    let of_both: std::collections::BTreeSet<_> = led.values().collect();
    assert_eq!(of_both.len(), 2, "clients are spread: {led:?}");

    let watches = world.watches(&stage);
    let streams = streams(&world, &stage);
    let attempts = attempts(&world, &stage);
    let go_on = |more: u64| {
        for stream in &streams {
            stream.goes_on(more);
        }
        for denied in &attempts {
            denied.goes_on(200 * more);
        }
    };
    go_on(20);
    for number in 0..stage.nodes.len() {
        let node = &mut stage.nodes[number];
        node.kill();
        go_on(5);
        let node = &mut stage.nodes[number];
        node.program = crate::said::plumb();
        node.start();
        node.wait_ready();
        go_on(20);
    }
    wait_for("names of before are gone", || former_names(&stage).is_empty().then_some(()));
    for node in &stage.nodes {
        assert_eq!(node.run("nft list tables").lines().count(), 3, "{}", node.name);
    }
    go_on(20);
    for (name, watch) in &watches {
        assert_eq!(watch.counted(), 0, "packets that were denied came to {name}");
    }
    assert_eq!(endpoints(&world, &stage), led, "clients keep their endpoints");
    // That the watches see what comes, and that what is tried could come.
    world.open(&stage);
    for (name, watch) in &watches {
        wait_for(&format!("with everything allowed something comes to {name}"), || {
            (watch.counted() > 0).then_some(())
        });
    }
}
