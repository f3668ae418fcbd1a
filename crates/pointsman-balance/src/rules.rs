//! The one ordered choice: which instances a pick may use, and in which order.
//!
//! What is known of an instance is its [`Standing`]; what a pick is for, its [`Candidates`]. Both give the instance its
//! [`Tier`], or none. A pick uses the first tier that has an instance left which the caller has not excluded; within the tier the
//! algorithm decides. Everything that chooses in Pointsman (library, agent, proxy, relay) goes through here, so that guard,
//! ejection, panic, checks, drain and the fallback to the master are one list and cannot contradict each other.

use std::fmt;
use std::str::FromStr;
use std::time::Instant;

use pointsman_core::{ObservedInstance, Status};

use crate::ejection::Ejection;

/// Among which instances a pick chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Candidates {
    /// The normal instances; the master stands in where none of them can serve, unless that is turned off.
    #[default]
    Normals,
    /// The master alone.
    Master,
    /// All instances alike, whatever their role.
    All,
}

impl Candidates {
    /// All of them, in the order in which they are documented.
    pub const ALL: [Candidates; 3] = [Candidates::Normals, Candidates::Master, Candidates::All];

    /// `normal`, `master` or `all`: the word that configurations and tables use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Candidates::Normals => "normal",
            Candidates::Master => "master",
            Candidates::All => "all",
        }
    }
}

impl fmt::Display for Candidates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Candidates {
    type Err = UnknownRole;

    fn from_str(name: &str) -> Result<Self, UnknownRole> {
        let known = Candidates::ALL.into_iter().find(|candidates| candidates.name() == name);
        known.ok_or_else(|| UnknownRole { name: name.chars().take(64).collect() })
    }
}

/// As its name.
#[cfg(feature = "serde")]
impl serde::Serialize for Candidates {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// From all that [`FromStr`] reads.
#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for Candidates {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = std::borrow::Cow::<str>::deserialize(deserializer)?;
        name.parse().map_err(serde::de::Error::custom)
    }
}

/// A word that is no role to pick for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown role {name:?}: it may be normal, master, all")]
#[non_exhaustive]
pub struct UnknownRole {
    /// The word as it was given, cut after 64 characters.
    pub name: String,
}

/// What is known of an instance at one moment. Where several hold, the one that is listed first counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Standing {
    /// An operator has drained it. It is never picked.
    Drained,
    /// Its weight is 0. It is never picked.
    Weightless,
    /// The registry has lost it suddenly, together with many others: it may live.
    Guarded {
        /// A call to it has failed, or its check does: it is probably dead.
        has_failed: bool,
    },
    /// It fails its active checks.
    Failing,
    /// Calls to it have failed too often in a row; it is let in again then.
    Ejected {
        /// When it is let in again.
        until: Instant,
    },
    /// Its service is checked, and the first check of this instance has not ended yet.
    Unknown,
    /// It is registered, and nothing speaks against it.
    Passing,
}

/// A place in the order in which instances are used: the lowest that has an instance left is used.
///
/// | tier | used are |
/// |---|---|
/// | 1, 2 | those that pass; then the master in their stead |
/// | 3, 4 | those whose first check has not ended; then the master, if it is such a one |
/// | 5, 6 | those that are ejected; then the master |
/// | 7, 8 | those that are guarded; then the master |
/// | 9, 10 | those that fail their active checks; then the master |
/// | 11, 12 | those that are guarded and have failed; then the master |
///
/// "Those" are the [`Candidates`]: the even tiers exist only where these are the normals. Two things move an instance to another
/// tier: below the [panic threshold](Ejection::panic_percent) ejected instances are in the first one, and a guarded master that has
/// failed is no candidate where only the master is wanted, because a new one is about to be elected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tier {
    class: Class,
    stands_in: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Class {
    Passing,
    Unknown,
    Ejected,
    Guarded,
    Failing,
    Failed,
}

