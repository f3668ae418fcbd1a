//! Logs of a registry in memory.

use std::collections::{BTreeMap, HashMap};

use crate::log::Log;

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Logs {
    logs: HashMap<Log, Entries>,
    /// Counts the entries that were added.
    clock: u64,
}

#[derive(Debug, Default)]
struct Entries {
    by_key: BTreeMap<String, String>,
    /// When the last one was added.
    last: u64,
}

/// Logs that are kept: of services that have vanished the oldest are forgotten.
const LOGS: usize = 4096;

impl Logs {
    /// Adds an entry, unless there is one under that key.
    pub(super) fn append(&mut self, log: &Log, key: &str, entry: &str) {
        self.clock += 1;
        if !self.logs.contains_key(log) && self.logs.len() >= LOGS {
            let oldest = self.logs.iter().min_by_key(|(_, entries)| entries.last).map(|(log, _)| log.clone());
            oldest.map(|oldest| self.logs.remove(&oldest));
        }
        let entries = self.logs.entry(log.clone()).or_default();
        entries.last = self.clock;
        entries.by_key.entry(key.to_owned()).or_insert_with(|| entry.to_owned());
        if entries.by_key.len() > log.limit() {
            entries.by_key.pop_first();
        }
    }

    pub(super) fn read(&self, log: &Log) -> Vec<String> {
        self.logs.get(log).map(|entries| entries.by_key.values().cloned().collect()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_of_services_that_have_vanished_are_forgotten() {
        let mut logs = Logs::default();
        for service in 0..3 * LOGS {
            logs.append(&Log::Audit, &format!("{service:08}"), "x");
            logs.append(&Log::Masters(service.to_string().into()), "1", "x");
        }
        assert_eq!(logs.logs.len(), LOGS);
        assert_eq!(logs.read(&Log::Audit).len(), Log::Audit.limit());
    }
}
