//! A connection to a broker with what is subscribed to on it: what the relay's task and a client's task have in common.
//!
//! The messages are a [`Session`]'s business, which the caller keeps.

use std::task::{Context, Poll};
use std::time::Duration;

use bytestring::ByteString;
use pointsman_net::backoff::Backoff;
use tokio::time::Instant;

use crate::connection::{Connection, Signal};
use crate::packet::{Connect, Disconnect, Options, Packet, Properties, Suback, Subscribe, Unsubscribe, Version};
use crate::reason::Reason;
use crate::session::{Peer, Session};
use crate::wire::{Target, Wire};

/// The identifiers of packets that are not about messages; sessions leave them alone.
const SUBSCRIBE_ID: u16 = u16::MAX;
const UNSUBSCRIBE_ID: u16 = u16::MAX - 1;
const BARRIER_ID: u16 = u16::MAX - 2;
/// The pause after another client has taken the session over; doubled with each time.
const TAKEOVER_PAUSE: Duration = Duration::from_secs(1);
/// The longest such pause; a connection that has lasted longer begins anew.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A topic filter with its options.
pub(crate) type Filter = (ByteString, Options);

pub(crate) struct Link {
    /// Names the broker in logs and metrics.
    name: String,
    target: Target,
    connect: Connect,
    max_packet: usize,
    connection: Connection,
    /// What is to be subscribed to.
    filters: Vec<Filter>,
    /// Whether the broker has confirmed just that.
    is_subscribed: bool,
    /// What may still be subscribed to from before.
    gone: Vec<ByteString>,
    /// How many UNSUBSCRIBEs the broker has not answered on this connection.
    unsubscribing: usize,
    /// Goes with the next subscription, and comes with each message by it; 0: none.
    subscription_id: u32,
    /// Whether the broker takes such identifiers.
    takes_ids: bool,
    up_since: Option<Instant>,
    /// Two clients of one name must not come back at the same time.
    takeovers: Backoff,
}

/// What a packet that is not about messages means.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Control {
    /// All subscriptions are confirmed.
    Subscribed,
    /// The broker refuses a subscription, for this reason. The connection has to be given up.
    Refused(String),
    /// What was to be unsubscribed is.
    Unsubscribed,
    /// Everything that the broker had sent before the barrier has come.
    Barrier,
    /// The connection has to be given up, for this reason.
    Broken(String),
    /// Another client has taken the session over. The connection has to be given up.
    TakenOver(String),
    /// Nothing that concerns anybody else.
    Nothing,
}

