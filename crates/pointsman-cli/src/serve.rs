//! `serve`: runs what a configuration file says, and follows its changes.
//!
//! | question | file |
//! |---|---|
//! | in which order things start and end | here |
//! | what is running, and how it is changed | `serve/served.rs` |
//! | the registries that the sections use | `serve/registries.rs` |
//! | when the file is read again | `serve/file.rs` |
//! | what is served to those who watch, where no agent is | `serve/endpoint.rs` |
//! | how they ask for what is counted | `serve/questions.rs` |
//! | where the proxy's access log goes | `serve/access_log.rs` |
//! | how the next process takes over the proxy's listeners | `serve/hand_over.rs` |

mod access_log;
mod endpoint;
mod file;
mod hand_over;
mod questions;
mod registries;
mod served;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use self::endpoint::Endpoint;
use self::file::ConfigFile;
use self::questions::Questions;
use self::registries::Registries;
use self::served::{Progress, Served};
use crate::args::{Global, Serve};
use crate::config::{Checked, Config, Surroundings, problem};
use crate::failure::Failure;
use crate::signals::{Signals, or_hurry};
use crate::{Outcome, session, supervisor};

/// How often to make sure that what is to run does.
const LOOK: Duration = Duration::from_secs(5);

/// `pointsman serve --config FILE`.
pub(crate) async fn run(args: &Serve, global: &Global) -> Outcome {
    allow_many_files();
    let mut signals = Signals::listen()?;
    // Watched from before it is read, so that no change is missed.
    let path = args.config.as_deref();
    let mut file = ConfigFile::watch(path)?;
    let bytes = file.read().map_err(|error| Failure::new(format!("read {}: {error}", file.name())))?;
    let around = &Surroundings::new(&args.set, global);
    let Checked { config, problems, files } = around.check(path, &bytes);
    problem::tell(&problems, path, global);
    file.follow(&files);
    let Some(config) = config else { return Ok(ExitCode::FAILURE) };
    let config = around.complete(config).map_err(Failure::new)?;
    let mut questions = Questions::new();
    let _endpoint = match config.metrics {
        Some(address) => {
            let hand_over = config.http.as_ref().and_then(|http| http.hand_over.as_deref());
            Some(Endpoint::listen(address, questions.asking(), hand_over.is_some_and(Path::exists)).await?)
        }
        None => None,
    };
    let Some((mut registries, config)) = connect(config, &mut file, &mut signals, around).await? else {
        return Ok(ExitCode::SUCCESS);
    };
    // Its registry needs a restart to be another.
    let of_agent = config.agent_registry.clone();
    let (left, result) = serve(&mut registries, config, &mut file, &mut questions, &mut signals, around).await;
    match &result {
        Err(failure) if left == 0 && *failure == Failure::hurried() => {}
        // What the agent has registered for others stays until its session times out: they take it over through another.
        _ => or_hurry(registries.close(of_agent.as_ref().filter(|_| left > 0)), &mut signals).await?,
    }
    result.map(|()| ExitCode::SUCCESS)
}

/// Each connection is an open file, of which a process may have few unless it asks (often 1024).
fn allow_many_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "as few files as before may be open");
    }
}

/// Connects to the registries, however long it takes until the first of them is there. When the file changes meanwhile, it goes on as the file says then, which is
/// returned as well. `None` after a signal.
async fn connect(
    mut config: Config,
    file: &mut ConfigFile,
    signals: &mut Signals,
    around: &Surroundings<'_>,
) -> Result<Option<(Registries, Config)>, Failure> {
    loop {
        if config.lacks_a_registry() {
            return Err(session::no_registry());
        }
        let next = tokio::select! {
            registries = Registries::connect(config.registries()) => return Ok(Some((registries?, config))),
            _ = signals.next() => return Ok(None),
            next = next_config(file, around) => next,
        };
        tracing::info!("the configuration has changed: starting as it says now");
        if next.metrics != config.metrics {
            // Served already, so that it can be seen that the registry is waited for.
            tracing::warn!(key = "metrics.listen", "takes effect after a restart");
        }
        let metrics = config.metrics;
        config = next;
        config.metrics = metrics;
    }
}

