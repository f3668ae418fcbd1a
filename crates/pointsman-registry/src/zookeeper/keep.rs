//! Keeps one instance registered on ZooKeeper: how a node of it comes to be there, stays there, and goes.
//!
//! Each round of [`ZooKeeperRegistrar::stay`] looks at everything anew: the own node, whether it still says what it should, and what
//! to wait for next. So the audit is nothing but another round, and an event nothing but a reason for one.

mod drain;
mod enter;
mod queue;
mod stay;

use std::collections::HashSet;
use std::time::Duration;

use pointsman_core::{Instance, Term};
use tokio::sync::watch;
use tokio::time::Instant;

use self::queue::Queue;
use super::fault::Fault;
use super::layout::{Layout, is_of_observer};
use super::leave::leave;
use super::place::{Folder, Place};
use super::session::{Link, Session, left};
use super::wire;
use crate::Error;
use crate::keep::{Control, Order, Registrar, Said};
use crate::registration::{Departure, End, Task};
use crate::url::{Acl, ZooKeeperUrl};

/// Maximum time between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Keeps the task's instance registered until its commands end.
pub(super) async fn keep(
    settings: &ZooKeeperUrl,
    layout: &Layout,
    link: watch::Receiver<Link>,
    task: Box<Task>,
) -> End {
    let instance = &task.instance;
    let holder = task.holder.clone().map(wire::Holder::new);
    let mut registrar = ZooKeeperRegistrar {
        path: layout.service(&instance.service),
        left: layout.left_of(&instance.service),
        terms: layout.terms_of(&instance.service),
        overrides: layout.overrides_of(&instance.service),
        acl: settings.acl,
        session_timeout: settings.session_timeout,
        is_shared: holder.is_some() || !instance.has_generated_code(),
        // What nobody else can have need not be looked for, until a create may have been carried out unseen.
        must_look: holder.is_some() || !instance.has_generated_code(),
        holder,
        observer: task.observer,
        link,
        last: None,
        place: None,
        written: None,
        sessions: HashSet::new(),
        queue: Queue::default(),
        outwaiting: None,
        chances: drain::Chances::default(),
        look_again: None,
        just_created: false,
    };
    crate::keep::keep(&mut registrar, LONGEST_PAUSE, task).await
}

struct ZooKeeperRegistrar {
    path: String,
    /// Where a marker is left when the instance leaves.
    left: String,
    /// Where the service's highest term is recorded.
    terms: String,
    /// Where operators' settings for the service's instances are.
    overrides: String,
    acl: Acl,
    session_timeout: Duration,
    /// Who registers the instance, where that is said, and which of its registrations this is.
    holder: Option<wire::Holder>,
    /// Whether it is never to be master.
    observer: bool,
    /// Whether anybody else can have the code: one that was generated for this registration alone, nobody.
    is_shared: bool,
    link: watch::Receiver<Link>,
    /// The connection that was used last.
    last: Option<Session>,
    /// Where the instance is registered, as far as is known.
    place: Option<Place>,
    /// The revision of what is wanted that the node has said.
    written: Option<u64>,
    /// A node of ours may exist that we do not know of.
    must_look: bool,
    /// The sessions in which nodes were created: whatever of ours is found in an older one is a ghost.
    sessions: HashSet<i64>,
    queue: Queue,
    /// The session of a stranger that has our code, and until when to wait for its end.
    outwaiting: Option<(i64, Instant)>,
    /// The nodes of others that have been let go first because this instance is drained.
    chances: drain::Chances,
    /// When to look again, before the next audit: another may be let go first then.
    look_again: Option<Instant>,
    /// The watches are still to be set for the first time.
    just_created: bool,
}

/// Why a round, or what led to it, has ended.
enum Out {
    /// The registration is to be something else.
    Stopped,
    /// This has come to pass.
    Said(Said),
}

impl Out {
    fn disconnected() -> Self {
        Out::Said(Said::Unreachable("connection to the registry lost".to_owned()))
    }

    fn gone(why: &str) -> Self {
        Out::Said(Said::Gone(why.to_owned()))
    }
}

impl From<Fault> for Out {
    fn from(fault: Fault) -> Self {
        Out::Said(Said::Failed(fault.into()))
    }
}

impl From<Error> for Out {
    fn from(error: Error) -> Self {
        Out::Said(Said::Failed(error))
    }
}

impl Registrar for ZooKeeperRegistrar {
    async fn hold(&mut self, control: &mut Control) -> Option<Said> {
        let Err(out) = self.try_hold(control).await;
        match &out {
            Out::Said(Said::Gone(_)) => {
                self.place = None;
                // It may be the same holder that has taken it over.
                self.must_look |= self.holder.is_some();
            }
            Out::Said(Said::Failed(_)) => self.must_look = true,
            Out::Said(_) | Out::Stopped => {}
        }
        match out {
            Out::Said(said) => Some(said),
            Out::Stopped => None,
        }
    }

