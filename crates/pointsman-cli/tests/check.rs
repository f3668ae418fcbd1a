//! `check`: what it says of a configuration file, and with which exit code.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use serde_json::Value;
use support::{command, run, stderr, stdout};

/// What `check` says of a file with this text.
async fn check(text: &str, args: &[&str]) -> std::process::Output {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("p.toml"), text).unwrap();
    command(["check", "p.toml"]).args(args).current_dir(folder.path()).output().await.unwrap()
}

const GOOD: &str = "registry = 'zookeeper://h/p?auth=digest:u:geheim'\n[metrics]\nlisten = '127.0.0.1:7483'\n[mqtt]\n\
                    register_as = 'mqtt-balancer'\n[[mqtt.route]]\nmatch = '^/login(/|$)'\nservice = 'cfgs'\n";

#[tokio::test]
async fn check_says_what_a_file_would_run() {
    let output = check(GOOD, &[]).await;
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), String::new()));
    assert_eq!(
        stdout(&output),
        "p.toml is in order\n\
         registry  zookeeper://h/p?auth=***\n\
         mqtt      embedded broker at 127.0.0.1:7482, topics code-last, registers as mqtt-balancer\n          \
         ^/login(/|$) -> cfgs, round-robin\n          \
         subscribes to /login/#\n\
         metrics   http://127.0.0.1:7483/metrics\n"
    );
    let output = check(GOOD, &["-o", "json"]).await;
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), String::new()));
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!((&report["ok"], &report["problems"]), (&Value::Bool(true), &Value::Array(Vec::new())));
    assert_eq!(report["mqtt"]["subscriptions"][0], "/login/#");
    assert_eq!(report["mqtt"]["routes"][0]["algorithm"], "round-robin");
}

#[tokio::test]
async fn check_says_what_an_agent_would_be() {
    let output = check("[agent]\n", &[]).await;
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), String::new()));
    let expected = "p.toml is in order\n\
                    registry  memory:// (the agent itself: it forgets with its end)\n\
                    agent     http://127.0.0.1:7480/, for everybody on this machine\n";
    assert_eq!(stdout(&output), expected);
    let output = check("[agent]\n", &["--registry", "zookeeper://h/p?auth=digest:u:geheim"]).await;
    assert!(stdout(&output).contains("registry  zookeeper://h/p?auth=***\n"), "{}", stdout(&output));
    let output = check("[agent]\nhosts = 'a.example'\ngo_micro_service = true\n", &["-o", "json"]).await;
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let agent = &report["agent"];
    assert_eq!((&agent["listen"], &agent["hosts"][0]), (&"127.0.0.1:7480".into(), &"a.example".into()), "{report}");
    assert_eq!(
        (&agent["is_registry"], &agent["go_micro_service"], &agent["tls"]),
        (&true.into(), &true.into(), &false.into())
    );
    assert_eq!(report["registry"], "memory://");
}

#[tokio::test]
async fn check_says_where_a_proxy_would_send_requests() {
    let text = "registry = 'zookeeper://h/p'\n[http]\nlisten = '0.0.0.0:80'\nregister_as = 'http-balancer'\n\
                advertise = 'proxy.example:80'\n[[http.route]]\nmatch = '^/picture'\nservice = 'ress'\nrole = 'master'\n\
                split.ress-canary = 10\nmirror = { service = 'shadow', percent = 5 }\n[[http.route]]\nname = 'rest'\n\
                host = ['a.example', 'b.example']\nmethod = 'GET'\nanswer.status = 404\n";
    let output = check(text, &[]).await;
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), String::new()));
    assert_eq!(
        stdout(&output),
        "p.toml is in order\n\
         registry  zookeeper://h/p\n\
         http      http://0.0.0.0:80/, registers as http-balancer at proxy.example:80\n          \
         ^/picture -> ress, round-robin, master, 10% to ress-canary, 5% mirrored to shadow\n          \
         GET a.example,b.example -> answered with 404\n"
    );
    let output = check(text, &["-o", "json"]).await;
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let http = &report["http"];
    assert_eq!((&http["listen"], &http["code"], &http["tls"]), (&"0.0.0.0:80".into(), &Value::Null, &false.into()));
    let [pass, answer] = [&http["routes"][0], &http["routes"][1]];
    assert_eq!(
        (&pass["service"], &pass["split"]["ress-canary"], &pass["name"]),
        (&"ress".into(), &10.into(), &"^/picture".into())
    );
    assert_eq!((&pass["mirror"]["service"], &pass["mirror"]["percent"]), (&"shadow".into(), &5.into()));
    assert_eq!((&answer["name"], &answer["answer"]), (&"rest".into(), &404.into()), "{report}");
}

#[tokio::test]
async fn check_says_everything_that_is_wrong_and_where() {
    let text =
        "registry = 'zookeeper://u:geheim@h/p'\n[mqtt]\nlisen = '127.0.0.1:7482'\n[[mqtt.route]]\nmatch = '^/('\n";
    let output = check(text, &[]).await;
    assert_eq!((output.status.code(), stdout(&output)), (Some(1), String::new()));
    let told = stderr(&output);
    assert_eq!(
        told,
        "p.toml:1:12: error: registry: registry url \"zookeeper://***@h/p\": has user information before the host; give it as \
         auth=digest:user:password\n    1 | (not shown: the line may hold a secret)\n\
         p.toml:3:1: error: [mqtt] has no key \"lisen\"; did you mean listen?\n    3 | lisen = '127.0.0.1:7482'\n      | ^^^^^\n\
         p.toml:4:1: error: [mqtt.route.0] has no service, such as service = \"cfgs\"\n    4 | [[mqtt.route]]\n      | ^^^^^^^^^^^^^^\n\
         p.toml:5:9: error: mqtt.route.0.match: is not a regular expression: unclosed group\n    5 | match = '^/('\n      |         ^^^^^\n"
    );
    let output = check(text, &["-o", "json"]).await;
    assert_eq!((output.status.code(), stderr(&output)), (Some(1), String::new()));
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(report["ok"], false);
    let problem = &report["problems"][1];
    assert_eq!((&problem["line"], &problem["column"], &problem["key"]), (&3.into(), &1.into(), &"mqtt.lisen".into()));
    assert!(problem["message"].as_str().unwrap().contains("did you mean listen?"), "{problem}");
    // For machines the same goes to the log.
    let output = check(text, &["--log-format", "json"]).await;
    let line: Value = serde_json::from_str(stderr(&output).lines().next().unwrap()).unwrap();
    assert_eq!((&line["line"], &line["level"]), (&1.into(), &"ERROR".into()), "{line}");
}

#[tokio::test]
async fn check_warns_and_says_yes_and_says_no_where_there_is_no_file() {
    let output = check(&GOOD.replace("registry", "# registry"), &[]).await;
    assert_eq!(output.status.code(), Some(0));
    assert!(stderr(&output).starts_with("p.toml:1:1: warning: registry is not named"), "{}", stderr(&output));
    let output = run(&["check", "/does/not/exist"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).starts_with("error: read /does/not/exist: "), "{}", stderr(&output));
    assert_eq!(run(&["check"]).await.status.code(), Some(2));
}
