//! What an operator sets for an instance: stored apart from the registration, so that an instance that registers again
//! cannot undo it.

use std::sync::Arc;

use pointsman_core::{Instance, Status};
use serde::{Deserialize, Serialize};

/// What an operator has set for one instance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Override {
    /// No new claims.
    #[serde(default)]
    pub(crate) drained: bool,
    /// Instead of the weight that the instance has registered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) weight: Option<u32>,
}

/// One change of an [`Override`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OverrideChange {
    Drain,
    Undrain,
    /// `None`: the registered weight counts again.
    Weight(Option<u32>),
}

impl Override {
    pub(crate) fn changed(mut self, change: OverrideChange) -> Self {
        match change {
            OverrideChange::Drain => self.drained = true,
            OverrideChange::Undrain => self.drained = false,
            OverrideChange::Weight(weight) => self.weight = weight,
        }
        self
    }

    /// Whether nothing is set, so that nothing needs to be stored.
    pub(crate) fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// The instance as the operator wants it; the same `Arc` where that changes nothing.
    pub(crate) fn apply(self, instance: Arc<Instance>) -> Arc<Instance> {
        if self.is_empty() {
            return instance;
        }
        let mut instance = Arc::unwrap_or_clone(instance);
        instance.weight = self.weight.unwrap_or(instance.weight);
        if self.drained {
            instance.status = Status::Drained;
        }
        Arc::new(instance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drain_and_weight_are_independent() {
        let set = Override::default().changed(OverrideChange::Drain).changed(OverrideChange::Weight(Some(7)));
        let instance = set.apply(Arc::new(Instance::new("s")));
        assert_eq!((instance.weight, instance.status), (7, Status::Drained));
        let set = set.changed(OverrideChange::Undrain);
        assert_eq!(set.apply(Arc::new(Instance::new("s"))).status, Status::Passing);
        assert!(set.changed(OverrideChange::Weight(None)).is_empty());
    }
}
