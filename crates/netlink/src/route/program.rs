//! A BPF program that sees what comes by a link before anything else: the qdisc `clsact` and a filter of it (linux/pkt_cls.h,
//! tc-bpf(8)). Both go with the link.

use super::{AF_UNSPEC, RTM_DELQDISC, RTM_DELTFILTER, RTM_GETTFILTER, RTM_NEWQDISC, RTM_NEWTFILTER, head};
use crate::message::{Message, Writer, flags, u32_at};

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_TAG: u16 = 10;
const TCA_BPF_ID: u16 = 11;
/// What the program returns is what becomes of the packet.
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;
const TC_H_CLSACT: u32 = 0xffff_fff1;
const CLSACT: u32 = 0xffff_0000;
/// TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)
const INGRESS: u32 = 0xffff_fff2;
/// Before any other filter, for packets of all protocols (ETH_P_ALL, in the network's byte order).
const FIRST_OF_ALL: u32 = 1 << 16 | (3_u16.to_be() as u32);
/// "plmb": which filter is ours.
const HANDLE: u32 = 0x706c_6d62;
const LENGTH: usize = 20; // struct tcmsg

fn tcmsg(writer: &mut Writer, link: u32, (handle, parent, info): (u32, u32, u32)) {
    writer.raw(&[AF_UNSPEC, 0, 0, 0]);
    for word in [link, handle, parent, info] {
        writer.raw(&word.to_ne_bytes());
    }
}

/// Makes room for programs of a link. EEXIST: there is.
pub fn add_clsact(writer: &mut Writer, seq: u32, link: u32) {
    let flags = flags::CREATE | flags::EXCL | flags::ACK;
    writer.message(head(RTM_NEWQDISC, flags, seq), |writer| {
        tcmsg(writer, link, (CLSACT, TC_H_CLSACT, 0));
        writer.text(TCA_KIND, "clsact");
    });
}

/// Puts an open program there, in the place of one that is there by us.
pub fn set_program(writer: &mut Writer, seq: u32, link: u32, (name, program): (&str, i32)) {
    writer.message(head(RTM_NEWTFILTER, flags::CREATE | flags::ACK, seq), |writer| {
        tcmsg(writer, link, (HANDLE, INGRESS, FIRST_OF_ALL));
        writer.text(TCA_KIND, "bpf");
        writer.nest(TCA_OPTIONS, |writer| {
            writer.bytes(TCA_BPF_FD, &program.to_ne_bytes());
            writer.text(TCA_BPF_NAME, name);
            writer.u32(TCA_BPF_FLAGS, TCA_BPF_FLAG_ACT_DIRECT);
        });
    });
}

/// Takes ours away. ENOENT or EINVAL: there is none, nor a qdisc.
pub fn delete_program(writer: &mut Writer, seq: u32, link: u32) {
    writer.message(head(RTM_DELTFILTER, flags::ACK, seq), |writer| {
        tcmsg(writer, link, (HANDLE, INGRESS, FIRST_OF_ALL));
        writer.text(TCA_KIND, "bpf");
    });
}

/// The programs of one link; none where it has no such qdisc.
pub fn dump_programs(writer: &mut Writer, seq: u32, link: u32) {
    writer.message(head(RTM_GETTFILTER, flags::DUMP, seq), |writer| tcmsg(writer, link, (0, INGRESS, 0)));
}

/// A program of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgramRow {
    pub link: u32,
    /// A digest of its instructions. A notice of its end may have none.
    pub tag: Option<[u8; 8]>,
    /// The kernel's number of this very program, which another process's has not.
    pub id: Option<u32>,
}

/// `None` for what is not ours.
pub fn decode_program(message: &Message<'_>) -> Option<ProgramRow> {
    let (head, attributes) = message.split(LENGTH)?;
    let ours = u32_at(head, 8)? == HANDLE && u32_at(head, 12)? == INGRESS;
    let options = attributes.find(TCA_OPTIONS).filter(|_| ours)?;
    let tag = options.nested().find(TCA_BPF_TAG).and_then(|tag| tag.value.try_into().ok());
    let id = options.nested().find(TCA_BPF_ID).and_then(|id| u32_at(id.value, 0));
    Some(ProgramRow { link: u32_at(head, 4)?, tag, id })
}

/// That the program of a link is gone, or went with what it was in: the kernel then tells of all filters of a priority or chain
/// at once, which has no handle, or of the qdisc alone.
pub fn decode_end_of_program(message: &Message<'_>) -> Option<ProgramRow> {
    let (head, _) = message.split(LENGTH)?;
    let (handle, parent) = (u32_at(head, 8)?, u32_at(head, 12)?);
    let gone = match message.kind {
        RTM_DELQDISC => parent == TC_H_CLSACT,
        _ => parent == INGRESS && [HANDLE, 0].contains(&handle),
    };
    let link = u32_at(head, 4).filter(|_| gone)?;
    Some(ProgramRow { link, tag: None, id: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::messages;

    /// As `tc filter show dev veth1 ingress` has it: the filter's head first, then the filter.
    #[test]
    fn only_a_program_of_ours_is_seen() {
        let filter = |handle: u32, body: &dyn Fn(&mut Writer)| {
            let mut writer = Writer::new();
            writer.message(head(RTM_NEWTFILTER, 0, 1), |writer| {
                tcmsg(writer, 7, (handle, INGRESS, FIRST_OF_ALL));
                writer.text(TCA_KIND, "bpf");
                body(writer);
            });
            messages(writer.as_bytes()).next().and_then(|message| decode_program(&message))
        };
        let with = |tag: &'static [u8]| {
            move |writer: &mut Writer| writer.nest(TCA_OPTIONS, |writer| writer.bytes(TCA_BPF_TAG, tag))
        };
        let tag = Some(*b"\x01\x02\x03\x04\x05\x06\x07\x08");
        assert_eq!(
            filter(HANDLE, &with(b"\x01\x02\x03\x04\x05\x06\x07\x08")),
            Some(ProgramRow { link: 7, tag, id: None })
        );
        assert_eq!(filter(HANDLE, &with(b"\x01")), Some(ProgramRow { link: 7, tag: None, id: None }));
        assert_eq!(filter(HANDLE, &|_| ()), None);
        assert_eq!(filter(1, &with(b"\x01\x02\x03\x04\x05\x06\x07\x08")), None);
    }
}
