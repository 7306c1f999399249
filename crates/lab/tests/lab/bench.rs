//! What the tests stand on: the built programs, a lab that goes away with its value, kubectl, and conditions that are
//! waited for.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Nothing here takes this long, unless it does not happen at all.
pub const PATIENCE: Duration = Duration::from_secs(60);

const PROGRAMS: [&str; 2] = ["plumb", "plumb-cni"];

/// The directory with the programs: that of `PLUMB_BIN` (`./run test` sets it), else they are built from what lies
/// here now.
fn programs() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        if let Some(built) = std::env::var_os("PLUMB_BIN") {
            return Path::new(&built).parent().expect("PLUMB_BIN is a file in a directory").to_owned();
        }
        let test = std::env::current_exe().expect("own path");
        let target = test.parent().and_then(Path::parent).expect("target/debug/deps/test");
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "-p", "plumb", "-p", "cni-plugin", "--bins"]);
        if target.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().expect("run cargo").success(), "the programs do not build");
        target.to_owned()
    })
}

/// Who runs the lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// Whoever runs the tests.
    Own,
    /// Somebody without any right, also when the tests run as root.
    Ordinary,
}

/// A lab of a name of its own; dropping it takes it down.
pub struct Lab {
    pub name: String,
    user: User,
    home: PathBuf,
}

const NOBODY: u32 = 65_534;

pub fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}

impl Lab {
    /// Not started yet.
    pub fn new(user: User) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("t{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let home = std::env::temp_dir().join(format!("plumb-home-{name}"));
        std::fs::create_dir_all(&home).expect("make a home");
        if user == User::Ordinary && is_root() {
            std::os::unix::fs::chown(&home, Some(NOBODY), Some(NOBODY)).expect("give the home away");
            // Where the checkout is may be closed to others.
            for program in PROGRAMS {
                let (from, to) = (programs().join(program), home.join(program));
                std::fs::hard_link(&from, &to)
                    .or_else(|_| std::fs::copy(&from, &to).map(drop))
                    .expect("copy a program");
            }
        }
        Self { name, user, home }
    }

    /// Started, with two nodes.
    pub fn up(user: User) -> Self {
        let lab = Self::new(user);
        success(&lab.lab(&["up"]));
        lab
    }

    /// A path in the home of whoever runs the lab, which goes with the value.
    pub fn path(&self, name: &str) -> String {
        self.home.join(name).to_str().expect("a plain path").to_owned()
    }

    /// `plumb lab <verb> --name <this> …`
    pub fn lab(&self, args: &[&str]) -> Output {
        self.lab_command(args).output().expect("run plumb")
    }

    pub fn lab_command(&self, args: &[&str]) -> Command {
        let (verb, rest) = args.split_first().expect("a verb");
        let own = self.home.join("plumb");
        let mut command = self.command(if own.exists() { own } else { programs().join("plumb") });
        command.arg("lab").args(verb.split(' ')).args(["--name", &self.name]).args(rest);
        command
    }

    /// A program as the lab's user.
    fn command(&self, program: PathBuf) -> Command {
        let mut command = match self.user {
            User::Ordinary if is_root() => {
                let mut command = Command::new("setpriv");
                command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(program);
                command
            }
            _ => Command::new(program),
        };
        if self.user == User::Ordinary {
            command.env("HOME", &self.home).env_remove("XDG_RUNTIME_DIR");
        }
        command.current_dir("/");
        command
    }

    pub fn run_dir(&self) -> PathBuf {
        match (self.user, is_root()) {
            (User::Own, true) => Path::new("/run/plumb/lab").join(&self.name),
            (User::Ordinary, _) => self.home.join(".local/state/plumb/lab").join(&self.name),
            (User::Own, false) => match std::env::var_os("XDG_RUNTIME_DIR") {
                Some(dir) => PathBuf::from(dir).join("plumb").join(&self.name),
                None => {
                    let home = std::env::var_os("HOME").expect("HOME");
                    PathBuf::from(home).join(".local/state/plumb/lab").join(&self.name)
                }
            },
        }
    }

    /// `sh -c script` inside a node.
    pub fn in_node(&self, node: &str, script: &str) -> String {
        let output = self.lab(&["exec", node, "sh", "-c", script]);
        success(&output);
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    pub fn kubectl(&self, args: &[&str]) -> Output {
        Command::new(kubectl())
            .env("KUBECONFIG", self.run_dir().join("kubeconfig"))
            .args(args)
            .output()
            .expect("run kubectl")
    }

    /// What kubectl prints, which must succeed.
    pub fn ask(&self, args: &[&str]) -> String {
        let output = self.kubectl(args);
        success(&output);
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// Applies a manifest, which must succeed.
    pub fn apply(&self, manifest: &str) {
        success(&self.try_apply(manifest));
    }

    pub fn try_apply(&self, manifest: &str) -> Output {
        let path = self.home.join("manifest.yaml");
        std::fs::write(&path, manifest).expect("write a manifest");
        self.kubectl(&["apply", "-f", path.to_str().expect("a plain path")])
    }

    /// The number inside the lab of a process of the lab.
    pub fn pid(&self, process: &str) -> Option<u32> {
        let text = std::fs::read_to_string(self.run_dir().join("pids").join(process)).ok()?;
        text.split(' ').next()?.parse().ok()
    }

    /// kill -9, by the number inside, and waits until it is another process that has the role.
    pub fn kill_and_await_successor(&self, process: &str) {
        let before = self.pid(process).expect("it runs");
        self.in_node("node1", &format!("kill -KILL {before}"));
        await_that(&format!("{process} comes back"), || self.pid(process).is_some_and(|pid| pid != before));
    }

    /// A field of an object, by JSONPath.
    pub fn field(&self, object: &str, path: &str) -> String {
        let output = self.kubectl(&["get", object, "-o", &format!("jsonpath={{{path}}}")]);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn await_field(&self, object: &str, path: &str, value: &str) {
        await_that(&format!("{object} {path} = {value}"), || self.field(object, path) == value);
    }

    /// Every process whose environment says that it belongs to this lab.
    pub fn processes(&self) -> BTreeSet<u32> {
        let mark = format!("PLUMB_LAB={}", self.name);
        let entries = std::fs::read_dir("/proc").expect("list /proc").flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|pid| {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
        })
        .collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let down = self.lab(&["down"]);
        if !std::thread::panicking() {
            success(&down);
        }
        let _ = std::fs::remove_dir_all(&self.home);
    }
}

fn kubectl() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/kubectl.sh");
        let output = Command::new(script).output().expect("run tools/kubectl.sh");
        success(&output);
        String::from_utf8_lossy(&output.stdout).trim().into()
    })
}

/// Fails with everything that the command said.
#[track_caller]
pub fn success(output: &Output) {
    assert!(output.status.success(), "{}\n{}{}", output.status, text(&output.stdout), text(&output.stderr));
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Waits for a condition, with a deadline.
#[track_caller]
pub fn await_that(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {} s: {what}", PATIENCE.as_secs());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What the machine itself shows: its interfaces and its mounts.
pub fn machine() -> (Vec<String>, usize) {
    let devices = std::fs::read_to_string("/proc/net/dev").expect("read");
    let mut names: Vec<String> =
        devices.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect();
    names.sort();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("read");
    (names, mounts.lines().count())
}
