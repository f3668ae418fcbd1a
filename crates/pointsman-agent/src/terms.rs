//! The highest term seen of each service: refuses what a deposed master still writes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use pointsman_core::{Term, TermGuard};

use crate::feed::Feed;
use crate::problem::{Kind, Problem};

/// A guard for each service whose terms are checked here.
#[derive(Debug, Default)]
pub(crate) struct Terms {
    guards: Mutex<HashMap<Arc<str>, TermGuard>>,
}

/// So many services: a guard may not be forgotten.
const SERVICES: usize = 65_536;

impl Terms {
    /// Lets a term pass if no higher one has been seen: here, or as the term of a master.
    pub(crate) fn check(&self, feed: &Feed, service: &str, term: Term) -> Result<Term, Problem> {
        let of_master = feed.find(service).and_then(|topic| topic.snapshot().master()?.role.term());
        let mut guards = self.guards.lock().unwrap_or_else(PoisonError::into_inner);
        if !guards.contains_key(service) {
            if guards.len() >= SERVICES {
                let detail = format!("terms of {SERVICES} services are checked here, and of no more");
                return Err(Problem::new(Kind::TooMany, detail));
            }
            guards.insert(service.into(), TermGuard::new());
        }
        let guard = &guards[service];
        if let Some(of_master) = of_master {
            // A lower one than was seen already is no news.
            let _ = guard.check(of_master);
        }
        match guard.check(term) {
            Ok(()) => Ok(guard.highest().unwrap_or(term)),
            Err(stale) => Err(Problem::new(Kind::StaleTerm, format!("service {service}: {stale}"))),
        }
    }
}
