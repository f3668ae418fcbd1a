//! What is registered through this agent: by a lease, or for as long as a connection is open.

mod keeper;
mod lease;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_channel::mpsc;
use pointsman_core::{Instance, Role};
use pointsman_registry::check::Check;
use pointsman_registry::{Departure, Registry, Roles};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use self::keeper::Keeper;
use self::lease::Lease;
use crate::problem::{Kind, Problem};

/// All registrations that this agent keeps.
#[derive(Debug)]
pub(crate) struct Registrations {
    registry: Registry,
    held: Arc<Mutex<Held>>,
    limit: usize,
    /// How long a first registration may take.
    write_time: Duration,
    /// Nothing is entered any more. Changed and looked at while `held` is locked.
    is_closed: AtomicBool,
}

type Held = HashMap<Key, Arc<Registered>>;
/// Service and code.
type Key = (Arc<str>, Arc<str>);

/// One of them.
#[derive(Debug)]
pub(crate) struct Registered {
    key: Key,
    holder: Arc<str>,
    observer: bool,
    /// An idle channel is to be small, as there may be 10,000 of them: tokio's has room for 32 commands from the start, this one for none.
    commands: mpsc::UnboundedSender<Command>,
    status: watch::Receiver<Status>,
    lease: Lease,
    /// The connection that holds it: the newest, by number; 0 where none does; or [`ENDING`].
    bound: AtomicU64,
    roles: Mutex<Option<Roles>>,
}

/// What is asked for.
#[derive(Debug)]
pub(crate) struct Wish {
    pub(crate) instance: Instance,
    pub(crate) ttl: Option<Duration>,
    pub(crate) check: Option<Check>,
    pub(crate) holder: Option<Arc<str>>,
    /// Whether it is never to be master.
    pub(crate) observer: bool,
}

/// What has become of a registration.
#[derive(Debug, Clone)]
pub(crate) struct Status {
    /// Why it is detached, if it is.
    pub(crate) reason: Option<Arc<str>>,
    /// Whether the first attempt is over.
    settled: bool,
    pub(crate) ended: Option<End>,
}

/// How a registration has ended.
#[derive(Debug, Clone)]
pub(crate) enum End {
    Deregistered,
    Expired,
    /// The connection that held it is gone.
    Disconnected,
    Replaced,
    Closing,
    Failed(Problem),
}

impl End {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            End::Deregistered => "deregistered",
            End::Expired => "expired",
            End::Disconnected => "disconnected",
            End::Replaced => "replaced",
            End::Closing => "closing",
            End::Failed(_) => "failed",
        }
    }

    /// Whether it has left, or its holder has vanished.
    fn departure(&self) -> Departure {
        match self {
            End::Deregistered => Departure::Left,
            _ => Departure::Lost,
        }
    }
}

#[derive(Debug)]
enum Command {
    Update(Box<Instance>, Option<Box<Check>>, oneshot::Sender<Result<(), Problem>>),
    Resign(oneshot::Sender<Result<(), Problem>>),
    /// Another connection holds it now.
    Rebound,
    End(End),
}

/// What a client is told.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) role: Role,
    pub(crate) reason: Option<Arc<str>>,
    /// How long the answer holds; `None`: for as long as the connection.
    pub(crate) expires_in: Option<Duration>,
}

/// The lease when nobody says.
const TTL: Duration = Duration::from_secs(10);
/// Who registers by `PUT` without saying who it is: whoever knows the code may renew it, through any agent.
const LEASE: &str = "lease";

impl Registrations {
    pub(crate) fn new(registry: Registry, limit: usize, write_time: Duration) -> Self {
        Self { registry, held: Arc::default(), limit, write_time, is_closed: AtomicBool::new(false) }
    }

    pub(crate) fn find(&self, service: &str, code: &str) -> Result<Arc<Registered>, Problem> {
        let key = (service.into(), code.into());
        lock(&self.held).get(&key).cloned().ok_or_else(|| {
            let detail = format!("{service}/{code} is not registered through this agent, or its lease has run out: register again, with a body");
            Problem::new(Kind::NotRegistered, detail)
        })
    }

    /// What this agent keeps registered, unless it is about to end.
    pub(crate) fn kept(&self, service: &str, code: &str) -> Option<Arc<Registered>> {
        self.find(service, code).ok().filter(|registered| !registered.is_ending())
    }

