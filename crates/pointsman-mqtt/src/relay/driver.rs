//! The one task of a relay: it reads, lets the engine think, and writes.
//!
//! One task for all connections: a message comes in and goes out without another thread being woken, and what one chunk of
//! input has led to is written at once.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytestring::ByteString;
use futures_util::future::join_all;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, Sleep};

use super::changeover::Changeover;
use super::engine::{self, Engine, SENDERS};
use super::pace::Pace;
use super::routes::{Routes, Views};
use super::settings::{Invalid, Settings, Topics};
use super::{Figures, address};
use crate::connection::Signal;
use crate::link::{Control, Filter, Link};
use crate::packet::{Connect, Options, Packet, Properties, Publish, Qos, Version};
use crate::topic;
use crate::wire::Target;

/// So many passes are made before other tasks have their turn.
const PASSES: u32 = 64;

/// What a [`Relay`](super::Relay) asks of its task.
pub(super) enum Command {
    Reload(Box<Settings>, Views, oneshot::Sender<Result<(), Invalid>>),
    Figures(oneshot::Sender<Figures>),
    Metrics(oneshot::Sender<String>),
    Close(Leave, oneshot::Sender<bool>),
    /// Subscribes as a member of the group, or alone.
    Share(bool, oneshot::Sender<()>),
}

/// For whom a relay that ends leaves what senders publish from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leave {
    /// The next relay with its code: it waits in the session.
    ToNext,
    /// The other relays of its group: it unsubscribes, and takes what its broker has already sent to it.
    ToGroup,
    /// The same, for another relay that is gone: it connects first. Where its broker has kept nothing for that one, there is nothing to do.
    Inherited,
}

/// Which brokers are connected, with all subscriptions confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Ready {
    /// The one in this process, if it is used.
    pub(super) embedded: bool,
    pub(super) all: bool,
}

pub(super) struct Driver {
    engine: Engine,
    settings: Settings,
    links: Vec<Link>,
    commands: mpsc::Receiver<Command>,
    changed: Pin<Box<dyn futures_util::Stream<Item = ()> + Send>>,
    ready: watch::Sender<Ready>,
    /// Which links lead to the embedded broker.
    embedded: Vec<bool>,
    timer: Pin<Box<Sleep>>,
    leaving: Option<Leaving>,
    sharing: Sharing,
    pace: Pace,
}

struct Leaving {
    leave: Leave,
    /// Is told whether the ingress broker had kept the session.
    done: Option<oneshot::Sender<bool>>,
    had_session: bool,
    deadline: Instant,
    /// The arrivals when the last barrier was sent; `None` while none is under way.
    barrier: Option<u64>,
    /// Nothing more will come from senders.
    dry: bool,
}

/// A change of how the ingress broker is subscribed to.
#[derive(Default)]
struct Sharing {
    /// Whether the broker has been told, of an earlier life that may have subscribed the other way, that it is over.
    is_known: bool,
    /// Who waits for it to be confirmed.
    waiting: Vec<oneshot::Sender<()>>,
    changeover: Option<Changeover>,
}

impl Driver {
    pub(super) fn new(
        settings: Settings,
        targets: Vec<Target>,
        engine: Engine,
        commands: mpsc::Receiver<Command>,
        changed: watch::Receiver<()>,
    ) -> (Self, watch::Receiver<Ready>) {
        let embedded: Vec<bool> = targets.iter().map(|target| matches!(target, Target::Embedded(_))).collect();
        let may_sleep = !embedded.contains(&true);
        let links = targets.into_iter().enumerate().map(|(index, target)| link(&settings, index, target)).collect();
        let (ready, is_ready) = watch::channel(Ready::default());
        let changed = futures_util::stream::unfold(changed, |mut changed| async move {
            if changed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            Some(((), changed))
        });
        let driver = Self {
            engine,
            settings,
            links,
            commands,
            changed: Box::pin(changed),
            ready,
            embedded,
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
            leaving: None,
            sharing: Sharing::default(),
            pace: Pace::new(may_sleep),
        };
        (driver, is_ready)
    }

