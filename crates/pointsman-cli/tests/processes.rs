//! Faults of whole processes: stopped, killed, ended in any order, and without their registry, on a real ZooKeeper.
//!
//! What cannot be mended from here, and is documented instead: `kill -9` of `pointsman register -- COMMAND` leaves the command
//! running without its registration, which ends with the session.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::time::{Duration, Instant};

use pointsman::{Registry, Role, Term};
use pointsman_testkit::{CuttingProxy, Foreign, ForeignRole, ZooKeeper, unique_prefix};
use rustix::process::{Signal, test_kill_process};
use serde_json::json;
use support::fleet::{Fleet, SESSION, send};
use support::served::logged;
use support::{DEADLINE, Running, command, run, stderr, stdout};
use tokio::time::{sleep, timeout};

#[tokio::test(flavor = "multi_thread")]
async fn a_master_stopped_beyond_its_session_comes_back_as_a_normal() {
    let mut fleet = Fleet::start(ZooKeeper::shared().await, &["a", "b", "c"]).await;
    fleet.settled("start").await;
    let (first, mut last) = fleet.master();
    // As long as the session lasts nothing changes.
    fleet.signal(&first, Signal::STOP);
    sleep(SESSION / 4).await;
    fleet.signal(&first, Signal::CONT);
    fleet.settled("a short stop").await;
    assert_eq!(fleet.master(), (first, last));
    for round in 0..3 {
        let (old, zombie) = fleet.master();
        fleet.signal(&old, Signal::STOP);
        let next = fleet.until(|claim| claim.role.is_master()).await;
        assert_ne!(next.code, old, "round {round}");
        assert!(next.role.term() > Some(zombie), "round {round}");
        fleet.signal(&old, Signal::CONT);
        // Not for a moment master again, although it has not heard of the next one yet.
        assert_eq!(fleet.roles_of(&old).await, [Role::Detached, Role::Normal], "round {round}");
        fleet.settled("a stop beyond the session").await;
        assert!(fleet.guard.check(zombie).is_err(), "what it still writes is refused");
        let (_, term) = fleet.master();
        assert!(term > last, "terms only rise");
        last = term;
    }
    fleet.end().await;
}

