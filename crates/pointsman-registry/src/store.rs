//! The one writer of a directory: takes a backend's events, leaves snapshots for the readers.

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

use self::held::{Held, registered};
pub(crate) use self::shared::{Link, Loaded, Restore, Shared};
use crate::backend::{Event, ServiceState};
use crate::disk;
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
    unsaved: HashSet<Arc<str>>,
    restores: mpsc::UnboundedSender<Restore>,
}

/// What the registry says of one service.
struct News {
    raw: Snapshot,
    left: Vec<Arc<str>>,
    is_emptied: bool,
}

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
        Self { shared, guard, folder, held: HashMap::new(), unsaved: HashSet::new(), restores }
    }

    /// Runs until the backend's end of `events` is dropped.
    pub(crate) async fn run(mut self, mut events: mpsc::Receiver<Event>) {
        self.load_from_disk().await;
        let mut save_at: Option<Instant> = None;
        // One at a time, so that an older snapshot never replaces a newer one; and never waited for while there are
        // events: a slow disk must not make the directory slow.
        let mut saving: Option<JoinHandle<()>> = None;
        loop {
            let guard_ends = self.held.values().filter_map(Held::until).min();
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.take(event, Instant::now()),
                    None => break,
                },
                () = at(guard_ends) => self.end_guards(Instant::now()),
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
            Event::Put(state) => self.put(state, false, now),
            // What is on disk says more: what operators have set, apart.
            Event::Known(state) if self.held.contains_key(&state.service) => {}
            Event::Known(state) => self.put(state, false, now),
            Event::Identity(identity) => self.note_identity(Some(identity)),
            Event::Reset { states, identity } => self.reset(states, identity, now),
        }
    }

    fn reset(&mut self, states: Vec<ServiceState>, identity: Option<Identity>, now: Instant) {
        let is_empty = self.is_emptied(&states);
        let is_other = self.keep_overrides(identity, is_empty, now);
        let is_emptied = is_other || is_empty && self.guard.is_some_and(|guard| guard.doubts_an_empty_list());
        let named: HashSet<Arc<str>> = states.iter().map(|state| state.service.clone()).collect();
        for state in states {
            self.put(state, is_emptied, now);
        }
        let gone: Vec<_> = self.held.keys().filter(|service| !named.contains(*service)).cloned().collect();
        for service in gone {
            let revision = self.held[&service].raw.revision();
            self.put(ServiceState { revision, ..ServiceState::empty(service) }, is_emptied, now);
        }
        self.restore_overrides();
        self.shared.link.send_replace(Link { loaded: Loaded::FromRegistry, stale_since: None });
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

    fn put(&mut self, state: ServiceState, is_emptied: bool, now: Instant) {
        let ServiceState { service, revision, instances, problems, overrides, left } = state;
        let held = self.held.entry(service.clone()).or_insert_with(|| Held::new(Snapshot::empty(service.clone())));
        held.kept.retain(|code, _| !overrides.contains_key(code));
        if held.overrides != overrides {
            self.unsaved.insert(service.clone());
        }
        held.overrides = overrides;
        held.are_too_old = false;
        let raw = Snapshot::new(service, revision, instances).with_problems(problems);
        let guard = self.guard.as_ref();
        Self::show(&self.shared, guard, held, News { raw, left, is_emptied }, now, &mut self.unsaved);
    }

    fn end_guards(&mut self, now: Instant) {
        for held in self.held.values_mut().filter(|held| held.until().is_some_and(|until| until <= now)) {
            if held.kept_until.is_some_and(|until| until <= now) {
                (held.kept_until, held.kept) = (None, Overrides::new());
            }
            let news = News { raw: held.raw.clone(), left: Vec::new(), is_emptied: false };
            Self::show(&self.shared, self.guard.as_ref(), held, news, now, &mut self.unsaved);
        }
    }

    fn show(
        shared: &Shared,
        guard: Option<&Guard>,
        held: &mut Held,
        News { raw, left, is_emptied }: News,
        now: Instant,
        unsaved: &mut HashSet<Arc<str>>,
    ) {
        let seen = Observation { before: &held.raw, after: &raw, left: &left, is_emptied };
        let lost = guard.map(|guard| held.guard.update(guard, &seen, now)).unwrap_or_default();
        let before = shared.snapshot(raw.service());
        shared.note_overrides(raw.service(), held.all_overrides());
        shared.note_departures(&before, &raw, left);
        // A revision of our own: the registry's may stand still when only a guard ends, or fall when it was rebuilt.
        let revision = raw.revision().max(before.revision() + 1).max(shared.base);
        let all = raw.instances().iter().cloned().chain(lost.iter().cloned());
        let shown = all.map(|instance| held.in_force(&instance.code).apply(instance)).collect();
        let next = Snapshot::new(raw.service().clone(), revision, shown).with_problems(raw.problems().to_vec());
        held.raw = raw;
        if next.same_content(&before) {
            return;
        }
        if next.is_guarded() && !before.is_guarded() {
            let (service, lost) = (next.service(), lost.len());
            tracing::warn!(%service, lost, "mass loss: the lost instances are kept for a while");
        } else if before.is_guarded() && !next.is_guarded() {
            tracing::info!(service = %next.service(), instances = next.instances().len(), "guard ended");
        }
        unsaved.insert(next.service().clone());
        shared.store(next);
    }

    async fn load_from_disk(&mut self) {
        let Some(folder) = self.folder.clone() else { return };
        let scope = self.shared.scope.clone();
        let loading = tokio::task::spawn_blocking(move || (disk::load(&folder, &scope), disk::load_identity(&folder)));
        let (saved, identity) = loading.await.unwrap_or_default();
        *self.shared.identity.write().unwrap_or_else(PoisonError::into_inner) = identity;
        let Some(oldest) = saved.iter().map(|saved| saved.at).min() else { return };
        for saved in saved {
            // Held as if the registry had told it: what its first word does not name is gone, after the guard's time.
            let raw = registered(&saved.snapshot, &saved.overrides);
            let are_too_old = saved.at.elapsed().is_ok_and(|age| age > TOO_OLD);
            let held = Held { overrides: saved.overrides, are_too_old, ..Held::new(raw) };
            self.shared.note_overrides(saved.snapshot.service(), held.all_overrides());
            self.held.insert(saved.snapshot.service().clone(), held);
            if !saved.snapshot.is_empty() {
                self.shared.store(saved.snapshot);
            }
        }
        let age = SystemTime::now().duration_since(oldest).unwrap_or_default();
        let now = Instant::now();
        let stale_since = Some(now.checked_sub(age).unwrap_or(now));
        self.shared.link.send_replace(Link { loaded: Loaded::FromDisk, stale_since });
    }

    /// Starts writing what has changed since the last call; `None` if there is nothing to write.
    fn save_to_disk(&mut self) -> Option<JoinHandle<()>> {
        let unsaved: Vec<_> = self.unsaved.drain().collect();
        let folder = self.folder.clone().filter(|_| !unsaved.is_empty())?;
        let with_overrides = |service: &Arc<str>| {
            let overrides = self.held.get(service).map(Held::all_overrides).unwrap_or_default();
            (self.shared.snapshot(service), overrides)
        };
        let services: Vec<_> = unsaved.iter().map(with_overrides).collect();
        Some(tokio::task::spawn_blocking(move || disk::save(&folder, &services)))
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
