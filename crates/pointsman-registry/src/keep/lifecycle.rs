//! The lifecycle of one registration: a pure state machine. What is wanted, what the registry says, and the time go in; what is to be done,
//! and what is to be told, come out.

use std::sync::Arc;
use std::time::Duration;

use pointsman_core::Instance;
use pointsman_net::backoff::Backoff;
use tokio::time::Instant;

use crate::backend::FIRST_PAUSE;
use crate::registration::{Departure, Trouble};
use crate::{Error, Result};

/// One registration, as far as every registry has it in common. `R` is what a reply is sent by.
#[derive(Debug)]
pub(super) struct Lifecycle<R> {
    state: State<R>,
    /// Whether something of this registration may be in the registry.
    may_exist: bool,
    service: Arc<str>,
    code: Arc<str>,
    /// What is to be registered.
    wanted: Content,
    /// What the registry has accepted last.
    accepted: Option<Content>,
    /// Updates that it has not accepted yet, the oldest first; with the reply, if somebody still waits for it.
    pending: Vec<(Content, Option<R>)>,
    /// The revision of the newest update.
    newest: u64,
    health: Result<(), String>,
    /// Maximum time for which the first attempts may fail; `None`: no limit.
    patience: Option<Duration>,
    /// When the attempts began to fail, without having come to anything since.
    failing_since: Option<Instant>,
    /// Whether there is a connection: then an attempt is waited for, however long it takes.
    connected: bool,
    /// Why the last attempt has failed. In a box, as mostly none has.
    failure: Option<Box<Error>>,
    /// Time before which nothing is tried.
    retry_at: Option<Instant>,
    backoff: Backoff,
    effects: Vec<Effect<R>>,
}

#[derive(Debug)]
enum State<R> {
    /// It has not been registered yet.
    Entering,
    /// It is registered, as far as is known.
    Registered { since: Instant },
    /// It has been registered, and is to be again, however long that takes.
    Detached,
    /// It is to be removed.
    Leaving {
        departure: Departure,
        /// Who waits for that.
        replies: Vec<R>,
        /// Why the first registration has failed, as long as nobody has been told.
        failure: Option<Box<Error>>,
    },
    /// It has ended.
    Over,
}

/// What is registered, or is to be, at one revision of it.
#[derive(Debug, Clone)]
struct Content {
    revision: u64,
    instance: Arc<Instance>,
}

/// What goes in.
#[derive(Debug)]
pub(super) enum Input<R> {
    /// The holder wants something else to be registered.
    Update(Arc<Instance>, R),
    /// The holder wants the registration to end; with a reply, if it waits for that.
    Close(Departure, Option<R>),
    /// Whether the instance passes its check.
    Health(Result<(), String>),
    /// What the registry says.
    Said(Said),
    /// Nothing but time has passed.
    Tick,
}

/// What the registry says, or what comes of an attempt to ask it.
#[derive(Debug, Clone)]
pub(crate) enum Said {
    /// There is a connection: an attempt begins.
    Connected,
    /// The registry answers, and registers the instance as soon as something else has come to its end.
    Waits(String),
    /// A request goes out by which the instance may be registered, even if no reply comes.
    Requested,
    /// The instance is registered.
    Registered,
    /// It is registered as it was wanted at this revision.
    Written(u64),
    /// What was wanted at this revision is refused; what was accepted before stands.
    Rejected(u64, Error),
    /// It is registered, but its lease has lapsed for the moment.
    Lapsed(String),
    /// There is no connection.
    Unreachable(String),
    /// It is not registered any more.
    Gone(String),
    /// An attempt has failed.
    Failed(Error),
    /// The same holder has registered the instance elsewhere.
    Replaced,
    /// Nothing of it is in the registry any more; or nothing more can be done about it.
    Removed(Result<()>),
    /// It could not be removed yet.
    NotRemoved(String),
    /// The registry has been closed.
    Closed,
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    /// Be registered: connect, register, stay so.
    Registered,
    /// Remove whatever is in the registry.
    Removed(Departure),
    /// Nothing.
    Idle,
    /// Nothing, ever again.
    Over,
}

/// What is to be told.
#[derive(Debug)]
pub(super) enum Effect<R> {
    /// The first attempts have come to this.
    Entered(Result<()>),
    /// The instance holds no role.
    Detached(Trouble),
    /// The registration ends by itself: the same holder has replaced it.
    Replaced,
    /// What somebody waits for has come to this.
    Reply(R, Result<()>),
}

