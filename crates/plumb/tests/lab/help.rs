//! The program's commands, as its own help lists them; hidden ones are not a user's business.

use std::path::Path;
use std::process::Command;

/// What `plumb PATH --help` says.
pub fn help<S: AsRef<str>>(program: &Path, path: &[S]) -> String {
    let words = path.iter().map(AsRef::as_ref);
    let out = Command::new(program).args(words).arg("--help").output().expect("plumb runs");
    assert!(out.status.success(), "plumb … --help: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("help is UTF-8")
}

/// The subcommands that a help text names.
pub fn subcommands(help: &str) -> Vec<String> {
    let list =
        help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    list.filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

/// Every command below `path` with its help, itself first, in the order of the help.
pub fn commands(program: &Path, path: &[String]) -> Vec<(Vec<String>, String)> {
    let said = help(program, path);
    let below = subcommands(&said).into_iter().flat_map(|name| {
        let deeper: Vec<String> = path.iter().cloned().chain([name]).collect();
        commands(program, &deeper)
    });
    let below: Vec<_> = below.collect();
    std::iter::once((path.to_vec(), said)).chain(below).collect()
}
