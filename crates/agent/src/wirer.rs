//! Makes pods' interfaces, several at a time: who enters a pod's namespace waits for the kernel, and for the other pods that it
//! makes or takes away meanwhile. The loop does not.

use std::sync::{Arc, Mutex, PoisonError, mpsc};

use anyhow::{Context, Result};
use cni::{Code, Error};
use compile::wiring;
use kernel::veth::{self, PodRoute, PodVeth, Port};
use kernel::{Netns, Rtnl};
use node::Wire;

use crate::inbox::{Input, Outbox};
use crate::store::namespace_lives;

/// So many pods are wired at a time. The kernel makes one link after the other (rtnl_lock); around that there is more to wait for.
const THREADS: usize = 4;

/// The queue's writing end. The threads end with it.
#[derive(Debug)]
pub struct Wirer(mpsc::Sender<Wire>);

/// What became of it.
#[derive(Debug)]
pub struct Wired {
    pub wire: Wire,
    pub done: Result<(), Error>,
}

impl Wirer {
    /// In the network namespace of the calling thread.
    pub fn start(outbox: &Outbox) -> Result<Self> {
        let (sender, queue) = mpsc::channel::<Wire>();
        let queue = Arc::new(Mutex::new(queue));
        for number in 1..=THREADS {
            let (mut rtnl, queue, outbox) = (Rtnl::open()?, Arc::clone(&queue), outbox.clone());
            let next = move || queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let work = move || {
                while let Ok(wire) = next() {
                    let done = make(&mut rtnl, &wire);
                    if !outbox.send_blocking(Input::Wired(Box::new(Wired { wire, done }))) {
                        return;
                    }
                }
            };
            std::thread::Builder::new()
                .name(format!("plumb-wirer-{number}"))
                .spawn(work)
                .context("start a wirer's thread")?;
        }
        Ok(Self(sender))
    }

    /// Makes a pod's interface soon; [`Input::Wired`] tells when.
    pub fn make(&self, wire: Wire) {
        // The threads live as long as the loop that reads their answers.
        let _ = self.0.send(wire);
    }
}

/// Makes the pair with all that is in the pod's namespace.
pub fn make(rtnl: &mut Rtnl, Wire { record, side, mtu }: &Wire) -> Result<(), Error> {
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
    veth::create(rtnl, &pair).map(drop).map_err(|error| explain(&error))
}

/// EEXIST of linux/errno-base.h.
const EEXIST: i32 = 17;

fn explain(error: &kernel::Error) -> Error {
    match error.errno() {
        Some(EEXIST) => Error::new(Code::InterfaceExists, error.to_string(), "DEL comes before another ADD"),
        _ => Error::new(Code::Kernel, error.to_string(), "nothing is left of it; the runtime will try again"),
    }
}
