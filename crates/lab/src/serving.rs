//! Whether a node serves: its processes run, its Node is Ready, and both its agent and its kubelet answer. What the API says
//! of a process that was killed is some seconds old.

use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Error, Result, anyhow};
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::client::Body;
use kube::core::Status;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use types::wire::{AGENT_NAMESPACE, AGENT_PORT, KUBELET_SOCKET};

use crate::client;
use crate::inside::Inside;
use crate::rundir::RunDir;

/// Of one answer: everything is on this machine.
pub const ANSWER: Duration = Duration::from_secs(10);
/// Of one who only looks.
pub const LOOK: Duration = Duration::from_secs(2);
/// What the last question gets of a patience that is over: what lives answers sooner.
const LEAST: Duration = Duration::from_secs(1);

/// How long the next question may take, of one who waits until then.
pub fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).clamp(LEAST, ANSWER)
}

/// Why something of a lab does not serve.
#[derive(Clone, Debug)]
pub struct Lacks {
    pub why: String,
    next: Next,
}

/// What tells more, or brings it back.
#[derive(Clone, Debug)]
enum Next {
    /// What a process has said: the name of its log, and that for `plumb lab logs`.
    Log(String, String),
    /// `plumb lab VERB`, its flags but for the lab's name, and what it does. Without it nothing changes.
    Command(&'static str, String, &'static str),
    Nothing,
}

impl Lacks {
    /// What ends by itself, or stays as it is.
    pub fn of(why: String) -> Self {
        Self { why, next: Next::Nothing }
    }

    pub fn of_api(why: String) -> Self {
        Self { why, next: Next::Log("api".into(), "api".into()) }
    }

    fn of_program(why: String, node: &str, program: &str) -> Self {
        Self { why, next: Next::Log(format!("{program}-{node}"), format!("{node} {program}")) }
    }

    /// What `plumb lab up` gives back.
    pub fn of_way(why: String) -> Self {
        Self { why, next: Next::Command("up", String::new(), "gives it back") }
    }

    /// Whether somebody has stopped it, so that no waiting helps.
    pub fn is_meant(&self) -> bool {
        matches!(self.next, Next::Command("agent start", ..))
    }

    /// Of a lab that goes on running: with the command that is next.
    pub fn told(&self, lab: &str) -> String {
        let why = &self.why;
        match &self.next {
            Next::Log(_, words) => {
                format!("{why}; plumb lab logs --name {lab} --tail 50 {words} shows what it has said")
            }
            Next::Command(verb, words, does) => format!("{why}; plumb lab {verb} --name {lab}{words} {does}"),
            Next::Nothing => why.clone(),
        }
    }

    /// Which process's log says why, where one does.
    pub fn log(&self) -> Option<&str> {
        match &self.next {
            Next::Log(log, _) => Some(log),
            _ => None,
        }
    }

    /// Of a lab that is about to be taken away: nothing can be asked of it afterwards.
    pub fn last_words(&self, run: &RunDir) -> String {
        let Some(log) = self.log() else { return self.why.clone() };
        match run.last_lines(log, LAST) {
            lines if lines.is_empty() => format!("{}; {log} has said nothing", self.why),
            lines => format!("{}; the end of the log of {log}:\n{}", self.why, lines.trim_end()),
        }
    }
}

/// Lines of a log that goes.
const LAST: usize = 10;

/// Why the node does not serve, with what brings it back where that is known; `None` when it does. Each question may take
/// as long as `limit` says. What is seen here goes before what the Node says: that names no cause of a kubelet's silence.
pub async fn lacks(
    inside: &Inside,
    client: &Client,
    (name, node): (&str, Option<&Node>),
    limit: impl Fn() -> Duration,
) -> Option<Lacks> {
    // What the Node says is some seconds old.
    if let Some(why) = away(inside, name) {
        return Some(why);
    }
    let Some(node) = node else {
        return Some(Lacks::of_program("its kubelet has not registered it".into(), name, "kubelet"));
    };
    let told = |program: &str, why: anyhow::Error| {
        let why = format!("its {program} does not answer: {}", watch::told(why.as_ref()));
        Lacks::of_program(why, name, program)
    };
    if let Err(why) = kubelet(inside, name, limit()).await {
        return Some(told("kubelet", why));
    }
    if let Some(why) = client::not_ready(node) {
        return Some(Lacks::of_program(why, name, "kubelet"));
    }
    let why = agent(client, name, limit()).await.err()?;
    Some(match (why.is::<NotInOrder>(), why.is::<Late>()) {
        (true, _) => Lacks::of_program(format!("its agent {why}"), name, "agent"),
        // It runs, and nobody is answered.
        (_, true) => Lacks {
            next: Next::Command("agent restart", format!(" {name}"), "starts it anew"),
            ..told("agent", why)
        },
        _ => told("agent", why),
    })
}

