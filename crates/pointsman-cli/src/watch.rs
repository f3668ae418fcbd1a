//! `watch`: what changes, as it changes.

use std::collections::HashSet;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use pointsman::{Change, Changes, Directory, Freshness, ObservedInstance, Snapshot, Updates};

use crate::args::{Global, Output};
use crate::json::ChangeJson;
use crate::output::shown;
use crate::signals::Signals;
use crate::{Outcome, json, list, output, session};

/// `pointsman watch [SERVICE]`: first what there is, then every change, until a signal.
pub(crate) async fn run(service: Option<&str>, global: &Global) -> Outcome {
    let mut signals = Signals::listen()?;
    let registry = tokio::select! {
        registry = session::connect(global) => registry?,
        _ = signals.next() => return Ok(ExitCode::SUCCESS),
    };
    let (changes, directory) = match service {
        Some(service) => {
            let service = session::patiently(&registry, registry.discover(service)).await?;
            (service.changes(), service.directory().clone())
        }
        None => {
            let all = session::patiently(&registry, registry.discover_all()).await?;
            (all.changes(), all)
        }
    };
    let mut updates = directory.updates();
    let is_unreadable =
        |snapshot: &Arc<Snapshot>| session::tell_unreadable(snapshot).then(|| snapshot.service().clone());
    let mut unreadable: HashSet<Arc<str>> = directory.snapshots().iter().filter_map(is_unreadable).collect();
    if directory.snapshots().iter().all(|snapshot| snapshot.is_empty()) {
        output::note(&match service {
            Some(service) => format!("note: service {service} has no instances now; what changes is told"),
            None => "note: no service has instances now; what changes is told".to_owned(),
        });
    }
    tokio::select! {
        told = tell_all(changes.from_nothing(), &directory, global.output) => told?,
        () = tell_absences(&directory) => {}
        () = tell_unreadable(&mut updates, &mut unreadable) => {}
        _ = signals.next() => {}
    }
    drop(directory);
    session::close(registry).await;
    Ok(ExitCode::SUCCESS)
}

async fn tell_all(mut changes: Changes, directory: &Directory, form: Output) -> std::io::Result<()> {
    while let Some(change) = changes.next().await {
        tell(&change, directory, form)?;
    }
    Ok(())
}

/// Silence means that nothing changes: where it does not, that is said. Returns only when the registry has been closed.
async fn tell_absences(directory: &Directory) {
    loop {
        tokio::time::sleep(LOOK).await;
        if let Freshness::Stale { .. } = directory.freshness() {
            output::note("note: the registry is away; what changes now is told when it is back");
            if directory.fresh().await.is_err() {
                return;
            }
            output::note("note: the registry is back");
        }
    }
}

/// Silence of a service that may not be read means nothing. Returns when the registry has been closed.
async fn tell_unreadable(updates: &mut Updates, unreadable: &mut HashSet<Arc<str>>) {
    while let Some(snapshots) = updates.next().await {
        for snapshot in snapshots {
            let service = snapshot.service();
            match (snapshot.unreadable().is_some(), unreadable.contains(service)) {
                (true, false) => {
                    session::tell_unreadable(&snapshot);
                    unreadable.insert(service.clone());
                }
                (false, true) => {
                    output::note(&format!("note: service {} can be read again", shown(service)));
                    unreadable.remove(service);
                }
                _ => {}
            }
        }
    }
}

/// From one look at the connection to the next: what is mended within that is not worth a word.
const LOOK: Duration = Duration::from_millis(500);

/// Writes one change.
pub(crate) fn tell(change: &Change, directory: &Directory, form: Output) -> std::io::Result<()> {
    let service = change.service();
    match (form, ChangeJson::new(change, |code| directory.has_left(service, code))) {
        (Output::Table | Output::Wide, _) => output::line(&sentence(change)),
        (_, Some(event)) => output::show(form, &event, [name(change)], |_| sentence(change)),
        (_, None) => Ok(()),
    }
}

