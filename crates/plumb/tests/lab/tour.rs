//! kubectl 1.37 on a running lab: pods that really start, answer, fail, are watched over and go.
//!
//! tour/pods.txt is a transcript: `$ ` begins a command, `> ` continues it, the rest is what it says, both streams.
//! What differs from run to run is masked and columns are narrowed to one space. `PLUMB_UPDATE_GOLDENS=1` writes what
//! was seen; read the diff. What kubectl says of objects alone is in apiserver/tests/tour.

use std::fmt::Write;
use std::process::{Command, Stdio};

use crate::cluster::{Lab, kubectl_binary, plumb, repository};

const TRANSCRIPT: &str = "crates/plumb/tests/lab/tour/pods.txt";

#[test]
fn a_tour_with_kubectl() {
    let lab = Lab::up(2);
    let path = repository(TRANSCRIPT);
    let expected = std::fs::read_to_string(&path).expect("the transcript");
    let mut seen = String::new();
    for (shown, script) in commands(&expected) {
        let said = say(&lab, &script);
        println!("{shown}{said}");
        seen += &(shown + &said);
    }
    if std::env::var_os("PLUMB_UPDATE_GOLDENS").is_some() {
        std::fs::write(&path, &seen).expect("the transcript is written");
        return;
    }
    let first = expected.lines().zip(seen.lines()).find(|(expected, seen)| expected != seen);
    assert!(expected == seen, "first difference (expected, seen): {first:#?}");
}

/// As they stand in the file, with comments before them, and as bash is to run them.
fn commands(transcript: &str) -> Vec<(String, String)> {
    let mut commands: Vec<(String, String)> = Vec::new();
    let mut comments = String::new();
    for line in transcript.lines() {
        if line.starts_with("# ") {
            writeln!(comments, "{line}").expect("a string");
        } else if let Some(script) = line.strip_prefix("$ ") {
            commands.push((format!("{}{line}\n", std::mem::take(&mut comments)), script.to_owned()));
        } else if let (Some(more), Some((shown, script))) = (line.strip_prefix("> "), commands.last_mut()) {
            writeln!(shown, "{line}").expect("a string");
            *script += &format!("\n{more}");
        }
    }
    commands
}

fn say(lab: &Lab, script: &str) -> String {
    // No command may take longer: nothing hangs.
    let output = Command::new("timeout")
        .args(["60", "bash", "-c", &format!("exec 2>&1; kubectl() {{ \"$KUBECTL\" \"$@\"; }}\n{script}")])
        .env("KUBECTL", kubectl_binary())
        .env("PLUMB", plumb())
        .env("KUBECONFIG", &lab.kubeconfig)
        .env("TZ", "UTC")
        .stdin(Stdio::null())
        .output()
        .expect("bash starts");
    let mut text: String =
        String::from_utf8_lossy(&output.stdout).lines().map(|line| mask(line) + "\n").collect();
    if let Some(code) = output.status.code().filter(|code| *code != 0) {
        writeln!(text, "[exit {code}]").expect("a string");
    }
    text
}

/// Words, each masked, with one space between; the indentation stays.
fn mask(line: &str) -> String {
    let indentation: String = line.chars().take_while(|c| *c == ' ').collect();
    let words: Vec<String> = line.split_whitespace().map(mask_word).collect();
    indentation + &words.join(" ")
}

fn mask_word(word: &str) -> String {
    // A name may stand in quotes, after a slash, or before a colon.
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-.".contains(c);
    let mut out = String::new();
    let mut rest = word;
    while let Some(c) = rest.chars().next() {
        let name = &rest[..rest.find(|c| !is_name(c)).unwrap_or(rest.len())];
        if name.is_empty() {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        } else {
            out += &mask_name(name);
            rest = &rest[name.len()..];
        }
    }
    out
}

fn mask_name(name: &str) -> String {
    let parts: Vec<&str> = name.split('-').collect();
    let random = |part: &str, least: usize| {
        part.len() >= least
            && part.len() <= 10
            && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
    };
    let hash = |part: &str| random(part, 8) && part.contains(|c: char| c.is_ascii_digit());
    match parts.as_slice() {
        [stem, rs, pod] if hash(rs) && random(pod, 5) => return format!("{stem}-<rs>-<pod>"),
        [stem, rs] if hash(rs) => return format!("{stem}-<rs>"),
        [rs] if hash(rs) => return "<rs>".to_owned(),
        [_, _, _, _, _] if name.len() == 36 => return "<uid>".to_owned(),
        _ => {}
    }
    let numbers: Vec<Option<u8>> = name.split('.').map(|part| part.parse().ok()).collect();
    match numbers[..] {
        [Some(10), Some(244), Some(node), Some(_)] => return format!("10.244.{node}.<n>"),
        [Some(10), Some(96..=111), Some(_), Some(_)] if name != "10.96.0.10" => {
            return "<cluster-ip>".to_owned();
        }
        _ => {}
    }
    let age = |text: &str| !text.is_empty() && text.len() <= 3 && text.chars().all(|c| c.is_ascii_digit());
    if name.strip_suffix(['s', 'm']).is_some_and(age) { "<t>".to_owned() } else { name.to_owned() }
}
