//! Keeps one instance registered: the state machine whose only input is what is wanted, and what the registry says.
//!
//! Each round of [`Keeper::stay`] looks at everything anew: the own node, whether it still says what it should, and what
//! to wait for next. So the audit is nothing but another round, and an event nothing but a reason for one.

mod backoff;
mod drain;
mod enter;

use std::collections::HashSet;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use pointsman_core::{Instance, Role, Term};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use zookeeper_client::{EventType, OneshotWatcher};

use self::backoff::{Backoff, RETRY_DELAY};
use super::fault::Fault;
use super::layout::{Layout, MASTER, before};
use super::leave::leave;
use super::place::{Folder, Place, Promotion};
use super::session::{Link, Session, left};
use super::wire::{self, MAX_BYTES};
use crate::Error;
use crate::registration::{Command, Departure, End, Reply, Report, Task};
use crate::url::{Acl, ZooKeeperUrl};

/// Keeps the task's instance registered until its commands end.
pub(super) async fn keep(
    settings: &ZooKeeperUrl,
    layout: &Layout,
    link: watch::Receiver<Link>,
    patience: Option<Duration>,
    task: Task,
) -> End {
    let Task { instance, holder, commands, report } = task;
    let holder = holder.map(wire::Holder::new);
    let keeper = Keeper {
        path: layout.service(&instance.service),
        left: layout.left_of(&instance.service),
        terms: layout.terms_of(&instance.service),
        overrides: layout.overrides_of(&instance.service),
        acl: settings.acl,
        session_timeout: settings.session_timeout,
        // What nobody else can have need not be looked for, until a create may have been carried out unseen.
        must_look: is_shared(&instance, holder.as_ref()),
        instance,
        holder,
        link,
        commands,
        report,
        written: None,
        updates: Vec::new(),
        place: None,
        created_at: None,
        sessions: HashSet::new(),
        vacant_since: None,
        patience: Duration::ZERO,
        outwaiting: None,
        chances: drain::Chances::default(),
        look_again: None,
        just_created: false,
        ending: None,
        departure: Departure::Left,
    };
    if let Err(error) = keeper.check_size(&keeper.instance) {
        return End::Failed(keeper.report, error);
    }
    keeper.run(patience).await
}

struct Keeper {
    path: String,
    /// Where a marker is left when the instance leaves.
    left: String,
    /// Where the service's highest term is recorded.
    terms: String,
    /// Where operators' settings for the service's instances are.
    overrides: String,
    acl: Acl,
    session_timeout: Duration,
    /// What is to be registered.
    instance: Instance,
    /// Who registers it, where that is said, and which of its registrations this is.
    holder: Option<wire::Holder>,
    link: watch::Receiver<Link>,
    commands: mpsc::UnboundedReceiver<Command>,
    report: Report,
    /// What is registered, as far as is known.
    written: Option<Instance>,
    /// Who waits for the newest update to be written.
    updates: Vec<Reply>,
    /// Where the instance is registered, as far as is known.
    place: Option<Place>,
    created_at: Option<Instant>,
    /// A node of ours may exist that we do not know of.
    must_look: bool,
    /// The sessions in which nodes were created: whatever of ours is found in an older one is a ghost.
    sessions: HashSet<i64>,
    /// Since when this normal instance, not being the first, has seen no master.
    vacant_since: Option<Instant>,
    /// How long those that are ahead may leave it vacant.
    patience: Duration,
    /// The session of a stranger that has our code, and until when to wait for its end.
    outwaiting: Option<(i64, Instant)>,
    /// The nodes of others that have been let go first because this instance is drained.
    chances: drain::Chances,
    /// When to look again, before the next audit: another may be let go first then.
    look_again: Option<Instant>,
    /// The watches are still to be set for the first time.
    just_created: bool,
    /// Set when the registration is to end; with the reply if somebody waits for it.
    ending: Option<Option<Reply>>,
    /// How it is to end.
    departure: Departure,
}