/// Which of the node's processes is not there, whatever the Node says yet, and what brings it back.
fn away(inside: &Inside, node: &str) -> Option<Lacks> {
    let is_away = |program: &str| inside.living(&format!("{program}-{node}")).is_none();
    if is_away("hold") {
        return Some(Lacks::of("it is being made anew: what held its namespaces has ended".into()));
    }
    let program = ["agent", "kubelet"].into_iter().find(|program| is_away(program))?;
    match inside.run.stopped(&format!("{program}-{node}")).exists() {
        true => {
            let next = Next::Command("agent start", format!(" {node}"), "starts it");
            Some(Lacks { why: format!("its {program} is stopped"), next })
        }
        false => Some(Lacks::of_program(format!("its {program} does not run"), node, program)),
    }
}

/// As `plumb trace` and `plumb status` ask it: by its pod, through the API. It is good once it wires pods and has the
/// datapath that it should have.
pub async fn agent(client: &Client, node: &str, limit: Duration) -> Result<()> {
    let path = format!("/api/v1/namespaces/{AGENT_NAMESPACE}/pods/plumb-{node}:{AGENT_PORT}/proxy/healthz");
    let request = http::Request::get(path).body(Body::empty())?;
    let (status, text) = soon(limit, async {
        let (head, body) = client.send(request).await?.into_parts();
        let text = body.collect().await?.to_bytes();
        anyhow::Ok((head.status, String::from_utf8_lossy(&text).trim().to_owned()))
    })
    .await?;
    match serde_json::from_str::<Status>(&text) {
        _ if status.is_success() => Ok(()),
        // The API's own words: its agent is not reached.
        Ok(refusal) => Err(anyhow!("{}", refusal.message)),
        Err(_) => Err(NotInOrder(text).into()),
    }
}

/// The agent's own words.
#[derive(Debug)]
struct NotInOrder(String);

impl std::fmt::Display for NotInOrder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "is not in order: {}", self.0)
    }
}

impl std::error::Error for NotInOrder {}

/// Any answer is one: what it does for pods the API knows.
async fn kubelet(inside: &Inside, node: &str, limit: Duration) -> Result<()> {
    let socket = inside.run.node(node).join("run").join(KUBELET_SOCKET.trim_start_matches("/run/"));
    soon(limit, hello(&socket)).await
}

async fn hello(socket: &Path) -> Result<()> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(b"GET / HTTP/1.0\r\nHost: kubelet\r\n\r\n").await?;
    match stream.read(&mut [0; 16]).await? {
        0 => Err(anyhow!("it hangs up")),
        _ => Ok(()),
    }
}

/// An API that is stopped takes connections and says nothing.
pub async fn soon<T, E: Into<Error>>(
    limit: Duration,
    answer: impl Future<Output = Result<T, E>>,
) -> Result<T> {
    let began = Instant::now();
    match tokio::time::timeout(limit, answer).await {
        // A client may give up sooner.
        Ok(answer) => answer.map_err(|error| in_time(error.into(), began.elapsed())),
        Err(_) => Err(Late(limit).into()),
    }
}

/// Nobody answered for so long.
#[derive(Debug)]
struct Late(Duration);

impl std::fmt::Display for Late {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "no answer within {} s", self.0.as_secs_f64().round().max(1.0))
    }
}

impl std::error::Error for Late {}

