use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const COOL_DOWN: Duration = Duration::from_secs(30);

fn at(seconds: u64) -> Now {
    Duration::from_secs(1_000_000 + seconds)
}

fn pool(cidr: &str) -> Pool {
    Pool::new(cidr.parse().unwrap(), COOL_DOWN)
}

fn fill(pool: &mut Pool, now: Now) -> Vec<String> {
    let mut got = Vec::new();
    while let Ok(address) = pool.allocate(&format!("c{}", got.len()), now) {
        got.push(address.to_string());
    }
    got
}

#[test]
fn network_gateway_and_broadcast_are_never_given_out() {
    assert_eq!(
        fill(&mut pool("10.244.1.0/29"), at(0)),
        ["10.244.1.2", "10.244.1.3", "10.244.1.4", "10.244.1.5", "10.244.1.6"]
    );
    assert_eq!(fill(&mut pool("10.244.1.0/24"), at(0)).len(), 253);
}

#[test]
fn the_smallest_pools_work_or_say_why_not() {
    assert_eq!(fill(&mut pool("10.0.0.0/31"), at(0)), ["10.0.0.1"]);
    assert_eq!(fill(&mut pool("fd00::/127"), at(0)), ["fd00::1"]);
    assert_eq!(fill(&mut pool("10.0.0.4/30"), at(0)), ["10.0.0.6"]);
    let text = pool("10.0.0.0/32").allocate("a", at(0)).unwrap_err().to_string();
    assert!(text.contains("10.0.0.0/32") && text.contains("larger pod CIDR"), "{text}");
}

#[test]
fn a_released_address_rests_and_the_error_says_for_how_long() {
    let mut pool = pool("10.0.0.4/30");
    let address = pool.allocate("a", at(0)).unwrap();
    assert_eq!(pool.release("a", at(10)), [address]);
    let error = pool.allocate("b", at(39)).unwrap_err();
    assert_eq!((error.resting, error.next_free_in), (1, Some(Duration::from_secs(1))));
    assert_eq!(pool.allocate("b", at(40)), Ok(address));
}

#[test]
fn a_clock_that_is_set_back_does_not_prolong_the_rest() {
    let mut pool = pool("10.0.0.4/30");
    pool.allocate("a", at(5_000)).unwrap();
    pool.release("a", at(5_000));
    assert!(pool.allocate("b", at(0)).is_err());
    assert!(pool.allocate("b", at(31)).is_ok());
}

#[test]
fn release_and_allocate_are_idempotent() {
    let mut pool = pool("10.0.0.0/24");
    let first = pool.allocate("a", at(0));
    assert_eq!(pool.allocate("a", at(1)), first);
    assert_eq!(pool.release("a", at(2)).len(), 1);
    assert_eq!(pool.release("a", at(2)).len(), 0);
    assert_eq!(pool.release("never", at(2)).len(), 0);
}

#[test]
fn addresses_are_given_out_in_turn() {
    let mut pool = pool("10.0.0.0/24");
    pool.allocate("a", at(0)).unwrap();
    pool.release("a", at(0));
    assert_eq!(pool.allocate("b", at(500)).unwrap().to_string(), "10.0.0.3");
}

#[test]
fn a_wanted_address_is_given_or_refused_with_the_reason() {
    let mut pool = pool("10.0.0.0/24");
    let want = |text: &str| text.parse().unwrap();
    assert!(pool.allocate_this("a", want("10.0.0.9"), at(0)).is_ok());
    for (handle, address, why) in [
        ("b", "10.0.0.9", "a has it"),
        ("a", "10.0.0.10", "already has"),
        ("b", "10.0.0.1", "not one of"),
        ("b", "10.0.0.0", "not one of"),
        ("b", "10.0.0.255", "not one of"),
        ("b", "10.1.0.9", "not one of"),
    ] {
        let refused = pool.allocate_this(handle, want(address), at(0)).unwrap_err().to_string();
        assert!(refused.contains(why), "{refused}");
    }
    pool.release("a", at(0));
    assert!(pool.allocate_this("b", want("10.0.0.9"), at(1)).unwrap_err().why.contains("rests"));
}

#[test]
fn a_moved_pool_keeps_what_it_gave_out() {
    let mut pool = pool("10.0.0.0/24");
    let old = pool.allocate("a", at(0)).unwrap();
    pool.move_to("10.9.0.0/24".parse().unwrap());
    assert_eq!(pool.lease_of("a"), Some(old));
    assert_eq!(pool.allocate("b", at(0)).unwrap().to_string(), "10.9.0.2");
}

