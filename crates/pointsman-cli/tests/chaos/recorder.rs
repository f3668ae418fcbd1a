//! Writes down what happens, with times.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use crate::history::{History, Time};
use crate::truth::{Life, LifeId, Origin, Override, Registration, SETTLE, State, Truth};

/// The clock of the run, and what is known. Clones share both.
#[derive(Debug, Clone)]
pub(crate) struct Recorder {
    start: Instant,
    /// Other processes have no other clock in common with this one.
    wall: SystemTime,
    truth: Arc<Mutex<Truth>>,
}

impl Recorder {
    pub(crate) fn new(session: Duration, serves: usize) -> Self {
        let truth = Truth { session, serves: vec![History::default(); serves], ..Truth::default() };
        Self { start: Instant::now(), wall: SystemTime::now(), truth: Arc::new(Mutex::new(truth)) }
    }

    pub(crate) fn now(&self) -> Time {
        self.start.elapsed()
    }

    /// Converts a time since 1970.
    pub(crate) fn time_of(&self, since_1970: Duration) -> Time {
        (SystemTime::UNIX_EPOCH + since_1970).duration_since(self.wall).unwrap_or_default()
    }

    pub(crate) fn truth(&self) -> MutexGuard<'_, Truth> {
        self.truth.lock().unwrap()
    }

    /// Writes an action or a change into the timeline.
    pub(crate) fn note(&self, words: impl Into<String>) {
        let mut truth = self.truth();
        let now = self.now();
        truth.log.push((now, words.into()));
    }

    /// Notes that not everything is well in time.
    pub(crate) fn unrecovered(&self) {
        self.note("not everything has recovered in time");
        self.truth().unrecovered = Some(self.now());
    }

    /// Begins a life: its origin is up as soon as its registration says so.
    pub(crate) fn begin(&self, code: &str, port: u16) -> LifeId {
        let mut truth = self.truth();
        let now = self.now();
        let mut life = Life { code: code.to_owned(), port, states: History::default() };
        life.states.set(now, State { origin: Origin::Starting, registration: Registration::Pending });
        truth.lives.push(life);
        truth.log.push((now, format!("{code} starts at port {port}")));
        truth.lives.len() - 1
    }

    pub(crate) fn origin(&self, life: LifeId, origin: Origin) {
        self.change(life, |state| State { origin, ..state });
    }

    pub(crate) fn registration(&self, life: LifeId, registration: Registration) {
        self.change(life, |state| State { registration, ..state });
    }

    /// Notes what a registration has reported. A term means master.
    pub(crate) fn role(&self, life: LifeId, role: &str, term: Option<u64>) {
        {
            let mut truth = self.truth();
            let now = self.now();
            if let Some(term) = term {
                truth.masters.push((now, life, term));
            }
            let term = term.map(|term| format!(", term {term}")).unwrap_or_default();
            let words = format!("{} reports the role {role}{term}", truth.lives[life].code);
            truth.log.push((now, words));
        }
        if role != "detached" {
            self.change(life, |state| {
                let registration = match state.registration {
                    Registration::Pending | Registration::Resumed => Registration::Held,
                    other => other,
                };
                // Only one that has been checked is registered.
                let origin = if state.origin == Origin::Starting { Origin::Up } else { state.origin };
                State { origin, registration }
            });
        }
    }

    pub(crate) fn state(&self, life: LifeId) -> State {
        self.truth().lives[life].states.last().expect("a state since its beginning")
    }

    /// Whether the registry has been serving for this long.
    pub(crate) fn registry_serves_for(&self, time: Duration) -> bool {
        self.truth().registry_serves_for(time, self.now())
    }

    /// Notes that a registration which has been running again since `since` is held, once it must be, whether or not it has
    /// reported so. `false`: ask again later.
    pub(crate) fn settle(&self, life: LifeId, since: Time) -> bool {
        if self.state(life).registration != Registration::Resumed {
            return true;
        }
        let settled = {
            let truth = self.truth();
            truth.served_for(since, truth.session + SETTLE).is_some_and(|settled| settled <= self.now())
        };
        if settled {
            self.registration(life, Registration::Held);
        }
        settled
    }

    /// Whether an instance is up and registered.
    pub(crate) fn is_well(&self, life: LifeId) -> bool {
        let state = self.state(life);
        state.origin == Origin::Up && state.registration == Registration::Held
    }

    fn change(&self, life: LifeId, to: impl Fn(State) -> State) {
        let mut truth = self.truth();
        let now = self.now();
        let Truth { lives, log, .. } = &mut *truth;
        let life = &mut lives[life];
        let before = life.states.last().expect("a state since its beginning");
        let after = to(before);
        life.states.set(now, after);
        if before.origin != after.origin {
            log.push((now, format!("{} origin: {:?} → {:?}", life.code, before.origin, after.origin)));
        }
        if before.registration != after.registration {
            let words = format!("{} registration: {:?} → {:?}", life.code, before.registration, after.registration);
            log.push((now, words));
        }
    }

    pub(crate) fn registry(&self, serves: bool, words: &str) {
        let mut truth = self.truth();
        let now = self.now();
        truth.registry.set(now, serves);
        truth.log.push((now, format!("registry: {words}")));
    }

    pub(crate) fn serve(&self, number: usize, serves: bool, words: &str) {
        let mut truth = self.truth();
        let now = self.now();
        truth.serves[number].set(now, serves);
        truth.log.push((now, format!("serve {number}: {words}")));
    }

    pub(crate) fn set_override(&self, code: &str, set: Override, words: &str) {
        let mut truth = self.truth();
        let now = self.now();
        truth.overrides.entry(code.to_owned()).or_default().set(now, set);
        truth.log.push((now, format!("{code}: {words}")));
    }
}
