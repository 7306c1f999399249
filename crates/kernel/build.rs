//! Compiles `bpf/*.bpf.c` with clang (14 or newer, `$BPF_CLANG`) to objects that `aya` loads.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCES: [&str; 1] = ["checksums"];

fn main() {
    println!("cargo:rerun-if-env-changed=BPF_CLANG");
    let clang = env::var("BPF_CLANG").unwrap_or_else(|_| "clang".to_owned());
    let [here, out] =
        ["CARGO_MANIFEST_DIR", "OUT_DIR"].map(|name| PathBuf::from(env::var_os(name).unwrap_or_default()));
    for name in SOURCES {
        let source = here.join("bpf").join(format!("{name}.bpf.c"));
        println!("cargo:rerun-if-changed={}", source.display());
        if let Err(error) = compile(&clang, &source, &out.join(format!("{name}.o"))) {
            println!("cargo::error={error}");
        }
    }
}

/// With BTF (`-g`), by which fields of the kernel's structs are found when it is loaded. Nothing of the machine is included.
fn compile(clang: &str, source: &Path, object: &Path) -> Result<(), String> {
    let options =
        ["-target", "bpf", "-mcpu=v2", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-nostdinc", "-c"];
    let done = Command::new(clang).args(options).arg(source).arg("-o").arg(object).output();
    match done {
        Ok(done) if done.status.success() => Ok(()),
        Ok(done) => {
            let said = String::from_utf8_lossy(&done.stderr).replace('\n', " | ");
            Err(format!(
                "{clang} does not compile {}: {said}; it has to be version 14 or newer",
                source.display()
            ))
        }
        Err(error) => Err(format!(
            "{clang} cannot be run ({error}), and the programs for the kernel (crates/kernel/bpf) are compiled with it: \
             install clang (apt-get install clang), or name one by BPF_CLANG"
        )),
    }
}
