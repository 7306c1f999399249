//! What the lab tells of itself: state as JSON, logs, and when everything is ready.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{at, ok};
use crate::cluster::{Checks, Kubectl, Lab, run, wait_for};
use crate::said::feed;

pub fn checks(lab: &Lab, checks: &mut Checks) {
    checks.check("`lab status -o json`", || json(lab));
    checks.check("`lab logs` of a process, its end, and what comes", || logs(lab));
    checks.check("`lab wait` says what is not Ready and why, and ends when all is", || wait(lab));
    checks
        .check("a pod that ends is done when it has succeeded, and else an error, each time", || ended(lab));
    checks.check("`lab status` tells what ended a process", || last_end(lab));
    checks.check("`lab wait` names all that is not Ready, each reason once", || all(lab));
    checks.check("`agent start` returns when the agent answers", || started(lab));
    checks.check("`lab up` and `lab wait` return when an agent that was killed serves again", || killed(lab));
    checks.check("what hangs takes no longer than --timeout, and is named", || hangs(lab));
    checks.check("while the API is stopped, `agent restart` says what it waits for, and ends", || {
        api_stopped(lab)
    });
}

fn json(lab: &Lab) {
    let said = run(&mut at(lab, &["lab", "status", "-o", "json"])).json();
    assert_eq!(said["name"], lab.name.as_str());
    assert_eq!(said["kubeconfig"], lab.kubeconfig.to_str().expect("plain"));
    let processes = said["processes"].as_array().expect("processes");
    for name in ["supervise", "api", "agent-node1", "kubelet-node2"] {
        let process = processes.iter().find(|process| process["name"] == name);
        let process = process.unwrap_or_else(|| panic!("no {name}: {said}"));
        assert_eq!(process["state"], "running", "{process}");
        assert!(process["pid"].as_u64() > Some(0) && process["rssKiB"].as_u64() > Some(0), "{process}");
    }
    let nodes: Vec<_> = said["nodes"].as_array().expect("nodes").iter().collect();
    let seen: Vec<_> =
        nodes.iter().map(|node| (&node["name"], &node["ready"], &node["addresses"][0])).collect();
    assert_eq!(
        seen,
        [
            (&"node1".into(), &true.into(), &"192.168.1.10".into()),
            (&"node2".into(), &true.into(), &"192.168.1.11".into())
        ]
    );
    assert!(said["apiError"].is_null(), "{said}");
}

/// Also when it runs again.
fn last_end(lab: &Lab) {
    let process = || {
        let said = run(&mut at(lab, &["lab", "status", "-o", "json"])).json();
        let all = said["processes"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|process| process["name"] == "kubelet-node2").expect("a kubelet")
    };
    let before = process();
    assert!(before["lastEnd"].is_null(), "{before}");
    lab.node_ok("node2", &["kill", "-9", &before["pid"].to_string()]);
    wait_for("it runs again", Duration::from_secs(30), || {
        let now = process();
        let again = now["state"] == "running" && now["restarts"] == 1 && now["pid"] != before["pid"];
        if again { Ok(()) } else { Err(now.to_string()) }
    });
    let now = process();
    assert_eq!(now["lastEnd"], "signal 9 (SIGKILL)", "{now}");
}

