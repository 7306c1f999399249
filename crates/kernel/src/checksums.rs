//! The programs at pods' ports and at the node's own links that turn frames away whose checksum would be filled in where they
//! have none (`bpf/checksums.bpf.c`), loaded once by each process.
//!
//! | program | at | found again by | counts |
//! |---|---|---|---|
//! | `plumb_checksums` | pods' ports | its tag: one of an earlier process is as good | no: the guard of the bridge does |
//! | `plumb_uplink` | the node's links | its id: only this process's is counted by this process | [`Program::dropped`] |
//!
//! A link keeps its program when nobody holds it open any more, and takes it along when it goes.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::OnceLock;

use aya::maps::{Array, MapData, MapError};
use aya::programs::{ProgramError, ProgramInfo, ProgramType, SchedClassifier};
use aya::{Ebpf, EbpfError};
use netlink::message::Ack;
use netlink::route::{self, ProgramRow};
use types::IfName;

use crate::error::Error;
use crate::netns::Netns;
use crate::rtnl::Rtnl;
use crate::socket::{Batch, refusal};

/// As `tc filter show dev VETH ingress` and `bpftool prog` name it.
const NAME: &str = "plumb_checksums";
const UPLINK: &str = "plumb_uplink";
/// The map that holds the count of [`UPLINK`], as the object's section is called.
const COUNT: &str = ".bss";
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/checksums.o"));

/// The loaded programs.
pub struct Program {
    fd: OwnedFd,
    tag: [u8; 8],
    uplink: OwnedFd,
    uplink_id: u32,
    count: Array<MapData, u64>,
}

/// Why this machine has none: in words, with what it takes.
pub type Missing = str;

/// Loads it at the first call (about 0.1 s: the kernel's types are read, 5 MB), blocking.
pub fn program() -> Result<&'static Program, &'static Missing> {
    static PROGRAM: OnceLock<Result<Program, String>> = OnceLock::new();
    PROGRAM.get_or_init(load).as_ref().map_err(String::as_str)
}

/// As the kernel says what it knows of its own structs.
const TYPES: &str = "/sys/kernel/btf/vmlinux";

fn load() -> Result<Program, String> {
    // Before anything is read: an ordinary user in a namespace of his own may not.
    match aya::sys::is_program_supported(ProgramType::SchedClassifier) {
        Ok(true) => {}
        Ok(false) => return Err("the kernel knows no such programs (CONFIG_BPF_SYSCALL)".into()),
        Err(error) => return Err(format!("BPF takes CAP_SYS_ADMIN outside of user namespaces: {error}")),
    }
    if !Path::new(TYPES).exists() {
        return Err(format!("there is no {TYPES} (CONFIG_DEBUG_INFO_BTF)"));
    }
    let program = open().map_err(|error| format!("the kernel refuses the program: {error}"))?;
    // The types took 20 MB.
    crate::memory::give_back();
    try_out(&program).map_err(|error| {
        format!("links take no program (CONFIG_NET_CLS_BPF, CONFIG_NET_SCH_INGRESS): {error}")
    })?;
    Ok(program)
}

fn open() -> Result<Program, EbpfError> {
    let mut object = Ebpf::load(OBJECT)?;
    let (fd, info) = load_one(&mut object, NAME)?;
    let tag = info.tag().to_be_bytes();
    let (uplink, info) = load_one(&mut object, UPLINK)?;
    let missing = || MapError::InvalidName { name: COUNT.to_owned() };
    let count = object.take_map(COUNT).ok_or_else(missing)?.try_into()?;
    Ok(Program { fd, tag, uplink, uplink_id: info.id(), count })
}

fn load_one(object: &mut Ebpf, name: &str) -> Result<(OwnedFd, ProgramInfo), EbpfError> {
    let program: &mut SchedClassifier =
        object.program_mut(name).ok_or(ProgramError::NotLoaded)?.try_into()?;
    program.load()?;
    let fd = program.fd()?.as_fd().try_clone_to_owned().map_err(ProgramError::IOError)?;
    Ok((fd, program.info()?))
}

