//! What a runtime asks for.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use types::{IfName, Mac, ObjectName};

use crate::config::{Config, check_word, object, parse_address, version_hint};
use crate::error::{Code, Error};
use crate::version::Version;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

/// A request that has the form it should have. As data it is without what no brain reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    Add(Attach),
    Del(Attach),
    Check(Attach),
    Gc(Gc),
    Status(Config),
    /// Answered at once, with [`Request::versions`].
    Version(Version),
}

/// The identity of an attachment (SPEC, "attachment"): it prints as the handle of its address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Id {
    pub container: String,
    pub ifname: IfName,
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.container, self.ifname)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attach {
    pub id: Id,
    /// Path of the pod's network namespace; DEL may come without.
    pub netns: Option<String>,
    /// The pod, when the runtime is Kubernetes'.
    pub pod: Option<PodRef>,
    /// Addresses that were asked for by capability, `args.cni` or CNI_ARGS.
    pub ips: Vec<IpAddr>,
    pub mac: Option<Mac>,
    pub config: Config,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRef {
    pub name: ObjectName,
    /// Empty when the runtime does not say it.
    pub uid: String,
}

/// Removes what is not in [`Gc::valid`]; `None`: nobody said what is valid, so nothing is removed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gc {
    pub valid: Option<Vec<Id>>,
    pub config: Config,
}

type Env = BTreeMap<String, String>;

impl Request {
    /// Errors come with the version to render them in: the config's, as far as it can be read.
    pub fn parse(env: &Env, stdin: &[u8]) -> Result<Self, (Error, Version)> {
        parse(env, stdin).map_err(|error| (error, version_hint(stdin)))
    }

    /// The answer to VERSION, in the version that was asked in.
    pub fn versions(version: Version) -> String {
        let all: Vec<&str> = Version::ALL.iter().map(|v| v.as_str()).collect();
        json!({ "cniVersion": version.as_str(), "supportedVersions": all }).to_string()
    }

    /// The version in which the answer goes back.
    pub fn version(&self) -> Version {
        match self {
            Self::Add(attach) | Self::Del(attach) | Self::Check(attach) => attach.config.version,
            Self::Gc(gc) => gc.config.version,
            Self::Status(config) => config.version,
            Self::Version(version) => *version,
        }
    }
}

fn parse(env: &Env, stdin: &[u8]) -> Result<Request, Error> {
    let command = command(env)?;
    if command == Command::Version {
        return version_asked(stdin).map(Request::Version);
    }
    let config = Config::parse(stdin)?;
    let newer = |least: Version| {
        let (name, version) = (variable(env, "CNI_COMMAND").unwrap_or_default(), config.version);
        if version >= least {
            return Ok(());
        }
        let msg = format!("{name} does not exist in cniVersion {version}");
        Err(Error::new(Code::IncompatibleVersion, msg, format!("use {least} or newer")))
    };
    match command {
        Command::Add => attach(env, config).map(Request::Add),
        Command::Del => attach(env, config).map(Request::Del),
        Command::Check => {
            newer(Version::V0_4_0)?;
            let attach = attach(env, config)?;
            if attach.config.prev.is_none() {
                let details = "CHECK compares with the result of ADD: the runtime has to pass it";
                return Err(Error::new(Code::InvalidConfig, "prevResult is missing", details));
            }
            Ok(Request::Check(attach))
        }
        Command::Gc => {
            newer(Version::V1_1_0)?;
            let valid = config.valid_attachments.as_ref().map(|pairs| {
                // An identity that cannot exist keeps nothing alive.
                pairs.iter().filter_map(|(c, i)| Some(Id { container: c.clone(), ifname: i.parse().ok()? }))
            });
            Ok(Request::Gc(Gc { valid: valid.map(Iterator::collect), config }))
        }
        Command::Status => newer(Version::V1_1_0).map(|()| Request::Status(config)),
        Command::Version => Ok(Request::Version(config.version)),
    }
}

fn command(env: &Env) -> Result<Command, Error> {
    let bad = |msg: String| {
        let details =
            "expected ADD, DEL, CHECK, GC, STATUS or VERSION; this program is run by a container runtime";
        Error::new(Code::InvalidEnvironment, msg, details)
    };
    match variable(env, "CNI_COMMAND") {
        Some("ADD") => Ok(Command::Add),
        Some("DEL") => Ok(Command::Del),
        Some("CHECK") => Ok(Command::Check),
        Some("GC") => Ok(Command::Gc),
        Some("STATUS") => Ok(Command::Status),
        Some("VERSION") => Ok(Command::Version),
        Some(other) => Err(bad(format!("CNI_COMMAND {other:?} is not a CNI command"))),
        None => Err(bad("CNI_COMMAND is not set".into())),
    }
}

