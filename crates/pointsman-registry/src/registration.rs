//! The guard that keeps one instance registered, and the two ends between it and the backend's task.

mod drain;
mod lead;
mod task;

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_channel::mpsc;
use pointsman_core::{Instance, Role};
use tokio::sync::{Notify, SetOnce, oneshot, watch};
use tokio::time::Instant;

use self::task::RoleState;
pub(crate) use self::task::{Change, Command, Commands, End, Reply, Report, RoleWriter, Task, WeakCommands};
use crate::check::Check;
use crate::lease::Lease;
use crate::{Error, Result};

/// Keeps one instance registered, for as long as it lives and whatever happens to the registry.
///
/// A registration ends by [`close`](Registration::close), by drop, or with its process. Dropping it deregisters in the
/// background; `close` waits until that is done. Both are a clean leave ([`Departure::Left`]); the end of the process is not.
///
/// All methods but [`role_changed`](Registration::role_changed) and [`abandon`](Registration::abandon) take `&self`: in an `Arc` it can be updated and closed while another task [leads](Registration::lead).
///
/// # Examples
///
/// ```
/// # use pointsman_core::Instance;
/// # use pointsman_registry::Registry;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let registry = Registry::connect("memory://registration").await?;
/// let registration = registry.register(Instance::new("ress").address("10.0.0.1:80")).await?;
/// assert_eq!(registration.instance().address.as_deref(), Some("10.0.0.1:80"));
/// assert!(registration.role().is_master());
/// assert_eq!(registration.held_until(), None); // roles of `memory://` have no deadline
/// assert_eq!(registration.trouble(), None);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Registration {
    instance: SharedInstance,
    commands: Commands,
    roles: Roles,
    entered: Arc<SetOnce<Result<()>>>,
    ending: Arc<Ending>,
}

/// How the holder has ended a registration.
#[derive(Debug, Default)]
pub(crate) struct Ending {
    /// Ends the backend's task without deregistering.
    pub(crate) cut: Notify,
    /// It is being closed: its code will soon be free.
    is_closed: AtomicBool,
}

/// The instance as it was last updated. A std mutex, as it is held only to copy the `Arc`.
#[derive(Debug, Clone)]
struct SharedInstance(Arc<Mutex<Arc<Instance>>>);

impl SharedInstance {
    fn new(instance: Arc<Instance>) -> Self {
        Self(Arc::new(Mutex::new(instance)))
    }

    fn read(&self) -> Arc<Instance> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn write(&self, instance: Arc<Instance>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = instance;
    }
}

/// By this it can be asked whether a registration lives, and it can be closed, without keeping it alive.
#[derive(Debug, Clone)]
pub(crate) struct Life {
    commands: WeakCommands,
    ending: Arc<Ending>,
}

impl Life {
    /// Whether the registration has been neither dropped nor closed.
    pub(crate) fn goes_on(&self) -> bool {
        self.commands.strong_count() > 0 && !self.ending.is_closed.load(Ordering::Acquire)
    }

    /// Closes it, and waits for nothing. One that is being dropped leaves anyway.
    pub(crate) fn close(&self) {
        let (reply, _) = oneshot::channel();
        if let Some(commands) = self.commands.upgrade() {
            let _ = commands.unbounded_send(Command::Close(Departure::Left, reply));
        }
    }

    /// Returns when the task is to end without deregistering.
    pub(crate) async fn cut(&self) {
        self.ending.cut.notified().await;
    }
}

/// How a registration ends, as it is told to everybody who follows the registry.
///
/// # Examples
///
/// ```
/// # use pointsman_core::Instance;
/// # use pointsman_registry::{Departure, Registry};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let registry = Registry::connect("memory://departure").await?;
/// let (a, b) = (Instance::new("ress").code("a"), Instance::new("ress").code("b"));
/// let (a, b) = (registry.register(a).await?, registry.register(b).await?);
/// let service = registry.discover("ress").await?;
/// a.close().await?; // as `Departure::Left`
/// b.close_as(Departure::Lost).await?;
/// service.wait_for(|snapshot| snapshot.is_empty()).await?;
/// assert!(service.directory().has_left("ress", "a") && !service.directory().has_left("ress", "b"));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Departure {
    /// The instance leaves, and everybody may know: it is gone at once, and never guarded.
    Left,
    /// The instance has vanished, as far as its keeper can tell: a lease has run out, a connection has broken. If many vanish
    /// suddenly, they are guarded; see [`Guard`](crate::Guard).
    Lost,
}

