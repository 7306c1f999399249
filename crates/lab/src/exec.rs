//! `plumb lab exec NODE CMD…`: a command inside a node, with the caller's terminal.

use std::io::{ErrorKind, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use kernel::interrupt::Interrupted;
use kernel::process::{Ended, Process, Signal};
use watch::Misused;

use crate::inside::Inside;
use crate::{Name, a_name};

/// `plumb lab exec`
#[derive(clap::Args, Debug)]
pub struct Options {
    #[command(flatten)]
    name: Name,
    /// A node, such as node1
    #[arg(value_parser = a_name)]
    node: String,
    /// The command and its arguments [default on a terminal: a shell, $SHELL or sh]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// As shells have it: there is no such command, or it is none that can be executed.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;

/// Between two looks whether a signal came.
const GLANCE: Duration = Duration::from_millis(50);

/// Runs it and ends as it ends.
pub fn run(options: &Options) -> Result<ExitCode> {
    let inside = Inside::find(&options.name.get()?)?;
    inside.check_node(&options.node)?;
    let (program, args) = match options.command.split_first() {
        Some((program, args)) => (program.clone(), args),
        None if std::io::stdin().is_terminal() => (shell(std::env::var("SHELL").ok()), &[][..]),
        None => bail!(Misused(format!(
            "which command? there is no terminal for a shell; for example: plumb lab exec --name {} {} ip route",
            inside.plan.name, options.node
        ))),
    };
    // It ends as the command does, whoever is told to end.
    kernel::interrupt::is_heard();
    match inside.spawn_in(&options.node, &program)?.args(args).start() {
        Ok(process) => Ok(ExitCode::from(u8::try_from(ended(&process)?.code()).unwrap_or(1))),
        Err(error) => {
            eprintln!("plumb: {error}");
            Ok(ExitCode::from(code(error.errno())))
        }
    }
}

/// Waits for its end. Signals are handed on: in the lab's PID namespace it would outlive this process. Ctrl-C at a terminal
/// it has got already.
fn ended(process: &Process) -> Result<Ended> {
    while !process.wait_ended(GLANCE)? {
        let came = kernel::interrupt::take().map(Interrupted::signal);
        if let Some(signal) = came.filter(|signal| *signal != Signal::INT || !std::io::stdin().is_terminal())
        {
            process.signal(signal)?;
        }
    }
    Ok(process.wait()?)
}

fn shell(told: Option<String>) -> String {
    told.filter(|shell| !shell.is_empty()).unwrap_or_else(|| "sh".into())
}

fn code(errno: Option<i32>) -> u8 {
    let kind = errno.map(|errno| std::io::Error::from_raw_os_error(errno).kind());
    if kind == Some(ErrorKind::NotFound) { NOT_FOUND } else { NOT_EXECUTABLE }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_started_ends_as_in_a_shell() {
        // ENOENT, EACCES, ENOEXEC.
        assert_eq!([Some(2), Some(13), Some(8), None].map(code), [127, 126, 126, 126]);
        assert_eq!(shell(None), "sh");
        assert_eq!(shell(Some(String::new())), "sh");
        assert_eq!(shell(Some("/bin/bash".into())), "/bin/bash");
    }
}
