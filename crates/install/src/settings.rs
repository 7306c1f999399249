//! What can be chosen about an installation: the same names on the command line, in the chart's values and in the
//! agents' environment.

use types::wire::{DNS_IPS, POD_CIDRS, SERVICE_CIDRS};

/// Every value is text, because in the chart each one is an expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub image: String,
    pub image_pull_policy: String,
    pub cluster_cidr: String,
    pub service_cidr: String,
    /// One address for each family, with a comma between.
    pub dns_ip: String,
    pub cluster_domain: String,
    /// Comma-separated; empty: the agents look into their hosts' kubeconfigs.
    pub api_servers: String,
    /// `0`: that of the node's interface, less the tunnel's headers.
    pub mtu: String,
    pub cni_bin_dir: String,
    pub cni_conf_dir: String,
    /// Where nodes keep their kubeconfig.
    pub kubernetes_dir: String,
    /// Comma-separated; empty: pods send from their own addresses only.
    pub allow_sources: String,
    /// `true`: metrics by TLS, to those whose token may get them.
    pub secure_metrics: String,
    /// With the certificate for that; empty: the agents make theirs.
    pub metrics_cert_secret: String,
    /// `true`: a Service and a ServiceMonitor, for a Prometheus operator.
    pub service_monitor: String,
    pub log: String,
}

/// The image that this program was built with.
pub const IMAGE: &str = concat!("plumb.dev/plumb:", env!("CARGO_PKG_VERSION"));

/// Name in the chart's values, what it is for, and its field.
type Value = (&'static str, &'static str, fn(&mut Settings) -> &mut String);

pub const VALUES: [Value; 16] = [
    ("image", "the agent's image", |s| &mut s.image),
    ("imagePullPolicy", "Never: the image was imported on every node", |s| &mut s.image_pull_policy),
    ("clusterCIDR", "addresses of all pods, as the controller manager has them", |s| &mut s.cluster_cidr),
    ("serviceCIDR", "addresses of Services, as the API server has them", |s| &mut s.service_cidr),
    ("dnsIP", "where pods ask for names: the kubelets' clusterDNS", |s| &mut s.dns_ip),
    ("clusterDomain", "the cluster's domain, as the kubelets have it", |s| &mut s.cluster_domain),
    (
        "apiServers",
        "addresses of API servers, comma-separated; empty: those in kubernetesDir of each node",
        |s| &mut s.api_servers,
    ),
    ("mtu", "MTU of pods; \"0\": that of the node's interface, less the tunnel's headers", |s| &mut s.mtu),
    ("cniBinDir", "where the container runtime looks for CNI executables", |s| &mut s.cni_bin_dir),
    ("cniConfDir", "where the container runtime looks for CNI configurations", |s| &mut s.cni_conf_dir),
    ("kubernetesDir", "where nodes keep the kubelet's kubeconfig, for the API server's address in it", |s| {
        &mut s.kubernetes_dir
    }),
    (
        "allowSources",
        "prefixes that pods may send from if their annotation plumb.dev/allowed-sources asks for it, comma-separated",
        |s| &mut s.allow_sources,
    ),
    (
        "secureMetrics",
        "\"true\": metrics are served by TLS alone, to those whose token may get /metrics",
        |s| &mut s.secure_metrics,
    ),
    (
        "metricsCertSecret",
        "Secret in kube-system with tls.crt, tls.key and ca.crt for that, for plumb-metrics.kube-system.svc; empty: the agents make certificates for themselves",
        |s| &mut s.metrics_cert_secret,
    ),
    (
        "serviceMonitor",
        "\"true\": a Service and a ServiceMonitor, where there is a Prometheus operator",
        |s| &mut s.service_monitor,
    ),
    ("log", "what the agents log", |s| &mut s.log),
];

impl Default for Settings {
    fn default() -> Self {
        Self {
            image: IMAGE.into(),
            image_pull_policy: "IfNotPresent".into(),
            cluster_cidr: POD_CIDRS[0].into(),
            service_cidr: SERVICE_CIDRS[0].into(),
            dns_ip: DNS_IPS[0].into(),
            cluster_domain: "cluster.local".into(),
            api_servers: String::new(),
            mtu: "0".into(),
            cni_bin_dir: "/opt/cni/bin".into(),
            cni_conf_dir: "/etc/cni/net.d".into(),
            kubernetes_dir: "/etc/kubernetes".into(),
            allow_sources: String::new(),
            secure_metrics: "false".into(),
            metrics_cert_secret: String::new(),
            service_monitor: "false".into(),
            log: "info,kube_client=off".into(),
        }
    }
}

/// Whether a setting of yes or no says yes. One that the chart decides may: what it is for is in the chart, under a
/// condition.
pub fn is_on(value: &str) -> bool {
    value == "true" || value.starts_with("{{")
}

impl Settings {
    /// Every value is the chart's expression for it.
    pub fn of_chart() -> Self {
        let mut settings = Self::default();
        for (name, _, field) in VALUES {
            *field(&mut settings) = format!("{{{{ .Values.{name} }}}}");
        }
        settings
    }
}
