//! What `up` and `wait` say while they work, and at their end to programs.

use std::cell::{Cell, RefCell};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;

use crate::Output;
use crate::rundir::RunDir;

/// Who waits hears what for after so long, and then each time after [`WORD`].
const FIRST_WORD: Duration = Duration::from_secs(2);
const WORD: Duration = Duration::from_secs(5);
const GLANCE: Duration = Duration::from_millis(100);

/// How long a person who waits was told nothing.
#[derive(Debug)]
pub struct Silence {
    since: Cell<Instant>,
    limit: Cell<Duration>,
}

impl Silence {
    pub fn begins() -> Self {
        Self { since: Cell::new(Instant::now()), limit: Cell::new(FIRST_WORD) }
    }

    /// Something else was said.
    pub fn broken(&self) {
        self.since.set(Instant::now());
        self.limit.set(FIRST_WORD);
    }

    /// Whether it is time for a word of what is waited for, which is said then.
    pub fn is_over(&self) -> bool {
        let is_over = self.since.get().elapsed() >= self.limit.get();
        if is_over {
            self.since.set(Instant::now());
            self.limit.set(WORD);
        }
        is_over
    }
}

/// Waits for an answer, and tells from time to time that it does.
pub async fn aloud<T>(silence: &Silence, tell: impl Fn(), answer: impl Future<Output = T>) -> T {
    let mut answer = std::pin::pin!(answer);
    loop {
        tokio::select! {
            biased;
            answer = &mut answer => return answer,
            () = tokio::time::sleep(GLANCE) => if silence.is_over() { tell() },
        }
    }
}

/// How a command tells of its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Telling {
    /// One line per step.
    Lines,
    /// One object at the end.
    Json,
    /// Errors alone.
    Quiet,
}

/// Progress, with the time since the start.
#[derive(Debug)]
pub struct Progress {
    began: Instant,
    telling: Telling,
    silence: Silence,
    report: RefCell<Report>,
}

/// As JSON these are the names of its fields.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    name: String,
    ok: bool,
    seconds: f64,
    /// `None`: no lab is there.
    kubeconfig: Option<String>,
    /// Why it is not as it was to be.
    error: Option<String>,
    /// What was applied.
    objects: Vec<Object>,
    nodes: Vec<Row>,
    /// The Pods and Deployments that were waited for.
    workloads: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Object {
    object: String,
    namespace: Option<String>,
    /// created, configured or unchanged
    outcome: &'static str,
}

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct About<'a> {
    /// Of a node neither: it is no workload.
    pub workload: Option<(&'a str, &'a str)>,
    pub name: &'a str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    name: String,
    state: State,
    /// Why it is not Ready.
    reason: Option<String>,
    /// When it was so for the first time, since the start.
    seconds: f64,
}

/// Where one stands; as JSON these words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum State {
    Ready,
    /// It has ended, and well.
    Succeeded,
    /// It may become so.
    NotReady,
    /// It will not.
    Failed,
}

impl Progress {
    pub fn start(output: Output, is_quiet: bool) -> Self {
        let telling = match (output.is_json(), is_quiet) {
            (true, _) => Telling::Json,
            (false, true) => Telling::Quiet,
            (false, false) => Telling::Lines,
        };
        Self { began: Instant::now(), telling, silence: Silence::begins(), report: RefCell::default() }
    }

    pub fn seconds(&self) -> u64 {
        self.began.elapsed().as_secs()
    }

    /// To the hundredth.
    fn time(&self) -> f64 {
        (self.began.elapsed().as_secs_f64() * 100.0).round() / 100.0
    }

    pub fn step(&self, what: &str) {
        if self.telling == Telling::Lines {
            println!("{:>7.2} s  {what}", self.time());
        }
        self.silence.broken();
    }

    /// Says from time to time what is waited for, to a person.
    pub fn waits(&self, what: impl FnOnce() -> String) {
        if self.silence.is_over() {
            self.say_waiting(&what());
        }
    }

    /// The same during one answer.
    pub async fn awaits<T>(&self, what: impl Fn() -> String, answer: impl Future<Output = T>) -> T {
        aloud(&self.silence, || self.say_waiting(&what()), answer).await
    }

    fn say_waiting(&self, what: &str) {
        if self.telling != Telling::Quiet {
            eprintln!("{:>7.2} s  waiting: {what}", self.time());
        }
    }

