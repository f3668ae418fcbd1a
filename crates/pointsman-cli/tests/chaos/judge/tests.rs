use super::*;
use crate::history::History;
use crate::truth::State;

const BOTH: [State; 2] = [
    State { origin: Origin::Up, registration: Registration::Held },
    State { origin: Origin::Down, registration: Registration::Lost },
];

fn ms(milliseconds: u64) -> Time {
    Duration::from_millis(milliseconds)
}

/// Instances a, b, … at the ports 1, 2, …, all well from the beginning, with a as master; the session timeout is 3 s.
fn world(count: u16) -> Truth {
    let mut truth = Truth { session: ms(3000), serves: vec![History::default(); 2], ..Truth::default() };
    truth.registry.set(ms(0), true);
    truth.serves.iter_mut().for_each(|up| up.set(ms(0), true));
    for (code, port) in ('a'..).zip(1..=count) {
        let mut states = History::default();
        states.set(ms(0), BOTH[0]);
        truth.lives.push(Life { code: code.to_string(), port, states });
    }
    truth.masters.push((ms(0), 0, 1));
    truth
}

fn set(truth: &mut Truth, life: usize, at: u64, origin: Origin, registration: Registration) {
    truth.lives[life].states.set(ms(at), State { origin, registration });
}

fn drain(truth: &mut Truth, code: &str, at: u64) {
    let set = truth.overrides.entry(code.to_owned()).or_default();
    set.set(ms(at), Override::Changing);
    set.set(ms(at + 100), Override::Drained);
}

fn request(is_master: bool, is_post: bool, start: u64, end: u64, outcome: Outcome) -> Request {
    let way = Way::Proxy { serve: 0, path: "/", is_master };
    Request { id: "1".to_owned(), way, is_post, start: ms(start), end: ms(end), outcome }
}

fn failed(is_master: bool, is_post: bool, start: u64, end: u64) -> Request {
    request(is_master, is_post, start, end, Outcome::Refused(502, Some("unreachable".to_owned())))
}

fn sent_to(code: &str, retries: u64) -> Logged {
    Logged { code: Some(code.to_owned()), retries, ..Logged::default() }
}

fn picked(code: &str, port: u16, start: u64, end: u64) -> Request {
    let way = Way::Agent { algorithm: "random", picked: Some((code.to_owned(), port)) };
    Request { way, ..request(false, false, start, end, Outcome::Broken("connect: refused".to_owned())) }
}

#[track_caller]
fn is_avoidable(truth: &Truth, request: &Request, logged: Option<&Logged>) {
    let verdict = judge(truth, request, logged);
    assert!(matches!(verdict, Verdict::Avoidable(_)), "{verdict:?}");
}

#[track_caller]
fn is_unavoidable(truth: &Truth, request: &Request, logged: Option<&Logged>, because: &str) {
    let verdict = judge(truth, request, logged);
    assert!(matches!(verdict, Verdict::Unavoidable(why) if why.contains(because)), "{verdict:?}");
}

#[track_caller]
fn is_violation(truth: &Truth, request: &Request, because: &str) {
    let verdict = judge(truth, request, None);
    assert!(matches!(&verdict, Verdict::Violation(why) if why.contains(because)), "{verdict:?}");
}

#[test]
fn a_failure_is_avoidable_while_another_instance_is_available() {
    let mut truth = world(2);
    set(&mut truth, 1, 5000, Origin::Down, Registration::Lost);
    is_avoidable(&truth, &failed(false, false, 5100, 5200), Some(&sent_to("b", 0)));
    set(&mut truth, 0, 6000, Origin::Down, Registration::Lost);
    is_unavoidable(&truth, &failed(false, false, 5900, 6100), None, "available");
    is_unavoidable(&truth, &failed(false, false, 6500, 6600), None, "available");
}

