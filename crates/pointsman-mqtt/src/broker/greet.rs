//! How clients come and go: CONNECT, DISCONNECT, sessions and wills.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytestring::ByteString;

use super::aliases::MAX_ALIASES;
use super::client::Client;
use super::core::{Core, Work};
use super::duty::Answer;
use super::limits::{IN_FLIGHT, RECEIVE_MAXIMUM};
use super::login::Login;
use super::memory::Memory;
use super::message::detached_around;
use super::route;
use super::slots::Key;
use super::timers::Timer;
use crate::packet::{
    Connack, Connect, Disconnect, MAX_REMAINING, Malformed, Packet, Properties, Publish, Qos, Version, Will,
};
use crate::reason::Reason;
use crate::session::Peer;
use crate::topic;

/// What a connection is refused with.
pub(super) struct Refused {
    pub(super) reason: Reason,
    pub(super) why: &'static str,
}

impl Core {
    /// The first packet of a connection.
    pub(super) fn greet(&mut self, connection: Key, packet: Packet, now: Instant) -> Result<(), Malformed> {
        let Packet::Connect(connect) = packet else {
            return Err(Malformed::protocol("the first packet is not CONNECT"));
        };
        match self.admit(&connect, connection) {
            Ok(()) => self.admitted(connection, connect, now),
            Err(refused) => self.turn_away(connection, connect.version, &refused),
        }
        Ok(())
    }

    /// A client may connect. While another connection has its session, it waits.
    pub(super) fn admitted(&mut self, connection: Key, connect: Box<Connect>, now: Instant) {
        if let Err(refused) = self.check_owner(connection, &connect.client_id) {
            return self.turn_away(connection, connect.version, &refused);
        }
        if let Some(predecessor) = self.predecessor(&connect.client_id) {
            return self.park(connection, predecessor, connect);
        }
        let version = connect.version;
        if let Err(refused) = self.connect(connection, *connect, now) {
            self.turn_away(connection, version, &refused);
        }
    }

    fn turn_away(&mut self, connection: Key, version: Version, &Refused { reason, why }: &Refused) {
        let name = self.connections.get(connection).map(|state| state.name.clone()).unwrap_or_default();
        tracing::warn!(peer = %name, %reason, why, "MQTT connection refused");
        self.figures.refused += 1;
        self.refuse(connection, version, reason, Some(why));
    }

    pub(super) fn refuse(&mut self, connection: Key, version: Version, reason: Reason, why: Option<&'static str>) {
        let properties = Properties { reason_string: why.map(Into::into), ..Properties::default() };
        let connack = Connack { session_present: false, reason, properties };
        self.put_first(connection, version, &Packet::Connack(Box::new(connack)));
        self.close(connection, None);
    }

    fn connect(&mut self, connection: Key, mut connect: Connect, now: Instant) -> Result<(), Refused> {
        let Some(state) = self.connections.get(connection) else { return Ok(()) };
        let (local, name, user) = (state.local, state.name.clone(), state.login.user().cloned());
        let assigned = if connect.client_id.is_empty() {
            if connect.version == Version::V311 && !connect.clean_start {
                let why = "an empty client id needs a clean session";
                return Err(Refused { reason: Reason::CLIENT_ID_NOT_VALID, why });
            }
            Some(ByteString::from(uuid::Uuid::new_v4().to_string()))
        } else {
            None
        };
        // In memory of its own, as everything that outlives the packet.
        let id = assigned.clone().unwrap_or_else(|| ByteString::from(connect.client_id.to_string()));
        let (key, present) = self.take_up(&id, connect.clean_start, local, user)?;
        let (expiry, capped) = self.expiry(&connect);
        let will = connect.will.take().map(|will| own(will, &self.limits.memory));
        if let Some(state) = self.connections.get_mut(connection) {
            state.client = Some(key);
            let keep_alive = Duration::from_millis(u64::from(connect.keep_alive) * 1500);
            state.keep_alive = Some(keep_alive).filter(|limit| !limit.is_zero());
        }
        let properties = Properties {
            session_expiry: capped.then(|| u32::try_from(expiry.as_secs()).unwrap_or(u32::MAX)),
            assigned_client_id: assigned,
            receive_maximum: Some(if local { u16::MAX } else { RECEIVE_MAXIMUM }),
            // Some clients take no more for a size.
            maximum_packet: u32::try_from(self.limits.max_packet.min(MAX_REMAINING)).ok(),
            topic_alias_maximum: Some(MAX_ALIASES),
            shared_available: Some(true),
            ..Properties::default()
        };
        let connack = Connack { session_present: present, reason: Reason::SUCCESS, properties };
        self.put_first(connection, connect.version, &Packet::Connack(Box::new(connack)));
        let most = if local { u16::MAX } else { IN_FLIGHT };
        let peer = Peer {
            version: connect.version,
            session_present: present,
            receive_maximum: connect.properties.receive_maximum.unwrap_or(u16::MAX).min(most),
            max_packet: connect.properties.maximum_packet.map_or(usize::MAX, |size| size as usize),
            max_qos: Qos::ExactlyOnce,
            takes_subscription_ids: connect.version == Version::V5,
        };
        if let Some(client) = self.clients.get_mut(key) {
            (client.connection, client.will, client.expiry) = (Some(connection), will, expiry);
            client.session.connected(peer, now);
            client.sent();
        }
        self.set_up(key, true);
        self.take_expired(key);
        self.touch(key);
        tracing::info!(client = %id, peer = %name, version = ?connect.version, session_present = present, "MQTT client connected");
        Ok(())
    }

