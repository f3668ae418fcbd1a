//! Clients that are generated from `/openapi.json` can be used: with openapi-python-client, and with openapi-typescript, which come from PyPI
//! and from npm. They ask through a proxy, under a path of its own: the document says nothing of where the agent is.
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use pointsman_testkit::http::{Nginx, NodeModules, Venv};
use support::Server;
use tempfile::TempDir;

/// Where the programs are, and the files of this test.
struct Generators {
    venv: Venv,
    files: PathBuf,
}

impl Generators {
    /// `None` where there is no network, see [`Venv::of`].
    fn installed() -> Option<Self> {
        let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/generators");
        let requirements = std::fs::read_to_string(files.join("requirements.txt")).unwrap();
        let venv = Venv::of(target(), "generators", &requirements)?;
        Some(Self { venv, files })
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.files.join(name)).unwrap()
    }
}

fn target() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

/// An agent behind a proxy that takes `/fleet/one` off the path.
struct Proxied {
    _server: Server,
    _nginx: Nginx,
    url: String,
}

impl Proxied {
    async fn start() -> Self {
        let server = Server::start().await;
        let to = server.address;
        let location =
            format!("location /fleet/one/ {{ proxy_pass http://{to}/; proxy_http_version 1.1; proxy_buffering off; }}");
        let nginx = Nginx::start(&location).await;
        let url = format!("http://{}/fleet/one", nginx.address());
        Self { _server: server, _nginx: nginx, url }
    }
}

/// Runs commands that must succeed and say nothing of warnings; what the last of them has said.
async fn run(commands: Vec<Command>) -> String {
    let running = tokio::task::spawn_blocking(move || {
        let mut said = String::new();
        for mut command in commands {
            let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
            let errors = String::from_utf8_lossy(&output.stderr);
            said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{command:?}: {}\n{said}\n{errors}", output.status);
            assert!(!format!("{said}{errors}").to_lowercase().contains("warning"), "{command:?}\n{said}\n{errors}");
        }
        said
    });
    running.await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_in_python() {
    let Some(generators) = Generators::installed() else { return };
    let proxied = Proxied::start().await;
    let work = TempDir::new().unwrap();
    let mut generate = Command::new(generators.venv.program("openapi-python-client"));
    generate
        .args(["generate", "--meta", "none", "--fail-on-warning", "--url"])
        .arg(format!("{}/openapi.json", proxied.url));
    generate.arg("--output-path").arg(work.path().join("agent_client"));
    // It formats what it has written by a program beside it.
    generate.env("PATH", generators.venv.program(""));
    let mut client = Command::new(generators.venv.python());
    client.arg(generators.files.join("client.py")).arg(&proxied.url).arg(work.path());
    assert_eq!(run(vec![generate, client]).await, "done\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_in_typescript() {
    let Some(generators) = Generators::installed() else { return };
    let (package, lock) = (generators.read("package.json"), generators.read("package-lock.json"));
    let Some(modules) = NodeModules::of(target(), "generators-npm", &generators.venv, &package, &lock) else { return };
    let proxied = Proxied::start().await;
    // Below the packages, so that they are found.
    let work = TempDir::new_in(modules.folder()).unwrap();
    for name in ["client.ts", "tsconfig.json", "package.json"] {
        std::fs::write(work.path().join(name), generators.read(name)).unwrap();
    }
    let mut generate = modules.program("openapi-typescript");
    generate.arg(format!("{}/openapi.json", proxied.url)).args(["-o", "agent.d.ts"]);
    let mut compile = modules.program("tsc");
    compile.args(["--project", "."]);
    let mut client = modules.node();
    client.arg("client.ts").arg(&proxied.url);
    let mut commands = vec![generate, compile, client];
    for command in &mut commands {
        command.current_dir(&work);
    }
    assert_eq!(run(commands).await, "done\n");
}
