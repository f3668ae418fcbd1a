//! Keeps one instance registered, on every registry alike.
//!
//! A [`Lifecycle`] decides what is to be done; a [`Registrar`] knows how one registry does it. In between, [`keep`] takes in what the holder
//! of the registration wants and whether the instance passes its check, and tells the holder what has become of it.

mod gate;
mod lifecycle;

use std::sync::Arc;
use std::time::Duration;

use futures_channel::mpsc::{TryRecvError, UnboundedReceiver};
use futures_util::StreamExt as _;
use pointsman_core::{Instance, Role};
use tokio::time::Instant;

use self::gate::Gate;
pub(crate) use self::lifecycle::Said;
use self::lifecycle::{Effect, Goal, Input, Lifecycle};
use crate::Error;
use crate::lease::Lease;
use crate::registration::{Change, Command, Departure, End, Reply, Report, RoleWriter, Task, registrable};

/// How one registry registers one instance.
pub(crate) trait Registrar: Send {
    /// Registers the instance, and keeps it registered until something ends that, which is returned. Meanwhile it tells `control` what comes to
    /// pass, and asks it what is wanted. Returns `None` as soon as that is [`Order::Stop`].
    fn hold(&mut self, control: &mut Control) -> impl Future<Output = Option<Said>> + Send;

    /// Removes whatever of the instance is in the registry: [`Said::Removed`], or why that is not known yet. `None` if it is to be looked at
    /// anew what is wanted.
    fn remove(&mut self, control: &mut Control, departure: Departure) -> impl Future<Output = Option<Said>> + Send;

    /// Returns when it is worth a new attempt, although the time for it has not come.
    fn ready(&mut self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }
}

/// Keeps the task's instance registered until its commands end.
pub(crate) async fn keep(registrar: &mut impl Registrar, longest_pause: Duration, task: Box<Task>) -> End {
    let mut control = Control::begin(longest_pause, task);
    loop {
        let said = match control.goal() {
            (Goal::Over, _) => return control.end(),
            (Goal::Registered, _) => registrar.hold(&mut control).await,
            (Goal::Removed(departure), _) => registrar.remove(&mut control, departure).await,
            (Goal::Idle, until) => {
                tokio::select! {
                    () = registrar.ready(), if until.is_some() => control.retry(),
                    () = control.event(until) => {}
                }
                continue;
            }
        };
        if let Some(said) = said {
            control.say(said);
        }
    }
}

/// What a registrar is to do while the instance is registered, or about to be.
#[derive(Debug)]
pub(crate) enum Order {
    /// The content is another now: see [`Control::wanted`].
    Write,
    /// Hand the mastership over.
    Resign(Reply),
    /// Return.
    Stop,
}

/// Between a registrar and whoever holds the registration.
pub(crate) struct Control {
    lifecycle: Lifecycle<Reply>,
    gate: Gate,
    commands: UnboundedReceiver<Command>,
    report: Report,
    /// Of what is to be registered, the revision that the holder has been told.
    told: u64,
    /// Results that are sent to the holder after everything is released.
    at_end: Vec<Effect<Reply>>,
    /// Whether the holder of the registration lives.
    has_holder: bool,
}

impl Control {
    /// Takes in what has been asked for by now. In a box, so that a task has room for it once; frees the one of the task.
    fn begin(longest_pause: Duration, task: Box<Task>) -> Box<Self> {
        let Task { instance, check, patience, commands, early, report, .. } = *task;
        let gate = Gate::new(check);
        let lifecycle = Lifecycle::new(instance, gate.health(), patience, longest_pause, Instant::now());
        let (at_end, told) = (Vec::new(), lifecycle.wanted().1);
        let control = Self { lifecycle, gate, commands, report, told, at_end, has_holder: true };
        let mut control = Box::new(control);
        control.settle();
        early.into_iter().for_each(|command| control.take_idle(Some(command)));
        // If the holder has given up by now, the instance is not registered at all, not even for a moment.
        control.goes_on();
        control
    }

    /// Returns what is to be told once everything is released.
    fn end(self: Box<Self>) -> End {
        let Self { report, at_end, .. } = *self;
        let mut end = End { report, outcome: None, replies: Vec::new() };
        for effect in at_end {
            match effect {
                Effect::Entered(outcome) => end.outcome = Some(outcome),
                Effect::Reply(reply, result) => end.replies.push((reply, result)),
                Effect::Detached(_) | Effect::Replaced => {}
            }
        }
        end
    }

    /// What is to be registered, and which revision of it that is.
    pub(crate) fn wanted(&self) -> (&Instance, u64) {
        let (instance, revision) = self.lifecycle.wanted();
        (instance, revision)
    }

    /// Whether the instance has never been registered.
    pub(crate) fn is_entering(&self) -> bool {
        self.lifecycle.is_entering()
    }

    /// A handle by which the role is told from elsewhere.
    pub(crate) fn roles(&self) -> &RoleWriter {
        self.report.roles()
    }

    /// Waits for what is to be done besides. Cancellation loses nothing.
    pub(crate) async fn order(&mut self) -> Order {
        loop {
            let (goal, until) = self.goal();
            if goal != Goal::Registered {
                return Order::Stop;
            }
            let revision = self.wanted().1;
            if let Some(order) = self.next(until).await {
                return order;
            }
            if self.wanted().1 != revision {
                return Order::Write;
            }
        }
    }

