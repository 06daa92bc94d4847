//! Edge: the harness of the tests that need a real kernel: hosts, the real programs on them, and traffic.
//!
//! It makes and observes; what must hold is for the files in `tests/` to say, one behaviour each.
//!
//! - [`Fabric`], [`Host`] and [`Container`] are network namespaces; [`Host::machine`] is one that a
//!   container runtime can run on. [`Datacentre`] is the set-up that most tests start from.
//! - [`Controller`] and [`Agent`] are the real programs. [`Agent::add`] and its siblings call the real
//!   plugin as a container runtime does.
//! - [`wait_until`] waits for a condition, with a limit; nothing here sleeps and hopes.
//!
//! Tests run inside `in-sandbox`, which the cargo configuration sets as runner: whatever they make is
//! gone when the test binary ends, also when it is killed. Names still differ within one test binary,
//! whose tests run side by side.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "a harness stops at the first surprise, as a test does"
)]

mod agent;
mod cluster;
mod cni;
mod container;
mod controller;
pub mod cri;
mod datacentre;
mod fabric;
mod host;
pub mod image;
mod load;
mod machine;
mod program;
mod run;
mod site;
mod stream;
mod traffic;
mod unit;
mod upheaval;
mod watch;

pub use agent::Agent;
pub use cluster::{Cluster, Program};
pub use cni::{Answer, Call};
pub use container::{Container, Pod};
pub use controller::Controller;
pub use datacentre::{Datacentre, POOLS, Place};
pub use fabric::Fabric;
pub use host::{Host, inside};
pub use load::{Load, Toll};
pub use program::{Process, binary};
pub use run::{sh, state_dir, try_sh, unique, wait_until};
pub use site::Site;
pub use stream::{Count, Ends, Stream, Transfer};
pub use traffic::{Flow, Tally, reaches, seen_as};
pub use unit::Unit;
pub use upheaval::Upheaval;
pub use watch::KernelWatch;
