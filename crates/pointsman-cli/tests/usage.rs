//! Without a registry: help, wrong usage, a registry that is not there, `dev` and its tour.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use support::{DEADLINE, Running, command, run, served, stderr, stdout};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

#[tokio::test]
async fn help_names_every_command() {
    let output = run(&["--help"]).await;
    assert_eq!(output.status.code(), Some(0));
    let help = stdout(&output);
    for word in [
        "dev",
        "register",
        "services",
        "instances",
        "master",
        "watch",
        "pick",
        "drain",
        "undrain",
        "weight",
        "term-base",
        "overrides",
        "clear-overrides",
        "serve",
        "check",
        "completions",
        "status",
        "version",
        "audit",
        "history",
        "resign",
        "deregister",
        "man",
    ] {
        assert!(help.contains(&format!("\n  {word}")), "{word} is not in {help}");
        let output = run(&[word, "--help"]).await;
        assert_eq!(output.status.code(), Some(0), "{word}");
        assert!(stdout(&output).contains("POINTSMAN_REGISTRY"), "{word}");
    }
    assert!(stdout(&run(&["--version"]).await).starts_with("pointsman "));
}

#[tokio::test]
async fn wrong_usage_exits_with_2_and_says_so_on_stderr() {
    for (args, word) in [
        (&["bogus"][..], "bogus"),
        (&[], "Usage"),
        (&["register"], "<SERVICE>"),
        (&["register", "a/b"], "1 to 255 bytes"),
        (&["register", "s", "--address", "h"], "host:port"),
        (&["register", "s", "--check", "udp://h:1"], "tcp://host:port"),
        (&["register", "s", "--check", "tcp"], "needs an address"),
        (&["pick", "s", "--algorithm", "best"], "peak-ewma"),
        (&["pick", "s", "--role", "slave"], "normal, master, all"),
        (&["services", "-o", "xml"], "json"),
        (&["weight", "s", "c", "1000001"], "1000000"),
        (&["completions", "cmd"], "bash"),
    ] {
        let output = run(args).await;
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(word), "{args:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "", "{args:?}");
    }
}

#[tokio::test]
async fn names_that_cannot_be_are_refused_with_the_rule_wherever_they_are_typed() {
    let long = "x".repeat(256);
    for name in ["", ".", "..", "a/b", "a+", "a#b", "$SYS", "a b", "a\n", "\u{e000}", &long] {
        for args in [
            &["register", name][..],
            &["register", "s", "--code", name],
            &["instances", name],
            &["master", name],
            &["watch", name],
            &["pick", name],
            &["drain", name, "c"],
            &["drain", "s", name],
            &["undrain", "s", name],
            &["weight", "s", name, "1"],
        ] {
            let output = run(args).await;
            assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
            assert!(stderr(&output).contains("1 to 255 bytes"), "{args:?}: {}", stderr(&output));
            assert_eq!(stdout(&output), "", "{args:?}");
        }
    }
    // From a variable as well, and what is no text at all.
    let output = command(["register", "s"]).env("POINTSMAN_CODE", "a/b").output().await.unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--code") && stderr(&output).contains("'/'"), "{}", stderr(&output));
    let bytes = std::os::unix::ffi::OsStrExt::from_bytes(&b"s\xff"[..]);
    let output = command([std::ffi::OsStr::new("register"), bytes]).output().await.unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
}

const WITHOUT_AGENT: [&str; 5] =
    ["127.0.0.1:7480", "--registry", "zookeeper://", "POINTSMAN_REGISTRY", "pointsman dev"];

#[tokio::test]
async fn a_registry_that_cannot_be_is_an_error() {
    for (url, word) in [
        ("consul://127.0.0.1:8500", "unknown scheme"),
        ("127.0.0.1:2181", "no scheme"),
        ("zookeeper://127.0.0.1:2181", "no prefix"),
        ("zookeeper://127.0.0.1:99999/p", "65535"),
        ("zookeeper://127.0.0.1:2181/p?auth=digest:u:geheim&x=1", "unknown option \"x\""),
        (
            "zookeeper://127.0.0.1:2181/p?sesion_timeout=9s",
            "\"sesion_timeout\"; known for zookeeper:// are session_timeout",
        ),
        ("zookeeper://127.0.0.1:2181/p?session_timeout=9", "session_timeout: \"9\" is not a duration"),
    ] {
        let output = run(&["services", "--registry", url]).await;
        assert_eq!(output.status.code(), Some(2), "{url}");
        let message = stderr(&output);
        assert!(message.starts_with("error: ") && message.contains(word), "{url}: {message}");
        assert!(!message.contains("geheim"), "{message}");
    }
    // Where an agent runs on this machine, as it does in another of these tests, that one is asked.
    let output = run(&["services"]).await;
    let words = if output.status.success() { &[][..] } else { &WITHOUT_AGENT };
    for word in words {
        assert!(stderr(&output).contains(word), "{}", stderr(&output));
    }
    let output = run(&["services", "--registry", "memory://x"]).await;
    assert_eq!(output.status.code(), Some(0));
    assert!(stderr(&output).contains("this process alone"), "{}", stderr(&output));
}

