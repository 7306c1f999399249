//! The rules of the house that a compiler does not check: floors, licences, doubled versions, sizes, crate docs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

const FLOORS: [&str; 5] = ["words", "facts", "brains", "hands", "shells"];

/// Arrows inside one floor, each with its reason.
const SAME_FLOOR: &[(&str, &str, &str)] = &[
    ("model", "k8s", "rows are cut from the API's objects at the border"),
    ("compile", "semantics", "kernel state is made for what Kubernetes' objects mean"),
    ("node", "semantics", "what Kubernetes' objects mean decides what a pod gets"),
    ("node", "compile", "addresses of interfaces follow those of pods as links do"),
    ("node", "cni", "it decides what a runtime asked for"),
    ("node", "ipam", "it gives addresses out and takes them back"),
    ("kernel", "netlink", "sockets carry the bytes that the codec makes"),
    ("lab", "apiserver", "the lab runs the embedded API"),
    ("lab", "controllers", "the lab runs the controllers in the API's process"),
    ("plumb", "agent", "main() wires subcommands"),
    ("plumb", "apiserver", "benchmarks start an API of their own"),
    ("plumb", "install", "main() wires subcommands"),
    ("plumb", "kubelet", "main() wires subcommands"),
    ("plumb", "lab", "main() wires subcommands"),
];

/// Crates that facts and brains must not reach, at any depth: a decision that can do I/O is not a decision.
const NOT_BELOW_HANDS: &[&str] =
    &["tokio", "rustix", "hyper", "kube", "rusqlite", "kernel", "netlink", "mio"];

const LICENCES: &[&str] = &[
    "MIT",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "Unicode-3.0",
    "Unlicense",
    "0BSD",
    "CC0-1.0",
    "BSL-1.0",
    "MIT-0",
    "LLVM-exception",
    "CDLA-Permissive-2.0",
];

