//! Where registrations live.

mod builder;
mod directories;
mod follow;
mod operate;
mod register;

use std::future::pending;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pointsman_core::{Instance, MAX_WEIGHT, Term, check_name};
use tokio::sync::watch;

pub use self::builder::Builder;
use self::directories::Directories;
use self::follow::scope;
pub use self::register::RegistrationBuilder;
use crate::backend::{Backend, Scope};
use crate::directory::{Directory, Service};
use crate::guard::Guard;
use crate::hold::Holds;
use crate::log::{self, Log};
use crate::overrides::{ClearedOverrides, Override, OverrideChange, OverrideOf};
use crate::peers::{self, Answer, Peers};
use crate::registration::Registration;
use crate::{Error, Result};

/// A registry: services register here, and are found. Cheap to clone.
///
/// When the last clone, and the last registration and directory of it are gone, its sessions are closed.
///
/// # Examples
///
/// ```
/// # use pointsman_registry::Registry;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let registry = Registry::connect("memory://handles").await?;
/// let clone = registry.clone();
/// assert!(clone.is_same(&registry) && clone.has_answered());
/// assert_eq!(clone.url(), "memory://handles");
/// clone.close().await;
/// assert!(registry.is_closed());
/// # Ok(())
/// # }
/// ```
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
    directories: Mutex<Directories>,
    /// Whether the registry has been closed: by any of its clones, for all of them.
    closed: watch::Sender<bool>,
    /// Each task of a registration or a directory holds a receiver, so that closing can wait for their ends.
    tasks: watch::Sender<()>,
    /// Service and code of each living registration of this process: registering twice is refused, not doubled.
    holds: Holds,
}

/// The highest term base. With what a registry counts itself on top of it, terms stay below 2⁵³: numbers that every reader of JSON takes
/// exactly (RFC 8259, section 6). Those of `memory://` reach it in the year 2112.
pub const MAX_TERM_BASE: Term = Term(1 << 52);

