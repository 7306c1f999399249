//! `exec`: a command in a container's namespaces, its streams over one upgraded connection.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, StatusCode};
use kernel::own::Terminal;
use kernel::process::{Ended, Namespaces, Process, Signal, Spawn};
use serde_json::{Value, json};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::mpsc;
use types::wire::EXEC_PROTOCOL;

use super::Query;
use super::line::{self, FromApi};
use crate::record::{self, ContainerRecord};
use crate::root;
use crate::runtime::ended;
use crate::shim::Spec;

/// Channels of v5.channel.k8s.io.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;
/// kubectl sends at most 32 KiB at once; more than this is not kubectl.
const LONGEST: u32 = 1 << 20;
const LINGER: Duration = Duration::from_millis(300);

#[derive(Debug)]
struct Wish {
    command: Vec<String>,
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

/// `container`: the container's own process.
pub(super) fn respond(
    run: ContainerRecord,
    container: Process,
    query: &Query,
    mut request: Request,
) -> Response {
    let wish = Wish {
        command: query.all("command").to_vec(),
        stdin: query.flag("stdin"),
        stdout: query.flag("stdout"),
        stderr: query.flag("stderr"),
        tty: query.flag("tty"),
    };
    if wish.command.is_empty() {
        return (StatusCode::BAD_REQUEST, "you must specify at least one command for the container")
            .into_response();
    }
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match line::upgraded(upgrade).await {
            Ok(line) => {
                if let Err(error) = converse(&run, &container, wish, line).await {
                    tracing::debug!("an exec ended early: {error:#}");
                }
            }
            Err(error) => tracing::debug!(%error, "an exec was not upgraded"),
        }
    });
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(EXEC_PROTOCOL));
    response
}

/// As shells and container engines have it: 127 where there is no such program, 126 where it cannot be executed.
fn code_of(error: &anyhow::Error) -> i32 {
    let errno = error.downcast_ref::<kernel::Error>().and_then(kernel::Error::errno);
    let kind = errno.map(|errno| std::io::Error::from_raw_os_error(errno).kind());
    if kind == Some(std::io::ErrorKind::NotFound) { 127 } else { 126 }
}

/// Our ends of the command's streams.
struct Streams {
    stdin: Option<OwnedFd>,
    outputs: Vec<(u8, OwnedFd)>,
    terminal: Option<OwnedFd>,
}

async fn converse(
    run: &ContainerRecord,
    container: &Process,
    wish: Wish,
    (mut reader, mut writer): (FromApi, OwnedWriteHalf),
) -> Result<()> {
    let (process, streams) = match start(run, container, &wish) {
        Ok(started) => started,
        Err(error) => {
            let message = format!("{error:#}");
            if wish.stderr {
                // kubectl shows of a failure no more than its exit code.
                send(&mut writer, STDERR, format!("{message}\n").as_bytes()).await?;
            }
            let code = code_of(&error);
            return send(&mut writer, STATUS, failure(&message, code).to_string().as_bytes()).await;
        }
    };
    let stdin = streams.stdin.map(|fd| File::from_std(fd.into()));
    let hung_up = async {
        take_input(&mut reader, stdin, streams.terminal).await;
        // kubectl is gone: a command that nobody hears goes too.
        let _ = process.signal(Signal::KILL);
        std::future::pending::<()>().await;
    };
    let (sender, mut frames) = mpsc::channel::<(u8, Vec<u8>)>(16);
    for (channel, fd) in streams.outputs {
        tokio::spawn(forward(channel, File::from_std(fd.into()), sender.clone()));
    }
    drop(sender);
    let output = async {
        while let Some((channel, bytes)) = frames.recv().await {
            send(&mut writer, channel, &bytes).await?;
        }
        Ok(())
    };
    let ended = tokio::select! {
        ended = finish(&process, output) => ended,
        () = hung_up => Ok(None),
    };
    if ended.is_err() {
        // What it says reaches nobody any more.
        let _ = process.signal(Signal::KILL);
    }
    let ended = ended?;
    let code = ended.map_or(137, Ended::code);
    let status = if code == 0 {
        json!({"metadata": {}, "status": "Success"})
    } else {
        failure(&format!("command terminated with non-zero exit code: {code}"), code)
    };
    send(&mut writer, STATUS, status.to_string().as_bytes()).await?;
    writer.shutdown().await.context("end the connection")
}

/// All output until the command's end. A background process of the command may keep its output open: what comes long
/// after the end is not waited for.
async fn finish(process: &Process, output: impl Future<Output = Result<()>>) -> Result<Option<Ended>> {
    tokio::pin!(output);
    let mut ending = std::pin::pin!(ended(process));
    tokio::select! {
        sent = &mut output => {
            sent?;
            ending.await
        }
        ended = &mut ending => {
            if let Ok(sent) = tokio::time::timeout(LINGER, output).await {
                sent?;
            }
            ended
        }
    }
}

