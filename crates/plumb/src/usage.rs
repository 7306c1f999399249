//! A value that its flag does not take, in one sentence: the flag, the value, and what would be right.

use std::any::TypeId;
use std::error::Error;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use clap::builder::{PathBufValueParser, TypedValueParser};
use clap::error::{ContextKind, ContextValue, ErrorKind};

/// `None` for everything else, which clap says well.
pub fn said(error: &clap::Error, range: impl Fn(&str) -> Option<String>) -> Option<String> {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        _ => None,
    };
    let (argument, value) = (text(ContextKind::InvalidArg)?, text(ContextKind::InvalidValue)?);
    // `--mtu <MTU>`, `<NODE>`.
    let flag = argument.split([' ', '=']).next().unwrap_or_default().trim_matches(['<', '>', '[', ']', '.']);
    let value = if value.is_empty() || value.contains(' ') { format!("{value:?}") } else { value };
    let right = match (error.kind(), error.get(ContextKind::ValidValue)) {
        (ErrorKind::InvalidValue, Some(ContextValue::Strings(words))) if !words.is_empty() => {
            format!("give one of {}", words.join(", "))
        }
        (ErrorKind::ValueValidation, _) => {
            let why = error.source()?.to_string();
            match number(&why) {
                // The words of a value's own parser.
                None => why,
                Some(Number::Outside(range)) => right(&range),
                Some(Number::None) => {
                    range(flag).map_or("give a whole number".to_owned(), |range| right(&range))
                }
            }
        }
        _ => return None,
    };
    Some(format!("{flag} {value}: {right}"))
}

/// Prints what clap has to say, such as a help text, and ends as every command does whose output cannot be written.
pub fn end(error: &clap::Error) -> ! {
    let code = match error.print() {
        Err(why) if !error.use_stderr() && why.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("{}", unwritten(&why));
            1
        }
        _ => error.exit_code(),
    };
    std::process::exit(code)
}

/// Of a command whose output is lost.
pub fn unwritten(why: &io::Error) -> String {
    format!("plumb: not all of its output could be written: {why}")
}

/// What is wrong with a number.
enum Number {
    /// In clap's words, such as `1..=100`.
    Outside(String),
    None,
}

fn number(why: &str) -> Option<Number> {
    if let Some((_, range)) = why.split_once(" is not in ") {
        return Some(Number::Outside(range.to_owned()));
    }
    // core::num::IntErrorKind.
    let words = ["invalid digit found", "too large to fit", "too small to fit", "parse integer from empty"];
    words.iter().any(|word| why.contains(word)).then_some(Number::None)
}

fn right(range: &str) -> String {
    match range.split_once("..=").or_else(|| range.split_once("..")) {
        Some((from, to)) if !to.is_empty() => format!("give a whole number from {from} to {to}"),
        Some((from, _)) => format!("give a whole number, {from} or more"),
        None => "give a whole number".to_owned(),
    }
}

/// The numbers that a flag takes, as the command itself tells of one that is too large.
pub fn range(command: &clap::Command, args: &[OsString], flag: &str) -> Option<String> {
    // Beyond each type's end, and the largest of the largest.
    ["18446744073709551615", "9223372036854775807", "-9223372036854775808"].into_iter().find_map(|beyond| {
        let at = args.iter().position(|arg| {
            let arg = arg.to_string_lossy();
            arg == flag || arg.strip_prefix(flag).is_some_and(|rest| rest.starts_with('='))
        })?;
        let mut other = args.to_vec();
        let last = if args.get(at)?.to_string_lossy() == flag { at + 1 } else { at };
        other.splice(at..=last.min(args.len() - 1), [OsString::from(format!("{flag}={beyond}"))]);
        let error = command.clone().try_get_matches_from(other).err()?;
        match number(&error.source()?.to_string())? {
            Number::Outside(range) => Some(range),
            Number::None => None,
        }
    })
}

/// What every argument of a kind has: a flag with a value takes `-1` as one, to say what is wrong with it, and not as a flag
/// of its own; and `-` is a file's name nowhere.
pub fn with_habits(command: clap::Command) -> clap::Command {
    let command = command.mut_args(|arg| {
        let arg = match arg.get_action().takes_values() && !arg.is_positional() {
            true => arg.allow_negative_numbers(true),
            false => arg,
        };
        match is_path(&arg) && !is_stream(&arg) {
            true => arg.value_parser(PathBufValueParser::new().try_map(named)),
            false => arg,
        }
    });
    command.mut_subcommands(with_habits)
}

fn is_path(arg: &clap::Arg) -> bool {
    arg.get_value_parser().type_id() == TypeId::of::<PathBuf>()
}

/// Which take `-` for the standard input or output: manifests, and an archive.
fn is_stream(arg: &clap::Arg) -> bool {
    let names = arg.get_value_names().unwrap_or_default();
    names.iter().any(|name| ["MANIFEST", "FILE"].contains(&name.as_str()))
}