/// Why a connection's round ended.
enum Out {
    /// The connection is lost, or another one.
    Disconnected,
    /// The own node is gone: register again.
    Gone(&'static str),
    /// The same holder has registered anew: for good.
    Replaced,
    /// The registration is to end.
    Ending,
    /// Something went wrong.
    Failed(Error),
}

impl From<Fault> for Out {
    fn from(fault: Fault) -> Self {
        Out::Failed(fault.into())
    }
}

/// What to wait for in order to become master.
enum Ahead {
    /// The node before the own one, the master's, or both: when one of them goes, look again.
    Watch(Vec<OneshotWatcher>),
    /// Nobody: the mastership is vacant, and it is for this instance to take it.
    Nobody,
    /// The queue is not what it was a moment ago: look again at once.
    Moved,
}

impl Keeper {
    async fn run(mut self, patience: Option<Duration>) -> End {
        let deadline = patience.map(|patience| Instant::now() + patience);
        let mut backoff = Backoff::default();
        loop {
            let Some(session) = self.connection(deadline).await else {
                match self.unconnected() {
                    Some(error) => return End::Failed(self.report, error),
                    None if self.ending.is_some() && !self.is_over() => continue,
                    None => return self.ended(Ok(())),
                }
            };
            let out = match self.hold(&session).await {
                Ok(never) => match never {},
                Err(out) => out,
            };
            match out {
                Out::Ending => match self.remove(&session).await {
                    Ok(()) => return self.ended(Ok(())),
                    Err(fault) => {
                        // Keeps trying in the background; whoever waits is told.
                        self.answer_ending(&fault.to_string());
                        self.pause(backoff.next(), &session).await;
                    }
                },
                Out::Replaced => return End::replaced(self.report),
                Out::Disconnected => self.report.detached("connection to the registry lost"),
                Out::Gone(why) => {
                    self.report.detached(why);
                    self.place = None;
                    // It may be the same holder that has taken it over.
                    self.must_look |= self.holder.is_some();
                    // Back at once; but not in a race with somebody who keeps deleting.
                    if self.created_at.is_some_and(|at| at.elapsed() < RETRY_DELAY) {
                        self.pause(RETRY_DELAY, &session).await;
                    }
                }
                Out::Failed(error) => {
                    self.must_look = true;
                    let too_late = deadline.is_some_and(|deadline| deadline <= Instant::now());
                    if self.report.is_first() && (too_late || !error.is_retryable()) {
                        if self.remove(&session).await.is_ok() {
                            return End::Failed(self.report, error);
                        }
                        self.fail(error);
                        continue;
                    }
                    self.report.detached(&error.to_string());
                    self.refuse_updates(&error);
                    self.pause(backoff.next(), &session).await;
                }
            }
        }
    }

