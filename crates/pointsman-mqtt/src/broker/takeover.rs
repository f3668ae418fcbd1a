//! Two connections with one client id: the earlier one is read to its end before the later one takes its session over.
//!
//! A client that disconnects and connects at once has sent its DISCONNECT, and the messages before it, on another connection than
//! its CONNECT. Whichever of the two is read first, what was sent first counts first: otherwise the client's will would be
//! published although it has taken its leave, and its messages of QoS 0 would be lost. So the later connection waits, with what it
//! has sent, for the task of the earlier one (`link.rs`) to have read what is there, for a time and a number of bytes that are
//! bounded.

use std::collections::VecDeque;
use std::time::Instant;

use super::core::{Core, Work};
use super::slots::Key;
use crate::packet::{Connect, Packet};
use crate::reason::Reason;

/// What has come on a connection that waits for its session.
#[derive(Debug)]
pub(super) struct Parked {
    connect: Box<Connect>,
    /// What the client has sent behind it without waiting for an answer.
    pub(super) rest: Vec<Packet>,
}

impl Core {
    /// The connection whose session a client of this id would take over.
    pub(super) fn predecessor(&self, id: &str) -> Option<Key> {
        let client = self.clients.get(*self.by_id.get(id)?)?;
        client.connection
    }

    /// Lets a connection wait until `predecessor` has been read to its end.
    pub(super) fn park(&mut self, connection: Key, predecessor: Key, connect: Box<Connect>) {
        if let Some(state) = self.connections.get_mut(connection) {
            state.parked = Some(Parked { connect, rest: Vec::new() });
        }
        if let Some(state) = self.connections.get_mut(predecessor) {
            state.successors.push_back(connection);
        }
        self.touch_connection(predecessor);
    }

    /// Everything that a connection had to say has been taken in, or is not waited for any longer: the session is for the next.
    pub(super) fn drained(&mut self, connection: Key, now: Instant) {
        let Some(state) = self.connections.get(connection) else { return };
        if !state.yields() {
            return;
        }
        if let Some(key) = state.client {
            let id = self.clients.get(key).map(|client| client.id.clone()).unwrap_or_default();
            tracing::info!(client = %id, "MQTT session taken over by another connection");
            self.close(connection, Some(Reason::SESSION_TAKEN_OVER));
            self.detach(key, true, now);
        }
        self.work(now);
    }

    /// A connection has let its session go: it is the turn of the first that waits for it. The others wait for that one.
    pub(super) fn make_way(&mut self, connection: Key) {
        let Some(state) = self.connections.get_mut(connection) else { return };
        let mut waiting = std::mem::take(&mut state.successors);
        while let Some(first) = waiting.pop_front() {
            if let Some(state) = self.connections.get_mut(first).filter(|state| state.parked.is_some()) {
                state.successors.append(&mut waiting);
                self.work.push_back(Work::Enter(first));
            }
        }
    }

    /// Goes on with a connection that has waited for its session.
    pub(super) fn enter(&mut self, connection: Key, now: Instant) {
        let parked = self.connections.get_mut(connection).and_then(|state| state.parked.take());
        if let Some(Parked { connect, rest }) = parked {
            self.admitted(connection, connect, now);
            for packet in rest {
                if let Err(malformed) = self.take(connection, packet, now) {
                    self.expel(connection, malformed, now);
                }
            }
        }
        // One that is refused lets the next have its turn.
        if self.connections.get(connection).is_some_and(|state| state.closing) {
            self.make_way(connection);
        }
    }
}

/// Connections that wait for a session, in the order in which they came.
pub(super) type Successors = VecDeque<Key>;
