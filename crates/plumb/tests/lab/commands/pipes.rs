//! A reader that goes before a command has ended (`| head -1`): no command panics, none is killed, none goes on for ever.

use std::process::{Command, Stdio};

use crate::cluster::{Checks, Lab, plumb};
use crate::help;

pub fn checks(lab: &Lab, checks: &mut Checks) {
    let found = help::commands(&plumb(), &[]);
    let all: Vec<&Vec<String>> = found.iter().map(|(path, _)| path).collect();
    checks.check("`--help` of every command without a reader", || {
        all.iter()
            .for_each(|path| ends_quietly(Command::new(plumb()).args(*path).arg("--help"), Streams::Output));
    });
    checks.check("what every command says of a wrong flag without a reader", || {
        let wrong = |path: &&Vec<String>| {
            ends_quietly(Command::new(plumb()).args(*path).arg("--no-such-flag"), Streams::Both);
        };
        all.iter().for_each(wrong);
    });
    checks.check("every command without a reader", || {
        for (path, _) in found.iter().filter(|(_, said)| help::subcommands(said).is_empty()) {
            for mut command in calls(lab, &path.join(" ")) {
                ends_quietly(&mut command, Streams::Output);
            }
        }
    });
    checks.check("a command that works without a reader has done its work", || {
        let mut stop = alone(&["lab"], &["agent", "stop", "--name", &lab.name, "node2"]);
        ends_quietly(&mut stop, Streams::Both);
        let said = lab.lab_ok(&["status"]);
        let mut rows = said.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        assert!(rows.any(|row| row.starts_with(&["agent-node2", "stopped"])), "{said}");
        lab.lab_ok(&["agent", "start", "node2"]);
    });
}

/// What nobody reads.
enum Streams {
    Output,
    Both,
}

fn alone<S: AsRef<std::ffi::OsStr>>(path: &[S], more: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    // What goes on for ever is a failure of its own.
    command.arg("100").arg(plumb()).args(path).args(more);
    command
}

#[track_caller]
fn ends_quietly(command: &mut Command, unread: Streams) {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    if let Streams::Both = unread {
        command.stderr(writer.try_clone().expect("a descriptor"));
    } else {
        command.stderr(Stdio::piped());
    }
    let output = command.stdin(Stdio::null()).stdout(writer).spawn().expect("timeout(1) is there");
    let output = output.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    // A panic, an abort, SIGPIPE, and timeout(1)'s word for what did not end.
    let bad = output.status.code().is_none_or(|code| [101, 124, 134, 141].contains(&code));
    assert!(!bad && !said.contains("panicked"), "{command:?}: {}: {said}", output.status);
    assert!(!said.contains("Broken pipe"), "{command:?}: {said}");
}

/// How each command is called so that it prints and ends soon. A new command wants a line here.
pub fn calls(lab: &Lab, path: &str) -> Vec<Command> {
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let of_lab = |more: &str| {
        let mut command = alone(&words(path), &["--name", &lab.name]);
        command.args(more.split_ascii_whitespace());
        vec![command]
    };
    let of_cluster = |more: &str| {
        let mut command = alone(&words(path), &[]);
        command.env("KUBECONFIG", &lab.kubeconfig).args(more.split_ascii_whitespace());
        vec![command]
    };
    // In a node, from where the outside is reached.
    let in_node = |more: &[&str]| {
        more.iter()
            .map(|more| {
                let mut command = alone(&["lab", "exec", "--name"], &[&lab.name, "node1", "--"]);
                command.arg(plumb()).args(words(path)).args(more.split(' '));
                command
            })
            .collect()
    };
    match path {
        "lab up" | "lab wait" | "lab kubeconfig" => of_lab(""),
        "lab list" => all([of_cluster(""), of_cluster("-o json")]),
        "lab status" => all([of_lab(""), of_lab("-o json")]),
        "lab logs" => all([of_lab("node1 agent"), of_lab("node1 agent --follow")]),
        // It serves for ever, whoever reads; what is wrong with its input it says and ends.
        "lab expose" => of_lab("nobody"),
        "lab down" => vec![alone(&words(path), &["--name", "nobodys"])],
        "lab exec" => of_lab("node1 sh -c :"),
        "lab agent stop" | "lab agent start" | "lab agent restart" | "lab agent pause"
        | "lab agent resume" => of_lab("node2"),
        "trace" => all([of_cluster("shop/web http://payments:8080"), of_cluster("shop/web db:5432 --json")]),
        "dns" => all([of_cluster("shop/web"), of_cluster("shop/web payments")]),
        "status" => all([of_cluster(""), of_cluster("--watch"), of_cluster("--watch -o json")]),
        "alerts" => all([of_cluster(""), of_cluster("--prometheus-rule")]),
        "features" => all([of_cluster(""), of_cluster("-o json")]),
        "replay" => vec![alone(&words(path), &["/dev/stdin"])],
        "connectivity test" => of_cluster("--list"),
        "sysdump" => of_cluster("--output /dev/null"),
        "install" => of_cluster("--print"),
        // Of a lab it would be the end.
        "uninstall" | "agent" => vec![alone(&words(path), &["--kubeconfig", "/dev/null"])],
        // Of a machine of Plumb's.
        "node-cleanup" => vec![alone(&words(path), &["--data", "/dev/null/none"])],
        // The machine's name is printed before what is refused.
        "bench dns" => of_cluster("--services 10 --rounds 1 --millis 1"),
        "bench endpoints" => of_cluster("--services 0"),
        "bench cni" | "bench lab" | "bench all" => of_cluster("--rounds 0"),
        "bench guards" => of_cluster("--pairs 1"),
        "bench cluster" => of_cluster("--few 0"),
        "bench soak" => of_cluster("--seconds 1 --warm-up 2"),
        "demo serve" => of_cluster(""),
        "demo get" => in_node(&["http://203.0.113.10/"]),
        "demo loop" => in_node(&["http://203.0.113.10/ --every 10", "http://203.0.113.10:9/ --every 10"]),
        "demo tcp" => in_node(&["203.0.113.10:53"]),
        "demo udp" => in_node(&["203.0.113.10:9 --timeout 0.1", "203.0.113.10:9 --timeout 0.1 --every 10"]),
        "demo ping" => {
            in_node(&["203.0.113.10 -c 2 -i 0.1", "203.0.113.10 -i 0.1", "192.168.1.99 -W 0.1 -i 0.1"])
        }
        "demo dns" => in_node(&["api.shop.svc.cluster.local --server 10.96.0.10"]),
        "demo ask" => in_node(&["payments.shop.svc.cluster.local --server 10.96.0.10"]),
        "demo stream" => in_node(&["203.0.113.10:80"]),
        other => panic!("how is `plumb {other}` called so that it prints and ends? say so here"),
    }
}

fn all<const N: usize>(calls: [Vec<Command>; N]) -> Vec<Command> {
    calls.into_iter().flatten().collect()
}
