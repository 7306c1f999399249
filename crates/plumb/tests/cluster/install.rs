//! `plumb install` and `plumb uninstall`, and the same objects by kubectl and Helm.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::cluster::{Cluster, Kubectl, Stack};
use crate::said::{Said, plumb, repository, run};

/// The image of the programs that are tested: `./run test` makes it beforehand.
pub fn image() -> PathBuf {
    let path = std::env::var_os("PLUMB_IMAGE").map_or_else(|| repository("target/plumb.tar"), PathBuf::from);
    assert!(path.exists(), "{}: make it with `PROFILE=dev ./run image`", path.display());
    path
}

pub fn bare(stack: Stack) -> Cluster {
    let cluster = Cluster::bare(stack, 2);
    cluster.tool_ok(&["image", &image().to_string_lossy()]);
    cluster
}

impl Cluster {
    /// `plumb …` with this cluster's kubeconfig.
    pub fn plumb(&self, args: &[&str]) -> Said {
        run(Command::new(plumb()).args(args).env("KUBECONFIG", &self.kubeconfig))
    }

    pub fn plumb_install(&self, args: &[&str]) -> Said {
        let image = image();
        self.plumb(&[&["install", "--image", &image.to_string_lossy()], args].concat())
    }

    /// Everything of Plumb in the API and on the nodes.
    pub fn remains(&self) -> Vec<String> {
        let mut left = Vec::new();
        for kind in ["daemonsets,serviceaccounts,services,pods", "clusterroles,clusterrolebindings"] {
            let said = self.kubectl_ok(&[
                "get",
                kind,
                "-n",
                "kube-system",
                "-l",
                "app.kubernetes.io/name=plumb",
                "-o",
                "name",
            ]);
            left.extend(said.lines().map(str::to_owned));
        }
        for node in &self.nodes {
            let script = "nft list tables | grep plumb; ip -o link | grep -E 'cni0|plumb|veth'; ip route show proto 112; \
                          ip -6 route show proto 112; ip addr show dev lo | grep -E '10\\.96\\.|fd00:10:96:'; ls /opt/cni/bin /etc/cni/net.d /var/lib/plumb 2>/dev/null | grep -v :";
            let said = self.node(node, &["sh", "-c", script]);
            left.extend(
                said.out.lines().filter(|line| !line.is_empty()).map(|line| format!("{node}: {line}")),
            );
        }
        left
    }
}