    /// What is well and may surprise, to a person.
    pub fn note(&self, words: &str) {
        if self.telling == Telling::Lines {
            println!("! {words}");
        }
    }

    /// What holds it up, to a person.
    pub fn held_up(&self, by: &str) {
        if self.telling != Telling::Quiet {
            eprintln!("{by}");
        }
        self.silence.broken();
    }

    /// What came of an object of a manifest.
    pub fn applied(&self, object: String, namespace: Option<String>, outcome: &'static str) {
        self.step(&format!("{object} {outcome}"));
        self.report.borrow_mut().objects.push(Object { object, namespace, outcome });
    }

    /// Where it stands now.
    pub fn stands(&self, about: About<'_>, state: State, reason: Option<&str>) {
        let (kind, namespace) = about.workload.unzip();
        let (kind, namespace) = (kind.map(str::to_owned), namespace.map(str::to_owned));
        let report = &mut *self.report.borrow_mut();
        let rows = if kind.is_some() { &mut report.workloads } else { &mut report.nodes };
        let is_it = |row: &&mut Row| row.name == about.name && row.kind == kind && row.namespace == namespace;
        let seconds = self.time();
        match rows.iter_mut().find(is_it) {
            Some(row) => {
                row.seconds = if row.state == state { row.seconds } else { seconds };
                (row.state, row.reason) = (state, reason.map(str::to_owned));
            }
            None => {
                let (name, reason) = (about.name.to_owned(), reason.map(str::to_owned));
                rows.push(Row { kind, namespace, name, state, reason, seconds });
            }
        }
    }

    /// Why it is not as it was to be, of a command that ends without an error.
    pub fn fails(&self, why: &str) {
        self.report.borrow_mut().error = Some(why.to_owned());
    }

    /// The end: what came of it goes on to `main`.
    pub fn end(self, run: &RunDir, outcome: Result<ExitCode>) -> Result<ExitCode> {
        if self.telling != Telling::Json {
            return outcome;
        }
        let seconds = self.time();
        let mut report = self.report.into_inner();
        (report.name, report.seconds) = (run.name(), seconds);
        report.kubeconfig = run.kubeconfig().exists().then(|| run.kubeconfig().display().to_string());
        report.error =
            report.error.or_else(|| outcome.as_ref().err().map(|error| watch::told(error.as_ref())));
        report.ok = report.error.is_none();
        println!("{}", serde_json::to_string_pretty(&report)?);
        outcome
    }

    /// Ends the lines of a person with where the kubeconfig is.
    pub fn ready(&self, run: &RunDir) {
        if self.telling == Telling::Lines {
            println!("\nexport KUBECONFIG={}", run.kubeconfig().display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silence_ends_after_two_seconds_and_then_after_five() {
        let silence = Silence::begins();
        let ago =
            |seconds| silence.since.set(Instant::now().checked_sub(Duration::from_secs(seconds)).unwrap());
        assert!(!silence.is_over());
        ago(2);
        assert!(silence.is_over() && !silence.is_over());
        ago(4);
        assert!(!silence.is_over());
        ago(5);
        assert!(silence.is_over());
        silence.broken();
        ago(2);
        assert!(silence.is_over());
    }

    #[test]
    fn what_stands_is_told_once_and_as_it_is_at_the_end() {
        let progress = Progress::start(Output { output: crate::Format::Json, json: false }, false);
        let (node, pod) =
            (About { workload: None, name: "a" }, About { workload: Some(("pod", "b")), name: "a" });
        progress.stands(node, State::NotReady, Some("it waits"));
        progress.stands(pod, State::NotReady, Some("it is Pending"));
        progress.stands(node, State::Ready, None);
        progress.stands(pod, State::Failed, Some("it has failed"));
        let mut told = serde_json::to_value(&*progress.report.borrow()).unwrap();
        for row in ["nodes", "workloads"] {
            told[row][0]["seconds"].take();
        }
        let row = serde_json::json!([{"name": "a", "state": "Ready", "reason": null, "seconds": null}]);
        assert_eq!(told["nodes"], row);
        let row = serde_json::json!([{"kind": "pod", "namespace": "b", "name": "a", "state": "Failed",
            "reason": "it has failed", "seconds": null}]);
        assert_eq!(told["workloads"], row);
    }
}
