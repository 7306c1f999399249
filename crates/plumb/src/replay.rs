//! `plumb replay`: what a node decided about its pods, and why, decided again from what its agent recorded. It asks no cluster,
//! no kernel and no clock.

use std::fmt::Write;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use install::image::tar;
use node::{Replay, Turn, Waits};
use types::ObjectName;
use watch::Misused;

/// `plumb replay`
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// An archive of `plumb sysdump`, or the decisions.jsonl of one node in it
    #[arg(value_name = "SYSDUMP")]
    file: PathBuf,
    /// Only what concerns this pod: NAMESPACE/NAME
    #[arg(long, value_name = "POD")]
    pod: Option<String>,
    /// Only this node of an archive
    #[arg(long)]
    node: Option<String>,
    #[command(flatten)]
    output: lab::Output,
}

/// What an agent calls its recording.
const FILE: &str = "decisions.jsonl";
/// With which a gzip file begins (RFC 1952).
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// An ADD takes some hundredths of it.
const LONG: Duration = Duration::from_secs(1);

/// Exit code 1: this version decides otherwise than was recorded, or cannot read all of it.
pub fn run(args: &Args) -> Result<ExitCode> {
    let pod = args.pod.as_deref().map(parse_pod).transpose()?;
    let recordings = read(&args.file)?;
    let mut replays: Vec<Replay> = recordings.iter().map(|text| Replay::of(text)).collect();
    if let Some(node) = &args.node {
        let known: Vec<String> = replays.iter().map(|replay| replay.node.clone()).collect();
        replays.retain(|replay| replay.node == *node);
        let file = args.file.display();
        ensure!(!replays.is_empty(), "{file}: nothing of node {node} is in it, but of: {}", known.join(", "));
    }
    let agrees = replays.iter().all(Replay::agrees);
    let ends: Vec<String> = replays.iter().map(end).collect();
    if let Some(pod) = &pod {
        replays.iter_mut().for_each(|replay| replay.narrow(pod));
    }
    match args.output.is_json() {
        true => println!("{}", serde_json::to_string_pretty(&replays)?),
        false => replays.iter().zip(&ends).for_each(|(replay, end)| print!("{}{end}", shown(replay))),
    }
    Ok(if agrees { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn parse_pod(text: &str) -> Result<ObjectName> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(ObjectName::new(namespace, name))
        }
        _ => Err(Misused(format!("--pod {text:?} is no pod; give NAMESPACE/NAME, such as shop/web")).into()),
    }
}

/// Of each node.
fn read(path: &Path) -> Result<Vec<String>> {
    let at = || format!("read {}", path.display());
    let bytes = fs::read(path).with_context(at)?;
    if !bytes.starts_with(&GZIP) {
        let text = String::from_utf8(bytes).with_context(at)?;
        ensure!(
            text.starts_with("{\"begin\":"),
            "{}: this is no {FILE} of a node; give one, or an archive of `plumb sysdump`",
            path.display()
        );
        return Ok(vec![text]);
    }
    let mut unpacked = Vec::new();
    flate2::read::GzDecoder::new(&bytes[..]).read_to_end(&mut unpacked).with_context(at)?;
    let of_nodes = tar::files(&unpacked).filter(|(name, _)| name.ends_with(&format!("/{FILE}")));
    let texts: Vec<String> =
        of_nodes.map(|(_, content)| String::from_utf8_lossy(content).into_owned()).collect();
    ensure!(
        !texts.is_empty(),
        "{}: no node's {FILE} is in it; its agents did not answer (failures.txt in it), or are older",
        path.display()
    );
    Ok(texts)
}

/// What leads to nothing is not shown.
fn shown(replay: &Replay) -> String {
    let Replay { node, recorded_by, decided_by, .. } = replay;
    let mut text =
        format!("node {node}: recorded by {recorded_by}, decided by {decided_by}; seconds since its boot\n");
    for turn in &replay.turns {
        let waits: Vec<String> = turn.waits.iter().filter_map(|waits| long(waits, turn.at)).collect();
        if turn.decided.is_empty() && waits.is_empty() && turn.agrees() {
            continue;
        }
        let mut begin = format!("{:>12.3}  {}\n", turn.at.as_secs_f64(), turn.heard);
        turn.decided.iter().for_each(|decided| begin += &line("→", &decided.what));
        waits.iter().for_each(|waits| begin += &line("…", waits));
        if let Some(recorded) = &turn.recorded {
            let was = if recorded.is_empty() { "nothing".to_owned() } else { recorded.join("; ") };
            begin += &line("!", &format!("recorded was: {was}"));
        }
        turn.unread.iter().for_each(|what| begin += &line("!", &format!("not recorded: {what}")));
        text += &begin;
    }
    text
}

/// What takes no longer than usual is not told.
fn long(Waits { why, until, .. }: &Waits, since: Duration) -> Option<String> {
    match until.map(|until| until.saturating_sub(since)) {
        None => Some(format!("{why} still")),
        Some(lasted) if lasted >= LONG => Some(format!("for {:.1} s: {why}", lasted.as_secs_f64())),
        Some(_) => None,
    }
}

fn line(sign: &str, what: &str) -> String {
    format!("{:>14}{sign} {what}\n", "")
}

/// Of all of it, whichever pod was asked for.
fn end(replay: &Replay) -> String {
    let others: Vec<&Turn> = replay.turns.iter().filter(|turn| !turn.agrees()).collect();
    let mut text = format!("node {}: {} inputs, ", replay.node, replay.turns.len());
    text += &match others.first() {
        None => "decided as they were\n".to_owned(),
        Some(first) => {
            format!("{} decided otherwise, the first at {:.3}\n", others.len(), first.at.as_secs_f64())
        }
    };
    for at in &replay.other_states {
        let _ = writeln!(text, "node {}: at {:.3} its state was another", replay.node, at.as_secs_f64());
    }
    for line in &replay.unreadable {
        let _ =
            writeln!(text, "node {}: {line}; another version wrote it, or a word was left out", replay.node);
    }
    if replay.left_out > 0 {
        let _ = writeln!(text, "node {}: {} inputs behind that are left out", replay.node, replay.left_out);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_a_namespace_and_a_name() {
        assert_eq!(parse_pod("shop/web").unwrap(), ObjectName::new("shop", "web"));
        for text in ["web", "/web", "shop/", "a/b/c"] {
            assert!(parse_pod(text).unwrap_err().is::<Misused>(), "{text}");
        }
    }

    #[test]
    fn an_archive_has_the_recordings_of_its_nodes_and_other_files_have_none() {
        let path = std::env::temp_dir().join(format!("plumb-replay-{}", std::process::id()));
        let said = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            read(&path).map_err(|error| format!("{error:#}"))
        };
        let packed = |files: &[&str]| {
            let mut archive = tar::Archive::default();
            files.iter().for_each(|name| archive.file(name, name.as_bytes(), 0o644).unwrap());
            let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            std::io::Write::write_all(&mut packed, &archive.finish()).unwrap();
            packed.finish().unwrap()
        };
        let names = ["d/nodes/a/decisions.jsonl", "d/nodes/a/log.txt", "d/nodes/b/decisions.jsonl"];
        assert_eq!(said(&packed(&names)).unwrap(), [names[0], names[2]]);
        assert!(said(&packed(&["d/versions.json"])).unwrap_err().contains("or are older"));
        assert!(said(b"hello").unwrap_err().contains("this is no decisions.jsonl"));
        assert!(said(&[0x1f, 0x8b, 0, 1]).unwrap_err().starts_with("read "));
        fs::remove_file(&path).unwrap();
    }
}
