//! Edge: the real `limpet-controller`, started, killed and started again, over real files and
//! sockets.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test stops at the first surprise, in its helpers too"
)]

mod api;
mod files;
mod history;
mod pools;
mod process;
mod quotas;
mod replicas;
mod restarts;
mod restore;
#[path = "../../src/store/etcd/server.rs"]
#[allow(dead_code, reason = "the tests of the store use all of it")]
mod server;
