//! HTTP/2, towards clients and towards instances.
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;
mod tiny;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pointsman_http::{Action, Protocol, Proxy, Service, ServiceTls, Settings, Tls};
use pointsman_testkit::TlsFiles;
use pointsman_testkit::http::{
    FrameClient, Grpc, GrpcOrigin, HyperOrigin, Nginx, RawOrigin, curl, get, kind, request, run,
};
use support::{Fleet, passing, proxy_to, python, settings, until};
use tokio::task::JoinSet;

/// A proxy to one instance that speaks HTTP/2.
fn to_http2(address: std::net::SocketAddr) -> (Fleet, Proxy) {
    let fleet = Fleet::of(&[address]);
    let proxy = fleet.proxy(with_service(settings(), |service| service.protocol = Protocol::Http2));
    (fleet, proxy)
}

fn with_service(mut settings: Settings, change: impl FnOnce(&mut Service)) -> Settings {
    let mut service = Service::default();
    change(&mut service);
    settings.services.insert("ress".into(), service);
    settings
}

#[tokio::test]
async fn clients_may_know_it_before() {
    let origin = HyperOrigin::start("a").await;
    let (_fleet, proxy) = proxy_to(origin.address());
    let url = format!("http://{}/a%20b?c", proxy.address());
    let write = "%{http_version} %{http_code}";
    let output = curl(&["--http2-prior-knowledge", "-o", "/dev/null", "-w", write, &url]).await;
    assert_eq!((output.code, &*output.out), (Some(0), "2 200"), "{output:?}");
    let output = curl(&["--http2-prior-knowledge", "-H", "Cookie: a=b", "-d", "body", &url]).await;
    let said: serde_json::Value = serde_json::from_str(&output.out).unwrap();
    assert_eq!(
        (&said["target"], &said["body"], &said["version"]),
        (&"/a%20b?c".into(), &"body".into(), &"HTTP/1.1".into())
    );
    let headers: Vec<(String, String)> = serde_json::from_value(said["headers"].clone()).unwrap();
    let all =
        |name: &str| headers.iter().filter(|(other, _)| other == name).map(|(_, value)| &**value).collect::<Vec<_>>();
    assert_eq!(all("host"), [proxy.address().to_string()]);
    assert_eq!((all("cookie"), all("x-forwarded-for")), (vec!["a=b"], vec!["127.0.0.1"]));
    assert!(all("via")[0].starts_with("2"), "{:?}", all("via"));
    let output = curl(&["--http2-prior-knowledge", "-I", &format!("http://{}/bytes/7", proxy.address())]).await;
    assert!(output.out.to_lowercase().contains("content-length: 7"), "{output:?}");
}

#[tokio::test]
async fn bodies_go_both_ways() {
    let origin = HyperOrigin::start("a").await;
    let (_fleet, proxy) = proxy_to(origin.address());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("large");
    fs::write(&file, vec![b'x'; 10 << 20]).unwrap();
    let (file, base) = (format!("@{}", file.display()), format!("http://{}", proxy.address()));
    let sink = curl(&["--http2-prior-knowledge", "--data-binary", &file, &format!("{base}/sink")]).await;
    assert_eq!(sink.out, (10 << 20).to_string(), "{}", sink.err);
    for path in ["bytes", "chunked"] {
        let size = ["--http2-prior-knowledge", "-o", "/dev/null", "-w", "%{size_download}"];
        let output = curl(&[&size[..], &[&format!("{base}/{path}/10000000")]].concat()).await;
        assert_eq!((output.code, &*output.out), (Some(0), "10000000"), "{output:?}");
    }
}

#[tokio::test]
async fn broken_answers_are_broken() {
    let origin = HyperOrigin::start("a").await;
    let (_fleet, proxy) = proxy_to(origin.address());
    let output = curl(&["--http2-prior-knowledge", &format!("http://{}/half", proxy.address())]).await;
    assert_ne!(output.code, Some(0), "{output:?}");
    // The connection goes on for others.
    let mut client = FrameClient::connect(proxy.address()).await;
    client.send_get(1, "/half").await;
    assert!(client.outcome(1).await.0.is_some());
    client.send_get(3, "/bytes/3").await;
    assert_eq!(client.outcome(3).await, (None, b"xxx".to_vec()));
}

