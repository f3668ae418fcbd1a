//! What an operator sets for an instance: stored apart from the registration, so that an instance that registers again
//! cannot undo it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pointsman_core::{Instance, ObservedInstance, Status};
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

/// What an operator has set for an instance, as [`Registry::overrides`](crate::Registry::overrides) lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct OverrideOf {
    /// The service.
    pub service: Arc<str>,
    /// The instance's code.
    pub code: Arc<str>,
    /// It gets no new claims.
    pub drained: bool,
    /// What counts instead of the registered weight.
    pub weight: Option<u32>,
    /// Whether an instance with this code is registered; also true where the registry does not let that be read.
    #[serde(default = "yes")]
    pub registered: bool,
}

/// Agents of an earlier version do not say whether a code is registered: then it must not be taken for gone.
fn yes() -> bool {
    true
}

/// What [`Registry::clear_gone_overrides`](crate::Registry::clear_gone_overrides) has cleared.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ClearedOverrides {
    /// What was set, in the order of services and codes.
    pub cleared: Vec<OverrideOf>,
    /// Number of overrides of codes that are gone that are left: to be cleared by another call.
    pub remaining: usize,
}

/// How long what an operator has set for a code is kept after an instance with this code was last registered.
pub const OVERRIDES_KEPT: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Maximum number of overrides that are cleared by one call: it ends in time, however many there are.
pub(crate) const CLEARED_AT_ONCE: usize = 1000;

/// What operators have set for the instances of one service, by code; also of those that are not registered.
pub(crate) type Overrides = BTreeMap<Arc<str>, Override>;

/// Which data a registry holds: another one after it has lost all of it, and begun anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) id: String,
    /// Since when it has been holding this data, where it can tell; in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) since_unix_ms: Option<u64>,
}

/// Data that a registry has held for longer than this is believed to be what operators want, whatever was known before.
pub(crate) const SETTLED: Duration = Duration::from_secs(600);

/// What was saved longer ago than this is not set again in a registry that has lost its data: nobody knows what operators have done since.
pub(crate) const TOO_OLD: Duration = Duration::from_secs(24 * 60 * 60);

impl Identity {
    /// Whether the registry has held this data for so long that an override that is missing in it was cleared on purpose.
    pub(crate) fn is_settled(&self, now: SystemTime) -> bool {
        let since = self.since_unix_ms.map(|ms| SystemTime::UNIX_EPOCH + Duration::from_millis(ms));
        since.is_some_and(|since| now.duration_since(since).is_ok_and(|age| age > SETTLED))
    }
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

    /// As it is listed.
    pub(crate) fn of(self, service: &Arc<str>, code: &Arc<str>, registered: bool) -> OverrideOf {
        let (service, code) = (service.clone(), code.clone());
        OverrideOf { service, code, drained: self.drained, weight: self.weight, registered }
    }

    /// Whether nothing is set, so that nothing needs to be stored.
    pub(crate) fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// Whether the operator lets an instance that has registered this take work.
    pub(crate) fn lets_work(self, registered: &Instance) -> bool {
        !self.drained && self.weight.unwrap_or(registered.weight) > 0
    }

    /// The instance as the operator wants it; the same `Arc` where that changes nothing.
    pub(crate) fn apply(self, instance: Arc<ObservedInstance>) -> Arc<ObservedInstance> {
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
        let instance = set.apply(Arc::new(ObservedInstance::from(Instance::new("s"))));
        assert_eq!((instance.weight, instance.status), (7, Status::Drained));
        let set = set.changed(OverrideChange::Undrain);
        assert_eq!(set.apply(Arc::new(ObservedInstance::from(Instance::new("s")))).status, Status::Passing);
        assert!(set.changed(OverrideChange::Weight(None)).is_empty());
    }
}
