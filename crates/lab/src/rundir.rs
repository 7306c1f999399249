//! Where a lab keeps its files. Everything in it is the lab's, and `down` removes the whole of it.
//!
//! ```text
//! lab.json               the plan: name, nodes, API port, programs
//! anchor                 pid and start time of the anchor, as seen from outside
//! pids/<process>         the same for every other process, as seen from inside
//! status.json            what the supervisor last saw
//! stopped/<process>      the supervisor leaves this process stopped
//! kubeconfig             for the user, mode 0600
//! credentials/           CA, certificate, tokens
//! api.sqlite             the API's objects (elsewhere with --data)
//! log/<process>.log
//! nodes/<node>/run       /run of the node; likewise etc-cni, var-lib-plumb; root is a mount point
//! ```

use std::ffi::OsStr;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result, anyhow, bail};
use watch::Misused;

/// The run directory of one lab; it may not exist yet.
#[derive(Clone, Debug)]
pub struct RunDir(PathBuf);

impl RunDir {
    /// The place for the lab of this name: below /run for root, below the user's own directories otherwise.
    pub fn of(name: &str) -> Result<Self> {
        check_name(name).map_err(Misused::of)?;
        Ok(Self(base()?.join(name)))
    }

    /// As given to the lab's own processes.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn pid_file(&self, process: &str) -> PathBuf {
        self.0.join("pids").join(process)
    }

    pub fn stopped(&self, process: &str) -> PathBuf {
        self.0.join("stopped").join(process)
    }

    /// There while `plumb lab up` waits for the supervisor to wire the lab as it should be.
    pub fn rewire(&self) -> PathBuf {
        self.0.join("rewire")
    }

    pub fn log(&self, process: &str) -> PathBuf {
        self.0.join("log").join(format!("{process}.log"))
    }

    pub fn node(&self, node: &str) -> PathBuf {
        self.0.join("nodes").join(node)
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.0.join("kubeconfig")
    }

    /// kubectl of this lab, for advice that can be pasted: the environment's own, where that is this lab's.
    pub fn kubectl(&self) -> String {
        let told = std::env::var_os("KUBECONFIG").unwrap_or_default();
        kubectl(&told, &self.kubeconfig())
    }

    /// The lab's name, as its directory has it.
    pub fn name(&self) -> String {
        self.0.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Beside the directory, which comes and goes. No lab has a name with a dot.
    pub fn lock(&self) -> PathBuf {
        self.0.with_file_name(format!(".{}.lock", self.name()))
    }

    /// Makes the directory and its parts, closed to other users.
    pub fn create(&self, nodes: &[String]) -> Result<()> {
        for part in ["pids", "stopped", "log", "nodes"] {
            make_dir(&self.0.join(part))?;
        }
        for node in nodes {
            for part in ["run", "run/netns", "etc-cni", "etc-cni/net.d", "var-lib-plumb", "root"] {
                make_dir(&self.node(node).join(part))?;
            }
        }
        Ok(())
    }

    /// Removes everything. A directory that is not there is no error.
    pub fn remove(&self) -> Result<()> {
        match fs::remove_dir_all(&self.0) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(e).with_context(|| format!("remove the lab's directory {}", self.0.display()))
            }
            _ => Ok(()),
        }
    }

    /// The last lines of a process's log, for messages. A line that was said many times on end stands once, with the count.
    pub fn last_lines(&self, process: &str, count: usize) -> String {
        let text = fs::read(self.log(process)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let lines: Vec<_> = lines.chunk_by(|one, next| one == next).collect();
        let said = lines.iter().skip(lines.len().saturating_sub(count)).map(|same| match same {
            [line] => format!("    {line}\n"),
            _ => format!("    {} ({} times)\n", same[0], same.len()),
        });
        said.collect()
    }
}

pub fn make_dir(path: &Path) -> Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|error| refused(error, path))
}

/// What the lab's files lie below cannot be written.
pub fn refused(error: io::Error, path: &Path) -> Error {
    let next = match error.kind() {
        ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied | ErrorKind::StorageFull => {
            next(kernel::own::is_root(), kernel::own::has_all_users())
        }
        _ => "",
    };
    anyhow!("make {}: {error}{next}", path.display())
}

/// `of_machine`: of the first user namespace.
fn next(root: bool, of_machine: bool) -> &'static str {
    match root {
        true if !of_machine => {
            "; this is root of a user namespace only (unshare -r, a rootless container), to whom the machine's /run does not \
             belong: run plumb as yourself, outside of it, since an ordinary user's lab makes a user namespace of its own; or \
             give this one a /run as well: unshare -rm sh -c 'mount -t tmpfs tmpfs /run && exec plumb lab up'"
        }
        true => {
            "; root's labs keep their files below /run, which has to be writable: mount -t tmpfs tmpfs /run (for a \
             container: docker run --tmpfs /run)"
        }
        false => {
            "; labs keep their files below XDG_RUNTIME_DIR, or HOME where that is not set: set XDG_RUNTIME_DIR to a \
             directory of yours that can be written"
        }
    }
}

/// The directory that holds all labs of this user.
pub fn base() -> Result<PathBuf> {
    if kernel::own::is_root() {
        return Ok("/run/plumb/lab".into());
    }
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(dir) = set("XDG_RUNTIME_DIR").filter(|dir| dir.is_dir()) {
        return Ok(dir.join("plumb"));
    }
    match set("HOME") {
        Some(home) => Ok(home.join(".local/state/plumb/lab")),
        None => {
            bail!("no place for the lab's files: neither XDG_RUNTIME_DIR nor HOME is set; set one of them")
        }
    }
}

