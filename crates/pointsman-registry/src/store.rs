//! The one writer of a directory: takes a backend's events, leaves snapshots for the readers.

mod cells;
mod deadlines;
mod departures;
mod held;
mod shared;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use pointsman_core::Snapshot;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::cells::Shown;
pub(crate) use self::cells::Since;
use self::deadlines::Deadlines;
use self::held::{Held, registered};
pub(crate) use self::shared::{Link, Loaded, Restore, Shared};
use crate::backend::{Event, ServiceState};
use crate::disk::{self, Saved, ToSave};
use crate::guard::{Guard, Observation};
use crate::overrides::{Identity, Overrides, SETTLED, TOO_OLD};

/// The one writer. Shares the backend's task; what it writes to disk is written elsewhere.
#[derive(Debug)]
pub(crate) struct Store {
    shared: Arc<Shared>,
    guard: Option<Guard>,
    folder: Option<PathBuf>,
    /// What the registry holds, without what a guard adds.
    held: HashMap<Arc<str>, Held>,
    deadlines: Deadlines,
    /// The highest revision so far, of whichever service.
    last: u64,
    unsaved: HashSet<Arc<str>>,
    restores: mpsc::UnboundedSender<Restore>,
}

/// What the registry says of one service.
struct News {
    raw: Snapshot,
    left: Vec<Arc<str>>,
    is_emptied: bool,
}

/// Maximum number of events that are taken in together.
const GATHERED: usize = 1024;
/// After what takes no longer, events need not gather.
const QUICK: Duration = Duration::from_micros(250);
/// Maximum time for which events gather.
const LONGEST_REST: Duration = Duration::from_millis(5);
/// Changes that come in quick succession are written to disk together.
const SAVE_AFTER: Duration = Duration::from_millis(250);

impl Store {
    /// What is to be set again in the registry is sent to `restores`.
    pub(crate) fn new(
        shared: Arc<Shared>,
        guard: Option<Guard>,
        folder: Option<PathBuf>,
        restores: mpsc::UnboundedSender<Restore>,
    ) -> Self {
        let last = shared.base.saturating_sub(1);
        let (held, deadlines, unsaved) = (HashMap::new(), Deadlines::default(), HashSet::new());
        Self { shared, guard, folder, held, deadlines, last, unsaved, restores }
    }

    /// Runs until the backend's end of `events` is dropped.
    pub(crate) async fn run(mut self, mut events: mpsc::Receiver<Event>) {
        self.load_from_disk().await;
        let mut save_at: Option<Instant> = None;
        // One at a time, so that an older snapshot never replaces a newer one; and never waited for while there are
        // events: a slow disk must not make the directory slow.
        let mut saving: Option<JoinHandle<()>> = None;
        let mut pace = Pace::default();
        loop {
            let deadline = self.deadlines.first();
            let next = async {
                pace.rest().await;
                events.recv().await
            };
            tokio::select! {
                event = next => match event {
                    Some(event) => {
                        let began = Instant::now();
                        gather(event, &mut events).into_iter().for_each(|event| self.take(event, began));
                        pace.note(began, Instant::now());
                    }
                    None => break,
                },
                () = at(deadline) => self.end_guards(Instant::now()),
                () = at(save_at), if saving.is_none() => {
                    save_at = None;
                    saving = self.save_to_disk();
                }
                () = done(&mut saving) => {}
            }
            if !self.unsaved.is_empty() && save_at.is_none() {
                save_at = Some(Instant::now() + SAVE_AFTER);
            }
        }
        done_or_idle(&mut saving).await;
        done_or_idle(&mut self.save_to_disk()).await;
    }

    fn take(&mut self, event: Event, now: Instant) {
        match event {
            Event::Stale => self.shared.link.send_modify(|link| {
                link.stale_since.get_or_insert(now);
            }),
            Event::Refused(reason) => self.shared.note_refusal(Some(reason)),
            Event::Put(state) => self.put_one(state, now),
            // What is on disk says more: what operators have set, apart.
            Event::Known(state) if self.held.contains_key(&state.service) => {}
            Event::Known(state) => self.put_one(state, now),
            Event::Identity(identity) => self.note_identity(Some(identity)),
            Event::Reset { states, identity } => self.reset(states, identity, now),
        }
    }