    /// Waits for a connection. `None` if none is needed, or none has come in time, or none will come.
    async fn connection(&mut self, deadline: Option<Instant>) -> Option<Session> {
        let mut link = self.link.clone();
        loop {
            if self.ending.is_some() && self.has_nothing() {
                return None;
            }
            // One look: what has come since wakes the wait below, and is judged by the next one.
            let state = link.borrow_and_update().clone();
            match state {
                Link::Up(session) => return Some(session),
                Link::Closed => return None,
                Link::Down(_) => {}
            }
            if self.ending.is_some() {
                // Whenever it was asked for: nobody waits for a registry that is away.
                self.answer_ending("no connection to the registry; it will be removed on return, or with its session");
            }
            let expired = async {
                match deadline.filter(|_| self.report.is_first() && self.ending.is_none()) {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = link.changed() => if changed.is_err() { return None },
                () = expired => return None,
                command = self.commands.recv(), if self.ending.is_none() => self.take(command),
            }
        }
    }

    /// Whether there is certainly no node of ours.
    fn has_nothing(&self) -> bool {
        self.place.is_none() && (self.sessions.is_empty() || !self.must_look)
    }

    /// Whether nothing is left to be done, or can be done any more.
    fn is_over(&self) -> bool {
        self.has_nothing() || matches!(&*self.link.borrow(), Link::Closed)
    }

    /// There is no connection. Returns why the first registration has failed, if it has, and nothing was created for it.
    fn unconnected(&mut self) -> Option<Error> {
        if self.ending.is_some() {
            return None;
        }
        let step = format!("register {}/{}", self.instance.service, self.instance.code);
        let reason = match &*self.link.borrow() {
            Link::Down(reason) => reason.to_string(),
            Link::Up(_) | Link::Closed => "the registry is closed".to_owned(),
        };
        let error = Error::Unavailable { step, reason };
        if self.report.is_first() && self.has_nothing() {
            return Some(error);
        }
        self.fail(error);
        None
    }

    /// Tells whoever waits for the first answer that there will be no registration. What may have been created all the
    /// same is still to be removed: the process's session may live for long.
    fn fail(&mut self, error: Error) {
        self.report.detached(&error.to_string());
        self.report.fail_first(error);
        self.ending = Some(None);
    }

    /// Answers the updates that the registry refuses, and goes back to what it has accepted.
    fn refuse_updates(&mut self, error: &Error) {
        if error.is_retryable() || self.updates.is_empty() {
            return;
        }
        for reply in self.updates.drain(..) {
            let _ = reply.send(Err(error.clone()));
        }
        if let Some(written) = &self.written {
            self.instance = written.clone();
        }
    }

    fn ended(self, result: Result<(), Error>) -> End {
        match self.ending.flatten() {
            Some(reply) => End::Closed(reply, result),
            None => End::Dropped,
        }
    }

    /// Tells whoever waits for the end that it will take longer.
    fn answer_ending(&mut self, reason: &str) {
        if let Some(waiting) = &mut self.ending
            && let Some(reply) = waiting.take()
        {
            let step = format!("deregister {}/{}", self.instance.service, self.instance.code);
            let _ = reply.send(Err(Error::Unavailable { step, reason: reason.to_owned() }));
        }
    }

    /// Takes a command in. What it asks for is done in the next round.
    fn take(&mut self, command: Option<Command>) {
        match command {
            None => self.ending = Some(None),
            Some(Command::Close(departure, reply)) => {
                self.departure = departure;
                self.ending = Some(Some(reply));
            }
            Some(Command::Update(instance, reply)) => match self.check_size(&instance) {
                Ok(()) => {
                    self.instance = *instance;
                    self.updates.push(reply);
                }
                Err(error) => {
                    let _ = reply.send(Err(error));
                }
            },
            Some(Command::Resign(reply)) => {
                let _ = reply.send(Err(self.not_master()));
            }
        }
    }

    /// Takes in the commands that wait, without waiting for one.
    fn take_waiting(&mut self) -> Result<(), Out> {
        loop {
            match self.commands.try_recv() {
                Ok(command) => self.take(Some(command)),
                Err(TryRecvError::Disconnected) => self.take(None),
                Err(TryRecvError::Empty) => return Ok(()),
            }
            if self.ending.is_some() {
                return Err(Out::Ending);
            }
        }
    }

    fn not_master(&self) -> Error {
        Error::NotMaster { service: self.instance.service.clone(), code: self.instance.code.clone() }
    }

    /// What the own node is to say, where no term came with it.
    fn data(&self) -> Vec<u8> {
        self.data_with(None)
    }

    /// What the own node is to say at a place that came with this term.
    fn data_with(&self, inherited: Option<Term>) -> Vec<u8> {
        wire::encode_inherited(&self.instance, self.session_timeout, self.holder.as_ref(), inherited)
    }

    fn check_size(&self, instance: &Instance) -> Result<(), Error> {
        let bytes = wire::encode(instance, self.session_timeout, self.holder.as_ref()).len();
        if bytes <= MAX_BYTES {
            return Ok(());
        }
        let (service, code) = (instance.service.clone(), instance.code.clone());
        Err(Error::TooLarge { service, code, bytes, limit: MAX_BYTES })
    }

    fn folder<'a>(&self, session: &'a Session, path: &'a str, terms: &'a str) -> Folder<'a> {
        Folder { session, path, terms, acl: self.acl }
    }

