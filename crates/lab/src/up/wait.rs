//! Waits for a lab to be ready, and when it is not, says which part and why.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use k8s_openapi::api::core::v1::Node;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};

use crate::inside::Inside;
use crate::plan::Plan;
use crate::progress::{About, Progress, State as Stands};
use crate::rundir::RunDir;
use crate::serving::Lacks;
use crate::supervise::{Entry, State, Status};
use crate::{adopt, client, serving};

/// About six seconds of restarts.
const HOPELESS: u32 = 8;
const GLANCE: Duration = Duration::from_millis(10);

/// A lab whose nodes are waited for.
pub struct Nodes<'a> {
    pub run: &'a RunDir,
    /// Whether it goes on running when they do not become Ready: else it is taken away, and no advice helps.
    pub stays: bool,
    pub deadline: Instant,
    pub progress: &'a Progress,
}

/// One that is not Ready: the API, which has no name of its own, or a node.
struct Late {
    name: Option<String>,
    lacks: Lacks,
}

impl Nodes<'_> {
    pub async fn ready(&self) -> Result<()> {
        let plan = Plan::read(self.run)?;
        let client = self.api_answers(&plan).await?;
        self.progress.step(&format!("API on https://127.0.0.1:{}", plan.api_port));
        let inside = Inside::find(&self.run.name())?;
        let (mut ready, mut before) = (BTreeSet::new(), "the nodes answer".to_owned());
        loop {
            let late = self.late(&inside, &client, &mut ready);
            let late = self.progress.awaits(|| before.clone(), late).await;
            if late.is_empty() {
                return Ok(());
            }
            self.check(&late)?;
            before = self.waiting(&late);
            tokio::time::sleep(GLANCE).await;
        }
    }

    async fn late(&self, inside: &Inside, client: &Client, ready: &mut BTreeSet<String>) -> Vec<Late> {
        let limit = || serving::left(self.deadline);
        let nodes: Api<Node> = Api::all(client.clone());
        let listed = match serving::soon(limit(), nodes.list(&ListParams::default())).await {
            Ok(listed) => listed,
            Err(error) => {
                let why = format!("the API does not answer: {}", watch::told(error.as_ref()));
                return vec![Late { name: None, lacks: Lacks::of_api(why) }];
            }
        };
        let names = inside.plan.node_names();
        let lacks = names.iter().map(|name| {
            let node = listed.iter().find(|node| node.name_any() == *name);
            async move {
                // What it has lost of its way to the others the Node does not say for 40 s.
                match inside.cut_off(name) {
                    Some(cause) => Some(Lacks::of_way(cause)),
                    None => serving::lacks(inside, client, (name, node), limit).await,
                }
            }
        });
        let lacks = futures::future::join_all(lacks).await;
        let mut late = Vec::new();
        for (name, lacks) in names.into_iter().zip(lacks) {
            let about = About { workload: None, name: &name };
            let Some(lacks) = lacks else {
                self.progress.stands(about, Stands::Ready, None);
                if ready.insert(name.clone()) {
                    self.progress.step(&format!("{name} Ready"));
                }
                continue;
            };
            self.progress.stands(about, Stands::NotReady, Some(&lacks.why));
            late.push(Late { name: Some(name), lacks });
        }
        late
    }

    async fn api_answers(&self, plan: &Plan) -> Result<Client> {
        let client = client::admin(self.run).await?;
        loop {
            let answer = serving::soon(serving::left(self.deadline), client.apiserver_version());
            let port = plan.api_port;
            let answer = self.progress.awaits(|| format!("the API on port {port} answers"), answer).await;
            let Err(error) = answer else { return Ok(client) };
            let why = watch::told(error.as_ref());
            let why = format!("the API on port {} does not answer: {why}", plan.api_port);
            let late = [Late { name: None, lacks: Lacks::of_api(why) }];
            self.check(&late)?;
            self.waiting(&late);
            tokio::time::sleep(GLANCE).await;
        }
    }

    /// What is waited for.
    fn waiting(&self, late: &[Late]) -> String {
        let what = told(late, "; ", |lacks| lacks.why.clone());
        self.progress.waits(|| what.clone());
        what
    }

    /// Fails when the lab has died, cannot live, or takes too long.
    fn check(&self, late: &[Late]) -> Result<()> {
        let run = self.run;
        if adopt::anchor(run)?.is_none() {
            bail!("the lab's anchor ended; the end of its log:\n{}", run.last_lines("anchor", 5));
        }
        let status = Status::read(run);
        let is_over = Instant::now() >= self.deadline;
        let is_meant = late.iter().any(|late| late.lacks.is_meant());
        if !is_over && !is_meant && !status.processes.values().any(hopeless) {
            return Ok(());
        }
        let after = match is_over {
            true => format!(" after {} s (--timeout gives more)", self.progress.seconds()),
            false => String::new(),
        };
        let lacking = match self.stays {
            true => format!(" {}", told(late, "; ", |lacks| lacks.told(&run.name()))),
            false => format!("\n  {}", told(late, "\n  ", |lacks| lacks.last_words(run))),
        };
        let mut why = format!("the lab is not Ready{after}:{lacking}");
        let is_shown =
            |log: &String| !self.stays && late.iter().any(|late| late.lacks.log() == Some(log.as_str()));
        if let Some(failure) = status.failure {
            why += &format!("\n  the supervisor: {failure}");
        }
        for (name, entry) in &status.processes {
            if let (State::Ended, Some(end)) = (entry.state, &entry.last_end) {
                let times = entry.restarts + 1;
                why += &format!(
                    "\n  {name} was started {times} times and ended each time, the last time by {end}"
                );
                if let (false, Some(lines)) = (is_shown(name), &entry.last_lines) {
                    why += &format!("; the end of its log:\n{lines}");
                }
            }
        }
        if status.processes.is_empty() {
            why += &format!("\n  the supervisor's log:\n{}", run.last_lines("supervise", 5));
        }
        bail!("{}", why.trim_end())
    }
}

/// Each with its name.
fn told(late: &[Late], between: &str, words: impl Fn(&Lacks) -> String) -> String {
    let said = late.iter().map(|Late { name, lacks }| match name {
        Some(name) => format!("{name}: {}", words(lacks)),
        None => words(lacks),
    });
    first(&said.collect::<Vec<_>>(), between)
}

/// As many as a person reads, and how many more there are.
pub const SHOWN: usize = 10;

/// The first ones, and how many more.
pub fn first(all: &[String], between: &str) -> String {
    let mut said: Vec<String> = all.iter().take(SHOWN).cloned().collect();
    if let more @ 1.. = all.len().saturating_sub(SHOWN) {
        said.push(format!("and {more} more"));
    }
    said.join(between)
}

/// What ended so often, with growing pauses, will end again.
fn hopeless(entry: &Entry) -> bool {
    entry.state == State::Ended && entry.restarts >= HOPELESS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_are_named_and_the_others_counted() {
        let names = |count: usize| (1..=count).map(|n| n.to_string()).collect::<Vec<_>>();
        assert_eq!(first(&names(2), "; "), "1; 2");
        assert!(first(&names(10), "; ").ends_with("; 9; 10"));
        assert!(first(&names(12), "; ").ends_with("; 10; and 2 more"));
    }
}
