//! The network configuration that a runtime writes to stdin.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use types::{Mac, Protocol};

use crate::error::{Code, Error};
use crate::result::Success;
use crate::version::Version;

/// Fields that are read; all others are ignored, as the specification asks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    pub version: Version,
    /// The network's name.
    pub name: String,
    /// The plugin's name in the list (`type`).
    pub plugin: String,
    /// Our socket, when it is not at the usual place.
    pub agent_socket: Option<String>,
    pub runtime: RuntimeConfig,
    #[serde(skip)]
    pub prev: Option<Prev>,
    /// GC: what the runtime says is alive. Absent is not empty: `cnitool gc` sends no key at all.
    #[serde(skip)]
    pub valid_attachments: Option<Vec<(String, String)>>,
}

/// Capabilities the runtime filled in, and `args.cni`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RuntimeConfig {
    pub ips: Vec<IpAddr>,
    pub mac: Option<Mac>,
    pub ports: Vec<PortMapping>,
}

/// A port of the node that leads to the pod (CONVENTIONS.md, "portMappings").
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    pub host_port: u16,
    pub container_port: u16,
    pub protocol: Protocol,
    /// `None`: every address of the node.
    pub host_ip: Option<IpAddr>,
}

/// A result of an earlier plugin or of our own ADD: what it says, and as it came.
#[derive(Clone, Debug, PartialEq)]
pub struct Prev {
    pub parsed: Success,
    pub raw: Value,
}

impl Config {
    pub(crate) fn parse(stdin: &[u8]) -> Result<Self, Error> {
        let fields = object(stdin)?;
        let version = version_of(&fields)?;
        let name = text(&fields, "name")?.unwrap_or_default();
        check_word("the network's name", &name, Code::InvalidConfig)?;
        let prev = match fields.get("prevResult") {
            None | Some(Value::Null) => None,
            Some(raw) => Some(Prev { parsed: Success::parse(raw, version)?, raw: raw.clone() }),
        };
        Ok(Self {
            version,
            name,
            plugin: text(&fields, "type")?.unwrap_or_default(),
            agent_socket: text(&fields, "agentSocket")?,
            runtime: runtime(&fields)?,
            prev,
            valid_attachments: valid_attachments(&fields)?,
        })
    }
}

/// The version to answer in: the config's, as far as it can be read, else the newest.
pub(crate) fn version_hint(stdin: &[u8]) -> Version {
    object(stdin).ok().and_then(|fields| version_of(&fields).ok()).unwrap_or(Version::LATEST)
}

pub(crate) fn object(stdin: &[u8]) -> Result<Map<String, Value>, Error> {
    match serde_json::from_slice(stdin) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(Error::new(Code::Decode, "the network configuration is not a JSON object", "")),
        Err(error) => Err(Error::new(
            Code::Decode,
            format!("the network configuration on stdin is not JSON: {error}"),
            "check the .conflist in the runtime's CNI directory",
        )),
    }
}

/// Absent means 0.1.0 (SPEC §1); nothing before 0.3.0 had lists, but old callers leave it out.
pub(crate) fn version_of(fields: &Map<String, Value>) -> Result<Version, Error> {
    let text = text(fields, "cniVersion")?.unwrap_or_else(|| "0.1.0".into());
    Version::parse(&text).ok_or_else(|| {
        let all: Vec<&str> = Version::ALL.iter().map(|version| version.as_str()).collect();
        Error::new(
            Code::IncompatibleVersion,
            format!("cniVersion {text:?} is not supported"),
            format!("use one of {}", all.join(", ")),
        )
    })
}

fn bad(field: &str, expected: &str) -> Error {
    Error::new(Code::InvalidConfig, format!("{field} is not valid"), format!("expected {expected}"))
}

fn text(fields: &Map<String, Value>, field: &str) -> Result<Option<String>, Error> {
    match fields.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(bad(field, "a string")),
    }
}

fn map<'a>(fields: &'a Map<String, Value>, field: &str) -> Result<Option<&'a Map<String, Value>>, Error> {
    match fields.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(map)) => Ok(Some(map)),
        Some(_) => Err(bad(field, "an object")),
    }
}

/// `^[a-zA-Z0-9][a-zA-Z0-9_.\-]*$`: container ids and network names become parts of file names.
pub(crate) fn check_word(what: &str, word: &str, code: Code) -> Result<(), Error> {
    let sound = word.starts_with(|c: char| c.is_ascii_alphanumeric())
        && word.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
    if sound {
        return Ok(());
    }
    let details = "expected a letter or digit, then letters, digits, '_', '.' or '-'";
    Err(Error::new(code, format!("{what} {word:?} is not valid"), details))
}

