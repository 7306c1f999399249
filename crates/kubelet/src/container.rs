//! Containers: from a container of a pod to the shim that runs it.

use std::io::{BufRead, BufReader};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Container, Pod};
use kernel::process::{Process, Spawn};
use thiserror::Error;

use crate::environment::{Place, command_line, environment};
use crate::record::{self, PodRecord, Sandbox};
use crate::runtime::Runtime;
use crate::shim::{self, Spec};

/// The image that runs a command of the machine.
const HOST: &str = "host";
/// The image that is this program: `plumb demo …`.
const DEMO: &str = "plumb.local/demo";

/// Why a container cannot be started; the variants are the `reason`s that kubectl shows.
#[derive(Debug, Error)]
pub enum Refusal {
    #[error(
        "image {0:?} cannot be had: this lab has no images; use `image: host` with a command of the machine, or \
         `image: plumb.local/demo`"
    )]
    ErrImagePull(String),
    #[error("{0}")]
    CreateContainerConfigError(String),
    /// Its command is not there or no program.
    #[error("{0}; correct `command`, or have it on this machine (`image: host`) or in the image")]
    StartError(String),
    /// Its directory cannot be entered.
    #[error(
        "{0}; correct `workingDir`, or have the directory on this machine, where the container may enter it"
    )]
    NoDirectory(String),
    #[error("{0:#}")]
    RunContainerError(anyhow::Error),
}

impl Refusal {
    pub fn reason(&self) -> &'static str {
        match self {
            Self::ErrImagePull(_) => "ErrImagePull",
            Self::CreateContainerConfigError(_) => "CreateContainerConfigError",
            Self::StartError(_) | Self::NoDirectory(_) => "StartError",
            Self::RunContainerError(_) => "RunContainerError",
        }
    }

    /// Only an edited pod can help. A command may be installed meanwhile, a directory be made.
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::StartError(_) | Self::NoDirectory(_) | Self::RunContainerError(_))
    }

    /// What a shim has said.
    fn of_shim(error: anyhow::Error) -> Self {
        let said = error.to_string();
        match (said.strip_prefix(shim::NO_PROGRAM), said.strip_prefix(shim::NO_DIRECTORY)) {
            (Some(why), _) => Self::StartError(why.to_owned()),
            (_, Some(why)) => Self::NoDirectory(why.to_owned()),
            (None, None) => Self::RunContainerError(error),
        }
    }
}

/// Starts one run of a container and returns its shim once the container's program runs.
pub async fn start(
    runtime: &Runtime,
    pod: &Pod,
    (record, sandbox): (&PodRecord, &Sandbox),
    container: &Container,
    attempt: u32,
) -> Result<Process, Refusal> {
    let place = Place { pod_addresses: &sandbox.addresses, node_addresses: &runtime.addresses };
    let mut spec = spec(pod, container, &place)?;
    spec.pod = record.path().to_owned();
    spec.host_network = sandbox.host_network;
    let run = record.container(&container.name, attempt);
    let started = tokio::task::spawn_blocking(move || {
        run.make()?;
        record::write_json(&run.file("spec.json"), &spec)?;
        // A run that never was is none: a pod whose pause process is just dying refuses every start until that is
        // noticed, and none of these is a restart.
        start_shim(&run).inspect_err(|_| run.forget())
    });
    match started.await {
        Ok(outcome) => outcome.map_err(Refusal::of_shim),
        Err(error) => Err(Refusal::RunContainerError(error.into())),
    }
}

fn spec(pod: &Pod, container: &Container, place: &Place<'_>) -> Result<Spec, Refusal> {
    let env = environment(pod, container, place).map_err(Refusal::CreateContainerConfigError)?;
    let mut words = command_line(container, &env);
    let has_command = container.command.as_ref().is_some_and(|command| !command.is_empty());
    let program = match image(container) {
        HOST if words.is_empty() => {
            let why =
                format!("container {}: image host has no command of its own; set `command`", container.name);
            return Err(Refusal::CreateContainerConfigError(why));
        }
        HOST => Some(words.remove(0)),
        // As an image whose entrypoint is `plumb demo`.
        DEMO if !has_command => {
            words.insert(0, "demo".into());
            None
        }
        DEMO => match words.remove(0) {
            plumb if plumb == "plumb" => None,
            other => Some(other),
        },
        _ => return Err(Refusal::ErrImagePull(container.image.clone().unwrap_or_default())),
    };
    Ok(Spec {
        program,
        args: words,
        env,
        directory: container.working_dir.clone().unwrap_or_else(|| "/".into()),
        pod: Default::default(),
        host_network: false,
        demo: is_demo(container),
    })
}