#[test]
fn install_and_uninstall_leave_nothing_behind() {
    let cluster = bare(Stack::Dual);
    let before = cluster.remains();
    let said = cluster.plumb_install(Stack::Dual.flags());
    assert!(said.ok, "{said:?}\n{}", cluster.kubectl_ok(&["describe", "pods", "-A"]));
    assert!(said.out.contains("node1: works") && said.out.contains("node2: works"), "{said:?}");
    let dns = ["-n", "kube-system", "get", "service", "kube-dns", "-o", "jsonpath={.spec.clusterIPs}"];
    assert_eq!(cluster.kubectl_ok(&dns), r#"["10.96.0.10","fd00:10:96::a"]"#);
    for node in &cluster.nodes {
        let tables = cluster.node_ok(node, &["nft", "list", "tables"]);
        assert!(tables.contains("table ip plumb") && tables.contains("table ip6 plumb"), "{tables}");
    }
    let agents =
        cluster.kubectl_ok(&["-n", "kube-system", "logs", "-l", "app.kubernetes.io/name=plumb", "--tail=-1"]);
    assert!(!agents.contains("forbidden"), "{agents}");
    let said = cluster.plumb(&["uninstall"]);
    assert!(said.ok, "{said:?}");
    assert_eq!(cluster.remains(), before);
    // Again, and nothing is there to take away.
    let said = cluster.plumb(&["uninstall", "--image", &image().to_string_lossy()]);
    assert!(said.ok, "{said:?}");
}

/// A node without a cable holds nobody up: it is named, and what tells how to clean it stays until it is given up.
#[test]
fn a_node_that_is_away_is_named_and_can_be_given_up() {
    let cluster = bare(Stack::Single);
    let said = cluster.plumb_install(&[]);
    assert!(said.ok, "{said:?}");
    cluster.tool_ok(&["unplug", "node2"]);
    let said = cluster.plumb(&["uninstall", "--timeout", "60"]);
    assert!(!said.ok && said.out.contains("node1: clean"), "{said:?}");
    assert!(said.err.contains("give --without node2") && !said.err.contains("--without node1"), "{said:?}");
    cluster.kubectl_ok(&["-n", "kube-system", "get", "daemonset/plumb", "serviceaccount/plumb"]);
    let said = cluster.plumb(&["uninstall", "--timeout", "60", "--without", "node2"]);
    assert!(said.ok, "{said:?}");
    let mut left = cluster.remains();
    // The pods of a node that is away go with the Node.
    left.retain(|line| !line.starts_with("node2: ") && !line.starts_with("pod/"));
    assert_eq!(left, [""; 0]);
}

#[test]
fn what_is_in_the_way_is_refused_with_its_remedy_and_nothing_changes() {
    let cluster = bare(Stack::Single);
    cluster.node_file("node2", "/etc/cni/net.d/05-other.conflist", b"{}");
    let said = cluster.plumb_install(&[]);
    let all = format!("{}{}", said.out, said.err);
    assert!(!said.ok, "{said:?}");
    for word in [
        "node node2: /etc/cni/net.d/05-other.conflist",
        "rm /etc/cni/net.d/05-other.conflist",
        "--accept conflist",
    ] {
        assert!(all.contains(word), "{word}: {all}");
    }
    for (flags, word) in [
        (["--cluster-cidr", "10.10.0.0/16"], "it is not in 10.10.0.0/16"),
        (["--cluster-cidr", "192.168.0.0/16"], "lies in 192.168.0.0/16, the range of pods"),
        (["--service-cidr", "10.0.0.0/16"], "which is not in it"),
        (["--dns-ip", "192.0.2.1"], "it is not in the range of Services"),
        (["--image", "nowhere.test/plumb:1"], "nowhere.test/plumb:1"),
    ] {
        let said = cluster.plumb(&[&["install"], flags.as_slice()].concat());
        let all = format!("{}{}", said.out, said.err);
        assert!(!said.ok && all.contains(word), "{flags:?}: {all}");
        assert!(all.contains("nothing was changed"), "{flags:?}: {all}");
    }
    cluster.apply(MORE_SERVICES);
    let said = cluster.plumb_install(&[]);
    assert!(!said.ok && said.err.contains("10.96.0.0/12,10.112.0.0/16: more than one is IPv4"), "{said:?}");
    assert!(!cluster.remains().iter().any(|line| line.contains("plumb")), "{:?}", cluster.remains());
    cluster.kubectl_ok(&["create", "clusterrole", "plumb", "--verb=get", "--resource=pods"]);
    let said = cluster.plumb_install(&[]);
    assert!(!said.ok && said.err.contains("clusterrole/plumb: it is there and not Plumb's"), "{said:?}");
}

const MORE_SERVICES: &str = r#"{"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
    "metadata": {"name": "more"}, "spec": {"cidrs": ["10.112.0.0/16"]}}"#;

