//! Inputs and outputs as a person reads them, each in a line.

use std::collections::BTreeMap;
use std::fmt;

use model::{Event, Row};
use types::IpNet;

use crate::input::{Answer, Input};
use crate::output::{Note, Output, Reply, Wire};

fn list<T: ToString>(all: impl IntoIterator<Item = T>) -> String {
    let all: Vec<String> = all.into_iter().map(|one| one.to_string()).collect();
    if all.is_empty() { "none".to_owned() } else { all.join(" ") }
}

fn result<E: fmt::Display>(f: &mut fmt::Formatter<'_>, what: &str, done: &Result<(), E>) -> fmt::Result {
    match done {
        Ok(()) => f.write_str(what),
        Err(error) => write!(f, "not {what}: {error}"),
    }
}

fn sources(f: &mut fmt::Formatter<'_>, what: &str, of: &BTreeMap<String, Vec<IpNet>>) -> fmt::Result {
    let of: Vec<String> = of.iter().map(|(handle, nets)| format!("{handle} {what} {}", list(nets))).collect();
    f.write_str(&of.join("; "))
}

impl fmt::Display for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started { veths, namespaces } => {
                write!(f, "started: veths of {}; namespaces without one: {}", list(veths), list(namespaces))
            }
            Self::Looked { ended, unshown } => {
                write!(f, "looked: ended {}; not in the API {}", list(ended), list(unshown))
            }
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
            Self::Forgotten(nets) => write!(f, "flows forgotten of {}", list(nets)),
            Self::ForgottenAll => f.write_str("flows forgotten of all that nobody has"),
            Self::Subnets { nets, .. } => write!(f, "pods' addresses come from {}", list(nets)),
            Self::Grant(further) => sources(f, "may also send from", further),
            Self::Narrow(further) => sources(f, "may also send only from", further),
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
            Self::Row(Event::Upsert(row)) => write!(f, "row of {:?} {}", row.key().kind, row.key().name),
            Self::Row(Event::Delete(key)) => write!(f, "no row of {:?} {} any more", key.kind, key.name),
            Self::Row(other) => write!(f, "{other:?}"),
            Self::Wire(wire) => {
                let (Wire { record, side, mtu }, handle) = (&**wire, wire.record.handle());
                write!(
                    f,
                    "wire {handle}: {}, {}, {}, mtu {mtu}",
                    record.host_if,
                    record.mac,
                    list(&side.addresses)
                )
            }
            Self::Unwire { handle, host_if } => write!(f, "unwire {handle}: {host_if}"),
            Self::Confirm(doubt) => write!(f, "ask the API for {}", doubt.pod),
            Self::PoolsMoved => f.write_str("pools moved"),
            Self::Granted(done) => result(f, "granted", done),
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
            Self::Released { message, .. } => f.write_str(message),
            Self::Kept { handle, pod, why } => write!(f, "kept {handle} of pod {pod}: {why}"),
            Self::NotSaved(error) => write!(f, "not saved: {error}"),
        }
    }
}
