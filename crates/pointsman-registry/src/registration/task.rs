//! The backend's end of a registration: what its task is given, and how it tells the holder what has become of it.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_channel::mpsc;
use pointsman_core::{Instance, Role};
use tokio::sync::{SetOnce, oneshot, watch};

use super::{Departure, SharedInstance, TAKEN_OVER, Trouble};
use crate::check::Check;
use crate::lease::Lease;
use crate::{Error, Result};

/// The backend's end of a registration. In a box wherever it is handed on: a future has room for each place in which it has been.
#[derive(Debug)]
pub(crate) struct Task {
    /// What is to be registered.
    pub(crate) instance: Arc<Instance>,
    /// Who registers, where the same may take over from itself.
    pub(crate) holder: Option<Arc<str>>,
    /// Whether it is never to be master.
    pub(crate) observer: bool,
    /// It is registered only while it passes this.
    pub(crate) check: Option<Check>,
    /// How long the registry may be away before the first registration fails; `None`: for ever.
    pub(crate) patience: Option<Duration>,
    pub(crate) commands: mpsc::UnboundedReceiver<Command>,
    /// Commands that have come before it was kept.
    pub(crate) early: Vec<Command>,
    pub(crate) report: Report,
}

/// What the holder of a registration wants. The channel's end means: deregister.
pub(crate) enum Command {
    Update(Change, Reply),
    Check(Option<Box<Check>>),
    Resign(Reply),
    Close(Departure, Reply),
}

/// How commands are sent. An idle channel is to be small, as there may be 10,000 of them: tokio's has room for 32 commands from the start, this
/// one for none. It has no weak senders, so the sender is behind a pointer that has.
pub(crate) type Commands = Arc<mpsc::UnboundedSender<Command>>;

/// How commands are sent by those who do not keep the registration alive.
pub(crate) type WeakCommands = Weak<mpsc::UnboundedSender<Command>>;

pub(crate) type Reply = oneshot::Sender<Result<()>>;

/// The holder's change of the instance. Returns `false` if it has panicked; the holder receives the panic.
pub(crate) type Change = Box<dyn FnOnce(&mut Instance) -> bool + Send>;

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Command::Update(..) => "Update",
            Command::Check(_) => "Check",
            Command::Resign(_) => "Resign",
            Command::Close(..) => "Close",
        })
    }
}

/// How the holder is told what has become of the registration. Dropped, it says that the registration has ended.
#[derive(Debug)]
pub(crate) struct Report {
    pub(super) roles: RoleWriter,
    pub(super) instance: SharedInstance,
    pub(super) entered: Arc<SetOnce<Result<()>>>,
    /// What is said when it has ended.
    pub(super) last_word: &'static str,
}

/// Tells the role. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct RoleWriter {
    pub(super) service: Arc<str>,
    pub(super) code: Arc<str>,
    pub(super) state: Arc<watch::Sender<RoleState>>,
}

/// The role as it was last told, until when it holds, and why there is none.
#[derive(Debug, Clone)]
pub(super) struct RoleState {
    pub(super) role: Role,
    pub(super) lease: Option<Lease>,
    pub(super) trouble: Option<Trouble>,
}

impl RoleState {
    pub(super) fn role_now(&self) -> Role {
        match &self.lease {
            Some(lease) if !lease.holds() => Role::Detached,
            _ => self.role,
        }
    }

    /// Waits for a reason to look again, after a look at this state found that role. `None`: the registration has ended.
    pub(super) async fn outdated(&self, role: Role, changes: &mut watch::Receiver<RoleState>) -> Option<()> {
        let lease_changes = async {
            match &self.lease {
                // In boxes, because a registration over memory has no lease, and needs no room for one.
                Some(lease) if role != Role::Detached => Box::pin(lease.ended()).await,
                // Detached only because the lease has run out: it may hold again.
                Some(lease) if self.role != Role::Detached => Box::pin(lease.held()).await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = changes.changed() => changed.ok(),
            () = lease_changes => Some(()),
        }
    }

    pub(super) fn detached(trouble: Trouble) -> Self {
        Self { role: Role::Detached, lease: None, trouble: Some(trouble) }
    }
}

impl RoleWriter {
    /// The instance is registered, with that role, for as long as the lease holds (`None`: without a limit).
    pub(crate) fn registered(&self, role: Role, lease: Option<Lease>) {
        let (service, code) = (&self.service, &self.code);
        let before = self.state.send_replace(RoleState { role, lease, trouble: None });
        if before.role != role {
            tracing::info!(%service, %code, %role, "registered");
        }
    }

