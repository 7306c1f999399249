//! Netlink framing: messages (RFC 3549 §2.3.2), type-length-value attributes, acknowledgements.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use types::Mac;

pub const NLMSG_ERROR: u16 = 2;
pub const NLMSG_DONE: u16 = 3;

/// Flags of include/uapi/linux/netlink.h.
pub mod flags {
    pub const REQUEST: u16 = 0x01;
    pub const MULTI: u16 = 0x02;
    pub const ACK: u16 = 0x04;
    pub const ECHO: u16 = 0x08;
    pub const DUMP_INTR: u16 = 0x10;
    pub const DUMP: u16 = 0x300;
    pub const REPLACE: u16 = 0x100;
    pub const EXCL: u16 = 0x200;
    pub const CREATE: u16 = 0x400;
    pub const APPEND: u16 = 0x800;
    /// In an acknowledgement: the request is not repeated in it.
    pub const CAPPED: u16 = 0x100;
    /// In an acknowledgement: attributes of an extended acknowledgement follow.
    pub const ACK_TLVS: u16 = 0x200;
}

const HEADER: usize = 16;
const NESTED: u16 = 0x8000;
/// NLA_TYPE_MASK: without the flags for nesting and byte order.
const KIND: u16 = 0x3fff;

/// The head of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub kind: u16,
    /// [`flags::REQUEST`] is added.
    pub flags: u16,
    pub seq: u32,
}

/// Writes messages one after the other into one buffer: what one `send` carries.
#[derive(Clone, Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub fn clear(&mut self) {
        self.bytes.clear();
    }

    /// One message: `body` writes the fixed structure with [`Writer::raw`], then attributes.
    pub fn message(&mut self, head: Head, body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.raw(&[0; 4]);
        self.raw(&head.kind.to_ne_bytes());
        self.raw(&(head.flags | flags::REQUEST).to_ne_bytes());
        self.raw(&head.seq.to_ne_bytes());
        self.raw(&[0; 4]);
        body(self);
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.patch(start, &length.to_ne_bytes());
        self.pad();
    }

    /// Begins a message that stays open: [`Writer::close_message`] writes its length, again after more was added.
    pub fn open_message(&mut self, head: Head) -> Open {
        let open = Open(self.bytes.len());
        self.message(head, |_| {});
        open
    }

    pub fn close_message(&mut self, open: Open) {
        let length = u32::try_from(self.bytes.len() - open.0).unwrap_or(u32::MAX);
        self.patch(open.0, &length.to_ne_bytes());
    }

    /// Adds flags to a message that is there already.
    pub fn add_flags(&mut self, open: Open, flags: u16) {
        let at = open.0 + 6;
        let flags = u16_at(&self.bytes, at).unwrap_or(0) | flags;
        self.patch(at, &flags.to_ne_bytes());
    }

    /// Begins a nest that stays open, like [`Writer::open_message`].
    pub fn open_nest(&mut self, kind: u16) -> Open {
        let open = Open(self.bytes.len());
        self.nest(kind, |_| {});
        open
    }

    pub fn close_nest(&mut self, open: Open) {
        let length = u16::try_from(self.bytes.len() - open.0).unwrap_or(u16::MAX);
        self.patch(open.0, &length.to_ne_bytes());
    }

    /// Takes back what was written after `length` bytes.
    pub fn truncate(&mut self, length: usize) {
        self.bytes.truncate(length);
    }

    /// Bytes as they are, without a header or padding.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.attribute(kind, |writer| writer.raw(value));
    }

    /// Text with the NUL byte at its end that the kernel wants.
    pub fn text(&mut self, kind: u16, value: &str) {
        self.attribute(kind, |writer| {
            writer.raw(value.as_bytes());
            writer.raw(&[0]);
        });
    }

    /// An attribute without a value, whose presence is its meaning.
    pub fn flag(&mut self, kind: u16) {
        self.bytes(kind, &[]);
    }

    pub fn u8(&mut self, kind: u16, value: u8) {
        self.bytes(kind, &[value]);
    }

    pub fn u16(&mut self, kind: u16, value: u16) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    pub fn u32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    pub fn u64(&mut self, kind: u16, value: u64) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    pub fn be16(&mut self, kind: u16, value: u16) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub fn be32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub fn be64(&mut self, kind: u16, value: u64) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub fn ip(&mut self, kind: u16, value: IpAddr) {
        match value {
            IpAddr::V4(ip) => self.bytes(kind, &ip.octets()),
            IpAddr::V6(ip) => self.bytes(kind, &ip.octets()),
        }
    }

    /// Attributes inside an attribute. The length field has 16 bits: what is nested must stay under 64 KiB.
    pub fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        self.attribute(kind | NESTED, body);
    }

    fn attribute(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.raw(&[0; 2]);
        self.raw(&kind.to_ne_bytes());
        body(self);
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        debug_assert!(length < u16::MAX, "attribute {kind} is too long");
        self.patch(start, &length.to_ne_bytes());
        self.pad();
    }

    fn patch(&mut self, at: usize, value: &[u8]) {
        if let Some(place) = self.bytes.get_mut(at..at + value.len()) {
            place.copy_from_slice(value);
        }
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// An open message or nest: where its length goes.
#[derive(Clone, Copy, Debug)]
pub struct Open(pub(crate) usize);

/// A received message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    pub kind: u16,
    pub flags: u16,
    pub seq: u32,
    /// The socket that it answers or, in a notification, that caused it.
    pub portid: u32,
    pub body: &'a [u8],
}

