//! kubectl 1.37 against the API over TLS, its whole output checked.
//!
//! Each file of `tests/tour` is a transcript: `$ ` begins a command, `> ` continues it, the rest is its output
//! (both streams), with times, ages and uids masked. `PLUMB_UPDATE_GOLDENS=1` writes what was seen; read the diff.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use apiserver::{Api, Config, Credentials, Identity, NodeDial, Store, Stream};
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

/// No command of a transcript may take longer: nothing hangs.
const DEADLINE: Duration = Duration::from_secs(40);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects() {
    transcript("objects").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workloads() {
    transcript("workloads").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn describe() {
    transcript("describe").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes() {
    transcript("nodes").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals() {
    transcript("refusals").await;
}

/// A directory that goes with its owner, also on failure.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("plumb-tour-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a scratch directory");
        Self(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

async fn transcript(name: &str) {
    let scratch = Scratch::new(name);
    let kubectl = kubectl().await;
    let credentials = Credentials::open(&scratch.0.join("credentials")).expect("credentials");
    let config = Config {
        advertised: ([192, 168, 1, 2], 6443).into(),
        families: Default::default(),
        nodes: Arc::new(FakeNodes),
        credentials: Some(credentials.clone()),
    };
    let store = Store::open(&scratch.0.join("state.db")).expect("a store");
    let api = Api::new(store, config).expect("an API");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let server = format!("https://{}", listener.local_addr().expect("an address"));
    credentials
        .write_kubeconfig(&scratch.0.join("kubeconfig"), "plumb", &server, &Identity::Admin)
        .expect("a kubeconfig");
    let serving = tokio::spawn(apiserver::serve(api, listener, credentials));

    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tour").join(format!("{name}.txt"));
    let expected = std::fs::read_to_string(&path).expect("a transcript");
    let mut seen = String::new();
    for command in commands(&expected) {
        seen.push_str(&command.shown);
        seen.push_str(&run(&command.script, &scratch.0, &kubectl, &server).await);
    }
    serving.abort();
    if std::env::var_os("PLUMB_UPDATE_GOLDENS").is_some() {
        std::fs::write(&path, &seen).expect("the transcript is written");
        return;
    }
    let differs = expected.lines().zip(seen.lines()).position(|(a, b)| a != b);
    let at = differs.unwrap_or_else(|| expected.lines().count().min(seen.lines().count()));
    assert!(
        expected == seen,
        "{name}.txt, line {}:\n expected {:?}\n saw      {:?}\nthe whole transcript:\n{seen}",
        at + 1,
        expected.lines().nth(at),
        seen.lines().nth(at)
    );
}

struct Script {
    /// As it stands in the file, comments before it included.
    shown: String,
    script: String,
}

fn commands(transcript: &str) -> Vec<Script> {
    let mut commands: Vec<Script> = Vec::new();
    let mut comments = String::new();
    for line in transcript.lines() {
        if line.starts_with("# ") {
            comments.push_str(&format!("{line}\n"));
        } else if let Some(script) = line.strip_prefix("$ ") {
            let shown = format!("{}{line}\n", std::mem::take(&mut comments));
            commands.push(Script { shown, script: script.to_owned() });
        } else if let (Some(more), Some(last)) = (line.strip_prefix("> "), commands.last_mut()) {
            last.shown.push_str(&format!("{line}\n"));
            last.script.push_str(&format!("\n{more}"));
        }
    }
    commands
}

async fn run(script: &str, dir: &Path, kubectl: &Path, server: &str) -> String {
    let path = format!(
        "{}:{}",
        kubectl.parent().expect("kubectl lies in a directory").display(),
        std::env::var("PATH").unwrap_or_default()
    );
    let child = Command::new("bash")
        .args(["-c", &format!("exec 2>&1\n{script}")])
        .current_dir(dir)
        .env("PATH", path)
        .env("HOME", dir)
        .env("KUBECONFIG", dir.join("kubeconfig"))
        .env("EXAMPLES", Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples"))
        .env("TZ", "UTC")
        .env_remove("http_proxy")
        .env_remove("https_proxy")
        .env_remove("HTTP_PROXY")
        .env_remove("HTTPS_PROXY")
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(DEADLINE, child).await;
    let output = output.unwrap_or_else(|_| panic!("it hangs: {script}")).expect("bash runs");
    let mut text = mask(&String::from_utf8_lossy(&output.stdout).replace(server, "https://SERVER"));
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    if let Some(code) = output.status.code().filter(|code| *code != 0) {
        text.push_str(&format!("[exit {code}]\n"));
    }
    text
}

/// Replaces what differs from run to run, word by word, keeping columns where they are.
fn mask(text: &str) -> String {
    let mut out = String::new();
    for line in text.split_inclusive('\n') {
        let mut rest = line;
        while !rest.is_empty() {
            let is_word = |c: char| c.is_ascii_alphanumeric() || "-:.+".contains(c);
            let word: &str = &rest[..rest.find(|c: char| !is_word(c)).unwrap_or(rest.len())];
            if word.is_empty() {
                let c = rest.chars().next().expect("it is not empty");
                out.push(c);
                rest = &rest[c.len_utf8()..];
                continue;
            }
            let after = &rest[word.len()..];
            rest = after;
            match masked(word) {
                None => out.push_str(word),
                Some("<t>") => {
                    out.push_str("<t>");
                    if word.len() == 2 && after.starts_with("  ") {
                        rest = &after[1..];
                    }
                }
                Some(instead) => out.push_str(instead),
            }
        }
    }
    out
}

fn masked(word: &str) -> Option<&'static str> {
    let bytes = word.as_bytes();
    if word.len() == 36 && [8, 13, 18, 23].iter().all(|at| bytes[*at] == b'-') {
        return Some("<uid>");
    }
    if word.len() == 20 && bytes[4] == b'-' && bytes[10] == b'T' && word.ends_with('Z') {
        return Some("<time>");
    }
    if word.len() == 8 && bytes[2] == b':' && bytes[5] == b':' {
        return Some("<clock>");
    }
    let number = word.strip_suffix('s')?;
    (number.len() <= 2 && !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())).then_some("<t>")
}

/// kubectl by `KUBECTL`, or installed by the script that `./run` uses too.
async fn kubectl() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/kubectl.sh");
    let output = Command::new(script).output().await.expect("tools/kubectl.sh runs");
    assert!(output.status.success(), "tools/kubectl.sh: {}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
}

/// Nodes whose kubelets and agents are the functions below.
struct FakeNodes;

impl NodeDial for FakeNodes {
    fn kubelet(&self, node: &str) -> BoxFuture<'static, io::Result<Stream>> {
        let known = node == "node1";
        Box::pin(async move {
            if !known {
                return Err(io::Error::new(io::ErrorKind::ConnectionRefused, "Connection refused"));
            }
            let (ours, theirs) = tokio::io::duplex(1 << 16);
            tokio::spawn(serve_kubelet(theirs));
            Ok(Box::new(ours) as Stream)
        })
    }

    fn pod(&self, _: &str, to: SocketAddr) -> BoxFuture<'static, io::Result<Stream>> {
        self.tcp(to)
    }

    fn tcp(&self, to: SocketAddr) -> BoxFuture<'static, io::Result<Stream>> {
        Box::pin(async move {
            let (ours, theirs) = tokio::io::duplex(1 << 16);
            tokio::spawn(async move {
                let service = hyper::service::service_fn(move |request: Request<Incoming>| async move {
                    let text = format!(
                        "{} {} at {to}, plumb-token {:?}, authorization {:?}\n",
                        request.method(),
                        request.uri(),
                        request.headers().get("plumb-token"),
                        request.headers().get("authorization"),
                    );
                    Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from(text))))
                });
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(theirs), service)
                    .await;
            });
            Ok(Box::new(ours) as Stream)
        })
    }
}

