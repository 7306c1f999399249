//! Why this process may not do what the kernel can: what of root it lacks, as it does in a container, and who gives it.

/// A capability by its number (linux/capability.h).
type Capability = (u32, &'static str);
/// With which a raw or packet socket is opened (raw(7), packet(7)).
const NET_RAW: Capability = (13, "NET_RAW");
/// What a lab and an agent use of root and an engine may leave out: Docker the first and the last, Podman NET_RAW as well,
/// CRI-O all. What else they do, every container's root may. A mount namespace is entered with SYS_CHROOT (setns(2)).
const NEEDED: [Capability; 4] = [(12, "NET_ADMIN"), NET_RAW, (18, "SYS_CHROOT"), (21, "SYS_ADMIN")];

/// What is told of this process.
#[derive(Debug, Default)]
struct Process<'a> {
    root: bool,
    /// /proc/self/status
    status: &'a str,
    /// /proc/self/attr/current: `docker-default (enforce)` under AppArmor, `unconfined` without a profile
    profile: &'a str,
    /// /proc/self/uid_map
    users: &'a str,
    /// Of Kubernetes: what it may do stands in its securityContext.
    pod: bool,
}

/// The next step after an answer that something is forbidden, or on a read-only file system.
pub fn next_step(answer: &str) -> String {
    of(&NEEDED, answer)
}

/// The same of an answer to who opens a raw or packet socket.
pub(crate) fn next_step_of_socket(answer: &str) -> String {
    of(&[NET_RAW], answer)
}

fn of(needed: &[Capability], answer: &str) -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (status, profile) = (read("/proc/self/status"), read("/proc/self/attr/current"));
    let (users, pod) = (read("/proc/self/uid_map"), std::env::var_os("KUBERNETES_SERVICE_HOST").is_some());
    let root = crate::own::is_root();
    Process { root, status: &status, profile: &profile, users: &users, pod }.next_step(needed, answer)
}

/// The sysctl that keeps a namespace of this feature from being made (namespaces(7): ENOSPC), and how it is raised.
pub(super) fn limit(feature: &str, answer: &str) -> Option<String> {
    let kind = match feature {
        "netns" => "net",
        "mntns" => "mnt",
        "utsns" => "uts",
        "pidns" => "pid",
        _ => return None,
    };
    let name = format!("max_{kind}_namespaces");
    let value = std::fs::read_to_string(format!("/proc/sys/user/{name}")).unwrap_or_default();
    let is_full = answer.contains("No space left on device");
    is_full.then(|| {
        format!(
            "/proc/sys/user/{name} is {} and allows no more of them: sysctl -w user.{name}=10000, as root of the machine",
            value.trim()
        )
    })
}

/// What is missing, and what gives it: options of container engines, and fields of a pod's securityContext.
#[derive(Default)]
struct Missing<'a> {
    capabilities: Vec<&'a str>,
    seccomp: bool,
    /// The profile's name.
    apparmor: Option<&'a str>,
}

impl Missing<'_> {
    fn is_nothing(&self) -> bool {
        self.capabilities.is_empty() && !self.seccomp && self.apparmor.is_none()
    }

    fn said(&self) -> String {
        let mut text = String::new();
        if !self.capabilities.is_empty() {
            let named: Vec<String> = self.capabilities.iter().map(|name| format!("CAP_{name}")).collect();
            text = format!("this is root without {}", named.join(", "));
        }
        if self.seccomp {
            text += if text.is_empty() { "a seccomp filter" } else { ", under a seccomp filter" };
        }
        if let Some(profile) = self.apparmor {
            text += if text.is_empty() { "the AppArmor profile " } else { " and the AppArmor profile " };
            text += profile;
        }
        text
    }

    fn options(&self) -> String {
        let mut options: Vec<String> =
            self.capabilities.iter().map(|name| format!("--cap-add {name}")).collect();
        options.extend(self.seccomp.then(|| "--security-opt seccomp=unconfined".to_owned()));
        options.extend(self.apparmor.map(|_| "--security-opt apparmor=unconfined".to_owned()));
        options.join(" ")
    }

    fn fields(&self) -> String {
        let mut fields = Vec::new();
        if !self.capabilities.is_empty() {
            fields.push(format!("capabilities: {{add: [{}]}}", self.capabilities.join(", ")));
        }
        fields.extend(self.seccomp.then(|| "seccompProfile: {type: Unconfined}".to_owned()));
        fields.extend(self.apparmor.map(|_| "appArmorProfile: {type: Unconfined}".to_owned()));
        fields.join(", ")
    }
}

