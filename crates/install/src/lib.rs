//! Owns: the way into a cluster and out of it: manifests, chart, image, `plumb install` and `plumb uninstall`.
//! Never: what an agent does on a node; a second source of any manifest.
//! In → Out: a kubeconfig and what was chosen → objects of the API, agents that run, or what is in the way.
//! Read first: [`manifest::objects`], then `install::install`.

// Its `println!` does not panic when a reader goes.
#[macro_use]
extern crate kernel;

mod cluster;
mod connect;
mod files;
mod findings;
mod given;
pub mod image;
mod install;
mod jobs;
pub mod manifest;
pub mod node_check;
mod objects;
mod progress;
mod settings;
mod uninstall;

use std::future::Future;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};

pub use connect::{Reach, explain};
pub use install::Args;
pub use progress::readiness;
pub use settings::Settings;
pub use uninstall::Args as UninstallArgs;

/// `plumb install`
pub fn run(args: &Args) -> Result<ExitCode> {
    match &args.write_files {
        Some(directory) => write_files(directory).map(|()| ExitCode::SUCCESS),
        None => block_on(install::install(args)),
    }
}

/// `plumb uninstall`
pub fn run_uninstall(args: &UninstallArgs) -> Result<ExitCode> {
    block_on(uninstall::uninstall(args))
}

fn block_on(work: impl Future<Output = Result<ExitCode>>) -> Result<ExitCode> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

/// The files of `deploy/` by their path in it.
pub fn files() -> Result<Vec<(String, String)>> {
    let mut all = vec![("plumb.yaml".to_owned(), files::plumb_yaml()?)];
    all.extend(files::chart()?.into_iter().map(|(path, text)| (format!("chart/{path}"), text)));
    Ok(all)
}

/// Writes [`files`] below a directory.
pub fn write_files(directory: &Path) -> Result<()> {
    for (path, text) in files()? {
        let path = directory.join(path);
        let parent = path.parent().context("a file has a directory")?;
        std::fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}
