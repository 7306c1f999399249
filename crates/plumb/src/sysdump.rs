//! `plumb sysdump`: one archive that a maintainer can work from. Objects are cut to what the network needs to know
//! ([`reduce`]), so that no Secret, environment value, argument or annotation is ever in it; what was cut away is
//! blotted out of texts, too.
//!
//! ```text
//!   versions.json  status.json  failures.txt
//!   objects/KIND.json                      nodes, namespaces, pods, services, endpointslices, networkpolicies, events
//!   nodes/NODE/…                           what the agent tells: status, log, metrics, plan, drift, kernel state
//! ```

mod reduce;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use agent::report::Dump;
use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use http::Request;
use install::image::tar::Archive;
use kube::Client;
use serde_json::{Value, json};
use watch::Misused;

use crate::advice::{Advice, Cluster};
use crate::reach::Nodes;
use crate::status;
use reduce::Blots;

/// `plumb sysdump`
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Where to write it, - for the standard output [default: plumb-sysdump-TIME.tar.gz here]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    reach: install::Reach,
}

/// The kinds that nodes read, and the Events about them.
const KINDS: [(&str, &str); 7] = [
    ("nodes", "/api/v1/nodes"),
    ("namespaces", "/api/v1/namespaces"),
    ("pods", "/api/v1/pods"),
    ("services", "/api/v1/services"),
    ("endpointslices", "/apis/discovery.k8s.io/v1/endpointslices"),
    ("networkpolicies", "/apis/networking.k8s.io/v1/networkpolicies"),
    ("events", "/api/v1/events"),
];

/// A node with 10,000 Services writes for some seconds.
const PATIENCE: Duration = Duration::from_secs(60);
const AT_ONCE: usize = 8;

pub fn run(args: Args) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Advice::pasteable(&args.reach, runtime.block_on(dump(&args)))
}

