//! The one task of a relay: it reads, lets the engine think, and writes.
//!
//! One task for all connections: a message comes in and goes out without another thread being woken, and what one chunk of
//! input has led to is written at once.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytestring::ByteString;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, Sleep};

use super::engine::{self, Engine, SENDERS};
use super::pace::Pace;
use super::routes::{Routes, Views};
use super::settings::{Invalid, Settings, Topics};
use super::{Figures, address};
use crate::connection::Signal;
use crate::link::{Control, Filter, Link};
use crate::packet::{Connect, Options, Packet, Properties, Qos, Version};
use crate::topic;
use crate::wire::Target;

/// So many passes are made before other tasks have their turn.
const PASSES: u32 = 64;

/// What a [`Relay`](super::Relay) asks of its task.
pub(super) enum Command {
    Reload(Box<Settings>, Views, oneshot::Sender<Result<(), Invalid>>),
    Figures(oneshot::Sender<Figures>),
    Metrics(oneshot::Sender<String>),
    Close(oneshot::Sender<()>),
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
    pace: Pace,
}

struct Leaving {
    done: Option<oneshot::Sender<()>>,
    deadline: Instant,
    /// The arrivals when the last barrier was sent; `None` while none is under way.
    barrier: Option<u64>,
    /// Nothing more will come from senders.
    dry: bool,
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
            pace: Pace::new(may_sleep),
        };
        (driver, is_ready)
    }

    /// Runs until it is closed.
    pub(super) async fn run(mut self) {
        std::future::poll_fn(|context| self.poll(context)).await;
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
                self.end();
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
                Some(Command::Close(answer)) => self.begin_leaving(Some(answer)),
                None => {
                    // The relay was dropped: nobody waits, but what is under way is seen through.
                    if self.leaving.is_none() {
                        self.begin_leaving(None);
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
                self.tell_ready();
            }
            Signal::Down(reason) => self.lost(index, &reason, false, now),
            Signal::Packet(packet) => match self.engine.receive(index, packet, now.into_std()) {
                Ok(None) => {}
                Ok(Some(packet)) => self.control(index, &packet, now),
                Err(error) => self.fail(index, error.to_string(), false, now),
            },
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
            }
            Control::Barrier => {
                if let Some(leaving) = &mut self.leaving {
                    leaving.dry = leaving.barrier.take() == Some(self.engine.arrivals);
                }
            }
            Control::Refused(reason) | Control::Broken(reason) => self.fail(index, reason, false, now),
            Control::TakenOver(reason) => self.fail(index, reason, true, now),
            Control::Unsubscribed | Control::Nothing => {}
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

    fn reload(&mut self, settings: Settings, views: Views) -> Result<(), Invalid> {
        let routes = Routes::new(&settings, views, &self.engine.metrics, Some(&self.engine.routes))?;
        self.engine.reload(&settings, routes, Instant::now().into_std());
        let filters = filters_of(&settings, SENDERS);
        self.settings = settings;
        if self.links[SENDERS].filters() != filters && self.leaving.is_none() {
            self.subscribe_to(filters);
            self.tell_ready();
        }
        Ok(())
    }

    fn subscribe_to(&mut self, filters: Vec<Filter>) {
        let packets = self.links[SENDERS].subscribe_to(filters);
        packets.iter().for_each(|packet| self.engine.control(SENDERS, packet));
    }

    fn begin_leaving(&mut self, done: Option<oneshot::Sender<()>>) {
        let deadline = Instant::now() + self.settings.drain_timeout;
        self.leaving = Some(Leaving { done, deadline, barrier: None, dry: false });
        tracing::info!("leaving: nothing new is taken, what is under way is seen through");
        self.subscribe_to(Vec::new());
    }

    /// Whether everything is seen through, or the time for it is over. That the broker has nothing left shows by a question
    /// (a second UNSUBSCRIBE) that it answers without having sent a message before.
    fn leave(&mut self, now: Instant) -> bool {
        let under_way = self.engine.under_way();
        let arrivals = self.engine.arrivals;
        let up = self.links[SENDERS].is_up();
        let Some(leaving) = &mut self.leaving else { return false };
        let idle = under_way == (0, 0);
        if now >= leaving.deadline || (idle && (leaving.dry || !up)) {
            return true;
        }
        if idle && leaving.barrier.is_none() && !leaving.dry {
            leaving.barrier = Some(arrivals);
            self.engine.control(SENDERS, &Link::barrier());
        }
        false
    }

    /// Says goodbye. The brokers may forget the sessions if nothing is left in them.
    fn end(&mut self) {
        let (flights, requests) = self.engine.under_way();
        let clean = flights == 0 && self.leaving.as_ref().is_some_and(|leaving| leaving.dry);
        if flights + requests > 0 {
            tracing::warn!(flights, requests, "left before everything was seen through");
        }
        for (link, session) in self.links.iter_mut().zip(&mut self.engine.sessions) {
            link.close(session, clean);
        }
        if let Some(done) = self.leaving.take().and_then(|leaving| leaving.done) {
            let _ = done.send(());
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
    let connect = Connect {
        version,
        clean_start: false,
        client_id: format!("pointsman-{}-{end}", settings.code).into(),
        properties: Properties {
            session_expiry: Some(u32::try_from(settings.session_expiry.as_secs()).unwrap_or(u32::MAX)),
            receive_maximum: Some(engine::window(settings, index)),
            maximum_packet: u32::try_from(settings.max_packet).ok(),
            ..Properties::default()
        },
        ..Connect::default()
    };
    Link::new(name, target, connect, settings.max_packet, filters_of(settings, index))
}

/// What is subscribed to on a side, each filter once.
fn filters_of(settings: &Settings, side: usize) -> Vec<Filter> {
    let options = Options { retain_handling: 2, ..Options::up_to(Qos::ExactlyOnce) };
    let filters: BTreeSet<String> = match (side, settings.topics) {
        (SENDERS, Topics::CodeLast) => {
            let share = |filter: String| format!("{}{}/{filter}", topic::SHARE, settings.group);
            settings.subscriptions().into_iter().map(share).collect()
        }
        (SENDERS, Topics::GoEnvelope) => settings.subscriptions().into_iter().collect(),
        (_, Topics::CodeLast) => [format!("{}{}/#", address::REPLY, settings.code)].into(),
        (_, Topics::GoEnvelope) => [format!("{}+/+", address::ENVELOPE_SENDER)].into(),
    };
    filters.into_iter().map(|filter| (ByteString::from(filter), options)).collect()
}