impl Registry {
    /// Connects to the registry at `url`: `memory://NAME` for one within this process,
    /// `zookeeper://HOST:PORT,HOST:PORT/PREFIX?OPTIONS`, or `http://HOST:PORT,HOST:PORT?OPTIONS` for agents (`https://`, too).
    ///
    /// Options: `session_timeout` (10s), `connect_timeout` (5s), `auth=digest:USER:PASSWORD` or `auth_file=PATH`, `acl`
    /// (`open` or `protected`), `folders` (`persistent` or `container`: whether the folder of a service that it makes stays when that has
    /// vanished), `tls=on` with `ca`, `cert` and `key`, `root` (`/pointsman`: where drains, weights and terms are stored; the
    /// same for the whole fleet), `snapshots=FOLDER`, `guard` (`on` or `off`). Of agents:
    /// `token_file=PATH` or `token`, `ttl` (10s; the lease of registrations), for https `ca`, `cert` and `key`.
    ///
    /// # Errors
    ///
    /// [`Error::Url`], also where the URL needs a feature of this crate that is not turned on (`zookeeper`, `agent-client`, `tls`), and
    /// [`Error::Unreachable`] when no server has answered within the connect timeout.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::Instance;
    /// # use pointsman_registry::{Error, Registry};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let registry = Registry::connect("memory://connect").await?;
    /// let registration = registry.register(Instance::new("ress")).await?;
    /// // Within one process, the same name is the same registry.
    /// let other = Registry::connect("memory://connect").await?;
    /// assert_eq!(other.discover("ress").await?.master()?.code, registration.instance().code);
    /// assert!(matches!(Registry::connect("127.0.0.1:2181").await, Err(Error::Url { .. })));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn connect(url: &str) -> Result<Self> {
        Self::builder(url).connect().await
    }

    /// Settings that go beyond the URL.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use pointsman_registry::Registry;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let registry = Registry::builder("memory://builder").connect_timeout(Duration::from_secs(2)).connect().await?;
    /// assert!(registry.has_answered());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn builder(url: &str) -> Builder {
        Builder::new(url)
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
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::Instance;
    /// # use pointsman_registry::{Error, Registry};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://register").await?;
    /// let instance = Instance::new("ress").code("a").address("10.0.0.1:80");
    /// let registration = registry.register(instance.clone()).await?;
    /// assert!(registration.role().is_master()); // the first instance of its service
    /// // The code is taken as long as the registration lives.
    /// assert!(matches!(registry.register(instance).await, Err(Error::DuplicateCode { .. })));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn register(&self, instance: Instance) -> Result<Registration> {
        self.registration(instance).register().await
    }

    /// As [`Registry::register`], for `holder`; see [`RegistrationBuilder::holder`].
    ///
    /// # Errors
    ///
    /// As [`Registry::register`]; [`Error::DuplicateCode`] where the code is registered for another holder, or for none.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::{Instance, Role};
    /// # use pointsman_registry::Registry;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://take-over").await?;
    /// let instance = Instance::new("ress").code("a");
    /// let first = registry.take_over(instance.clone(), "our agents").await?;
    /// let role = first.role();
    /// let second = registry.take_over(instance, "our agents").await?;
    /// assert_eq!(second.role(), role); // still master, with the same term
    /// assert_eq!(first.roles().wait_for(|role| role == Role::Detached).await, Some(Role::Detached));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn take_over(&self, instance: Instance, holder: &str) -> Result<Registration> {
        self.registration(instance).holder(holder).register().await
    }

    /// A registration with more settings than [`Registry::register`] has: a check, a holder, or without waiting.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::{Instance, Role};
    /// # use pointsman_registry::Registry;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://registration").await?;
    /// let registration = registry.registration(Instance::new("ress")).observer().patience(None).start()?;
    /// registration.registered().await?;
    /// assert_eq!(registration.role(), Role::Normal); // an observer is never master
    /// # Ok(())
    /// # }
    /// ```
    pub fn registration(&self, instance: Instance) -> RegistrationBuilder {
        RegistrationBuilder::new(self.clone(), instance)
    }

    /// Follows one service, which need not exist yet, in the caller's runtime; returns once the first snapshot is in, and shows what
    /// this registry has registered: whoever has registered finds itself. Where a snapshot folder is
    /// set and the registry does not answer within the connect timeout, that is the one from disk; so it is, at once, as long as
    /// the registry [has not answered](Registry::has_answered) at all.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for a name that no service can have; [`Error::Unreachable`]; [`Error::Refused`] when the registry lets nothing be
    /// read (where only a part may not be read, that is a [`Problem`](pointsman_core::Problem) of its service); [`Error::Closed`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::Instance;
    /// # use pointsman_registry::Registry;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://discover").await?;
    /// let service = registry.discover("ress").await?;
    /// assert!(service.snapshot().is_empty()); // a service without instances can be followed
    /// let registration = registry.register(Instance::new("ress").address("10.0.0.1:80")).await?;
    /// let snapshot = service.wait_for(|snapshot| !snapshot.is_empty()).await?;
    /// assert_eq!(snapshot.instances()[0].address.as_deref(), Some("10.0.0.1:80"));
    /// # Ok(())
    /// # }
    /// ```
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
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::Instance;
    /// # use pointsman_registry::Registry;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://discover-several").await?;
    /// let registration = registry.register(Instance::new("cfgs")).await?;
    /// let directory = registry.discover_several(["cfgs", "ress"]).await?;
    /// assert!(directory.snapshot("cfgs").master().is_some());
    /// assert!(directory.snapshot("ress").is_empty());
    /// assert!(directory.service("users").is_none()); // not followed
    /// # Ok(())
    /// # }
    /// ```
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
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_registry::{Freshness, Registry};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://follow-several").await?;
    /// let directory = registry.follow_several(["cfgs", "ress"])?; // has not waited for the registry
    /// assert!(matches!(directory.freshness(), Freshness::Stale { .. }));
    /// directory.fresh().await?;
    /// assert_eq!(directory.freshness(), Freshness::Fresh);
    /// # Ok(())
    /// # }
    /// ```
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
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::Instance;
    /// # use pointsman_registry::Registry;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://discover-all").await?;
    /// let cfgs = registry.register(Instance::new("cfgs")).await?;
    /// let ress = registry.register(Instance::new("ress")).await?;
    /// let directory = registry.discover_all().await?;
    /// let services: Vec<_> = directory.snapshots().iter().map(|snapshot| snapshot.service().clone()).collect();
    /// assert_eq!(services, ["cfgs".into(), "ress".into()]);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn discover_all(&self) -> Result<Directory> {
        self.follow(Scope::All).await
    }

    /// Lets an instance get no new claims, until it is undrained; it may register again meanwhile.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`], [`Error::Unavailable`], [`Error::Refused`], [`Error::Closed`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::{Instance, Status};
    /// # use pointsman_registry::Registry;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://drain-by-operator").await?;
    /// let registration = registry.register(Instance::new("ress").code("a")).await?;
    /// registry.drain("ress", "a").await?;
    /// let service = registry.discover("ress").await?;
    /// let snapshot = service.wait_for(|snapshot| snapshot.find("a").is_some_and(|a| !a.takes_work())).await?;
    /// assert_eq!(snapshot.find("a").map(|a| a.status), Some(Status::Drained)); // still registered
    /// # Ok(())
    /// # }
    /// ```
    pub async fn drain(&self, service: &str, code: &str) -> Result<()> {
        self.set_override(service, code, OverrideChange::Drain).await
    }

    /// As [`Registry::drain`], unless anything is set for the instance already: for whoever remembers a drain that a registry has lost with
    /// its data. There an operator may have set something else meanwhile.
    ///
    /// # Errors
    ///
    /// As [`Registry::drain`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_registry::Registry;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://drain-if-unset").await?;
    /// registry.drain_if_unset("ress", "a").await?;
    /// registry.set_weight("ress", "b", Some(5)).await?;
    /// registry.drain_if_unset("ress", "b").await?; // an operator has set a weight: no drain is added
    /// let set = registry.overrides(Some("ress")).await?;
    /// assert_eq!((set[0].drained, set[1].drained), (true, false));
    /// # Ok(())
    /// # }
    /// ```
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
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_registry::Registry;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://undrain").await?;
    /// registry.drain("ress", "a").await?;
    /// registry.undrain("ress", "a").await?;
    /// assert!(registry.overrides(Some("ress")).await?.is_empty());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn undrain(&self, service: &str, code: &str) -> Result<()> {
        self.set_override(service, code, OverrideChange::Undrain).await
    }

    /// Sets the weight that counts instead of the registered one; `None` lets the registered one count again.
    ///
    /// # Errors
    ///
    /// As [`Registry::drain`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::Instance;
    /// # use pointsman_registry::Registry;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://set-weight").await?;
    /// let registration = registry.register(Instance::new("ress").code("a").weight(3)).await?;
    /// let service = registry.discover("ress").await?;
    /// registry.set_weight("ress", "a", Some(9)).await?;
    /// service.wait_for(|snapshot| snapshot.find("a").is_some_and(|a| a.weight == 9)).await?;
    /// registry.set_weight("ress", "a", None).await?;
    /// service.wait_for(|snapshot| snapshot.find("a").is_some_and(|a| a.weight == 3)).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn set_weight(&self, service: &str, code: &str, weight: Option<u32>) -> Result<()> {
        if let Some(weight) = weight.filter(|weight| *weight > MAX_WEIGHT) {
            return Err(Error::Invalid(pointsman_core::InvalidInstance::Weight(weight)));
        }
        self.set_override(service, code, OverrideChange::Weight(weight)).await
    }

    /// Reads what operators have set, of one service or of all, in the order of services and codes; also for codes that are not registered,
    /// for which it is kept for [`OVERRIDES_KEPT`](crate::OVERRIDES_KEPT).
    ///
    /// # Errors
    ///
    /// As [`Registry::drain`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_registry::Registry;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://overrides").await?;
    /// registry.drain("ress", "a").await?; // before an instance with this code has registered
    /// let set = registry.overrides(Some("ress")).await?;
    /// assert_eq!(&*set[0].code, "a");
    /// assert!(set[0].drained && set[0].weight.is_none() && !set[0].registered);
    /// assert!(registry.overrides(Some("cfgs")).await?.is_empty());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn overrides(&self, service: Option<&str>) -> Result<Vec<OverrideOf>> {
        service.map_or(Ok(()), |service| check_name("service", service))?;
        self.check_open()?;
        self.inner.backend.overrides(service).await
    }

    /// Clears what is set for codes that are not registered now, of one service or of all; a thousand at most, so that a call ends in time. What an
    /// operator sets for one of them meanwhile stays. Cancelled, or with an error, it may have cleared some of them.
    ///
    /// # Errors
    ///
    /// As [`Registry::drain`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::Instance;
    /// # use pointsman_registry::Registry;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://clear-gone").await?;
    /// let registration = registry.register(Instance::new("ress").code("a")).await?;
    /// registry.drain("ress", "a").await?;
    /// registry.drain("ress", "gone").await?;
    /// let cleared = registry.clear_gone_overrides(None).await?;
    /// assert_eq!((&*cleared.cleared[0].code, cleared.remaining), ("gone", 0));
    /// assert_eq!(registry.overrides(None).await?.len(), 1); // the one of the registered instance
    /// # Ok(())
    /// # }
    /// ```
    pub async fn clear_gone_overrides(&self, service: Option<&str>) -> Result<ClearedOverrides> {
        service.map_or(Ok(()), |service| check_name("service", service))?;
        self.check_open()?;
        let cleared = self.inner.backend.clear_gone(service).await?;
        tracing::info!(service, cleared = cleared.cleared.len(), "overrides of codes that are gone cleared");
        Ok(cleared)
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
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::{Instance, Role, Term};
    /// # use pointsman_registry::{Error, Registry};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://check-term").await?;
    /// let registration = registry.register(Instance::new("jobs")).await?;
    /// let Role::Master(term) = registration.role() else { unreachable!("the only instance") };
    /// assert_eq!(registry.check_term("jobs", term).await?, term);
    /// // Once a higher term has passed, the lower one is refused.
    /// registry.check_term("jobs", Term(term.0 + 1)).await?;
    /// assert!(matches!(registry.check_term("jobs", term).await, Err(Error::StaleTerm { .. })));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn check_term(&self, service: &str, term: Term) -> Result<Term> {
        check_name("service", service)?;
        self.check_open()?;
        self.inner.backend.check_term(service, term).await
    }

    /// Returns the term base: the number that is added to the registry's own numbers to make terms of them; 0 unless
    /// [raised](Registry::raise_term_base). Of `memory://` it is the time at which it began, in microseconds since 1970.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`], [`Error::Closed`]; [`Error::Refused`] when it may not be read, or when something else is stored in its place.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::Instance;
    /// # use pointsman_registry::Registry;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://term-base").await?;
    /// let base = registry.term_base().await?;
    /// let registration = registry.register(Instance::new("jobs")).await?;
    /// assert!(registration.role().term().is_some_and(|term| term > base));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn term_base(&self) -> Result<Term> {
        self.check_open()?;
        self.inner.backend.term_base().await
    }

    /// Raises the term base to `above`, unless it is as high already; returns what counts then. Every mastership that begins from then on
    /// has a term above it; one that has begun before keeps its term. It cannot be lowered: terms never fall.
    ///
    /// For a fleet that comes from another registry, whose terms were higher: guards that have stored those terms would refuse every
    /// master of this registry. `above` is the highest term that any of them has seen. On ZooKeeper the base is kept beside the terms, and holds
    /// for everybody who uses the same prefix and root, as long as the registry keeps its data.
    ///
    /// Cancelled, it may or may not have been carried out. To try again does no harm.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] when it may not be written, or `above` is higher than [`MAX_TERM_BASE`];
    /// [`Error::Unavailable`], [`Error::Closed`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::{Instance, Term};
    /// # use pointsman_registry::{MAX_TERM_BASE, Registry};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://raise-term-base").await?;
    /// let seen = Term(MAX_TERM_BASE.0 - 1); // the highest term of the former registry
    /// assert_eq!(registry.raise_term_base(seen).await?, seen);
    /// let registration = registry.register(Instance::new("jobs")).await?;
    /// assert!(registration.role().term().is_some_and(|term| term > seen));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn raise_term_base(&self, above: Term) -> Result<Term> {
        self.check_open()?;
        if above > MAX_TERM_BASE {
            let reason = format!("{above} is too high: a term base is at most {MAX_TERM_BASE}");
            return Err(Error::refused("raise the term base", reason));
        }
        let base = self.inner.backend.raise_term_base(above).await?;
        tracing::info!(%above, %base, "term base raised");
        Ok(base)
    }

    /// Lets this process be asked by others that share this registry, and ask them: through the registry itself, so that they need no way to
    /// each other. Must be called within a tokio runtime. It takes part from some milliseconds later on, and whenever the registry can be
    /// reached; not where the registry is an agent's.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use std::time::Duration;
    /// # use pointsman_registry::{Answer, Registry};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://join-peers").await?;
    /// struct Version(&'static str);
    ///
    /// #[async_trait::async_trait]
    /// impl Answer for Version {
    ///     async fn answer(&self, question: &str) -> Option<String> {
    ///         (question == "version").then(|| self.0.to_owned())
    ///     }
    /// }
    ///
    /// let one = registry.join_peers(Arc::new(Version("1.0")))?;
    /// let two = registry.join_peers(Arc::new(Version("1.1")))?;
    /// # tokio::time::sleep(Duration::from_millis(50)).await;
    /// assert_eq!(one.ask("version".to_owned()).await?.as_deref(), Some("1.1")); // asks all other peers
    /// # Ok(())
    /// # }
    /// ```
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
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_registry::{Log, Registry};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://append").await?;
    /// registry.append(&Log::Audit, "0001", "ann drained ress/a").await?;
    /// registry.append(&Log::Audit, "0001", "ann undrained ress/a").await?; // the key exists: nothing is added
    /// assert_eq!(registry.read_log(&Log::Audit).await?, ["ann drained ress/a"]);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn append(&self, log: &Log, key: &str, entry: &str) -> Result<()> {
        check_name("key", key)?;
        if let Log::Masters(service) = log {
            check_name("service", service)?;
        }
        if entry.len() > log::MAX_BYTES {
            let reason = format!("the entry has {} bytes, and may have {}", entry.len(), log::MAX_BYTES);
            return Err(Error::refused(format!("add to {log}"), reason));
        }
        self.check_open()?;
        self.inner.backend.append(log, key, entry).await
    }

    /// Reads a log: its newest entries, the oldest of them first.
    ///
    /// # Errors
    ///
    /// As [`Registry::append`]; an agent's registry lets [`Log::Audit`] be read.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_registry::{Log, Registry};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://read-log").await?;
    /// let masters = Log::Masters("ress".into());
    /// registry.append(&masters, "0002", "b").await?;
    /// registry.append(&masters, "0001", "a").await?;
    /// assert_eq!(registry.read_log(&masters).await?, ["a", "b"]); // in the order of the keys
    /// # Ok(())
    /// # }
    /// ```
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
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::{Instance, Role};
    /// # use pointsman_registry::{Error, Registry};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let registry = Registry::connect("memory://close-registry").await?;
    /// let registration = registry.register(Instance::new("ress")).await?;
    /// registry.clone().close().await;
    /// assert_eq!(registration.role(), Role::Detached);
    /// assert!(matches!(registry.discover("ress").await, Err(Error::Closed { .. })));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn close(self) {
        self.inner.closed.send_replace(true);
        // First the tasks, then the sessions: a task that has only just begun might need another session.
        self.inner.tasks.closed().await;
        self.inner.backend.close().await;
    }

    /// Ends this process's part in the registry without closing its sessions: what was [abandoned](Registration::abandon) stays
    /// registered until they time out. To be called before the process ends: until then, they are kept alive.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use pointsman_core::Instance;
    /// # use pointsman_registry::Registry;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let registry = Registry::connect("zookeeper://10.0.0.1:2181/micro-service").await?;
    /// let registration = registry.take_over(Instance::new("ress").code("a"), "our agents").await?;
    /// // The process that replaces this one takes the instance over: without a gap, and with the same term.
    /// registration.abandon();
    /// registry.abandon();
    /// # Ok(())
    /// # }
    /// ```
    pub fn abandon(self) {
        // Deliberately for ever: with the last handle the sessions would be closed.
        std::mem::forget(self.inner);
    }

    fn check_open(&self) -> Result<()> {
        if *self.inner.closed.borrow() { Err(registry_closed()) } else { Ok(()) }
    }

    /// Whether this registry has been [closed](Registry::close), by whichever of its clones.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        *self.inner.closed.borrow()
    }

    /// Whether both are the same connection, as clones are.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// The URL, without secrets.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.inner.url
    }

    /// Whether the registry has answered since this process began to connect to it. `false`: it has been away so far, and the process has
    /// started without it, with a folder for [snapshots](Builder::snapshots) or [in the background](Builder::connect_in_background).
    #[must_use]
    pub fn has_answered(&self) -> bool {
        self.inner.answered.load(Ordering::Relaxed)
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("url", &self.inner.url).finish_non_exhaustive()
    }
}

/// Returns when the flag is set. When its registry is gone it will never be: registrations outlive their registry.
async fn set(flag: &mut watch::Receiver<bool>) {
    if flag.wait_for(|set| *set).await.is_err() {
        pending::<()>().await;
    }
}

/// What fails because the registry has been closed.
pub(crate) fn registry_closed() -> Error {
    Error::Closed { what: "registry".to_owned() }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while it was held cannot have left these maps half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
