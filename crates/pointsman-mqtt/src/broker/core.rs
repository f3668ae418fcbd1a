//! The broker without its sockets: packets go in, bytes come out. Synchronous; the time is an argument.
//!
//! Its parts: `greet.rs` (CONNECT, and how sessions begin and end), `subscribe.rs`, `route.rs` (from a publisher to the
//! subscribers), `settle.rs` (what comes back), `pressure.rs` (who has to wait), `takeover.rs` (a client with two connections), and what they
//! share here. Whatever follows from a step and could lead to the next (a will, a message for
//! another member of a group) is put into `work`, so that no step calls itself.

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use bytestring::ByteString;

use super::client::{Client, Shared};
use super::duty::{Answer, Duty};
use super::figures::Figures;
use super::limits::{Limits, RECEIVE_LIMIT, RECEIVE_MAXIMUM};
use super::pressure::Gate;
use super::retained::Retained;
use super::route::Target;
use super::slots::{Key, Slots};
use super::takeover::{Parked, Successors};
use super::timers::{Timer, Timers};
use super::tree::Tree;
use super::users::Users;
use super::wake::Wake;
use crate::packet::{Disconnect, Malformed, Packet, Publish, Version, encode};
use crate::reason::Reason;
use crate::session::Event;

#[derive(Debug)]
pub(super) struct Core {
    pub(super) limits: Limits,
    pub(super) users: Option<Users>,
    pub(super) connections: Slots<Connection>,
    pub(super) clients: Slots<Client>,
    pub(super) by_id: HashMap<ByteString, Key>,
    pub(super) tree: Tree,
    pub(super) retained: Retained,
    pub(super) duties: Slots<Duty>,
    pub(super) timers: Timers,
    pub(super) work: VecDeque<Work>,
    /// Whose tasks are to look again.
    woken: Vec<Arc<Wake>>,
    /// Kept for its memory.
    pub(super) targets: Vec<Target>,
    /// Counts the messages that were distributed.
    pub(super) distributed: u64,
    pub(super) figures: Figures,
    pub(super) closed: bool,
}

/// A connection, from its first byte to its last.
#[derive(Debug)]
pub(super) struct Connection {
    wake: Arc<Wake>,
    /// For the log.
    pub(super) name: Arc<str>,
    /// Whether its other end is in this process.
    pub(super) local: bool,
    version: Version,
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
    /// Those that wait for its session.
    pub(super) successors: Successors,
    /// What has come, while it waits itself for a session.
    pub(super) parked: Option<Parked>,
    /// Whether its task knows that there is something to do.
    awake: bool,
}

/// What follows from a step.
#[derive(Debug)]
pub(super) enum Work {
    /// A will.
    Publish { from: ByteString, publish: Box<Publish> },
    /// A message that a member of a group has not acknowledged before its session ended.
    Again { shared: Arc<Shared>, duty: Option<Key>, owed: bool },
    /// An acknowledgement that somebody may wait for.
    Answer { duty: Key, answer: Answer },
    /// The session that a connection has waited for is free.
    Enter(Key),
}

