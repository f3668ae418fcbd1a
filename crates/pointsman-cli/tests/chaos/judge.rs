//! Judges requests by what is known for certain. Pure. The rules are those of the table in `main.rs`.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::time::Duration;

use crate::history::Time;
use crate::request::{Logged, Outcome, Request, Way};
use crate::truth::{DRAIN, ELECTION, Life, Origin, Override, Registration, SETTLE, Truth};

/// Time for which bytes may be on their way to an instance that has just been killed.
const ON_THE_WAY: Duration = Duration::from_millis(100);

/// How often a proxy tries a request again, by default.
pub(crate) const RETRIES: usize = 2;

/// What is to be said of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// As it should be.
    Good,
    /// Failed, and nothing could have helped.
    Unavoidable(&'static str),
    /// Failed, and should not have; with the kind of the fault.
    Avoidable(String),
    /// Answered, but not by an instance that should have been asked.
    Violation(String),
}

/// Judges one request.
pub(crate) fn judge(truth: &Truth, request: &Request, logged: Option<&Logged>) -> Verdict {
    match &request.outcome {
        Outcome::Answered(code) => answered(truth, request, code),
        Outcome::Wrong(_) => Verdict::Violation("an answer that belongs to another request".to_owned()),
        Outcome::Refused(..) | Outcome::Broken(_) => match unavoidable(truth, request, logged) {
            Some(reason) => Verdict::Unavoidable(reason),
            None => Verdict::Avoidable(fault(truth, request, logged)),
        },
    }
}

/// Returns the ids of requests that are not idempotent and have arrived more than once, although no client has sent them twice.
pub(crate) fn twice(truth: &Truth, requests: &[Request], arrived: &HashMap<String, usize>) -> Vec<String> {
    let twice = requests.iter().filter(|request| request.is_post && arrived.get(&request.id).is_some_and(|n| *n > 1));
    // A client whose connection breaks sends it again: it cannot know better.
    twice.filter(|request| serve_was_up(truth, request)).map(|request| request.id.clone()).collect()
}

fn unavoidable(truth: &Truth, request: &Request, logged: Option<&Logged>) -> Option<&'static str> {
    let Request { start, end, .. } = *request;
    if !serve_was_up(truth, request) {
        return Some("the process serve was killed");
    }
    if truth.available(start, end).is_none() {
        return Some("no instance was available throughout");
    }
    if truth.sessions_of_few_expired(end) {
        return Some("the sessions of fewer instances than are guarded expired while the registry was away");
    }
    match &request.way {
        Way::Proxy { is_master: true, .. } if master_is_lost(truth, start, end) => {
            Some("the master was lost, and no other could be known yet")
        }
        Way::Proxy { .. } if post_was_hit(truth, request, logged) => {
            Some("a POST was with an instance that was killed or stopped")
        }
        Way::Proxy { is_master: false, .. } if too_many_were_bad(truth, request, logged) => {
            Some("more dead instances may have been listed than a request has retries")
        }
        Way::Proxy { .. } | Way::Agent { picked: None, .. } => None,
        Way::Agent { picked: Some((code, port)), .. } => {
            let picked = truth.life(code, Some(*port), start, end)?;
            picked_was_hit(truth, request, picked)
                .then_some("the picked instance had died, and that could not be known yet")
        }
    }
}

fn serve_was_up(truth: &Truth, request: &Request) -> bool {
    let serve = match request.way {
        Way::Proxy { serve, .. } => serve,
        Way::Agent { .. } => crate::serves::AGENT,
    };
    truth.serves.get(serve).is_none_or(|up| up.throughout(request.start, request.end, |up| up))
}

/// Whom the request was sent to last.
fn asked<'a>(truth: &'a Truth, request: &Request, logged: Option<&Logged>) -> Option<&'a Life> {
    match (&request.way, logged) {
        (Way::Agent { picked: Some((code, port)), .. }, _) => truth.life(code, Some(*port), request.start, request.end),
        (_, Some(Logged { code: Some(code), port, .. })) => truth.life(code, *port, request.start, request.end),
        _ => None,
    }
}

