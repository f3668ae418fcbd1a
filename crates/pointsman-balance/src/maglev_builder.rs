//! When the table of the hashes is built, and by whom.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::endpoint::Shared;
use crate::maglev::Maglev;

/// The members of a table with their weights, each above 0, in the order of their codes.
pub(crate) type Members = Box<[(Arc<str>, u32)]>;

/// A table with the members that it was built for.
#[derive(Debug)]
pub(crate) struct Built {
    pub(crate) maglev: Maglev,
    pub(crate) members: Members,
}

impl Built {
    fn new(members: Members) -> Arc<Self> {
        let named: Vec<(&str, u32)> = members.iter().map(|(code, weight)| (&**code, *weight)).collect();
        Arc::new(Self { maglev: Maglev::new(&named), members })
    }
}

/// Builds the tables of one balancer, and keeps the newest.
///
/// A large table takes some 20 ms, which is too long for a pick to wait for at each change. It is built by a thread that lives for as long as
/// there is something to build, and meanwhile the newest one is used.
#[derive(Debug, Default)]
pub(crate) struct MaglevBuilder {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    built: Option<Arc<Built>>,
    /// The members of the table that the thread builds next.
    ordered: Option<Members>,
    /// Counts what has made earlier orders pointless.
    superseded: u64,
    /// The thread lives.
    is_building: bool,
}

/// How long the thread rests after each table, as a multiple of the time that it took: so it takes a twentieth of a core at most, however
/// often the instances change.
const REST: u32 = 20;
const LONGEST_REST: Duration = Duration::from_secs(1);

impl MaglevBuilder {
    /// The newest table.
    pub(crate) fn newest(&self) -> Option<Arc<Built>> {
        self.lock().built.clone()
    }

    /// Cancels the order, if there is one: the newest table has the right members.
    pub(crate) fn cancel(&self) {
        let mut state = self.lock();
        if state.is_building {
            state.ordered = None;
            state.superseded += 1;
        }
    }

    /// Builds a table now.
    pub(crate) fn build(&self, members: Members) -> Arc<Built> {
        let built = Built::new(members);
        let mut state = self.lock();
        state.ordered = None;
        state.superseded += 1;
        state.built = Some(built.clone());
        built
    }

    /// Has a table built soon, instead of what has been ordered before; then the epoch of `shared` advances.
    pub(crate) fn order(self: &Arc<Self>, members: Members, shared: &Arc<Shared>) {
        let mut state = self.lock();
        state.ordered = Some(members);
        if std::mem::replace(&mut state.is_building, true) {
            return;
        }
        drop(state);
        let (this, of) = (Arc::downgrade(self), Arc::downgrade(shared));
        // Nobody waits for the thread: it ends once the balancer is gone.
        let build = move || {
            while let Some((this, shared)) = this.upgrade().zip(of.upgrade()) {
                let Some(rest) = this.build_ordered(&shared) else { return };
                drop((this, shared));
                std::thread::sleep(rest);
            }
        };
        if std::thread::Builder::new().name("pointsman-maglev".to_owned()).spawn(build).is_err() {
            // The system has no room for a thread, so the pick waits.
            while self.build_ordered(shared).is_some() {}
        }
    }

    /// Builds what has been ordered. How long to rest then; `None` where nothing was left to do.
    fn build_ordered(&self, shared: &Shared) -> Option<Duration> {
        let mut state = self.lock();
        let Some(members) = state.ordered.take() else {
            state.is_building = false;
            return None;
        };
        let superseded = state.superseded;
        drop(state);
        let start = Instant::now();
        let built = Built::new(members);
        let took = start.elapsed();
        let mut state = self.lock();
        if state.superseded == superseded {
            state.built = Some(built);
            drop(state);
            shared.epoch.advance();
        }
        Some((took * REST).min(LONGEST_REST))
    }

    /// No thread builds what is ordered from now on, as if it were at work all the time.
    #[cfg(test)]
    pub(crate) fn hold(&self) {
        self.lock().is_building = true;
    }

    /// Builds what has been ordered meanwhile.
    #[cfg(test)]
    pub(crate) fn go_on(&self, shared: &Shared) {
        while self.build_ordered(shared).is_some() {}
        self.hold();
    }

    #[cfg(test)]
    pub(crate) fn is_building(&self) -> bool {
        self.lock().is_building
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each step leaves the state whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