    /// Registers by this connection, and stays registered until something ends that.
    async fn hold(&mut self, session: &Session) -> Result<std::convert::Infallible, Out> {
        if self.ending.is_some() {
            return Err(Out::Ending);
        }
        self.vacant_since = None;
        self.session_timeout = session.timeout();
        let (path, terms) = (self.path.clone(), self.terms.clone());
        let folder = self.folder(session, &path, &terms);
        if self.place.as_ref().is_none_or(|place| place.session != session.id()) {
            self.must_look |= self.place.is_some();
            self.place = None;
            let place = match self.find_own(&folder).await? {
                Some(place) => place,
                None => {
                    // The registry may have been silent for long: whoever has given up meanwhile is not registered for a moment.
                    self.take_waiting()?;
                    self.create(&folder).await?
                }
            };
            self.report.registered(place.role(), Some(session.lease.clone()));
            self.place = Some(place);
        }
        loop {
            self.stay(&folder).await?;
        }
    }

    /// One round: everything is looked at, then the next event is waited for.
    async fn stay(&mut self, folder: &Folder<'_>) -> Result<(), Out> {
        let Some(place) = self.place.clone() else { return Err(Out::Gone("the own node is not known")) };
        let round = folder.session.round(std::mem::take(&mut self.just_created)).await;
        let overridden = format!("{}/{}", self.overrides, self.instance.code);
        let looking = drain::watch_override(folder.session, &overridden);
        let (own, overridden) = tokio::join!(self.own(folder, &place), looking);
        let (own, (set, watch)) = (own?, overridden?);
        let mut watches = Vec::from_iter(watch);
        let is_drained = drain::is_drained(&self.instance, set);
        if !is_drained {
            self.chances.clear();
        }
        self.look_again = None;
        let ahead = match place.role() {
            Role::Normal => self.ahead(folder, &place, is_drained).await?,
            Role::Master(_) if is_drained && self.let_others_go_first(folder, &place, &mut watches).await? => {
                return Ok(());
            }
            Role::Master(_) | Role::Detached => None,
        };
        match ahead {
            Some(Ahead::Moved) => return Ok(()),
            Some(Ahead::Nobody) => {
                // Whoever passes others over has waited for long enough.
                let passes_over = self.vacant_since.is_some();
                if passes_over {
                    self.chances.missed(Instant::now());
                } else if is_drained && self.let_others_go_first(folder, &place, &mut watches).await? {
                    return Ok(());
                }
                return self.promote(folder, &place).await;
            }
            Some(Ahead::Watch(more)) => watches.extend(more),
            None => {}
        }
        drop(round);
        self.report.registered(place.role(), Some(folder.session.lease.clone()));
        self.wait(folder, &place, own, watches).await
    }

    /// Checks that the own node is there, is ours, and says what it should; mends it if it does not.
    async fn own(&mut self, folder: &Folder<'_>, place: &Place) -> Result<OneshotWatcher, Out> {
        loop {
            let Some((data, stat, watcher)) = folder.watch_data(&place.name).await? else {
                return Err(Out::Gone("the own node was deleted"));
            };
            if stat.ephemeral_owner != place.session || stat.czxid != place.czxid {
                return Err(Out::Gone("the own node was replaced by another's"));
            }
            let wanted = self.data_with(place.inherited);
            if data == wanted {
                self.written = Some(self.instance.clone());
                for reply in self.updates.drain(..) {
                    let _ = reply.send(Ok(()));
                }
                return Ok(watcher);
            }
            if self.updates.is_empty() {
                let (service, code) = (&self.instance.service, &self.instance.code);
                tracing::warn!(%service, %code, node = place.name, "the own node was changed by somebody: restored");
            }
            drop(watcher);
            folder.write(&place.name, &wanted, stat.version).await?;
        }
    }

