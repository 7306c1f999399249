//! What is advised can be pasted: commands name the cluster as this command was told it, and the lab that it is, however
//! that was found.

use std::time::Instant;

use install::Reach;
use kube::Client;
use lab::Found;
use types::wire::{AGENT_NAMESPACE, AGENT_PORT, AGENT_SOCKET};

/// A cluster that has answered, and how people's commands speak of it.
#[derive(Clone)]
pub struct Cluster {
    pub client: Client,
    pub advice: Advice,
}

impl Cluster {
    pub async fn connect(reach: &Reach) -> anyhow::Result<Self> {
        let connected = reach.connect_or(None, |server| {
            let Found { name, .. } = Found::at(server)?;
            Some(format!(
                "`plumb lab status --name {name}` shows whether it runs, `plumb lab logs --name {name} --tail 50 api` what it \
                 has said"
            ))
        });
        let (client, server) = aloud("the API server", connected).await?;
        Ok(Self { client, advice: Advice { flags: reach.flags(), lab: Found::at(&server) } })
    }
}

/// Waits for an answer; somebody who waits long is told for whose.
pub async fn aloud<T>(whose: &str, answer: impl Future<Output = T>) -> T {
    let began = Instant::now();
    let tell = || eprintln!("{:>6.1} s  waiting for {whose}", began.elapsed().as_secs_f64());
    lab::aloud(&lab::Silence::begins(), tell, answer).await
}

/// What is run on a node; `plumb features` asks the kernel that it runs on.
const OF_NODE: [&str; 6] = ["curl", "ip", "nft", "plumb", "ss", "sysctl"];

#[derive(Clone, Debug, Default)]
pub struct Advice {
    /// ` --kubeconfig FILE --context NAME`, as far as they were given.
    flags: String,
    /// The lab that the cluster is, if this user has started it.
    lab: Option<Found>,
}

impl Advice {
    /// `kubectl` of this cluster.
    pub fn kubectl(&self, words: &str) -> String {
        format!("kubectl{} {words}", self.flags)
    }

    /// A command of this program that takes a kubeconfig.
    pub fn plumb(&self, words: &str) -> String {
        format!("plumb {words}{}", self.flags)
    }

    /// `plumb lab VERB`, where the cluster is a lab.
    fn lab(&self, verb: &str, rest: &str) -> Option<String> {
        let name = &self.lab.as_ref()?.name;
        Some(format!("plumb lab {verb} --name {name} {rest}").trim_end().to_owned())
    }

    /// A shell command to be run on the node.
    pub fn on_node(&self, node: &str, command: &str) -> String {
        self.lab("exec", &format!("{node} {command}")).unwrap_or_else(|| format!("on {node}: {command}"))
    }

    /// Gives a lab's nodes back what was taken from them.
    pub fn rewire(&self) -> Option<String> {
        self.lab("up", "")
    }

    pub fn resume(&self, node: &str) -> String {
        let resume = || {
            format!(
                "on {node}: curl --unix-socket {AGENT_SOCKET} -H 'Content-Type: application/json' -d \
                 '{{\"paused\":false}}' http://agent/v1/pause"
            )
        };
        self.lab("agent resume", node).unwrap_or_else(resume)
    }

    /// What an agent has written. `pod`: its pod, if there is one.
    pub fn log(&self, node: &str, pod: Option<&str>) -> String {
        let log = || {
            self.kubectl(&format!(
                "-n {AGENT_NAMESPACE} logs {} --tail=50",
                pod.unwrap_or("-l app.kubernetes.io/component=agent")
            ))
        };
        self.lab("logs --tail 50", &format!("{node} agent")).unwrap_or_else(log)
    }