fn start(run: &ContainerRecord, container: &Process, wish: &Wish) -> Result<(Process, Streams)> {
    let spec: Spec = record::read_json(&run.file("spec.json")).context("the container's record is gone")?;
    let (program, args) = wish.command.split_first().context("no command")?;
    let kinds = Namespaces::NET
        | Namespaces::UTS
        | Namespaces::IPC
        | Namespaces::PID
        | Namespaces::MOUNT
        | Namespaces::CGROUP;
    // Of the demo image, whatever PATH the container has.
    let spawn = match program.as_str() {
        "plumb" if spec.demo => Spawn::this_program()?.argv0("plumb"),
        _ => Spawn::program(program),
    };
    let mut spawn = spawn
        .args(args)
        .clear_env()
        .envs(spec.env.iter().map(|(name, value)| (name, value)))
        .join(kinds, container)?
        .directory(&spec.directory)
        .new_session()
        .capabilities(root::CAPABILITIES)
        .confined();
    let mut streams = Streams { stdin: None, outputs: Vec::new(), terminal: None };
    if wish.tty {
        let terminal = Terminal::open(Path::new(&format!("/proc/{}/root/dev/pts/ptmx", container.pid())))?;
        let copy = || terminal.ours.try_clone().context("duplicate a terminal");
        if wish.stdin {
            streams.stdin = Some(copy()?);
        }
        streams.outputs.push((STDOUT, copy()?));
        for number in 0..3 {
            spawn = spawn.file(number, &terminal.childs)?;
        }
        spawn = spawn.env("TERM", "xterm").controlling_terminal();
        let Terminal { ours, childs } = terminal;
        let process = spawn.start()?;
        streams.terminal = Some(ours);
        drop(childs);
        return Ok((process, streams));
    }
    let null =
        std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").context("open /dev/null")?;
    let mut given: Vec<OwnedFd> = Vec::new();
    let stdin = if wish.stdin {
        let (reader, writer) = std::io::pipe().context("make a pipe")?;
        streams.stdin = Some(writer.into());
        OwnedFd::from(reader)
    } else {
        null.try_clone()?.into()
    };
    spawn = spawn.file(0, &stdin)?;
    for (channel, wanted) in [(STDOUT, wish.stdout), (STDERR, wish.stderr)] {
        if wanted {
            let (reader, writer) = std::io::pipe().context("make a pipe")?;
            streams.outputs.push((channel, reader.into()));
            spawn = spawn.file(channel.into(), &writer)?;
            given.push(writer.into());
        } else {
            spawn = spawn.file(channel.into(), &null)?;
        }
    }
    Ok((spawn.start()?, streams))
}

/// Until the API sends no more, or is gone while the command takes nothing.
async fn take_input(reader: &mut FromApi, stdin: Option<File>, terminal: Option<OwnedFd>) {
    let mut stdin = stdin;
    while let Ok(length) = reader.0.read_u32().await {
        if length == 0 || length > LONGEST {
            return;
        }
        let mut frame = vec![0; length as usize];
        if reader.0.read_exact(&mut frame).await.is_err() {
            return;
        }
        let Some((channel, payload)) = frame.split_first() else { return };
        match (*channel, payload.first()) {
            (STDIN, _) => {
                let Some(file) = &mut stdin else { continue };
                let given = async { file.write_all(payload).await.is_ok() && file.flush().await.is_ok() };
                tokio::select! {
                    taken = given => if !taken { stdin = None },
                    () = reader.gone() => return,
                }
            }
            (CLOSE, Some(&STDIN)) => stdin = None,
            (RESIZE, _) => resize(terminal.as_ref(), payload),
            _ => {}
        }
    }
}

/// `{"Width": 80, "Height": 24}`
fn resize(terminal: Option<&OwnedFd>, payload: &[u8]) {
    let size: Value = serde_json::from_slice(payload).unwrap_or_default();
    let side = |key: &str| size.get(key).and_then(Value::as_u64).and_then(|side| u16::try_from(side).ok());
    if let (Some(terminal), Some(rows), Some(columns)) = (terminal, side("Height"), side("Width")) {
        // The command may have ended meanwhile.
        let _ = kernel::own::resize(terminal, rows, columns);
    }
}

/// Until the end of the stream; a terminal whose other side is closed answers EIO, which is its end.
async fn forward(channel: u8, mut file: File, frames: mpsc::Sender<(u8, Vec<u8>)>) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(length @ 1..) = file.read(&mut buffer).await {
        let bytes = buffer.get(..length).unwrap_or_default().to_vec();
        if frames.send((channel, bytes)).await.is_err() {
            return;
        }
    }
}

async fn send<W: AsyncWrite + Unpin>(writer: &mut W, channel: u8, payload: &[u8]) -> Result<()> {
    let length = u32::try_from(payload.len() + 1).context("a frame that long")?;
    let mut frame = Vec::with_capacity(payload.len() + 5);
    frame.extend(length.to_be_bytes());
    frame.push(channel);
    frame.extend(payload);
    writer.write_all(&frame).await.context("send a frame")?;
    writer.flush().await.context("send a frame")
}

/// As kubectl reads an exit code (apimachinery `NonZeroExitCodeReason`).
fn failure(message: &str, code: i32) -> Value {
    json!({
        "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode", "message": message,
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}