/// On a link of nobody's.
fn try_out(program: &Program) -> Result<(), Error> {
    const LOOPBACK: u32 = 1;
    Netns::fresh()?.run(|| {
        let mut rtnl = Rtnl::open()?;
        let mut batch = rtnl.batch();
        program.put(&mut batch, LOOPBACK);
        let refused = rtnl.socket.run(batch)?;
        match refused.into_iter().find(|(_, ack)| !is_done(ack)) {
            Some((_, ack)) => Err(refusal("put it at a link", ack)),
            None if program.is_at(&mut rtnl, LOOPBACK)? => Ok(()),
            None => Err(Error::Answer { what: "ask a link for it".into(), why: "it has none".into() }),
        }
    })?
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program").field("uplink_id", &self.uplink_id).finish_non_exhaustive()
    }
}

impl Program {
    /// Adds what puts it at a pod's port, in the place of an older one. [`is_done`] knows which refusals are none.
    pub(crate) fn put(&self, batch: &mut Batch, link: u32) {
        put(batch, link, (NAME, self.fd.as_raw_fd()));
    }

    /// Whether this very one is at a pod's port.
    pub(crate) fn is_at(&self, rtnl: &mut Rtnl, link: u32) -> Result<bool, Error> {
        Ok(rtnl.programs(link)?.iter().any(|row| self.is(row)))
    }

    pub(crate) fn is(&self, row: &ProgramRow) -> bool {
        row.tag == Some(self.tag)
    }

    /// Frames that were dropped at the node's links since this process put its program there.
    pub fn dropped(&self) -> Result<u64, Error> {
        let refused = |error: MapError| Error::Answer {
            what: "read what the program at the node's links dropped".into(),
            why: error.to_string(),
        };
        self.count.get(&0, 0).map_err(refused)
    }
}

fn put(batch: &mut Batch, link: u32, program: (&str, RawFd)) {
    batch.add(|writer, seq| route::add_clsact(writer, seq, link));
    batch.add(|writer, seq| route::set_program(writer, seq, link, program));
}

/// Puts it at a link that is not ours, where it is not there yet, in the place of another process's. Whether it was put there.
pub fn guard(rtnl: &mut Rtnl, link: &IfName) -> Result<bool, Error> {
    let (Ok(program), Some(index)) = (program(), rtnl.index(link)) else { return Ok(false) };
    if rtnl.programs(index)?.iter().any(|row| row.id == Some(program.uplink_id)) {
        return Ok(false);
    }
    let mut batch = rtnl.batch();
    put(&mut batch, index, (UPLINK, program.uplink.as_raw_fd()));
    match rtnl.socket.run(batch)?.into_iter().find(|(_, ack)| !is_done(ack)) {
        Some((_, ack)) => Err(refusal(format!("put the program for checksums at {link}"), ack)),
        None => Ok(true),
    }
}

/// Takes both from all links. Their room for programs stays: others may use it. From which.
pub fn leave(rtnl: &mut Rtnl) -> Result<Vec<IfName>, Error> {
    let mut left = Vec::new();
    for row in rtnl.links()? {
        if rtnl.programs(row.index)?.is_empty() {
            continue;
        }
        let mut batch = rtnl.batch();
        batch.add(|writer, seq| route::delete_program(writer, seq, row.index));
        if let Some((_, ack)) = rtnl.socket.run(batch)?.into_iter().find(|(_, ack)| ack.errno != libc::ENODEV)
        {
            return Err(refusal(format!("take the program for checksums from {}", row.name), ack));
        }
        left.push(row.name);
    }
    Ok(left)
}

/// Whether the room for programs is only there already.
pub(crate) fn is_done(ack: &Ack) -> bool {
    ack.errno == libc::EEXIST
}
