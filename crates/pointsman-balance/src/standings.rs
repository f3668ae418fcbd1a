//! Who may be picked at one moment, who not, and why.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pointsman_core::{Snapshot, Status, View};

use crate::ejection::{Ejection, Epoch};
use crate::endpoint::Keep;
use crate::endpoints::{Endpoints, Entries};
use crate::error::PickError;

/// The share of its weight with which a new instance starts: Envoy's `min_weight_percent`.
const FIRST_SHARE: f64 = 0.1;

/// While somebody warms up, tables are prepared anew this many times in the window, but not more often than
/// [`SHORTEST_STEP`].
const STEPS: u32 = 16;
const SHORTEST_STEP: Duration = Duration::from_millis(100);

/// Whether an instance may be picked, and if not, why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Standing {
    /// It may.
    Candidate,
    /// It has failed too often and is let in again then.
    Ejected {
        /// When it is let in again.
        until: Instant,
    },
    /// An operator has drained it.
    Drained,
    /// Its weight is 0.
    Weightless,
    /// It is the master, and normal instances can take work.
    Master,
    /// The caller has excluded it.
    Excluded,
}

/// What a balancer asks of a standings.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) fall_back_to_master: bool,
    pub(crate) slow_start: Option<Duration>,
}

/// All instances of a snapshot with their standing.
#[derive(Debug)]
pub(crate) struct Standings {
    pub(crate) snapshot: Arc<Snapshot>,
    /// In the order of the codes.
    pub(crate) members: Vec<Member>,
    pub(crate) stamp: Stamp,
    /// Ejections are disregarded, because too few would be left.
    pub(crate) panic: bool,
    /// The master stands in, because no normal instance can take work.
    pub(crate) fell_back: bool,
    /// Somebody is warming up.
    pub(crate) warming: bool,
}

#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) endpoint: Keep,
    pub(crate) standing: Standing,
    /// The share of its weight that counts now: below 1 while it warms up.
    pub(crate) warmth: f64,
    /// Whether it is a normal instance that can take work, or the master in their stead; ejected or not.
    pub(crate) able: bool,
}

/// What a standings was made from: while nothing of it has changed, the standings holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stamp {
    generation: u64,
    epoch: u64,
    until: Option<Instant>,
}

impl Stamp {
    /// Whether nothing has changed since. The clock is asked only if somebody is ejected or warming up.
    #[inline]
    pub(crate) fn holds(&self, view: &View, epoch: &Epoch, now: Option<Instant>) -> bool {
        let same = self.generation == view.generation() && self.epoch == epoch.epoch();
        same && self.until.is_none_or(|until| now.unwrap_or_else(Instant::now) < until)
    }
}

impl Standings {
    pub(crate) fn draw_up(
        view: &View,
        entries: &mut Entries,
        endpoints: &Endpoints,
        rules: Rules,
        now: Instant,
    ) -> Self {
        // Both before what they stand for: a change in between makes the standings look too old, never too new.
        let (generation, epoch) = (view.generation(), endpoints.shared().epoch.epoch());
        let snapshot = view.load();
        entries.follow(&snapshot, endpoints.shared(), now);
        let able = able(&snapshot, rules);
        if let Some(rule) = endpoints.ejection() {
            judge(entries, &snapshot, &able, rule, endpoints, now);
        }
        let mut standings = Self {
            members: Vec::with_capacity(able.len()),
            stamp: Stamp { generation, epoch, until: None },
            panic: false,
            fell_back: snapshot.master().is_some_and(|master| {
                snapshot.instances().iter().zip(&able).any(|(instance, able)| *able && Arc::ptr_eq(instance, master))
            }),
            warming: false,
            snapshot,
        };
        standings.enrol(entries, &able, rules, now);
        standings.calm_down(endpoints.ejection());
        standings
    }

