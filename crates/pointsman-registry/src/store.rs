//! The one writer of a directory: takes a backend's events, leaves snapshots for the readers.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use pointsman_core::{Instance, Snapshot, Status, View, ViewWriter};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::backend::{Event, Scope, ServiceState};
use crate::disk;
use crate::guard::{Guard, GuardState, Observation};
use crate::overrides::{Identity, Override, Overrides, SETTLED, TOO_OLD};

/// What the writer and the readers of one directory share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) scope: Scope,
    /// Revisions begin here: in microseconds since 1970, so that no two runs give the same one to different content, and
    /// whoever comes back with a revision of another run is found to know nothing of this one.
    base: u64,
    cells: RwLock<HashMap<Arc<str>, Cell>>,
    /// Rises with every change of any service.
    pub(crate) version: watch::Sender<u64>,
    /// Which service it was, of the last changes: the one of the newest version is the last.
    journal: RwLock<VecDeque<Arc<str>>>,
    pub(crate) link: watch::Sender<Link>,
    /// Why the registry lets nothing be read, since it has said so.
    refusal: RwLock<Option<Arc<str>>>,
    /// Which data the registry holds, where it can tell.
    identity: RwLock<Option<Identity>>,
    /// What operators have set, by service; those that have nothing set are not in it.
    overrides: RwLock<BTreeMap<Arc<str>, Overrides>>,
}

/// An override of which a registry that has lost its data knows nothing: to be set there again.
#[derive(Debug)]
pub(crate) struct Restore {
    pub(crate) service: Arc<str>,
    pub(crate) code: Arc<str>,
    pub(crate) set: Override,
}

/// Whether the directory is connected to its registry.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Link {
    /// Whether there is anything to show yet: from the registry, or from disk.
    pub(crate) loaded: Loaded,
    /// `None` while what is shown is fresh; otherwise when it last was.
    pub(crate) stale_since: Option<Instant>,
}

/// Where what is shown came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loaded {
    Nothing,
    FromDisk,
    FromRegistry,
}

#[derive(Debug)]
struct Cell {
    writer: ViewWriter,
    changed: watch::Sender<u64>,
    /// The codes that left cleanly last and have not come back, the newest at the end.
    left: VecDeque<Arc<str>>,
}

impl Shared {
    pub(crate) fn new(scope: Scope) -> Self {
        let link = Link { loaded: Loaded::Nothing, stale_since: Some(Instant::now()) };
        let (version, link) = (watch::Sender::new(0), watch::Sender::new(link));
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let base = u64::try_from(since.as_micros()).unwrap_or_default();
        Self {
            scope,
            base,
            cells: RwLock::default(),
            version,
            journal: RwLock::default(),
            link,
            refusal: RwLock::default(),
            identity: RwLock::default(),
            overrides: RwLock::default(),
        }
    }

