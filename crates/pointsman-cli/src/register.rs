//! `register`: keeps one instance registered, alone or for as long as a command runs.
//!
//! The order matters. The command is started first, because what cannot run must not be registered; its end is followed
//! by the deregistration at once. On a signal the instance is deregistered before the command hears of it, so that nobody
//! is sent to a service that is going down.

use std::process::ExitCode;
use std::time::Duration;

use pointsman::check::{Check, Probe};
use pointsman::{Error, Instance, Registration, Registry, Role};
use rustix::process::Signal;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::args::{CheckArgs, Global, Output, Register};
use crate::child::{self, Child};
use crate::failure::Failure;
use crate::json::RoleJson;
use crate::output::shown;
use crate::signals::{Signals, or_hurry};
use crate::{Outcome, output, session};

/// How long a deregistration may take before the process ends anyway; the session's end does the rest.
const DEREGISTER: Duration = Duration::from_secs(2);
/// Before a registration that failed because the registry was away is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// How long a registration may take before somebody might wonder.
const SLOW: Duration = Duration::from_secs(1);

/// `pointsman register SERVICE … [-- COMMAND…]`.
pub(crate) async fn run(args: Register, global: &Global) -> Outcome {
    let instance = instance(&args);
    instance.check().map_err(|error| Failure::usage(error.to_string()))?;
    let check = check(&args.check, args.address.as_deref())?;
    let mut signals = Signals::listen()?;
    let registry = tokio::select! {
        registry = session::connect(global) => registry?,
        _ = signals.next() => return Ok(ExitCode::SUCCESS),
    };
    let teller = Teller { output: global.output, to_stderr: !args.command.is_empty(), told: None };
    let result = match args.command.as_slice() {
        [] => alone(&registry, instance, check, teller, &mut signals).await,
        command => match Child::start(command, &args.service, &instance.code) {
            Ok(child) => beside(&registry, instance, check, teller, (child, args.stop_timeout), &mut signals).await,
            Err(failure) => Err(failure),
        },
    };
    if !matches!(&result, Err(failure) if *failure == Failure::hurried()) {
        or_hurry(session::close(registry), &mut signals).await?;
    }
    result
}

fn instance(args: &Register) -> Instance {
    let mut instance = Instance::new(&*args.service).weight(args.weight);
    if let Some(address) = &args.address {
        instance = instance.address(&**address);
    }
    if let Some(code) = &args.code {
        instance = instance.code(&**code);
    }
    args.tags.iter().fold(instance, |instance, (name, value)| instance.tag(name, value))
}

fn check(args: &CheckArgs, address: Option<&str>) -> Result<Option<Check>, Failure> {
    let Some(what) = &args.what else { return Ok(None) };
    let mut check = Check::new(Probe::parse(what, address).map_err(Failure::usage)?);
    (check.interval, check.timeout) = (args.interval, args.timeout);
    (check.rise, check.fall) = (args.rise, args.fall);
    Ok(Some(check))
}

/// Without a command: until a signal.
async fn alone(
    registry: &Registry,
    instance: Instance,
    check: Option<Check>,
    teller: Teller,
    signals: &mut Signals,
) -> Outcome {
    let mut keeper = Keeper::new(registry, instance, check, teller);
    let failed = tokio::select! {
        failure = keeper.keep() => Some(failure),
        _ = signals.next() => None,
    };
    or_hurry(keeper.deregister(), signals).await?;
    failed.map_or(Ok(ExitCode::SUCCESS), Err)
}

/// With a command: until its end, which a signal brings about.
async fn beside(
    registry: &Registry,
    instance: Instance,
    check: Option<Check>,
    teller: Teller,
    (mut child, patience): (Child, Duration),
    signals: &mut Signals,
) -> Outcome {
    enum Event {
        Ended(std::process::ExitStatus),
        Signal(Signal),
        Failed(Failure),
    }
    let mut keeper = Keeper::new(registry, instance, check, teller);
    let event = tokio::select! {
        status = child.ended() => Event::Ended(status?),
        signal = signals.next() => Event::Signal(signal),
        failure = keeper.keep() => Event::Failed(failure),
    };
    let stopped = |status| Ok(ExitCode::from(child::exit_code(status)));
    match event {
        Event::Ended(status) => {
            or_hurry(keeper.deregister(), signals).await?;
            stopped(status)
        }
        Event::Signal(signal) => {
            or_hurry(keeper.deregister(), signals).await?;
            stopped(child.stop(signal, patience, signals.next()).await?)
        }
        Event::Failed(failure) => {
            or_hurry(keeper.deregister(), signals).await?;
            child.stop(Signal::TERM, patience, signals.next()).await?;
            Err(failure)
        }
    }
}

/// Keeps the instance registered while its check passes, and tells each role.
struct Keeper<'a> {
    registry: &'a Registry,
    instance: Instance,
    health: Health,
    teller: Teller,
    registration: Option<Registration>,
    /// Whether it was registered before: then the registry being away is no reason to give up.
    was_registered: bool,
}

impl<'a> Keeper<'a> {
    fn new(registry: &'a Registry, instance: Instance, check: Option<Check>, teller: Teller) -> Self {
        let health = Health::start(check);
        Self { registry, instance, health, teller, registration: None, was_registered: false }
    }

    /// Ends only by a failure. Cancelled, the registration stays with the keeper.
    async fn keep(&mut self) -> Failure {
        loop {
            if let Err(failure) = self.turn().await {
                return failure;
            }
        }
    }

