//! examples/ci: the pipeline that the documents show runs as it stands there, and fails where it should.

use std::process::Command;

use serde_json::Value;

use crate::cluster::{Said, kubectl_binary, plumb, repository, run};

/// A step as GitHub runs it, with the programs on the PATH as the steps before have put them there.
fn step(script: &str, sysdump: &str) -> Said {
    let (plumb, kubectl) = (plumb(), kubectl_binary());
    let places = [plumb.as_path(), kubectl].map(|path| path.parent().expect("a directory").to_owned());
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(places.into_iter().chain(std::env::split_paths(&path))).expect("a PATH");
    run(Command::new("timeout")
        .args(["300", "bash", "-eo", "pipefail", "-c", script])
        .current_dir(repository(""))
        .env("PATH", path)
        .env("SYSDUMP", sysdump)
        .env_remove("KUBECONFIG"))
}

#[test]
fn the_pipeline_of_the_examples_runs_and_fails_where_it_should() {
    let text = std::fs::read_to_string(repository("examples/ci/github.yaml")).expect("the workflow");
    let workflow: Value = serde_saphyr::from_str(&text).expect("YAML");
    let steps = workflow["jobs"]["network"]["steps"].as_array().expect("steps");
    let test = steps.iter().find(|step| step["name"] == "Test the network").expect("the step");
    let said = step(test["run"].as_str().expect("a script"), "/no/such/sysdump");
    assert!(said.ok, "{said:?}");
    for word in
        ["what must pass", "name=payments-", "what must be denied", "agent-node1 is running", "is gone"]
    {
        assert!(said.out.contains(word), "{word:?}: {said:?}");
    }

    // A shop whose db lets in whom it should not.
    let shop = std::fs::read_to_string(repository("examples/shop.yaml")).expect("the shop");
    let from = |app: &str| {
        format!(
            "from: [{{podSelector: {{matchLabels: {{app: {app}}}}}}}]\n    ports: [{{protocol: TCP, port: postgres}}]"
        )
    };
    let open = shop.replace(&from("api"), &from("web"));
    assert_ne!(shop, open, "the policy of db is written in another way");
    let directory = std::env::temp_dir().join(format!("plumb-pipeline-{}", std::process::id()));
    std::fs::create_dir(&directory).expect("a directory");
    let (manifest, sysdump) = (directory.join("open.yaml"), directory.join("sysdump.tar.gz"));
    std::fs::write(&manifest, open).expect("written");
    let said = step(&format!("examples/ci/test.sh {}", manifest.display()), sysdump.to_str().expect("plain"));
    assert!(!said.ok && said.err.contains("web reaches db, which only api may"), "{said:?}");
    assert!(said.err.contains("agent-node1") && said.out.contains("is gone"), "{said:?}");
    assert!(std::fs::metadata(&sysdump).is_ok_and(|file| file.len() > 1000), "{said:?}");

    // A pod that cannot be, so that `up` fails: its lab is what the archive is of.
    std::fs::remove_file(&sysdump).expect("it was there");
    let fails = "apiVersion: v1\nkind: Pod\nmetadata: {name: fails, namespace: default}\nspec:\n  containers:\n  - {name: \
        main, image: nginx}\n";
    std::fs::write(&manifest, fails).expect("written");
    let said = step(&format!("examples/ci/test.sh {}", manifest.display()), sysdump.to_str().expect("plain"));
    assert!(!said.ok && said.out.contains("is gone"), "{said:?}");
    for word in ["will not become Ready", "describe pod fails", "agent-node1", "pod/fails"] {
        assert!(said.err.contains(word), "{word:?}: {said:?}");
    }
    assert!(std::fs::metadata(&sysdump).is_ok_and(|file| file.len() > 1000), "{said:?}");
    std::fs::remove_dir_all(&directory).expect("it was there");
}
