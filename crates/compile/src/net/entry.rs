//! One piece of what leads to a peer or to a pod: its key says whether two want the same.

use std::net::IpAddr;

use kstate::net::{Forward, NetState, Route, RouteKey, Touched};
use types::{IfName, Mac};

/// In the order of FL-05.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    Forward((IfName, Mac), Forward),
    Neighbour((IfName, IpAddr), Mac),
    Route(RouteKey, Route),
}

impl Entry {
    /// Whether something with its key is there.
    pub fn is_taken(&self, state: &NetState) -> bool {
        match self {
            Self::Forward(key, _) => state.fdb.contains_key(key),
            Self::Neighbour(key, _) => state.neighbours.contains_key(key),
            Self::Route(key, _) => state.routes.contains_key(key),
        }
    }

    pub fn insert(self, state: &mut NetState) {
        match self {
            Self::Forward(key, to) => _ = state.fdb.insert(key, to),
            Self::Neighbour(key, mac) => _ = state.neighbours.insert(key, mac),
            Self::Route(key, route) => _ = state.routes.insert(key, route),
        }
    }

    pub fn remove(&self, state: &mut NetState) {
        match self {
            Self::Forward(key, _) => _ = state.fdb.remove(key),
            Self::Neighbour(key, _) => _ = state.neighbours.remove(key),
            Self::Route(key, _) => _ = state.routes.remove(key),
        }
    }

    /// Whether both have one key.
    pub fn meets(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Forward(key, _), Self::Forward(theirs, _)) => key == theirs,
            (Self::Neighbour(key, _), Self::Neighbour(theirs, _)) => key == theirs,
            (Self::Route(key, _), Self::Route(theirs, _)) => key == theirs,
            _ => false,
        }
    }

    pub fn touch(self, touched: &mut Touched) {
        match self {
            Self::Forward(key, _) => _ = touched.fdb.insert(key),
            Self::Neighbour(key, _) => _ = touched.neighbours.insert(key),
            Self::Route(key, _) => _ = touched.routes.insert(key),
        }
    }
}
