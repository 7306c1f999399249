//! CNI requests on the loop's thread: what changes something goes to [`Attachments`](node::Attachments), what only looks is
//! answered here.

use cni::Request;
use node::{Reply, Wire};

use super::Node;
use crate::datapath::Subsystem;
use crate::inbox::CniInput;
use crate::wirer::Wired;

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

    /// A pod's interface is made, or cannot be.
    pub(super) fn wired(&mut self, Wired { wire, done }: Wired) {
        if done.is_ok() {
            self.believe(&wire);
        }
        self.hear(node::Input::Wired(wire.record.handle(), done));
    }

    /// What is there now as it was made. What has become of the node meanwhile follows.
    pub(super) fn believe(&mut self, wire: &Wire) {
        let Some(compiler) = &self.compiler else { return };
        let links = &mut self.base.datapath.links;
        links.believe_veth(&wire.record, wire.mtu);
        if let Err(error) = links.follow_veth(&wire.record, compiler.net()) {
            self.note(Subsystem::Net, Err(error));
        }
        let mtu = self.compiler.as_ref().map_or(wire.mtu, |compiler| compiler.settings().mtu);
        if mtu != wire.mtu {
            self.fit_pod(&wire.record, mtu, Some(wire.mtu));
        }
        self.note_ports();
    }
}
