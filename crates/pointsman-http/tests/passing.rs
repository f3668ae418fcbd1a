//! Requests and answers go through as they are.
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use pointsman_testkit::http::{HyperOrigin, Nginx, Play, PythonOrigin, RawClient, RawOrigin, get, request, whole};
use serde_json::json;
use support::{Fleet, proxy_to, settings};

const MIB: usize = 1 << 20;

#[tokio::test]
async fn methods_are_passed_on() {
    let origin = HyperOrigin::start("a").await;
    let (_fleet, proxy) = proxy_to(origin.address());
    for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND", "X-OTHER"] {
        let answer = request(proxy.address(), method, "/m", &[], "").await;
        assert_eq!((answer.status, &answer.json()["method"]), (200, &json!(method)));
    }
}

#[tokio::test]
async fn connect_and_trace_are_not() {
    let origin = HyperOrigin::start("a").await;
    let (_fleet, proxy) = proxy_to(origin.address());
    for (method, target) in [("CONNECT", "test.example:80"), ("TRACE", "/")] {
        let answer = request(proxy.address(), method, target, &[("Host", "test.example:80")], "").await;
        assert_eq!((answer.status, &*answer.problem()), (405, "method-not-allowed"), "{method}");
    }
    assert_eq!(origin.requests(), 0);
}

