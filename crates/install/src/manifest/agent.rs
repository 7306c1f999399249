//! The agents' DaemonSet.

use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec, DaemonSetUpdateStrategy, RollingUpdateDaemonSet};
use k8s_openapi::api::core::v1::{
    Capabilities, Container, EnvVar, EnvVarSource, HTTPGetAction, HostPathVolumeSource, ObjectFieldSelector,
    PodSpec, PodTemplateSpec, Probe, ResourceRequirements, SELinuxOptions, SeccompProfile,
    SecretVolumeSource, SecurityContext, Toleration, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use types::wire::{AGENT_LABELS, AGENT_PORT, HOST_KUBERNETES, HOST_SYSCTLS, METRICS_CERT_DIR};

use super::{NAME, metadata};
use crate::settings::Settings;

/// docs/install.md says what each is for.
const CAPABILITIES: [&str; 4] = ["NET_ADMIN", "NET_BIND_SERVICE", "NET_RAW", "SYS_ADMIN"];

const CNI_BIN: &str = "/opt/cni/bin";
const CNI_CONF: &str = "/etc/cni/net.d";

pub fn agent(settings: &Settings) -> DaemonSet {
    let labels = AGENT_LABELS.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter();
    let labels: std::collections::BTreeMap<_, _> = labels.collect();
    let selector = LabelSelector { match_labels: Some(labels.clone()), ..LabelSelector::default() };
    let template = PodTemplateSpec {
        metadata: Some(ObjectMeta { labels: Some(labels), ..ObjectMeta::default() }),
        spec: Some(pod(settings)),
    };
    // What is wired goes on working while an agent is away, so many may be replaced at once.
    let rolling = RollingUpdateDaemonSet {
        max_unavailable: Some(IntOrString::String("10%".into())),
        ..RollingUpdateDaemonSet::default()
    };
    let spec = DaemonSetSpec {
        selector,
        template,
        update_strategy: Some(DaemonSetUpdateStrategy {
            type_: Some("RollingUpdate".into()),
            rolling_update: Some(rolling),
        }),
        ..DaemonSetSpec::default()
    };
    DaemonSet { metadata: metadata(NAME, true), spec: Some(spec), ..DaemonSet::default() }
}

fn pod(settings: &Settings) -> PodSpec {
    let mounts = mounts(settings);
    PodSpec {
        service_account_name: Some(NAME.into()),
        priority_class_name: Some("system-node-critical".into()),
        host_network: Some(true),
        // The node's own resolvers: those of the cluster are the agents themselves.
        dns_policy: Some("Default".into()),
        // A node is not ready, and may carry taints of any kind, until its agent runs.
        tolerations: Some(vec![Toleration { operator: Some("Exists".into()), ..Toleration::default() }]),
        node_selector: Some([("kubernetes.io/os".into(), "linux".into())].into()),
        termination_grace_period_seconds: Some(5),
        containers: vec![container(settings, &mounts)],
        volumes: Some(mounts.iter().map(Mount::volume).chain(certificate(settings)).collect()),
        ..PodSpec::default()
    }
}

fn container(settings: &Settings, mounts: &[Mount]) -> Container {
    let requests = [("cpu", "20m"), ("memory", "64Mi")];
    let requests = requests.map(|(name, amount)| (name.to_owned(), Quantity(amount.into())));
    Container {
        name: "agent".into(),
        image: Some(settings.image.clone()),
        image_pull_policy: Some(settings.image_pull_policy.clone()),
        command: Some(vec!["/bin/plumb".into(), "agent".into()]),
        env: Some(environment(settings)),
        resources: Some(ResourceRequirements {
            requests: Some(requests.into()),
            ..ResourceRequirements::default()
        }),
        security_context: Some(security()),
        // Ready: this node wires pods and has the datapath it should have. There is no liveness probe: an agent
        // whose parts end ends itself, and one that waits for the API is not helped by a restart.
        readiness_probe: Some(Probe {
            http_get: Some(HTTPGetAction {
                path: Some("/healthz".into()),
                port: IntOrString::Int(AGENT_PORT.into()),
                ..HTTPGetAction::default()
            }),
            period_seconds: Some(2),
            timeout_seconds: Some(3),
            failure_threshold: Some(2),
            ..Probe::default()
        }),
        termination_message_policy: Some("FallbackToLogsOnError".into()),
        volume_mounts: Some(mounts.iter().map(Mount::mount).chain(certificate_mount(settings)).collect()),
        ..Container::default()
    }
}

/// Of agents, and of the short pods that look at nodes and clean them with the same rights.
pub fn security() -> SecurityContext {
    SecurityContext {
        capabilities: Some(Capabilities {
            add: Some(CAPABILITIES.map(str::to_owned).into()),
            drop: Some(vec!["ALL".into()]),
        }),
        privileged: Some(false),
        read_only_root_filesystem: Some(true),
        run_as_user: Some(0),
        seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".into(), ..SeccompProfile::default() }),
        // Where SELinux is on, a container may not use the host's files otherwise.
        se_linux_options: Some(SELinuxOptions { type_: Some("spc_t".into()), ..SELinuxOptions::default() }),
        ..SecurityContext::default()
    }
}

/// The pod's node.
pub fn node_name() -> EnvVar {
    let field = ObjectFieldSelector { field_path: "spec.nodeName".into(), ..ObjectFieldSelector::default() };
    let node = EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() };
    EnvVar { name: "PLUMB_NODE".into(), value: None, value_from: Some(node) }
}

