//! `serve` with an agent.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::path::{Path, PathBuf};

use pointsman_testkit::{TlsFiles, ZooKeeper, unique_prefix};
use rustix::process::Signal;
use support::served::{File, Stream, check_metrics, free_port, get, logged, serve};
use support::{DEADLINE, Running, command, run, stderr, stdout};
use tokio::process::Command;

/// What curl says; with its exit code where there is no answer.
async fn curl(args: &[&str]) -> String {
    let output = Command::new("curl").args(["--silent", "--show-error", "--max-time", "20"]).args(args).output();
    let output = output.await.unwrap();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The HTTP status.
async fn status(url: &str, more: &[&str]) -> String {
    curl(&[&["--output", "/dev/null", "--write-out", "%{http_code}", url][..], more].concat()).await
}

#[tokio::test]
async fn it_is_the_registry_where_none_is_named_and_ends_with_a_word() {
    let port = free_port();
    let file = File::new(&format!("[agent]\nlisten = '127.0.0.1:{port}'\n"));
    let mut running = serve(&file.path);
    logged(&mut running, " ready").await;
    let mut holding = Stream::open(port, "POST", "/v1/services/ress/instances/a/hold").await;
    holding.until("\"role\":\"master\"").await;
    let mut watching = Stream::open(port, "GET", "/v1/services/ress/watch").await;
    watching.until("\"code\":\"a\"").await;
    assert!(get(port, "/v1/services").await.contains("\"service\":\"ress\",\"instances\":1,\"master\":\"a\""));
    let metrics = get(port, "/metrics").await;
    check_metrics(&metrics);
    for words in ["\npointsman_registrations 1\n", "\npointsman_ready 1\n", "\npointsman_build_info{version="] {
        assert!(metrics.contains(words), "{words}: {metrics}");
    }
    running.signal(Signal::TERM);
    assert!(holding.ended().await.contains("event: end\ndata: {\"reason\":\"closing\"}\n"));
    watching.ended().await;
    assert_eq!(running.ended().await.code(), Some(0));
}

#[tokio::test]
async fn the_relay_is_found_through_the_agent_and_metrics_are_told_once() {
    let (port, broker, metrics) = (free_port(), free_port(), free_port());
    let file = File::new(&format!(
        "metrics.listen = '127.0.0.1:{metrics}'\n[agent]\nlisten = '127.0.0.1:{port}'\n\
         [mqtt]\nlisten = '127.0.0.1:{broker}'\nregister_as = 'mqtt-balancer'\n\
         [[mqtt.route]]\nmatch = '^/login(/|$)'\nservice = 'cfgs'\n"
    ));
    let mut running = serve(&file.path);
    logged(&mut running, " ready").await;
    // Answered as soon as the agent has seen anything of it.
    let relay = get(port, "/v1/services/mqtt-balancer/watch?after=0&wait=20s").await;
    assert!(relay.contains(&format!("\"address\":\"127.0.0.1:{broker}\"")), "{relay}");
    for port in [port, metrics] {
        let told = get(port, "/metrics").await;
        check_metrics(&told);
        for words in
            ["\npointsman_agent_connections ", "\npointsman_mqtt_", "\npointsman_broker_", "\npointsman_ready 1\n"]
        {
            assert!(told.contains(words), "{words}: {told}");
        }
    }
    let mut watching = Stream::open(port, "GET", "/v1/services/mqtt-balancer/watch").await;
    watching.until("event: freshness").await;
    running.signal(Signal::TERM);
    // The relay goes first, and who watches sees it go.
    assert!(watching.ended().await.contains("event: delete"));
    assert_eq!(running.ended().await.code(), Some(0));
}

#[tokio::test]
async fn tokens_and_certificates_are_taken_up_when_their_files_change() {
    let port = free_port();
    let file = File::new("");
    let folder = file.path.parent().unwrap().to_owned();
    let tls = |name: &str| {
        let folder = folder.join(name);
        std::fs::create_dir(&folder).unwrap();
        TlsFiles::create(&folder)
    };
    let (first, second) = (tls("first"), tls("second"));
    let write = |name: &str, text: &[u8]| {
        std::fs::write(folder.join("new"), text).unwrap();
        std::fs::rename(folder.join("new"), folder.join(name)).unwrap();
    };
    let copy = |from: &Path| write("server.pem", &std::fs::read(from).unwrap());
    copy(&first.server);
    write("read", b"read-read-read-read\n");
    write("write", b"write-write-write-write\n");
    file.replace(&format!(
        "[agent]\nlisten = '0.0.0.0:{port}'\nread_token_file = 'read'\nwrite_token_file = 'write'\n\
         tls_cert = 'server.pem'\ntls_key = 'server.pem'\n"
    ));
    let mut running = serve(&file.path);
    logged(&mut running, " ready").await;
    let url = format!("https://localhost:{port}/v1/services");
    let ask = async |ca: &PathBuf, token: &str| {
        status(&url, &["--cacert", ca.to_str().unwrap(), "--oauth2-bearer", token]).await
    };
    assert_eq!(ask(&first.ca, "read-read-read-read").await, "200");
    assert_eq!(ask(&first.ca, "another-another-another").await, "401");

    write("read", b"another-another-another");
    logged(&mut running, "configuration reloaded").await;
    assert_eq!(ask(&first.ca, "another-another-another").await, "200");
    assert_eq!(ask(&first.ca, "read-read-read-read").await, "401");
    // A token that cannot be changes nothing.
    write("read", b"short");
    logged(&mut running, "everything stays as it is").await;
    assert_eq!(ask(&first.ca, "another-another-another").await, "200");
    write("read", b"another-another-another");
    logged(&mut running, "configuration reloaded").await;

    copy(&second.server);
    logged(&mut running, "configuration reloaded").await;
    assert_eq!(ask(&second.ca, "another-another-another").await, "200");
    assert!(ask(&first.ca, "another-another-another").await.starts_with("000"));

    let text = std::fs::read_to_string(&file.path).unwrap();
    file.replace(&format!("{text}go_micro_service = true\n"));
    let line = logged(&mut running, "takes effect after a restart").await;
    assert!(line.contains("agent.go_micro_service"), "{line}");
    running.signal(Signal::TERM);
    assert_eq!(running.ended().await.code(), Some(0));
}

#[tokio::test]
async fn it_answers_while_the_registry_is_away() {
    let mut server = ZooKeeper::start().await;
    let port = free_port();
    let registry = format!("zookeeper://{}{}?session_timeout=4s", server.address(), unique_prefix());
    let file = File::new(&format!("registry = '{registry}'\nagent.listen = '127.0.0.1:{port}'\n"));
    let mut running = serve(&file.path);
    logged(&mut running, " ready").await;
    let mut holding = Stream::open(port, "POST", "/v1/services/ress/instances/a/hold").await;
    holding.until("\"role\":\"master\"").await;
    let mut watching = Stream::open(port, "GET", "/v1/services/ress/watch").await;
    // Or it would be away before it has told of the instance.
    watching.until("\"code\":\"a\"").await;
    server.kill();
    watching.until("\"state\":\"stale\"").await;
    let told = get(port, "/v1/services/ress/instances").await;
    assert!(told.contains("x-pointsman-freshness: stale;age_ms=") && told.contains("\"code\":\"a\""), "{told}");
    holding.until("\"role\":\"detached\"").await;
    assert!(get(port, "/readyz").await.contains("\"registry\":\"stale\""));
    server.restart().await;
    let mut again = Stream::open(port, "GET", "/v1/services/ress/watch").await;
    again.until("\"state\":\"fresh\"").await;
    running.signal(Signal::INT);
    assert_eq!(running.ended().await.code(), Some(0));
}

/// Two agents over one ZooKeeper, whose sessions are long: nobody here can afford to wait for one to end.
#[tokio::test]
async fn an_instance_survives_its_agents_one_by_one() {
    let server = ZooKeeper::shared().await;
    let registry = format!("zookeeper://{}{}?session_timeout=30s", server.address(), unique_prefix());
    let ports = [free_port(), free_port()];
    let file = |port: u16| File::new(&format!("registry = '{registry}'\nagent.listen = '127.0.0.1:{port}'\n"));
    let files = ports.map(file);
    let mut agents = [serve(&files[0].path), serve(&files[1].path)];
    for agent in &mut agents {
        logged(agent, " ready").await;
    }
    let url = format!("http://127.0.0.1:{},127.0.0.1:{}", ports[0], ports[1]);
    let args = ["register", "ress", "--code", "a", "--registry", &url, "-o", "json"];
    let mut instance = Running::start(command(args));
    let term = instance.json_where(|line| line["role"] == "master").await["term"].as_u64().unwrap();
    for (round, signal) in [Signal::KILL, Signal::TERM, Signal::KILL, Signal::TERM].into_iter().enumerate() {
        let used = agent_of(&ports).await;
        agents[used].signal(signal);
        // No fixed pair: the one that is left takes over, and the other starts again.
        let left = ports[1 - used];
        let line = instance.json_where(|line| line["role"] == "master").await;
        assert_eq!(line["term"], term, "round {round}: the mastership goes on");
        let mut seen = Stream::open(left, "GET", "/v1/services/ress/watch").await;
        seen.until(&format!("\"term\":{term}")).await;
        agents[used] = serve(&files[used].path);
        logged(&mut agents[used], " ready").await;
    }
    instance.signal(Signal::TERM);
    assert_eq!(instance.ended().await.code(), Some(0));
}

/// Which agent keeps the one registration.
async fn agent_of(ports: &[u16; 2]) -> usize {
    for (place, port) in ports.iter().enumerate() {
        if get(*port, "/metrics").await.contains("\npointsman_registrations 1\n") {
            return place;
        }
    }
    panic!("no agent has it");
}

#[tokio::test]
async fn it_waits_for_the_registry_and_says_what_it_cannot_do() {
    let file =
        File::new(&format!("registry = 'zookeeper://127.0.0.1:1/p'\nagent.listen = '127.0.0.1:{}'\n", free_port()));
    let mut running = serve(&file.path);
    logged(&mut running, "waiting for the registry").await;
    running.signal(Signal::INT);
    assert_eq!(running.ended().await.code(), Some(0));

    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let file = File::new(&format!("agent.listen = '{address}'\n"));
    let output = run(&["serve", "-c", file.path.to_str().unwrap()]).await;
    assert_eq!(output.status.code(), Some(1));
    let told = stderr(&output);
    assert!(told.contains(&format!("error: agent: listen on {address}: Address already in use")), "{told}");

    let file = File::new("agent.listen = '0.0.0.0:0'\n");
    let mut start = command([Path::new("serve"), Path::new("-c"), &file.path]);
    let output = start.output().await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains(":1:16: error: agent.listen is not on loopback"), "{}", stderr(&output));
    // With a token of the environment it may.
    start.env("POINTSMAN_AGENT_WRITE_TOKEN", "write-write-write-write");
    let mut running = Running::start_with_stderr(start);
    logged(&mut running, " ready").await;
    running.signal(Signal::TERM);
    assert_eq!(tokio::time::timeout(DEADLINE, running.ended()).await.unwrap().code(), Some(0));
}

