//! Where registrations live.

use std::collections::HashMap;
use std::future::pending;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt as _;
use pointsman_core::{Instance, MAX_WEIGHT, Term, check_name};
use tokio::sync::{mpsc, oneshot, watch};

use crate::agent::Agent;
use crate::backend::{Backend, Event, Scope, ServiceState};
use crate::directory::{Directory, Inner as DirectoryInner, Service};
use crate::disk;
use crate::guard::Guard;
use crate::hold::{Hold, Holds};
use crate::log::{self, Log};
use crate::memory::Memory;
use crate::overrides::{Override, OverrideChange};
use crate::peers::{self, Answer, Peers};
use crate::registration::{self, Command, Departure, End, Registration};
use crate::store::{Restore, Shared, Store};
use crate::url::{Common, Url, redacted};
use crate::zookeeper::ZooKeeper;
use crate::{Error, Result};

/// A registry: services register here, and are found. Cheap to clone.
///
/// When the last clone, and the last registration and directory of it are gone, its sessions are closed.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    url: String,
    backend: Arc<dyn Backend>,
    connect_timeout: Duration,
    /// Whether that does not matter: see [`Builder::wait`].
    waits: bool,
    guard: Option<Guard>,
    snapshots: Option<PathBuf>,
    /// Whether the registry has answered once; otherwise this process has started from snapshots on disk.
    answered: Arc<AtomicBool>,
    directories: Mutex<HashMap<Scope, Weak<DirectoryInner>>>,
    /// Whether the registry has been closed: by any of its clones, for all of them.
    closed: watch::Sender<bool>,
    /// Each task of a registration or a directory holds a receiver, so that closing can wait for their ends.
    tasks: watch::Sender<()>,
    /// Service and code of each living registration of this process: registering twice is refused, not doubled.
    holds: Holds,
}

/// Settings of a [`Registry`] before it is connected. A setting made here comes before the URL's option.
#[derive(Debug, Clone)]
pub struct Builder {
    url: String,
    wait: bool,
    connect_timeout: Option<Duration>,
    snapshots: Option<PathBuf>,
    guard: Option<Option<Guard>>,
}

const MAX_HOLDER_BYTES: usize = 128;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a process that would wait for the registry without end waits for it where there are snapshots on disk to start from.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long reading snapshots from disk may take.
const DISK: Duration = Duration::from_millis(500);
/// Timeout for registrations to leave when their registry is closed: what takes longer is gone with its session.
const LEAVE: Duration = Duration::from_secs(1);
/// Events on their way from a backend to a directory's store, before the backend has to wait.
const EVENTS: usize = 256;

impl Registry {
    /// Connects to the registry at `url`: `memory://NAME` for one within this process,
    /// `zookeeper://HOST:PORT,HOST:PORT/PREFIX?OPTIONS`, or `http://HOST:PORT,HOST:PORT?OPTIONS` for agents (`https://`, too).
    ///
    /// Options: `session_timeout` (10s), `connect_timeout` (5s), `auth=digest:USER:PASSWORD` or `auth_file=PATH`, `acl`
    /// (`open` or `protected`), `tls=on` with `ca`, `cert` and `key`, `root` (`/pointsman`: where drains, weights and terms are stored; the
    /// same for the whole fleet), `snapshots=FOLDER`, `guard` (`on` or `off`). Of agents:
    /// `token_file=PATH` or `token`, `ttl` (10s; the lease of registrations), for https `ca`, `cert` and `key`.
    ///
    /// # Errors
    ///
    /// [`Error::Url`], and [`Error::Unreachable`] when no server has answered within the connect timeout.
    pub async fn connect(url: &str) -> Result<Self> {
        Self::builder(url).connect().await
    }

    /// Settings that go beyond the URL.
    #[must_use]
    pub fn builder(url: &str) -> Builder {
        Builder { url: url.to_owned(), wait: false, connect_timeout: None, snapshots: None, guard: None }
    }

