//! docs/reference.md lists every command and setting as the program itself says them. `UPDATE=1` writes it anew.

#[path = "lab/help.rs"]
mod help;

use std::fmt::Write;
use std::path::Path;

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
