//! `plumb lab exec NODE CMD…`: a command inside a node, with the caller's terminal.

use std::process::ExitCode;

use anyhow::Result;

use crate::Name;
use crate::inside::Inside;

/// `plumb lab exec`
#[derive(clap::Args, Debug)]
pub struct Options {
    #[command(flatten)]
    name: Name,
    /// A node, such as node1
    node: String,
    /// The command and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    command: Vec<String>,
}

/// Runs it and ends as it ends.
pub fn run(options: &Options) -> Result<ExitCode> {
    let inside = Inside::find(&options.name.get())?;
    let (program, args) = match options.command.split_first() {
        Some((program, args)) => (program, args),
        None => anyhow::bail!("which command? for example: plumb lab exec {} ip route", options.node),
    };
    let process = inside.spawn_in(&options.node, program)?.args(args).start()?;
    Ok(ExitCode::from(u8::try_from(process.wait()?.code()).unwrap_or(1)))
}
