//! `services`, `instances`, `master`: what there is now.

use std::process::ExitCode;

use pointsman::Snapshot;

use crate::args::{Global, Instances, Output};
use crate::json::{InstanceJson, ServiceJson};
use crate::{Outcome, output, session, table};

/// `pointsman services`.
pub(crate) async fn services(global: &Global) -> Outcome {
    let registry = session::connect(global).await?;
    let directory = registry.discover_all().await?;
    session::tell_age(directory.freshness());
    let snapshots = directory.snapshots();
    let snapshots = snapshots.iter().filter(|snapshot| !snapshot.is_empty()).map(|snapshot| &**snapshot);
    match global.output {
        Output::Json => output::json(&snapshots.map(ServiceJson::new).collect::<Vec<_>>())?,
        Output::Table => output::line(&table::services(snapshots))?,
    }
    for snapshot in directory.snapshots() {
        session::tell_unreadable(&snapshot);
    }
    if directory.snapshots().iter().all(|snapshot| snapshot.is_empty()) {
        output::note(&format!("note: no service has instances in {}", registry.url()));
    }
    drop(directory);
    session::close(registry).await;
    Ok(ExitCode::SUCCESS)
}

/// `pointsman instances SERVICE`.
pub(crate) async fn instances(args: &Instances, global: &Global) -> Outcome {
    let registry = session::connect(global).await?;
    let service = session::discover(&registry, &args.service).await?;
    let snapshot = service.snapshot();
    let listed = || snapshot.instances().iter().map(|instance| &**instance).filter(|i| args.all || i.takes_work());
    let problems = || snapshot.problems().iter().filter(|_| args.all);
    match global.output {
        Output::Json => {
            let problems = problems().map(|problem| InstanceJson::problem(&args.service, problem));
            output::json(&listed().map(InstanceJson::new).chain(problems).collect::<Vec<_>>())?;
        }
        Output::Table => output::line(&table::instances(listed(), problems()))?,
    }
    drop(service);
    session::close(registry).await;
    session::check_readable(&snapshot)?;
    if snapshot.is_empty() {
        output::note(&format!("note: service {} has no instances", args.service));
    } else if !args.all {
        hint_at_the_rest(&snapshot);
    }
    Ok(ExitCode::SUCCESS)
}

/// Says on stderr how many more there are.
fn hint_at_the_rest(snapshot: &Snapshot) {
    let drained = snapshot.instances().iter().filter(|instance| !instance.takes_work()).count();
    let problems = snapshot.problems().len();
    let hidden = [(drained, "drained"), (problems, "with a problem")].into_iter().filter(|(count, _)| *count > 0);
    let hidden: Vec<_> = hidden.map(|(count, what)| format!("{count} {what}")).collect();
    if !hidden.is_empty() {
        output::note(&format!("note: there are more, shown by --all: {}", hidden.join(", ")));
    }
}

/// `pointsman master SERVICE`.
pub(crate) async fn master(service: &str, global: &Global) -> Outcome {
    let registry = session::connect(global).await?;
    let service = session::discover(&registry, service).await?;
    let (master, snapshot) = (service.master(), service.snapshot());
    drop(service);
    session::close(registry).await;
    if master.is_err() {
        session::check_readable(&snapshot)?;
    }
    let master = master?;
    match global.output {
        Output::Json => output::json(&InstanceJson::new(&master))?,
        Output::Table => output::line(&table::instances([&*master].into_iter(), [].into_iter()))?,
    }
    Ok(ExitCode::SUCCESS)
}
