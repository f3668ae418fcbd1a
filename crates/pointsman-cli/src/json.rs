//! What `-o json` writes: the JSON of the agent's API, and the lines of `watch`. Programs read it: fields may be added, never
//! renamed or removed.

use pointsman::Change;
pub(crate) use pointsman::wire::{ExplanationJson, InstanceJson, RoleJson, ServiceJson, problem_status, status};
use serde::Serialize;

/// What `pick --explain` has picked, and why.
#[derive(Debug, Serialize)]
pub(crate) struct ExplainedJson<'a> {
    pub(crate) picks: Vec<InstanceJson<'a>>,
    pub(crate) explanation: ExplanationJson<'a>,
}

/// A line of `watch`.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub(crate) enum ChangeJson<'a> {
    ServiceAppeared { service: &'a str },
    Joined { service: &'a str, instance: InstanceJson<'a> },
    Left { service: &'a str, instance: InstanceJson<'a> },
    Guarded { service: &'a str, instance: InstanceJson<'a> },
    Returned { service: &'a str, instance: InstanceJson<'a> },
    Updated { service: &'a str, instance: InstanceJson<'a>, before: InstanceJson<'a> },
    Master { service: &'a str, master: Option<InstanceJson<'a>>, before: Option<InstanceJson<'a>> },
    ServiceDisappeared { service: &'a str },
}

impl<'a> ChangeJson<'a> {
    /// A change; `None` for one that this version does not know.
    pub(crate) fn new(change: &'a Change) -> Option<Self> {
        let service: &str = change.service();
        Some(match change {
            Change::ServiceAppeared(_) => ChangeJson::ServiceAppeared { service },
            Change::ServiceDisappeared(_) => ChangeJson::ServiceDisappeared { service },
            Change::Joined(instance) => ChangeJson::Joined { service, instance: InstanceJson::new(instance) },
            Change::Left(instance) => ChangeJson::Left { service, instance: InstanceJson::new(instance) },
            Change::Guarded(instance) => ChangeJson::Guarded { service, instance: InstanceJson::new(instance) },
            Change::Returned(instance) => ChangeJson::Returned { service, instance: InstanceJson::new(instance) },
            Change::Updated { old, new } => {
                ChangeJson::Updated { service, instance: InstanceJson::new(new), before: InstanceJson::new(old) }
            }
            Change::MasterChanged { old, new, .. } => ChangeJson::Master {
                service,
                master: new.as_deref().map(InstanceJson::new),
                before: old.as_deref().map(InstanceJson::new),
            },
            _ => return None,
        })
    }
}