    /// Registers by a lease, or renews and updates what is registered. Whether it is new.
    pub(crate) async fn put(&self, wish: &Wish, patience: Duration) -> Result<(Arc<Registered>, bool), Problem> {
        loop {
            let holder = wish.holder.clone().unwrap_or_else(|| LEASE.into());
            let (registered, is_new) = self.enter(wish, &holder, wish.ttl.or(Some(TTL))).await?;
            if is_new {
                registered.settled_within(self.write_time).await?;
                return Ok((registered, true));
            }
            registered.check_holder(&holder)?;
            if let Some(ttl) = wish.ttl {
                registered.lease.set_ttl(ttl);
            }
            match registered.join(wish, patience).await {
                // It has ended meanwhile: the next one is new.
                Err(_) if registered.is_ending() => registered.ended().await,
                joined => return joined.map(|()| (registered, false)),
            }
        }
    }

    /// Registers for as long as what is returned lives.
    pub(crate) async fn hold(&self, wish: &Wish, patience: Duration) -> Result<Bound, Problem> {
        let holder = wish.holder.clone().unwrap_or_else(|| format!("connection-{:032x}", fastrand::u128(..)).into());
        loop {
            let (registered, is_new) = self.enter(wish, &holder, wish.ttl).await?;
            registered.check_holder(&holder)?;
            // One that ends just now is found ending when it is entered again.
            let Some(bound) = Bound::take(registered) else { continue };
            if is_new {
                bound.registered.settled_within(self.write_time).await?;
                return Ok(bound);
            }
            bound.registered.lease.rebind(wish.ttl);
            match bound.registered.join(wish, patience).await {
                Err(_) if bound.registered.is_ending() => bound.registered.ended().await,
                // It is written when the registry is back: that is no reason to end what is registered.
                Err(problem) if problem.kind == Kind::Unavailable => return Ok(bound),
                joined => return joined.map(|()| bound),
            }
        }
    }

    /// Finds the registration, or starts one. Whether it is new.
    async fn enter(
        &self,
        wish: &Wish,
        holder: &Arc<str>,
        ttl: Option<Duration>,
    ) -> Result<(Arc<Registered>, bool), Problem> {
        loop {
            match self.try_enter(wish, holder, ttl)? {
                // One that is about to end is no longer to be had: the next one begins when it is out of the way.
                (registered, false) if registered.is_ending() => registered.ended().await,
                // A candidate does not become an observer, nor the other way round: the holder has another registration then.
                (registered, false) if registered.observer != wish.observer && registered.is_of(holder) => {
                    registered.end(End::Replaced);
                    registered.ended().await;
                }
                entered => return Ok(entered),
            }
        }
    }

    fn try_enter(
        &self,
        wish: &Wish,
        holder: &Arc<str>,
        ttl: Option<Duration>,
    ) -> Result<(Arc<Registered>, bool), Problem> {
        let key: Key = (wish.instance.service.clone(), wish.instance.code.clone());
        let mut held = lock(&self.held);
        if self.is_closed.load(Ordering::Relaxed) {
            return Err(Problem::closing());
        }
        let count = held.len();
        match held.entry(key.clone()) {
            Entry::Occupied(there) => Ok((there.get().clone(), false)),
            Entry::Vacant(_) if count >= self.limit => {
                Err(Problem::new(Kind::TooMany, format!("this agent keeps {count} registrations, and no more")))
            }
            Entry::Vacant(place) => {
                let (commands, receiver) = mpsc::unbounded();
                let reason = Some("registering".into());
                let (sender, status) = watch::channel(Status { reason, settled: false, ended: None });
                let (lease, roles) = (Lease::new(ttl), Mutex::default());
                let registered = Registered {
                    key,
                    holder: holder.clone(),
                    observer: wish.observer,
                    commands,
                    status,
                    lease,
                    bound: AtomicU64::new(0),
                    roles,
                };
                let registered = Arc::new(registered);
                place.insert(registered.clone());
                let keeper = Keeper::new(&self.registry, wish, registered.clone(), receiver, sender);
                let here = self.held.clone();
                tokio::spawn(async move {
                    let (registered, end) = keeper.run().await;
                    let mut held = lock(&here);
                    if held.get(&registered.key).is_some_and(|there| Arc::ptr_eq(there, &registered)) {
                        held.remove(&registered.key);
                    }
                    drop(held);
                    end.tell();
                });
                Ok((registered, true))
            }
        }
    }

    /// Lets nobody in any more; who is in.
    fn shut(&self) -> Vec<Arc<Registered>> {
        let held = lock(&self.held);
        self.is_closed.store(true, Ordering::Relaxed);
        held.values().cloned().collect()
    }

