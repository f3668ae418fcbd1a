//! The agent's API, asked over real sockets: what `docs/agent.md` promises, and what happens in bad weather.
#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "../support/mod.rs"]
mod support;

mod access;
mod choice;
mod descriptors;
mod find;
mod gzip;
mod http2;
mod input;
mod limits;
mod pick;
mod register;
mod tls;
mod watch;
