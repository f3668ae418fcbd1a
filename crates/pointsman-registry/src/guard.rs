//! The guard against a sudden mass loss.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pointsman_core::{Difference, Instance, Role, Snapshot};
use tokio::time::Instant;

/// When a loss of instances is so sudden and so large that it is more likely the registry's trouble than theirs.
///
/// The guard compares how many instances a service has now with the most that it had at one time within `window`, less those that
/// left cleanly. If that were at least `at_least`, and more than `fraction` of them are missing now, then those that were lost stay
/// in the snapshot for `hold`, each marked with [`Instance::guarded_since`]; when enough are back, the others have another `window`. An instance
/// that left cleanly is never guarded, and instances that are replaced one by one are never a mass loss. New instances, changes and
/// a new master are shown at once all the same. Whoever is lost without having left stays listed for a quarter of a second in services
/// of at least `at_least` instances, so that what is lost together is guarded in one step.
///
/// A registry that has lost its data, or that lists after a reconnection less than that fraction of all that it held, guards the
/// instances of every service that is followed, however small: those that it held until then, or where it held none of a service any more, those that were lost within `window`.
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

impl Guard {
    /// For a registry that guards what it tells: guarded here is only what it holds no more because it has lost its data.
    pub(crate) fn against_lost_data() -> Self {
        Self { at_least: usize::MAX, ..Self::default() }
    }

    /// Whether an empty list is suspicious although the registry holds the same data as before.
    pub(crate) fn doubts_an_empty_list(&self) -> bool {
        self.at_least != usize::MAX
    }

    /// Whether a fall from `peak` instances to `present` is a mass loss.
    pub(crate) fn is_mass_loss(&self, peak: usize, present: usize) -> bool {
        peak >= self.at_least && self.is_most(peak, present)
    }

    /// Whether so many of `peak` instances are missing that the loss is suspicious.
    fn is_most(&self, peak: usize, present: usize) -> bool {
        #[expect(clippy::cast_precision_loss, reason = "counts of instances are far below 2^52")]
        let most = peak.saturating_sub(present) as f64 > self.fraction * peak as f64;
        most
    }
}

/// What the registry held of one service, and holds now.
#[derive(Debug)]
pub(crate) struct Observation<'a> {
    pub(crate) before: &'a Snapshot,
    pub(crate) after: &'a Snapshot,
    /// The codes that left cleanly since the last observation, if they are not there now.
    pub(crate) left: &'a [Arc<str>],
    /// Whether the registry as a whole has lost most of what it held: then every loss is guarded.
    pub(crate) is_emptied: bool,
}

/// The guard of one service: pure, with `now` passed in.
#[derive(Debug, Default)]
pub(crate) struct GuardState {
    /// How many instances were present at one time, and from when on; without those that have left cleanly since. The first entry
    /// was in force when the window began.
    populations: VecDeque<(Instant, usize)>,
    /// When each instance that has joined after the first of the populations did so.
    joined: HashMap<Arc<str>, Instant>,
    /// The instances that were lost within the window, or since the guard began.
    lost: BTreeMap<Arc<str>, Lost>,
    guarding: Option<Guarding>,
    /// When the first of the lost that are still listed is listed no longer.
    settles: Option<Instant>,
}

#[derive(Debug)]
struct Lost {
    at: Instant,
    was: Arc<Instance>,
    guarded: Arc<Instance>,
    /// It has been shown as guarded: it is never again shown as it was.
    is_told: bool,
    /// It was master, and another has become master since: it never is again, also when that one has gone.
    is_replaced: bool,
}

impl Lost {
    fn new(was: &Arc<Instance>, at: Instant) -> Self {
        Self { at, was: was.clone(), guarded: guarded(was), is_told: false, is_replaced: false }
    }

    /// There is a master, which it is not.
    fn replace(&mut self) {
        if self.was.role.is_master() && !self.is_replaced {
            self.is_replaced = true;
            Arc::make_mut(&mut self.guarded).role = Role::Normal;
        }
    }