/// One vocabulary: what `watch -o json` writes is what the agent's stream says, with the event's name in it.
#[tokio::test]
async fn the_events_of_watch_are_those_of_the_agents_stream() {
    let port = free_port();
    let url = format!("http://127.0.0.1:{port}");
    let mut running =
        Running::start_with_stderr(command(["serve", "--set", &format!("agent.listen=127.0.0.1:{port}")]));
    logged(&mut running, " ready").await;
    let mut stream = Stream::open(port, "GET", "/v1/services/ress/watch").await;
    stream.until("event: snapshot").await;
    let mut watch = Running::start(command(["watch", "ress", "-o", "json", "--registry", &url]));
    let instance = |code: &str| command(["register", "ress", "--code", code, "-o", "json", "--registry", &url]);
    let mut first = Running::start(instance("a"));
    first.line().await;
    let mut events = vec![watch.json_where(|line| line["event"] == "put").await];
    events.push(watch.json_where(|line| line["event"] == "master").await);
    assert_eq!(run(&["weight", "ress", "a", "5", "--registry", &url]).await.status.code(), Some(0));
    events.push(watch.json_where(|line| line["event"] == "put" && !line["before"].is_null()).await);
    first.signal(Signal::TERM);
    events.push(watch.json_where(|line| line["event"] == "delete").await);
    stream.until("event: delete").await;
    stream.until("\"reason\":\"left\"").await;
    let told = stream.seen();
    for event in events {
        let name = event["event"].as_str().unwrap();
        let begins = format!("event: {name}\ndata: ");
        let data = told.split(&begins).skip(1).filter_map(|rest| rest.lines().next());
        // The last one may not be whole.
        let data: Vec<serde_json::Value> = data.filter_map(|data| serde_json::from_str(data).ok()).collect();
        let has_all_of = |data: &serde_json::Value| {
            let fields = event.as_object().unwrap().iter().filter(|(field, _)| *field != "event");
            fields.clone().all(|(field, value)| data.get(field).is_some_and(|other| other.is_null() == value.is_null()))
                && data["reason"] == event["reason"]
        };
        assert!(data.iter().any(has_all_of), "{event} is none of {data:#?}");
    }
    watch.signal(Signal::TERM);
    running.signal(Signal::TERM);
    assert_eq!(running.ended().await.code(), Some(0));
}

