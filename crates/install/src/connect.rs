//! The way to the cluster, with what is wrong with it in words.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow, bail};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use types::wire::LAB_VERSION;
use watch::BadKubeconfig;

/// How long the API server may be silent where nothing is watched.
pub(crate) const SILENCE: Duration = Duration::from_secs(30);

/// Which cluster, in kubectl's words.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Reach {
    /// Which cluster [default: $KUBECONFIG, then ~/.kube/config]
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// Which context of the kubeconfig
    #[arg(long)]
    pub context: Option<String>,
}

impl Reach {
    /// The same for another command, each flag with a blank before it.
    pub fn flags(&self) -> String {
        let file = self.kubeconfig.iter().map(|path| ("kubeconfig", path.to_string_lossy().into_owned()));
        let context = self.context.iter().map(|name| ("context", name.clone()));
        file.chain(context).map(|(flag, value)| format!(" --{flag} {}", quoted(&value))).collect()
    }

    /// A client that the API server has answered, and the server's URL. `silence` is how long every further answer may
    /// stay away, `None` that of the library, with which watches can rest.
    pub async fn connect(&self, silence: Option<Duration>) -> Result<(Client, String)> {
        self.connect_or(silence, |_| None).await
    }

    /// The same; `known` tells what to do about a server of this URL that does not answer, where that is known better.
    pub async fn connect_or(
        &self,
        silence: Option<Duration>,
        known: impl FnOnce(&str) -> Option<String>,
    ) -> Result<(Client, String)> {
        let mut config = self.config().await?;
        config.connect_timeout = Some(Duration::from_secs(5));
        config.read_timeout = silence.or(config.read_timeout);
        let server = config.cluster_url.to_string();
        let client = Client::try_from(config).with_context(|| format!("a client for {server}"))?;
        // An expired token is refused here already: only who shows none is taken for an anonymous user.
        match client.apiserver_version().await {
            Ok(_) => Ok((client, server)),
            Err(error) => {
                let what = format!("the API server {server}");
                let is_answer = matches!(error, kube::Error::Api(_));
                Err(match known(&server).filter(|_| !is_answer) {
                    Some(next) => anyhow!("{what}: {}; {next}", watch::told(&error)),
                    None => explain(error, &what),
                })
            }
        }
    }

    /// [`Self::connect`] to a cluster that agents were or can be installed in; a lab is none.
    pub async fn connect_to_cluster(&self) -> Result<(Client, String)> {
        let (client, server) = self.connect(Some(SILENCE)).await?;
        let version =
            client.apiserver_version().await.map_err(|error| explain(error, "the API's version"))?;
        if version.git_version.contains(LAB_VERSION) {
            bail!(
                "the cluster at {server} is a lab, which brings its network along: `plumb lab up` starts its agents, `plumb \
                 lab agent stop NODE` ends one, and `plumb lab down` removes all of it (--name NAME, as `plumb lab list` \
                 has it); --kubeconfig and --context choose another cluster"
            );
        }
        Ok((client, server))
    }

    /// Which files, as kubectl finds them.
    fn paths(&self) -> Result<Vec<PathBuf>> {
        if let Some(path) = &self.kubeconfig {
            return Ok(vec![path.clone()]);
        }
        let told = std::env::var_os("KUBECONFIG").unwrap_or_default();
        let paths: Vec<PathBuf> =
            std::env::split_paths(&told).filter(|path| !path.as_os_str().is_empty()).collect();
        if !paths.is_empty() {
            return Ok(paths);
        }
        let home = std::env::home_dir().filter(|home| !home.as_os_str().is_empty());
        let home =
            home.with_context(|| format!("no kubeconfig: give one with --kubeconfig or KUBECONFIG: {LAB}"))?;
        Ok(vec![home.join(".kube/config")])
    }

    fn explain(&self, error: BadKubeconfig, path: &Path) -> Error {
        let (path, given) = (path.display(), self.kubeconfig.is_some());
        match error {
            BadKubeconfig::Unread(cause) if given => anyhow!("--kubeconfig {path}: {cause}; {LAB}"),
            BadKubeconfig::Unread(cause) => anyhow!(
                "no kubeconfig: {path}: {cause}; give one with --kubeconfig or KUBECONFIG: {LAB}, on a kubeadm control plane \
                 /etc/kubernetes/admin.conf"
            ),
            BadKubeconfig::Wrong(cause) => anyhow!(
                "the kubeconfig {path}: {cause}; correct it there, or give another one with --kubeconfig: {LAB}"
            ),
        }
    }

