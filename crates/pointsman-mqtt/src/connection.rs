//! A connection to a broker that comes back by itself, and notices when the other end is gone.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use pointsman_net::backoff::Backoff;
use tokio::time::{Instant, Sleep};

use crate::packet::{Connack, Connect, Packet, Publish, Qos, Version};
use crate::reason::Reason;
use crate::session::Peer;
use crate::wire::{ConnectError, Target, Wire};

/// Before the second attempt; doubled for each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A connection that has lasted so long was a good one.
const LASTING: Duration = Duration::from_secs(10);

/// Connects, and connects again. It carries packets; what they mean is a [`Session`](crate::session::Session)'s business.
pub(crate) struct Connection {
    target: Target,
    connect: Connect,
    max_packet: usize,
    keep_alive: Duration,
    state: State,
    /// For the next attempt, or the next ping.
    timer: Pin<Box<Sleep>>,
    /// Counts connections that have failed, or did not last, since one that did.
    backoff: Backoff,
    /// When the last one came up.
    since: Option<Instant>,
    /// Why the broker has refused the last attempt, if it has.
    refusal: Option<Reason>,
    /// Whether something has come since the last ping.
    heard: bool,
    ping: Ping,
    /// Whether this pass has read already: what is made of one chunk is written before the next is read.
    filled: bool,
    /// Whether a packet was given out since: then there will be another pass.
    given: bool,
    /// Whether the kernel is yet to acknowledge what this pass has read.
    unacknowledged: bool,
    /// Whether something may still be in the stream's own buffer (TLS has one).
    unflushed: bool,
}

type Connecting = Pin<Box<dyn Future<Output = Result<(Wire, Connack), ConnectError>> + Send>>;

enum State {
    Waiting,
    Connecting(Connecting),
    Up(Wire),
    Closed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ping {
    None,
    Due,
    Sent,
}

/// What happens on a connection.
#[derive(Debug)]
pub(crate) enum Signal {
    /// It is up.
    Up(Peer),
    /// A packet has come.
    Packet(Packet),
    /// A message has come that is too large, and here without its payload.
    Cut(Publish),
    /// It is lost, or could not be made, for this reason. It will be tried again.
    Down(String),
}

impl Connection {
    /// Connects with the first poll.
    pub(crate) fn new(target: Target, connect: Connect, max_packet: usize) -> Self {
        let keep_alive = match &target {
            Target::Url(url) => url.keep_alive,
            Target::Embedded(_) => Duration::ZERO,
        };
        let mut connection = Self {
            target,
            connect,
            max_packet,
            keep_alive,
            state: State::Closed,
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
            backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
            since: None,
            refusal: None,
            heard: true,
            ping: Ping::None,
            filled: false,
            given: false,
            unacknowledged: false,
            unflushed: false,
        };
        connection.connect.keep_alive = u16::try_from(keep_alive.as_secs()).unwrap_or(u16::MAX);
        connection.start();
        connection
    }

    /// Lets the next poll read again.
    pub(crate) fn begin_pass(&mut self) {
        self.filled = false;
    }

