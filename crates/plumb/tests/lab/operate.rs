//! What an operator types: `plumb status`, also as `kubectl plumb`, on labs where something is wrong.

mod connectivity;
mod status;
mod sysdump;

use std::path::PathBuf;
use std::process::Command;

use crate::cluster::{Lab, Said, fresh_name, plumb, run};

/// `plumb ARGS` for this lab's cluster.
pub fn operate(lab: &Lab, args: &[&str]) -> Said {
    run(Command::new(plumb()).args(args).env("KUBECONFIG", &lab.kubeconfig))
}

/// A directory of this test alone, gone with it.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new() -> Self {
        let path = std::env::temp_dir().join(format!("plumb-operate-{}", fresh_name()));
        std::fs::create_dir_all(&path).expect("a directory below the temporary one");
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("{}: {error}", self.0.display());
        }
    }
}
