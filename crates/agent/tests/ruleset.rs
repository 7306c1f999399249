//! What is compiled meets the kernel: random histories of random clusters, plan by plan, in a network namespace of
//! their own. The kernel accepts every plan and then holds exactly what was compiled, and `nft` lists it.

use std::process::Command;

use kernel::{Netns, Nft};
use kstate::nft::{TableId, diff};
use model::{Cluster, Key};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

#[path = "../../compile/tests/made/made.rs"]
mod made;
#[path = "../../trace/tests/battery/world.rs"]
#[allow(dead_code, reason = "shared with the battery, which needs all of it")]
mod world;

use made::Made;

const HISTORIES: usize = 12;

#[test]
fn the_kernel_takes_what_is_compiled() {
    let mut runner = TestRunner::deterministic();
    for number in 0..HISTORIES {
        let history = world::history().new_tree(&mut runner).expect("a history").current();
        let netns = Netns::fresh().expect("a network namespace");
        netns.run(|| play(number, history)).expect("the test's body");
    }
}

fn play(number: usize, history: Vec<model::Event>) {
    let mut cluster = Cluster::default();
    let mut compiler = Made::new(world::settings());
    let mut nft = Nft::open().expect("a socket");
    let mut pending: Vec<Key> = world::start().into_iter().flat_map(|event| cluster.apply(event)).collect();
    let steps = history.len();
    for (at, event) in [None].into_iter().chain(history.into_iter().map(Some)).enumerate() {
        pending.extend(event.into_iter().flat_map(|event| cluster.apply(event)));
        let (plan, _) = compiler.update(cluster.synced().expect("all kinds are done"), &pending);
        pending.clear();
        nft.apply(&plan, compiler.nft()).unwrap_or_else(|error| {
            panic!("history {number}, step {at}: {error}\n{}", plan.show(compiler.nft()))
        });
        if at % 16 == 0 || at == steps {
            let ids: Vec<TableId> = compiler.nft().tables.keys().cloned().collect();
            let observed = nft.observe(&ids).expect("observe").ruleset;
            let plan = diff(compiler.nft(), &observed);
            assert!(
                plan.is_empty(),
                "history {number}, step {at}: the kernel differs by\n{}",
                plan.show(&observed)
            );
        }
    }
    let listed = Command::new("nft").args(["list", "ruleset"]).output().expect("nft is installed");
    let error = String::from_utf8_lossy(&listed.stderr);
    assert!(
        listed.status.success() && error.is_empty(),
        "history {number}: nft list: {:?} {error}",
        listed.status
    );
    assert!(
        String::from_utf8_lossy(&listed.stdout)
            .contains("map @front meta mark set meta mark meta mark vmap @leads"),
        "history {number}"
    );
}
