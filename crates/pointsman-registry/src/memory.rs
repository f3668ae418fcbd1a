//! The registry within one process.

mod expiry;
mod followers;
mod line;
mod logs;
mod peers;
mod state;
mod terms;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use pointsman_core::{ObservedInstance, Role, Term};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

pub(crate) use self::line::Line;
use self::state::{MemberId, State, Taken};
use crate::backend::{Backend, Event, Scope, ServiceState};
use crate::disk::SavedOverrides;
use crate::keep::{Control, Order, Registrar, Said, keep};
use crate::log::Log;
use crate::overrides::{ClearedOverrides, Identity, Override, OverrideChange, OverrideOf};
use crate::peers::Part;
use crate::registration::{Departure, End, RoleWriter, Task};
use crate::wait::Wait;
use crate::{Error, Result};

/// A registry within one process. Those who connect by the same name share it; with the last of them it is gone.
pub(crate) struct Memory {
    name: String,
    state: Mutex<State<Told>>,
    identity: Mutex<Identity>,
    is_restored: AtomicBool,
    members: peers::Members,
    logs: Mutex<logs::Logs>,
}

static NAMED: LazyLock<Mutex<HashMap<String, Weak<Memory>>>> = LazyLock::new(Mutex::default);

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Memory").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Memory {
    pub(crate) fn named(name: &str) -> Arc<Self> {
        let mut named = lock(&NAMED);
        named.retain(|_, memory| memory.strong_count() > 0);
        if let Some(existing) = named.get(name).and_then(Weak::upgrade) {
            return existing;
        }
        let memory = Self::new(name);
        named.insert(name.to_owned(), Arc::downgrade(&memory));
        memory
    }

    /// A registry that nobody finds by its name.
    pub(crate) fn new(name: &str) -> Arc<Self> {
        let memory = Arc::new(Self {
            name: name.to_owned(),
            state: Mutex::default(),
            identity: Mutex::new(new_identity()),
            is_restored: AtomicBool::new(false),
            members: peers::Members::default(),
            logs: Mutex::default(),
        });
        memory.rise_above(now_us());
        memory
    }

    /// Lets terms and revisions begin above `clock`. An agent lets other processes register here, which remember terms for
    /// longer than this one lives: a master of ours must not be taken for a deposed one.
    pub(crate) fn rise_above(&self, clock: u64) {
        lock(&self.state).rise_above(clock);
    }

    /// Lets operators' settings be what they were in a process before this one. Only the first time: what is undone here must not
    /// come back with the next who connects.
    pub(crate) fn restore(&self, saved: Vec<SavedOverrides>) -> Identity {
        if !self.is_restored.swap(true, Ordering::Relaxed) {
            let now = Instant::now();
            for SavedOverrides { service, overrides, absent_for } in saved {
                for (code, set) in overrides {
                    let absent_for = absent_for.get(&code).copied().unwrap_or_default();
                    tracing::info!(%service, %code, ?set, ?absent_for, "override restored from disk");
                    // A clock that does not reach back as far has not been running for as long.
                    let seen = now.checked_sub(absent_for).unwrap_or(now);
                    self.change(&service, |state| state.restore_override(&service, &code, set, seen));
                }
            }
        }
        lock(&self.identity).clone()
    }

    /// Keeps an instance registered; over a line, where there is one.
    pub(crate) async fn keep_over(&self, line: Option<&Line>, task: Box<Task>) -> End {
        let (holder, observer) = (task.holder.clone(), task.observer);
        keep(&mut MemoryRegistrar { memory: self, line, holder, observer, member: None }, LONGEST_PAUSE, task).await
    }

    /// Loses what is registered over a line, as with a session that expires.
    #[cfg(feature = "testing")]
    pub(crate) fn lose(&self, line: &Line) {
        let is_over = |told: &Told| told.line.as_ref().is_some_and(|other| other.is(line));
        let lost = lock(&self.state).members(is_over);
        for (service, id) in lost {
            self.change(&service, |state| state.leave(&service, id, Departure::Lost, Instant::now()));
        }
    }

    /// Loses everything, and begins anew.
    #[cfg(feature = "testing")]
    pub(crate) fn empty(&self) {
        let mut state = lock(&self.state);
        state.empty();
        *lock(&self.identity) = new_identity();
    }

    /// Whether it is stored that nothing is set: others may not have heard yet that something was cleared, and restore it.
    fn keeps_empty(&self) -> bool {
        !lock(&self.identity).is_settled(SystemTime::now())
    }

    /// Carries out one change of a service: tells whose role is another now, and wakes the followers.
    fn change<T>(&self, service: &Arc<str>, change: impl FnOnce(&mut State<Told>) -> T) -> T {
        let mut state = lock(&self.state);
        // Whatever grows does so by changes: nothing needs to wake for it.
        state.expire_overrides(Instant::now());
        let result = change(&mut state);
        for (told, role) in state.take_new_roles(service) {
            told.registered(role);
        }
        state.followers.note(service);
        result
    }
}

