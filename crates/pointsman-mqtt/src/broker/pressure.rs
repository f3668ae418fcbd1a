//! Who may be read: nothing for a local client is dropped, so those who publish to it wait until it has caught up.

use std::collections::BTreeSet;
use std::mem;

use super::core::Core;
use super::limits::RECEIVE_MAXIMUM;
use super::route::Source;
use super::slots::Key;
use crate::packet::Version;

/// Whether a connection may be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gate {
    Open,
    /// Its own end does not read what is there for it.
    Full,
    /// A local client has to catch up. But it waits for acknowledgements of this connection, so a little is read now and then,
    /// however much there is: else both could wait for each other.
    Trickle,
    /// A local client has to catch up.
    Shut,
}

impl Core {
    pub(super) fn gate(&self, connection: Key) -> Gate {
        let Some(state) = self.connections.get(connection) else { return Gate::Shut };
        if state.closing || state.parked.is_some() {
            return Gate::Shut;
        }
        let Some(client) = state.client.and_then(|client| self.clients.get(client)) else { return Gate::Open };
        if client.local {
            return Gate::Open;
        }
        if client.session.output_len() > self.limits.outbox * 2 {
            return Gate::Full;
        }
        // Version 5 knows how many it may send; of 3.1.1 no more are read.
        let old = client.session.peer().version == Version::V311;
        let many = old && client.session.unacknowledged() >= usize::from(RECEIVE_MAXIMUM);
        if state.paused_on.is_none() && !many {
            return Gate::Open;
        }
        if client.owed > 0 { Gate::Trickle } else { Gate::Shut }
    }

    /// Whether a publisher can be made to wait, so that nothing of it need be dropped. One that has to wait, and is read for the
    /// acknowledgements that it owes, cannot: of its messages those of QoS 0 have their end in what may wait for the subscriber,
    /// and the others in the receive maximum.
    pub(super) fn can_wait(&self, source: &Source) -> bool {
        let paused = source.connection.and_then(|connection| self.connections.get(connection)?.paused_on).is_some();
        let owes = source.client.and_then(|client| self.clients.get(client)).is_some_and(|client| client.owed > 0);
        !(source.local || paused && owes)
    }

    /// Reads no more from a connection until that local client has caught up.
    pub(super) fn pause(&mut self, connection: Key, on: Key) {
        let Some(state) = self.connections.get_mut(connection).filter(|state| state.paused_on.is_none()) else {
            return;
        };
        if let Some(client) = self.clients.get_mut(on) {
            state.paused_on = Some(on);
            client.waiters.insert(connection);
            self.figures.paused += 1;
        }
    }

    /// Lets those be read again who wait for a local client, if it has caught up.
    pub(super) fn relieve(&mut self, key: Key) {
        let Some(client) = self.clients.get_mut(key) else { return };
        if !client.waiters.is_empty() && client.is_below(&self.limits) {
            let waiters = mem::take(&mut client.waiters);
            self.release(&waiters);
        }
    }

    pub(super) fn release(&mut self, waiters: &BTreeSet<Key>) {
        for &waiter in waiters {
            if let Some(state) = self.connections.get_mut(waiter) {
                state.paused_on = None;
                self.touch_connection(waiter);
            }
        }
    }
}
