//! Completion in a shell, with names from the registry.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use support::served::{File, Stream, free_port, logged, serve};
use support::{command, stderr, stdout};

/// Returns what a shell offers for the last word.
async fn offered(registry: &str, words: &[&str]) -> Vec<String> {
    let mut command = command([&["--", "pointsman"], words].concat());
    command.env("POINTSMAN_COMPLETE", "bash").env("POINTSMAN_REGISTRY", registry);
    command.env("_CLAP_COMPLETE_INDEX", words.len().to_string()).env("_CLAP_IFS", "\n");
    let output = command.output().await.unwrap();
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), String::new()), "{words:?}");
    stdout(&output).lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn services_and_codes_come_from_the_registry() {
    let port = free_port();
    let file = File::new(&format!("[agent]\nlisten = '127.0.0.1:{port}'\n"));
    let mut running = serve(&file.path);
    logged(&mut running, " ready").await;
    let mut ress = Stream::open(port, "POST", "/v1/services/ress/instances/ress-1/hold").await;
    ress.until("\"role\":\"master\"").await;
    let mut cfgs = Stream::open(port, "POST", "/v1/services/cfgs/instances/cfgs-1/hold").await;
    cfgs.until("\"role\":\"master\"").await;

    let url = format!("http://127.0.0.1:{port}");
    assert_eq!(offered(&url, &["master", "r"]).await, ["ress"]);
    assert_eq!(offered(&url, &["drain", "ress", "r"]).await, ["ress-1"]);
    assert_eq!(offered(&url, &["drain", "cfgs", "r"]).await, [""; 0]);
    // The line's registry beats the variable's.
    assert_eq!(offered("http://127.0.0.1:1", &["drain", "--registry", &url, "cfgs", "c"]).await, ["cfgs-1"]);
}

#[tokio::test]
async fn without_a_registry_nothing_is_offered_and_nothing_is_said() {
    for registry in ["http://127.0.0.1:1", "consul://h"] {
        assert_eq!(offered(registry, &["master", "r"]).await, [""; 0], "{registry}");
    }
}