#[test]
fn an_instance_counts_as_available_only_when_everybody_must_know() {
    let mut truth = world(2);
    set(&mut truth, 0, 4000, Origin::Down, Registration::Lost);
    truth.lives[1].states = History::default();
    set(&mut truth, 1, 4000, Origin::Up, Registration::Pending);
    set(&mut truth, 1, 5000, Origin::Up, Registration::Held);
    is_unavoidable(&truth, &failed(false, false, 5900, 5950), None, "available");
    is_avoidable(&truth, &failed(false, false, 6000, 6050), None);
    // Nobody learns of it while the registry is away.
    truth.registry.set(ms(5500), false);
    is_unavoidable(&truth, &failed(false, false, 8000, 8050), None, "available");
    truth.registry.set(ms(9000), true);
    is_unavoidable(&truth, &failed(false, false, 9500, 9550), None, "available");
    is_avoidable(&truth, &failed(false, false, 10_000, 10_050), None);
}

#[test]
fn a_post_is_lost_with_the_instance_that_has_it() {
    let mut truth = world(3);
    set(&mut truth, 1, 5000, Origin::Down, Registration::Lost);
    let during = failed(false, true, 4900, 5001);
    is_unavoidable(&truth, &during, Some(&sent_to("b", 0)), "POST");
    is_avoidable(&truth, &during, Some(&sent_to("c", 0)));
    is_avoidable(&truth, &during, None);
    // Nothing of it can have been sent to one that has long been dead.
    is_avoidable(&truth, &failed(false, true, 5500, 5600), Some(&sent_to("b", 0)));
    // A GET can be sent again.
    is_avoidable(&truth, &failed(false, false, 4900, 5001), Some(&sent_to("b", 0)));
}

#[test]
fn a_post_at_a_stopped_instance_is_unavoidable_until_it_must_be_unlisted() {
    let mut truth = world(2);
    set(&mut truth, 1, 5000, Origin::Stopped, Registration::Stopped);
    let sent = sent_to("b", 0);
    is_unavoidable(&truth, &failed(false, true, 9900, 12_000), Some(&sent), "POST");
    is_avoidable(&truth, &failed(false, true, 10_100, 12_000), Some(&sent));
    // A registration that runs keeps it listed.
    let mut truth = world(2);
    set(&mut truth, 1, 5000, Origin::Stopped, Registration::Held);
    is_unavoidable(&truth, &failed(false, true, 30_000, 32_000), Some(&sent), "POST");
}

#[test]
fn a_lost_master_is_replaced_in_time_and_one_that_leaves_at_once() {
    let mut truth = world(2);
    set(&mut truth, 0, 5000, Origin::Down, Registration::Lost);
    is_unavoidable(&truth, &failed(true, false, 5100, 5200), None, "master");
    is_unavoidable(&truth, &failed(true, false, 11_900, 12_000), None, "master");
    is_avoidable(&truth, &failed(true, false, 12_100, 12_200), None);
    truth.masters.push((ms(8000), 1, 2));
    is_unavoidable(&truth, &failed(true, false, 8900, 8950), None, "master");
    is_avoidable(&truth, &failed(true, false, 9100, 9150), None);

    let mut truth = world(2);
    set(&mut truth, 0, 5000, Origin::Up, Registration::Leaving);
    set(&mut truth, 0, 5050, Origin::Ending, Registration::Left);
    is_avoidable(&truth, &failed(true, false, 5010, 5020), None);
    is_avoidable(&truth, &failed(true, false, 5100, 5200), None);
    // Not known to the registry.
    truth.registry.set(ms(4900), false);
    is_unavoidable(&truth, &failed(true, false, 5100, 5200), None, "master");
}

#[test]
fn a_drained_master_is_no_excuse() {
    let mut truth = world(2);
    drain(&mut truth, "a", 5000);
    is_avoidable(&truth, &failed(true, false, 5200, 5300), None);
}

