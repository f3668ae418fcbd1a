//! The history of a service's masters, which agents write down in [`Log::Masters`](crate::Log::Masters).

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Maximum number of masterships of a service in its history.
const KEPT: usize = 64;

/// A mastership, as agents have seen it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mastership {
    /// Code of the master.
    pub code: Arc<str>,
    /// Its address, if it has one.
    pub address: Option<Arc<str>>,
    /// Its term.
    pub term: u64,
    /// When it was first seen as master, in milliseconds since 1970.
    pub since_ms: u64,
    /// When it was seen to be master no longer, in milliseconds since 1970. `None`: it is master.
    pub until_ms: Option<u64>,
}

/// An entry of a log of masters. Each agent writes what it sees, unless another has written it already.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Entry {
    /// A term has begun.
    Began {
        /// Code of the master.
        code: Arc<str>,
        /// Its address, if it has one.
        address: Option<Arc<str>>,
        /// The term.
        term: u64,
        /// When it was seen, in milliseconds since 1970.
        at_ms: u64,
    },
    /// A term has ended.
    Ended {
        /// The term.
        term: u64,
        /// When it was seen, in milliseconds since 1970.
        at_ms: u64,
    },
}

impl Entry {
    /// Returns the key in the log: in the order of the terms, each end after its beginning.
    #[must_use]
    pub fn key(&self) -> String {
        match self {
            Entry::Began { term, .. } => format!("{term:020}-began"),
            Entry::Ended { term, .. } => format!("{term:020}-ended"),
        }
    }
}

/// Returns the masterships of a service, the newest first, at most 64: those of a log, and those that the caller has `seen` itself, in any
/// order. Entries that cannot be read, of a later version, are left out.
#[must_use]
pub fn history(log: &[String], seen: Vec<Mastership>) -> Vec<Mastership> {
    merged(log.iter().filter_map(|entry| serde_json::from_str(entry).ok()), seen)
}

fn merged(entries: impl Iterator<Item = Entry>, seen: Vec<Mastership>) -> Vec<Mastership> {
    let mut by_term: BTreeMap<u64, Mastership> = BTreeMap::new();
    for entry in entries {
        match entry {
            Entry::Began { code, address, term, at_ms } => {
                by_term.insert(term, Mastership { code, address, term, since_ms: at_ms, until_ms: None });
            }
            Entry::Ended { term, at_ms } => {
                if let Some(mastership) = by_term.get_mut(&term) {
                    mastership.until_ms.get_or_insert(at_ms);
                }
            }
        }
    }
    for own in seen {
        let mastership = by_term.entry(own.term).or_insert_with(|| own.clone());
        mastership.until_ms = mastership.until_ms.or(own.until_ms);
    }
    // A master's term ends when the next one begins, also where no agent has seen the end.
    let mut next = None;
    let mut newest_first: Vec<Mastership> = by_term.into_values().rev().collect();
    for mastership in &mut newest_first {
        mastership.until_ms = mastership.until_ms.or(next);
        next = Some(mastership.since_ms);
    }
    newest_first.truncate(KEPT);
    newest_first
}

#[cfg(test)]
mod tests {
    use super::*;

    fn began(term: u64, at_ms: u64) -> Entry {
        Entry::Began { code: format!("i{term}").into(), address: None, term, at_ms }
    }

    fn told(masterships: &[Mastership]) -> Vec<(u64, u64, Option<u64>)> {
        masterships.iter().map(|one| (one.term, one.since_ms, one.until_ms)).collect()
    }

    #[test]
    fn what_all_agents_have_seen_is_one_history() {
        let entries = [began(1, 10), Entry::Ended { term: 1, at_ms: 15 }, began(2, 20), began(5, 50)];
        let own = |term, since_ms, until_ms| Mastership { code: "x".into(), address: None, term, since_ms, until_ms };
        // This agent has seen one that it could not write down, and when another ended.
        let all = merged(entries.into_iter(), vec![own(5, 51, Some(60)), own(7, 70, None), own(1, 11, None)]);
        assert_eq!(told(&all), [(7, 70, None), (5, 50, Some(60)), (2, 20, Some(50)), (1, 10, Some(15))]);
    }

    #[test]
    fn ends_come_after_beginnings_and_before_the_next_term() {
        let mut entries =
            [began(10, 1), Entry::Ended { term: 9, at_ms: 1 }, Entry::Ended { term: 10, at_ms: 1 }, began(9, 1)];
        entries.sort_by_key(Entry::key);
        assert_eq!(
            entries,
            [began(9, 1), Entry::Ended { term: 9, at_ms: 1 }, began(10, 1), Entry::Ended { term: 10, at_ms: 1 }]
        );
    }
}