/// One who follows, until this is dropped.
struct Following<'a> {
    memory: &'a Memory,
    number: u64,
    wake: Arc<Notify>,
}

impl<'a> Following<'a> {
    /// Begins to follow, with everything that the scope holds now.
    fn begin(memory: &'a Memory, scope: &Scope) -> (Self, Vec<ServiceState>) {
        let mut state = lock(&memory.state);
        let wake = Arc::new(Notify::new());
        let number = state.followers.add(scope.clone(), wake.clone());
        let states = state.read_all(scope);
        drop(state);
        (Self { memory, number, wake }, states)
    }

    /// Waits until services have changed; returns how many.
    async fn changed(&self) -> usize {
        loop {
            let changed = lock(&self.memory.state).followers.changed(self.number);
            if changed > 0 {
                return changed;
            }
            self.wake.notified().await;
        }
    }

    /// The next service that has changed, as it is now.
    fn next(&self) -> Option<ServiceState> {
        let mut state = lock(&self.memory.state);
        let (service, left) = state.followers.next(self.number)?;
        Some(state.read(&service, left))
    }
}

impl Drop for Following<'_> {
    fn drop(&mut self) {
        lock(&self.memory.state).followers.remove(self.number);
    }
}

#[async_trait]
impl Backend for Memory {
    async fn connected(&self, _wait: Wait<'_>) -> Result<()> {
        Ok(())
    }

    async fn keep(&self, task: Box<Task>) -> End {
        self.keep_over(None, task).await
    }

    async fn follow(&self, scope: Scope, events: mpsc::Sender<Event>) {
        let (following, states) = Following::begin(self, &scope);
        let identity = Some(lock(&self.identity).clone());
        if events.send(Event::Reset { states, identity }).await.is_err() {
            return;
        }
        // What changes while nothing is taken is read once. To read a large service for each of its changes takes longer than the changes.
        while events.reserve_many(events.max_capacity()).await.is_ok() {
            for _ in 0..following.changed().await {
                let Some(state) = following.next() else { break };
                if events.send(Event::Put(state)).await.is_err() {
                    return;
                }
            }
        }
    }

    async fn set_override(&self, service: &str, code: &str, change: OverrideChange) -> Result<()> {
        let (service, code): (Arc<str>, Arc<str>) = (service.into(), code.into());
        let keeps_empty = self.keeps_empty();
        self.change(&service, |state| state.set_override(&service, &code, change, keeps_empty, Instant::now()));
        Ok(())
    }

    async fn restore_override(&self, service: &str, code: &str, set: Override) -> Result<()> {
        let (service, code): (Arc<str>, Arc<str>) = (service.into(), code.into());
        self.change(&service, |state| state.restore_override(&service, &code, set, Instant::now()));
        Ok(())
    }

    async fn overrides(&self, service: Option<&str>) -> Result<Vec<OverrideOf>> {
        let mut state = lock(&self.state);
        state.expire_overrides(Instant::now());
        Ok(state.overrides(service))
    }

    async fn clear_gone(&self, service: Option<&str>) -> Result<ClearedOverrides> {
        Ok(lock(&self.state).clear_gone(service, self.keeps_empty()))
    }

    async fn check_term(&self, service: &str, term: Term) -> Result<Term> {
        let Some(checked) = lock(&self.state).check_term(service, term) else {
            let reason = "the terms of too many services are remembered here".to_owned();
            return Err(Error::refused(format!("check term {term} of {service}"), reason));
        };
        checked.map_err(|stale| Error::StaleTerm { service: service.into(), stale })
    }

    async fn term_base(&self) -> Result<Term> {
        Ok(lock(&self.state).term_base())
    }

    async fn raise_term_base(&self, base: Term) -> Result<Term> {
        let mut state = lock(&self.state);
        state.rise_above(base.0);
        Ok(state.term_base())
    }

    async fn exchange(&self, part: Part) {
        self.members.exchange(part).await;
    }

    async fn append(&self, log: &Log, key: &str, entry: &str) -> Result<()> {
        lock(&self.logs).append(log, key, entry);
        Ok(())
    }

    async fn read_log(&self, log: &Log) -> Result<Vec<String>> {
        Ok(lock(&self.logs).read(log))
    }

    async fn close(&self) {}

    fn label(&self) -> String {
        format!("memory-{}", crate::disk::escaped(&self.name))
    }
}

/// Who is told what becomes of a member.
#[derive(Debug, Clone)]
struct Told {
    roles: RoleWriter,
    line: Option<Line>,
    /// Another registration has taken its place.
    replaced: Arc<Notify>,
}

