//! `plumb bench idle`: a process that holds a TLS client on a tokio runtime and does nothing: what any process of
//! this kind weighs.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::lab::pods;

#[derive(clap::Args, Debug)]
pub struct Args {
    #[arg(long)]
    kubeconfig: PathBuf,
}

const READY: &str = "ready";

/// Asks the API once, says so, and stays until its input ends.
pub fn run(args: &Args) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let client = runtime.block_on(async {
        let client = pods::client(&args.kubeconfig).await?;
        client.apiserver_version().await?;
        Ok::<_, anyhow::Error>(client)
    })?;
    let mut out = std::io::stdout();
    writeln!(out, "{READY}")?;
    out.flush()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    drop(client);
    Ok(())
}

/// Such a process; it ends with the value.
pub struct Idle(Child);

impl Idle {
    pub fn start(kubeconfig: &Path) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["bench", "idle", "--kubeconfig"]).arg(kubeconfig);
        let mut idle = Self(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?);
        let out = idle.0.stdout.take().context("its output is a pipe")?;
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line)?;
        ensure!(line.trim_end() == READY, "the idle process did not come up");
        Ok(idle)
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
