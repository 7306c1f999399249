//! A lab that is broken and mended, and input that cannot be carried out: each message names the object, the cause
//! and the next step, and nothing is half made. (Up and down, and labs side by side: crates/lab/tests.)

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::cluster::{Checks, Kubectl, Lab, Said, fresh_name, kubectl_binary, plumb, run, wait_for};

#[test]
fn a_lab_lives() {
    let lab = Lab::up(2);
    let mut checks = Checks::default();
    checks.check("`up` mends what is broken and touches nothing else", || mends(&lab));
    checks.check("no second agent or kubelet on a node", || second(&lab));
    checks.check("the API refuses who does not say who he is", || anonymous(&lab));
    checks.check("a bad manifest is refused by its field, and nothing of it is made", || manifest(&lab));
    checks.check("Ctrl-C says what is left", || interrupted(&lab));
    checks.check("a start that failed gives its last words", || last_words(&lab));
    checks.check("an end waits for the start that has begun", || ended_early(&lab));
    checks.check("a port that is taken", || port(&lab));
    checks.check("a node's pod CIDR that is exhausted", || exhausted(&lab));
    checks.check("what waits for a lab or serves it ends with it", || taken_away(&lab));
    checks.check("no permission", no_permission);
    checks.check("a kernel without network namespaces", no_feature);
    checks.check("a kernel without IPv6, asked for a lab that has it", no_ipv6);
}

/// Pid and start time of each process that the lab keeps.
fn processes(lab: &Lab) -> BTreeMap<String, String> {
    let files = std::fs::read_dir(lab.directory().join("pids")).expect("pid files").flatten();
    let text = |path| std::fs::read_to_string(path).unwrap_or_default();
    files.map(|file| (file.file_name().to_string_lossy().into_owned(), text(file.path()))).collect()
}

