//! Forging, for `plumb connectivity test`: what a pod with a container's usual rights sends under addresses of others,
//! and whether the server that it is meant for hears it. The server tells by another way what it heard, so that forged
//! senders do not matter; honest words before and after show that it listens.
//!
//! ```text
//!   us ── honest word ──> server        until it was heard: that frame shows our MAC and the gateway's
//!   us ── forged words ─> ?
//!   us ── honest word ──> server        until it was heard
//!   us ── GET /heard ───> server        no forged word is among them
//! ```

mod frame;

use std::fmt;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kernel::capture::{Capture, Direction, Filter};
use netlink::packet::Frame;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use types::wire::{VXLAN_PORT, VXLAN_VNI};
use types::{Family, Mac};

use super::http::Url;
use super::probe::{fetch, interface};
use super::serve::WORD;
use frame::{BROADCAST, Wire};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Forge {
    /// A server of `plumb demo serve`, with its ports.
    pub victim: IpAddr,
    pub http: u16,
    pub udp: u16,
    pub how: How,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// The tunnel's own packets, by an ordinary socket, to these addresses; inside is a datagram from `inner`.
    Tunnel { to: Vec<IpAddr>, vteps: Vec<Mac>, inner: IpAddr },
    /// Frames with these source addresses, each with a word for whose it is.
    Sources(Vec<(String, IpAddr)>),
    /// The victim's place on the bridge: its MAC, and ARP or ND for its address.
    Place { mac: Mac },
}

/// What no further try changes.
#[derive(Debug)]
pub enum End {
    /// Something went through.
    Through(String),
    /// Nothing could be sent.
    Unable(String),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Through(what) | Self::Unable(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for End {}

/// Each forged packet goes so often, and so far apart are two rounds.
const ROUNDS: usize = 3;
const CLAIMS: usize = 20;
const APART: Duration = Duration::from_millis(10);
/// What went another way than the last honest word may come after it.
const LATE: Duration = Duration::from_millis(300);
const PORT: u16 = 40_000;

/// Forges, and says what came of it.
pub fn carry_out(forge: &Forge, patience: Duration) -> Result<String> {
    let talk = Talk::open(forge, patience)?;
    match &forge.how {
        How::Tunnel { to, vteps, inner } => talk.tunnel(to, vteps, *inner),
        How::Sources(sources) => talk.sources(sources),
        How::Place { mac } => talk.place(*mac),
    }
}

/// An honest conversation with the victim.
struct Talk<'a> {
    forge: &'a Forge,
    patience: Duration,
    socket: UdpSocket,
    own: IpAddr,
    /// Begins all words of this try.
    name: String,
}

impl<'a> Talk<'a> {
    fn open(forge: &'a Forge, patience: Duration) -> Result<Self> {
        let to = SocketAddr::new(forge.victim, forge.udp);
        let any: SocketAddr = if to.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
        let socket = UdpSocket::bind(any)?;
        socket.connect(to).with_context(|| format!("udp to {to}"))?;
        let own = socket.local_addr()?.ip();
        let name = format!("{:016x}-", kernel::udp::random()?);
        Ok(Self { forge, patience, socket, own, name })
    }

    fn payload(&self, word: &str) -> Vec<u8> {
        format!("{WORD}{}{word}", self.name).into_bytes()
    }

    /// A forged datagram for the victim.
    fn datagram(&self, from: IpAddr, word: &str) -> Vec<u8> {
        frame::udp((from, self.forge.victim), (PORT, self.forge.udp), &self.payload(word))
    }

    /// What the victim heard of us, and of whom else.
    fn heard(&self) -> Result<Vec<String>> {
        let path = format!("/heard?of={}", self.name);
        let url = Url { host: self.forge.victim.to_string(), port: self.forge.http, path };
        let (text, _) = fetch(&url).context("ask the server what it heard")?;
        Ok(text.lines().filter_map(|line| line.strip_prefix(&self.name)).map(str::to_owned).collect())
    }

