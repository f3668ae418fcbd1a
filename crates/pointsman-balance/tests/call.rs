//! Whole calls: what fails is tried elsewhere, within bounds, and whoever hangs is ejected however the call ends.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::cell::{Cell, RefCell};
use std::future::pending;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use allocation_counter::measure;
use futures_util::FutureExt as _;
use pointsman_balance::{Algorithm, Balancer, CallError, CallPolicy, Ejection, Outcome, PickError};
use pointsman_core::{Instance, ObservedInstance, Snapshot, View};
use tokio::time::timeout;

/// A balancer over instances with these codes, in turn.
fn over(codes: &[&str], algorithm: Algorithm) -> Balancer {
    let instance =
        |code: &&str| Arc::new(ObservedInstance::from(Instance::with_code("s", *code).address("127.0.0.1:1")));
    let view = View::fixed(Snapshot::new("s", 1, codes.iter().map(instance).collect()));
    // One of two may be ejected.
    let mut ejection = Ejection::default();
    ejection.max_percent = 50;
    Balancer::builder(view).algorithm(algorithm).ejection(ejection).build()
}

fn failed() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

#[tokio::test(start_paused = true)]
async fn one_that_hangs_is_ejected_although_a_timeout_around_the_call_ends_it() {
    for algorithm in [Algorithm::RoundRobin, Algorithm::LeastConnections, Algorithm::PeakEwma] {
        let balancer = over(&["hangs", "works"], algorithm);
        let call = async |instance: Arc<ObservedInstance>| {
            if &*instance.code == "hangs" { pending().await } else { Ok::<_, io::Error>(()) }
        };
        let mut cut = 0;
        for _ in 0..100 {
            let called = timeout(Duration::from_millis(10), balancer.call(CallPolicy::new(), call)).await;
            cut += usize::from(called.is_err());
        }
        assert!(cut <= 5, "{algorithm}: {cut} of 100 calls were cut");
        assert!(balancer.in_flight().iter().all(|(_, count)| *count == 0));
    }
}

#[tokio::test(start_paused = true)]
async fn an_ejection_passes_by_the_clock_of_the_runtime() {
    let balancer = over(&["a", "b"], Algorithm::RoundRobin);
    let picks_a = || (0..10).any(|_| &**balancer.pick("").unwrap().code() == "a");
    for _ in 0..10 {
        let claim = balancer.pick("").unwrap();
        let outcome = if &**claim.code() == "a" { Outcome::Failure } else { Outcome::Success };
        claim.report(outcome);
    }
    assert!(!picks_a(), "it is ejected");
    tokio::time::advance(Duration::from_secs(3600)).await;
    assert!(picks_a(), "it is back");
}

