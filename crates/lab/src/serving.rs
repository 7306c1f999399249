//! Whether a node serves: its processes run, its Node is Ready, and both its agent and its kubelet answer. What the API says
//! of a process that was killed is some seconds old.

use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Error, Result, anyhow};
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use types::wire::{AGENT_NAMESPACE, AGENT_PORT, KUBELET_SOCKET};

use crate::client;
use crate::inside::Inside;

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

/// Why the node does not serve, with what brings it back where that is known; `None` when it does. Each question may take
/// as long as `limit` says. What is seen here goes before what the Node says: that names no cause of a kubelet's silence.
pub async fn lacks(
    inside: &Inside,
    client: &Client,
    (name, node): (&str, Option<&Node>),
    limit: impl Fn() -> Duration,
) -> Option<String> {
    // What the Node says is some seconds old.
    if let Some(why) = away(inside, name) {
        return Some(why);
    }
    let Some(node) = node else { return Some("its kubelet has not registered it".into()) };
    let told = |program: &str, why: anyhow::Error| {
        format!(
            "its {program} does not answer: {}; {}",
            watch::told(why.as_ref()),
            log(inside, name, program)
        )
    };
    if let Err(why) = kubelet(inside, name, limit()).await {
        return Some(told("kubelet", why));
    }
    if let Some(why) = client::not_ready(node) {
        return Some(format!("{why}; {}", log(inside, name, "kubelet")));
    }
    agent(client, name, limit()).await.err().map(|why| told("agent", why))
}

/// Which of the node's processes is not there, whatever the Node says yet, and what brings it back.
fn away(inside: &Inside, node: &str) -> Option<String> {
    let lab = &inside.plan.name;
    let is_away = |program: &str| inside.living(&format!("{program}-{node}")).is_none();
    if is_away("hold") {
        return Some("it is being made anew: what held its namespaces has ended".into());
    }
    let program = ["agent", "kubelet"].into_iter().find(|program| is_away(program))?;
    match inside.run.stopped(&format!("{program}-{node}")).exists() {
        true => {
            Some(format!("its {program} is stopped; plumb lab agent start --name {lab} {node} starts it"))
        }
        false => Some(format!("its {program} does not run; {}", log(inside, node, program))),
    }
}

fn log(inside: &Inside, node: &str, program: &str) -> String {
    let lab = &inside.plan.name;
    format!("plumb lab logs --name {lab} --tail 50 {node} {program} shows what it has said")
}

/// As `plumb trace` and `plumb status` ask it: by its pod, through the API. It is good once it wires pods and has the
/// datapath that it should have.
pub async fn agent(client: &Client, node: &str, limit: Duration) -> Result<()> {
    let path = format!("/api/v1/namespaces/{AGENT_NAMESPACE}/pods/plumb-{node}:{AGENT_PORT}/proxy/healthz");
    let request = http::Request::get(path).body(Vec::new())?;
    soon(limit, client.request_text(request)).await?;
    Ok(())
}

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
    match tokio::time::timeout(limit, answer).await {
        Ok(answer) => answer.map_err(|error| in_time(error.into(), limit)),
        Err(_) => Err(late(limit)),
    }
}

fn late(limit: Duration) -> Error {
    anyhow!("no answer within {} s", limit.as_secs_f64().round().max(1.0))
}

/// That of a socket or a client which was the first to give up is told in the same words.
pub fn in_time(error: Error, limit: Duration) -> Error {
    use std::io::ErrorKind::{TimedOut, WouldBlock};
    let gave_up = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    match gave_up.into_iter().any(|cause| [TimedOut, WouldBlock].contains(&cause.kind())) {
        true => late(limit),
        false => error,
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

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
        assert_eq!(gave_up.to_string(), "no answer within 2 s");
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
