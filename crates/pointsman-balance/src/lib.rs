//! Balancing: which instance of a service gets the next call.
//!
//! A [`Balancer`] has a [`View`](pointsman_core::View) of a service and an [`Algorithm`]. [`Balancer::pick`] gives a
//! [`Claim`], which counts as in flight until it is dropped and takes the [`Outcome`] of the call; or a [`PickError`],
//! which says why there is none. [`Balancer::explain`] says which instances a pick looked at, and why it chose the one it did.
//!
//! Work goes to the normal instances against which nothing speaks. Where there is none, the master stands in, unless that is turned
//! off; and before nothing is left, those that are [ejected](Ejection), guarded or failing are used: one ordered list, [`Tier`].
//! An instance that has just joined may [start slowly](Builder::slow_start).
//!
//! Nothing in here does I/O or needs a runtime: with a seed and with the time passed in ([`Balancer::pick_at`], [`Claim::report_at`]) all of
//! it can be replayed, but for the moment at which the hashes follow a change among more than 1,024 instances.

mod algorithm;
mod alias;
mod balancer;
#[cfg(feature = "call")]
mod call;
mod claim;
mod clock;
mod cycle;
mod ejection;
mod endpoint;
mod endpoints;
mod error;
mod ewma;
mod explanation;
mod hashed;
mod maglev;
mod maglev_builder;
mod ranking;
mod retry_budget;
mod rng;
mod rules;
mod standings;
mod table;
mod turns;

pub use algorithm::{Algorithm, UnknownAlgorithm};
pub use balancer::{Balancer, Builder};
#[cfg(feature = "call")]
pub use call::{CallError, CallPolicy};
pub use claim::Claim;
pub use ejection::{Ejection, Outcome};
pub use endpoints::Endpoints;
pub use error::PickError;
pub use explanation::{Considered, Explanation};
pub use retry_budget::RetryBudget;
pub use rules::{Candidates, Standing, Tier, UnknownRole};
