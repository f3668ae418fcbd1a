use super::*;
use crate::history::History;
use crate::truth::{Life, Origin, Registration, State};

fn seconds(seconds: u64) -> Time {
    Duration::from_secs(seconds)
}

/// A service and a relay that are well from the beginning.
fn world() -> Truth {
    let mut truth = Truth { session: seconds(3), serves: vec![History::default()], ..Truth::default() };
    truth.registry.set(seconds(0), true);
    truth.serves[0].set(seconds(0), true);
    let mut states = History::default();
    states.set(seconds(0), State { origin: Origin::Up, registration: Registration::Held });
    truth.lives.push(Life { code: "s".to_owned(), port: 0, states });
    truth
}

fn sent(is_request: bool, end: u64, outcome: Result<(), Failed>) -> Sent {
    Sent { id: "1".to_owned(), is_request, start: seconds(10), end: seconds(end), outcome }
}

fn failed(is_silence: bool) -> Result<(), Failed> {
    Err(Failed { is_silence, why: "why".to_owned() })
}

/// Whether it is a fault, and then whether that was avoidable.
fn verdict(truth: &Truth, sent: &Sent, arrived: &[&str]) -> Option<bool> {
    let arrived = arrived.iter().map(|id| (*id).to_owned()).collect();
    judge(truth, sent, &arrived).map(|(_, is_avoidable)| is_avoidable)
}

#[test]
fn an_error_is_avoidable_while_a_service_and_a_relay_are_there() {
    let mut truth = world();
    assert_eq!(verdict(&truth, &sent(true, 11, Ok(())), &[]), None);
    assert_eq!(verdict(&truth, &sent(true, 11, failed(false)), &[]), Some(true));
    truth.serves[0].set(Duration::from_millis(10_500), false);
    assert_eq!(verdict(&truth, &sent(true, 11, failed(false)), &[]), Some(false));
    let mut truth = world();
    truth.lives[0].states.set(seconds(9), State { origin: Origin::Down, registration: Registration::Lost });
    assert_eq!(verdict(&truth, &sent(true, 11, failed(false)), &[]), Some(false));
}

#[test]
fn silence_is_avoidable_once_there_was_time_enough() {
    let mut truth = world();
    assert_eq!(verdict(&truth, &sent(true, 35, failed(true)), &[]), Some(true));
    // From 10 s to 17 s, and from 28 s on, are both too short.
    truth.serves[0].set(seconds(17), false);
    truth.serves[0].set(seconds(28), true);
    assert_eq!(verdict(&truth, &sent(true, 35, failed(true)), &[]), Some(false));
    assert_eq!(verdict(&truth, &sent(true, 38, failed(true)), &[]), Some(true));
}

#[test]
fn what_is_acknowledged_has_to_arrive() {
    let mut truth = world();
    assert_eq!(verdict(&truth, &sent(false, 11, Ok(())), &["1"]), None);
    assert_eq!(verdict(&truth, &sent(false, 11, Ok(())), &["2"]), Some(true));
    truth.lives.clear();
    assert_eq!(verdict(&truth, &sent(false, 11, Ok(())), &["2"]), Some(false), "a dead letter");
}
