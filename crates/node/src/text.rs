//! Inputs and outputs as a person reads them, each in a line.

use std::collections::BTreeSet;
use std::fmt;

use model::{Event, Row};

use crate::input::{Answer, Input};
use crate::output::{Note, Output, Reply};

fn list<'a>(handles: impl IntoIterator<Item = &'a String>) -> String {
    let all: Vec<&str> = handles.into_iter().map(String::as_str).collect();
    if all.is_empty() { "none".to_owned() } else { all.join(" ") }
}

fn result<E: fmt::Display>(f: &mut fmt::Formatter<'_>, what: &str, done: &Result<(), E>) -> fmt::Result {
    match done {
        Ok(()) => f.write_str(what),
        Err(error) => write!(f, "not {what}: {error}"),
    }
}

fn seen(
    f: &mut fmt::Formatter<'_>,
    what: &str,
    veths: &BTreeSet<String>,
    namespaces: &BTreeSet<String>,
) -> fmt::Result {
    write!(f, "{what}: veths of {}; namespaces without one: {}", list(veths), list(namespaces))
}

impl fmt::Display for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started { veths, namespaces } => seen(f, "started", veths, namespaces),
            Self::Looked { veths, namespaces } => seen(f, "looked", veths, namespaces),
            Self::Asked(asked) => match &asked.request {
                cni::Request::Add(attach) => write!(f, "#{} ADD {}", asked.id, attach.id),
                cni::Request::Del(attach) => write!(f, "#{} DEL {}", asked.id, attach.id),
                cni::Request::Gc(gc) => {
                    let valid = gc.valid.iter().flatten().map(ToString::to_string).collect::<Vec<_>>();
                    write!(f, "#{} GC of {}, valid: {}", asked.id, gc.config.name, list(&valid))
                }
                other => write!(f, "#{} {other:?}", asked.id),
            },
            Self::Round { .. } => f.write_str("the next round"),
            Self::Saved(_, done) => result(f, "saved", done),
            Self::Followed { refused, unforgotten, .. } => {
                f.write_str("the kernel followed")?;
                refused.iter().try_for_each(|why| write!(f, "; it refuses: {why}"))?;
                unforgotten.iter().try_for_each(|why| write!(f, "; it does not forget: {why}"))
            }
            Self::Wired(handle, done) => {
                write!(f, "{handle} ")?;
                result(f, "wired", done)
            }
            Self::Unwired { handles, deleted, namespaces } => {
                write!(f, "{} ", list(handles))?;
                result(f, "unwired", deleted)?;
                write!(f, "; namespaces that live: {}", list(namespaces))
            }
            Self::Confirmed(doubt, answer) => match answer {
                Answer::Gone => write!(f, "the API does not have {}", doubt.pod),
                Answer::There => write!(f, "the API has {}", doubt.pod),
                Answer::Unheard(why) => write!(f, "the API does not answer for {}: {why}", doubt.pod),
                Answer::Unasked => write!(f, "nobody had time to ask the API for {}", doubt.pod),
            },
            Self::Forgotten(ips) => write!(f, "flows forgotten of {ips:?}"),
            Self::ForgottenAll => f.write_str("flows forgotten of all that nobody has"),
        }
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Save(_) => f.write_str("save"),
            Self::Row(Event::Upsert(Row::Attachment(row))) => {
                write!(f, "row of {}, pod {}, {:?}", row.container, row.pod, row.ips)
            }
            Self::Row(Event::Upsert(row)) => write!(f, "row {:?}", row.key()),
            Self::Row(Event::Delete(key)) => write!(f, "no row {:?}", key),
            Self::Row(other) => write!(f, "{other:?}"),
            Self::Wire(wire) => write!(f, "wire {}: {}", wire.record.handle(), wire.record.host_if),
            Self::Unwire { handle, host_if } => write!(f, "unwire {handle}: {host_if}"),
            Self::Confirm(doubt) => write!(f, "ask the API for {}", doubt.pod),
            Self::Reply(id, Reply::Done(Ok(_))) => write!(f, "#{id} done"),
            Self::Reply(id, Reply::Done(Err(error))) => write!(f, "#{id} {error}"),
            Self::Reply(id, Reply::NeedPod(pod)) => write!(f, "#{id} who is pod {pod}?"),
            Self::Note(note) => write!(f, "{note}"),
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wired { pod, ips, host_if } => write!(f, "wired {pod} {ips:?} {host_if}"),
            Self::NotWired { pod, error } => write!(f, "not wired {pod}: {error}"),
            Self::Unwired { pod, ips } => write!(f, "unwired {pod} {ips:?}"),
            Self::NotUnwired { handle, error } => write!(f, "not unwired {handle}: {error}"),
            Self::Garbage { handle } => write!(f, "garbage {handle}: the runtime does not know it"),
            Self::Ended { handle, pod } => write!(f, "{handle} of pod {pod} ended while no agent ran"),
            Self::Released(message) => f.write_str(message),
            Self::Kept { handle, pod, why } => write!(f, "kept {handle} of pod {pod}: {why}"),
            Self::NotSaved(error) => write!(f, "not saved: {error}"),
        }
    }
}
