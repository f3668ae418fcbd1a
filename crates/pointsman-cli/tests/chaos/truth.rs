//! What the run knows of the world for certain: it has started, stopped and killed every process itself.
//!
//! Pure: times are arguments, so that the rules built on this are tested without processes.

use std::collections::HashMap;
use std::time::Duration;

use crate::history::{History, Time};

/// Number of instances from which on a service is guarded.
const GUARDED: usize = 5;
/// Time that a change in the registry may take to reach those who follow it, while the registry serves.
pub(crate) const SETTLE: Duration = Duration::from_secs(1);

/// Time that the election of a new master may take once the old one has been unlisted.
pub(crate) const ELECTION: Duration = Duration::from_secs(2);

/// Time after which a drained instance must not be picked any more.
pub(crate) const DRAIN: Duration = Duration::from_secs(2);

/// The program that answers requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// It may not listen yet.
    Starting,
    Up,
    /// By SIGSTOP: the kernel still accepts connections.
    Stopped,
    /// It has been sent SIGTERM, or may have been by the registration around it: it goes on for a while.
    Ending,
    /// Killed, or ended by itself.
    Down,
}

/// The process `pointsman register` of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Registration {
    /// It has not reported a role yet.
    Pending,
    /// It runs, and has reported the role of master or normal.
    Held,
    /// By SIGSTOP.
    Stopped,
    /// By SIGCONT; its session may have expired meanwhile.
    Resumed,
    /// It has been sent SIGTERM, and still runs.
    Leaving,
    /// It has ended by itself, deregistered if the registry was there.
    Left,
    /// Killed: its session remains until it times out.
    Lost,
}

/// Both processes of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) origin: Origin,
    pub(crate) registration: Registration,
}

/// What an operator has set for a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Override {
    /// Nothing that keeps requests away.
    Open,
    /// A command that drains or ends a drain is running, or has failed.
    Changing,
    /// Drained, or with weight 0: the command has succeeded.
    Drained,
}

/// One run of an origin with its registration: one code at one address.
#[derive(Debug, Clone)]
pub(crate) struct Life {
    pub(crate) code: String,
    pub(crate) port: u16,
    pub(crate) states: History<State>,
}

impl Life {
    /// Returns when the origin has gone down within these times without having been told to: killed, or crashed.
    pub(crate) fn died(&self, from: Time, to: Time) -> Option<Time> {
        let mut before = self.states.at(from).map(|(_, state)| state.origin);
        self.states.changes(from, to).find_map(|(at, State { origin, .. })| {
            let was = before.replace(origin);
            (origin == Origin::Down && !matches!(was, Some(Origin::Ending | Origin::Down))).then_some(at)
        })
    }
}

/// Index into [`Truth::lives`].
pub(crate) type LifeId = usize;

/// Everything that is known, with times.
#[derive(Debug, Clone, Default)]
pub(crate) struct Truth {
    /// Timeout of the sessions with the registry.
    pub(crate) session: Duration,
    pub(crate) lives: Vec<Life>,
    /// Whether the registry serves.
    pub(crate) registry: History<bool>,
    pub(crate) overrides: HashMap<String, History<Override>>,
    /// Whether each process `serve` serves.
    pub(crate) serves: Vec<History<bool>>,
    /// Every report of a mastership, with its term, oldest first.
    pub(crate) masters: Vec<(Time, LifeId, u64)>,
    /// When the time was over within which all instances had to be up and registered after the last action, if they were not.
    pub(crate) unrecovered: Option<Time>,
    /// Actions and changes in words, for timelines.
    pub(crate) log: Vec<(Time, String)>,
}

impl Truth {
    /// Returns the end of the first time of this length, beginning at `from` or later, during which the registry serves. `None`: not yet.
    pub(crate) fn served_for(&self, from: Time, length: Duration) -> Option<Time> {
        let up = self.registry.intervals(|serves| serves);
        let ends = up.into_iter().map(|(since, until)| (since.max(from) + length, until));
        ends.filter(|(end, until)| until.is_none_or(|until| *end <= until)).map(|(end, _)| end).next()
    }

    /// Whether the registry has been serving for this long.
    pub(crate) fn registry_serves_for(&self, time: Duration, now: Time) -> bool {
        self.registry.at(now).is_some_and(|(since, serves)| serves && since + time <= now)
    }

    /// Returns the latest time of which everybody must know all that was in the registry then, at `now`.
    pub(crate) fn known_at(&self, now: Time) -> Option<Time> {
        let up = self.registry.intervals(|serves| serves);
        let ends = up.into_iter().rev().map(|(since, until)| (since, until.map_or(now, |until| until.min(now))));
        ends.filter(|(since, end)| *end >= *since + SETTLE).map(|(_, end)| end - SETTLE).next()
    }

    /// Whether the registry was away for as long as a session lasts until a moment before `end`, and so few instances were registered then that
    /// a loss of them all is believed.
    pub(crate) fn sessions_of_few_expired(&self, end: Time) -> bool {
        let away = self.registry.intervals(|serves| !serves);
        away.into_iter().filter_map(|(since, until)| Some((since, until?))).any(|(since, until)| {
            let held =
                |life: &&Life| life.states.at(since).is_some_and(|(_, state)| state.registration == Registration::Held);
            let is_just_over = until <= end && end < until + SETTLE;
            is_just_over && until >= since + self.session && self.lives.iter().filter(held).count() < GUARDED
        })
    }