/// Where others take `-` for a stream, a file of that name is nobody's wish.
fn named(path: PathBuf) -> Result<PathBuf, String> {
    match path.as_os_str() == "-" {
        true => Err(
            "give a path: - is neither the standard input nor the standard output here (/dev/stdin is the \
                     former, ./- a file of that name)"
                .into(),
        ),
        false => Ok(path),
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, FromArgMatches};
    use types::range::MTUS;

    use super::*;

    #[test]
    fn a_wrong_value_is_one_plain_sentence() {
        for (words, right) in [
            (&["lab", "up", "--nodes", "300"][..], "--nodes 300: give a whole number from 1 to 100"),
            (&["lab", "up", "--nodes=x"], "--nodes x: give a whole number from 1 to 100"),
            (&["lab", "wait", "--timeout", "-1"], "--timeout -1: give a whole number from 0 to 86400"),
            (&["lab", "expose", "a", "--port", "70000"], "--port 70000: give a whole number from 0 to 65535"),
            (&["install", "--mtu", "abc"], &*format!("--mtu abc: {MTUS}")),
            (&["install", "--mtu", "-1"], &*format!("--mtu -1: {MTUS}")),
            (&["install", "--mtu", "65536"], &*format!("--mtu 65536: {MTUS}")),
            (&["agent", "--mtu", "4294967295"], &*format!("--mtu 4294967295: {MTUS}")),
            (&["install", "--timeout", ""], "--timeout \"\": give a whole number from 1 to 86400"),
            (
                &["trace", "p", "t", "--source-port", "0"],
                "--source-port 0: give a whole number from 1 to 65535",
            ),
            (
                &["trace", "p", "t", "--source-port", "65536"],
                "--source-port 65536: give a whole number from 1 to 65535",
            ),
            (
                &["trace", "p", "t", "--source-port", "-1"],
                "--source-port -1: give a whole number from 1 to 65535",
            ),
            (&["trace", "p", "t", "--timeout", "0"], "--timeout 0: give a whole number from 10 to 10000"),
            (&["trace", "p", "t", "--timeout=-5"], "--timeout -5: give a whole number from 10 to 10000"),
            (
                &["connectivity", "test", "--host-port", "0"],
                "--host-port 0: give a whole number from 1 to 65535",
            ),
            (
                &["connectivity", "test", "--host-port", "65536"],
                "--host-port 65536: give a whole number from 1 to 65535",
            ),
            (
                &["connectivity", "test", "--settle", "18446744073709551615"],
                "--settle 18446744073709551615: give a whole number from 0 to 86400",
            ),
            (
                &["connectivity", "test", "--patience=-1"],
                "--patience -1: give a whole number from 0 to 86400",
            ),
            (&["lab", "list", "-o", "xml"], "--output xml: give one of table, json"),
        ] {
            let args: Vec<OsString> =
                std::iter::once("plumb").chain(words.iter().copied()).map(Into::into).collect();
            let command = with_habits(crate::Plumb::command());
            let error = command.clone().try_get_matches_from(&args).expect_err(right);
            assert_eq!(said(&error, |flag| range(&command, &args, flag)).as_deref(), Some(right));
        }
        let command = with_habits(crate::Plumb::command());
        let other = command.try_get_matches_from(["plumb", "lab", "--nosuch"]).expect_err("no flag");
        assert_eq!(said(&other, |_| None), None);
    }

    /// All arguments of a command and of those below it.
    fn all(command: &clap::Command, path: &str, each: &mut impl FnMut(&str, &clap::Arg)) {
        command.get_arguments().for_each(|arg| each(path, arg));
        for below in command.get_subcommands() {
            all(below, format!("{path} {}", below.get_name()).trim(), each);
        }
    }

    #[test]
    fn a_dash_is_a_stream_or_refused() {
        let (mut streams, mut files) = (Vec::new(), 0);
        all(&with_habits(crate::Plumb::command()), "", &mut |path, arg| {
            let said = format!("{path} --{}", arg.get_long().unwrap_or_default());
            match is_path(arg) {
                true if is_stream(arg) => streams.push(said),
                true => files += 1,
                false => {}
            }
        });
        assert_eq!(streams, ["lab up --file", "sysdump --output"]);
        assert!(files > 10, "{files}");
        for words in [
            &["trace", "p", "t", "--kubeconfig", "-"][..],
            &["install", "--kubeconfig=-"],
            &["lab", "up", "--data", "-"],
            &["lab", "up", "-k", "-"],
            &["bench", "soak", "--kubeconfig", "-"],
            &["image", "--from", "a", "--output", "-"],
        ] {
            let args: Vec<&str> = std::iter::once("plumb").chain(words.iter().copied()).collect();
            let error = with_habits(crate::Plumb::command()).try_get_matches_from(args).expect_err("refused");
            let text = said(&error, |_| None).unwrap_or_default();
            assert!(text.contains(" -: give a path") && error.exit_code() == 2, "{words:?}: {text}");
        }
        for words in [&["lab", "up", "-f", "-"][..], &["sysdump", "-o", "-"]] {
            let args = std::iter::once("plumb").chain(words.iter().copied());
            let matches = with_habits(crate::Plumb::command()).try_get_matches_from(args).expect("taken");
            crate::Plumb::from_arg_matches(&matches).map(drop).expect("a path");
        }
    }
}
