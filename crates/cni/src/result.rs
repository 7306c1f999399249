//! Results, in the shape of every version.
//!
//! ```text
//!   0.1, 0.2      ip4 {ip, gateway, routes}, ip6, dns
//!   0.3, 0.4      interfaces, ips[version, interface, address, gateway], routes, dns
//!   1.0           the same without ips[].version
//!   1.1           + interfaces[].mtu, routes[].mtu…
//! ```

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use types::Mac;

use crate::error::{Code, Error};
use crate::version::Version;

/// The result of an ADD.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Success {
    pub interfaces: Vec<Interface>,
    pub ips: Vec<Ip>,
    pub routes: Vec<Route>,
    pub dns: Dns,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Interface {
    pub name: String,
    pub mac: Option<Mac>,
    pub mtu: Option<u32>,
    /// Path of the network namespace; `None` on the host.
    pub sandbox: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ip {
    pub address: IpNet,
    pub gateway: Option<IpAddr>,
    /// Index into [`Success::interfaces`].
    pub interface: Option<usize>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Route {
    pub dst: IpNet,
    pub gw: Option<IpAddr>,
    pub mtu: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Success {
    /// The JSON for stdout, as `version` wants it.
    pub fn render(&self, version: Version) -> String {
        let mut value = match version {
            Version::V0_1_0 | Version::V0_2_0 => self.oldest(),
            _ => self.current(version),
        };
        value["cniVersion"] = version.as_str().into();
        value.to_string()
    }

    fn current(&self, version: Version) -> Value {
        let interfaces: Vec<Value> = self
            .interfaces
            .iter()
            .map(|interface| {
                let mut value = json!({ "name": interface.name });
                set(&mut value, "mac", interface.mac.map(|mac| mac.to_string()));
                set(&mut value, "sandbox", interface.sandbox.clone());
                set(&mut value, "mtu", interface.mtu.filter(|_| version >= Version::V1_1_0));
                value
            })
            .collect();
        let ips: Vec<Value> = self
            .ips
            .iter()
            .map(|ip| {
                let mut value = json!({ "address": ip.address.to_string() });
                set(&mut value, "gateway", ip.gateway.map(|gateway| gateway.to_string()));
                set(&mut value, "interface", ip.interface);
                let family = if ip.address.addr().is_ipv4() { "4" } else { "6" };
                set(&mut value, "version", (version < Version::V1_0_0).then_some(family));
                value
            })
            .collect();
        let mut value = json!({ "interfaces": interfaces, "ips": ips, "dns": self.dns });
        let routes = self.routes(&self.routes, version);
        set(&mut value, "routes", (!routes.is_empty()).then_some(routes));
        value
    }

    fn routes<'a>(&self, routes: impl IntoIterator<Item = &'a Route>, version: Version) -> Vec<Value> {
        let render = |route: &Route| {
            let mut value = json!({ "dst": route.dst.to_string() });
            set(&mut value, "gw", route.gw.map(|gw| gw.to_string()));
            set(&mut value, "mtu", route.mtu.filter(|_| version >= Version::V1_1_0));
            value
        };
        routes.into_iter().map(render).collect()
    }

    /// One address per family; interfaces are not told.
    fn oldest(&self) -> Value {
        let mut value = json!({ "dns": self.dns });
        for (field, v4) in [("ip4", true), ("ip6", false)] {
            let Some(ip) = self.ips.iter().find(|ip| ip.address.addr().is_ipv4() == v4) else { continue };
            let mut family = json!({ "ip": ip.address.to_string() });
            set(&mut family, "gateway", ip.gateway.map(|gateway| gateway.to_string()));
            let routes = self.routes.iter().filter(|route| route.dst.addr().is_ipv4() == v4);
            let routes = self.routes(routes, Version::V0_2_0);
            set(&mut family, "routes", (!routes.is_empty()).then_some(routes));
            value[field] = family;
        }
        value
    }

    /// A prevResult, in the version of its config (cni#862).
    pub(crate) fn parse(raw: &Value, version: Version) -> Result<Self, Error> {
        let bad = |field: &str, expected: &str| {
            let msg = format!("prevResult.{field} is not valid");
            Error::new(Code::InvalidConfig, msg, format!("expected {expected}"))
        };
        let list = |field: &'static str| match raw.get(field) {
            None | Some(Value::Null) => Ok(&[][..]),
            Some(Value::Array(list)) => Ok(list.as_slice()),
            Some(_) => Err(bad(field, "a list")),
        };
        if !raw.is_object() {
            return Err(bad("", "an object"));
        }
        if version < Version::V0_3_0 {
            return Ok(Self::default());
        }
        let mut found = Self::default();
        for item in list("interfaces")? {
            let name = word(item, "name").ok_or_else(|| bad("interfaces", "objects with a name"))?;
            found.interfaces.push(Interface {
                name,
                mac: word(item, "mac").and_then(|mac| mac.parse().ok()),
                mtu: number(item, "mtu"),
                sandbox: word(item, "sandbox").filter(|sandbox| !sandbox.is_empty()),
            });
        }
        for item in list("ips")? {
            let address = word(item, "address").and_then(|text| text.parse().ok());
            found.ips.push(Ip {
                address: address.ok_or_else(|| bad("ips", "objects with address as IP/length"))?,
                gateway: word(item, "gateway").and_then(|text| text.parse().ok()),
                interface: number(item, "interface").map(|index| index as usize),
            });
        }
        for item in list("routes")? {
            let dst = word(item, "dst").and_then(|text| text.parse().ok());
            let dst = dst.ok_or_else(|| bad("routes", "objects with dst as IP/length"))?;
            let gw = word(item, "gw").and_then(|text| text.parse().ok());
            found.routes.push(Route { dst, gw, mtu: number(item, "mtu") });
        }
        if let Some(dns) = raw.get("dns").filter(|dns| !dns.is_null()) {
            found.dns = serde_json::from_value(dns.clone()).map_err(|_| bad("dns", "an object of lists"))?;
        }
        Ok(found)
    }
}

fn word(item: &Value, field: &str) -> Option<String> {
    item.get(field).and_then(Value::as_str).map(str::to_owned)
}

fn number(item: &Value, field: &str) -> Option<u32> {
    item.get(field).and_then(Value::as_u64).and_then(|number| u32::try_from(number).ok())
}

/// An absent field is left out, never `null`.
fn set(value: &mut Value, field: &str, content: Option<impl Into<Value>>) {
    if let Some(content) = content {
        value[field] = content.into();
    }
}