    /// Registers an instance and returns once it is registered. From then on it stays so, through reconnections and
    /// expired sessions, until the registration is closed or dropped. Cancelled, nothing stays registered.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] and [`Error::TooLarge`] before anything is sent; [`Error::DuplicateCode`] when another living
    /// instance has the code, which takes as long as a dead process's session may last, because a process that died a
    /// moment ago may be registered still (one of this registry that has been dropped or closed is waited for);
    /// [`Error::Refused`] when the registry refuses; [`Error::Unavailable`] when it cannot be reached within the connect
    /// timeout; [`Error::Closed`].
    pub async fn register(&self, instance: Instance) -> Result<Registration> {
        self.register_for(instance, None).await
    }

    /// As [`Registry::register`], for `holder`: where the same instance is registered already for the same holder, by this or
    /// another process, whether that lives or has died a moment ago, its registration is replaced at once, and ends by itself.
    /// So whoever keeps registrations for others (an agent) can be replaced by another without a gap. A master that is taken
    /// over stays master, with its term: whoever says the same holder is the same master, and no other mastership begins.
    ///
    /// A holder is 1 to 128 bytes without control characters. It is no secret: it can be read in the registry.
    ///
    /// # Errors
    ///
    /// As [`Registry::register`]; [`Error::DuplicateCode`] where the code is registered for another holder, or for none.
    pub async fn take_over(&self, instance: Instance, holder: &str) -> Result<Registration> {
        if holder.is_empty() || holder.len() > MAX_HOLDER_BYTES || holder.chars().any(char::is_control) {
            let step = format!("register {}/{}", instance.service, instance.code);
            let reason = format!("a holder has 1 to {MAX_HOLDER_BYTES} bytes, none of them a control character");
            return Err(Error::Refused { step, reason });
        }
        self.register_for(instance, Some(holder.into())).await
    }

    async fn register_for(&self, instance: Instance, holder: Option<Arc<str>>) -> Result<Registration> {
        instance.check()?;
        let (registration, task, answer) = registration::pair(instance, holder.clone());
        let hold = Hold::take(&self.inner.holds, &registration, holder.as_ref(), self.inner.connect_timeout).await?;
        self.check_open()?;
        let backend = self.inner.backend.clone();
        let (mut closed, alive) = (self.inner.closed.subscribe(), self.inner.tasks.subscribe());
        let cut = registration.cut();
        let commands = registration.commands();
        tokio::spawn(async move {
            let keeping = backend.keep(task);
            tokio::pin!(keeping);
            let end = tokio::select! {
                biased;
                () = set(&mut closed) => leave(&mut keeping, &commands).await,
                // The registration ends with what the backend's task held.
                () = cut.notified() => End::Dropped,
                end = &mut keeping => end,
            };
            drop((hold, alive));
            end.tell();
        });
        answer.await.map_err(|_| registry_closed())??;
        Ok(registration)
    }

    /// Follows one service, which need not exist yet; returns once the first snapshot is in. Where a snapshot folder is
    /// set and the registry does not answer within the connect timeout, that is the one from disk; so it is, at once, as long as
    /// the registry [has not answered](Registry::has_answered) at all.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for a name that no service can have; [`Error::Unreachable`]; [`Error::Refused`] when the registry lets nothing be
    /// read (where only a part may not be read, that is a [`Problem`](pointsman_core::Problem) of its service); [`Error::Closed`].
    pub async fn discover(&self, service: &str) -> Result<Service> {
        check_name("service", service)?;
        let directory = self.follow(Scope::one(service)).await?;
        directory.service(service).ok_or_else(|| Error::Closed { what: "directory".to_owned() })
    }

    /// Follows several services; otherwise as [`Registry::discover`].
    ///
    /// # Errors
    ///
    /// As [`Registry::discover`].
    pub async fn discover_several(&self, services: impl IntoIterator<Item = impl Into<Arc<str>>>) -> Result<Directory> {
        self.follow(scope(services)?).await
    }

