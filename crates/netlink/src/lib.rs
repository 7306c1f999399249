//! Owns: the bytes of netlink: messages and attributes, rtnetlink, nf_tables, packets on the wire.
//! Never: I/O. Nothing here needs root or a kernel; no input of any bytes may panic.
//! In → Out: `kstate` values → request bytes; reply and notification bytes → values.
//! Read first: [`message::Writer`], [`message::messages`], [`route`], [`nft::Transactions`], [`nft::Dump`].

pub mod conntrack;
pub mod message;
pub mod nfnetlink;
pub mod nft;
pub mod packet;
pub mod route;
