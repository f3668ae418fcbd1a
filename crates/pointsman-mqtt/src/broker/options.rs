//! What a broker is started with.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio::runtime::Handle;

use super::{AccessRule, Users};
use crate::packet::LARGEST_PACKET;
use crate::relay::Invalid;

/// What a broker is started with. Everything but the address has a default.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// Where to listen; port 0 for any that is free.
    pub listen: SocketAddr,
    /// Speak TLS. Default: no.
    pub tls: Option<Tls>,
    /// Who may connect. Default: everybody, which is possible on loopback only; or whoever has a certificate, where [`Tls::client_ca`]
    /// asks for one.
    pub users: Option<Users>,
    /// What users may publish and subscribe besides what goes without saying. Default: nothing.
    pub rules: Vec<AccessRule>,
    /// The largest packet that is taken, in bytes. Default 1 MiB.
    pub max_packet: usize,
    /// Connections at a time. Default 10,000.
    pub max_connections: usize,
    /// Sessions at a time, of clients that are connected or away. Default 50,000.
    pub max_sessions: usize,
    /// Subscriptions of one client. Default 1,000.
    pub max_subscriptions: usize,
    /// Messages of QoS 1 and 2 that wait for one client. Default 10,000.
    pub max_queued: usize,
    /// What they take, in bytes, those that are under way included, and payloads that others have too. Default 64 MiB.
    pub max_queued_bytes: usize,
    /// How long a session may be kept for a client that is away. Default 1 h.
    pub max_session_expiry: Duration,
    /// Retained messages. Default 10,000.
    pub max_retained: usize,
    /// The memory that they take, in bytes. Default 64 MiB.
    pub max_retained_bytes: usize,
    /// The memory that all messages take which wait or are retained, in bytes; a payload counts once, however many clients it waits for. Beyond
    /// it no more are taken for clients outside this process, as where too many wait for one. Default 512 MiB.
    pub max_memory: usize,
    /// What may wait to be written to one client before messages of QoS 0 are dropped, in bytes. Default 4 MiB.
    pub outbox: usize,
    /// What may wait for a client in this process before those who publish to it have to wait, in bytes. They go on when it is
    /// half of it. They wait as well when what it has, and has not acknowledged, takes eight times as much. Default 8 MiB.
    pub high_watermark: usize,
    /// How long a client may take to connect, from the first byte (TLS included) to CONNECT. Default 10 s.
    pub connect_timeout: Duration,
    /// The runtime to run on, for a test with a clock of its own. Default: a thread of the broker's own, so that nothing else in the process
    /// waits while it is busy.
    pub runtime: Option<Handle>,
}

/// Maximum of every number of something, and of a memory in bytes: more than any machine has room for.
const MOST: usize = 10_000_000;
const MOST_MEMORY: usize = 1 << 40;
/// Minimum of a memory in bytes: room for a packet of the usual size.
const LEAST_MEMORY: usize = 1 << 20;
/// Minimum of the size of a packet.
const LEAST_PACKET: usize = 1 << 10;

/// The certificate of a broker that speaks TLS; read when it starts, and with each [`Broker::reload`](super::Broker::reload).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// PEM: the certificate, and after it those that lead to its authority.
    pub cert: PathBuf,
    /// PEM: its key.
    pub key: PathBuf,
    /// PEM: the authorities of clients. If set, a client without a certificate of one of them is refused; the certificate's subject
    /// (its common name, or else its first alternative name) is the user.
    pub client_ca: Option<PathBuf>,
}

impl Options {
    /// Whether clients have to say who they are.
    pub(super) fn has_users(&self) -> bool {
        self.users.is_some() || self.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some())
    }

    /// The defaults.
    #[must_use]
    pub fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            tls: None,
            users: None,
            rules: Vec::new(),
            max_packet: 1 << 20,
            max_connections: 10_000,
            max_sessions: 50_000,
            max_subscriptions: 1_000,
            max_queued: 10_000,
            max_queued_bytes: 64 << 20,
            max_session_expiry: Duration::from_secs(3600),
            max_retained: 10_000,
            max_retained_bytes: 64 << 20,
            max_memory: 512 << 20,
            outbox: 4 << 20,
            high_watermark: 8 << 20,
            connect_timeout: Duration::from_secs(10),
            runtime: None,
        }
    }

    /// The limits that are outside their bounds, by the names of the configuration file.
    #[must_use]
    pub fn problems(&self) -> Vec<Invalid> {
        let counts = [
            ("max_connections", self.max_connections),
            ("max_sessions", self.max_sessions),
            ("max_subscriptions", self.max_subscriptions),
            ("max_queued", self.max_queued),
            ("max_retained", self.max_retained),
        ];
        let sizes = [
            ("max_queued_bytes", self.max_queued_bytes),
            ("max_retained_bytes", self.max_retained_bytes),
            ("max_memory", self.max_memory),
        ];
        let wrong = |key: &str, reason| Invalid { key: key.to_owned(), reason };
        let counts = counts.into_iter().filter(|(_, count)| !(1..=MOST).contains(count));
        let counts = counts.map(|(key, count)| wrong(key, format!("is {count}; it can be 1 to {MOST}")));
        let sizes = sizes.into_iter().filter(|(_, size)| !(LEAST_MEMORY..=MOST_MEMORY).contains(size));
        let bounds = format!("it can be {LEAST_MEMORY} to {MOST_MEMORY}");
        let sizes = sizes.map(|(key, size)| wrong(key, format!("is {size} bytes; {bounds}")));
        let packet = Some(self.max_packet).filter(|size| !(LEAST_PACKET..=LARGEST_PACKET).contains(size)).map(|size| {
            wrong("max_client_packet", format!("is {size} bytes; it can be {LEAST_PACKET} to {LARGEST_PACKET}"))
        });
        counts.chain(sizes).chain(packet).collect()
    }
}
