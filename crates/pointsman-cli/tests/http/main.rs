//! `serve` with a proxy: real processes, and clients and origins that are none of ours.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../support/mod.rs"]
mod support;

mod ending;
mod files;
mod hand_over;
mod registry;
mod serving;
mod setup;
