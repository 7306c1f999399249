//! Why this process may not do what the kernel can: what of root it lacks, as it does in a container, and who gives it.

use std::fmt::Write;

/// What a lab and an agent use of root, by number (linux/capability.h). What else they do, every container's root may.
const NEEDED: [(u32, &str); 3] = [(12, "NET_ADMIN"), (13, "NET_RAW"), (21, "SYS_ADMIN")];

/// What the kernel tells of this process.
#[derive(Debug, Default)]
struct Process<'a> {
    root: bool,
    /// /proc/self/status
    status: &'a str,
    /// /proc/self/attr/current: `docker-default (enforce)` under AppArmor, `unconfined` without a profile
    profile: &'a str,
}

/// The next step after an answer that something is forbidden, or on a read-only file system.
pub fn next_step(answer: &str) -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (status, profile) = (read("/proc/self/status"), read("/proc/self/attr/current"));
    Process { root: crate::own::is_root(), status: &status, profile: &profile }.next_step(answer)
}

impl Process<'_> {
    fn field(&self, name: &str) -> &str {
        let value = self.status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.unwrap_or_default().trim()
    }

    fn next_step(&self, answer: &str) -> String {
        if !self.root {
            return "run as root, or with CAP_NET_ADMIN, CAP_NET_RAW and CAP_SYS_ADMIN".to_owned();
        }
        if answer.contains("Read-only file system") {
            return "/proc/sys is read-only here, as in a container: start that with --privileged, or with \
                    --security-opt systempaths=unconfined"
                .to_owned();
        }
        let capabilities = u64::from_str_radix(self.field("CapEff"), 16).unwrap_or(u64::MAX);
        let missing = NEEDED.iter().filter(|(number, _)| capabilities >> number & 1 == 0);
        let missing: Vec<&str> = missing.map(|(_, name)| *name).collect();
        let mut text = String::new();
        let mut options = Vec::new();
        if !missing.is_empty() {
            let named: Vec<String> = missing.iter().map(|name| format!("CAP_{name}")).collect();
            // A string takes everything.
            let _ = write!(text, "this is root without {}", named.join(", "));
            options.extend(missing.iter().map(|name| format!("--cap-add {name}")));
        }
        // SECCOMP_MODE_FILTER; its own filter a process has for what it starts, never for itself.
        if self.field("Seccomp") == "2" {
            text += if text.is_empty() { "a seccomp filter" } else { ", under a seccomp filter" };
            options.push("--security-opt seccomp=unconfined".to_owned());
        }
        let profile = self.profile.trim().trim_end_matches('\0');
        if profile.ends_with("(enforce)") {
            text += if text.is_empty() { "the AppArmor profile " } else { " and the AppArmor profile " };
            text += profile.trim_end_matches(" (enforce)");
            options.push("--security-opt apparmor=unconfined".to_owned());
        }
        if text.is_empty() {
            return "root has all capabilities here and no seccomp filter or AppArmor profile: a security module of this \
                    machine refuses it; its log (dmesg, ausearch -m avc) says which"
                .to_owned();
        }
        format!(
            "{text}, as in a container by default; start that with --privileged, or with {} (docs/containers.md)",
            options.join(" ")
        )
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
            Process { root: true, status: &status, profile }.next_step("Operation not permitted")
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
        let whole = step("000001ffffffffff", 0, "unconfined");
        assert!(whole.contains("a security module"), "{whole}");
    }

    #[test]
    fn a_user_is_told_to_be_root_and_a_read_only_proc_is_no_kernels_fault() {
        let user = Process::default().next_step("Operation not permitted");
        assert!(user.starts_with("run as root"), "{user}");
        let root = Process { root: true, ..Process::default() };
        let step = root.next_step("write /proc/sys/net/ipv4/ip_forward: Read-only file system (os error 30)");
        assert!(
            step.starts_with("/proc/sys is read-only here") && step.contains("systempaths=unconfined"),
            "{step}"
        );
    }
}