    /// Follows several services without waiting for the registry: each is as another directory of this registry knows it, or as it
    /// is on disk, or else empty; and stale, until the registry has been read. [`Directory::fresh`] waits for that. Must be called
    /// within a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for a name that no service can have; [`Error::Closed`].
    pub fn follow_several(&self, services: impl IntoIterator<Item = impl Into<Arc<str>>>) -> Result<Directory> {
        let scope = scope(services)?;
        self.check_open()?;
        Ok(self.directory(scope))
    }

    /// Follows all services; otherwise as [`Registry::discover`].
    ///
    /// # Errors
    ///
    /// [`Error::Unreachable`], [`Error::Refused`], [`Error::Closed`].
    pub async fn discover_all(&self) -> Result<Directory> {
        self.follow(Scope::All).await
    }

    /// Lets an instance get no new claims, until it is undrained; it may register again meanwhile.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`], [`Error::Unavailable`], [`Error::Refused`], [`Error::Closed`].
    pub async fn drain(&self, service: &str, code: &str) -> Result<()> {
        self.set_override(service, code, OverrideChange::Drain).await
    }

    /// As [`Registry::drain`], unless anything is set for the instance already: for whoever remembers a drain that a registry has lost with
    /// its data. There an operator may have set something else meanwhile.
    ///
    /// # Errors
    ///
    /// As [`Registry::drain`].
    pub async fn drain_if_unset(&self, service: &str, code: &str) -> Result<()> {
        check_name("service", service)?;
        check_name("code", code)?;
        self.check_open()?;
        self.inner.backend.restore_override(service, code, Override { drained: true, weight: None }).await
    }

    /// Ends a drain. Nothing happens if the instance is not drained.
    ///
    /// # Errors
    ///
    /// As [`Registry::drain`].
    pub async fn undrain(&self, service: &str, code: &str) -> Result<()> {
        self.set_override(service, code, OverrideChange::Undrain).await
    }

    /// Sets the weight that counts instead of the registered one; `None` lets the registered one count again.
    ///
    /// # Errors
    ///
    /// As [`Registry::drain`].
    pub async fn set_weight(&self, service: &str, code: &str, weight: Option<u32>) -> Result<()> {
        if let Some(weight) = weight.filter(|weight| *weight > MAX_WEIGHT) {
            return Err(Error::Invalid(pointsman_core::InvalidInstance::Weight(weight)));
        }
        self.set_override(service, code, OverrideChange::Weight(weight)).await
    }

    /// Lets a term of a service pass, unless a higher one has been granted to a master, or has passed at any process that asks this registry;
    /// returns the highest. For whoever keeps what is written under a mastership, and gets the term with each write
    /// ([`TermGuard`](pointsman_core::TermGuard) does the same for one process alone). It does not matter whether there is a master
    /// now, nor who has been restarted since. On ZooKeeper it takes one round trip through the leader, and a write for a term that the
    /// registry has not seen yet; over an agent, one request.
    ///
    /// A term that was never granted passes if it is higher than all others, and counts until the next one is granted.
    ///
    /// # Errors
    ///
    /// [`Error::StaleTerm`]; [`Error::Invalid`], [`Error::Unavailable`], [`Error::Refused`], [`Error::Closed`]: then nothing is known of
    /// the term, and the write must not be accepted.
    pub async fn check_term(&self, service: &str, term: Term) -> Result<Term> {
        check_name("service", service)?;
        self.check_open()?;
        self.inner.backend.check_term(service, term).await
    }