    fn reset(&mut self, states: Vec<ServiceState>, identity: Option<Identity>, now: Instant) {
        let is_empty = self.is_emptied(&states);
        let is_other = self.keep_overrides(identity, is_empty, now);
        let is_emptied = is_other || is_empty && self.guard.is_some_and(|guard| guard.doubts_an_empty_list());
        let named: HashSet<Arc<str>> = states.iter().map(|state| state.service.clone()).collect();
        let mut shown: Vec<Shown> = states.into_iter().map(|state| self.put(state, is_emptied, now)).collect();
        let gone: Vec<_> = self.held.keys().filter(|service| !named.contains(*service)).cloned().collect();
        for service in gone {
            let revision = self.held[&service].raw.revision();
            shown.push(self.put(ServiceState { revision, ..ServiceState::empty(service) }, is_emptied, now));
        }
        self.shared.publish(shown);
        self.restore_overrides();
        self.shared.note_refusal(None);
        self.shared.link.send_modify(|link| (link.loaded, link.stale_since) = (Loaded::FromRegistry, None));
    }

    /// What operators have set stays in force if the registry has lost it. Returns whether the registry has lost its data.
    fn keep_overrides(&mut self, identity: Option<Identity>, is_emptied: bool, now: Instant) -> bool {
        let before = self.shared.identity();
        let is_other = match (&before, &identity) {
            (Some(before), Some(after)) => before.id != after.id,
            (Some(_), None) => true,
            // It cannot tell.
            (None, None) => is_emptied,
            // Something has been set there for the first time, or this is the first that is heard of it.
            (None, Some(_)) => false,
        };
        if is_other {
            let is_settled = identity.as_ref().is_some_and(|identity| identity.is_settled(SystemTime::now()));
            for held in self.held.values_mut() {
                if is_settled || held.are_too_old {
                    held.kept.clear();
                } else {
                    held.kept.append(&mut held.overrides);
                    held.kept_until = Some(now + SETTLED);
                }
            }
            tracing::warn!(?before, after = ?identity, is_settled, "the registry holds other data than before");
        }
        self.note_identity(identity);
        is_other
    }

    fn note_identity(&self, identity: Option<Identity>) {
        if self.shared.identity() != identity {
            if let Some(folder) = self.folder.clone() {
                let identity = identity.clone();
                tokio::task::spawn_blocking(move || disk::save_identity(&folder, identity.as_ref()));
            }
            *self.shared.identity.write().unwrap_or_else(PoisonError::into_inner) = identity;
        }
    }

    /// Asks for what the registry has lost to be set there again. Where that fails it is asked for again with the next reset.
    fn restore_overrides(&self) {
        for (service, held) in &self.held {
            for (code, set) in &held.kept {
                // Whoever receives them ends after this.
                let _ = self.restores.send(Restore { service: service.clone(), code: code.clone(), set: *set });
            }
        }
    }

    /// Whether the registry holds nothing any more, or has lost most of what it held: all services taken together.
    fn is_emptied(&self, states: &[ServiceState]) -> bool {
        let guard = self.guard.unwrap_or_default();
        let left: HashSet<(&str, &str)> =
            states.iter().flat_map(|state| state.left.iter().map(|code| (&*state.service, &**code))).collect();
        let held = self.held.iter().flat_map(|(service, held)| held.raw.instances().iter().map(move |i| (service, i)));
        let before = held.filter(|(service, instance)| !left.contains(&(&***service, &*instance.code))).count();
        let after = states.iter().map(|state| state.instances.len()).sum();
        after == 0 && before > 0 || guard.is_mass_loss(before, after)
    }

    fn put_one(&mut self, state: ServiceState, now: Instant) {
        let shown = self.put(state, false, now);
        self.shared.publish(vec![shown]);
    }

