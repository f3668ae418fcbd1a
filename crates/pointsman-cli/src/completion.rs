//! Completion in a shell of names that the registry holds: services, and the codes of a service.

use std::ffi::OsString;
use std::time::Duration;

use clap::{ArgMatches, CommandFactory as _};
use clap_complete::CompleteEnv;
use clap_complete::engine::CompletionCandidate;
use pointsman::{Error, Registry, check_name};

use crate::args::{Args, DEFAULT_REGISTRY};
use crate::dev::beacon;

/// Variable that holds the shell's name when a shell asks for candidates or for its script.
const VARIABLE: &str = "POINTSMAN_COMPLETE";
/// Timeout of one completion. After it the shell gets no names.
const DEADLINE: Duration = Duration::from_millis(500);

/// Answers a shell and ends the process, if a shell asks; returns otherwise.
pub(crate) fn answer() {
    CompleteEnv::with_factory(Args::command).var(VARIABLE).complete();
}

/// Returns the names of the services.
pub(crate) fn services() -> Vec<CompletionCandidate> {
    candidates(&async |registry, _| {
        let directory = registry.discover_all().await?;
        let snapshots = directory.snapshots();
        Ok(snapshots.iter().filter(|snapshot| !snapshot.is_empty()).map(|s| s.service().to_string()).collect())
    })
}

/// Returns the codes of the service that is on the line.
pub(crate) fn codes() -> Vec<CompletionCandidate> {
    candidates(&async |registry, matches| {
        let Some(service) = value(matches, "service") else { return Ok(Vec::new()) };
        let service = registry.discover(&service).await?;
        Ok(service.snapshot().instances().iter().map(|instance| instance.code.to_string()).collect())
    })
}

/// Asks the registry. A failure yields no candidates: a message would be written into the line that is being typed.
fn candidates(names: &impl AsyncFn(&Registry, &ArgMatches) -> Result<Vec<String>, Error>) -> Vec<CompletionCandidate> {
    let ask = async {
        let line = Args::command().ignore_errors(true).try_get_matches_from(words(std::env::args_os())).ok()?;
        let (_, matches) = line.subcommand()?;
        let url = value(matches, "registry").or_else(|| std::env::var("POINTSMAN_REGISTRY").ok()).or_else(beacon::find);
        let url = url.as_deref().unwrap_or(DEFAULT_REGISTRY);
        let registry = Registry::builder(url).connect_timeout(DEADLINE).connect().await.ok()?;
        let names = names(&registry, matches).await.ok();
        registry.close().await;
        names
    };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return Vec::new() };
    let names = runtime.block_on(async { tokio::time::timeout(DEADLINE, ask).await });
    runtime.shutdown_background();
    let names = names.ok().flatten().unwrap_or_default();
    // Only names that can be typed again.
    names.into_iter().filter(|name| check_name("name", name).is_ok()).map(CompletionCandidate::new).collect()
}

/// Returns the command line that is being typed, without the word under the cursor: it need not be valid yet.
fn words(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut words: Vec<_> = args.skip_while(|word| word != "--").skip(1).collect();
    words.pop();
    words
}

fn value(matches: &ArgMatches, name: &str) -> Option<String> {
    matches.try_get_one::<String>(name).ok().flatten().cloned()
}
