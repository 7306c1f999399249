//! What `lab up` applies: from the standard input, of a directory, of a kustomization; and what it refuses before anything
//! is started.

use std::process::Command;

use super::at;
use crate::cluster::{Checks, Kubectl, Lab, Said, fresh_name, kubectl_binary, plumb, run};
use crate::said::feed;

pub fn checks(lab: &Lab, checks: &mut Checks) {
    checks.check("`-f -` applies the standard input", || input(lab));
    checks.check("`-f DIR` applies its manifests by name", || directory(lab));
    checks
        .check("`-k DIR` applies a kustomization, and says what it wants where there is no kubectl", || {
            kustomization(lab)
        });
    checks.check("`kubectl apply` goes on where `lab up -f` has begun, and the other way round", || {
        applied_by_both(lab);
    });
    checks.check("manifests that cannot be applied are refused before a lab is started", refused);
}

fn config(name: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: default}}\n")
}

fn input(lab: &Lab) {
    let said: Said = feed(&mut at(lab, &["lab", "up", "-f", "-"]), config("fed").as_bytes());
    assert!(said.ok && said.out.contains("configmap/fed created"), "{said:?}");
    lab.kubectl_ok(&["get", "configmap", "fed"]);
    let quiet = feed(&mut at(lab, &["lab", "up", "-q", "-f", "-"]), config("fed").as_bytes());
    assert!(quiet.ok && quiet.out.is_empty(), "{quiet:?}");
    let told = feed(&mut at(lab, &["lab", "up", "--json", "-f", "-"]), config("fed").as_bytes()).json();
    assert_eq!(
        told["objects"][0],
        serde_json::json!({"object": "configmap/fed", "namespace": "default", "outcome": "unchanged"})
    );
    // What only the lab's API can refuse: the others are applied all the same.
    let missing = config("one").replace("default", "nosuch");
    let text = [missing.clone(), config("two"), missing.replace("one", "three")].join("---\n");
    feed(&mut at(lab, &["lab", "up", "-f", "-"]), text.as_bytes()).refused(&[
        "2 errors",
        "configmap/one: ",
        "configmap/three: ",
    ]);
    lab.kubectl_ok(&["get", "configmap", "two"]);
}

/// Two ports of one number, a list of containers with defaults in it, and a label that goes.
const BOTH: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: both, namespace: default, labels: {stays: "1", goes: "1"}}
spec:
  selector: {app: both}
  ports: [{name: udp, port: 53, protocol: UDP}, {name: tcp, port: 53}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: both, namespace: default}
spec:
  replicas: 0
  selector: {matchLabels: {app: both}}
  template:
    metadata: {labels: {app: both}}
    spec:
      containers:
      - {name: main, image: plumb.local/demo, args: [serve, --http, "8080"], env: [{name: GOES, value: "1"}]}
"#;