impl Tier {
    /// The tier of an instance; `None` if it is never picked.
    pub(crate) fn of(candidates: Candidates, falls_back: bool, is_master: bool, standing: Standing) -> Option<Self> {
        let stands_in = match (candidates, is_master) {
            (Candidates::Normals, false) | (Candidates::Master, true) | (Candidates::All, _) => false,
            (Candidates::Normals, true) if falls_back => true,
            (Candidates::Normals, true) | (Candidates::Master, false) => return None,
        };
        let class = match standing {
            Standing::Drained | Standing::Weightless => return None,
            Standing::Passing => Class::Passing,
            Standing::Unknown => Class::Unknown,
            Standing::Ejected { .. } => Class::Ejected,
            Standing::Guarded { has_failed: false } => Class::Guarded,
            Standing::Failing => Class::Failing,
            Standing::Guarded { has_failed: true } if candidates == Candidates::Master => return None,
            Standing::Guarded { has_failed: true } => Class::Failed,
        };
        Some(Self { class, stands_in })
    }

    /// The tier of those against whom nothing speaks.
    pub(crate) const FIRST: Self = Self { class: Class::Passing, stands_in: false };
    /// The tier of those that are ejected, where ejection is not disregarded.
    pub(crate) const EJECTED: Self = Self { class: Class::Ejected, stands_in: false };

    /// Its place in the order, from 1 to 12.
    #[must_use]
    pub const fn number(self) -> u8 {
        2 * self.class as u8 + self.stands_in as u8 + 1
    }

    /// Whether it is the master's in the stead of the normal instances.
    #[must_use]
    pub const fn stands_in(self) -> bool {
        self.stands_in
    }

    /// Whether those in it are used in spite of having been ejected.
    pub(crate) fn disregards_ejection(self) -> bool {
        self.class == Class::Ejected
    }

    /// Whether an instance in it may be stayed with: it serves as well as any other.
    pub(crate) fn may_be_kept(self) -> bool {
        self.class <= Class::Unknown
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = if self.stands_in { "the master in place of the normal instances: " } else { "" };
        let what = match self.class {
            Class::Passing => "registered, and nothing speaks against it",
            Class::Unknown => "not checked yet",
            Class::Ejected => "ejected",
            Class::Guarded => "guarded",
            Class::Failing => "fails its checks",
            Class::Failed => "guarded, and a call to it has failed",
        };
        write!(f, "{who}{what}")
    }
}

/// Evidence about one instance beyond its registration.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Evidence {
    /// What its active check says; `None` where its service is not checked.
    pub(crate) check: Option<CheckState>,
    /// Until when it is ejected.
    pub(crate) ejected_until: Option<Instant>,
    /// A call has failed since it is guarded, or just before.
    pub(crate) has_failed: bool,
}

/// Result of the active checks of one instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CheckState {
    Unknown,
    Passing,
    Failing,
}

