//! The highest term of each service that a memory registry has granted, or accepted since.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use pointsman_core::{StaleTerm, Term};

/// Terms by service. Those of services that have vanished are forgotten in the end: then of each such service no lower term is accepted
/// than the highest that was granted to any of them. That refuses a master that vanished long ago, and never accepts a deposed one.
#[derive(Debug, Default)]
pub(super) struct Terms {
    by_service: HashMap<Arc<str>, Highest>,
    /// The services that have vanished, the longest ago first; some may be back.
    vanished: VecDeque<Arc<str>>,
    /// The highest term that was granted to a service of which it is forgotten.
    floor: u64,
}

#[derive(Debug, Clone, Copy)]
struct Highest {
    term: Term,
    /// Otherwise it is what somebody has offered: any number.
    is_granted: bool,
}

/// Maximum number of services of which a term is remembered for nothing but that it was checked.
const CHECKED: usize = 65_536;
/// Maximum number of vanished services of which the term that was granted is remembered.
const VANISHED: usize = 4096;

impl Terms {
    /// Accepts a term, unless a higher one was granted or accepted. `None`: the terms of too many services are remembered.
    pub(super) fn check(&mut self, service: &str, term: Term) -> Option<Result<Term, StaleTerm>> {
        let known = self.by_service.get(service);
        let seen = known.map_or(Term(self.floor), |highest| highest.term);
        if seen > term {
            return Some(Err(StaleTerm { offered: term, seen }));
        }
        match known {
            Some(_) if seen == term => return Some(Ok(term)),
            None if self.by_service.len() >= CHECKED => return None,
            _ => {}
        }
        self.by_service.insert(service.into(), Highest { term, is_granted: false });
        Some(Ok(term))
    }

    pub(super) fn grant(&mut self, service: &Arc<str>, term: Term) {
        self.by_service.insert(service.clone(), Highest { term, is_granted: true });
    }

    /// A service has vanished. `is_there` tells of others whether they are back.
    pub(super) fn retire(&mut self, service: &Arc<str>, is_there: impl Fn(&str) -> bool) {
        self.vanished.push_back(service.clone());
        if self.vanished.len() <= VANISHED {
            return;
        }
        let Some(oldest) = self.vanished.pop_front().filter(|service| !is_there(service)) else { return };
        if let Some(highest) = self.by_service.get(&oldest).filter(|highest| highest.is_granted) {
            self.floor = self.floor.max(highest.term.0);
            self.by_service.remove(&oldest);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_service.len() + self.vanished.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deposed_master_is_refused_also_when_its_service_is_forgotten() {
        let mut terms = Terms::default();
        for number in 1..=3 * VANISHED as u64 {
            let service: Arc<str> = format!("service-{number}").into();
            terms.grant(&service, Term(number * 10));
            terms.retire(&service, |_| false);
            assert!(terms.check(&service, Term(number * 10)).unwrap().is_ok());
        }
        assert!(terms.len() <= 2 * VANISHED + 1, "{}", terms.len());
        assert!(terms.check("service-1", Term(9)).unwrap().is_err());
        let stale = terms.check("never", Term(1)).unwrap().unwrap_err();
        assert_eq!(stale.seen, Term(2 * VANISHED as u64 * 10));
        assert!(terms.check("never", Term(u64::MAX)).unwrap().is_ok());
        // What somebody has only offered lifts nothing for others.
        let service: Arc<str> = "never".into();
        (0..=VANISHED).for_each(|_| terms.retire(&service, |_| false));
        assert!(terms.check("another", Term(3 * VANISHED as u64 * 10)).unwrap().is_ok());
        assert!(terms.check("never", Term(1)).unwrap().is_err());
    }
}
