//! The connection to the registry that the flags name.

use std::pin::pin;
use std::time::Duration;

use pointsman::{Error, Freshness, Registry, RegistryBuilder, Service, Snapshot};
use tokio::sync::watch;

use crate::args::{DEFAULT_REGISTRY, Global};
use crate::dev::beacon;
use crate::failure::Failure;
use crate::log::note;
use crate::output::{self, shown};

/// How long to wait for sessions to be closed before the process ends anyway: a registry that is away must not hold up
/// whoever wants to leave.
const CLOSE: Duration = Duration::from_secs(2);
/// Time after which a command reports what it waits for.
pub(crate) const SLOW: Duration = Duration::from_secs(1);

/// Connects as the flags say.
pub(crate) async fn connect(global: &Global) -> Result<Registry, Failure> {
    let beside = global.registry.is_none().then(beacon::find).flatten();
    if let Some(url) = &beside {
        note(&format!("using the registry of `pointsman dev` at {}", shown(url)));
    }
    let url = global.registry.as_deref().or(beside.as_deref()).unwrap_or(DEFAULT_REGISTRY);
    let mut builder = Registry::builder(url).wait(global.wait).fail_fast(true);
    if let Some(timeout) = global.connect_timeout {
        builder = builder.connect_timeout(timeout);
    }
    let at = builder.shown_url();
    let say = |answer: &str| note(&format!("waiting for the registry at {at}: {answer}"));
    let connected = connect_and(builder, say).await;
    match connected {
        Ok(registry) => {
            if url.starts_with("memory:") {
                output::note("note: memory:// is a registry within this process alone: no other sees what is in it");
            }
            Ok(registry)
        }
        Err(Error::Unreachable { reason, .. }) if global.registry.is_none() && beside.is_none() => {
            Err(Failure::new(format!(
                "no agent answers at {DEFAULT_REGISTRY} ({reason}): start one with `pointsman dev` or `pointsman serve --set agent.listen=127.0.0.1:7480`, or name a \
             registry by --registry or POINTSMAN_REGISTRY, such as zookeeper://HOST:PORT/PREFIX"
            )))
        }
        Err(error) => Err(error.into()),
    }
}

/// Connects for a process that serves, however long the registry takes: the order in which things are started must not
/// matter. Where there are snapshots on disk, it starts from them, and the registry is connected to in the background. `url` is what the flag or the configuration file names.
pub(crate) async fn connect_for_good(url: Option<&str>) -> Result<Registry, Failure> {
    let url = url.ok_or_else(no_registry)?;
    let builder = Registry::builder(url).wait(true);
    let shown = builder.shown_url();
    let say = |answer: &str| tracing::warn!(registry = shown, answer, "waiting for the registry");
    let registry = connect_and(builder, say).await?;
    if registry.has_answered() {
        tracing::info!(registry = shown, "registry connected");
    }
    Ok(registry)
}

/// Why nothing can be served.
pub(crate) fn no_registry() -> Failure {
    Failure::new("no registry is named: say registry = \"zookeeper://HOST:PORT/PREFIX\" in the file, or --registry URL")
}

/// Connects. Once that has taken a while, `say` is told what the last attempt has met with, and again whenever that is something else.
async fn connect_and(builder: RegistryBuilder, say: impl Fn(&str)) -> Result<Registry, Error> {
    let (sender, mut answers) = watch::channel("no answer yet".to_owned());
    let builder = builder.on_failed_attempt(move |answer| {
        sender.send_if_modified(|last| {
            *last != answer && {
                *last = answer.to_owned();
                true
            }
        });
    });
    let saying = async {
        tokio::time::sleep(SLOW).await;
        loop {
            say(&shown(&answers.borrow_and_update()));
            // The sender lives in the builder: once it is gone, the connection is made.
            let Ok(()) = answers.changed().await else { break };
        }
        std::future::pending().await
    };
    tokio::select! {
        connected = builder.connect() => connected,
        never = saying => match never {},
    }
}

/// Does something that the registry has to answer. Once that has taken a while, it is said what is waited for.
pub(crate) async fn patiently<T>(registry: &Registry, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    tokio::select! {
        done = &mut work => return done,
        () = tokio::time::sleep(SLOW) => {}
    }
    note(&format!("waiting for the registry at {}: no answer yet", shown(registry.url())));
    work.await
}

/// Closes the sessions, so that nothing of this process stays in the registry until they expire.
pub(crate) async fn close(registry: Registry) {
    let url = registry.url().to_owned();
    if tokio::time::timeout(CLOSE, registry.close()).await.is_err() {
        tracing::warn!(url, "the registry did not confirm the end of the session within {CLOSE:?}");
    }
}

/// One service, as it is now.
pub(crate) async fn discover(registry: &Registry, service: &str) -> Result<Service, Failure> {
    let service = patiently(registry, registry.discover(service)).await?;
    tell_age(service.freshness());
    Ok(service)
}

/// Fails where the registry does not let a service be read: it is not known that there is nothing.
pub(crate) fn check_readable(snapshot: &Snapshot) -> Result<(), Failure> {
    match snapshot.unreadable() {
        Some(problem) => {
            Err(Failure::new(format!("service {} cannot be read: {}", snapshot.service(), problem.reason)))
        }
        None => Ok(()),
    }
}

/// Says that the registry does not let a service be read, if that is so; returns whether it is.
pub(crate) fn tell_unreadable(snapshot: &Snapshot) -> bool {
    let problem = snapshot.unreadable();
    if let Some(problem) = problem {
        let (service, reason) = (shown(snapshot.service()), shown(&problem.reason));
        output::note(&format!("note: service {service} cannot be read, its instances may be others: {reason}"));
    }
    problem.is_some()
}

/// Says how old the data is, if it is not what the registry holds now.
pub(crate) fn tell_age(freshness: Freshness) {
    match freshness {
        Freshness::Fresh => {}
        Freshness::Stale { age } => {
            output::note(&format!("note: the registry is away; this is what was known {} seconds ago", age.as_secs()));
        }
        Freshness::Guarded { .. } => {
            output::note("note: the registry has suddenly lost many instances; they are still shown, as guarded");
        }
    }
}
