//! The embedded broker in the section `[mqtt]`: its limits.

use std::net::SocketAddr;

use pointsman::mqtt::LARGEST_PACKET;
use pointsman::mqtt::broker::Options;

use super::super::setting::{Draft, Setting};
use super::super::values::{count, size};
use super::{Mqtt, Reading};

/// Where an option of the broker is.
type Field = fn(&mut Options) -> &mut usize;

/// The keys that are about the embedded broker.
pub(super) const KEYS: [&str; 15] = [
    "listen",
    "users_file",
    "tls_cert",
    "tls_key",
    "client_ca",
    "allow",
    "max_client_packet",
    "max_connections",
    "max_sessions",
    "max_subscriptions",
    "max_queued",
    "max_queued_bytes",
    "max_retained",
    "max_retained_bytes",
    "max_memory",
];
/// Maximum of a number of something in the embedded broker, and the bounds of a memory in bytes.
const MOST: u128 = 10_000_000;
const MEMORY: (u128, u128) = (1 << 20, 1 << 40);

impl Mqtt {
    /// What the embedded broker is started with.
    pub(crate) fn broker_options(&self, listen: SocketAddr) -> Options {
        let mut options = self.broker.clone();
        options.listen = listen;
        options
    }
}

/// Limits of the embedded broker.
pub(super) fn limits() -> [Setting<Reading>; 9] {
    fn counted(key: &'static str, default: &'static str, help: &'static str, field: Field) -> Setting<Reading> {
        limited(count(key, 1, MOST), default, help, field)
    }
    fn sized(key: &'static str, default: &'static str, help: &'static str, field: Field) -> Setting<Reading> {
        limited(size(key, MEMORY.0, MEMORY.1), default, help, field)
    }
    fn limited(draft: Draft<usize>, default: &'static str, help: &'static str, field: Field) -> Setting<Reading> {
        let to = move |it: &mut Reading, value| *field(&mut it.mqtt.broker) = value;
        draft.default(default).restart().help(help).to(to)
    }
    let packet = size("max_client_packet", 1 << 10, LARGEST_PACKET as u128);
    [
        limited(packet, "\"1MiB\"", "Maximum size of a packet from a client of the embedded broker.", |options| {
            &mut options.max_packet
        }),
        counted("max_connections", "10000", "Maximum number of connections to the embedded broker.", |options| {
            &mut options.max_connections
        }),
        counted(
            "max_sessions",
            "50000",
            "Maximum number of sessions in the embedded broker, of clients that are connected or away.",
            |options| &mut options.max_sessions,
        ),
        counted(
            "max_subscriptions",
            "1000",
            "Maximum number of subscriptions of one client of the embedded broker.",
            |options| &mut options.max_subscriptions,
        ),
        counted(
            "max_queued",
            "10000",
            "Maximum number of messages of QoS 1 and 2 that wait for one client of the embedded broker.",
            |options| &mut options.max_queued,
        ),
        sized(
            "max_queued_bytes",
            "\"64MiB\"",
            "Maximum size of the messages that one client of the embedded broker has not acknowledged.",
            |options| &mut options.max_queued_bytes,
        ),
        counted("max_retained", "10000", "Maximum number of retained messages in the embedded broker.", |options| {
            &mut options.max_retained
        }),
        sized(
            "max_retained_bytes",
            "\"64MiB\"",
            "Maximum size of the retained messages in the embedded broker.",
            |options| &mut options.max_retained_bytes,
        ),
        sized(
            "max_memory",
            "\"512MiB\"",
            "Maximum memory of all messages in the embedded broker that wait or are retained; a payload counts once, however many clients it waits \
             for.",
            |options| &mut options.max_memory,
        ),
    ]
}
