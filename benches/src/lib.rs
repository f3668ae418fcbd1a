//! How the benches measure: two contenders in turn, round by round in one process, and the medians of the rounds. What
//! disturbs the machine disturbs both.

mod duel;
pub mod mqtt;

pub use duel::{Contender, Duel, Figures, header, threads};