#[test]
fn a_claim_by_hand_can_be_told_to_fail_unless_reported() {
    let balancer = over(&["a", "b"], Algorithm::RoundRobin);
    for _ in 0..10 {
        let claim = balancer.pick("").unwrap().fail_unless_reported();
        if &**claim.code() == "b" {
            claim.report(Outcome::Success);
        }
    }
    assert!((0..10).all(|_| &**balancer.pick("").unwrap().code() == "b"));
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_for_reasons_of_its_own_can_say_so() {
    let balancer = over(&["hangs", "works"], Algorithm::RoundRobin);
    let policy = CallPolicy::new().count_cancelled(false);
    let mut cut = 0;
    for _ in 0..100 {
        let call = async |instance: Arc<ObservedInstance>| {
            if &*instance.code == "hangs" { pending().await } else { Ok::<_, io::Error>(()) }
        };
        cut += usize::from(timeout(Duration::from_millis(10), balancer.call(policy, call)).await.is_err());
    }
    assert_eq!(cut, 50);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_has_a_deadline_and_no_call_arrives_twice_unless_it_may() {
    let balancer = over(&["a", "b"], Algorithm::RoundRobin);
    let asked = RefCell::new(Vec::new());
    let call = async |instance: Arc<ObservedInstance>| {
        asked.borrow_mut().push(instance.code.to_string());
        pending::<io::Result<()>>().await
    };
    let policy = CallPolicy::new().timeout(Duration::from_millis(100));
    let error = balancer.call(policy, call).await.unwrap_err();
    assert_eq!(error.to_string(), "call a of s: no answer within 100ms");
    assert_eq!(asked.take(), ["a"]);
    let error = balancer.call(policy.retries(5), call).await.unwrap_err();
    assert!(matches!(error, CallError::Timeout { code, .. } if &*code == "a"));
    assert_eq!(asked.take(), ["b", "a"], "each once");
}

#[tokio::test]
async fn what_fails_is_tried_elsewhere_and_the_last_answer_is_the_callers() {
    let balancer = over(&["a", "b", "c"], Algorithm::RoundRobin);
    let asked = RefCell::new(Vec::new());
    let call = async |instance: Arc<ObservedInstance>| {
        asked.borrow_mut().push(instance.code.to_string());
        if &*instance.code == "c" { Ok(200) } else { Err(failed()) }
    };
    assert_eq!(balancer.call(CallPolicy::new().retries(2), call).await.unwrap(), 200);
    assert_eq!(asked.take().len(), 3);
    // A status that is no success, though it is an answer.
    let status = async |instance: Arc<ObservedInstance>| {
        asked.borrow_mut().push(instance.code.to_string());
        Ok::<_, io::Error>(503)
    };
    let judge =
        |reply: &io::Result<u16>| reply.as_ref().map_or(Outcome::Failure, |status| Outcome::of_http_status(*status));
    assert_eq!(balancer.call_judged(CallPolicy::new().retries(1), judge, status).await.unwrap(), 503);
    assert_eq!(asked.take().len(), 2);
    let error = balancer.call(CallPolicy::new(), async |_| Err::<(), _>(failed())).await.unwrap_err();
    assert!(error.to_string().ends_with("of s: connection reset"), "{error}");
    assert!(std::error::Error::source(&error).is_some());
}

#[tokio::test]
async fn what_was_not_sent_is_tried_everywhere_whatever_the_policy_and_the_budget() {
    let codes: Vec<String> = (0..30).map(|number| format!("i{number:02}")).collect();
    let codes: Vec<&str> = codes.iter().map(String::as_str).collect();
    let balancer = over(&codes, Algorithm::RoundRobin);
    while balancer.retry_budget().withdraw(std::time::Instant::now()) {}
    let asked = Cell::new(0);
    let call = async |_: Arc<ObservedInstance>| {
        asked.set(asked.get() + 1);
        Err::<(), _>(failed())
    };
    balancer.call_judged(CallPolicy::new(), |_| Outcome::Unreached, call).await.unwrap_err();
    assert_eq!(asked.take(), 30);
    balancer.call(CallPolicy::new().retries(9), call).await.unwrap_err();
    assert_eq!(asked.take(), 1, "there is no budget left");
}

#[tokio::test]
async fn retries_are_a_share_of_the_calls() {
    let balancer = over(&["a", "b"], Algorithm::RoundRobin);
    let asked = Cell::new(0);
    for _ in 0..1000 {
        let call = async |_: Arc<ObservedInstance>| {
            asked.set(asked.get() + 1);
            Err::<(), _>(failed())
        };
        balancer.call(CallPolicy::new().retries(1), call).await.unwrap_err();
    }
    // A fifth, and ten a second.
    assert!((1200..1300).contains(&asked.get()), "{}", asked.get());
}

#[tokio::test]
async fn nobody_there_is_said_as_a_pick_says_it() {
    let balancer = over(&[], Algorithm::RoundRobin);
    let error = balancer.call(CallPolicy::new(), async |_| Ok::<_, io::Error>(())).await.unwrap_err();
    assert!(matches!(error, CallError::Pick(PickError::NoInstance { .. })), "{error}");
}

#[tokio::test]
async fn the_key_decides_with_the_hashes_and_without_one_it_is_chance() {
    let balancer = over(&["a", "b", "c", "d"], Algorithm::UrlHash);
    let code =
        async |policy| balancer.call(policy, async |instance| Ok::<_, io::Error>(instance.code.clone())).await.unwrap();
    let of_key = code(CallPolicy::new().key("/a")).await;
    assert_eq!(&of_key, balancer.pick("/a").unwrap().code());
    let mut all = std::collections::HashSet::new();
    for _ in 0..200 {
        assert_eq!(code(CallPolicy::new().key("/a")).await, of_key);
        all.insert(code(CallPolicy::new()).await);
    }
    assert_eq!(all.len(), 4);
    // So is where a call goes that has failed: not all that one had go to the same other one.
    let mut next = std::collections::HashSet::new();
    for _ in 0..40 {
        // A new one each time: of those that have failed before, some are ejected, and few choices are left.
        let balancer = over(&["a", "b", "c", "d"], Algorithm::UrlHash);
        let tried = RefCell::new(Vec::new());
        let call = async |instance: Arc<ObservedInstance>| {
            tried.borrow_mut().push(instance.code.to_string());
            Err::<(), _>(failed())
        };
        let _ = balancer.call_judged(CallPolicy::new(), |_| Outcome::Unreached, call).await;
        next.insert(tried.into_inner()[..2].to_vec());
    }
    assert!(next.len() > 4, "{next:?}");
}

#[tokio::test]
async fn a_call_can_be_spawned() {
    let balancer = over(&["a"], Algorithm::RoundRobin);
    let clone = balancer.clone();
    let by_async_closure = tokio::spawn(async move {
        clone
            .call(CallPolicy::new(), async |instance| {
                tokio::task::yield_now().await;
                Ok::<_, io::Error>(instance.code.to_string())
            })
            .await
    });
    let by_closure = tokio::spawn(async move {
        let call = |instance: Arc<ObservedInstance>| async move {
            tokio::task::yield_now().await;
            Ok::<_, io::Error>(instance.code.to_string())
        };
        balancer.call(CallPolicy::new(), call).await
    });
    assert_eq!(by_async_closure.await.unwrap().unwrap(), "a");
    assert_eq!(by_closure.await.unwrap().unwrap(), "a");
}

#[tokio::test]
async fn a_pick_a_report_a_pick_elsewhere_and_a_call_allocate_nothing() {
    for algorithm in Algorithm::ALL {
        let balancer = over(&["a", "b", "c"], algorithm);
        let policy = CallPolicy::new().key("/a").retries(2);
        let once = || {
            let claim = balancer.pick("/a").unwrap();
            drop(balancer.pick_excluding("/a", &[claim.code()]).unwrap());
            balancer.pick("/a").unwrap().report(Outcome::Success);
            balancer.call(policy, async |_| Ok::<_, io::Error>(())).now_or_never().unwrap().unwrap();
        };
        once();
        assert_eq!(measure(|| (0..100).for_each(|_| once())).count_total, 0, "{algorithm}");
    }
}
