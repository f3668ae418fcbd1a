//! `register`: keeps one instance registered, alone or for as long as a command runs.
//!
//! The order matters. The command is started first, because what cannot run must not be registered; its end is followed
//! by the deregistration at once. On a signal the instance is deregistered before the command hears of it, so that nobody
//! is sent to a service that is going down.

use std::ffi::OsString;
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args as _;
use pointsman::check::{Check, Probe};
use pointsman::{Instance, Registration, RegistrationBuilder, Registry, Role, Trouble};
use rustix::process::Signal;

use crate::args::{CheckArgs, Global, Output, Register};
use crate::child::{self, Child};
use crate::config::credentials::SECRETS;
use crate::failure::Failure;
use crate::json::RoleJson;
use crate::output::shown;
use crate::signals::{self, Signals, or_hurry};
use crate::{Outcome, log, output, session, supervisor};

/// How long a deregistration may take before the process ends anyway; the session's end does the rest.
const DEREGISTER: Duration = Duration::from_secs(2);

/// `pointsman register SERVICE … [-- COMMAND…]`.
pub(crate) async fn run(args: Register, global: &Global) -> Outcome {
    let instance = instance(&args);
    instance.check().map_err(|error| Failure::usage(error.to_string()))?;
    let check = check(&args.check, args.address.as_deref())?;
    let mut signals = Signals::catch(&ending(!args.command.is_empty()))?;
    let registry = tokio::select! {
        registry = session::connect(global) => registry?,
        _ = signals.next() => return Ok(ExitCode::SUCCESS),
    };
    let code = instance.code.clone();
    let mut registration = registry.registration(instance).check(check);
    if args.observer {
        registration = registration.observer();
    }
    let teller = Teller { output: global.output, to_stderr: !args.command.is_empty(), told: None };
    let result = match args.command.as_slice() {
        [] => alone(registration, teller, &mut signals).await,
        command => {
            // Before the command is there, which may be told something at once.
            let others = Signals::catch(&OTHERS)?;
            match Child::start(command, hidden(), &args.service, &code) {
                Ok(child) => beside(registration, teller, (child, args.stop_timeout), (&mut signals, others)).await,
                Err(failure) => Err(failure),
            }
        }
    };
    if !matches!(&result, Err(failure) if *failure == Failure::hurried()) {
        or_hurry(session::close(registry), &mut signals).await?;
    }
    result
}

/// The variable of `--registry`. Whatever the flag says: the variable may hold another URL.
const REGISTRY: &str = "POINTSMAN_REGISTRY";

/// The signals by which programs are told something else than to end: to read their configuration, to open their logs. The command is told.
const OTHERS: [Signal; 4] = [Signal::HUP, Signal::USR1, Signal::USR2, Signal::WINCH];

/// The signals after which the instance is deregistered. Where no command has another use for it, also the end of the terminal, unless that
/// is to be ignored.
fn ending(has_command: bool) -> Vec<Signal> {
    let hangup = Some(Signal::HUP).filter(|hangup| !has_command && !signals::is_ignored(*hangup));
    [Signal::INT, Signal::TERM, Signal::QUIT].into_iter().chain(hangup).collect()
}

/// The variables that the command does not inherit: the settings of this registration, which another one that the command makes would take for its
/// own; those of the service manager, which is told by this process; and secrets.
fn hidden() -> Vec<OsString> {
    let settings = Register::augment_args(clap::Command::new(""));
    let of_settings = settings.get_arguments().filter_map(|argument| argument.get_env().map(ToOwned::to_owned));
    let has_secrets = |url: OsString| url.to_str().is_none_or(|url| Registry::builder(url).shown_url() != url);
    let registry = std::env::var_os(REGISTRY).is_some_and(has_secrets).then_some(REGISTRY);
    of_settings.chain(SECRETS.into_iter().chain(supervisor::VARIABLES).chain(registry).map(OsString::from)).collect()
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
    let mut check = Check::new(Probe::parse(what, address).map_err(|error| Failure::usage(error.to_string()))?);
    (check.interval, check.timeout) = (args.interval, args.timeout);
    (check.rise, check.fall) = (args.rise, args.fall);
    Ok(Some(check))
}

/// Without a command: until a signal.
async fn alone(registration: RegistrationBuilder, teller: Teller, signals: &mut Signals) -> Outcome {
    let mut keeper = Keeper::start(registration, teller)?;
    let failed = tokio::select! {
        failure = keeper.keep() => Some(failure),
        _ = signals.next() => None,
    };
    or_hurry(keeper.deregister(), signals).await?;
    failed.map_or(Ok(ExitCode::SUCCESS), Err)
}

