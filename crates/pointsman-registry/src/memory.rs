//! The registry within one process.

mod logs;
mod peers;
mod state;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use pointsman_core::Term;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::{Notify, mpsc};

use self::state::{MemberId, State};
use crate::backend::{Backend, Event, Scope, ServiceState};
use crate::log::Log;
use crate::overrides::{Identity, Override, OverrideChange, Overrides};
use crate::peers::Part;
use crate::registration::{Command, Departure, End, Report, Task};
use crate::{Error, Result};

/// A registry within one process. Those who connect by the same name share it; with the last of them it is gone.
pub(crate) struct Memory {
    name: String,
    state: Mutex<State<Told>>,
    changed: broadcast::Sender<Arc<str>>,
    identity: Identity,
    is_restored: AtomicBool,
    members: peers::Members,
    logs: Mutex<logs::Logs>,
}

static NAMED: LazyLock<Mutex<HashMap<String, Weak<Memory>>>> = LazyLock::new(Mutex::default);

/// A follower that falls this many changes behind lists again.
const CHANGES: usize = 1024;

impl Memory {
    pub(crate) fn named(name: &str) -> Arc<Self> {
        let mut named = lock(&NAMED);
        named.retain(|_, memory| memory.strong_count() > 0);
        if let Some(existing) = named.get(name).and_then(Weak::upgrade) {
            return existing;
        }
        let memory = Arc::new(Self {
            name: name.to_owned(),
            state: Mutex::default(),
            changed: broadcast::channel(CHANGES).0,
            identity: Identity { id: format!("{:032x}", fastrand::u128(..)), since_unix_ms: Some(now_us() / 1000) },
            is_restored: AtomicBool::new(false),
            members: peers::Members::default(),
            logs: Mutex::default(),
        });
        memory.rise_above(now_us());
        named.insert(name.to_owned(), Arc::downgrade(&memory));
        memory
    }

    /// Lets terms and revisions begin above `clock`. An agent lets other processes register here, which remember terms for
    /// longer than this one lives: a master of ours must not be taken for a deposed one.
    pub(crate) fn rise_above(&self, clock: u64) {
        lock(&self.state).rise_above(clock);
    }

    /// Lets operators' settings be what they were in a process before this one. Only the first time: what is undone here must not
    /// come back with the next who connects.
    pub(crate) fn restore(&self, overrides: Vec<(Arc<str>, Overrides)>) -> &Identity {
        if !self.is_restored.swap(true, Ordering::Relaxed) {
            for (service, overrides) in overrides {
                for (code, set) in overrides {
                    tracing::info!(%service, %code, ?set, "override restored from disk");
                    self.change(&service, |state| state.restore_override(&service, &code, set));
                }
            }
        }
        &self.identity
    }

    /// Carries out one change of a service: tells whose role is another now, and wakes the followers.
    fn change<T>(&self, service: &Arc<str>, change: impl FnOnce(&mut State<Told>) -> T) -> T {
        let mut state = lock(&self.state);
        let result = change(&mut state);
        for (told, role) in state.take_new_roles(service) {
            lock(&told.report).registered(role, None);
        }
        drop(state);
        // No follower: nobody to wake.
        let _ = self.changed.send(service.clone());
        result
    }

    fn read(&self, service: &Arc<str>, seen: &mut Seen) -> ServiceState {
        read(&lock(&self.state), service, seen)
    }

    fn read_all(&self, scope: &Scope, seen: &mut Seen) -> Vec<ServiceState> {
        let state = lock(&self.state);
        state.services().filter(|service| scope.contains(service)).map(|service| read(&state, service, seen)).collect()
    }
}

/// At which revision a follower has read each service last.
type Seen = HashMap<Arc<str>, u64>;

fn read(state: &State<Told>, service: &Arc<str>, seen: &mut Seen) -> ServiceState {
    let seen = seen.entry(service.clone()).or_default();
    let read = state.read(service, *seen);
    *seen = read.revision;
    read
}

#[async_trait]
impl Backend for Memory {
    async fn connected(&self, _timeout: Option<Duration>) -> Result<()> {
        Ok(())
    }

