//! Users of the embedded broker: how they are made, and how a running broker takes them up.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Output, Stdio};

use pointsman_testkit::{Paho, PahoEvent, PahoMessage, PahoOptions, TlsFiles};
use support::served::{File, check_metrics, free_port, get, logged, serve};
use support::{DEADLINE, command, run, stderr};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// `pointsman mqtt passwd`, with a password on stdin.
async fn passwd(file: &Path, user: &str, password: &str) -> Output {
    let mut command: Command = command(["mqtt", "passwd"]);
    let command = command.arg(file).arg(user).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // One that is refused before it is read ends early.
    let _ = child.stdin.take().unwrap().write_all(format!("{password}\nnot this\n").as_bytes()).await;
    child.wait_with_output().await.unwrap()
}

async fn disconnected(paho: &Paho) {
    while !matches!(paho.next_event(DEADLINE).await, PahoEvent::Disconnected { .. }) {}
}

#[tokio::test]
async fn users_are_added_changed_and_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("users");
    let path = file.to_str().unwrap();
    for (user, password, word) in [("anna", "a", "added"), ("bert", "b", "added"), ("anna", "c", "another")] {
        let output = passwd(&file, user, password).await;
        assert!(output.status.success() && stderr(&output).contains(word), "{output:?}");
    }
    let text = std::fs::read_to_string(&file).unwrap();
    let users: Vec<&str> = text.lines().map(|line| line.split_once(":$argon2id$").unwrap().0).collect();
    assert_eq!(users, ["anna", "bert"]);
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    for (user, password, code) in [("anna", "", 1), ("a:b", "x", 2)] {
        assert_eq!(passwd(&file, user, password).await.status.code(), Some(code), "{user}");
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
    assert!(run(&["mqtt", "passwd", path, "anna", "--delete"]).await.status.success());
    let output = run(&["mqtt", "passwd", path, "anna", "--delete"]).await;
    assert!(!output.status.success() && stderr(&output).contains("has no user"), "{output:?}");
    assert!(std::fs::read_to_string(&file).unwrap().starts_with("bert:"));
}

#[tokio::test]
async fn a_running_broker_takes_users_and_its_certificate_up() {
    let (port, metrics) = (free_port(), free_port());
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (folder.path().join("old"), folder.path().join("new"));
    for folder in [&old, &new] {
        std::fs::create_dir(folder).unwrap();
    }
    let (tls, renewed) = (TlsFiles::create(&old), TlsFiles::create(&new));
    let users = folder.path().join("users");
    assert!(passwd(&users, "anna", "a").await.status.success());
    let text = |allowed: &str| {
        let (users, server) = (users.display(), tls.server.display());
        format!(
            "registry = 'memory://mqtt-users'\nmetrics.listen = '127.0.0.1:{metrics}'\n\
             [mqtt]\nlisten = '127.0.0.1:{port}'\nusers_file = '{users}'\ntls_cert = '{server}'\ntls_key = '{server}'\n\
             [[mqtt.allow]]\nuser = 'anna'\nsubscribe = ['{allowed}']\n\
             [[mqtt.route]]\nmatch = '^/login(/|$)'\nservice = 'cfgs'\n"
        )
    };
    let file = File::new(&text("news/#"));
    let mut running = serve(&file.path);
    logged(&mut running, "MQTT broker lets clients in").await;
    let address = format!("localhost:{port}");
    let connect = async |user: &str, password: &str, tls: &TlsFiles| {
        let paho = Paho::start().await;
        let options = PahoOptions::new(&address).password(user, password).tls(tls);
        let connack = paho.try_connect(options).await?;
        if connack.reason == 0 { Ok(paho) } else { Err(format!("turned away: {}", connack.reason)) }
    };
    let anna = connect("anna", "a", &tls).await.unwrap();
    anna.subscribe("news/#", 1).await;
    anna.publish(PahoMessage::new("/login/x", "x")).await;
    assert!(connect("bert", "b", &tls).await.is_err());
    assert!(passwd(&users, "bert", "b").await.status.success());
    logged(&mut running, "configuration reloaded").await;
    let bert = connect("bert", "b", &tls).await.unwrap();
    assert!(run(&["mqtt", "passwd", users.to_str().unwrap(), "bert", "--delete"]).await.status.success());
    logged(&mut running, "configuration reloaded").await;
    disconnected(&bert).await;
    assert!(connect("bert", "b", &tls).await.is_err());
    // The certificate is another one, without a restart.
    std::fs::copy(&renewed.server, &tls.server).unwrap();
    logged(&mut running, "configuration reloaded").await;
    assert!(connect("anna", "a", &tls).await.is_err());
    connect("anna", "a", &renewed).await.unwrap();
    // And so are the rules.
    file.replace(&text("other/#"));
    logged(&mut running, "configuration reloaded").await;
    disconnected(&anna).await;
    let seen = get(metrics, "/metrics").await;
    check_metrics(&seen);
    assert!(seen.contains("pointsman_broker_wrong_passwords_total 2"), "{seen}");
}

#[tokio::test]
async fn a_client_id_forges_no_line_of_the_log() {
    let port = free_port();
    let file = File::new(&format!(
        "registry = 'memory://mqtt-log'\n[mqtt]\nlisten = '127.0.0.1:{port}'\n\
         [[mqtt.route]]\nmatch = '^/login(/|$)'\nservice = 'cfgs'\n"
    ));
    let mut running = serve(&file.path);
    logged(&mut running, "MQTT broker lets clients in").await;
    let paho = Paho::start().await;
    let id = "x\n2026-12-01T00:00:00Z ERROR forged\u{1b}[2J";
    paho.connect(PahoOptions::new(&format!("127.0.0.1:{port}")).client_id(id)).await;
    let line = logged(&mut running, "forged").await;
    assert!(
        line.contains("MQTT client connected") && line.contains(r"x\n2026") && line.contains(r"\u{1b}[2J"),
        "{line}"
    );
}
