//! A connection to a registry in memory that can be cut: for the tests of whoever uses this library.

use std::sync::{Arc, Mutex};

use tokio::sync::watch;

use super::lock;
use crate::keep::{Control, Order, Said};
use crate::lease::Lease;

/// The connection of a session, over its outages. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Line(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: watch::Sender<State>,
    /// Of the roles that are told over the connection that there is now.
    lease: Mutex<Lease>,
}

#[derive(Debug, Clone, Copy)]
struct State {
    is_up: bool,
    /// Tells a connection from the one before it.
    connection: u64,
}

/// A connection, until it ends.
#[derive(Debug)]
pub(crate) struct Connection {
    state: watch::Receiver<State>,
    number: u64,
}

pub(super) const AWAY: &str = "the connection to the registry is cut";

impl Line {
    /// A lease for the roles that are told now.
    pub(super) fn lease(&self) -> Lease {
        lock(&self.0.lease).clone()
    }

    /// The connection that there is, or the next one. `None` if something else is wanted meanwhile than to be registered.
    pub(super) async fn connection(&self, control: &mut Control) -> Option<Connection> {
        if let Some(connection) = self.connected() {
            return Some(connection);
        }
        control.say(Said::Unreachable(AWAY.to_owned()));
        loop {
            tokio::select! {
                connection = self.up() => return Some(connection),
                order = control.order() => match order {
                    // It is written with the next connection.
                    Order::Write => {}
                    Order::Resign(reply) => drop(reply.send(Err(control.not_master()))),
                    Order::Stop => return None,
                },
            }
        }
    }

    /// As [`Line::connection`], to remove what is registered.
    pub(super) async fn connection_to_remove(&self, control: &mut Control) -> Option<Connection> {
        if let Some(connection) = self.connected() {
            return Some(connection);
        }
        control.say(Said::Unreachable(AWAY.to_owned()));
        tokio::select! {
            connection = self.up() => Some(connection),
            () = control.changed() => None,
        }
    }

    fn connected(&self) -> Option<Connection> {
        let state = self.0.state.subscribe();
        let State { is_up, connection } = *state.borrow();
        is_up.then_some(Connection { state, number: connection })
    }

    /// Waits until there is a connection.
    pub(crate) async fn up(&self) -> Connection {
        let mut state = self.0.state.subscribe();
        // The sender lives in `self`: no error.
        let number = state.wait_for(|state| state.is_up).await.map(|state| state.connection).unwrap_or_default();
        Connection { state, number }
    }
}

impl Connection {
    /// Returns when it has ended.
    pub(crate) async fn ended(&self) {
        let is_over = |state: &State| !state.is_up || state.connection != self.number;
        let _ = self.state.clone().wait_for(is_over).await;
    }
}

/// Returns when a connection has ended; never, where there is none that could.
pub(super) async fn ended(connection: Option<&Connection>) {
    match connection {
        // In a box, as most have no line, and need no room for it.
        Some(connection) => Box::pin(connection.ended()).await,
        None => std::future::pending().await,
    }
}

#[cfg(feature = "testing")]
fn lasting() -> Lease {
    // For as long as the connection is not cut: some 500 years.
    let lease = Lease::new();
    lease.extend(tokio::time::Instant::now() + std::time::Duration::from_secs(500 * 365 * 24 * 3600));
    lease
}

#[cfg(feature = "testing")]
impl Line {
    /// Connected.
    pub(crate) fn new() -> Self {
        let state = watch::Sender::new(State { is_up: true, connection: 0 });
        Self(Arc::new(Inner { state, lease: Mutex::new(lasting()) }))
    }

    /// Ends the connection.
    pub(crate) fn cut(&self) {
        self.change(false);
    }

    /// Lets there be a connection, if there is none.
    pub(crate) fn mend(&self) {
        if !self.0.state.borrow().is_up {
            self.change(true);
        }
    }

    /// Ends the connection, and lets another follow at once where there was one.
    pub(crate) fn reconnect(&self) {
        let is_up = self.0.state.borrow().is_up;
        self.change(is_up);
    }

    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn change(&self, is_up: bool) {
        // First of all: nobody holds a role by this connection any more.
        std::mem::replace(&mut *lock(&self.0.lease), if is_up { lasting() } else { Lease::new() }).end();
        self.0.state.send_modify(|state| *state = State { is_up, connection: state.connection + 1 });
    }
}
