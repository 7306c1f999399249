//! `plumb lab logs`: what a process of the lab has written.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::inside::Inside;
use crate::{Name, a_name};

/// `plumb lab logs`
#[derive(clap::Args, Debug)]
pub struct Options {
    #[command(flatten)]
    pub name: Name,
    /// Go on with what is written from now on
    #[arg(short, long)]
    follow: bool,
    /// Begin with the last so many lines [default: with the first]
    #[arg(long, value_name = "LINES")]
    tail: Option<usize>,
    /// NODE agent or NODE kubelet; or one name as `plumb lab status` has it, such as api or agent-node1
    #[arg(required = true, num_args = 1..=2, value_names = ["NODE", "PROCESS"], value_parser = a_name)]
    of: Vec<String>,
}

/// Between two looks at a log that is followed.
const GLANCE: Duration = Duration::from_millis(50);

/// Prints the log; one that is followed until this process or the lab is ended, or nobody reads it.
pub fn run(options: &Options) -> Result<ExitCode> {
    let inside = Inside::find(&options.name.get()?)?;
    let process = process(&inside, &options.of)?;
    let path = inside.run.log(&process);
    let at = || format!("read {}", path.display());
    let mut log = File::open(&path).with_context(at)?;
    let mut text = Vec::new();
    log.read_to_end(&mut text).with_context(at)?;
    let mut out = kernel::out::stdout();
    out.write_all(last(&text, options.tail)).with_context(at)?;
    out.flush().with_context(at)?;
    let mut read = text.len() as u64;
    while options.follow && kernel::out::heard() {
        std::thread::sleep(GLANCE);
        text.clear();
        // What it has said before its end is read before its end is.
        let has_ended = inside.has_ended();
        let Ok(mut log) = File::open(&path) else {
            if has_ended {
                return Err(inside.ended());
            }
            continue;
        };
        if log.metadata().with_context(at)?.len() < read {
            read = 0;
        }
        log.seek(SeekFrom::Start(read)).with_context(at)?;
        log.read_to_end(&mut text).with_context(at)?;
        read += text.len() as u64;
        out.write_all(&text).and_then(|()| out.flush()).with_context(at)?;
        if has_ended {
            return Err(inside.ended());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The name of the log.
fn process(inside: &Inside, of: &[String]) -> Result<String> {
    let name = match of {
        [node, process] => {
            inside.check_node(node)?;
            format!("{process}-{node}")
        }
        _ => of.concat(),
    };
    // A name is no path.
    if !name.contains(['/', '.']) && inside.run.log(&name).is_file() {
        return Ok(name);
    }
    let logs = std::fs::read_dir(inside.run.path().join("log")).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        logs.filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".log")?.to_owned())).collect();
    names.sort();
    bail!("lab {} has no process {name:?} that writes a log; it has {}", inside.plan.name, names.join(", "))
}

/// The last so many lines.
fn last(text: &[u8], lines: Option<usize>) -> &[u8] {
    let Some(lines) = lines else { return text };
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let mut ends = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
    let start = match lines.checked_sub(1) {
        None => text.len(),
        Some(before) => ends.nth(before).unwrap_or(0),
    };
    text.get(start..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_whole_lines() {
        let text = b"one\ntwo\nthree\n";
        for (lines, expected) in [
            (None, "one\ntwo\nthree\n"),
            (Some(0), ""),
            (Some(1), "three\n"),
            (Some(2), "two\nthree\n"),
            (Some(9), "one\ntwo\nthree\n"),
        ] {
            assert_eq!(last(text, lines), expected.as_bytes(), "{lines:?}");
        }
        assert_eq!(last(b"one\ntwo", Some(1)), b"two");
        assert_eq!(last(b"", Some(1)), b"");
    }
}
