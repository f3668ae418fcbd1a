//! What the registry holds of one service, without what the guard and operators add.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::SystemTime;

use pointsman_core::{ObservedInstance, Snapshot, Status};
use tokio::time::Instant;

use crate::disk::Absent;
use crate::guard::GuardState;
use crate::overrides::{Override, Overrides};

#[derive(Debug)]
pub(super) struct Held {
    /// As the instances have registered.
    pub(super) raw: Snapshot,
    pub(super) guard: GuardState,
    /// What operators have set, as the registry says.
    pub(super) overrides: Overrides,
    /// Since when the codes have been gone for which something is set and that are not registered.
    pub(super) absent: Absent,
    /// What operators had set before the registry lost its data: in force until it says something else of the same code.
    pub(super) kept: Overrides,
    /// Until when these are in force, if the registry says nothing: by then operators have seen what it has lost.
    pub(super) kept_until: Option<Instant>,
    /// The overrides are of a file that is too old for them to be set again.
    pub(super) are_too_old: bool,
    /// Until when losses are remembered of a service that holds nothing any more.
    pub(super) remembers_until: Option<Instant>,
    /// What [`Held::until`] was when it was entered into the deadlines.
    pub(super) deadline: Option<Instant>,
}

impl Held {
    pub(super) fn new(raw: Snapshot) -> Self {
        let (overrides, kept) = (Overrides::new(), Overrides::new());
        Self {
            raw,
            guard: GuardState::default(),
            overrides,
            absent: Absent::new(),
            kept,
            kept_until: None,
            are_too_old: false,
            remembers_until: None,
            deadline: None,
        }
    }

    /// Takes in who is registered now, of those for which something is set.
    pub(super) fn note_absent(&mut self, instances: &[Arc<ObservedInstance>], now: SystemTime) {
        if self.overrides.is_empty() && self.absent.is_empty() {
            return;
        }
        let there: HashSet<&str> = instances.iter().map(|instance| &*instance.code).collect();
        let before = std::mem::take(&mut self.absent);
        let gone = self.overrides.keys().filter(|code| !there.contains(&***code));
        self.absent = gone.map(|code| (code.clone(), before.get(code).copied().unwrap_or(now))).collect();
    }

    /// When something is to be decided although nothing is told.
    pub(super) fn until(&self) -> Option<Instant> {
        self.guard.until().into_iter().chain(self.kept_until).chain(self.remembers_until).min()
    }

    /// Whether it is as if nothing had ever been told of the service.
    pub(super) fn is_nothing(&self) -> bool {
        self.raw.is_empty() && self.overrides.is_empty() && self.kept.is_empty() && self.guard.is_idle()
    }

    /// What an operator has set for an instance.
    pub(super) fn in_force(&self, code: &str) -> Override {
        self.overrides.get(code).or_else(|| self.kept.get(code)).copied().unwrap_or_default()
    }

    /// What is shown of the service, at the registry's revision: what it holds, and those that it has lost, with what operators have set.
    pub(super) fn shown(&self, lost: &[Arc<ObservedInstance>]) -> Snapshot {
        if lost.is_empty() && self.overrides.is_empty() && self.kept.is_empty() {
            return self.raw.clone();
        }
        let all = self.raw.instances().iter().chain(lost).cloned();
        let shown = all.map(|instance| self.in_force(&instance.code).apply(instance)).collect();
        let (service, problems) = (self.raw.service().clone(), self.raw.problems().to_vec());
        Snapshot::new(service, self.raw.revision(), shown).with_problems(problems)
    }

    pub(super) fn all_overrides(&self) -> Overrides {
        let mut all = self.kept.clone();
        all.extend(self.overrides.iter().map(|(code, set)| (code.clone(), *set)));
        all
    }
}

/// What a snapshot would be without drains. What a weight was before an operator set it is not known: the registry will tell.
pub(super) fn registered(shown: &Snapshot, overrides: &Overrides) -> Snapshot {
    let without_drain = |instance: &Arc<ObservedInstance>| {
        let mut instance = instance.clone();
        if overrides.get(&instance.code).is_some_and(|set| set.drained) {
            Arc::make_mut(&mut instance).status = Status::Passing;
        }
        instance
    };
    let instances = shown.instances().iter().map(without_drain).collect();
    Snapshot::new(shown.service().clone(), shown.revision(), instances).with_problems(shown.problems().to_vec())
}
