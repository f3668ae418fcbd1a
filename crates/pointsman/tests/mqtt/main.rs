//! Services and senders over MQTT, with real brokers, our relay between, and clients that are none of ours.

#![allow(clippy::unwrap_used)]

mod client;
mod early;
mod embedded;
mod group;
mod handover;
mod service;
mod support;