    async fn ahead(&mut self, folder: &Folder<'_>, place: &Place, is_drained: bool) -> Result<Option<Ahead>, Out> {
        let names = folder.names().await?;
        let vacant = !names.iter().any(|name| name == MASTER);
        let queue = before(&names, &place.name);
        let Some(ahead) = queue.first() else {
            self.vacant_since = None;
            let (taken, watcher) = folder.watch(MASTER).await?;
            return Ok(Some(if taken { Ahead::Watch(vec![watcher]) } else { Ahead::Nobody }));
        };
        let mut watches = Vec::new();
        let mut vacant = vacant;
        // The drained leave it to all others first; or one would take it, hand it on at once, and everybody's time would begin anew.
        self.patience = grace(folder.session) * if is_drained { 2 } else { 1 };
        let position = queue.len();
        let stands_by = position <= STAND_BYS && !is_drained;
        if stands_by || vacant {
            // The first in line may have died a moment ago: then nobody would act before its session ends. Whoever counts how long the
            // mastership is vacant must not miss that it was not, in between.
            let (taken, watcher) = folder.watch(MASTER).await?;
            vacant = !taken;
            watches.push(watcher);
        }
        if stands_by {
            self.patience = self.patience.min(STAND_BY * u32::try_from(position).unwrap_or(u32::MAX));
        }
        // Not ours to take, unless whoever is ahead has had its time and done nothing: a process that hangs, or a node
        // that nobody serves. Safe, because the create decides.
        match (vacant, self.vacant_since) {
            (false, _) => self.vacant_since = None,
            (true, None) => self.vacant_since = Some(Instant::now()),
            (true, Some(since)) if since.elapsed() >= self.patience => return Ok(Some(Ahead::Nobody)),
            (true, Some(_)) => {}
        }
        // Where the next one ahead has died, nobody would tell that it is this one's turn to stand by, because those before that have left.
        let also = queue.get(STAND_BYS).filter(|_| !stands_by);
        for ahead in [Some(ahead), also].into_iter().flatten() {
            let (exists, watcher) = folder.watch(ahead).await?;
            if !exists {
                return Ok(Some(Ahead::Moved));
            }
            watches.push(watcher);
        }
        Ok(Some(Ahead::Watch(watches)))
    }

    async fn promote(&mut self, folder: &Folder<'_>, place: &Place) -> Result<(), Out> {
        match folder.promote(&place.name, &self.data()).await? {
            Promotion::Won(place) => {
                self.vacant_since = None;
                self.report.registered(place.role(), Some(folder.session.lease.clone()));
                self.place = Some(place);
                Ok(())
            }
            Promotion::Lost => Ok(()),
            Promotion::Gone => Err(Out::Gone("the own node was deleted")),
        }
    }

    async fn wait(
        &mut self,
        folder: &Folder<'_>,
        place: &Place,
        own: OneshotWatcher,
        watches: Vec<OneshotWatcher>,
    ) -> Result<(), Out> {
        let session = folder.session;
        let next_audit = self.next_audit(session);
        let mut watches: FuturesUnordered<_> = watches.into_iter().map(OneshotWatcher::changed).collect();
        tokio::select! {
            event = own.changed() => match event.event_type {
                EventType::NodeDeleted => Err(Out::Gone("the own node was deleted")),
                _ => Ok(()),
            },
            Some(_) = watches.next() => Ok(()),
            () = left(&mut self.link, session) => Err(Out::Disconnected),
            () = session.lease.ended() => self.lapsed(session).await,
            () = tokio::time::sleep(next_audit) => Ok(()),
            command = self.commands.recv() => match command {
                Some(Command::Resign(reply)) if place.role().is_master() => self.resign(folder, place, reply).await,
                command => {
                    self.take(command);
                    if self.ending.is_some() { Err(Out::Ending) } else { Ok(()) }
                }
            }
        }
    }

    /// No heartbeat has come back in time: detached, until one does.
    async fn lapsed(&mut self, session: &Session) -> Result<(), Out> {
        self.report.detached("no heartbeat from the registry in time");
        tokio::select! {
            () = session.lease.held() => Ok(()),
            () = left(&mut self.link, session) => Err(Out::Disconnected),
            command = self.commands.recv() => {
                self.take(command);
                if self.ending.is_some() { Err(Out::Ending) } else { Ok(()) }
            }
        }
    }

