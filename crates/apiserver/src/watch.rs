//! WATCH: a cursor on the ring of events, a selection, and a stream of lines.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::stream;
use http::Response;
use serde_json::{Value, json};
use tokio::sync::watch::Receiver;
use tokio::time::Instant;

use crate::api::{Body, BodyError};
use crate::form::{Form, shown};
use crate::request::Call;
use crate::select::Selection;
use crate::status::Failure;
use crate::store::{Change, Event, Key, Stored};
use crate::{form, read, response, table};

/// kube-apiserver ends watches after 30 to 60 minutes; clients begin a new one where they were.
const LONGEST: Duration = Duration::from_secs(3600);
/// How often a quiet watcher learns how far it is (kube-apiserver: about a minute).
const BOOKMARK_EVERY: Duration = Duration::from_secs(30);
/// Events per chunk.
const BATCH: usize = 256;

/// Starts a watch: from now with everything that exists, or from a revision.
pub(crate) async fn start(call: &Call) -> Result<Response<Body>, Failure> {
    let query = &call.query;
    let mut fields = query.get("fieldSelector").to_owned();
    if !call.name.is_empty() {
        fields = format!("{fields},metadata.name={}", call.name);
    }
    let selection = Selection::parse(call.kind, query.get("labelSelector"), &fields)?;
    let send_initial = query.get("sendInitialEvents");
    if !send_initial.is_empty() && query.get("resourceVersionMatch") != "NotOlderThan" {
        return Err(Failure::new(
            422,
            "Invalid",
            "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: sendInitialEvents requires \
             setting resourceVersionMatch to NotOlderThan",
        ));
    }
    let store = &call.api.inner.store;
    // Subscribed before the state is read, so that nothing falls between.
    let commits = store.commits();
    let revision = match query.get("resourceVersion") {
        "" | "0" => None,
        text => Some(text.parse::<u64>().map_err(|_| {
            Failure::bad_request(format!("Invalid value: {text:?}: resourceVersion must be a number"))
        })?),
    };
    let mut watcher = Watcher {
        call: call.again(),
        resource: call.kind.stored_as().qualified(),
        selection,
        cursor: 0,
        commits,
        initial: None,
        bookmarks: query.is_true("allowWatchBookmarks"),
        bookmark_at: Instant::now() + BOOKMARK_EVERY,
        deadline: Instant::now()
            + query.number("timeoutSeconds").filter(|s| *s > 0).map_or(LONGEST, Duration::from_secs),
        columns_sent: false,
        ended: false,
    };
    let wants_initial = send_initial == "true" || (send_initial.is_empty() && revision.is_none());
    if wants_initial || revision.is_none() {
        let listed = store.snapshot(&watcher.resource, &call.namespace).await?;
        watcher.cursor = listed.revision;
        let mut lines = BytesMut::new();
        for (key, stored) in listed.objects.iter().filter(|_| wants_initial) {
            if watcher.selection.matches(key, stored) {
                watcher.line("ADDED", stored, &mut lines)?;
            }
        }
        if send_initial == "true" && watcher.bookmarks {
            lines.put_slice(&watcher.bookmark(true));
        }
        watcher.initial = Some(lines.freeze());
    } else if let Some(revision) = revision {
        // A revision from the future is one of a state that is lost: the watcher must list again.
        let known = if revision > store.revision() {
            Err(Failure::expired(format!("too new resource version: {revision}; list again")))
        } else {
            store.events(&watcher.resource, revision, 1).map(drop)
        };
        // As an event of the watch, which kube-apiserver's cache makes of it too: kube-rs takes an answer with
        // status 410 for a passing failure and asks for the same revision for ever.
        if let Err(failure) = known {
            watcher.initial = Some(error_line(&failure));
            watcher.ended = true;
        }
        watcher.cursor = revision;
    }
    let lines = stream::unfold(watcher, |mut watcher| async move {
        let chunk = watcher.next().await?;
        Some((Ok::<_, BodyError>(chunk), watcher))
    });
    Ok(response::streamed(response::JSON, lines))
}

fn error_line(failure: &Failure) -> Bytes {
    format!("{}\n", json!({"type": "ERROR", "object": failure.to_value()})).into()
}

struct Watcher {
    call: Call,
    resource: String,
    selection: Selection,
    cursor: u64,
    commits: Receiver<u64>,
    initial: Option<Bytes>,
    bookmarks: bool,
    bookmark_at: Instant,
    deadline: Instant,
    columns_sent: bool,
    ended: bool,
}