    fn admit(&self, connect: &Connect, connection: Key) -> Result<(), Refused> {
        let local = self.connections.get(connection).is_some_and(|state| state.local);
        if self.closed {
            return Err(Refused { reason: Reason::SERVER_SHUTTING_DOWN, why: "the broker is shutting down" });
        }
        let will = connect.will.as_ref().map(|will| route::check(&will.properties));
        if let Some(Err(Malformed { reason, what })) = will {
            return Err(Refused { reason, why: what });
        }
        if connect.properties.authentication_method.is_some() {
            let why = "there is no extended authentication here";
            return Err(Refused { reason: Reason::BAD_AUTHENTICATION_METHOD, why });
        }
        let state = self.connections.get(connection).map(|state| &state.login);
        match state {
            Some(&Login::Refused { reason, why }) => return Err(Refused { reason, why }),
            Some(Login::User(user)) if !local => self.check_will(connect, user)?,
            // The users may be there since a moment ago.
            _ if !local && self.access.is_on => {
                let why = "a user name and password are needed";
                return Err(Refused { reason: Reason::BAD_CREDENTIALS, why });
            }
            _ => {}
        }
        let known = self.by_id.get(&connect.client_id).and_then(|&client| self.clients.get(client));
        if !local && known.is_some_and(|client| client.local) {
            let why = "this client id belongs to the broker's process";
            return Err(Refused { reason: Reason::NOT_AUTHORIZED, why });
        }
        Ok(())
    }

    /// The client of that id, and whether its session is an earlier one. No other connection has it.
    fn take_up(
        &mut self,
        id: &ByteString,
        clean: bool,
        local: bool,
        user: Option<Arc<str>>,
    ) -> Result<(Key, bool), Refused> {
        if let Some(&old) = self.by_id.get(id)
            && self.clients.get(old).is_some_and(|client| clean || client.local != local)
        {
            self.end(old);
        }
        if let Some(&key) = self.by_id.get(id)
            && let Some(client) = self.clients.get_mut(key)
        {
            let timers = [client.ends.take(), client.will_due.take()];
            (client.will, client.user) = (None, user);
            timers.into_iter().for_each(|timer| self.timers.stop(timer));
            return Ok((key, true));
        }
        if self.clients.len() >= self.limits.max_sessions {
            return Err(Refused { reason: Reason::QUOTA_EXCEEDED, why: "there are too many sessions" });
        }
        let key = self.clients.insert(Client::new(id.clone(), local, user, &self.limits));
        self.by_id.insert(id.clone(), key);
        Ok((key, false))
    }

    /// How long the session is kept, and whether that is less than the client wants.
    fn expiry(&self, connect: &Connect) -> (Duration, bool) {
        let most = self.limits.max_session_expiry;
        let wanted = match connect.version {
            Version::V311 if connect.clean_start => return (Duration::ZERO, false),
            Version::V311 => return (most, false),
            Version::V5 => Duration::from_secs(u64::from(connect.properties.session_expiry.unwrap_or(0))),
        };
        (wanted.min(most), wanted > most)
    }

