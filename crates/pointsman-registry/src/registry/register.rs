//! How a registration is begun.

use std::sync::Arc;
use std::time::Duration;

use pointsman_core::Instance;
use tokio::sync::watch;

use super::{Registry, set};
use crate::backend::Backend;
use crate::check::Check;
use crate::hold::{Hold, Holds, NotHeld};
use crate::registration::{self, End, Life, Registration, Roles, Task, Wanted, registrable};
use crate::{Error, Result};

/// Maximum length of a holder.
const MAX_HOLDER_BYTES: usize = 128;
/// Timeout for registrations to leave when their registry is closed: what takes longer is gone with its session.
const LEAVE: Duration = Duration::from_secs(1);

/// Settings of a [`Registration`] before it begins.
#[derive(Debug, Clone)]
#[must_use = "nothing is registered before it is started"]
pub struct RegistrationBuilder {
    registry: Registry,
    wanted: Wanted,
}

impl RegistrationBuilder {
    pub(super) fn new(registry: Registry, instance: Instance) -> Self {
        // Who waits for the registry to be there at all waits for it here as well.
        let patience = (!registry.inner.waits).then_some(registry.inner.connect_timeout);
        Self { registry, wanted: Wanted { instance, holder: None, observer: false, check: None, patience } }
    }

    /// Registers for a holder: where the same instance is registered already for the same holder, by this or
    /// another process, whether that lives or has died a moment ago, its registration is replaced at once, and ends by itself.
    /// So whoever keeps registrations for others (an agent) can be replaced by another without a gap. A master that is taken
    /// over stays master, with its term: whoever says the same holder is the same master, and no other mastership begins.
    ///
    /// A holder is 1 to 128 bytes without control characters. It is no secret: it can be read in the registry.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::Instance;
    /// # use pointsman_registry::{Error, Registry};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://holder").await?;
    /// let instance = Instance::new("ress").code("a");
    /// let first = registry.registration(instance.clone()).holder("agents-of-eu-1").register().await?;
    /// let term = first.role().term();
    /// // Another process of the same holder replaces the registration; the mastership goes on.
    /// let second = registry.registration(instance.clone()).holder("agents-of-eu-1").register().await?;
    /// assert_eq!(second.role().term(), term);
    /// let other = registry.registration(instance).holder("agents-of-us-1").register().await;
    /// assert!(matches!(other, Err(Error::DuplicateCode { .. })));
    /// # Ok(())
    /// # }
    /// ```
    pub fn holder(mut self, holder: &str) -> Self {
        self.wanted.holder = Some(holder.into());
        self
    }

    /// Registers the instance as an observer: it is never master, neither when it comes first, nor when all others are gone. Then the
    /// service has no master, until an instance comes that is no observer. Otherwise it is an instance like any other: listed, in the role
    /// [`Role::Normal`](pointsman_core::Role::Normal), and given work; [`ObservedInstance::observer`](pointsman_core::ObservedInstance) tells it apart.
    ///
    /// An observer stands in nobody's way: elections go on without it, those of go-micro-service processes and of earlier versions as well. Where
    /// the same [holder](RegistrationBuilder::holder) has registered the instance otherwise, this replaces it: a master that becomes an observer
    /// hands its mastership on. An agent of an earlier version refuses an observer.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::{Instance, Role};
    /// # use pointsman_registry::Registry;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let registry = Registry::connect("memory://observer").await?;
    /// let replica = registry.registration(Instance::new("ress")).observer().register().await?;
    /// assert_eq!(replica.role(), Role::Normal);
    /// assert!(registry.discover("ress").await?.master().is_err());
    /// # Ok(())
    /// # }
    /// ```
    pub fn observer(mut self) -> Self {
        self.wanted.observer = true;
        self
    }

    /// Registers the instance only while it passes this check: from when it does, and again each time it does again. While it does not,
    /// its role is [`Role::Detached`](pointsman_core::Role::Detached), and [`Registration::trouble`] says why. For others it is lost, and has not left:
    /// where the checks of most instances fail at once, they are [guarded](crate::Guard).
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::Instance;
    /// # use pointsman_registry::Registry;
    /// # use pointsman_registry::check::{Check, Probe};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://check").await?;
    /// let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    /// let address = listener.local_addr()?.to_string();
    /// let check = Check::new(Probe::Tcp(address.clone()));
    /// let registration = registry.registration(Instance::new("ress").address(address)).check(check).register().await?;
    /// assert!(registration.role().is_master()); // it has passed
    /// # Ok(())
    /// # }
    /// ```
    pub fn check(mut self, check: impl Into<Option<Check>>) -> Self {
        self.wanted.check = check.into();
        self
    }

