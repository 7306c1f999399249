//! An OCI image without a container engine: one layer, the same bytes from the same files (OCI image-spec 1.1,
//! image-layout; `manifest.json` is what `docker load` reads of the same archive).
//!
//! ```text
//!   oci-layout   index.json ─> manifest ─> config
//!   blobs/sha256/…                  └────> layer, compressed: bin/plumb, bin/plumb-cni, …
//! ```

pub mod tar;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args as ClapArgs;
use flate2::{Compression, GzBuilder};
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};

use crate::settings::IMAGE;
use tar::Archive;

/// `plumb image`
#[derive(Clone, Debug, ClapArgs)]
pub struct Args {
    /// Where plumb and plumb-cni are, statically linked
    #[arg(long)]
    from: PathBuf,
    /// The archive to write
    #[arg(long, short)]
    output: PathBuf,
    /// The image's name
    #[arg(long, default_value = IMAGE)]
    name: String,
}

pub fn run(args: &Args) -> Result<()> {
    let mut programs = Vec::new();
    for name in ["plumb", "plumb-cni"] {
        let path = args.from.join(name);
        let program = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        if is_dynamic(&program) {
            bail!(
                "{} needs a dynamic loader, which the image has none of: see `./run image`",
                path.display()
            );
        }
        programs.push((name, program));
    }
    let Image { archive, digest } = image(&args.name, &layer(&programs)?)?;
    fs::write(&args.output, &archive).with_context(|| format!("write {}", args.output.display()))?;
    println!("{} {} {:.1} MB", args.name, args.output.display(), archive.len() as f64 / 1e6);
    println!("{digest}");
    Ok(())
}

/// The name of the image in an archive: that of `index.json`, or what `docker save` writes.
pub fn name_of(path: &Path) -> Result<String> {
    let at = || format!("{}: an image archive was expected (`./run image`, docker save)", path.display());
    let bytes = fs::read(path).with_context(at)?;
    for (file, pointer) in [
        ("index.json", "/manifests/0/annotations/io.containerd.image.name"),
        ("manifest.json", "/0/RepoTags/0"),
    ] {
        let Some(content) = tar::find(&bytes, file) else { continue };
        let value: Value = serde_json::from_slice(content).with_context(at)?;
        if let Some(name) = value.pointer(pointer).and_then(Value::as_str) {
            return Ok(name.to_owned());
        }
    }
    bail!("{}: it names no image", at())
}

/// An ELF file with a program interpreter (PT_INTERP). A static-pie has a dynamic section, but nobody to read it.
fn is_dynamic(program: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let number = |at: usize, size: usize| {
        let bytes = program.get(at..at + size)?;
        Some(bytes.iter().rev().fold(0_u64, |value, byte| (value << 8) | u64::from(*byte)))
    };
    let header = || Some((number(0x20, 8)?, number(0x36, 2)?, number(0x38, 2)?));
    let Some((start, size, count)) = header() else { return false };
    (0..count).any(|index| {
        let at = usize::try_from(start + index * size).unwrap_or(usize::MAX - 4);
        number(at, 4) == Some(u64::from(PT_INTERP))
    })
}

fn layer(programs: &[(&str, Vec<u8>)]) -> Result<Vec<u8>> {
    let mut layer = Archive::default();
    // Mount points and what programs expect to be there; the root is read-only.
    for directory in [
        "bin",
        "dev",
        "etc",
        "etc/cni",
        "etc/cni/net.d",
        "host",
        "opt",
        "proc",
        "run",
        "sys",
        "tmp",
        "var",
        "var/lib",
    ] {
        layer.directory(directory)?;
    }
    // Runtimes say /var/run/netns, the kubelet /var/run/secrets.
    layer.link("var/run", "../run")?;
    for (name, program) in programs {
        layer.file(&format!("bin/{name}"), program, 0o755)?;
    }
    layer.file("etc/passwd", b"root:x:0:0:root:/:/bin/plumb\n", 0o644)?;
    Ok(layer.finish())
}