fn image(container: &Container) -> &str {
    let image = container.image.as_deref().unwrap_or_default();
    image.strip_suffix(":latest").unwrap_or(image)
}

/// Whether this program is in its image.
pub fn is_demo(container: &Container) -> bool {
    image(container) == DEMO
}

fn start_shim(run: &record::ContainerRecord) -> Result<Process> {
    let (reader, writer) = std::io::pipe().context("make a pipe")?;
    let shim = Spawn::this_program()?
        .argv0("plumb")
        .arg("shim")
        .arg(run.path())
        .new_session()
        .directory("/")
        .output_to(run.file("shim.log"))?
        .file(1, &writer)?
        .start_noted(|shim| record::note(&run.file("shim"), shim))
        .context("start the shim")?;
    drop(writer);
    let mut line = String::new();
    BufReader::new(reader).read_line(&mut line).context("hear from the shim")?;
    match line.trim_end() {
        shim::STARTED => Ok(shim),
        why => {
            let _ = shim.wait();
            let why = if why.is_empty() { "its shim ended without a word" } else { why };
            anyhow::bail!("{}", why.to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec_of(container: serde_json::Value) -> Result<Spec, Refusal> {
        let container: Container = serde_json::from_value(container).expect("a container");
        spec(
            &Pod::default(),
            &container,
            &Place { pod_addresses: &[], node_addresses: &["192.168.1.10".to_owned()] },
        )
    }

    #[test]
    fn images_decide_the_program() {
        let host =
            spec_of(serde_json::json!({"name": "c", "image": "host", "command": ["sleep"], "args": ["1"]}));
        let host = host.expect("starts");
        assert_eq!((host.program.as_deref(), host.args), (Some("sleep"), vec!["1".to_owned()]));
        let demo = spec_of(serde_json::json!({"name": "c", "image": "plumb.local/demo", "args": ["http"]}));
        let demo = demo.expect("starts");
        assert_eq!((demo.program, demo.args), (None, vec!["demo".to_owned(), "http".to_owned()]));
        let plumb = spec_of(
            serde_json::json!({"name": "c", "image": "plumb.local/demo", "command": ["plumb", "demo"]}),
        );
        assert_eq!(plumb.expect("starts").args, ["demo"]);
    }

    #[test]
    fn other_images_and_missing_commands_are_refused_with_the_reason() {
        let refusal = spec_of(serde_json::json!({"name": "c", "image": "nginx"})).expect_err("no images");
        assert_eq!(refusal.reason(), "ErrImagePull");
        assert!(refusal.to_string().contains("\"nginx\""), "{refusal}");
        let refusal = spec_of(serde_json::json!({"name": "c", "image": "host"})).expect_err("no command");
        assert_eq!(refusal.reason(), "CreateContainerConfigError");
    }

    #[test]
    fn a_command_that_is_not_there_is_told_from_a_start_that_may_succeed_later() {
        let missing = Spawn::program("plumb-no-such-command").start().expect_err("no such command");
        assert!(missing.is_of_program(), "{missing}");
        let refusal = Refusal::of_shim(anyhow::anyhow!("{}{missing}", shim::NO_PROGRAM));
        assert_eq!(refusal.reason(), "StartError");
        let said = refusal.to_string();
        assert!(said.contains("plumb-no-such-command") && !said.contains(shim::NO_PROGRAM), "{said}");
        let nowhere = Spawn::program("true").directory("/no/such/directory").start().expect_err("nowhere");
        assert!(!nowhere.is_of_program() && nowhere.is_of_directory(), "{nowhere}");
        assert!(!missing.is_of_directory(), "{missing}");
        let refusal = Refusal::of_shim(anyhow::anyhow!("{}{nowhere}", shim::NO_DIRECTORY));
        assert_eq!(refusal.reason(), "StartError");
        let said = refusal.to_string();
        assert!(said.contains("/no/such/directory") && said.contains("`workingDir`"), "{said}");
        assert_eq!(Refusal::of_shim(anyhow::anyhow!("no cgroup")).reason(), "RunContainerError");
    }
}
