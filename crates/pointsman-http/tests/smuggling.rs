//! Requests and answers that two programs could read differently. What has to happen to each is in `vectors/`: a request is
//! refused, or an origin sees exactly what it is; and no byte of one answer is ever part of another.
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;
#[path = "support/vectors.rs"]
mod vectors;

use std::time::Duration;

use pointsman_testkit::http::{HyperOrigin, Play, RawClient, RawOrigin, Response, get};
use support::{passing, proxy_to};
use vectors::Vector;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const PROBE: &str = "GET /probe HTTP/1.1\r\nHost: x\r\n\r\n";

/// `must`, one or more of these, separated by ` or `:
///
/// - a status: so it is answered, the connection is closed, and the origin has seen nothing
/// - a status with `broken`: the same, but the origin may have seen a part of the request, never all of it
/// - `pass`: the origin has seen exactly one request, all of it, and a second one on the same connection is its own
/// - `pass N`: the same with so many requests
/// - `closed`: no answer
#[tokio::test]
async fn requests_mean_one_thing() {
    let vectors = vectors::read(include_str!("vectors/requests.txt"));
    assert!(vectors.len() > 80, "{}", vectors.len());
    let failures = vectors::all(&vectors, request).await;
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), vectors.len(), failures.join("\n"));
}

async fn request(vector: &Vector) -> Result<(), String> {
    let origin = RawOrigin::answering(OK).await;
    let (_fleet, proxy) = proxy_to(origin.address());
    let mut client = RawClient::connect(proxy.address()).await;
    client.send(&vector.send).await;
    let passes: Vec<usize> = vector.must.iter().filter_map(|must| passes(must)).collect();
    let mut statuses = Vec::new();
    let mut ended = false;
    for _ in 0..passes.iter().max().copied().unwrap_or(1).max(1) {
        match client.try_response(vector.method()).await {
            Some(answer) => statuses.push(answer.status),
            None => {
                ended = true;
                break;
            }
        }
        if statuses.last() != Some(&200) {
            break;
        }
    }
    let refused = statuses.last().is_some_and(|status| *status != 200) || ended;
    let said = |what: &str| {
        let seen = origin.text();
        Err(format!("{}: {what}; answers {statuses:?}, must {:?}; the origin saw {seen:?}", vector.name, vector.must))
    };
    if refused {
        // Whatever follows what was refused is not read as a request.
        client.send(PROBE).await;
        let rest = client.rest().await;
        if !rest.is_empty() {
            return said(&format!("after the refusal came {:?}", String::from_utf8_lossy(&rest)));
        }
        let wanted = vector.must.iter().any(|must| match statuses.last() {
            None => must == "closed",
            Some(status) if *must == format!("{status} broken") => origin.whole() == 0,
            Some(status) => *must == status.to_string() && origin.text().is_empty() && statuses.len() == 1,
        });
        return if wanted { Ok(()) } else { said("not so") };
    }
    if !passes.contains(&statuses.len()) {
        return said("passed");
    }
    passed(vector, &origin, &mut client, statuses.len()).await
}

/// Whether what was passed on was one thing.
async fn passed(vector: &Vector, origin: &RawOrigin, client: &mut RawClient, count: usize) -> Result<(), String> {
    let before = origin.text();
    client.send(PROBE).await;
    // A connection that ends instead is as good.
    let probed = client.try_response("GET").await;
    let heads = origin.heads();
    let extra = usize::from(probed.as_ref().is_some_and(|answer| answer.status == 200));
    let own = |head: &String| head.starts_with("GET /probe HTTP/1.1\r\n");
    if heads.len() != count + extra || (extra == 1 && !heads.last().is_some_and(own)) {
        return Err(format!("{}: the origin saw {heads:?}", vector.name));
    }
    for (part, wanted) in &vector.sees {
        if before.contains(part.as_str()) != *wanted {
            let not = if *wanted { "not " } else { "" };
            return Err(format!("{}: {part:?} was {not}in what the origin saw: {before:?}", vector.name));
        }
    }
    Ok(())
}

fn passes(must: &str) -> Option<usize> {
    let rest = must.strip_prefix("pass")?;
    Some(rest.trim().parse().unwrap_or(1))
}

/// `must`, one or more of these, separated by ` or `:
///
/// - a status: so the client is answered
/// - `pass`: the client gets the answer `good`, whole
/// - `broken`: the client gets an answer that is not whole, and the connection ends
///
/// After each, another client's request is answered by what is the answer to it.
#[tokio::test]
async fn answers_mean_one_thing() {
    let vectors = vectors::read(include_str!("vectors/answers.txt"));
    assert!(vectors.len() > 25, "{}", vectors.len());
    let failures = vectors::all(&vectors, answer).await;
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), vectors.len(), failures.join("\n"));
}

