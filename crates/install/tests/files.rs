//! `deploy/` is what the program writes, and so what it applies. `UPDATE=1` writes it anew.

use std::path::Path;

#[test]
fn the_files_of_deploy_are_what_the_program_applies() {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy");
    if std::env::var_os("UPDATE").is_some() {
        install::write_files(&deploy).unwrap();
    }
    for (path, text) in install::files().unwrap() {
        let written = std::fs::read_to_string(deploy.join(&path)).unwrap_or_default();
        assert!(written == text, "deploy/{path} is another; UPDATE=1 cargo test -p install --test files");
    }
}

#[test]
fn plumb_yaml_is_read_as_what_is_applied() {
    let text = install::files().unwrap().swap_remove(0).1;
    let documents: Vec<serde_json::Value> = serde_saphyr::from_multiple(&text).unwrap();
    assert_eq!(documents, install::manifest::objects(&install::Settings::default()));
}

/// What the chart's expressions stand for is put in their place: the same objects.
#[test]
fn the_chart_with_its_values_is_what_is_applied() {
    let files = install::files().unwrap();
    let file = |path: &str| files.iter().find(|(name, _)| name == path).unwrap().1.clone();
    let values: serde_json::Value = serde_saphyr::from_str(&file("chart/values.yaml")).unwrap();
    let mut text = file("chart/templates/plumb.yaml");
    assert!(file("chart/templates/dns.yaml").contains("{{ splitList `,` .Values.dnsIP | first }}"));
    for (name, value) in values.as_object().unwrap() {
        text = text.replace(&format!("{{{{ .Values.{name} }}}}"), value.as_str().unwrap_or_default());
    }
    assert!(!text.contains("{{"), "an expression has no value");
    let documents: Vec<serde_json::Value> = serde_saphyr::from_multiple(&text).unwrap();
    let mut applied = install::manifest::objects(&install::Settings::default());
    applied.retain(|object| object["kind"] != "Service");
    assert_eq!(documents, applied);
}
