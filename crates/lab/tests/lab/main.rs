//! A real lab, from up to down, as whoever runs the tests and as an ordinary user.

mod bench;
mod confinement;

use bench::{Lab, User, await_that, machine, success, text};
use std::collections::BTreeSet;
use std::process::Stdio;

/// A pod without an address of its own, and one with.
const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: host}
spec:
  hostNetwork: true
  nodeName: node1
  terminationGracePeriodSeconds: 1
  containers:
  - {name: c, image: host, command: [sh, -c, "echo out; echo err >&2; exec sleep 1000"]}
---
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  nodeName: node1
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: plumb.local/demo
    args: [serve, --http, "8080"]
    ports: [{name: http, containerPort: 8080}]
    readinessProbe: {httpGet: {path: /readyz, port: http}}
"#;

fn wait_ready(lab: &Lab, pods: &[&str]) {
    for pod in pods {
        lab.await_field(pod, ".status.conditions[?(@.type=='Ready')].status", "True");
    }
}

fn up_and_down_twice(user: User) {
    let before = machine();
    let lab = Lab::new(user);
    for _ in 0..2 {
        success(&lab.lab(&["up"]));
        assert_eq!(lab.ask(&["get", "nodes", "-o", "name"]), "node/node1\nnode/node2");
        assert!(!lab.processes().is_empty());
        success(&lab.lab(&["down"]));
        assert_eq!(lab.processes(), [].into(), "processes are left");
        assert!(!lab.run_dir().exists(), "{} is left", lab.run_dir().display());
    }
    assert_eq!(machine(), before, "interfaces or mounts are left");
}

#[test]
fn up_and_down_twice_leave_nothing() {
    up_and_down_twice(User::Own);
}

#[test]
fn up_and_down_twice_as_an_ordinary_user_leave_nothing() {
    up_and_down_twice(User::Ordinary);
}

/// Whoever comes second finds what the first has made, or makes it again; nothing runs that nobody knows of.
#[test]
fn commands_of_one_lab_wait_for_each_other() {
    let lab = Lab::new(User::Own);
    let begin = |verb: &str| {
        let mut command = lab.lab_command(&[verb]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts")
    };
    for others in [["up", "up"], ["up", "down"], ["down", "up"]] {
        let both = others.map(begin);
        both.into_iter().for_each(|one| success(&one.wait_with_output().expect("it ends")));
        success(&lab.lab(&["down"]));
        assert_eq!(lab.processes(), [].into(), "{others:?} left processes");
        assert!(!lab.run_dir().exists(), "{others:?} left {}", lab.run_dir().display());
    }
}

#[test]
fn two_labs_run_side_by_side() {
    let (one, two) = (Lab::up(User::Own), Lab::up(User::Own));
    one.apply(PODS);
    wait_ready(&one, &["pod/web"]);
    assert_eq!(two.ask(&["get", "pods", "-o", "name"]), "");
    for lab in [&one, &two] {
        let addresses = lab.in_node("node2", "hostname; cat /proc/net/fib_trie | grep -c 192.168.1.11");
        assert!(addresses.starts_with("node2\n"), "{addresses}");
    }
    success(&one.lab(&["down"]));
    assert_eq!(two.ask(&["get", "nodes", "-o", "name"]), "node/node1\nnode/node2");
}

/// One's own program: the directory is in /tmp, where pods have their own.
const APP: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: app}
spec:
  nodeName: node2
  restartPolicy: Never
  containers: [{name: c, image: host, command: [/app/bin/hello, world]}]
"#;

fn app(lab: &Lab) -> String {
    use std::os::unix::fs::PermissionsExt;
    let directory = std::path::PathBuf::from(lab.path("app"));
    std::fs::create_dir(&directory).expect("a directory");
    let program = directory.join("hello");
    std::fs::write(&program, "#!/bin/sh\necho hello $1; touch /app/bin/x\n").expect("a program");
    for path in [&directory, &program] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("for everybody");
    }
    format!("{}:/app/bin", directory.display())
}