#[derive(Clone, Debug)]
enum Step {
    Allocate(u8),
    Want(u8, u8),
    Release(u8),
    Wait(u16),
    /// The process dies and comes back from what it wrote.
    Crash,
    /// Garbage collection: only these handles are valid.
    Keep(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(
        prop_oneof![
            4 => (0..24_u8).prop_map(Step::Allocate),
            1 => (0..24_u8, 0..16_u8).prop_map(|(handle, host)| Step::Want(handle, host)),
            3 => (0..24_u8).prop_map(Step::Release),
            2 => (0..40_u16).prop_map(Step::Wait),
            1 => Just(Step::Crash),
            1 => (0..24_u8).prop_map(Step::Keep),
        ],
        1..200,
    )
}

proptest! {
    /// No address in two hands, none before its rest is over, none that is not a pod's; exhaustion only when
    /// every address is in use or resting.
    #[test]
    fn every_history_keeps_the_invariants(steps in steps()) {
        let mut pool = pool("10.0.0.0/28");
        let mut now = at(0);
        let mut live: BTreeMap<u8, IpAddr> = BTreeMap::new();
        let mut released: BTreeMap<IpAddr, Now> = BTreeMap::new();
        let handle = |n: u8| format!("c{n}");
        for step in steps {
            match step {
                Step::Allocate(n) | Step::Want(n, _) => {
                    let got = match step {
                        Step::Want(_, host) => {
                            pool.allocate_this(&handle(n), IpAddr::from([10, 0, 0, host]), now).ok()
                        }
                        _ => pool.allocate(&handle(n), now).ok(),
                    };
                    let resting = released.values().filter(|t| now < **t + COOL_DOWN).count();
                    if let Some(address) = got {
                        let own = live.get(&n) == Some(&address);
                        prop_assert!(own || !live.values().any(|other| *other == address), "{address} twice");
                        prop_assert!(own || released.get(&address).is_none_or(|t| now >= *t + COOL_DOWN));
                        prop_assert!(!["10.0.0.0", "10.0.0.1", "10.0.0.15"].contains(&&*address.to_string()));
                        released.remove(&address);
                        live.insert(n, address);
                    } else if matches!(step, Step::Allocate(_)) {
                        prop_assert_eq!(live.len() + resting, 13, "refused although there was room");
                    }
                }
                Step::Release(n) => {
                    pool.release(&handle(n), now);
                    live.remove(&n).map(|address| released.insert(address, now));
                }
                Step::Keep(limit) => {
                    for n in live.keys().copied().filter(|n| *n >= limit).collect::<BTreeSet<_>>() {
                        pool.release(&handle(n), now);
                        live.remove(&n).map(|address| released.insert(address, now));
                    }
                }
                Step::Wait(seconds) => now += Duration::from_secs(u64::from(seconds)),
                Step::Crash => {
                    pool = serde_json::from_str(&serde_json::to_string(&pool).unwrap()).unwrap();
                }
            }
            let leases: BTreeMap<IpAddr, String> = pool.leases().map(|(a, h)| (a, h.to_owned())).collect();
            prop_assert_eq!(leases, live.iter().map(|(n, a)| (*a, handle(*n))).collect::<BTreeMap<_, _>>());
        }
    }
}

#[test]
fn as_many_pods_fit_as_the_size_says() {
    for cidr in ["10.244.1.0/24", "10.244.1.0/29", "10.244.1.0/31", "10.244.1.1/32", "fd00:10:244:1::/120"] {
        let mut pool = Pool::new(cidr.parse().unwrap(), Duration::ZERO);
        let fits = (0..1000).take_while(|n| pool.allocate(&format!("c{n}"), Duration::ZERO).is_ok()).count();
        assert_eq!(fits as u128, pool.size(), "{cidr}");
    }
}

#[test]
fn what_rests_is_told_with_how_long_it_rests_on() {
    let mut pool = Pool::new("10.244.1.0/24".parse().unwrap(), Duration::from_secs(30));
    let first = pool.allocate("a", Duration::from_secs(100)).unwrap();
    assert_eq!(pool.resting(Duration::from_secs(100)).count(), 0);
    pool.release("a", Duration::from_secs(100));
    let rests = |now| pool.resting(Duration::from_secs(now)).collect::<Vec<_>>();
    assert_eq!(rests(110), [(first, Duration::from_secs(20))]);
    assert_eq!(rests(130), []);
    assert_eq!(rests(0), [(first, Duration::from_secs(30))], "a clock that was set back does not prolong it");
}