/// `Upgrade` has no place in HTTP/2, not even where it is what the answer is about.
#[tokio::test]
async fn who_should_speak_another_protocol_is_told_so() {
    let answer =
        "HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nConnection: upgrade\r\nContent-Length: 2\r\n\r\nno";
    let origin = tiny::Origin::start(move |_| tiny::Play::Answer(answer.to_owned())).await;
    let (_fleet, proxy) = proxy_to(origin.address);
    let url = format!("http://{}/", proxy.address());
    let output = curl(&["--http2-prior-knowledge", "-i", &url]).await;
    assert!(output.out.starts_with("HTTP/2 426") && output.out.ends_with("no"), "{output:?}");
    assert!(curl(&["-i", &url]).await.out.to_lowercase().contains("\r\nupgrade: websocket\r\n"));
}

/// What instances break off is not the client's doing, who is not sent away for it.
#[tokio::test]
async fn a_client_is_not_sent_away_for_broken_answers() {
    let half = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf";
    let origin = tiny::Origin::start(|seen| match seen.line() {
        "GET /half HTTP/1.1" => tiny::Play::Cut(half.to_owned()),
        _ => tiny::ok("whole"),
    });
    let origin = origin.await;
    let (_fleet, proxy) = proxy_to(origin.address);
    let mut client = FrameClient::connect(proxy.address()).await;
    for number in 0..250 {
        client.send_get(2 * number + 1, "/half").await;
        assert_eq!(client.outcome(2 * number + 1).await.0, Some(2), "INTERNAL_ERROR, of the stream {number}");
    }
    client.send_get(501, "/").await;
    assert_eq!(client.outcome(501).await, (None, b"whole".to_vec()));
}

#[tokio::test]
async fn many_streams_share_a_connection() {
    let origin = HyperOrigin::start("a").await;
    let (_fleet, proxy) = proxy_to(origin.address());
    let url = format!("http://{}/bytes/1000", proxy.address());
    let output = run("h2load", ["-n", "5000", "-c", "4", "-m", "50", &*url]).await;
    assert!(output.out.contains("5000 total, 5000 started, 5000 done, 5000 succeeded"), "{output:?}");
    assert_eq!(origin.requests(), 5000);
    // One that waits holds up no other.
    let mut client = FrameClient::connect(proxy.address()).await;
    client.send_get(1, "/hold").await;
    client.send_get(3, "/bytes/3").await;
    assert_eq!(client.outcome(3).await, (None, b"xxx".to_vec()));
    origin.release(1);
    assert_eq!(client.outcome(1).await, (None, b"held".to_vec()));
}

#[tokio::test]
async fn alpn_chooses_over_tls() {
    let folder = tempfile::tempdir().unwrap();
    let origin = HyperOrigin::start("a").await;
    let fleet = Fleet::of(&[origin.address()]);
    let (settings, files) = secure(settings(), folder.path());
    let proxy = fleet.proxy(settings);
    let url = format!("https://localhost:{}/x", proxy.address().port());
    let ca = files.ca.display().to_string();
    let fixed = ["--cacert", &ca, "-w", "\n%{http_version}"];
    let ask = async |extra: &[&str]| {
        let output = curl(&[&fixed[..], extra, &[&url]].concat()).await;
        assert_eq!(output.code, Some(0), "{output:?}");
        let (body, version) = output.out.rsplit_once('\n').unwrap();
        let said: serde_json::Value = serde_json::from_str(body).unwrap();
        let headers: Vec<(String, String)> = serde_json::from_value(said["headers"].clone()).unwrap();
        assert!(headers.contains(&("x-forwarded-proto".into(), "https".into())), "{headers:?}");
        version.to_owned()
    };
    assert_eq!(ask(&[]).await, "2");
    assert_eq!(ask(&["--http1.1"]).await, "1.1");
    assert_eq!(ask(&["--no-alpn"]).await, "1.1");
    // Cleartext is not spoken there.
    let output = curl(&[&format!("http://{}/x", proxy.address())]).await;
    assert!(!output.out.contains("origin"), "{output:?}");
}

#[tokio::test]
async fn clients_may_have_to_have_a_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let origin = HyperOrigin::start("a").await;
    let fleet = Fleet::of(&[origin.address()]);
    let (mut settings, files) = secure(settings(), folder.path());
    settings.tls.as_mut().unwrap().client_ca = Some(files.ca.clone());
    let proxy = fleet.proxy(settings);
    let url = format!("https://localhost:{}/x", proxy.address().port());
    let paths = [&files.ca, &files.client_certificate, &files.client_key].map(|path| path.display().to_string());
    assert_ne!(curl(&["--cacert", &paths[0], &url]).await.code, Some(0));
    let output = curl(&["--cacert", &paths[0], "--cert", &paths[1], "--key", &paths[2], &url]).await;
    assert_eq!(output.code, Some(0), "{output:?}");
    assert_eq!(origin.requests(), 1);
}