/// The kernel's answer to a request: success, or why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    /// 0 is success, else a positive error number.
    pub errno: i32,
    /// The kernel's own words, where it has some (NLMSGERR_ATTR_MSG).
    pub detail: Option<String>,
    /// Where in the request the mistake is (NLMSGERR_ATTR_OFFS).
    pub offset: Option<u32>,
}

impl<'a> Message<'a> {
    /// The fixed structure of `length` bytes and the attributes after it.
    pub fn split(&self, length: usize) -> Option<(&'a [u8], Attributes<'a>)> {
        let (fixed, rest) = self.body.split_at_checked(length)?;
        let skip = length.next_multiple_of(4) - length;
        Some((fixed, attributes(rest.get(skip..).unwrap_or_default())))
    }

    /// The acknowledgement or error that this is, if it is one. The end of a dump also carries an error number.
    pub fn ack(&self) -> Option<Ack> {
        if self.kind != NLMSG_ERROR && self.kind != NLMSG_DONE {
            return None;
        }
        let errno = i32_at(self.body, 0).unwrap_or(0).saturating_neg();
        let mut ack = Ack { errno, detail: None, offset: None };
        if self.flags & flags::ACK_TLVS == 0 {
            return Some(ack);
        }
        let skip = match self.kind {
            NLMSG_DONE => 4,
            _ if self.flags & flags::CAPPED != 0 => 4 + HEADER,
            _ => 4 + (u32_at(self.body, 4).unwrap_or(0) as usize).next_multiple_of(4),
        };
        for attribute in attributes(self.body.get(skip..).unwrap_or_default()) {
            match attribute.kind {
                1 => ack.detail = attribute.text().map(str::to_owned),
                2 => ack.offset = attribute.u32(),
                _ => {}
            }
        }
        Some(ack)
    }
}

/// The messages in one received datagram; stops at the first that is cut short.
pub fn messages(bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = u32_at(rest, 0)? as usize;
        let body = rest.get(HEADER..length)?;
        let (kind, flags, seq) = (u16_at(rest, 4)?, u16_at(rest, 6)?, u32_at(rest, 8)?);
        let message = Message { kind, flags, seq, portid: u32_at(rest, 12)?, body };
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// A received attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attribute<'a> {
    pub kind: u16,
    pub value: &'a [u8],
}

/// Iterates over attributes; stops at the first that is cut short.
#[derive(Clone, Debug)]
pub struct Attributes<'a> {
    rest: &'a [u8],
}

