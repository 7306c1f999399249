//! Which lab a cluster is, for commands that know it only by the address of its API: their advice names the lab, however
//! its kubeconfig was found.

use crate::inside::Inside;
use crate::list;
use crate::rundir::RunDir;

/// A lab of this user.
#[derive(Clone, Debug)]
pub struct Found {
    pub name: String,
    run: RunDir,
}

impl Found {
    /// The one whose API this URL is of. A lab that was killed leaves its port to others: of several, one that runs.
    pub fn at(server: &str) -> Option<Self> {
        let port = port(server)?;
        let mut rows = list::at_port(port);
        let name = match &rows[..] {
            [only] => only.clone(),
            _ => {
                let running = list::running();
                rows.retain(|name| running.contains(name));
                rows.pop()?
            }
        };
        Self::named(&name)
    }

    /// The one of this name, whether there is one or not.
    pub fn named(name: &str) -> Option<Self> {
        Some(Self { name: name.to_owned(), run: RunDir::of(name).ok()? })
    }

    /// Whether `plumb lab agent stop` has taken the node's agent away.
    pub fn has_stopped_agent(&self, node: &str) -> bool {
        self.run.stopped(&format!("agent-{node}")).exists()
    }

    /// Whether the node's agent runs, as a process.
    pub fn has_living_agent(&self, node: &str) -> bool {
        Inside::find(&self.name).is_ok_and(|inside| inside.living(&format!("agent-{node}")).is_some())
    }

    /// What a node of a lab that runs has lost of its way to the others.
    pub fn cut_off(&self, node: &str) -> Option<String> {
        Inside::find(&self.name).ok()?.cut_off(node)
    }
}

/// The port of an API on the loopback, where the labs' are.
fn port(server: &str) -> Option<u16> {
    let (host, port) = server.strip_prefix("https://")?.trim_end_matches('/').rsplit_once(':')?;
    ["127.0.0.1", "localhost"].contains(&host).then(|| port.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lab_is_at_a_port_of_the_loopback() {
        for (server, expected) in [
            ("https://127.0.0.1:39871/", Some(39871)),
            ("https://localhost:39871", Some(39871)),
            ("https://192.0.2.1:6443/", None),
            ("https://127.0.0.1/", None),
            ("https://127.0.0.1:6443/prefix", None),
        ] {
            assert_eq!(port(server), expected, "{server}");
        }
    }
}