    /// Whether an instance could have answered anything that was asked within these times: it was up, registered and open for
    /// requests, and everybody must have known that.
    pub(crate) fn is_available(&self, life: &Life, start: Time, end: Time) -> bool {
        let Some(known) = self.known_at(start) else { return false };
        let serves = |state: State| state.origin == Origin::Up && state.registration == Registration::Held;
        let open = self.overrides.get(&life.code);
        life.states.throughout(known, end, serves)
            && open.is_none_or(|history| {
                let from_the_beginning = history.at(known).is_none();
                (from_the_beginning || history.throughout(known, end, |set| set == Override::Open))
                    && history.changes(known, end).all(|(_, set)| set == Override::Open)
            })
    }

    /// Returns an instance that could have answered, if there was any.
    pub(crate) fn available(&self, start: Time, end: Time) -> Option<&Life> {
        self.lives.iter().find(|life| self.is_available(life, start, end))
    }

    /// Returns the life with this code at this port, the latest that had been registered at `start`, or else one that had begun by `end`.
    pub(crate) fn life(&self, code: &str, port: Option<u16>, start: Time, end: Time) -> Option<&Life> {
        let fits = |life: &&Life| life.code == code && port.is_none_or(|port| life.port == port);
        let was_registered = |life: &&Life| {
            let held = life.states.intervals(|state| state.registration == Registration::Held);
            held.first().is_some_and(|(since, _)| *since <= start)
        };
        let has_begun = |life: &&Life| life.states.at(end).is_some();
        let mut lives = self.lives.iter().rev().filter(fits);
        lives.clone().find(was_registered).or_else(|| lives.find(has_begun))
    }

    /// Returns by when everybody must have known, at `time`, that an instance is not registered any more. `None`: it may
    /// still be registered, for all that anybody can know.
    pub(crate) fn unlisted_by(&self, life: &Life, time: Time) -> Option<Time> {
        let over = |state: State| {
            matches!(state.registration, Registration::Stopped | Registration::Left | Registration::Lost)
        };
        if let Some(left) = self.left_cleanly(life, time) {
            return self.served_for(left, SETTLE);
        }
        let (since, until) = life.states.intervals(over).into_iter().rev().find(|(since, _)| *since <= time)?;
        if until.is_some_and(|until| until <= time) {
            return None;
        }
        self.served_for(since, self.session).map(|expired| expired + 2 * SETTLE)
    }

    /// Returns when an instance was told to leave, if it has by `time`, and could tell the registry so: one that had not registered anew
    /// after its registration was killed cannot, and what was killed remains until its session has expired.
    pub(crate) fn left_cleanly(&self, life: &Life, time: Time) -> Option<Time> {
        let leaves = |state: State| matches!(state.registration, Registration::Leaving | Registration::Left);
        let (since, until) = life.states.intervals(leaves).into_iter().rev().find(|(since, _)| *since <= time)?;
        let left = life.states.changes(since, time).find(|(_, state)| state.registration == Registration::Left);
        // That takes no time to speak of, where the registry is there.
        let told = left.map_or(time, |(at, _)| at).min(since + SETTLE);
        let lasts = until.is_none_or(|until| until > time);
        let was = life.states.at(since.saturating_sub(Duration::from_nanos(1))).map(|(_, state)| state.registration);
        let has_been_lost = !life.states.intervals(|state| state.registration == Registration::Lost).is_empty();
        let holds_nothing = has_been_lost && matches!(was, Some(Registration::Pending | Registration::Lost));
        let is_clean = lasts && !holds_nothing && self.registry.throughout(since, told, |serves| serves);
        is_clean.then_some(since)
    }

    /// Whether the registry came back less than [`ELECTION`] before `time`, or while something was under way since `from`.
    pub(crate) fn has_come_back(&self, from: Time, time: Time) -> bool {
        let away = self.registry.intervals(|serves| !serves);
        away.into_iter().filter_map(|(_, until)| until).any(|until| until <= time && from < until + ELECTION)
    }

    /// Whether the registry was away, and may have gone before there was another master: the last one that is known was drained, or its
    /// registration was killed or stopped.
    pub(crate) fn went_without_master(&self, start: Time, end: Time) -> bool {
        let is_away = !self.registry.throughout(start, end, |serves| serves);
        let last = self.masters.iter().rev().find(|(at, ..)| *at <= end).map(|(_, life, _)| &self.lives[*life]);
        let is_drained = |life: &Life| {
            self.overrides.get(&life.code).and_then(|set| set.at(end)).is_some_and(|(_, set)| set != Override::Open)
        };
        let is_lost = |life: &Life| {
            let lost = [Registration::Lost, Registration::Pending, Registration::Stopped];
            life.states.at(end).is_some_and(|(_, state)| lost.contains(&state.registration))
        };
        is_away && last.is_some_and(|last| is_drained(last) || is_lost(last))
    }

    /// Returns those who were master, for all that anybody can know, at some time between the two.
    pub(crate) fn masters(&self, start: Time, end: Time) -> Vec<&Life> {
        let known = self.known_at(start).unwrap_or_default();
        let first = self.masters.iter().rposition(|(at, ..)| *at <= known).unwrap_or(0);
        let until_then = self.masters[first.min(self.masters.len())..].iter().take_while(|(at, ..)| *at <= end);
        until_then.map(|(_, life, _)| &self.lives[*life]).collect()
    }

    /// Counts the instances that are dead or do not answer at `now`, and may still be listed.
    pub(crate) fn bad_and_listed(&self, now: Time) -> usize {
        let bad = |life: &&Life| {
            let held = life.states.intervals(|state| state.registration == Registration::Held);
            let was_listed = held.iter().any(|(since, _)| *since <= now);
            let origin = life.states.at(now).map(|(_, state)| state.origin);
            origin.is_some_and(|origin| origin != Origin::Up)
                && was_listed
                && self.unlisted_by(life, now).is_none_or(|unlisted| now < unlisted)
        };
        self.lives.iter().filter(bad).count()
    }
}