/// gzip without a time or a name of its own, so that the same layer makes the same bytes.
fn compress(layer: &[u8]) -> Result<Vec<u8>> {
    let mut compressed = GzBuilder::new().write(Vec::new(), Compression::default());
    compressed.write_all(layer)?;
    Ok(compressed.finish()?)
}

/// An archive, and the digest of the manifest in it, by which registries and runtimes know the image.
struct Image {
    archive: Vec<u8>,
    digest: String,
}

/// `layer` as a plain tar: the config names it by what it is unpacked, the manifest by what is in the archive.
fn image(name: &str, layer: &[u8]) -> Result<Image> {
    let compressed = compress(layer)?;
    let compressed = compressed.as_slice();
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": { "Entrypoint": ["/bin/plumb"], "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [sha256(layer)] },
    });
    let config = serde_json::to_vec(&config)?;
    let blob = |kind: &str, content: &[u8]| {
        json!({
            "mediaType": format!("application/vnd.oci.image.{kind}"),
            "digest": sha256(content),
            "size": content.len(),
        })
    };
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob("config.v1+json", &config),
        "layers": [blob("layer.v1.tar+gzip", compressed)],
    });
    let manifest = serde_json::to_vec(&manifest)?;
    let mut entry = blob("manifest.v1+json", &manifest);
    entry["platform"] = json!({ "architecture": architecture, "os": "linux" });
    let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    entry["annotations"] =
        json!({ "io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag });
    let index = json!({ "schemaVersion": 2, "manifests": [entry] });
    let path = |content: &[u8]| format!("blobs/sha256/{}", sha256(content).trim_start_matches("sha256:"));
    let docker = json!([{ "Config": path(&config), "RepoTags": [name], "Layers": [path(compressed)] }]);
    let mut archive = Archive::default();
    archive.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;
    archive.file("index.json", &serde_json::to_vec(&index)?, 0o644)?;
    archive.file("manifest.json", &serde_json::to_vec(&docker)?, 0o644)?;
    for content in [config.as_slice(), &manifest, compressed] {
        archive.file(&path(content), content, 0o644)?;
    }
    Ok(Image { archive: archive.finish(), digest: sha256(&manifest) })
}

fn sha256(content: &[u8]) -> String {
    let hex: String = digest(&SHA256, content).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_files_make_the_same_bytes_and_the_name_is_found_again() {
        let programs = [("plumb", b"program".to_vec()), ("plumb-cni", vec![7; 1000])];
        let make = || image("example.org/x:1", &layer(&programs).unwrap()).unwrap();
        let (one, two) = (make(), make());
        assert_eq!(one.archive, two.archive);
        let index: Value = serde_json::from_slice(tar::find(&one.archive, "index.json").unwrap()).unwrap();
        assert_eq!(index["manifests"][0]["digest"], one.digest);
        let path = std::env::temp_dir().join(format!("plumb-image-{}", std::process::id()));
        fs::write(&path, &one.archive).unwrap();
        let name = name_of(&path);
        fs::remove_file(&path).unwrap();
        assert_eq!(name.unwrap(), "example.org/x:1");
    }

    #[test]
    fn a_program_with_a_loader_is_refused() {
        // This test itself is linked dynamically, unless it is built for the image.
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(is_dynamic(&own), !cfg!(target_feature = "crt-static"));
        assert!(!is_dynamic(b""));
        assert!(!is_dynamic(&own[..100]));
    }

    #[test]
    fn what_is_no_image_is_named() {
        let path = std::env::temp_dir().join(format!("plumb-no-image-{}", std::process::id()));
        fs::write(&path, vec![0xff; 4096]).unwrap();
        let error = name_of(&path);
        fs::remove_file(&path).unwrap();
        assert!(error.unwrap_err().to_string().contains("plumb-no-image"));
    }
}