async fn answer(vector: &Vector) -> Result<(), String> {
    let (send, then) = (vector.send.clone(), vector.then.clone());
    let origin = RawOrigin::start(move |request| {
        if request.head.contains("/next") {
            return vec![Play::Body, Play::Send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext".to_vec())];
        }
        let end = match then.as_deref() {
            Some("reset") => Play::Reset,
            Some("close") => Play::Close,
            _ => Play::Wait(Duration::ZERO),
        };
        vec![Play::Body, Play::Send(send.clone()), end]
    })
    .await;
    let fleet = support::Fleet::of(&[origin.address()]);
    let proxy = fleet.proxy(passing(|pass| {
        pass.retries = 0;
        pass.timeouts.idle = Duration::from_secs(2);
        pass.timeouts.first_byte = Duration::from_secs(2);
    }));
    let mut client = RawClient::connect(proxy.address()).await;
    client.send("GET /first HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let first = client.try_response("GET").await;
    let became = match &first {
        Some(answer) if answer.status != 200 => answer.status.to_string(),
        Some(answer) if answer.complete && answer.text() == "good" => "pass".to_owned(),
        Some(answer) if answer.complete => format!("another answer {:?}", answer.text()),
        _ => "broken".to_owned(),
    };
    if !vector.must.contains(&became) {
        return Err(format!("{}: {became}, must {:?}: {first:?}", vector.name, vector.must));
    }
    if let Some(again) = first.filter(|answer| answer.complete && answer.status == 200) {
        let leaked = |(part, wanted): &(String, bool)| !wanted && again.head.contains(part);
        if vector.sees.iter().any(leaked) {
            return Err(format!("{}: {again:?}", vector.name));
        }
        client.send("GET /next HTTP/1.1\r\nHost: x\r\n\r\n").await;
        let next = client.try_response("GET").await;
        is_next(vector, next.as_ref())?;
    }
    for _ in 0..3 {
        is_next(vector, Some(&get(proxy.address(), "/next").await))?;
    }
    Ok(())
}

/// The answer to the next request, or the end.
fn is_next(vector: &Vector, answer: Option<&Response>) -> Result<(), String> {
    match answer {
        Some(answer) if answer.status != 200 || answer.text() != "next" => {
            Err(format!("{}: the next request was answered {answer:?}", vector.name))
        }
        _ => Ok(()),
    }
}

/// An answer comes while the body is still on its way: what is left of it is no request.
#[tokio::test]
async fn the_rest_of_a_body_is_no_request() {
    let origin = HyperOrigin::start("a").await;
    let (_fleet, proxy) = proxy_to(origin.address());
    for framing in ["Content-Length: 100000", "Transfer-Encoding: chunked"] {
        let before = origin.requests();
        let mut client = RawClient::connect(proxy.address()).await;
        client.send(format!("POST /ignore HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n")).await;
        assert_eq!(client.response().await.text(), "ignored");
        client.send("GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n".repeat(10)).await;
        client.half_close().await;
        let rest = client.rest().await;
        assert!(rest.is_empty(), "{framing}: {:?}", String::from_utf8_lossy(&rest));
        assert_eq!(origin.requests(), before + 1, "{framing}");
        assert!(origin.seen().iter().all(|seen| !seen.target.contains("smuggled")), "{framing}");
    }
}

/// The same towards instances: a connection on which a body was not sent to its end is not used again.
#[tokio::test]
async fn half_a_body_is_never_followed_by_a_request() {
    let origin = RawOrigin::answering(OK).await;
    let (_fleet, proxy) = proxy_to(origin.address());
    for framing in ["Content-Length: 100", "Transfer-Encoding: chunked"] {
        let mut client = RawClient::connect(proxy.address()).await;
        let seen = origin.heads().len();
        let body = if framing.starts_with('C') { "half" } else { "4\r\nhalf\r\n" };
        client.send(format!("POST /half HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n{body}")).await;
        origin.until_requests(seen + 1).await;
        drop(client);
        for _ in 0..5 {
            assert_eq!(get(proxy.address(), "/after").await.text(), "ok");
        }
    }
    for received in origin.received() {
        let text = String::from_utf8_lossy(&received).into_owned();
        assert!(!text.contains("POST") || text.ends_with("half") || text.ends_with("half\r\n"), "{text:?}");
    }
}

/// Who asks for an upgrade and gets none speaks HTTP on.
#[tokio::test]
async fn a_refused_upgrade_is_no_tunnel() {
    let origin = RawOrigin::answering(OK).await;
    let (_fleet, proxy) = proxy_to(origin.address());
    let mut client = RawClient::connect(proxy.address()).await;
    let upgrade = "GET /a HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    client.send([upgrade, "GET /b HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n"].concat()).await;
    assert_eq!(client.response().await.text(), "ok");
    if let Some(second) = client.try_response("GET").await {
        assert_eq!(second.text(), "ok");
        let head = origin.until_requests(2).await.remove(1).to_lowercase();
        assert!(!head.contains("1.2.3.4") && head.contains("x-forwarded-for: 127.0.0.1"), "{head}");
    }
}

/// 101 that nobody has asked for.
#[tokio::test]
async fn an_upgrade_that_was_not_asked_for_is_none() {
    let origin =
        RawOrigin::answering("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n").await;
    let (_fleet, proxy) = proxy_to(origin.address());
    let mut client = RawClient::connect(proxy.address()).await;
    let answer = client.request("GET /a HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!((answer.status, &*answer.problem()), (502, "bad-answer"));
}
