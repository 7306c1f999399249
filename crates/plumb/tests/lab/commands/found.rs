//! How a lab is found: by its name, by KUBECONFIG, in the list of all.

use std::process::Command;

use super::{at, ok};
use crate::cluster::{Checks, Lab, fresh_name, plumb, run};

pub fn checks(lab: &Lab, checks: &mut Checks) {
    checks.check("every command of a lab finds it by KUBECONFIG", || by_kubeconfig(lab));
    checks.check("`lab list` has what runs, and what a killed lab has left", || listed(lab));
}

fn by_kubeconfig(lab: &Lab) {
    let name = &lab.name;
    assert!(ok(lab, &["lab", "status"]).starts_with(&format!("lab {name}: 2 nodes")));
    assert_eq!(ok(lab, &["lab", "kubeconfig"]).trim(), lab.kubeconfig.to_str().expect("plain"));
    assert_eq!(ok(lab, &["lab", "exec", "node2", "--", "hostname"]).trim(), "node2");
    assert!(ok(lab, &["lab", "up"]).contains(&format!("lab {name} runs already")));
    assert!(ok(lab, &["lab", "agent", "pause", "node2"]).contains("only looks"));
    assert!(ok(lab, &["lab", "agent", "resume", "node2"]).contains("mends again"));
    // A list of files, as kubectl takes it, and a link.
    let link = lab.directory().join("link");
    std::os::unix::fs::symlink(&lab.kubeconfig, &link).expect("a link");
    let several = format!("/no/such/file:{}", link.display());
    let said = run(at(lab, &["lab", "status"]).env("KUBECONFIG", several));
    assert!(said.out.starts_with(&format!("lab {name}: ")), "{said:?}");
    // What is said wins, and who asks for another one is told what runs.
    let said = run(&mut at(lab, &["lab", "status", "--name", "nobodys"]));
    said.refused(&["lab nobodys is not running", "plumb lab up --name nobodys", &format!("--name {name}")]);
    // Another cluster's kubeconfig is none of a lab's.
    let said = run(at(lab, &["lab", "status"]).env("KUBECONFIG", "/no/such/kubeconfig"));
    assert!(!said.out.starts_with(&format!("lab {name}: ")), "{said:?}");
}

fn listed(lab: &Lab) {
    let list = |more: &[&str]| {
        let said = run(Command::new(plumb()).args(["lab", "list"]).args(more));
        assert!(said.ok, "{said:?}");
        said
    };
    let row = |text: &str, name: &str| {
        let row = text.lines().find(|line| line.split_whitespace().next() == Some(name));
        row.unwrap_or_else(|| panic!("no row of {name} in {text}"))
            .split_whitespace()
            .map(str::to_owned)
            .collect()
    };
    let kubeconfig = lab.kubeconfig.to_str().expect("plain");
    let text = list(&[]).out;
    let seen: Vec<String> = row(&text, &lab.name);
    assert_eq!(seen, [lab.name.as_str(), "running", "2", "ipv4", kubeconfig]);
    let json = list(&["-o", "json"]).json();
    let rows = json.as_array().expect("a list");
    let seen = rows.iter().find(|row| row["name"] == lab.name.as_str()).expect("its object");
    assert_eq!((&seen["state"], &seen["nodes"]), (&"running".into(), &2.into()), "{seen}");
    assert_eq!(seen["kubeconfig"], kubeconfig);

    // As a lab whose machine was switched off, or whose anchor was killed, leaves it.
    let left = fresh_name();
    let directory = lab.directory().parent().expect("of all labs").join(&left);
    std::fs::create_dir(&directory).expect("a directory");
    let plan = std::fs::read_to_string(lab.directory().join("lab.json")).expect("a plan");
    std::fs::write(directory.join("lab.json"), plan.replace(&lab.name, &left)).expect("a plan");
    let text = list(&[]).out;
    let seen: Vec<String> = row(&text, &left);
    assert_eq!(seen[1], "ended", "{text}");
    let advice = format!("plumb lab down --name {left}");
    assert!(text.contains(&advice), "{text}");
    let words: Vec<&str> = advice.split(' ').skip(1).collect();
    let said = run(Command::new(plumb()).args(words));
    assert!(said.ok && !directory.exists(), "{said:?}");
}
