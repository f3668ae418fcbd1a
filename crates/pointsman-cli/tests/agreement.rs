//! `check` and `serve` agree: what one refuses the other refuses, in the same words. One wrong file for each setting, made from what
//! `config explain` says of it, and the files that passed `check` and failed `serve`.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::path::Path;
use std::process::{Output, Stdio};

use pointsman_testkit::TlsFiles;
use serde_json::Value;
use support::{DEADLINE, command, run, stdout};
use tokio::time::timeout;
use toml::Table;

/// A file in which every table that a setting can be in is there, and which is in order.
const BASE: &str = "\
[agent]
listen = '127.0.0.1:0'
[metrics]
listen = '127.0.0.1:0'
[http]
listen = '127.0.0.1:0'
[[http.route]]
service = 'ress'
[http.services.ress]
check = 'tcp'
[mqtt]
listen = '127.0.0.1:0'
[[mqtt.allow]]
publish = 'x/#'
[[mqtt.route]]
match = '^/login/'
service = 'cfgs'
";

/// Errors of a file, as `check` reports them.
struct Refusal {
    /// Keys of the errors.
    keys: Vec<String>,
    messages: Vec<String>,
}

/// Returns what both `check` and `serve` report about a file, or `None` if both accept it. Panics where they differ.
async fn refusal(folder: &Path, text: &str, case: &str) -> Option<Refusal> {
    let file = folder.join("p.toml");
    std::fs::write(&file, text).unwrap();
    let output = run(&["check", file.to_str().unwrap(), "-o", "json"]).await;
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap_or_else(|error| panic!("{case}: {error}"));
    let problems = report["problems"].as_array().unwrap();
    let of = |name: &str| problems.iter().map(|problem| problem[name].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    let refusal = Refusal { keys: of("key"), messages: of("message") };
    let accepted = output.status.success();
    assert_eq!(problems.is_empty(), accepted, "{case}");
    let served = serve(&file).await;
    match served {
        None => {
            assert!(accepted, "{case}: check refuses and serve takes it: {:?}\n{text}", refusal.messages);
            None
        }
        Some(output) => {
            let told = String::from_utf8(output.stderr).unwrap();
            assert!(!accepted, "{case}: check takes it and serve refuses: {told}\n{text}");
            assert_eq!(output.status.code(), Some(1), "{case}: {told}");
            let lines = told.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let errors = lines.filter(|line| line["level"] == "ERROR");
            let errors: Vec<_> = errors.map(|line| line["message"].as_str().unwrap().to_owned()).collect();
            assert_eq!(errors, refusal.messages, "{case}: {told}");
            Some(refusal)
        }
    }
}

/// Runs `serve` until it ends by itself and returns its output, or ends it once it is ready and returns `None`.
async fn serve(file: &Path) -> Option<Output> {
    let mut serve = command(["serve", "--log-format", "json", "--config", file.to_str().unwrap()]);
    let mut child = serve.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = tokio::io::BufReader::new(child.stderr.take().unwrap());
    let mut told = String::new();
    let ended = async {
        use tokio::io::AsyncBufReadExt as _;
        while stderr.read_line(&mut told).await.unwrap() > 0 {
            if told.contains("\"ready\"") {
                return false;
            }
        }
        true
    };
    let ended = timeout(DEADLINE, ended).await.unwrap_or_else(|_| panic!("neither ready nor over"));
    if !ended {
        child.kill().await.unwrap();
        return None;
    }
    let status = child.wait().await.unwrap();
    Some(Output { status, stdout: Vec::new(), stderr: told.into_bytes() })
}

/// The file with a value, in TOML, at a key.
fn with(key: &str, value: &str) -> String {
    let mut file: Table = BASE.parse().unwrap();
    let value = format!("it = {value}").parse::<Table>().unwrap().remove("it").unwrap();
    let (path, last) = key.rsplit_once('.').map_or((Vec::new(), key), |(path, last)| (path.split('.').collect(), last));
    let mut table = &mut file;
    for part in path {
        let inner = table.entry(part).or_insert_with(|| toml::Value::Table(Table::new()));
        table = match inner {
            toml::Value::Table(table) => table,
            toml::Value::Array(items) => items[0].as_table_mut().unwrap(),
            other => panic!("{key}: {other:?}"),
        };
    }
    table.insert(last.to_owned(), value);
    file.to_string()
}

/// Wrong values of a setting, in TOML.
fn wrong_values(setting: &Value, folder: &Path) -> Vec<String> {
    let kind = setting["type"].as_str().unwrap();
    let (minimum, maximum) = (setting["minimum"].as_f64(), setting["maximum"].as_f64());
    let garbage = format!("'{}'", folder.join("garbage").display());
    match kind {
        "number" | "size" => {
            let least = minimum.filter(|least| *least > 0.0).map(|least| format!("{}", least - 1.0));
            let most = maximum.map(|most| format!("{}", most + 1.0));
            ["'x'".to_owned(), "-1".to_owned(), "1.5".to_owned()].into_iter().chain(least).chain(most).collect()
        }
        "duration" => {
            let least = minimum.filter(|least| *least > 0.0).map(|_| "'0s'".to_owned());
            let most = maximum.map(|most| format!("'{}s'", most + 1.0));
            ["1".to_owned(), "'1'".to_owned()].into_iter().chain(least).chain(most).collect()
        }
        "boolean" => vec!["'yes'".to_owned(), "1".to_owned()],
        "address" => vec!["80".to_owned(), "'localhost'".to_owned()],
        "word" => vec!["1".to_owned(), "'nonsense'".to_owned()],
        // A file that is not there, a folder, and one with something else in it.
        "file" => vec!["1".to_owned(), "'not/there'".to_owned(), "'.'".to_owned(), garbage],
        "path" => vec!["1".to_owned(), "'garbage/below'".to_owned()],
        "text" | "tables" | "table" | "map" => vec!["1".to_owned()],
        "list" => vec!["1".to_owned(), "[1]".to_owned()],
        "word-or-table" => vec!["1".to_owned(), "{ nonsense = 1 }".to_owned()],
        other => panic!("{other}: an unknown type"),
    }
}

/// A key of `config explain` as it is in the file.
fn in_file(key: &str) -> String {
    key.replace(".NAME", ".ress")
}

/// A key of a problem without the indexes of lists.
fn without_indexes(key: &str) -> String {
    key.split('.').filter(|part| part.parse::<usize>().is_err()).collect::<Vec<_>>().join(".")
}

#[tokio::test(flavor = "multi_thread")]
async fn one_wrong_file_for_each_setting_is_refused_by_both() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("garbage"), "garbage").unwrap();
    assert!(refusal(folder.path(), BASE, "the base").await.is_none());
    let output = run(&["config", "explain", "-o", "json"]).await;
    let settings: Vec<Value> = serde_json::from_str(&stdout(&output)).unwrap();
    assert!(settings.len() > 100, "{}", settings.len());
    for setting in settings {
        let key = in_file(setting["key"].as_str().unwrap());
        for value in wrong_values(&setting, folder.path()) {
            let case = format!("{key} = {value}");
            let text = with(&key, &value);
            let Some(refusal) = refusal(folder.path(), &text, &case).await else { panic!("{case} is taken by both") };
            let is_about_it = |told: &String| without_indexes(told).starts_with(&key);
            assert!(refusal.keys.iter().any(is_about_it), "{case}: {:?} {:?}", refusal.keys, refusal.messages);
        }
    }
}

