//! The agent answers as its OpenAPI document says, whatever it is asked: requests are derived from the document, good and bad
//! ones, by schemathesis, which is a program in Python.
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::path::Path;
use std::process::{Command, Output};

use pointsman_testkit::http::Venv;
use support::Server;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_as_the_document_says() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/schemathesis");
    let requirements = std::fs::read_to_string(here.join("requirements.txt")).unwrap();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let Some(installed) = Venv::of(folder, "schemathesis", &requirements) else { return };
    let server = Server::start().await;
    for code in ["a", "b", "c"] {
        server.put("ress", code).await;
    }
    server.until_codes("ress", &["a", "b", "c"]).await;
    let work = tempfile::tempdir().unwrap();
    let mut command = Command::new(installed.program("schemathesis"));
    command.arg("--config-file").arg(here.join("schemathesis.toml")).arg("run").current_dir(&work);
    // Where its hooks are found; nothing of them is written beside them.
    command.env("PYTHONPATH", &here).env("PYTHONDONTWRITEBYTECODE", "1");
    command.args(["--no-color", &format!("http://{}/openapi.json", server.address)]);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let (served, failed) = (server.agent.metrics(), "status=\"500\"");
    assert!(!served.contains(failed), "{served}");
    assert_eq!(server.get("/livez").await.status, 200);
}

fn text(output: &Output) -> String {
    format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
