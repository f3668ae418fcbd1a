//! The agent answers as its OpenAPI document says, whatever it is asked: requests are derived from the document, good and bad
//! ones, by schemathesis, which is a program in Python.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use support::Server;

const PYTHON: &str = "/usr/bin/python3";
const OFFLINE: &str = "POINTSMAN_OFFLINE";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_as_the_document_says() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/schemathesis");
    let Some(program) = installed(&here.join("requirements.txt")) else { return };
    let server = Server::start().await;
    for code in ["a", "b", "c"] {
        server.put("ress", code).await;
    }
    server.until_codes("ress", &["a", "b", "c"]).await;
    let work = tempfile::tempdir().unwrap();
    let mut command = Command::new(program);
    command.arg("--config-file").arg(here.join("schemathesis.toml")).arg("run").current_dir(&work);
    command.args(["--no-color", &format!("http://{}/openapi.json", server.address)]);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let (served, failed) = (server.agent.metrics(), "status=\"500\"");
    assert!(!served.contains(failed), "{served}");
    assert_eq!(server.get("/livez").await.status, 200);
}

/// The program, installed once: the next time it is there already, and needs no network. `None` if it is not, and may not be.
fn installed(requirements: &Path) -> Option<PathBuf> {
    let pinned = std::fs::read_to_string(requirements).unwrap();
    let version = pinned.lines().find_map(|line| line.strip_prefix("schemathesis==")).unwrap();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("schemathesis-{version}"));
    let (done, program) = (folder.join("requirements.txt"), folder.join("bin/schemathesis"));
    if std::fs::read_to_string(&done).is_ok_and(|there| there == pinned) {
        return Some(program);
    }
    if std::env::var(OFFLINE).is_ok_and(|value| value == "1") {
        println!("skipped: schemathesis is not installed yet, and {OFFLINE}=1 says that it cannot be");
        return None;
    }
    // What an attempt before has left may be half of it.
    let _ = std::fs::remove_dir_all(&folder);
    let venv = Command::new(PYTHON).args(["-m", "venv"]).arg(&folder).output();
    let venv = venv.unwrap_or_else(|error| panic!("{PYTHON}: {error}; install python3 and python3-venv"));
    assert!(venv.status.success(), "{PYTHON} -m venv (Debian: python3-venv): {}", text(&venv));
    let mut pip = Command::new(folder.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"]).arg(requirements);
    let pip = pip.output().unwrap();
    assert!(
        pip.status.success(),
        "schemathesis {version} cannot be installed from PyPI; where there is no network, set {OFFLINE}=1 to do without this \
         test: {}",
        text(&pip)
    );
    std::fs::write(done, pinned).unwrap();
    Some(program)
}

fn text(output: &Output) -> String {
    format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