/// The files that `check` once took and `serve` refused, and their kin in every section.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_be_used_is_refused_by_both() {
    let folder = tempfile::tempdir().unwrap();
    let _ = TlsFiles::create(folder.path());
    let other = tempfile::tempdir().unwrap();
    std::fs::copy(TlsFiles::create(other.path()).client_key, folder.path().join("other-key.pem")).unwrap();
    std::fs::write(folder.path().join("plain"), "").unwrap();
    let mut cases = Vec::new();
    for section in ["agent", "http", "mqtt"] {
        for (files, key) in [
            ("tls_cert = 'client.pem'\ntls_key = 'other-key.pem'", "tls_key"),
            ("tls_cert = 'plain'\ntls_key = 'client-key.pem'", "tls_cert"),
            ("tls_cert = 'client-key.pem'\ntls_key = 'client.pem'", "tls_cert"),
            ("tls_cert = 'client.pem'\ntls_key = 'plain'", "tls_key"),
            ("tls_cert = 'client.pem'\ntls_key = 'client-key.pem'\nclient_ca = 'client-key.pem'", "client_ca"),
        ] {
            cases.push((format!("[{section}]\n"), format!("[{section}]\n{files}\n"), format!("{section}.{key}")));
        }
    }
    let with = |header: &str, line: &str, key: &str| (header.to_owned(), format!("{header}{line}\n"), key.to_owned());
    let listen = "[mqtt]\nlisten = '127.0.0.1:0'\n[[mqtt.allow]]\npublish = 'x/#'\n";
    cases.extend([
        with("[http]\n", "hand_over = 'plain'", "http.hand_over"),
        with("[http.services.ress]\n", "tls.ca = 'client-key.pem'", "http.services.ress.tls.ca"),
        with("[mqtt]\n", "state = 'plain'\ncode = 'relay'", "mqtt.state"),
        with("[mqtt]\n", "users_file = 'client.pem'", "mqtt.users_file"),
        with("[http]\n", "registry = 'zookeeper://h/p?tls=true&ca=plain'", "http.registry"),
        with("[http]\n", "registry = 'zookeeper://h/p?acl=protected'", "http.registry"),
        with("[http]\n", "registry = 'https://h?ca=plain'", "http.registry"),
    ]);
    let broker = |url: &str, key: &str| (listen.to_owned(), format!("[mqtt]\n{url}\n"), format!("mqtt.{key}"));
    cases.extend([
        broker("ingress = 'mqtts://h?ca=plain'", "ingress"),
        broker("ingress = 'mqtts://h?ca=ca.pem&cert=client.pem&key=other-key.pem'", "ingress"),
        broker("ingress = 'mqtt://h?auth_file=plain'", "ingress"),
        broker("egress = 'mqtts://h?ca=not-there.pem'", "egress"),
    ]);
    for (from, to, key) in cases {
        let text = BASE.replacen(&from, &to, 1);
        assert_ne!(text, BASE, "{from}");
        let Some(refusal) = refusal(folder.path(), &text, &to).await else { panic!("{to} is taken by both") };
        let keys: Vec<_> = refusal.keys.iter().map(|key| without_indexes(key)).collect();
        assert_eq!(keys, [key], "{:?}", refusal.messages);
    }
}
