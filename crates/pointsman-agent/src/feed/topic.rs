//! One service: what it is now, what happened to it last, who was master.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::{BufMut as _, Bytes, BytesMut};
use pointsman_core::{Difference, Snapshot};
use pointsman_registry::masters::Mastership;
use pointsman_registry::wire::{InstanceJson, ProblemJson};
use serde::Serialize;
use tokio::sync::watch;

use super::budget::Kept;
use super::group::{Group, Shown};
use super::ring::Ring;

/// What there is to say of one service.
#[derive(Debug)]
pub(crate) struct Topic {
    service: Arc<str>,
    /// The revision at which it was made, without anything in it.
    first: u64,
    state: RwLock<State>,
    revision: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    snapshot: Arc<Snapshot>,
    /// That of the last change that can be seen.
    revision: u64,
    /// When each instance was first seen.
    since: HashMap<Arc<str>, u64>,
    ring: Ring,
    masters: VecDeque<Mastership>,
    /// The answers to the usual questions, encoded when first asked for.
    bodies: Bodies,
}

/// Encoded, of the present snapshot.
#[derive(Debug, Default)]
struct Bodies {
    working: OnceLock<Bytes>,
    every: OnceLock<Bytes>,
    whole: OnceLock<Bytes>,
}

/// A body, and the snapshot that it shows.
#[derive(Debug)]
pub(crate) struct Shot {
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) revision: u64,
    pub(crate) body: Bytes,
}

/// So many groups of each service are kept.
const KEPT: usize = 256;
/// So many masters of each service are remembered.
const MASTERS: usize = 64;

impl Topic {
    /// A service that nobody has registered under, at a revision.
    pub(crate) fn new(service: Arc<str>, revision: u64) -> Self {
        let mut ring = Ring::new(KEPT);
        ring.start(revision);
        let state = State {
            snapshot: Arc::new(Snapshot::empty(service.clone()).at_revision(revision)),
            revision,
            since: HashMap::new(),
            ring,
            masters: VecDeque::new(),
            bodies: Bodies::default(),
        };
        Self { service, first: revision, state: RwLock::new(state), revision: watch::Sender::new(revision) }
    }

    pub(crate) fn service(&self) -> &Arc<str> {
        &self.service
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        // What is written is whole at each step: the feed's one task is the only writer.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// What there is from the first: nothing has happened yet.
    pub(super) fn start(&self, snapshot: Arc<Snapshot>, at: u64) {
        let revision = snapshot.revision();
        let mut state = self.write();
        state.ring.start(revision);
        state.since = snapshot.instances().iter().map(|instance| (instance.code.clone(), at)).collect();
        state.note_master(&snapshot, at);
        state.snapshot = snapshot;
        state.revision = revision;
        drop(state);
        self.revision.send_replace(revision);
    }

    /// Takes a newer snapshot in; what has changed, if anything has. `has_left` tells of a code that is gone whether it left cleanly.
    pub(super) fn advance(
        &self,
        snapshot: Arc<Snapshot>,
        has_left: impl Fn(&str) -> bool,
        at: u64,
        stamp: u64,
    ) -> Option<Arc<Group>> {
        let revision = snapshot.revision();
        let mut state = self.write();
        let before = state.snapshot.clone();
        for difference in before.differences(&snapshot) {
            if let Difference::Joined(instance) = difference {
                state.since.insert(instance.code.clone(), at);
            }
        }
        let group = Group::between(&before, &snapshot, &state.since, has_left, at);
        for difference in before.differences(&snapshot) {
            if let Difference::Left(instance) = difference {
                state.since.remove(&instance.code);
            }
        }
        state.note_master(&snapshot, at);
        state.snapshot = snapshot;
        state.bodies = Bodies::default();
        let group = Arc::new(group?);
        state.revision = revision;
        state.ring.push(revision, stamp, group.clone());
        drop(state);
        self.revision.send_replace(revision);
        Some(group)
    }

    /// How much is remembered of what happened to it.
    pub(super) fn kept(&self) -> Kept {
        self.read().ring.held()
    }

    /// Forgets what happened the longest ago.
    pub(super) fn forget_oldest(&self) {
        self.write().ring.forget_oldest();
    }

    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.read().snapshot.clone()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.read().snapshot.is_empty()
    }

