//! `deploy/` is what the program writes, and so what it applies. `UPDATE=1` writes it anew.

use std::collections::BTreeMap;
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

/// Whether a condition of the chart holds: `eq (toString .Values.x) `true``, `.Values.x`, or `and (…) .Values.x`.
fn holds(condition: &str, values: &BTreeMap<String, String>) -> bool {
    let value =
        |name: &str| values.get(name.trim_start_matches(".Values.")).unwrap_or_else(|| panic!("{name}"));
    if let Some(both) = condition.strip_prefix("and (") {
        let (first, second) = both.rsplit_once(") ").expect("two conditions");
        return holds(first, values) && holds(second, values);
    }
    match condition.strip_prefix("eq (toString ").and_then(|rest| rest.strip_suffix(") `true`")) {
        Some(name) => value(name) == "true",
        None => !value(condition).is_empty(),
    }
}

/// As much of Helm as the templates need; with the real one the cluster's tests compare.
fn rendered(template: &str, values: &BTreeMap<String, String>) -> String {
    // Of each open condition: whether its branch is taken, and whether one was.
    let mut open: Vec<(bool, bool)> = Vec::new();
    let mut text = String::new();
    for line in template.lines() {
        let action = line.strip_prefix("{{- ").and_then(|rest| rest.strip_suffix(" }}"));
        let is = |condition: &str| holds(condition, values);
        match (action, action.and_then(|action| action.split_once("if "))) {
            (_, Some(("", condition))) => open.push((is(condition), is(condition))),
            (_, Some(("else ", condition))) => {
                let (taken, done) = open.last_mut().expect("an open condition");
                *taken = !*done && is(condition);
                *done |= *taken;
            }
            (Some("else"), _) => {
                let (taken, done) = open.last_mut().expect("an open condition");
                *taken = !*done;
            }
            (Some("end"), _) => drop(open.pop().expect("an open condition")),
            _ if open.iter().all(|(taken, _)| *taken) => text += &format!("{line}\n"),
            _ => {}
        }
    }
    assert!(open.is_empty(), "a condition is not closed");
    for (name, value) in values {
        text = text.replace(&format!("{{{{ .Values.{name} }}}}"), value);
    }
    assert!(!text.contains("{{"), "an expression has no value: {text}");
    text
}

/// What the chart's expressions stand for is put in their place: the same objects, whatever is chosen.
#[test]
fn the_chart_with_its_values_is_what_is_applied() {
    let files = install::files().unwrap();
    let file = |path: &str| files.iter().find(|(name, _)| name == path).unwrap().1.clone();
    let defaults: BTreeMap<String, serde_json::Value> =
        serde_saphyr::from_str(&file("chart/values.yaml")).unwrap();
    assert!(file("chart/templates/dns.yaml").contains("{{ splitList `,` .Values.dnsIP | first }}"));
    for (secure, secret, monitor) in [
        ("false", "", "false"),
        ("true", "", "false"),
        ("true", "plumb-metrics-tls", "false"),
        ("false", "", "true"),
        ("true", "", "true"),
        ("true", "plumb-metrics-tls", "true"),
    ] {
        let mut values: BTreeMap<String, String> = defaults
            .iter()
            .map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned()))
            .collect();
        let chosen = [("secureMetrics", secure), ("metricsCertSecret", secret), ("serviceMonitor", monitor)];
        values.extend(chosen.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let mut documents: Vec<serde_json::Value> = Vec::new();
        for template in ["chart/templates/metrics.yaml", "chart/templates/plumb.yaml"] {
            let text = rendered(&file(template), &values);
            if !text.is_empty() {
                documents.extend(serde_saphyr::from_multiple::<serde_json::Value>(&text).unwrap());
            }
        }
        let settings = install::Settings {
            secure_metrics: secure.into(),
            metrics_cert_secret: secret.into(),
            service_monitor: monitor.into(),
            ..install::Settings::default()
        };
        let mut applied = install::manifest::objects(&settings);
        applied.retain(|object| object["metadata"]["name"] != "kube-dns");
        let by_name = |object: &serde_json::Value| object.to_string();
        documents.sort_by_key(by_name);
        applied.sort_by_key(by_name);
        assert_eq!(documents, applied, "{chosen:?}");
    }
}

/// What asks for more is there only where it was asked for.
#[test]
fn metrics_are_secured_and_found_when_asked() {
    let of = |secure: &str, secret: &str, monitor: &str| {
        let settings = install::Settings {
            secure_metrics: secure.into(),
            metrics_cert_secret: secret.into(),
            service_monitor: monitor.into(),
            ..install::Settings::default()
        };
        serde_json::Value::from(install::manifest::objects(&settings)).to_string()
    };
    let plain = of("false", "", "false");
    for word in ["subjectaccessreviews", "ServiceMonitor", "plumb-metrics", "metrics-cert", "https"] {
        assert!(!plain.contains(word), "{word}: {plain}");
    }
    let own = of("true", "", "true");
    for word in
        ["subjectaccessreviews", r#""scheme":"https""#, "bearerTokenFile", r#""insecureSkipVerify":true"#]
    {
        assert!(own.contains(word), "{word}: {own}");
    }
    let signed = of("true", "tls", "true");
    for word in [
        r#""serverName":"plumb-metrics.kube-system.svc""#,
        r#""ca":{"secret":{"key":"ca.crt","name":"tls"}}"#,
        r#""mountPath":"/etc/plumb/metrics""#,
        r#""secret":{"optional":true,"secretName":"tls"}"#,
    ] {
        assert!(signed.contains(word), "{word}: {signed}");
    }
    assert!(!signed.contains("insecureSkipVerify"), "{signed}");
}
