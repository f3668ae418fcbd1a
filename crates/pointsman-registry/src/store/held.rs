//! What the registry holds of one service, without what the guard and operators add.

use std::sync::Arc;

use pointsman_core::{Instance, Snapshot, Status};
use tokio::time::Instant;

use crate::guard::GuardState;
use crate::overrides::{Override, Overrides};

#[derive(Debug)]
pub(super) struct Held {
    /// As the instances have registered.
    pub(super) raw: Snapshot,
    pub(super) guard: GuardState,
    /// What operators have set, as the registry says.
    pub(super) overrides: Overrides,
    /// What operators had set before the registry lost its data: in force until it says something else of the same code.
    pub(super) kept: Overrides,
    /// Until when these are in force, if the registry says nothing: by then operators have seen what it has lost.
    pub(super) kept_until: Option<Instant>,
    /// The overrides are of a file that is too old for them to be set again.
    pub(super) are_too_old: bool,
}

impl Held {
    pub(super) fn new(raw: Snapshot) -> Self {
        let (overrides, kept) = (Overrides::new(), Overrides::new());
        Self { raw, guard: GuardState::default(), overrides, kept, kept_until: None, are_too_old: false }
    }

    /// When something is to be decided although nothing is told.
    pub(super) fn until(&self) -> Option<Instant> {
        self.guard.until().into_iter().chain(self.kept_until).min()
    }

    /// What an operator has set for an instance.
    pub(super) fn in_force(&self, code: &str) -> Override {
        self.overrides.get(code).or_else(|| self.kept.get(code)).copied().unwrap_or_default()
    }

    pub(super) fn all_overrides(&self) -> Overrides {
        let mut all = self.kept.clone();
        all.extend(self.overrides.iter().map(|(code, set)| (code.clone(), *set)));
        all
    }
}

/// What a snapshot would be without drains. What a weight was before an operator set it is not known: the registry will tell.
pub(super) fn registered(shown: &Snapshot, overrides: &Overrides) -> Snapshot {
    let without_drain = |instance: &Arc<Instance>| {
        let mut instance = instance.clone();
        if overrides.get(&instance.code).is_some_and(|set| set.drained) {
            Arc::make_mut(&mut instance).status = Status::Passing;
        }
        instance
    };
    let instances = shown.instances().iter().map(without_drain).collect();
    Snapshot::new(shown.service().clone(), shown.revision(), instances).with_problems(shown.problems().to_vec())
}