/// A registration that vanishes sooner after it was made is not made again at once: somebody may keep deleting it.
const SHORT: Duration = Duration::from_secs(1);

impl<R> Lifecycle<R> {
    pub(super) fn new(
        wanted: Arc<Instance>,
        health: Result<(), String>,
        patience: Option<Duration>,
        longest: Duration,
        now: Instant,
    ) -> Self {
        let mut lifecycle = Self {
            state: State::Entering,
            may_exist: false,
            service: wanted.service.clone(),
            code: wanted.code.clone(),
            wanted: Content { revision: 0, instance: wanted },
            accepted: None,
            pending: Vec::new(),
            newest: 0,
            health: Ok(()),
            patience,
            failing_since: Some(now),
            connected: false,
            failure: None,
            retry_at: None,
            backoff: Backoff::new(FIRST_PAUSE, longest),
            effects: Vec::new(),
        };
        if health.is_err() {
            lifecycle.health(health, now);
        }
        lifecycle
    }

    /// What is to be registered, and which revision of it that is.
    pub(super) fn wanted(&self) -> (&Arc<Instance>, u64) {
        (&self.wanted.instance, self.wanted.revision)
    }

    /// Whether it has never been registered.
    pub(super) fn is_entering(&self) -> bool {
        matches!(self.state, State::Entering)
    }

    pub(super) fn is_registered(&self) -> bool {
        matches!(self.state, State::Registered { .. })
    }

    /// What is to be done now, and until when that holds, if nothing else goes in.
    pub(super) fn goal(&self, now: Instant) -> (Goal, Option<Instant>) {
        let retry_at = self.retry_at.filter(|at| *at > now);
        let goal = match &self.state {
            State::Over => return (Goal::Over, None),
            State::Leaving { departure, .. } => Goal::Removed(*departure),
            _ if self.health.is_ok() => Goal::Registered,
            _ if self.may_exist => Goal::Removed(UNHEALTHY),
            _ => return (Goal::Idle, None),
        };
        let until = self.deadline().into_iter().chain(retry_at).min();
        (if retry_at.is_some() { Goal::Idle } else { goal }, until)
    }

    /// Returns what is to be told since the last call.
    pub(super) fn effects(&mut self) -> Vec<Effect<R>> {
        std::mem::take(&mut self.effects)
    }

    /// Tries again now, rather than later.
    pub(super) fn retry(&mut self) {
        self.retry_at = None;
    }

    /// Takes one thing in.
    pub(super) fn step(&mut self, input: Input<R>, now: Instant) {
        match input {
            Input::Update(wanted, reply) => self.update(wanted, reply),
            Input::Close(departure, reply) => self.close(departure, reply),
            Input::Health(health) => self.health(health, now),
            Input::Said(said) => self.said(said, now),
            Input::Tick => {}
        }
        if self.deadline().is_some_and(|deadline| deadline <= now) {
            self.give_up();
        }
        if matches!(self.state, State::Leaving { .. }) && !self.may_exist {
            self.end(&Ok(()));
        }
    }

    /// When the first attempts have failed for long enough, while there is no connection.
    fn deadline(&self) -> Option<Instant> {
        let is_trying = self.is_entering() && self.health.is_ok() && !self.connected;
        let since = self.failing_since.filter(|_| is_trying)?;
        // A patience that overflows the clock is no limit.
        since.checked_add(self.patience?)
    }

    fn update(&mut self, wanted: Arc<Instance>, reply: R) {
        if matches!(self.state, State::Leaving { .. } | State::Over) {
            self.effects.push(Effect::Reply(reply, Err(self.closed())));
            return;
        }
        if wanted != self.wanted.instance {
            self.newest += 1;
            self.wanted = Content { revision: self.newest, instance: wanted };
        } else if self.accepted.as_ref().is_some_and(|accepted| accepted.revision == self.wanted.revision) {
            self.effects.push(Effect::Reply(reply, Ok(())));
            return;
        }
        self.pending.push((self.wanted.clone(), Some(reply)));
        if self.health.is_err() {
            self.answer_pending();
        }
    }

    /// What has been updated counts from when the instance is registered again.
    fn answer_pending(&mut self) {
        let replies = self.pending.iter_mut().filter_map(|(_, reply)| reply.take());
        self.effects.extend(replies.map(|reply| Effect::Reply(reply, Ok(()))));
    }

