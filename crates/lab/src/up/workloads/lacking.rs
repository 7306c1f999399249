//! What is said of workloads that are not Ready.

use std::collections::BTreeMap;

use anyhow::{Error, anyhow};
use k8s_openapi::api::core::v1::Event;
use kube::Api;
use kube::api::ListParams;

use super::{CRASHES, Kind, Wait, Workload};
use crate::progress::State;
use crate::serving;
use crate::up::wait::SHOWN;

/// One that is not Ready, and why.
pub(super) struct Lacking {
    pub shown: String,
    pub why: String,
    /// What tells more, of kubectl's.
    pub next: String,
}

/// By namespace.
type Events = BTreeMap<String, Vec<Event>>;

impl Wait<'_> {
    /// Of those that will not become Ready, and those that are not beside them.
    pub(super) async fn in_vain(
        &self,
        hopeless: Vec<(&Workload, String, Option<String>)>,
        waiting: Vec<(&Workload, String)>,
    ) -> Error {
        let named = hopeless.iter().map(|(workload, ..)| *workload);
        let events = self.events(named.chain(waiting.iter().map(|(workload, _)| *workload))).await;
        let in_vain = hopeless.into_iter().map(|(workload, why, next)| {
            let probe = events.get(&workload.namespace).and_then(|events| probe_failure(events, &why));
            let (why, next) = match probe {
                Some(failure) => {
                    let Workload { namespace, name, .. } = workload;
                    let next = format!("-n {namespace} describe {} {name}", workload.kind.word());
                    (format!("{why} after {failure}"), Some(next))
                }
                _ => (why, next),
            };
            let next = next.map(|next| format!("; {} {next} tells more", self.kubectl));
            self.progress.stands(workload.about(), State::Failed, Some(&why));
            Lacking { shown: workload.to_string(), why, next: next.unwrap_or_default() }
        });
        let late = waiting.into_iter().map(|(workload, why)| self.lacking(workload, why, &events));
        anyhow!(
            "{}",
            told(&[("will not become Ready", in_vain.collect()), ("is not Ready yet", late.collect())])
        )
    }

    pub(super) async fn late(&self, all: Vec<(&Workload, String)>) -> Error {
        let events = self.events(all.iter().map(|(workload, _)| *workload)).await;
        let lacking = all.into_iter().map(|(workload, why)| self.lacking(workload, why, &events)).collect();
        let is = format!("is not Ready after {} s (--timeout gives more)", self.progress.seconds());
        anyhow!("{}", told(&[(&is, lacking)]))
    }

    fn lacking(&self, workload: &Workload, why: String, events: &Events) -> Lacking {
        let Workload { kind, namespace, name, .. } = workload;
        let warning = events.get(namespace).and_then(|events| last_warning(events, workload, &why));
        let why = why + &warning.unwrap_or_default();
        self.progress.stands(workload.about(), State::NotReady, Some(&why));
        Lacking {
            shown: workload.to_string(),
            why,
            next: format!("; {} -n {namespace} describe {} {name} tells more", self.kubectl, kind.word()),
        }
    }

    /// Those of the ones that are named.
    async fn events<'a>(&self, all: impl Iterator<Item = &'a Workload>) -> Events {
        let mut events = BTreeMap::new();
        for Workload { namespace, .. } in all.take(SHOWN) {
            if !events.contains_key(namespace) {
                let api = Api::<Event>::namespaced(self.client.clone(), namespace);
                let listed =
                    serving::soon(serving::left(self.deadline), api.list(&ListParams::default())).await;
                // An API that does not answer is not asked again.
                let Ok(listed) = listed else { break };
                events.insert(namespace.clone(), listed.items);
            }
        }
        events
    }
}

/// One in a line, several below each other: the first ten in all, and how many more.
pub(super) fn told(groups: &[(&str, Vec<Lacking>)]) -> String {
    let mut room = SHOWN;
    let mut said = Vec::new();
    for (is, all) in groups.iter().filter(|(_, all)| !all.is_empty()) {
        let (is_alone, count) = (all.len() == 1, all.len());
        let shown = &all[..count.min(room)];
        room -= shown.len();
        let are = is.strip_prefix("is ").map_or((*is).to_owned(), |rest| format!("are {rest}"));
        said.push(match shown {
            [Lacking { shown, why, next }] if is_alone => format!("{shown} {is}: {why}{next}"),
            [] if is_alone => format!("1 more {is}"),
            [] => format!("{count} more {are}"),
            some => {
                let lines =
                    some.iter().map(|Lacking { shown, why, next }| format!("\n  {shown}: {why}{next}"));
                let more = match count - some.len() {
                    0 => String::new(),
                    more => format!("\n  and {more} more"),
                };
                format!("{count} {are}:{}{more}", lines.collect::<String>())
            }
        });
    }
    said.join("\n")
}

/// Whether an Event is of the workload, or of what a Deployment has made.
fn concerns(event: &Event, workload: &Workload) -> bool {
    let Workload { kind, name, .. } = workload;
    let of = |wanted: &str| event.involved_object.kind.as_deref() == Some(wanted);
    let about = event.involved_object.name.as_deref().unwrap_or_default();
    match kind {
        Kind::Pod => of("Pod") && about == name,
        Kind::Deployment if of("Deployment") => about == name,
        Kind::Deployment => {
            (of("ReplicaSet") || of("Pod"))
                && about.strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with('-'))
        }
    }
}

fn warnings<'a>(events: &'a [Event], workload: &'a Workload) -> impl Iterator<Item = &'a Event> {
    let warning = |event: &&Event| event.type_.as_deref() == Some("Warning");
    events.iter().filter(warning).filter(|event| concerns(event, workload))
}

fn last<'a>(events: impl Iterator<Item = &'a Event>) -> Option<&'a Event> {
    events.max_by_key(|event| event.last_timestamp.as_ref().map(|time| time.0))
}

/// What was last said of it, or of what a Deployment has made, and is not `known` yet.
pub(super) fn last_warning(events: &[Event], workload: &Workload, known: &str) -> Option<String> {
    let event = last(warnings(events, workload))?;
    let (reason, message) = (event.reason.as_deref().unwrap_or("Warning"), event.message.as_deref());
    let message = message.unwrap_or_default().trim();
    // Why a pod cannot be scheduled its status says as well.
    if !message.is_empty() && known.contains(message) {
        return None;
    }
    let about = match workload.kind {
        Kind::Pod => String::new(),
        Kind::Deployment => format!(" of {}", event.involved_object.name.as_deref().unwrap_or_default()),
    };
    Some(format!("; the last warning{about}: {reason}: {message}"))
}

/// As the kubelet words it.
const LIVENESS: &str = "Liveness probe failed";

/// Why the kubelet has ended a container of the pod that `why` is about, where its liveness probe failed: that is no end of
/// its own.
pub(super) fn probe_failure(events: &[Event], why: &str) -> Option<String> {
    let of_probe = |event: &&Event| {
        let (message, pod) = (event.message.as_deref(), event.involved_object.name.as_deref());
        let crashes = format!("pod {}: {CRASHES}", pod.unwrap_or_default());
        event.reason.as_deref() == Some("Unhealthy")
            && message.is_some_and(|said| said.starts_with(LIVENESS))
            && why.starts_with(&crashes)
    };
    last(events.iter().filter(of_probe))?.message.as_deref().map(|said| said.trim().to_owned())
}