impl Watcher {
    /// The next lines, `None` when the watch is over.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(initial) = self.initial.take().filter(|lines| !lines.is_empty()) {
            return Some(initial);
        }
        while !self.ended && Instant::now() < self.deadline {
            self.commits.mark_unchanged();
            match self.advance() {
                Ok(lines) if !lines.is_empty() => return Some(lines),
                Ok(_) => {}
                Err(failure) => {
                    self.ended = true;
                    return Some(error_line(&failure));
                }
            }
            let quiet_until =
                if self.bookmarks { self.bookmark_at.min(self.deadline) } else { self.deadline };
            match tokio::time::timeout_at(quiet_until, self.commits.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return None,
                Err(_) if self.bookmarks && Instant::now() < self.deadline => {
                    self.bookmark_at = Instant::now() + BOOKMARK_EVERY;
                    return Some(self.bookmark(false));
                }
                Err(_) => return None,
            }
        }
        None
    }

    /// Lines for what was committed since the cursor; empty when the cursor is at the end.
    fn advance(&mut self) -> Result<Bytes, Failure> {
        let mut lines = BytesMut::new();
        loop {
            let (events, cursor) = self.call.api.inner.store.events(&self.resource, self.cursor, BATCH)?;
            let full = events.len() == BATCH;
            self.cursor = cursor;
            for event in &events {
                self.event(event, &mut lines)?;
            }
            if !lines.is_empty() || !full {
                return Ok(lines.freeze());
            }
        }
    }

    /// What one change means for this selection: entering it is ADDED, leaving it DELETED.
    fn event(&mut self, event: &Event, lines: &mut BytesMut) -> Result<(), Failure> {
        let Key { namespace, .. } = &*event.key;
        if !self.call.namespace.is_empty() && *namespace != self.call.namespace {
            return Ok(());
        }
        let was = event.before.as_ref().is_some_and(|before| self.selection.matches(&event.key, before));
        let is = self.selection.matches(&event.key, &event.now);
        match (event.change, was, is) {
            (Change::Deleted, true, _) => self.line("DELETED", &event.now, lines),
            (Change::Modified, true, true) => self.line("MODIFIED", &event.now, lines),
            (Change::Added | Change::Modified, false, true) => self.line("ADDED", &event.now, lines),
            (Change::Modified, true, false) => {
                let Some(before) = &event.before else { return Ok(()) };
                // The object as it was while selected, at the revision of its leaving.
                let mut last = before.value()?;
                crate::object::metadata(&mut last)
                    .insert("resourceVersion".to_owned(), event.revision.to_string().into());
                let raw = Bytes::from(last.to_string());
                let last = Stored {
                    revision: event.revision,
                    raw,
                    labels: before.labels.clone(),
                    fields: Vec::new(),
                };
                self.line("DELETED", &last, lines)
            }
            _ => Ok(()),
        }
    }

    fn line(&mut self, change: &str, stored: &Stored, lines: &mut BytesMut) -> Result<(), Failure> {
        lines.put_slice(format!(r#"{{"type":"{change}","object":"#).as_bytes());
        if let Form::Table { whole_objects } = self.call.form {
            let object = shown(self.call.kind, stored)?;
            let metadata = json!({"resourceVersion": stored.revision.to_string()});
            let rows = vec![table::row(self.call.kind, object, whole_objects)];
            let mut table = table::whole(self.call.kind, &metadata, rows);
            // Only the first table of a watch says what its columns are.
            if std::mem::replace(&mut self.columns_sent, true) {
                crate::object::root(&mut table).insert("columnDefinitions".to_owned(), Value::Null);
            }
            lines.put_slice(table.to_string().as_bytes());
        } else {
            lines.put_slice(&read::bytes_of(&self.call, stored)?);
        }
        lines.put_slice(b"}\n");
        Ok(())
    }

    fn bookmark(&mut self, initial_events_end: bool) -> Bytes {
        let mut metadata = json!({"resourceVersion": self.cursor.to_string(), "creationTimestamp": null});
        if initial_events_end {
            crate::object::root(&mut metadata)
                .insert("annotations".to_owned(), json!({"k8s.io/initial-events-end": "true"}));
        }
        let object = match self.call.form {
            Form::Table { .. } => {
                let bare = json!({"kind": self.call.kind.kind, "apiVersion": self.call.kind.api_version(),
                    "metadata": metadata});
                let rows = vec![json!({"cells": [], "object": bare})];
                let mut table = table::whole(self.call.kind, &metadata, rows);
                if self.columns_sent {
                    crate::object::root(&mut table).insert("columnDefinitions".to_owned(), Value::Null);
                }
                table
            }
            Form::Metadata => form::partial(&json!({"metadata": metadata})),
            Form::Whole => json!({"kind": self.call.kind.kind, "apiVersion": self.call.kind.api_version(),
                "metadata": metadata}),
        };
        format!("{}\n", json!({"type": "BOOKMARK", "object": object})).into()
    }
}
