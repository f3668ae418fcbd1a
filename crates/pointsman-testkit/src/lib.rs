//! Servers and faults from outside, for the tests of Pointsman.
//!
//! Everything here panics where it cannot go on, with a message that says why: it is test support. What it starts ends with
//! the value that stands for it, or with the test process, even when that is killed.

#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout)]

mod ensemble;
mod foreign;
mod network;
mod process;
mod proxy;
mod session;
mod tls;
mod zookeeper;

pub use ensemble::Ensemble;
pub use foreign::{Foreign, ForeignInstance, ForeignOptions, ForeignRole, ForeignView, read_as_foreign};
pub use network::PartitionableEnsemble;
pub use proxy::{CuttingProxy, Op, OrderedCut};
pub use tls::TlsFiles;
pub use zookeeper::{ZooKeeper, ZooKeeperOptions};

/// A prefix that no other test uses: `/t-<random>`.
#[must_use]
pub fn unique_prefix() -> String {
    format!("/t-{:016x}", fastrand::u64(..))
}