    /// How many there are, and how many of them are not registered now.
    pub(crate) fn count(&self) -> (usize, usize) {
        let held = lock(&self.held);
        (held.len(), held.values().filter(|registered| registered.answer().role == Role::Detached).count())
    }

    /// Begins to end all of them here, without deregistering where the registry keeps them without us: another agent may take
    /// over. What is returned is to be [waited for](Registered::ended).
    pub(crate) fn close(&self) -> Vec<Arc<Registered>> {
        let all = self.shut();
        for registered in &all {
            registered.end(End::Closing);
        }
        all
    }
}

impl Registered {
    /// The role now, and for how long that is certain.
    pub(crate) fn answer(&self) -> Answer {
        let roles = lock(&self.roles);
        let status = self.status.borrow();
        // Read together: a role must not be told with another's time.
        let (role, until) = roles.as_ref().map_or((Role::Detached, None), Roles::certain);
        let trouble = roles.as_ref().and_then(Roles::trouble);
        let reason = if role == Role::Detached {
            trouble.map(|trouble| trouble.to_string().into()).or(status.reason.clone())
        } else {
            None
        };
        let expires_in = self.lease.remaining().map(|lease| match until {
            Some(until) if role != Role::Detached => lease.min(until.saturating_duration_since(Instant::now())),
            _ => lease,
        });
        Answer { role, reason, expires_in }
    }

    /// Renews the lease, unless it has run out.
    pub(crate) fn renew(&self) -> Result<(), Problem> {
        if !self.is_ending() && self.lease.renew() {
            return Ok(());
        }
        let (service, code) = &self.key;
        let detail = format!("the lease of {service}/{code} has run out: register again, with a body");
        Err(Problem::new(Kind::NotRegistered, detail))
    }

    /// The status, now and as it changes.
    pub(crate) fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Waits for the first attempt to be over.
    async fn settled(&self) -> Result<(), Problem> {
        let mut status = self.status.clone();
        let settled = status.wait_for(|status| status.settled || status.ended.is_some()).await;
        match settled.ok().and_then(|status| status.ended.clone()) {
            None => Ok(()),
            Some(End::Failed(problem)) => Err(problem),
            Some(End::Closing) => Err(Problem::closing()),
            Some(end) => {
                let (service, code) = &self.key;
                let detail = format!("{service}/{code} was {} while it was being registered", end.name());
                Err(Problem::new(Kind::NotRegistered, detail))
            }
        }
    }

    /// As [`Registered::settled`]; ends it if that takes longer than `patience`.
    async fn settled_within(&self, patience: Duration) -> Result<(), Problem> {
        tokio::time::timeout(patience, self.settled()).await.unwrap_or_else(|_| {
            self.end(End::Deregistered);
            let (service, code) = &self.key;
            Err(Problem::too_late(&format!("register {service}/{code}"), patience))
        })
    }

    /// Renews it, and lets it be as wished.
    async fn join(&self, wish: &Wish, patience: Duration) -> Result<(), Problem> {
        self.renew()?;
        self.settled().await?;
        self.update(wish.instance.clone(), wish.check.clone(), patience).await
    }

    async fn update(&self, instance: Instance, check: Option<Check>, patience: Duration) -> Result<(), Problem> {
        let updating = self.ask(|reply| Command::Update(Box::new(instance), check.map(Box::new), reply));
        tokio::time::timeout(patience, updating).await.unwrap_or_else(|_| {
            let (service, code) = &self.key;
            let detail =
                format!("update {service}/{code}: the registry does not answer; it is written when it is back");
            Err(Problem::new(Kind::Unavailable, detail))
        })
    }

    /// Hands the mastership over.
    pub(crate) async fn resign(&self) -> Result<(), Problem> {
        self.ask(Command::Resign).await
    }

    async fn ask(&self, command: impl FnOnce(oneshot::Sender<Result<(), Problem>>) -> Command) -> Result<(), Problem> {
        let (reply, answer) = oneshot::channel();
        let _ = self.commands.unbounded_send(command(reply));
        answer.await.unwrap_or_else(|_| {
            let (service, code) = &self.key;
            Err(Problem::new(Kind::NotRegistered, format!("{service}/{code} has ended meanwhile")))
        })
    }

    /// Ends it.
    pub(crate) fn end(&self, end: End) {
        // From here on nobody gets hold of it, although it takes a while until it is out of the registry.
        self.bound.store(ENDING, Ordering::Release);
        // One that has ended needs no end.
        let _ = self.commands.unbounded_send(Command::End(end));
    }

