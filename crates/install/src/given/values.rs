//! Values that stand for themselves: names, directories, and flags that mean nothing together.

use std::path::{Component, Path, PathBuf};

use anyhow::{Result, bail, ensure};

use super::is_domain;
use crate::install::{Args, Target};

pub fn check(args: &Args) -> Result<()> {
    ignored(args)?;
    let directories = [
        ("--cni-bin-dir", &args.cni_bin_dir),
        ("--cni-conf-dir", &args.cni_conf_dir),
        ("--kubernetes-dir", &args.kubernetes_dir),
    ];
    for (flag, path) in directories {
        ensure!(
            is_directory(path),
            "{flag} {path:?} is no directory of a node; give its whole path, without .., : and control characters, and not / \
             itself"
        );
        if let Some(taken) = TAKEN.into_iter().find(|taken| whole(path).starts_with(taken)) {
            bail!("{flag} {path} is in {taken}, which agents use for something else; give another directory");
        }
    }
    apart(&directories)?;
    if let Some(name) = &args.metrics_cert_secret {
        ensure!(
            is_domain(name),
            "--metrics-cert-secret {name:?} is no name of a Secret: lower-case letters, digits, - and ., at most 253"
        );
    }
    image(&args.target)
}

/// Of `plumb uninstall`, too.
pub fn image(target: &Target) -> Result<()> {
    match target.image.as_deref() {
        Some(image) if !Path::new(image).is_file() && !image.ends_with(".tar") => ensure!(
            is_reference(image),
            "--image {image:?} is neither the name of an image, such as registry.example/plumb:1, nor an archive"
        ),
        _ => {}
    }
    Ok(())
}

/// What agents mount themselves, and would take for the runtime's: what is theirs there they clean up at the end.
const TAKEN: [&str; 6] = ["/run/plumb", "/var/lib/plumb", "/run/netns", "/proc", "/sys", "/dev"];

/// Each is mounted by itself: one below another is well, as on k3s, and the same twice is a slip of the pen.
fn apart(directories: &[(&str, &String)]) -> Result<()> {
    for (at, (flag, path)) in directories.iter().enumerate() {
        if let Some((before, _)) = directories.iter().take(at).find(|(_, of)| whole(of) == whole(path)) {
            bail!(
                "{before} and {flag} are both {path}; give those that the container runtime and the kubelet look into \
                 (defaults: /opt/cni/bin, /etc/cni/net.d and /etc/kubernetes)"
            );
        }
    }
    Ok(())
}

/// One way to write a path: nothing empty or `.` in it, and /run for /var/run, which leads there.
fn whole(path: &str) -> PathBuf {
    let path: PathBuf = Path::new(path).components().collect();
    match path.strip_prefix("/var/run") {
        Ok(rest) => Path::new("/run").join(rest).components().collect(),
        Err(_) => path,
    }
}

fn ignored(args: &Args) -> Result<()> {
    let reach = &args.target.reach;
    for (flag, given) in [
        ("--resume", args.resume),
        ("--dry-run", args.dry_run),
        ("--accept", !args.accept.is_empty()),
        ("--timeout", args.target.timeout.is_some()),
        ("--context", reach.context.is_some()),
        ("--kubeconfig", reach.kubeconfig.is_some()),
    ] {
        if args.print && given {
            bail!("--print asks no cluster, and {flag} is for one; leave one of the two out");
        }
    }
    Ok(())
}

/// Of Linux.
const PATH_MAX: usize = 4096;

fn is_directory(text: &str) -> bool {
    let mut parts = Path::new(text).components();
    let below: Vec<_> = parts.by_ref().skip(1).collect();
    text.starts_with('/')
        && !text.contains(|c: char| c == ':' || c.is_control())
        && text.len() < PATH_MAX
        && !below.is_empty()
        && below.iter().all(|part| matches!(part, Component::Normal(_)))
}

/// `[HOST[:PORT]/]PATH[:TAG][@sha256:…]`, as container runtimes read it (distribution/reference).
fn is_reference(text: &str) -> bool {
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (text, None),
    };
    let hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    let is_digest = |digest: &str| {
        digest.strip_prefix("sha256:").is_some_and(|rest| rest.len() == 64 && rest.chars().all(hex))
    };
    // A colon after the last slash begins a tag, one before it a port.
    let (path, tag) = match name.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (name, None),
    };
    let (host, path) = match path.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (Some(host), rest),
        _ => (None, path),
    };
    name.len() <= 255
        && digest.is_none_or(is_digest)
        && tag.is_none_or(is_tag)
        && host.is_none_or(is_host)
        && path.split('/').all(is_component)
}

fn is_tag(tag: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    (1..=128).contains(&tag.len())
        && tag.starts_with(word)
        && tag.chars().all(|c| word(c) || c == '.' || c == '-')
}

fn is_host(host: &str) -> bool {
    let (host, port) = match host.rsplit_once(':') {
        Some((host, port)) if !host.starts_with('[') || host.ends_with(']') => (host, Some(port)),
        _ => (host, None),
    };
    let address = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let named = match address {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => is_domain(&host.to_ascii_lowercase()),
    };
    named && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

/// Lower-case letters and digits, with `.`, `_`, `__` or dashes between.
fn is_component(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let between = |run: &str| matches!(run, "." | "_" | "__") || run.chars().all(|c| c == '-');
    text.starts_with(plain)
        && text.ends_with(plain)
        && text.split(plain).filter(|run| !run.is_empty()).all(between)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_those_that_runtimes_take() {
        let digest = format!("a/b:1@sha256:{}", "0a".repeat(32));
        for good in [
            "plumb",
            "plumb:1",
            "a.example:5000/b/c__d:v1.2_3-x",
            "localhost/b",
            "[::1]:5000/b",
            "a--b",
            &digest,
        ] {
            assert!(is_reference(good), "{good}");
        }
        for bad in [
            "",
            "Plumb",
            "a/B:1",
            "https://a.example/b",
            "a b",
            "a:",
            "a:-x",
            "a.example:port/b",
            "a//b",
            "a/",
            "a___b",
            "a@sha256:0a",
            "a@md5:00",
            "-a",
        ] {
            assert!(!is_reference(bad), "{bad}");
        }
        let long = format!("a:{}", "x".repeat(129));
        assert!(!is_reference(&long));
    }

    #[test]
    fn directories_are_whole_paths() {
        for (text, is) in [
            ("/opt/cni/bin", true),
            ("/a/", true),
            ("/", false),
            ("", false),
            ("a", false),
            ("/a/../b", false),
            ("/a:b", false),
            ("/a\nb", false),
        ] {
            assert_eq!(is_directory(text), is, "{text}");
        }
    }

    #[test]
    fn a_path_is_one_however_it_is_written() {
        for (text, is) in
            [("/a//b/./c/", "/a/b/c"), ("/var/run/netns", "/run/netns"), ("/var/running", "/var/running")]
        {
            assert_eq!(whole(text), Path::new(is), "{text}");
        }
    }
}
