//! The guard that keeps one instance registered, and the two ends between it and the backend's task.

use std::sync::Arc;

use pointsman_core::{Instance, Role};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::lease::Lease;
use crate::{Error, Result};

/// Keeps one instance registered, for as long as it lives and whatever happens to the registry.
///
/// A registration ends by [`close`](Registration::close), by drop, or with its process. Dropping it deregisters in the
/// background; `close` waits until that is done. Both are a clean leave ([`Departure::Left`]); the end of the process is not.
#[derive(Debug)]
pub struct Registration {
    instance: Instance,
    commands: mpsc::UnboundedSender<Command>,
    roles: Roles,
    /// Ends the backend's task without deregistering.
    cut: Arc<Notify>,
}

/// How a registration ends, as it is told to everybody who follows the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Departure {
    /// The instance leaves, and everybody may know: it is gone at once, and never guarded.
    Left,
    /// The instance has vanished, as far as its keeper can tell: a lease has run out, a connection has broken. If many vanish
    /// suddenly, they are guarded; see [`Guard`](crate::Guard).
    Lost,
}

/// The roles of one registration as they change. Cheap to clone; outlives the registration, after which it ends.
#[derive(Debug, Clone)]
pub struct Roles {
    state: watch::Receiver<RoleState>,
    told: Option<Role>,
}

impl Registration {
    /// What is registered, as it was last updated.
    #[must_use]
    pub fn instance(&self) -> &Instance {
        &self.instance
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

    /// Why the instance is not registered now, although this registration lives; `None` while it is registered.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.roles.trouble()
    }

    /// Waits for the role to be another than the one told last; the first call returns the first role at once. `None`
    /// when the registration has ended. Cancellation loses nothing: the next call tells what this one would have told.
    ///
    /// Between two calls a role may come and go; what is told is always the newest.
    pub async fn role_changed(&mut self) -> Option<Role> {
        self.roles.changed().await
    }

    /// A handle on the roles, for another task.
    #[must_use]
    pub fn roles(&self) -> Roles {
        Roles { state: self.roles.state.clone(), told: None }
    }

    /// Changes address, weight or tags of the living registration: `registration.update(|i| i.weight = 5)`.
    /// Returns once the registry has it. While the registry is away it waits; the newest update is written on return.
    /// Cancelled, the change may still be carried out.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`], [`Error::TooLarge`] or [`Error::Fixed`], before anything is written;
    /// [`Error::Refused`] when the registry refuses; [`Error::Closed`].
    pub async fn update(&mut self, change: impl FnOnce(&mut Instance)) -> Result<()> {
        let mut instance = self.instance.clone();
        change(&mut instance);
        instance.check()?;
        let Instance { service, code, .. } = &self.instance;
        if instance.service != *service || instance.code != *code {
            return Err(Error::Fixed { service: service.clone(), code: code.clone() });
        }
        self.ask(|reply| Command::Update(Box::new(instance.clone()), reply)).await?;
        self.instance = instance;
        Ok(())
    }

    /// Hands the mastership over: at once to the first of the normal instances, if there is one; this instance then is
    /// a normal one. Without another instance it becomes master again, with a higher term. Returns once the mastership
    /// is given up.
    ///
    /// # Errors
    ///
    /// [`Error::NotMaster`] when it is not master; [`Error::Unavailable`] when the connection was lost meanwhile.
    pub async fn resign(&self) -> Result<()> {
        self.ask(Command::Resign).await
    }

    /// Deregisters, and returns once the registry has carried it out. Whoever follows the registry is told that the instance has
    /// left, and was not lost.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] when the registry is away: the instance is then removed as soon as it is back, at the
    /// latest when the session expires.
    pub async fn close(self) -> Result<()> {
        self.close_as(Departure::Left).await
    }

    /// As [`close`](Registration::close), for whoever keeps a registration for another process and knows whether that has left, or
    /// has vanished.
    ///
    /// # Errors
    ///
    /// As [`close`](Registration::close).
    pub async fn close_as(self, departure: Departure) -> Result<()> {
        self.ask(|reply| Command::Close(departure, reply)).await
    }

    /// Ends this guard without deregistering: the instance stays registered until the session of this process ends, so that
    /// whoever takes it over ([`Registry::take_over`](crate::Registry::take_over)) before that leaves no gap. What has no
    /// session, as over `memory://` and `http://`, is deregistered.
    pub fn abandon(self) {
        self.cut.notify_one();
    }

    /// What ends the backend's task without deregistering.
    pub(crate) fn cut(&self) -> Arc<Notify> {
        self.cut.clone()
    }

    /// Whether this registration lives can be asked without keeping it alive: it does while there is a strong sender.
    pub(crate) fn commands(&self) -> mpsc::WeakUnboundedSender<Command> {
        self.commands.downgrade()
    }

