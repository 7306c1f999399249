//! How a lab is found: by its name, by KUBECONFIG.

use super::{at, ok};
use crate::cluster::{Checks, Lab, run};

pub fn checks(lab: &Lab, checks: &mut Checks) {
    checks.check("every command of a lab finds it by KUBECONFIG", || by_kubeconfig(lab));
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
    said.refused(&["lab nobodys is not running", "plumb lab up --name nobodys"]);
    // Another cluster's kubeconfig is none of a lab's.
    let said = run(at(lab, &["lab", "status"]).env("KUBECONFIG", "/no/such/kubeconfig"));
    assert!(!said.out.starts_with(&format!("lab {name}: ")), "{said:?}");
}
