//! What the documents promise operators: the changelog has the program's version, and each question has one answer.

use std::path::Path;

fn document(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// `0.2.0` as numbers.
fn numbers(version: &str) -> Vec<u32> {
    let numbers: Vec<u32> = version.split('.').filter_map(|part| part.parse().ok()).collect();
    assert_eq!(numbers.len(), 3, "{version} is no MAJOR.MINOR.PATCH");
    numbers
}

fn is_date(text: &str) -> bool {
    let digits = text.bytes().filter(u8::is_ascii_digit).count();
    text.len() == 10 && digits == 8 && text.split('-').count() == 3
}

#[test]
fn the_changelog_begins_with_the_version_of_the_program() {
    let changelog = document("CHANGELOG.md");
    let headings = changelog.lines().filter_map(|line| line.strip_prefix("## "));
    let versions: Vec<(&str, &str)> = headings
        .map(|heading| {
            let (version, when) = heading.split_once(" (").expect("`## VERSION (when)`");
            (version, when.strip_suffix(')').expect("`## VERSION (when)`"))
        })
        .collect();
    assert_eq!(versions.first().map(|(version, _)| *version), Some(env!("CARGO_PKG_VERSION")));
    assert!(
        versions.is_sorted_by(|one, next| numbers(one.0) > numbers(next.0)),
        "newest first: {versions:?}"
    );
    for (at, (version, when)) in versions.iter().enumerate() {
        assert!(is_date(when) || (at == 0 && *when == "unreleased"), "{version}: when is {when:?}");
    }
    // Each version has entries, and no entry is outside of one.
    let sections: Vec<&str> = changelog.split("\n## ").collect();
    let entries = |text: &str| text.lines().filter(|line| line.starts_with("- ")).count();
    assert_eq!(entries(sections[0]), 0, "entries before the first version");
    assert!(sections[1..].iter().all(|section| entries(section) > 0), "a version without entries");
    let policy = document("docs/versions.md");
    assert!(policy.contains("When you upgrade") && sections[1].contains("### When you upgrade"));
}

/// What the rows answer, as docs/operators.md explains.
const ANSWERS: [&str; 4] = ["there", "coming", "no", "never"];

#[test]
fn every_question_of_operators_has_one_answer_with_its_reason() {
    let page = document("docs/operators.md");
    let rows: Vec<Vec<&str>> = page
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| question"))
        .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
        .collect();
    for row in &rows {
        let [question, answer, what] = row[..] else { panic!("three cells are expected: {row:?}") };
        assert!(ANSWERS.contains(&answer), "{question}: {answer}");
        assert!(what.ends_with('.') || what.contains("]("), "{question} has no reason: {what}");
    }
    for answer in ANSWERS {
        assert!(page.contains(&format!("`{answer}`")), "{answer} is not explained");
    }
    for word in [
        "Encryption",
        "BGP",
        "Egress gateway",
        "Several clusters",
        "Windows",
        "L7",
        "FQDN",
        "Native routing",
        "arm64",
        "LoadBalancer",
        "Migration",
    ] {
        assert_eq!(rows.iter().filter(|row| row[0].starts_with(word)).count(), 1, "{word}");
    }
    let limits = ["security.md", "limits.md", "install.md", "kernel.md", "versions.md", "metrics.md"];
    for page in limits {
        document(&format!("docs/{page}"));
    }
}
