//! How a registry is connected.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt as _;
use tokio::sync::watch;

use super::{Inner, Registry};
use crate::Result;
#[cfg(feature = "agent-client")]
use crate::agent::Agent;
use crate::backend::{Backend, Scope};
use crate::disk;
use crate::guard::Guard;
use crate::hold::Holds;
use crate::memory::Memory;
use crate::url::{Common, Url, redacted};
use crate::wait::{Outlook, Wait};
#[cfg(feature = "zookeeper")]
use crate::zookeeper::ZooKeeper;

/// Settings of a [`Registry`] before it is connected. A setting made here comes before the URL's option.
///
/// # Examples
///
/// ```
/// # use std::time::Duration;
/// # use pointsman_registry::{Guard, Registry};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let builder = Registry::builder("memory://settings")
///     .wait(true) // keeps trying while the registry is away
///     .connect_timeout(Duration::from_secs(2))
///     .guard(Some(Guard { hold: Duration::from_secs(60), ..Guard::default() }));
/// builder.check()?; // nothing is connected yet
/// let registry = builder.connect().await?;
/// assert!(registry.has_answered());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Builder {
    url: String,
    wait: bool,
    fail_fast: bool,
    connect_timeout: Option<Duration>,
    snapshots: Option<PathBuf>,
    guard: Option<Option<Guard>>,
    note: Option<Note>,
}

/// See [`Builder::on_failed_attempt`].
#[derive(Clone)]
struct Note(Arc<dyn Fn(&str) + Send + Sync>);

impl fmt::Debug for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Note")
    }
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a process that would wait for the registry without end waits for it where there are snapshots on disk to start from.
const PATIENCE: Duration = Duration::from_secs(2);
/// Interval at which a registry that refuses this client is asked again in the background.
const REFUSED: Duration = Duration::from_secs(10);
/// How long reading snapshots from disk may take.
pub(super) const DISK: Duration = Duration::from_millis(500);

