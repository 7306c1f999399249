//! `plumb shim`: starts one container, owns its output and its exit code, and outlives the kubelet.
//!
//! ```text
//! kubelet ── spec.json ──> shim ── Spawn: namespaces of the pod, own mounts, few capabilities ──> container
//!    │                      │ <── stdout, stderr ── lines, each with time and stream ──> log
//!    └── "started" or why not ┘ ── exit.json
//! ```

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, PipeReader, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use kernel::process::{Ended, Process, Signal, Spawn};
use serde::{Deserialize, Serialize};

use crate::record::{self, Exit};
use crate::{moment, root};

/// `plumb shim`
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The directory of this run of the container
    dir: PathBuf,
}

/// What the shim is told.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Spec {
    /// `None`: this very program.
    pub program: Option<String>,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    pub directory: String,
    /// The pod's directory, with its resolv.conf, hosts and pause file.
    pub pod: PathBuf,
    pub host_network: bool,
    /// The image is the demo, in which this program is.
    #[serde(default)]
    pub demo: bool,
}

/// What the kubelet reads on the shim's output once the container runs; anything else is why it does not.
pub const STARTED: &str = "started";
/// Before the reason where it is the program itself that cannot be executed.
pub const NO_PROGRAM: &str = "no program: ";
/// The same of the directory that it is to start in.
pub const NO_DIRECTORY: &str = "no directory: ";
/// What a background process of the container that holds the output open gets after the container's end.
const LINGER: Duration = Duration::from_millis(500);
/// Lines longer than this are cut into partial ones, as containerd does (CRI log format, tag P).
const LONGEST: usize = 16 * 1024;

/// Runs one container to its end.
pub fn run(args: Args) -> Result<ExitCode> {
    let path = args.dir.join("spec.json");
    let spec: Spec = record::read_json(&path).with_context(|| format!("read {}", path.display()))?;
    let started = moment::now();
    let exit = match start(&spec, &args.dir) {
        Ok(running) => running.attend(started)?,
        Err(error) => {
            let kind = match error.downcast_ref::<kernel::Error>() {
                Some(error) if error.is_of_program() => NO_PROGRAM,
                Some(error) if error.is_of_directory() => NO_DIRECTORY,
                _ => "",
            };
            let _ = writeln!(std::io::stdout(), "{kind}{error:#}");
            Exit {
                code: 128,
                signal: None,
                error: Some(format!("{error:#}")),
                started: started.clone(),
                finished: started,
            }
        }
    };
    record::write_json(&args.dir.join("exit.json"), &exit)?;
    Ok(ExitCode::SUCCESS)
}

struct Running {
    process: Process,
    copiers: Vec<std::thread::JoinHandle<()>>,
}

fn start(spec: &Spec, dir: &Path) -> Result<Running> {
    let pod = record::PodRecord::at(&spec.pod);
    let pause = pod.pause().context("the pod's pause process is gone")?;
    let spawn = match &spec.program {
        Some(program) => Spawn::program(program),
        None => Spawn::this_program()?.argv0("plumb"),
    };
    let spawn = root::into_pod(spawn.clear_env(), &pause, spec.host_network)?;
    let (out, out_end) = std::io::pipe().context("make a pipe")?;
    let (err, err_end) = std::io::pipe().context("make a pipe")?;
    let process = spawn
        .args(&spec.args)
        .envs(spec.env.iter().map(|(name, value)| (name, value)))
        .mounts(root::mounts(&spec.pod, spec.demo)?)
        .directory(&spec.directory)
        .new_session()
        .file(0, &File::open("/dev/null").context("open /dev/null")?)?
        .file(1, &out_end)?
        .file(2, &err_end)?
        .capabilities(root::CAPABILITIES)
        .confined()
        // A container without its shim would have nobody to tell its end to.
        .death_signal(Signal::KILL)
        .start_noted(|process| record::note(&dir.join("pid"), process))?;
    drop((out_end, err_end));
    let log = OpenOptions::new().create(true).append(true).open(dir.join("log")).context("open the log")?;
    let log = Arc::new(Mutex::new(log));
    let copiers = [("stdout", out), ("stderr", err)].map(|(stream, pipe)| {
        let log = Arc::clone(&log);
        std::thread::spawn(move || copy(stream, pipe, &log))
    });
    // A kubelet that has been killed meanwhile does not hear it; its successor sees the files.
    let _ = writeln!(std::io::stdout(), "{STARTED}");
    Ok(Running { process, copiers: copiers.into() })
}

impl Running {
    fn attend(self, started: String) -> Result<Exit> {
        while !self.process.wait_ended(Duration::from_secs(3600))? {}
        // Before the leader is reaped its group's number is still its own.
        kernel::own::kill_group(self.process.pid());
        let ended = self.process.wait()?;
        let finished = moment::now();
        let deadline = std::time::Instant::now() + LINGER;
        for copier in self.copiers {
            while !copier.is_finished() && std::time::Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        let signal = match ended {
            Ended::Code(_) => None,
            Ended::Signal(signal) => Some(signal),
        };
        Ok(Exit { code: ended.code(), signal, error: None, started, finished })
    }
}

/// `2026-01-02T03:04:05.678901234Z stdout F a line` (kubernetes design proposal kubelet-cri-logging).
fn copy(stream: &str, pipe: PipeReader, log: &Mutex<File>) {
    let mut reader = BufReader::with_capacity(LONGEST, pipe);
    loop {
        let (line, whole) = match reader.fill_buf() {
            Ok([]) | Err(_) => return,
            Ok(buffer) => match buffer.iter().position(|byte| *byte == b'\n') {
                Some(end) => (buffer.get(..end).unwrap_or_default().to_vec(), true),
                None => (buffer.to_vec(), false),
            },
        };
        reader.consume(line.len() + usize::from(whole));
        let tag = if whole { "F" } else { "P" };
        let text = [format!("{} {stream} {tag} ", moment::now_nanos()).as_bytes(), &line, b"\n"].concat();
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        // A full disk costs log lines, never the container.
        let _ = log.write_all(&text);
    }
}
