//! One HTTP/1.0 request over a unix socket: the server closes when it has answered.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use cni::{Call, Reply};

/// The agent answers in milliseconds; a runtime gives up after minutes.
const PATIENCE: Duration = Duration::from_secs(60);

/// So long an agent that is not there may take to come. A machine that boots starts pods and agent at the same time,
/// and a killed agent is back at once; but kubelet waits 10 to 15 s before it tries again what was refused
/// (`backOffPeriod`, pkg/kubelet/pod_workers.go).
pub const ABSENCE: Duration = Duration::from_secs(20);
/// A connect costs microseconds.
const AGAIN: Duration = Duration::from_millis(20);

/// Nothing was said before the connection stands, so it may be asked for again.
fn connect(socket: &str, absence: Duration) -> Result<UnixStream, String> {
    let began = Instant::now();
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return Ok(stream),
            Err(_) if began.elapsed() < absence => std::thread::sleep(AGAIN),
            Err(error) => return Err(format!("connect: {error}")),
        }
    }
}

/// Any failure is one sentence: what went wrong at which step. `absence`: how long to wait for an agent to be there.
pub fn call(socket: &str, call: &Call, absence: Duration) -> Result<Reply, String> {
    let mut stream = connect(socket, absence)?;
    let patience = Some(PATIENCE);
    stream
        .set_read_timeout(patience)
        .and_then(|()| stream.set_write_timeout(patience))
        .map_err(|error| format!("set a time limit: {error}"))?;
    let body = serde_json::to_vec(call).map_err(|error| format!("encode: {error}"))?;
    // One write: the agent wakes once and finds everything.
    let mut request = format!(
        "POST /cni HTTP/1.0\r\nHost: plumb\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.extend(body);
    stream.write_all(&request).map_err(|error| format!("send: {error}"))?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).map_err(|error| format!("receive: {error}"))?;
    parse(&answer)
}

fn parse(answer: &[u8]) -> Result<Reply, String> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
    let (head, body) = match end {
        Some(end) => (&answer[..end], &answer[end + 4..]),
        None => return Err(format!("the answer ended after {} bytes", answer.len())),
    };
    let status =
        String::from_utf8_lossy(head.split(|byte| *byte == b'\r').next().unwrap_or(head)).into_owned();
    if status.split(' ').nth(1) != Some("200") {
        return Err(format!("it answered {status:?}: {}", String::from_utf8_lossy(body).trim()));
    }
    serde_json::from_slice(body).map_err(|error| format!("its answer cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_and_a_broken_one_is_told() {
        let good = b"HTTP/1.0 200 OK\r\ncontent-length: 26\r\n\r\n{\"exit\":0,\"stdout\":\"x\"}";
        assert_eq!(parse(good), Ok(Reply { exit: 0, stdout: "x".into() }));
        for (bad, word) in [
            (&b""[..], "ended after 0"),
            (b"HTTP/1.0 500 Oops\r\n\r\nboom", "boom"),
            (b"HTTP/1.0 200 OK\r\n\r\n{", "cannot be read"),
        ] {
            assert!(parse(bad).unwrap_err().contains(word), "{word}");
        }
    }
}
