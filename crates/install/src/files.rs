//! The installation as files: one YAML stream, and a Helm chart.

use anyhow::{Context, Result};
use serde_json::Value;

use crate::manifest;
use crate::settings::{Settings, VALUES};

/// One YAML stream.
pub fn yaml(settings: &Settings) -> Result<String> {
    stream(&manifest::objects(settings))
}

fn stream(objects: &[Value]) -> Result<String> {
    let documents = objects.iter().map(|object| serde_saphyr::to_string(object).context("write YAML"));
    let documents: Vec<String> = documents.collect::<Result<_>>()?;
    Ok(documents.iter().map(|text| format!("---\n{}\n", text.trim_end())).collect())
}

/// `deploy/plumb.yaml`.
pub fn plumb_yaml() -> Result<String> {
    let head = "# Plumb, with its defaults: kubectl apply -f plumb.yaml\n\
                # Written by `plumb install --write-files`; to choose other values take `plumb install` or the chart.\n";
    Ok(format!("{head}{}", yaml(&Settings::default())?))
}

/// The chart's files by their path.
pub fn chart() -> Result<Vec<(&'static str, String)>> {
    let version = env!("CARGO_PKG_VERSION");
    let about = format!(
        "apiVersion: v2\nname: plumb\ntype: application\nversion: {version}\nappVersion: \"{version}\"\n\
         description: A whole container network in one program\nkubeVersion: \">=1.32.0-0\"\n"
    );
    let mut values = String::from("# Written by `plumb install --write-files`.\n");
    let mut defaults = Settings::default();
    for (name, about, field) in VALUES {
        let value = serde_json::to_string(field(&mut defaults))?;
        values.push_str(&format!("# {about}\n{name}: {value}\n"));
    }
    values.push_str(
        "# false: keep the Service kube-system/kube-dns that is there (CoreDNS's)\ndnsService: true\n",
    );
    let (dns, rest): (Vec<Value>, Vec<Value>) =
        manifest::objects(&Settings::of_chart()).into_iter().partition(is_dns_service);
    let dns = format!("{{{{- if .Values.dnsService }}}}\n{}{{{{- end }}}}\n", stream(&dns)?);
    Ok(vec![
        ("Chart.yaml", about),
        ("values.yaml", values),
        ("templates/dns.yaml", dns),
        ("templates/plumb.yaml", stream(&rest)?),
        ("templates/NOTES.txt", NOTES.to_owned()),
    ])
}

pub fn is_dns_service(object: &Value) -> bool {
    object["kind"] == "Service"
}

const NOTES: &str = "Agents of Plumb start on every node:\n\
    \x20 kubectl -n {{ .Release.Namespace }} rollout status daemonset/plumb\n";
