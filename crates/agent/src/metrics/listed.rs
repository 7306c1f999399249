//! docs/metrics.md, the dashboard and the alerts speak of the metrics that there are, and of all of them; docs/limits.md
//! of every reason of an Event.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use super::Metrics;

fn file(path: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Name → type and labels, of an agent in which everything was counted once.
fn rendered() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let metrics = Metrics::default();
    metrics.watch_trouble("Pod");
    metrics.diagnostics("Service", 1);
    metrics.looked("nft");
    metrics.drift("nft", 1, true);
    metrics.drift("nft", 1, false);
    metrics.drift_stands("net", 1);
    metrics.objects("Pod", 1);
    metrics.apply_failed("nft");
    metrics.applied("nft", Duration::from_millis(1));
    metrics.cni("ADD", Duration::from_millis(1), Some(cni::Code::TryAgainLater));
    let text = metrics.render();
    let mut found: BTreeMap<String, (String, BTreeSet<String>)> = BTreeMap::new();
    for line in text.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            found.insert(name.to_owned(), (kind.to_owned(), BTreeSet::new()));
        } else if !line.starts_with('#') {
            let (series, labels) = line.split_once(['{', ' ']).unwrap_or_default();
            let labels = labels.split_once('}').map_or("", |(labels, _)| labels);
            let keys =
                labels.split(',').filter_map(|label| label.split_once('=')).map(|(key, _)| key.to_owned());
            let name = family(&found, series).unwrap_or_else(|| panic!("{line} belongs to nothing"));
            let of = found.get_mut(&name).map(|(_, labels)| labels);
            of.into_iter().for_each(|of| of.extend(keys.clone().filter(|key| key != "le")));
        }
    }
    found
}

/// The metric that a series is of.
fn family(known: &BTreeMap<String, (String, BTreeSet<String>)>, series: &str) -> Option<String> {
    let endings = ["", "_total", "_sum", "_count", "_bucket"];
    let names = endings.iter().filter_map(|ending| series.strip_suffix(ending));
    names.map(str::to_owned).find(|name| known.contains_key(name))
}

#[test]
fn the_page_lists_every_metric_with_its_type_and_labels() {
    let page = file("docs/metrics.md");
    let mut listed = BTreeMap::new();
    for row in page.lines().filter(|line| line.starts_with("| `plumb_")) {
        let cells: Vec<&str> = row.trim_matches('|').splitn(4, '|').map(str::trim).collect();
        let [name, kind, labels, meaning] = cells[..] else { panic!("{row}: four cells are expected") };
        assert!(!meaning.is_empty(), "{row} has no meaning");
        let name = name.trim_matches('`');
        assert_eq!(name.ends_with("_total"), kind == "counter", "{row}");
        let labels = labels.split(", ").filter(|label| !label.is_empty()).map(str::to_owned).collect();
        listed.insert(name.trim_end_matches("_total").to_owned(), (kind.to_owned(), labels));
    }
    assert_eq!(listed, rendered(), "left: docs/metrics.md; right: what an agent says");
}

#[test]
fn the_page_explains_every_cause_and_event() {
    let page = file("docs/metrics.md");
    let explained = |heading: &str| {
        let rows = page.split_once(heading).expect(heading).1.lines().skip(2);
        let cells = rows.take_while(|line| line.starts_with('|')).filter_map(|row| row.split('|').nth(1));
        let words = cells.flat_map(|cell| cell.split(','));
        words.map(|word| word.trim().trim_matches('`').to_owned()).collect::<BTreeSet<_>>()
    };
    let values = |metric: &str| {
        let text = Metrics::default().render();
        let series =
            text.lines().filter_map(|line| line.strip_prefix(metric)?.split('"').nth(1).map(str::to_owned));
        series.collect::<BTreeSet<_>>()
    };
    let of_tables = explained("| `cause` of `plumb_dropped_packets_total` |");
    assert_eq!(of_tables, values("plumb_dropped_packets_total{"), "left: docs/metrics.md");
    let of_conntrack = explained("| `event` of `plumb_conntrack_events_total` |");
    assert_eq!(of_conntrack, values("plumb_conntrack_events_total{"), "left: docs/metrics.md");
}

/// The series that an expression names.
fn series(expression: &str) -> BTreeSet<&str> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("plumb_")).collect()
}

#[track_caller]
fn are_known(what: &str, expression: &str) {
    let known = rendered();
    for name in series(expression) {
        let of = family(&known, name).unwrap_or_else(|| panic!("{what}: there is no {name}: {expression}"));
        let counter = known.get(&of).is_some_and(|(kind, _)| kind == "counter");
        assert_eq!(counter, name.ends_with("_total"), "{what}: {name} in {expression}");
    }
}

