//! A load generator for MQTT, so lean that it is not what is measured, and the processes that it measures.
//!
//! | question | file |
//! |---|---|
//! | bytes in and out of one client | `client.rs` |
//! | messages from a publisher to subscribers | `flow.rs` |
//! | requests and answers | `requests.rs` |
//! | relays in processes of their own; processor time and memory | `process.rs` |
//! | rounds in turn, medians, the table | `table.rs` |

mod client;
mod flow;
mod process;
mod requests;
mod table;

pub use client::{Client, PAYLOAD};
pub use flow::{Flow, Round};
pub use process::{Child, Observed, child};
pub use requests::Requests;
pub use table::{Plan, Table, median, percentile, quartiles};

/// What can go wrong in a benchmark ends it.
pub type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;