/// With a command: until its end, which a signal brings about.
async fn beside(
    registration: RegistrationBuilder,
    teller: Teller,
    (mut child, patience): (Child, Duration),
    (signals, mut others): (&mut Signals, Signals),
) -> Outcome {
    enum Event {
        Ended(std::process::ExitStatus),
        Signal(Signal),
        Failed(Failure),
    }
    let mut keeper = match Keeper::start(registration, teller) {
        Ok(keeper) => keeper,
        Err(failure) => {
            child.stop(Signal::TERM, patience, signals.next(), &mut others).await?;
            return Err(failure);
        }
    };
    let event = {
        let mut keeping = pin!(keeper.keep());
        loop {
            tokio::select! {
                status = child.ended() => break Event::Ended(status?),
                signal = signals.next() => break Event::Signal(signal),
                signal = others.next() => child.hand_on(signal),
                failure = &mut keeping => break Event::Failed(failure),
            }
        }
    };
    tokio::select! {
        left = or_hurry(keeper.deregister(), signals) => left?,
        never = child.hand_all_on(&mut others) => match never {},
    }
    let (status, failure) = match event {
        Event::Ended(status) => (status, None),
        Event::Signal(signal) => (child.stop(signal, patience, signals.next(), &mut others).await?, None),
        Event::Failed(failure) => {
            (child.stop(Signal::TERM, patience, signals.next(), &mut others).await?, Some(failure))
        }
    };
    failure.map_or_else(|| Ok(ExitCode::from(child::exit_code(status))), Err)
}

/// The registration, and who is told of it.
struct Keeper {
    registration: Registration,
    teller: Teller,
}

impl Keeper {
    /// Starts to register the instance, while its check passes.
    fn start(registration: RegistrationBuilder, teller: Teller) -> Result<Self, Failure> {
        Ok(Self { registration: registration.start()?, teller })
    }

    /// Tells each role. Ends only by a failure. Cancelled, the registration stays with the keeper.
    async fn keep(&mut self) -> Failure {
        let Self { registration, teller } = self;
        let mut roles = registration.roles();
        let mut is_registered = false;
        // A registration that takes no longer needs no explanation.
        let slow = tokio::time::sleep(session::SLOW);
        tokio::pin!(slow);
        let mut is_slow = false;
        loop {
            tokio::select! {
                entered = registration.registered(), if !is_registered => match entered {
                    Ok(()) => {
                        is_registered = true;
                        supervisor::ready();
                    }
                    Err(error) => return error.into(),
                },
                status = roles.status_changed() => match status {
                    Some((role, trouble)) if is_registered || role != Role::Detached => {
                        teller.tell(&registration.instance(), role, trouble.as_ref());
                    }
                    Some((_, Some(trouble))) if is_slow => teller.note(&registration.instance(), &trouble),
                    Some(_) => {}
                    None => return match registration.registered().await {
                        Ok(()) => Failure::new("the registration has ended by itself"),
                        Err(error) => error.into(),
                    },
                },
                () = &mut slow, if !is_slow => {
                    is_slow = true;
                    if let Some(trouble) = roles.trouble().filter(|_| !is_registered) {
                        teller.note(&registration.instance(), &trouble);
                    }
                }
            }
        }
    }

    /// Tells first, then deregisters: whoever reads the roles stops before another becomes master.
    async fn deregister(self) {
        let Self { registration, mut teller } = self;
        supervisor::stopping();
        if teller.told.is_some() {
            teller.tell(&registration.instance(), Role::Detached, None);
        }
        match tokio::time::timeout(DEREGISTER, registration.close()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "deregister"),
            Err(_) => tracing::warn!("the registry did not confirm the deregistration within {DEREGISTER:?}"),
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
    /// Says why an instance is not registered yet.
    fn note(&self, instance: &Instance, trouble: &Trouble) {
        let Instance { service, code, .. } = instance;
        let sentence = format!("{service}/{code} is not registered yet: {}", shown(&trouble.to_string()));
        supervisor::status(&sentence);
        log::note(&sentence);
    }

    fn tell(&mut self, instance: &Instance, role: Role, trouble: Option<&Trouble>) {
        if self.told.replace(role) == Some(role) {
            return;
        }
        let trouble = trouble.map(|why| format!(": {}", shown(&why.to_string()))).unwrap_or_default();
        let sentence = format!("{}/{} is {role}{trouble}", instance.service, instance.code);
        supervisor::status(&sentence);
        let written = match (self.output, self.to_stderr) {
            (Output::Table | Output::Wide | Output::Name, true) => {
                output::note(&sentence);
                Ok(())
            }
            (form, _) => {
                let name = format!("{}/{}", instance.service, instance.code);
                output::show(form, &RoleJson::from(role), [name], |_| sentence)
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
}