    /// Runs until it is closed.
    pub(super) async fn run(mut self) {
        std::future::poll_fn(|context| self.poll(context)).await;
        self.end().await;
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        for _ in 0..PASSES {
            let now = Instant::now();
            let had_room = self.engine.has_room();
            let mut progress = self.poll_commands(context);
            while self.changed.as_mut().poll_next(context).is_ready() {
                self.engine.instances_changed(now.into_std());
                progress = true;
            }
            let signals: u32 = (0..self.links.len()).map(|side| self.poll_side(side, now, context)).sum();
            progress |= signals > 0;
            progress |= self.poll_timer(now, context);
            let left = self.leave(now);
            self.engine.write_journal();
            self.flush(now, context);
            if left {
                return Poll::Ready(());
            }
            // Whoever was not read because of it has not been asked to wake us.
            progress |= !had_room && self.engine.has_room();
            self.pace.gather(signals, self.engine.arrivals, now);
            if !progress {
                let (flights, requests) = self.engine.under_way();
                self.engine.metrics.levels(flights, requests);
                return Poll::Pending;
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_commands(&mut self, context: &mut Context<'_>) -> bool {
        let mut progress = false;
        while let Poll::Ready(command) = self.commands.poll_recv(context) {
            progress = true;
            match command {
                Some(Command::Reload(settings, views, answer)) => {
                    let _ = answer.send(self.reload(*settings, views));
                }
                Some(Command::Figures(answer)) => {
                    let (flights, requests) = self.engine.under_way();
                    self.engine.metrics.levels(flights, requests);
                    let _ = answer.send(self.engine.metrics.figures(self.engine.routes.all()));
                }
                Some(Command::Metrics(answer)) => {
                    let mut text = String::new();
                    self.engine.metrics.write(&mut text);
                    let _ = answer.send(text);
                }
                Some(Command::Share(shared, answer)) => self.share(shared, answer),
                Some(Command::Close(leave, answer)) => self.begin_leaving(leave, Some(answer)),
                None => {
                    // The relay was dropped: nobody waits, but what is under way is completed.
                    if self.leaving.is_none() {
                        self.begin_leaving(Leave::ToNext, None);
                        return true;
                    }
                    return false;
                }
            }
        }
        progress
    }

    /// Handles what has come on a side; how much that was.
    fn poll_side(&mut self, index: usize, now: Instant, context: &mut Context<'_>) -> u32 {
        let mut signals = 0;
        self.links[index].begin_pass();
        loop {
            let may_read = index != SENDERS || self.engine.has_room();
            match self.links[index].poll(context, may_read) {
                Poll::Pending => return signals,
                Poll::Ready(signal) => {
                    signals += 1;
                    self.handle(index, signal, now);
                }
            }
        }
    }

    fn handle(&mut self, index: usize, signal: Signal, now: Instant) {
        match signal {
            Signal::Up(peer) => {
                let packets = self.links[index].connected(&peer, now);
                self.engine.metrics.connected(self.links[index].name(), true);
                self.engine.connected(index, peer, &packets, now.into_std());
                if index == SENDERS {
                    self.met_session(peer.session_present);
                }
                self.tell_ready();
            }
            Signal::Down(reason) => self.lost(index, &reason, false, now),
            // It is not acknowledged, and comes again to the next relay with this code.
            Signal::Packet(Packet::Publish(publish)) if self.leaves_to_next(index, &publish) => {}
            Signal::Packet(Packet::Publish(publish)) if self.is_second_copy(index, &publish) => {
                if let Err(error) = self.engine.receive_copy(index, publish, now.into_std()) {
                    self.fail(index, error.to_string(), false, now);
                }
            }
            Signal::Packet(packet) => match self.engine.receive(index, packet, now.into_std()) {
                Ok(None) => {}
                Ok(Some(packet)) => self.control(index, &packet, now),
                Err(error) => self.fail(index, error.to_string(), false, now),
            },
            Signal::Cut(publish) if self.leaves_to_next(index, &publish) => {}
            Signal::Cut(publish) => {
                if let Err(error) = self.engine.receive_cut(index, publish, now.into_std()) {
                    self.fail(index, error.to_string(), false, now);
                }
            }
        }
    }

    /// A packet that is not about messages.
    fn control(&mut self, index: usize, packet: &Packet, now: Instant) {
        let link = &mut self.links[index];
        match link.control(packet) {
            Control::Subscribed => {
                tracing::info!(broker = link.name(), filters = link.filters().len(), "subscribed");
                self.tell_ready();
                self.tell_shared();
            }
            Control::Barrier => {
                if let Some(leaving) = &mut self.leaving {
                    leaving.dry = leaving.barrier.take() == Some(self.engine.arrivals);
                }
            }
            Control::Refused(reason) | Control::Broken(reason) => self.fail(index, reason, false, now),
            Control::TakenOver(reason) => {
                self.fail(index, reason, true, now);
                self.is_not_dead(now);
            }
            Control::Unsubscribed => {
                if let Some(changeover) = self.sharing.changeover.as_mut().filter(|_| index == SENDERS) {
                    changeover.old_has_ended();
                }
                self.tell_shared();
            }
            Control::Nothing => {}
        }
    }

    fn fail(&mut self, index: usize, reason: String, taken_over: bool, now: Instant) {
        if let Signal::Down(reason) = self.links[index].fail(reason) {
            self.lost(index, &reason, taken_over, now);
        }
    }

    fn lost(&mut self, index: usize, reason: &str, taken_over: bool, now: Instant) {
        let link = &mut self.links[index];
        link.lost(reason, taken_over, now);
        self.engine.metrics.connected(link.name(), false);
        self.engine.disconnected(index);
        if let Some(leaving) = &mut self.leaving {
            leaving.barrier = None;
        }
        self.tell_ready();
    }

    fn tell_ready(&self) {
        let embedded = self.links.iter().zip(&self.embedded).all(|(link, embedded)| !embedded || link.is_ready());
        let ready = Ready { embedded, all: self.links.iter().all(Link::is_ready) };
        self.ready.send_if_modified(|before| std::mem::replace(before, ready) != ready);
    }

    fn poll_timer(&mut self, now: Instant, context: &mut Context<'_>) -> bool {
        self.engine.tick(now.into_std());
        let leaving = self.leaving.as_ref().map(|leaving| leaving.deadline);
        let deadline = self.engine.next_deadline().map(Instant::from_std).into_iter().chain(leaving).min();
        let Some(deadline) = deadline else { return false };
        if self.timer.deadline() != deadline {
            self.timer.as_mut().reset(deadline);
        }
        self.timer.as_mut().poll(context).is_ready() && deadline > now
    }

    fn flush(&mut self, now: Instant, context: &mut Context<'_>) {
        for index in 0..self.links.len() {
            if let Err(reason) = self.links[index].poll_flush(context, &mut self.engine.sessions[index]) {
                self.lost(index, &reason, false, now);
            }
        }
    }

    fn reload(&mut self, mut settings: Settings, views: Views) -> Result<(), Invalid> {
        settings.code.clone_from(&self.settings.code);
        settings.shared = self.settings.shared;
        let routes = Routes::new(&settings, views, &self.engine.metrics, Some(&self.engine.routes))?;
        self.engine.reload(&settings, routes, Instant::now().into_std());
        let filters = filters_of(&settings, SENDERS);
        self.settings = settings;
        if self.links[SENDERS].filters() != filters && self.leaving.is_none() {
            self.subscribe_to(filters, 0);
            self.tell_ready();
        }
        Ok(())
    }

    fn share(&mut self, shared: bool, answer: oneshot::Sender<()>) {
        self.sharing.waiting.push(answer);
        if self.settings.shared != shared && self.leaving.is_none() {
            self.settings.shared = shared;
            let id = id_of(shared);
            self.sharing.changeover = self.links[SENDERS].takes_ids().then(|| Changeover::new(id, shared));
            self.subscribe_to(filters_of(&self.settings, SENDERS), id);
            self.tell_ready();
        }
        self.tell_shared();
    }

    /// Tells those who have asked that messages come by the new subscriptions alone.
    fn tell_shared(&mut self) {
        if self.links[SENDERS].is_settled() {
            // Who has asked may have given up.
            for answer in self.sharing.waiting.drain(..) {
                let _ = answer.send(());
            }
        }
    }

    /// Whether a message comes for the second time because of a change of subscriptions.
    fn is_second_copy(&mut self, index: usize, publish: &Publish) -> bool {
        let Some(changeover) = self.sharing.changeover.as_mut().filter(|_| index == SENDERS) else { return false };
        let is_second = changeover.is_second(publish);
        if changeover.has_only_new() && self.links[SENDERS].is_settled() {
            self.sharing.changeover = None;
            // Again, without the identifier, which costs time with each message.
            self.subscribe_to(self.links[SENDERS].filters().to_vec(), 0);
        }
        is_second
    }

    fn subscribe_to(&mut self, filters: Vec<Filter>, subscription_id: u32) {
        let packets = self.links[SENDERS].subscribe_to(filters, subscription_id);
        packets.iter().for_each(|packet| self.engine.control(SENDERS, packet));
    }

    fn begin_leaving(&mut self, leave: Leave, done: Option<oneshot::Sender<bool>>) {
        // A session that does not outlive the connection keeps nothing for anybody.
        let has_session = !self.settings.session_expiry.is_zero();
        let leave = if leave == Leave::ToNext && !has_session { Leave::ToGroup } else { leave };
        let patience = match leave {
            Leave::ToNext | Leave::ToGroup => self.settings.drain_timeout,
            // However long its broker is away: what it has kept is kept for so long.
            Leave::Inherited => self.settings.session_expiry,
        };
        let deadline = Instant::now() + patience;
        self.leaving = Some(Leaving { leave, done, had_session: false, deadline, barrier: None, dry: false });
        match leave {
            Leave::ToNext => {}
            Leave::ToGroup => self.subscribe_to(Vec::new(), 0),
            Leave::Inherited => return self.subscribe_to(Vec::new(), 0),
        }
        tracing::info!("leaving: nothing new is taken, what is under way is completed");
    }

    /// The ingress broker has kept the session from before, or has not.
    fn met_session(&mut self, is_present: bool) {
        if is_present && !self.sharing.is_known && self.links[SENDERS].takes_ids() {
            self.sharing.changeover = Some(Changeover::new(id_of(self.settings.shared), self.settings.shared));
        }
        self.sharing.is_known = true;
        if !is_present {
            self.sharing.changeover = None;
        }
        if let Some(leaving) = self.leaving.as_mut().filter(|leaving| leaving.leave == Leave::Inherited) {
            leaving.had_session |= is_present;
            leaving.dry |= !is_present;
        }
    }

    /// A relay for which this one has come lives: it has its session back.
    fn is_not_dead(&mut self, now: Instant) {
        if let Some(leaving) = self.leaving.as_mut().filter(|leaving| leaving.leave == Leave::Inherited) {
            leaving.deadline = now;
        }
    }

    /// Whether a message is left to the next relay with this code.
    fn leaves_to_next(&self, index: usize, publish: &Publish) -> bool {
        let leaves = || self.leaving.as_ref().is_some_and(|leaving| leaving.leave == Leave::ToNext);
        index == SENDERS && publish.qos > Qos::AtMostOnce && leaves()
    }

    /// Whether everything is completed, or the time for it is over. That the broker has nothing left for a relay that has unsubscribed
    /// shows by a question that it answers without having sent a message before.
    fn leave(&mut self, now: Instant) -> bool {
        let under_way = self.engine.under_way();
        let arrivals = self.engine.arrivals;
        let up = self.links[SENDERS].is_up();
        let Some(leaving) = &mut self.leaving else { return false };
        let is_idle = under_way == (0, 0);
        let awaits_barrier = match leaving.leave {
            Leave::ToNext => false,
            Leave::ToGroup => !leaving.dry && up,
            Leave::Inherited => !leaving.dry,
        };
        if now >= leaving.deadline || (is_idle && !awaits_barrier) {
            return true;
        }
        if is_idle && leaving.barrier.is_none() && up {
            leaving.barrier = Some(arrivals);
            self.engine.control(SENDERS, &Link::barrier());
        }
        false
    }

    /// Disconnects. The brokers need not keep the sessions if nothing is left in them, and nothing is to be kept in them.
    async fn end(mut self) {
        let (flights, requests) = self.engine.under_way();
        let forget = flights == 0 && self.leaving.as_ref().is_some_and(|leaving| leaving.dry);
        let is_for_the_dead = self.leaving.as_ref().is_some_and(|leaving| leaving.leave == Leave::Inherited);
        if is_for_the_dead && self.engine.arrivals > 0 {
            let (code, messages) = (self.settings.code(), self.engine.arrivals);
            tracing::info!(code = &*code, messages, "took what its broker had kept for a relay that is gone");
        }
        if flights + requests > 0 {
            tracing::warn!(flights, requests, "left before everything was completed");
        }
        let sides = self.links.iter_mut().zip(&mut self.engine.sessions);
        join_all(sides.map(|(link, session)| link.close(session, forget)).collect::<Vec<_>>()).await;
        if let Some(Leaving { done: Some(done), had_session, .. }) = self.leaving.take() {
            // Who has asked may have given up.
            let _ = done.send(had_session);
        }
    }
}

fn link(settings: &Settings, index: usize, target: Target) -> Link {
    let side = if index == SENDERS { "ingress" } else { "egress" };
    let (name, version) = match &target {
        Target::Url(url) => (format!("{side} {url}"), url.version()),
        Target::Embedded(_) => (format!("{side} embedded"), Version::V5),
    };
    let end = if index == SENDERS { "in".to_owned() } else { format!("out{index}") };
    // No maximum packet size is announced: a broker acknowledges what is larger to its sender, and drops it without a word.
    let connect = Connect {
        version,
        clean_start: false,
        client_id: format!("pointsman-{}-{end}", settings.code()).into(),
        properties: Properties {
            session_expiry: Some(u32::try_from(settings.session_expiry.as_secs()).unwrap_or(u32::MAX)),
            receive_maximum: Some(engine::window(settings, index)),
            ..Properties::default()
        },
        ..Connect::default()
    };
    let is_embedded = matches!(target, Target::Embedded(_));
    let mut link = Link::new(name, target, connect, settings.max_packet, filters_of(settings, index));
    if index == SENDERS && settings.topics == Topics::CodeLast && !is_embedded {
        let other_way = Settings { shared: !settings.shared, ..settings.clone() };
        let filters = filters_of(&other_way, SENDERS).into_iter().map(|(filter, _)| filter);
        link.unsubscribe_first(filters, id_of(settings.shared));
    }
    link
}

/// The subscription identifier, by which a change is followed: another than that of the subscription before, which is there for a moment
/// longer.
fn id_of(shared: bool) -> u32 {
    if shared { 1 } else { 2 }
}

/// What is subscribed to on a side, each filter once.
fn filters_of(settings: &Settings, side: usize) -> Vec<Filter> {
    let options = Options { retain_handling: 2, ..Options::up_to(Qos::ExactlyOnce) };
    let filters: BTreeSet<String> = match (side, settings.topics) {
        (SENDERS, Topics::CodeLast) => {
            let share = |filter: String| format!("{}{}/{filter}", topic::SHARE, settings.group);
            let filters = settings.subscriptions().into_iter();
            if settings.shared { filters.map(share).collect() } else { filters.collect() }
        }
        (SENDERS, Topics::GoEnvelope) => settings.subscriptions().into_iter().collect(),
        (_, Topics::CodeLast) => [format!("{}{}/#", address::REPLY, settings.code())].into(),
        (_, Topics::GoEnvelope) => [format!("{}+/+", address::ENVELOPE_SENDER)].into(),
    };
    filters.into_iter().map(|filter| (ByteString::from(filter), options)).collect()
}
