//! Of a node that cannot be asked, the sender's own node tells what it expects; an answer shows that it holds.

use trace::{Fact, Hop, HopResult, Observed, Outcome, Stage, compare, way_back};

use super::{expected, seen, silent, start};

/// As the sender's node alone knows the way.
fn alone(allowed: &str) -> Vec<Hop> {
    let start = start(allowed);
    let why = "its agent does not answer".to_owned();
    let unasked = Hop::new(Stage::Node, "node2", Fact::Unasked { why });
    let mut hops: Vec<Hop> = start.hops.into_iter().chain([unasked]).chain(start.elsewhere).collect();
    hops.extend(way_back(&hops));
    hops
}

/// The outcome of the hop at this stage.
fn at(results: &[HopResult], stage: Stage) -> &Outcome {
    let result = results.iter().find(|result| result.hop.stage == stage);
    &result.unwrap_or_else(|| panic!("no {stage:?}: {results:#?}")).outcome
}

fn of_node1(mut observed: Vec<Observed>) -> Vec<Observed> {
    observed.truncate(1);
    observed
}

#[test]
fn it_reads_as_that_node_would_say_it() {
    let lines = texts(&alone("web")).split_off(7);
    assert_eq!(
        lines,
        [
            "9 node could not be asked",
            "10 policy ingress: shop/payments-from, rule 1, allowed",
            "11 pod shop/pay",
            "12 return the same way, shown as 10.96.14.7:8080",
        ]
    );
    assert_eq!(texts(&expected("web"))[8..], lines[1..], "of those that both know");
}

fn texts(hops: &[Hop]) -> Vec<String> {
    hops.iter().map(|hop| format!("{} {} {}", hop.n, hop.stage.word(), hop.text)).collect()
}

#[test]
fn an_answer_shows_that_it_got_through() {
    let results = compare(&alone("web"), &of_node1(seen()));
    let why = "its agent does not answer".to_owned();
    assert_eq!(*at(&results, Stage::Node), Outcome::NotAsked { why });
    for result in results.iter().filter(|result| result.hop.stage != Stage::Node) {
        assert!(matches!(result.outcome, Outcome::Agree { .. }), "{result:#?}");
    }
}

/// Of a policy that denies there, too: a broken node is as silent.
#[test]
fn silence_ends_the_way_at_that_node() {
    for allowed in ["web", "api"] {
        let mut observed = of_node1(silent(seen()));
        // What the answer left.
        observed[0].sightings.truncate(6);
        let results = compare(&alone(allowed), &observed);
        let Outcome::Disagree { why } = at(&results, Stage::Node) else { panic!("{results:#?}") };
        assert!(why.contains("node2 could not be asked") && why.contains("its agent does not"), "{why}");
        assert_eq!(*at(&results, Stage::Ingress), Outcome::NotReached, "{results:#?}");
    }
    let denied = alone("api");
    let last = denied.last().expect("hops");
    assert_eq!(
        (last.stage, last.fact.misses().len()),
        (Stage::Ingress, 1),
        "the policies are told all the same"
    );
}

#[test]
fn what_this_node_lost_is_not_blamed_on_the_other() {
    let mut observed = of_node1(silent(seen()));
    observed[0].sightings.truncate(5);
    let results = compare(&alone("web"), &observed);
    assert!(matches!(at(&results, Stage::Tunnel), Outcome::Disagree { .. }), "{results:#?}");
    assert_eq!(*at(&results, Stage::Node), Outcome::NotReached);
}
