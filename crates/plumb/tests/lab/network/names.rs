//! The cluster's names, as pods resolve them.

use std::collections::BTreeSet;

use super::{ECHOS, Mesh, NS};
use crate::cluster::Checks;

pub fn checks(mesh: &Mesh, checks: &mut Checks) {
    checks.check("short, longer and whole names of a service", || service(mesh));
    checks.check("a headless service has the addresses of its pods", || headless(mesh));
    checks.check("a name that is not there: NXDOMAIN at every step", || missing(mesh));
    checks.check("a name without such a record: NODATA", || no_data(mesh));
    checks.check("a name beyond the cluster is asked outside", || forwarded(mesh));
    checks.check("the resolver's file and the host's name", || files(mesh));
}

fn addresses(out: &str) -> BTreeSet<&str> {
    out.lines()
        .filter_map(|line| line.starts_with("   ").then(|| line.rsplit(' ').next()).flatten())
        .collect()
}

fn service(mesh: &Mesh) {
    for pod in ["echo1", "echo2"] {
        for (name, step) in
            [("echo", 1), ("echo.mesh", 2), ("echo.mesh.svc", 3), ("echo.mesh.svc.cluster.local.", 1)]
        {
            let out = mesh.lab.demo_ok(NS, pod, &["dns", name]);
            assert_eq!(addresses(&out), BTreeSet::from([mesh.service("echo")]), "{name}: {out}");
            assert!(
                out.contains(&format!("{step}. echo.mesh.svc.cluster.local A NOERROR from 10.96.0.10")),
                "{out}"
            );
        }
    }
}

fn headless(mesh: &Mesh) {
    let out = mesh.lab.demo_ok(NS, "echo1", &["dns", "each"]);
    assert_eq!(addresses(&out), ECHOS.map(|pod| mesh.ip(pod)).into(), "{out}");
}

fn missing(mesh: &Mesh) {
    let said = mesh.lab.demo(NS, "echo1", &["dns", "nosuch.mesh"]);
    let steps =
        ["nosuch.mesh.mesh.svc.cluster.local", "nosuch.mesh.svc.cluster.local", "nosuch.mesh.cluster.local"];
    for (number, name) in steps.iter().enumerate() {
        let line = format!("{}. {name} A NXDOMAIN from 10.96.0.10", number + 1);
        assert!(!said.ok && said.out.contains(&line), "{line}: {said:?}");
    }
}

fn no_data(mesh: &Mesh) {
    let said = mesh.lab.demo(NS, "echo1", &["dns", "echo.mesh.svc.cluster.local.", "AAAA"]);
    assert!(!said.ok && said.out.contains("AAAA NODATA from 10.96.0.10"), "{said:?}");
}

fn forwarded(mesh: &Mesh) {
    for pod in ["echo1", "echo2"] {
        let out = mesh.lab.demo_ok(NS, pod, &["dns", "outside.test."]);
        assert_eq!(out, "1. outside.test A NOERROR from 10.96.0.10\n   outside.test 60 A 203.0.113.10\n");
    }
    let said = mesh.lab.demo_ok(NS, "echo1", &["get", "http://outside.test/"]);
    assert!(said.starts_with("outside 203.0.113.10:80 192.168.1.10:"), "{said}");
}

fn files(mesh: &Mesh) {
    let resolver = mesh.lab.exec(NS, "echo1", &["cat", "/etc/resolv.conf"]).out;
    assert_eq!(
        resolver,
        "search mesh.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n"
    );
    assert_eq!(mesh.lab.exec(NS, "echo1", &["hostname"]).out, "echo1\n");
    let hosts = mesh.lab.exec(NS, "echo1", &["cat", "/etc/hosts"]).out;
    assert!(hosts.lines().any(|line| line == format!("{}\techo1", mesh.ip("echo1"))), "{hosts}");
}