    /// Takes in one service; what is returned is still to be published.
    fn put(&mut self, state: ServiceState, is_emptied: bool, now: Instant) -> Shown {
        let ServiceState { service, revision, instances, problems, overrides, left } = state;
        let held = self.held.entry(service.clone()).or_insert_with(|| Held::new(Snapshot::empty(service.clone())));
        held.kept.retain(|code, _| !overrides.contains_key(code));
        if held.overrides != overrides {
            self.unsaved.insert(service.clone());
        }
        held.overrides = overrides;
        held.are_too_old = false;
        held.note_absent(&instances, SystemTime::now());
        let raw = Snapshot::new(service.clone(), revision, instances).with_problems(problems);
        self.show(&service, News { raw, left, is_emptied }, now)
    }

    fn end_guards(&mut self, now: Instant) {
        let mut shown = Vec::new();
        for service in self.deadlines.due(now) {
            let Some(held) = self.held.get_mut(&service) else { continue };
            if held.kept_until.is_some_and(|until| until <= now) {
                (held.kept_until, held.kept) = (None, Overrides::new());
            }
            let news = News { raw: held.raw.clone(), left: Vec::new(), is_emptied: false };
            shown.push(self.show(&service, news, now));
        }
        self.shared.publish(shown);
    }

    /// Decides what is shown of a service, which must be held, and forgets it when there is nothing to hold any more.
    fn show(&mut self, service: &Arc<str>, News { raw, left, is_emptied }: News, now: Instant) -> Shown {
        let before = self.shared.snapshot(service);
        let Some(held) = self.held.get_mut(service) else { return Shown { before, raw, left, next: None } };
        let seen = Observation { before: &held.raw, after: &raw, left: &left, is_emptied };
        let lost = self.guard.map(|guard| held.guard.update(&guard, &seen, now)).unwrap_or_default();
        held.raw = raw.clone();
        self.shared.note_overrides(service, held.all_overrides());
        let mut next = held.shown(&lost);
        let is_new = !next.same_content(&before);
        if is_new {
            // A revision of our own: the registry's may stand still when only a guard ends, or fall when it was rebuilt.
            self.last = raw.revision().max(self.last.saturating_add(1));
            next = next.at_revision(self.last);
            if next.is_guarded() && !before.is_guarded() {
                tracing::warn!(%service, lost = lost.len(), "mass loss: the lost instances are kept for a while");
            } else if before.is_guarded() && !next.is_guarded() {
                tracing::info!(%service, instances = next.instances().len(), "guard ended");
            }
            self.unsaved.insert(service.clone());
        }
        let vanished = self.guard.filter(|_| held.raw.is_empty());
        held.remembers_until = vanished.and_then(|guard| held.guard.remembers_until(&guard));
        let deadline = held.until();
        self.deadlines.set(service, held.deadline, deadline);
        held.deadline = deadline;
        if held.is_nothing() {
            self.deadlines.set(service, deadline, None);
            self.held.remove(service);
        }
        Shown { before, raw, left, next: is_new.then(|| Arc::new(next)) }
    }

    async fn load_from_disk(&mut self) {
        let Some(folder) = self.folder.clone() else { return };
        let scope = self.shared.scope.clone();
        let loading = tokio::task::spawn_blocking(move || (disk::load(&folder, &scope), disk::load_identity(&folder)));
        let (saved, identity) = loading.await.unwrap_or_default();
        *self.shared.identity.write().unwrap_or_else(PoisonError::into_inner) = identity;
        let Some(oldest) = saved.iter().map(|saved| saved.at).min() else { return };
        let shown = saved.into_iter().map(|saved| self.take_saved(saved)).collect();
        self.shared.publish(shown);
        let age = SystemTime::now().duration_since(oldest).unwrap_or_default();
        let now = Instant::now();
        let stale_since = Some(now.checked_sub(age).unwrap_or(now));
        self.shared.link.send_modify(|link| (link.loaded, link.stale_since) = (Loaded::FromDisk, stale_since));
    }

