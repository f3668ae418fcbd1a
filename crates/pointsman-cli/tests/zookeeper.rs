//! Every command against a real ZooKeeper, in JSON.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::time::{Duration, Instant};

use pointsman_testkit::{ZooKeeper, unique_prefix};
use rustix::process::Signal;
use serde_json::{Value, json};
use support::{DEADLINE, Running, command, run, stderr, stdout};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use zookeeper_client::{Acls, CreateMode};

/// A registry of its own for each test.
struct Registry {
    url: String,
    prefix: String,
}

impl Registry {
    async fn new() -> Registry {
        let prefix = unique_prefix();
        let address = ZooKeeper::shared().await.address();
        Registry { url: format!("zookeeper://{address}{prefix}"), prefix }
    }

    fn args<'a>(&'a self, line: &'a str) -> Vec<&'a str> {
        line.split(' ')
            .take_while(|word| *word != "--")
            .chain(["--registry", &self.url])
            .chain(child_of(line))
            .collect()
    }

    fn start(&self, line: &str) -> Running {
        Running::start(command(self.args(line)))
    }

    async fn succeed(&self, line: &str) -> String {
        let output = run(&self.args(line)).await;
        assert_eq!(output.status.code(), Some(0), "{line}: {}", stderr(&output));
        stdout(&output)
    }