    /// The revision, now and as it rises.
    pub(crate) fn revision(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// The revision, if nothing is known to have happened to the service.
    pub(crate) fn nothing_yet(&self) -> Option<u64> {
        let state = self.read();
        (state.revision == self.first && state.snapshot.is_empty()).then_some(self.first)
    }

    /// What happened after a revision; `None` if that is not known any more.
    pub(crate) fn after(&self, revision: u64) -> Option<Vec<(u64, Arc<Group>)>> {
        self.read().ring.after(revision)
    }

    /// The masters, the newest first.
    pub(crate) fn masters(&self) -> Vec<Mastership> {
        self.read().masters.iter().rev().cloned().collect()
    }

    /// The list of instances that take work.
    pub(crate) fn working(&self) -> Shot {
        self.shot(|bodies| &bodies.working, State::working)
    }

    /// The list of all instances, and of what is broken.
    pub(crate) fn every(&self) -> Shot {
        self.shot(|bodies| &bodies.every, State::every)
    }

    /// Everything, as the data of a `snapshot` event.
    pub(crate) fn whole(&self) -> Shot {
        self.shot(|bodies| &bodies.whole, State::whole)
    }

    fn shot(&self, which: impl Fn(&Bodies) -> &OnceLock<Bytes>, of: impl Fn(&State) -> Bytes) -> Shot {
        let state = self.read();
        let body = which(&state.bodies).get_or_init(|| of(&state)).clone();
        Shot { snapshot: state.snapshot.clone(), revision: state.revision, body }
    }
}

impl State {
    fn working(&self) -> Bytes {
        let shown = self.snapshot.instances().iter().filter(|instance| instance.takes_work());
        json(&shown.map(|instance| InstanceJson::new(instance)).collect::<Vec<_>>())
    }

    fn every(&self) -> Bytes {
        let service = self.snapshot.service();
        let shown = self.snapshot.instances().iter().map(|instance| json(&Shown::new(instance, &self.since)));
        let problems = self.snapshot.problems().iter().map(|problem| json(&InstanceJson::problem(service, problem)));
        let mut list = BytesMut::new();
        for item in shown.chain(problems) {
            list.put_u8(if list.is_empty() { b'[' } else { b',' });
            list.put_slice(&item);
        }
        if list.is_empty() {
            list.put_u8(b'[');
        }
        list.put_u8(b']');
        list.freeze()
    }

    fn whole(&self) -> Bytes {
        #[derive(Serialize)]
        struct Whole<'a> {
            service: &'a str,
            revision: u64,
            guarded: bool,
            master: Option<&'a str>,
            instances: Vec<Shown<'a>>,
            problems: Vec<ProblemJson<'a>>,
        }
        let snapshot = &self.snapshot;
        json(&Whole {
            service: snapshot.service(),
            revision: self.revision,
            guarded: snapshot.is_guarded(),
            master: snapshot.master().map(|master| &*master.code),
            instances: snapshot.instances().iter().map(|instance| Shown::new(instance, &self.since)).collect(),
            problems: snapshot.problems().iter().map(ProblemJson::from).collect(),
        })
    }

    fn note_master(&mut self, snapshot: &Snapshot, at: u64) {
        let now = snapshot.master().and_then(|master| Some((master, master.role.term()?.0)));
        let stays =
            |mastership: &Mastership| now.is_some_and(|(m, term)| m.code == mastership.code && term == mastership.term);
        match self.masters.back_mut() {
            Some(last) if last.until_ms.is_none() && stays(last) => return,
            Some(last) => {
                last.until_ms.get_or_insert(at);
            }
            None => {}
        }
        if let Some((master, term)) = now {
            if self.masters.len() == MASTERS {
                self.masters.pop_front();
            }
            let (code, address) = (master.code.clone(), master.address.clone());
            self.masters.push_back(Mastership { code, address, term, since_ms: at, until_ms: None });
        }
    }
}

fn json(value: &impl Serialize) -> Bytes {
    // Strings and numbers under string keys: there is nothing in it that JSON cannot say.
    serde_json::to_vec(value).unwrap_or_default().into()
}