    /// How long the registry may be away before the first registration fails; `None`: it is waited for without end. Default: the
    /// registry's connect timeout, or `None` where the registry itself is [waited for](crate::Builder::wait). It does not count while the
    /// instance's check fails; nor while ZooKeeper answers, and the end of another registration of the code is waited for (an agent
    /// waits for that itself, and says after its `write_timeout` that it has not come).
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(not(feature = "testing"))]
    /// # fn main() {}
    /// # #[cfg(feature = "testing")]
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use std::time::Duration;
    /// # use pointsman_core::Instance;
    /// # use pointsman_registry::Error;
    /// # use pointsman_registry::testing::TestRegistry;
    /// let test = TestRegistry::new();
    /// test.cut(); // the registry is away
    /// let wanted = test.registry().registration(Instance::new("ress")).patience(Some(Duration::from_secs(1)));
    /// assert!(matches!(wanted.register().await, Err(Error::Unavailable { .. })));
    /// # Ok(())
    /// # }
    /// ```
    pub fn patience(mut self, patience: Option<Duration>) -> Self {
        self.wanted.patience = patience;
        self
    }

    /// Starts, and returns once the instance is registered: where it has a check, not before that passes. Cancelled, nothing stays
    /// registered.
    ///
    /// # Errors
    ///
    /// As [`Registry::register`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::Instance;
    /// # use pointsman_registry::Registry;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://register-builder").await?;
    /// let registration = registry.registration(Instance::new("ress")).register().await?;
    /// assert!(registration.role().is_master());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn register(self) -> Result<Registration> {
        let registration = self.start()?;
        registration.registered().await?;
        Ok(registration)
    }

    /// Starts, and returns at once: [`Registration::registered`] tells what has become of it. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] and [`Error::TooLarge`]; [`Error::Refused`] for a holder that cannot be; [`Error::Closed`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::Instance;
    /// # use pointsman_registry::{Registry, Trouble};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://start").await?;
    /// let registration = registry.registration(Instance::new("ress")).start()?;
    /// assert_eq!(registration.trouble(), Some(Trouble::Registering));
    /// registration.registered().await?;
    /// assert_eq!(registration.trouble(), None);
    /// # Ok(())
    /// # }
    /// ```
    pub fn start(self) -> Result<Registration> {
        let Self { registry, wanted } = self;
        registrable(&wanted.instance)?;
        if let Some(holder) = wanted.holder.as_deref().filter(|holder| !can_be_holder(holder)) {
            let step = format!("register {}/{}", wanted.instance.service, wanted.instance.code);
            let reason = format!(
                "{holder:?} cannot be a holder: it has 1 to {MAX_HOLDER_BYTES} bytes, none of them a control character"
            );
            return Err(Error::refused(step, reason));
        }
        registry.check_open()?;
        let (registration, task) = registration::pair(wanted);
        let process = Process::of(&registry, &registration);
        tokio::spawn(process.run(task));
        Ok(registration)
    }
}

fn can_be_holder(holder: &str) -> bool {
    !holder.is_empty() && holder.len() <= MAX_HOLDER_BYTES && !holder.chars().any(char::is_control)
}

/// What a registration's task has of its registry: not the registry itself, which ends with its last handle.
struct Process {
    backend: Arc<dyn Backend>,
    holds: Holds,
    closed: watch::Receiver<bool>,
    /// The registry's end waits for this to be dropped.
    alive: watch::Receiver<()>,
    life: Life,
    roles: Roles,
}

impl Process {
    fn of(registry: &Registry, registration: &Registration) -> Self {
        let inner = &registry.inner;
        Self {
            backend: inner.backend.clone(),
            holds: inner.holds.clone(),
            closed: inner.closed.subscribe(),
            alive: inner.tasks.subscribe(),
            life: registration.life(),
            roles: registration.roles(),
        }
    }

    /// Keeps the instance registered until the registration ends, or its registry is closed. No `async fn`, which would keep room for what it is
    /// given beside what becomes of that.
    fn run(self, mut task: Box<Task>) -> impl Future<Output = ()> + Send {
        let Self { backend, holds, mut closed, alive, life, roles } = self;
        async move {
            let own = life.clone();
            let keeping = async move {
                // Boxed, because it ends soon: the task does not reserve memory for it.
                let (end, hold) = match Box::pin(Hold::take(&holds, own, &roles, &mut task)).await {
                    Ok(hold) => (backend.keep(task).await, Some(hold)),
                    Err(NotHeld::Failed(error)) => (End::failed(task.report, error), None),
                    Err(NotHeld::GivenUp(reply)) => (End::given_up(task, reply), None),
                };
                // So is this.
                (Box::new(end), hold)
            };
            tokio::pin!(keeping);
            let end = tokio::select! {
                biased;
                () = set(&mut closed) => Box::pin(leave(&mut keeping, &life)).await,
                // The registration ends with what the backend's task held.
                () = life.cut() => None,
                end = &mut keeping => Some(end),
            };
            let Some((end, hold)) = end else { return };
            drop((hold, alive));
            end.tell();
        }
    }
}

/// Lets a registration leave because its registry is closed: cleanly, if that is possible in time. Otherwise it ends with the
/// session.
async fn leave<T>(keeping: &mut (impl Future<Output = T> + Unpin), life: &Life) -> Option<T> {
    life.close();
    tokio::time::timeout(LEAVE, keeping).await.ok()
}
