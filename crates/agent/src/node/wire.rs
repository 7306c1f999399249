//! CNI requests on the loop's thread: what changes something goes to [`Attachments`](node::Attachments), what only looks is
//! answered here.

use cni::{Code, Error, Request};
use compile::wiring;
use kernel::Netns;
use kernel::veth::{self, PodRoute, PodVeth, Port};
use node::{Reply, Wire};

use super::Node;
use crate::inbox::CniInput;
use crate::store::namespace_lives;

impl Node {
    pub(super) fn cni(&mut self, input: CniInput) {
        let answer = match &input.request {
            Request::Add(_) | Request::Del(_) | Request::Gc(_) => return self.asked(input),
            Request::Check(attach) => self.check(attach).map(|()| String::new()),
            Request::Status(_) => self.status().map(|()| String::new()),
            Request::Version(version) => Ok(Request::versions(*version)),
        };
        // A runtime that hung up has nobody to tell.
        let _ = input.reply.send(Reply::Done(answer));
    }

    /// Makes the pair with all that is in the pod's namespace.
    pub(super) fn create_veth(&mut self, Wire { record, side, mtu }: &Wire) -> Result<(), Error> {
        let Some(compiler) = &self.compiler else {
            return Err(Error::new(Code::TryAgainLater, "the node's network is not known yet", ""));
        };
        let netns = Netns::open(&record.netns).map_err(|error| {
            let details = "the container ended meanwhile, or the agent does not see the runtime's /run";
            Error::new(Code::UnknownContainer, error.to_string(), details)
        })?;
        // The path of a process that ended may be another one's by now.
        if !namespace_lives(record) {
            let msg = format!("{} is another network namespace than it was", record.netns);
            return Err(Error::new(Code::UnknownContainer, msg, "the container ended meanwhile"));
        }
        let port = wiring::of(record.wiring).host_link(*mtu).and_then(|link| link.port);
        let routes: Vec<PodRoute> =
            side.routes.iter().map(|(dst, via)| PodRoute { dst: *dst, via: *via }).collect();
        let pair = PodVeth {
            host: &record.host_if,
            host_mac: None,
            netns: &netns,
            interface: &record.ifname,
            mac: Some(record.mac),
            mtu: Some(*mtu),
            addresses: &side.addresses,
            routes: &routes,
            bridge: port.as_ref().map(|port| Port { bridge: &port.bridge, options: port.options }),
            loopback: false,
        };
        veth::create(&mut self.base.datapath.links.rtnl, &pair).map_err(|error| explain(&error))?;
        self.base.datapath.links.believe_veth(&record.host_if, compiler.net());
        self.note_ports();
        Ok(())
    }
}

/// EEXIST of linux/errno-base.h.
const EEXIST: i32 = 17;

fn explain(error: &kernel::Error) -> Error {
    match error.errno() {
        Some(EEXIST) => Error::new(Code::InterfaceExists, error.to_string(), "DEL comes before another ADD"),
        _ => Error::new(Code::Kernel, error.to_string(), "nothing is left of it; the runtime will try again"),
    }
}