    /// Lets this process be asked by others that share this registry, and ask them: through the registry itself, so that they need no way to
    /// each other. Must be called within a tokio runtime. It takes part from some milliseconds later on, and whenever the registry can be
    /// reached; not where the registry is an agent's.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`].
    pub fn join_peers(&self, answer: Arc<dyn Answer>) -> Result<Peers> {
        self.check_open()?;
        let (peers, part) = peers::pair(answer);
        let backend = self.inner.backend.clone();
        let (mut closed, alive) = (self.inner.closed.subscribe(), self.inner.tasks.subscribe());
        tokio::spawn(async move {
            let _alive = alive;
            tokio::select! {
                biased;
                () = set(&mut closed) => {}
                () = backend.exchange(part) => {}
            }
        });
        Ok(peers)
    }

    /// Adds an entry to a log in the registry, unless there is one under that key. A key is a name as codes are, and decides the order. An entry has at
    /// most 16 KiB.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`], [`Error::Refused`] (always, where the registry is an agent's), [`Error::Unavailable`], [`Error::Closed`].
    pub async fn append(&self, log: &Log, key: &str, entry: &str) -> Result<()> {
        check_name("key", key)?;
        if let Log::Masters(service) = log {
            check_name("service", service)?;
        }
        if entry.len() > log::MAX_BYTES {
            let reason = format!("the entry has {} bytes, and may have {}", entry.len(), log::MAX_BYTES);
            return Err(Error::Refused { step: format!("add to {log}"), reason });
        }
        self.check_open()?;
        self.inner.backend.append(log, key, entry).await
    }

    /// Reads a log: its newest entries, the oldest of them first.
    ///
    /// # Errors
    ///
    /// As [`Registry::append`].
    pub async fn read_log(&self, log: &Log) -> Result<Vec<String>> {
        if let Log::Masters(service) = log {
            check_name("service", service)?;
        }
        self.check_open()?;
        self.inner.backend.read_log(log).await
    }

    async fn set_override(&self, service: &str, code: &str, change: OverrideChange) -> Result<()> {
        check_name("service", service)?;
        check_name("code", code)?;
        self.check_open()?;
        self.inner.backend.set_override(service, code, change).await?;
        tracing::info!(service, code, ?change, "override set");
        Ok(())
    }

    /// Closes this registry, with all its clones. What is still registered through it is gone from the registry when
    /// this returns, or, if the registry is away, when its session expires; its directories stay as they are, and are
    /// stale. Whoever calls a clone gets [`Error::Closed`].
    pub async fn close(self) {
        self.inner.closed.send_replace(true);
        // First the tasks, then the sessions: a task that has only just begun might need another session.
        self.inner.tasks.closed().await;
        self.inner.backend.close().await;
    }

    /// Ends this process's part in the registry without closing its sessions: what was [abandoned](Registration::abandon) stays
    /// registered until they time out. To be called before the process ends: until then, they are kept alive.
    pub fn abandon(self) {
        // Deliberately for ever: with the last handle the sessions would be closed.
        std::mem::forget(self.inner);
    }

    fn check_open(&self) -> Result<()> {
        if *self.inner.closed.borrow() { Err(registry_closed()) } else { Ok(()) }
    }