    /// The next thing that happens. Without `may_read` no packet is given out, and none is read.
    pub(crate) fn poll(&mut self, context: &mut Context<'_>, may_read: bool) -> Poll<Signal> {
        loop {
            match &mut self.state {
                State::Closed => return Poll::Pending,
                State::Waiting => {
                    if self.timer.as_mut().poll(context).is_pending() {
                        return Poll::Pending;
                    }
                    self.start();
                }
                State::Connecting(future) => match future.as_mut().poll(context) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok((wire, connack))) => return Poll::Ready(self.up(wire, &connack)),
                    Poll::Ready(Err(error)) => {
                        if let ConnectError::Refused { reason, .. } = &error {
                            self.refusal = Some(*reason);
                        }
                        return Poll::Ready(self.down(error.to_string()));
                    }
                },
                State::Up(wire) => {
                    if may_read {
                        match wire.decode() {
                            Err(error) => return Poll::Ready(self.down(error.to_string())),
                            Ok(Some(Packet::Pingresp)) => continue,
                            Ok(Some(Packet::Publish(publish))) if wire.take_cut() => {
                                self.given = true;
                                return Poll::Ready(Signal::Cut(publish));
                            }
                            Ok(Some(packet)) => {
                                self.given = true;
                                return Poll::Ready(Signal::Packet(packet));
                            }
                            Ok(None) => {}
                        }
                    }
                    if may_read && !self.filled {
                        match wire.poll_fill(context) {
                            Poll::Ready(Ok(true)) => {
                                (self.filled, self.heard, self.given) = (true, true, false);
                                self.unacknowledged = true;
                                continue;
                            }
                            Poll::Ready(Ok(false)) => return Poll::Ready(self.down("closed by the broker".to_owned())),
                            Poll::Ready(Err(error)) => return Poll::Ready(self.down(error.to_string())),
                            Poll::Pending => {}
                        }
                    }
                    if may_read && self.filled && !self.given {
                        // A part of a packet, or a PINGRESP: nobody knows of a reason for another pass, and the socket has not
                        // been asked to the end.
                        context.waker().wake_by_ref();
                    }
                    return self.poll_ping(context, may_read);
                }
            }
        }
    }

    /// A ping that nothing has followed says that the other end is gone; but who does not read cannot know.
    fn poll_ping(&mut self, context: &mut Context<'_>, may_read: bool) -> Poll<Signal> {
        while !self.keep_alive.is_zero() && self.timer.as_mut().poll(context).is_ready() {
            if self.ping == Ping::Sent && !self.heard && may_read && !self.filled {
                return Poll::Ready(self.down(format!("nothing heard for {:?}", self.keep_alive)));
            }
            (self.ping, self.heard) = (Ping::Due, false);
            self.timer.as_mut().reset(Instant::now() + self.keep_alive / 2);
        }
        Poll::Pending
    }

    /// Writes what there is, as far as it goes. The error is the reason for which the connection is lost.
    pub(crate) fn poll_flush(&mut self, context: &mut Context<'_>, out: &mut BytesMut) -> Result<(), String> {
        let State::Up(wire) = &mut self.state else { return Ok(()) };
        if self.ping == Ping::Due {
            out.extend_from_slice(&[0xc0, 0]);
            self.ping = Ping::Sent;
        }
        let idle = out.is_empty() && !self.unflushed;
        let drained = if idle { Poll::Ready(Ok(())) } else { wire.poll_drain(context, out) };
        self.unflushed = drained.is_pending();
        // After the answer, which it would only hold up.
        if std::mem::take(&mut self.unacknowledged) {
            wire.acknowledge_quickly();
        }
        match drained {
            Poll::Ready(Err(error)) => {
                self.retry();
                Err(error.to_string())
            }
            Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
        }
    }

    /// Gives the connection up for this reason, and tries again.
    pub(crate) fn fail(&mut self, reason: String) -> Signal {
        self.down(reason)
    }

    /// Lets the next attempt wait for so long at least.
    pub(crate) fn postpone(&mut self, pause: Duration) {
        let earliest = Instant::now() + pause;
        if self.timer.deadline() < earliest {
            self.timer.as_mut().reset(earliest);
        }
    }

    /// Why the broker has refused the last attempt to connect; `None` if it has not.
    pub(crate) fn refusal(&self) -> Option<Reason> {
        self.refusal
    }

    /// Whether the last attempt was not the first to fail.
    pub(crate) fn has_failed_before(&self) -> bool {
        self.backoff.failures() > 1
    }

    /// Ends it for good. What is returned is the connection, where there is one.
    pub(crate) fn close(&mut self) -> Option<Wire> {
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Up(wire) => Some(wire),
            _ => None,
        }
    }

    fn start(&mut self) {
        let (target, connect) = (self.target.clone(), self.connect.clone());
        self.refusal = None;
        self.state = State::Connecting(Box::pin(Wire::connect(target, connect, self.max_packet)));
    }

    fn up(&mut self, wire: Wire, connack: &Connack) -> Signal {
        self.state = State::Up(wire);
        self.unflushed = false;
        (self.since, self.heard, self.ping) = (Some(Instant::now()), true, Ping::None);
        let properties = &connack.properties;
        if let Some(seconds) = properties.server_keep_alive {
            self.keep_alive = Duration::from_secs(seconds.into());
        }
        self.timer.as_mut().reset(Instant::now() + self.keep_alive / 2);
        let receive_maximum = match self.connect.version {
            // 3.1.1 does not say. Mosquitto takes 20, unless told otherwise; with more of QoS 2 it closes the connection, and
            // has lost some of them afterwards (2.0.11).
            Version::V311 => 20,
            Version::V5 => u16::MAX,
        };
        Signal::Up(Peer {
            version: self.connect.version,
            session_present: connack.session_present,
            receive_maximum: properties.receive_maximum.unwrap_or(receive_maximum),
            max_packet: properties.maximum_packet.map_or(usize::MAX, |size| size as usize),
            max_qos: match properties.maximum_qos {
                None => Qos::ExactlyOnce,
                Some(true) => Qos::AtLeastOnce,
                Some(false) => Qos::AtMostOnce,
            },
            takes_subscription_ids: self.connect.version == Version::V5
                && properties.subscription_ids_available != Some(false),
        })
    }

    fn down(&mut self, reason: String) -> Signal {
        self.retry();
        Signal::Down(reason)
    }

    /// Lets the next attempt come after a pause.
    fn retry(&mut self) {
        // Two clients with one identifier throw each other out: neither is to come back faster and faster.
        if self.since.take().is_some_and(|since| since.elapsed() >= LASTING) {
            self.backoff.reset();
        }
        self.timer.as_mut().reset(Instant::now() + self.backoff.delay());
        self.state = State::Waiting;
    }
}