    /// Takes in what has been asked for by now. Whether the instance is still to be registered.
    pub(crate) fn goes_on(&mut self) -> bool {
        while self.has_holder {
            match self.commands.try_recv() {
                Ok(command) => self.take_idle(Some(command)),
                Err(TryRecvError::Closed) => self.take_idle(None),
                Err(TryRecvError::Empty) => break,
            }
        }
        self.goal().0 == Goal::Registered
    }

    /// Says what the registry says.
    pub(crate) fn say(&mut self, said: Said) {
        self.step(Input::Said(said));
    }

    /// The instance is registered, with that role, for as long as the lease holds (`None`: without a limit).
    pub(crate) fn registered(&mut self, role: Role, lease: Option<Lease>) {
        self.lifecycle.step(Input::Said(Said::Registered), Instant::now());
        if self.lifecycle.is_registered() {
            // Before anybody is told that the instance is registered.
            self.report.roles().registered(role, lease);
        }
        self.settle();
    }

    /// The role is about to be given up: nobody may hold it by this registration any more, even if the answer to what is about to be asked of
    /// the registry never comes.
    pub(crate) fn step_down(&self, why: &str) {
        self.report.roles().step_down(why);
    }

    /// Why a call has failed: the instance is not master.
    pub(crate) fn not_master(&self) -> Error {
        let Instance { service, code, .. } = self.wanted().0;
        Error::NotMaster { service: service.clone(), code: code.clone() }
    }

    /// A step of this registration, as errors name it.
    pub(crate) fn name(&self, what: &str) -> String {
        let Instance { service, code, .. } = self.wanted().0;
        format!("{what} {service}/{code}")
    }

    /// Waits for something to go in.
    pub(crate) async fn changed(&mut self) {
        self.event(None).await;
    }

    fn goal(&self) -> (Goal, Option<Instant>) {
        self.lifecycle.goal(Instant::now())
    }

    /// Tries again now, rather than later.
    fn retry(&mut self) {
        self.lifecycle.retry();
    }

    /// Waits for something to go in, at most until then.
    async fn event(&mut self, until: Option<Instant>) {
        if let Some(Order::Resign(reply)) = self.next(until).await {
            let _ = reply.send(Err(self.not_master()));
        }
    }

    async fn next(&mut self, until: Option<Instant>) -> Option<Order> {
        let time = async {
            match until {
                // In a box, because mostly there is nothing to wait for by time, and no room is needed for it.
                Some(until) => Box::pin(tokio::time::sleep_until(until)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            command = self.commands.next(), if self.has_holder => self.take(command),
            health = self.gate.changed() => {
                self.step(Input::Health(health));
                None
            }
            () = time => {
                self.step(Input::Tick);
                None
            }
        }
    }

    /// Takes a command in, while nothing can be resigned.
    fn take_idle(&mut self, command: Option<Command>) {
        if let Some(Order::Resign(reply)) = self.take(command) {
            let _ = reply.send(Err(self.not_master()));
        }
    }

    /// Takes a command in. What is returned is for the registrar.
    fn take(&mut self, command: Option<Command>) -> Option<Order> {
        match command {
            None => {
                self.has_holder = false;
                self.step(Input::Close(Departure::Left, None));
            }
            Some(Command::Close(departure, reply)) => self.step(Input::Close(departure, Some(reply))),
            Some(Command::Update(change, reply)) => self.update(change, reply),
            Some(Command::Check(check)) => {
                if self.gate.check_by(check.map(|check| *check)) {
                    self.step(Input::Health(self.gate.health()));
                }
            }
            Some(Command::Resign(reply)) if self.lifecycle.is_registered() => return Some(Order::Resign(reply)),
            Some(Command::Resign(reply)) => {
                let _ = reply.send(Err(self.not_master()));
            }
        }
        None
    }

    /// Applies what the holder wants to what is to be registered. After a panic of the holder's there is no answer.
    fn update(&mut self, change: Change, reply: Reply) {
        let before = self.lifecycle.wanted().0;
        let mut instance = Instance::clone(before);
        if !change(&mut instance) {
            return;
        }
        let is_same = (&instance.service, &instance.code) == (&before.service, &before.code);
        let fixed = || Error::Fixed { service: before.service.clone(), code: before.code.clone() };
        let allowed = is_same.then_some(()).ok_or_else(fixed);
        match allowed.and_then(|()| registrable(&instance)) {
            Ok(()) => self.step(Input::Update(Arc::new(instance), reply)),
            Err(error) => {
                let _ = reply.send(Err(error));
            }
        }
    }

    fn step(&mut self, input: Input<Reply>) {
        self.lifecycle.step(input, Instant::now());
        self.settle();
    }

    /// Tells what is to be told. What is said at the end is told only when all that the registration held is released.
    fn settle(&mut self) {
        let (wanted, revision) = self.lifecycle.wanted();
        if self.told != revision {
            self.report.wants(wanted);
            self.told = revision;
        }
        let is_over = self.goal().0 == Goal::Over;
        for effect in self.lifecycle.effects() {
            match effect {
                Effect::Entered(_) | Effect::Reply(..) if is_over => self.at_end.push(effect),
                Effect::Entered(result) => self.report.entered(result),
                Effect::Detached(trouble) => self.report.detached(&trouble),
                Effect::Replaced => self.report.replaced(),
                Effect::Reply(reply, result) => {
                    // Nobody may wait for it any more.
                    let _ = reply.send(result);
                }
            }
        }
    }
}