/// `runtimeConfig` first; `args.cni` (SPEC, "args") says the same for runtimes without capabilities.
fn runtime(fields: &Map<String, Value>) -> Result<RuntimeConfig, Error> {
    let mut found = RuntimeConfig::default();
    let args = map(fields, "args")?.map(|args| map(args, "cni")).transpose()?.flatten();
    for (at, source) in [("args.cni", args), ("runtimeConfig", map(fields, "runtimeConfig")?)] {
        let Some(source) = source else { continue };
        if let Some(ips) = source.get("ips").filter(|value| !value.is_null()) {
            found.ips = addresses(&format!("{at}.ips"), ips)?;
        }
        if let Some(mac) = text(source, "mac")?.filter(|mac| !mac.is_empty()) {
            let field = format!("{at}.mac");
            found.mac = Some(mac.parse().map_err(|_| bad(&field, "a hardware address"))?);
        }
        if let Some(ports) = source.get("portMappings").filter(|value| !value.is_null()) {
            found.ports = port_mappings(&format!("{at}.portMappings"), ports)?;
        }
    }
    Ok(found)
}

/// Runtimes list every port of a container; those that nobody wants on the node have the number 0. Names count in
/// whatever case, as in Go: containerd writes `HostPort` (go-cni's struct has no JSON names), CRI-O `hostPort`.
fn port_mappings(field: &str, value: &Value) -> Result<Vec<PortMapping>, Error> {
    let read = |item: &Value| {
        let fields = item.as_object()?;
        let get = |name: &str| fields.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, v)| v);
        let port = |name: &str| match get(name) {
            None | Some(Value::Null) => Some(0),
            Some(number) => number.as_u64().and_then(|n| u16::try_from(n).ok()),
        };
        let word = |name: &str| get(name).and_then(Value::as_str).filter(|word| !word.is_empty());
        let host_ip = word("hostIP").map(|word| word.trim_matches(['[', ']']).parse()).transpose().ok()?;
        let protocol = word("protocol").map(str::parse).transpose().ok()?.unwrap_or_default();
        let (host_port, container_port) = (port("hostPort")?, port("containerPort")?);
        (host_port == 0 || container_port != 0).then_some(PortMapping {
            host_port,
            container_port,
            protocol,
            host_ip,
        })
    };
    let expected = "a list of {hostPort, containerPort, protocol, hostIP}";
    let list = value.as_array().ok_or_else(|| bad(field, expected))?;
    let all: Result<Vec<_>, _> =
        list.iter().map(|item| read(item).ok_or_else(|| bad(field, expected))).collect();
    Ok(all?.into_iter().filter(|mapping| mapping.host_port != 0).collect())
}

/// With or without a prefix length.
fn addresses(field: &str, value: &Value) -> Result<Vec<IpAddr>, Error> {
    let expected = "a list of IP addresses";
    let list = value.as_array().ok_or_else(|| bad(field, expected))?;
    list.iter()
        .map(|item| item.as_str().and_then(parse_address).ok_or_else(|| bad(field, expected)))
        .collect()
}

pub(crate) fn parse_address(text: &str) -> Option<IpAddr> {
    text.parse().ok().or_else(|| text.parse::<IpNet>().ok().map(|net| net.addr()))
}

/// `cni.dev/valid-attachments`; libcni also sends the older `cni.dev/attachments` (cni#1101).
fn valid_attachments(fields: &Map<String, Value>) -> Result<Option<Vec<(String, String)>>, Error> {
    let field = "cni.dev/valid-attachments";
    let present = |name: &str| fields.get(name).filter(|value| !value.is_null());
    let Some(value) = present(field).or_else(|| present("cni.dev/attachments")) else { return Ok(None) };
    let expected = "a list of {containerID, ifname}";
    let list = value.as_array().ok_or_else(|| bad(field, expected))?;
    let pair = |item: &Value| {
        let word = |name: &str| item.get(name).and_then(Value::as_str).map(str::to_owned);
        Some((word("containerID")?, word("ifname")?))
    };
    list.iter().map(|item| pair(item).ok_or_else(|| bad(field, expected))).collect::<Result<_, _>>().map(Some)
}
