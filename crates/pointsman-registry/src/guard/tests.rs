use std::collections::BTreeSet;

use pointsman_core::Instance;
use pointsman_core::Term;
use proptest::prelude::*;

use super::*;

fn some(codes: impl IntoIterator<Item = usize>) -> Snapshot {
    with_master(codes, None)
}

fn with_master(codes: impl IntoIterator<Item = usize>, master: Option<usize>) -> Snapshot {
    let instances = codes.into_iter().map(|code| {
        let mut instance = ObservedInstance::from(Instance::new("s").code(name(code)));
        instance.role = if Some(code) == master { Role::Master(Term(1)) } else { Role::Normal };
        Arc::new(instance)
    });
    Snapshot::new("s", 0, instances.collect())
}

fn name(code: usize) -> Arc<str> {
    format!("{code:03}").into()
}

/// A service as it changes.
struct Watched {
    guard: Guard,
    state: GuardState,
    now: Instant,
    present: Snapshot,
    listed: usize,
}

impl Watched {
    fn new(codes: impl IntoIterator<Item = usize>) -> Self {
        let (guard, state) = (Guard::default(), GuardState::default());
        Self { guard, state, now: Instant::now(), present: some(codes), listed: 0 }
    }

    /// Those that are shown although they are gone.
    fn shown(&mut self, after: Snapshot, left: &[usize], is_emptied: bool) -> Vec<Arc<ObservedInstance>> {
        let left: Vec<Arc<str>> = left.iter().copied().map(name).collect();
        let seen = Observation { before: &self.present, after: &after, left: &left, is_emptied };
        let shown = self.state.update(&self.guard, &seen, self.now);
        self.present = after;
        shown
    }

    fn becomes(&mut self, after: Snapshot, left: &[usize], is_emptied: bool) -> Vec<Arc<ObservedInstance>> {
        let mut kept = self.shown(after, left, is_emptied);
        self.listed = kept.len() + self.present.instances().len();
        kept.retain(|instance| instance.is_guarded());
        kept
    }

    fn is(&mut self, codes: impl IntoIterator<Item = usize>) -> usize {
        self.becomes(some(codes), &[], false).len()
    }

    fn later(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }
}

#[test]
fn a_mass_loss_is_held_and_then_believed() {
    let mut watched = Watched::new(0..10);
    assert_eq!(watched.is(0..4), 6);
    watched.later(29);
    assert_eq!(watched.is(0..4), 6);
    watched.now = watched.state.until().unwrap();
    assert_eq!(watched.is(0..4), 0);
    assert_eq!(watched.state.until(), None);
    assert_eq!(watched.is(0..4), 0, "and not once more");
}

#[test]
fn losses_one_by_one_within_the_window_add_up() {
    let mut watched = Watched::new(0..10);
    for left in (5..10).rev() {
        assert_eq!(watched.is(0..left), 0);
    }
    assert_eq!(watched.is(0..4), 6);
}

#[test]
fn what_is_lost_together_is_guarded_in_one_step() {
    let mut watched = Watched::new(0..10);
    for left in (5..10).rev() {
        assert_eq!((watched.is(0..left), watched.listed), (0, 10), "not yet a mass loss, and none of them is missing");
    }
    assert_eq!((watched.is(0..4), watched.listed), (6, 10));
    // What stays a small loss is believed a moment later.
    let mut watched = Watched::new(0..10);
    assert_eq!((watched.is(0..9), watched.listed), (0, 10));
    watched.now = watched.state.until().unwrap();
    assert_eq!((watched.is(0..9), watched.listed, watched.state.until()), (0, 9, None));
    assert!(watched.becomes(some(0..8), &[8], false).is_empty());
    assert_eq!(watched.listed, 8, "a clean leave at once");
}

#[test]
fn slow_losses_and_small_services_are_believed_at_once() {
    let mut watched = Watched::new(0..10);
    for left in (0..10).rev() {
        watched.later(6);
        assert_eq!(watched.is(0..left), 0);
    }
    assert_eq!(Watched::new(0..4).is([]), 0);
}

#[test]
fn a_crash_loop_is_no_mass_loss() {
    let mut watched = Watched::new([0]);
    for code in 1..=20 {
        assert_eq!(watched.is([]), 0);
        assert_eq!(watched.is([code]), 0, "each time with another code");
    }
    let mut watched = Watched::new(0..6);
    for code in 0..6 {
        assert_eq!(watched.is((0..6).filter(|other| *other != code)), 0, "one after the other");
        assert_eq!(watched.is(0..6), 0);
    }
}