    async fn config(&self) -> Result<Config> {
        let mut file = Kubeconfig::default();
        let paths = self.paths()?;
        for path in &paths {
            let read = watch::kubeconfig(path).map_err(|error| self.explain(error, path))?;
            let merged = file.merge(read);
            file = merged.map_err(|error| anyhow!("the kubeconfigs {}: {error}; {LAB}", path.display()))?;
        }
        if file.clusters.is_empty() {
            let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
            bail!("the kubeconfig {} names no cluster: {LAB}", names.join(":"));
        }
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let config = Config::from_custom_kubeconfig(file, &options).await;
        config.map_err(|error| {
            let list = "`kubectl config get-contexts` lists what is in it";
            anyhow!("read the kubeconfig: {}; {list}", watch::told(&error))
        })
    }
}

/// What most people lack.
const LAB: &str = "of a lab it is `plumb lab kubeconfig --name NAME`";

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:@%+=,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// The object, the likely cause and the next step.
pub fn explain(error: kube::Error, what: &str) -> anyhow::Error {
    let next = match &error {
        kube::Error::Api(status) if status.code == 401 => {
            "it does not know these credentials: a token or certificate has expired, or belongs to another \
             cluster; renew the kubeconfig (`kubectl auth whoami` shows who you are)"
        }
        kube::Error::Api(status) if status.code == 403 => {
            "you may not do this: take an administrator's kubeconfig, or have one bind you to cluster-admin"
        }
        kube::Error::Api(_) => "the API server refused it; its words are above",
        other if watch::is_of_another_time(&watch::told(other)) => {
            "the clock of this machine and the time of the server's certificate differ: compare `date` with another \
             machine's and set it right, or renew the certificate (`kubeadm certs renew apiserver`)"
        }
        _ => {
            "it does not answer: check the server's address in the kubeconfig, that it runs, and that nothing \
             between refuses the connection (`kubectl cluster-info`)"
        }
    };
    anyhow!("{what}: {}; {next}", watch::told(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_kubeconfig_that_is_not_there_is_named_once_and_so_is_why() {
        let reach = Reach { kubeconfig: Some("/nope".into()), context: None };
        let said = reach.connect(None).await.map(drop).expect_err("no kubeconfig");
        assert_eq!(
            watch::told(said.as_ref()),
            "--kubeconfig /nope: No such file or directory (os error 2); of a lab it is `plumb lab kubeconfig --name NAME`"
        );
    }

    #[tokio::test]
    async fn a_kubeconfig_that_cannot_be_read_is_told_in_one_line() {
        let path = std::env::temp_dir().join(format!("plumb-kubeconfig-{}", std::process::id()));
        std::fs::write(&path, "apiVersion: v1\nclusters: [\nusers: {\n").expect("written");
        let reach = Reach { kubeconfig: Some(path.clone()), context: None };
        let said = reach.connect(None).await.map(drop).expect_err("no kubeconfig");
        let said = watch::told(said.as_ref());
        let head = format!("the kubeconfig {}: it cannot be read as YAML: ", path.display());
        assert!(
            said.starts_with(&head) && said.contains(" at line ") && said.contains("--kubeconfig"),
            "{said}"
        );
        assert!(!said.contains(['\n', '^', '|']), "{said}");
        std::fs::write(&path, [0xFF, 0xFE, 0]).expect("written");
        let said = reach.connect(None).await.map(drop).expect_err("no kubeconfig").to_string();
        assert!(said.contains("it is UTF-16 that ends with half a character; correct it there"), "{said}");
        std::fs::remove_file(&path).expect("it was there");
    }

    #[test]
    fn what_was_given_can_be_given_again() {
        let reach = |kubeconfig: Option<&str>, context: Option<&str>| Reach {
            kubeconfig: kubeconfig.map(PathBuf::from),
            context: context.map(str::to_owned),
        };
        assert_eq!(reach(None, None).flags(), "");
        assert_eq!(reach(Some("/etc/a.conf"), None).flags(), " --kubeconfig /etc/a.conf");
        assert_eq!(
            reach(Some("my own/it's"), Some("admin@b")).flags(),
            r" --kubeconfig 'my own/it'\''s' --context admin@b"
        );
    }
}