    /// What operators have set, by service; also for those that are not registered.
    pub(crate) fn overrides(&self) -> BTreeMap<Arc<str>, Overrides> {
        self.overrides.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether anything is set for an instance.
    pub(crate) fn has_override(&self, service: &str, code: &str) -> bool {
        let overrides = self.overrides.read().unwrap_or_else(PoisonError::into_inner);
        overrides.get(service).and_then(|overrides| overrides.get(code)).is_some_and(|set| !set.is_empty())
    }

    fn note_overrides(&self, service: &Arc<str>, mut set: Overrides) {
        set.retain(|_, set| !set.is_empty());
        let is_same =
            |known: &BTreeMap<Arc<str>, Overrides>| known.get(service).map_or(set.is_empty(), |old| *old == set);
        if is_same(&self.overrides.read().unwrap_or_else(PoisonError::into_inner)) {
            return;
        }
        let mut known = self.overrides.write().unwrap_or_else(PoisonError::into_inner);
        if set.is_empty() {
            known.remove(service);
        } else {
            known.insert(service.clone(), set);
        }
    }

    /// Why the registry lets nothing be read.
    pub(crate) fn refusal(&self) -> Option<Arc<str>> {
        self.refusal.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note_refusal(&self, reason: Option<Arc<str>>) {
        *self.refusal.write().unwrap_or_else(PoisonError::into_inner) = reason;
    }

    /// Which data the registry holds.
    pub(crate) fn identity(&self) -> Option<Identity> {
        self.identity.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Follows one service, whether it exists or not.
    pub(crate) fn cell(&self, service: &str) -> (View, watch::Receiver<u64>) {
        let mut cells = self.cells.write().unwrap_or_else(PoisonError::into_inner);
        let cell = cells.entry(service.into()).or_insert_with(|| Cell::new(Snapshot::empty(service)));
        (cell.writer.view(), cell.changed.subscribe())
    }

    /// The newest snapshot, without following the service if it does not exist.
    pub(crate) fn snapshot(&self, service: &str) -> Arc<Snapshot> {
        let cells = self.cells.read().unwrap_or_else(PoisonError::into_inner);
        cells.get(service).map_or_else(|| Arc::new(Snapshot::empty(service)), |cell| cell.writer.load())
    }

    /// The newest snapshots of all services that hold anything, in no order.
    pub(crate) fn snapshots(&self) -> Vec<Arc<Snapshot>> {
        let cells = self.cells.read().unwrap_or_else(PoisonError::into_inner);
        cells.values().map(|cell| cell.writer.load()).filter(|snapshot| !snapshot.is_empty()).collect()
    }

    /// Whether an instance that is gone is known to have left cleanly, as far as that is remembered.
    pub(crate) fn has_left(&self, service: &str, code: &str) -> bool {
        let cells = self.cells.read().unwrap_or_else(PoisonError::into_inner);
        cells.get(service).is_some_and(|cell| cell.left.iter().any(|left| **left == *code))
    }

    /// Remembers who has left cleanly, and forgets who is there, or was lost.
    fn note_departures(&self, before: &Snapshot, after: &Snapshot, left: Vec<Arc<str>>) {
        let mut cells = self.cells.write().unwrap_or_else(PoisonError::into_inner);
        let Some(cell) = cells.get_mut(after.service()) else { return };
        if !cell.left.is_empty() {
            cell.left.retain(|code| after.find(code).is_none() && before.find(code).is_none() && !left.contains(code));
        }
        cell.left.extend(left.into_iter().filter(|code| after.find(code).is_none()));
        while cell.left.len() > LEFT {
            cell.left.pop_front();
        }
    }

    fn store(&self, snapshot: Snapshot) {
        let service = snapshot.service().clone();
        let snapshot = Arc::new(snapshot);
        let mut cells = self.cells.write().unwrap_or_else(PoisonError::into_inner);
        match cells.get_mut(snapshot.service()) {
            Some(cell) => {
                cell.writer.store(snapshot.clone());
                cell.changed.send_modify(|changes| *changes += 1);
            }
            None => {
                cells.insert(snapshot.service().clone(), Cell::new(Snapshot::clone(&snapshot)));
            }
        }
        drop(cells);
        let mut journal = self.journal.write().unwrap_or_else(PoisonError::into_inner);
        if journal.len() == JOURNAL {
            journal.pop_front();
        }
        journal.push_back(service);
        // Under the lock: whoever reads the journal knows which version its last line is of.
        self.version.send_modify(|version| *version += 1);
    }

    /// The newest snapshots of the services that have changed since a version, or of all; and the version now.
    pub(crate) fn since(&self, version: Option<u64>) -> (Vec<Arc<Snapshot>>, u64) {
        let journal = self.journal.read().unwrap_or_else(PoisonError::into_inner);
        let now = *self.version.borrow();
        let behind = version.and_then(|version| usize::try_from(now - version).ok());
        let changed = behind
            .filter(|behind| *behind <= journal.len())
            .map(|behind| journal.range(journal.len() - behind..).cloned().collect::<HashSet<Arc<str>>>());
        drop(journal);
        let cells = self.cells.read().unwrap_or_else(PoisonError::into_inner);
        let snapshots = match changed {
            Some(changed) => changed.iter().filter_map(|service| Some(cells.get(service)?.writer.load())).collect(),
            // Too far behind: everything, with what has vanished.
            None => cells.values().map(|cell| cell.writer.load()).collect(),
        };
        (snapshots, now)
    }
}

impl Cell {
    fn new(snapshot: Snapshot) -> Self {
        Self { writer: ViewWriter::new(snapshot), changed: watch::Sender::new(0), left: VecDeque::new() }
    }
}

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

#[derive(Debug)]
struct Held {
    /// As the instances have registered.
    raw: Snapshot,
    guard: GuardState,
    /// What operators have set, as the registry says.
    overrides: Overrides,
    /// What operators had set before the registry lost its data: in force until it says something else of the same code.
    kept: Overrides,
    /// Until when these are in force, if the registry says nothing: by then operators have seen what it has lost.
    kept_until: Option<Instant>,
    /// The overrides are of a file that is too old for them to be set again.
    are_too_old: bool,
}

/// What the registry says of one service.
struct News {
    raw: Snapshot,
    left: Vec<Arc<str>>,
    is_emptied: bool,
}

/// Maximum number of clean leavers of one service that are remembered for those who compare snapshots later.
const LEFT: usize = 1024;
/// So many changes are remembered: whoever is further behind compares everything.
const JOURNAL: usize = 4096;
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
            Event::Refused(reason) => self.shared.note_refusal(Some(reason)),
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
        self.shared.note_refusal(None);
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

impl Held {
    fn new(raw: Snapshot) -> Self {
        let (overrides, kept) = (Overrides::new(), Overrides::new());
        Self { raw, guard: GuardState::default(), overrides, kept, kept_until: None, are_too_old: false }
    }

    /// When something is to be decided although nothing is told.
    fn until(&self) -> Option<Instant> {
        self.guard.until().into_iter().chain(self.kept_until).min()
    }

    /// What an operator has set for an instance.
    fn in_force(&self, code: &str) -> Override {
        self.overrides.get(code).or_else(|| self.kept.get(code)).copied().unwrap_or_default()
    }

    fn all_overrides(&self) -> Overrides {
        let mut all = self.kept.clone();
        all.extend(self.overrides.iter().map(|(code, set)| (code.clone(), *set)));
        all
    }
}

/// What a snapshot would be without drains. What a weight was before an operator set it is not known: the registry will tell.
fn registered(shown: &Snapshot, overrides: &Overrides) -> Snapshot {
    let without_drain = |instance: &Arc<Instance>| {
        let mut instance = instance.clone();
        if overrides.get(&instance.code).is_some_and(|set| set.drained) {
            Arc::make_mut(&mut instance).status = Status::Passing;
        }
        instance
    };
    let instances = shown.instances().iter().map(without_drain).collect();
    Snapshot::new(shown.service().clone(), shown.revision(), instances).with_problems(shown.problems().to_vec())
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
mod tests {
    use super::*;

    fn state(service: &str, codes: &[&str]) -> ServiceState {
        let instance = |code: &&str| Arc::new(Instance::new(service).code(*code));
        let instances = codes.iter().map(instance).collect();
        ServiceState { revision: 1, instances, ..ServiceState::empty(service) }
    }

    fn reset(states: Vec<ServiceState>) -> Event {
        Event::Reset { states, identity: None }
    }

    fn restores() -> mpsc::UnboundedSender<Restore> {
        mpsc::unbounded_channel().0
    }

    fn saved(folder: &std::path::Path, service: &str, codes: std::ops::Range<usize>) {
        let instances = codes.map(|code| Arc::new(Instance::new(service).code(code.to_string()))).collect();
        disk::save(folder, &[(Arc::new(Snapshot::new(service, 7, instances)), Overrides::new())]);
    }

    #[tokio::test]
    async fn who_is_too_far_behind_gets_everything_and_others_what_has_changed() {
        let shared = Shared::new(Scope::All);
        let put = |service: &str, code: &str| {
            shared.store(Snapshot::new(service, 1, vec![Arc::new(Instance::new(service).code(code))]));
        };
        let since = |version| {
            let (snapshots, now) = shared.since(version);
            let mut names: Vec<_> = snapshots.iter().map(|snapshot| snapshot.service().to_string()).collect();
            names.sort();
            (names.join(" "), now)
        };
        assert_eq!(since(Some(0)), (String::new(), 0));
        ["a", "b", "a"].into_iter().for_each(|service| put(service, "x"));
        assert_eq!(since(Some(1)), ("a b".to_owned(), 3));
        assert_eq!(since(Some(2)), ("a".to_owned(), 3));
        (0..JOURNAL).for_each(|_| put("c", "x"));
        assert_eq!(since(Some(3)).0, "c");
        assert_eq!(since(Some(2)).0, "a b c", "the journal does not reach back so far");
        assert_eq!(since(None).0, "a b c");
    }

    #[tokio::test]
    async fn what_only_the_disk_knows_is_gone_with_the_first_reset() {
        let folder = tempfile::tempdir().unwrap();
        saved(folder.path(), "few", 0..2);
        saved(folder.path(), "many", 0..20);
        let shared = Arc::new(Shared::new(Scope::All));
        let (events, receiver) = mpsc::channel(1);
        let store = Store::new(shared.clone(), Some(Guard::default()), Some(folder.path().to_owned()), restores());
        let running = tokio::spawn(store.run(receiver));
        let mut link = shared.link.subscribe();
        link.wait_for(|link| link.loaded == Loaded::FromDisk).await.unwrap();
        assert_eq!(shared.snapshot("few").instances().len(), 2);
        events.send(reset(vec![])).await.unwrap();
        link.wait_for(|link| link.loaded == Loaded::FromRegistry).await.unwrap();
        for (service, count) in [("few", 2), ("many", 20)] {
            let snapshot = shared.snapshot(service);
            assert!(snapshot.is_guarded() && snapshot.instances().len() == count, "an emptied registry: {snapshot:?}");
        }
        drop(events);
        running.await.unwrap();
        let loaded = disk::load(folder.path(), &Scope::one("few")).pop().unwrap().snapshot;
        assert_eq!(loaded, *shared.snapshot("few"), "who is guarded, and since when");
    }

    fn store(guard: Option<Guard>) -> (Arc<Shared>, Store) {
        let shared = Arc::new(Shared::new(Scope::All));
        (shared.clone(), Store::new(shared, guard, None, restores()))
    }

    #[tokio::test]
    async fn nobody_sees_the_lost_missing_before_they_are_guarded() {
        let (shared, mut store) = store(Some(Guard::default()));
        let now = Instant::now();
        store.take(reset(vec![state("a", &["1", "2"]), state("b", &["1", "2", "3"]), state("c", &["1"])]), now);
        let (_, version) = shared.since(None);
        store.take(Event::Stale, now);
        store.take(reset(vec![state("a", &["1"]), state("c", &["1"])]), now);
        assert_eq!(*shared.version.borrow(), version + 2, "one snapshot for each service that has lost anything");
        let guarded = |service: &str| {
            let snapshot = shared.snapshot(service);
            let guarded = snapshot.instances().iter().filter(|instance| instance.is_guarded()).count();
            (snapshot.instances().len(), guarded)
        };
        assert_eq!([guarded("a"), guarded("b"), guarded("c")], [(2, 1), (3, 3), (1, 0)]);
        // They come back one by one, and the others stay.
        store.take(Event::Put(state("b", &["1", "2"])), now);
        assert_eq!(guarded("b"), (3, 1));
        store.take(Event::Put(state("b", &["1", "2", "3"])), now);
        assert_eq!(guarded("b"), (3, 0));
        store.end_guards(now + Duration::from_secs(30));
        assert_eq!([guarded("a"), guarded("c")], [(1, 0), (1, 0)]);
    }

    #[tokio::test]
    async fn overrides_outlive_the_loss_of_the_registrys_data() {
        let shared = Arc::new(Shared::new(Scope::All));
        let (restores, mut restored) = mpsc::unbounded_channel();
        let mut store = Store::new(shared.clone(), Some(Guard::default()), None, restores);
        let (now, drained) = (Instant::now(), Override { drained: true, weight: Some(7) });
        let identity = |id: &str, age: u64| {
            let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap() - Duration::from_secs(age);
            Some(Identity { id: id.to_owned(), since_unix_ms: u64::try_from(since.as_millis()).ok() })
        };
        let with = |overrides: &[(&str, Override)]| {
            let overrides = overrides.iter().map(|(code, set)| ((*code).into(), *set)).collect();
            vec![ServiceState { overrides, ..state("s", &["a", "b"]) }]
        };
        let status = |code: &str| {
            let snapshot = shared.snapshot("s");
            let instance = snapshot.find(code).unwrap();
            (instance.status, instance.weight, instance.is_guarded())
        };
        store
            .take(Event::Reset { states: with(&[("a", drained), ("gone", drained)]), identity: identity("1", 5) }, now);
        assert_eq!((status("a"), status("b")), ((Status::Drained, 7, false), (Status::Passing, 1, false)));
        // Nobody is registered in the new one yet.
        store.take(Event::Reset { states: vec![], identity: identity("2", 0) }, now);
        assert_eq!((status("a"), status("b")), ((Status::Drained, 7, true), (Status::Passing, 1, true)));
        let codes = [restored.try_recv().unwrap().code, restored.try_recv().unwrap().code];
        assert_eq!(codes, ["a", "gone"].map(Arc::from));
        store.take(Event::Put(with(&[]).remove(0)), now);
        assert_eq!(status("a"), (Status::Drained, 7, false), "it has said nothing of it");
        let weight = Override { drained: false, weight: Some(3) };
        store.take(Event::Put(with(&[("a", weight)]).remove(0)), now);
        store.take(Event::Put(with(&[]).remove(0)), now);
        assert_eq!(status("a"), (Status::Passing, 1, false), "it has said something, and then nothing");
        // Of the same registry, and of one that is as it is for long, everything is believed.
        for (id, age) in [("2", 0), ("3", 601)] {
            store.take(Event::Put(with(&[("a", drained)]).remove(0)), now);
            assert_eq!(status("a"), (Status::Drained, 7, false));
            store.take(Event::Reset { states: with(&[]), identity: identity(id, age) }, now);
            assert_eq!(status("a"), (Status::Passing, 1, false), "{id}");
        }
        // What a registry that cannot tell its age never mentions again ends by itself.
        store.take(Event::Put(with(&[("a", drained)]).remove(0)), now);
        let ageless = Some(Identity { id: "4".to_owned(), since_unix_ms: None });
        store.take(Event::Reset { states: with(&[]), identity: ageless }, now);
        assert_eq!(status("a"), (Status::Drained, 7, false));
        assert_eq!(store.held["s"].until(), Some(now + SETTLED));
        store.end_guards(now + SETTLED);
        assert_eq!(status("a"), (Status::Passing, 1, false));
        // A directory of the same process says nothing that is not known better.
        store.take(Event::Known(with(&[("a", drained)]).remove(0)), now);
        assert_eq!(status("a"), (Status::Passing, 1, false));
    }

    #[tokio::test]
    async fn a_reset_after_clean_leaves_guards_nobody() {
        let (shared, mut store) = store(Some(Guard::default()));
        let now = Instant::now();
        let ten = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
        store.take(reset(vec![state("s", &ten), state("t", &["1"])]), now);
        let left: Vec<Arc<str>> = ten.iter().map(|code| (*code).into()).collect();
        let gone = ServiceState { left, ..ServiceState::empty("s") };
        store.take(reset(vec![gone, state("t", &["1"])]), now);
        assert!(shared.snapshot("s").is_empty() && !shared.snapshot("t").is_guarded());
        assert!(shared.has_left("s", "3") && !shared.has_left("t", "1"));
        store.take(Event::Put(state("s", &["3"])), now);
        store.take(Event::Put(state("s", &[])), now);
        assert!(!shared.has_left("s", "3"), "it has come back, and was lost");
    }

    #[test]
    fn a_slow_disk_does_not_stop_the_directory() {
        // The one thread for what blocks is taken: no write ends before it is given back.
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).max_blocking_threads(1).build().unwrap();
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let shared = Arc::new(Shared::new(Scope::All));
            let (events, receiver) = mpsc::channel(1);
            let running = tokio::spawn(
                Store::new(shared.clone(), None, Some(folder.path().to_owned()), restores()).run(receiver),
            );
            events.send(Event::Put(state("s", &["a"]))).await.unwrap();
            shared.version.subscribe().wait_for(|version| *version == 1).await.unwrap();
            let (give_back, taken) = std::sync::mpsc::channel::<()>();
            let disk = tokio::task::spawn_blocking(move || taken.recv());
            for codes in [&["b"], &["c"]] {
                tokio::time::advance(SAVE_AFTER * 2).await;
                let sent = async { events.send(Event::Put(state("s", codes))).await.unwrap() };
                // In turns, not by time: the clock stands still while something blocks.
                let turns = async {
                    for _ in 0..100 {
                        tokio::task::yield_now().await;
                    }
                };
                tokio::join!(sent, turns);
                assert!(shared.snapshot("s").find(codes[0]).is_some());
            }
            give_back.send(()).unwrap();
            disk.await.unwrap().unwrap();
            drop(events);
            running.await.unwrap();
            let loaded = disk::load(folder.path(), &Scope::All);
            assert!(loaded[0].snapshot.find("c").is_some(), "the rest is saved at the end: {loaded:?}");
        });
    }
}
