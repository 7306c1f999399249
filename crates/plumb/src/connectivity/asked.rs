//! What was asked for: whether it can be meant, which is looked at before anything is touched, and how it is asked for again.

use anyhow::{Context, Result, bail};
use types::Protocol;
use types::wire::{LOOPBACK_PORTS, NODE_PORTS};

use super::{NAMESPACE, Test};
use crate::trace::host;

impl Test {
    /// Whatever can be said without the cluster.
    pub fn check(&self) -> Result<()> {
        label(&self.namespace).context("-n")?;
        self.outside.iter().try_for_each(|outside| host_and_port(outside)).context("--outside")?;
        self.outside_name.iter().try_for_each(|name| host::only_name(name)).context("--outside-name")?;
        host::only_name(&self.domain).context("--domain")?;
        self.image.iter().try_for_each(|image| reference(image)).context("--image")?;
        let taken = NODE_PORTS.iter().chain(&LOOPBACK_PORTS);
        let mut taken =
            taken.filter(|(protocol, port, _)| (*protocol, *port) == (Protocol::Tcp, self.host_port));
        match taken.next() {
            Some((_, port, whose)) => {
                bail!("--host-port {port} is taken on every node: {whose}; give another that is free there")
            }
            None => Ok(()),
        }
    }

    /// The same for one test, whose pods stay.
    pub fn again(&self, only: &str) -> String {
        let mut words = format!("connectivity test --only {only} --keep");
        let listed = |values: &[String]| (!values.is_empty()).then(|| values.join(","));
        let unlike = |value: &str, usual: &str| (value != usual).then(|| value.to_owned());
        let (port, settle) = (self.host_port.to_string(), self.settle.to_string());
        let patience = self.patience.to_string();
        for (flag, value) in [
            ("-n", unlike(&self.namespace, NAMESPACE)),
            ("--nodes", listed(&self.nodes)),
            ("--image", self.image.clone()),
            ("--outside", listed(&self.outside)),
            ("--outside-name", self.outside_name.clone()),
            ("--domain", unlike(&self.domain, "cluster.local")),
            ("--host-port", unlike(&port, "29475")),
            ("--settle", unlike(&settle, "10")),
            ("--patience", unlike(&patience, "90")),
        ] {
            words.extend(value.into_iter().flat_map(|value| [format!(" {flag} "), value]));
        }
        words
    }
}

/// A namespace's name (RFC 1123).
fn label(text: &str) -> Result<()> {
    let inside = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if text.is_empty() || text.len() > 63 || !text.bytes().all(inside) || text.trim_matches('-') != text {
        bail!(
            "{text:?} is no name of a namespace: one has up to 63 lower-case letters, digits and hyphens, and begins and \
             ends with none of the last"
        );
    }
    Ok(())
}

fn host_and_port(text: &str) -> Result<()> {
    let wrong =
        || format!("{text:?} is not HOST:PORT, as 192.0.2.1:443, [2001:db8::1]:443 or example.org:443");
    let (host, port) = text.rsplit_once(':').with_context(wrong)?;
    if !port.parse::<u16>().is_ok_and(|port| port > 0) {
        bail!("{}; a port is a number from 1 to 65535", wrong());
    }
    match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(inner) if inner.parse::<std::net::Ipv6Addr>().is_ok() => Ok(()),
        None if !host.contains([':', '/', '[']) => host::check(host),
        _ => bail!(wrong()),
    }
}

/// Runtimes refuse others, each pod by pod.
fn reference(text: &str) -> Result<()> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:@".contains(&byte);
    if text.is_empty() || !text.bytes().all(fits) || text.contains("://") {
        bail!("{text:?} is no image: give one as registry.example.org/plumb:0.2.0");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, FromArgMatches};

    use super::super::Verb;
    use super::*;

    fn typed(words: &[&str]) -> Test {
        let command = ["plumb", "connectivity", "test"].iter().chain(words);
        let matches = crate::Plumb::command().try_get_matches_from(command).unwrap();
        let crate::Command::Connectivity(args) = crate::Plumb::from_arg_matches(&matches).unwrap().command
        else {
            panic!("another command")
        };
        let Verb::Test(test) = args.verb;
        test
    }

    #[test]
    fn what_is_to_be_run_again_is_run_alike() {
        let again = |words: &[&str]| typed(words).again("pod-to-pod");
        assert_eq!(again(&["--only", "pod-*"]), "connectivity test --only pod-to-pod --keep");
        let words = "-n other --nodes a,b --image x/y:1 --outside 192.0.2.1:80 --outside-name a.test --domain k8s.test \
                     --host-port 29999 --settle 3 --patience 7";
        let typed: Vec<&str> = words.split(' ').collect();
        // All that says what is tested: of the others the cluster's are added to every command.
        let mut command = crate::Plumb::command();
        let test = command.find_subcommand_mut("connectivity").and_then(|it| it.find_subcommand_mut("test"));
        let others = ["only", "list", "keep", "full", "output", "json", "kubeconfig", "context", "help"];
        for arg in test.expect("it is there").get_arguments() {
            let flags = [
                arg.get_short().map(|short| format!("-{short}")),
                arg.get_long().map(|long| format!("--{long}")),
            ];
            let is_there = flags.iter().flatten().any(|flag| typed.contains(&flag.as_str()));
            assert!(is_there || others.contains(&arg.get_id().as_str()), "{}", arg.get_id());
        }
        assert_eq!(again(&typed), format!("connectivity test --only pod-to-pod --keep {words}"));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_before_anything_is_touched() {
        for words in [
            "",
            "-n other-1 --outside 192.0.2.1:80,[2001:db8::1]:443 --outside-name example.org --domain k8s.test.",
            "--outside example.org:443 --image r.example:5000/a/plumb@sha256:00 --host-port 30080",
        ] {
            let words: Vec<&str> = words.split(' ').filter(|word| !word.is_empty()).collect();
            typed(&words).check().unwrap_or_else(|error| panic!("{words:?}: {error:#}"));
        }
        for (flag, value, said) in [
            ("-n", "Mine", "no name of a namespace"),
            ("-n", "a-", "no name of a namespace"),
            ("--outside", "192.0.2.1", "not HOST:PORT"),
            ("--outside", "192.0.2.1:80,fd00::1:80", "not HOST:PORT"),
            ("--outside", "192.0.2.300:80", "no address"),
            ("--outside", "http://a:80", "not HOST:PORT"),
            ("--outside", "a:0", "1 to 65535"),
            ("--outside-name", "a..b", "no name"),
            ("--domain", "192.0.2.1", "is an address"),
            ("--image", "a b", "no image"),
            ("--host-port", "9475", "the agent's health"),
            ("--host-port", "10250", "the kubelet;"),
        ] {
            let error = format!("{:#}", typed(&[flag, value]).check().unwrap_err());
            assert!(error.contains(said) && error.contains(flag), "{flag} {value}: {error}");
        }
    }
}