    fn close(&mut self, departure: Departure, reply: Option<R>) {
        match &mut self.state {
            State::Over => self.effects.extend(reply.map(|reply| Effect::Reply(reply, Ok(())))),
            State::Leaving { replies, .. } => replies.extend(reply),
            _ => {
                if self.is_entering() {
                    self.effects.push(Effect::Entered(Err(self.closed())));
                }
                self.leave(departure, reply, None);
            }
        }
    }

    fn health(&mut self, health: Result<(), String>, now: Instant) {
        let before = std::mem::replace(&mut self.health, health);
        if matches!(self.state, State::Leaving { .. } | State::Over) {
            return;
        }
        match (&before, &self.health) {
            (_, Err(why)) => {
                if before.is_ok() {
                    // It is to be removed at once, whatever was tried before.
                    self.retry_at = None;
                }
                self.effects.push(Effect::Detached(Trouble::CheckFails(why.clone())));
                if self.is_registered() {
                    self.state = State::Detached;
                }
                self.answer_pending();
            }
            (Err(_), Ok(())) => {
                self.failing_since = Some(now);
                self.retry_at = None;
                self.effects.push(Effect::Detached(Trouble::Registering));
            }
            (Ok(()), Ok(())) => {}
        }
    }

    fn said(&mut self, said: Said, now: Instant) {
        match said {
            Said::Connected => self.connected = true,
            Said::Requested => self.may_exist = true,
            Said::Waits(what) => {
                (self.connected, self.failing_since) = (true, None);
                self.detach(Trouble::Waiting(what));
            }
            Said::Registered => self.registered(now),
            Said::Written(revision) => self.written(revision),
            Said::Rejected(revision, error) => self.reject(revision, &error),
            Said::Lapsed(why) => self.detach(Trouble::Lost(why)),
            Said::Unreachable(why) => {
                self.connected = false;
                let error = self.unavailable("register", &why);
                self.failed(&error, now);
                if matches!(self.state, State::Leaving { .. }) {
                    self.put_off(&why);
                }
            }
            Said::Gone(why) => self.gone(why, now),
            Said::Failed(error) => {
                let delay = self.backoff.delay_at(now.into_std());
                self.retry_at = Some(now + delay);
                self.failed(&error, now);
            }
            Said::Replaced => self.replaced(),
            Said::Removed(result) => {
                self.may_exist = false;
                if matches!(self.state, State::Leaving { .. }) {
                    self.end(&result);
                }
            }
            Said::NotRemoved(why) => {
                let delay = self.backoff.delay_at(now.into_std());
                self.retry_at = Some(now + delay);
                self.put_off(&why);
            }
            Said::Closed => self.registry_closed(),
        }
    }

    fn registered(&mut self, now: Instant) {
        self.may_exist = true;
        (self.connected, self.failing_since, self.failure, self.retry_at) = (true, None, None, None);
        if self.health.is_err() {
            return;
        }
        match self.state {
            State::Entering => {
                self.effects.push(Effect::Entered(Ok(())));
                self.state = State::Registered { since: now };
            }
            State::Detached => self.state = State::Registered { since: now },
            State::Registered { .. } | State::Leaving { .. } | State::Over => {}
        }
    }

    fn written(&mut self, revision: u64) {
        let last = self.take_pending(revision, &Ok(()));
        let accepted = if revision == self.wanted.revision { Some(self.wanted.clone()) } else { last };
        // An older reply that comes late tells nothing new.
        let known = self.accepted.as_ref().map(|content| content.revision);
        if let Some(content) = accepted.filter(|content| known < Some(content.revision)) {
            self.accepted = Some(content);
        }
    }

    fn reject(&mut self, revision: u64, error: &Error) {
        self.take_pending(revision, &Err(error.clone()));
        if let Some(accepted) = self.accepted.as_ref().filter(|_| revision >= self.wanted.revision) {
            self.wanted = accepted.clone();
        }
    }

    /// Answers all up to this revision, and returns the last of them.
    fn take_pending(&mut self, revision: u64, result: &Result<()>) -> Option<Content> {
        let count = self.pending.partition_point(|(content, _)| content.revision <= revision);
        let mut last = None;
        for (content, reply) in self.pending.drain(..count) {
            self.effects.extend(reply.map(|reply| Effect::Reply(reply, result.clone())));
            last = Some(content);
        }
        last
    }

