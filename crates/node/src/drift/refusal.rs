//! What the kernel refuses is an Event of the Node once it has lasted: else only who looks at metrics or at the log hears of it.

use std::collections::BTreeMap;
use std::time::Duration;

use ipam::Now;
use model::{Key, Kind};
use semantics::{Diagnostic, Severity};
use types::ObjectName;

use super::{Outcome, Part};
use crate::steps::Steps;

/// What is over sooner, by the next try or the one after, is no news.
const LASTING: Duration = Duration::from_secs(3);

/// Since when each part refuses something, and what was told of it.
#[derive(Debug, Default)]
pub struct Refusals(BTreeMap<Part, (Now, Option<Diagnostic>)>);

impl Refusals {
    /// What is to be told now. One that words itself anew with each try is told once.
    pub fn turn(&mut self, node: &str, part: Part, refuses: Option<&str>, now: Now) -> Option<Outcome> {
        let Some(error) = refuses else {
            return self.end(part).map(|was| taken_again(part, was, &Steps::default()));
        };
        let (since, told) = self.0.entry(part).or_insert((now, None));
        let is_due = told.is_none() && now.saturating_sub(*since) >= LASTING;
        is_due.then(|| Outcome::Refuses(told.insert(refused(node, part, error)).clone()))
    }

    /// It took what it refused; what was told of that, if it was.
    pub fn end(&mut self, part: Part) -> Option<Diagnostic> {
        self.0.remove(&part).and_then(|(_, told)| told)
    }
}

/// Of a part that does not take what it should be.
pub fn refused(node: &str, part: Part, error: &str) -> Diagnostic {
    Diagnostic {
        object: Key::new(Kind::Node, ObjectName::cluster(node)),
        field: "kernel".to_owned(),
        severity: Severity::Warning,
        message: format!(
            "it did not take {}: {error}; until it does the node does not follow the cluster there",
            part.name
        ),
        next_step: format!(
            "see whether another program holds what is named here ({}), and what the kernel lacks (`plumb features` on the \
             node); the agent tries again each second",
            part.where_to_look
        ),
    }
}

pub fn taken_again(part: Part, was: Diagnostic, steps: &Steps) -> Outcome {
    let done = if steps.count > 0 { format!("; found and mended: {steps}") } else { String::new() };
    Outcome::TakenAgain(was, format!("kernel: it takes {} again{done}", part.name))
}
