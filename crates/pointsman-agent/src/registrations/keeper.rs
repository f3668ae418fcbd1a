//! Keeps one registration: its lease, its check, and what the registry says.

use std::sync::Arc;

use futures_channel::mpsc;
use futures_util::StreamExt as _;
use pointsman_core::Instance;
use pointsman_registry::{Departure, Registration, RegistrationBuilder, Registry, Roles, Trouble};
use tokio::sync::{oneshot, watch};

use super::{Command, End, Registered, Status, Wish, lock};
use crate::problem::Problem;

pub(super) struct Keeper {
    /// In a box, because it is over once it has begun.
    registration: Box<RegistrationBuilder>,
    registered: Arc<Registered>,
    commands: mpsc::UnboundedReceiver<Command>,
    status: watch::Sender<Status>,
}

/// A registration at work.
struct Keeping<'a> {
    registered: &'a Registered,
    commands: &'a mut mpsc::UnboundedReceiver<Command>,
    status: &'a watch::Sender<Status>,
    registration: Registration,
    /// What is told of the registration's role, whatever else goes on.
    roles: Roles,
    /// Whether it has been registered once.
    was_registered: bool,
    /// Whether the first attempt is over: from then on it may expire.
    is_settled: bool,
    updates: Option<Box<Updates>>,
}

/// Updates that are not written yet.
struct Updates {
    /// The instance as the newest update has it.
    instance: Instance,
    /// The requests that are answered when it is written.
    replies: Vec<oneshot::Sender<Result<(), Problem>>>,
}

/// What is left to be told once a registration is out of the way.
pub(super) struct Ended {
    status: watch::Sender<Status>,
    end: End,
}

impl Ended {
    pub(super) fn tell(self) {
        let reason = Some(self.end.name().into());
        self.status.send_replace(Status { reason, settled: true, ended: Some(self.end) });
    }
}

impl Keeper {
    pub(super) fn new(
        registry: &Registry,
        wish: &Wish,
        registered: Arc<Registered>,
        commands: mpsc::UnboundedReceiver<Command>,
        status: watch::Sender<Status>,
    ) -> Self {
        let registration = registry.registration(wish.instance.clone());
        let registration = if registered.observer { registration.observer() } else { registration };
        let registration = Box::new(registration.holder(&registered.holder).check(wish.check.clone()));
        Self { registration, registered, commands, status }
    }

    /// Until it ends; then what there was is out of the registry.
    pub(super) async fn run(self) -> (Arc<Registered>, Ended) {
        let Self { registration, registered, mut commands, status } = self;
        let end = match registration.start() {
            Ok(registration) => Keeping::new(&registered, &mut commands, &status, registration).run().await,
            Err(error) => {
                registered.lease.finish();
                End::Failed(error.into())
            }
        };
        // Pending commands are answered by the channel's end.
        commands.close();
        (registered, Ended { status, end })
    }
}

async fn deregister(registration: Registration, departure: Departure) {
    if let Err(error) = registration.close_as(departure).await {
        // It is removed as soon as the registry is back.
        tracing::warn!(%error, "deregister");
    }
}

impl<'a> Keeping<'a> {
    /// In a box, so that the task has room for it once.
    fn new(
        registered: &'a Registered,
        commands: &'a mut mpsc::UnboundedReceiver<Command>,
        status: &'a watch::Sender<Status>,
        registration: Registration,
    ) -> Box<Self> {
        let roles = registration.roles();
        *lock(&registered.roles) = Some(roles.clone());
        let (was_registered, is_settled, updates) = (false, false, None);
        Box::new(Self { registered, commands, status, registration, roles, was_registered, is_settled, updates })
    }

    async fn run(mut self: Box<Self>) -> End {
        let end = loop {
            if let Some(end) = self.turn().await {
                break end;
            }
        };
        // From here on nobody can renew it.
        self.registered.lease.finish();
        lock(&self.registered.roles).take();
        if self.is_settled {
            // Before the registry is asked: it may give the role away before we have its answer. What has never been registered
            // has no role to give up, and whoever waits for its outcome is told by the end.
            self.tell(Some(end.name().into()));
        }
        let is_unhealthy = matches!(self.roles.trouble(), Some(Trouble::CheckFails(_)));
        match end {
            // Another agent takes it over before the session of this one ends.
            End::Closing if self.was_registered && !is_unhealthy => self.registration.abandon(),
            _ => Box::pin(deregister(self.registration, end.departure())).await,
        }
        end
    }

