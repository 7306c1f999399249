//! What nf_tables and conntrack share: nfnetlink's head, and reading attributes out of nested bytes.
//!
//! ```text
//!   | message header:16 | family:1 version:1 resource:2 | attributes …
//! ```

use thiserror::Error;

use crate::message::{Attribute, Head, Message, Open, Writer, attributes};

/// A message that is not what it should be.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "a message of the kernel is not understood: {what} is missing or malformed; its netfilter may be newer than this program"
)]
pub struct DecodeError {
    pub what: &'static str,
}

impl DecodeError {
    pub(crate) fn new(what: &'static str) -> Self {
        Self { what }
    }
}

/// Begins a message with its `struct nfgenmsg`: an NFPROTO_* family and a resource id.
pub(crate) fn open(writer: &mut Writer, head: Head, (family, resource): (u8, u16)) -> Open {
    let open = writer.open_message(head);
    writer.raw(&[family, 0]);
    writer.raw(&resource.to_be_bytes());
    writer.close_message(open);
    open
}

/// The family, and the bytes of the attributes.
pub(crate) fn split<'a>(message: &Message<'a>) -> Option<(u8, &'a [u8])> {
    let (head, attributes) = message.body.split_at_checked(4)?;
    Some((*head.first()?, attributes))
}

/// The value of the first attribute of that kind.
pub(crate) fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(kind).map(|attribute| attribute.value)
}

pub(crate) fn be16(value: &[u8]) -> Option<u16> {
    value.try_into().ok().map(u16::from_be_bytes)
}

pub(crate) fn be32(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}

pub(crate) fn be64(value: &[u8]) -> Option<u64> {
    value.try_into().ok().map(u64::from_be_bytes)
}

pub(crate) fn text(value: &[u8]) -> Option<&str> {
    Attribute { kind: 0, value }.text()
}