fn pods_run(user: User) {
    let lab = Lab::new(user);
    let mount = app(&lab);
    success(&lab.lab(&["up", "--mount", &mount]));
    lab.apply(APP);
    lab.apply(PODS);
    wait_ready(&lab, &["pod/host", "pod/web"]);
    await_that("the program of one's own has ended", || {
        lab.field("pod/app", ".status.phase") == "Succeeded"
            || lab.field("pod/app", ".status.phase") == "Failed"
    });
    let logs = lab.ask(&["logs", "app"]);
    assert!(logs.contains("hello world") && logs.contains("Read-only file system"), "{logs}");
    let (hidden, _) = mount.split_once(':').expect("DIR:PATH");
    let shown = lab.kubectl(&["exec", "web", "--", "ls", hidden]);
    assert!(!shown.status.success(), "/tmp of the machine is in a pod: {}", text(&shown.stdout));
    let other = lab.lab(&["up", "--mount", "/usr:/app/bin"]);
    assert!(text(&other.stderr).contains("cannot get another"), "{}", text(&other.stderr));
    exposes(&lab);
    assert_eq!(lab.field("pod/host", ".status.podIP"), "192.168.1.10");
    assert!(lab.field("pod/web", ".status.podIP").starts_with("10.244.1."));
    // Two pipes: which is read first is chance, as in every runtime.
    let logs = lab.ask(&["logs", "host"]);
    let lines: BTreeSet<&str> = logs.lines().collect();
    assert_eq!(lines, BTreeSet::from(["err", "out"]), "{logs}");

    let exec = lab.kubectl(&["exec", "web", "--", "sh", "-c", "hostname; touch /x 2>&1; ls /run; exit 7"]);
    assert_eq!(exec.status.code(), Some(7));
    assert_eq!(text(&exec.stdout), "web\ntouch: cannot touch '/x': Read-only file system\nprogram\n");
    let resolv = lab.ask(&["exec", "web", "--", "cat", "/etc/resolv.conf"]);
    assert_eq!(
        resolv,
        "search default.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5"
    );
    let outside = lab.ask(&["exec", "web", "--", "plumb", "demo", "get", "http://203.0.113.10/"]);
    assert!(outside.starts_with("outside 203.0.113.10:80 192.168.1.10:"), "{outside}");

    lab.ask(&["delete", "pod", "host", "web", "app"]);
    await_that("nothing of the pods is left on the node", || {
        lab.in_node("node1", "ls /var/lib/plumb/kubelet /run/netns; ls /sys/class/net | grep veth || true")
            .trim()
            == "/run/netns:\n\n/var/lib/plumb/kubelet:"
    });
}

/// A Service at a port of the machine's own loopback.
fn exposes(lab: &Lab) {
    use std::io::{BufRead, BufReader, Read, Write};
    lab.apply(
        "{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {selector: {app: web}, ports: [{port: 80, targetPort: \
         http}]}}",
    );
    lab.ask(&["label", "pod", "web", "app=web"]);
    await_that("the Service has an endpoint", || {
        lab.ask(&["get", "endpointslices", "-l", "kubernetes.io/service-name=web", "-o", "yaml"])
            .contains("ready: true")
    });
    let mut exposing =
        lab.lab_command(&["expose", "web"]).stdout(std::process::Stdio::piped()).spawn().expect("run plumb");
    let mut line = String::new();
    let mut out = BufReader::new(exposing.stdout.take().expect("piped"));
    out.read_line(&mut line).expect("a line");
    let address = line
        .split_once("http://")
        .and_then(|(_, rest)| rest.split(' ').next())
        .expect("an address")
        .to_owned();
    let mut stream = std::net::TcpStream::connect(address).expect("it listens");
    write!(stream, "GET / HTTP/1.0\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    exposing.kill().and_then(|()| exposing.wait()).expect("it ends");
    assert!(answer.contains("name=web"), "{answer}");
}

#[test]
fn pods_run_with_logs_and_exec_and_leave_nothing() {
    pods_run(User::Own);
}

#[test]
fn pods_run_for_an_ordinary_user() {
    pods_run(User::Ordinary);
}

#[test]
fn what_cannot_be_run_says_why() {
    let lab = Lab::up(User::Own);
    lab.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: image}
spec: {containers: [{name: c, image: nginx}]}
---
apiVersion: v1
kind: Pod
metadata: {name: crash}
spec: {hostNetwork: true, restartPolicy: Never, containers: [{name: c, image: host, command: [sh, -c, exit 3]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: missing}
spec: {hostNetwork: true, containers: [{name: c, image: host, command: [no-such-program]}]}
"#,
    );
    lab.await_field("pod/image", ".status.containerStatuses[0].state.waiting.reason", "ErrImagePull");
    let manifest = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "field"},
        "spec": {"hostPID": true, "containers": [{"name": "c", "image": "host", "command": ["true"]}]}}"#;
    let refused = lab.try_apply(manifest);
    assert!(!refused.status.success());
    assert!(text(&refused.stderr).contains("spec.hostPID"), "{}", text(&refused.stderr));
    lab.await_field("pod/crash", ".status.phase", "Failed");
    lab.await_field("pod/crash", ".status.containerStatuses[0].state.terminated.exitCode", "3");
    lab.await_field("pod/missing", ".status.containerStatuses[0].state.waiting.reason", "StartError");
    await_that("an Event names the image", || {
        lab.ask(&["get", "events", "--field-selector", "reason=Failed"]).contains("\"nginx\"")
    });
}