/// The same with TLS; key and certificate are in one file.
fn secure(mut settings: Settings, folder: &std::path::Path) -> (Settings, TlsFiles) {
    let files = TlsFiles::create(folder);
    let server: PathBuf = files.server.clone();
    settings.tls = Some(Tls { cert: server.clone(), key: server, client_ca: None });
    (settings, files)
}

#[tokio::test]
async fn instances_may_speak_it() {
    let origin = HyperOrigin::start("a").await;
    let (_fleet, proxy) = to_http2(origin.address());
    let answer = request(proxy.address(), "POST", "/a%20b?c", &[("X-A", "b")], "body").await;
    let said = answer.json();
    assert_eq!(
        (&said["version"], &said["target"], &said["body"]),
        (&"HTTP/2.0".into(), &"/a%20b?c".into(), &"body".into())
    );
    for _ in 0..100 {
        assert_eq!(get(proxy.address(), "/bytes/100000").await.body.len(), 100_000);
    }
    assert!(origin.connections() <= 2, "{} connections", origin.connections());
    let answer = request(proxy.address(), "GET", "/trailers", &[("TE", "trailers")], "").await;
    assert_eq!(answer.trailers, [("x-check".to_owned(), "done".to_owned())]);
    let broken = get(proxy.address(), "/half").await;
    assert!(!broken.complete);
}

/// An instance says how many requests it takes on a connection: more get another connection, and do not wait.
#[tokio::test]
async fn who_takes_few_requests_on_a_connection_gets_more_connections() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let all = Arc::new(tokio::sync::Barrier::new(7));
    let origin = tokio::spawn(async move {
        let mut tasks = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let all = all.clone();
            tasks.spawn(async move {
                let mut builder = h2::server::Builder::new();
                let mut connection = builder.max_concurrent_streams(2).handshake::<_, Bytes>(stream).await.unwrap();
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    let all = all.clone();
                    tokio::spawn(async move {
                        all.wait().await;
                        let _ = respond.send_response(http::Response::new(()), true);
                    });
                }
            });
        }
    });
    let (_fleet, proxy) = to_http2(address);
    let proxy_address = proxy.address();
    let mut asked = JoinSet::new();
    for _ in 0..7 {
        // So that the first knows what the instance says before the others come.
        tokio::time::sleep(Duration::from_millis(20)).await;
        asked.spawn(async move { get(proxy_address, "/").await.status });
    }
    assert_eq!(asked.join_all().await, [200; 7]);
    origin.abort();
}

#[tokio::test]
async fn heads_of_instances_of_http2_are_bounded() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let origin = tokio::spawn(async move {
        let mut tasks = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tasks.spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let (fields, size) = request.uri().path()[1..].split_once('/').unwrap();
                    let (fields, size): (usize, usize) = (fields.parse().unwrap(), size.parse().unwrap());
                    let mut response = http::Response::new(());
                    for number in 0..fields {
                        let name = http::HeaderName::from_bytes(format!("x-{number}").as_bytes()).unwrap();
                        response.headers_mut().insert(name, "x".repeat(size).parse().unwrap());
                    }
                    let _ = respond.send_response(response, true);
                }
            });
        }
    });
    let (_fleet, proxy) = to_http2(address);
    for (path, status) in [("/10/3000", 200), ("/10/4000", 502), ("/10/40000", 502), ("/99/1", 200), ("/101/1", 502)] {
        assert_eq!(get(proxy.address(), path).await.status, status, "{path}");
    }
    origin.abort();
}

/// An instance whose host has vanished: what waits for it is given up, and the next request gets a connection of its own.
#[tokio::test]
async fn a_connection_that_nobody_answers_on_is_not_used_again() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let origin = tokio::spawn(async move {
        let mut vanished = Vec::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let mut connection = h2::server::handshake(stream).await.unwrap();
            let is_first = vanished.is_empty();
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                if is_first {
                    break;
                }
                let _ = respond.send_response(http::Response::new(()), true);
            }
            vanished.push(connection);
        }
    });
    let fleet = Fleet::of(&[address]);
    let mut settings = with_service(passing(|pass| pass.retries = 0), |service| service.protocol = Protocol::Http2);
    let Action::Pass(pass) = &mut settings.routes[0].action else { panic!("it passes on") };
    pass.timeouts.first_byte = Duration::from_millis(100);
    let proxy = fleet.proxy(settings);
    assert_eq!(get(proxy.address(), "/").await.status, 504);
    assert_eq!(get(proxy.address(), "/").await.status, 200);
    origin.abort();
}