#[test]
fn the_dashboard_asks_for_what_there_is() {
    let dashboard: serde_json::Value =
        serde_json::from_str(&file("deploy/grafana/plumb.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let mut asked = 0;
    for panel in panels {
        let title = panel["title"].as_str().expect("a title");
        for target in panel["targets"].as_array().expect("targets") {
            let expression = target["expr"].as_str().expect("an expression");
            asked += series(expression).len();
            are_known(title, expression);
        }
    }
    assert!(asked > 20, "only {asked} series are shown");
}

fn minutes(text: &str) -> Option<u32> {
    text.strip_suffix('m')?.parse().ok()
}

#[test]
fn every_alert_is_on_metrics_that_there_are_and_has_its_page() {
    let rules = file("deploy/prometheus/plumb.yaml");
    let mut alerts = BTreeSet::new();
    let (mut name, mut longest) = ("", 0);
    for line in rules.lines().map(str::trim) {
        if let Some(alert) = line.strip_prefix("- alert: ") {
            name = alert;
            let page = file(&format!("docs/runbooks/{alert}.md"));
            for part in ["## What it means", "## What to do", "## To see it"] {
                assert!(page.contains(part), "docs/runbooks/{alert}.md has no {part:?}");
            }
            assert!(alerts.insert(alert.to_owned()), "{alert} is there twice");
        } else if let Some(expression) = line.strip_prefix("expr: ") {
            are_known(name, expression);
            assert!(expression.contains("plumb"), "{name}: {expression}");
            let bare = expression.trim_matches('"').replace("\\\"", "\"");
            let page = file(&format!("docs/runbooks/{name}.md"));
            assert!(
                page.contains(&format!("\n    {bare}\n")),
                "docs/runbooks/{name}.md does not quote {bare}"
            );
            let ranges = bare.split('[').skip(1).filter_map(|range| minutes(range.split(']').next()?));
            longest = ranges.max().unwrap_or_default();
            assert_eq!(longest > 0, bare.contains('['), "{name}: ranges are in minutes: {bare}");
        } else if let Some(lasting) = line.strip_prefix("for: ") {
            let lasting = minutes(lasting).unwrap_or_else(|| panic!("{name}: {line}: minutes are expected"));
            assert!(lasting > longest, "{name}: what happened once is in sight for {longest} m, and calls");
        } else if let Some(url) = line.strip_prefix("runbook_url: ") {
            assert_eq!(url, format!("docs/runbooks/{name}.md"));
        }
    }
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/runbooks");
    let pages = std::fs::read_dir(directory).expect("docs/runbooks").flatten();
    let pages: BTreeSet<String> =
        pages.filter_map(|page| Some(page.path().file_stem()?.to_str()?.to_owned())).collect();
    assert_eq!(pages, alerts, "left: docs/runbooks; right: alerts");
}

/// Reasons are UpperCamelCase words of their own in these files; the second list is of what looks like one.
#[test]
fn every_reason_of_an_event_is_explained() {
    const SOURCES: [&str; 7] = [
        "crates/model/src/from_k8s.rs",
        "crates/model/src/from_k8s/policy.rs",
        "crates/model/src/from_k8s/service.rs",
        "crates/agent/src/node/diagnose.rs",
        "crates/agent/src/node/dropped.rs",
        "crates/node/src/drift.rs",
        "crates/agent/src/node/settle.rs",
    ];
    const NO_REASONS: &[&str] = &[
        "ClusterIP",
        "ExternalIP",
        "DoesNotExist",
        "EndpointSlice",
        "ExternalName",
        "InternalIP",
        "LoadBalancer",
        "Namespace",
        "NetworkPolicy",
        "NetworkUnavailable",
        "Succeeded",
    ];
    let page = file("docs/limits.md");
    let mut reasons = BTreeSet::new();
    for source in SOURCES {
        let text = file(source);
        let text = text.split("#[cfg(test)]").next().unwrap_or_default().to_owned();
        for literal in text.split('"').skip(1).step_by(2) {
            let camel = literal.chars().all(|c| c.is_ascii_alphabetic())
                && literal.starts_with(|c: char| c.is_ascii_uppercase())
                && literal.chars().skip(1).any(|c| c.is_ascii_lowercase());
            if camel && literal.len() > 8 && !NO_REASONS.contains(&literal) {
                reasons.insert(literal.to_owned());
            }
        }
    }
    assert!(reasons.contains("InvalidField") && reasons.contains("DriftMended"), "{reasons:?}");
    let missing: Vec<&String> =
        reasons.iter().filter(|reason| !page.contains(&format!("`{reason}`"))).collect();
    assert!(missing.is_empty(), "docs/limits.md does not explain {missing:?}");
}