    /// From one change of health to the next.
    async fn turn(&mut self) -> Result<(), Failure> {
        if !self.health.passes() {
            self.deregister().await;
            self.health.changed().await;
            return Ok(());
        }
        if self.registration.is_none() {
            tokio::select! {
                registration = register(self.registry, &self.instance, self.was_registered) => {
                    self.registration = Some(registration?);
                    self.was_registered = true;
                }
                () = self.health.changed() => return Ok(()),
            }
        }
        let Some(registration) = &mut self.registration else { return Ok(()) };
        loop {
            tokio::select! {
                role = registration.role_changed() => match role {
                    Some(role) => self.teller.tell(registration.instance(), role, registration.trouble().as_deref()),
                    None => return Err(Failure::new("the registration has ended by itself")),
                },
                () = self.health.changed() => return Ok(()),
            }
        }
    }

    /// Tells first, then deregisters: whoever reads the roles stops before another becomes master.
    async fn deregister(&mut self) {
        let Some(registration) = self.registration.take() else { return };
        self.teller.tell(registration.instance(), Role::Detached, None);
        match tokio::time::timeout(DEREGISTER, registration.close()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "deregister"),
            Err(_) => tracing::warn!("the registry did not confirm the deregistration within {DEREGISTER:?}"),
        }
    }
}

async fn register(registry: &Registry, instance: &Instance, go_on: bool) -> Result<Registration, Error> {
    loop {
        let registering = registry.register(instance.clone());
        tokio::pin!(registering);
        let result = tokio::select! {
            result = &mut registering => result,
            () = tell_who_is_in_the_way(registry, instance) => registering.await,
        };
        match result {
            Err(error) if go_on && error.is_retryable() => {
                tracing::warn!(%error, "register again");
                tokio::time::sleep(RETRY).await;
            }
            result => return result,
        }
    }
}

/// After a while, if the code is registered already: whoever starts a process again after `kill -9` sees why it waits.
async fn tell_who_is_in_the_way(registry: &Registry, instance: &Instance) {
    tokio::time::sleep(SLOW).await;
    let Ok(service) = registry.discover(&instance.service).await else { return };
    let Instance { service: name, code, .. } = instance;
    if let Some(holder) = service.snapshot().find(code) {
        // It may be this very registration, whose confirmation is on its way.
        tokio::time::sleep(SLOW / 4).await;
        let address = holder.address.as_deref().map(|address| format!(" at {}", shown(address))).unwrap_or_default();
        let role = holder.role.name();
        output::note(&format!(
            "note: {name}/{code} is registered already{address} as {role}; if that process has died, its session ends \
             soon and this one follows"
        ));
    }
}

/// Whether the instance is healthy; always, without a check.
struct Health {
    state: watch::Receiver<bool>,
    /// Ends with this value.
    _checking: JoinSet<()>,
}

impl Health {
    fn start(check: Option<Check>) -> Self {
        let (sender, state) = watch::channel(check.is_none());
        let mut checking = JoinSet::new();
        checking.spawn(async move {
            let Some(check) = check else {
                // Holds the sender, so that nothing ever changes.
                sender.closed().await;
                return;
            };
            let probe = check.probe.to_string();
            let mut checking = check.start();
            loop {
                let result = checking.changed().await;
                match &result {
                    Ok(()) => tracing::info!(probe, "the check passes"),
                    Err(why) => tracing::warn!(probe, why, "the check fails"),
                }
                sender.send_replace(result.is_ok());
            }
        });
        Self { state, _checking: checking }
    }

    fn passes(&mut self) -> bool {
        *self.state.borrow_and_update()
    }

    /// Waits for the health to be another than [`Health::passes`] has told.
    async fn changed(&mut self) {
        if self.state.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Tells roles.
struct Teller {
    output: Output,
    /// Stdout is the command's: what is for people goes to stderr.
    to_stderr: bool,
    told: Option<Role>,
}

impl Teller {
    fn tell(&mut self, instance: &Instance, role: Role, trouble: Option<&str>) {
        if self.told.replace(role) == Some(role) {
            return;
        }
        let trouble = trouble.map(|why| format!(": {}", shown(why))).unwrap_or_default();
        let sentence = || format!("{}/{} is {role}{trouble}", instance.service, instance.code);
        let written = match (self.output, self.to_stderr) {
            (Output::Json, _) => output::json(&RoleJson::from(role)),
            (Output::Table, false) => output::line(&sentence()),
            (Output::Table, true) => {
                output::note(&sentence());
                Ok(())
            }
        };
        if let Err(error) = written {
            // That nobody reads the roles is no reason to deregister.
            tracing::debug!(%error, "tell the role");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_check_needs_something_to_ask() {
        let mut args = CheckArgs {
            what: Some("tcp".to_owned()),
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
        };
        assert_eq!(
            check(&args, None).unwrap_err(),
            Failure::usage("the check tcp needs an address to check; write tcp://host:port")
        );
        let read = check(&args, Some("h:1")).unwrap().unwrap();
        assert_eq!((read.probe.to_string(), read.rise), ("tcp://h:1".to_owned(), 2));
        args.what = None;
        assert_eq!(check(&args, None).unwrap(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_check_it_is_healthy_for_ever() {
        let mut health = Health::start(None);
        assert!(health.passes());
        assert!(tokio::time::timeout(Duration::from_secs(1000), health.changed()).await.is_err());
    }
}
