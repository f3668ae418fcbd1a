//! What the documents say of the code.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::path::Path;

use rustix::process::Signal;
use support::Running;
use support::served::{File, free_port, logged, serve};
use tokio::process::Command;

fn document(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)).unwrap()
}

/// The code in this language, with another port than the usual one.
fn code(document: &str, language: &str, port: u16) -> String {
    let (fence, port) = (format!("\n```{language}\n"), format!("127.0.0.1:{port}"));
    let blocks = document.split(&fence).skip(1).map(|block| block.split("\n```").next().unwrap());
    blocks.collect::<Vec<_>>().join("\n").replace("127.0.0.1:7480", &port)
}

async fn agent() -> (Running, u16, File) {
    let port = free_port();
    let file = File::new(&format!("agent.listen = '127.0.0.1:{port}'\n"));
    let mut running = serve(&file.path);
    logged(&mut running, " ready").await;
    (running, port, file)
}

#[tokio::test]
async fn the_agents_examples_for_the_shell_work() {
    let (running, port, file) = agent().await;
    // A stream is looked at for a moment.
    let settings = "silent\nshow-error\nfail-with-body\nmax-time = 1\n";
    fs::write(file.path.with_file_name(".curlrc"), settings).unwrap();
    let lines = code(&document("docs/agent.md"), "sh", port);
    let mut commands = 0;
    for line in lines.lines().filter(|line| !line.starts_with('#')) {
        let mut shell = Command::new("sh");
        shell.args(["-c", line]).env("CURL_HOME", file.path.parent().unwrap());
        let output = shell.output().await.unwrap();
        let told = format!("{line}: {output:?}");
        if line.contains(" -N ") {
            // 28 is curl's word for the time that is over.
            assert!(output.status.code() == Some(28) && output.stdout.starts_with(b"event: "), "{told}");
        } else {
            assert!(output.status.success(), "{told}");
        }
        commands += 1;
    }
    assert_eq!(commands, 9);
    running.signal(Signal::TERM);
    assert_eq!(running.ended().await.code(), Some(0));
}

const DRIVER: &str = r#"
assert next(keep_registered("ress", "py-1", {"address": "127.0.0.1:1"}))["role"] == "master"
held = hold("ress", "py-2", {"address": "127.0.0.1:2"})
assert next(held) == ("role", {"role": "normal"})
snapshots = follow("ress")
while set(next(snapshots)) != {"py-1", "py-2"}: pass
assert with_one_of("ress", lambda address: address) == "127.0.0.1:2"
held.close()
while set(next(snapshots)) != {"py-1"}: pass
"#;

#[tokio::test]
async fn the_agents_examples_in_python_work() {
    let (running, port, _file) = agent().await;
    let script = format!("{}\n{DRIVER}", code(&document("docs/agent.md"), "python", port));
    let output = Command::new("/usr/bin/python3").args(["-c", &script]).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    running.signal(Signal::TERM);
    assert_eq!(running.ended().await.code(), Some(0));
}

#[test]
fn every_test_that_the_table_of_defects_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let table = fs::read_to_string(root.join("docs/defects.md")).unwrap();
    let mut named = 0;
    for name in table.split('`').filter(|word| word.contains(".rs::")) {
        let (file, test) = name.split_once("::").unwrap();
        let file = match file.split_once('/').unwrap() {
            ("T", file) => format!("crates/pointsman-registry/tests/{file}"),
            ("B", file) => format!("crates/pointsman-balance/tests/{file}"),
            ("H", file) => format!("crates/pointsman-http/tests/{file}"),
            ("M", file) => format!("crates/pointsman-mqtt/tests/{file}"),
            ("A", file) => format!("crates/pointsman-agent/tests/{file}"),
            ("C", file) => format!("crates/pointsman-cli/tests/{file}"),
            _ => file.to_owned(),
        };
        let text = fs::read_to_string(root.join(&file)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(text.contains(&format!("fn {test}(")), "{name}");
        named += 1;
    }
    assert!(named > 40, "{named}");
}