fn mends(lab: &Lab) {
    lab.apply(&Lab::pod("default", "stays", "nodeName: node1", r#"serve, --http, "8080""#));
    lab.wait_ready("default");
    let before = processes(lab);
    // The whole of node2 goes: its namespaces are held by one process.
    let holder = before["hold-node2"].split(' ').next().expect("a pid");
    lab.node_ok("node1", &["kill", "-9", holder]);
    let said = lab.lab(&["up"]);
    assert!(said.ok && said.out.contains("mending what is broken"), "{said:?}");
    wait_for("node2 is there again", Duration::from_secs(60), || {
        let said = lab.node("node2", &["ip", "-4", "-o", "address", "show", "dev", "eth0"]);
        if said.out.contains("192.168.1.11/24") { Ok(()) } else { Err(format!("{said:?}")) }
    });
    lab.kubectl_ok(&["wait", "--for=condition=Ready", "node", "--all", "--timeout=60s"]);
    let after = processes(lab);
    for name in ["hold-underlay", "hold-outside", "hold-node1", "agent-node1", "kubelet-node1", "api"] {
        assert_eq!(before[name], after[name], "{name} was started anew");
    }
    assert_ne!(before["hold-node2"], after["hold-node2"]);
    let pod = lab.get(&["pod", "stays"]);
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0, "{pod}");
    // And both nodes work together: a new pod on the new node, called from the old one.
    lab.apply(&Lab::pod("default", "fresh", "nodeName: node2", r#"serve, --http, "8080""#));
    lab.wait_ready("default");
    let url = format!("http://{}:8080", lab.pod_ip("default", "fresh"));
    wait_for("the nodes reach each other", Duration::from_secs(60), || {
        let said = lab.demo("default", "stays", &["get", &url, "--timeout", "1"]);
        if said.out.contains("name=fresh") { Ok(()) } else { Err(format!("{said:?}")) }
    });
}

fn second(lab: &Lab) {
    let program = plumb();
    for (name, more) in [("agent", vec![]), ("kubelet", vec!["--address", "192.168.1.10"])] {
        let kubeconfig = format!("/run/{name}.kubeconfig");
        let mut command = lab.node_command("node1");
        // One that did start would not end.
        command.args(["timeout", "10"]);
        let said: Said = run(command
            .arg(&program)
            .args([name, "--node", "node1", "--kubeconfig", &kubeconfig])
            .args(more));
        said.refused(&["another", name, "works on /var/lib/plumb", "stop that one first"]);
    }
    // The first one still serves the CNI.
    lab.apply(&Lab::pod("default", "after", "nodeName: node1", r#"serve, --http, "8080""#));
    lab.wait_ready("default");
}

fn anonymous(lab: &Lab) {
    let config =
        lab.kubectl_ok(&["config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"]);
    let said = run(Command::new(kubectl_binary())
        .args(["--server", config.trim(), "--insecure-skip-tls-verify", "--token", "wrong", "get", "pods"])
        .env("KUBECONFIG", "/dev/null"));
    said.refused(&["Unauthorized"]);
}

fn manifest(lab: &Lab) {
    let said = lab.feed(
        &["apply"],
        "apiVersion: v1\nkind: Service\nmetadata: {name: bad}\nspec: {selector: {a: b}, ports: [{port: 99999}]}\n",
    );
    said.refused(&["Service \"bad\" is invalid", "spec.ports[0].port", "99999", "between 1 and 65535"]);
    assert!(!lab.kubectl(&["get", "service", "bad"]).ok);
    let path = lab.directory().join("bad.yaml");
    std::fs::write(&path, "a: [").expect("written");
    let name = fresh_name();
    let said = run(Command::new(plumb()).args(["lab", "up", "--name", &name, "-f"]).arg(&path));
    said.refused(&["bad.yaml: it cannot be read as YAML: ", " at line 1, column "]);
    assert_eq!(said.err.lines().count(), 1, "{said:?}");
    run(Command::new(plumb()).args(["lab", "status", "--name", &name]))
        .refused(&["is not running", "plumb lab up"]);
}

const NEVER_READY: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: waited-for}\nspec:\n  nodeName: node1\n  containers:\n  - {name: main, \
    image: plumb.local/demo, args: [serve, --http, '8080', --unready], readinessProbe: {httpGet: {path: /readyz, port: 8080}}}\n";

/// `plumb lab up`, interrupted when it has printed a line with these words.
fn interrupt(name: &str, (signal, number): (&str, i32), more: &[&str], words: &str) -> Said {
    let mut command = Command::new(plumb());
    command.args(["lab", "up", "--name", name]).args(more).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut up = command.spawn().expect("plumb runs");
    let mut lines = BufReader::new(up.stdout.take().expect("piped")).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains(words)), "{words:?} was not said");
    assert!(run(Command::new("kill").args([signal, &up.id().to_string()])).ok);
    let rest: Vec<String> = lines.collect();
    let output = up.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(128 + number), "{output:?}; {rest:?}");
    output.into()
}

fn interrupted(lab: &Lab) {
    for signal in [("-INT", 2), ("-HUP", 1)] {
        let name = fresh_name();
        let said = interrupt(&name, signal, &["--nodes", "1"], "1 nodes");
        said.refused(&["interrupted", &format!("lab {name} was still starting, and nothing of it is left")]);
        run(Command::new(plumb()).args(["lab", "status", "--name", &name])).refused(&["is not running"]);
    }
    let path = lab.directory().join("never-ready.yaml");
    std::fs::write(&path, NEVER_READY).expect("written");
    let said =
        interrupt(&lab.name, ("-TERM", 15), &["-f", path.to_str().expect("plain")], "pod/waited-for created");
    said.refused(&[
        &format!("lab {} goes on running", lab.name),
        &format!("plumb lab down --name {}", lab.name),
    ]);
    lab.kubectl_ok(&["delete", "pod", "waited-for", "--now"]);
}

/// Nothing can be asked of a lab that is gone.
fn last_words(lab: &Lab) {
    let (name, data) = (fresh_name(), lab.directory().join("no-data"));
    std::fs::create_dir_all(data.join("api.sqlite")).expect("made");
    let mut up = Command::new(plumb());
    let said = run(up.args(["lab", "up", "--name", &name, "--timeout", "300", "--data"]).arg(&data));
    // What ends again and again is not waited for.
    said.refused(&[
        "nothing of it is left",
        "the lab is not Ready:",
        "the end of the log of api:",
        "api.sqlite",
        "api was started 9 times and ended each time, the last time by exit code 1",
    ]);
    assert_eq!(said.err.matches("unable to open database file: /").count(), 1, "{said:?}");
    assert!(!said.err.contains("plumb lab"), "advice of what is gone: {said:?}");
}

/// As a script's trap does while its `up` has made nothing yet.
fn ended_early(lab: &Lab) {
    let name = fresh_name();
    let lock = lab.directory().with_file_name(format!(".{name}.lock"));
    let mut up = Command::new(plumb());
    let mut up =
        up.args(["lab", "up", "--quiet", "--name", &name]).stderr(Stdio::null()).spawn().expect("it starts");
    wait_for("the start has begun", Duration::from_secs(60), || match lock.exists() {
        true => Ok(()),
        false => Err(format!("there is no {}", lock.display())),
    });
    let down = run(Command::new(plumb()).args(["lab", "down", "--name", &name]));
    assert!(down.ok && down.out.contains("is gone"), "{down:?}");
    up.wait().expect("it ends");
    run(Command::new(plumb()).args(["lab", "status", "--name", &name])).refused(&["is not running"]);
}

/// The last that is done with it.
fn taken_away(lab: &Lab) {
    let path = lab.directory().join("never-ready.yaml");
    std::fs::write(&path, NEVER_READY).expect("written");
    // What has failed here would end a wait at once.
    lab.kubectl_ok(&["delete", "pod", "late", "--now"]);
    lab.apply(NEVER_READY);
    let all: [(&[&str], &str); 3] = [
        (&["wait"], "waiting: "),
        (&["logs", "-f", "node1", "agent"], "\n"),
        (&["up", "-f", path.to_str().expect("plain")], "pod/waited-for "),
    ];
    let waiting = all.map(|(words, found)| {
        let path = lab.directory().join(format!("{}.said", words[0]));
        let file = File::create(&path).expect("made");
        // It goes with the lab, but for who has it open.
        let said = File::open(&path).expect("made");
        let mut command = Command::new(plumb());
        let command = command.arg("lab").args(words).args(["--name", &lab.name]);
        let command = command.stdout(file.try_clone().expect("open")).stderr(file);
        (command.spawn().expect("it starts"), said, found)
    });
    let text = |mut said: &File| {
        let mut text = String::new();
        said.rewind().and_then(|()| said.read_to_string(&mut text)).expect("readable");
        text
    };
    for (_, said, found) in &waiting {
        wait_for("one that has found the lab", Duration::from_secs(60), || match text(said) {
            words if words.contains(found) => Ok(()),
            words => Err(words),
        });
    }
    lab.lab_ok(&["down"]);
    for (mut child, said, _) in waiting {
        let (code, said) = (child.wait().expect("it ends").code(), text(&said));
        assert!(said.contains(&format!("lab {} has ended meanwhile", lab.name)), "{said}");
        assert_eq!(code, Some(1), "{said}");
    }
}

fn port(lab: &Lab) {
    let place = |node| format!("nodeName: {node}\n  hostNetwork: true\n  restartPolicy: Never");
    lab.apply(&Lab::pod("default", "holder", &place("node1"), r#"serve, --http, "18080""#));
    lab.wait_ready("default");
    lab.apply(&Lab::pod("default", "late", &place("node1"), r#"serve, --http, "18080""#));
    lab.kubectl_ok(&["wait", "--for=jsonpath={.status.phase}=Failed", "pod", "late", "--timeout=60s"]);
    let log = lab.kubectl_ok(&["logs", "late"]);
    assert!(log.contains("listen on tcp port 18080") && log.contains("another process may hold it"), "{log}");
}

/// As a runtime would, through the CNI executable: 253 addresses, of which the pods of this test hold some.
const EXHAUST: &str = r#"
conf='{"cniVersion":"1.1.0","name":"plumb","type":"plumb-cni"}'
call() { echo "$conf" | CNI_COMMAND=$1 CNI_CONTAINERID=full$2 CNI_NETNS=/run/netns/full$2 CNI_IFNAME=eth0 CNI_PATH=/opt/cni/bin /opt/cni/bin/plumb-cni; }
n=0
while [ $n -lt 300 ]; do
  n=$((n + 1)); ip netns add full$n
  answer=$(call ADD $n) || { echo "$answer"; break; }
done
echo; ls /sys/class/net | grep -c ^veth
while [ $n -gt 0 ]; do call DEL $n; ip netns del full$n; n=$((n - 1)); done
ls /sys/class/net | grep -c ^veth
"#;

fn exhausted(lab: &Lab) {
    let veths = |lab: &Lab| lab.node("node2", &["sh", "-c", "ls /sys/class/net | grep -c ^veth"]).out;
    let before = veths(lab);
    let said = lab.node("node2", &["sh", "-c", EXHAUST]);
    for words in
        ["no free address in 10.244.2.0/24: 253 in use", "delete pods of this node", "larger pod CIDR"]
    {
        assert!(said.out.contains(words), "{said:?}");
    }
    let counts: Vec<&str> = said.out.lines().rev().take(2).collect();
    // The refused one has left no veth, and DEL takes the others away.
    assert_eq!(counts, [before.trim(), "253"], "{said:?}");
    assert_eq!(veths(lab), before);
}

/// As root of a user namespace of its own, in which `setup` has come first: so whoever runs the tests may. Its /run
/// is its own too.
fn refused_after(setup: &str, args: &str) -> Said {
    let script = format!(
        "mount -t tmpfs tmpfs /run && {setup} \"$0\" lab {args}; code=$?; ls -R /run >&2; exit $code"
    );
    let mut command = Command::new("unshare");
    let said = run(command.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script]).arg(plumb()));
    assert!(said.err.trim_end().ends_with("/run:"), "something is left: {said:?}");
    said
}

fn named(name: &str) -> String {
    format!("up --name {name}")
}

fn no_permission() {
    let name = fresh_name();
    // uid 0 without CAP_SYS_ADMIN, as in a container.
    let said = refused_after("setpriv --bounding-set -sys_admin --inh-caps -sys_admin", &named(&name));
    said.refused(&[
        &format!("lab {name} cannot work"),
        "netns",
        "is forbidden",
        "CAP_SYS_ADMIN",
        "--cap-add SYS_ADMIN",
        "nothing was made",
    ]);
    assert!(!said.err.contains("run as root"), "it is root: {said:?}");
}

/// The kernel itself is told to make no network namespaces.
fn no_feature() {
    let name = fresh_name();
    let said = refused_after("echo 0 > /proc/sys/user/max_net_namespaces && env", &named(&name));
    said.refused(&[
        &format!("lab {name} cannot work"),
        "netns (a pod's own network namespace) is missing",
        "next: ",
        "/proc/sys/user/max_net_namespaces is 0",
        "sysctl -w user.max_net_namespaces=10000",
        "nothing was made",
    ]);
}

/// What `lab up` has asked before anything else. It asks with a /proc of its own, in which nothing can be hidden.
fn no_ipv6() {
    let name = fresh_name();
    let setup = "mount --no-mtab -t tmpfs tmpfs /proc/sys/net/ipv6 && env";
    for families in ["dual", "ipv6"] {
        let said = refused_after(setup, &format!("check --name {name} --families {families}"));
        said.refused(&[
            &format!("lab {name} cannot work"),
            "ipv6 (pods with IPv6 addresses) is missing",
            "next: ",
            "nothing was made",
        ]);
    }
}