#[test]
fn every_process_that_is_killed_comes_back_and_costs_no_container() {
    let lab = Lab::up(User::Own);
    lab.apply(PODS);
    wait_ready(&lab, &["pod/host", "pod/web"]);
    let container = lab.field("pod/web", ".status.containerStatuses[0].containerID");
    for process in ["supervise", "api", "kubelet-node1", "agent-node1", "outside"] {
        lab.kill_and_await_successor(process);
    }
    // The successors work: a new pod runs, and is logged.
    await_that("the API is back", || lab.kubectl(&["get", "nodes"]).status.success());
    lab.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: new}, spec: {nodeName: node1, containers: [{name: c, image: \
         host, command: [sh, -c, echo here; sleep 1000]}], terminationGracePeriodSeconds: 0}}",
    );
    wait_ready(&lab, &["pod/new", "pod/web", "pod/host"]);
    assert_eq!(lab.ask(&["logs", "new"]), "here");
    assert_eq!(lab.field("pod/web", ".status.containerStatuses[0].containerID"), container);
    assert_eq!(lab.field("pod/web", ".status.containerStatuses[0].restartCount"), "0");
    // Two pipes: which is read first is chance, as in every runtime.
    let logs = lab.ask(&["logs", "host"]);
    let lines: BTreeSet<&str> = logs.lines().collect();
    assert_eq!(lines, BTreeSet::from(["err", "out"]), "{logs}");
}

#[test]
fn a_killed_pause_process_has_the_pod_rebuilt() {
    let lab = Lab::up(User::Own);
    lab.apply(PODS);
    wait_ready(&lab, &["pod/web"]);
    lab.in_node("node1", "for d in /var/lib/plumb/kubelet/*; do if grep -q '\"web\"' $d/pod.json; then kill -KILL $(cut -d' ' -f1 $d/pause); fi; done");
    lab.await_field("pod/web", ".status.containerStatuses[0].restartCount", "1");
    wait_ready(&lab, &["pod/web"]);
    let answer = lab.ask(&["exec", "web", "--", "plumb", "demo", "get", "http://203.0.113.10/"]);
    assert!(answer.starts_with("outside "), "{answer}");
}

#[test]
fn a_node_whose_holder_is_killed_is_made_anew() {
    let lab = Lab::up(User::Own);
    lab.apply(PODS);
    wait_ready(&lab, &["pod/web"]);
    lab.kill_and_await_successor("hold-node1");
    await_that("its pod runs again", || {
        lab.kubectl(&["exec", "web", "--", "plumb", "demo", "get", "http://203.0.113.10/"]).status.success()
    });
    wait_ready(&lab, &["pod/web"]);
}

#[test]
fn up_mends_a_lab_whose_anchor_was_killed() {
    let before = machine();
    let lab = Lab::up(User::Own);
    let text = std::fs::read_to_string(lab.run_dir().join("anchor")).expect("the anchor is noted");
    let anchor = text.split(' ').next().expect("a pid").to_owned();
    success(&std::process::Command::new("kill").args(["-KILL", &anchor]).output().expect("run kill"));
    await_that("everything dies with the anchor", || lab.processes().is_empty());
    success(&lab.lab(&["up"]));
    assert_eq!(lab.ask(&["get", "nodes", "-o", "name"]), "node/node1\nnode/node2");
    success(&lab.lab(&["down"]));
    assert_eq!(machine(), before);
}