#[tokio::test]
async fn answers_without_a_body_have_none() {
    let origin = RawOrigin::start(|request| {
        let status = match request.head.split(' ').nth(1).unwrap() {
            "/204" => "204 No Content\r\n\r\n",
            "/304" => "304 Not Modified\r\nContent-Length: 5\r\nETag: \"x\"\r\n\r\n",
            "/head" => "200 OK\r\nContent-Length: 12345\r\n\r\n",
            "/head-chunked" => "200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            _ => "200 OK\r\nContent-Length: 3\r\n\r\nend",
        };
        whole(format!("HTTP/1.1 {status}"))
    })
    .await;
    let (_fleet, proxy) = proxy_to(origin.address());
    let mut client = RawClient::connect(proxy.address()).await;
    for (method, target, status) in
        [("GET", "/204", 204), ("GET", "/304", 304), ("HEAD", "/head", 200), ("HEAD", "/head-chunked", 200)]
    {
        let answer = client.request(format!("{method} {target} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
        assert_eq!((answer.status, answer.body.len()), (status, 0), "{target}");
        match target {
            "/204" => assert!(answer.header("transfer-encoding").or(answer.header("content-length")).is_none()),
            "/304" => assert_eq!(answer.header("etag"), Some("\"x\"")),
            "/head" => assert_eq!(answer.header("content-length"), Some("12345")),
            _ => {}
        }
        // Whatever came as a body would be taken for this answer's head.
        let next = client.request("GET /next HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert_eq!(next.text(), "end", "after {target}");
    }
    assert_eq!(origin.connections(), 1);
}

#[tokio::test]
async fn bodies_are_passed_on_however_they_are_delimited() {
    let origin = HyperOrigin::start("a").await;
    let (_fleet, proxy) = proxy_to(origin.address());
    let mut client = RawClient::connect(proxy.address()).await;
    for body in [
        "Content-Length: 0\r\n\r\n",
        "Content-Length: 10\r\n\r\n0123456789",
        "Transfer-Encoding: chunked\r\n\r\n3\r\n012\r\n7\r\n3456789\r\n0\r\n\r\n",
        "transfer-encoding: Chunked\r\n\r\nA\r\n0123456789\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n00a\r\n0123456789\r\n000\r\n\r\n",
    ] {
        let answer = client.request(format!("POST /x HTTP/1.1\r\nHost: x\r\n{body}")).await;
        let expected = if body.starts_with("Content-Length: 0") { "" } else { "0123456789" };
        assert_eq!(answer.json()["body"], expected, "{body}");
    }
    for (target, length) in
        [("/bytes/0", 0), ("/bytes/100000", 100_000), ("/chunked/0", 0), ("/chunked/100000", 100_000)]
    {
        let answer = client.request(format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
        assert_eq!((answer.body.len(), answer.complete), (length, true), "{target}");
    }
}

#[tokio::test]
async fn bytes_that_come_one_by_one_are_a_request() {
    let origin = HyperOrigin::start("a").await;
    let (_fleet, proxy) = proxy_to(origin.address());
    let mut client = RawClient::connect(proxy.address()).await;
    let text = "POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n012\r\n7\r\n3456789\r\n0\r\nx-sum: 1\r\n\r\n";
    for byte in text.as_bytes() {
        client.send([*byte]).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(client.response().await.json()["body"], "0123456789");
}

#[tokio::test]
async fn large_bodies_go_both_ways() {
    let nginx = Nginx::start("root FOLDER/served;").await;
    std::fs::create_dir(nginx.folder().join("served")).unwrap();
    let body: Vec<u8> = (0..10 * MIB).map(|at| u8::try_from(at / 251 % 256).unwrap()).collect();
    std::fs::write(nginx.folder().join("served/large"), &body).unwrap();
    let (_fleet, proxy) = proxy_to(nginx.address());
    let answer = get(proxy.address(), "/large").await;
    assert_eq!((answer.status, answer.body == body), (200, true));

    let origin = HyperOrigin::start("a").await;
    let (_fleet, proxy) = proxy_to(origin.address());
    let answer = request(proxy.address(), "POST", "/sink", &[], &body).await;
    assert_eq!(answer.text(), body.len().to_string());
}

#[tokio::test]
async fn an_answer_that_nobody_reads_to_its_end_is_given_up() {
    let origin = HyperOrigin::start("a").await;
    let (_fleet, proxy) = proxy_to(origin.address());
    let mut client = RawClient::connect(proxy.address()).await;
    client.send(format!("GET /bytes/{} HTTP/1.1\r\nHost: x\r\n\r\n", 1024 * MIB)).await;
    client.head().await;
    drop(client);
    support::until("given up", || origin.given_up() == 1).await;
}

#[tokio::test]
async fn trailers_go_both_ways() {
    let raw = RawOrigin::answering(
        "HTTP/1.1 200 OK\r\nTrailer: x-check\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-check: done\r\n\r\n",
    )
    .await;
    let (_fleet, proxy) = proxy_to(raw.address());
    let mut client = RawClient::connect(proxy.address()).await;
    let answer = client
        .request(
            "POST /x HTTP/1.1\r\nHost: x\r\nTE: trailers\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n\
             3\r\nabc\r\n0\r\nx-sum: 294\r\n\r\n",
        )
        .await;
    assert_eq!((answer.text(), answer.trailers), ("ok".into(), vec![("x-check".into(), "done".into())]));
    assert!(raw.text().to_ascii_lowercase().ends_with("\r\n0\r\nx-sum: 294\r\n\r\n"), "{}", raw.text());
    // The connection goes on.
    let answer = client.request("GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!(answer.text(), "ok");
}

#[tokio::test]
async fn who_expects_100_gets_it_before_the_body() {
    let origin = HyperOrigin::start("a").await;
    let (_fleet, proxy) = proxy_to(origin.address());
    let mut client = RawClient::connect(proxy.address()).await;
    for _ in 0..2 {
        client.send("POST /x HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n").await;
        assert_eq!(client.head().await.status, 100);
        client.send("body").await;
        let answer = client.response().await;
        assert_eq!((answer.json()["body"].as_str(), answer.informational.len()), (Some("body"), 0));
    }
}

#[tokio::test]
async fn who_expects_100_may_be_refused() {
    let origin = RawOrigin::start(|_| {
        vec![Play::Send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno".to_vec()), Play::Close]
    })
    .await;
    let (_fleet, proxy) = proxy_to(origin.address());
    let mut client = RawClient::connect(proxy.address()).await;
    client.send("POST /x HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n").await;
    let answer = client.response().await;
    assert_eq!((answer.status, &*answer.text()), (403, "no"));
}

#[tokio::test]
async fn clients_of_http_1_0_are_served() {
    let origin = HyperOrigin::start("a").await;
    let (_fleet, proxy) = proxy_to(origin.address());
    let mut client = RawClient::connect(proxy.address()).await;
    // They know no chunks: the end of the connection delimits.
    let answer = client.request("GET /chunked/100000 HTTP/1.0\r\n\r\n").await;
    assert_eq!((answer.body.len(), answer.complete, answer.header("transfer-encoding")), (100_000, true, None));
    let mut client = RawClient::connect(proxy.address()).await;
    let answer = client.request("GET /bytes/5 HTTP/1.0\r\nHost: x\r\n\r\n").await;
    assert_eq!((answer.text(), answer.complete), ("xxxxx".into(), true));
    assert!(client.rest().await.is_empty());
}

#[tokio::test]
async fn clients_of_http_1_0_may_keep_their_connection() {
    let origin = HyperOrigin::start("a").await;
    let (_fleet, proxy) = proxy_to(origin.address());
    let mut client = RawClient::connect(proxy.address()).await;
    for _ in 0..3 {
        let answer = client.request("GET /bytes/5 HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\n\r\n").await;
        let connection = answer.header("connection").unwrap_or_default().to_ascii_lowercase();
        assert_eq!((&*answer.text(), &*connection), ("xxxxx", "keep-alive"));
    }
    // Without a length it cannot stay.
    let answer = client.request("GET /chunked/5 HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\n\r\n").await;
    assert_eq!((answer.text(), answer.complete), ("xxxxx".into(), true));
}

#[tokio::test]
async fn answers_that_the_end_of_the_connection_delimits() {
    let origin = PythonOrigin::start(&[("a.txt", "text")]).await;
    let (_fleet, proxy) = proxy_to(origin.address());
    let mut client = RawClient::connect(proxy.address()).await;
    for _ in 0..2 {
        let answer = client.request("GET /a.txt HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert_eq!((&*answer.version, &*answer.text(), answer.complete), ("HTTP/1.1", "text", true));
        let list = client.request("GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(list.complete && list.text().contains("a.txt"), "{list:?}");
    }
    let raw = RawOrigin::start(|_| {
        let answer = "HTTP/1.1 200 OK\r\nX: y\r\n\r\nuntil the end";
        vec![Play::Body, Play::Send(answer.into()), Play::Close]
    })
    .await;
    let (_fleet, proxy) = proxy_to(raw.address());
    let mut client = RawClient::connect(proxy.address()).await;
    for _ in 0..2 {
        let answer = client.request("GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert_eq!((&*answer.text(), answer.complete), ("until the end", true));
    }
}

#[tokio::test]
async fn requests_in_a_row_are_answered_in_their_order() {
    let origin = HyperOrigin::start("a").await;
    let (_fleet, proxy) = proxy_to(origin.address());
    let mut client = RawClient::connect(proxy.address()).await;
    let one = |number| match number % 3 {
        0 => format!("GET /slow/5?{number} HTTP/1.1\r\nHost: x\r\n\r\n"),
        1 => format!("POST /{number} HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"),
        _ => format!("PUT /{number} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nz\r\n0\r\n\r\n"),
    };
    client.send((0..30).map(one).collect::<String>()).await;
    for number in 0..30 {
        let answer = client.response().await;
        if number % 3 == 0 {
            assert_eq!(answer.text(), "slow");
        } else {
            assert_eq!(answer.json()["target"], format!("/{number}"));
        }
    }
}

#[tokio::test]
async fn an_answer_may_come_before_the_body_is_there() {
    let origin = HyperOrigin::start("a").await;
    let (_fleet, proxy) = proxy_to(origin.address());
    let mut client = RawClient::connect(proxy.address()).await;
    client.send("POST /ignore HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nthe beginning").await;
    assert_eq!(client.response().await.text(), "ignored");
    // The proxy is as well as before.
    assert_eq!(get(proxy.address(), "/x").await.status, 200);
}

#[tokio::test]
async fn events_arrive_one_by_one() {
    let origin = HyperOrigin::start("a").await;
    let (_fleet, proxy) = proxy_to(origin.address());
    let mut client = RawClient::connect(proxy.address()).await;
    client.send("GET /sse/5 HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n").await;
    assert_eq!(client.head().await.header("content-type"), Some("text/event-stream"));
    client.read_until("data: 0\n\n").await;
    for number in 1..5 {
        origin.release(1);
        let text = client.read_until(&format!("data: {number}\n\n")).await;
        assert_eq!(text.matches("data").count(), 1);
    }
    client.read_until("0\r\n\r\n").await;
}

/// Defect 16 of the seed: paths lost their queries and escapes.
#[tokio::test]
async fn paths_arrive_byte_for_byte() {
    let origin = RawOrigin::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let (_fleet, proxy) = proxy_to(origin.address());
    let mut client = RawClient::connect(proxy.address()).await;
    let targets = [
        "/",
        "/q?a=1",
        "/a%20b",
        "//",
        "//a//b",
        "/%2F",
        "/%2f%2E%2e",
        "/..",
        "/../a",
        "/a/../b",
        "/./a",
        "/a/.",
        "/?",
        "/a?b?c=%26&&d",
        "/a;b=c,d",
        "/%00",
        "/%zz",
        "/a+b?c+d",
        "/~!$&'()*,;=:@",
        "/a?/../b",
        "/%E2%82%AC",
        "/a=b?==",
        "/http://x/y",
        "/a:80",
    ];
    for target in targets {
        let answer = client.request(format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
        assert_eq!(answer.status, 200, "{target}");
        let heads = origin.heads();
        let line = heads.last().unwrap().lines().next().unwrap().to_owned();
        assert_eq!(line, format!("GET {target} HTTP/1.1"));
    }
    let long = format!("/{}?{}", "a/".repeat(4000), "b=c&".repeat(2000));
    assert_eq!(client.request(format!("GET {long} HTTP/1.1\r\nHost: x\r\n\r\n")).await.status, 200);
    assert!(origin.heads().last().unwrap().starts_with(&format!("GET {long} HTTP/1.1\r\n")));
}

/// Defect 18 of the seed: a connection for each request.
#[tokio::test]
async fn connections_to_instances_are_used_again() {
    let origin = HyperOrigin::start("a").await;
    let (_fleet, proxy) = proxy_to(origin.address());
    for _ in 0..10 {
        let mut client = RawClient::connect(proxy.address()).await;
        for number in 0..100 {
            let answer =
                client.request(format!("POST /{number} HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx")).await;
            assert_eq!(answer.json()["target"], format!("/{number}"));
        }
    }
    assert_eq!(origin.requests(), 1000);
    assert!(origin.connections() <= 10, "{} connections", origin.connections());
}

#[tokio::test]
async fn informational_answers_are_passed_on() {
    let origin = RawOrigin::start(|_| {
        let hints = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n";
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        vec![Play::Body, Play::Send(hints.into()), Play::Gate, Play::Send(answer.into())]
    })
    .await;
    let (_fleet, proxy) = proxy_to(origin.address());
    let mut client = RawClient::connect(proxy.address()).await;
    client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let hints = client.head().await;
    assert_eq!((hints.status, hints.header("link")), (103, Some("</a.css>; rel=preload")));
    origin.release(1);
    assert_eq!(client.response().await.text(), "ok");
    // HTTP/1.0 does not know them.
    origin.release(1);
    let answer = RawClient::connect(proxy.address()).await.request("GET / HTTP/1.0\r\nHost: x\r\n\r\n").await;
    assert_eq!((answer.status, answer.informational.len()), (200, 0));
}

#[tokio::test]
async fn more_workers_serve_as_well() {
    let origin = HyperOrigin::start("a").await;
    let fleet = Fleet::of(&[origin.address()]);
    let mut settings = settings();
    settings.workers = 3;
    let proxy = fleet.proxy(settings);
    for _ in 0..50 {
        assert_eq!(get(proxy.address(), "/x").await.status, 200);
    }
}
