//! Keeps one registration: its lease, its check, and what the registry says.

use std::sync::Arc;
use std::time::Duration;

use pointsman_core::Instance;
use pointsman_registry::check::{Check, Checking};
use pointsman_registry::{Departure, Error, Registration, Registry, Roles};
use tokio::sync::{mpsc, oneshot, watch};

use super::{Command, End, Registered, Status, Wish, lock};
use crate::problem::Problem;

/// Between two attempts to come back, while the registry is away or somebody else has the code.
const RETRY: Duration = Duration::from_secs(1);

pub(super) struct Keeper {
    registry: Registry,
    registered: Arc<Registered>,
    commands: mpsc::UnboundedReceiver<Command>,
    status: watch::Sender<Status>,
    /// What is to be registered.
    instance: Instance,
    registration: Option<Registration>,
    /// What is told of the registration's role, whatever else goes on.
    roles: Option<Roles>,
    /// Whether it has been registered once: from then on it does not give up.
    was_registered: bool,
    health: Health,
    /// Who waits for the newest update to be written.
    updates: Vec<oneshot::Sender<Result<(), Problem>>>,
}

/// Whether the instance passes its check; always, without one.
struct Health {
    check: Option<Check>,
    checking: Option<Checking>,
    state: Result<(), String>,
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
        registry: Registry,
        wish: &Wish,
        registered: Arc<Registered>,
        commands: mpsc::UnboundedReceiver<Command>,
        status: watch::Sender<Status>,
    ) -> Self {
        Self {
            registry,
            registered,
            commands,
            status,
            instance: wish.instance.clone(),
            registration: None,
            roles: None,
            was_registered: false,
            health: Health::new(wish.check.clone()),
            updates: Vec::new(),
        }
    }

    /// Until it ends; then what there was is out of the registry.
    pub(super) async fn run(mut self) -> (Arc<Registered>, Ended) {
        let end = loop {
            if let Some(end) = self.turn().await {
                break end;
            }
        };
        // From here on nobody can renew it.
        self.registered.lease.finish();
        lock(&self.registered.roles).take();
        if self.was_registered {
            // Before the registry is asked: it may give the role away before we have its answer. What has never been registered
            // has no role to give up, and whoever waits for its outcome is told by the end.
            self.tell(Some(end.name().into()));
        }
        match (&end, self.registration.take()) {
            // Another agent takes it over before the session of this one ends.
            (End::Closing, Some(registration)) => registration.abandon(),
            (_, registration) => {
                self.registration = registration;
                self.deregister(end.departure()).await;
            }
        }
        // Who has asked meanwhile is told by the end of the channel.
        self.commands.close();
        (self.registered, Ended { status: self.status, end })
    }

    async fn turn(&mut self) -> Option<End> {
        if let Err(why) = self.health.state.clone() {
            return self.unhealthy(&why).await;
        }
        if self.registration.is_none() {
            return self.register().await;
        }
        if !self.updates.is_empty() {
            return self.write_updates().await;
        }
        self.stay().await
    }

    /// The check fails: it is not registered, until it passes.
    async fn unhealthy(&mut self, why: &str) -> Option<End> {
        lock(&self.registered.roles).take();
        self.tell(Some(format!("the check fails: {why}").into()));
        // It has not left: where the checks of most fail at once, it may be the way to them.
        self.deregister(Departure::Lost).await;
        // What is updated meanwhile counts from when it is registered again.
        for reply in self.updates.drain(..) {
            let _ = reply.send(Ok(()));
        }
        tokio::select! {
            () = self.health.changed() => None,
            command = self.commands.recv() => self.take(command).await,
            () = expired(&self.registered) => Some(End::Expired),
        }
    }

    async fn deregister(&mut self, departure: Departure) {
        if let Some(registration) = self.registration.take()
            && let Err(error) = registration.close_as(departure).await
            // One that has ended by itself needs no end.
            && !matches!(error, Error::Closed { .. })
        {
            // It is removed as soon as the registry is back.
            tracing::warn!(%error, "deregister");
        }
    }

    async fn register(&mut self) -> Option<End> {
        let (registry, instance) = (self.registry.clone(), self.instance.clone());
        let holder = self.registered.holder.clone();
        let registering = async move { registry.take_over(instance, &holder).await };
        tokio::pin!(registering);
        let result = loop {
            tokio::select! {
                result = &mut registering => break result,
                () = self.health.changed() => return None,
                // The first time it takes as long as it takes: a dead process's session may have to end.
                () = expired(&self.registered), if self.was_registered => return Some(End::Expired),
                command = self.commands.recv() => match self.take(command).await {
                    None => {}
                    end => return end,
                },
            }
        };
        match result {
            Ok(registration) => {
                if !self.was_registered {
                    self.registered.lease.renew();
                }
                *lock(&self.registered.roles) = Some(registration.roles());
                self.roles = Some(registration.roles());
                self.registration = Some(registration);
                self.was_registered = true;
                None
            }
            Err(error) if !self.was_registered || matches!(error, Error::Closed { .. }) => {
                Some(End::Failed(error.into()))
            }
            Err(error) => {
                self.tell(Some(error.to_string().into()));
                tokio::select! {
                    () = tokio::time::sleep(RETRY) => None,
                    () = expired(&self.registered) => Some(End::Expired),
                    command = self.commands.recv() => self.take(command).await,
                }
            }
        }
    }

    /// Registered: until something happens.
    async fn stay(&mut self) -> Option<End> {
        tokio::select! {
            end = role_changed(&mut self.roles, &self.status) => end,
            () = self.health.changed() => None,
            () = expired(&self.registered) => Some(End::Expired),
            command = self.commands.recv() => self.take(command).await,
        }
    }

    async fn take(&mut self, command: Option<Command>) -> Option<End> {
        match command {
            // The registrations hold a sender: it does not come to this.
            None => return Some(End::Deregistered),
            Some(Command::End(end)) => return Some(end),
            // A newer connection has it: the stream of the older one is to look.
            Some(Command::Rebound) => self.status.send_modify(|_| {}),
            Some(Command::Update(instance, check, reply)) => {
                self.instance = *instance;
                self.health.check_by(check.map(|check| *check));
                self.updates.push(reply);
            }
            Some(Command::Resign(reply)) => {
                let result = match &self.registration {
                    Some(registration) => {
                        let resigning = registration.resign();
                        tokio::pin!(resigning);
                        loop {
                            tokio::select! {
                                result = &mut resigning => break result,
                                // It is given up before the registry has said yes.
                                end = role_changed(&mut self.roles, &self.status) => if end.is_some() {
                                    return end;
                                },
                            }
                        }
                    }
                    None => {
                        let (service, code) = self.registered.key.clone();
                        Err(Error::NotMaster { service, code })
                    }
                };
                let _ = reply.send(result.map_err(Problem::from));
            }
        }
        None
    }

    /// Writes what has been updated, and answers who waits for it.
    async fn write_updates(&mut self) -> Option<End> {
        let registration = self.registration.as_mut()?;
        let wanted = self.instance.clone();
        let is = registration.instance();
        let result = if (&is.address, is.weight, &is.tags) == (&wanted.address, wanted.weight, &wanted.tags) {
            Ok(())
        } else {
            let change = |instance: &mut Instance| {
                (instance.address, instance.weight, instance.tags) = (wanted.address, wanted.weight, wanted.tags);
            };
            // While the registry is away this waits.
            tokio::select! {
                result = registration.update(change) => result.map_err(Problem::from),
                end = role_changed(&mut self.roles, &self.status) => return end,
                () = self.health.changed() => return None,
                () = expired(&self.registered) => return Some(End::Expired),
                command = self.commands.recv() => return self.take(command).await,
            }
        };
        if result.is_err() {
            self.instance = registration.instance().clone();
        }
        for reply in self.updates.drain(..) {
            let _ = reply.send(result.clone());
        }
        None
    }

    /// Lets those who follow the role look.
    fn tell(&self, reason: Option<Arc<str>>) {
        self.status.send_replace(Status { reason, settled: true, ended: None });
    }
}

/// Waits for another role, and lets those who follow it look; never, where nothing is registered. It ends by itself only where
/// the same holder has taken it over elsewhere.
async fn role_changed(roles: &mut Option<Roles>, status: &watch::Sender<Status>) -> Option<End> {
    let Some(following) = roles else { return std::future::pending().await };
    if following.changed().await.is_none() {
        *roles = None;
        return Some(End::Replaced);
    }
    let reason = following.trouble().map(Into::into);
    status.send_replace(Status { reason, settled: true, ended: None });
    None
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

impl Health {
    fn new(check: Option<Check>) -> Self {
        let mut health = Self { check: None, checking: None, state: Ok(()) };
        health.check_by(check);
        health
    }

    /// From now on by this check. What an unchanged check has found out stays.
    fn check_by(&mut self, check: Option<Check>) {
        if self.check == check {
            return;
        }
        self.state = if check.is_some() { Err("it has not passed yet".to_owned()) } else { Ok(()) };
        self.checking = check.clone().map(Check::start);
        self.check = check;
    }

    /// Waits for another state.
    async fn changed(&mut self) {
        match &mut self.checking {
            Some(checking) => self.state = checking.changed().await,
            None => std::future::pending().await,
        }
    }
}