/// The line of `/proc/PID/status` that says whether a process may have huge pages; such pages are used where the system has them.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_has_the_memory_that_it_would_have_without_us() {
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    if !own.lines().any(|line| line.starts_with("THP_enabled:") && line.ends_with('1')) {
        return;
    }
    let says = |who: &str, huge: u8| format!("grep -q '^THP_enabled:.*{huge}$' /proc/{who}/status");
    let script = format!("{} && {}", says("self", 1), says("$PPID", 0));
    let output = run(&["register", "s", "--registry", "memory://", "--", "sh", "-c", &script]).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_master_is_followed_and_may_start_again_with_its_code() {
    let mut fleet = Fleet::start(ZooKeeper::shared().await, &["a", "b", "c"]).await;
    fleet.settled("start").await;
    for round in 0..3 {
        let (dead, term) = fleet.master();
        let killed = Instant::now();
        fleet.kill(&dead).await;
        if round > 0 {
            // At once, while its ghost is still registered.
            fleet.launch(&dead);
        }
        let next = fleet.until(|claim| claim.role.is_master()).await;
        let took = killed.elapsed();
        println!("kill -9 to the next master: {took:?}, with a session of {SESSION:?}");
        assert!(took < SESSION + Duration::from_millis(1500), "{took:?}");
        assert!(next.role.term() > Some(term));
        fleet.settled("kill -9 of the master").await;
        if round == 0 {
            fleet.launch(&dead);
            fleet.settled("started again").await;
        }
    }
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_killed_alone_takes_over_from_its_own_ghost() {
    let mut fleet = Fleet::start(ZooKeeper::shared().await, &["a"]).await;
    fleet.settled("start").await;
    let (_, term) = fleet.master();
    fleet.kill("a").await;
    fleet.launch("a");
    let [role] = fleet.roles_of("a").await;
    assert!(role.term() > Some(term), "{role} after {term}");
    fleet.settled("kill -9").await;
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_but_one_end_in_any_order() {
    let server = ZooKeeper::shared().await;
    for round in 0..4 {
        let mut fleet = Fleet::start(server, &["a", "b"]).await;
        let mut foreign = Some(Foreign::start(&server.address(), &fleet.prefix, "s", "theirs").await);
        fleet.others.push("theirs".to_owned());
        fleet.launch("c");
        fleet.settled("start").await;
        let mut last = Term(0);
        let mut order = ["a", "b", "c", "theirs"];
        // Each of them is the survivor once.
        order.swap(round, 3);
        fastrand::shuffle(&mut order[..3]);
        for (index, code) in order[..3].iter().enumerate() {
            if *code == "theirs" {
                foreign.take().unwrap().stop().await;
                fleet.others.clear();
            } else {
                fleet.terminate(code).await;
            }
            fleet.settled(&format!("{order:?}, {index}")).await;
            let (_, term) = fleet.master();
            assert!(term >= last, "{order:?}: terms only rise");
            last = term;
        }
        assert_eq!(fleet.master().0, order[3]);
        if let Some(foreign) = foreign {
            foreign.becomes(ForeignRole::Master, DEADLINE).await;
            foreign.stop().await;
        } else {
            fleet.terminate(order[3]).await;
        }
        assert!(fleet.nodes().await.is_empty());
        fleet.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_death_of_a_command_is_followed_by_its_deregistration_within_100_ms() {
    let prefix = unique_prefix();
    let url = format!("zookeeper://{}{prefix}?guard=off", ZooKeeper::shared().await.address());
    let registry = Registry::connect(&url).await.unwrap();
    let service = registry.discover("s").await.unwrap();
    let mut took = Vec::new();
    for round in 0..9 {
        let code = format!("c{round}");
        let script = ["--", "sh", "-c", "echo $$; exec sleep 1000"];
        let args = ["register", "s", "--code", &code, "--registry", &url];
        let mut process = Running::start(command(args.iter().chain(&script)));
        let pid = process.line().await.parse().unwrap();
        timeout(DEADLINE, service.wait_for(|s| s.find(&code).is_some())).await.expect("registered").unwrap();
        let killed = Instant::now();
        send(pid, Signal::KILL);
        timeout(DEADLINE, service.wait_for(|s| s.find(&code).is_none())).await.expect("deregistered").unwrap();
        took.push(killed.elapsed());
        assert_eq!(process.ended().await.code(), Some(137));
    }
    took.sort();
    println!("kill -9 of the command to its absence in a directory: median {:?} of {took:?}", took[4]);
    assert!(took[4] < Duration::from_millis(100), "{took:?}");
    registry.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_away_for_longer_than_the_session_costs_nobody_anything() {
    let mut server = ZooKeeper::start().await;
    let mut fleet = Fleet::start(&server, &["a", "b"]).await;
    fleet.launch_with("c", &["--", "sh", "-c", "exec sleep 1000"]);
    fleet.settled("start").await;
    let before = fleet.master();
    for away in [SESSION * 2, Duration::ZERO] {
        server.kill();
        for code in ["a", "b", "c"] {
            assert_eq!(fleet.service.snapshot().instances().len(), 3, "no look-up fails");
            fleet.wait_for_role(code, |role| role == Role::Detached).await;
        }
        sleep(away).await;
        fleet.all_run();
        server.restart().await;
        fleet.reopen(&server).await;
        fleet.settled("the registry is back").await;
        fleet.all_run();
        // The server gives each session its whole timeout again: the same role, in the same term.
        assert_eq!(fleet.master(), before);
    }
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_node_makes_nobody_spin() {
    let mut fleet = Fleet::start(ZooKeeper::shared().await, &["a", "b", "c"]).await;
    fleet.settled("start").await;
    // After this go-micro-service's normals spin, and failover is dead.
    fleet.raw.set_data(&fleet.path("master"), b"nonsense", None).await.unwrap();
    let settled = Instant::now();
    while fleet.nodes().await["master"] == "?" {
        assert!(settled.elapsed() < DEADLINE, "not restored");
    }
    let used = |fleet: &Fleet| fleet.codes().iter().map(|code| cpu_ticks(fleet.pid(code))).sum::<u64>();
    let before = used(&fleet);
    sleep(Duration::from_secs(1)).await;
    let ticks = used(&fleet) - before;
    println!("three processes used {ticks} hundredths of a second of cpu in one second");
    // One that spins uses 100.
    assert!(ticks < 50, "{ticks} hundredths of a second in one second");
    let (master, term) = fleet.master();
    fleet.terminate(&master).await;
    fleet.settled("failover").await;
    assert!(fleet.master().1 > term);
    fleet.end().await;
}

/// What a process has used so far, in hundredths of a second.
fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name, in parentheses, may have anything in it; user and system time are fields 14 and 15 of all, from 1.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11..13].iter().map(|field| field.parse::<u64>().unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_was_never_there_is_told_by_every_command() {
    let mut server = ZooKeeper::start().await;
    server.kill();
    let url = format!("zookeeper://{}/p", server.address());
    let lines = [
        "services",
        "instances s",
        "master s",
        "watch",
        "watch s",
        "pick s",
        "drain s a",
        "undrain s a",
        "weight s a 2",
        "register s",
        "register s -- true",
    ];
    for line in lines {
        let (words, child) = line.split_once(" --").unwrap_or((line, ""));
        let mut args: Vec<&str> = words.split(' ').chain(["--registry", &url, "--connect-timeout", "1h"]).collect();
        args.extend((!child.is_empty()).then_some(["--", child.trim()]).into_iter().flatten());
        let output = run(&args).await;
        assert_eq!(output.status.code(), Some(1), "{line}");
        let message = stderr(&output);
        assert!(message.starts_with("error: connect to zookeeper://"), "{line}: {message}");
        assert!(message.contains(&format!("{}: Connection refused", server.address())), "{line}: {message}");
        assert_eq!((message.lines().count(), stdout(&output)), (1, String::new()), "{line}: {message}");
    }
    // Something else listens there, or the server hangs.
    server.restart().await;
    server.pause();
    let output = run(&["instances", "s", "--registry", &url, "--connect-timeout", "500ms"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains(&server.address()), "{}", stderr(&output));
    server.resume();
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_gets_an_answer_when_the_registry_is_there() {
    let mut server = ZooKeeper::start().await;
    server.kill();
    let url = format!("zookeeper://{}/p", server.address());
    let start = |line: &str| {
        let common = ["--wait", "--connect-timeout", "100ms", "-o", "json", "--registry", &url];
        Running::start(command(line.split(' ').chain(common)))
    };
    let (mut listing, mut picking, watching, mut going) =
        (start("instances s"), start("pick s"), start("watch"), start("watch s"));
    sleep(Duration::from_secs(1)).await;
    for waiting in [&mut listing, &mut picking, &mut going] {
        assert!(waiting.runs());
    }
    // Who no longer wants to wait need not.
    watching.signal(Signal::INT);
    assert_eq!(watching.ended().await.code(), Some(0));
    server.restart().await;
    assert_eq!(listing.json().await, json!([]));
    assert_eq!(listing.ended().await.code(), Some(0));
    // It is there, and says that there is nobody to pick.
    assert_eq!(picking.ended().await.code(), Some(1));
    let registry = Registry::connect(&url).await.unwrap();
    let _registration = registry.register(pointsman::Instance::new("s").code("a")).await.unwrap();
    going.json_where(|line| line["event"] == "put" && line["instance"]["code"] == "a").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_outlives_its_registry() {
    let mut server = ZooKeeper::start().await;
    let mut fleet = Fleet::start(&server, &["a"]).await;
    let mut watch = Running::start_with_stderr(command(["watch", "s", "-o", "json", "--registry", &fleet.url]));
    watch.json_where(|line| line["event"] == "master").await;
    server.kill();
    // Whether its session has expired too, which it says in between, is a matter of time.
    logged(&mut watch, "the registry is away").await;
    fleet.wait_for_role("a", |role| role == Role::Detached).await;
    server.restart().await;
    logged(&mut watch, "the registry is back").await;
    fleet.reopen(&server).await;
    fleet.settled("the registry is back").await;
    fleet.launch("b");
    // Of what has not changed nothing is told.
    let next = watch.json().await;
    assert_eq!((&next["event"], &next["instance"]["code"]), (&json!("put"), &json!("b")), "{next}");
    watch.signal(Signal::TERM);
    assert_eq!(watch.ended().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_goes_silent_in_the_middle_is_told() {
    let server = ZooKeeper::shared().await;
    for line in ["instances s", "pick s", "services"] {
        let proxy = CuttingProxy::start(server.socket_address());
        // Each answer takes a while, so that there is a middle.
        proxy.delay(Duration::from_millis(150));
        let url = format!("zookeeper://{}/p?session_timeout=2s", proxy.address());
        let mut command = command(line.split(' ').chain(["--registry", &url, "--connect-timeout", "1s"]));
        let output = tokio::spawn(async move { command.output().await.unwrap() });
        while proxy.accepted() == 0 {
            sleep(Duration::from_millis(2)).await;
        }
        // Connected, and about to ask.
        sleep(Duration::from_millis(400)).await;
        proxy.blackhole();
        let output = timeout(DEADLINE, output).await.expect("it ends").unwrap();
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{line}: {message} {}", stdout(&output));
        assert!(message.contains("error: ") && message.contains(&proxy.address()), "{line}: {message}");
        assert_eq!(stdout(&output), "", "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_beside_its_command_it_leaves_that_running_and_is_forgotten() {
    let mut fleet = Fleet::start(ZooKeeper::shared().await, &["a"]).await;
    let url = fleet.url.clone();
    let script = ["--", "sh", "-c", "echo $$; exec sleep 1000"];
    let args = ["register", "s", "--code", "b", "--registry", &url];
    let mut process = Running::start(command(args.iter().chain(&script)));
    let pid: u32 = process.line().await.parse().unwrap();
    timeout(DEADLINE, fleet.service.wait_for(|s| s.find("b").is_some())).await.expect("registered").unwrap();
    process.signal(Signal::KILL);
    fleet.settled("kill -9 of the parent").await;
    // As `register --help` says.
    let orphan = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    assert!(test_kill_process(orphan).is_ok(), "the command goes on");
    send(pid, Signal::KILL);
    fleet.end().await;
}

/// Says each signal that it gets, until SIGQUIT.
const SAYS_SIGNALS: &str = "for s in HUP USR1 USR2 WINCH; do trap \"echo $s\" $s; done; trap 'echo QUIT; kill $!; exit 7' QUIT; \
                            echo ready; while :; do sleep 1000 & wait $!; kill $!; done";

#[tokio::test(flavor = "multi_thread")]
async fn signals_by_which_programs_are_told_something_are_handed_on() {
    let fleet = Fleet::start(ZooKeeper::shared().await, &["a"]).await;
    let url = fleet.url.clone();
    let args = ["register", "s", "--code", "b", "--registry", &url, "--", "sh", "-c", SAYS_SIGNALS];
    let mut process = Running::start(command(args));
    assert_eq!(process.line().await, "ready");
    timeout(DEADLINE, fleet.service.wait_for(|s| s.find("b").is_some())).await.expect("registered").unwrap();
    for (signal, name) in [
        (Signal::HUP, "HUP"),
        (Signal::USR1, "USR1"),
        (Signal::USR2, "USR2"),
        (Signal::WINCH, "WINCH"),
        (Signal::HUP, "HUP"),
    ] {
        process.signal(signal);
        assert_eq!(process.line().await, name);
        assert!(fleet.service.snapshot().find("b").is_some(), "it stays registered after {name}");
    }
    process.signal(Signal::QUIT);
    assert_eq!(process.line().await, "QUIT");
    timeout(DEADLINE, fleet.service.wait_for(|s| s.find("b").is_none())).await.expect("deregistered").unwrap();
    assert_eq!(process.ended().await.code(), Some(7));
    fleet.end().await;
}

/// Says SIGTERM, and ends by SIGHUP.
const ENDS_SLOWLY: &str =
    "trap 'echo TERM' TERM; trap 'echo HUP; exit 5' HUP; echo ready; while :; do sleep 0.1 >/dev/null 2>&1; done";

#[tokio::test]
async fn signals_are_handed_on_while_the_command_is_ending() {
    let args = ["register", "s", "--registry", "memory://", "--stop-timeout", "60s", "--", "sh", "-c", ENDS_SLOWLY];
    let mut process = Running::start(command(args));
    assert_eq!(process.line().await, "ready");
    process.signal(Signal::TERM);
    assert_eq!(process.line().await, "TERM");
    process.signal(Signal::HUP);
    assert_eq!(process.line().await, "HUP");
    assert_eq!(process.ended().await.code(), Some(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_command_the_end_of_the_terminal_deregisters_unless_it_is_ignored() {
    let fleet = Fleet::start(ZooKeeper::shared().await, &["a"]).await;
    let url = fleet.url.clone();
    let args = ["register", "s", "--code", "b", "-o", "json", "--registry", &url];
    let mut process = Running::start(command(args));
    assert_eq!(process.json().await["role"], "normal");
    process.signal(Signal::HUP);
    timeout(DEADLINE, fleet.service.wait_for(|s| s.find("b").is_none())).await.expect("deregistered").unwrap();
    assert!(process.ended().await.success());

    let mut ignoring = tokio::process::Command::new("sh");
    ignoring.args(["-c", "trap '' HUP; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_pointsman")]).args(args);
    let mut process = Running::start(ignoring);
    assert_eq!(process.json().await["role"], "normal");
    process.signal(Signal::HUP);
    process.signal(Signal::TERM);
    assert!(process.ended().await.success(), "by the second signal");
    fleet.end().await;
}

/// A command inherits neither the settings of its registration nor secrets.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_inherits_neither_settings_nor_secrets() {
    let mut shows =
        command(["register", "s", "--registry", "memory://", "--", "sh", "-c", "env | grep ^POINTSMAN_ | sort"]);
    shows.env("POINTSMAN_ADDRESS", "127.0.0.1:80").env("POINTSMAN_WEIGHT", "3").env("POINTSMAN_TAG", "a=b");
    shows.env("POINTSMAN_CODE", "code-1").env("POINTSMAN_AGENT_WRITE_TOKEN", "secret").env("POINTSMAN_OUTPUT", "table");
    shows.env("POINTSMAN_MQTT_PASSWORD", "secret").env("POINTSMAN_CHECK", "tcp");
    // Not the registry that is used, but with a secret all the same.
    shows.env("POINTSMAN_REGISTRY", "http://127.0.0.1:1?token=secret-secret-secret");
    let output = shows.env("POINTSMAN_STOP_TIMEOUT", "1s").output().await.unwrap();
    let said = stdout(&output);
    let said: Vec<_> = said.lines().filter(|line| !line.starts_with("POINTSMAN_OFFLINE")).collect();
    assert_eq!(
        said,
        ["POINTSMAN_CODE=code-1", "POINTSMAN_OUTPUT=table", "POINTSMAN_PARENT_CODE=code-1", "POINTSMAN_SERVICE=s"],
        "{}",
        stderr(&output)
    );

    let pointsman = env!("CARGO_BIN_EXE_pointsman");
    for (sets, wanted) in [("", None), ("POINTSMAN_CODE=mine ", Some("mine"))] {
        let inner = format!(
            "{sets}exec {pointsman} register inner --registry memory:// -- sh -c 'echo $POINTSMAN_SERVICE $POINTSMAN_CODE'"
        );
        let args = ["register", "s", "--code", "code-1", "--registry", "memory://", "--", "sh", "-c", &inner];
        let said = stdout(&run(&args).await);
        let (service, code) = said.trim().split_once(' ').unwrap();
        assert!(service == "inner" && code != "code-1", "a code of its own: {code}");
        assert!(wanted.is_none_or(|wanted| code == wanted), "what the command sets counts: {code}");
    }
}
