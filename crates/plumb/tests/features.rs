//! The kernel that the tests run on has what Plumb asks for. What it lacks is printed, and must be on the list of what
//! it may lack; and a kernel without a feature is refused before anything is made.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

fn plumb() -> Command {
    Command::new(env!("CARGO_BIN_EXE_plumb"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn found(output: &Output) -> Vec<Value> {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[test]
fn nothing_is_missing_but_what_may_be() {
    let output = plumb().args(["features", "-o", "json"]).output().expect("plumb runs");
    let found = found(&output);
    let list = include_str!("missing-features.txt");
    let named = |line: &'static str| line.split_whitespace().next();
    let allowed: BTreeSet<&str> =
        list.lines().filter(|line| !line.starts_with('#')).filter_map(named).collect();
    let all: BTreeSet<&str> = found.iter().filter_map(|feature| feature["name"].as_str()).collect();
    assert!(allowed.is_subset(&all), "no such feature: {:?}", allowed.difference(&all));
    let lacking: Vec<&Value> = found.iter().filter(|feature| feature["state"] != "there").collect();
    println!("{} of {} kernel features are not there", lacking.len(), found.len());
    for feature in &lacking {
        println!("  {}: {}", feature["name"], feature["answer"]);
    }
    lacking.iter().for_each(|feature| {
        let name = feature["name"].as_str().expect("a name");
        assert!(
            allowed.contains(name),
            "crates/plumb/tests/missing-features.txt does not allow it: {feature:#}"
        );
    });
    assert_eq!(output.status.success(), lacking.is_empty(), "{output:?}");
}

fn version(text: &str) -> Vec<u32> {
    text.split('.').map(|part| part.parse().unwrap_or_else(|_| panic!("{text} is no version"))).collect()
}

/// Rows of tables, as their cells.
fn rows(page: &str) -> impl Iterator<Item = Vec<&str>> {
    let rows = page.lines().filter(|line| line.starts_with('|') && !line.starts_with("|-"));
    rows.map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
}

#[test]
fn the_page_about_kernels_says_what_the_program_says() {
    let output = plumb().args(["features", "-o", "json"]).output().expect("plumb runs");
    let found = found(&output);
    let text = |feature: &Value, key: &str| feature[key].as_str().expect(key).to_owned();
    let users = |feature: &Value| {
        let users = feature["neededBy"].as_array().expect("users").iter();
        users.filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>()
    };
    let page = include_str!("../../../docs/kernel.md");
    let listed: Vec<Vec<&str>> = rows(page).filter(|row| row[0].starts_with('`')).collect();
    let said = found.iter().map(|feature| {
        let name = format!("`{}`", text(feature, "name"));
        vec![name, text(feature, "since"), users(feature).join(", "), text(feature, "purpose")]
    });
    assert_eq!(listed, said.collect::<Vec<_>>(), "left: docs/kernel.md; right: plumb features");

    // The floors are the newest versions that something of it needs, and what needs them is named.
    for (whose, what) in [("an agent", &["agent", "ipv6", "trace"][..]), ("a lab", &["lab"])] {
        let needed = found.iter().filter(|feature| users(feature).iter().any(|user| what.contains(&&**user)));
        let newest = needed.clone().map(|feature| version(&text(feature, "since"))).max().expect("features");
        let because = needed.filter(|feature| version(&text(feature, "since")) == newest);
        let because: Vec<String> = because.map(|feature| format!("`{}`", text(feature, "name"))).collect();
        let row = rows(page).find(|row| row[0].starts_with(whose)).expect(whose);
        assert_eq!((version(row[1]), row[2]), (newest, because.join(", ").as_str()), "{whose}");
    }
    let table = plumb().arg("features").output().expect("plumb runs");
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    let line = table.lines().find(|line| line.starts_with("nft-socket ")).expect("a line for each feature");
    assert_eq!(line.split_whitespace().nth(2), Some("5.10"), "{line}");
}

/// Installs a seccomp filter and becomes another program: `socket(AF, _, PROTOCOL)` is answered as by a kernel that
/// was built without. PROTOCOL -1 stands for any.
const WITHOUT: &str = r#"
import ctypes, errno, os, struct, sys
family, protocol, number = int(sys.argv[1]), int(sys.argv[2]), {"x86_64": 41, "aarch64": 198}[os.uname().machine]
load, equal, end = 0x20, 0x15, 0x06
refuse = [(end, 0, 0, 0x50000 | (errno.EAFNOSUPPORT if protocol < 0 else errno.EPROTONOSUPPORT))]
if protocol >= 0:
    refuse = [(load, 0, 0, 32), (equal, 0, 1, protocol)] + refuse
code = [(load, 0, 0, 0), (equal, 0, len(refuse) + 2, number), (load, 0, 0, 16), (equal, 0, len(refuse), family)]
code += refuse + [(end, 0, 0, 0x7fff0000)]
body = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
program = Program(len(code), ctypes.addressof(body))
assert libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0, ctypes.get_errno()
os.execvp(sys.argv[3], sys.argv[3:])
"#;

const AF_NETLINK: &str = "16";
const NETLINK_NETFILTER: &str = "12";
const AF_PACKET: &str = "17";

/// As root of a user namespace, which the agent believes is its node.
fn without(family: &str, protocol: &str, args: &[&str]) -> Output {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--net", "python3", "-c", WITHOUT, family, protocol]);
    command.arg(env!("CARGO_BIN_EXE_plumb")).args(args).output().expect("unshare runs")
}

#[test]
fn an_agent_on_a_kernel_without_netfilter_refuses_and_makes_nothing() {
    let data: PathBuf = std::env::temp_dir().join(format!("plumb-features-{}", std::process::id()));
    let path = data.display().to_string();
    let args = ["agent", "--node", "node7", "--kubeconfig", "/nonexistent", "--data", &path];
    let output = without(AF_NETLINK, NETLINK_NETFILTER, &args);
    let said = text(&output.stderr);
    assert!(!output.status.success(), "{said}");
    for words in [
        "the agent of node node7 cannot work with this kernel",
        "nf_tables (Services, policies, masquerade) is missing",
        "Protocol not supported",
        "next: modprobe nf_tables",
        "CONFIG_NF_TABLES",
        "nothing was made",
    ] {
        assert!(said.contains(words), "{words:?} is not said: {said}");
    }
    assert!(!said.contains("veth"), "what is there is not blamed: {said}");
    assert!(!data.exists(), "it has made its data directory");
}

#[test]
fn what_only_traces_need_does_not_stop_an_agent() {
    let output = without(AF_PACKET, "-1", &["features", "-o", "json"]);
    let found = found(&output);
    let lacking: Vec<&str> = found
        .iter()
        .filter(|feature| feature["state"] != "there")
        .filter_map(|f| f["name"].as_str())
        .collect();
    assert_eq!(lacking, ["packet-socket"]);
    let path = std::env::temp_dir().join(format!("plumb-traces-{}", std::process::id()));
    let args = ["agent", "--node", "node7", "--kubeconfig", "/nonexistent", "--data"];
    let args = [&args[..], &[path.to_str().expect("a plain path")]].concat();
    let said = text(&without(AF_PACKET, "-1", &args).stderr);
    assert!(said.contains("plumb trace cannot follow packets on node node7"), "{said}");
    assert!(said.contains("kubeconfig /nonexistent"), "it went on to the next thing: {said}");
    let _ = std::fs::remove_dir_all(path);
}
