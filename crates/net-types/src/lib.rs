//! Pure: checked values of the network: names, numbers and addresses that obey a rule.
//!
//! Everything that has a rule is a type with a checked constructor, so that a value that exists is a value
//! that is right: it is parsed once, at the edge, and never checked again. Nothing here does any IO.
//!
//! | type | rule |
//! |---|---|
//! | [`HostName`], [`NetworkName`], [`PoolName`] | a DNS label: they become file, key and label names |
//! | [`Namespace`], [`WorkloadName`] | what Kubernetes and podman allow, in one path segment |
//! | [`ContainerId`], [`IfName`] | the CNI specification's and the kernel's |
//! | [`Vni`], [`Mtu`], [`Mac`], [`NetworkIndex`] | their field's range on the wire or in the kernel |
//! | [`Prefix`], [`Range`] | addresses, with no host bits set, in order, of one family |
//! | [`Uid`] | 128 random bits: one incarnation of an attachment |

mod addr;
mod hash;
mod hex;
mod id;
mod link;
mod name;
mod parsed;
mod text;

pub use addr::{AddressError, Family, Prefix, Range, address_at, address_bits, host_prefix};
pub use hash::stable_hash;
pub use hex::Hex;
pub use id::{Token, TokenError, Uid};
pub use link::{
    LinkError, MIN_MTU, Mac, Mtu, MtuTooSmall, NetworkIndex, Vni, host_ifname, link_local,
    overlay_mtu, shaper_ifname, vxlan_overhead,
};
pub use name::{
    ContainerId, HostName, IfName, LabelKey, NameError, NameGlob, Namespace, NetworkName, PoolName,
    RuntimeName, WorkloadName,
};