    /// When to look at everything again although nothing has happened; sooner while the mastership is vacant, or may be handed on.
    fn next_audit(&self, session: &Session) -> Duration {
        let audit = match self.vacant_since {
            // Spread, so that those who wait do not all try at once; stand-bys wait for different times anyway.
            Some(since) => {
                let spread = session.timeout().mul_f64(fastrand::f64() / 4.0);
                let spread = if self.patience < grace(session) { Duration::ZERO } else { spread };
                (self.patience + spread).saturating_sub(since.elapsed())
            }
            None => session.timeout() + session.timeout().mul_f64(fastrand::f64()),
        };
        let look = self.look_again.map(|at| at.saturating_duration_since(Instant::now()));
        look.map_or(audit, |look| look.min(audit))
    }

    async fn resign(&mut self, folder: &Folder<'_>, place: &Place, reply: Reply) -> Result<(), Out> {
        // Before it is asked for: the next one may be master before we have the answer.
        self.report.step_down("resigning");
        let moved = self.move_back(folder, place).await;
        let _ = reply.send(match &moved {
            Err(Out::Failed(error)) => Err(error.clone()),
            Err(_) => Err(self.not_master()),
            Ok(()) => Ok(()),
        });
        moved
    }

    /// Moves to the end of the queue.
    async fn move_back(&mut self, folder: &Folder<'_>, place: &Place) -> Result<(), Out> {
        match folder.demote(place, &self.data()).await {
            Ok(Some(place)) => {
                self.report.registered(place.role(), Some(folder.session.lease.clone()));
                self.place = Some(place);
                Ok(())
            }
            Ok(None) => Err(Out::Gone("the own node was deleted")),
            Err(fault) => {
                // The transaction may have been carried out: look for the place anew.
                self.place = None;
                Err(Out::Failed(fault.into()))
            }
        }
    }

    /// Deletes whatever is ours.
    async fn remove(&mut self, session: &Session) -> Result<(), Fault> {
        self.report.step_down("deregistering");
        let (path, terms) = (self.path.clone(), self.terms.clone());
        let folder = self.folder(session, &path, &terms);
        if let Some(place) = self.place.as_ref().filter(|place| place.session == session.id()) {
            self.remove_node(&folder, place).await?;
        }
        if self.must_look && !self.sessions.is_empty() {
            for found in folder.find(&self.instance.service, &self.instance.code).await? {
                if found.place.session == session.id() && self.is_mine(&found) {
                    self.remove_node(&folder, &found.place).await?;
                }
            }
        }
        Ok(())
    }

    async fn remove_node(&self, folder: &Folder<'_>, place: &Place) -> Result<(), Fault> {
        match self.departure {
            Departure::Left => leave(folder, &self.left, place, &self.instance.code).await,
            Departure::Lost => folder.delete_own(place).await,
        }
    }

    /// Waits before the next attempt, unless the connection changes or a command comes.
    async fn pause(&mut self, delay: Duration, session: &Session) {
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = left(&mut self.link, session) => {}
            command = self.commands.recv(), if self.ending.is_none() => self.take(command),
        }
    }
}

/// Whether anybody else can have the code: one that was generated for this registration alone, nobody.
fn is_shared(instance: &Instance, holder: Option<&wire::Holder>) -> bool {
    holder.is_some() || !instance.has_generated_code()
}

/// Number of instances behind the first in line that watch the master as well. Not all do, as each change would wake them all.
const STAND_BYS: usize = 6;
/// Time that the second in line leaves to the first, the third to both, and so on, before it takes a vacant mastership. Safe at any length,
/// because the create decides; the first in line takes some milliseconds.
const STAND_BY: Duration = Duration::from_millis(150);

/// How long whoever is ahead in the queue may leave the mastership vacant, before any other than a stand-by takes it.
fn grace(session: &Session) -> Duration {
    session.timeout() / 2
}
