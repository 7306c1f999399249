//! Kernels that this machine has not, in a virtual machine (tools/vm.sh says what it is made of).

use std::path::{Path, PathBuf};
use std::process::Command;

/// This program without its symbols, which would only take room in the machine's memory.
struct Stripped(PathBuf);

impl Stripped {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("plumb-vm-{}", std::process::id()));
        let strip = Command::new("strip").arg("-o").arg(&path).arg(env!("CARGO_BIN_EXE_plumb")).output();
        assert!(strip.as_ref().is_ok_and(|done| done.status.success()), "{strip:?}");
        Self(path)
    }
}

impl Drop for Stripped {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn a_kernel_without_nftables_is_refused_before_anything_is_made() {
    let program = Stripped::new();
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/vm.sh");
    let script =
        "$0 agent --node n1 --kubeconfig /none --data /data --cni-conf-dir /net.d --socket /s; echo code $?
                  ls -d /data /net.d /s; ip link show";
    let said = Command::new(tool)
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