/// What HTTP/1 has and HTTP/2 has not is no fault of the instance, which must not be ejected for it.
#[tokio::test]
async fn what_has_no_form_in_http2_is_the_clients_fault() {
    let origin = HyperOrigin::start("a").await;
    let (_fleet, proxy) = to_http2(origin.address());
    for _ in 0..6 {
        for lines in ["GET /<x> HTTP/1.1\r\nHost: h\r\nConnection: close", "GET / HTTP/1.0"] {
            let answer = tiny::exchange(proxy.address(), &format!("{lines}\r\n\r\n")).await;
            assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("HTTP/2"), "{answer}");
        }
    }
    assert!(proxy.metrics().contains("pointsman_http_instances_ejected{service=\"ress\"} 0"), "{}", proxy.metrics());
    assert_eq!(get(proxy.address(), "/").await.status, 200);
}

#[tokio::test]
async fn instances_of_http2_die_and_others_take_over() {
    let (mut one, two) = (HyperOrigin::start("one").await, HyperOrigin::start("two").await);
    let fleet = Fleet::of(&[one.address(), two.address()]);
    let proxy = fleet.proxy(with_service(passing(|pass| pass.retry_budget = 100), |service| {
        service.protocol = Protocol::Http2;
        service.ejection = None;
    }));
    for _ in 0..10 {
        assert_eq!(get(proxy.address(), "/x").await.status, 200);
    }
    one.kill().await;
    for _ in 0..10 {
        assert_eq!(get(proxy.address(), "/x").await.header("x-origin"), Some("two"));
    }
    one.restart().await;
    let before = one.requests();
    for _ in 0..10 {
        assert_eq!(get(proxy.address(), "/x").await.status, 200);
    }
    assert!(one.requests() > before);
}

#[tokio::test]
async fn tls_towards_instances() {
    let folder = tempfile::tempdir().unwrap();
    let files = TlsFiles::create(folder.path());
    let pem = files.server.display();
    let server = format!("ssl_certificate {pem}; ssl_certificate_key {pem}; return 200 \"$server_protocol\";");
    let nginx = Nginx::listening("ssl http2", &server).await;
    let fleet = Fleet::of(&[nginx.address()]);
    let other = tempfile::tempdir().unwrap();
    let stranger = TlsFiles::create(other.path());
    let tls = |ca: &PathBuf, name: Option<&str>| Some(ServiceTls { ca: ca.clone(), name: name.map(str::to_owned) });
    for (protocol, expected) in [(Protocol::Http1, "HTTP/1.1"), (Protocol::Http2, "HTTP/2.0")] {
        let asked = async |tls: Option<ServiceTls>| {
            let proxy = fleet.proxy(with_service(settings(), |service| {
                service.protocol = protocol;
                service.tls = tls;
            }));
            get(proxy.address(), "/x").await
        };
        assert_eq!(asked(tls(&files.ca, None)).await.text(), expected);
        assert_eq!(asked(tls(&files.ca, Some("localhost"))).await.text(), expected);
        // Neither by somebody else's authority nor by another name.
        for wrong in [tls(&stranger.ca, None), tls(&files.ca, Some("other.example"))] {
            let answer = asked(wrong).await;
            assert_eq!((answer.status, &*answer.problem()), (502, "unreachable"));
        }
    }
}

async fn grpc() -> Option<(Grpc, GrpcOrigin, Fleet, Proxy)> {
    let grpc = Grpc::installed(python())?;
    let origin = grpc.serve("one").await;
    let (fleet, proxy) = to_http2(origin.address());
    Some((grpc, origin, fleet, proxy))
}

#[tokio::test]
async fn grpc_calls_go_through() {
    let Some((grpc, _origin, _fleet, proxy)) = grpc().await else { return };
    let unary = grpc.call(proxy.address(), "Unary", &["x"]).await;
    assert_eq!((&*unary.code, unary.answers), ("OK", vec!["unary x".to_owned()]));
    assert_eq!(unary.trailers["x-origin"], "one");
    let large = grpc.call(proxy.address(), "Unary", &["size:3000000"]).await;
    assert_eq!((&*large.code, large.answers), ("OK", vec!["size:3000006".to_owned()]));
}