    /// Says a word until the victim has heard it.
    fn honest(&self, word: &str) -> Result<()> {
        let began = Instant::now();
        loop {
            // Refused by an ICMP error of the try before, perhaps.
            let sent = self.socket.send(&self.payload(word));
            if self.heard()?.iter().any(|heard| heard == word) {
                return Ok(());
            }
            if began.elapsed() > self.patience {
                bail!("the server does not hear an honest datagram ({:?}), so nothing is proved", sent.err());
            }
            std::thread::sleep(APART);
        }
    }

    /// The forged words that were heard, once an honest one was that came after them.
    fn arrived(&self) -> Result<Vec<String>> {
        self.honest("after")?;
        std::thread::sleep(LATE);
        let mut words = self.heard()?;
        words.retain(|word| word != "before" && word != "after");
        words.sort();
        words.dedup();
        Ok(words)
    }

    /// Nothing may have arrived.
    fn verdict(&self, sent: &str) -> Result<String> {
        let words = self.arrived()?;
        if words.is_empty() {
            return Ok(format!("{sent}: none arrived"));
        }
        Err(End::Through(format!("it got through to {}: {}", self.forge.victim, words.join(", "))).into())
    }

    fn tunnel(&self, to: &[IpAddr], vteps: &[Mac], inner: IpAddr) -> Result<String> {
        self.honest("before")?;
        let [_, vni @ ..] = VXLAN_VNI.to_be_bytes();
        // RFC 7348 §5: the flag that the network's number is there, then that number.
        let head = [&[8, 0, 0, 0][..], &vni, &[0]].concat();
        for address in to {
            let any: IpAddr = Family::of(*address).pick([[0; 4].into(), [0_u16; 8].into()]);
            let socket = UdpSocket::bind((any, 0))?;
            for vtep in vteps {
                let wire = Wire { to: *vtep, from: Mac([0x0e, 0x70, 0, 0, 0, 1]) };
                let packet = self.datagram(inner, &format!("in a tunnel to {address}"));
                let packet = [head.clone(), wire.ip(&packet)].concat();
                for _ in 0..ROUNDS {
                    // Refused here is as good as dropped there.
                    let _ = socket.send_to(&packet, (*address, VXLAN_PORT));
                }
            }
        }
        self.verdict(&format!("tunnel packets to {} addresses", to.len()))
    }

    fn sources(&self, sources: &[(String, IpAddr)]) -> Result<String> {
        let (raw, wire) = self.wire()?;
        for _ in 0..ROUNDS {
            for (whose, address) in sources {
                let packet = self.datagram(*address, &format!("as {whose}"));
                raw.send(&wire.ip(&packet))?;
                let packet = self.datagram(*address, &format!("tagged as {whose}"));
                raw.send(&wire.tagged(&packet))?;
            }
            std::thread::sleep(APART);
        }
        self.verdict(&format!("datagrams from {} addresses of others", sources.len()))
    }

    fn place(&self, mac: Mac) -> Result<String> {
        let (mut raw, wire) = self.wire()?;
        for _ in 0..CLAIMS {
            for frame in self.claims(wire, mac) {
                raw.send(&frame)?;
            }
            // Refused by an ICMP error of the try before, perhaps.
            let _ = self.socket.send(&self.payload("after"));
            std::thread::sleep(APART);
            self.nothing_came(&mut raw)?;
        }
        let said = self.verdict(&format!("{CLAIMS} claims of its place"));
        self.nothing_came(&mut raw)?;
        said
    }

