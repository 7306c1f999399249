//! docs/reference.md lists every command and setting as the program itself says them. `UPDATE=1` writes it anew.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;

fn help(path: &[&str]) -> String {
    let out =
        Command::new(env!("CARGO_BIN_EXE_plumb")).args(path).arg("--help").output().expect("plumb runs");
    assert!(out.status.success(), "plumb {path:?} --help: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("help is UTF-8")
}

/// The subcommands that a help text names; hidden ones are not a user's business.
fn subcommands(help: &str) -> Vec<String> {
    let list =
        help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    list.filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

fn render(path: &[&str], page: &mut String) {
    let help = help(path);
    let title = std::iter::once("plumb").chain(path.iter().copied()).collect::<Vec<_>>().join(" ");
    let text: Vec<&str> = help.trim_end().lines().map(str::trim_end).collect();
    writeln!(page, "\n## {title}\n\n```\n{}\n```", text.join("\n")).expect("a string takes everything");
    for name in subcommands(&help) {
        let deeper: Vec<&str> = path.iter().copied().chain([name.as_str()]).collect();
        render(&deeper, page);
    }
}

#[test]
fn the_reference_says_what_the_program_says() {
    let mut page = "# Reference of commands and settings\n\nAs `plumb … --help` prints it; a test keeps this page true.\n".to_owned();
    render(&[], &mut page);
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