#[tokio::test]
async fn grpc_streams_go_through() {
    let Some((grpc, _origin, _fleet, proxy)) = grpc().await else { return };
    let down = grpc.call(proxy.address(), "Down", &["100"]).await;
    assert_eq!((&*down.code, down.answers.len()), ("OK", 100));
    let up = grpc.call(proxy.address(), "Up", &["size:100000", "size:1", "size:50"]).await;
    assert_eq!(up.answers, ["100051"]);
    assert_eq!(grpc.call(proxy.address(), "Both", &["a", "b", "c"]).await.answers, ["both a", "both b", "both c"]);
}

#[tokio::test]
async fn grpc_errors_go_through() {
    let Some((grpc, _origin, fleet, proxy)) = grpc().await else { return };
    let failed = grpc.call(proxy.address(), "Fail", &["x"]).await;
    assert_eq!((&*failed.code, &*failed.details), ("NOT_FOUND", "no x"));
    assert_eq!(failed.trailers["x-why"], "asked for");
    let late = grpc.call(proxy.address(), "Late", &[""]).await;
    assert_eq!((&*late.code, &*late.details, late.answers), ("ABORTED", "in the middle", vec!["first".to_owned()]));
    // gRPC makes UNAVAILABLE of 503.
    fleet.leave("ress", "a");
    let nobody = grpc.call(proxy.address(), "Unary", &["x"]).await;
    assert_eq!(nobody.code, "UNAVAILABLE", "{nobody:?}");
}

/// What cannot be said in HTTP/1.1 is not translated (RFC 9113, 8.2 and 8.3; H2.TE and H2.CL).
#[tokio::test]
async fn requests_of_http2_smuggle_nothing() {
    let origin = RawOrigin::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let (_fleet, proxy) = proxy_to(origin.address());
    let get = FrameClient::get("/");
    let with = |name: &'static str, value: &'static str| {
        let mut fields = get.clone();
        fields.push((name, value));
        fields
    };
    let replaced = |name: &'static str, value: &'static str| {
        let mut fields = get.clone();
        fields.iter_mut().filter(|(other, _)| *other == name).for_each(|field| field.1 = value);
        fields
    };
    let mut passed = Vec::new();
    for fields in [
        with("transfer-encoding", "chunked"),
        with("connection", "close"),
        with("keep-alive", "1"),
        with("proxy-connection", "close"),
        with("upgrade", "websocket"),
        with("te", "gzip"),
        with("X-Upper", "a"),
        with("x a", "b"),
        with("x:a", "b"),
        with("x\r\ny", "b"),
        with("x", "a\r\nHost: evil"),
        with("x", "a\nb"),
        with("x", "a\0b"),
        with("", "b"),
        with("content-length", "5"),
        with(":method", "POST"),
        with(":path", "/other"),
        with(":odd", "a"),
        with("host", "evil.example"),
        replaced(":path", "/ HTTP/1.1\r\nHost: evil\r\n\r\nGET /smuggled"),
        replaced(":path", "/a b"),
        replaced(":path", ""),
        replaced(":path", "a"),
        replaced(":method", "GET / HTTP/1.1\r\nX: "),
        replaced(":method", "CONNECT"),
        replaced(":authority", "x y"),
        replaced(":authority", "u@x"),
        replaced(":authority", "x/y"),
        replaced(":authority", ""),
        get[..3].to_vec(),
        get[1..].to_vec(),
        vec![get[0], get[1], get[3]],
        vec![get[0], get[1], ("x", "y"), get[2], get[3]],
    ] {
        let before = origin.text().len();
        let mut client = FrameClient::connect(proxy.address()).await;
        let flags = FrameClient::END_STREAM | FrameClient::END_HEADERS;
        client.send(&FrameClient::frame(kind::HEADERS, flags, 1, &FrameClient::block(&fields))).await;
        // Either the stream, or the connection, or a 4xx.
        let (_, body) = client.outcome(1).await;
        let seen = origin.text().split_off(before);
        if body == b"ok" || !seen.is_empty() {
            passed.push(format!("{fields:?}: {seen}"));
        }
    }
    assert!(passed.is_empty(), "{}", passed.join("\n"));
}

