//! The executable as a runtime runs it.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::thread::JoinHandle;

/// A directory of this test, removed with it.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("plumb-cni-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn start(env: &[(&str, &str)], stdin: &str) -> Child {
    let mut child = Command::new(env!("CARGO_BIN_EXE_plumb-cni"))
        .env_clear()
        .envs(env.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    child
}

fn run(env: &[(&str, &str)], stdin: &str) -> Output {
    start(env, stdin).wait_with_output().unwrap()
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

fn config(dir: &Dir) -> String {
    let socket = dir.0.join("agent.sock");
    format!(
        r#"{{"cniVersion":"1.0.0","name":"plumb","type":"plumb-cni","agentSocket":"{}"}}"#,
        socket.display()
    )
}

const DEL: [(&str, &str); 3] = [("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "eth0")];

const STATUS: [(&str, &str); 1] = [("CNI_COMMAND", "STATUS")];

#[test]
fn without_an_agent_the_node_is_not_ready_for_pods() {
    let dir = Dir::new("away");
    let out = run(&STATUS, &config(&dir).replace("1.0.0", "1.1.0"));
    assert_eq!(out.status.code(), Some(1));
    let error = json(&out);
    assert_eq!((error["code"].as_u64(), error["cniVersion"].as_str()), (Some(50), Some("1.1.0")));
    assert!(error["msg"].as_str().unwrap().contains("agent.sock"), "{error}");
    assert!(!error["details"].as_str().unwrap().is_empty());
}

#[test]
fn version_needs_no_agent() {
    let out = run(&[("CNI_COMMAND", "VERSION")], r#"{"cniVersion":"0.4.0"}"#);
    assert_eq!(out.status.code(), Some(0));
    assert_eq!(json(&out)["cniVersion"], "0.4.0");
}

#[test]
fn an_answer_that_cannot_be_written_is_no_success() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_plumb-cni"))
        .env_clear()
        .env("CNI_COMMAND", "VERSION")
        .stdin(Stdio::piped())
        .stdout(std::fs::File::options().write(true).open("/dev/full").unwrap())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(br#"{"cniVersion":"0.4.0"}"#).unwrap();
    let out = child.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).contains("could not be written: No space left on device"));
}

#[test]
fn the_callers_own_network_namespace_is_refused_first() {
    let dir = Dir::new("own");
    let mut env = vec![("CNI_NETNS", "/proc/self/ns/net")];
    env.extend(DEL.iter().filter(|(name, _)| *name != "CNI_COMMAND"));
    env.push(("CNI_COMMAND", "ADD"));
    assert_eq!(json(&run(&env, &config(&dir)))["code"], 8);
    let agent = answers_once(UnixListener::bind(dir.0.join("agent.sock")).unwrap());
    env.push(("CNI_NETNS_OVERRIDE", "TRUE"));
    assert_eq!(json(&run(&env, &config(&dir)))["code"], 101);
    agent.join().unwrap();
}

/// An agent that answers the first request, and the request that it heard.
fn answers_once(listener: UnixListener) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut seen = Vec::new();
        let mut buffer = [0; 4096];
        while !seen.ends_with(b"}") {
            let n = stream.read(&mut buffer).unwrap();
            assert!(n > 0, "the request ended early");
            seen.extend_from_slice(&buffer[..n]);
        }
        let body = r#"{"exit":3,"stdout":"{\"code\":101}"}"#;
        write!(stream, "HTTP/1.0 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
        String::from_utf8(seen).unwrap()
    })
}

#[test]
fn what_the_agent_answers_is_printed_and_decides_the_exit_code() {
    let dir = Dir::new("answer");
    let agent = answers_once(UnixListener::bind(dir.0.join("agent.sock")).unwrap());
    let out = run(&DEL, &config(&dir));
    assert_eq!((out.status.code(), json(&out)["code"].as_u64()), (Some(3), Some(101)));
    let seen = agent.join().unwrap();
    let call: cni::Call = serde_json::from_str(seen.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert_eq!(call.env.get("CNI_CONTAINERID").map(String::as_str), Some("c1"));
    assert!(call.stdin.contains("plumb-cni"));
}

/// As on a machine that boots: the runtime is there first, then the agent.
#[test]
fn an_agent_that_comes_later_is_waited_for() {
    let dir = Dir::new("later");
    let mut child = start(&DEL, &config(&dir));
    // A socket that nobody serves, as a killed agent leaves it. The child asks on for 20 s.
    let socket = dir.0.join("agent.sock");
    drop(UnixListener::bind(&socket).unwrap());
    assert!(child.try_wait().unwrap().is_none(), "it gave up at once");
    std::fs::remove_file(&socket).unwrap();
    let agent = answers_once(UnixListener::bind(&socket).unwrap());
    let out = child.wait_with_output().unwrap();
    assert_eq!((out.status.code(), json(&out)["code"].as_u64()), (Some(3), Some(101)));
    agent.join().unwrap();
}

/// The executable as containerd calls it, in a user and network namespace of its own, so that an ordinary user may run
/// it too. `$0` is the program; `$1` the verb that is asked for.
fn as_loopback(dir: &Dir, verb: &str, script: &str) -> Output {
    let program = dir.0.join("loopback");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_plumb-cni"), &program).unwrap();
    let mut child = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "sh", "-c"])
        .arg(format!("export CNI_NETNS=/proc/$$/ns/net; {script}"))
        .arg(&program)
        .envs([("CNI_COMMAND", verb), ("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "lo")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // CHECK compares with what ADD said, and for ADD it would be what an earlier plugin said.
    let prev = if verb == "CHECK" { r#","prevResult":{"cniVersion":"1.0.0"}"# } else { "" };
    let config = format!(r#"{{"cniVersion":"1.0.0","name":"cni-loopback","type":"loopback"{prev}}}"#);
    child.stdin.take().unwrap().write_all(config.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// containerd looks for it in its own directory, under this name.
#[test]
fn called_loopback_it_brings_lo_up_and_needs_no_agent() {
    let out = as_loopback(&Dir::new("loopback"), "ADD", r#""$0" && cat /proc/net/if_inet6"#);
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{text}");
    let (result, addresses) = text.split_at(text.rfind('}').unwrap() + 1);
    let result: serde_json::Value = serde_json::from_str(result).unwrap();
    assert_eq!(result["interfaces"][0]["name"], "lo");
    assert_eq!(result["ips"][0]["address"], "127.0.0.1/8");
    // ::1 is there when lo is up, and only then.
    assert!(addresses.trim().ends_with("lo"), "{text}");
}

#[test]
fn loopback_reports_a_lo_that_is_down_and_leaves_it_so() {
    let out = as_loopback(&Dir::new("check"), "CHECK", r#""$0" || cat /proc/net/if_inet6"#);
    assert_eq!(json(&out)["code"], 102, "{out:?}");
    let out = as_loopback(&Dir::new("checked"), "CHECK", r#"ip link set lo up && "$0""#);
    assert!(out.status.success() && out.stdout.is_empty(), "{out:?}");
}