#[tokio::test]
async fn audit_lists_what_operators_have_done() {
    let port = free_port();
    let url = format!("http://127.0.0.1:{port}");
    let mut running =
        Running::start_with_stderr(command(["serve", "--set", &format!("agent.listen=127.0.0.1:{port}")]));
    logged(&mut running, " ready").await;
    let mut instance = Running::start(command(["register", "ress", "--code", "a", "-o", "json", "--registry", &url]));
    instance.line().await;
    for args in [&["drain", "ress", "a"][..], &["weight", "ress", "a", "5"]] {
        let args = [args, &["--registry", &url]].concat();
        assert_eq!(run(&args).await.status.code(), Some(0), "{args:?}");
    }
    let output = run(&["audit", "ress", "-o", "json", "--registry", &url]).await;
    let actions: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let done = |index: usize| (actions[index]["action"].as_str().unwrap(), actions[index]["code"].as_str().unwrap());
    assert_eq!((done(0), done(1)), (("weight", "a"), ("drain", "a")), "{actions}");
    let output = run(&["audit", "other", "--registry", &url]).await;
    assert!(String::from_utf8(output.stdout).unwrap().starts_with("AGE"));
    running.signal(Signal::TERM);
    assert_eq!(running.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_registration_that_an_agent_keeps_is_resigned_and_deregistered_and_its_masters_are_told() {
    let port = free_port();
    let url = format!("http://127.0.0.1:{port}");
    let mut running =
        Running::start_with_stderr(command(["serve", "--set", &format!("agent.listen=127.0.0.1:{port}")]));
    logged(&mut running, " ready").await;
    for code in ["a-1", "b-1"] {
        let registered =
            curl(&["--json", "{}", "--request", "PUT", &format!("{url}/v1/services/ress/instances/{code}")]).await;
        assert!(registered.contains("\"term\"") || registered.contains("\"role\""), "{registered}");
    }
    let asked = |args: &[&str]| {
        let args: Vec<String> = args.iter().chain(&["--registry", &url]).map(ToString::to_string).collect();
        async move { run(&args.iter().map(String::as_str).collect::<Vec<_>>()).await }
    };
    assert_eq!(stdout(&asked(&["resign", "ress", "a"]).await), "ress/a-1 has handed its mastership over\n");
    let refused = asked(&["resign", "ress", "a-1"]).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("not master"), "{}", stderr(&refused));
    assert_eq!(stdout(&asked(&["deregister", "ress", "b"]).await), "ress/b-1 is deregistered\n");
    let refused = asked(&["deregister", "ress", "c"]).await;
    assert!(stderr(&refused).contains("ress has no instance with code c"), "{}", stderr(&refused));
    // The agent notes a master when it hears of it, which may be after the answer to whoever has made it one.
    let whole = async {
        loop {
            let history = asked(&["history", "ress", "-o", "json"]).await;
            let history: serde_json::Value = serde_json::from_slice(&history.stdout).unwrap();
            if history[0]["code"] == "a-1" && history[0]["until_ms"].is_null() {
                return history;
            }
        }
    };
    let history = tokio::time::timeout(DEADLINE, whole).await.unwrap();
    let masters: Vec<&str> = history.as_array().unwrap().iter().map(|one| one["code"].as_str().unwrap()).collect();
    assert_eq!(masters, ["a-1", "b-1", "a-1"], "{history}");
    assert!(history[0]["until_ms"].is_null() && history[1]["until_ms"].is_u64(), "{history}");
    let table = stdout(&asked(&["history", "ress"]).await);
    assert_eq!((table.lines().count(), table.lines().nth(1).unwrap().ends_with("is master")), (4, true), "{table}");
    running.signal(Signal::TERM);
    assert_eq!(running.ended().await.code(), Some(0));
}

#[tokio::test]
async fn only_an_agent_ends_a_registration_of_another_process() {
    let registry = format!("zookeeper://{}/{}", ZooKeeper::shared().await.address(), unique_prefix());
    let mut instance =
        Running::start(command(["register", "ress", "--code", "a", "-o", "json", "--registry", &registry]));
    instance.line().await;
    for word in ["resign", "deregister"] {
        let output = run(&[word, "ress", "a", "--registry", &registry]).await;
        assert_eq!(output.status.code(), Some(1), "{word}");
        assert!(stderr(&output).contains("only an agent can"), "{word}: {}", stderr(&output));
    }
}
