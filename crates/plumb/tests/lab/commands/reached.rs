//! From the machine into the lab: an exposed Service, port-forward, and the API's proxies of pods and Services.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::at;
use crate::cluster::{Checks, Kubectl, Lab, run, wait_for};

/// A server of lines beside one of HTTP, in a pod that no policy lets anybody reach.
const ISLAND: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: island, namespace: default, labels: {app: island}}
spec:
  nodeName: node2
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: plumb.local/demo
    args: [serve, --http, "8080", --tcp, "9000"]
---
apiVersion: v1
kind: Service
metadata: {name: island, namespace: default}
spec:
  selector: {app: island}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: lines, port: 9000}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: island, namespace: default}
spec: {podSelector: {matchLabels: {app: island}}, policyTypes: [Ingress, Egress]}
"#;

pub fn checks(lab: &Lab, checks: &mut Checks) {
    lab.apply(ISLAND);
    lab.wait_ready("default");
    checks.check("`lab expose` leads from 127.0.0.1 to the Service's pods", || exposed(lab));
    checks.check("`kubectl port-forward` to a pod, a Deployment and a Service", || forwarded(lab));
    checks.check("a killed kubectl takes its connections and commands along, whoever does not read", || {
        killed(lab);
    });
    checks.check("the API's proxies of pods and Services", || proxied(lab));
}

/// A command that serves at an address that it names, ended with the value.
struct Serving {
    child: Child,
    address: String,
    // Its output stays open for as long as it serves.
    _out: BufReader<std::process::ChildStdout>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[track_caller]
fn serving(command: &mut Command) -> Serving {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let mut out = BufReader::new(child.stdout.take().expect("piped"));
    let mut line = String::new();
    out.read_line(&mut line).expect("a line");
    let address =
        line.split(|c: char| c.is_whitespace() || c == '/').find(|word| word.starts_with("127.0.0.1:"));
    let Some(address) = address.map(str::to_owned) else {
        let mut said = String::new();
        let _ = child.stderr.take().expect("piped").read_to_string(&mut said);
        panic!("{command:?} names no address: {line:?} {said:?}");
    };
    Serving { child, address, _out: out }
}

/// The answer's body.
#[track_caller]
fn get(address: &str) -> String {
    let mut stream = TcpStream::connect(address).expect(address);
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    write!(stream, "GET / HTTP/1.0\r\nHost: lab\r\nConnection: close\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.contains(" 200 "), "{answer:?}");
    answer.rsplit("\r\n\r\n").next().unwrap_or_default().to_owned()
}

/// Many lines, each answered: more than any buffer on the way holds.
#[track_caller]
fn echo_lines(address: &str) {
    const LINES: usize = 20_000;
    let stream = TcpStream::connect(address).expect(address);
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
    let mut input = stream.try_clone().expect("a descriptor");
    let writer = std::thread::spawn(move || {
        for number in 0..LINES {
            writeln!(input, "line {number:0>100}").expect("sent");
        }
        input.shutdown(std::net::Shutdown::Write).expect("closed");
    });
    let answers = BufReader::new(stream).lines().map_while(Result::ok).count();
    writer.join().expect("all lines are sent");
    assert_eq!(answers, LINES);
}

fn exposed(lab: &Lab) {
    let shop = serving(&mut at(lab, &["lab", "expose", "shop/payments"]));
    // The next connection, the next pod; a policy that lets only web in is not met.
    let mut names: Vec<String> = (0..3).map(|_| get(&shop.address)).map(|body| name(&body)).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 3, "{names:?}");
    let island = serving(&mut at(lab, &["lab", "expose", "island:lines", "-n", "default"]));
    echo_lines(&island.address);
    let named = serving(&mut at(lab, &["lab", "expose", "-n", "shop", "svc/payments"]));
    assert!(names.contains(&name(&get(&named.address))));
    for (service, words) in [
        ("pod/island:9000", &["is a Pod", "kubectl -n default port-forward pod/island 9000"][..]),
        ("service/nobody", &["there is no Service default/nobody"]),
        ("nobody", &["there is no Service default/nobody"]),
        ("island", &["has several TCP ports", "80 (http), 9000 (lines)"]),
        ("island:81", &["has no TCP port \"81\""]),
    ] {
        run(&mut at(lab, &["lab", "expose", service])).refused(words);
    }
    let taken = shop.address.trim_start_matches("127.0.0.1:");
    run(&mut at(lab, &["lab", "expose", "shop/web", "--port", taken])).refused(&["--port chooses another"]);
}

fn name(body: &str) -> String {
    let word = body.split_ascii_whitespace().find_map(|word| word.strip_prefix("name="));
    word.unwrap_or_else(|| panic!("no name in {body:?}")).to_owned()
}

fn forwarded(lab: &Lab) {
    let forward = |words: &[&str]| {
        let mut command = lab.kubectl_command();
        command.arg("port-forward").args(words);
        command
    };
    let island = serving(&mut forward(&["pod/island", ":8080"]));
    (0..20).for_each(|_| assert_eq!(name(&get(&island.address)), "island"));
    // Side by side over the one connection of kubectl.
    std::thread::scope(|scope| (0..8).for_each(|_| drop(scope.spawn(|| get(&island.address)))));
    echo_lines(&serving(&mut forward(&["pod/island", ":9000"])).address);
    assert!(
        name(&get(&serving(&mut forward(&["-n", "shop", "deploy/api", ":8080"])).address))
            .starts_with("api-")
    );
    assert_eq!(name(&get(&serving(&mut forward(&["svc/island", ":80"])).address)), "island");

    let mut wrong = serving(&mut forward(&["pod/island", ":81"]));
    let mut stream = TcpStream::connect(&wrong.address).expect("kubectl listens");
    let mut nothing = Vec::new();
    let _ = stream.write_all(b"GET / HTTP/1.0\r\n\r\n").and_then(|()| stream.read_to_end(&mut nothing));
    let mut said = BufReader::new(wrong.child.stderr.take().expect("piped"));
    let mut line = String::new();
    said.read_line(&mut line).expect("a line");
    assert!(nothing.is_empty() && line.contains("port 81 of pod default/island"), "{line}");
    assert!(line.contains("Connection refused"), "{line}");
}

/// A server that takes no connection out of the kernel's queue, and so reads nothing.
const DEAF: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: deaf, namespace: default}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: host
    command: [python3, -c, "import socket, time; server = socket.create_server(('', 9)); time.sleep(1e6)"]
    readinessProbe: {tcpSocket: {port: 9}, periodSeconds: 1}