async fn dump(args: &Args) -> Result<ExitCode> {
    let output = Output::of(args.output.as_deref());
    output.check(std::io::stdout().is_terminal())?;
    let cluster = Cluster::connect(&args.reach).await?;
    let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut files = Files::default();
    let api = get(&cluster.client, "/version").await?;
    // Where it cannot be written, a large cluster is not asked for everything first.
    let mut place = output.open(seconds)?;
    let versions = json!({ "plumb": env!("CARGO_PKG_VERSION"), "api": api, "time": seconds });
    files.json("versions.json", &versions)?;
    for (kind, path) in KINDS {
        match get(&cluster.client, path).await {
            Ok(list) => files.objects(kind, &list)?,
            Err(error) => files.failures.push(format!("{kind}: {}", watch::told(error.as_ref()))),
        }
    }
    if let Err(error) = files.nodes(&cluster).await {
        files.failures.push(format!("nodes' own view: {}", watch::told(error.as_ref())));
    }
    let count = files.texts.len();
    let failures = files.failures.clone();
    let bytes = files.pack()?;
    place.write(&bytes, &format!("{count} files"))?;
    failures.iter().for_each(|failure| eprintln!("· not in it: {failure}"));
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Where the archive goes, as it was asked for.
#[derive(Debug, PartialEq, Eq)]
enum Output<'a> {
    Here,
    Stdout,
    File(&'a Path),
}

impl<'a> Output<'a> {
    fn of(given: Option<&'a Path>) -> Self {
        match given {
            None => Self::Here,
            Some(path) if path.as_os_str() == STDOUT => Self::Stdout,
            Some(path) => Self::File(path),
        }
    }

    fn check(&self, terminal: bool) -> Result<()> {
        ensure!(
            *self != Self::Stdout || !terminal,
            Misused(
                "--output -: the archive is compressed, and the standard output is a terminal; give a file, or a pipe such as | \
                 tar -tzf -"
                    .into()
            )
        );
        Ok(())
    }

    fn open(&self, seconds: u64) -> Result<Place> {
        let path = match self {
            Self::Stdout => return Ok(Place::Stdout),
            Self::Here => PathBuf::from(format!("plumb-sysdump-{seconds}.tar.gz")),
            Self::File(path) => path.to_path_buf(),
        };
        // Names and addresses of a whole cluster are for who asked, not for everybody on this machine.
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
        let file = file.with_context(|| format!("write {}", path.display()))?;
        Ok(Place::File(file, path))
    }
}

/// The standard output, as tar and kubectl have it.
const STDOUT: &str = "-";

/// An open one.
#[derive(Debug)]
enum Place {
    Stdout,
    File(File, PathBuf),
}

impl Place {
    fn write(&mut self, bytes: &[u8], summary: &str) -> Result<()> {
        match self {
            Self::File(file, path) => {
                file.write_all(bytes).with_context(|| format!("write {}", path.display()))?;
                println!("{}: {summary}", path.display());
            }
            // Where it cannot be written, `main` says so at the end.
            Self::Stdout => {
                kernel::out::stdout().write_all(bytes).context("write the standard output")?;
                eprintln!("the standard output: {summary}");
            }
        }
        Ok(())
    }
}

async fn get(client: &Client, path: &str) -> Result<Value> {
    let answer = client.request(Request::get(path).body(Vec::new())?).await;
    answer.map_err(|error| install::explain(error, &format!("ask the API server for {path}")))
}

/// The archive before it is packed.
#[derive(Default)]
struct Files {
    texts: BTreeMap<String, String>,
    failures: Vec<String>,
    blots: Blots,
}

impl Files {
    fn json(&mut self, name: &str, value: &Value) -> Result<()> {
        self.texts.insert(name.to_owned(), serde_json::to_string_pretty(value)? + "\n");
        Ok(())
    }

    fn objects(&mut self, kind: &str, list: &Value) -> Result<()> {
        let items = list["items"].as_array().into_iter().flatten();
        let kept: Vec<Value> =
            items.filter_map(|object| reduce::reduce(kind, object, &mut self.blots)).collect();
        self.json(&format!("objects/{kind}.json"), &Value::Array(kept))
    }

    async fn nodes(&mut self, cluster: &Cluster) -> Result<()> {
        let status = status::look(cluster).await?;
        self.json("status.json", &serde_json::to_value(&status)?)?;
        let agents = Nodes::new(cluster).await?;
        let asked = status.nodes.iter().map(|line| {
            let agents = &agents;
            async move {
                let dump =
                    tokio::time::timeout(PATIENCE, agents.get::<Dump>(&line.node, "v1/node/dump")).await;
                (&line.node, dump)
            }
        });
        let dumps: Vec<_> = futures::stream::iter(asked).buffered(AT_ONCE).collect().await;
        for (node, dump) in dumps {
            match dump {
                Ok(Ok(dump)) => {
                    let files = dump.files.into_iter();
                    self.texts.extend(files.map(|(name, text)| (format!("nodes/{node}/{name}"), text)));
                    self.failures.extend(dump.failures.iter().map(|failure| format!("{node}: {failure}")));
                }
                Ok(Err(error)) => self.failures.push(format!("{node}: {}", watch::told(error.as_ref()))),
                Err(_) => self.failures.push(format!("{node}: no answer within {PATIENCE:?}")),
            }
        }
        Ok(())
    }

    /// Blots out what was cut away, and packs.
    fn pack(mut self) -> Result<Vec<u8>> {
        let failures = self.failures.iter().map(|failure| failure.clone() + "\n").collect();
        self.texts.insert("failures.txt".to_owned(), failures);
        let mut archive = Archive::default();
        let eraser = self.blots.eraser()?;
        for (name, text) in &self.texts {
            archive.file(&format!("plumb-sysdump/{name}"), eraser.apply(text).as_bytes(), 0o644)?;
        }
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        packed.write_all(&archive.finish())?;
        Ok(packed.finish()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dash_is_the_standard_output_and_no_file() {
        assert_eq!(Output::of(None), Output::Here);
        assert_eq!(Output::of(Some(Path::new("./-"))), Output::File(Path::new("./-")));
        let stdout = Output::of(Some(Path::new("-")));
        assert!(matches!(stdout.open(0), Ok(Place::Stdout)) && !Path::new("-").exists());
        assert!(stdout.check(false).is_ok() && Output::Here.check(true).is_ok());
        let said = stdout.check(true).expect_err("nobody reads an archive");
        assert!(said.is::<Misused>() && said.to_string().contains("a terminal; give a file"), "{said}");
    }
}
