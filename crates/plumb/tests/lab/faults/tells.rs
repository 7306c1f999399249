//! Where nothing is broken: the whole way, or where it rightly ends.

use super::{FAR, Stage, habits};
use crate::cluster::Checks;

#[test]
fn a_trace_tells_the_whole_way_or_where_it_ends() {
    let stage = Stage::up();
    let mut checks = Checks::default();
    checks.check("across nodes", || {
        let report = stage.concludes(FAR, &["--full"], "delivered");
        assert_eq!(report["of"], 12, "{report:#}");
    });
    checks.check("as text", || {
        let said = stage.plumb(&["trace", "way/web", FAR, "--full"]);
        assert!(said.ok, "{said:?}");
        for part in
            ["search step 1 of 3", "nft plumb/n1", "dev plumb.1 onlink", "HTTP 200", "12 of 12", "conntrack"]
        {
            assert!(said.out.contains(part), "{part}: {}", said.out);
        }
    });
    for (name, target, more, conclusion) in [
        ("on one node", "http://near:8080", &[][..], "delivered"),
        ("to itself", "http://web:8080", &[], "delivered"),
        ("a pod's address", "$FAR:8080", &[], "delivered"),
        ("outside", "203.0.113.10:80", &[], "delivered"),
        ("the API", "kubernetes.default:443", &[], "delivered"),
        ("another node", "192.168.1.11:9475", &[], "delivered"),
        ("its own node", "192.168.1.10:9475", &[], "delivered"),
        ("a closed port of another node's gateway", "10.244.2.1:9", &[], "refused"),
        ("another node's gateway, by an echo", "ping:10.244.2.1", &[], "delivered"),
        ("UDP", "talk:9001", &["--udp"], "delivered"),
        ("DNS", "10.96.0.10:53", &["--udp"], "delivered"),
        ("from a port of choice", FAR, &["--source-port", "41000"], "delivered"),
        ("no endpoint", "empty:80", &[], "refused"),
        ("no such port", "far:9", &[], "refused"),
        ("no Service", "10.96.200.200:80", &[], "refused"),
        ("no pod", "10.244.2.250:80", &[], "refused"),
        ("no pod on its node", "10.244.1.250:80", &[], "refused"),
        ("a closed port", "$FAR:9", &[], "refused"),
        ("a closed port of its own node", "$NEAR:9", &[], "refused"),
        ("a closed port of a Service's pod", "shut:80", &[], "refused"),
        ("a closed port over UDP", "$FAR:9", &["--udp"], "refused"),
        ("nobody listens outside", "203.0.113.10:81", &[], "refused"),
        ("another node's port", "192.168.1.11:30081", &[], "delivered"),
        ("another node's port without an endpoint there", "192.168.1.11:30082", &[], "refused"),
        ("its own node's port of a Service without endpoints", "192.168.1.10:30083", &[], "refused"),
        ("another node's port of a Service without endpoints", "192.168.1.11:30083", &[], "refused"),
        ("a policy behind another node's port", "192.168.1.11:30084", &[], "denied"),
        ("a circle of aliases", "http://round", &[], "no-name"),
        ("no such name", "http://nosuch.way.svc.cluster.local", &[], "no-name"),
    ] {
        let target = stage.filled(target);
        checks.check(name, || drop(stage.concludes(&target, more, conclusion)));
    }
    checks.check("under a port that masquerade chose", || masqueraded(&stage));
    checks.check("another node's port is its Service's", || {
        let said = stage.plumb(&["trace", "way/web", "192.168.1.11:30082"]);
        for part in ["nodePort of way/doorkeeper", "has no endpoint on node2 (externalTrafficPolicy: Local)"]
        {
            assert!(said.ok && said.out.contains(part), "{part}: {said:?}");
        }
    });
    checks.check("what ends behind a node's port says why", || {
        let said = stage.plumb(&["trace", "way/web", "192.168.1.10:30083"]);
        assert!(said.out.contains("is rejected: way/vacant has no ready endpoint"), "{said:?}");
        let said = stage.plumb(&["trace", "way/web", "192.168.1.11:30084"]);
        for part in [
            "way/closed-door:http → ",
            "isolated by way/closed",
            "policy stops",
            "nodePort of way/closed-door",
        ] {
            assert!(said.ok && said.out.contains(part), "{part}: {said:?}");
        }
    });
    checks.check("an alias that leads inward, or nowhere", || {
        let said = stage.plumb(&["trace", "way/web", "http://inward", "-6"]);
        let why = "inward has no IPv6 address (it leads to far.way.svc.cluster.local: ipFamilies: IPv4)";
        assert!(said.out.contains(why), "{said:?}");
        let circle = "alias circle: round.way.svc.cluster.local → about.way.svc.cluster.local → \
                      round.way.svc.cluster.local";
        let said = stage.plumb(&["trace", "way/web", "http://round"]);
        assert!(said.ok && said.out.contains(circle), "{said:?}");
        let said = stage.plumb(&["dns", "way/web", "round"]);
        assert!(said.out.contains(circle) && !said.out.contains("the objects say otherwise"), "{said:?}");
    });
    checks.check("an ExternalName", || {
        let said = stage.plumb(&["trace", "way/web", "http://leads"]);
        assert!(said.out.contains("leads leads to nowhere.invalid (ExternalName)"), "{said:?}");
    });
    checks.check("denied, and why", || {
        let report = stage.concludes("http://closed:8080", &[], "denied");
        let said = stage.plumb(&["trace", "way/web", "http://closed:8080"]);
        for part in ["isolated by way/closed", "way/closed rule 1", "is not among its peers", "policy stops"]
        {
            assert!(said.out.contains(part), "{part}: {} {report:#}", said.out);
        }
    });
    checks.check("the end that is expected decides the exit code", || {
        for (target, end) in [
            (FAR, "delivered"),
            ("http://closed:8080", "denied"),
            ("empty:80", "refused"),
            ("http://nosuch.way.svc.cluster.local", "no-name"),
        ] {
            for wanted in ["delivered", "denied", "refused", "no-name"] {
                let said = stage.plumb(&["trace", "way/web", target, "--expect", wanted]);
                assert_eq!(said.ok, wanted == end, "{target} {wanted}: {said:?}");
                let told = format!("expected: {wanted}, and it is {end}");
                assert_eq!(said.err.contains(&told), wanted != end, "{said:?}");
            }
        }
    });
    checks.check("to itself, by its own addresses", || own(&stage));
    checks.check("of a link", || of_the_link(&stage));
    checks.check("a name without an address of the family", || {
        let report = stage.concludes(FAR, &["-6"], "no-name");
        let text = &report["hops"][0]["hop"]["text"];
        assert_eq!(text, "far has no IPv6 address (ipFamilies: IPv4)", "{report:#}");
        let report = stage.concludes("heads:8080", &["-6"], "no-name");
        let text = report["hops"][0]["hop"]["text"].as_str().unwrap_or_default();
        assert!(text.contains("headless Service, and those of its pods are IPv4"), "{report:#}");
        let report = stage.concludes("nobodys:8080", &[], "no-name");
        let text = report["hops"][0]["hop"]["text"].as_str().unwrap_or_default();
        assert!(text.contains("none of its pods is ready"), "{report:#}");
    });
    habits::checks(&stage, &mut checks);
    checks.check("what cannot be traced is named", || {
        stage.plumb(&["trace", "way/web", "fe80::1"]).refused(&["link-local", "fe80::1%eth0"]);
        stage.plumb(&["trace", "way/web", "http://[fe80::1%eth0]"]).refused(&["way/web has no IPv6 address"]);
        stage.plumb(&["trace", "way/nobody", FAR]).refused(&["way/nobody", "kubectl get pods -n way"]);
        stage.plumb(&["trace", "wya/web", FAR]).refused(&["no namespace wya", "web is in way: say way/web"]);
        stage.plumb(&["trace", "default/web", FAR]).refused(&["no pod default/web", "say way/web"]);
        stage.plumb(&["trace", "way/web", "10.244.1.300"]).refused(&["no address"]);
        stage.plumb(&["trace", "way/web", ""]).refused(&["target is missing"]);
        stage.plumb(&["trace", "way/web", FAR, "--timeout", "0"]).refused(&["--timeout"]);
        stage.plumb(&["dns", "way/web", "far:8080"]).refused(&["give \"far\""]);
        let said = stage.plumb(&["trace", "pod/web", "svc/far:8080", "-n", "way", "--expect", "delivered"]);
        assert!(said.ok, "{said:?}");
        let said = stage.plumb(&["trace", "svc/web", "svc/far:8080", "-n", "way", "--expect", "delivered"]);
        assert!(
            said.ok && said.err.contains("svc/web: takes the pod way/web, the first Ready one"),
            "{said:?}"
        );
        stage.plumb(&["dns", "way/svc/nosuch"]).refused(&["no Service way/nosuch", "get services -n way"]);
        stage.plumb(&["dns", "sts/nosuch", "-n", "way"]).refused(&["no pod of a StatefulSet way/nosuch"]);
        stage.plumb(&["dns", "cronjob/web", "-n", "way"]).refused(&["cronjob is neither", "sts"]);
        stage.plumb(&["trace", "way/web", "far"]).refused(&["no port", "HOST:PORT"]);
    });
}

