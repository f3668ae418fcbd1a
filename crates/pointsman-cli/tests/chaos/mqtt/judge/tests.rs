use super::*;
use crate::history::History;
use crate::truth::{Life, Origin, Override, Registration, State, Truth};

fn seconds(seconds: u64) -> Time {
    Duration::from_secs(seconds)
}

/// Two services, of which `m` is master, and two relays, that are well from the beginning.
fn world() -> Evidence {
    let mut truth = Truth { session: seconds(3), serves: vec![History::default(); 2], ..Truth::default() };
    truth.registry.set(seconds(0), true);
    truth.serves.iter_mut().for_each(|serve| serve.set(seconds(0), true));
    for code in ["m", "s"] {
        let mut states = History::default();
        states.set(seconds(0), State { origin: Origin::Up, registration: Registration::Held });
        truth.lives.push(Life { code: code.to_owned(), port: 0, states });
    }
    truth.masters.push((seconds(0), 0, 1));
    Evidence { truth, ..Evidence::default() }
}

/// A message from 10 s on.
fn sent(end: u64, outcome: Outcome) -> Sent {
    let is_request = !matches!(outcome, Outcome::Taken);
    let (start, end) = (seconds(10), seconds(end));
    Sent { id: "1".to_owned(), is_request, is_for_the_master: false, start, end, outcome }
}

fn for_the_master(end: u64, outcome: Outcome) -> Sent {
    Sent { is_for_the_master: true, ..sent(end, outcome) }
}

fn failed() -> Outcome {
    Outcome::Failed("why".to_owned())
}

fn silence() -> Outcome {
    Outcome::Silence("why".to_owned())
}

fn answered(code: &str) -> Outcome {
    Outcome::Answered(code.to_owned())
}

/// Whether it is a fault, and then whether that was avoidable.
fn verdict(world: &Evidence, sent: &Sent) -> Option<bool> {
    world.judge(sent).map(|fault| fault.is_avoidable)
}

fn arrives(world: &mut Evidence, code: &str, at: u64) {
    world.arrivals.insert("1".to_owned(), vec![Arrival { at: seconds(at), code: code.to_owned() }]);
}

#[test]
fn an_error_is_avoidable_while_a_service_and_a_relay_are_there() {
    let mut world = world();
    assert_eq!(verdict(&world, &sent(11, answered("s"))), None);
    assert_eq!(verdict(&world, &sent(11, failed())), Some(true));
    world.truth.serves[0].set(Duration::from_millis(10_500), false);
    assert_eq!(verdict(&world, &sent(11, failed())), Some(true), "the other relay");
    world.truth.serves[1].set(Duration::from_millis(10_500), false);
    assert_eq!(verdict(&world, &sent(11, failed())), Some(false));
    let mut world = self::world();
    for life in &mut world.truth.lives {
        life.states.set(seconds(9), State { origin: Origin::Down, registration: Registration::Lost });
    }
    assert_eq!(verdict(&world, &sent(11, failed())), Some(false));
}

#[test]
fn silence_is_avoidable_once_there_was_time_enough() {
    let mut world = world();
    world.truth.serves.truncate(1);
    assert_eq!(verdict(&world, &sent(35, silence())), Some(true));
    // From 10 s to 17 s, and from 28 s on, are both too short.
    world.truth.serves[0].set(seconds(17), false);
    world.truth.serves[0].set(seconds(28), true);
    assert_eq!(verdict(&world, &sent(35, silence())), Some(false));
    assert_eq!(verdict(&world, &sent(38, silence())), Some(true));
}

#[test]
fn a_late_answer_is_none() {
    let mut world = world();
    assert_eq!(verdict(&world, &sent(17, answered("s"))), None);
    assert_eq!(verdict(&world, &sent(19, answered("s"))), Some(true));
    arrives(&mut world, "s", 18);
    world.truth.registry.set(seconds(18), false);
    assert_eq!(verdict(&world, &sent(19, answered("s"))), Some(true), "the registry alone is no excuse");
    world.truth.serves[1].set(seconds(12), false);
    assert_eq!(verdict(&world, &sent(19, answered("s"))), None, "that relay may have had it");
    world.truth.serves.iter_mut().for_each(|serve| serve.set(seconds(12), false));
    assert_eq!(verdict(&world, &sent(19, answered("s"))), None, "it had to wait for a relay");
}

#[test]
fn an_answer_may_be_late_of_one_that_was_killed_while_the_registry_was_away() {
    let mut world = world();
    arrives(&mut world, "s", 18);
    world.truth.lives[1].states.set(seconds(11), State { origin: Origin::Down, registration: Registration::Lost });
    world.truth.lives[1].states.set(seconds(12), State { origin: Origin::Up, registration: Registration::Held });
    assert_eq!(verdict(&world, &sent(19, answered("s"))), Some(true));
    world.truth.registry.set(seconds(18), false);
    assert_eq!(verdict(&world, &sent(19, answered("s"))), None);
}