/// The objects lie there: the next lab has them, and makes their pods anew.
#[test]
fn what_a_lab_keeps_in_a_directory_outlives_it() {
    let lab = Lab::new(User::Own);
    let kept = lab.path("kept");
    let up = ["up", "--nodes", "1", "--data", &kept];
    success(&lab.lab(&up));
    lab.apply(PODS);
    wait_ready(&lab, &["pod/web"]);
    let uid = lab.field("pod/web", ".metadata.uid");
    success(&lab.lab(&["down"]));
    assert_eq!(lab.processes(), [].into(), "processes are left");
    assert!(!lab.run_dir().exists(), "{} is left", lab.run_dir().display());
    success(&lab.lab(&up));
    assert_eq!(lab.field("pod/web", ".metadata.uid"), uid);
    await_that("its pod runs again and reaches the world", || {
        lab.kubectl(&["exec", "web", "--", "plumb", "demo", "get", "http://203.0.113.10/"]).status.success()
    });
    // Without it, nothing is remembered.
    success(&lab.lab(&["down"]));
    success(&lab.lab(&["up", "--nodes", "1"]));
    assert_eq!(lab.ask(&["get", "pods", "-o", "name"]), "");
}

#[test]
fn an_agent_can_be_away_while_its_pods_go_on() {
    agent_away(User::Own);
}

#[test]
fn an_agent_can_be_away_for_an_ordinary_user() {
    agent_away(User::Ordinary);
}

/// In the table of `lab status`.
fn state(table: &[u8], process: &str) -> String {
    let table = text(table);
    let mut rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let row = rows.find(|row| row.first() == Some(&process));
    row.and_then(|row| row.get(1).map(ToString::to_string)).unwrap_or_else(|| panic!("no {process}: {table}"))
}

fn agent_away(user: User) {
    let lab = Lab::up(user);
    lab.apply(PODS);
    wait_ready(&lab, &["pod/web"]);
    success(&lab.lab(&["agent stop", "node1"]));
    let status = lab.lab(&["status"]);
    assert_eq!(state(&status.stdout, "agent-node1"), "stopped");
    let answer = lab.ask(&["exec", "web", "--", "plumb", "demo", "get", "http://203.0.113.10/"]);
    assert!(answer.starts_with("outside "), "{answer}");
    success(&lab.lab(&["agent start", "node1"]));
    let status = lab.lab(&["status"]);
    assert_eq!(state(&status.stdout, "agent-node1"), "running");
}

#[test]
fn wrong_input_is_named_and_nothing_is_made() {
    let lab = Lab::new(User::Own);
    for (args, expected) in [
        (vec!["up", "--nodes", "0"], "--nodes 0: give a whole number from 1 to 100"),
        (vec!["up", "-f", "/no/such.yaml"], "-f /no/such.yaml: there is no such file or directory"),
        (vec!["up", "--unknown"], "unexpected argument '--unknown'"),
        (vec!["exec", "node1", "true"], "is not running; start it with: plumb lab up"),
        (vec!["status"], "is not running; start it with: plumb lab up"),
    ] {
        let output = lab.lab(&args);
        assert!(!output.status.success(), "{args:?}");
        assert!(text(&output.stderr).contains(expected), "{args:?}: {}", text(&output.stderr));
        assert!(!lab.run_dir().exists(), "{args:?} left {}", lab.run_dir().display());
    }
    success(&lab.lab(&["up", "--nodes", "1"]));
    // As in a shell.
    for (command, code) in [("no-such-command", 127), ("/etc/passwd", 126), ("false", 1)] {
        assert_eq!(lab.lab(&["exec", "node1", command]).status.code(), Some(code), "{command}");
    }
    let output = lab.lab_command(&["exec", "node1"]).stdin(Stdio::null()).output().expect("it runs");
    assert!(text(&output.stderr).contains("which command?"), "{}", text(&output.stderr));
    let output = lab.lab(&["exec", "node2", "true"]);
    assert!(text(&output.stderr).contains("has no node \"node2\"; it has node1"), "{}", text(&output.stderr));
}
