//! Holders: processes that do nothing but keep namespaces, for the underlay, the outside, and each node.
//!
//! A node's holder first builds the node's view of the file system. The machine's files are all there, except
//! where the node has its own:
//!
//! ```text
//! /                 tmpfs
//! ├─ bin usr home … bind mounts of the machine's, with all that is mounted below
//! ├─ proc           of the lab's PID namespace         ├─ sys   of the node's network namespace
//! ├─ run            <run dir>/nodes/<node>/run; program/plumb: this program, read-only; program/spare/ping: a link to it
//! ├─ etc            links to /.host/etc/*, but own:    cni/ resolv.conf hosts hostname
//! ├─ var/lib        links to /.host/var/lib/*, but own: plumb/
//! ├─ opt            links to /.host/opt/*, but own:    cni/bin/plumb-cni
//! ├─ .host/{etc,var,opt}
//! └─ …              what `up --mount DIR:PATH` names
//! ```
//! Links rather than overlayfs: they need no kernel feature, work in a user namespace, and over a root that is
//! an overlay itself.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use kernel::mount::Mount;

use crate::plan::{self, Plan, node_address, node_number};
use crate::rundir::RunDir;
use crate::share::Share;

/// `plumb lab hold`
#[derive(clap::Args, Debug)]
pub struct Options {
    #[arg(long)]
    pub run: PathBuf,
    /// underlay, outside, or a node
    pub what: String,
}

/// The line that tells the supervisor that the namespaces are as they should be.
pub const READY: &str = "ready";

/// Builds what there is to build, says so, and stays.
pub fn run(options: &Options) -> Result<ExitCode> {
    let run = RunDir::at(&options.run);
    if node_number(&options.what).is_some() {
        let plan = Plan::read(&run)?;
        Root { run: &run, plan: &plan, node: &options.what, new: run.node(&options.what).join("root") }
            .build()
            .with_context(|| format!("make the file system of {}", options.what))?;
    }
    let mut out = std::io::stdout();
    writeln!(out, "{READY}").and_then(|()| out.flush()).context("tell the supervisor")?;
    loop {
        std::thread::park();
    }
}

struct Root<'a> {
    run: &'a RunDir,
    plan: &'a Plan,
    node: &'a str,
    new: PathBuf,
}

/// Where a node has this program for its kubelet.
pub const PROGRAM: &str = "/run/program/plumb";

/// Directories of the machine that are not taken over as they are.
const OWN: [&str; 6] = ["proc", "sys", "run", "etc", "var", "opt"];