#[test]
fn the_embedded_broker_is_needed_and_takes_time_to_be_found_again() {
    let mut world = Evidence { has_embedded_broker: true, ..world() };
    world.truth.serves[1].set(seconds(5), false);
    assert_eq!(verdict(&world, &sent(11, failed())), Some(true), "it is in the other relay");
    world.truth.serves[0].set(seconds(5), false);
    world.truth.serves[0].set(seconds(6), true);
    assert_eq!(verdict(&world, &sent(11, failed())), Some(false));
    assert_eq!(verdict(&world, &Sent { start: seconds(12), ..sent(13, failed()) }), Some(true));
}

#[test]
fn what_is_acknowledged_has_to_arrive() {
    let mut world = world();
    assert_eq!(verdict(&world, &sent(11, Outcome::Taken)), Some(true));
    world.truth.lives.clear();
    assert_eq!(verdict(&world, &sent(11, Outcome::Taken)), Some(true), "a dead letter would have come");
    world.letters.insert("1".to_owned(), Letter { at: seconds(12), reason: "no-instance".to_owned() });
    assert_eq!(verdict(&world, &sent(11, Outcome::Taken)), Some(false));
    let mut world = self::world();
    arrives(&mut world, "s", 11);
    assert_eq!(verdict(&world, &sent(11, Outcome::Taken)), None);
}

#[test]
fn what_the_embedded_broker_has_acknowledged_for_the_relay_beside_it_may_be_lost_with_it() {
    let mut world = Evidence { has_embedded_broker: true, ..world() };
    assert_eq!(verdict(&world, &sent(11, Outcome::Taken)), Some(true));
    world.truth.serves[0].set(seconds(13), false);
    assert_eq!(verdict(&world, &sent(11, Outcome::Taken)), Some(false));
    world.truth.serves.truncate(1);
    assert_eq!(verdict(&world, &sent(11, Outcome::Taken)), Some(true), "it is acknowledged when it is with a service");
    world.logged_letters.insert("1".to_owned());
    assert_eq!(verdict(&world, &sent(11, Outcome::Taken)), Some(true));
    world.truth.serves[0] = History::default();
    world.truth.serves[0].set(seconds(9), true);
    assert_eq!(
        verdict(&world, &sent(11, Outcome::Taken)),
        Some(false),
        "the letter may have been lost with the broker"
    );
}

#[test]
fn a_dead_letter_is_avoidable_if_the_message_could_be_served_until_then() {
    let mut world = world();
    world.letters.insert("1".to_owned(), Letter { at: seconds(12), reason: "no-instance".to_owned() });
    assert_eq!(verdict(&world, &sent(11, Outcome::Taken)), Some(true));
    for serve in &mut world.truth.serves {
        serve.set(seconds(9), false);
        serve.set(Duration::from_millis(11_500), true);
    }
    assert_eq!(verdict(&world, &sent(11, Outcome::Taken)), Some(false));
}

#[test]
fn what_is_for_the_master_goes_to_the_master() {
    let mut world = world();
    assert_eq!(verdict(&world, &for_the_master(11, answered("m"))), None);
    assert_eq!(verdict(&world, &for_the_master(11, answered("s"))), Some(true));
    world.truth.masters.push((Duration::from_millis(10_500), 1, 2));
    assert_eq!(verdict(&world, &for_the_master(11, answered("m"))), None, "it was until then");
    assert_eq!(verdict(&world, &for_the_master(11, answered("s"))), None);
    arrives(&mut world, "s", 12);
    assert_eq!(verdict(&world, &for_the_master(11, Outcome::Taken)), None);
}

#[test]
fn a_lost_master_excuses_what_is_for_the_master_and_one_that_leaves_does_not() {
    let lost = State { origin: Origin::Down, registration: Registration::Lost };
    let leaving = State { origin: Origin::Ending, registration: Registration::Leaving };
    for (state, is_avoidable) in [(lost, false), (leaving, true)] {
        let mut world = world();
        world.truth.lives[0].states.set(seconds(9), state);
        assert_eq!(verdict(&world, &for_the_master(11, failed())), Some(is_avoidable), "{state:?}");
        assert_eq!(verdict(&world, &sent(11, failed())), Some(true), "a normal instance is there");
    }
}

#[test]
fn a_drained_instance_serves_only_where_no_other_can() {
    let mut world = world();
    let mut drained = History::default();
    drained.set(seconds(5), Override::Drained);
    world.truth.overrides.insert("s".to_owned(), drained);
    assert_eq!(verdict(&world, &sent(11, answered("s"))), Some(true));
    assert_eq!(verdict(&world, &sent(11, answered("m"))), None);
    arrives(&mut world, "s", 11);
    assert_eq!(verdict(&world, &sent(11, Outcome::Taken)), Some(true));
    world.truth.lives.remove(0);
    assert_eq!(verdict(&world, &sent(11, answered("s"))), None, "nobody else was there");
}