/// What the task of a connection is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) gate: Gate,
    /// End once everything is written.
    pub(super) closing: bool,
    /// Another connection waits for the session, and for what there is to be read here.
    pub(super) yields: bool,
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
    pub(super) fn new(limits: Limits, users: Option<Users>) -> Self {
        Self {
            retained: Retained::new(limits.max_retained, limits.max_retained_bytes),
            limits,
            users,
            connections: Slots::default(),
            clients: Slots::default(),
            by_id: HashMap::new(),
            tree: Tree::default(),
            duties: Slots::default(),
            timers: Timers::default(),
            work: VecDeque::new(),
            woken: Vec::new(),
            targets: Vec::new(),
            distributed: 0,
            figures: Figures::default(),
            closed: false,
        }
    }

    /// A connection is there.
    pub(super) fn open(&mut self, name: Arc<str>, local: bool, wake: Arc<Wake>) -> Key {
        self.connections.insert(Connection {
            wake,
            name,
            local,
            version: Version::V311,
            client: None,
            keep_alive: None,
            out: BytesMut::new(),
            closing: self.closed,
            paused_on: None,
            successors: Successors::new(),
            parked: None,
            awake: false,
        })
    }

    /// Packets have come on a connection.
    pub(super) fn receive(&mut self, connection: Key, packets: impl Iterator<Item = Packet>, now: Instant) {
        for packet in packets {
            if let Err(malformed) = self.take(connection, packet, now) {
                self.fail(connection, malformed, now);
            }
            if !self.work.is_empty() {
                self.work(now);
            }
        }
    }

    /// Takes one packet in.
    pub(super) fn take(&mut self, connection: Key, packet: Packet, now: Instant) -> Result<(), Malformed> {
        let Some(state) = self.connections.get_mut(connection).filter(|state| !state.closing) else { return Ok(()) };
        match (&mut state.parked, state.client) {
            (Some(parked), _) => parked.rest.push(packet),
            (None, None) => self.greet(connection, packet, now)?,
            (None, Some(client)) => self.packet(connection, client, packet, now)?,
        }
        Ok(())
    }

    fn packet(&mut self, connection: Key, key: Key, packet: Packet, now: Instant) -> Result<(), Malformed> {
        let Some(client) = self.clients.get_mut(key) else { return Ok(()) };
        let event = client.session.receive(packet, now)?;
        client.sent();
        match event {
            Event::Message(publish) => {
                let v5 = client.session.peer().version == Version::V5;
                let most = if v5 { RECEIVE_MAXIMUM } else { RECEIVE_LIMIT };
                if !client.local && client.session.unacknowledged() > usize::from(most) {
                    let what = "more messages than the receive maximum";
                    return Err(Malformed { what, reason: Reason::RECEIVE_MAXIMUM_EXCEEDED });
                }
                self.published(connection, key, publish, now)?;
            }
            Event::Acknowledged { token, reason, .. } => {
                let answer = if reason.is_error() { Answer::Refused(reason) } else { Answer::Taken };
                self.returned(key, &token, answer);
                self.take_expired(key);
            }
            Event::Other(packet) => self.other(connection, key, packet, now)?,
            Event::Completed(_) => self.take_expired(key),
            Event::Released(_) | Event::Nothing => {}
        }
        Ok(())
    }

    fn other(&mut self, connection: Key, client: Key, packet: Packet, now: Instant) -> Result<(), Malformed> {
        match packet {
            Packet::Pingreq => {
                self.send(client, &Packet::Pingresp);
                Ok(())
            }
            Packet::Subscribe(subscribe) => self.subscribe(client, &subscribe, now),
            Packet::Unsubscribe(unsubscribe) => {
                self.unsubscribe(client, &unsubscribe);
                Ok(())
            }
            Packet::Disconnect(end) => self.leave(connection, client, &end, now),
            Packet::Connect(_) => Err(Malformed::protocol("a second CONNECT")),
            Packet::Auth(_) => Err(Malformed::protocol("AUTH without an authentication method")),
            _ => Err(Malformed::protocol("a packet that only a broker sends")),
        }
    }

    pub(super) fn send(&mut self, client: Key, packet: &Packet) {
        if let Some(client) = self.clients.get_mut(client) {
            // Answers to a client hold nothing that could not be encoded; if they did, none would be the better answer.
            let _ = client.session.send(packet);
        }
        self.touch(client);
    }

    /// What has been read makes no sense, or the client has been silent for too long.
    pub(super) fn fail(&mut self, connection: Key, why: Malformed, now: Instant) {
        self.expel(connection, why, now);
        self.work(now);
    }

    /// The same, with what follows from it left to be done.
    pub(super) fn expel(&mut self, connection: Key, why: Malformed, now: Instant) {
        let Some(state) = self.connections.get(connection) else { return };
        if state.closing {
            return;
        }
        match state.client {
            None => {
                tracing::warn!(peer = %state.name, reason = %why, "MQTT connection refused");
                self.figures.refused += 1;
                if why.reason == Reason::UNSUPPORTED_VERSION {
                    self.refuse(connection, Version::V311, why.reason, None);
                } else {
                    self.close(connection, None);
                }
            }
            Some(client) => {
                let id = self.clients.get(client).map(|client| client.id.clone()).unwrap_or_default();
                tracing::info!(client = %id, peer = %state.name, reason = %why, "MQTT client disconnected by the broker");
                self.close(connection, Some(why.reason));
                self.detach(client, true, now);
            }
        }
    }

    /// The bytes of a connection have come to their end.
    pub(super) fn lost(&mut self, connection: Key, why: &str, now: Instant) {
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

    /// Everybody is told, and no-one is let in any more. Wills are not published: their clients are well.
    pub(super) fn shut_down(&mut self, now: Instant) {
        self.closed = true;
        for connection in self.connections.keys() {
            let client = self.connections.get(connection).and_then(|state| state.client);
            self.close(connection, Some(Reason::SERVER_SHUTTING_DOWN));
            if let Some(client) = client {
                self.detach(client, false, now);
            }
        }
        self.work.clear();
    }

    /// Writes a packet before everything that the session has to say.
    pub(super) fn put_first(&mut self, connection: Key, version: Version, packet: &Packet) {
        if let Some(state) = self.connections.get_mut(connection) {
            state.version = version;
            let _ = encode(packet, version, &mut state.out);
        }
        self.touch_connection(connection);
    }

    /// Takes what is to be written to a connection. `out` is empty, and left there for its memory.
    pub(super) fn take_output(&mut self, connection: Key, out: &mut BytesMut) {
        let Some(state) = self.connections.get_mut(connection) else { return };
        if !state.out.is_empty() {
            mem::swap(&mut state.out, out);
            state.out = BytesMut::new();
        }
        let closing = state.closing;
        let Some(key) = state.client.filter(|_| !closing) else { return };
        let Some(client) = self.clients.get_mut(key) else { return };
        if out.is_empty() {
            mem::swap(client.session.output(), out);
        } else {
            out.unsplit(mem::take(client.session.output()));
        }
        client.session.written();
        self.relieve(key);
    }

    pub(super) fn status(&self, connection: Key) -> Status {
        let closed = Status { gate: Gate::Shut, closing: true, yields: false, greeted: true, keep_alive: None };
        let Some(state) = self.connections.get(connection) else { return closed };
        let (closing, greeted, keep_alive) = (state.closing, state.client.is_some(), state.keep_alive);
        Status { gate: self.gate(connection), closing, yields: state.yields(), greeted, keep_alive }
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

    /// Does what is due.
    pub(super) fn tick(&mut self, now: Instant) {
        while let Some(timer) = self.timers.pop(now) {
            match timer {
                Timer::SessionEnds(client) => self.end(client),
                Timer::WillIsDue(client) => self.send_will(client),
            }
            self.work(now);
        }
    }

    pub(super) fn figures(&self) -> Figures {
        Figures {
            connections: self.connections.len(),
            sessions: self.clients.len(),
            retained: self.retained.len(),
            ..self.figures.clone()
        }
    }
}