    async fn keep(&self, task: Task) -> End {
        let Task { instance, holder, mut commands, report } = task;
        let (service, code) = (instance.service.clone(), instance.code.clone());
        let (report, replaced) = (Arc::new(Mutex::new(report)), Arc::new(Notify::new()));
        let told = Told { report: report.clone(), replaced: replaced.clone() };
        let id = match self.change(&service, |state| state.join(instance, holder, told)) {
            Ok((id, before)) => {
                if let Some(Told { report, replaced }) = before {
                    lock(&report).replaced();
                    replaced.notify_one();
                }
                id
            }
            Err(holder) => {
                let error = Error::DuplicateCode { service, code, holder };
                return Arc::into_inner(report).map_or(End::Dropped, |report| {
                    End::Failed(report.into_inner().unwrap_or_else(PoisonError::into_inner), error)
                });
            }
        };
        // Is gone also when this task is dropped with its runtime, or abandoned: then it has not left, but is lost.
        let mut member = Member { memory: self, service, id, report, departure: Departure::Lost };
        loop {
            let command = tokio::select! {
                command = commands.recv() => command,
                () = replaced.notified() => return End::Dropped,
            };
            let Some(command) = command else {
                member.departure = Departure::Left;
                return End::Dropped;
            };
            match command {
                Command::Update(instance, reply) => {
                    self.change(&member.service, |state| state.update(&member.service, member.id, *instance));
                    let _ = reply.send(Ok(()));
                }
                Command::Resign(reply) => {
                    let resigned = self.change(&member.service, |state| state.resign(&member.service, member.id));
                    let not_master = || Error::NotMaster { service: member.service.clone(), code: code.clone() };
                    let _ = reply.send(if resigned { Ok(()) } else { Err(not_master()) });
                }
                Command::Close(departure, reply) => {
                    member.departure = departure;
                    return End::Closed(reply, Ok(()));
                }
            }
        }
    }

    async fn follow(&self, scope: Scope, events: mpsc::Sender<Event>) {
        let (mut changed, mut seen) = (self.changed.subscribe(), Seen::new());
        let reset = |seen: &mut Seen| Event::Reset {
            states: self.read_all(&scope, seen),
            identity: Some(self.identity.clone()),
        };
        if events.send(reset(&mut seen)).await.is_err() {
            return;
        }
        loop {
            let event = match changed.recv().await {
                Ok(service) if !scope.contains(&service) => continue,
                Ok(service) => Event::Put(self.read(&service, &mut seen)),
                Err(RecvError::Lagged(_)) => reset(&mut seen),
                Err(RecvError::Closed) => return,
            };
            if events.send(event).await.is_err() {
                return;
            }
        }
    }

    async fn set_override(&self, service: &str, code: &str, change: OverrideChange) -> Result<()> {
        let service: Arc<str> = service.into();
        // Others may not have heard yet that it is cleared, and restore it.
        let keeps_empty = !self.identity.is_settled(SystemTime::now());
        self.change(&service, |state| state.set_override(&service, code, change, keeps_empty));
        Ok(())
    }

    async fn restore_override(&self, service: &str, code: &str, set: Override) -> Result<()> {
        let service: Arc<str> = service.into();
        self.change(&service, |state| state.restore_override(&service, code, set));
        Ok(())
    }

    async fn check_term(&self, service: &str, term: Term) -> Result<Term> {
        let Some(checked) = lock(&self.state).check_term(service, term) else {
            let reason = "the terms of too many services are remembered here".to_owned();
            return Err(Error::Refused { step: format!("check term {term} of {service}"), reason });
        };
        checked.map_err(|stale| Error::StaleTerm { service: service.into(), stale })
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
    report: Arc<Mutex<Report>>,
    /// Another registration has taken its place.
    replaced: Arc<Notify>,
}

/// Microseconds since 1970: faster than anything changes here.
fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or_default()
}

/// One registered instance, which leaves when this is dropped.
struct Member<'a> {
    memory: &'a Memory,
    service: Arc<str>,
    id: MemberId,
    report: Arc<Mutex<Report>>,
    departure: Departure,
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        // Before the next one is master.
        lock(&self.report).step_down("deregistering");
        self.memory.change(&self.service, |state| state.leave(&self.service, self.id, self.departure));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