/// Why an instance is not registered although its registration lives.
///
/// # Examples
///
/// ```
/// # use pointsman_registry::Trouble;
/// let trouble = Trouble::CheckFails("answered 503".to_owned());
/// assert_eq!(trouble.to_string(), "the check fails: answered 503");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Trouble {
    /// The first attempt to register it is under way.
    Registering,
    /// The registry registers it as soon as something else has come to its end: what.
    Waiting(String),
    /// Its check fails: why. It is registered as soon as it passes.
    CheckFails(String),
    /// The registry is away, or has lost or given up the registration: why. It is registered again as soon as that is possible.
    Lost(String),
    /// The role has just been given up: why.
    SteppedDown(String),
    /// The registration is being removed.
    Leaving,
    /// The registration has ended: why.
    Ended(&'static str),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Registering => f.write_str("registering"),
            Trouble::Waiting(what) => f.write_str(what),
            Trouble::CheckFails(why) => write!(f, "the check fails: {why}"),
            Trouble::Lost(why) | Trouble::SteppedDown(why) => f.write_str(why),
            Trouble::Leaving => f.write_str("deregistering"),
            Trouble::Ended(why) => f.write_str(why),
        }
    }
}

/// Why a registration has ended whose holder has registered the instance elsewhere.
const TAKEN_OVER: &str = "taken over by the same holder elsewhere";

/// The roles of one registration as they change. Cheap to clone; outlives the registration, after which it ends.
///
/// # Examples
///
/// ```
/// # use pointsman_core::{Instance, Role};
/// # use pointsman_registry::Registry;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let registry = Registry::connect("memory://roles").await?;
/// let registration = registry.register(Instance::new("ress")).await?;
/// let roles = registration.roles();
/// assert!(roles.role().is_master());
/// assert_eq!(roles.certain(), (roles.role(), roles.held_until()));
/// registration.close().await?;
/// assert_eq!(roles.role(), Role::Detached);
/// assert!(roles.trouble().is_some()); // says that the registration has ended
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Roles {
    state: watch::Receiver<RoleState>,
    /// In a box, because most handles are never asked for changes.
    told: Option<Box<(Role, Option<Trouble>)>>,
}

impl Registration {
    /// What is registered, or is to be, as it was last [updated](Registration::update): an update that is not written yet is in it, one that was
    /// refused is not.
    #[must_use]
    pub fn instance(&self) -> Arc<Instance> {
        self.instance.read()
    }

    /// The role at this moment: compared with the monotonic clock, so that a process that was paused, or cut off in
    /// silence, gets [`Role::Detached`] even before any task has learned of it.
    #[must_use]
    pub fn role(&self) -> Role {
        self.roles.role()
    }

    /// Until when the registry is certain to keep the present role, on the monotonic clock: it is extended all the time. `None`
    /// where there is no limit, or nothing to keep.
    #[must_use]
    pub fn held_until(&self) -> Option<Instant> {
        self.roles.held_until()
    }

    /// Why the instance is not registered now, although this registration lives; `None` while it is registered. It may lag behind
    /// [`role`](Registration::role), which is compared with the clock: the role may be [`Role::Detached`] a moment before this says why.
    #[must_use]
    pub fn trouble(&self) -> Option<Trouble> {
        self.roles.trouble()
    }

