//! docs/reference.md lists every command and setting as the program itself says them. `UPDATE=1` writes it anew.

#[path = "lab/help.rs"]
mod help;

use std::fmt::Write;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const HEAD: &str = "# Reference of commands and settings

As `plumb … --help` prints it; a test keeps this page true.

## Exit codes

| code | |
|---|---|
| 0 | it is done, and what was asked about is so |
| 1 | it was understood, and does not hold or could not be done: a check failed, a conclusion is another than `--expect` says, there is no such namespace, node, pod or port, a file cannot be read, nobody answers |
| 2 | the command line cannot be carried out, whatever the cluster, the lab and the machine have: a flag or value that there is not, a target or name that is none, `lab exec NODE` without a command where there is no terminal |
| 126, 127 | of `lab exec`: the command cannot be executed, there is no such command; else `lab exec` ends as the command does |
| 129, 130, 143 | it was interrupted (SIGHUP, Ctrl-C, SIGTERM), and has said `plumb: interrupted: …` with what is left, below |

What a signal leaves:

| command | |
|---|---|
| `lab up` | before anything is started nothing; a lab that was starting is taken away; one that runs goes on with what it has |
| `lab wait`, `logs`, `expose`, `status`, `list`, `kubeconfig`; `status`, `dns`, `trace`, `alerts`, `features`, `replay` | everything as it was |
| `lab down`, `node-cleanup` | the rest, for the same command again |
| `lab agent` | what it has done so far: `lab status` shows it |
| `connectivity test` | nothing: its namespace is removed, but with `--keep`; a second signal leaves the rest to `kubectl delete namespace` |
| `sysdump` | an archive that is not whole |

`lab exec` hands the signal to its command, and ends as that does. `demo`, `bench`, `install` and `uninstall` are ended by the
signal; the two last take their short pods away after Ctrl-C. `agent` ends with 0, and what it has made stays. A signal that is ignored (a job in the background, `nohup`) stays so.
";

#[test]
fn the_reference_says_what_the_program_says() {
    let mut page = HEAD.to_owned();
    for (path, help) in help::commands(Path::new(env!("CARGO_BIN_EXE_plumb")), &[]) {
        let title =
            std::iter::once("plumb").chain(path.iter().map(String::as_str)).collect::<Vec<_>>().join(" ");
        let text: Vec<&str> = help.trim_end().lines().map(str::trim_end).collect();
        writeln!(page, "\n## {title}\n\n```\n{}\n```", text.join("\n")).expect("a string takes everything");
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference.md");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &page).expect("docs/reference.md can be written");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == page,
        "docs/reference.md is not what the program says; UPDATE=1 cargo test --test reference"
    );
}

/// `plumb WORDS` whose output goes to a full disk.
fn lost(words: &[&str]) -> Output {
    let full = File::options().write(true).open("/dev/full").expect("every Linux has it");
    let mut command = Command::new(env!("CARGO_BIN_EXE_plumb"));
    command.args(words).env("KUBECONFIG", "/dev/null").stdout(full).stderr(Stdio::piped());
    command.spawn().expect("plumb runs").wait_with_output().expect("it ends")
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    let found = help::commands(Path::new(env!("CARGO_BIN_EXE_plumb")), &[]);
    let mut calls: Vec<Vec<&str>> = vec![
        vec!["--version"],
        vec!["help"],
        vec!["lab", "help", "up"],
        vec!["features"],
        vec!["install", "--print"],
        vec!["connectivity", "test", "--list"],
    ];
    calls.extend(found.iter().map(|(path, _)| path.iter().map(String::as_str).chain(["--help"]).collect()));
    calls.extend(found.iter().map(|(path, _)| path.iter().map(String::as_str).chain(["-h"]).collect()));
    for words in calls {
        let output = lost(&words);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "plumb {words:?}: {said}");
        let right = "plumb: not all of its output could be written: No space left on device (os error 28)\n";
        assert_eq!(said, right, "plumb {words:?}");
    }
}

#[test]
fn a_command_line_that_means_nothing_ends_with_2() {
    let code = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_plumb"));
        let output = command.args(words).env("KUBECONFIG", "/dev/null").stdin(Stdio::null()).output();
        let output = output.expect("plumb runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for words in [
        &["trace", "a/b", "c:99999"][..],
        &["trace", "a/b", "c:http"],
        &["trace", "a/b", "http://c", "--udp"],
        &["trace", "a/b", "http://c", "--expect", "bogus"],
        &["trace", "a/b", "http://c", "--timeout", "abc"],
        &["trace", "a/b", "http://c", "--kubeconfig", "-"],
        &["dns", "a/b", "api:80"],
        &["lab", "status", "--name", "Not-A-Name"],
        &["lab", "expose", "a", "--port", "99999"],
        &["lab", "up", "--name", "none", "-f", "-", "-f", "-"],
        &["install", "--print", "--cluster-cidr", "garbage"],
        &["uninstall", "--image", "No Image"],
        &["alerts", "--runbook-base", "nowhere"],
        &["connectivity", "test", "--only", "nosuch"],
        &["bench", "lab", "--rounds", "0"],
        &["trace", "", "api:80"],
        &["trace", "shop/", "api:8080"],
        &["trace", "web", "api:8080", "-n", ""],
        &["dns", "", "api"],
        &["connectivity", "test", "-n", "Foo_"],
        &["connectivity", "test", "--outside", "nothing"],
        &["lab", "expose", "--name", "none", "shop/api:99999"],
        &["lab", "exec", "--name", "none", "", "true"],
        &["lab", "agent", "stop", "--name", "none", ""],
        &["lab", "logs", "--name", "none", ""],
        &["lab", "wait", "--name", "none", "-n", ""],
        &["demo", "tcp", "a:0"],
        &["demo", "get", "https://a"],
    ] {
        assert_eq!(code(words).0, Some(2), "plumb {words:?}: {}", code(words).1);
    }
    // With a cluster, a lab or a file these could be.
    for words in [
        &["trace", "a/b", "http://c"][..],
        &["dns", "a/b", "api"],
        &["status", "--kubeconfig", "/no/such"],
        &["lab", "status", "--name", "no-such-lab"],
        &["lab", "up", "--name", "no-such-lab", "-f", "/no/such"],
    ] {
        assert_eq!(code(words).0, Some(1), "plumb {words:?}: {}", code(words).1);
    }
}
