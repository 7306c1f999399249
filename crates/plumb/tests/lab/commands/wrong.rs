//! Input that cannot be carried out: refused before anything is done, asked or printed.

use std::process::Command;

use crate::cluster::{Checks, Lab, fresh_name, plumb, run};

pub fn checks(lab: &Lab, checks: &mut Checks) {
    checks.check("wrong settings of an installation", install);
    checks.check("an installation in a lab, and its end", || in_lab(lab));
    checks.check("a reference that cannot be measured", bench);
    checks.check("an archive that cannot be written", || sysdump(lab));
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
}
