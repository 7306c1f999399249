//! Running the program and kubectl, and waiting: what all tiers share.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::Value;

/// The binary under test: the one that `./run test` built, else the one cargo built for this test.
pub fn plumb() -> PathBuf {
    std::env::var_os("PLUMB_BIN").map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_plumb")), PathBuf::from)
}

/// The top of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// kubectl by `KUBECTL`, or installed by the script that `./run` uses too.
pub fn kubectl_binary() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| {
        if let Some(path) = std::env::var_os("KUBECTL") {
            return path.into();
        }
        let said = run(&mut Command::new(repository("tools/kubectl.sh")));
        assert!(said.ok, "tools/kubectl.sh: {said:?}");
        PathBuf::from(said.out.trim())
    })
}

/// What a command said, for assertions that print it whole.
#[derive(Debug)]
pub struct Said {
    pub ok: bool,
    pub out: String,
    pub err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            ok: output.status.success(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Said {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("not JSON ({e}): {self:?}"))
    }

    /// What it printed, or why not: for [`wait_for`].
    pub fn or_missing(self) -> Result<String, String> {
        if self.ok { Ok(self.out) } else { Err(format!("{self:?}")) }
    }

    /// It failed, and its words name all of these: the object, the cause, the next step.
    #[track_caller]
    pub fn refused(&self, words: &[&str]) {
        assert!(!self.ok, "it was expected to fail: {self:?}");
        for word in words {
            assert!(self.err.contains(word), "{word:?} is not said: {}", self.err);
        }
    }
}

/// Whatever kubectl speaks to: a lab, a cluster, a namespace of one.
pub trait Kubectl {
    /// kubectl, with what says to whom.
    fn kubectl_command(&self) -> Command;

    fn kubectl(&self, args: &[&str]) -> Said {
        until_heard(|| run(self.kubectl_command().args(args)))
    }

    #[track_caller]
    fn kubectl_ok(&self, args: &[&str]) -> String {
        let said = self.kubectl(args);
        assert!(said.ok, "kubectl {args:?}: {said:?}");
        said.out
    }

    /// With something on its standard input.
    fn kubectl_fed(&self, args: &[&str], input: &str) -> Said {
        until_heard(|| feed(self.kubectl_command().args(args), input.as_bytes()))
    }

    #[track_caller]
    fn get(&self, args: &[&str]) -> Value {
        let said = self.kubectl(&[&["get", "-o", "json"], args].concat());
        assert!(said.ok, "kubectl get {args:?}: {said:?}");
        said.json()
    }
}

/// kubectl gives up a TLS handshake after 10 s and the download of schemas after 32 s. Nothing was changed by then: a
/// busy machine is asked again.
fn until_heard(ask: impl Fn() -> Said) -> Said {
    let unheard = |said: &Said| {
        let schema = said.err.contains("/openapi/") && said.err.contains("Client.Timeout exceeded");
        !said.ok && (schema || said.err.contains("TLS handshake timeout"))
    };
    (0..5).map(|_| ask()).find(|said| !unheard(said)).unwrap_or_else(ask)
}

/// kubectl as the user of a kubeconfig.
pub fn kubectl_of(kubeconfig: &Path) -> Command {
    let mut command = Command::new(kubectl_binary());
    command.env("KUBECONFIG", kubeconfig);
    command
}

/// Runs with something on the standard input.
pub fn feed(command: &mut Command, input: &[u8]) -> Said {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    // One that ends without reading says why itself.
    let _ = child.stdin.take().expect("piped").write_all(input);
    child.wait_with_output().expect("it ends").into()
}

/// Between two looks at least.
const LOOK: Duration = Duration::from_millis(20);

pub fn run(command: &mut Command) -> Said {
    command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}")).into()
}

/// Waits until `probe` gives a value; after `deadline` panics with what it last said was missing.
#[track_caller]
pub fn wait_for<T>(what: &str, deadline: Duration, mut probe: impl FnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + deadline;
    loop {
        let began = Instant::now();
        match probe() {
            Ok(value) => return value,
            Err(missing) if Instant::now() > end => panic!("{what} not within {deadline:?}: {missing}"),
            // Between two looks, never instead of one. A look by kubectl is a twentieth of a second of the processor that
            // what is waited for wants, too.
            Err(_) => std::thread::sleep((began.elapsed() * 3).clamp(LOOK, 50 * LOOK)),
        }
    }
}