#[tokio::test]
async fn nobody_listening_is_told_within_the_connect_timeout() {
    let started = Instant::now();
    let url = "zookeeper://127.0.0.1:1/p";
    let output = run(&["services", "--registry", url, "--connect-timeout", "500ms"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    let message = stderr(&output);
    assert!(message.starts_with("error: ") && message.contains("127.0.0.1:1"), "{message}");
    assert_eq!(message.matches("error: ").count(), 1, "{message}");
    assert_eq!(stdout(&output), "");
}

#[tokio::test]
async fn whoever_waits_is_told_for_what_and_data_stays_clean() {
    let told = |mut command: tokio::process::Command| async move {
        command.env("POINTSMAN_WAIT", "1").stdout(Stdio::piped());
        let mut waiting = Running::start_with_stderr(command);
        let note = waiting.note().await;
        waiting.signal(Signal::TERM);
        assert!(waiting.runs() || waiting.ended().await.success());
        note
    };
    let words = "waiting for the registry at zookeeper://127.0.0.1:1/p: 127.0.0.1:1: Connection refused";
    let watch = ["watch", "--registry", "zookeeper://127.0.0.1:1/p", "-o", "json"];
    let text = told(command(watch)).await;
    assert!(text.starts_with(&format!("note: {words}")), "{text}");
    let json = told(command(watch.iter().chain(&["--log-format", "json"]))).await;
    let line: Value = serde_json::from_str(&json).unwrap();
    assert!(line["message"].as_str().unwrap().starts_with(words), "{line}");
}

#[tokio::test]
async fn whoever_waits_after_the_first_answer_is_told_too() {
    for line in ["overrides", "term-base", "watch s", "pick s", "drain s a --force"] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        // An agent that answers once, and hangs since.
        let agent = tokio::spawn(async move {
            let (mut first, _) = listener.accept().await.unwrap();
            assert!(first.read(&mut [0; 4096]).await.unwrap() > 0);
            first.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]").await.unwrap();
            let mut held = vec![first];
            loop {
                held.push(listener.accept().await.unwrap().0);
            }
        });
        let mut asking = Running::start_with_stderr(command(line.split(' ').chain(["--wait", "--registry", &url])));
        assert_eq!(asking.note().await, format!("note: waiting for the registry at {url}: no answer yet"), "{line}");
        asking.signal(Signal::KILL);
        agent.abort();
    }
}

#[tokio::test]
async fn flags_beat_variables() {
    let mut with_variable = command(["services"]);
    with_variable.env("POINTSMAN_REGISTRY", "consul://variable").env("POINTSMAN_LOG_FORMAT", "json");
    let output = with_variable.output().await.unwrap();
    let line: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert!(line["message"].as_str().unwrap().contains("consul://variable"), "{line}");
    let mut with_both = command(["services", "--registry", "consul://flag"]);
    let output = with_both.env("POINTSMAN_REGISTRY", "consul://variable").output().await.unwrap();
    assert!(stderr(&output).contains("consul://flag"), "{}", stderr(&output));
}

#[tokio::test]
async fn version_says_which_build_it_is() {
    let output = run(&["version", "-o", "json"]).await;
    let version: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert!(stdout(&run(&["--version"]).await).trim().ends_with(version["version"].as_str().unwrap()), "{version}");
    let (commit, date) = (version["commit"].as_str().unwrap(), version["commit_date"].as_str().unwrap());
    assert!(commit == "unknown" || (commit.len() == 40 && date.starts_with("20")), "{version}");
    assert!(version["target"].as_str().unwrap().contains('-'), "{version}");
    assert!(stdout(&run(&["version"]).await).contains(commit));
}

#[tokio::test]
async fn status_of_a_registry_that_is_away_is_not_in_order() {
    let args = ["status", "--registry", "zookeeper://127.0.0.1:1/p", "--connect-timeout", "100ms", "-o", "json"];
    let output = run(&args).await;
    assert_eq!(output.status.code(), Some(1));
    let status: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!((&status["ok"], &status["reachable"]), (&false.into(), &false.into()), "{status}");
    assert!(status["error"].as_str().unwrap().contains("127.0.0.1:1"), "{status}");
    let output = run(&["status", "--registry", "memory://x"]).await;
    assert_eq!(output.status.code(), Some(0));
    assert!(stdout(&output).ends_with("in order\n"), "{}", stdout(&output));
}

