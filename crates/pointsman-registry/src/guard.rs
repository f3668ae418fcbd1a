//! The guard against a sudden mass loss.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pointsman_core::{Instance, Role, Snapshot};
use tokio::time::Instant;

/// When a loss of instances is so sudden and so large that it is more likely the registry's trouble than theirs.
///
/// If within `window` a service of at least `at_least` instances loses more than `fraction` of them, then those that are
/// gone stay in the snapshot for `hold`, and the snapshot says that it is guarded. It ends earlier when enough have come
/// back. New instances, changes and a new master are shown at once all the same.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guard {
    /// Smaller services are not guarded. Default 5.
    pub at_least: usize,
    /// The fraction of instances whose loss is suspicious, 0 to 1. Default 0.5.
    pub fraction: f64,
    /// What "sudden" means. Default 5 s.
    pub window: Duration,
    /// For how long the lost instances are kept. Default 30 s.
    pub hold: Duration,
}

impl Default for Guard {
    fn default() -> Self {
        Self { at_least: 5, fraction: 0.5, window: Duration::from_secs(5), hold: Duration::from_secs(30) }
    }
}

/// The guard of one service: pure, with `now` passed in.
#[derive(Debug, Default)]
pub(crate) struct GuardState {
    /// When the instances that left within the window did so, and what they were.
    lost: BTreeMap<Arc<str>, (Instant, Arc<Instance>)>,
    /// Until when the lost ones are shown all the same.
    until: Option<Instant>,
}

impl GuardState {
    /// Takes in that the registry held `before` and now holds `after`, and returns the lost instances that are to be
    /// shown although they are gone.
    pub(crate) fn update(
        &mut self,
        guard: &Guard,
        before: &Snapshot,
        after: &Snapshot,
        now: Instant,
    ) -> Vec<Arc<Instance>> {
        for instance in before.instances().iter().filter(|instance| after.find(&instance.code).is_none()) {
            self.lost.insert(instance.code.clone(), (now, guarded(instance, false)));
        }
        self.lost.retain(|code, (when, _)| {
            let recent = self.until.is_some() || now.saturating_duration_since(*when) < guard.window;
            recent && after.find(code).is_none()
        });
        let (gone, all) = (self.lost.len(), self.lost.len() + after.instances().len());
        #[expect(clippy::cast_precision_loss, reason = "counts of instances are far below 2^52")]
        let suspicious = all >= guard.at_least && gone as f64 > guard.fraction * all as f64;
        if !suspicious {
            self.until = None;
            return Vec::new();
        }
        if *self.until.get_or_insert(now + guard.hold) <= now {
            self.lost.clear();
            self.until = None;
            return Vec::new();
        }
        self.lost.values().map(|(_, instance)| guarded(instance, after.master().is_some())).collect()
    }

    /// When the lost instances are to be given up.
    pub(crate) fn until(&self) -> Option<Instant> {
        self.until
    }
}

/// A lost master is not shown as master beside the one that has taken over.
fn guarded(instance: &Arc<Instance>, master_is_known: bool) -> Arc<Instance> {
    let mut instance = Instance::clone(instance);
    instance.guarded_since.get_or_insert_with(SystemTime::now);
    if master_is_known && instance.role.is_master() {
        instance.role = Role::Normal;
    }
    Arc::new(instance)
}

#[cfg(test)]
mod tests {
    use pointsman_core::Term;

    use super::*;

    fn some(codes: std::ops::Range<usize>) -> Snapshot {
        with_master(codes, None)
    }

    fn with_master(codes: std::ops::Range<usize>, master: Option<usize>) -> Snapshot {
        let instances = codes.map(|code| {
            let mut instance = Instance::new("s").code(format!("{code:03}"));
            instance.role = if Some(code) == master { Role::Master(Term(1)) } else { Role::Normal };
            Arc::new(instance)
        });
        Snapshot::new("s", 0, instances.collect())
    }

    #[test]
    fn a_mass_loss_is_held_and_then_believed() {
        let (guard, now) = (Guard::default(), Instant::now());
        let mut state = GuardState::default();
        assert_eq!(state.update(&guard, &some(0..10), &some(0..4), now).len(), 6);
        let later = now + Duration::from_secs(29);
        assert_eq!(state.update(&guard, &some(0..4), &some(0..4), later).len(), 6);
        let end = state.until().unwrap();
        assert!(state.update(&guard, &some(0..4), &some(0..4), end).is_empty());
        assert_eq!(state.until(), None);
    }

    #[test]
    fn losses_one_by_one_within_the_window_add_up() {
        let (guard, now) = (Guard::default(), Instant::now());
        let mut state = GuardState::default();
        for left in (5..10).rev() {
            assert!(state.update(&guard, &some(0..left + 1), &some(0..left), now).is_empty());
        }
        assert_eq!(state.update(&guard, &some(0..5), &some(0..4), now).len(), 6);
    }

    #[test]
    fn slow_losses_and_small_services_are_believed_at_once() {
        let (guard, mut now) = (Guard::default(), Instant::now());
        let mut state = GuardState::default();
        for left in (0..10).rev() {
            now += Duration::from_secs(6);
            assert!(state.update(&guard, &some(0..left + 1), &some(0..left), now).is_empty());
        }
        assert!(GuardState::default().update(&guard, &some(0..4), &some(0..0), now).is_empty());
    }

    #[test]
    fn it_ends_when_enough_are_back() {
        let (guard, now) = (Guard::default(), Instant::now());
        let mut state = GuardState::default();
        assert_eq!(state.update(&guard, &some(0..10), &some(0..0), now).len(), 10);
        assert_eq!(state.update(&guard, &some(0..0), &some(0..3), now).len(), 7);
        assert!(state.update(&guard, &some(0..3), &some(0..6), now).is_empty());
        assert_eq!(state.until(), None);
    }

    #[test]
    fn a_lost_master_does_not_stand_beside_the_new_one() {
        let (guard, now) = (Guard::default(), Instant::now());
        let before = with_master(0..10, Some(9));
        let kept = GuardState::default().update(&guard, &before, &some(0..2), now);
        assert!(kept.iter().any(|instance| instance.role.is_master()));
        let kept = GuardState::default().update(&guard, &before, &with_master(0..2, Some(0)), now);
        assert!(kept.len() == 8 && kept.iter().all(|instance| !instance.role.is_master()));
    }
}