    /// Waits until the instance has been registered for the first time; at once if it has been.
    /// Cancellation changes nothing.
    ///
    /// # Errors
    ///
    /// As [`Registry::register`](crate::Registry::register): then the registration has ended.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::Instance;
    /// # use pointsman_registry::{Error, Registry};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://registered").await?;
    /// let first = registry.registration(Instance::new("ress").code("a")).start()?;
    /// first.registered().await?;
    /// let second = registry.registration(Instance::new("ress").code("a")).start()?;
    /// assert!(matches!(second.registered().await, Err(Error::DuplicateCode { .. })));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn registered(&self) -> Result<()> {
        self.entered.wait().await.clone()
    }

    /// Waits for the role to be another than the one told last; the first call returns the first role at once. `None`
    /// when the registration has ended. Cancellation loses nothing: the next call tells what this one would have told.
    ///
    /// Between two calls a role may come and go; what is told is always the newest.
    ///
    /// A change is told once. So do not wait for the end of a term by this, as in `select! { () = work(term) => …, _ = role_changed() => … }`:
    /// the change that ends one term may be the next term already, and whoever drops it never leads again.
    /// [`lead`](Registration::lead) does that right; [`Roles::ended`] and [`Roles::wait_for`] are what it is made of.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::{Instance, Role};
    /// # use pointsman_registry::Registry;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://role-changed").await?;
    /// let mut registration = registry.register(Instance::new("ress")).await?;
    /// assert!(matches!(registration.role_changed().await, Some(Role::Master(_)))); // returns the first role at once
    /// registration.close().await?;
    /// assert_eq!(registration.role_changed().await, Some(Role::Detached));
    /// assert_eq!(registration.role_changed().await, None);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn role_changed(&mut self) -> Option<Role> {
        self.roles.changed().await
    }

    /// A handle on the roles, for another task.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::Instance;
    /// # use pointsman_registry::Registry;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://roles-of").await?;
    /// let registration = registry.register(Instance::new("ress")).await?;
    /// let mut roles = registration.roles();
    /// let log = tokio::spawn(async move {
    ///     while let Some(role) = roles.changed().await {
    ///         println!("{role}");
    ///     }
    /// });
    /// registration.close().await?;
    /// log.await?; // a handle does not keep the registration alive
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn roles(&self) -> Roles {
        Roles { state: self.roles.state.clone(), told: None }
    }

    /// Changes address, weight or tags of the living registration: `registration.update(|i| i.weight = 5)`.
    /// Returns once the registry has it; while the check of the instance fails, at once. While the registry is away it waits; the newest
    /// update is written on return.
    ///
    /// Changes are applied one after the other, each to what the one before has left. Cancelled, the change may still be carried out, and no
    /// later update takes it back. `change` runs on a task of this registration, so it must not block; its panic is the caller's.
    ///
    /// # Errors
    ///
    /// [`Error::Fixed`] when service or code is another, [`Error::Invalid`] or [`Error::TooLarge`]: before anything is written;
    /// [`Error::Refused`] when the registry refuses; [`Error::Closed`]. Then everything is as it was.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::Instance;
    /// # use pointsman_registry::Registry;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let registry = Registry::connect("memory://update").await?;
    /// let registration = registry.register(Instance::new("ress").address("10.0.0.1:80")).await?;
    /// registration.update(|instance| instance.weight = 5).await?;
    /// assert_eq!(registration.instance().weight, 5);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn update(&self, change: impl FnOnce(&mut Instance) + Send + 'static) -> Result<()> {
        let (panics, mut panicked) = oneshot::channel::<Box<dyn Any + Send>>();
        let change = move |instance: &mut Instance| {
            // A panic of the caller's must not end the registration.
            catch_unwind(AssertUnwindSafe(|| change(instance))).map_err(|panic| drop(panics.send(panic))).is_ok()
        };
        let updated = self.ask(|reply| Command::Update(Box::new(change), reply)).await;
        match panicked.try_recv() {
            Ok(panic) => resume_unwind(panic),
            Err(_) => updated,
        }
    }

    /// From now on the instance is registered only while it passes this check; always, without one. What is known by an unchanged check
    /// stays known; with another one the instance is deregistered until it passes.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::{Instance, Role};
    /// # use pointsman_registry::Registry;
    /// # use pointsman_registry::check::Check;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://set-check").await?;
    /// let registration = registry.register(Instance::new("ress")).await?;
    /// registration.set_check(Some(Check::new("tcp://127.0.0.1:1".parse()?)))?; // nothing listens there
    /// let roles = registration.roles();
    /// assert_eq!(roles.wait_for(|role| role == Role::Detached).await, Some(Role::Detached));
    /// registration.set_check(None)?;
    /// assert!(roles.wait_for(Role::is_master).await.is_some());
    /// # Ok(())
    /// # }
    /// ```
    pub fn set_check(&self, check: Option<Check>) -> Result<()> {
        self.commands.unbounded_send(Command::Check(check.map(Box::new))).map_err(|_| self.closed())
    }

    /// Hands the mastership over: at once to the first of the normal instances, if there is one; this instance then is
    /// a normal one. Without another instance it becomes master again, with a higher term. Returns once the mastership
    /// is given up.
    ///
    /// # Errors
    ///
    /// [`Error::NotMaster`] when it is not master; [`Error::Unavailable`] when the connection was lost meanwhile.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::{Instance, Role};
    /// # use pointsman_registry::{Error, Registry};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://resign").await?;
    /// let first = registry.register(Instance::new("jobs")).await?;
    /// let second = registry.register(Instance::new("jobs")).await?;
    /// let term = first.role().term();
    /// first.resign().await?;
    /// let role = second.roles().wait_for(Role::is_master).await.unwrap_or_default();
    /// assert!(role.term() > term);
    /// assert!(matches!(first.resign().await, Err(Error::NotMaster { .. })));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn resign(&self) -> Result<()> {
        self.ask(Command::Resign).await
    }

    /// Deregisters, and returns once the registry has carried it out. Whoever follows the registry is told that the instance has
    /// left, and was not lost. The role is given up before the registry is asked.
    ///
    /// A registration that has ended already, by this or by itself, is closed: that is no error. Cancelled, it goes on leaving, and
    /// another call waits for the rest.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] when the registry is away: the instance is then removed as soon as it is back, at the
    /// latest when the session expires.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::{Instance, Role};
    /// # use pointsman_registry::Registry;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let registry = Registry::connect("memory://close").await?;
    /// let registration = registry.register(Instance::new("ress")).await?;
    /// registration.close().await?;
    /// assert_eq!(registration.role(), Role::Detached);
    /// registration.close().await?; // nothing to be done
    /// # Ok(())
    /// # }
    /// ```
    pub async fn close(&self) -> Result<()> {
        self.close_as(Departure::Left).await
    }

    /// As [`close`](Registration::close), for whoever keeps a registration for another process and knows whether that has left, or
    /// has vanished.
    ///
    /// # Errors
    ///
    /// As [`close`](Registration::close).
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::Instance;
    /// # use pointsman_registry::{Departure, Registry};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://close-as").await?;
    /// let registration = registry.register(Instance::new("ress").code("a")).await?;
    /// let service = registry.discover("ress").await?;
    /// registration.close_as(Departure::Lost).await?; // its process has died
    /// service.wait_for(|snapshot| snapshot.is_empty()).await?;
    /// assert!(!service.directory().has_left("ress", "a"));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn close_as(&self, departure: Departure) -> Result<()> {
        self.ending.is_closed.store(true, Ordering::Release);
        match self.ask(|reply| Command::Close(departure, reply)).await {
            // It takes nothing any more. It is over when all that it held is released, so that the code is free.
            Err(Error::Closed { .. }) => {
                let mut state = self.roles.state.clone();
                let _ = state.wait_for(|state| matches!(state.trouble, Some(Trouble::Ended(_)))).await;
                Ok(())
            }
            closed => closed,
        }
    }

    /// Ends this guard without deregistering: the instance stays registered until the session of this process ends, so that
    /// whoever takes it over ([`Registry::take_over`](crate::Registry::take_over)) before that leaves no gap. What has no
    /// session, as over `memory://` and `http://`, is deregistered.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::Instance;
    /// # use pointsman_registry::Registry;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://abandon").await?;
    /// let registration = registry.register(Instance::new("ress")).await?;
    /// let service = registry.discover("ress").await?;
    /// registration.abandon();
    /// service.wait_for(|snapshot| snapshot.is_empty()).await?; // `memory://` has no session that would keep it
    /// # Ok(())
    /// # }
    /// ```
    pub fn abandon(self) {
        self.ending.cut.notify_one();
    }

    /// By what it is looked after.
    pub(crate) fn life(&self) -> Life {
        Life { commands: Arc::downgrade(&self.commands), ending: self.ending.clone() }
    }

    async fn ask(&self, command: impl FnOnce(Reply) -> Command) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        self.commands.unbounded_send(command(reply)).map_err(|_| self.closed())?;
        answer.await.map_err(|_| self.closed())?
    }

    fn closed(&self) -> Error {
        let instance = self.instance();
        Error::Closed { what: format!("registration {}/{}", instance.service, instance.code) }
    }
}