#[test]
fn a_pick_of_a_dead_instance_is_unavoidable_until_it_must_be_unlisted() {
    let mut truth = world(2);
    set(&mut truth, 1, 5000, Origin::Down, Registration::Lost);
    is_unavoidable(&truth, &picked("b", 2, 9900, 9950), None, "picked");
    is_avoidable(&truth, &picked("b", 2, 10_100, 10_150), None);
    // Sessions do not expire while the registry is away.
    truth.registry.set(ms(6000), false);
    is_unavoidable(&truth, &picked("b", 2, 20_000, 20_050), None, "picked");
    truth.registry.set(ms(21_000), true);
    is_unavoidable(&truth, &picked("b", 2, 25_900, 25_950), None, "picked");
    is_avoidable(&truth, &picked("b", 2, 26_100, 26_150), None);
}

#[test]
fn a_pick_of_one_that_has_left_is_avoidable() {
    let mut truth = world(2);
    set(&mut truth, 1, 5000, Origin::Up, Registration::Leaving);
    set(&mut truth, 1, 5050, Origin::Ending, Registration::Left);
    set(&mut truth, 1, 6050, Origin::Down, Registration::Left);
    is_avoidable(&truth, &picked("b", 2, 6100, 6150), None);
}

#[test]
fn retries_cannot_help_where_more_are_killed_while_they_have_the_request() {
    let mut truth = world(5);
    for (life, at) in [(1, 5010), (2, 5020)] {
        set(&mut truth, life, at, Origin::Down, Registration::Lost);
    }
    let failed = failed(false, false, 5000, 5040);
    is_avoidable(&truth, &failed, Some(&sent_to("d", 2)));
    set(&mut truth, 3, 5030, Origin::Down, Registration::Lost);
    is_unavoidable(&truth, &failed, Some(&sent_to("d", 2)), "retries");
    is_avoidable(&truth, &failed, Some(&sent_to("d", 1)));
}

#[test]
fn retries_cannot_help_where_more_are_bad() {
    let mut truth = world(5);
    for life in 1..4 {
        set(&mut truth, life, 5000, Origin::Down, Registration::Lost);
    }
    let failed = failed(false, false, 5500, 5600);
    is_unavoidable(&truth, &failed, Some(&sent_to("b", 2)), "retries");
    is_avoidable(&truth, &failed, Some(&sent_to("b", 1)));
    truth.lives[3].states = History::default();
    is_avoidable(&truth, &failed, Some(&sent_to("b", 2)));
}

#[test]
fn a_request_dies_with_the_process_that_serves_it() {
    let mut truth = world(2);
    truth.serves[0].set(ms(5000), false);
    truth.serves[0].set(ms(6000), true);
    is_unavoidable(&truth, &failed(false, false, 4900, 5001), None, "serve");
    is_avoidable(&truth, &failed(false, false, 6100, 6200), None);
}

#[test]
fn a_drained_instance_is_not_picked() {
    let mut truth = world(2);
    drain(&mut truth, "b", 5000);
    let answered = |start| request(false, false, start, start + 50, Outcome::Answered("b".to_owned()));
    assert_eq!(judge(&truth, &answered(7000), None), Verdict::Good);
    is_violation(&truth, &answered(7200), "drained");
    set(&mut truth, 0, 7100, Origin::Down, Registration::Lost);
    assert_eq!(judge(&truth, &answered(7200), None), Verdict::Good, "nobody else is there");
}

#[test]
fn only_the_master_answers_for_the_master() {
    let mut truth = world(3);
    truth.masters.push((ms(5000), 1, 2));
    let answered = |code: &str, start| request(true, false, start, start + 50, Outcome::Answered(code.to_owned()));
    assert_eq!(judge(&truth, &answered("a", 6000), None), Verdict::Good);
    assert_eq!(judge(&truth, &answered("b", 6000), None), Verdict::Good);
    is_violation(&truth, &answered("a", 7100), "master");
    is_violation(&truth, &answered("c", 6000), "master");
}

