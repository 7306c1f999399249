//! Connection tracking: what the kernel knows of connections, and having it forget one.

use netlink::conntrack::{self, Entry, Filter};
use types::Family;

use crate::error::Error;
use crate::netns::Netns;
use crate::socket::{NetlinkSocket, Subsystem};

/// A conntrack socket in one network namespace.
#[derive(Debug)]
pub struct Conntrack {
    socket: NetlinkSocket,
}

impl Conntrack {
    /// In the namespace of the calling thread.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { socket: NetlinkSocket::open(Subsystem::Netfilter)? })
    }

    /// In another namespace; the socket stays there and may be used from anywhere.
    pub fn open_in(netns: &Netns) -> Result<Self, Error> {
        netns.run(Self::open)?
    }

    /// The entries that match. Connections come and go meanwhile: this is no moment's picture.
    pub fn entries(&mut self, family: Family, filter: &Filter) -> Result<Vec<Entry>, Error> {
        let (mut entries, mut failed) = (Vec::new(), None);
        let request = |writer: &mut _, seq| conntrack::dump(writer, seq, family, filter);
        self.socket.dump("conntrack entries", request, |message| match Entry::decode(&message) {
            Some(Ok(entry)) if filter.matches(&entry) => entries.push(entry),
            Some(Err(error)) => failed = Some(error),
            Some(Ok(_)) | None => {}
        })?;
        match failed {
            Some(error) => {
                Err(Error::Answer { what: "dump conntrack entries".into(), why: error.to_string() })
            }
            None => Ok(entries),
        }
    }

    /// Has the kernel forget one connection; `false` when it had already. The next packet of it meets the NAT
    /// rules anew.
    pub fn delete(&mut self, entry: &Entry) -> Result<bool, Error> {
        let (what, seq) = (format!("delete the conntrack entry {entry}"), self.socket.next_seq());
        match self.socket.ask(&what, seq, |writer| conntrack::delete(writer, seq, entry), |_| {}) {
            Ok(()) => Ok(true),
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