/// Whether one who was master went down or was stopped, and the registry cannot have made another master yet.
pub(crate) fn master_is_lost(truth: &Truth, start: Time, end: Time) -> bool {
    if truth.has_come_back(start, end) || truth.went_without_master(start, end) {
        return true;
    }
    let masters = truth.masters(start, end);
    let is_lost = |master: &&Life| {
        let was_up = master.states.throughout(start, end, |state| state.origin == Origin::Up);
        !was_up
            && match truth.unlisted_by(master, end) {
                None => true,
                // The registration around a program that has crashed deregisters it, once it has noticed.
                Some(unlisted) if truth.left_cleanly(master, end).is_some() => {
                    master.died(Time::ZERO, end).is_some() && start < unlisted
                }
                Some(unlisted) => start < unlisted + ELECTION,
            }
    };
    masters.is_empty() || masters.iter().any(is_lost)
}

/// Whether a POST was with this instance when that was killed, or was sent to it while it was stopped and nobody could know.
fn post_was_hit(truth: &Truth, request: &Request, logged: Option<&Logged>) -> bool {
    let Some(asked) = asked(truth, request, logged).filter(|_| request.is_post) else { return false };
    let from = request.start.saturating_sub(ON_THE_WAY);
    let hangs = |state: crate::truth::State| match state.origin {
        Origin::Stopped => true,
        // It goes on serving for long enough if the registry knows.
        Origin::Ending => truth.left_cleanly(asked, request.end).is_none(),
        Origin::Starting | Origin::Up | Origin::Down => false,
    };
    let hung = !asked.states.throughout(from, request.end, |state| !hangs(state));
    let may_be_listed = truth.unlisted_by(asked, request.start).is_none_or(|unlisted| request.start < unlisted);
    asked.died(from, request.end).is_some() || (hung && may_be_listed)
}

/// Whether a request has used all its retries, while more instances than that were bad and may still have been listed: when it began, or
/// by its end, if they were killed one after the other while they had it.
fn too_many_were_bad(truth: &Truth, request: &Request, logged: Option<&Logged>) -> bool {
    let bad = truth.bad_and_listed(request.start).max(truth.bad_and_listed(request.end));
    logged.is_some_and(|logged| logged.retries >= RETRIES as u64) && bad > RETRIES
}

/// Whether an instance that the agent has picked was down or stopped when it was called, and the agent could not know.
fn picked_was_hit(truth: &Truth, request: &Request, picked: &Life) -> bool {
    !picked.states.throughout(request.start, request.end, |state| state.origin == Origin::Up)
        && truth.unlisted_by(picked, request.end).is_none_or(|unlisted| request.start < unlisted)
}

fn answered(truth: &Truth, request: &Request, code: &str) -> Verdict {
    let Request { start, end, .. } = *request;
    let Some(life) = truth.life(code, None, start, end) else {
        return Verdict::Violation("an answer by an unknown instance".to_owned());
    };
    if goes_by_another_code(truth, life, start) {
        return Verdict::Good;
    }
    if is_drained(truth, code, start, end) && truth.available(start, end).is_some() {
        return Verdict::Violation("a drained instance was picked although another was available".to_owned());
    }
    if request.is_for_the_master() && !may_be_master(truth, life, start, end) && !left_untold(truth, life, start, end) {
        return Verdict::Violation("a request for the master was answered by one that is not".to_owned());
    }
    Verdict::Good
}

/// Whether an instance listens where another did that may still be listed: whoever meant that one has reached this one.
fn goes_by_another_code(truth: &Truth, life: &Life, start: Time) -> bool {
    let before = truth.lives.iter().filter(|other| other.port == life.port && other.code != life.code);
    let mut begun = before.filter(|other| other.states.at(start).is_some());
    begun.any(|other| truth.unlisted_by(other, start).is_none_or(|unlisted| start < unlisted))
}