    async fn ask(&self, command: impl FnOnce(Reply) -> Command) -> Result<()> {
        let closed =
            || Error::Closed { what: format!("registration {}/{}", self.instance.service, self.instance.code) };
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
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
    pub fn trouble(&self) -> Option<String> {
        self.state.borrow().trouble.clone()
    }

    /// Waits for another role; see [`Registration::role_changed`].
    pub async fn changed(&mut self) -> Option<Role> {
        loop {
            let state = self.state.borrow_and_update().clone();
            let role = state.role_now();
            if self.told != Some(role) {
                self.told = Some(role);
                return Some(role);
            }
            let lease_changes = async {
                match state.lease {
                    Some(lease) if role != Role::Detached => lease.ended().await,
                    // Detached only because the lease has run out: it may hold again.
                    Some(lease) if state.role != Role::Detached => lease.held().await,
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = self.state.changed() => changed.ok()?,
                () = lease_changes => {}
            }
        }
    }
}

/// The backend's end of a registration.
#[derive(Debug)]
pub(crate) struct Task {
    /// What is to be registered. The one input of the backend's state machine.
    pub(crate) instance: Instance,
    /// Who registers, where the same may take over from itself.
    pub(crate) holder: Option<Arc<str>>,
    pub(crate) commands: mpsc::UnboundedReceiver<Command>,
    pub(crate) report: Report,
}

/// What the holder of a registration wants. The channel's end means: deregister.
#[derive(Debug)]
pub(crate) enum Command {
    Update(Box<Instance>, Reply),
    Resign(Reply),
    Close(Departure, Reply),
}

pub(crate) type Reply = oneshot::Sender<Result<()>>;

/// How a backend tells the holder what has become of the registration.
#[derive(Debug)]
pub(crate) struct Report {
    service: Arc<str>,
    code: Arc<str>,
    state: watch::Sender<RoleState>,
    /// Until the first answer: `Registry::register` waits for it.
    first: Option<Reply>,
    /// What is said when it has ended.
    last_word: &'static str,
}

#[derive(Debug, Clone)]
struct RoleState {
    role: Role,
    lease: Option<Lease>,
    trouble: Option<String>,
}

impl RoleState {
    fn role_now(&self) -> Role {
        match &self.lease {
            Some(lease) if !lease.holds() => Role::Detached,
            _ => self.role,
        }
    }
}

impl Report {
    /// The instance is registered, with that role, for as long as the lease holds (`None`: without a limit).
    pub(crate) fn registered(&mut self, role: Role, lease: Option<Lease>) {
        let (service, code) = (&self.service, &self.code);
        let before = self.state.send_replace(RoleState { role, lease, trouble: None });
        if before.role != role {
            tracing::info!(%service, %code, %role, "registered");
        }
        if let Some(first) = self.first.take() {
            let _ = first.send(Ok(()));
        }
    }

    /// The instance is alive, but not known to be registered.
    pub(crate) fn detached(&self, why: &str) {
        let (service, code) = (&self.service, &self.code);
        let trouble = Some(why.to_owned());
        let before = self.state.send_replace(RoleState { role: Role::Detached, lease: None, trouble });
        if before.role != Role::Detached {
            tracing::warn!(%service, %code, why, "detached: not known to be registered");
        }
    }

    /// The same holder has registered again elsewhere: this registration is about to end by itself.
    pub(crate) fn replaced(&mut self) {
        self.last_word = "taken over by the same holder elsewhere";
        self.detached(self.last_word);
    }

    /// The role is about to be given up by us: nobody may hold it by this registration any more, even if the answer to
    /// what is about to be asked of the registry never comes.
    pub(crate) fn step_down(&self, why: &str) {
        let trouble = Some(why.to_owned());
        self.state.send_replace(RoleState { role: Role::Detached, lease: None, trouble });
    }

    /// Tells the holder, who still waits for the first answer, that there will be no registration.
    pub(crate) fn fail_first(&mut self, error: Error) {
        if let Some(first) = self.first.take() {
            let _ = first.send(Err(error));
        }
    }

    /// Whether the holder still waits for the first answer: then a failure ends the registration, otherwise the backend
    /// must go on trying.
    pub(crate) fn is_first(&self) -> bool {
        self.first.is_some()
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        // `Roles` outlive the registration: they must not go on saying master.
        self.step_down(self.last_word);
    }
}

/// How a backend's task ended. Told to the holder only when all that the task held is released.
#[derive(Debug)]
pub(crate) enum End {
    /// The registration was dropped.
    Dropped,
    /// It was closed.
    Closed(Reply, Result<()>),
    /// It never came to be.
    Failed(Report, Error),
}

impl End {
    /// The same holder has registered anew. Where this one had not been registered yet, it never will be.
    pub(crate) fn replaced(mut report: Report) -> Self {
        report.replaced();
        if !report.is_first() {
            return End::Dropped;
        }
        let (service, code) = (report.service.clone(), report.code.clone());
        let holder = "the same holder, at the same moment, elsewhere".to_owned();
        End::Failed(report, Error::DuplicateCode { service, code, holder })
    }

    pub(crate) fn tell(self) {
        let (reply, result) = match self {
            End::Dropped => return,
            End::Closed(reply, result) => (Some(reply), result),
            End::Failed(mut report, error) => (report.first.take(), Err(error)),
        };
        if let Some(reply) = reply {
            // Nobody waits any more: nobody to tell.
            let _ = reply.send(result);
        }
    }
}

/// Both ends of a registration of `instance`, and the answer to wait for.
pub(crate) fn pair(
    instance: Instance,
    holder: Option<Arc<str>>,
) -> (Registration, Task, oneshot::Receiver<Result<()>>) {
    let (commands, receiver) = mpsc::unbounded_channel();
    let trouble = Some("registering".to_owned());
    let (sender, state) = watch::channel(RoleState { role: Role::Detached, lease: None, trouble });
    let (first, answer) = oneshot::channel();
    let report = Report {
        service: instance.service.clone(),
        code: instance.code.clone(),
        state: sender,
        first: Some(first),
        last_word: "the registration has ended",
    };
    let (roles, cut) = (Roles { state, told: None }, Arc::default());
    let registration = Registration { instance: instance.clone(), commands, roles, cut };
    (registration, Task { instance, holder, commands: receiver, report }, answer)
}
