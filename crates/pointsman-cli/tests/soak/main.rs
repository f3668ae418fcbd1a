//! Long runs of the proxy. What runs here with the other tests is their short form; `cargo xtask soak http` runs the same with as many
//! requests as `SOAK_REQUESTS` says, and prints what came of each.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

#[path = "../http/setup.rs"]
#[allow(dead_code, reason = "each test file uses its part")]
mod setup;
#[path = "../support/mod.rs"]
mod support;

mod mqtt;
mod origins;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use pointsman_testkit::http::{EchoOrigin, Load, MIXED, Plan, Tally, Trouble, Way};
use rustix::process::Signal;
use tokio::net::TcpListener;
use tokio::time::{MissedTickBehavior, interval, timeout};

use self::origins::Process;
use crate::setup::{Proxy, Registry, at, metrics, text, until};
use crate::support::DEADLINE;
use crate::support::served::{free_port, logged, serve};

/// Many streams of HTTP/2, many connections that are kept, and new ones.
const CLIENTS: &[Way] = &[
    Way::NewConnection,
    Way::NewConnection,
    Way::NewConnection,
    Way::KeepAlive,
    Way::KeepAlive,
    Way::KeepAlive,
    Way::KeepAlive,
    Way::Http2,
    Way::Http2,
];

/// How many requests a run has.
fn requests(short: u64) -> u64 {
    std::env::var("SOAK_REQUESTS").ok().and_then(|count| count.parse().ok()).unwrap_or(short)
}

fn plan(posts: u8, short: u64) -> Plan {
    Plan { posts, requests: Some(requests(short)), origins_fail: false }
}

/// Says what came of it.
fn tell(what: &str, tally: &Tally, start: Instant, more: &str) {
    println!(
        "{what}: {} requests answered, {} failed; {} refused, {} cut, {} connections reopened, {} MB checked, {:.0} s; {more}",
        tally.answered,
        tally.failed,
        tally.refused,
        tally.cut,
        tally.reopened,
        tally.bytes / 1_000_000,
        start.elapsed().as_secs_f64(),
    );
}

/// A service with a master that is never asked, and these instances.
async fn service(registry: &Registry, origins: &[EchoOrigin]) {
    registry.put("ress", "master", at(1)).await;
    for (number, origin) in origins.iter().enumerate() {
        registry.put("ress", &format!("i{number}"), origin.address()).await;
    }
}

