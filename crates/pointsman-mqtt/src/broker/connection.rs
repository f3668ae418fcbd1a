//! A connection as the core sees it: what is to be written, whether it is read, and how it begins and ends.

use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;

use super::aliases::Aliases;
use super::core::Core;
use super::login::{Login, WRONG};
use super::memory::Charge;
use super::pressure::Gate;
use super::slots::Key;
use super::takeover::{Parked, Successors};
use super::wake::Wake;
use crate::packet::{Disconnect, Packet, Version, encode};
use crate::reason::Reason;

/// A connection, from its first byte to its last.
#[derive(Debug)]
pub(super) struct Connection {
    wake: Arc<Wake>,
    /// For the log.
    pub(super) name: Arc<str>,
    /// Whether its other end is in this process.
    pub(super) local: bool,
    version: Version,
    /// Who the client is.
    pub(super) login: Login,
    /// Once CONNECT has come.
    pub(super) client: Option<Key>,
    /// One and a half of what the client has promised.
    pub(super) keep_alive: Option<Duration>,
    /// What is to be written before what the session has to say.
    out: BytesMut,
    /// Nothing is read any more; once `out` is written, it ends.
    pub(super) closing: bool,
    /// The local client that has to catch up before this connection is read on.
    pub(super) paused_on: Option<Key>,
    pub(super) aliases: Aliases,
    /// Those that wait for its session.
    pub(super) successors: Successors,
    /// What has come, while it waits itself for a session.
    pub(super) parked: Option<Parked>,
    /// Whether its task knows that there is something to do.
    awake: bool,
}

/// What the task of a connection is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) gate: Gate,
    /// End once everything is written.
    pub(super) closing: bool,
    /// Another connection waits for the session, and for what there is to be read here.
    pub(super) yields: bool,
    /// The client is to be sent more retained messages, and takes them.
    pub(super) replays: bool,
    /// Whether CONNECT has been answered.
    pub(super) greeted: bool,
    /// How long it may be silent.
    pub(super) keep_alive: Option<Duration>,
}

impl Connection {
    /// Whether another connection waits for what there is to be read here.
    pub(super) fn yields(&self) -> bool {
        !self.closing && !self.successors.is_empty()
    }
}

impl Core {
    /// A connection is there.
    pub(super) fn open(&mut self, name: Arc<str>, local: bool, wake: Arc<Wake>) -> Key {
        self.connections.insert(Connection {
            wake,
            name,
            local,
            version: Version::V311,
            login: Login::Anonymous,
            client: None,
            keep_alive: None,
            out: BytesMut::new(),
            closing: self.closed,
            paused_on: None,
            aliases: Aliases::default(),
            successors: Successors::new(),
            parked: None,
            awake: false,
        })
    }

    /// It is known who the client is that is about to connect.
    pub(super) fn identify(&mut self, connection: Key, login: Login) {
        if let Login::Refused { why: WRONG, .. } = login {
            self.figures.wrong_passwords += 1;
        }
        if let Some(state) = self.connections.get_mut(connection) {
            state.login = login;
        }
    }

    /// The bytes of a connection have come to their end.
    pub(super) fn lost(&mut self, connection: Key, why: &str, now: Instant) {
        self.spent = 0;
        let Some(state) = self.connections.get(connection) else { return };
        if let Some(on) = state.paused_on.and_then(|on| self.clients.get_mut(on)) {
            on.waiters.retain(|&waiter| waiter != connection);
        }
        let attached = state.client.filter(|_| !state.closing);
        if let Some((key, client)) = attached.and_then(|key| Some((key, self.clients.get(key)?)))
            && client.connection == Some(connection)
        {
            tracing::info!(client = %client.id, peer = %state.name, reason = why, "MQTT client lost");
            self.detach(key, true, now);
        }
        self.make_way(connection);
        self.connections.remove(connection);
        self.work(now);
    }

    /// Says farewell, with that reason where the version has one, and lets the connection end.
    pub(super) fn close(&mut self, connection: Key, reason: Option<Reason>) {
        let Some(state) = self.connections.get_mut(connection) else { return };
        if state.closing {
            return;
        }
        if let Some(client) = state.client.and_then(|client| self.clients.get_mut(client)) {
            state.out.unsplit(mem::take(client.session.output()));
        }
        if let Some(reason) = reason.filter(|_| state.client.is_some() && state.version == Version::V5) {
            let end = Packet::Disconnect(Box::new(Disconnect { reason, ..Disconnect::default() }));
            let _ = encode(&end, Version::V5, &mut state.out);
        }
        state.closing = true;
        self.touch_connection(connection);
    }

    /// Writes a packet before everything that the session has to say.
    pub(super) fn put_first(&mut self, connection: Key, version: Version, packet: &Packet) {
        if let Some(state) = self.connections.get_mut(connection) {
            state.version = version;
            let _ = encode(packet, version, &mut state.out);
        }
        self.touch_connection(connection);
    }

    /// Takes what is to be written to a connection, and lets what waits for that follow. `out` is empty, and left there for its
    /// memory. What is returned is to live until it is written.
    pub(super) fn take_output(&mut self, connection: Key, out: &mut BytesMut, now: Instant) -> Option<Charge> {
        let state = self.connections.get_mut(connection)?;
        if !state.out.is_empty() {
            mem::swap(&mut state.out, out);
            state.out = BytesMut::new();
        }
        let closing = state.closing;
        let key = state.client.filter(|_| !closing)?;
        let client = self.clients.get_mut(key)?;
        if out.is_empty() {
            mem::swap(client.session.output(), out);
        } else {
            out.unsplit(mem::take(client.session.output()));
        }
        client.session.written();
        client.session.refill(now);
        client.sent();
        let charge = client.outgoing.take();
        self.take_expired(key);
        self.relieve(key);
        Some(charge)
    }

    pub(super) fn status(&self, connection: Key) -> Status {
        let (gate, greeted, keep_alive) = (Gate::Shut, true, None);
        let closed = Status { gate, closing: true, yields: false, replays: false, greeted, keep_alive };
        let Some(state) = self.connections.get(connection) else { return closed };
        let (closing, greeted, keep_alive) = (state.closing, state.client.is_some(), state.keep_alive);
        let replays = !closing && state.client.is_some_and(|client| self.may_replay(client));
        Status { gate: self.gate(connection), closing, yields: state.yields(), replays, greeted, keep_alive }
    }

    /// There is something to do for the task of a client's connection.
    pub(super) fn touch(&mut self, client: Key) {
        if let Some(connection) = self.clients.get(client).and_then(|client| client.connection) {
            self.touch_connection(connection);
        }
    }

    pub(super) fn touch_connection(&mut self, connection: Key) {
        if let Some(state) = self.connections.get_mut(connection)
            && !mem::replace(&mut state.awake, true)
        {
            self.woken.push(Arc::clone(&state.wake));
        }
    }

    /// Its own task is at work: it need not be woken.
    pub(super) fn begin(&mut self, connection: Key) {
        if let Some(state) = self.connections.get_mut(connection) {
            state.awake = true;
        }
    }

    /// Its own task goes to sleep.
    pub(super) fn rest(&mut self, connection: Key) {
        if let Some(state) = self.connections.get_mut(connection) {
            state.awake = false;
        }
    }

    /// Who is to be woken; to be done without the lock.
    pub(super) fn take_woken(&mut self, into: &mut Vec<Arc<Wake>>) {
        into.append(&mut self.woken);
    }
}