impl Standing {
    /// The word for it in `docs/choosing.md`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Standing::Drained => "drained",
            Standing::Weightless => "weight 0",
            Standing::Guarded { has_failed: false } => "guarded",
            Standing::Guarded { has_failed: true } => "guarded, has failed",
            Standing::Failing => "failing",
            Standing::Ejected { .. } => "ejected",
            Standing::Unknown => "unknown",
            Standing::Passing => "passing",
        }
    }

    pub(crate) fn of(instance: &ObservedInstance, evidence: Evidence) -> Self {
        let fails = evidence.check == Some(CheckState::Failing);
        match evidence {
            _ if instance.status == Status::Drained => Standing::Drained,
            _ if instance.weight == 0 => Standing::Weightless,
            _ if instance.is_guarded() => Standing::Guarded { has_failed: evidence.has_failed || fails },
            _ if fails => Standing::Failing,
            Evidence { ejected_until: Some(until), .. } => Standing::Ejected { until },
            Evidence { check: Some(CheckState::Unknown), .. } => Standing::Unknown,
            _ => Standing::Passing,
        }
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Lets those that are ejected into the first tier, if too few would be in it otherwise. Says whether it did. Where it is empty, nothing
/// is moved: the master, if it can serve, comes before those that are ejected.
pub(crate) fn disregard_ejection(tiers: &mut [Option<Tier>], rule: Option<&Ejection>) -> bool {
    let count = |tiers: &[Option<Tier>], tier| tiers.iter().filter(|one| **one == Some(tier)).count();
    let (passing, ejected) = (count(tiers, Tier::FIRST), count(tiers, Tier::EJECTED));
    let panics = passing > 0 && ejected > 0 && rule.is_some_and(|rule| rule.panics(passing, passing + ejected));
    if panics {
        for tier in tiers.iter_mut().filter(|tier| **tier == Some(Tier::EJECTED)) {
            *tier = Some(Tier::FIRST);
        }
    }
    panics
}

#[cfg(test)]
mod tests {
    use pointsman_core::Instance;

    use super::*;

    #[cfg(feature = "serde")]
    #[test]
    fn candidates_have_the_same_name_in_json() {
        for candidates in Candidates::ALL {
            let json = serde_json::to_string(&candidates).unwrap();
            assert_eq!(json, format!("\"{candidates}\""));
            assert_eq!(serde_json::from_str::<Candidates>(&json).unwrap(), candidates);
        }
        assert!(serde_json::from_str::<Candidates>("7").is_err());
    }

    fn every_standing() -> [Standing; 8] {
        [
            Standing::Passing,
            Standing::Unknown,
            Standing::Ejected { until: Instant::now() },
            Standing::Guarded { has_failed: false },
            Standing::Failing,
            Standing::Guarded { has_failed: true },
            Standing::Drained,
            Standing::Weightless,
        ]
    }

    fn numbers(candidates: Candidates, falls_back: bool, is_master: bool) -> [Option<u8>; 8] {
        every_standing().map(|standing| Tier::of(candidates, falls_back, is_master, standing).map(Tier::number))
    }

    #[test]
    fn every_role_is_read_back_and_an_unknown_one_names_the_three() {
        for candidates in Candidates::ALL {
            assert_eq!(candidates.to_string().parse(), Ok(candidates));
        }
        let error = "Master".parse::<Candidates>().unwrap_err().to_string();
        assert_eq!(error, "unknown role \"Master\": it may be normal, master, all");
    }

    #[test]
    fn the_order_is_that_of_the_table() {
        let odd = [Some(1), Some(3), Some(5), Some(7), Some(9), Some(11), None, None];
        let even = [Some(2), Some(4), Some(6), Some(8), Some(10), Some(12), None, None];
        assert_eq!(numbers(Candidates::Normals, true, false), odd);
        assert_eq!(numbers(Candidates::Normals, true, true), even);
        assert_eq!(numbers(Candidates::Normals, false, true), [None; 8]);
        assert_eq!(numbers(Candidates::All, true, true), odd);
        assert_eq!(numbers(Candidates::Master, true, false), [None; 8]);
        assert_eq!(
            numbers(Candidates::Master, true, true),
            [Some(1), Some(3), Some(5), Some(7), Some(9), None, None, None]
        );
    }

    #[test]
    fn what_is_listed_first_counts() {
        let until = Instant::now();
        let everything = Evidence { check: Some(CheckState::Failing), ejected_until: Some(until), has_failed: true };
        let mut instance = ObservedInstance::from(Instance::new("s"));
        assert_eq!(Standing::of(&instance, Evidence::default()), Standing::Passing);
        assert_eq!(Standing::of(&instance, everything), Standing::Failing);
        let unchecked = Evidence { check: Some(CheckState::Unknown), ..everything };
        assert_eq!(Standing::of(&instance, unchecked), Standing::Ejected { until });
        instance.guarded_since = Some(std::time::SystemTime::UNIX_EPOCH);
        assert_eq!(Standing::of(&instance, Evidence::default()), Standing::Guarded { has_failed: false });
        let fails = Evidence { check: Some(CheckState::Failing), ..Evidence::default() };
        assert_eq!(Standing::of(&instance, fails), Standing::Guarded { has_failed: true });
        instance.weight = 0;
        assert_eq!(Standing::of(&instance, everything), Standing::Weightless);
        instance.status = Status::Drained;
        assert_eq!(Standing::of(&instance, everything), Standing::Drained);
    }

    #[test]
    fn ejection_is_disregarded_only_where_few_pass_and_not_where_nobody_does() {
        let rule = Ejection::default();
        let run = |passing: usize, ejected: usize| {
            let mut tiers = vec![Some(Tier::FIRST); passing];
            tiers.extend(vec![Some(Tier::EJECTED); ejected]);
            let panics = disregard_ejection(&mut tiers, Some(&rule));
            assert_eq!(panics, ejected > 0 && tiers.iter().all(|tier| *tier == Some(Tier::FIRST)));
            panics
        };
        assert!(!run(2, 2) && !run(3, 1) && !run(0, 3) && !run(1, 0));
        assert!(run(1, 2));
    }
}
