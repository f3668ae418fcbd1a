//! `services`, `instances`, `master`: what there is now.

use std::process::ExitCode;

use pointsman::{ObservedInstance, Problem, Snapshot};

use crate::args::{Global, Instances, Output};
use crate::json::{InstanceJson, ServiceJson};
use crate::{Outcome, output, session, table};

/// `pointsman services`.
pub(crate) async fn services(global: &Global) -> Outcome {
    let registry = session::connect(global).await?;
    let directory = registry.discover_all().await?;
    session::tell_age(directory.freshness());
    let snapshots = directory.snapshots();
    let snapshots: Vec<&Snapshot> =
        snapshots.iter().map(|snapshot| &**snapshot).filter(|snapshot| !snapshot.is_empty()).collect();
    let data: Vec<_> = snapshots.iter().map(|snapshot| ServiceJson::new(snapshot)).collect();
    let names = snapshots.iter().map(|snapshot| snapshot.service().to_string());
    output::show(global.output, &data, names, |width| table::services(&snapshots, width))?;
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
    let instances = snapshot.instances().iter().map(|instance| &**instance);
    let listed: Vec<_> = instances.filter(|instance| args.all || instance.takes_work()).collect();
    let problems: Vec<_> = snapshot.problems().iter().filter(|_| args.all).collect();
    show(&listed, &problems, &snapshot, global.output)?;
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

fn show(listed: &[&ObservedInstance], problems: &[&Problem], snapshot: &Snapshot, form: Output) -> std::io::Result<()> {
    let of_problems = problems.iter().map(|problem| InstanceJson::problem(snapshot.service(), problem));
    let data: Vec<_> = listed.iter().map(|instance| InstanceJson::new(instance)).chain(of_problems).collect();
    let names = listed.iter().map(|instance| name(instance));
    output::show(form, &data, names, |width| table::instances(listed, problems, snapshot, width))
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
    let table = |width| table::instances(&[&*master], &[], &snapshot, width);
    output::show(global.output, &InstanceJson::new(&master), [name(&master)], table)?;
    Ok(ExitCode::SUCCESS)
}

/// `SERVICE/CODE`.
pub(crate) fn name(instance: &ObservedInstance) -> String {
    format!("{}/{}", instance.service, instance.code)
}