    async fn json(&self, line: &str) -> Value {
        let text = self.succeed(&format!("{line} -o json")).await;
        assert_eq!(text.lines().count(), 1, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    /// The message of a failure with this exit code.
    async fn fail(&self, code: i32, line: &str) -> String {
        let output = run(&self.args(line)).await;
        assert_eq!(output.status.code(), Some(code), "{line}: {}", stderr(&output));
        stderr(&output)
    }

    /// Asks again until the answer is right.
    async fn json_until(&self, line: &str, right: impl Fn(&Value) -> bool) -> Value {
        let started = Instant::now();
        loop {
            let value = self.json(line).await;
            if right(&value) {
                return value;
            }
            assert!(started.elapsed() < DEADLINE, "{line}: {value}");
        }
    }
}

/// From `--` on, with `'…'` as one word.
fn child_of(line: &str) -> Vec<&str> {
    let Some(at) = line.find(" -- ") else { return Vec::new() };
    let (words, script) = line[at + 1..].split_once(" '").unwrap_or((&line[at + 1..], ""));
    words.split(' ').chain((!script.is_empty()).then(|| script.trim_end_matches('\''))).collect()
}

#[tokio::test]
async fn register_list_master_pick() {
    let registry = Registry::new().await;
    let mut a = registry.start("register ress --code a --address 127.0.0.1:1 --weight 3 --tag zone=eu -o json");
    let role = a.json().await;
    assert_eq!((&role["event"], &role["role"]), (&json!("role"), &json!("master")), "{role}");
    let term = role["term"].as_u64().unwrap();
    let mut b = registry.start("register ress --code b -o json");
    assert_eq!(b.json().await, json!({"event": "role", "role": "normal"}));

    let master = json!({
        "service": "ress", "code": "a", "address": "127.0.0.1:1", "weight": 3, "role": "master", "term": term,
        "tags": {"zone": "eu"}, "status": "passing",
    });
    let normal = json!({
        "service": "ress", "code": "b", "address": null, "weight": 1, "role": "normal", "tags": {}, "status": "passing",
    });
    assert_eq!(registry.json("instances ress").await, json!([master, normal]));
    assert_eq!(registry.json("master ress").await, master);
    let services = registry.json("services").await;
    let service = json!({
        "service": "ress", "instances": 2, "master": "a", "term": term, "problems": 0, "guarded": false,
        "revision": services[0]["revision"],
    });
    assert!(services[0]["revision"].is_u64());
    assert_eq!(services, json!([service]));
    let picks = registry.json("pick ress --algorithm weightroundrobin --count 3").await;
    assert_eq!(picks, json!([normal, normal, normal]));
    assert!(registry.succeed("pick ress --explain").await.contains("round-robin"));
    let explained = registry.json("pick ress --explain --count 2").await;
    assert_eq!(explained["picks"], json!([normal, normal]));
    assert_eq!(explained["explanation"]["instances"][1]["code"], "b", "{explained}");
    assert_eq!(registry.json("pick ress --role master --count 2").await, json!([master, master]));
    assert_eq!(registry.json("pick ress --role all --count 2").await, json!([master, normal]));
    assert!(registry.succeed("pick ress --role master --explain").await.contains("role master: 1 of 2 can be picked"));
    let table = registry.succeed("instances ress").await;
    assert!(table.starts_with("CODE") && table.contains("zone=eu"), "{table}");

    // The master leaves; the other takes over, with a higher term.
    a.signal(Signal::TERM);
    assert_eq!(a.ended().await.code(), Some(0));
    let role = b.json().await;
    assert!(role["role"] == "master" && role["term"].as_u64().unwrap() > term, "{role}");
    assert_eq!(registry.json("pick ress").await[0]["code"], "b");
    b.signal(Signal::INT);
    assert_eq!(b.ended().await.code(), Some(0));
    assert_eq!(registry.json("instances ress").await, json!([]));
    assert!(registry.fail(1, "master ress").await.contains("no master"));
    assert!(registry.fail(1, "pick ress").await.contains("none is registered"));
}

#[tokio::test]
async fn overrides_are_listed_and_those_of_codes_that_are_gone_are_cleared() {
    let registry = Registry::new().await;
    assert!(stderr(&run(&registry.args("overrides")).await).contains("nothing"));
    let mut a = registry.start("register s --code a -o json");
    a.json().await;
    registry.succeed("drain s a").await;
    registry.succeed("drain s gone --force").await;
    registry.succeed("weight t gone 3 --force").await;
    let set = |service: &str, code: &str, drained: bool, weight: Value, registered: bool| json!({"service": service, "code": code, "drained": drained, "weight": weight, "registered": registered});
    let a = set("s", "a", true, Value::Null, true);
    let [gone, other] = [set("s", "gone", true, Value::Null, false), set("t", "gone", false, json!(3), false)];
    assert_eq!(registry.json("overrides").await, json!([a, gone, other]));
    assert_eq!(registry.json("overrides t").await, json!([other]));
    let output = run(&registry.args("overrides")).await;
    let (table, note) = (stdout(&output), stderr(&output));
    assert!(table.contains("REGISTERED") && note.contains("2 of codes that are not registered"), "{table}{note}");
    assert_eq!(registry.json("clear-overrides t").await, json!([other]));
    assert_eq!(registry.json("clear-overrides").await, json!([gone]));
    assert_eq!(registry.json("clear-overrides").await, json!([]));
    assert_eq!(registry.json("overrides").await, json!([a]));
}

#[tokio::test]
async fn drain_undrain_weight() {
    let registry = Registry::new().await;
    let mut a = registry.start("register s --code a -o json");
    a.json().await;
    let mut b = registry.start("register s --code b -o json");
    b.json().await;
    let drained = json!({
        "service": "s", "code": "b", "drained": true, "registered": true, "takes_work": false, "weight": 1, "others": 1,
    });
    assert_eq!(registry.json("drain s b").await, drained);
    let output = run(&registry.args("instances s -o json")).await;
    assert!(stderr(&output).contains("1 drained"), "{}", stderr(&output));
    assert!(!stdout(&output).contains("\"b\""), "{}", stdout(&output));
    let all = registry.json("instances s --all").await;
    assert_eq!((&all[1]["code"], &all[1]["status"]), (&json!("b"), &json!("drained")));
    // The master stands in.
    assert_eq!(registry.json("pick s").await[0]["code"], "a");
    assert_eq!(registry.succeed("undrain s b").await, "s/b undrained: it takes work again\n");
    registry.succeed("weight s b 0").await;
    let undrained = registry.succeed("undrain s b").await;
    assert!(undrained.contains("its weight is 0") && undrained.contains("pointsman weight s b 1"), "{undrained}");
    assert_eq!(registry.json("undrain s b").await["takes_work"], false);
    registry.succeed("weight s b 7").await;
    assert_eq!(registry.json("instances s").await[1]["weight"], 7);
    assert_eq!(registry.json("weight s b --reset").await["weight"], Value::Null);
    assert_eq!(registry.json("instances s").await[1]["weight"], 1);

    let message = registry.fail(1, "drain s x").await;
    assert!(message.contains("a, b") && message.contains("--force"), "{message}");
    assert!(registry.fail(1, "weight t x 1").await.contains("no instances"));
    registry.succeed("drain s x --force").await;
    let mut x = registry.start("register s --code x -o json");
    x.json().await;
    let all = registry.json_until("instances s --all", |all| all[2]["code"] == "x").await;
    assert_eq!(all[2]["status"], "drained", "{all}");
    assert_eq!(registry.json("drain s a").await["mastership"], "moves");
}

#[tokio::test]
async fn terms_rise_above_those_of_another_registry() {
    let registry = Registry::new().await;
    assert_eq!(registry.json("term-base").await, json!({"term_base": 0, "raised": false}));
    assert!(registry.succeed("term-base").await.starts_with("no term base is set"));
    let mut a = registry.start("register s --code a -o json");
    let before = a.json().await["term"].as_u64().unwrap();
    let above = 1_795_418_027_019_215_u64;
    let raised = registry.json(&format!("term-base --above {above}")).await;
    assert_eq!(raised, json!({"term_base": above, "raised": true}));
    assert_eq!(registry.json("term-base --above 7").await, json!({"term_base": above, "raised": false}));
    assert!(registry.succeed("term-base --above 7").await.contains("already: nothing is changed"));
    assert_eq!(registry.json("master s").await["term"], before, "it keeps its term");
    let mut b = registry.start("register s --code b -o json");
    b.json().await;
    a.signal(Signal::TERM);
    let role = b.json_where(|line| line["role"] == "master").await;
    assert!(role["term"].as_u64().unwrap() > above, "{role}");
    assert_eq!(registry.json("master s").await["term"], role["term"]);
    let output = run(&["term-base", "--registry", "memory://x", "-o", "json"]).await;
    assert!(stdout(&output).contains("\"term_base\":1"), "{output:?}");
}

#[tokio::test]
async fn watch_tells_a_life() {
    let registry = Registry::new().await;
    let mut watch = registry.start("watch s -o json");
    let mut a = registry.start("register s --code a --weight 2 -o json");
    a.json().await;
    let joined = watch.json_where(|line| line["event"] == "put").await;
    assert_eq!((&joined["service"], &joined["instance"]["weight"]), (&json!("s"), &json!(2)), "{joined}");
    registry.succeed("weight s a 5").await;
    let updated = watch.json_where(|line| line["event"] == "put" && !line["before"].is_null()).await;
    assert_eq!((&updated["before"]["weight"], &updated["instance"]["weight"]), (&json!(2), &json!(5)), "{updated}");
    a.signal(Signal::TERM);
    watch.json_where(|line| line["event"] == "delete" && line["instance"]["code"] == "a").await;
    watch.signal(Signal::INT);
    assert_eq!(watch.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_command_runs_beside_its_registration() {
    let registry = Registry::new().await;
    let mut watch = registry.start("watch -o json");
    // Its end, its output, and its exit code.
    let output =
        run(&registry.args("register s --code a -- sh -c 'echo $POINTSMAN_SERVICE/$POINTSMAN_CODE; exit 3'")).await;
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert_eq!(stdout(&output), "s/a\n");
    let output = run(&registry.args("register s -- sh -c 'kill -9 $$'")).await;
    assert_eq!(output.status.code(), Some(137), "{}", stderr(&output));
    assert!(registry.fail(127, "register s -- /does/not/exist").await.contains("/does/not/exist"));
    assert_eq!(registry.json("services").await, json!([]));

    // Its death is followed by the deregistration.
    let mut victim = registry.start("register t --code v -o json -- sh -c 'echo $$; exec sleep 100'");
    let mut pid = victim.line().await;
    if pid.starts_with('{') {
        pid = victim.line().await;
    }
    watch.json_where(|line| line["event"] == "put" && line["instance"]["code"] == "v").await;
    let killed = Instant::now();
    std::process::Command::new("kill").args(["-9", &pid]).status().unwrap();
    watch.json_where(|line| line["event"] == "delete" && line["instance"]["code"] == "v").await;
    // 100 ms, and something for the notice to come through two processes on a busy machine.
    assert!(killed.elapsed() < Duration::from_millis(600), "{:?}", killed.elapsed());
    assert_eq!(victim.ended().await.code(), Some(137));
}

#[tokio::test]
async fn a_signal_deregisters_first_and_then_reaches_the_command() {
    let registry = Registry::new().await;
    let mut watch = registry.start("watch -o json");
    let script = "trap \"echo stopping; sleep 1; exit 5\" TERM; echo ready; while :; do sleep 0.05; done";
    let mut polite = registry.start(&format!("register s --code p -- sh -c '{script}'"));
    assert_eq!(polite.line().await, "ready");
    watch.json_where(|line| line["event"] == "put").await;
    let signalled = Instant::now();
    polite.signal(Signal::TERM);
    watch.json_where(|line| line["event"] == "delete").await;
    assert!(signalled.elapsed() < Duration::from_secs(1), "{:?}", signalled.elapsed());
    assert_eq!(polite.ended().await.code(), Some(5));

    let deaf = "trap \"\" TERM; echo ready; while :; do sleep 0.05; done";
    let mut deaf = registry.start(&format!("register s --stop-timeout 300ms -- sh -c '{deaf}'"));
    assert_eq!(deaf.line().await, "ready");
    deaf.signal(Signal::TERM);
    assert_eq!(deaf.ended().await.code(), Some(137));
}

#[tokio::test]
async fn registered_only_while_the_check_passes() {
    let registry = Registry::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (answers, answer) = tokio::sync::watch::channel("503 Away");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let text = format!("HTTP/1.1 {}\r\ncontent-length: 0\r\n\r\n", *answer.borrow());
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(text.as_bytes()).await;
        }
    });
    let line =
        format!("register s --code a --check http://{address}/health --check-interval 50ms --check-fall 2 -o json");
    let mut watch = registry.start("watch s -o json");
    let mut checked = registry.start(&line);
    assert_eq!(registry.json("instances s").await, json!([]));
    answers.send_replace("200 OK");
    assert_eq!(checked.json().await["role"], "master");
    watch.json_where(|line| line["event"] == "put").await;
    answers.send_replace("503 Away");
    assert_eq!(checked.json().await, json!({"event": "role", "role": "detached"}));
    watch.json_where(|line| line["event"] == "delete").await;
    answers.send_replace("204 No Content");
    assert_eq!(checked.json().await["role"], "master");
    checked.signal(Signal::TERM);
    assert_eq!(checked.json().await["role"], "detached");
    assert_eq!(checked.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_check_that_never_passes_says_why() {
    let registry = Registry::new().await;
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let address = address.to_string();
    let args = ["register", "s", "--code", "a", "--check", &format!("tcp://{address}"), "--registry", &registry.url];
    let mut waiting = Running::start_with_stderr(command(args));
    let note = waiting.note().await;
    let begins = format!("note: s/a is not registered yet: the check fails: tcp://{address}: ");
    assert!(note.starts_with(&begins) && note.contains("refused"), "{note}");
    // Soon after it is up it is registered, although the interval is two seconds.
    let _listener = std::net::TcpListener::bind(&address).unwrap();
    let line = waiting.line().await;
    assert!(line.starts_with("s/a is master"), "{line}");
    waiting.signal(Signal::TERM);
    assert_eq!(waiting.ended().await.code(), Some(0));
}

#[tokio::test]
async fn an_observer_is_never_master() {
    let registry = Registry::new().await;
    let mut observer = registry.start("register s --code o --observer -o json");
    assert_eq!(observer.json().await, json!({"event": "role", "role": "normal"}));
    let listed = registry.json("instances s").await;
    assert_eq!((&listed[0]["role"], &listed[0]["observer"]), (&json!("normal"), &json!(true)), "{listed}");
    let mut other = registry.start("register s --code a -o json");
    assert_eq!(other.json().await["role"], "master");
}

#[tokio::test]
async fn a_code_is_registered_once() {
    let registry = Registry::new().await;
    let url = format!("{}?session_timeout=2s", registry.url);
    // Short sessions: the newcomer waits for as long as a dead holder's could last.
    let args = ["register", "s", "--code", "a", "--registry", &url, "-o", "json"];
    let mut first = Running::start(command(args));
    first.json().await;
    let output = run(&args).await;
    assert_eq!(output.status.code(), Some(1));
    let message = stderr(&output);
    assert!(message.contains("note: s/a is not registered yet: the code is registered already, by "), "{message}");
    assert!(message.contains("error: register s/a: the code is already registered"), "{message}");
}

#[tokio::test]
async fn wait_goes_on_trying() {
    let prefix = unique_prefix();
    let mut server = ZooKeeper::start().await;
    let url = format!("zookeeper://{}{prefix}", server.address());
    server.kill();
    let args = ["register", "s", "--registry", &url, "--connect-timeout", "100ms", "-o", "json"];
    assert_eq!(run(&args).await.status.code(), Some(1));
    let mut waiting = Running::start_with_stderr(command(args.iter().chain(&["--wait"])));
    let note = waiting.note().await;
    let words = format!("note: waiting for the registry at {url}: {}: Connection refused", server.address());
    assert!(note.starts_with(&words), "{note}");
    server.restart().await;
    assert_eq!(waiting.json().await["role"], "master");
    // The registry goes away: detached, and after its return the same again.
    server.kill();
    waiting.json_where(|line| line["role"] == "detached").await;
    server.restart().await;
    waiting.json_where(|line| line["role"] == "master").await;
    // Who signals twice does not wait for a registry that does not answer.
    server.pause();
    waiting.signal(Signal::TERM);
    waiting.json_where(|line| line["role"] == "detached").await;
    waiting.signal(Signal::TERM);
    let signalled = Instant::now();
    assert_eq!(waiting.ended().await.code(), Some(130));
    assert!(signalled.elapsed() < Duration::from_secs(1), "{:?}", signalled.elapsed());
    server.resume();
}

#[tokio::test]
async fn names_that_a_stranger_has_planted_harm_nobody() {
    let registry = Registry::new().await;
    let mut a = registry.start("register s --code a -o json");
    a.json().await;
    let client = ZooKeeper::shared().await.client().await;
    let open = CreateMode::Persistent.with_acls(Acls::anyone_all());
    let codes = ["x/y", "..", "a+", "#", "$SYS", "a b", "nul\\u0000"];
    for (number, code) in codes.iter().enumerate() {
        let data = format!(r#"{{"serverip":"h","serverport":1,"serveruniquecode":"{code}","weight":1}}"#);
        client.create(&format!("{}/s/normal{number}", registry.prefix), data.as_bytes(), &open).await.unwrap();
    }
    client.mkdir(&format!("{}/bad#service+", registry.prefix), &open).await.unwrap();
    client.create(&format!("{}/bad#service+/master", registry.prefix), b"{}", &open).await.unwrap();
    let all = registry.json_until("instances s --all", |all| all.as_array().unwrap().len() == 8).await;
    let invalid: Vec<_> = all.as_array().unwrap().iter().filter(|item| item["status"] == "invalid").collect();
    assert_eq!(invalid.len(), codes.len(), "{all}");
    for item in invalid {
        let reason = item["reason"].as_str().unwrap();
        assert!(reason.contains("1 to 255 bytes") && item["code"].is_null() && item["node"].is_string(), "{item}");
    }
    let table = registry.succeed("instances s --all").await;
    assert!(table.contains("\"x/y\"") && !table.contains('\0'), "{table}");
    let services = registry.json("services").await;
    assert_eq!((&services[0]["service"], &services[0]["problems"]), (&json!("bad#service+"), &json!(1)), "{services}");
    assert_eq!((&services[1]["instances"], &services[1]["problems"]), (&json!(1), &json!(7)), "{services}");
    assert!(registry.fail(2, "drain s x/y").await.contains("1 to 255 bytes"));
    // The rest goes on: picks, and an election.
    assert_eq!(registry.json("pick s").await[0]["code"], "a");
    let mut b = registry.start("register s --code b -o json");
    b.json_where(|line| line["role"] == "normal").await;
    a.signal(Signal::TERM);
    b.json_where(|line| line["role"] == "master").await;
}

#[tokio::test]
async fn what_is_no_instance_is_shown_on_demand() {
    let registry = Registry::new().await;
    let mut a = registry.start("register s --code a -o json");
    a.json().await;
    let client = ZooKeeper::shared().await.client().await;
    let open = CreateMode::Persistent.with_acls(Acls::anyone_all());
    let clamped = br#"{"serverip":"","serverport":0,"serveruniquecode":"c","weight":-3}"#;
    for (node, data) in [("broken", &b"{"[..]), ("clamped", &clamped[..]), ("odd\u{202e}name", b"")] {
        client.create(&format!("{}/s/{node}", registry.prefix), data, &open).await.unwrap();
    }
    let right = |all: &Value| all.as_array().unwrap().len() == 5;
    let all = registry.json_until("instances s --all", right).await;
    let of = |status: &str| all.as_array().unwrap().iter().filter(|item| item["status"] == status).count();
    assert_eq!((of("passing"), of("drained"), of("invalid"), of("clamped")), (1, 1, 2, 1), "{all}");
    let table = registry.succeed("instances s --all").await;
    assert!(table.contains("odd\\u{202e}name") && !table.contains('\u{202e}'), "{table}");
    let output = run(&registry.args("instances s -o json")).await;
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap().as_array().unwrap().len(), 1);
    assert!(stderr(&output).contains("1 drained, 3 with a problem"), "{}", stderr(&output));
    assert_eq!(registry.json("services").await[0]["problems"], 3);
}

#[tokio::test]
async fn status_names_what_is_not_in_order() {
    let registry = Registry::new().await;
    let mut a = registry.start("register s --code a-1 -o json");
    a.json().await;
    let status = registry.json("status").await;
    let wanted = json!({
        "ok": true, "reachable": true, "registry": registry.url, "kind": "zookeeper", "age_ms": 0, "services": 1,
        "instances": 1, "masters": 1, "problems": [], "notes": [],
    });
    assert_eq!(status, wanted);
    let mut observer = registry.start("register t --code o --observer -o json");
    observer.json().await;
    registry.succeed("drain s a-").await;
    let output = run(&registry.args("status -o json")).await;
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let status: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let found =
        |index: usize| (status["problems"][index]["service"].clone(), status["problems"][index]["kind"].clone());
    assert_eq!((found(0), found(1)), ((json!("s"), json!("no-work")), (json!("t"), json!("no-master"))), "{status}");
    assert!(registry.fail(1, "status").await.is_empty());
    // It may be the code of another instance that is gone.
    let mut b = registry.start("register s --code a-10 -o json");
    b.json().await;
    a.signal(Signal::TERM);
    a.ended().await;
    let message = registry.fail(1, "drain s a-1").await;
    assert!(message.contains("near ones are a-10; `pointsman instances s --all` lists all"), "{message}");
}