impl Link {
    /// Connects with the first poll.
    pub(crate) fn new(name: String, target: Target, connect: Connect, max_packet: usize, filters: Vec<Filter>) -> Self {
        Self {
            name,
            connection: Connection::new(target.clone(), connect.clone(), max_packet),
            target,
            connect,
            max_packet,
            filters,
            is_subscribed: false,
            gone: Vec::new(),
            unsubscribing: 0,
            subscription_id: 0,
            takes_ids: false,
            up_since: None,
            takeovers: Backoff::new(TAKEOVER_PAUSE, LONGEST_PAUSE).with_jitter(0.75..1.25),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn filters(&self) -> &[Filter] {
        &self.filters
    }

    pub(crate) fn is_up(&self) -> bool {
        self.up_since.is_some()
    }

    /// Whether it is up, and all subscriptions are confirmed.
    pub(crate) fn is_ready(&self) -> bool {
        self.is_up() && self.is_subscribed
    }

    /// Whether it is ready, and nothing else is subscribed to any more.
    pub(crate) fn is_settled(&self) -> bool {
        self.is_ready() && self.gone.is_empty()
    }

    /// Whether the broker takes subscription identifiers.
    pub(crate) fn takes_ids(&self) -> bool {
        self.takes_ids
    }

    /// What an earlier life may have subscribed to, and is to be unsubscribed with the first connection; messages by the subscriptions of
    /// that connection carry the identifier, where the broker takes it.
    pub(crate) fn unsubscribe_first(&mut self, filters: impl IntoIterator<Item = ByteString>, subscription_id: u32) {
        self.gone.extend(filters);
        self.subscription_id = subscription_id;
    }

    /// Why the broker has refused the last attempt to connect; `None` if it has not.
    pub(crate) fn refusal(&self) -> Option<Reason> {
        self.connection.refusal()
    }

    /// Lets the next poll read again.
    pub(crate) fn begin_pass(&mut self) {
        self.connection.begin_pass();
    }

    /// The next thing that happens. Without `may_read` no packet is given out, and none is read.
    pub(crate) fn poll(&mut self, context: &mut Context<'_>, may_read: bool) -> Poll<Signal> {
        self.connection.poll(context, may_read)
    }

    /// The connection is up: returns what is to be sent first.
    ///
    /// That is a SUBSCRIBE also where the session is still there: mosquitto 2.0 forgets shared subscriptions when it is restarted, and
    /// keeps the session.
    pub(crate) fn connected(&mut self, peer: &Peer, now: Instant) -> Vec<Packet> {
        tracing::info!(broker = self.name, session_present = peer.session_present, "connected");
        self.up_since = Some(now);
        (self.takes_ids, self.unsubscribing) = (peer.takes_subscription_ids, 0);
        if !peer.session_present {
            self.gone.clear();
            // There is no other subscription to tell this one from, and an identifier with each message costs time.
            self.subscription_id = 0;
        }
        self.subscriptions()
    }

    /// A packet has come that is not about messages.
    pub(crate) fn control(&mut self, packet: &Packet) -> Control {
        match packet {
            Packet::Suback(suback) => self.subscribed(suback),
            Packet::Unsuback(unsuback) if unsuback.id == BARRIER_ID => Control::Barrier,
            Packet::Unsuback(_) => {
                self.unsubscribing = self.unsubscribing.saturating_sub(1);
                if self.unsubscribing == 0 {
                    self.gone.clear();
                }
                Control::Unsubscribed
            }
            Packet::Disconnect(end) if end.reason == Reason::SESSION_TAKEN_OVER => {
                Control::TakenOver(format!("disconnected by the broker: {}", end.reason))
            }
            Packet::Disconnect(end) => Control::Broken(format!("disconnected by the broker: {}", end.reason)),
            Packet::Pingresp => Control::Nothing,
            _ => Control::Broken("the broker sends a packet that only clients send".to_owned()),
        }
    }

    fn subscribed(&mut self, suback: &Suback) -> Control {
        let mut answers = self.filters.iter().zip(&suback.reasons);
        if let Some(((filter, _), reason)) = answers.find(|(_, reason)| reason.is_error()) {
            return Control::Refused(format!("subscription to {filter} refused: {reason}"));
        }
        self.is_subscribed = true;
        Control::Subscribed
    }

    /// Gives the connection up, and tries again.
    pub(crate) fn fail(&mut self, reason: String) -> Signal {
        self.connection.fail(reason)
    }

    /// The connection is lost, or could not be made: notes and logs it, once and not with each attempt.
    pub(crate) fn lost(&mut self, reason: &str, taken_over: bool, now: Instant) {
        let (broker, client_id) = (&self.name, &*self.connect.client_id);
        let since = self.up_since.take();
        self.is_subscribed = false;
        match since {
            Some(_) if taken_over => {
                tracing::error!(
                    broker,
                    client_id,
                    "another client has taken the session over: is its code in use twice?"
                );
            }
            Some(_) => tracing::warn!(broker, reason, "connection lost"),
            None if !self.connection.has_failed_before() => tracing::warn!(broker, reason, "no connection"),
            None => tracing::debug!(broker, reason, "still no connection"),
        }
        if since.is_some_and(|since| now.duration_since(since) > LONGEST_PAUSE) {
            self.takeovers.reset();
        }
        if taken_over {
            self.connection.postpone(self.takeovers.delay());
        }
    }

    /// Subscribes to other filters: returns what is to be sent. Messages by them carry the identifier, where there is one (from 1) and the
    /// broker takes it, until the next connection.
    pub(crate) fn subscribe_to(&mut self, filters: Vec<Filter>, subscription_id: u32) -> Vec<Packet> {
        self.subscription_id = subscription_id;
        let before = std::mem::replace(&mut self.filters, filters);
        self.gone.extend(before.into_iter().map(|(filter, _)| filter));
        let filters = &self.filters;
        self.gone.retain(|filter| !filters.iter().any(|(kept, _)| kept == filter));
        self.subscriptions()
    }

    /// Tells the broker what is subscribed to, and what no longer. First what is new: a message in between comes twice rather
    /// than never.
    fn subscriptions(&mut self) -> Vec<Packet> {
        let (filters, gone) = (self.filters.clone(), self.gone.clone());
        self.is_subscribed = filters.is_empty();
        let mut packets = Vec::new();
        if !filters.is_empty() {
            let id = std::mem::take(&mut self.subscription_id);
            let subscription_id = (id > 0 && self.takes_ids).then_some(id);
            let properties = Properties { subscription_id, ..Properties::default() };
            let subscribe = Subscribe { id: SUBSCRIBE_ID, filters, properties };
            packets.push(Packet::Subscribe(Box::new(subscribe)));
        }
        if !gone.is_empty() {
            self.unsubscribing += 1;
            packets.push(unsubscribe(UNSUBSCRIBE_ID, gone));
        }
        packets
    }

    /// A question that the broker answers ([`Control::Barrier`]) after everything that it has sent before.
    pub(crate) fn barrier() -> Packet {
        unsubscribe(BARRIER_ID, vec![ByteString::from_static("pointsman/barrier")])
    }

    /// Writes what the session has, as far as it goes. The error is the reason for which the connection is lost; the caller tells
    /// [`Link::lost`].
    pub(crate) fn poll_flush<T: Clone>(
        &mut self,
        context: &mut Context<'_>,
        session: &mut Session<T>,
    ) -> Result<(), String> {
        match self.connection.poll_flush(context, session.output()) {
            Ok(()) => {
                if session.output_len() == 0 {
                    session.written();
                }
                Ok(())
            }
            Err(reason) => {
                // The next attempt has to be polled for.
                context.waker().wake_by_ref();
                Err(reason)
            }
        }
    }

    /// Disconnects for good: done when the broker has read it, after 2 s at most. With `forget` the broker need not keep the session.
    pub(crate) fn close<T: Clone>(
        &mut self,
        session: &mut Session<T>,
        forget: bool,
    ) -> impl Future<Output = ()> + Send + 'static + use<T> {
        let properties = Properties { session_expiry: forget.then_some(0), ..Properties::default() };
        let goodbye = Packet::Disconnect(Box::new(Disconnect { properties, ..Disconnect::default() }));
        if let Err(error) = session.send(&goodbye) {
            tracing::error!(%error, "a control packet cannot be sent");
        }
        let (wire, out) = (self.connection.close(), session.output().split());
        let forgets_by_another = forget && self.connect.version == Version::V311 && !self.connect.clean_start;
        let another = forgets_by_another.then(|| {
            let connect = Connect { clean_start: true, ..self.connect.clone() };
            Wire::connect(self.target.clone(), connect, self.max_packet)
        });
        async move {
            if let Some(wire) = wire {
                wire.finish(out).await;
            }
            if let Some(another) = another {
                // 3.1.1 forgets a session only for another one. If that does not come to be, an empty one is left.
                let _ = another.await;
            }
        }
    }
}

fn unsubscribe(id: u16, filters: Vec<ByteString>) -> Packet {
    Packet::Unsubscribe(Box::new(Unsubscribe { id, filters, properties: Properties::default() }))
}