/// The input may be empty; one that is there must be right (skel ignores it, cni#826).
fn version_asked(stdin: &[u8]) -> Result<Version, Error> {
    if stdin.iter().all(u8::is_ascii_whitespace) {
        return Ok(Version::LATEST);
    }
    match object(stdin)?.get("cniVersion").and_then(Value::as_str) {
        None => Ok(Version::LATEST),
        // Whoever asks in an unknown version wants to hear the known ones.
        Some(text) => Ok(Version::parse(text).unwrap_or(Version::LATEST)),
    }
}

/// Set and not empty.
fn variable<'a>(env: &'a Env, name: &str) -> Option<&'a str> {
    env.get(name).map(String::as_str).filter(|value| !value.is_empty())
}

fn attach(env: &Env, config: Config) -> Result<Attach, Error> {
    let needs_netns = variable(env, "CNI_COMMAND") != Some("DEL");
    // CNI_PATH is not needed here: nothing is delegated.
    let needed = ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"];
    let missing: Vec<&str> = needed
        .into_iter()
        .filter(|name| (*name != "CNI_NETNS" || needs_netns) && variable(env, name).is_none())
        .collect();
    let (Some(container), Some(ifname), true) =
        (variable(env, "CNI_CONTAINERID"), variable(env, "CNI_IFNAME"), missing.is_empty())
    else {
        let msg = format!("required environment variables are missing: {}", missing.join(", "));
        return Err(Error::new(Code::InvalidEnvironment, msg, "the container runtime has to set them"));
    };
    check_word("CNI_CONTAINERID", container, Code::InvalidEnvironment)?;
    let ifname = IfName::new(ifname)
        .map_err(|e| Error::new(Code::InvalidEnvironment, format!("CNI_IFNAME: {e}"), "eth0 is usual"))?;
    let args = Args::parse(variable(env, "CNI_ARGS").unwrap_or_default())?;
    let pod = args.pod();
    let ips = if config.runtime.ips.is_empty() {
        args.ip.into_iter().collect()
    } else {
        config.runtime.ips.clone()
    };
    Ok(Attach {
        id: Id { container: container.to_owned(), ifname },
        netns: variable(env, "CNI_NETNS").map(str::to_owned),
        pod,
        ips,
        mac: config.runtime.mac.or(args.mac),
        config,
    })
}

#[derive(Default)]
struct Args {
    namespace: String,
    name: String,
    uid: String,
    ip: Option<IpAddr>,
    mac: Option<Mac>,
}

impl Args {
    /// `KEY=VALUE;KEY=VALUE`. Unknown keys are an error unless IgnoreUnknown is set.
    fn parse(text: &str) -> Result<Self, Error> {
        let bad = |msg: String| {
            Error::new(Code::InvalidEnvironment, format!("CNI_ARGS: {msg}"), "expected KEY=VALUE;KEY=VALUE")
        };
        let mut args = Self::default();
        let mut unknown = Vec::new();
        let mut ignore = false;
        for pair in text.split(';').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').ok_or_else(|| bad(format!("{pair:?} has no '='")))?;
            let not = |what: &str| bad(format!("{key}={value} is not {what}"));
            match key {
                "IgnoreUnknown" => ignore = matches!(value, "1" | "true" | "True" | "TRUE" | "t" | "T"),
                "K8S_POD_NAMESPACE" => args.namespace = value.to_owned(),
                "K8S_POD_NAME" => args.name = value.to_owned(),
                "K8S_POD_UID" => args.uid = value.to_owned(),
                "K8S_POD_INFRA_CONTAINER_ID" => {}
                "IP" => args.ip = Some(parse_address(value).ok_or_else(|| not("an IP address"))?),
                "MAC" => args.mac = Some(value.parse().map_err(|_| not("a hardware address"))?),
                _ => unknown.push(key),
            }
        }
        match (unknown.is_empty(), ignore) {
            (false, false) => {
                Err(bad(format!("unknown keys {} without IgnoreUnknown=1", unknown.join(", "))))
            }
            _ => Ok(args),
        }
    }

    fn pod(&self) -> Option<PodRef> {
        let named = !self.namespace.is_empty() && !self.name.is_empty();
        named.then(|| PodRef { name: ObjectName::new(&self.namespace, &self.name), uid: self.uid.clone() })
    }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