async fn serve_kubelet(stream: tokio::io::DuplexStream) {
    let service = hyper::service::service_fn(|request: Request<Incoming>| async move {
        let uri = request.uri().to_string();
        let mut response = Response::new(Full::new(Bytes::from(format!("log of {uri}\n"))));
        if request.uri().path().starts_with("/exec/") {
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            response.headers_mut().insert("connection", "Upgrade".parse().expect("a value"));
            response.headers_mut().insert("upgrade", "v5.channel.k8s.io".parse().expect("a value"));
            tokio::spawn(async move {
                let upgraded = hyper::upgrade::on(request).await.expect("an upgrade");
                run_command(TokioIo::new(upgraded), &uri).await
            });
        }
        Ok::<_, std::convert::Infallible>(response)
    });
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
}

/// Says what was asked, echoes its standard input, and ends with 3 if asked for `false`.
async fn run_command<S>(mut stream: S, uri: &str) -> io::Result<()>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    send(&mut stream, 1, format!("ran {uri}\n").as_bytes()).await?;
    if uri.contains("stdin=true") {
        loop {
            let length = stream.read_u32().await?;
            let mut frame = vec![0; length as usize];
            stream.read_exact(&mut frame).await?;
            match frame.split_first() {
                Some((0, data)) => send(&mut stream, 1, data).await?,
                Some((255, _)) | None => break,
                Some(_) => {}
            }
        }
    }
    let status = if uri.contains("command=false") {
        r#"{"metadata":{},"status":"Failure","message":"command terminated with exit code 3","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}"#
    } else {
        r#"{"metadata":{},"status":"Success"}"#
    };
    send(&mut stream, 3, status.as_bytes()).await?;
    stream.shutdown().await
}

async fn send<S: tokio::io::AsyncWrite + Unpin>(stream: &mut S, channel: u8, data: &[u8]) -> io::Result<()> {
    let length = u32::try_from(data.len() + 1).expect("a short message");
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(&[channel]).await?;
    stream.write_all(data).await
}
