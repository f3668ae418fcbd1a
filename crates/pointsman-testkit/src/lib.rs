//! Servers and faults from outside, for the tests of Pointsman.
//!
//! Everything here panics where it cannot go on, with a message that says why: it is test support. What it starts ends with
//! the value that stands for it, or with the test process, even when that is killed.

#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout)]

mod browser;
pub mod choosing;
mod ensemble;
mod foreign;
pub mod http;
mod machine;
mod mosquitto;
mod network;
mod paho;
mod process;
mod proxy;
mod raw_broker;
mod session;
mod tls;
mod zookeeper;

pub use browser::{Browser, ConsoleLine};
pub use ensemble::Ensemble;
pub use foreign::{Foreign, ForeignInstance, ForeignOptions, ForeignRole, ForeignView, read_as_foreign};
pub use machine::slowdown;
pub use mosquitto::{Mosquitto, MosquittoOptions};
pub use network::PartitionableEnsemble;
pub use paho::{Echo, Paho, PahoConnack, PahoEvent, PahoMessage, PahoOptions, PahoSubscription};
pub use proxy::{CuttingProxy, Direction, Op, OrderedCut};
pub use raw_broker::{RawBroker, RawClient, RawConnection};
pub use tls::TlsFiles;
pub use zookeeper::{ZooKeeper, ZooKeeperOptions};

/// A prefix that no other test uses: `/t-<random>`.
#[must_use]
pub fn unique_prefix() -> String {
    format!("/t-{:016x}", fastrand::u64(..))
}
