//! How the benches measure: two contenders in turn, round by round in one process, and the medians of the rounds. What
//! disturbs the machine disturbs both.

mod agent;
mod duel;
pub mod mqtt;

pub use agent::Client;
pub use duel::{Contender, Duel, Figures, header, threads};
