//! A container's log, from its file in CRI format to what `kubectl logs` prints.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use tokio::fs::File;
use tokio::io::AsyncReadExt;

use super::Query;
use crate::moment;
use crate::record::ContainerRecord;
use crate::runtime::ended;

/// How soon a new line is seen when following.
const GLANCE: Duration = Duration::from_millis(20);

struct Options {
    follow: bool,
    timestamps: bool,
    tail: Option<usize>,
    since: Option<Timestamp>,
    limit: usize,
}

pub(super) fn respond(run: ContainerRecord, query: &Query) -> Response {
    let since = query.all("sinceTime").first().and_then(|text| text.parse().ok()).or_else(|| {
        let seconds = i64::try_from(query.number("sinceSeconds")?).ok()?;
        moment::timestamp().checked_sub(SignedDuration::from_secs(seconds)).ok()
    });
    let number = |key| query.number(key).and_then(|number| usize::try_from(number).ok());
    let options = Options {
        follow: query.flag("follow"),
        timestamps: query.flag("timestamps"),
        tail: number("tailLines"),
        since,
        limit: number("limitBytes").unwrap_or(usize::MAX),
    };
    let stream = futures::stream::unfold(Reader::new(run, options), |mut reader| async move {
        let chunk = reader.next().await?;
        Some((Ok::<_, std::convert::Infallible>(chunk), reader))
    });
    ([(CONTENT_TYPE, "text/plain")], Body::from_stream(stream)).into_response()
}

struct Reader {
    run: ContainerRecord,
    options: Options,
    file: Option<File>,
    /// The begin of a line whose end is not written yet.
    rest: Vec<u8>,
    begun: bool,
    over: bool,
}

impl Reader {
    fn new(run: ContainerRecord, options: Options) -> Self {
        Self { run, options, file: None, rest: Vec::new(), begun: false, over: false }
    }

    /// The next piece of output; `None` at its end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.over || self.options.limit == 0 {
                return None;
            }
            // Asked before reading: what is written until the end is then still read.
            let running = self.options.follow && self.run.shim().is_some();
            let lines = self.lines().await;
            let mut text = self.text(lines);
            text.truncate(self.options.limit);
            self.options.limit -= text.len();
            self.over = !running;
            if !text.is_empty() {
                return Some(text.into());
            }
            if running {
                self.wait().await;
            }
        }
    }

    async fn wait(&self) {
        if let Some(shim) = self.run.shim() {
            // Either more output, or the end.
            let _ = tokio::time::timeout(GLANCE, ended(&shim)).await;
        }
    }

    /// All complete lines that have not been read yet.
    async fn lines(&mut self) -> Vec<Vec<u8>> {
        if self.file.is_none() {
            self.file = File::open(self.run.log()).await.ok();
        }
        let Some(file) = &mut self.file else { return Vec::new() };
        if file.read_to_end(&mut self.rest).await.is_err() {
            return Vec::new();
        }
        let mut lines: Vec<Vec<u8>> =
            self.rest.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
        self.rest = match lines.last() {
            Some(last) if last.last() != Some(&b'\n') => lines.pop().unwrap_or_default(),
            _ => Vec::new(),
        };
        lines
    }

    fn text(&mut self, lines: Vec<Vec<u8>>) -> Vec<u8> {
        let tail = if std::mem::replace(&mut self.begun, true) { None } else { self.options.tail };
        let skip = tail.map_or(0, |tail| lines.len().saturating_sub(tail));
        lines.iter().skip(skip).flat_map(|line| self.render(line)).collect()
    }

    /// `<time> <stream> <F|P> <text>`, where P has no line end of its own.
    fn render(&self, line: &[u8]) -> Vec<u8> {
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let (Some(time), Some(_stream), Some(tag), Some(text)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Vec::new();
        };
        let time = String::from_utf8_lossy(time);
        if self.options.since.is_some_and(|since| time.parse::<Timestamp>().is_ok_and(|time| time < since)) {
            return Vec::new();
        }
        let text = if tag == b"P" { text.strip_suffix(b"\n").unwrap_or(text) } else { text };
        if self.options.timestamps { [time.as_bytes(), b" ", text].concat() } else { text.to_vec() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_tail_of_a_log_is_printed_as_the_container_wrote_it() {
        let dir = std::env::temp_dir().join(format!("plumb-log-test-{}", std::process::id()));
        let run = crate::record::PodRecord::at(&dir).container("c", 0);
        run.make().expect("dir");
        std::fs::write(
            run.log(),
            "2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:01Z stdout P tw\n2026-01-01T00:00:01Z stdout F o\n",
        )
        .expect("write");
        let read = |tail, timestamps| {
            let options = Options { follow: false, timestamps, tail, since: None, limit: usize::MAX };
            let mut reader = Reader::new(run.clone(), options);
            async move { reader.next().await.map(|text| String::from_utf8_lossy(&text).into_owned()) }
        };
        let (all, tail) = (read(None, false).await, read(Some(1), true).await);
        std::fs::remove_dir_all(&dir).expect("clean");
        assert_eq!(all.as_deref(), Some("one\ntwo\n"));
        assert_eq!(tail.as_deref(), Some("2026-01-01T00:00:01Z o\n"));
    }
}