#[test]
fn a_post_that_arrives_twice_is_a_fault_unless_the_client_had_to_send_it_again() {
    let mut truth = world(2);
    let post = request(false, true, 5000, 5100, Outcome::Answered("a".to_owned()));
    let arrived = HashMap::from([("1".to_owned(), 2)]);
    assert_eq!(twice(&truth, std::slice::from_ref(&post), &arrived), ["1"]);
    truth.serves[0].set(ms(5050), false);
    assert!(twice(&truth, &[post], &arrived).is_empty());
}

#[test]
fn whoever_leaves_may_have_been_master_without_saying_so() {
    let mut truth = world(3);
    let answered = |code: &str, start| request(true, false, start, start + 50, Outcome::Answered(code.to_owned()));
    set(&mut truth, 1, 6000, Origin::Ending, Registration::Leaving);
    is_violation(&truth, &answered("b", 6040), "master");
    // As long as the master may live: the last that is known of it.
    set(&mut truth, 0, 5900, Origin::Ending, Registration::Leaving);
    assert_eq!(judge(&truth, &answered("b", 6040), None), Verdict::Good);
    is_violation(&truth, &answered("c", 6040), "master");
    is_violation(&truth, &answered("b", 7100), "master");
    // Also if it is told a moment later.
    assert_eq!(judge(&truth, &answered("b", 5920), None), Verdict::Good);
    is_violation(&truth, &answered("b", 4900), "master");
    // Or it may have lost the mastership while the registry was away.
    let mut truth = world(3);
    truth.registry.set(ms(4000), false);
    truth.registry.set(ms(5900), true);
    set(&mut truth, 1, 6000, Origin::Ending, Registration::Leaving);
    assert_eq!(judge(&truth, &answered("b", 6040), None), Verdict::Good);
    // Or it was about to be registered again, in an empty registry.
    set(&mut truth, 1, 5000, Origin::Up, Registration::Pending);
    assert_eq!(judge(&truth, &answered("b", 6040), None), Verdict::Good);
}

#[test]
fn whoever_leaves_before_it_is_registered_again_leaves_its_ghost() {
    for has_begun_again in [true, false] {
        let mut truth = world(2);
        set(&mut truth, 1, 5000, Origin::Up, Registration::Lost);
        if has_begun_again {
            set(&mut truth, 1, 5500, Origin::Up, Registration::Pending);
        }
        set(&mut truth, 1, 5600, Origin::Ending, Registration::Leaving);
        set(&mut truth, 1, 5610, Origin::Ending, Registration::Left);
        is_unavoidable(&truth, &picked("b", 2, 6700, 6710), None, "picked");
        is_avoidable(&truth, &picked("b", 2, 12_000, 12_010), None);
    }
}

#[test]
fn a_registry_that_goes_in_the_middle_of_a_hand_over_leaves_no_master() {
    let mut truth = world(2);
    drain(&mut truth, "a", 5000);
    is_avoidable(&truth, &failed(true, false, 5150, 5160), None);
    truth.registry.set(ms(5200), false);
    is_unavoidable(&truth, &failed(true, false, 5300, 5400), None, "master");
    // And when it is back, there is an election.
    truth.registry.set(ms(8000), true);
    is_unavoidable(&truth, &failed(true, false, 9900, 9950), None, "master");
    is_avoidable(&truth, &failed(true, false, 10_100, 10_150), None);
}

#[test]
fn a_registry_that_goes_when_the_master_has_just_expired_leaves_none() {
    let mut truth = world(2);
    // What registers it is killed, and what it serves is not.
    set(&mut truth, 0, 5000, Origin::Up, Registration::Lost);
    set(&mut truth, 0, 6000, Origin::Up, Registration::Pending);
    is_avoidable(&truth, &failed(true, false, 7000, 7010), None);
    truth.registry.set(ms(8100), false);
    is_unavoidable(&truth, &failed(true, false, 8300, 9300), None, "master");
}
