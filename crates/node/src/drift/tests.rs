use proptest::collection::vec;
use proptest::prelude::*;

use super::refusal::Refusals;
use super::*;

const NET: Part = Part { name: "net", where_to_look: "`ip -d link show` on the node" };
const NFT: Part = Part { name: "nft", where_to_look: "`nft list ruleset` on the node" };

fn at(seconds: u64) -> Now {
    Duration::from_secs(1_000 + seconds)
}

#[test]
fn what_differs_is_not_right_until_it_is_gone() {
    let mut drift = Drift::default();
    let both = [NFT, NET];
    drift.step(NFT, Found::Taken, at(0));
    assert_eq!(drift.since_right(&both, at(1)), None, "links were never looked at");
    drift.step(NET, Found::Taken, at(1));
    drift.step(NET, Found::Left(["+ route"].into_iter().collect()), at(2));
    drift.step(NFT, Found::Taken, at(5));
    drift.step(NET, Found::Taken, at(5));
    assert_eq!(drift.since_right(&both, at(5)), Some(Duration::from_secs(4)));
    let differs: Vec<_> = drift.differs().map(|(part, steps)| (part, steps.count)).collect();
    assert_eq!(differs, [("net", 1)]);
    drift.step(NET, Found::Mended { steps: Steps::default(), suspected: true }, at(6));
    assert_eq!(drift.differs().count(), 0);
    assert_eq!(drift.since_right(&both, at(6)), Some(Duration::from_secs(1)));
}

/// Looks at one drift, in other orders and with parts of it gone: an Event is due where something is new, and names that.
#[test]
fn one_drift_is_told_once_and_again_with_what_is_new() {
    let mut drift = Drift::default();
    let look = |drift: &mut Drift, steps: &[&str]| {
        let out = drift.step(NET, Found::Seen(steps.iter().collect()), at(0));
        out.into_iter().find_map(|outcome| match outcome {
            Outcome::Holds(told) => Some(told.message.rsplit_once(": ").unwrap().1.to_owned()),
            _ => None,
        })
    };
    assert_eq!(look(&mut drift, &["a", "b"]).as_deref(), Some("a; b"));
    for again in [&["a", "b"][..], &["b", "a"], &["b"], &["a"]] {
        assert_eq!(look(&mut drift, again), None, "{again:?}");
    }
    assert_eq!(look(&mut drift, &["a", "b", "c", "d", "e"]).as_deref(), Some("c; d; e; a; and 1 more"));
    assert_eq!(look(&mut drift, &["e", "c"]), None);
    assert_eq!(look(&mut drift, &[]), None);
    assert_eq!(look(&mut drift, &["e", "c"]).as_deref(), Some("e; c"));
    let many = (0..2 * MANY).filter(|n| look(&mut drift, &[&*format!("rule {n}")]).is_some());
    assert!(many.count() <= MANY, "words without end");
}

#[test]
fn a_refusal_that_lasts_is_told_once_and_its_end_too() {
    let mut refusals = Refusals::default();
    let mut turn = |refuses: Option<&str>, seconds| refusals.turn("node1", NET, refuses, at(seconds));
    assert_eq!(turn(Some("busy"), 0), None);
    assert_eq!(turn(None, 2), None, "it was over before it was news");
    assert_eq!(turn(Some("busy"), 3), None);
    assert_eq!(turn(Some("busy"), 5), None);
    let news = turn(Some("held by rival"), 6);
    let Some(Outcome::Refuses(found)) = &news else { panic!("{news:?}") };
    for words in [
        "node node1: kernel: it did not take net: held by rival",
        "`plumb features` on the node",
        "`ip -d link show`",
    ] {
        assert!(found.to_string().contains(words), "{found}");
    }
    assert_eq!(turn(Some("held by another"), 9), None, "told");
    let over = turn(None, 10);
    assert!(matches!(&over, Some(Outcome::TakenAgain(was, _)) if was == found), "{over:?}");
}

#[derive(Clone, Debug)]
enum Action {
    Found(Found),
    /// So many seconds pass, and the node ticks.
    Tick(u64),
}

