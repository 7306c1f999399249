//! Whether a node serves: its processes run, its Node is Ready, and both its agent and its kubelet answer. What the API says
//! of a process that was killed is some seconds old.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, anyhow};
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use types::wire::{AGENT_NAMESPACE, AGENT_PORT, KUBELET_SOCKET};

use crate::client;
use crate::inside::Inside;

/// Of one answer: everything is on this machine.
const ANSWER: Duration = Duration::from_secs(10);

/// Why the node does not serve, with what brings it back where that is known; `None` when it does.
pub async fn lacks(inside: &Inside, client: &Client, name: &str, node: Option<&Node>) -> Option<String> {
    // What the Node says is some seconds old.
    if let Some(why) = away(inside, name) {
        return Some(why);
    }
    let Some(node) = node else { return Some("its kubelet has not registered it".into()) };
    if let Some(why) = client::not_ready(node) {
        return Some(why);
    }
    let told = |program: &str, why: anyhow::Error| {
        format!(
            "its {program} does not answer: {}; {}",
            watch::told(why.as_ref()),
            log(inside, name, program)
        )
    };
    if let Err(why) = kubelet(inside, name).await {
        return Some(told("kubelet", why));
    }
    agent(client, name).await.err().map(|why| told("agent", why))
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
pub async fn agent(client: &Client, node: &str) -> Result<()> {
    let path = format!("/api/v1/namespaces/{AGENT_NAMESPACE}/pods/plumb-{node}:{AGENT_PORT}/proxy/healthz");
    let request = http::Request::get(path).body(Vec::new())?;
    soon(client.request_text(request)).await??;
    Ok(())
}

/// Any answer is one: what it does for pods the API knows.
async fn kubelet(inside: &Inside, node: &str) -> Result<()> {
    let socket = inside.run.node(node).join("run").join(KUBELET_SOCKET.trim_start_matches("/run/"));
    soon(hello(&socket)).await?
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
pub async fn soon<T>(answer: impl Future<Output = T>) -> Result<T> {
    let late = |_| anyhow!("no answer within {} s", ANSWER.as_secs());
    tokio::time::timeout(ANSWER, answer).await.map_err(late)
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

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
