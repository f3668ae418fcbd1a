//! Compressed answers: for those who accept them, where it pays.

use std::io::Read as _;

use flate2::read::GzDecoder;

use crate::support::{Answer, Server};

const GZIP: (&str, &str) = ("accept-encoding", "gzip, deflate, br");

fn unpacked(answer: &Answer) -> Vec<u8> {
    assert_eq!(answer.header("content-encoding"), Some("gzip"), "{answer:?}");
    let mut whole = Vec::new();
    GzDecoder::new(&answer.body[..]).read_to_end(&mut whole).unwrap();
    whole
}

#[tokio::test]
async fn what_is_large_is_compressed_for_those_who_accept_it() {
    let server = Server::start().await;
    for code in 0..50 {
        server.put("s", &code.to_string()).await;
    }
    let mut client = server.client().await;
    for path in
        ["/v1/services/s/instances", "/v1/events", "/v1/services/s/changes", "/openapi.json", "/", "/assets/app.js"]
    {
        let plain = client.ask("GET", path, "").await;
        assert_eq!((plain.status, plain.header("content-encoding")), (200, None), "{path}");
        assert_eq!(plain.header("content-length"), Some(&*plain.body.len().to_string()), "{path}");
        let packed = client.ask_with("GET", path, &[GZIP], "").await;
        assert_eq!(unpacked(&packed).len(), plain.body.len(), "{path}");
        assert!(packed.body.len() * 3 < plain.body.len() * 2, "{path}: {} of {}", packed.body.len(), plain.body.len());
        for answer in [&plain, &packed] {
            assert_eq!(answer.header("vary"), Some("accept-encoding"), "{path}");
        }
        let refused = client.ask_with("GET", path, &[("accept-encoding", "gzip;q=0, br")], "").await;
        assert_eq!(refused.header("content-encoding"), None, "{path}");
    }
    let same = client.ask_with("GET", "/v1/services", &[GZIP], "").await;
    assert_eq!((same.status, same.header("content-encoding")), (200, None), "it is small");
}

/// A cache in between that has the one must neither send it to those who cannot read it, nor take the other for something new.
#[tokio::test]
async fn tags_are_the_same_compressed_and_plain() {
    let server = Server::start().await;
    for code in 0..50 {
        server.put("s", &code.to_string()).await;
    }
    let mut client = server.client().await;
    for path in ["/v1/services/s/instances", "/openapi.json", "/assets/app.js"] {
        let plain = client.ask("GET", path, "").await;
        let packed = client.ask_with("GET", path, &[GZIP], "").await;
        let etag = packed.header("etag").unwrap();
        assert!(etag.starts_with("W/\""), "{etag}");
        assert_eq!(plain.header("etag"), Some(etag));
        for headers in [&[("if-none-match", etag)][..], &[("if-none-match", etag), GZIP]] {
            let same = client.ask_with("GET", path, headers, "").await;
            assert_eq!(
                (same.status, same.header("etag"), same.header("vary")),
                (304, Some(etag), Some("accept-encoding"))
            );
            assert_eq!((same.header("content-encoding"), same.body.len()), (None, 0));
        }
        let head = client.ask_with("HEAD", path, &[GZIP], "").await;
        assert_eq!((head.status, head.header("etag")), (200, Some(etag)));
    }
}

/// Whoever accepts gzip, as browsers do, hears of each event at once.
#[tokio::test]
async fn streams_of_events_are_not_compressed() {
    let server = Server::start().await;
    for code in 0..50 {
        server.put("s", &code.to_string()).await;
    }
    for (path, new) in [("/v1/watch", "x"), ("/v1/services/s/watch", "y")] {
        let mut client = server.client().await;
        client.open("GET", path, &[GZIP], "").await;
        client.event().await;
        server.put("s", new).await;
        assert_eq!(client.until_event("put").await.data["instance"]["code"], new);
    }
}
