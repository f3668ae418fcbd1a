//! `status`: whether the registry and what is in it are in order.

use std::process::ExitCode;

use pointsman::{Directory, Freshness, Registry, Snapshot};
use serde::Serialize;

use crate::args::Global;
use crate::output::shown;
use crate::{Outcome, output, session};

/// State of a registry.
#[derive(Debug, Default, Serialize)]
struct Status {
    ok: bool,
    reachable: bool,
    /// Why it is not reachable.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    registry: Option<String>,
    /// `agent`, `memory` or `zookeeper`.
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    /// Age of the snapshots in milliseconds; 0 while they follow the registry.
    #[serde(skip_serializing_if = "Option::is_none")]
    age_ms: Option<u128>,
    services: usize,
    instances: usize,
    masters: usize,
    /// Findings that are not in order.
    problems: Vec<Finding>,
    /// Findings that are intended by somebody, but worth a look.
    notes: Vec<Finding>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Finding {
    /// `None`: it is about the registry.
    service: Option<String>,
    kind: &'static str,
    detail: String,
}

/// `pointsman status`: exits with 1 where something is not in order.
pub(crate) async fn run(global: &Global) -> Outcome {
    let registry = match session::connect(global).await {
        Ok(registry) => registry,
        Err(failure) => {
            let status = Status { error: Some(failure.message().to_owned()), ..Status::default() };
            if global.output.is_data() {
                output::show(global.output, &status, [], |_| String::new())?;
            }
            return Err(failure);
        }
    };
    let directory = registry.discover_all().await?;
    let status = Status::of(&registry, &directory);
    drop(directory);
    session::close(registry).await;
    let names = status.problems.iter().map(|problem| problem.service.as_deref().unwrap_or("registry").to_owned());
    output::show(global.output, &status, names, |_| status.text())?;
    Ok(if status.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Status {
    fn of(registry: &Registry, directory: &Directory) -> Self {
        let snapshots = directory.snapshots();
        let mut status = Self::of_services(snapshots.iter().map(|snapshot| &**snapshot));
        let url = registry.url();
        status.reachable = true;
        status.kind = url.split_once("://").map(|(scheme, _)| kind(scheme).to_owned());
        status.registry = Some(url.to_owned());
        status.age_ms = Some(0);
        if let Freshness::Stale { age } = directory.freshness() {
            status.reachable = false;
            status.age_ms = Some(age.as_millis());
            let detail = format!("the registry is away; this is what was known {} seconds ago", age.as_secs());
            status.problems.insert(0, Finding { service: None, kind: "stale", detail });
        }
        status.ok = status.problems.is_empty();
        status
    }

    fn of_services<'a>(snapshots: impl Iterator<Item = &'a Snapshot>) -> Self {
        let mut status = Self::default();
        for snapshot in snapshots {
            status.services += usize::from(!snapshot.is_empty());
            status.instances += snapshot.instances().len();
            status.masters += usize::from(snapshot.master().is_some());
            let finding = |(kind, detail)| Finding { service: Some(snapshot.service().to_string()), kind, detail };
            status.problems.extend(problems(snapshot).into_iter().map(finding));
            let drained = snapshot.instances().iter().filter(|instance| !instance.takes_work()).count();
            if drained > 0 && drained < snapshot.instances().len() {
                let of = snapshot.instances().len();
                status.notes.push(finding(("drained", format!("{drained} of {of} instances are drained"))));
            }
            if snapshot.master().is_some_and(|master| !master.takes_work()) {
                let detail = "its master is drained, as no other instance can be master".to_owned();
                status.notes.push(finding(("drained-master", detail)));
            }
        }
        status
    }

    fn text(&self) -> String {
        let picture = match self.age_ms {
            Some(0) => "current".to_owned(),
            Some(age) => format!("{} seconds old", age / 1000),
            None => "none".to_owned(),
        };
        let mut lines = vec![
            format!("registry   {} ({})", self.registry.as_deref().unwrap_or("-"), self.kind.as_deref().unwrap_or("-")),
            format!("picture    {picture}"),
            format!("services   {}, {} with a master", self.services, self.masters),
            format!("instances  {}", self.instances),
        ];
        for (word, findings) in [("problem", &self.problems), ("note", &self.notes)] {
            lines.extend(findings.iter().map(|finding| {
                let service = finding.service.as_deref().map(|service| format!("{}: ", shown(service)));
                format!("{word:<11}{}{}", service.unwrap_or_default(), shown(&finding.detail))
            }));
        }
        lines.push(if self.ok { "in order" } else { "not in order" }.to_owned());
        lines.join("\n")
    }
}

fn kind(scheme: &str) -> &str {
    if matches!(scheme, "http" | "https") { "agent" } else { scheme }
}

/// Returns the problems of a service, each as a word for programs and a sentence.
fn problems(snapshot: &Snapshot) -> Vec<(&'static str, String)> {
    let mut problems = Vec::new();
    if let Some(unreadable) = snapshot.unreadable() {
        problems.push(("unreadable", format!("it cannot be read: {}", unreadable.reason)));
        return problems;
    }
    let instances = snapshot.instances();
    if !instances.is_empty() && snapshot.master().is_none() {
        problems.push(("no-master", "it has no master".to_owned()));
    }
    if !instances.is_empty() && !instances.iter().any(|instance| instance.takes_work()) {
        problems.push(("no-work", "all instances are drained: none takes work".to_owned()));
    }
    if snapshot.is_guarded() {
        problems.push(("guarded", "the registry has suddenly lost many instances; they are still used".to_owned()));
    }
    let of_records = snapshot.problems().iter().map(|problem| {
        let kind = if problem.skipped { "invalid" } else { "clamped" };
        (kind, format!("node {}: {}", problem.node, problem.reason))
    });
    problems.extend(of_records);
    problems
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use pointsman::{Instance, ObservedInstance, Problem, Role, Term};

    use super::*;

    fn instance(code: &str, role: Role, weight: u32) -> Arc<ObservedInstance> {
        Arc::new(ObservedInstance::new(Instance::with_code("ress", code).weight(weight), role))
    }

    fn found(snapshot: &Snapshot) -> Vec<&'static str> {
        problems(snapshot).into_iter().map(|(kind, _)| kind).collect()
    }

    #[test]
    fn what_is_not_in_order_is_named() {
        let (master, normal) = (instance("a", Role::Master(Term(1)), 1), instance("b", Role::Normal, 0));
        let in_order = Snapshot::new("ress", 1, vec![master.clone(), normal.clone()]);
        assert!(found(&in_order).is_empty());
        let status = Status::of_services([&in_order].into_iter());
        assert_eq!((status.services, status.instances, status.masters), (1, 2, 1));
        assert_eq!(status.notes[0].detail, "1 of 2 instances are drained");
        let drained_master = instance("a", Role::Master(Term(1)), 0);
        let status = Status::of_services([&Snapshot::new("ress", 1, vec![drained_master, normal.clone()])].into_iter());
        assert_eq!(status.notes.iter().map(|note| note.kind).collect::<Vec<_>>(), ["drained-master"]);
        assert_eq!(found(&Snapshot::new("ress", 1, vec![normal])), ["no-master", "no-work"]);
        let record = Problem { node: "normal1".to_owned(), reason: "is empty".to_owned(), skipped: true };
        assert_eq!(found(&Snapshot::new("ress", 1, vec![master]).with_problems(vec![record])), ["invalid"]);
    }
}