    /// It holds no role; if it is to hold one at all.
    fn detach(&mut self, trouble: Trouble) {
        match self.state {
            State::Leaving { .. } | State::Over => return,
            State::Registered { .. } => self.state = State::Detached,
            State::Entering | State::Detached => {}
        }
        if self.health.is_ok() {
            self.effects.push(Effect::Detached(trouble));
        }
    }

    fn gone(&mut self, why: String, now: Instant) {
        let lasted = matches!(self.state, State::Registered { since } if since + SHORT <= now);
        if !lasted {
            let delay = self.backoff.delay_at(now.into_std());
            self.retry_at = Some(now + delay);
        }
        if self.is_entering() {
            let error = self.unavailable("register", &why);
            self.failed(&error, now);
        } else {
            self.detach(Trouble::Lost(why));
        }
    }

    fn failed(&mut self, error: &Error, now: Instant) {
        let since = *self.failing_since.get_or_insert(now);
        let gives_up = self.patience.and_then(|patience| since.checked_add(patience));
        let is_too_late = gives_up.is_some_and(|at| at <= now);
        let is_final = !error.is_retryable();
        let trouble = match error {
            Error::Unavailable { reason, .. } => Trouble::Lost(reason.clone()),
            other => Trouble::Lost(other.to_string()),
        };
        self.failure = Some(Box::new(error.clone()));
        if self.is_entering() && self.health.is_ok() && (is_final || is_too_late) {
            self.give_up();
            return;
        }
        self.detach(trouble);
        if is_final {
            self.reject(self.newest, error);
        }
    }

    /// The first registration has failed. What may have been created all the same is still to be removed: the process's session may live for
    /// long.
    fn give_up(&mut self) {
        let error = self.failure.take().unwrap_or_else(|| Box::new(self.unavailable("register", "no answer")));
        self.leave(Departure::Left, None, Some(error));
    }

    fn leave(&mut self, departure: Departure, reply: Option<R>, failure: Option<Box<Error>>) {
        self.retry_at = None;
        self.effects.push(Effect::Detached(Trouble::Leaving));
        self.state = State::Leaving { departure, replies: reply.into_iter().collect(), failure };
    }

    /// Tells whoever waits for the end that it will take longer.
    fn put_off(&mut self, why: &str) {
        let error =
            self.unavailable("deregister", &format!("{why}; it will be removed on return, or with its session"));
        if let State::Leaving { replies, failure, .. } = &mut self.state {
            self.effects.extend(failure.take().map(|failure| Effect::Entered(Err(*failure))));
            self.effects.extend(replies.drain(..).map(|reply| Effect::Reply(reply, Err(error.clone()))));
        }
    }

    fn replaced(&mut self) {
        self.may_exist = false;
        match self.state {
            State::Leaving { .. } | State::Over => {}
            State::Entering => {
                let (service, code) = (self.service.clone(), self.code.clone());
                let holder = "the same holder, at the same moment, elsewhere".to_owned();
                self.effects.push(Effect::Entered(Err(Error::DuplicateCode { service, code, holder })));
            }
            State::Registered { .. } | State::Detached => self.effects.push(Effect::Replaced),
        }
        self.end(&Ok(()));
    }

    fn registry_closed(&mut self) {
        self.may_exist = false;
        if self.is_entering() {
            self.effects.push(Effect::Entered(Err(self.unavailable("register", "the registry is closed"))));
        }
        self.end(&Ok(()));
    }

    fn end(&mut self, result: &Result<()>) {
        if let State::Leaving { replies, failure, .. } = std::mem::replace(&mut self.state, State::Over) {
            self.effects.extend(failure.map(|failure| Effect::Entered(Err(*failure))));
            self.effects.extend(replies.into_iter().map(|reply| Effect::Reply(reply, result.clone())));
        }
        let closed = self.closed();
        let replies = self.pending.iter_mut().filter_map(|(_, reply)| reply.take());
        self.effects.extend(replies.map(|reply| Effect::Reply(reply, Err(closed.clone()))));
    }

    fn unavailable(&self, what: &str, why: &str) -> Error {
        let step = format!("{what} {}/{}", self.service, self.code);
        Error::unavailable(step, why.to_owned())
    }

    fn closed(&self) -> Error {
        Error::Closed { what: format!("registration {}/{}", self.service, self.code) }
    }
}

/// An instance whose check fails has not left: where the checks of most fail at once, it may be the way to them.
const UNHEALTHY: Departure = Departure::Lost;

#[cfg(test)]
mod tests;