    /// What makes a bridge and a host believe that the victim is here.
    fn claims(&self, wire: Wire, mac: Mac) -> Vec<Vec<u8>> {
        let (victim, own) = (self.forge.victim, wire.from);
        let theirs = Wire { from: mac, ..wire };
        let all = |wire: Wire| Wire { to: BROADCAST, ..wire };
        let mut frames = vec![theirs.ip(&self.datagram(self.own, "with its MAC"))];
        match victim {
            IpAddr::V4(v4) => {
                for operation in [1, 2] {
                    frames.extend([wire, all(wire)].map(|wire| wire.arp(operation, own, v4.octets())));
                    frames.push(all(theirs).arp(operation, mac, v4.octets()));
                }
            }
            IpAddr::V6(v6) => {
                for from in [v6, frame::link_local(own)] {
                    let packet = frame::advertisement(from, v6, own);
                    // RFC 2464 §7.
                    let group = Wire { to: Mac([0x33, 0x33, 0, 0, 0, 1]), ..wire };
                    frames.extend([wire, group].map(|wire| wire.ip(&packet)));
                }
            }
        }
        frames
    }

    /// No packet for the victim came to us.
    fn nothing_came(&self, raw: &mut Capture) -> Result<()> {
        while let Some(captured) = raw.receive()? {
            let packet = Frame::parse(captured.frame).and_then(|frame| frame.packet());
            let theirs = packet.filter(|packet| packet.dst == self.forge.victim);
            if let (Some(packet), Direction::In) = (theirs, captured.direction) {
                return Err(End::Through(format!("it got through: {packet} came here")).into());
            }
        }
        Ok(())
    }

    /// Our interface, and the addresses in the frames of an honest word.
    fn wire(&self) -> Result<(Capture, Wire)> {
        let (name, _) = interface(self.own)?;
        let filter = Filter { addresses: vec![self.forge.victim], ..Filter::default() };
        let mut raw = match Capture::open(Some(&name), &filter) {
            Err(error) if error.errno() == Some(Errno::PERM.raw_os_error()) => {
                return Err(End::Unable(NO_RAW.to_owned()).into());
            }
            opened => opened?,
        };
        let before = self.payload("before");
        self.honest("before")?;
        while let Some(captured) = raw.receive()? {
            // Others of this pod forge beside us.
            let honest = captured.direction == Direction::Out && captured.frame.ends_with(&before);
            if let (true, Some(ours)) = (honest, Frame::parse(captured.frame)) {
                let wire = Wire { to: ours.dst, from: ours.src };
                return Ok((raw, wire));
            }
        }
        bail!("no frame of ours to {} was seen on {name}", self.forge.victim)
    }
}

/// CRI-O leaves it out by default, and policies may take it away.
const NO_RAW: &str = "containers have no CAP_NET_RAW here, so a pod cannot even try";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::serve;

    /// On one host nothing stops a datagram; the tunnel's packets end at a port where nobody listens.
    #[test]
    fn what_arrives_is_told_and_what_does_not_is_not() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let face = serve::Face::new("me", true);
        let (http, udp) = (listener.local_addr().unwrap().port(), socket.local_addr().unwrap().port());
        serve::accept(listener, face.clone(), serve::converse_http).unwrap();
        serve::datagrams(socket, face).unwrap();
        let victim: IpAddr = [127, 0, 0, 1].into();
        let how = How::Tunnel { to: vec![victim], vteps: vec![BROADCAST], inner: victim };
        let forge = Forge { victim, http, udp, how };
        let patience = Duration::from_secs(5);
        assert!(carry_out(&forge, patience).unwrap().ends_with("none arrived"));
        let talk = Talk::open(&forge, patience).unwrap();
        talk.honest("before").unwrap();
        talk.socket.send(&talk.payload("as nobody")).unwrap();
        let error = talk.verdict("datagrams").unwrap_err();
        assert!(
            matches!(error.downcast_ref(), Some(End::Through(what)) if what.ends_with("as nobody")),
            "{error}"
        );
        // Words of another try are not this one's.
        assert_eq!(Talk::open(&forge, patience).unwrap().heard().unwrap(), Vec::<String>::new());
    }
}