#[test]
fn who_may_not_is_told_so() {
    let cluster = bare(Stack::Single);
    let admin = cluster.kubectl_ok(&["config", "view", "--raw", "-o", "json"]);
    let admin: Value = serde_json::from_str(&admin).expect("a kubeconfig");
    let with = |server: &str, user: Value| {
        let mut config = admin.clone();
        config["users"][0]["user"] = user;
        if !server.is_empty() {
            config["clusters"][0]["cluster"]["server"] = server.into();
        }
        let path = cluster.directory().join("other.kubeconfig");
        std::fs::write(&path, config.to_string()).expect("the cluster's directory can be written");
        let said = run(Command::new(plumb()).args(["install", "--kubeconfig"]).arg(&path));
        assert!(!said.ok, "{said:?}");
        said.err
    };
    cluster.kubectl_ok(&["-n", "default", "create", "serviceaccount", "nobody"]);
    let token = cluster.kubectl_ok(&["-n", "default", "create", "token", "nobody"]);
    let said = with("", serde_json::json!({ "token": token.trim() }));
    assert!(said.contains("may not") && said.contains("create daemonsets in kube-system"), "{said}");
    let said = with("", serde_json::json!({ "token": "expired" }));
    assert!(said.contains("expired") && said.contains("renew the kubeconfig"), "{said}");
    let said = with("https://127.0.0.1:1", admin["users"][0]["user"].clone());
    assert!(said.contains("https://127.0.0.1:1") && said.contains("does not answer"), "{said}");
}

/// `helm lint`, and `helm template` beside plumb.yaml.
#[test]
fn the_chart_makes_the_same_objects() {
    let peers = run(Command::new(repository("tools/peers.sh")).arg("helm"));
    assert!(peers.ok, "{peers:?}");
    let helm = PathBuf::from(peers.out.trim()).join("helm");
    let chart = repository("deploy/chart");
    let linted = run(Command::new(&helm).args(["lint", "--strict"]).arg(&chart));
    assert!(linted.ok, "{linted:?}");
    // Without a cluster, a helm that was built from its module takes it for the oldest Kubernetes.
    let asked = ["-n", "kube-system", "--kube-version", "1.36.0"];
    let rendered = run(Command::new(&helm).args(["template", "plumb"]).arg(&chart).args(asked));
    assert!(rendered.ok, "{rendered:?}");
    let printed = run(Command::new(plumb()).args(["install", "--print"]));
    let written = std::fs::read_to_string(repository("deploy/plumb.yaml")).expect("deploy/plumb.yaml");
    assert_eq!(documents(&rendered.out), documents(&written), "the chart and plumb.yaml");
    assert_eq!(documents(&printed.out), documents(&written), "plumb install and plumb.yaml");
    let [pods, services, dns] =
        ["10.244.0.0/16,fd00:10:244::/56", "10.96.0.0/12,fd00:10:96::/112", "10.96.0.10,fd00:10:96::a"];
    let values = [("clusterCIDR", pods), ("serviceCIDR", services), ("dnsIP", dns)]
        .map(|(name, value)| format!("--set={name}={}", value.replace(',', "\\,")));
    let rendered = run(Command::new(&helm).args(["template", "plumb"]).arg(&chart).args(asked).args(&values));
    assert!(rendered.ok, "{rendered:?}");
    let flags = ["--cluster-cidr", pods, "--service-cidr", services, "--dns-ip", dns];
    let printed = run(Command::new(plumb()).args(["install", "--print"]).args(flags));
    assert_eq!(
        documents(&rendered.out),
        documents(&printed.out),
        "the chart and plumb install of two families"
    );
    for (values, flags) in [
        (&["secureMetrics=true"][..], &["--secure-metrics"][..]),
        (&["serviceMonitor=true"], &["--service-monitor"]),
        (
            &["secureMetrics=true", "metricsCertSecret=tls", "serviceMonitor=true"],
            &["--secure-metrics", "--metrics-cert-secret=tls", "--service-monitor"],
        ),
    ] {
        let values = values.iter().map(|value| format!("--set={value}"));
        let rendered =
            run(Command::new(&helm).args(["template", "plumb"]).arg(&chart).args(asked).args(values));
        assert!(rendered.ok, "{rendered:?}");
        let printed = run(Command::new(plumb()).args(["install", "--print"]).args(flags));
        assert_eq!(documents(&rendered.out), documents(&printed.out), "{flags:?}");
    }
}

/// In no order: Helm sorts by kind.
fn documents(text: &str) -> BTreeSet<String> {
    let all: Vec<Value> = serde_saphyr::from_multiple(text).expect("YAML");
    all.iter().filter(|document| !document.is_null()).map(Value::to_string).collect()
}
