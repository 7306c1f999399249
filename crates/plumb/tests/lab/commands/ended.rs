//! Commands that are ended from outside: each says what is left, and ends as shells tell of a signal. And those that would
//! not end by themselves, where their output cannot be written.

use std::fs::File;
use std::io::{self, Read};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::at;
use super::pipes::calls;
use crate::cluster::{Checks, Lab, fresh_name, plumb, run, wait_for};
use crate::help;

pub fn checks(lab: &Lab, checks: &mut Checks) {
    checks.check("every command says what is left when a signal ends it", || signals(lab));
    checks.check("`lab exec` hands a signal to its command, and ends as that does", || handed_on(lab));
    checks.check("what would not end by itself ends where its output cannot be written", || unwritten(lab));
}

const SIGNALS: [(&str, u8); 3] = [("HUP", 1), ("INT", 2), ("TERM", 15)];

/// Servers, what ends as another command does, what takes its work back itself, and what no lab has.
const OTHERS: [&str; 6] = ["agent", "install", "uninstall", "node-cleanup", "lab exec", "demo"];

fn signals(lab: &Lab) {
    for (path, said) in help::commands(&plumb(), &[]) {
        let path = path.join(" ");
        let is_other =
            OTHERS.contains(&path.as_str()) || ["bench", "demo"].iter().any(|of| path.starts_with(of));
        if is_other || path.is_empty() || !help::subcommands(&said).is_empty() {
            continue;
        }
        for (signal, number) in SIGNALS {
            if path.starts_with("lab agent") {
                // The one before may have stopped it.
                lab.lab_ok(&["agent", "start", "node2"]);
            }
            let mut child = held(&mut called(lab, &path));
            wait_for("it listens", Duration::from_secs(20), || listens(&mut child, number));
            assert!(run(Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()])).ok);
            let output = child.wait_with_output().expect("it ends");
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(i32::from(128 + number)), "{path} {signal}: {said}");
            assert!(said.contains("plumb: interrupted: "), "{path} {signal}: {said}");
        }
    }
    lab.lab_ok(&["agent", "start", "node2"]);
    lab.lab_ok(&["agent", "resume", "node2"]);
}

fn handed_on(lab: &Lab) {
    for (signal, number) in SIGNALS {
        let heeds = format!("trap 'exit 7' {signal}; echo begun; while :; do sleep 0.1; done");
        for (script, code) in [(heeds.as_str(), 7), ("echo begun; exec sleep 1000", 128 + i32::from(number))]
        {
            let mut exec = lab.node_command("node1");
            exec.args(["sh", "-c", script]).stdin(Stdio::null()).stdout(Stdio::piped());
            let mut child = exec.spawn().expect("it starts");
            let mut out = child.stdout.take().expect("piped");
            out.read_exact(&mut [0; 6]).expect("it has begun");
            assert!(run(Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()])).ok);
            assert_eq!(child.wait().expect("it ends").code(), Some(code), "{signal} {script}");
        }
    }
}

/// As it works for long, or until somebody reads what it says.
fn called(lab: &Lab, path: &str) -> Command {
    match path {
        // What it is to apply is still to come.
        "lab up" => at(lab, &["lab", "up", "--name", &fresh_name(), "-f", "-"]),
        "lab expose" => at(lab, &["lab", "expose", "--name", &lab.name, "shop/payments"]),
        "connectivity test" => at(lab, &["connectivity", "test"]),
        _ => {
            // Without its timeout(1).
            let call = calls(lab, path).pop().expect("one of each");
            let mut command = Command::new(plumb());
            command.args(call.get_args().skip(2));
            command.envs(call.get_envs().filter_map(|(key, value)| Some((key, value?))));
            command
        }
    }
}

/// With an input that does not end, and an output that nobody reads.
fn held(command: &mut Command) -> Child {
    let (reader, writer) = io::pipe().expect("a pipe");
    let mut full = writer.try_clone().expect("a descriptor");
    std::thread::spawn(move || io::copy(&mut io::repeat(b'\n'), &mut full));
    let child =
        command.stdin(Stdio::piped()).stdout(writer).stderr(Stdio::piped()).spawn().expect("it starts");
    // The process has the other end; the test keeps this one open.
    std::mem::forget(reader);
    child
}

/// By /proc/PID/status (proc(5), SigCgt).
fn listens(child: &mut Child, signal: u8) -> Result<(), String> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or_default().trim();
    match u64::from_str_radix(mask, 16) {
        Ok(mask) if mask & (1 << (signal - 1)) != 0 => Ok(()),
        _ => Err(status),
    }
}

fn unwritten(lab: &Lab) {
    for words in [
        &["status", "--watch"][..],
        &["status", "--watch", "-o", "json"],
        &["lab", "logs", "-f", "node1", "agent"],
        &["lab", "expose", "shop/payments"],
    ] {
        let full = File::options().write(true).open("/dev/full").expect("every Linux has it");
        let mut child = at(lab, words).stdout(full).stderr(Stdio::piped()).spawn().expect("it starts");
        wait_for("its end", Duration::from_secs(20), || match child.try_wait() {
            Ok(Some(status)) if status.code() == Some(1) => Ok(()),
            other => Err(format!("{words:?}: {other:?}")),
        });
        let mut said = String::new();
        child.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
        assert!(said.contains("not all of its output could be written: No space left"), "{words:?}: {said}");
    }
}