/// What the agent is told.
pub fn environment(settings: &Settings) -> Vec<EnvVar> {
    let given =
        |name: &str, value: &str| EnvVar { name: name.into(), value: Some(value.into()), value_from: None };
    vec![
        node_name(),
        given("PLUMB_API_SERVERS", &settings.api_servers),
        given("PLUMB_CLUSTER_CIDR", &settings.cluster_cidr),
        given("PLUMB_SERVICE_CIDR", &settings.service_cidr),
        given("PLUMB_DNS_IP", &settings.dns_ip),
        given("PLUMB_CLUSTER_DOMAIN", &settings.cluster_domain),
        given("PLUMB_MTU", &settings.mtu),
        given("PLUMB_ALLOW_SOURCES", &settings.allow_sources),
        given("PLUMB_SECURE_METRICS", &settings.secure_metrics),
        given("PLUMB_CNI_BIN_DIR", CNI_BIN),
        given("PLUMB_LOG", &settings.log),
    ]
}

/// The volume with the certificate of metrics.
pub const METRICS_CERT: &str = "metrics-cert";

/// Without the Secret an agent starts all the same, with a certificate of its own.
fn certificate(settings: &Settings) -> Option<Volume> {
    let secret = SecretVolumeSource {
        secret_name: Some(settings.metrics_cert_secret.clone()).filter(|name| !name.is_empty()),
        optional: Some(true),
        ..SecretVolumeSource::default()
    };
    secret.secret_name.is_some().then(|| Volume {
        name: METRICS_CERT.into(),
        secret: Some(secret),
        ..Volume::default()
    })
}

fn certificate_mount(settings: &Settings) -> Option<VolumeMount> {
    certificate(settings).map(|volume| VolumeMount {
        name: volume.name,
        mount_path: METRICS_CERT_DIR.into(),
        read_only: Some(true),
        ..VolumeMount::default()
    })
}

/// A directory of the host.
struct Mount {
    name: &'static str,
    host: String,
    inside: String,
    /// Made when it is not there.
    create: bool,
    read_only: bool,
    /// What the runtime mounts below it later has to be seen.
    follow: bool,
}

impl Mount {
    fn new(name: &'static str, host: &str, inside: &str) -> Self {
        let (host, inside) = (host.to_owned(), inside.to_owned());
        Self { name, host, inside, create: true, read_only: false, follow: false }
    }

    fn volume(&self) -> Volume {
        let kind = if self.create { "DirectoryOrCreate" } else { "Directory" };
        let host_path = HostPathVolumeSource { path: self.host.clone(), type_: Some(kind.into()) };
        Volume { name: self.name.into(), host_path: Some(host_path), ..Volume::default() }
    }

    fn mount(&self) -> VolumeMount {
        VolumeMount {
            name: self.name.into(),
            mount_path: self.inside.clone(),
            read_only: self.read_only.then_some(true),
            mount_propagation: self.follow.then(|| "HostToContainer".into()),
            ..VolumeMount::default()
        }
    }

    fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }
}

/// The directories of the host that an agent works in.
pub fn agent_mounts(settings: &Settings) -> Vec<(Volume, VolumeMount)> {
    mounts(settings).iter().map(|mount| (mount.volume(), mount.mount())).collect()
}

/// A directory of the host that need not be there: the first one of its path, which is, read-only below `/host`.
/// Looking must not make it.
pub fn readable_parent(path: &str) -> (Volume, VolumeMount) {
    let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    let mount =
        Mount { create: false, ..Mount::new("host", &format!("/{first}"), &format!("/host/{first}")) };
    let mount = mount.read_only();
    (mount.volume(), mount.mount())
}

/// The host's sysctls of the network.
pub fn sysctls() -> (Volume, VolumeMount) {
    let mount = sysctls_mount();
    (mount.volume(), mount.mount())
}

fn sysctls_mount() -> Mount {
    Mount { create: false, ..Mount::new("sysctls", "/proc/sys/net", &format!("{HOST_SYSCTLS}/net")) }
}

fn mounts(settings: &Settings) -> Vec<Mount> {
    vec![
        Mount::new("run", "/run/plumb", "/run/plumb"),
        Mount::new("data", "/var/lib/plumb", "/var/lib/plumb"),
        Mount::new("cni-bin", &settings.cni_bin_dir, CNI_BIN),
        Mount::new("cni-conf", &settings.cni_conf_dir, CNI_CONF),
        Mount { follow: true, ..Mount::new("netns", "/run/netns", "/run/netns") },
        sysctls_mount(),
        Mount::new("kubernetes", &settings.kubernetes_dir, HOST_KUBERNETES).read_only(),
    ]
}