pub fn attributes(bytes: &[u8]) -> Attributes<'_> {
    Attributes { rest: bytes }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Attribute<'a>;

    fn next(&mut self) -> Option<Attribute<'a>> {
        let length = usize::from(u16_at(self.rest, 0)?);
        let kind = u16_at(self.rest, 2)? & KIND;
        let value = self.rest.get(4..length)?;
        self.rest = self.rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Attribute { kind, value })
    }
}

impl<'a> Attributes<'a> {
    /// The first attribute of this kind.
    pub fn find(&self, kind: u16) -> Option<Attribute<'a>> {
        Iterator::find(&mut self.clone(), |attribute| attribute.kind == kind)
    }
}

impl<'a> Attribute<'a> {
    pub fn nested(&self) -> Attributes<'a> {
        attributes(self.value)
    }

    /// Text up to its NUL byte.
    pub fn text(&self) -> Option<&'a str> {
        std::str::from_utf8(self.value.split(|byte| *byte == 0).next()?).ok()
    }

    pub fn u8(&self) -> Option<u8> {
        self.value.first().copied()
    }

    pub fn u16(&self) -> Option<u16> {
        u16_at(self.value, 0)
    }

    pub fn u32(&self) -> Option<u32> {
        u32_at(self.value, 0)
    }

    pub fn u64(&self) -> Option<u64> {
        self.value.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes))
    }

    pub fn be16(&self) -> Option<u16> {
        self.u16().map(u16::from_be)
    }

    pub fn be32(&self) -> Option<u32> {
        self.u32().map(u32::from_be)
    }

    pub fn be64(&self) -> Option<u64> {
        self.u64().map(u64::from_be)
    }

    /// An address, of the family that its length tells.
    pub fn ip(&self) -> Option<IpAddr> {
        if let Ok(bytes) = <[u8; 4]>::try_from(self.value) {
            return Some(Ipv4Addr::from(bytes).into());
        }
        <[u8; 16]>::try_from(self.value).ok().map(|bytes| Ipv6Addr::from(bytes).into())
    }

    pub fn mac(&self) -> Option<Mac> {
        self.value.try_into().ok().map(Mac)
    }
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    bytes.get(at..)?.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let mut writer = Writer::new();
        for seq in [7, 8] {
            writer.message(Head { kind: 16, flags: flags::ACK, seq }, |writer| {
                writer.raw(&[1, 2, 3, 4]);
                writer.text(3, "eth0");
                writer.nest(18, |writer| writer.be16(5, 8472));
            });
        }
        let read: Vec<Message<'_>> = messages(writer.as_bytes()).collect();
        assert_eq!(read.iter().map(|message| message.seq).collect::<Vec<_>>(), [7, 8]);
        let (fixed, attributes) = read.first().and_then(|message| message.split(4)).expect("a message");
        assert_eq!(fixed, [1, 2, 3, 4]);
        assert_eq!(attributes.find(3).and_then(|attribute| attribute.text()), Some("eth0"));
        let nested = attributes.find(18).expect("a nest").nested();
        assert_eq!(nested.find(5).and_then(|attribute| attribute.be16()), Some(8472));
    }

    #[test]
    fn an_error_carries_the_kernels_words() {
        let mut writer = Writer::new();
        writer.message(
            Head { kind: NLMSG_ERROR, flags: flags::ACK_TLVS | flags::CAPPED, seq: 1 },
            |writer| {
                writer.raw(&(-17_i32).to_ne_bytes());
                writer.raw(&[0; HEADER]);
                writer.text(1, "already there");
            },
        );
        let ack = messages(writer.as_bytes()).next().and_then(|message| message.ack()).expect("an ack");
        assert_eq!((ack.errno, ack.detail.as_deref()), (17, Some("already there")));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for message in messages(&bytes) {
                let _ = message.ack();
                for attribute in message.split(3).into_iter().flat_map(|(_, attributes)| attributes) {
                    let _ = (attribute.ip(), attribute.text(), attribute.u64(), attribute.nested().count());
                }
            }
        }
    }
}
