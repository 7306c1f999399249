//! A lab that ran already: what `plumb lab up` gives back to its nodes, and until when their agents have seen that.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::Value;

use super::launch;
use crate::inside::Inside;
use crate::lost::Lost;
use crate::progress::Progress;
use crate::rundir::RunDir;
use crate::{agent, serving};

const GLANCE: Duration = Duration::from_millis(50);

/// Mends, and says what of each node is there again; whether that was anything.
pub fn mend(run: &RunDir, progress: &Progress) -> Result<bool> {
    let inside = Inside::find(&run.name())?;
    let lost: Vec<(String, Vec<Lost>)> =
        inside.plan.node_names().into_iter().map(|node| (node.clone(), inside.lost(&node))).collect();
    launch::mend(run)?;
    let mut anything = false;
    for (node, before) in lost {
        let after = inside.lost(&node);
        for lost in before.into_iter().filter(|lost| !after.contains(lost)) {
            progress.step(&format!("{node}: {}", lost.mended()));
            anything = true;
        }
    }
    Ok(anything)
}

/// Until no agent complains: that a node was cut off the others find out as well, and each takes its time to see that it
/// is back.
pub async fn in_order(run: &RunDir, deadline: Instant, progress: &Progress) -> Result<()> {
    let inside = Inside::find(&run.name())?;
    for node in inside.plan.node_names() {
        while let Some(wrong) = finds(&inside, &node, serving::left(deadline)) {
            if Instant::now() > deadline {
                bail!(
                    "{node}: its agent still says after {} s (--timeout gives more): {wrong}; plumb status tells all of it, and what to do",
                    progress.seconds()
                );
            }
            progress.waits(|| format!("{node}: its agent says: {wrong}"));
            tokio::time::sleep(GLANCE).await;
        }
    }
    progress.step("the agents have seen it");
    Ok(())
}

/// What a person may not expect of a lab that is Ready: an agent that is paused, or finds something wrong that is none of the
/// lab's.
pub fn notes(inside: &Inside, progress: &Progress) {
    for node in inside.plan.node_names() {
        if let Some(paused) = agent::paused(inside, &node, serving::LOOK) {
            progress.note(&paused);
        }
        let found = agent::status(inside, &node, serving::LOOK).ok().flatten();
        if let Some(found) = found.and_then(|status| wrong(&status).or_else(|| detour(&status))) {
            progress.note(&format!("{node}: its agent says: {found}; next: plumb status"));
        }
    }
}

/// Somebody's way for packets to pods; no lab has put it there.
fn detour(status: &Value) -> Option<String> {
    Some(status["detours"][0]["what"].as_str()?.to_owned())
}

/// What the agent of a node finds wrong, or that it does not answer.
fn finds(inside: &Inside, node: &str, limit: Duration) -> Option<String> {
    match agent::status(inside, node, limit) {
        Ok(status) => wrong(&status?),
        Err(error) => Some(format!("nothing: {error:#}")),
    }
}

/// The first thing that an agent finds wrong, of what it has told. One that is paused leaves what differs.
fn wrong(status: &Value) -> Option<String> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    if let Some(why) = text(&status["trouble"]["what"]) {
        return Some(why);
    }
    for (list, word) in [("lacks", "what"), ("out_of_reach", "what"), ("watches", "error")] {
        if let Some(first) = status[list].as_array().and_then(|list| list.first()) {
            return text(&first[word]);
        }
    }
    let drift = status["drift"].as_array().and_then(|list| list.first());
    let drift = drift.filter(|_| status["paused"] != Value::Bool(true))?;
    Some(format!(
        "the kernel differs from what it should be: {}",
        text(&drift["first"][0]).unwrap_or_default()
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_agent_is_in_order_when_it_finds_nothing_wrong() {
        let well = json!({"trouble": null, "lacks": [], "out_of_reach": [], "watches": [], "drift": [], "paused": false});
        assert_eq!(wrong(&well), None);
        for (key, value, said) in [
            ("trouble", json!({"what": "no table"}), "no table"),
            ("lacks", json!([{"what": "eth0 is down"}]), "eth0 is down"),
            ("out_of_reach", json!([{"what": "no route to node2"}]), "no route to node2"),
            ("watches", json!([{"kind": "Pod", "error": "timed out"}]), "timed out"),
            (
                "drift",
                json!([{"first": ["route is gone"]}]),
                "the kernel differs from what it should be: route is gone",
            ),
        ] {
            let mut status = well.clone();
            status[key] = value;
            assert_eq!(wrong(&status).as_deref(), Some(said));
        }
        let paused = json!({"drift": [{"first": ["route is gone"]}], "paused": true});
        assert_eq!(wrong(&paused), None);
    }
}
