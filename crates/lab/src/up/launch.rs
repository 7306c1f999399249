//! From nothing to a running anchor.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use apiserver::{Credentials, Identity};
use kernel::feature::{User, probe, refusal};
use kernel::mount::Mount;
use kernel::process::{Ended, IdMap, Namespaces, Process, Spawn};
use types::{Families, Family, range};
use watch::Misused;

use super::{Options, check_nodes};
use crate::adopt;
use crate::plan::{self, API_PORT, Plan};
use crate::rundir::RunDir;
use crate::share::Share;

/// What the lab is to be. The listener keeps the port chosen for the API until the API itself is about to take it.
pub fn plan(options: &Options, run: &RunDir) -> Result<(Plan, TcpListener)> {
    let nodes = check_nodes(options.nodes.unwrap_or(2))?;
    let cni = plugin()?;
    for text in options.allow_sources.iter().flat_map(|all| all.split(',')) {
        range::source(text).map_err(|error| Misused(format!("--allow-sources {error}")))?;
    }
    let mounts = mounts(options)?;
    let data = match &options.data {
        Some(dir) => {
            std::fs::create_dir_all(dir)
                .with_context(|| format!("make the data directory {}", dir.display()))?;
            data_file(dir)?
        }
        None => run.file("api.sqlite"),
    };
    let port =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port on 127.0.0.1 for the API")?;
    let api_port = port.local_addr().context("find a free port")?.port();
    let families = options.families.unwrap_or_default();
    let (name, allow_sources) = (options.name.get()?, options.allow_sources.clone().unwrap_or_default());
    let node_cidr_mask_size = options.node_cidr_mask_size.unwrap_or_else(plan::usual_mask_size);
    let plan =
        Plan { name, nodes, families, allow_sources, node_cidr_mask_size, mounts, api_port, data, cni };
    Ok((plan, port))
}

/// `--mount`, read.
pub fn mounts(options: &Options) -> Result<Vec<Share>> {
    options.mounts.iter().map(|text| Share::parse(text)).collect()
}

/// The database in a data directory, by its full path: the lab's processes live in other directories.
pub fn data_file(dir: &Path) -> Result<PathBuf> {
    let dir = dir.canonicalize().with_context(|| format!("the data directory {}", dir.display()))?;
    Ok(dir.join("api.sqlite"))
}

/// The CNI executable stands beside this one, as the build leaves them and a package installs them.
fn plugin() -> Result<PathBuf> {
    let here = std::env::current_exe().context("find this program's own path")?;
    let path = here.with_file_name("plumb-cni");
    if !path.is_file() {
        bail!(
            "the CNI executable {} is missing: it belongs beside {}; build it with: cargo build --release -p cni-plugin",
            path.display(),
            here.display()
        );
    }
    Ok(path)
}

/// Whether this kernel can do what a lab asks of it: before anything is made. The question is asked by a process that is
/// started as the anchor will be: in a PID namespace with a /proc of its own, and as an ordinary user in a user namespace.
pub fn check_kernel(name: &str, families: Families) -> Result<()> {
    let (reader, writer) = std::io::pipe().context("make a pipe")?;
    let families = families.to_string();
    let check = || -> Result<Spawn, kernel::Error> {
        let check = ["lab", "check", "--name", name, "--families", &families];
        Spawn::this_program()?.args(check).file(2, &writer)
    };
    let check = match like_the_anchor(check()?)?.start() {
        Ok(check) => check,
        Err(error) if !kernel::own::is_root() => return Err(explain(name, &error)),
        // What root may not do, the check says best itself; where it finds nothing, this is all that is known.
        Err(error) => {
            let alone = check()?.start().map_err(|error| explain(name, &error))?;
            drop(writer);
            return said(reader, &alone, || Err(explain(name, &error)));
        }
    };
    drop(writer);
    said(reader, &check, || Ok(()))
}

/// What the check found, or what is to be when it found nothing.
fn said(reader: std::io::PipeReader, check: &Process, well: impl FnOnce() -> Result<()>) -> Result<()> {
    let said = std::io::read_to_string(reader).context("read what the check says")?;
    match check.wait().context("wait for the check")? {
        Ended::Code(0) => well(),
        _ => bail!("{}", said.trim_end()),
    }
}

/// `plumb lab check`, started by [`check_kernel`].
pub fn check(name: &str, families: Families) -> ExitCode {
    let with_ipv6 = families.list().contains(&Family::V6);
    let users: &[User] = if with_ipv6 { &[User::Lab, User::Ipv6] } else { &[User::Lab] };
    match refusal(&format!("lab {name}"), &probe(users)) {
        None => ExitCode::SUCCESS,
        Some(refusal) => {
            eprintln!("{refusal}");
            ExitCode::FAILURE
        }
    }
}

