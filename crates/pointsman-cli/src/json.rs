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

/// A line of `watch`: an event as the agent's streams have it (`docs/agent.md`), with its name in it. What a service appears or
/// disappears with is an event of its instances.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub(crate) enum ChangeJson<'a> {
    Put { service: &'a str, instance: InstanceJson<'a>, before: Option<InstanceJson<'a>> },
    Guarded { service: &'a str, instance: InstanceJson<'a> },
    Delete { service: &'a str, instance: InstanceJson<'a>, reason: &'static str },
    Master { service: &'a str, master: Option<InstanceJson<'a>>, before: Option<InstanceJson<'a>> },
}

impl<'a> ChangeJson<'a> {
    /// A change; `None` for one that has no event of its own. `has_left` tells of a code that is gone whether it left cleanly.
    pub(crate) fn new(change: &'a Change, has_left: impl Fn(&str) -> bool) -> Option<Self> {
        let service: &str = change.service();
        Some(match change {
            Change::Joined(instance) | Change::Returned(instance) => {
                ChangeJson::Put { service, instance: InstanceJson::new(instance), before: None }
            }
            Change::Updated { old, new } => {
                ChangeJson::Put { service, instance: InstanceJson::new(new), before: Some(InstanceJson::new(old)) }
            }
            Change::Guarded(instance) => ChangeJson::Guarded { service, instance: InstanceJson::new(instance) },
            Change::Left(instance) => {
                let reason = if has_left(&instance.code) { "left" } else { "lost" };
                ChangeJson::Delete { service, instance: InstanceJson::new(instance), reason }
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