impl<'a> Process<'a> {
    fn field(&self, name: &str) -> &'a str {
        let value = self.status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.unwrap_or_default().trim()
    }

    fn missing(&self, needed: &[Capability]) -> Missing<'a> {
        let capabilities = u64::from_str_radix(self.field("CapEff"), 16).unwrap_or(u64::MAX);
        let lacks = needed.iter().filter(|(number, _)| capabilities >> number & 1 == 0);
        Missing {
            capabilities: lacks.map(|(_, name)| *name).collect(),
            // SECCOMP_MODE_FILTER; its own filter a process has for what it starts, never for itself.
            seccomp: self.field("Seccomp") == "2",
            apparmor: self.profile.trim().trim_end_matches('\0').strip_suffix(" (enforce)"),
        }
    }

    fn next_step(&self, needed: &[Capability], answer: &str) -> String {
        if !self.root {
            let names: Vec<String> = needed.iter().map(|(_, name)| format!("CAP_{name}")).collect();
            return format!("run as root, or with {}", names.join(", "));
        }
        if answer.contains("Read-only file system") {
            let given = match self.pod {
                true => {
                    "mount the host's /proc/sys at /host/proc/sys, as deploy/plumb.yaml does, or give the container \
                     securityContext: {privileged: true}"
                }
                false => "start that with --privileged, or with --security-opt systempaths=unconfined",
            };
            return format!("/proc/sys is read-only here, as in a container: {given}");
        }
        let missing = self.missing(needed);
        if !missing.is_nothing() {
            let (said, docs) = (missing.said(), "docs/containers.md");
            return match self.pod {
                true => format!(
                    "{said}, as in a container by default; give it securityContext: {{privileged: true}}, or {{{}}} ({docs})",
                    missing.fields()
                ),
                false => format!(
                    "{said}, as in a container by default; start that with --privileged, or with {} ({docs})",
                    missing.options()
                ),
            };
        }
        if !crate::own::is_whole(self.users) {
            return "this is root of a user namespace, as in a rootless container or in the lab of an ordinary user: what \
                    it may not do there, root of the machine may (sudo)"
                .to_owned();
        }
        "root has all capabilities here and no seccomp filter or AppArmor profile: a security module of this machine \
         refuses it, whose log (dmesg, ausearch -m avc) says which, or, of a packet, a rule of a firewall \
         (nft list ruleset)"
            .to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a container of Docker's has by default, and what each option takes away of it.
    #[test]
    fn what_is_missing_is_named_with_the_option_that_gives_it() {
        let step = |capabilities: &str, seccomp, profile| {
            let status = format!("Name:\tplumb\nCapEff:\t{capabilities}\nSeccomp:\t{seccomp}\n");
            Process { root: true, status: &status, profile, ..Process::default() }
                .next_step(&NEEDED, "Operation not permitted")
        };
        let default = step("00000000a80425fb", 2, "docker-default (enforce)\n");
        assert!(
            default
                .starts_with("this is root without CAP_NET_ADMIN, CAP_SYS_ADMIN, under a seccomp filter and")
        );
        for option in
            ["--privileged", "--cap-add NET_ADMIN", "--cap-add SYS_ADMIN", "seccomp=unconfined", "apparmor="]
        {
            assert!(default.contains(option), "{option}: {default}");
        }
        let filtered = step("00000000a82435fb", 2, "");
        assert!(filtered.starts_with("a seccomp filter, as in a container"), "{filtered}");
        assert!(!filtered.contains("cap-add") && !filtered.contains("apparmor"), "{filtered}");
        // CRI-O's, with what a lab is given first.
        let lean = step("00000000002015fb", 0, "");
        assert!(lean.starts_with("this is root without CAP_NET_RAW, CAP_SYS_CHROOT, as"), "{lean}");
        let whole = step("000001ffffffffff", 0, "unconfined");
        assert!(whole.contains("a security module"), "{whole}");
    }

    /// A pod that may not ping needs no more than that.
    #[test]
    fn a_socket_takes_one_capability() {
        let pod =
            Process { root: true, pod: true, status: "CapEff:\t0000000000000400\n", ..Process::default() };
        let step = pod.next_step(&[NET_RAW], "Operation not permitted");
        assert!(step.contains("{add: [NET_RAW]}"), "{step}");
    }

    /// Where its options are not an engine's, and where it is not root of everything.
    #[test]
    fn a_pod_is_told_of_its_fields_and_root_of_a_user_namespace_of_another_root() {
        let status = "CapEff:\t00000000a80425fb\nSeccomp:\t2\n";
        let pod = Process { root: true, pod: true, status, ..Process::default() };
        let step = pod.next_step(&NEEDED, "Operation not permitted");
        for field in
            ["{add: [NET_ADMIN, SYS_ADMIN]}", "seccompProfile: {type: Unconfined}", "{privileged: true}"]
        {
            assert!(step.contains(field) && !step.contains("--"), "{field}: {step}");
        }
        assert!(pod.next_step(&NEEDED, "Read-only file system (os error 30)").contains("/host/proc/sys"));
        let of = |users| {
            Process { root: true, users, ..Process::default() }.next_step(&NEEDED, "Operation not permitted")
        };
        assert!(of("         0       1000          1\n").contains("root of the machine may"));
        assert!(of("         0          0 4294967295\n").contains("a security module"));
    }

    #[test]
    fn a_user_is_told_to_be_root_and_a_read_only_proc_is_no_kernels_fault() {
        let user = Process::default().next_step(&NEEDED, "Operation not permitted");
        assert!(user.starts_with("run as root"), "{user}");
        let root = Process { root: true, ..Process::default() };
        let step = root
            .next_step(&NEEDED, "write /proc/sys/net/ipv4/ip_forward: Read-only file system (os error 30)");
        assert!(
            step.starts_with("/proc/sys is read-only here") && step.contains("systempaths=unconfined"),
            "{step}"
        );
    }
}
