//! Input that cannot be carried out: refused before anything is done, asked or printed.

use std::process::Command;

use super::at;
use crate::cluster::{Checks, Lab, fresh_name, plumb, run};

pub fn checks(lab: &Lab, checks: &mut Checks) {
    checks.check("wrong settings of an installation", install);
    checks.check("an installation in a lab, and its end", || in_lab(lab));
    checks.check("a reference that cannot be measured", bench);
    checks.check("an archive that cannot be written, and one to a pipe", || sysdump(lab));
    checks.check("what no lab could carry out ends with 2, what this one cannot with 1", || codes(lab));
    checks.check("a trace to a port by its name", || named_ports(lab));
}

fn alone(words: &[&str]) -> Command {
    let mut command = Command::new(plumb());
    command.args(words).env("KUBECONFIG", "/dev/null");
    command
}

fn install() {
    let plumb_says = |words: &[&str]| run(&mut alone(words));
    for (flag, value) in [
        ("--cluster-cidr", "garbage"),
        ("--cluster-cidr", "10.1.2.3/16"),
        ("--cluster-cidr", "10.1.0.0/30"),
        ("--cluster-cidr", "10.1.0.0/16,10.2.0.0/16"),
        ("--service-cidr", "10.96.0.7/12"),
        ("--dns-ip", "10.96.0.10/32"),
        ("--api-servers", "192.0.2.1:https"),
        ("--mtu", "9"),
        ("--allow-sources", "203.0.113.9/24"),
        ("--timeout", "0"),
        ("--accept", "all"),
    ] {
        let said = plumb_says(&["install", "--print", flag, value]);
        said.refused(&[flag, value]);
        assert_eq!(said.out, "", "{flag} {value}");
        // Nor is a cluster asked first, whose kubeconfig is none here.
        plumb_says(&["install", flag, value]).refused(&[flag, value]);
    }
    plumb_says(&["install", "--print", "--dns-ip", "10.1.0.1"])
        .refused(&["--dns-ip 10.1.0.1 is not in --service-cidr"]);
    for (flags, words) in [
        (&["--cluster-cidr", "10.100.0.0/16"][..], "--service-cidr 10.96.0.0/12 overlap"),
        (&["--cluster-cidr", "fd00:10:244::/48"], "such as --service-cidr fd00:10:96::/112"),
        (&["--dns-ip", "10.96.0.1"], "--dns-ip 10.96.0.1 is the API's own"),
    ] {
        let said = plumb_says(&[&["install", "--print"], flags].concat());
        said.refused(&[words]);
        assert_eq!(said.out, "", "{flags:?}");
    }
    assert!(plumb_says(&["install", "--print", "--cluster-cidr", "10.1.0.0/16"]).ok);
}

/// Agents of a lab are nobody's DaemonSet: neither is anything made, nor taken away.
fn in_lab(lab: &Lab) {
    for command in ["install", "uninstall"] {
        let said = run(alone(&[command]).env("KUBECONFIG", &lab.kubeconfig));
        said.refused(&["is a lab", "plumb lab down", "--name", "plumb lab list"]);
        assert_eq!(said.out, "", "{command}");
        assert!(!said.err.contains("node-cleanup"), "{said:?}");
    }
}

fn bench() {
    // Plugins that would call a program that is not there.
    let plugins = std::env::temp_dir().join(fresh_name());
    std::fs::create_dir(&plugins).expect("a directory");
    let path = plugins.to_str().expect("plain");
    let bench = |what: &str| {
        run(Command::new(plumb())
            .args(["bench", what, "--reference", path, "--rounds", "1"])
            .env("PATH", "/no/such"))
    };
    bench("cni").refused(&["--reference", "there is no", "bridge"]);
    for plugin in ["bridge", "host-local"] {
        std::fs::write(plugins.join(plugin), "").expect("a file");
    }
    for what in ["cni", "all"] {
        bench(what)
            .refused(&["bridge masquerades by iptables, which is not on the PATH", "--reference-masquerade"]);
    }
    std::fs::remove_dir_all(&plugins).expect("it was there");
}

/// Of a cluster that answers.
fn sysdump(lab: &Lab) {
    let said =
        run(alone(&["sysdump", "--output", "/no/such/directory/dump"]).env("KUBECONFIG", &lab.kubeconfig));
    said.refused(&["write /no/such/directory/dump"]);
    let packed = at(lab, &["sysdump", "--output", "-"]).output().expect("plumb runs");
    assert!(packed.stdout.starts_with(&[0x1F, 0x8B]), "no gzip: {packed:?}");
    assert!(String::from_utf8_lossy(&packed.stderr).contains("the standard output: "), "{packed:?}");
    assert!(!std::path::Path::new("-").exists(), "a file of that name was made");
}

fn codes(lab: &Lab) {
    for (words, code) in [
        (&["trace", "shop/web", "api:99999"][..], 2),
        (&["trace", "shop/web", "svc/api:no/port"], 2),
        (&["trace", "shop/web", "svc/api:nosuch"], 1),
        (&["trace", "shop/web", "svc/nosuch:http"], 1),
        (&["trace", "shop/nosuch", "http://api:8080"], 1),
        (&["trace", "shop/cronjob/a", "http://api:8080"], 2),
        (&["dns", "shop/web", "api:80"], 2),
        (&["dns", "shop/web", "nosuch"], 1),
        (&["lab", "exec", "node1"], 2),
        (&["lab", "exec", "node7", "true"], 1),
        (&["lab", "wait", "-n", "nosuch"], 1),
        (&["lab", "wait", "--timeout", "abc"], 2),
        (&["lab", "expose", "a/b/c"], 2),
        (&["lab", "expose", "shop/nosuch"], 1),
    ] {
        let output = at(lab, words).stdin(std::process::Stdio::null()).output().expect("plumb runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {said}");
    }
}

fn named_ports(lab: &Lab) {
    let web = &["trace", "shop/web"][..];
    let trace = |to: &str| run(&mut at(lab, &[web, &[to]].concat()));
    for to in ["svc/api:http", "shop/svc/api:http", "svc/api.shop:http"] {
        let said = trace(to);
        assert!(said.ok && said.out.contains("shop/api:http"), "{to}: {said:?}");
    }
    trace("svc/api:nosuch").refused(&["Service shop/api has no TCP port \"nosuch\"; it has http ("]);
    trace("svc/nosuch:http").refused(&["there is no Service shop/nosuch", "kubectl get services -n shop"]);
    for to in ["pod/web:8080", "shop/pod/web:http"] {
        let said = trace(to);
        assert!(said.ok && said.out.contains("11 pod"), "{to}: {said:?}");
    }
    trace("pod/nosuch:http").refused(&["there is no pod shop/nosuch"]);
}