    async fn remove(&mut self, control: &mut Control, departure: Departure) -> Option<Said> {
        if self.has_nothing() {
            return Some(Said::Removed(Ok(())));
        }
        let state = self.link.borrow_and_update().clone();
        let session = match state {
            Link::Up(session) => session,
            // With the session.
            Link::Closed => return Some(Said::Removed(Ok(()))),
            Link::Down(_) => {
                control.say(Said::Unreachable("no connection to the registry".to_owned()));
                tokio::select! {
                    changed = self.link.changed() => return changed.err().map(|_| Said::Removed(Ok(()))),
                    () = control.changed() => return None,
                }
            }
        };
        self.last = Some(session.clone());
        control.step_down("deregistering");
        let instance = control.wanted().0.clone();
        Some(match self.remove_all(&instance, &session, departure).await {
            Ok(()) => {
                self.place = None;
                // Somebody else may have the code by the time at which it is wanted again.
                self.must_look = self.is_shared;
                Said::Removed(Ok(()))
            }
            Err(fault) => Said::NotRemoved(fault.to_string()),
        })
    }

    async fn ready(&mut self) {
        match &self.last {
            Some(session) => left(&mut self.link, session).await,
            None => std::future::pending().await,
        }
    }
}

impl ZooKeeperRegistrar {
    /// Registers by the next connection, and stays registered until something ends that.
    async fn try_hold(&mut self, control: &mut Control) -> Result<std::convert::Infallible, Out> {
        let session = self.connection(control).await?;
        self.last = Some(session.clone());
        self.queue = Queue::default();
        self.session_timeout = session.timeout();
        let (path, terms) = (self.path.clone(), self.terms.clone());
        let folder = self.folder(&session, &path, &terms);
        if self.place.as_ref().is_none_or(|place| place.session != session.id()) {
            self.must_look |= self.place.is_some();
            self.place = None;
            let mut link = self.link.clone();
            let entered = tokio::select! {
                entered = self.enter(control, &folder) => entered,
                // A request that is sent in the moment in which the connection is lost may wait for the next one, until the session's end.
                () = left(&mut link, &session) => {
                    self.must_look = true;
                    Err(Out::disconnected())
                }
            };
            let place = entered?;
            if is_of_observer(&place.name) == self.observer {
                control.registered(place.role(), Some(session.lease.clone()));
                self.place = Some(place);
            } else {
                // Left by an earlier registration of this process, of the other kind.
                self.move_back(control, &folder, &place).await?;
            }
        }
        loop {
            self.stay(control, &folder).await?;
        }
    }

    /// Finds the node of ours that exists already, or creates one.
    async fn enter(&mut self, control: &mut Control, folder: &Folder<'_>) -> Result<Place, Out> {
        if let Some(place) = self.find_own(control, folder).await? {
            return Ok(place);
        }
        // The registry may have been silent for long: whoever has given up meanwhile is not registered for a moment.
        if !control.goes_on() {
            return Err(Out::Stopped);
        }
        self.create(control, folder).await
    }

    /// Waits for a connection.
    async fn connection(&mut self, control: &mut Control) -> Result<Session, Out> {
        loop {
            // One look: what has come since wakes the wait below, and is judged by the next one.
            let state = self.link.borrow_and_update().clone();
            match state {
                Link::Up(session) => {
                    control.say(Said::Connected);
                    return Ok(session);
                }
                Link::Closed => return Err(Out::Said(Said::Closed)),
                Link::Down(obstacle) => control.say(Said::Unreachable(obstacle.to_string())),
            }
            tokio::select! {
                changed = self.link.changed() => if changed.is_err() { return Err(Out::Said(Said::Closed)) },
                order = control.order() => take_idle(control, order)?,
            }
        }
    }

    /// Whether there is certainly no node of ours.
    fn has_nothing(&self) -> bool {
        self.place.is_none() && (self.sessions.is_empty() || !self.must_look)
    }

    /// What the own node is to say, at a place that came with this term, and which revision of it that is.
    fn data(&self, control: &Control, inherited: Option<Term>) -> (Vec<u8>, u64) {
        let (instance, revision) = control.wanted();
        (wire::encode_inherited(instance, self.session_timeout, self.holder.as_ref(), inherited), revision)
    }

    fn folder<'a>(&self, session: &'a Session, path: &'a str, terms: &'a str) -> Folder<'a> {
        Folder { session, path, terms, acl: self.acl, observer: self.observer }
    }

    /// Deletes whatever is ours.
    async fn remove_all(&self, instance: &Instance, session: &Session, departure: Departure) -> Result<(), Fault> {
        let Instance { service, code, .. } = instance;
        let folder = self.folder(session, &self.path, &self.terms);
        let remove = async |place: &Place| match departure {
            Departure::Left => leave(&folder, &self.left, place, code).await,
            Departure::Lost => folder.delete_own(place).await,
        };
        if let Some(place) = self.place.as_ref().filter(|place| place.session == session.id()) {
            remove(place).await?;
        }
        if self.must_look && !self.sessions.is_empty() {
            for found in folder.find(service, code).await? {
                if found.place.session == session.id() && self.is_mine(&found) {
                    remove(&found.place).await?;
                }
            }
        }
        Ok(())
    }
}

/// What is done about an order while the instance is not registered: what is wanted is looked at before it is registered anyway.
fn take_idle(control: &Control, order: Order) -> Result<(), Out> {
    match order {
        Order::Stop => Err(Out::Stopped),
        Order::Write => Ok(()),
        Order::Resign(reply) => {
            let _ = reply.send(Err(control.not_master()));
            Ok(())
        }
    }
}

/// How long whoever is ahead in the queue may leave the mastership vacant, before any other than a stand-by takes it.
fn grace(session: &Session) -> Duration {
    session.timeout() / 2
}