    /// The URL, without secrets.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.inner.url
    }

    /// Whether the registry has answered since this process began to connect to it. `false`: the registry was away, and the
    /// process has started from [snapshots on disk](Builder::snapshots).
    #[must_use]
    pub fn has_answered(&self) -> bool {
        self.inner.answered.load(Ordering::Relaxed)
    }

    async fn follow(&self, scope: Scope) -> Result<Directory> {
        self.check_open()?;
        let directory = self.directory(scope);
        let has_content = if self.has_answered() {
            directory.loaded(self.inner.connect_timeout).await
        } else {
            // It has been waited for already, in `connect`.
            tokio::time::timeout(DISK, directory.begun()).await.is_ok()
        };
        if has_content {
            return Ok(directory);
        }
        if self.inner.waits {
            let mut closed = self.inner.closed.subscribe();
            tokio::select! {
                () = directory.begun() => return Ok(directory),
                () = set(&mut closed) => {}
            }
        }
        self.check_open()?;
        let tried = format!("read services from {}", self.inner.url);
        if let Some(reason) = directory.shared().refusal() {
            return Err(Error::Refused { step: tried, reason: reason.to_string() });
        }
        Err(Error::Unreachable {
            tried,
            waited: self.inner.connect_timeout,
            reason: "no connection, and no snapshot on disk".to_owned(),
        })
    }

    /// One directory a scope: whoever follows the same shares it.
    fn directory(&self, scope: Scope) -> Directory {
        let inner = &self.inner;
        let mut directories = lock(&inner.directories);
        if let Some(existing) = directories.get(&scope).and_then(Weak::upgrade) {
            return Directory::new(existing);
        }
        let known = known(&directories, &scope);
        let shared = Arc::new(Shared::new(scope.clone()));
        let (events, receiver) = mpsc::channel(EVENTS);
        let (restores, restored) = mpsc::unbounded_channel();
        let store = Store::new(shared.clone(), inner.guard, inner.snapshots.clone(), restores);
        let (backend, followed) = (inner.backend.clone(), scope.clone());
        let restoring = restore(backend.clone(), restored);
        // On one task: what the backend sends, the store takes in without another thread being woken.
        let (alive, mut ended) = watch::channel(());
        let (mut closed, task) = (inner.closed.subscribe(), inner.tasks.subscribe());
        tokio::spawn(async move {
            let following = async move {
                let _task = task;
                tokio::select! {
                    biased;
                    () = set(&mut closed) => {
                        let _ = events.send(Event::Stale).await;
                    }
                    // Drops the backend's end of the channel, so that the store saves what is left, and ends.
                    _ = ended.changed() => {}
                    () = async {
                        for state in known {
                            let _ = events.send(Event::Known(state)).await;
                        }
                        backend.follow(followed, events.clone()).await;
                    } => {}
                }
            };
            tokio::join!(following, store.run(receiver), restoring);
        });
        let directory = Arc::new(DirectoryInner::new(shared, alive));
        directories.retain(|_, directory| directory.strong_count() > 0);
        directories.insert(scope, Arc::downgrade(&directory));
        Directory::new(directory)
    }
}

impl Builder {
    /// Goes on trying until the registry answers, instead of failing after the connect timeout: here, and where something is
    /// registered or discovered. Where there are [snapshots on disk](Builder::snapshots), connecting waits for 2 s at most (less
    /// if the connect timeout is shorter), and goes on in the background.
    #[must_use]
    pub fn wait(mut self, wait: bool) -> Self {
        self.wait = wait;
        self
    }

