//! Links of the machine that live on router advertisements (RFC 4861), which a router does not take by itself.
//!
//! ```text
//!   accept_ra  0  never     1  unless this machine forwards     2  always       (ip-sysctl.rst)
//! ```
//! Turning forwarding on even removes the routes that came by them (`rt6_purge_dflt_routers`, net/ipv6/route.c): the
//! machine would lose its default route, and later its addresses, because it became a node.

use std::collections::BTreeSet;
use std::net::IpAddr;

use types::{Family, IfName};

use crate::error::Error;
use crate::rtnl::Rtnl;
use crate::sysctl;

/// RTPROT_RA of include/uapi/linux/rtnetlink.h.
const BY_ADVERTISEMENT: u8 = 9;

/// The links with one of these addresses, and those with a route that was advertised.
pub fn advertised_links(rtnl: &mut Rtnl, addresses: &[IpAddr]) -> Result<BTreeSet<IfName>, Error> {
    let of_addresses = rtnl.addresses()?.into_iter().filter(|row| addresses.contains(&row.address.addr()));
    let mut indices: BTreeSet<u32> = of_addresses.map(|row| row.link).collect();
    let routes = rtnl.all_routes(Family::V6)?;
    indices.extend(routes.iter().filter(|row| row.protocol == BY_ADVERTISEMENT).filter_map(|row| row.link));
    let links = rtnl.links()?;
    Ok(links.into_iter().filter(|row| indices.contains(&row.index)).map(|row| row.name).collect())
}

/// Has the link take advertisements although this machine forwards, if it took them until now. Whether something was
/// changed. A link that is away has nothing to take.
pub fn keep_advertisements(link: &IfName) -> Result<bool, Error> {
    let path = format!("net/ipv6/conf/{link}/accept_ra");
    match std::fs::read_to_string(format!("/proc/sys/{path}")) {
        Ok(value) if value.trim() == "1" => {}
        _ => return Ok(false),
    }
    sysctl::write(&path, "2").map_err(|error| Error::system(format!("set {path} to 2"), error))?;
    Ok(true)
}