impl Builder {
    pub(super) fn new(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            wait: false,
            fail_fast: false,
            connect_timeout: None,
            snapshots: None,
            guard: None,
            note: None,
        }
    }

    /// Goes on trying until the registry answers, instead of failing after the connect timeout: here, and where something is
    /// registered or discovered. What time does not mend ends that at once: a certificate, a token or a password that is refused. Where there are [snapshots on disk](Builder::snapshots), connecting waits for 2 s at most (less
    /// if the connect timeout is shorter), and goes on in the background.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::Instance;
    /// # use pointsman_registry::Registry;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let registry = Registry::builder("memory://wait").wait(true).connect().await?;
    /// // Registrations wait without end as well, unless they set a `patience` of their own.
    /// let registration = registry.register(Instance::new("ress")).await?;
    /// assert!(registration.role().is_master());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn wait(mut self, wait: bool) -> Self {
        self.wait = wait;
        self
    }

    /// Sets the time after which connecting fails with [`Error::Unreachable`](crate::Error::Unreachable). Default 5 s. A registry that refuses this client
    /// ([`Error::Refused`](crate::Error::Refused)) ends it earlier; see also [`fail_fast`](Builder::fail_fast).
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(not(feature = "zookeeper"))]
    /// # fn main() {}
    /// # #[cfg(feature = "zookeeper")]
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use std::time::Duration;
    /// # use pointsman_registry::{Error, Registry};
    /// // Nothing listens there.
    /// let away = Registry::builder("zookeeper://127.0.0.1:1/micro-service").connect_timeout(Duration::from_millis(50));
    /// assert!(matches!(away.connect().await, Err(Error::Unreachable { .. })));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = Some(timeout);
        self
    }

    /// Ends connecting with [`Error::Unreachable`](crate::Error::Unreachable) as soon as it is plain that the registry is not there: nothing
    /// listens at a port of this machine, or another kind of server does. For commands, whose user waits. Default: no, since a service may
    /// start a moment before the agent beside it. Without effect with [`wait`](Builder::wait).
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(not(feature = "zookeeper"))]
    /// # fn main() {}
    /// # #[cfg(feature = "zookeeper")]
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use pointsman_registry::{Error, Registry};
    /// // Nothing listens there. Without `fail_fast` this takes 5 s.
    /// let away = Registry::builder("zookeeper://127.0.0.1:1/micro-service").fail_fast(true);
    /// assert!(matches!(away.connect().await, Err(Error::Unreachable { .. })));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn fail_fast(mut self, fail_fast: bool) -> Self {
        self.fail_fast = fail_fast;
        self
    }

    /// Calls `note` with the reason each time an attempt to [connect](Builder::connect) fails, while others follow. It is called by the task
    /// that connects, and must not block.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(not(feature = "zookeeper"))]
    /// # fn main() {}
    /// # #[cfg(feature = "zookeeper")]
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use std::time::Duration;
    /// # use pointsman_registry::Registry;
    /// let (sender, mut reasons) = tokio::sync::mpsc::unbounded_channel();
    /// let away = Registry::builder("zookeeper://127.0.0.1:1/micro-service") // nothing listens there
    ///     .wait(true)
    ///     .on_failed_attempt(move |reason| sender.send(reason.to_owned()).unwrap());
    /// tokio::select! {
    ///     _ = away.connect() => unreachable!(),
    ///     reason = reasons.recv() => assert!(reason.unwrap().contains("127.0.0.1:1")),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn on_failed_attempt(mut self, note: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.note = Some(Note(Arc::new(note)));
        self
    }

    /// Keeps snapshots in this folder, and starts from them when the registry cannot be reached. With a folder,
    /// connecting does not fail because the registry is away.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(not(feature = "zookeeper"))]
    /// # fn main() {}
    /// # #[cfg(feature = "zookeeper")]
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use std::time::Duration;
    /// # use pointsman_registry::Registry;
    /// # let folder = tempfile::tempdir()?;
    /// let registry = Registry::builder("zookeeper://127.0.0.1:1/micro-service") // nothing listens there
    ///     .connect_timeout(Duration::from_millis(50))
    ///     .snapshots(folder.path())
    ///     .connect()
    ///     .await?;
    /// assert!(!registry.has_answered());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn snapshots(mut self, folder: impl Into<PathBuf>) -> Self {
        self.snapshots = Some(folder.into());
        self
    }

    /// The guard against a mass loss; `None` turns it off. Default [`Guard::default`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::Instance;
    /// # use pointsman_registry::{Departure, Registry};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let registry = Registry::builder("memory://no-guard").guard(None).connect().await?;
    /// let registration = registry.register(Instance::new("ress")).await?;
    /// let service = registry.discover("ress").await?;
    /// registration.close_as(Departure::Lost).await?;
    /// service.wait_for(|snapshot| snapshot.is_empty()).await?; // a lost instance is removed at once
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn guard(mut self, guard: Option<Guard>) -> Self {
        self.guard = Some(guard);
        self
    }

    /// Checks whether the URL can be used, as far as that can be told without connecting: the files that it names are read too.
    ///
    /// # Errors
    ///
    /// [`Error::Url`](crate::Error::Url), [`Error::File`](crate::Error::File).
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_registry::{Error, Registry};
    /// assert!(Registry::builder("memory://ok").check().is_ok());
    /// let error = Registry::builder("zookeper://10.0.0.1:2181/x").check().unwrap_err();
    /// assert!(matches!(error, Error::Url { .. }));
    /// ```
    pub fn check(&self) -> Result<()> {
        Url::parse(&self.url)?.0.check_files()
    }

    /// The URL without its secrets.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_registry::Registry;
    /// let builder = Registry::builder("zookeeper://10.0.0.1:2181/x?auth=digest:ann:secret");
    /// assert!(!builder.shown_url().contains("secret"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn shown_url(&self) -> String {
        redacted(&self.url)
    }

    /// Returns without waiting for the registry, which is connected to in the background: for whoever uses several, none of which is to
    /// wait for another. Services are followed by [`Registry::follow_several`] meanwhile, which tells what is on disk, and whoever registers
    /// waits until the registry [has answered](Registry::has_answered).
    ///
    /// # Errors
    ///
    /// [`Error::Url`](crate::Error::Url), [`Error::File`](crate::Error::File).
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(not(feature = "zookeeper"))]
    /// # fn main() {}
    /// # #[cfg(feature = "zookeeper")]
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use pointsman_registry::{Freshness, Registry};
    /// let registry = Registry::builder("zookeeper://127.0.0.1:1/micro-service").connect_in_background().await?;
    /// assert!(!registry.has_answered()); // nothing listens there, and the call has not waited
    /// let directory = registry.follow_several(["ress"])?;
    /// assert!(matches!(directory.freshness(), Freshness::Stale { .. }));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn connect_in_background(mut self) -> Result<Registry> {
        self.wait = true;
        self.open(false).await
    }

    /// Connects; see [`Registry::connect`].
    ///
    /// # Errors
    ///
    /// As [`Registry::connect`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_registry::Registry;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let registry = Registry::builder("memory://connect-builder").guard(None).connect().await?;
    /// assert_eq!(registry.url(), "memory://connect-builder");
    /// # Ok(())
    /// # }
    /// ```
    pub async fn connect(self) -> Result<Registry> {
        self.open(true).await
    }

    async fn open(self, waits: bool) -> Result<Registry> {
        let (url, Common { connect_timeout, snapshots, guard }) = Url::parse(&self.url)?;
        let connect_timeout = self.connect_timeout.or(connect_timeout).unwrap_or(CONNECT_TIMEOUT);
        let is_guarded = url.is_guarded();
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
                        disk::save_identity(&folder, Some(&memory.restore(disk::load_overrides(&folder))));
                    });
                    let _ = restoring.await;
                }
                memory
            }
            #[cfg(feature = "zookeeper")]
            Url::ZooKeeper(settings) => Arc::new(ZooKeeper::new(*settings)?),
            #[cfg(feature = "agent-client")]
            Url::Agent(settings) => Arc::new(Agent::new(*settings)?),
        };
        let guard_of_url = || match guard {
            None if is_guarded => Some(Guard::against_lost_data()),
            Some(false) => None,
            _ => Some(Guard::default()),
        };
        let snapshots = folder.map(|folder| folder.join(backend.label()));
        let (shown, closed) = (redacted(&self.url), watch::Sender::new(false));
        let limit = (!self.wait).then_some(connect_timeout);
        let ends_at = Some(if self.fail_fast && !self.wait { Outlook::NoServer } else { Outlook::Refused });
        let wait = Wait { limit, ends_at, note: self.note.as_ref().map(|note| &*note.0) };
        let answered = match &snapshots {
            _ if !waits => backend.connected(Wait::without_end()).now_or_never().transpose()?.is_some(),
            None => backend.connected(wait).await.map(|()| true)?,
            // What is on disk is better than nothing, whatever is in the way.
            Some(folder) => {
                reach(&*backend, Wait { ends_at: None, ..wait }, connect_timeout.min(PATIENCE), folder).await?
            }
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

#[cfg(feature = "testing")]
impl Registry {
    /// A registry over this backend, with the defaults.
    pub(crate) fn over(backend: Arc<dyn Backend>, url: &str) -> Self {
        Registry {
            inner: Arc::new(Inner {
                url: url.to_owned(),
                backend,
                connect_timeout: CONNECT_TIMEOUT,
                waits: false,
                guard: Some(Guard::default()),
                snapshots: None,
                answered: Arc::new(AtomicBool::new(true)),
                directories: Mutex::default(),
                closed: watch::Sender::new(false),
                tasks: watch::Sender::new(()),
                holds: Holds::default(),
            }),
        }
    }
}

/// Waits until the registry answers: for the limit, or, where there is none, for as long as there are no snapshots in `folder` that could
/// be started from; once there are, for `patience`. Returns whether it has answered; otherwise snapshots are what there is.
async fn reach(backend: &dyn Backend, wait: Wait<'_>, patience: Duration, folder: &Path) -> Result<bool> {
    let limit = wait.limit;
    let mut connecting = backend.connected(wait);
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

/// Notes when the registry answers for the first time, unless it is closed before, or nobody has it any more.
fn note_answer(
    backend: Arc<dyn Backend>,
    answered: Arc<AtomicBool>,
    mut closed: watch::Receiver<bool>,
    registry: String,
) {
    let mut connecting = async move {
        // One that refuses this client now may accept it once a token has been changed.
        while let Err(error) = backend.connected(Wait::without_end()).await {
            tracing::warn!(registry, %error, "the registry gives no answer");
            tokio::time::sleep(REFUSED).await;
        }
        answered.store(true, Ordering::Relaxed);
        tracing::info!(registry, "registry connected");
    }
    .boxed();
    // From now on, and not from when the task begins: by then a directory may have taken the session that is waited for.
    if (&mut connecting).now_or_never().is_none() {
        tokio::spawn(async move {
            tokio::select! {
                () = connecting => {}
                _ = closed.changed() => {}
            }
        });
    }
}