    /// As it is shown before it is guarded: one that has been replaced would be a normal instance like any other, which it never was.
    fn unguarded(&self) -> Arc<Instance> {
        if self.is_replaced { self.guarded.clone() } else { self.was.clone() }
    }
}

/// Time in which losses are awaited that belong to the same mass loss: sessions that expire together do so one by one. Until it is
/// over a lost instance is listed as it was.
const SETTLE: Duration = Duration::from_millis(250);

/// The guard is up.
#[derive(Debug)]
struct Guarding {
    since: Instant,
    until: Instant,
    /// The largest population at the start, less those that have left cleanly since.
    peak: usize,
    /// See [`Observation::is_emptied`].
    is_emptied: bool,
    /// Enough are back; the others have until `until`.
    is_ending: bool,
}

impl GuardState {
    /// Takes in what the registry held and holds now, and returns the lost instances that are to be shown although they are gone.
    pub(crate) fn update(&mut self, guard: &Guard, seen: &Observation<'_>, now: Instant) -> Vec<Arc<Instance>> {
        if self.guarding.as_ref().is_some_and(|guarding| guarding.until <= now) {
            // What has not come back by now is believed to be gone.
            *self = Self::default();
        }
        if self.populations.is_empty() {
            self.populations.push_back((now, seen.before.instances().len()));
        }
        self.take_in(seen, now);
        self.forget_what_is_old(guard, now);
        if seen.is_emptied && self.guarding.is_none() {
            // Those that were lost before were believed to be gone: a request that goes to one of them, rather than to one that stood until
            // now, would most likely be lost.
            let stood = |lost: &Lost| now < lost.at + SETTLE;
            if self.lost.values().any(stood) {
                self.lost.retain(|_, lost| stood(lost));
            }
        }
        let present = seen.after.instances().len();
        self.decide(guard, seen.is_emptied, present, now);
        if seen.after.master().is_some() {
            self.lost.values_mut().for_each(Lost::replace);
        }
        self.settles = None;
        if self.guarding.is_some() {
            self.lost.values_mut().for_each(|lost| lost.is_told = true);
            return self.lost.values().map(|lost| lost.guarded.clone()).collect();
        }
        let may_be_more = |lost: &&Lost| !lost.is_told && self.peak() >= guard.at_least && now < lost.at + SETTLE;
        let settling: Vec<&Lost> = self.lost.values().filter(may_be_more).collect();
        self.settles = settling.iter().map(|lost| lost.at + SETTLE).min();
        settling.into_iter().map(Lost::unguarded).collect()
    }

    /// When lost instances are to be given up, or something else is to be decided.
    pub(crate) fn until(&self) -> Option<Instant> {
        self.guarding.as_ref().map(|guarding| guarding.until).or(self.settles)
    }

    /// Whether nothing is guarded, and none is remembered that was lost.
    pub(crate) fn is_idle(&self) -> bool {
        self.guarding.is_none() && self.lost.is_empty()
    }

    /// Until when those are remembered that were lost, while they are not guarded.
    pub(crate) fn remembers_until(&self, guard: &Guard) -> Option<Instant> {
        let last = self.lost.values().map(|lost| lost.at).max().filter(|_| self.guarding.is_none())?;
        Some(last + guard.window)
    }

    fn peak(&self) -> usize {
        self.populations.iter().map(|(_, count)| *count).max().unwrap_or_default()
    }

    fn take_in(&mut self, seen: &Observation<'_>, now: Instant) {
        let left: HashSet<&str> = seen.left.iter().map(|code| &**code).collect();
        let mut joined = Vec::new();
        for difference in seen.before.differences(seen.after) {
            match difference {
                Difference::Left(instance) if left.contains(&*instance.code) => self.leave(&instance.code),
                Difference::Left(instance) => {
                    self.lost.insert(instance.code.clone(), Lost::new(instance, now));
                }
                Difference::Joined(instance) => joined.push(&instance.code),
                Difference::Stayed { .. } => {}
            }
        }
        // It was lost at first; it has come and left since, or the word of its leave is late.
        for code in seen.left.iter().filter(|code| seen.after.find(code).is_none()) {
            if self.lost.remove(code).is_some() {
                self.leave(code);
            }
        }
        for code in joined {
            // One that comes back counts as if it had never been away.
            if self.lost.remove(code).is_none() {
                self.joined.insert(code.clone(), now);
            }
        }
        let present = seen.after.instances().len();
        if self.populations.back().is_none_or(|(_, last)| *last != present) {
            self.populations.push_back((now, present));
        }
    }

