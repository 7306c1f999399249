//! Kernels that this machine has not, in a virtual machine (tools/vm.sh says what it is made of).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::said::plumb;

/// A program without its symbols, which would only take room in the machine's memory.
struct Stripped(PathBuf);

impl Stripped {
    fn new(program: impl AsRef<Path>) -> Self {
        let unique = format!("plumb-vm-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(unique);
        let strip = Command::new("strip").arg("-o").arg(&path).arg(program.as_ref()).output();
        assert!(strip.as_ref().is_ok_and(|done| done.status.success()), "{strip:?}");
        Self(path)
    }
}

impl Drop for Stripped {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

static COUNT: AtomicU32 = AtomicU32::new(0);

fn vm() -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/vm.sh"))
}

/// This very test program, and the program that it tests.
#[test]
fn an_agent_goes_on_when_the_clock_jumps() {
    let [tests, program] = [std::env::current_exe().unwrap(), plumb()].map(Stripped::new);
    let script = "PLUMB_TEST_VM=1 PLUMB_BIN=$1 $0 --exact clock::everything_goes_on --ignored --nocapture";
    let said = vm()
        .arg("--file")
        .arg(&tests.0)
        .arg("--file")
        .arg(&program.0)
        .args(["--", "sh", "-c", script])
        .args([&tests.0, &program.0])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&said.stdout);
    assert!(
        said.status.success() && text.contains("1 passed"),
        "{text}\n{}",
        String::from_utf8_lossy(&said.stderr)
    );
}

#[test]
fn a_kernel_without_nftables_is_refused_before_anything_is_made() {
    let program = Stripped::new(plumb());
    let script =
        "$0 agent --node n1 --kubeconfig /none --data /data --cni-conf-dir /net.d --socket /s; echo code $?
                  ls -d /data /net.d /s; ip link show";
    let said = vm()
        .args(["--without", "nf_tables", "--file"])
        .arg(&program.0)
        .args(["--", "sh", "-c", script])
        .arg(&program.0)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&said.stdout);
    assert!(said.status.success(), "{said:?}");
    // Object, cause, next step.
    for words in ["the agent of node n1", "nf_tables", "CONFIG_NF_TABLES", "modprobe nf_tables", "code 1\n"] {
        assert!(text.contains(words), "no {words:?} in:\n{text}");
    }
    assert_eq!(text.matches("No such file or directory").count(), 3, "something was made:\n{text}");
    assert_eq!(text.matches("mtu").count(), 1, "there is a link beside lo:\n{text}");
}
