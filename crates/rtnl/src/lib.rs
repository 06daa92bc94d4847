//! Edge: the netlink messages that limpet needs, and a socket that carries them; no policy.
//!
//! Values are plain structs in limpet's words ([`Route`], [`Nexthop`], [`Neighbour`], ...). What is to be done
//! is a [`Request`], which prints as the `ip` or `bridge` command that it equals; a [`Socket`] sends one
//! ([`Socket::request`]) or many ([`Socket::batch`]) and reads whole tables, never parts of them.
//!
//! ```no_run
//! # async fn f() -> Result<(), Box<dyn std::error::Error>> {
//! use limpet_rtnl::{Request, Route, RouteFilter, RouteTarget, Socket};
//!
//! let mut socket = Socket::open()?;
//! let route = Route {
//!     table: 7601,
//!     protocol: 76,
//!     destination: "10.32.0.64/26".parse()?,
//!     target: RouteTarget::Nexthop(1002),
//!     source: Some("192.0.2.1".parse()?),
//!     metric: 0,
//! };
//! socket.request(&Request::SetRoute(route)).await?;
//! let found = socket.routes(RouteFilter { table: 7601, protocol: 76 }).await?;
//! assert!(found.contains(&route));
//! # Ok(()) }
//! ```
//!
//! Setting replaces or creates, and deleting what is not there succeeds, so that repeating is safe. A socket
//! belongs to the network namespace in which it was opened and goes on speaking for it wherever its owner
//! runs: open one in each ([`Socket::open_in`]) and work from outside.

mod address;
mod elsewhere;
mod filter;
mod filter_monitor;
#[cfg(test)]
mod hostile_tests;
mod link;
mod message;
mod monitor;
mod neighbour;
mod netns;
mod news;
mod nexthop;
mod request;
mod route;
mod rule;
mod shape;
mod socket;
pub mod sysctl;
mod tables;
mod tunnel;
mod wire;

pub use address::{Address, FoundAddress, Scope};
pub use elsewhere::{ElsewhereEvent, ElsewhereMonitor};
pub use filter::has_filter_table;
pub use filter_monitor::{FilterEvent, FilterMonitor};
pub use link::{Link, LinkChange, LinkKind, NewVeth, NewVxlan, Veth, VethPeer, Vxlan};
pub use monitor::{Monitor, MonitorError};
pub use neighbour::{FdbEntry, FoundNeighbour, Neighbour};
pub use netns::{Netns, NetnsError};
pub use news::{Change, Entry, Event, Table};
pub use nexthop::{Member, Nexthop, NexthopKind, Resilient};
pub use request::Request;
pub use route::{Route, RouteFilter, RouteTarget};
pub use rule::{Rule, RuleAction, Selector};
pub use shape::{Detour, FoundTbf, NewIfb, Tbf};
pub use socket::{OpenError, RequestError, Socket};
pub use tables::ReadError;
pub use tunnel::Tunnel;