async fn serve(
    registries: &mut Registries,
    config: Config,
    file: &mut ConfigFile,
    questions: &mut Questions,
    signals: &mut Signals,
    around: &Surroundings<'_>,
) -> (usize, Result<(), Failure>) {
    let served = tokio::select! {
        served = Served::start(registries, config, questions.asking()) => served,
        _ = signals.next() => return (0, Ok(())),
    };
    let mut served = match served {
        Ok(served) => served,
        Err(failure) => return (0, Err(failure)),
    };
    let result = until_signal(&mut served, registries, file, questions, signals, around).await;
    supervisor::stopping();
    match or_hurry(served.close(), signals).await {
        Ok(left) => (left, result),
        Err(hurried) => (0, Err(hurried)),
    }
}

/// Waits until the file, or what it names, has changed and can be used. What is wrong with it is logged.
async fn next_config(file: &mut ConfigFile, around: &Surroundings<'_>) -> Config {
    loop {
        file.changed().await;
        if let Ok(Some(config)) = read_again(file, around) {
            return config;
        }
    }
}

/// Goes on until a signal, or a failure that makes it pointless to go on.
async fn until_signal(
    served: &mut Served,
    registries: &mut Registries,
    file: &mut ConfigFile,
    questions: &mut Questions,
    signals: &mut Signals,
    around: &Surroundings<'_>,
) -> Result<(), Failure> {
    let mut look = interval_at(Instant::now() + LOOK, LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            signal = signals.next() => {
                tracing::info!(?signal, "ending");
                return Ok(());
            }
            progress = served.next() => match progress? {
                Progress::Ready => supervisor::ready(),
                Progress::HandedOver => {
                    tracing::info!("another process serves now: ending");
                    return Ok(());
                }
            },
            () = file.changed() => {
                tokio::select! {
                    () = reload(served, registries, file, around) => {}
                    _ = signals.next() => return Ok(()),
                }
            }
            asker = questions.next() => {
                let metrics = served.metrics(asker.which, registries).await;
                asker.answer(metrics);
            }
            _ = look.tick() => served.look().await?,
        }
    }
}

/// Reads the file again, and applies it. What is wrong with it is logged, and then everything stays as it is.
async fn reload(served: &mut Served, registries: &mut Registries, file: &mut ConfigFile, around: &Surroundings<'_>) {
    let _reloading = supervisor::reloading();
    match read_again(file, around) {
        Ok(None) => {}
        Ok(Some(config)) => match around.plan(served.config(), &config) {
            Ok(plan) => {
                file.follow(&plan.files);
                served.reload(plan, registries).await;
            }
            Err(reason) => {
                tracing::error!(reason, "the configuration cannot be applied: everything stays as it is");
                served.reload_failed();
            }
        },
        Err(Unusable) => served.reload_failed(),
    }
}

/// A file that cannot be used, which is logged.
struct Unusable;

/// Reads the file again; `None` if nothing has changed.
fn read_again(file: &mut ConfigFile, around: &Surroundings<'_>) -> Result<Option<Config>, Unusable> {
    let bytes = match file.read_if_new() {
        Ok(None) => return Ok(None),
        Ok(Some(bytes)) => bytes,
        Err(error) => {
            tracing::error!(file = file.name(), %error, "the configuration cannot be read: everything stays as it is");
            return Err(Unusable);
        }
    };
    let Checked { config, problems, files } = around.check(file.path(), &bytes);
    file.follow(&files);
    for problem in &problems {
        problem::log(problem, &file.name());
    }
    match config.map(|config| around.complete(config)) {
        Some(Ok(config)) => Ok(Some(config)),
        Some(Err(reason)) => {
            tracing::error!(reason, "the configuration cannot be used: everything stays as it is");
            Err(Unusable)
        }
        None => {
            let errors = problems.iter().filter(|problem| problem.is_error()).count();
            tracing::error!(errors, "the configuration is wrong: everything stays as it is");
            Err(Unusable)
        }
    }
}