/// Writes what the lab's processes read, and starts the anchor.
pub fn start(run: &RunDir, plan: &Plan) -> Result<()> {
    plan.write(run)?;
    kubeconfigs(run, plan)?;
    let anchor = Spawn::this_program()?
        .args(["lab", "anchor", "--run"])
        .arg(run.path())
        .env(types::wire::LAB_VARIABLE, &plan.name)
        .directory("/")
        .new_session()
        .output_to(run.log("anchor"))?;
    let anchor = like_the_anchor(anchor)?.start().map_err(|error| explain(&plan.name, &error))?;
    adopt::note(&run.file("anchor"), &anchor)
}

/// Pid 1 of a PID namespace, which its /proc shows; an ordinary user's is root of a user namespace.
fn like_the_anchor(spawn: Spawn) -> Result<Spawn, kernel::Error> {
    let spawn = spawn
        .new_namespaces(Namespaces::PID | Namespaces::MOUNT)
        .mount(Mount::private("/")?)
        .mount(Mount::proc("/proc")?);
    if kernel::own::is_root() {
        return Ok(spawn);
    }
    let (uid, gid) = kernel::own::ids();
    let root = |outside| [IdMap { inside: 0, outside, count: 1 }];
    Ok(spawn.new_user_namespace(&root(uid), &root(gid)))
}

/// The supervisor wires a lab in milliseconds; one that is just being started again after its end takes more.
const REWIRED: Duration = Duration::from_secs(10);

/// A living lab: certificates and kubeconfigs may have been lost, links and routes of its nodes taken away; processes are
/// the supervisor's, which wires, too.
pub fn mend(run: &RunDir) -> Result<()> {
    let plan = Plan::read(run)?;
    run.create(&plan.node_names())?;
    kubeconfigs(run, &plan)?;
    let asked = run.rewire();
    std::fs::write(&asked, "").with_context(|| format!("write {}", asked.display()))?;
    let deadline = Instant::now() + REWIRED;
    while asked.exists() && Instant::now() < deadline && adopt::anchor(run)?.is_some() {
        std::thread::sleep(Duration::from_millis(10));
    }
    // That of an earlier version knows no such request; whether all is well shows by what is waited for next.
    let _ = std::fs::remove_file(&asked);
    Ok(())
}

fn kubeconfigs(run: &RunDir, plan: &Plan) -> Result<()> {
    let credentials = Credentials::open(&run.file("credentials"))?;
    let outer = format!("https://{}:{}", Ipv4Addr::LOCALHOST, plan.api_port);
    let inner = format!("https://{}", SocketAddr::new(plan::api(plan.families.primary()), API_PORT));
    let cluster = format!("plumb-{}", plan.name);
    credentials.write_kubeconfig(&run.kubeconfig(), &cluster, &outer, &Identity::Admin)?;
    for node in plan.node_names() {
        let dir = run.node(&node).join("run");
        let agent = Identity::Agent(node.clone());
        credentials.write_kubeconfig(&dir.join("agent.kubeconfig"), &cluster, &inner, &agent)?;
        credentials.write_kubeconfig(
            &dir.join("kubelet.kubeconfig"),
            &cluster,
            &inner,
            &Identity::Kubelet(node),
        )?;
    }
    Ok(())
}

/// Why an ordinary user may not make namespaces, and what helps.
fn explain(name: &str, error: &kernel::Error) -> anyhow::Error {
    let what = "start the lab's own PID namespace";
    let kind = error.errno().map(|errno| std::io::Error::from_raw_os_error(errno).kind());
    // Such as a limit of the machine's, which is root's to raise.
    if kernel::own::is_root() && kind != Some(ErrorKind::PermissionDenied) {
        return anyhow!(error.to_string()).context(what);
    }
    let error = anyhow!(error.plain()).context(what);
    if kernel::own::is_root() {
        let next = kernel::feature::next_step(&format!("{error:#}"));
        return error.context(format!("root may not do here what a lab needs\n  next: {next}"));
    }
    let value = |path: &str| std::fs::read_to_string(Path::new("/proc/sys").join(path)).unwrap_or_default();
    let cause = if value("kernel/apparmor_restrict_unprivileged_userns").trim() == "1" {
        "AppArmor restricts user namespaces of ordinary users (Ubuntu 23.10 and later)\n  \
         allow them until the next boot:  sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
    } else if value("kernel/unprivileged_userns_clone").trim() == "0" {
        "user namespaces of ordinary users are switched off\n  \
         allow them until the next boot:  sudo sysctl -w kernel.unprivileged_userns_clone=1"
    } else if value("user/max_user_namespaces").trim() == "0" {
        "this system allows no user namespaces\n  \
         allow them until the next boot:  sudo sysctl -w user.max_user_namespaces=10000"
    } else {
        "the kernel refuses user namespaces here (a container's seccomp profile?)"
    };
    error.context(format!("{cause}\n  or run the lab as root: sudo plumb lab up --name {name}"))
}