impl Roles {
    /// The role at this moment; see [`Registration::role`].
    #[must_use]
    pub fn role(&self) -> Role {
        self.state.borrow().role_now()
    }

    /// The role at this moment, and until when it is certain: of one moment, where two calls might be of two.
    #[must_use]
    pub fn certain(&self) -> (Role, Option<Instant>) {
        let state = self.state.borrow();
        match state.role_now() {
            Role::Detached => (Role::Detached, None),
            role => (role, state.lease.as_ref().map(Lease::until)),
        }
    }

    /// Until when the role is certain; see [`Registration::held_until`].
    #[must_use]
    pub fn held_until(&self) -> Option<Instant> {
        let state = self.state.borrow();
        state.lease.as_ref().filter(|_| state.role != Role::Detached).map(Lease::until)
    }

    /// Why the instance is not registered now; see [`Registration::trouble`].
    #[must_use]
    pub fn trouble(&self) -> Option<Trouble> {
        self.state.borrow().trouble.clone()
    }

    /// Waits for another role; see [`Registration::role_changed`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::{Instance, Role};
    /// # use pointsman_registry::Registry;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://changed").await?;
    /// let registration = registry.register(Instance::new("ress")).await?;
    /// let (mut one, mut two) = (registration.roles(), registration.roles());
    /// // Each handle reports the role.
    /// assert!(one.changed().await.is_some_and(Role::is_master));
    /// assert!(two.changed().await.is_some_and(Role::is_master));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn changed(&mut self) -> Option<Role> {
        let told = self.told.as_ref().map(|told| told.0);
        self.news(|role, _| told != Some(role)).await.map(|(role, _)| role)
    }

    /// As [`Roles::changed`], and for another [`trouble`](Registration::trouble) as well; returns both.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::{Instance, Role};
    /// # use pointsman_registry::{Registry, Trouble};
    /// # use pointsman_registry::check::Check;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://status-changed").await?;
    /// let check = Check::new("tcp://127.0.0.1:1".parse()?); // nothing listens there
    /// let registration = registry.registration(Instance::new("ress")).check(check).start()?;
    /// let mut roles = registration.roles();
    /// while let Some((role, trouble)) = roles.status_changed().await {
    ///     assert_eq!(role, Role::Detached);
    ///     if matches!(trouble, Some(Trouble::CheckFails(_))) {
    ///         break;
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn status_changed(&mut self) -> Option<(Role, Option<Trouble>)> {
        let told = self.told.clone();
        self.news(|role, trouble| told.as_ref().is_none_or(|told| **told != (role, trouble.clone()))).await
    }

    async fn news(&mut self, is_news: impl Fn(Role, &Option<Trouble>) -> bool) -> Option<(Role, Option<Trouble>)> {
        loop {
            let state = self.state.borrow_and_update().clone();
            let role = state.role_now();
            if is_news(role, &state.trouble) {
                let news = (role, state.trouble);
                self.told = Some(Box::new(news.clone()));
                return Some(news);
            }
            state.outdated(role, &mut self.state).await?;
        }
    }
}

