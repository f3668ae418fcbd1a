//! The standings of all instances of a service at one moment, and the tier that is used.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pointsman_core::{ObservedInstance, Snapshot, View};

use crate::clock;
use crate::ejection::{Ejection, Epoch};
use crate::endpoint::Keep;
use crate::endpoints::{Endpoints, Entries};
use crate::error::PickError;
use crate::rules::{Candidates, Standing, Tier, disregard_ejection};

/// The share of its weight with which a new instance starts: Envoy's `min_weight_percent`.
const FIRST_SHARE: f64 = 0.1;

/// While an instance warms up, tables are prepared anew this many times in the window, but not more often than
/// [`SHORTEST_STEP`].
const STEPS: u32 = 16;
const SHORTEST_STEP: Duration = Duration::from_millis(100);

/// Options of a balancer that decide which instances it uses.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) candidates: Candidates,
    pub(crate) fall_back_to_master: bool,
    pub(crate) slow_start: Option<Duration>,
}

/// All instances of a snapshot with their standings.
#[derive(Debug)]
pub(crate) struct Standings {
    pub(crate) snapshot: Arc<Snapshot>,
    /// In the order of the codes.
    pub(crate) members: Vec<Member>,
    pub(crate) stamp: Stamp,
    /// The tier that is used; `None` where no instance can be.
    pub(crate) tier: Option<Tier>,
    /// Ejections are disregarded, because too few instances would be left.
    pub(crate) panic: bool,
    /// An instance that is used is warming up.
    pub(crate) warming: bool,
    pub(crate) candidates: Candidates,
    masterless_since: Option<Instant>,
}

#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) endpoint: Keep,
    pub(crate) standing: Standing,
    pub(crate) is_master: bool,
    /// Its place in the order; `None` if it is never picked.
    pub(crate) tier: Option<Tier>,
    /// The share of its weight that counts now: below 1 while it warms up.
    pub(crate) warmth: f64,
}

/// Versions of the inputs from which standings were made: while none has changed, the standings hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stamp {
    generation: u64,
    epoch: u64,
    until: Option<Instant>,
}

impl Stamp {
    /// Whether nothing has changed since. The clock is asked only while an instance is ejected or warming up.
    #[inline]
    pub(crate) fn holds(&self, view: &View, epoch: &Epoch, now: Option<Instant>) -> bool {
        let same = self.generation == view.generation() && self.epoch == epoch.epoch();
        same && self.until.is_none_or(|until| now.unwrap_or_else(clock::now) < until)
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
        entries.follow(&snapshot, view.masters(), endpoints.shared(), now);
        if let Some(rule) = entries.ejection {
            judge(entries, &snapshot, &rule, &endpoints.shared().epoch, now);
        }
        let mut standings = Self {
            members: Vec::with_capacity(snapshot.instances().len()),
            stamp: Stamp { generation, epoch, until: None },
            tier: None,
            panic: false,
            warming: false,
            candidates: rules.candidates,
            masterless_since: entries.masterless_since,
            snapshot,
        };
        standings.enrol(entries, rules, now);
        standings.choose_tier(entries.ejection.as_ref());
        standings
    }

    /// Why no instance can be picked, where none can.
    pub(crate) fn refusal(&self) -> Option<PickError> {
        if self.tier.is_some() {
            return None;
        }
        let service = self.snapshot.service().clone();
        let master = self.members.iter().find(|member| member.is_master);
        Some(match (self.candidates, master) {
            _ if self.members.is_empty() => PickError::NoInstance { service },
            (Candidates::Master, Some(Member { standing: Standing::Guarded { .. }, .. }) | None) => {
                PickError::NoMaster { service, since: self.masterless_since }
            }
            (Candidates::Master, Some(_)) => PickError::MasterDrained { service, since: self.masterless_since },
            (Candidates::Normals, Some(master)) if !is_out_of_work(master) => PickError::OnlyMaster { service },
            _ => PickError::AllDrained { service, instances: self.members.len() },
        })
    }

    fn enrol(&mut self, entries: &Entries, rules: Rules, now: Instant) {
        let snapshot = self.snapshot.clone();
        for (instance, record) in entries.of(&snapshot) {
            let standing = Standing::of(instance, entries.evidence(instance, record, now));
            let is_master = is_master(&snapshot, instance);
            let tier = Tier::of(rules.candidates, rules.fall_back_to_master, is_master, standing);
            let (warmth, next) = warmth(record.joined, rules.slow_start, now);
            let changes = match standing {
                Standing::Ejected { until } => next.into_iter().chain([until]).min(),
                _ => next,
            };
            if tier.is_some() {
                self.stamp.until = self.stamp.until.into_iter().chain(changes).min();
            }
            self.members.push(Member { endpoint: record.endpoint.clone(), standing, is_master, tier, warmth });
        }
    }

    fn choose_tier(&mut self, ejection: Option<&Ejection>) {
        let mut tiers: Vec<Option<Tier>> = self.members.iter().map(|member| member.tier).collect();
        self.panic = disregard_ejection(&mut tiers, ejection);
        for (member, tier) in self.members.iter_mut().zip(tiers) {
            member.tier = tier;
        }
        self.tier = self.members.iter().filter_map(|member| member.tier).min();
        self.panic |= self.tier.is_some_and(Tier::disregards_ejection);
        let warming = self.used().any(|member| member.warmth < 1.0);
        self.warming = warming;
    }

    /// The instances that are used.
    pub(crate) fn used(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| member.tier.is_some() && member.tier == self.tier)
    }
}

fn is_out_of_work(member: &Member) -> bool {
    matches!(member.standing, Standing::Drained | Standing::Weightless)
}

fn is_master(snapshot: &Snapshot, instance: &Arc<ObservedInstance>) -> bool {
    snapshot.master().is_some_and(|master| Arc::ptr_eq(master, instance))
}

/// Ejects those that have failed too often in a row: of the normal instances as many as the limit allows, and the master, for which
/// another stands in, whatever the limit. The others must fail as often again.
fn judge(entries: &mut Entries, snapshot: &Snapshot, rule: &Ejection, epoch: &Epoch, now: Instant) {
    // Whether it can be ejected, and whether it is.
    let standing = |entries: &Entries, instance: &ObservedInstance| match Standing::of(
        instance,
        entries.evidence(instance, entries.get(&instance.code)?, now),
    ) {
        Standing::Passing | Standing::Unknown => Some(false),
        Standing::Ejected { .. } => Some(true),
        _ => None,
    };
    let due = entries.of(snapshot).filter(|(_, record)| epoch.is_due(&record.endpoint.stats.failures));
    let due: Vec<&Arc<ObservedInstance>> = due.map(|(instance, _)| instance).collect();
    if due.is_empty() {
        return;
    }
    let normals: Vec<bool> = snapshot.normals().filter_map(|instance| standing(entries, instance)).collect();
    let mut ejected = normals.iter().filter(|is_ejected| **is_ejected).count();
    let limit = rule.limit(normals.len());
    for instance in due {
        // One that is drained, guarded or failing now is judged once it is not.
        if standing(entries, instance) != Some(false) {
            continue;
        }
        let is_master = is_master(snapshot, instance);
        let Some(record) = entries.get_mut(&instance.code) else { continue };
        let at = epoch.take(&record.endpoint.stats.failures);
        if let Some(at) = at.filter(|_| is_master || ejected < limit) {
            record.ejections.eject(rule, at);
            ejected += usize::from(!is_master);
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