fn logs(lab: &Lab) {
    let whole = ok(lab, &["lab", "logs", "node1", "agent"]);
    assert_eq!(whole, ok(lab, &["lab", "logs", "agent-node1"]));
    let last = ok(lab, &["lab", "logs", "--tail", "1", "node1", "agent"]);
    assert!(last.lines().count() == 1 && whole.contains(&last), "{last}");
    run(&mut at(lab, &["lab", "logs", "node1", "nobody"]))
        .refused(&["no process \"nobody-node1\"", "agent-node1"]);
    run(&mut at(lab, &["lab", "logs", "../../../etc/passwd"])).refused(&["no process"]);
    run(&mut at(lab, &["lab", "logs", "node7", "agent"]))
        .refused(&["no node \"node7\"; it has node1, node2"]);

    let mut follower = at(lab, &["lab", "logs", "-f", "--tail", "0", "node2", "agent"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut lines = BufReader::new(follower.stdout.take().expect("piped"));
    lab.lab_ok(&["agent", "stop", "node2"]);
    lab.lab_ok(&["agent", "start", "node2"]);
    // The next agent says what it is; without a line this would wait for the test's own end.
    let mut line = String::new();
    lines.read_line(&mut line).expect("a line");
    assert!(!line.trim().is_empty());
    // Nobody reads any more, and nothing needs to be written for it to notice.
    drop(lines);
    wait_for("the end of the follower", Duration::from_secs(10), || match follower.try_wait() {
        Ok(Some(status)) if status.success() => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

const SLOW: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: slow, namespace: default}\nspec:\n  \
    terminationGracePeriodSeconds: 1\n  containers:\n  - name: main\n    image: plumb.local/demo\n    args: [serve, --http, \
    \"8080\", --unready]\n    readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1}\n";

fn wait(lab: &Lab) {
    lab.apply(SLOW);
    run(&mut at(lab, &["lab", "wait", "--timeout", "1"]))
        .refused(&["pod default/slow is not Ready after ", "kubectl -n default describe pod slow"]);
    let said = run(&mut at(lab, &["lab", "wait", "--timeout", "3", "--json", "-n", "default"]));
    said.refused(&["s  waiting: pod default/slow: "]);
    let told: Value = serde_json::from_str(&said.out).expect("JSON");
    assert!(told["error"].as_str().is_some_and(|error| error.contains("--timeout")), "{told}");
    let slow = &told["workloads"][0];
    assert_eq!((&slow["name"], &slow["state"]), (&"slow".into(), &"NotReady".into()), "{told}");
    // Of somebody whose kubectl speaks to another cluster.
    run(at(lab, &["lab", "wait", "--timeout", "1", "--name", &lab.name]).env("KUBECONFIG", "/dev/null"))
        .refused(&[
            "the last warning: ",
            &format!("kubectl --kubeconfig {} -n default describe pod slow", lab.kubeconfig.display()),
        ]);
    run(&mut at(lab, &["lab", "wait", "-n", "nosuch"]))
        .refused(&["there is no namespace nosuch", "kubectl get namespaces"]);
    run(&mut at(lab, &["lab", "wait", "-n", "kube-public"]))
        .refused(&["namespace kube-public has nothing to wait for"]);
    run(&mut at(lab, &["lab", "wait", "--timeout", "18446744073709551615"])).refused(&["--timeout"]);
    // What is in another namespace is nobody's who asks for one.
    ok(lab, &["lab", "wait", "--timeout", "30", "-n", "shop"]);
    let waiting =
        at(lab, &["lab", "wait", "--timeout", "60"]).stdout(Stdio::piped()).spawn().expect("it starts");
    lab.demo_ok("default", "slow", &["get", "http://127.0.0.1:8080/ready?set=true"]);
    let output = waiting.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains("pod default/slow Ready"), "{said}");
    let said = run(&mut at(lab, &["lab", "wait", "--timeout", "60", "-o", "json"])).json();
    assert_eq!((&said["ok"], &said["error"]), (&Value::Bool(true), &Value::Null), "{said}");
    assert!(
        said["nodes"].as_array().is_some_and(|nodes| nodes.len() == 2 && nodes[0]["state"] == "Ready"),
        "{said}"
    );
    lab.apply(&SLOW.replace("slow", "never").replace("plumb.local/demo", "nginx"));
    run(&mut at(lab, &["lab", "wait", "--timeout", "30"]))
        .refused(&["pod default/never will not become Ready", "nginx"]);
    lab.kubectl_ok(&["delete", "pod", "slow", "never", "--now"]);
}

fn all(lab: &Lab) {
    let nowhere =
        |name: &str| SLOW.replace("slow", name).replace("  termin", "  nodeSelector: {no: where}\n  termin");
    let manifest = [nowhere("nowhere"), SLOW.replace("slow", "late")].join("---\n");
    let said = feed(&mut at(lab, &["lab", "up", "--timeout", "2", "-f", "-"]), manifest.as_bytes());
    said.refused(&["2 are not Ready after", "pod/nowhere: ", "pod/late: ", "describe pod nowhere"]);
    let said = run(&mut at(lab, &["lab", "wait", "--timeout", "1"]));
    said.refused(&["2 are not Ready after", "pod default/nowhere: ", "pod default/late: "]);
    let line = said.err.lines().find(|line| line.contains("default/nowhere")).expect("a line of it");
    assert!(!line.contains("FailedScheduling"), "twice: {line}");
    lab.kubectl_ok(&["delete", "pod", "nowhere", "late", "--now"]);
}

fn once(name: &str, policy: &str, script: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  restartPolicy: {policy}\n  \
         terminationGracePeriodSeconds: 1\n  containers:\n  - {{name: main, image: host, command: [sh, -c, {script:?}]}}\n"
    )
}

fn ended(lab: &Lab) {
    let up = |text: &str| feed(&mut at(lab, &["lab", "up", "-f", "-"]), text.as_bytes());
    for round in 0..3 {
        let names =
            ["well", "again", "stays", "badly", "brief", "loops"].map(|name| format!("{name}-{round}"));
        let [well, again, stays, badly, brief, loops] = &names;
        let good =
            [(well, "Never", "exit 0"), (again, "OnFailure", "exit 0"), (stays, "Never", "sleep 1000")];
        let good: Vec<String> = good.map(|(name, policy, script)| once(name, policy, script)).into();
        let said = up(&good.join("---\n"));
        assert!(said.ok, "{said:?}");
        for words in
            [format!("pod/{well} Succeeded"), format!("pod/{again} Succeeded"), format!("pod/{stays} Ready")]
        {
            assert!(said.out.contains(&words), "{words}: {said:?}");
        }
        up(&once(badly, "Never", "exit 3")).refused(&[
            &format!("pod/{badly} will not become Ready"),
            "container main ended with exit code 3",
            &format!("kubectl -n default logs {badly} -c main"),
        ]);
        up(&once(brief, "Never", "sleep 1.4; exit 5")).refused(&[
            &format!("pod/{brief} will not become Ready"),
            "container main ended with exit code 5",
        ]);
        up(&once(loops, "OnFailure", "exit 4")).refused(&[
            &format!("pod/{loops} will not become Ready"),
            "which ended with exit code 4",
            &format!("kubectl -n default logs {loops} -c main --previous"),
        ]);
        let names = names.each_ref().map(String::as_str);
        lab.kubectl_ok(&[&["delete", "--now", "pod"], &names[..]].concat());
    }
}

/// At once: what follows a start of the agent needs no patience of its own.
fn started(lab: &Lab) {
    lab.lab_ok(&["agent", "stop", "node1"]);
    run(&mut at(lab, &["lab", "agent", "pause", "node1"])).refused(&[
        "the agent of node1 is stopped",
        &format!("plumb lab agent start --name {} node1", lab.name),
    ]);
    // Whatever its Node says yet.
    let began = Instant::now();
    for verb in ["wait", "up"] {
        run(&mut at(lab, &["lab", verb])).refused(&["node1: its agent is stopped"]);
    }
    assert!(began.elapsed() < Duration::from_secs(20), "it is known at once");
    run(&mut at(lab, &["lab", "wait", "--timeout", "0"])).refused(&[
        "node1: its agent is stopped",
        &format!("plumb lab agent start --name {} node1", lab.name),
    ]);
    lab.lab_ok(&["agent", "start", "node1"]);
    let said = lab.lab_ok(&["agent", "restart", "node1"]);
    assert_eq!(said, "agent-node1 is stopped\nagent-node1 is running\n");
    lab.lab_ok(&["agent", "pause", "node1"]);
    let said = lab.lab_ok(&["agent", "restart", "node1"]);
    assert!(said.contains("no longer paused"), "{said}");
    let status = run(&mut at(lab, &["status"]));
    assert!(status.ok, "{status:?}");
    let trace = run(&mut at(lab, &["trace", "shop/web", "http://payments:8080"]));
    assert!(trace.ok, "{trace:?}");
}

/// A process of the lab, by its number inside.
fn pid(lab: &Lab, process: &str) -> String {
    let said = run(&mut at(lab, &["lab", "status", "-o", "json"])).json();
    let all = said["processes"].as_array().expect("processes");
    let found = all.iter().find(|one| one["name"] == process).expect("it is there");
    found["pid"].as_u64().expect("it runs").to_string()
}

/// What the API says of one that was killed is some seconds old.
fn killed(lab: &Lab) {
    for (process, verb) in [
        ("agent-node1", ["lab", "up"]),
        ("agent-node1", ["lab", "wait"]),
        ("hold-node1", ["lab", "up"]),
        ("hold-node1", ["lab", "wait"]),
    ] {
        lab.node_ok("node2", &["kill", "-9", &pid(lab, process)]);
        let status = run(&mut at(lab, &["lab", "status", "-o", "json"])).json();
        // It may have been started again meanwhile.
        let processes = status["processes"].as_array().expect("processes");
        let ended = processes.iter().any(|one| one["name"] == process && one["state"] != "running");
        assert!(!ended || status["nodes"][0]["ready"] == false, "{process}: {status}");
        ok(lab, &verb);
        let trace = run(&mut at(lab, &["trace", "shop/web", "http://payments:8080"]));
        assert!(trace.ok || !trace.err.contains("502"), "{process}, {verb:?}: {trace:?}");
        let status = run(&mut at(lab, &["lab", "status", "-o", "json"])).json();
        assert_eq!(status["nodes"][0]["ready"], true, "{process}, {verb:?}: {status}");
    }
}

/// What the Node says of it is that nobody has heard of it, and that later.
fn hangs(lab: &Lab) {
    let helps = [
        ("kubelet", "node2 kubelet shows what it has said".to_owned()),
        ("agent", format!("plumb lab agent restart --name {} node2 starts it anew", lab.name)),
    ];
    for (program, next) in helps {
        let process = pid(lab, &format!("{program}-node2"));
        lab.node_ok("node1", &["kill", "-STOP", &process]);
        let began = Instant::now();
        let waited = run(&mut at(lab, &["lab", "wait", "--timeout", "2"]));
        let took = began.elapsed();
        let status = run(&mut at(lab, &["lab", "status"]));
        lab.node_ok("node1", &["kill", "-CONT", &process]);
        let said = format!("its {program} does not answer: no answer within 2 s");
        waited.refused(&[&format!("node2: {said}"), &next]);
        assert!(took < Duration::from_secs(8), "{took:?}");
        assert!(status.out.contains(&said), "{status:?}");
        ok(lab, &["lab", "wait"]);
    }
}

/// As by a debugger: it takes connections, and says nothing.
fn api_stopped(lab: &Lab) {
    let api = pid(lab, "api");
    lab.node_ok("node2", &["kill", "-STOP", &api]);
    let said = run(&mut at(lab, &["lab", "agent", "restart", "--timeout", "8", "node1"]));
    let waited = run(&mut at(lab, &["lab", "wait", "--timeout", "1"]));
    lab.node_ok("node2", &["kill", "-CONT", &api]);
    said.refused(&[
        "agent-node1: ",
        " s of 8",
        "the agent of node1 runs, but after 8 s",
        "plumb lab up --name",
    ]);
    waited.refused(&["the API on port", "does not answer"]);
    lab.lab_ok(&["agent", "restart", "node1"]);
    ok(lab, &["lab", "wait"]);
}