#[tokio::test]
async fn completions_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(&["completions", shell]).await;
        assert_eq!(output.status.code(), Some(0), "{shell}");
        let script = stdout(&output);
        assert!(script.contains("undrain"), "{shell}");
    }
}

#[tokio::test]
async fn manual_pages_of_every_command() {
    let folder = tempfile::tempdir().unwrap();
    let man = folder.path().join("man1");
    assert_eq!(run(&["man", man.to_str().unwrap()]).await.status.code(), Some(0));
    let page = std::fs::read_to_string(man.join("pointsman-drain.1")).unwrap();
    assert!(page.contains("POINTSMAN_FORCE"), "{page}");
    let page = std::fs::read_to_string(man.join("pointsman.1")).unwrap();
    assert!(page.contains("POINTSMAN_REGISTRY"), "{page}");
    let output = run(&["man", "/dev/null/x"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("/dev/null/x"), "{}", stderr(&output));
}

#[tokio::test]
async fn a_reader_that_goes_away_is_no_failure() {
    let mut child = command(["completions", "bash"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().await.unwrap();
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), String::new()));
}

#[tokio::test]
async fn the_tour_checks_itself() {
    let output = run(&["dev", "--tour", "-o", "json"]).await;
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), String::new()));
    let text = stdout(&output);
    assert!(text.contains("peak-ewma") && text.contains("is stale"), "{text}");
    for line in text.lines() {
        let step: Value = serde_json::from_str(line).unwrap();
        assert_eq!(step["ok"], true, "{step}");
    }
    assert_eq!(text.lines().count(), 21, "README.md says how many: {text}");
}

#[tokio::test]
async fn dev_without_a_terminal_writes_lines_until_a_signal() {
    for signal in [Signal::INT, Signal::TERM] {
        let mut dev = Running::start(command(["dev"]));
        let mut masters = 0;
        while masters < 2 {
            masters += usize::from(dev.line().await.contains("is master"));
        }
        dev.signal(signal);
        assert_eq!(dev.ended().await.code(), Some(0));
    }
    // Two at a time: the second's agent, proxy and broker take other ports, and it says which.
    let mut other = Running::start_with_stderr(command(["dev"]));
    let dashboard = served::logged(&mut other, "dashboard at http://127.0.0.1:").await;
    let port = dashboard.split("127.0.0.1:").nth(1).unwrap().split('/').next().unwrap().parse().unwrap();
    let proxy = proxy_port(&mut other).await;
    let mut dev = Running::start_with_stderr(command(["dev", "-o", "json"]));
    let dashboard = served::logged(&mut dev, "dashboard at http://127.0.0.1:").await;
    assert!(!dashboard.contains(&format!(":{port}/")), "{dashboard}");
    assert_ne!(proxy_port(&mut dev).await, proxy);
    assert!(served::get(port, "/v1/services/ress/watch?after=0&wait=20s").await.contains("\"code\":\"ress-1\""));
    // What its proxy counts stands with the rest; and the proxy is a service that clients find.
    let served = async { while !served::get(proxy, "/picture/1").await.contains("hello from ress-") {} };
    tokio::time::timeout(DEADLINE, served).await.unwrap();
    let metrics = served::get(port, "/metrics").await;
    served::check_metrics(&metrics);
    for series in [
        "pointsman_http_requests_total{route=\"picture\",service=\"ress\",code=\"2xx\"} ",
        "pointsman_mqtt_",
        "pointsman_service_instances{service=\"http-balancer\",",
    ] {
        assert!(metrics.contains(series), "{series}: {metrics}");
    }
    assert!(served::get(port, "/v1/services/http-balancer/instances").await.contains(&format!(":{proxy}\"")));
    other.signal(Signal::INT);
    assert_eq!(other.ended().await.code(), Some(0));
    let master = dev.json_where(|line| line["event"] == "master" && line["service"] == "ress").await;
    assert_eq!(master["master"]["code"], "ress-1", "{master}");
    dev.signal(Signal::INT);
    assert_eq!(dev.ended().await.code(), Some(0));
}

#[expect(clippy::unwrap_used, reason = "a test's helper")]
async fn proxy_port(dev: &mut Running) -> u16 {
    let line = served::logged(dev, "HTTP proxy at http://127.0.0.1:").await;
    line.split("127.0.0.1:").nth(1).unwrap().split('/').next().unwrap().parse().unwrap()
}