fn applied_by_both(lab: &Lab) {
    let up = |text: &str| feed(&mut at(lab, &["lab", "up", "-f", "-"]), text.as_bytes());
    let apply = |text: &str| {
        let said = lab.kubectl_fed(&["apply", "-f", "-"], text);
        assert!(said.ok && said.err.is_empty(), "kubectl apply is silent beside its result: {said:?}");
        said.out
    };
    let result = |of: &str| ["service", "deployment.apps"].map(|kind| format!("{kind}/both {of}"));
    let said = up(BOTH);
    assert!(said.ok && result("created").iter().all(|line| said.out.contains(line)), "{said:?}");
    assert_eq!(apply(BOTH).lines().collect::<Vec<_>>(), result("unchanged"));
    let said = up(BOTH);
    assert!(said.ok && result("unchanged").iter().all(|line| said.out.contains(line)), "{said:?}");

    // What somebody else wrote stays; what a manifest had and has no longer goes, whoever applies it.
    lab.kubectl_ok(&["label", "service", "both", "theirs=1"]);
    lab.kubectl_ok(&["set", "env", "deployment/both", "THEIRS=1"]);
    let labels = || lab.kubectl_ok(&["get", "service", "both", "-o", "jsonpath={.metadata.labels}"]);
    let env = || {
        let path = "jsonpath={.spec.template.spec.containers[*].env[*].name}";
        lab.kubectl_ok(&["get", "deployment", "both", "-o", path])
    };
    let less = BOTH.replace(r#", goes: "1""#, "");
    assert_eq!(apply(&less).lines().next(), Some("service/both configured"));
    assert_eq!(labels(), r#"{"stays":"1","theirs":"1"}"#);
    let least = less.replace(r#", env: [{name: GOES, value: "1"}]"#, r#", env: [{name: ADDED, value: "1"}]"#);
    let said = up(&least.replace("port: 53}]", "port: 54}]"));
    assert!(said.ok && result("configured").iter().all(|line| said.out.contains(line)), "{said:?}");
    assert_eq!((labels().as_str(), env().as_str()), (r#"{"stays":"1","theirs":"1"}"#, "THEIRS ADDED"));
    let ports = lab.kubectl_ok(&["get", "service", "both", "-o", "jsonpath={.spec.ports[*].port}"]);
    assert_eq!(ports, "53 54");
    lab.kubectl_ok(&["delete", "service,deployment", "both"]);
    // As kubectl, it takes no field that does not exist.
    let said = up(&config("misspelt").replace("metadata", "dada: {}\nmetadata"));
    said.refused(&["the standard input, document 1", "unknown field", "dada"]);
    assert!(said.err.matches("unknown field").count() == 1 && !said.err.contains("Status {"), "{said:?}");
}

fn directory(lab: &Lab) {
    let directory = lab.directory().join("manifests");
    std::fs::create_dir(&directory).expect("a directory");
    let path = directory.to_str().expect("plain");
    let said = run(&mut at(lab, &["lab", "up", "-f", path]));
    said.refused(&["has no .yaml, .yml or .json file", "-k"]);
    for (name, text) in
        [("2.yml", config("second")), ("1.yaml", config("first")), ("notes.txt", "no YAML: [".into())]
    {
        std::fs::write(directory.join(name), text).expect("written");
    }
    let said = run(&mut at(lab, &["lab", "up", "-f", path]));
    let created: Vec<&str> = said.out.lines().filter(|line| line.contains(" created")).collect();
    assert!(said.ok, "{said:?}");
    assert!(created[0].ends_with("configmap/first created"), "{said:?}");
    assert!(created[1].ends_with("configmap/second created"), "{said:?}");
}

fn kustomization(lab: &Lab) {
    let directory = lab.directory().join("kustomization");
    std::fs::create_dir(&directory).expect("a directory");
    std::fs::write(directory.join("config.yaml"), config("kustomized")).expect("written");
    let text = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [config.yaml]\nnamePrefix: it-is-\n";
    std::fs::write(directory.join("kustomization.yaml"), text).expect("written");
    let path = directory.to_str().expect("plain");
    let with = kubectl_binary().parent().expect("a directory");
    let said = run(at(lab, &["lab", "up", "-k", path]).env("PATH", with));
    assert!(said.ok && said.out.contains("configmap/it-is-kustomized created"), "{said:?}");
    run(at(lab, &["lab", "up", "-k", path]).env("PATH", "/no/such"))
        .refused(&["there is no kubectl on the PATH", "-f"]);
    run(at(lab, &["lab", "up", "-k", "/no/such"]).env("PATH", with)).refused(&["kubectl kustomize /no/such"]);
}

/// Of a lab that does not run: nothing of it is there afterwards.
fn refused() {
    let name = fresh_name();
    let up = |more: &[&str], input: &str| {
        feed(Command::new(plumb()).args(["lab", "up", "--name", &name]).args(more), input.as_bytes())
    };
    let secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\n";
    up(&["-f", "-"], secret).refused(&[
        "the standard input, document 1",
        "no objects of kind Secret",
        "Deployment",
    ]);
    let old = "apiVersion: apps/v1beta1\nkind: Deployment\nmetadata: {name: a}\n";
    up(&["-f", "-"], old).refused(&["a lab has Deployment as apps/v1"]);
    let unknown = config("a").replace("metadata", "dada: {}\nmetadata");
    up(&["-f", "-"], &unknown).refused(&["nothing was started", "the standard input, document 1", "dada"]);
    up(&["-f", "-"], &config("a").replace("default", "nosuch")).refused(&["nothing was started", "nosuch"]);
    let broken = up(&["-f", "-"], "a: b\nc: [\nd: {\n");
    broken.refused(&["the standard input: it cannot be read as YAML: ", " at line ", "correct it there"]);
    assert_eq!(broken.err.lines().count(), 1, "{broken:?}");
    up(&["-f", "-", "-f", "-"], "").refused(&["-f - is given twice"]);
    for nothing in ["", "# A command that failed before the pipe.\n---\n"] {
        up(&["-f", "-"], nothing).refused(&["-f -: there is no object in it"]);
    }
    let data = std::env::temp_dir().join(&name);
    let path = data.to_str().expect("plain");
    up(&["--data", path, "--allow-sources", "all"], "")
        .refused(&["--allow-sources \"all\" is not an address"]);
    assert!(!data.exists(), "{path} was made");
    run(Command::new(plumb()).args(["lab", "status", "--name", &name])).refused(&["is not running"]);
}