async fn origins<const N: usize>() -> [EchoOrigin; N] {
    let mut origins = Vec::new();
    for number in 0..N {
        origins.push(EchoOrigin::start(&format!("i{number}")).await);
    }
    origins.try_into().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_while_routes_are_reloaded() {
    let (registry, origins, watched, port) = (Registry::start().await, origins::<3>().await, free_port(), free_port());
    service(&registry, &origins).await;
    registry.put("other", "o", origins[0].address()).await;
    let with = |routes: &str| {
        format!(
            "registry = '{}'\nmetrics.listen = '127.0.0.1:{watched}'\n[http]\nlisten = '127.0.0.1:{port}'\nworkers = 2\n{routes}",
            registry.url()
        )
    };
    // The rules change from one to the next as much as they can with the answers staying the same.
    let files = [
        with("[[http.route]]\nname = 'all'\npath_prefix = '/'\nservice = 'ress'\n"),
        with(
            "access_log = 'off'\nforwarded = 'both'\nservices.ress = { max_in_flight = 500, ejection = 'off' }\n\
             [[http.route]]\nmatch = '^/echo'\nservice = 'ress'\nalgorithm = 'least-connections'\nretries = 0\n\
             [[http.route]]\nname = 'all'\nhost = 'load.example'\nservice = 'other'\nrole = 'master'\ntimeout = '60s'\n",
        ),
        with(
            "reasons = true\nkeep_alive = '40s'\n[[http.route]]\nname = 'all'\nmethod = ['GET', 'POST']\nservice = 'other'\n\
             split = { ress = 60 }\nmax_in_flight = 1000\nsticky = 'lb'\n",
        ),
    ];
    let mut proxy = Proxy::start(port, &files[0]).await;
    proxy.running.ignore_notes();
    proxy.until_served_by(&["i0", "i1", "i2"]).await;
    let (start, load) = (Instant::now(), Load::start(at(port), CLIENTS, plan(50, 3000)));
    let mut tick = interval(Duration::from_millis(100));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut asked = 0;
    while !load.is_over() {
        tick.tick().await;
        asked += 1;
        proxy.file.replace(&files[asked % files.len()]);
        proxy.running.signal(Signal::HUP);
    }
    let tally = load.end().await;
    let told = metrics(watched).await;
    let applied = count(&told, "pointsman_config_reloads_total{result=\"applied\"}");
    tell("reload", &tally, start, &format!("reloaded {applied} times of {asked}"));
    tally.assert_none_failed();
    assert_eq!(tally.reopened, 0, "no connection has ended");
    assert_eq!(tally.answered, requests(3000));
    assert!(told.contains("pointsman_config_reloads_total{result=\"failed\"} 0"), "{told}");
    // One reload may answer several signals.
    assert!(applied * 2 >= asked as u64, "{applied} of {asked}");
    proxy.ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_while_the_proxy_is_handed_over() {
    let (registry, origins, port) = (Registry::start().await, origins::<2>().await, free_port());
    service(&registry, &origins).await;
    let mut proxy = Proxy::start(port, &text(&registry.url(), port, "hand_over = 'p.sock'\ncode = 'p'")).await;
    proxy.until_served_by(&["i0", "i1"]).await;
    let (start, load) = (Instant::now(), Load::start(at(port), CLIENTS, plan(50, 3000)));
    let mut handed_over = 0;
    while !load.is_over() {
        let mut next = serve(&proxy.file.path);
        logged(&mut next, " ready").await;
        let first = std::mem::replace(&mut proxy.running, next);
        assert_eq!(first.ended().await.code(), Some(0));
        handed_over += 1;
        load.more(500).await;
    }
    let tally = load.end().await;
    tell("hand-over", &tally, start, &format!("handed over {handed_over} times"));
    tally.assert_none_failed();
    assert_eq!(tally.answered, requests(3000));
    // What went over another connection was not looked at on the first.
    for origin in &origins {
        let twice = origin.arrived().into_iter().find(|(_, times)| *times > 1);
        assert_eq!(twice, None);
    }
    // Twice, if a client comes to the one that leaves again.
    assert!(tally.reopened <= handed_over * 2 * 12, "{}", tally.reopened);
    registry.until_balancers(1).await;
    proxy.ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_post_arrives_twice_while_origins_are_killed() {
    let (registry, folder) = (Registry::start().await, tempfile::tempdir().unwrap());
    registry.put("ress", "master", at(1)).await;
    let mut origins = Vec::new();
    for number in 0..3 {
        let origin = Process::start(free_port(), &format!("i{number}"), folder.path()).await;
        registry.put("ress", &format!("i{number}"), at(origin.port)).await;
        origins.push(origin);
    }
    // Who comes back is wanted at once. By default one of three is ejected at a time, for longer each time, so that of the two others
    // one may be dead: more retries are needed then than the budget has.
    let lines = "services.ress = { ejection = { base_time = '100ms', max_time = '100ms', max_percent = 100 } }";
    let port = free_port();
    let proxy = Proxy::start(port, &(text(&registry.url(), port, lines) + "retry_budget = 100\n")).await;
    proxy.until_served_by(&["i0", "i1", "i2"]).await;
    let total = requests(3000);
    let plan = Plan { posts: 70, requests: Some(total), origins_fail: true };
    let (start, load) = (Instant::now(), Load::start(at(proxy.port), CLIENTS, plan));
    let mut killed = 0;
    while !load.is_over() {
        load.more(fastrand::u64(50..500)).await;
        let origin = fastrand::choice(&mut origins).unwrap();
        origin.kill().await;
        killed += 1;
        load.more(fastrand::u64(1..100)).await;
        origin.restart().await;
    }
    let tally = load.end().await;
    let mut arrived = HashMap::new();
    for origin in &origins {
        for id in origin.arrived() {
            *arrived.entry(id).or_insert(0) += 1;
        }
    }
    tell("killed origins", &tally, start, &format!("killed {killed} times, {} POSTs arrived", arrived.len()));
    never_twice(&tally, &arrived);
    assert_eq!(tally.answered + tally.refused + tally.cut, total);
    assert!(tally.refused + tally.cut < total / 20 + 50, "they were there nearly all the time");
    proxy.ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_post_arrives_twice_while_connections_are_reset() {
    let (registry, origins) = (Registry::start().await, origins::<3>().await);
    service(&registry, &origins).await;
    let proxy = Proxy::over(&registry, "services.ress.ejection = 'off'").await;
    proxy.until_served_by(&["i0", "i1", "i2"]).await;
    origins.iter().for_each(|origin| origin.set_trouble(Trouble::Percent(5)));
    let total = requests(3000);
    let plan = Plan { posts: 70, requests: Some(total), origins_fail: true };
    let (start, load) = (Instant::now(), Load::start(at(proxy.port), CLIENTS, plan));
    let tally = load.end().await;
    let mut arrived = HashMap::new();
    for origin in &origins {
        for (id, times) in origin.arrived() {
            *arrived.entry(id).or_insert(0) += times;
        }
    }
    tell("reset connections", &tally, start, &format!("{} POSTs arrived", arrived.len()));
    never_twice(&tally, &arrived);
    assert_eq!(tally.answered + tally.refused + tally.cut, total);
    proxy.ends().await;
}

fn never_twice(tally: &Tally, arrived: &HashMap<String, u32>) {
    tally.assert_none_failed();
    let twice: Vec<_> = arrived.iter().filter(|(_, times)| **times > 1).take(10).collect();
    assert!(twice.is_empty(), "arrived more than once: {twice:?}");
    let lost = tally.posted.iter().find(|id| !arrived.contains_key(*id));
    assert_eq!(lost, None, "answered, and has not arrived");
    assert!(!tally.posted.is_empty());
}

/// Whoever connects is sent away.
async fn dead() -> (u16, tokio::sync::watch::Receiver<u64>) {
    let listener = TcpListener::bind(at(0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (count, attempts) = tokio::sync::watch::channel(0);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let _ = stream.set_zero_linger();
            count.send_modify(|count| *count += 1);
        }
    });
    (port, attempts)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_instance_gets_five_requests() {
    let (registry, origins, (port, attempts)) = (Registry::start().await, origins::<3>().await, dead().await);
    service(&registry, &origins).await;
    registry.put("ress", "dead", at(port)).await;
    registry.put("nobody", "master", at(1)).await;
    registry.put("nobody", "i0", origins[0].address()).await;
    // Nobody listens there.
    registry.put("nobody", "dead", at(free_port())).await;
    let (port, watched) = (free_port(), free_port());
    let file = format!("metrics.listen = '127.0.0.1:{watched}'\n{}", text(&registry.url(), port, ""))
        + "[[http.route]]\nname = 'second'\nhost = 'nobody.example'\nservice = 'nobody'\n";
    let file = file.replace("path_prefix = '/'\n", "host = ['load.example', 'test.example']\n");
    let proxy = Proxy::start(port, &file).await;
    // As the directory sees them all, the proxy does.
    until(async || registry.instances("ress").await, |all| all.as_array().unwrap().len() == 5).await;
    // One after the other, since what is under way already when the fifth fails has been sent.
    let total = requests(2000).min(20_000);
    let plan = Plan { posts: 0, requests: Some(total), origins_fail: false };
    let (start, load) = (Instant::now(), Load::start(at(port), &[Way::KeepAlive], plan));
    let tally = load.end().await;
    let dead = *attempts.borrow();
    for _ in 0..200 {
        let answer =
            pointsman_testkit::http::request(at(port), "POST", "/echo", &[("Host", "nobody.example")], "x").await;
        assert_eq!((answer.status, &*answer.text()), (200, "x"), "nothing was sent: it goes to another one");
    }
    let told = metrics(watched).await;
    let unreachable = count(&told, "pointsman_http_attempts_total{service=\"nobody\",outcome=\"unreachable\"}");
    tell(
        "dead instance",
        &tally,
        start,
        &format!("{dead} attempts at one that resets, {unreachable} at one that is not there"),
    );
    tally.assert_none_failed();
    assert!((1..=5).contains(&dead), "{dead}");
    assert!((1..=5).contains(&unreachable), "{unreachable}");
    proxy.ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flapping_instance_adds_one_percent_of_errors_at_most() {
    let (registry, origins) = (Registry::start().await, origins::<4>().await);
    service(&registry, &origins).await;
    let proxy = Proxy::over(&registry, "").await;
    proxy.until_served_by(&["i0", "i1", "i2", "i3"]).await;
    let total = requests(3000);
    // Nothing that has been sent is tried again: each failure is seen.
    let plan = Plan { posts: 100, requests: Some(total), origins_fail: true };
    let (start, load) = (Instant::now(), Load::start(at(proxy.port), MIXED, plan));
    let mut turns = 0;
    while !load.is_over() {
        let trouble = if turns % 2 == 0 { Trouble::Always } else { Trouble::None };
        origins[0].set_trouble(trouble);
        turns += 1;
        load.more(200).await;
    }
    let tally = load.end().await;
    tell("flapping by time", &tally, start, &format!("{turns} turns"));
    tally.assert_none_failed();
    assert!((tally.refused + tally.cut) * 100 <= total, "{} of {total}", tally.refused + tally.cut);
    proxy.ends().await;

    origins[0].set_trouble(Trouble::None);
    // Never five in a row: what saves is that it is tried again.
    let proxy = Proxy::over(&registry, "").await;
    proxy.until_served_by(&["i0", "i1", "i2", "i3"]).await;
    origins[0].set_trouble(Trouble::EachOther);
    let plan = Plan { posts: 0, requests: Some(total), origins_fail: false };
    let (start, load) = (Instant::now(), Load::start(at(proxy.port), MIXED, plan));
    let tally = load.end().await;
    tell("failing each other time", &tally, start, "GET only");
    assert!(tally.failed * 100 <= total, "{} of {total}: {:#?}", tally.failed, tally.failures);
    proxy.ends().await;
}

/// The value of a series.
fn count(metrics: &str, series: &str) -> u64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(series));
    line.unwrap_or_else(|| panic!("no {series} in {metrics}")).trim().parse().unwrap()
}

/// No test: what [`Process`] runs.
#[tokio::test]
#[ignore = "an origin in a process of its own"]
async fn origin() {
    origins::child().await;
}

#[tokio::test]
async fn an_origin_in_a_process_of_its_own_is_killed_and_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut origin = Process::start(free_port(), "a", folder.path()).await;
    let plan = Plan { posts: 100, requests: Some(50), origins_fail: false };
    let tally = timeout(DEADLINE, Load::start(at(origin.port), &[Way::KeepAlive], plan).end()).await.unwrap();
    tally.assert_none_failed();
    origin.kill().await;
    assert_eq!(origin.arrived().len(), 50);
    origin.restart().await;
    Load::start(at(origin.port), &[Way::KeepAlive], plan).end().await.assert_none_failed();
    assert_eq!(origin.arrived().len(), 100);
}
