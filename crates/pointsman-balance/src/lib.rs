//! Balancing: which instance of a service gets the next call.
//!
//! A [`Balancer`] has a [`View`](pointsman_core::View) of a service and an [`Algorithm`]. [`Balancer::pick`] gives a
//! [`Claim`], which counts as in flight until it is dropped and takes the [`Outcome`] of the call; or a [`PickError`],
//! which says why there is none. [`Balancer::explain`] says whom a pick looked at, and why it chose whom it chose.
//!
//! Work goes to the normal instances whose status is passing and whose weight is above 0. Where there is none, the master
//! stands in, unless that is turned off. Who keeps failing is [ejected](Ejection) for a while; who has just joined may
//! [start slowly](Builder::slow_start).
//!
//! Nothing in here does I/O, needs a runtime, or starts a timer: with a seed and with the time passed in
//! ([`Balancer::pick_at`], [`Claim::report_at`]) all of it can be replayed.

mod algorithm;
mod alias;
mod balancer;
mod claim;
mod cycle;
mod ejection;
mod endpoint;
mod endpoints;
mod error;
mod ewma;
mod explanation;
mod maglev;
mod ranking;
mod rng;
mod standings;
mod table;
mod turns;

pub use algorithm::{Algorithm, UnknownAlgorithm};
pub use balancer::{Balancer, Builder};
pub use claim::Claim;
pub use ejection::{Ejection, Outcome};
pub use endpoints::Endpoints;
pub use error::PickError;
pub use explanation::{Considered, Explanation};
pub use standings::Standing;