    /// Takes in a service as it was on disk, as if the registry had told it: what its first word does not name is gone, after the guard's time.
    fn take_saved(&mut self, Saved { snapshot, overrides, absent, at }: Saved) -> Shown {
        let service = snapshot.service().clone();
        let raw = registered(&snapshot, &overrides);
        let are_too_old = at.elapsed().is_ok_and(|age| age > TOO_OLD);
        let held = Held { overrides, absent, are_too_old, ..Held::new(raw.clone()) };
        self.shared.note_overrides(&service, held.all_overrides());
        self.held.insert(service, held);
        if snapshot.revision() < disk::NUMBERS {
            self.last = self.last.max(snapshot.revision());
        }
        let before = Arc::new(Snapshot::empty(snapshot.service().clone()));
        let next = (!snapshot.is_empty()).then(|| Arc::new(snapshot));
        Shown { before, raw, left: Vec::new(), next }
    }

    /// Starts writing what has changed since the last call; `None` if there is nothing to write.
    fn save_to_disk(&mut self) -> Option<JoinHandle<()>> {
        let unsaved: Vec<_> = self.unsaved.drain().collect();
        let folder = self.folder.clone().filter(|_| !unsaved.is_empty())?;
        let with_overrides = |service: &Arc<str>| {
            let held = self.held.get(service);
            let overrides = held.map(Held::all_overrides).unwrap_or_default();
            let absent = held.map(|held| held.absent.clone()).unwrap_or_default();
            ToSave { snapshot: self.shared.snapshot(service), overrides, absent }
        };
        let services: Vec<_> = unsaved.iter().map(with_overrides).collect();
        Some(tokio::task::spawn_blocking(move || disk::save(&folder, services)))
    }
}

impl Drop for Store {
    /// Also where the runtime ends, and this with it.
    fn drop(&mut self) {
        self.shared.link.send_modify(|link| {
            link.stale_since.get_or_insert(Instant::now());
            link.has_ended = true;
        });
    }
}

/// Returns what is told at this moment, with one event for each service in a row of events: the last of them, with all who have left.
fn gather(first: Event, events: &mut mpsc::Receiver<Event>) -> Vec<Event> {
    let (mut gathered, mut places) = (Vec::new(), HashMap::<Arc<str>, usize>::new());
    let more = std::iter::from_fn(|| events.try_recv().ok()).take(GATHERED);
    for event in std::iter::once(first).chain(more) {
        match event {
            Event::Put(mut state) => {
                if let Some(Event::Put(earlier)) = places.get(&state.service).and_then(|place| gathered.get_mut(*place))
                {
                    state.left.append(&mut earlier.left);
                    *earlier = state;
                } else {
                    places.insert(state.service.clone(), gathered.len());
                    gathered.push(Event::Put(state));
                }
            }
            other => {
                places.clear();
                gathered.push(other);
            }
        }
    }
    gathered
}

/// Lets the events gather after one that took long: a large service that changes all the time is compared now and then, not for each of its
/// changes. Whatever comes after a quiet while is taken at once.
#[derive(Debug, Default)]
struct Pace {
    rests_until: Option<Instant>,
}

impl Pace {
    fn note(&mut self, began: Instant, ended: Instant) {
        let took = ended.saturating_duration_since(began);
        self.rests_until = (took > QUICK).then(|| ended + (took * 2).min(LONGEST_REST));
    }

    async fn rest(&self) {
        if let Some(until) = self.rests_until.filter(|until| *until > Instant::now()) {
            tokio::time::sleep_until(until).await;
        }
    }
}

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}

/// Returns when the task has ended, and forgets it; without a task never.
async fn done(task: &mut Option<JoinHandle<()>>) {
    if task.is_none() {
        std::future::pending::<()>().await;
    }
    done_or_idle(task).await;
}

/// Returns when the task has ended, and forgets it; without a task at once.
async fn done_or_idle(task: &mut Option<JoinHandle<()>>) {
    if let Some(running) = task {
        let _ = running.await;
        *task = None;
    }
}

#[cfg(test)]
mod tests;