    /// DISCONNECT of a client.
    pub(super) fn leave(&mut self, connection: Key, key: Key, end: &Disconnect, now: Instant) -> Result<(), Malformed> {
        let Some(client) = self.clients.get_mut(key) else { return Ok(()) };
        if let Some(seconds) = end.properties.session_expiry {
            if client.expiry.is_zero() && seconds > 0 {
                return Err(Malformed::protocol("a session that was to end with its connection cannot be kept"));
            }
            client.expiry = Duration::from_secs(u64::from(seconds)).min(self.limits.max_session_expiry);
        }
        tracing::debug!(client = %client.id, reason = %end.reason, "MQTT client disconnected");
        self.close(connection, None);
        self.detach(key, end.reason != Reason::SUCCESS, now);
        Ok(())
    }

    /// A client is without a connection. `lost`: it has not taken its leave, so its will is due.
    pub(super) fn detach(&mut self, key: Key, lost: bool, now: Instant) {
        let Some(client) = self.clients.get_mut(key) else { return };
        client.session.disconnected();
        drop(client.outgoing.take());
        let connection = client.connection.take();
        if !lost {
            client.will = None;
        }
        if client.expiry.is_zero() {
            self.end(key);
        } else {
            self.keep_session(key, now);
        }
        if let Some(connection) = connection {
            self.make_way(connection);
        }
    }

    /// Keeps the session of a client that is away for its time.
    fn keep_session(&mut self, key: Key, now: Instant) {
        // What had yet to be written is gone with the connection: whoever waited for that may go on.
        self.relieve(key);
        self.set_up(key, false);
        let Some(client) = self.clients.get(key) else { return };
        let ends = now + client.expiry;
        let delay = client.will.as_ref().map(|will| Duration::from_secs(u64::from(will.delay)));
        let expiry = client.expiry;
        let timer = self.timers.set(ends, Timer::SessionEnds(key));
        // A will whose delay is longer than the session goes out with the session's end.
        let due = match delay {
            Some(delay) if delay.is_zero() => {
                self.send_will(key);
                None
            }
            Some(delay) if delay < expiry => Some(self.timers.set(now + delay, Timer::WillIsDue(key))),
            _ => None,
        };
        if let Some(client) = self.clients.get_mut(key) {
            (client.ends, client.will_due) = (Some(timer), due);
        }
    }

    /// The groups of a client are told that it is connected, or away.
    fn set_up(&mut self, key: Key, is_up: bool) {
        let Some(client) = self.clients.get(key) else { return };
        for filter in client.subscriptions.keys().filter(|filter| filter.starts_with(topic::SHARE)) {
            self.spent += 1;
            self.tree.set_up(filter, key, is_up);
        }
    }

    pub(super) fn send_will(&mut self, key: Key) {
        let Some(client) = self.clients.get_mut(key) else { return };
        client.will_due = None;
        if let Some(Will { topic, payload, qos, retain, properties, .. }) = client.will.take() {
            let publish = Publish { topic, payload, qos, retain, properties, ..Publish::default() };
            self.work.push_back(Work::Publish { from: client.id.clone(), publish: Box::new(publish) });
        }
    }

    /// A session is over. What it has not acknowledged is for others, or comes back.
    pub(super) fn end(&mut self, key: Key) {
        self.send_will(key);
        let Some(mut client) = self.clients.remove(key) else { return };
        self.by_id.remove(&client.id);
        [client.ends, client.will_due].into_iter().for_each(|timer| self.timers.stop(timer));
        self.spent += client.subscriptions.len();
        for filter in client.subscriptions.keys() {
            self.tree.remove(filter, key);
        }
        self.figures.subscriptions -= client.subscriptions.len();
        self.release(&client.waiters);
        let waiting = client.session.queued();
        self.spent += client.session.outstanding() / 8;
        let tokens = client.session.drain();
        let sent = tokens.len() - waiting;
        for (place, token) in tokens.into_iter().enumerate() {
            match token.shared {
                // Of QoS 2, what may have arrived is not given to another: it must not arrive twice [MQTT-4.8.2-5].
                Some(shared) if place >= sent || shared.publish.qos == Qos::AtLeastOnce => {
                    self.work.push_back(Work::Again { shared, duty: token.duty, owed: token.owed });
                }
                _ => {
                    if let Some(duty) = token.duty {
                        self.work.push_back(Work::Answer { duty, answer: Answer::Gone });
                    }
                }
            }
        }
    }
}

/// A will in memory of its own.
fn own(will: Will, memory: &Arc<Memory>) -> Will {
    let Will { topic, payload, qos, retain, delay, properties } = will;
    let publish = detached_around(&Publish { topic, properties, ..Publish::default() }, memory.own(&payload));
    Will { topic: publish.topic, payload: publish.payload, qos, retain, delay, properties: publish.properties }
}
