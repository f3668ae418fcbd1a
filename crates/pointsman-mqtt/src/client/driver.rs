//! The one task of a client: it reads, hands on, and writes.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use slab::Slab;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio::time::{Instant, Sleep};

use super::outlet::Outlet;
use super::{Incoming, PublishError, Settings, Status};
use crate::connection::Signal;
use crate::link::{Control, Link};
use crate::packet::{Connect, Options, Packet, Properties, Publish, Qos, Version};
use crate::reason::Reason;
use crate::session::{Event, Peer, Session};
use crate::wire::Target;

/// So many passes are made before other tasks have their turn.
const PASSES: u32 = 64;
/// With more than this still to be written, nothing is read.
const OUTPUT_BYTES: usize = 4 << 20;
/// How long a client that was dropped goes on with what it still has.
const FAREWELL: Duration = Duration::from_secs(5);

/// What a [`Client`](super::Client) asks of its task.
#[derive(Debug)]
pub(super) enum Command {
    Publish(Box<Publish>, Pending),
    Acknowledge { id: u16, epoch: u32 },
    Unsubscribe(oneshot::Sender<()>),
    Close { within: Duration, forget: bool, done: oneshot::Sender<()> },
}

/// Who waits for a message to be taken over. The permit bounds how many there are, also of those that nobody waits for.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) done: oneshot::Sender<Result<Reason, PublishError>>,
    pub(super) _permit: OwnedSemaphorePermit,
}

pub(super) struct Driver {
    link: Link,
    session: Session<u32>,
    /// How often the broker has lost the session: identifiers from before are void.
    epoch: u32,
    unsubscribing: Vec<oneshot::Sender<()>>,
    pending: Slab<Pending>,
    commands: mpsc::UnboundedReceiver<Command>,
    /// For what is handed out, to acknowledge it by.
    acknowledge: mpsc::WeakUnboundedSender<Command>,
    outlet: Outlet,
    status: watch::Sender<Status>,
    leaving: Option<Leaving>,
    timer: Pin<Box<Sleep>>,
}

struct Leaving {
    deadline: Instant,
    forget: bool,
    done: Option<oneshot::Sender<()>>,
}

impl Driver {
    pub(super) fn new(
        settings: Settings,
        commands: mpsc::UnboundedReceiver<Command>,
        acknowledge: mpsc::WeakUnboundedSender<Command>,
        messages: mpsc::Sender<Incoming>,
        status: watch::Sender<Status>,
    ) -> Self {
        let version = settings.broker.version();
        let window = settings.receive_maximum.max(1);
        // More than it has announced is taken all the same, when there is room for it: 3.1.1 announces nothing, and mosquitto
        // 2.0.11 miscounts under load, and would send the same to each connection that is closed for it.
        let mut session = Session::new(u16::MAX);
        session.hold_at_most_once(true);
        let connect = Connect {
            version,
            // 3.1.1 has no expiry: what is not to be kept has to be forgotten at the beginning.
            clean_start: version == Version::V311 && settings.session_expiry.is_zero(),
            client_id: settings.client_id.into(),
            properties: Properties {
                session_expiry: Some(u32::try_from(settings.session_expiry.as_secs()).unwrap_or(u32::MAX)),
                receive_maximum: Some(window),
                ..Properties::default()
            },
            ..Connect::default()
        };
        let (name, target) = (settings.broker.to_string(), Target::Url(settings.broker));
        let options = Options { retain_handling: 2, ..Options::up_to(Qos::ExactlyOnce) };
        let filters = settings.filters.into_iter().map(|filter| (filter, options)).collect();
        Self {
            link: Link::new(name, target, connect, settings.max_packet, filters),
            session,
            epoch: 0,
            unsubscribing: Vec::new(),
            pending: Slab::new(),
            commands,
            acknowledge,
            outlet: Outlet::new(messages),
            status,
            leaving: None,
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
        }
    }