"#;
/// In /proc/net/tcp the server's port, and the state of connections that live.
const ITS_PORT: &str = ":0009 ";
const ESTABLISHED: &str = " 01 ";
/// Nobody else sleeps so long.
const SLEEP: &str = "987654";
const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes without end, until nobody takes them any more.
fn pour(mut into: impl Write + Send + 'static) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || while into.write_all(&[0; 1 << 16]).is_ok() {})
}

fn killed(lab: &Lab) {
    lab.apply(DEAF);
    lab.wait_ready("default");
    let connections = || {
        // The node's probes come and go at the pod's own address; these are at its loopback.
        let table = lab.kubectl_ok(&["exec", "deaf", "--", "cat", "/proc/net/tcp"]);
        let ours = |line: &&str| {
            let (local, rest) = line.split_once("0100007F").unwrap_or_default();
            rest.starts_with(ITS_PORT) && local.contains(':') && line.contains(ESTABLISHED)
        };
        table.lines().filter(ours).count()
    };
    let mut forward = lab.kubectl_command();
    forward.args(["port-forward", "pod/deaf", ":9"]);
    let mut forward = serving(&mut forward);
    let pouring = pour(TcpStream::connect(&forward.address).expect("kubectl listens"));
    wait_for("the connection", PATIENCE, || match connections() {
        1 => Ok(()),
        other => Err(format!("{other} connections")),
    });
    let sleeps = || {
        let found =
            lab.kubectl_ok(&["exec", "deaf", "--", "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"]);
        found.contains(&format!("sleep {SLEEP}"))
    };
    let mut exec = lab.kubectl_command();
    exec.args(["exec", "-i", "deaf", "--", "sleep", SLEEP]);
    let mut exec = exec.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("kubectl starts");
    let feeding = pour(exec.stdin.take().expect("piped"));
    wait_for("the command", PATIENCE, || if sleeps() { Ok(()) } else { Err("no sleep".to_owned()) });

    for kubectl in [&mut forward.child, &mut exec] {
        kubectl.kill().expect("it lives");
        kubectl.wait().expect("killed");
    }
    for writer in [pouring, feeding] {
        writer.join().expect("nobody takes more");
    }
    wait_for("the end of the connection", PATIENCE, || match connections() {
        0 => Ok(()),
        other => Err(format!("{other} connections")),
    });
    wait_for("the end of the command", PATIENCE, || {
        if sleeps() { Err(format!("sleep {SLEEP}")) } else { Ok(()) }
    });
    lab.kubectl_ok(&["delete", "pod", "deaf", "--now"]);
}

fn proxied(lab: &Lab) {
    let raw = |path: &str| lab.kubectl(&["get", "--raw", path]);
    for path in [
        "/api/v1/namespaces/default/pods/island:8080/proxy/",
        "/api/v1/namespaces/default/services/island:80/proxy/",
        "/api/v1/namespaces/default/services/http:island:http/proxy/?y=1",
    ] {
        let said = raw(path);
        assert!(said.ok && said.out.contains("name=island"), "{path}: {said:?}");
    }
    let of_shop = wait_for("each pod of a Service by its proxy", Duration::from_secs(60), || {
        let names: std::collections::BTreeSet<String> = (0..12)
            .map(|_| raw("/api/v1/namespaces/shop/services/payments:8080/proxy/"))
            .map(|said| name(&said.out))
            .collect();
        if names.len() == 3 { Ok(names) } else { Err(format!("{names:?}")) }
    });
    assert!(of_shop.iter().all(|name| name.starts_with("payments-")), "{of_shop:?}");
    raw("/api/v1/namespaces/default/services/island:81/proxy/")
        .refused(&["no service port 81 found for service"]);
    raw("/api/v1/namespaces/default/services/nobody/proxy/").refused(&["services \"nobody\" not found"]);
    // The port without a name, of which there is none.
    raw("/api/v1/namespaces/default/services/island/proxy/").refused(&["no endpoints available for service"]);
    raw("/api/v1/namespaces/default/pods/island:81/proxy/").refused(&["pod island at", "Connection refused"]);
}