fn kubectl(told: &OsStr, kubeconfig: &Path) -> String {
    let same =
        |path: PathBuf| path == kubeconfig || path.canonicalize().ok() == kubeconfig.canonicalize().ok();
    // Of several the first one counts.
    match std::env::split_paths(told).next().filter(|path| !path.as_os_str().is_empty()).is_some_and(same) {
        true => "kubectl".to_owned(),
        false => format!("kubectl --kubeconfig {}", kubeconfig.display()),
    }
}

/// The lab whose kubeconfig is among these: a list of files as KUBECONFIG holds it. It may have ended: whoever starts
/// it anew finds it by the same name. That of another user's lab is refused: the lab of that name here is another one.
pub fn named_by(kubeconfigs: &OsStr, base: &Path) -> Result<Option<String>> {
    let base = base.canonicalize().unwrap_or_else(|_| base.to_owned());
    let name_in = |path: PathBuf| {
        // A link to it is as good.
        let path = path.canonicalize().unwrap_or(path);
        let lab = path.parent().filter(|_| path.file_name().is_some_and(|name| name == "kubeconfig"))?;
        let name = lab.file_name()?.to_str().filter(|name| check_name(name).is_ok())?;
        match lab.parent()? == base {
            true => Some(Ok(name.to_owned())),
            false => is_lab(lab).then(|| {
                Err(anyhow!(
                    "KUBECONFIG is that of lab {name} in {}, and this user's labs are in {}: run this as the lab's user (with \
                     the same XDG_RUNTIME_DIR), or name a lab of yours with --name",
                    lab.display(),
                    base.display()
                ))
            }),
        }
    };
    std::env::split_paths(kubeconfigs).find_map(name_in).transpose()
}

/// By the file that every lab has.
fn is_lab(directory: &Path) -> bool {
    directory.join("lab.json").exists()
}

/// The name becomes a directory and part of socket paths, which hold 107 bytes.
fn check_name(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > 30 || !name.chars().all(plain) || name.starts_with('-') {
        bail!("lab name {name:?}: use 1 to 30 lower-case letters, digits and '-', not starting with '-'");
    }
    Ok(())
}

/// Writes beside and renames: a reader sees the old file or the new one, never a half.
pub fn write_whole(path: &Path, text: &str) -> Result<()> {
    let beside = path.with_extension(format!("new-{}", std::process::id()));
    fs::write(&beside, text)
        .and_then(|()| fs::rename(&beside, path))
        .with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_leave_the_directory_are_refused() {
        for bad in ["", "..", "a/b", "-x", "A", &"x".repeat(31)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        assert!(check_name("demo-2").is_ok());
    }

    #[test]
    fn root_of_a_user_namespace_is_not_sent_to_root_of_the_machine() {
        let mapped = next(true, false);
        assert!(mapped.contains("root of a user namespace only (unshare -r"), "{mapped}");
        assert!(mapped.contains("run plumb as yourself") && mapped.contains("unshare -rm sh -c"), "{mapped}");
        assert!(next(true, true).contains("mount -t tmpfs tmpfs /run (for a container"));
        assert!(next(false, true).contains("set XDG_RUNTIME_DIR"));
    }

    #[test]
    fn advice_names_the_kubeconfig_that_kubectl_would_not_take_by_itself() {
        let ours = Path::new("/run/plumb/lab/ci/kubeconfig");
        let other = "kubectl --kubeconfig /run/plumb/lab/ci/kubeconfig";
        for (told, words) in [
            ("/run/plumb/lab/ci/kubeconfig", "kubectl"),
            ("/run/plumb/lab/ci/kubeconfig:/etc/passwd", "kubectl"),
            ("/etc/passwd:/run/plumb/lab/ci/kubeconfig", other),
            ("", other),
        ] {
            assert_eq!(kubectl(OsStr::new(told), ours), words, "{told}");
        }
    }

    #[test]
    fn a_lab_is_known_by_its_kubeconfig() {
        for (kubeconfigs, lab) in [
            ("/run/plumb/lab/ci/kubeconfig", Some("ci")),
            (
                "/home/me/.kube/config:/run/plumb/lab/ci/kubeconfig:/run/plumb/lab/other/kubeconfig",
                Some("ci"),
            ),
            ("/home/me/.kube/config", None),
            ("/run/plumb/lab/ci/log/kubeconfig", None),
            ("/run/plumb/lab/../kubeconfig", None),
            ("", None),
        ] {
            let found =
                named_by(OsStr::new(kubeconfigs), Path::new("/run/plumb/lab")).expect("nobody else's");
            assert_eq!(found.as_deref(), lab, "{kubeconfigs}");
        }
        let other = std::env::temp_dir().join(format!("plumb-other-{}", std::process::id())).join("ci");
        fs::create_dir_all(&other).and_then(|()| fs::write(other.join("lab.json"), "")).expect("written");
        let refused = named_by(other.join("kubeconfig").as_os_str(), Path::new("/run/plumb/lab"));
        assert!(refused.expect_err("another user's").to_string().contains("lab ci in "));
        fs::remove_dir_all(other.parent().expect("its base")).expect("it was there");
    }
}