fn action() -> impl Strategy<Value = Action> {
    let steps = || {
        let steps = prop::sample::subsequence(vec!["a", "b", "c", "d"], 0..=4).prop_shuffle();
        steps.prop_map(|steps| steps.into_iter().collect::<Steps>())
    };
    let why = || prop_oneof![Just("busy".to_owned()), Just("not permitted".to_owned())];
    prop_oneof![
        1 => Just(Action::Found(Found::Taken)),
        2 => why().prop_map(|why| Action::Found(Found::Refused(why))),
        6 => steps().prop_map(|steps| Action::Found(Found::Seen(steps))),
        3 => (steps(), any::<bool>()).prop_map(|(steps, suspected)| Action::Found(Found::Mended { steps, suspected })),
        3 => why().prop_map(|why| Action::Found(Found::Unmended(why))),
        3 => (0..4_u64).prop_map(Action::Tick),
    ]
}

/// What people have heard of one part.
#[derive(Default)]
struct Heard {
    /// Events of drift that hold, with all differences that they were due for.
    hold: Vec<Told>,
    known: BTreeSet<String>,
    refuses: Option<Diagnostic>,
    /// Why it refuses, while it does.
    wrong: Option<String>,
    stands: usize,
}

impl Heard {
    fn hear(&mut self, outcome: &Outcome, seen: &BTreeSet<String>) {
        match outcome {
            Outcome::Right => self.wrong = None,
            Outcome::Wrong { error, is_news } => {
                assert_eq!(*is_news, self.wrong.as_ref() != Some(error), "one cause is news once");
                self.wrong = Some(error.clone());
            }
            Outcome::Stands(count) => self.stands = *count,
            Outcome::Holds(told) => {
                assert!(!seen.is_subset(&self.known), "told again: {}", told.message);
                self.known.extend(seen.iter().cloned());
                self.hold.push(told.clone());
            }
            Outcome::Over { was, .. } => {
                assert_eq!(*was, self.hold, "all that was told is over");
                (self.hold, self.known) = (Vec::new(), BTreeSet::new());
            }
            Outcome::Happened(_) => assert!(self.hold.is_empty(), "what holds was forgotten"),
            Outcome::Refuses(found) => {
                assert_eq!(self.refuses.replace(found.clone()), None, "a refusal is told once");
            }
            Outcome::TakenAgain(was, _) => assert_eq!(self.refuses.take().as_ref(), Some(was)),
            Outcome::Drifted { .. } | Outcome::Look => {}
        }
    }
}

proptest! {
    #[test]
    fn one_drift_is_told_once_and_its_end_whoever_put_it_back(actions in vec(action(), 0..40)) {
        let (mut drift, mut heard, mut now) = (Drift::default(), Heard::default(), 0);
        for action in actions {
            let seen: BTreeSet<String> = match &action {
                Action::Found(Found::Seen(steps)) => steps.known().iter().cloned().collect(),
                _ => BTreeSet::new(),
            };
            let ends = matches!(&action, Action::Found(Found::Mended { .. }))
                || matches!(&action, Action::Found(Found::Seen(steps)) if steps.count == 0);
            let is_mended = matches!(&action, Action::Found(Found::Mended { .. }));
            let out = match action {
                Action::Found(found) => drift.step(NET, found, at(now)),
                Action::Tick(seconds) => {
                    now += seconds;
                    drift.tick("node1", NET, heard.wrong.as_deref(), at(now)).into_iter().collect()
                }
            };
            for outcome in out {
                heard.hear(&outcome, &seen);
                if outcome == Outcome::Look {
                    let left: Steps = ["left"].into_iter().collect();
                    drift.step(NET, Found::Left(left), at(now)).iter().for_each(|o| heard.hear(o, &seen));
                }
            }
            prop_assert!(seen.is_subset(&heard.known), "somebody has heard of it");
            prop_assert!(!ends || heard.hold.is_empty() && heard.stands == 0, "it is over, and nobody hears so");
            prop_assert!(!is_mended || heard.refuses.is_none() && heard.wrong.is_none());
            prop_assert_eq!(drift.differs().map(|(_, steps)| steps.count).sum::<usize>(), heard.stands);
        }
    }
}
