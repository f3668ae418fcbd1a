//! The embedded MQTT broker: 3.1.1 and 5, for any client by TCP or TLS, and for the relay within the process.
//!
//! It is a broker of its own because of how it acknowledges. A client that comes by [`Handle::connect`] is *local*:
//!
//! - A message of QoS 1 or 2 that goes to local clients is acknowledged to its publisher once they have acknowledged it.
//! - A message of QoS 1 or 2 that a local client publishes is acknowledged to it once a subscriber has acknowledged it; with
//!   [`Reason::NO_MATCHING_SUBSCRIBERS`](crate::reason::Reason::NO_MATCHING_SUBSCRIBERS) when there is none, or its session ends.
//! - A message for a local client says by the user property [`CLIENT_ID_PROPERTY`] who has published it.
//! - Nothing for a local client is dropped: who publishes to it is not read until it has caught up. Only who owes it
//!   acknowledgements is still read a little, since they could be what it waits for; of what such a client floods it with, QoS 0
//!   is dropped in the end. Where there is no connection (the client is away), QoS 0 is lost as it is to everybody.
//!
//! Everything else is as in other brokers. What happens to messages is in `broker/core.rs`, which knows no sockets; there is
//! one task for each connection (`broker/link.rs`). They run on a thread of their own: whatever clients ask of the broker, nothing
//! else in the process waits for it, and connections take turns instead of waiting for a lock.

mod access;
mod aliases;
mod certificate;
mod client;
mod connection;
mod core;
mod deny;
mod duty;
mod figures;
mod greet;
mod levels;
mod limits;
mod link;
mod listen;
mod login;
mod memory;
mod message;
mod options;
mod pressure;
mod replay;
mod retained;
mod route;
mod runtime;
mod settle;
mod shared;
mod slots;
mod subscribe;
mod takeover;
mod target;
#[cfg(test)]
mod tests;
mod throttle;
mod timers;
mod tree;
mod users;
mod wake;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pointsman_net::tls::TlsError;
use tokio::io::DuplexStream;
use tokio::task::JoinHandle;
use tokio::time::Instant;

pub use access::AccessRule;
pub use figures::Figures;
pub use message::CLIENT_ID_PROPERTY;
pub use options::{Options, Tls};
pub use users::{InvalidUsers, Users};

use self::core::Core;
use crate::relay::Invalid;
pub(crate) use access::Routed;
use limits::Limits;
use runtime::BrokerRuntime;
use shared::Broking;

/// How long farewells may take when the broker closes.
const CLOSING: Duration = Duration::from_secs(3);
/// What the pipe to a client in this process holds, in bytes, each way.
const PIPE: usize = 256 << 10;

/// A running broker. Dropped, it is gone without a word to its clients; see [`Broker::close`].
#[derive(Debug)]
pub struct Broker {
    address: SocketAddr,
    broking: Arc<Broking>,
    tasks: Vec<JoinHandle<()>>,
    runtime: BrokerRuntime,
}

/// A way into a running broker. Cheap to clone; keeps no broker running.
#[derive(Clone)]
pub struct Handle(Arc<Broking>);