#[test]
fn who_is_replaced_is_not_missed() {
    let mut watched = Watched::new(0..10);
    assert_eq!(watched.is(0..20), 0);
    assert_eq!(watched.is(10..20), 0);
}

#[test]
fn a_clean_leave_is_believed() {
    let mut watched = Watched::new(0..10);
    let nine: Vec<usize> = (1..10).collect();
    assert!(watched.becomes(some([0]), &nine, false).is_empty());
    // Of ten, five leave, and one of the others is lost; then two more.
    let mut watched = Watched::new(0..10);
    assert!(watched.becomes(some(6..10), &[0, 1, 2, 3, 4], false).is_empty());
    assert_eq!(watched.is(8..10), 3);
}

#[test]
fn who_turns_out_to_have_left_is_guarded_no_longer() {
    let mut watched = Watched::new(0..10);
    assert_eq!(watched.is(0..4), 6);
    let kept = watched.becomes(some(0..4), &[4, 5], false);
    assert_eq!(kept.iter().map(|instance| &*instance.code).collect::<Vec<_>>(), ["006", "007", "008", "009"]);
    let mut watched = Watched::new(0..10);
    assert_eq!(watched.is(0..1), 9);
    assert_eq!(watched.becomes(some(0..1), &[9], false).len(), 8);
}

#[test]
fn it_ends_when_enough_are_back() {
    let mut watched = Watched::new(0..10);
    assert_eq!(watched.is([]), 10);
    assert_eq!(watched.is(0..3), 7);
    assert_eq!(watched.is(0..6), 4, "the others are on their way");
    let ends = watched.state.until().unwrap();
    assert_eq!(ends - watched.now, watched.guard.window);
    watched.now = ends;
    assert_eq!(watched.is(0..6), 0);
    assert_eq!(watched.state.until(), None);
    // Once more most of them are lost, while the last were awaited.
    let mut watched = Watched::new(0..10);
    assert_eq!((watched.is([]), watched.is(0..6)), (10, 4));
    let ends = watched.state.until().unwrap();
    watched.later(1);
    assert_eq!(watched.is(0..2), 8);
    assert!(watched.state.until().unwrap() > ends);
}

#[test]
fn what_an_emptied_registry_has_lost_is_guarded_until_all_are_back() {
    let mut watched = Watched::new(0..2);
    assert_eq!(watched.becomes(some([]), &[], true).len(), 2);
    assert_eq!(watched.is(0..1), 1);
    assert_eq!(watched.is(0..2), 0);
    assert_eq!(watched.state.until(), None);
    assert_eq!(watched.is(0..1), 0, "from now on it is as small as before");
}

#[test]
fn who_was_believed_to_be_gone_is_not_brought_back_when_the_registry_is_emptied() {
    let mut watched = Watched::new(0..10);
    for left in [9, 8] {
        assert_eq!(watched.is(0..left), 0);
        watched.later(1);
    }
    assert_eq!((watched.is(0..7), watched.listed), (0, 8), "the last one is still listed");
    let kept = watched.becomes(some([]), &[], true);
    assert_eq!(kept.iter().map(|one| one.code.clone()).collect::<Vec<_>>(), (0..8).map(name).collect::<Vec<_>>());
    // Nobody stood any more.
    let mut watched = Watched::new(0..2);
    assert_eq!(watched.is([]), 0);
    watched.later(1);
    assert_eq!(watched.becomes(some([]), &[], true).len(), 2, "there is none better");
    // Who is guarded already stays so.
    let mut watched = Watched::new(0..10);
    assert_eq!(watched.is(0..2), 8);
    watched.later(1);
    assert_eq!(watched.becomes(some([]), &[], true).len(), 10);
}

#[test]
fn when_it_was_lost_is_remembered() {
    let mut watched = Watched::new(0..10);
    let first = watched.becomes(some([]), &[], false);
    watched.later(3);
    let later = watched.becomes(some(0..1), &[], false);
    assert_eq!(first[9].guarded_since, later[8].guarded_since);
}

#[test]
fn a_lost_master_does_not_stand_beside_the_new_one() {
    let mut watched = Watched::new([]);
    watched.present = with_master(0..10, Some(9));
    let kept = watched.becomes(some(0..2), &[], false);
    assert!(kept.iter().any(|instance| instance.role.is_master()));
    let kept = watched.becomes(with_master(0..2, Some(0)), &[], false);
    assert!(kept.len() == 8 && kept.iter().all(|instance| !instance.role.is_master()));
}

