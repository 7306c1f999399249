//! `plumb alerts`: the rules of `deploy/prometheus/plumb.yaml`, with the address of their pages.

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Result, ensure};

/// `plumb alerts`
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Where the pages of docs/runbooks are served, such as https://wiki.example/plumb/runbooks
    /// [default: their path in Plumb's repository]
    #[arg(long, value_name = "URL")]
    runbook_base: Option<String>,
    /// As a PrometheusRule in kube-system, for a Prometheus operator
    #[arg(long)]
    prometheus_rule: bool,
}

const RULES: &str = include_str!("../../../deploy/prometheus/plumb.yaml");
/// Where the pages are in the repository.
const PAGES: &str = "docs/runbooks";

pub fn run(args: &Args) -> Result<ExitCode> {
    let rules = rules(args.runbook_base.as_deref().unwrap_or(PAGES))?;
    let text = if args.prometheus_rule { object(&rules) } else { rules };
    let mut out = kernel::out::stdout();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn rules(base: &str) -> Result<String> {
    let base = base.trim_end_matches('/');
    let uri: Option<http::Uri> = base.parse().ok();
    let is_url = uri.is_some_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some() && uri.query().is_none()
    });
    // What ends the text of a YAML string, or is a template to Prometheus, is no part of a URL.
    ensure!(
        base == PAGES || is_url && !base.contains(['"', '\\', '{', '}', '#']),
        watch::Misused(format!(
            "--runbook-base {base:?} is no URL that a page's name can follow; give such as \
             https://wiki.example/plumb/runbooks"
        ))
    );
    let begin = |base: &str| format!("runbook_url: {base}/");
    Ok(RULES.replace(&begin(PAGES), &begin(base)))
}

/// The same rules below `spec`.
fn object(rules: &str) -> String {
    let head = "apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: plumb\n  namespace: kube-system\n\
                spec:\n";
    let lines = rules.lines().filter(|line| !line.starts_with('#'));
    lines.fold(head.to_owned(), |text, line| format!("{text}  {line}\n"))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn urls(rules: &Value) -> Vec<(String, String)> {
        let rules =
            rules["groups"].as_array().into_iter().flatten().flat_map(|group| group["rules"].as_array());
        let pair = |rule: &Value| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            (text(&rule["alert"]), text(&rule["annotations"]["runbook_url"]))
        };
        rules.flatten().map(pair).collect()
    }

    #[test]
    fn each_alert_has_the_whole_address_of_its_page() {
        assert_eq!(rules(PAGES).unwrap(), RULES);
        for base in ["https://wiki.example/plumb/runbooks/", "http://[2001:db8::1]:8080/a"] {
            let text = rules(base).unwrap();
            let read: Value = serde_saphyr::from_str(&text).unwrap();
            let found = urls(&read);
            assert!(found.len() > 10);
            for (alert, url) in &found {
                assert_eq!(*url, format!("{}/{alert}.md", base.trim_end_matches('/')));
            }
            let object: Value = serde_saphyr::from_str(&object(&text)).unwrap();
            assert_eq!((&object["kind"], &object["spec"]), (&"PrometheusRule".into(), &read));
        }
    }

    #[test]
    fn what_no_page_can_follow_is_refused() {
        for base in [
            "",
            "wiki",
            "/runbooks",
            "ftp://a/b",
            "https://",
            "https://a/?page=",
            "https://a/#b",
            "https://a b",
            "https://a/{{b}}",
        ] {
            assert!(rules(base).is_err_and(|error| error.to_string().contains("--runbook-base")), "{base}");
        }
    }
}