/// The length that is told is the body's.
#[tokio::test]
async fn bodies_of_http2_are_as_long_as_they_say() {
    let origin = RawOrigin::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let (_fleet, proxy) = proxy_to(origin.address());
    for (length, body) in [
        ("3", "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("0", "x"),
        ("100", "short"),
        ("+4", "body"),
        ("4, 4", "body"),
    ] {
        let mut fields = FrameClient::get("/");
        fields[0].1 = "POST";
        fields.push(("content-length", length));
        let mut client = FrameClient::connect(proxy.address()).await;
        client
            .send(&FrameClient::frame(kind::HEADERS, FrameClient::END_HEADERS, 1, &FrameClient::block(&fields)))
            .await;
        client.send(&FrameClient::frame(kind::DATA, FrameClient::END_STREAM, 1, body.as_bytes())).await;
        let (_, answer) = client.outcome(1).await;
        assert_ne!(answer, b"ok", "{length} {body}");
    }
    assert_eq!(origin.whole(), 0, "{}", origin.text());
    assert!(origin.heads().iter().all(|head| !head.contains("smuggled")));
}

#[tokio::test]
async fn streams_that_are_given_up_are_given_up_at_the_instance() {
    let origin = HyperOrigin::start("a").await;
    let (_fleet, proxy) = proxy_to(origin.address());
    let mut client = FrameClient::connect(proxy.address()).await;
    client.send_get(1, "/hold").await;
    until("under way", || origin.under_way() == 1).await;
    client.send(&FrameClient::frame(kind::RESET, 0, 1, &8_u32.to_be_bytes())).await;
    until("given up", || origin.under_way() == 0).await;
    client.send_get(3, "/bytes/1").await;
    assert_eq!(client.outcome(3).await, (None, b"x".to_vec()));
}

/// An instance that reads a request, and says that it leaves without having looked at it.
async fn leaving() -> (std::net::SocketAddr, tokio::task::JoinHandle<()>) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    // The last stream that is seen to is none; and no error.
    const GOAWAY: [u8; 17] = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(&SETTINGS).await.unwrap();
        let mut preface = [0; 24];
        stream.read_exact(&mut preface).await.unwrap();
        let mut head = [0; 9];
        // Until there are HEADERS.
        while head[3] != 1 {
            stream.read_exact(&mut head).await.unwrap();
            let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
            stream.read_exact(&mut payload).await.unwrap();
        }
        stream.write_all(&GOAWAY).await.unwrap();
        while stream.read(&mut preface).await.is_ok_and(|count| count > 0) {}
    });
    (address, serving)
}

#[tokio::test]
async fn what_an_instance_that_leaves_has_not_looked_at_is_tried_elsewhere() {
    let (address, _serving) = leaving().await;
    let other = HyperOrigin::start("a").await;
    let fleet = Fleet::of(&[address]);
    let proxy = fleet.proxy(with_service(passing(|pass| pass.retry_budget = 0), |service| {
        service.protocol = Protocol::Http2;
    }));
    let answer = request(proxy.address(), "POST", "/x", &[], "body").await;
    assert_eq!((answer.status, &*answer.problem()), (502, "bad-answer"), "there is no other");
    drop((fleet, proxy));
    let (address, _serving) = leaving().await;
    let fleet = Fleet::of(&[address, other.address()]);
    let proxy = fleet.proxy(with_service(passing(|pass| pass.retry_budget = 0), |service| {
        service.protocol = Protocol::Http2;
    }));
    for _ in 0..2 {
        let answer = request(proxy.address(), "POST", "/x", &[], "body").await;
        assert_eq!((answer.status, &answer.json()["body"]), (200, &"body".into()));
    }
    assert_eq!(other.requests(), 2);
}

#[tokio::test]
async fn trailers_may_follow_a_known_length() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            let head = http::Response::builder().header("content-length", 5).body(()).unwrap();
            let mut stream = respond.send_response(head, false).unwrap();
            stream.send_data(Bytes::from_static(b"hello"), false).unwrap();
            stream.send_trailers([("x-sum".parse().unwrap(), "5d41".parse().unwrap())].into_iter().collect()).unwrap();
        }
    });
    let (_fleet, proxy) = to_http2(address);
    let stream = tokio::net::TcpStream::connect(proxy.address()).await.unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let head = http::Request::get(format!("http://{}/x", proxy.address())).body(()).unwrap();
    let (answer, _) = client.send_request(head, true).unwrap();
    let answer = answer.await.unwrap();
    assert_eq!(answer.headers()["content-length"], "5");
    let mut body = answer.into_body();
    assert_eq!(body.data().await.unwrap().unwrap(), "hello");
    assert_eq!(body.trailers().await.unwrap().unwrap()["x-sum"], "5d41");
}
