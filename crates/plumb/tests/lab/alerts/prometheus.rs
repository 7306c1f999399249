//! Debian's Prometheus (tools/prometheus.sh) on a node of a lab, as a cluster's own would be: it scrapes every agent at
//! the address of its node and evaluates the rules that Plumb ships.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::cluster::{Lab, plumb, repository, run, wait_for};
use crate::operate::Scratch;

/// Node → alerts that fire there.
pub type Firing = BTreeMap<String, BTreeSet<String>>;

const PATIENCE: Duration = Duration::from_secs(60);
/// Where it runs; its pages are of this node's 127.0.0.1, at a port that the kernel chose.
const HOME: &str = "node1";

/// The rules that users get.
pub fn shipped() -> PathBuf {
    repository("deploy/prometheus/plumb.yaml")
}

/// A program of the package.
pub fn program(name: &str) -> PathBuf {
    let said = run(&mut Command::new(repository("tools/prometheus.sh")));
    assert!(said.ok, "tools/prometheus.sh: {said:?}");
    PathBuf::from(said.out.trim()).join(name)
}

/// The shipped rules with seconds for minutes in each `for:`. The expressions are what users get: their ranges need no
/// shortening, for what an agent has counted so far is what is in them.
fn hurried(rules: &str) -> String {
    let line = |line: &str| match line.trim_start().strip_prefix("for: ") {
        Some(minutes) => {
            let number = minutes.strip_suffix('m').filter(|number| number.parse::<u32>().is_ok());
            let number = number.unwrap_or_else(|| panic!("{line}: minutes are expected"));
            format!("    for: {number}s\n")
        }
        None => format!("{line}\n"),
    };
    rules.lines().map(line).collect()
}

/// Ends it when dropped, also when the test panics.
pub struct Prometheus<'a> {
    lab: &'a Lab,
    /// `plumb lab exec`, which ends with what it runs.
    child: Child,
    scratch: Scratch,
    url: String,
}

impl<'a> Prometheus<'a> {
    /// Scrapes the agents of so many nodes each second.
    pub fn start(lab: &'a Lab, nodes: u32) -> Self {
        let scratch = Scratch::new();
        let rules = fs::read_to_string(shipped()).expect("the shipped rules");
        let targets: Vec<String> = (1..=nodes).map(|node| format!("'{}'", instance(node))).collect();
        let config = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\n\
             rule_files: [rules.yaml]\n\
             scrape_configs: [{{job_name: plumb, static_configs: [{{targets: [{}]}}]}}]\n",
            targets.join(", ")
        );
        for (name, text) in [("rules.yaml", hurried(&rules)), ("config.yaml", config)] {
            fs::write(scratch.0.join(name), text).expect("the scratch directory can be written");
        }
        let child = spawn(lab, &scratch);
        // From here on dropping it ends it.
        let mut begun = Self { lab, child, scratch, url: String::new() };
        begun.url = wait_for("Prometheus listens", PATIENCE, || {
            let log = begun.log();
            let listening = log.lines().find(|line| line.contains("\"Listening on\""));
            let address = listening.and_then(|line| line.rsplit_once("address="));
            address.map(|(_, address)| format!("http://{address}")).ok_or(log)
        });
        begun
    }

    fn log(&self) -> String {
        fs::read_to_string(self.scratch.0.join("log")).unwrap_or_default()
    }

    /// What its HTTP API answers.
    pub fn ask(&self, path: &str) -> Result<Value, String> {
        let url = format!("{}/api/v1/{path}", self.url);
        let said = self.lab.node_demo(HOME, &["get", "--timeout", "10", &url]).or_missing()?;
        let answer: Value = serde_json::from_str(&said).map_err(|error| format!("{error}: {said}"))?;
        if answer["status"] == "success" { Ok(answer["data"].clone()) } else { Err(answer.to_string()) }
    }

    /// An instant query whose only special characters are brackets → its values, by node.
    pub fn values(&self, query: &str) -> Result<BTreeMap<String, f64>, String> {
        let query = query.replace('[', "%5B").replace(']', "%5D");
        let data = self.ask(&format!("query?query={query}"))?;
        let series = data["result"].as_array().into_iter().flatten();
        let value = |one: &Value| one["value"][1].as_str()?.parse().ok();
        Ok(series.filter_map(|one| Some((node_of(&one["metric"])?, value(one)?))).collect())
    }

    pub fn firing(&self) -> Result<Firing, String> {
        let data = self.ask("alerts")?;
        let all = data["alerts"].as_array().ok_or_else(|| format!("no alerts: {data}"))?;
        let mut firing = Firing::new();
        for alert in all.iter().filter(|alert| alert["state"] == "firing") {
            let labels = &alert["labels"];
            let (Some(node), Some(name)) = (node_of(labels), labels["alertname"].as_str()) else {
                return Err(format!("an alert of no node: {alert}"));
            };
            firing.entry(node).or_default().insert(name.to_owned());
        }
        Ok(firing)
    }
}

impl Drop for Prometheus<'_> {
    fn drop(&mut self) {
        // Its number inside of the lab.
        let pid = fs::read_to_string(self.scratch.0.join("pid")).unwrap_or_default();
        let said = self.lab.node(HOME, &["kill", "-KILL", pid.trim()]);
        if !said.ok {
            eprintln!("Prometheus is not there, or ends with the lab: {said:?}");
            let _ = self.child.kill();
        }
        if std::thread::panicking() {
            let log = self.log();
            eprintln!("Prometheus said: {}", log.lines().rev().take(5).collect::<Vec<_>>().join("\n"));
        }
        let _ = self.child.wait();
    }
}

fn spawn(lab: &Lab, scratch: &Scratch) -> Child {
    let script = "cd $0 && echo $$ >pid && exec \"$1\" --config.file=config.yaml --storage.tsdb.path=data \
                  --web.listen-address=127.0.0.1:0";
    let log = File::create(scratch.0.join("log")).expect("the scratch directory can be written");
    let mut command = lab.node_command(HOME);
    command.args(["sh", "-c", script]).arg(&scratch.0).arg(program("prometheus"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command.spawn().unwrap_or_else(|error| panic!("{}: {error}", plumb().display()))
}

/// The label that Prometheus gives what it scrapes.
fn instance(node: u32) -> String {
    format!("192.168.1.{}:9475", node + 9)
}

fn node_of(labels: &Value) -> Option<String> {
    let number = labels["instance"].as_str()?.strip_prefix("192.168.1.")?.strip_suffix(":9475")?;
    Some(format!("node{}", number.parse::<u32>().ok()?.checked_sub(9)?))
}
