//! The guard against a sudden mass loss.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pointsman_core::{Difference, ObservedInstance, Role, Snapshot};
use tokio::time::Instant;

/// When a loss of instances is so sudden and so large that it is more likely the registry's trouble than theirs.
///
/// The guard compares how many instances a service has now with the most that it had at one time within `window`, less those that
/// left cleanly. If that were at least `at_least`, and more than `fraction` of them are missing now, then those that were lost stay
/// in the snapshot for `hold`, each marked with [`guarded_since`](pointsman_core::ObservedInstance::guarded_since); when enough are back, the others have another `window`. An instance
/// that left cleanly is never guarded, and instances that are replaced one by one are never a mass loss. New instances, changes and
/// a new master are shown at once all the same. Whoever is lost without having left stays listed for a quarter of a second in services
/// of at least `at_least` instances, so that what is lost together is guarded in one step.
///
/// A registry that has lost its data, or that lists after a reconnection less than that fraction of all that it held, guards the
/// instances of every service that is followed, however small: those that it held until then, or where it held none of a service any more, those that were lost within `window`.
///
/// # Examples
///
/// ```
/// # use pointsman_core::Instance;
/// # use pointsman_registry::{Departure, Guard, Registry};
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let guard = Guard { at_least: 2, ..Guard::default() };
/// let registry = Registry::builder("memory://guard").guard(Some(guard)).connect().await?;
/// let (a, b) = (registry.register(Instance::new("ress")).await?, registry.register(Instance::new("ress")).await?);
/// let service = registry.discover("ress").await?;
/// a.close_as(Departure::Lost).await?;
/// b.close_as(Departure::Lost).await?;
/// let snapshot = service.wait_for(|snapshot| snapshot.is_guarded()).await?;
/// assert_eq!(snapshot.instances().len(), 2); // kept for `hold`
/// # Ok(())
/// # }
/// ```
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
    was: Arc<ObservedInstance>,
    guarded: Arc<ObservedInstance>,
    /// It has been shown as guarded: it is never again shown as it was.
    is_told: bool,
    /// It was master, and another has become master since: it never is again, also when that one has gone.
    is_replaced: bool,
}

impl Lost {
    fn new(was: &Arc<ObservedInstance>, at: Instant) -> Self {
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
    fn unguarded(&self) -> Arc<ObservedInstance> {
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
    pub(crate) fn update(&mut self, guard: &Guard, seen: &Observation<'_>, now: Instant) -> Vec<Arc<ObservedInstance>> {
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

fn guarded(instance: &Arc<ObservedInstance>) -> Arc<ObservedInstance> {
    let mut instance = ObservedInstance::clone(instance);
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
mod tests;
