//! The installation as files: one YAML stream, and a Helm chart.

use anyhow::{Context, Result};
use serde_json::Value;

use crate::cluster::OLDEST;
use crate::manifest::{self, ACCESS_REVIEWS, METRICS_CERT, NAMESPACE};
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
         description: A whole container network in one program\nkubeVersion: \">=1.{OLDEST}.0-0\"\n"
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
    let dns = dns.into_iter().map(of_each_family).collect::<Vec<_>>();
    let dns = stream(&dns)?.replace(&format!("\"{EACH_IP}\""), EACH_IP);
    let dns = format!("{{{{- if .Values.dnsService }}}}\n{dns}{{{{- end }}}}\n");
    Ok(vec![
        ("Chart.yaml", about),
        ("values.yaml", values),
        ("templates/dns.yaml", dns),
        ("templates/metrics.yaml", metrics()?),
        ("templates/plumb.yaml", conditional(&stream(&rest)?)),
        ("templates/NOTES.txt", notes()),
    ])
}

/// Of a value that says yes, whether it is written as text or not.
const SECURE: &str = "eq (toString .Values.secureMetrics) `true`";
const SECRET: &str = ".Values.metricsCertSecret";

/// What is in the manifest only where it was asked for.
fn conditional(text: &str) -> String {
    let of_secret = format!("name: {METRICS_CERT}");
    let text = only_if(SECURE, (0, &format!("  - {ACCESS_REVIEWS}")), text);
    let text = only_if(SECRET, (8, &format!("          {of_secret}")), &text);
    only_if(SECRET, (6, &format!("      - {of_secret}")), &text)
}

/// Puts the item of a list, so many spaces deep, that has this line under a condition.
fn only_if(condition: &str, (depth, holds): (usize, &str), text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let spaces = |line: &str| line.len() - line.trim_start().len();
    let begins = |line: &str| spaces(line) == depth && line.trim_start().starts_with("- ");
    let Some(at) = lines.iter().position(|line| *line == holds) else { return text.to_owned() };
    let (until, after) = lines.split_at(at + 1);
    let first = until.iter().rposition(|line| begins(line)).unwrap_or(at);
    let more = after.iter().position(|line| spaces(line) <= depth).unwrap_or(after.len());
    let mut all: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
    all.insert(at + 1 + more, "{{- end }}".into());
    all.insert(first, format!("{{{{- if {condition} }}}}"));
    all.join("\n") + "\n"
}

/// The Service and its ServiceMonitor, of which there are three.
fn metrics() -> Result<String> {
    let of = |secure: &str, secret: &str| {
        let (secure_metrics, metrics_cert_secret) = (secure.to_owned(), secret.to_owned());
        manifest::monitor(&Settings { secure_metrics, metrics_cert_secret, ..Settings::default() })
    };
    let [service, open] = of("false", "");
    let [_, signed] = of("true", &format!("{{{{ {SECRET} }}}}"));
    let [_, own] = of("true", "");
    let [service, signed, own, open] = [service, signed, own, open].map(|object| stream(&[object]));
    let [service, signed, own, open] = [service?, signed?, own?, open?];
    Ok(format!(
        "{{{{- if eq (toString .Values.serviceMonitor) `true` }}}}\n{service}\
         {{{{- if and ({SECURE}) {SECRET} }}}}\n{signed}{{{{- else if {SECURE} }}}}\n{own}{{{{- else }}}}\n{open}{{{{- end }}}}\n\
         {{{{- end }}}}\n"
    ))
}

/// A list, so it stands without quotes.
const EACH_IP: &str = "{{ splitList `,` .Values.dnsIP | toJson }}";

/// What the manifest makes of one address or two, said by the chart.
fn of_each_family(mut service: Value) -> Value {
    let spec = &mut service["spec"];
    spec["clusterIP"] = "{{ splitList `,` .Values.dnsIP | first }}".into();
    spec["clusterIPs"] = EACH_IP.into();
    spec["ipFamilyPolicy"] =
        "{{ ternary `RequireDualStack` `SingleStack` (contains `,` .Values.dnsIP) }}".into();
    service
}

pub fn is_dns_service(object: &Value) -> bool {
    object["kind"] == "Service"
}

fn notes() -> String {
    format!(
        "Agents of Plumb start on every node, in {NAMESPACE} whatever the release's namespace is:\n\
         \x20 kubectl -n {NAMESPACE} rollout status daemonset/plumb\n"
    )
}