/// Why a broker does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Everybody in the network could connect.
    #[error(
        "listen on {address}: clients would need no password there; give the broker users, or let it listen on loopback \
         (127.0.0.1:{})",
        .address.port()
    )]
    Unprotected {
        /// Where it was to listen.
        address: SocketAddr,
    },
    /// The address cannot be had.
    #[error("listen on {address}: {source}")]
    Listen {
        /// Where it was to listen.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// Limits are outside their bounds.
    #[error("the broker's limits: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<Invalid>),
    /// The thread that the broker runs on cannot be had.
    #[error("start the broker's thread: {source}")]
    Thread {
        /// Why not.
        source: io::Error,
    },
    /// The certificate or its key cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl Broker {
    /// Starts a broker on a thread of its own. When it returns, clients can connect.
    ///
    /// # Errors
    ///
    /// [`Error`]; nothing is left behind then.
    pub async fn start(options: Options) -> Result<Broker, Error> {
        let broker = Broker::bind(options).await?;
        broker.handle().open();
        Ok(broker)
    }

    /// Starts a broker that serves only clients in this process until it is told to let others in ([`Handle::open`]): what they publish is
    /// for a relay that has subscribed by then. Whoever connects before waits, at most some thousand connections.
    ///
    /// # Errors
    ///
    /// [`Error`]; nothing is left behind then.
    pub async fn bind(options: Options) -> Result<Broker, Error> {
        if !options.has_users() && !options.listen.ip().is_loopback() {
            return Err(Error::Unprotected { address: options.listen });
        }
        let problems = options.problems();
        if !problems.is_empty() {
            return Err(Error::Invalid(problems));
        }
        let tls = options.tls.as_ref().map(listen::tls_config).transpose()?;
        let limits = Limits::new(&options);
        let runtime = BrokerRuntime::new(options.runtime.clone()).map_err(|source| Error::Thread { source })?;
        let (listener, address) = listen::bind(options.listen, runtime.handle()).await?;
        tracing::info!(%address, tls = tls.is_some(), users = options.has_users(), "MQTT broker listening");
        if !options.has_users() {
            tracing::info!(%address, "MQTT broker has no users: every client on this machine may publish and subscribe anything");
        }
        let mut core = Core::new(limits);
        core.set_access(&options, Instant::now().into_std());
        let broking = Broking::new(core, runtime.handle().clone(), &options, tls);
        let accepting = listen::accept(listener, Arc::clone(&broking));
        let clock = Arc::clone(&broking).run_clock();
        let tasks = vec![runtime.handle().spawn(accepting), runtime.handle().spawn(clock)];
        Ok(Broker { address, broking, tasks, runtime })
    }

    /// Goes on with the users, rules and certificates of these options; what else they say is not looked at. New connections are secured
    /// by the certificate as it is in its file now. Clients of users that are gone, or whose password is another, are disconnected;
    /// sessions with a subscription that is not allowed any more end.
    ///
    /// # Errors
    ///
    /// [`Error::Tls`], [`Error::Unprotected`]; everything stays as it was then.
    pub fn reload(&self, options: &Options) -> Result<(), Error> {
        if !options.has_users() && !self.address.ip().is_loopback() {
            return Err(Error::Unprotected { address: self.address });
        }
        let tls = options.tls.as_ref().map(listen::tls_config).transpose()?;
        self.broking.reload(options, tls);
        Ok(())
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A way in for clients in this process.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle(Arc::clone(&self.broking))
    }

    /// Tells all clients (MQTT 5: DISCONNECT, server shutting down), and closes their connections. Takes three seconds at most;
    /// whoever has not read its farewell until then goes without. Wills are not published. Dropped before it is done, the rest
    /// goes as with a dropped broker.
    pub async fn close(mut self) {
        for task in self.tasks.drain(..) {
            task.abort();
            // With it the listener goes, and its address is free.
            let _ = task.await;
        }
        self.broking.shut_down(Instant::now() + CLOSING).await;
        tracing::info!(address = %self.address, "MQTT broker closed");
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.broking.stop();
        self.runtime.stop();
    }
}

impl Handle {
    /// A connection of a client in this process, which speaks MQTT over it. It is trusted: no user name is asked for, and
    /// messages go from end to end (see [`broker`](self)). Once the broker has stopped, the connection is closed at once.
    #[must_use]
    pub fn connect(&self) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(PIPE);
        self.0.serve("this process".into(), true, async move { Ok((ours, None)) });
        theirs
    }

    /// Lets clients in from outside this process, for good.
    pub fn open(&self) {
        self.0.open();
    }

    /// Says what the relay in this process takes from senders, which they may therefore publish.
    pub(crate) fn set_routed(&self, routed: Routed) {
        self.0.core().access.routed = routed;
    }

    /// What the broker is doing.
    #[must_use]
    pub fn figures(&self) -> Figures {
        self.0.core().figures()
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Handle")
    }
}