    /// Why nobody can be picked, where nobody can.
    pub(crate) fn refusal(&self) -> Option<PickError> {
        if self.members.iter().any(|member| member.able) {
            return None;
        }
        let service = self.snapshot.service().clone();
        Some(if self.members.is_empty() {
            PickError::NoInstance { service }
        } else if self.members.iter().any(|member| member.standing == Standing::Master) {
            PickError::OnlyMaster { service }
        } else {
            PickError::AllDrained { service, instances: self.members.len() }
        })
    }

    fn enrol(&mut self, entries: &Entries, able: &[bool], rules: Rules, now: Instant) {
        for (instance, &able) in self.snapshot.instances().iter().zip(able) {
            let Some(entry) = entries.get(&instance.code) else { continue };
            let ejected = entry.ejections.ejected_until(now);
            let standing = match ejected {
                _ if instance.status != Status::Passing => Standing::Drained,
                _ if instance.weight == 0 => Standing::Weightless,
                _ if !able => Standing::Master,
                Some(until) => Standing::Ejected { until },
                None => Standing::Candidate,
            };
            let (warmth, next) = warmth(entry.joined, rules.slow_start, now);
            let next = if able { next.into_iter().chain(ejected).min() } else { None };
            self.stamp.until = self.stamp.until.into_iter().chain(next).min();
            self.warming |= able && warmth < 1.0;
            self.members.push(Member { endpoint: entry.endpoint.clone(), standing, warmth, able });
        }
    }

    /// Disregards ejections where they would leave too few.
    fn calm_down(&mut self, ejection: Option<&Ejection>) {
        let candidates = self.members.iter().filter(|member| member.able).count();
        let healthy = self.members.iter().filter(|member| member.standing == Standing::Candidate).count();
        self.panic = healthy < candidates && ejection.is_some_and(|rule| rule.panics(healthy, candidates));
        if self.panic {
            for member in self.members.iter_mut().filter(|member| member.able) {
                member.standing = Standing::Candidate;
            }
        }
    }
}

/// Which instances can take work in this service: its normals, or the master in their stead.
fn able(snapshot: &Snapshot, rules: Rules) -> Vec<bool> {
    let master = snapshot.master();
    let is_master = |instance| master.is_some_and(|master| Arc::ptr_eq(master, instance));
    let instances = snapshot.instances();
    let mut able: Vec<bool> = instances.iter().map(|instance| instance.takes_work() && !is_master(instance)).collect();
    if rules.fall_back_to_master && !able.contains(&true) {
        able = instances.iter().map(|instance| instance.takes_work() && is_master(instance)).collect();
    }
    able
}

/// Ejects those who have failed too often in a row, as far as the limit allows. The others must fail so often again.
fn judge(
    entries: &mut Entries,
    snapshot: &Snapshot,
    able: &[bool],
    rule: &Ejection,
    endpoints: &Endpoints,
    now: Instant,
) {
    let is_out = |code: &str| entries.get(code).is_some_and(|entry| entry.ejections.ejected_until(now).is_some());
    let candidates = || snapshot.instances().iter().zip(able).filter(|(_, able)| **able).map(|(instance, _)| instance);
    let mut ejected = candidates().filter(|instance| is_out(&instance.code)).count();
    let limit = rule.limit(candidates().count());
    for instance in candidates() {
        let Some(entry) = entries.get_mut(&instance.code) else { continue };
        let Some(at) = endpoints.shared().epoch.take(&entry.endpoint.stats.failures) else { continue };
        if ejected < limit && entry.ejections.ejected_until(now).is_none() {
            entry.ejections.eject(rule, at);
            ejected += 1;
        }
    }
}

/// The share of its weight that an instance has `now`, and when that changes next.
fn warmth(joined: Option<Instant>, window: Option<Duration>, now: Instant) -> (f64, Option<Instant>) {
    let (Some(joined), Some(window)) = (joined, window) else { return (1.0, None) };
    let age = now.saturating_duration_since(joined);
    if age >= window {
        return (1.0, None);
    }
    let share = age.as_secs_f64() / window.as_secs_f64();
    let step = (window / STEPS).max(SHORTEST_STEP).min(window - age);
    (share.max(FIRST_SHARE), Some(now + step))
}
