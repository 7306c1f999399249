//! docs/reference.md lists every command and setting as the program itself says them. `UPDATE=1` writes it anew.

#[path = "lab/help.rs"]
mod help;

use std::fmt::Write;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Output, Stdio};

#[test]
fn the_reference_says_what_the_program_says() {
    let mut page = "# Reference of commands and settings\n\nAs `plumb … --help` prints it; a test keeps this page true.\n".to_owned();
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