impl Root<'_> {
    fn build(&self) -> Result<()> {
        Mount::tmpfs(&self.new, "mode=755")?.apply()?;
        self.take_over_directories()?;
        for name in ["proc", "sys", "run", "etc", "var", "opt", ".host/etc", ".host/var", ".host/opt"] {
            make_dir(&self.at(name))?;
        }
        bind("/proc", &self.at("proc"))?;
        // In a container whose own /sys is restricted the kernel refuses a fresh one; nothing of ours needs it.
        if Mount::sysfs(self.at("sys"))?.apply().is_err() {
            bind("/sys", &self.at("sys"))?;
        }
        let files = self.run.node(self.node);
        bind(files.join("run"), &self.at("run"))?;
        for name in ["etc", "var", "opt"] {
            let source = Path::new("/").join(name);
            if source.is_dir() {
                bind(source, &self.at(".host").join(name))?;
            }
        }
        for Share { from, at } in &self.plan.mounts {
            let target = self.new.join(at.strip_prefix("/").unwrap_or(at));
            // Of the machine it is there already: Share::parse.
            make_dir(&target)?;
            bind(from, &target)?;
        }
        self.hide_the_lab()?;
        self.program(&files)?;
        self.etc(&files)?;
        self.var(&files)?;
        self.opt()?;
        Mount::pivot_root(&self.new)?.apply()?;
        Ok(())
    }

    fn at(&self, name: &str) -> PathBuf {
        self.new.join(name)
    }

    /// The directory that contains our own mount point goes first: its copy then shows only an empty tmpfs there
    /// and not all that is still to be mounted.
    fn take_over_directories(&self) -> Result<()> {
        let mut entries = fs::read_dir("/").context("list /")?.collect::<Result<Vec<_>, _>>()?;
        entries.sort_by_key(|entry| !self.new.starts_with(entry.path()));
        for entry in entries {
            let (name, kind) = (entry.file_name(), entry.file_type()?);
            let target = self.new.join(&name);
            if OWN.iter().any(|own| name == *own) || name == ".host" {
                continue;
            } else if kind.is_symlink() {
                copy_link(&entry.path(), &target)?;
            } else if kind.is_dir() {
                make_dir(&target)?;
                bind(entry.path(), &target)?;
            }
        }
        Ok(())
    }

    /// The lab's own files (an administrator's kubeconfig among them) are none of a pod's business, and of no other
    /// node's. Below /run they do not show anyway; below /var (a home in /var/home) they do by /.host.
    fn hide_the_lab(&self) -> Result<()> {
        let Some(labs) = self.run.path().parent() else { return Ok(()) };
        let inside = labs.strip_prefix("/").unwrap_or(labs);
        let shared = self.plan.mounts.iter().filter_map(|Share { from, at }| {
            // `from` is without links.
            let labs = labs.canonicalize().unwrap_or_else(|_| labs.to_owned());
            let inside = labs.strip_prefix(from).ok()?.to_owned();
            Some(self.new.join(at.strip_prefix("/").unwrap_or(at)).join(inside))
        });
        for shown in [self.new.join(inside), self.at(".host").join(inside)].into_iter().chain(shared) {
            if shown.is_dir() {
                Mount::tmpfs(shown, "mode=755")?.apply()?;
            }
        }
        Ok(())
    }

    /// The kubelet starts what is in pods, and runs from a read-only mount for it: a pod may have its own program be
    /// /proc/self/exe, which is the starter's, and would write to it later (CVE-2019-5736).
    fn program(&self, files: &Path) -> Result<()> {
        let own = std::env::current_exe().context("find this program's own path")?;
        // What was there when the lab began may have been built anew since.
        let text = own.to_string_lossy().into_owned();
        let own = Path::new(text.strip_suffix(" (deleted)").unwrap_or(&text));
        let shown = self.new.join(PROGRAM.trim_start_matches('/'));
        make_dir(&files.join("run/program/spare"))?;
        let ping = files.join("run/program/spare/ping");
        if ping.symlink_metadata().is_err() {
            symlink("../plumb", &ping).with_context(|| format!("link {}", ping.display()))?;
        }
        write(&shown, "")?;
        bind(own, &shown)?;
        Ok(Mount::read_only(&shown)?.apply()?)
    }

    fn etc(&self, files: &Path) -> Result<()> {
        mirror(Path::new("/etc"), &self.at("etc"), &["cni", "resolv.conf", "hosts", "hostname"])?;
        let etc = self.at("etc");
        make_dir(&etc.join("cni"))?;
        bind(files.join("etc-cni"), &etc.join("cni"))?;
        let families = self.plan.families.list();
        let resolvers = families.iter().map(|family| format!("nameserver {}\n", plan::outside(*family)));
        write(&etc.join("resolv.conf"), &resolvers.collect::<String>())?;
        write(&etc.join("hostname"), &format!("{}\n", self.node))?;
        let mut hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost\n".to_owned();
        for family in families {
            hosts += &format!("{}\tapi\n", plan::api(*family));
            for (number, name) in (1..=self.plan.nodes).zip(self.plan.node_names()) {
                hosts += &format!("{}\t{name}\n", node_address(number, *family));
            }
        }
        write(&etc.join("hosts"), &hosts)
    }

    fn var(&self, files: &Path) -> Result<()> {
        mirror(Path::new("/var"), &self.at("var"), &["lib"])?;
        let lib = self.at("var/lib");
        make_dir(&lib)?;
        mirror(Path::new("/var/lib"), &lib, &["plumb"])?;
        make_dir(&lib.join("plumb"))?;
        bind(files.join("var-lib-plumb"), &lib.join("plumb"))
    }

    fn opt(&self) -> Result<()> {
        mirror(Path::new("/opt"), &self.at("opt"), &["cni"])?;
        let plugin = self.at("opt/cni/bin/plumb-cni");
        make_dir(&self.at("opt/cni/bin"))?;
        write(&plugin, "")?;
        bind(&self.plan.cni, &plugin)
    }
}

/// Links in `target` to every entry of the machine's directory `source`, except those in `own`.
fn mirror(source: &Path, target: &Path, own: &[&str]) -> Result<()> {
    let Ok(entries) = fs::read_dir(source) else { return Ok(()) };
    let host = Path::new("/.host").join(source.strip_prefix("/").unwrap_or(source));
    for entry in entries {
        let entry = entry.with_context(|| format!("list {}", source.display()))?;
        let name = entry.file_name();
        if own.iter().any(|own| name == *own) {
            continue;
        }
        let link = target.join(&name);
        match entry.file_type() {
            Ok(kind) if kind.is_symlink() => copy_link(&entry.path(), &link)?,
            _ => symlink(host.join(&name), &link).with_context(|| format!("link {}", link.display()))?,
        }
    }
    Ok(())
}

fn copy_link(from: &Path, to: &Path) -> Result<()> {
    let target = fs::read_link(from).with_context(|| format!("read the link {}", from.display()))?;
    symlink(target, to).with_context(|| format!("link {}", to.display()))
}

fn bind(source: impl AsRef<Path>, target: &Path) -> Result<()> {
    Ok(Mount::bind(source, target, true)?.apply()?)
}

fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("make the directory {}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}
