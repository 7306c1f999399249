//! Owns: the way into a cluster and out of it: manifests, chart, image, `plumb install` and `plumb uninstall`.
//! Never: what an agent does on a node; a second source of any manifest.
//! In → Out: a kubeconfig and what was chosen → objects of the API, agents that run, or what is in the way.
//! Read first: [`manifest::objects`], then [`run`].

mod files;
pub mod image;
pub mod manifest;
mod settings;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args as ClapArgs;

pub use settings::Settings;

/// `plumb install`
#[derive(Clone, Debug, ClapArgs)]
pub struct Args {
    /// Print the objects instead of applying them
    #[arg(long)]
    print: bool,
    /// Write plumb.yaml and the chart into this directory
    #[arg(long, hide = true)]
    write_files: Option<PathBuf>,
}

pub fn run(args: Args) -> Result<ExitCode> {
    if let Some(directory) = &args.write_files {
        write_files(directory)?;
    } else if args.print {
        print!("{}", files::yaml(&Settings::default())?);
    }
    Ok(ExitCode::SUCCESS)
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