    /// How long to try before [`Error::Unreachable`]. Default 5 s.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = Some(timeout);
        self
    }

    /// Keeps snapshots in this folder, and starts from them when the registry cannot be reached. With a folder,
    /// connecting does not fail because the registry is away.
    #[must_use]
    pub fn snapshots(mut self, folder: impl Into<PathBuf>) -> Self {
        self.snapshots = Some(folder.into());
        self
    }

    /// The guard against a mass loss; `None` turns it off. Default [`Guard::default`].
    #[must_use]
    pub fn guard(mut self, guard: Option<Guard>) -> Self {
        self.guard = Some(guard);
        self
    }

    /// Whether the URL can be used, as far as that can be told without connecting.
    ///
    /// # Errors
    ///
    /// [`Error::Url`], [`Error::File`].
    pub fn check(&self) -> Result<()> {
        Url::parse(&self.url).map(drop)
    }

    /// The URL without its secrets.
    #[must_use]
    pub fn shown_url(&self) -> String {
        redacted(&self.url)
    }

    /// Connects; see [`Registry::connect`].
    ///
    /// # Errors
    ///
    /// As [`Registry::connect`].
    pub async fn connect(self) -> Result<Registry> {
        let (url, Common { connect_timeout, snapshots, guard }) = Url::parse(&self.url)?;
        let connect_timeout = self.connect_timeout.or(connect_timeout).unwrap_or(CONNECT_TIMEOUT);
        // An agent guards what it tells.
        let guards = !matches!(url, Url::Agent(_));
        let folder = self.snapshots.or(snapshots);
        let backend: Arc<dyn Backend> = match url {
            Url::Memory(name) => {
                let memory = Memory::named(&name);
                if let Some(folder) = &folder {
                    // The clock may have jumped back since.
                    let folder = folder.join(memory.label());
                    let memory = memory.clone();
                    let restoring = tokio::task::spawn_blocking(move || {
                        memory.rise_above(disk::highest(&folder));
                        // From here on the snapshots are of this registry.
                        disk::save_identity(&folder, Some(memory.restore(disk::load_overrides(&folder))));
                    });
                    let _ = restoring.await;
                }
                memory
            }
            Url::ZooKeeper(settings) => Arc::new(ZooKeeper::new(*settings)?),
            Url::Agent(settings) => Arc::new(Agent::new(*settings, connect_timeout)?),
        };
        let guard_of_url = || match guard {
            None if !guards => Some(Guard::against_lost_data()),
            Some(false) => None,
            _ => Some(Guard::default()),
        };
        let snapshots = folder.map(|folder| folder.join(backend.label()));
        let (shown, closed) = (redacted(&self.url), watch::Sender::new(false));
        let limit = (!self.wait).then_some(connect_timeout);
        let answered = match &snapshots {
            None => backend.connected(limit).await.map(|()| true)?,
            Some(folder) => reach(&*backend, limit, connect_timeout.min(PATIENCE), folder).await?,
        };
        let answered = Arc::new(AtomicBool::new(answered));
        if !answered.load(Ordering::Relaxed) {
            note_answer(backend.clone(), answered.clone(), closed.subscribe(), shown.clone());
        }
        Ok(Registry {
            inner: Arc::new(Inner {
                url: shown,
                backend,
                connect_timeout,
                waits: self.wait,
                guard: self.guard.unwrap_or_else(guard_of_url),
                snapshots,
                answered,
                directories: Mutex::default(),
                closed,
                tasks: watch::Sender::new(()),
                holds: Holds::default(),
            }),
        })
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("url", &self.inner.url).finish_non_exhaustive()
    }
}

/// Returns what other directories know of services that are about to be followed: a new directory does not begin with less than the
/// process knows, however long the registry takes.
fn known(directories: &HashMap<Scope, Weak<DirectoryInner>>, scope: &Scope) -> Vec<ServiceState> {
    let Scope::Services(services) = scope else { return Vec::new() };
    let others: Vec<_> = directories.values().filter_map(Weak::upgrade).map(Directory::new).collect();
    let newest = |service: &Arc<str>| {
        let snapshots = others.iter().map(|other| other.snapshot(service)).filter(|snapshot| !snapshot.is_empty());
        let snapshot = snapshots.max_by_key(|snapshot| snapshot.revision())?;
        let (instances, problems) = (snapshot.instances().to_vec(), snapshot.problems().to_vec());
        // Older than whatever the registry tells.
        Some(ServiceState { instances, problems, ..ServiceState::empty(service.clone()) })
    };
    services.iter().filter_map(newest).collect()
}

/// The scope of these services.
fn scope(services: impl IntoIterator<Item = impl Into<Arc<str>>>) -> Result<Scope> {
    let services: std::collections::BTreeSet<Arc<str>> = services.into_iter().map(Into::into).collect();
    services.iter().try_for_each(|service| check_name("service", service))?;
    Ok(Scope::Services(services))
}

