//! Hearing from the kernel that something of ours may have changed.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd};

use netlink::route::{GROUPS, LinkRow, Notice, decode_notice};
use types::IfName;

use super::Scope;
use crate::error::Error;
use crate::rtnl::Rtnl;
use crate::socket::{NetlinkSocket, Received, Subsystem};

/// What a listener hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Something of ours, or in its place, changed: observe and compare. Our own changes are heard as well.
    Ours(Notice),
    /// Too much at once, some of it lost: observe and compare.
    Overrun,
}

/// A nonblocking listener, in the namespace of the thread that opened it. Readable (poll, tokio's `AsyncFd`)
/// when there is something to [`Changes::hear`].
#[derive(Debug)]
pub struct Changes {
    socket: NetlinkSocket,
    scope: Scope,
    /// Links by index: notices of entries name their link so, also when it is just gone.
    names: Names,
}

#[derive(Debug, Default)]
struct Names {
    by_index: BTreeMap<u32, IfName>,
    /// VXLAN devices.
    tunnels: BTreeSet<u32>,
}

impl Names {
    fn note(&mut self, row: &LinkRow) {
        self.by_index.insert(row.index, row.name.clone());
        if row.kind == "vxlan" {
            self.tunnels.insert(row.index);
        }
    }

    fn forget(&mut self, index: u32) {
        self.by_index.remove(&index);
        self.tunnels.remove(&index);
    }

    fn get(&self, index: u32) -> &str {
        self.by_index.get(&index).map_or("", IfName::as_str)
    }
}

impl Changes {
    /// Opens it. Observe *after* this, and no change is missed.
    pub fn listen(scope: Scope) -> Result<Self, Error> {
        let socket = NetlinkSocket::listen(Subsystem::Route, &GROUPS)?;
        let mut names = Names::default();
        Rtnl::open()?.links()?.iter().for_each(|row| names.note(row));
        Ok(Self { socket, scope, names })
    }

    /// What has been heard since the last call, `None` when nothing: to be called until then.
    pub fn hear(&mut self) -> Result<Option<Vec<Change>>, Error> {
        let mut changes = Vec::new();
        let (scope, names) = (&self.scope, &mut self.names);
        let received = self.socket.receive(|message| {
            let Some(notice) = decode_notice(&message) else { return };
            if is_ours(&notice, scope, names) {
                changes.push(Change::Ours(notice.clone()));
            }
            match notice {
                Notice::Link(row, true) if !row.of_bridge => names.forget(row.index),
                Notice::Link(row, _) => names.note(&row),
                _ => {}
            }
        })?;
        Ok(match received {
            Received::Nothing => None,
            Received::Messages => Some(changes),
            Received::Overrun => Some(vec![Change::Overrun]),
        })
    }
}

fn is_ours(notice: &Notice, scope: &Scope, names: &Names) -> bool {
    match notice {
        // Renamed away is a change as well: the old name counts.
        Notice::Link(row, _) => scope.has_link(row.name.as_str()) || scope.has_link(names.get(row.index)),
        Notice::Address(row, _) => {
            scope.has_address(names.get(row.link), row.address) && !row.is_link_local_v6()
        }
        // Ours, or any other that somebody made: it may have taken the place of ours.
        Notice::Route(row, _) => row.protocol != RTPROT_KERNEL,
        // Pods' neighbours on the bridge come and go; on a tunnel nothing is learned.
        Notice::Neighbour(row, _) => names.tunnels.contains(&row.link) && scope.has_link(names.get(row.link)),
    }
}

/// Routes that the kernel makes with an address.
const RTPROT_KERNEL: u8 = 2;

impl AsFd for Changes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
