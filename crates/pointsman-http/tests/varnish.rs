//! Scripts of varnishtest (Debian's `varnish`), with a raw peer on both sides: `varnish/*.vtc`. In them `${proxy}` is the proxy,
//! and `${origin}` is where its only instance listens, which the script starts.
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::path::Path;

use pointsman_testkit::http::varnishtest;
use support::{nobody, proxy_to};

#[tokio::test]
async fn scripts_pass() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/varnish");
    let mut scripts: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    scripts.sort();
    assert!(scripts.len() >= 8, "{scripts:?}");
    let mut failures = Vec::new();
    for script in scripts {
        let origin = nobody();
        let (_fleet, proxy) = proxy_to(origin);
        let (origin, proxy_address) = (origin.to_string(), proxy.address().to_string());
        let macros = [("origin", &*origin.replace(':', " ")), ("proxy", &*proxy_address.replace(':', " "))];
        if let Err(log) = varnishtest(&script, &macros).await {
            failures.push(format!("{}:\n{log}", script.display()));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
