//! One client as the broker knows it: its session, its subscriptions, and what waits for it.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytestring::ByteString;

use super::limits::{Limits, OUTPUT};
use super::memory::Charge;
use super::message::{own_size, size};
use super::replay::Replay;
use super::slots::Key;
use super::timers::TimerKey;
use crate::packet::{Options, Publish, Qos, Will};
use crate::session::{Encodings, Refusal, Session};

/// A queue that has become empty keeps room for that many messages.
const SPARE: usize = 64;

/// A client, connected or not, for as long as its session lasts.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) id: ByteString,
    /// Whether it is in this process: nothing for it is dropped, and who publishes to it is acknowledged by it.
    pub(super) local: bool,
    /// `None` where there are no users.
    pub(super) user: Option<Arc<str>>,
    /// Whether something was refused to it: told once.
    pub(super) is_denied: bool,
    pub(super) session: Session<Token>,
    /// `None` while it is away.
    pub(super) connection: Option<Key>,
    pub(super) subscriptions: HashMap<ByteString, (Options, Option<u32>)>,
    /// Retained messages that it has yet to be sent.
    pub(super) replay: Option<Replay>,
    /// How long the session lasts without a connection.
    pub(super) expiry: Duration,
    pub(super) will: Option<Will>,
    /// When the session ends; set while it is away.
    pub(super) ends: Option<TimerKey>,
    /// When the will is published; set while it is away.
    pub(super) will_due: Option<TimerKey>,
    /// What the messages of QoS 0 take that are put out for it.
    pub(super) outgoing: Charge,
    /// What the messages that it has not acknowledged take, in bytes.
    bytes: usize,
    /// The sizes of those that have not been sent, in their order, and their sum.
    waiting: VecDeque<usize>,
    waiting_bytes: usize,
    /// Messages of local clients that it has not acknowledged.
    pub(super) owed: usize,
    /// Connections that are not read until this client has caught up.
    pub(super) waiters: BTreeSet<Key>,
    /// When a message for it was dropped last; `None` once none was for a while.
    pub(super) dropped: Option<Instant>,
    /// The last message that found this client, and its place among the targets: a client gets one copy.
    pub(super) mark: (u64, usize),
}

/// Goes with a message through a session, and comes back with its acknowledgement.
#[derive(Debug, Clone)]
pub(super) struct Token {
    size: usize,
    /// What it takes of that which is not shared with other sessions.
    _charge: Option<Charge>,
    /// Who waits for it.
    pub(super) duty: Option<Key>,
    /// Whether it is a local client that waits.
    pub(super) owed: bool,
    /// If it came by a shared subscription: what another member would need.
    pub(super) shared: Option<Arc<Shared>>,
}

/// A message for one member of a group.
#[derive(Debug)]
pub(super) struct Shared {
    /// With `$share` and the group's name.
    pub(super) filter: Arc<str>,
    pub(super) publish: Publish,
    pub(super) from: ByteString,
    pub(super) since: Instant,
}

/// What has become of a message for one client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Delivery {
    /// It waits for the acknowledgement.
    Waits,
    /// It is on its way, and there will be no acknowledgement.
    Sent,
    /// It is not for a client without a connection.
    Away,
    /// It is lost.
    Dropped(Drop),
}

/// Why a message is lost to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Drop {
    /// It does not read fast enough.
    Slow,
    /// Too many wait already.
    QueueFull,
    /// It takes no packets of that size.
    TooLarge,
}

impl Client {
    pub(super) fn new(id: ByteString, local: bool, user: Option<Arc<str>>, limits: &Limits) -> Self {
        // Clients of 3.1.1 know no receive maximum; it is kept where it was announced.
        let mut session = Session::new(u16::MAX);
        session.share_payloads(true);
        session.limit_output(OUTPUT);
        Self {
            id,
            local,
            user,
            is_denied: false,
            session,
            connection: None,
            subscriptions: HashMap::new(),
            replay: None,
            expiry: Duration::ZERO,
            will: None,
            ends: None,
            will_due: None,
            outgoing: limits.memory.charge(0),
            bytes: 0,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            owed: 0,
            waiters: BTreeSet::new(),
            dropped: None,
            mark: (0, 0),
        }
    }