#[test]
fn a_lost_master_that_has_been_replaced_is_not_master_again_when_the_next_one_goes() {
    for lost in [8, 1] {
        let mut watched = Watched::new([]);
        watched.present = with_master(0..10, Some(9));
        let is_master = |one: &Arc<ObservedInstance>| one.role.is_master();
        watched.becomes(some(0..10 - lost), &[], false);
        watched.becomes(with_master(0..10 - lost, Some(0)), &[], false);
        // It resigns, or has left.
        let seen = watched.shown(some(0..10 - lost), &[], false);
        assert!(!seen.iter().any(is_master), "{lost} lost: {seen:?}");
        let seen = watched.shown(some(1..10 - lost), &[0], false);
        assert!(!seen.iter().any(is_master), "{lost} lost: {seen:?}");
    }
}

#[test]
fn a_lost_master_that_has_been_replaced_is_no_normal_instance_while_more_losses_are_awaited() {
    let mut watched = Watched::new([]);
    watched.present = with_master(0..10, Some(9));
    assert!(watched.becomes(some(0..9), &[], false).is_empty(), "it is listed as it was");
    let kept = watched.becomes(with_master(0..9, Some(0)), &[], false);
    assert_eq!(kept.iter().map(|one| (&*one.code, one.role)).collect::<Vec<_>>(), [("009", Role::Normal)]);
    assert_eq!(watched.listed, 10);
}

/// What may happen to a service of up to twelve instances within a moment.
#[derive(Debug, Clone)]
struct Step {
    join: BTreeSet<usize>,
    leave: BTreeSet<usize>,
    lose: BTreeSet<usize>,
    after: u64,
}

fn step() -> impl Strategy<Value = Step> {
    let codes = || proptest::collection::btree_set(0..12_usize, 0..12);
    (codes(), codes(), codes(), 0..4_u64).prop_map(|(join, leave, lose, after)| Step { join, leave, lose, after })
}

proptest! {
    #[test]
    fn a_clean_leaver_is_never_guarded_and_a_mass_loss_always(steps in proptest::collection::vec(step(), 1..40)) {
        let mut watched = Watched::new(0..6);
        let mut present: BTreeSet<usize> = (0..6).collect();
        let mut cleanly_gone = BTreeSet::new();
        for Step { join, leave, lose, after } in steps {
            watched.later(after);
            let left: Vec<usize> = present.intersection(&leave).copied().collect();
            let lost: Vec<usize> = present.intersection(&lose).filter(|code| !leave.contains(code)).copied().collect();
            let expected = present.len() - left.len();
            let joined: Vec<usize> = join.difference(&present).copied().filter(|code| !lost.contains(code)).collect();
            present.retain(|code| !left.contains(code) && !lost.contains(code));
            present.extend(&joined);
            cleanly_gone.extend(&left);
            cleanly_gone.retain(|code| !present.contains(code));
            let kept = watched.becomes(some(present.iter().copied()), &left, false);
            for instance in &kept {
                prop_assert!(instance.is_guarded());
                let code: usize = instance.code.parse().unwrap();
                prop_assert!(!present.contains(&code) && !cleanly_gone.contains(&code), "{code}");
            }
            if watched.guard.is_mass_loss(expected, present.len()) {
                prop_assert!(lost.iter().all(|code| kept.iter().any(|kept| kept.code == name(*code))), "{lost:?}");
            }
            let settling = watched.listed - kept.len() - present.len();
            prop_assert!(kept.is_empty() || settling == 0);
            prop_assert_eq!(watched.state.until().is_some(), !kept.is_empty() || settling > 0);
        }
        watched.later(30);
        prop_assert_eq!(watched.is(present.iter().copied()), 0, "it ends");
        prop_assert_eq!((watched.state.until(), watched.listed), (None, present.len()));
    }

    #[test]
    fn restarts_one_by_one_are_never_a_mass_loss(size in 1..8_usize, restarts in proptest::collection::vec((0..8_usize, any::<bool>(), 0..3_u64), 1..60)) {
        let mut present: Vec<usize> = (0..size).collect();
        let (mut watched, mut next) = (Watched::new(0..size), size);
        for (which, same_code, after) in restarts {
            watched.later(after);
            let which = which % size;
            let gone = present.remove(which);
            prop_assert_eq!(watched.is(present.iter().copied()), 0);
            present.insert(which, if same_code { gone } else { next });
            next += 1;
            prop_assert_eq!(watched.is(present.iter().copied()), 0);
        }
    }
}