    /// Runs until it is closed, or nobody is left who could close it.
    pub(super) async fn run(mut self) {
        std::future::poll_fn(|context| self.poll(context)).await;
        let forget = self.leaving.as_ref().is_some_and(|leaving| leaving.forget);
        self.link.close(&mut self.session, forget).await;
        let Some(leaving) = self.leaving.take() else { return };
        if let Some(done) = leaving.done {
            let _ = done.send(());
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        for _ in 0..PASSES {
            let now = Instant::now();
            let mut progress = self.poll_commands(now, context);
            progress |= self.poll_connection(now, context);
            self.flush(now, context);
            if self.has_left(now, context) {
                return Poll::Ready(());
            }
            if !progress {
                return Poll::Pending;
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_commands(&mut self, now: Instant, context: &mut Context<'_>) -> bool {
        let mut progress = false;
        while let Poll::Ready(command) = self.commands.poll_recv(context) {
            match command {
                Some(Command::Publish(publish, pending)) => self.publish(&publish, pending, now),
                Some(Command::Acknowledge { id, epoch }) if epoch == self.epoch => {
                    self.session.acknowledge(id, Reason::SUCCESS);
                }
                Some(Command::Acknowledge { .. }) => {}
                Some(Command::Unsubscribe(done)) => self.unsubscribe(done),
                Some(Command::Close { within, forget, done }) => {
                    self.leaving = Some(Leaving { deadline: now + within, forget, done: Some(done) });
                }
                None if self.leaving.is_none() => {
                    self.leaving = Some(Leaving { deadline: now + FAREWELL, forget: false, done: None });
                }
                None => return progress,
            }
            progress = true;
        }
        progress
    }

    fn publish(&mut self, publish: &Publish, pending: Pending, now: Instant) {
        let key = self.pending.insert(pending);
        let token = u32::try_from(key).unwrap_or(u32::MAX);
        match self.session.publish(publish, token, now.into_std()) {
            Ok(None) => {}
            Ok(Some(token)) => self.settle(token, Ok(Reason::SUCCESS)),
            Err(refusal) => self.settle(token, Err(refusal.into())),
        }
    }

    fn settle(&mut self, token: u32, outcome: Result<Reason, PublishError>) {
        if let Some(pending) = self.pending.try_remove(token as usize) {
            // Who has asked may have given up.
            let _ = pending.done.send(outcome);
        }
    }

    /// What had to wait may have gone out, or be worth nothing any more.
    fn settle_waiting(&mut self) {
        while let Some(token) = self.session.take_sent() {
            self.settle(token, Ok(Reason::SUCCESS));
        }
        while let Some(token) = self.session.take_expired() {
            self.settle(token, Err(PublishError::Expired));
        }
    }

    fn poll_connection(&mut self, now: Instant, context: &mut Context<'_>) -> bool {
        let mut progress = false;
        self.link.begin_pass();
        loop {
            // The answer to SUBSCRIBE or UNSUBSCRIBE may come behind more messages than there is room for.
            let has_room =
                self.outlet.poll_room(context).is_ready() || (self.awaits_answer() && self.outlet.may_read_ahead());
            let may_read = self.session.output_len() < OUTPUT_BYTES && has_room;
            match self.link.poll(context, may_read) {
                Poll::Pending => return progress,
                Poll::Ready(signal) => self.handle(signal, now),
            }
            progress = true;
        }
    }

    fn awaits_answer(&self) -> bool {
        !self.link.is_ready() || !self.unsubscribing.is_empty()
    }

    fn handle(&mut self, signal: Signal, now: Instant) {
        match signal {
            Signal::Up(peer) => self.connected(peer, now),
            Signal::Down(reason) => self.lost(reason, false, now),
            Signal::Cut(publish) => self.pass_over(publish, now),
            Signal::Packet(packet) => {
                match self.session.receive(packet, now.into_std()) {
                    Ok(Event::Message(publish)) => self.hand_out(publish),
                    Ok(Event::Acknowledged { token, reason, .. }) if reason.is_error() => {
                        self.settle(token, Err(PublishError::Refused(reason)));
                    }
                    Ok(Event::Acknowledged { token, reason, .. }) => self.settle(token, Ok(reason)),
                    Ok(Event::Other(packet)) => self.control(&packet, now),
                    Ok(Event::Released(_) | Event::Completed(_) | Event::Nothing) => {}
                    Err(error) => self.fail(error.to_string(), false, now),
                }
                self.settle_waiting();
            }
        }
    }

    /// A message of 3.1.1 that is too large: it is taken, or it would come for ever.
    fn pass_over(&mut self, publish: Publish, now: Instant) {
        tracing::warn!(
            broker = self.link.name(),
            topic = &*publish.topic,
            "a message is larger than max_packet: it is lost"
        );
        let id = publish.id;
        match self.session.receive(Packet::Publish(publish), now.into_std()) {
            Ok(_) => self.session.acknowledge(id, Reason::SUCCESS),
            Err(error) => self.fail(error.to_string(), false, now),
        }
    }

    fn hand_out(&mut self, publish: Publish) {
        let (id, qos, retained) = (publish.id, publish.qos, publish.retain);
        let incoming = Incoming { publish, epoch: self.epoch, commands: self.acknowledge.clone() };
        if !retained {
            self.outlet.put(incoming);
        } else if qos != Qos::AtMostOnce {
            // It was kept from before: it is no news.
            self.session.acknowledge(id, Reason::SUCCESS);
        }
    }

    fn connected(&mut self, peer: Peer, now: Instant) {
        let packets = self.link.connected(&peer, now);
        if !peer.session_present {
            self.epoch += 1;
        }
        self.session.connected(peer, now.into_std());
        self.settle_waiting();
        packets.iter().for_each(|packet| self.send(packet));
        if self.link.is_ready() {
            self.tell_up();
        }
    }

    /// A packet that is not about messages.
    fn control(&mut self, packet: &Packet, now: Instant) {
        match self.link.control(packet) {
            Control::Subscribed => self.tell_up(),
            Control::Unsubscribed => {
                for done in self.unsubscribing.drain(..) {
                    // Who has asked may have given up.
                    let _ = done.send(());
                }
            }
            Control::Refused(reason) => {
                self.fail(reason, false, now);
                self.status.send_modify(|status| status.refused = true);
            }
            Control::Broken(reason) => self.fail(reason, false, now),
            Control::TakenOver(reason) => self.fail(reason, true, now),
            Control::Barrier | Control::Nothing => {}
        }
    }

    fn tell_up(&self) {
        let up = Status { up: true, ..Status::default() };
        self.status.send_if_modified(|status| std::mem::replace(status, up.clone()) != up);
    }

    fn fail(&mut self, reason: String, taken_over: bool, now: Instant) {
        if let Signal::Down(reason) = self.link.fail(reason) {
            self.lost(reason, taken_over, now);
        }
    }

    fn lost(&mut self, reason: String, taken_over: bool, now: Instant) {
        self.link.lost(&reason, taken_over, now);
        self.session.disconnected();
        // It cannot be confirmed any more, and nothing comes any more.
        self.unsubscribing.clear();
        let refused = self.link.refusal().is_some_and(is_final);
        self.status.send_modify(|status| {
            let failures = status.failures.saturating_add(1);
            *status = Status { up: false, failures, reason: Some(reason), refused };
        });
    }

    fn unsubscribe(&mut self, done: oneshot::Sender<()>) {
        let is_subscribed = !self.link.filters().is_empty();
        let packets = self.link.subscribe_to(Vec::new(), 0);
        if self.session.is_up() && is_subscribed {
            packets.iter().for_each(|packet| self.send(packet));
            self.unsubscribing.push(done);
        }
    }

    fn send(&mut self, packet: &Packet) {
        // Filters have been checked, and everything else is short.
        if let Err(error) = self.session.send(packet) {
            tracing::error!(%error, "a control packet cannot be sent");
        }
    }

    fn flush(&mut self, now: Instant, context: &mut Context<'_>) {
        if let Err(reason) = self.link.poll_flush(context, &mut self.session) {
            self.lost(reason, false, now);
        }
    }

    /// Whether it is closing, and nothing is left to be done, or the time for it is over.
    fn has_left(&mut self, now: Instant, context: &mut Context<'_>) -> bool {
        let Some(leaving) = &self.leaving else { return false };
        let nothing_left = self.session.outstanding() == 0 && self.session.output_len() == 0;
        let abandoned = leaving.done.is_none() && !self.session.is_up();
        if nothing_left || abandoned || now >= leaving.deadline {
            return true;
        }
        if self.timer.deadline() != leaving.deadline {
            self.timer.as_mut().reset(leaving.deadline);
        }
        self.timer.as_mut().poll(context).is_ready()
    }
}

/// Whether a broker that answers so will answer otherwise only when somebody has changed something.
fn is_final(reason: Reason) -> bool {
    !matches!(
        reason,
        Reason::SERVER_UNAVAILABLE
            | Reason::SERVER_BUSY
            | Reason::QUOTA_EXCEEDED
            | Reason::CONNECTION_RATE_EXCEEDED
            | Reason::UNSPECIFIED_ERROR
    )
}