    /// An instance has left cleanly: from now on it is as if it had never been there.
    fn leave(&mut self, code: &str) {
        let joined = self.joined.remove(code);
        for (_, count) in self.populations.iter_mut().filter(|(from, _)| joined.is_none_or(|joined| joined <= *from)) {
            *count = count.saturating_sub(1);
        }
        if let Some(guarding) = self.guarding.as_mut().filter(|g| joined.is_none_or(|joined| joined < g.since)) {
            guarding.peak = guarding.peak.saturating_sub(1);
        }
    }

    fn forget_what_is_old(&mut self, guard: &Guard, now: Instant) {
        let is_old = |at: Instant| now.saturating_duration_since(at) >= guard.window;
        // The first one stays in force until the second begins.
        while self.populations.get(1).is_some_and(|(from, _)| is_old(*from)) {
            self.populations.pop_front();
        }
        if self.guarding.is_none() {
            self.lost.retain(|_, lost| !is_old(lost.at));
            let first = self.populations.front().map(|(from, _)| *from);
            self.joined.retain(|_, joined| first.is_some_and(|first| *joined > first));
        }
    }

    /// Puts the guard up, or takes it down.
    fn decide(&mut self, guard: &Guard, is_emptied: bool, present: usize, now: Instant) {
        let peak = self.peak();
        let guarding = self.guarding.take();
        if self.lost.is_empty() {
            return;
        }
        let begins = is_emptied || guard.is_mass_loss(peak, present);
        let new = || Guarding { since: now, until: now + guard.hold, peak, is_emptied, is_ending: false };
        self.guarding = match guarding {
            Some(up) if up.is_emptied => Some(up),
            Some(up) if !is_emptied && !guard.is_most(up.peak, present) => {
                Some(Guarding { until: up.until.min(now + guard.window), is_ending: true, ..up })
            }
            Some(up) if !(is_emptied || up.is_ending && begins) => Some(up),
            _ => begins.then(new),
        };
    }
}

fn guarded(instance: &Arc<Instance>) -> Arc<Instance> {
    let mut instance = Instance::clone(instance);
    // One that was guarded already, before this process began, was lost then.
    instance.guarded_since.get_or_insert_with(now_in_ms);
    Arc::new(instance)
}

/// In whole milliseconds, as it is told and saved: read back it is the same.
fn now_in_ms() -> SystemTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(since.as_millis()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use pointsman_core::Term;
    use proptest::prelude::*;

    use super::*;

    fn some(codes: impl IntoIterator<Item = usize>) -> Snapshot {
        with_master(codes, None)
    }

    fn with_master(codes: impl IntoIterator<Item = usize>, master: Option<usize>) -> Snapshot {
        let instances = codes.into_iter().map(|code| {
            let mut instance = Instance::new("s").code(name(code));
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
        fn shown(&mut self, after: Snapshot, left: &[usize], is_emptied: bool) -> Vec<Arc<Instance>> {
            let left: Vec<Arc<str>> = left.iter().copied().map(name).collect();
            let seen = Observation { before: &self.present, after: &after, left: &left, is_emptied };
            let shown = self.state.update(&self.guard, &seen, self.now);
            self.present = after;
            shown
        }

        fn becomes(&mut self, after: Snapshot, left: &[usize], is_emptied: bool) -> Vec<Arc<Instance>> {
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
            assert_eq!(
                (watched.is(0..left), watched.listed),
                (0, 10),
                "not yet a mass loss, and none of them is missing"
            );
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
            let is_master = |one: &Arc<Instance>| one.role.is_master();
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
}
