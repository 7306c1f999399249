//! Connection tracking: what the kernel knows of connections, which ones begin, and having it forget one.

use netlink::conntrack::{self, Counted, Entry, Filter, Usage};
use types::Family;

use crate::error::Error;
use crate::netns::Netns;
use crate::socket::{NetlinkSocket, Received, Subsystem, refusal};

/// NFNLGRP_CONNTRACK_NEW of include/uapi/linux/netfilter/nfnetlink.h.
const BEGIN: u32 = 1;

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
        self.entries_that(family, filter, |_| true)
    }

    /// Of the entries that match, those that are wanted; of a large table only these are kept.
    pub fn entries_that(
        &mut self,
        family: Family,
        filter: &Filter,
        wanted: impl Fn(&Entry) -> bool,
    ) -> Result<Vec<Entry>, Error> {
        let (mut entries, mut failed) = (Vec::new(), None);
        let request = |writer: &mut _, seq| conntrack::dump(writer, seq, family, filter);
        self.socket.dump("conntrack entries", request, |message| match Entry::decode(&message) {
            Some(Ok(entry)) if filter.matches(&entry) && wanted(&entry) => entries.push(entry),
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

    /// How many entries there are, and may be.
    pub fn usage(&mut self) -> Result<Usage, Error> {
        let (what, seq, mut usage) = ("ask for the use of conntrack", self.socket.next_seq(), None);
        let request = |writer: &mut _| conntrack::ask_usage(writer, seq);
        self.socket.ask(what, seq, request, |message| usage = Usage::decode(&message).or(usage))?;
        usage.ok_or_else(|| Error::Answer { what: what.into(), why: "there was none".into() })
    }

    /// What all processors have counted.
    pub fn counted(&mut self) -> Result<Counted, Error> {
        let mut of_each = Vec::new();
        self.socket.dump("conntrack counters", conntrack::ask_counted, |message| {
            of_each.extend(Counted::decode(&message));
        })?;
        Ok(of_each.into_iter().sum())
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

    /// The same of many; how many the kernel still knew.
    pub fn delete_all(&mut self, entries: &[Entry]) -> Result<usize, Error> {
        let mut forgotten = 0;
        for entries in entries.chunks(TOGETHER) {
            let mut batch = self.socket.batch();
            for entry in entries {
                batch.add(|writer, seq| conntrack::delete(writer, seq, entry));
            }
            let refused = self.socket.run(batch)?;
            forgotten += entries.len() - refused.len();
            if let Some((at, ack)) = refused.into_iter().find(|(_, ack)| ack.errno != libc::ENOENT) {
                let entry = entries.get(at).map(ToString::to_string).unwrap_or_default();
                return Err(refusal(format!("delete the conntrack entry {entry}"), ack));
            }
        }
        Ok(forgotten)
    }
}

/// So many deletions travel in one datagram: their acknowledgements fit into any receive buffer.
const TOGETHER: usize = 128;

/// Connections that begin from now on: also those that are forgotten before anybody looks, as a TCP connection that
/// is reset at once is (nf_conntrack_proto_tcp.c). A kernel with `net.netfilter.nf_conntrack_events=0` tells of none.
#[derive(Debug)]
pub struct Beginnings {
    socket: NetlinkSocket,
}

impl Beginnings {
    /// In the namespace of the calling thread.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { socket: NetlinkSocket::listen(Subsystem::Netfilter, &[BEGIN])? })
    }

    /// The last one of these that has begun, translated as it was when its first packet had gone through. Never
    /// waits; where so many begin that the queue overran, it may be among those that are lost.
    pub fn last(&mut self, is: impl Fn(&Entry) -> bool) -> Result<Option<Entry>, Error> {
        let mut last = None;
        loop {
            let received = self.socket.receive(|message| {
                let entry = Entry::decode(&message).and_then(Result::ok);
                last = entry.filter(&is).or(last.take());
            })?;
            if received == Received::Nothing {
                return Ok(last);
            }
        }
    }
}
