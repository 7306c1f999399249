//! `plumb features`: what of all that Plumb asks of a kernel this one can do.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use kernel::feature::{Feature, Found, User, probe};
use kernel::process::{Ended, IdMap, Spawn};

/// `plumb features`
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Only what this one needs
    #[arg(long, value_name = "WHO", value_parser = who())]
    needed_by: Option<User>,
    #[command(flatten)]
    output: lab::Output,
    /// In this very user namespace
    #[arg(long, hide = true)]
    here: bool,
}

/// The words of [`User`]: the kernel's crate knows no command line.
fn who() -> impl TypedValueParser<Value = User> {
    let word = |user: User| PossibleValue::new(user.name()).help(user.means());
    PossibleValuesParser::new(User::ALL.map(word))
        .try_map(|given| User::ALL.into_iter().find(|user| user.name() == given).ok_or("nobody of that name"))
}

/// Succeeds when everything asked about is there. An ordinary user has what his own user namespace allows.
pub fn run(args: &Args) -> Result<ExitCode> {
    if !args.here && !kernel::own::is_root() {
        return in_user_namespace();
    }
    let found = match args.needed_by {
        None => probe(&User::ALL),
        Some(user) => probe(&[user]),
    };
    match args.output.is_json() {
        true => println!("{:#}", serde_json::Value::from_iter(found.iter().map(json))),
        false => table(&found),
    }
    Ok(if found.iter().all(Found::is_there) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn in_user_namespace() -> Result<ExitCode> {
    let (uid, gid) = kernel::own::ids();
    let root = |outside| [IdMap { inside: 0, outside, count: 1 }];
    let child = Spawn::this_program()?
        .args(std::env::args_os().skip(1))
        .arg("--here")
        .new_user_namespace(&root(uid), &root(gid))
        .start()
        .context("make a user namespace to look in")?;
    Ok(if child.wait()? == Ended::Code(0) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn users(feature: &Feature) -> Vec<&'static str> {
    feature.needed_by.iter().map(|user| user.name()).collect()
}

fn json(found: &Found) -> serde_json::Value {
    let feature = found.feature;
    serde_json::json!({
        "name": feature.name,
        "state": found.state(),
        "since": feature.since,
        "purpose": feature.purpose,
        "neededBy": users(feature),
        "config": feature.config,
        "module": feature.module,
        "answer": found.answer(),
        "nextStep": found.next_step(),
    })
}

fn table(found: &[Found]) {
    println!("{:<18} {:<10} {:<7} {:<10} PURPOSE", "FEATURE", "STATE", "LINUX", "NEEDED BY");
    for found in found {
        let feature = found.feature;
        println!(
            "{:<18} {:<10} {:<7} {:<10} {}",
            feature.name,
            found.state(),
            feature.since,
            users(feature).join(","),
            feature.purpose
        );
    }
    for found in found.iter().filter(|found| !found.is_there()) {
        let (answer, step) = (found.answer().unwrap_or_default(), found.next_step().unwrap_or_default());
        println!("\n{}: {answer}\n  next: {step}", found.feature.name);
    }
}