/// Nothing leaves the pod, and a closed port is told as that of any other pod.
fn own(stage: &Stage) {
    let own = stage.filled("$WEB:8080");
    for target in ["127.0.0.1:8080", "http://localhost:8080", "0.0.0.0:8080", own.as_str()] {
        let report = stage.concludes(target, &[], "delivered");
        let hops: Vec<&str> = stages(&report);
        assert!(hops.ends_with(&["socket", "veth", "pod"]), "{target}: {report:#}");
    }
    let said = stage.plumb(&["trace", "way/web", "http://localhost:8080"]);
    for part in ["localhost → 127.0.0.1", "/etc/hosts", "the pod's own loopback", "way/web, HTTP 200"] {
        assert!(said.out.contains(part), "{part}: {said:?}");
    }
    let report = stage.concludes("127.0.0.1:81", &["--expect", "refused"], "refused");
    let seen = super::hops(&report).last().map(|hop| &hop["outcome"]["seen"]);
    assert_eq!(seen, Some(&"reached, and nobody listens on this port".into()), "{report:#}");
}

/// Each connection gets another port: one that kept its own by chance shows nothing.
fn masqueraded(stage: &Stage) {
    for target in ["http://203.0.113.50:8080", "http://203.0.113.51:8080"] {
        for _ in 0..4 {
            let report = stage.concludes(target, &[], "delivered");
            let masq = super::hops(&report).find(|hop| hop["hop"]["stage"] == "masq");
            assert_eq!(masq.map(|hop| &hop["hop"]["fact"]["masquerade"]), Some(&true.into()), "{report:#}");
        }
    }
    let report = stage.concludes("203.0.113.52:8080", &[], "denied");
    assert!(report.to_string().contains("is not among its peers"), "{report:#}");
}

fn stages(report: &serde_json::Value) -> Vec<&str> {
    let hops = report["hops"].as_array().into_iter().flatten();
    hops.filter_map(|hop| hop["hop"]["stage"].as_str()).collect()
}

/// An IPv4 one goes the way of every address outside; an IPv6 one ends at the other end of the pod's link.
fn of_the_link(stage: &Stage) {
    let report = stage.trace("169.254.169.254:80", &[]);
    assert_eq!(
        (&report["broken"]["n"], &report["broken"]["place"], &report["broken"]["node"]),
        (&11.into(), &"outside".into(), &serde_json::Value::Null),
        "{report:#}"
    );
    let said = stage.plumb(&["trace", "way/web", "169.254.169.254:80"]);
    for part in ["it is link-local, and Linux forwards it", "disagree at hop 11 (outside) and agree"] {
        assert!(said.out.contains(part), "{part}: {said:?}");
    }
}
