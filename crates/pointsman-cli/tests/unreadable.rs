//! What a registry does not let be read is told, and is not taken for absent; nothing hides in what is shown.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use pointsman_testkit::{ZooKeeper, unique_prefix};
use serde_json::Value;
use support::{Running, command, run, stderr, stdout};
use zookeeper_client::{Acl, Acls, Client, CreateMode, Permission};

struct Foreign {
    raw: Client,
    prefix: String,
    url: String,
}

impl Foreign {
    async fn new() -> Self {
        let (server, prefix) = (ZooKeeper::shared().await, unique_prefix());
        let url = format!("zookeeper://{}{prefix}", server.address());
        Self { raw: server.client().await, prefix, url }
    }

    async fn instance(&self, service: &str, json: &str) {
        let folder = format!("{}/{service}", self.prefix);
        self.raw.mkdir(&folder, &CreateMode::Persistent.with_acls(Acls::anyone_all())).await.unwrap();
        let options = CreateMode::EphemeralSequential.with_acls(Acls::anyone_all());
        self.raw.create(&format!("{folder}/normal"), json.as_bytes(), &options).await.unwrap();
    }

    async fn allow(&self, path: &str, permission: Permission) {
        let path = format!("{}/{path}", self.prefix);
        self.raw.set_acl(&path, &[Acl::new_const(permission, "world", "anyone")], None).await.unwrap();
    }

    /// What a command writes to stdout and stderr, and its exit code.
    async fn run(&self, line: &str) -> (String, String, Option<i32>) {
        let output = run(&line.split(' ').chain(["--registry", &self.url]).collect::<Vec<_>>()).await;
        (stdout(&output), stderr(&output), output.status.code())
    }
}

#[tokio::test]
async fn a_service_that_may_not_be_read_is_told_by_every_command() {
    let foreign = Foreign::new().await;
    let json = r#"{"serverip":"127.0.0.1","serverport":1,"serveruniquecode":"a","weight":1}"#;
    foreign.instance("ress", json).await;
    foreign.allow("ress", Permission::ADMIN | Permission::CREATE | Permission::DELETE).await;
    let reason = format!("not authorized: {}/ress", foreign.prefix);
    let (listed, note, code) = foreign.run("services -o json").await;
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!((&listed[0]["service"], &listed[0]["problems"], code), (&"ress".into(), &1.into(), Some(0)));
    assert!(note.contains(&reason), "{note}");
    for line in ["instances ress", "master ress", "pick ress", "drain ress a", "instances ress -o json"] {
        let (_, error, code) = foreign.run(line).await;
        assert!(
            code == Some(1) && error.contains(&format!("service ress cannot be read: {reason}")),
            "{line}: {error}"
        );
    }
    let mut watching = Running::start_with_stderr(command(["watch", "ress", "--registry", &foreign.url]));
    while !watching.note().await.contains("note: service ress cannot be read") {}
    foreign.allow("ress", Permission::ALL).await;
    while !watching.note().await.contains("service ress can be read again") {}
    while !watching.line().await.contains("ress a joined") {}
    let (_, _, code) = foreign.run("instances ress").await;
    assert_eq!(code, Some(0));
}

#[tokio::test]
async fn nothing_hides_in_what_strangers_have_written() {
    let foreign = Foreign::new().await;
    let json =
        r#"{"serverip":"h","serverport":1,"serveruniquecode":"a","weight":1,"pointsman":{"tags":{"x":"1\u202e2"}}}"#;
    foreign.instance("ress", json).await;
    foreign.instance("re\u{200b}ss", json).await;
    foreign.instance("ress", &json.replace("\"a\"", r#""b\u2066""#)).await;
    for line in ["services", "instances ress --all", "services -o json", "instances ress --all -o json"] {
        let (listed, notes, code) = foreign.run(line).await;
        assert_eq!(code, Some(0), "{notes}");
        assert!(!listed.chars().chain(notes.chars()).any(pointsman::is_invisible), "{line}: {listed} {notes}");
    }
    let (listed, ..) = foreign.run("instances ress --all").await;
    assert!(listed.contains(r"x=1\u{202e}2") && listed.contains(r"b\u{2066}"), "{listed}");
    let (listed, ..) = foreign.run("instances ress -o json").await;
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed[0]["tags"]["x"], "1\u{202e}2", "programs read what is there");
}