    /// Whether it is about to end, or has ended.
    fn is_ending(&self) -> bool {
        self.bound.load(Ordering::Acquire) == ENDING || self.lease.is_over()
    }

    /// Waits until it has ended.
    pub(crate) async fn ended(&self) {
        let _ = self.status.clone().wait_for(|status| status.ended.is_some()).await;
    }

    /// Whether it is this holder's.
    pub(crate) fn is_of(&self, holder: &str) -> bool {
        *holder == *self.holder
    }

    fn check_holder(&self, holder: &Arc<str>) -> Result<(), Problem> {
        if self.is_of(holder) {
            return Ok(());
        }
        let (service, code) = &self.key;
        let detail = format!(
            "register {service}/{code}: the code is already registered, by another client of this agent; choose another \
             code, or name the holder that registered it"
        );
        Err(Problem::new(Kind::DuplicateCode, detail))
    }
}

/// A registration that ends with this value, unless a newer connection of the same holder has taken it.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) registered: Arc<Registered>,
    number: u64,
}

static CONNECTIONS: AtomicU64 = AtomicU64::new(1);
/// No connection: it is about to end.
const ENDING: u64 = u64::MAX;

impl Bound {
    /// `None` if it is about to end.
    fn take(registered: Arc<Registered>) -> Option<Self> {
        let number = CONNECTIONS.fetch_add(1, Ordering::Relaxed);
        let newer = |old| (old != ENDING).then_some(number);
        registered.bound.fetch_update(Ordering::AcqRel, Ordering::Acquire, newer).ok()?;
        // Wakes the stream of the connection before, which finds itself replaced.
        let _ = registered.commands.unbounded_send(Command::Rebound);
        Some(Self { registered, number })
    }

    /// Whether a newer connection has taken it.
    pub(crate) fn is_replaced(&self) -> bool {
        let bound = self.registered.bound.load(Ordering::Acquire);
        bound != self.number && bound != ENDING
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let bound = &self.registered.bound;
        // In one step: a newer connection either has it already, or finds it ending.
        if bound.compare_exchange(self.number, ENDING, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.registered.end(End::Disconnected);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while it was held cannot have left the map half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(holder: Option<&str>) -> Wish {
        let instance = Instance::new("s").code("a");
        Wish { instance, ttl: None, check: None, holder: holder.map(Into::into), observer: false }
    }

    #[tokio::test]
    async fn nothing_is_registered_any_more_once_all_is_handed_over() {
        let registry = Registry::connect("memory://registrations-closed").await.unwrap();
        let registrations = Registrations::new(registry, 10, Duration::from_secs(3));
        let patience = Duration::from_secs(10);
        let _bound = registrations.hold(&wish(None), patience).await.unwrap();
        assert_eq!(registrations.close().len(), 1);
        assert_eq!(registrations.hold(&wish(None), patience).await.unwrap_err().kind, Kind::Closing);
        assert_eq!(registrations.put(&wish(None), patience).await.unwrap_err().kind, Kind::Closing);
    }

    #[tokio::test]
    async fn what_ends_just_now_is_in_nobodys_way() {
        let registry = Registry::connect("memory://registrations-ending").await.unwrap();
        let registrations = Registrations::new(registry, 10, Duration::from_secs(3));
        let patience = Duration::from_secs(10);
        // On this one thread its keeper has not even heard of the end when somebody else comes.
        for (before, after) in [(None, None), (Some("me"), Some("me")), (Some("me"), Some("you")), (None, Some("me"))] {
            drop(registrations.hold(&wish(before), patience).await.unwrap());
            drop(registrations.hold(&wish(after), patience).await.unwrap());
            let (leased, is_new) = registrations.put(&wish(None), patience).await.unwrap();
            assert!(is_new);
            leased.end(End::Deregistered);
            assert_eq!(leased.renew().unwrap_err().kind, Kind::NotRegistered);
            let bound = registrations.hold(&wish(after), patience).await.unwrap();
            bound.registered.end(End::Deregistered);
            assert!(!bound.is_replaced());
        }
        // The connection before does not end what a newer one has taken.
        let old = registrations.hold(&wish(Some("me")), patience).await.unwrap();
        let new = registrations.hold(&wish(Some("me")), patience).await.unwrap();
        assert!(old.is_replaced() && !new.is_replaced());
        drop(old);
        assert!(new.registered.renew().is_ok());
    }
}
