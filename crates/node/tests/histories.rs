//! Any history of ADD, DEL, GC, ends of pods and namespaces, a deaf API, a full disk, refused rules, failures of the kernel,
//! and a kill between any two outputs: no address is in two sandboxes, every live pod stays wired, nothing is left in the end.

mod world;

use node::Bounds;
use proptest::collection::vec;
use proptest::prelude::*;

use world::{CONTAINERS, World};

#[derive(Clone, Debug)]
enum Action {
    /// A sandbox begins, if that of this number has ended, and its runtime asks for its network.
    Add(usize),
    /// Its runtime asks for its network though it has one, or none is there.
    AddAgain(usize),
    Del(usize),
    /// A runtime that has forgotten some of its sandboxes.
    Gc(Vec<usize>),
    /// The sandbox ends, and its namespace with it; no DEL yet.
    End(usize),
    PodGone(usize),
    Unseen(usize),
    /// What was asked of other threads is done: veths are deleted, the API is asked.
    Work,
    /// Veths cannot be deleted this time.
    WorkFails,
    Forget,
    Pass(u64),
    DiskFull(bool),
    Refuse(bool),
    Deaf(bool),
    Pause(bool),
    WireFails(bool),
    ForgetFails(bool),
    Slow(bool),
    /// So many outputs from now on the process is killed; `true`: what other threads had to do was done, and nobody heard it.
    Kill(usize, bool),
}

fn action() -> impl Strategy<Value = Action> {
    let one = || 0..CONTAINERS;
    prop_oneof![
        8 => one().prop_map(Action::Add),
        1 => one().prop_map(Action::AddAgain),
        6 => one().prop_map(Action::Del),
        1 => vec(one(), 0..3).prop_map(Action::Gc),
        2 => one().prop_map(Action::End),
        2 => one().prop_map(Action::PodGone),
        2 => one().prop_map(Action::Unseen),
        8 => Just(Action::Work),
        1 => Just(Action::WorkFails),
        4 => Just(Action::Forget),
        4 => prop_oneof![1..5_u64, 20..60_u64].prop_map(Action::Pass),
        1 => any::<bool>().prop_map(Action::DiskFull),
        1 => any::<bool>().prop_map(Action::Refuse),
        1 => any::<bool>().prop_map(Action::Deaf),
        1 => any::<bool>().prop_map(Action::Pause),
        1 => any::<bool>().prop_map(Action::WireFails),
        1 => any::<bool>().prop_map(Action::ForgetFails),
        1 => any::<bool>().prop_map(Action::Slow),
        3 => (0..8_usize, any::<bool>()).prop_map(|(outputs, done)| Action::Kill(outputs, done)),
    ]
}

fn perform(world: &mut World, action: &Action) {
    match action {
        Action::Add(n) => world.begin(*n),
        Action::AddAgain(n) => world.add(*n),
        Action::Del(n) => world.del(*n),
        Action::Gc(forgotten) => world.gc(forgotten),
        Action::End(n) => world.end(*n),
        Action::PodGone(n) => world.pod_gone(*n),
        Action::Unseen(n) => world.unseen(*n),
        Action::Work => world.work(true),
        Action::WorkFails => world.work(false),
        Action::Forget => world.forget(),
        Action::Pass(seconds) => world.pass(*seconds),
        Action::DiskFull(is) => world.faults.disk_full = *is,
        Action::Refuse(is) => world.faults.refuses = *is,
        Action::Deaf(is) => world.faults.deaf = *is,
        Action::Pause(is) => world.faults.paused = *is,
        Action::WireFails(is) => world.faults.wire_fails = *is,
        Action::ForgetFails(is) => world.faults.forget_fails = *is,
        Action::Slow(is) => world.faults.slow = *is,
        Action::Kill(outputs, done) => world.kill_after(*outputs, *done),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_history_puts_an_address_into_two_sandboxes_loses_a_live_pod_or_leaves_anything(
        // Several inputs may come before the kernel follows.
        history in vec((action(), prop::bool::weighted(0.7)), 0..36),
    ) {
        run(World::new(None), &history);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// However much of it is kept: the state that a chapter begins with is compared, too.
    #[test]
    fn what_was_recorded_is_decided_again(
        history in vec((action(), prop::bool::weighted(0.7)), 0..36),
        chapter in prop_oneof![Just(1), 1_000..8_000_usize],
        chapters in 2..6_usize,
    ) {
        run(World::new(Some(Bounds { chapter, chapters })), &history);
    }
}

fn run(mut world: World, history: &[(Action, bool)]) {
    for (action, follows) in history {
        perform(&mut world, action);
        if *follows {
            world.follow();
        }
        world.check();
    }
    world.finish();
}