impl Told {
    fn registered(&self, role: Role) {
        self.roles.registered(role, self.line.as_ref().map(Line::lease));
    }
}

fn new_identity() -> Identity {
    Identity { id: format!("{:032x}", fastrand::u128(..)), since_unix_ms: Some(now_us() / 1000) }
}

/// Microseconds since 1970: faster than anything changes here.
fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or_default()
}

/// Maximum time between two attempts to get a code that somebody else has.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

struct MemoryRegistrar<'a> {
    memory: &'a Memory,
    line: Option<&'a Line>,
    holder: Option<Arc<str>>,
    observer: bool,
    member: Option<Member<'a>>,
}

impl<'a> MemoryRegistrar<'a> {
    fn join(&self, control: &mut Control) -> Result<Member<'a>, Said> {
        let (instance, revision) = control.wanted();
        let (service, code) = (instance.service.clone(), instance.code.clone());
        let mut instance = ObservedInstance::from(instance.clone());
        instance.observer = self.observer;
        let told = Told { roles: control.roles().clone(), line: self.line.cloned(), replaced: Arc::default() };
        let (memory, replaced, roles) = (self.memory, told.replaced.clone(), told.roles.clone());
        // Whoever comes takes over; who was there before, and comes back, was taken over from.
        let takes_over = control.is_entering();
        let joined = memory.change(&service, |state| state.join(instance, self.holder.clone(), takes_over, told));
        let (id, before) = joined.map_err(|taken| match taken {
            Taken::ByTheSame => Said::Replaced,
            Taken::ByAnother(holder) => Said::Failed(Error::DuplicateCode { service: service.clone(), code, holder }),
        })?;
        if let Some(before) = before {
            before.roles.step_down("taken over by the same holder elsewhere");
            before.replaced.notify_one();
        }
        control.say(Said::Registered);
        control.say(Said::Written(revision));
        Ok(Member { memory, service, id, roles, replaced, departure: Departure::Lost })
    }
}

impl Registrar for MemoryRegistrar<'_> {
    async fn hold(&mut self, control: &mut Control) -> Option<Said> {
        // From here on, so that no end of the connection is missed.
        let connection = match self.line {
            Some(line) => Some(Box::pin(line.connection(control)).await?),
            None => None,
        };
        let member = match self.member.take() {
            // The connection has come back in time.
            Some(member) if self.line.is_none() || member.is_back(control, self.line) => member,
            Some(_) => return Some(Said::Gone("the session has expired".to_owned())),
            None => match self.join(control) {
                Ok(member) => member,
                Err(said) => return Some(said),
            },
        };
        let Member { memory, service, id, replaced, .. } = self.member.insert(member);
        loop {
            let order = tokio::select! {
                order = control.order() => order,
                () = line::ended(connection.as_ref()) => return Some(Said::Unreachable(line::AWAY.to_owned())),
                () = replaced.notified() => return Some(Said::Replaced),
            };
            match order {
                Order::Write => {
                    let (instance, revision) = control.wanted();
                    memory.change(service, |state| state.update(service, *id, instance.clone()));
                    control.say(Said::Written(revision));
                }
                Order::Resign(reply) => {
                    let resigned = memory.change(service, |state| state.resign(service, *id));
                    let _ = reply.send(if resigned { Ok(()) } else { Err(control.not_master()) });
                }
                Order::Stop => return None,
            }
        }
    }

    async fn remove(&mut self, control: &mut Control, departure: Departure) -> Option<Said> {
        if let Some(line) = self.line.filter(|_| self.member.is_some()) {
            Box::pin(line.connection_to_remove(control)).await?;
        }
        if let Some(member) = &mut self.member {
            member.departure = departure;
        }
        self.member = None;
        Some(Said::Removed(Ok(())))
    }
}

/// One registered instance, which leaves when this is dropped. Also with its task, when that ends with its runtime, or is abandoned: then it
/// has not left, but is lost.
struct Member<'a> {
    memory: &'a Memory,
    service: Arc<str>,
    id: MemberId,
    roles: RoleWriter,
    /// Another registration has taken its place.
    replaced: Arc<Notify>,
    departure: Departure,
}

impl Member<'_> {
    /// Registers it again, over another connection of the same session. `false`: the session has expired.
    fn is_back(&self, control: &mut Control, line: Option<&Line>) -> bool {
        let (instance, revision) = control.wanted();
        let instance = instance.clone();
        let role = self.memory.change(&self.service, |state| {
            state.update(&self.service, self.id, instance);
            state.role(&self.service, self.id)
        });
        let Some(role) = role else { return false };
        control.registered(role, line.map(Line::lease));
        control.say(Said::Written(revision));
        true
    }
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        self.memory.change(&self.service, |state| {
            // Before the next one is master, and after whatever another change has told.
            self.roles.step_down("deregistering");
            state.leave(&self.service, self.id, self.departure, Instant::now());
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