/// Whether a code had been drained for so long that everybody must have known, and still was at the end.
pub(crate) fn is_drained(truth: &Truth, code: &str, start: Time, end: Time) -> bool {
    let Some(history) = truth.overrides.get(code) else { return false };
    history.at(start).is_some_and(|(since, set)| {
        set == Override::Drained
            && history.throughout(start, end, |set| set == Override::Drained)
            && truth.served_for(since, DRAIN).is_some_and(|known| known <= start)
    })
}

/// Whether an instance was master, or another cannot be known to be.
pub(crate) fn may_be_master(truth: &Truth, life: &Life, start: Time, end: Time) -> bool {
    if truth.has_come_back(start, end) {
        return true;
    }
    let known = |(at, ..): &&(Time, usize, u64)| truth.served_for(*at, 2 * SETTLE).is_some_and(|known| known <= start);
    let Some((last, ..)) = truth.masters.iter().rev().find(known) else { return true };
    // By its code: the view of a new life may still have its address from the one before.
    let since_then = truth.masters.iter().filter(|(at, ..)| at >= last && *at <= end + SETTLE);
    since_then.map(|(_, life, _)| &truth.lives[*life]).any(|master| master.code == life.code)
}

/// Whether an instance was told to leave so short a time ago, or so soon after, that it may have become master just before, without the time to report
/// it: also if it was only about to be registered.
pub(crate) fn left_untold(truth: &Truth, life: &Life, start: Time, end: Time) -> bool {
    let recent = life.states.changes(start.saturating_sub(SETTLE), end + SETTLE);
    let mut was = life.states.at(start.saturating_sub(SETTLE)).map(|(_, state)| state.registration);
    let left = recent.into_iter().any(|(_, state)| {
        let held = matches!(was.replace(state.registration), Some(Registration::Held | Registration::Pending));
        held && matches!(state.registration, Registration::Leaving | Registration::Lost)
    });
    let reported = truth.masters.iter().rev().find(|(at, ..)| *at <= end);
    // Only where the mastership was free: whoever reported it last was about to go as well, or the registry was away.
    left && reported.is_some_and(|(at, master, _)| {
        let held = |state: crate::truth::State| state.registration == Registration::Held;
        !truth.lives[*master].states.throughout(*at, end, held) || !truth.registry.throughout(*at, end, |serves| serves)
    })
}

/// Says what kind of fault an avoidable failure is, without numbers, so that equal ones can be counted.
fn fault(truth: &Truth, request: &Request, logged: Option<&Logged>) -> String {
    let way = match &request.way {
        Way::Proxy { is_master: true, .. } => "master route",
        Way::Proxy { .. } => "normal route",
        Way::Agent { .. } => "agent's pick",
    };
    let outcome = match &request.outcome {
        Outcome::Refused(status, Some(problem)) => format!("{status} {problem}"),
        Outcome::Refused(status, None) => status.to_string(),
        Outcome::Broken(why) => why.split(" (").next().unwrap_or_default().to_owned(),
        Outcome::Answered(_) | Outcome::Wrong(_) => String::new(),
    };
    let last = match asked(truth, request, logged) {
        Some(life) => format!("sent last to {}", condition(truth, life, request.start, request.end)),
        None => "sent to no instance".to_owned(),
    };
    let registry = truth.registry.throughout(request.start.saturating_sub(SETTLE), request.end, |serves| serves);
    let registry = if registry { "" } else { "; the registry was away" };
    let method = if request.is_post { "POST" } else { "GET" };
    format!("{way}, {method}: {outcome}; {last}{registry}")
}

/// Says in what condition an instance was.
pub(crate) fn condition(truth: &Truth, life: &Life, start: Time, end: Time) -> String {
    let Some((_, state)) = life.states.at(start) else { return "one that had not started".to_owned() };
    let changed = life.states.changes(start, end).next().is_some();
    let drained =
        truth.overrides.get(&life.code).and_then(|set| set.at(start)).is_some_and(|(_, set)| set != Override::Open);
    format!(
        "one with origin {:?}, registration {:?}{}{}",
        state.origin,
        state.registration,
        if drained { ", drained" } else { "" },
        if changed { ", which changed meanwhile" } else { "" },
    )
}