    /// The instance is alive, but holds no role.
    fn detached(&self, trouble: &Trouble) {
        let (service, code) = (&self.service, &self.code);
        let why = trouble.to_string();
        let before = self.state.send_replace(RoleState::detached(trouble.clone()));
        let is_news = before.role != Role::Detached || before.trouble.as_ref() != Some(trouble);
        match trouble {
            Trouble::Lost(_) if before.role != Role::Detached => {
                tracing::warn!(%service, %code, why, "detached: not known to be registered");
            }
            Trouble::Lost(_) | Trouble::Waiting(_) if is_news => {
                tracing::info!(%service, %code, why, "not registered yet");
            }
            _ => {}
        }
    }

    /// The role is about to be given up: nobody may hold it any more, even if the answer to what is about to be asked of the registry never
    /// comes.
    pub(crate) fn step_down(&self, why: &str) {
        self.state.send_if_modified(|state| {
            // What is said already says more.
            let holds = state.role != Role::Detached;
            if holds {
                *state = RoleState::detached(Trouble::SteppedDown(why.to_owned()));
            }
            holds
        });
    }
}

impl Report {
    /// A handle by which the role is told from elsewhere.
    pub(crate) fn roles(&self) -> &RoleWriter {
        &self.roles
    }

    /// Tells what is to be registered from now on.
    pub(crate) fn wants(&self, instance: &Arc<Instance>) {
        self.instance.write(instance.clone());
    }

    /// Tells what the first attempts have come to.
    pub(crate) fn entered(&self, result: Result<()>) {
        // They come to one thing only.
        let _ = self.entered.set(result);
    }

    pub(crate) fn detached(&self, trouble: &Trouble) {
        self.roles.detached(trouble);
    }

    /// The same holder has registered again elsewhere: this registration is about to end by itself.
    pub(crate) fn replaced(&mut self) {
        self.last_word = TAKEN_OVER;
        self.detached(&Trouble::Lost(self.last_word.to_owned()));
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        // Whoever waits for the first attempts waits no longer.
        if !self.entered.initialized() {
            let RoleWriter { service, code, .. } = &self.roles;
            self.entered(Err(Error::Closed { what: format!("registration {service}/{code}") }));
        }
        // `Roles` outlive the registration: they must not go on saying master.
        self.roles.state.send_replace(RoleState::detached(Trouble::Ended(self.last_word)));
    }
}

/// How a backend's task ended. Told only when all that the task held is released.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) report: Report,
    /// What the first attempts have come to, if that is not told yet.
    pub(crate) outcome: Option<Result<()>>,
    pub(crate) replies: Vec<(Reply, Result<()>)>,
}

impl End {
    pub(crate) fn tell(self) {
        if let Some(outcome) = self.outcome {
            self.report.entered(outcome);
        }
        for (reply, result) in self.replies {
            // Nobody waits any more: nobody to tell.
            let _ = reply.send(result);
        }
    }

    /// The registration has been given up before it began.
    pub(crate) fn given_up(task: Box<Task>, reply: Option<Reply>) -> Self {
        let Task { instance, early, report, .. } = *task;
        let Instance { service, code, .. } = &*instance;
        let closed = Error::Closed { what: format!("registration {service}/{code}") };
        let mut replies: Vec<_> = reply.into_iter().map(|reply| (reply, Ok(()))).collect();
        let updates = early.into_iter().filter_map(|command| match command {
            Command::Update(_, reply) => Some((reply, Err(closed.clone()))),
            _ => None,
        });
        replies.extend(updates);
        Self { report, outcome: Some(Err(closed)), replies }
    }

    /// The registration has never begun.
    pub(crate) fn failed(report: Report, error: Error) -> Self {
        Self { report, outcome: Some(Err(error)), replies: Vec::new() }
    }
}