    /// How an agent that does not answer is brought back, or what shows why it is away.
    pub fn silent(&self, node: &str, pod: Option<&str>) -> String {
        match (&self.lab, pod) {
            (Some(lab), _) if lab.has_stopped_agent(node) => {
                self.lab("agent start", node).unwrap_or_default()
            }
            (Some(lab), _) if lab.cut_off(node).is_some() => self.rewire().unwrap_or_default(),
            // It runs, and does not answer.
            (Some(lab), Some(_)) if lab.has_living_agent(node) => {
                self.lab("agent restart", node).unwrap_or_default()
            }
            (Some(_), Some(_)) => self.log(node, pod),
            (Some(_), None) => self.lab("status", "").unwrap_or_default(),
            (None, Some(pod)) => self.kubectl(&format!("-n {AGENT_NAMESPACE} describe pod {pod}")),
            (None, None) => self.kubectl(&format!("-n {AGENT_NAMESPACE} describe daemonset plumb")),
        }
    }

    /// What a lab's node has lost of its way to the others.
    pub fn cut_off(&self, node: &str) -> Option<String> {
        self.lab.as_ref()?.cut_off(node)
    }

    /// How an agent comes back whose node is at none of its addresses, or out of reach there.
    pub fn nobody_at(&self, node: &str, address: &str, pod: Option<&str>) -> String {
        match &self.lab {
            Some(_) => self.silent(node, pod),
            None => format!(
                "see on {node} that an interface that is up has {address} (ip -br address); ip address add {address}/PREFIX \
                 dev INTERFACE gives it back; if it has it, something on the way drops TCP to its port {AGENT_PORT}"
            ),
        }
    }

    /// The same of a node whose kubelet is not heard of either.
    pub fn unheard(&self, node: &str) -> String {
        let there = || {
            format!(
                "see on {node} itself whether it runs, has its links up (ip -br link), its address and a default route (ip \
                 -br address; ip route), and whether its kubelet runs (systemctl status kubelet)"
            )
        };
        let stopped = self.lab.as_ref().is_some_and(|lab| lab.has_stopped_agent(node));
        let lab = if stopped { self.lab("agent start", node) } else { self.rewire() };
        lab.unwrap_or_else(there)
    }

    /// Why a node is NotReady whose agent answers.
    pub fn kubelet(&self, node: &str) -> String {
        let there = || {
            format!(
                "see on {node} whether its kubelet runs (systemctl status kubelet) and what it says (journalctl -u kubelet)"
            )
        };
        self.lab("logs --tail 50", &format!("{node} kubelet")).unwrap_or_else(there)
    }

    /// The words of a command that has failed: whatever stands between backquotes for this cluster names it.
    pub fn pasteable<T>(reach: &Reach, outcome: anyhow::Result<T>) -> anyhow::Result<T> {
        let advice = Self { flags: reach.flags(), lab: None };
        outcome.map_err(|error| match advice.flags.is_empty() || error.is::<watch::Misused>() {
            true => error,
            false => anyhow::anyhow!(advice.named(&watch::told(error.as_ref()))),
        })
    }

    fn named(&self, words: &str) -> String {
        let placed = |(at, part): (usize, &str)| match (at % 2, part.split_once(' ')) {
            (0, _) => part.to_owned(),
            _ if part.contains(&self.flags) => format!("`{part}`"),
            (_, Some(("kubectl", rest))) => format!("`{}`", self.kubectl(rest)),
            // A lab's own have its name.
            (_, Some(("plumb", rest))) if !rest.starts_with("lab ") => format!("`{}`", self.plumb(rest)),
            _ => format!("`{part}`"),
        };
        words.split('`').enumerate().map(placed).collect()
    }

    /// An agent's own words: a command between backquotes is of this cluster's or for its node, and no command stays as it is.
    pub fn of_agent(&self, node: &str, words: &str) -> String {
        let placed = |(at, part): (usize, &str)| match (at % 2, part.split_once(' ')) {
            (0, _) => part.to_owned(),
            (_, Some(("kubectl", rest))) => format!("`{}`", self.kubectl(rest)),
            (_, Some(("plumb", rest))) if rest != "features" => format!("`{}`", self.plumb(rest)),
            (_, Some((program, _))) if !OF_NODE.contains(&program) => format!("`{part}`"),
            (_, None) => format!("`{part}`"),
            _ => match self.lab("exec", &format!("{node} {part}")) {
                Some(command) => format!("`{command}`"),
                None => format!("`{part}` on {node}"),
            },
        };
        // What follows need not say again where.
        let words = words.replace("` on the node", "`");
        words.split('`').enumerate().map(placed).collect()
    }
}