/// That of a socket or a client which was the first to give up is told in the same words.
pub fn in_time(error: Error, limit: Duration) -> Error {
    use std::io::ErrorKind::{TimedOut, WouldBlock};
    let gave_up = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    match gave_up.into_iter().any(|cause| [TimedOut, WouldBlock].contains(&cause.kind())) {
        true => Late(limit).into(),
        false => error,
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    #[test]
    fn a_lab_that_goes_gives_its_last_words_and_no_advice() {
        let run = RunDir::at(std::env::temp_dir().join(format!("plumb-words-{}", std::process::id())));
        std::fs::create_dir_all(run.path().join("log")).expect("made");
        let lines: String = (0..20).map(|line| format!("line {line}\n")).collect();
        let lines = format!("{lines}no more\nno more\n");
        std::fs::write(run.log("kubelet-node2"), lines).expect("written");
        let all = [
            Lacks::of_program("it is silent".into(), "node2", "kubelet"),
            Lacks::of_api("it is silent".into()),
            Lacks::of_way("its eth0 is gone".into()),
            Lacks::of("it is being made anew".into()),
        ];
        assert!(all.iter().all(|lacks| !lacks.last_words(&run).contains("plumb lab")));
        let said = all[0].last_words(&run);
        assert!(
            said.starts_with("it is silent; the end of the log of kubelet-node2:\n    line 11\n"),
            "{said}"
        );
        assert!(said.ends_with("line 19\n    no more (2 times)"), "{said}");
        assert_eq!(all[1].last_words(&run), "it is silent; api has said nothing");
        assert_eq!(
            all[0].told("mine"),
            "it is silent; plumb lab logs --name mine --tail 50 node2 kubelet shows what it has said"
        );
        assert_eq!(all[2].told("mine"), "its eth0 is gone; plumb lab up --name mine gives it back");
        std::fs::remove_dir_all(run.path()).expect("it was there");
    }

    #[tokio::test]
    async fn a_question_takes_what_is_left_and_a_late_answer_is_told_in_one_way() {
        let now = Instant::now();
        assert_eq!(left(now + Duration::from_secs(60)), ANSWER);
        assert!(left(now + Duration::from_secs(3)) <= Duration::from_secs(3));
        assert_eq!(left(now), LEAST);
        let limit = Duration::from_millis(2);
        let never = std::future::pending::<std::io::Result<()>>();
        let silent = soon(limit, never).await.expect_err("nobody answers");
        let timed_out = std::io::Error::from(std::io::ErrorKind::TimedOut);
        let service = kube::Error::Service(Box::new(timed_out));
        let gave_up = soon(LOOK, async { Err::<(), _>(service) }).await.expect_err("it gave up");
        assert_eq!(silent.to_string(), "no answer within 1 s");
        assert_eq!(gave_up.to_string(), "no answer within 1 s", "as long as it took, and not the limit");
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let refused = soon(LOOK, async { Err::<(), _>(refused) }).await.expect_err("it refuses");
        assert_eq!(refused.to_string(), "connection refused");
    }

    #[tokio::test]
    async fn a_socket_answers_when_somebody_does() {
        let path = std::env::temp_dir().join(format!("plumb-serving-{}", std::process::id()));
        assert!(hello(&path).await.is_err(), "there is none");
        let listener = UnixListener::bind(&path).expect("bound");
        let silent = tokio::time::timeout(Duration::from_millis(50), hello(&path)).await;
        assert!(silent.is_err(), "a process that is stopped still has its socket");
        // That of the one that gave up.
        drop(listener.accept().await.expect("accepted"));
        let answer = async {
            let (mut stream, _) = listener.accept().await.expect("accepted");
            let mut asked = [0; 64];
            let length = stream.read(&mut asked).await.expect("read");
            assert!(length > 0);
            stream.write_all(b"HTTP/1.0 404 Not Found\r\n\r\n").await.expect("written");
        };
        let (said, ()) = tokio::join!(hello(&path), answer);
        said.expect("any answer is one");
        // What a killed process leaves.
        drop(listener);
        assert!(path.exists() && hello(&path).await.is_err());
        std::fs::remove_file(&path).expect("it was there");
    }
}