    /// Rare branches are boxed, so that the task does not reserve memory for them.
    async fn turn(&mut self) -> Option<End> {
        if self.updates.is_some() && self.is_settled {
            return Box::pin(self.write_updates()).await;
        }
        let entered = async { Box::pin(self.registration.registered()).await };
        tokio::select! {
            entered = entered, if !self.was_registered => match entered {
                Ok(()) => {
                    self.registered.lease.renew();
                    (self.was_registered, self.is_settled) = (true, true);
                    self.tell(None);
                    None
                }
                Err(error) => Some(End::Failed(error.into())),
            },
            status = self.roles.status_changed() => self.role_changed(status.is_some()),
            () = expired(self.registered), if self.is_settled => Some(End::Expired),
            command = self.commands.next() => Box::pin(self.take(command)).await,
        }
    }

    /// Takes in that the role is another, and lets those who follow it look.
    fn role_changed(&mut self, lives: bool) -> Option<End> {
        let trouble = self.roles.trouble();
        if !lives {
            // It ends by itself only where the same holder has taken it over elsewhere. One that has never been registered says why.
            return self.was_registered.then_some(End::Replaced);
        }
        self.is_settled |= matches!(trouble, Some(Trouble::CheckFails(_)));
        if self.is_settled {
            self.tell(trouble.map(|trouble| trouble.to_string().into()));
        }
        None
    }

    async fn take(&mut self, command: Option<Command>) -> Option<End> {
        match command {
            // The registrations hold a sender: it does not come to this.
            None => return Some(End::Deregistered),
            Some(Command::End(end)) => return Some(end),
            // A newer connection has it: the stream of the older one is to look.
            Some(Command::Rebound) => self.status.send_modify(|_| {}),
            Some(Command::Update(instance, check, reply)) => {
                let mut replies = self.updates.take().map_or_else(Vec::new, |updates| updates.replies);
                replies.push(reply);
                self.updates = Some(Box::new(Updates { instance: *instance, replies }));
                if let Err(error) = self.registration.set_check(check.map(|check| *check)) {
                    return Some(End::Failed(error.into()));
                }
            }
            Some(Command::Resign(reply)) => {
                let (registration, roles) = (&self.registration, &mut self.roles);
                let resigning = registration.resign();
                tokio::pin!(resigning);
                let result = loop {
                    tokio::select! {
                        result = &mut resigning => break result,
                        // It is given up before the registry has said yes.
                        status = roles.status_changed() => match status {
                            Some((_, trouble)) if self.is_settled => tell(self.status, trouble.map(|why| why.to_string().into())),
                            Some(_) => {}
                            None => return self.was_registered.then_some(End::Replaced),
                        },
                    }
                };
                let _ = reply.send(result.map_err(Problem::from));
            }
        }
        None
    }

    /// Writes what has been updated, and answers who waits for it.
    async fn write_updates(&mut self) -> Option<End> {
        let Some(updates) = &self.updates else { return None };
        let wanted = updates.instance.clone();
        let change = move |instance: &mut Instance| {
            (instance.address, instance.weight, instance.tags) = (wanted.address, wanted.weight, wanted.tags);
        };
        // While the registry is away this waits. What has not changed is not written again.
        let result = tokio::select! {
            result = self.registration.update(change) => result.map_err(Problem::from),
            status = self.roles.status_changed() => return self.role_changed(status.is_some()),
            () = expired(self.registered) => return Some(End::Expired),
            command = self.commands.next() => return self.take(command).await,
        };
        let replies = self.updates.take().map_or_else(Vec::new, |updates| updates.replies);
        for reply in replies {
            let _ = reply.send(result.clone());
        }
        None
    }

    fn tell(&self, reason: Option<Arc<str>>) {
        tell(self.status, reason);
    }
}

/// Lets those who follow the role look.
fn tell(status: &watch::Sender<Status>, reason: Option<Arc<str>>) {
    status.send_replace(Status { reason, settled: true, ended: None });
}

/// Returns when the lease has run out.
async fn expired(registered: &Registered) {
    while let Some(until) = registered.lease.try_end() {
        match until {
            Some(until) => tokio::time::sleep_until(until).await,
            None => std::future::pending().await,
        }
    }
}
