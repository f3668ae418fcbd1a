//! What a build has no support for is refused by name. Holds whatever features are turned on, so also with few:
//! `cargo test -p pointsman --no-default-features --test features`.

#![allow(clippy::unwrap_used, reason = "tests")]

use pointsman::{Error, Registry};

#[test]
fn a_url_names_the_features_that_it_lacks() {
    let (agents, tls, zookeeper) = (cfg!(feature = "agent-client"), cfg!(feature = "tls"), cfg!(feature = "zookeeper"));
    for (url, needs) in [
        ("memory://", &[][..]),
        ("zookeeper://h/p", &[("zookeeper", zookeeper)]),
        ("zookeeper://h/p?tls=on&ca=/x", &[("zookeeper", zookeeper), ("tls", tls)]),
        ("http://h", &[("agent-client", agents)]),
        ("https://h?ca=/x", &[("agent-client", agents), ("tls", tls)]),
    ] {
        let missing = needs.iter().find(|(_, on)| !on);
        match (Registry::builder(url).check(), missing) {
            // Its files are read too, and there are none.
            (Ok(()) | Err(Error::File { .. }), None) => {}
            (Err(Error::Url { reason, .. }), Some((feature, _))) => {
                assert!(reason.contains("this build has no support for"), "{url}: {reason}");
                assert!(reason.contains(&format!("`{feature}`")), "{url}: {reason}");
                assert!(reason.ends_with("of the crate `pointsman`"), "{url}: {reason}");
            }
            (result, _) => panic!("{url}: {result:?}"),
        }
    }
}