/// The most that a registration may take, in every registry: bytes of JSON. With what a registry adds it stays below the limits of each: 128 KiB
/// for a node of ZooKeeper, 256 KiB for a request to an agent.
pub(crate) const MAX_BYTES: usize = 127 * 1024;

/// Checks all that an instance must be to be registered, in whichever registry.
pub(crate) fn registrable(instance: &Instance) -> Result<()> {
    #[derive(serde::Serialize)]
    struct Content<'a>(&'a str, Option<&'a str>, u32, &'a BTreeMap<String, String>);

    instance.check()?;
    let Instance { service, code, address, weight, tags, .. } = instance;
    // Strings and numbers under string keys: there is nothing in it that JSON cannot say.
    let bytes = serde_json::to_vec(&Content(code, address.as_deref(), *weight, tags)).map_or(0, |json| json.len());
    if bytes > MAX_BYTES {
        return Err(Error::TooLarge { service: service.clone(), code: code.clone(), bytes, limit: MAX_BYTES });
    }
    Ok(())
}

/// What a registration is to be.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) instance: Instance,
    pub(crate) holder: Option<Arc<str>>,
    pub(crate) observer: bool,
    pub(crate) check: Option<Check>,
    pub(crate) patience: Option<Duration>,
}

/// Both ends of a registration.
pub(crate) fn pair(Wanted { instance, holder, observer, check, patience }: Wanted) -> (Registration, Box<Task>) {
    let (commands, receiver) = mpsc::unbounded();
    let (instance, commands) = (Arc::new(instance), Arc::new(commands));
    let (sender, state) = watch::channel(RoleState::detached(Trouble::Registering));
    let entered = Arc::new(SetOnce::new());
    let (service, code) = (instance.service.clone(), instance.code.clone());
    let roles = RoleWriter { service, code, state: Arc::new(sender) };
    let shared = SharedInstance::new(instance.clone());
    let report =
        Report { roles, instance: shared.clone(), entered: entered.clone(), last_word: "the registration has ended" };
    let (roles, ending) = (Roles { state, told: None }, Arc::default());
    let registration = Registration { instance: shared, commands, roles, entered, ending };
    let task = Task { instance, holder, observer, check, patience, commands: receiver, early: Vec::new(), report };
    (registration, Box::new(task))
}