    /// What waits for it, in bytes. What it has and has not acknowledged is not part of it: that may depend on those who would
    /// have to wait.
    fn load(&self) -> usize {
        self.waiting_bytes + self.session.output_len()
    }

    /// Whether whoever publishes to this local client has to wait.
    pub(super) fn is_above(&self, limits: &Limits) -> bool {
        self.load() > limits.high || self.session.queued() > limits.max_queued || self.bytes > limits.most()
    }

    pub(super) fn is_below(&self, limits: &Limits) -> bool {
        self.load() <= limits.high / 2
            && self.session.queued() <= limits.max_queued / 2
            && self.bytes <= limits.most() / 2
    }

    /// The session may have sent what was waiting; it does so in the order in which it was given.
    pub(super) fn sent(&mut self) {
        while self.waiting.len() > self.session.queued() {
            self.waiting_bytes -= self.waiting.pop_front().unwrap_or_default();
        }
        if self.waiting.is_empty() {
            self.waiting.shrink_to(SPARE);
        }
    }

    /// Whether a message with an acknowledgement would be dropped. `pressed`: its publisher can be made to wait instead.
    pub(super) fn is_full(&self, bytes: usize, limits: &Limits, pressed: bool) -> bool {
        let queued = self.session.queued() >= limits.max_queued || self.bytes + bytes > limits.max_queued_bytes;
        (queued || limits.memory.is_full()) && !(self.local && pressed)
    }

    /// Sends a message, or lets it wait.
    pub(super) fn deliver(
        &mut self,
        publish: &Publish,
        token: Token,
        limits: &Limits,
        encodings: &mut Encodings,
        pressed: bool,
        now: Instant,
    ) -> Delivery {
        if publish.qos == Qos::AtMostOnce {
            if !self.session.is_up() {
                return Delivery::Away;
            }
            let limit = if self.local { limits.most() } else { limits.outbox };
            let waiting = self.session.output_len();
            let full = waiting > limit || (waiting > 0 && limits.memory.is_full());
            if full && !(self.local && pressed) {
                return Delivery::Dropped(Drop::Slow);
            }
            return match self.session.publish(publish, token, now) {
                Ok(_) => {
                    self.outgoing.add(self.session.output_len() - waiting);
                    Delivery::Sent
                }
                Err(Refusal::TooLarge { .. } | Refusal::Unencodable(_)) => Delivery::Dropped(Drop::TooLarge),
            };
        }
        if self.is_full(token.size, limits, pressed) {
            return Delivery::Dropped(Drop::QueueFull);
        }
        let (bytes, owed) = (token.size, usize::from(token.owed));
        match self.session.publish_shared(publish, token, encodings, now) {
            Ok(_) => {
                self.bytes += bytes;
                self.owed += owed;
                if self.session.queued() > self.waiting.len() {
                    self.waiting.push_back(bytes);
                    self.waiting_bytes += bytes;
                }
                Delivery::Waits
            }
            Err(Refusal::TooLarge { .. } | Refusal::Unencodable(_)) => Delivery::Dropped(Drop::TooLarge),
        }
    }

    /// A token has come back.
    pub(super) fn returned(&mut self, token: &Token) {
        self.bytes = self.bytes.saturating_sub(token.size);
        self.owed = self.owed.saturating_sub(usize::from(token.owed));
    }
}

impl Token {
    pub(super) fn new(
        publish: &Publish,
        duty: Option<Key>,
        owed: bool,
        shared: Option<Arc<Shared>>,
        limits: &Limits,
    ) -> Self {
        let copies = if shared.is_some() { 2 } else { 1 };
        let charge = || limits.memory.charge(copies * own_size(publish));
        let _charge = (publish.qos > Qos::AtMostOnce).then(charge);
        let owed = owed && duty.is_some();
        Self { size: copies * size(publish), _charge, duty, owed, shared }
    }
}