#[cfg(test)]
impl Advice {
    /// For a lab of this name.
    pub fn of_lab(name: &str) -> Self {
        Self { flags: String::new(), lab: Some(Found::named(name).expect("a name")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agents_commands_are_for_its_node() {
        let words = "give this machine the route: `ip route get 192.0.2.1` says more, and so does `kubectl get nodes`";
        let flags = " --context there".to_owned();
        let cluster = Advice { flags, lab: None };
        assert_eq!(
            cluster.of_agent("node1", words),
            "give this machine the route: `ip route get 192.0.2.1` on node1 says more, and so does `kubectl --context \
             there get nodes`"
        );
        assert_eq!(
            Advice::of_lab("ci").of_agent("node1", words),
            "give this machine the route: `plumb lab exec --name ci node1 ip route get 192.0.2.1` says more, and so does \
             `kubectl get nodes`"
        );
        let words =
            "(`nft list ruleset`), and what the kernel lacks (`plumb features`); `plumb sysdump` collects it";
        assert_eq!(
            cluster.of_agent("node1", words),
            "(`nft list ruleset` on node1), and what the kernel lacks (`plumb features` on node1); `plumb sysdump --context \
             there` collects it"
        );
        assert_eq!(
            Advice::of_lab("ci").of_agent("node1", words),
            "(`plumb lab exec --name ci node1 nft list ruleset`), and what the kernel lacks (`plumb lab exec --name ci node1 \
             plumb features`); `plumb sysdump` collects it"
        );
        let no_command = "the table (`flags owner`); the route is `unreachable`, the `mtu` small";
        assert_eq!(Advice::of_lab("ci").of_agent("node1", no_command), no_command);
        assert_eq!(cluster.plumb("status"), "plumb status --context there");
        let on_the_node = "`ip route get 192.0.2.1` on the node says the same";
        assert_eq!(cluster.of_agent("node1", on_the_node), "`ip route get 192.0.2.1` on node1 says the same");
    }

    #[test]
    fn what_a_failed_command_advises_names_the_cluster_that_it_was_told() {
        let told = |reach: &Reach, words: &str| {
            let failed: anyhow::Result<()> = Err(anyhow::anyhow!("{words}"));
            Advice::pasteable(reach, failed).unwrap_err().to_string()
        };
        let reach = Reach { kubeconfig: Some("/a b".into()), context: Some("there".to_owned()) };
        let flags = "--kubeconfig '/a b' --context there";
        for (words, said) in [
            ("x; `kubectl get pods -A` lists", format!("x; `kubectl {flags} get pods -A` lists")),
            ("`plumb install` makes it", format!("`plumb install {flags}` makes it")),
            ("`plumb lab kubeconfig --name NAME`", "`plumb lab kubeconfig --name NAME`".to_owned()),
            ("`kubeadm certs renew apiserver`", "`kubeadm certs renew apiserver`".to_owned()),
        ] {
            assert_eq!(told(&reach, words), said);
            // Only once.
            assert_eq!(told(&reach, &said), said);
            assert_eq!(told(&Reach::default(), words), words);
        }
    }

    #[test]
    fn an_agent_that_is_away_is_looked_for_where_it_should_be() {
        let silent = |advice: Advice, pod| advice.silent("node1", pod);
        assert_eq!(
            silent(Advice::of_lab("ci"), Some("plumb-node1")),
            "plumb lab logs --tail 50 --name ci node1 agent"
        );
        assert_eq!(silent(Advice::of_lab("ci"), None), "plumb lab status --name ci");
        assert_eq!(Advice::of_lab("ci").unheard("node1"), "plumb lab up --name ci");
        assert!(Advice::default().unheard("node1").starts_with("see on node1 itself whether it runs"));
        assert_eq!(silent(Advice::default(), Some("plumb-x")), "kubectl -n kube-system describe pod plumb-x");
        assert_eq!(silent(Advice::default(), None), "kubectl -n kube-system describe daemonset plumb");
    }
}
