//! The nouns and contracts that every part of Pointsman shares.
//!
//! An [`Instance`] registers under the name of its service and holds a [`Role`]. All instances of one service as they are observed at one
//! moment ([`ObservedInstance`]) are a [`Snapshot`]; what differs between two snapshots is a list of [`Change`]s. A [`View`] is where the one
//! [`ViewWriter`] leaves the newest snapshot for any number of readers. A [`TermGuard`] refuses what a deposed master
//! still tries to write.
//!
//! With the feature `serde` an [`Instance`], a [`Term`] and a [`Status`] can be written and read by serde. What the agent and the registries write
//! has types of its own, beside the code that writes it.
//!
//! This crate has no runtime and does no I/O: what depends on it can be tested with values alone.

mod change;
mod duration;
mod instance;
mod name;
mod observed;
mod role;
mod service_id;
mod snapshot;
mod streak;
mod view;

pub use change::Change;
pub use duration::{InvalidDuration, parse_duration};
pub use instance::{Instance, InvalidInstance, MAX_WEIGHT, check_address};
pub use name::{InvalidName, MAX_NAME_BYTES, check_name, is_invisible, shown};
pub use observed::{ObservedInstance, Status, UnknownStatus};
pub use role::{InvalidTerm, Role, StaleTerm, Term, TermGuard};
pub use service_id::ServiceId;
pub use snapshot::{Difference, Problem, Snapshot};
pub use streak::Streak;
pub use view::{View, ViewWriter};