/// `SERVICE/CODE` of the instance that a change is about, or `SERVICE`.
fn name(change: &Change) -> String {
    match change {
        Change::Joined(instance)
        | Change::Returned(instance)
        | Change::Guarded(instance)
        | Change::Left(instance)
        | Change::Updated { new: instance, .. }
        | Change::MasterChanged { new: Some(instance), .. } => list::name(instance),
        _ => change.service().to_string(),
    }
}

/// One change in words.
pub(crate) fn sentence(change: &Change) -> String {
    let service = shown(change.service());
    match change {
        Change::ServiceAppeared(_) => format!("{service} appeared"),
        Change::ServiceDisappeared(_) => format!("{service} disappeared"),
        Change::Joined(instance) => format!("{service} {} joined{}", shown(&instance.code), description(instance)),
        Change::Left(instance) => format!("{service} {} left", shown(&instance.code)),
        Change::Guarded(instance) => {
            format!("{service} {} guarded: the registry lost it suddenly, with many others", shown(&instance.code))
        }
        Change::Returned(instance) => format!("{service} {} is registered again", shown(&instance.code)),
        Change::Updated { old, new } => format!("{service} {} changed: {}", shown(&new.code), difference(old, new)),
        Change::MasterChanged { new: Some(master), .. } => {
            format!("{service} {} is {}", shown(&master.code), master.role)
        }
        Change::MasterChanged { new: None, .. } => format!("{service} has no master"),
        _ => format!("{service} changed"),
    }
}

fn description(instance: &ObservedInstance) -> String {
    let address = instance.address.as_deref().map(|address| format!(" at {}", shown(address))).unwrap_or_default();
    let status = match json::status(instance) {
        "passing" => String::new(),
        status => format!(", {status}"),
    };
    format!("{address}, weight {}{status}", instance.weight)
}

fn difference(old: &ObservedInstance, new: &ObservedInstance) -> String {
    let mut parts = Vec::new();
    let mut add = |what: &str, old: &str, new: &str| {
        if old != new {
            parts.push(format!("{what} {} -> {}", shown(old), shown(new)));
        }
    };
    add("address", old.address.as_deref().unwrap_or("none"), new.address.as_deref().unwrap_or("none"));
    add("weight", &old.weight.to_string(), &new.weight.to_string());
    add("status", json::status(old), json::status(new));
    if old.tags != new.tags {
        parts.push("tags".to_owned());
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::SystemTime;

    use pointsman::{Instance, Role, Term};

    use super::*;

    #[test]
    fn changes_in_words() {
        let old = Arc::new(ObservedInstance::from(Instance::new("s").code("a").address("h:1")));
        let mut new = ObservedInstance::from(Instance::new("s").code("a").address("h:2").weight(0).tag("x", "y"));
        new.role = Role::Master(Term(4));
        let new = Arc::new(new);
        let joined = Change::Joined(old.clone());
        assert_eq!(sentence(&joined), "s a joined at h:1, weight 1");
        let mut lost = ObservedInstance::clone(&old);
        lost.guarded_since = Some(SystemTime::now());
        let lost = Arc::new(lost);
        assert_eq!(sentence(&Change::Joined(lost.clone())), "s a joined at h:1, weight 1, guarded");
        let guarded = "s a guarded: the registry lost it suddenly, with many others";
        assert_eq!(sentence(&Change::Guarded(lost)), guarded);
        assert_eq!(sentence(&Change::Returned(old.clone())), "s a is registered again");
        let updated = Change::Updated { old, new: new.clone() };
        let expected = "s a changed: address h:1 -> h:2, weight 1 -> 0, status passing -> drained, tags";
        assert_eq!(sentence(&updated), expected);
        let master = Change::MasterChanged { service: "s".into(), old: None, new: Some(new) };
        assert_eq!(sentence(&master), "s a is master (term 4)");
    }
}