/// What is built for Linux is what counts; crates for other systems are in Cargo.lock and nowhere else.
const HOST: &str =
    if cfg!(target_arch = "aarch64") { "aarch64-unknown-linux-gnu" } else { "x86_64-unknown-linux-gnu" };

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn metadata() -> Value {
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked", "--filter-platform", HOST])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).expect("cargo metadata is JSON")
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn packages(metadata: &Value) -> &Vec<Value> {
    metadata["packages"].as_array().expect("packages")
}

fn ours(metadata: &Value) -> BTreeMap<&str, &Value> {
    packages(metadata).iter().filter(|p| p["source"].is_null()).map(|p| (text(p, "name"), p)).collect()
}

fn floor(package: &Value) -> usize {
    let name = package["metadata"]["plumb"]["floor"].as_str().unwrap_or("none");
    FLOORS
        .iter()
        .position(|f| *f == name)
        .unwrap_or_else(|| panic!("{} declares no floor in [package.metadata.plumb]", text(package, "name")))
}

#[test]
fn a_crate_uses_only_the_floors_below_it() {
    let metadata = metadata();
    let ours = ours(&metadata);
    let mut wrong = Vec::new();
    let mut used_exceptions = BTreeSet::new();
    for (name, package) in &ours {
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let used = text(dependency, "name");
            let Some(target) = ours.get(used) else { continue };
            let test_only = dependency["kind"] == "dev";
            let allowed = SAME_FLOOR.iter().any(|(from, to, _)| from == name && *to == used);
            if allowed {
                used_exceptions.insert((*name, used));
            }
            let below = floor(target) < floor(package) || (test_only && floor(target) == floor(package));
            if !below && !allowed {
                wrong.push(format!(
                    "{name} ({}) -> {used} ({})",
                    FLOORS[floor(package)],
                    FLOORS[floor(target)]
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "arrows that do not point down:\n{}", wrong.join("\n"));
    let listed: BTreeSet<_> = SAME_FLOOR.iter().map(|(from, to, _)| (*from, *to)).collect();
    assert_eq!(used_exceptions, listed, "left: exceptions that are used; right: SAME_FLOOR");
}

/// What decides Kubernetes may not name kernel state, nor may it be decided again beside it.
#[test]
fn semantics_cannot_reach_kernel_state() {
    let metadata = metadata();
    let ours = ours(&metadata);
    let semantics = ours["semantics"]["dependencies"].as_array().expect("dependencies").iter();
    let normal = semantics.filter(|dependency| dependency["kind"].is_null());
    let used: BTreeSet<_> = normal.map(|dependency| text(dependency, "name")).collect();
    let facts: BTreeSet<_> = used.into_iter().filter(|name| ours.contains_key(name)).collect();
    assert_eq!(facts, BTreeSet::from(["model", "types"]));
}

/// Where `compile` still takes the cluster, with what is missing there. The list may only get shorter.
const TAKES_THE_CLUSTER: &[(&str, &str)] = &[
    ("compiler.rs", "is given the synced cluster and what has changed in it, and has semantics look"),
    ("whole.rs", "compiles everything at once, for tests: hands the cluster on"),
];

/// What writes kernel state may not name Kubernetes: it takes what `semantics` has decided.
#[test]
fn compile_takes_the_cluster_only_where_it_is_known() {
    let dir = root().join("crates/compile/src");
    let mut files = Vec::new();
    sources(&dir, &mut files);
    let mut taking = BTreeSet::new();
    for path in files {
        let source = std::fs::read_to_string(&path).expect("a source");
        let code = source.lines().take_while(|line| !line.trim_start().starts_with("#[cfg(test)]"));
        let mut code = code.map(str::trim_start).filter(|line| !line.starts_with("//"));
        if !code.any(|line| line.contains("model::"))
            || path.file_name().is_some_and(|name| name == "tests.rs")
        {
            continue;
        }
        let name = path.strip_prefix(&dir).expect("below it").to_string_lossy().into_owned();
        let known = TAKES_THE_CLUSTER.iter().find(|(known, _)| name.starts_with(known));
        let (known, _) = known.unwrap_or_else(|| panic!("crates/compile/src/{name} names the model"));
        taking.insert(*known);
    }
    let listed: BTreeSet<_> = TAKES_THE_CLUSTER.iter().map(|(known, _)| *known).collect();
    assert_eq!(taking, listed, "left: what takes it; right: TAKES_THE_CLUSTER");
}

#[test]
fn facts_and_brains_cannot_reach_io() {
    let metadata = metadata();
    let ours = ours(&metadata);
    let edges: BTreeMap<&str, Vec<&Value>> = packages(&metadata)
        .iter()
        .map(|p| {
            let normal = p["dependencies"].as_array().expect("dependencies").iter();
            (text(p, "name"), normal.filter(|d| d["kind"].is_null() && d["optional"] == false).collect())
        })
        .collect();
    for (name, package) in &ours {
        if floor(package) > 2 {
            continue;
        }
        let mut reached = BTreeSet::new();
        let mut open = vec![*name];
        while let Some(next) = open.pop() {
            for dependency in edges.get(next).into_iter().flatten() {
                let used = text(dependency, "name");
                if reached.insert(used) {
                    open.push(used);
                }
            }
        }
        for banned in NOT_BELOW_HANDS {
            assert!(!reached.contains(banned), "{name} is a {} and reaches {banned}", FLOORS[floor(package)]);
        }
    }
}

#[test]
fn every_dependency_has_a_licence_we_can_ship() {
    let metadata = metadata();
    for package in packages(&metadata) {
        let licence = text(package, "license");
        let fits = |alternative: &str| {
            alternative
                .split([' ', '(', ')'])
                .filter(|w| !w.is_empty() && !["AND", "WITH"].contains(w))
                .all(|w| LICENCES.contains(&w))
        };
        assert!(
            licence.replace('/', " OR ").split(" OR ").any(fits),
            "{} has the licence {licence:?}, which is not on the list",
            text(package, "name")
        );
    }
}

/// A second version of a crate costs build time and memory: each is known by name, and a line that is no longer
/// true has to go.
#[test]
fn doubled_versions_are_known() {
    let metadata = metadata();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in packages(&metadata) {
        versions.entry(text(package, "name")).or_default().insert(text(package, "version"));
    }
    let doubled: BTreeSet<&str> =
        versions.iter().filter(|(_, v)| v.len() > 1).map(|(name, _)| *name).collect();
    let list = std::fs::read_to_string(root().join(".ci/doubled-versions")).expect(".ci/doubled-versions");
    let known: BTreeSet<&str> =
        list.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).collect();
    assert_eq!(doubled, known, "left: in Cargo.lock; right: .ci/doubled-versions");
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// A file holds a screen's worth of meaning: 600 lines before its tests is the hard end.
#[test]
fn files_stay_readable() {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(root().join("crates")).expect("crates").flatten() {
        sources(&entry.path().join("src"), &mut files);
    }
    assert!(files.len() > 20, "the sources were not found");
    let long: Vec<String> = files
        .iter()
        .filter_map(|path| {
            let source = std::fs::read_to_string(path).ok()?;
            let lines = source.lines().take_while(|l| !l.starts_with("#[cfg(test)]")).count();
            (lines > 600).then(|| format!("{} has {lines} lines", path.display()))
        })
        .collect();
    assert!(long.is_empty(), "{}", long.join("\n"));
}

/// std's `println!` panics when its reader goes. A crate that prints takes the macros of `kernel`, which do not.
#[test]
fn what_prints_outlives_its_reader() {
    let metadata = metadata();
    let mut printing = BTreeSet::new();
    for (name, package) in ours(&metadata) {
        let dir =
            Path::new(text(package, "manifest_path")).parent().expect("a manifest has a folder").join("src");
        let mut files = Vec::new();
        sources(&dir, &mut files);
        let prints = files.iter().any(|path| {
            let source = std::fs::read_to_string(path).unwrap_or_default();
            let code = source.lines().take_while(|l| !l.starts_with("#[cfg(test)]")).map(str::trim_start);
            code.filter(|line| !line.starts_with("//"))
                .any(|line| ["println!(", "print!(", "eprint!("].iter().any(|call| line.contains(call)))
        });
        // The macros themselves, and a tool of the tests.
        if !prints || ["kernel", "combine"].contains(&name) {
            continue;
        }
        printing.insert(name);
        let root = std::fs::read_to_string(dir.join("lib.rs")).unwrap_or_default();
        assert!(
            root.contains("\n#[macro_use]\nextern crate kernel;\n"),
            "{name} prints with std's macros, which panic when a reader goes; see crates/kernel/src/out.rs"
        );
    }
    assert!(printing.contains("plumb") && printing.contains("lab"), "found: {printing:?}");
}

#[test]
fn every_crate_opens_with_its_four_lines() {
    let metadata = metadata();
    for (name, package) in ours(&metadata) {
        let dir =
            Path::new(text(package, "manifest_path")).parent().expect("a manifest has a folder").to_owned();
        let source =
            ["src/lib.rs", "src/main.rs"].iter().find_map(|f| std::fs::read_to_string(dir.join(f)).ok());
        let head = source.unwrap_or_default();
        for word in ["//! Owns:", "//! Never:", "//! In → Out:", "//! Read first:"] {
            assert!(head.lines().take(12).any(|l| l.starts_with(word)), "{name} does not open with {word:?}");
        }
    }
}

#[test]
fn the_images_bill_of_materials_names_what_is_in_it() {
    let path = std::env::temp_dir().join(format!("plumb-bill-{}.json", std::process::id()));
    let made = Command::new(root().join("tools/sbom.py")).arg(&path).output().expect("python3");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let bill: Value = serde_json::from_slice(&std::fs::read(&path).expect("the bill")).expect("JSON");
    std::fs::remove_file(&path).expect("it was there");
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).expect("Cargo.lock");
    let mut named = BTreeSet::new();
    for component in bill["components"].as_array().expect("components") {
        let (name, version) = (text(component, "name"), text(component, "version"));
        let ours = component["purl"].is_null();
        let sum = component["hashes"][0]["content"].as_str().map(|sum| format!("checksum = \"{sum}\""));
        let entry = format!("name = \"{name}\"\nversion = \"{version}\"\n");
        assert!(lock.contains(&entry) && sum.is_none_or(|sum| lock.contains(&sum)), "{component}");
        assert!(ours == component["hashes"].is_null(), "{component}");
        assert!(component["licenses"][0]["expression"].is_string(), "{component}");
        named.insert(name);
    }
    for inside in
        ["plumb", "cni-plugin", "kernel", "dns", "tokio", "ring", "rustls", "serde_json", "rusqlite"]
    {
        assert!(named.contains(inside), "{inside} is not named");
    }
    for beside in ["proptest", "combine", "cc", "fuzz"] {
        assert!(!named.contains(beside), "{beside} is named");
    }
}