/// Waits until the registry answers: for `limit`, or, where there is none, for as long as there are no snapshots in `folder` that could
/// be started from; once there are, for `patience`. Returns whether it has answered; otherwise snapshots are what there is.
async fn reach(backend: &dyn Backend, limit: Option<Duration>, patience: Duration, folder: &Path) -> Result<bool> {
    let mut connecting = backend.connected(limit);
    // With a limit it ends by itself, and says what it has seen.
    let patience = limit.map_or(patience, |limit| limit + DISK);
    let reason = match tokio::time::timeout(patience, &mut connecting).await {
        Ok(Err(error)) if error.is_retryable() => error.to_string(),
        Ok(result) => return result.map(|()| true),
        Err(_) => format!("no answer within {patience:?}"),
    };
    let from = folder.to_owned();
    let saved = tokio::task::spawn_blocking(move || disk::load(&from, &Scope::All)).await.unwrap_or_default();
    let age = |at: SystemTime| Duration::from_secs(at.elapsed().unwrap_or_default().as_secs());
    let ages = || saved.iter().map(|saved| age(saved.at));
    match (ages().min(), ages().max()) {
        (Some(newest), Some(oldest)) => {
            let (services, folder) = (saved.len(), folder.display());
            tracing::warn!(
                reason, %folder, services, ?newest, ?oldest,
                "the registry is away: starting from the snapshots on disk, which are stale"
            );
            Ok(false)
        }
        _ if limit.is_none() => connecting.await.map(|()| true),
        _ => {
            tracing::warn!(reason, folder = %folder.display(), "the registry is away, and there is no snapshot on disk");
            Ok(false)
        }
    }
}

/// Sets again, in a registry that has lost its data, what operators had set there.
async fn restore(backend: Arc<dyn Backend>, mut restores: mpsc::UnboundedReceiver<Restore>) {
    while let Some(Restore { service, code, set }) = restores.recv().await {
        match backend.restore_override(&service, &code, set).await {
            Ok(()) => tracing::warn!(%service, %code, ?set, "override restored: the registry had lost it"),
            Err(error) => tracing::warn!(%service, %code, ?set, %error, "override kept here, but not restored"),
        }
    }
}

/// Notes when the registry answers for the first time, unless it is closed before, or nobody has it any more.
fn note_answer(
    backend: Arc<dyn Backend>,
    answered: Arc<AtomicBool>,
    mut closed: watch::Receiver<bool>,
    registry: String,
) {
    let mut connecting = async move { backend.connected(None).await }.boxed();
    // From now on, and not from when the task begins: by then a directory may have taken the session that is waited for.
    let first = (&mut connecting).now_or_never();
    tokio::spawn(async move {
        let result = match first {
            Some(result) => result,
            None => tokio::select! {
                result = connecting => result,
                _ = closed.changed() => return,
            },
        };
        match result {
            Ok(()) => {
                answered.store(true, Ordering::Relaxed);
                tracing::info!(registry, "registry connected");
            }
            Err(error) => tracing::warn!(registry, %error, "the registry gives no answer"),
        }
    });
}

/// Lets a registration leave because its registry is closed: cleanly, if that is possible in time. Otherwise it ends with the
/// session.
async fn leave(
    keeping: &mut (impl Future<Output = End> + Unpin),
    commands: &mpsc::WeakUnboundedSender<Command>,
) -> End {
    // Nobody waits for this answer. One that is being dropped leaves anyway.
    let (reply, _) = oneshot::channel();
    if let Some(commands) = commands.upgrade() {
        let _ = commands.send(Command::Close(Departure::Left, reply));
    }
    tokio::time::timeout(LEAVE, keeping).await.unwrap_or(End::Dropped)
}

/// Returns when the flag is set. When its registry is gone it will never be: registrations outlive their registry.
async fn set(flag: &mut watch::Receiver<bool>) {
    if flag.wait_for(|set| *set).await.is_err() {
        pending::<()>().await;
    }
}

fn registry_closed() -> Error {
    Error::Closed { what: "registry".to_owned() }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while it was held cannot have left these maps half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
