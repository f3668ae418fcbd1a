//! What is served, and how it changes.

use std::path::Path;

use pointsman_testkit::http::{HyperOrigin, Load, Plan, Way, curl, request};
use pointsman_testkit::{TlsFiles, ZooKeeper, unique_prefix};
use rustix::process::Signal;
use zookeeper_client::{Acls, CreateMode};

use crate::setup::{Proxy, Registry, at, instances, metrics, text, until};
use crate::support::served::{File, free_port, logged, serve};
use crate::support::{Running, command, run, stderr, stdout};

#[tokio::test]
async fn requests_are_balanced_over_what_registers_with_the_agent_beside_it() {
    let (agent, port) = (free_port(), free_port());
    let origins = [HyperOrigin::start("a").await, HyperOrigin::start("b").await, HyperOrigin::start("c").await];
    let file = format!(
        "[agent]\nlisten = '127.0.0.1:{agent}'\n[http]\nlisten = '127.0.0.1:{port}'\nregister_as = 'http-balancer'\nworkers = 2\n\
         [[http.route]]\nname = 'all'\npath_prefix = '/'\nservice = 'ress'\n"
    );
    let proxy = Proxy::start(port, &file).await;
    let nobody = proxy.get("/").await;
    assert_eq!((nobody.status, &*nobody.problem()), (503, "no-instance"));
    assert!(nobody.header("retry-after").unwrap().parse::<u32>().unwrap() > 0, "{nobody:?}");

    let url = format!("http://127.0.0.1:{agent}");
    let mut registered = Vec::new();
    for origin in &origins {
        let address = origin.address().to_string();
        let args = ["register", "ress", "--code", origin.id(), "--address", &address, "-o", "json", "--registry", &url];
        let mut instance = Running::start(command(args));
        instance.json_where(|line| line["event"] == "role" && line["role"] != "detached").await;
        registered.push(instance);
    }
    // The first one is the master, which is there for when nobody else is.
    proxy.until_served_by(&["b", "c"]).await;
    for (leaves, left) in [(2, "b"), (1, "a")] {
        registered[leaves].signal(Signal::TERM);
        proxy.until_served_by(&[left]).await;
    }
    let listed = instances("http-balancer", &url).await;
    assert_eq!(listed[0]["address"], at(port).to_string(), "{listed}");
    let told = metrics(agent).await;
    for words in
        ["\npointsman_http_connections ", "pointsman_http_requests_total{route=\"all\"", "\npointsman_ready 1\n"]
    {
        assert!(told.contains(words), "{words}: {told}");
    }
    proxy.ends().await;
}

#[tokio::test]
async fn an_answer_over_http2_is_whole_although_the_request_is_not_read() {
    let registry = Registry::start().await;
    // Nobody is there: the proxy answers before the body has come.
    registry.put("ress", "a", at(free_port())).await;
    let proxy = Proxy::over(&registry, "services.ress.ejection = 'off'").await;
    let plan = Plan { posts: 100, requests: Some(300), origins_fail: true };
    let tally = Load::start(at(proxy.port), &[Way::Http2, Way::Http2], plan).end().await;
    tally.assert_none_failed();
    assert_eq!((tally.refused, tally.cut), (300, 0));
    proxy.ends().await;
}

#[tokio::test]
async fn routes_change_at_once_and_a_broken_file_changes_nothing() {
    let (registry, origin, watched) = (Registry::start().await, HyperOrigin::start("a").await, free_port());
    registry.put("ress", "a", origin.address()).await;
    let port = free_port();
    let with = |routes: &str| {
        format!(
            "registry = '{}'\nmetrics.listen = '127.0.0.1:{watched}'\n[http]\nlisten = '127.0.0.1:{port}'\n{routes}",
            registry.url()
        )
    };
    let pass = "[[http.route]]\nname = 'pass'\npath_prefix = '/a'\nservice = 'ress'\n";
    let mut proxy = Proxy::start(port, &with(pass)).await;
    assert_eq!(proxy.get("/a").await.status, 200);
    assert_eq!(proxy.get("/b").await.problem(), "no-route");
    // A service that nobody has asked for until now is followed, too.
    registry.put("other", "o", origin.address()).await;
    let more = "[[http.route]]\npath_prefix = '/b'\nservice = 'other'\n[[http.route]]\nhost = 'old.example'\n\
                answer = { status = 308, headers = { location = 'https://new.example/' } }\n";
    proxy.reloaded(&with(&format!("{pass}{more}"))).await;
    assert_eq!(proxy.get("/b").await.status, 200);
    let moved = request(at(port), "GET", "/c", &[("Host", "old.example")], "").await;
    assert_eq!((moved.status, moved.header("location")), (308, Some("https://new.example/")));

    proxy.file.replace(&with("[[http.route]]\npath_prefix = '/a'\nservice = 'ress'\nalgoritm = 'random'\n"));
    let line = logged(&mut proxy.running, "did you mean algorithm?").await;
    assert!(line.contains("line=8") && line.contains("column=1"), "{line}");
    logged(&mut proxy.running, "the configuration is wrong: everything stays as it is").await;
    assert_eq!((proxy.get("/a").await.status, proxy.get("/b").await.status), (200, 200));
    let told = metrics(watched).await;
    for words in [
        "pointsman_config_stale 1",
        "pointsman_config_reloads_total{result=\"applied\"} 1",
        "pointsman_config_reloads_total{result=\"failed\"} 1",
        "pointsman_http_requests_total{route=\"pass\",service=\"ress\",code=\"2xx\"} ",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
    // Without the service that `/b` was for; and what needs a restart is said.
    proxy.file.replace(&with(&format!("workers = 7\n{pass}")));
    let line = logged(&mut proxy.running, "takes effect after a restart").await;
    assert!(line.contains("http.workers"), "{line}");
    assert_eq!(proxy.get("/b").await.problem(), "no-route");
    proxy.ends().await;
}

#[tokio::test]
async fn certificates_are_taken_up_when_their_files_change() {
    let (registry, origin, port) = (Registry::start().await, HyperOrigin::start("a").await, free_port());
    registry.put("ress", "a", origin.address()).await;
    let file = File::new("");
    let folder = file.path.parent().unwrap().to_owned();
    let tls = |name: &str| {
        std::fs::create_dir(folder.join(name)).unwrap();
        TlsFiles::create(&folder.join(name))
    };
    let (first, second) = (tls("first"), tls("second"));
    let copy = |from: &Path| {
        std::fs::copy(from, folder.join("new")).unwrap();
        std::fs::rename(folder.join("new"), folder.join("server.pem")).unwrap();
    };
    copy(&first.server);
    file.replace(&text(&registry.url(), port, "tls_cert = 'server.pem'\ntls_key = 'server.pem'"));
    let mut running = serve(&file.path);
    logged(&mut running, " ready").await;
    let url = format!("https://localhost:{port}/bytes/5");
    let ask = async |tls: &TlsFiles, version: &str| {
        let ca = tls.ca.to_str().unwrap();
        let format = "%{http_code} %{http_version}";
        curl(&["--cacert", ca, version, "--output", "/dev/null", "--write-out", format, &url]).await.out
    };
    let ready = async || ask(&first, "--http2").await;
    until(ready, |told| told == "200 2").await;
    assert_eq!(ask(&first, "--http1.1").await, "200 1.1");
    copy(&second.server);
    logged(&mut running, "configuration reloaded").await;
    assert_eq!(ask(&second, "--http2").await, "200 2");
    assert!(ask(&first, "--http2").await.starts_with("000"));
    // What is no certificate changes nothing.
    copy(&file.path);
    logged(&mut running, "everything stays as it is").await;
    assert_eq!(ask(&second, "--http1.1").await, "200 1.1");
    running.signal(Signal::TERM);
    assert_eq!(running.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_client_stays_with_an_instance_whatever_its_code_is() {
    // All that a name may have and a cookie must not. A slash is not among it: who registers with one is not listed.
    const CODES: [&str; 4] = ["master", "eu%2F1", "用户;\"x\"=1,\\", "eu/1"];
    let (server, prefix, port) = (ZooKeeper::shared().await, unique_prefix(), free_port());
    let raw = server.client().await;
    let persistent = CreateMode::Persistent.with_acls(Acls::anyone_all());
    let ephemeral = CreateMode::Ephemeral.with_acls(Acls::anyone_all());
    raw.mkdir(&format!("{prefix}/ress"), &persistent).await.unwrap();
    let mut origins = Vec::new();
    for (number, code) in CODES.iter().enumerate() {
        let origin = HyperOrigin::start(&number.to_string()).await;
        let node = if number == 0 { "master".to_owned() } else { format!("normal{number:010}") };
        let data = serde_json::json!({
            "serverip": "127.0.0.1", "serverport": origin.address().port(), "username": "", "userpwd": "",
            "serveruniquecode": code, "weight": 1,
        });
        raw.create(&format!("{prefix}/ress/{node}"), data.to_string().as_bytes(), &ephemeral).await.unwrap();
        origins.push(origin);
    }
    let registry = format!("zookeeper://{}{prefix}", server.address());
    let file = text(&registry, port, "") + "sticky = 'lb'\n";
    let proxy = Proxy::start(port, &file).await;
    proxy.until_served_by(&["1", "2"]).await;
    let mut seen = [false; 4];
    while seen != [false, true, true, false] {
        let first = proxy.get("/").await;
        let origin = first.header("x-origin").unwrap();
        seen[origin.parse::<usize>().unwrap()] = true;
        let cookie = first.header("set-cookie").unwrap().split(';').next().unwrap();
        assert!(cookie.bytes().all(|byte| byte.is_ascii_graphic() && !b"\",\\".contains(&byte)), "{cookie}");
        for _ in 0..4 {
            let again = request(at(port), "GET", "/", &[("Cookie", &format!("a=b; {cookie}"))], "").await;
            assert_eq!((again.header("x-origin"), again.header("set-cookie")), (Some(origin), None), "{cookie}");
        }
    }
    proxy.ends().await;
}

#[tokio::test]
async fn check_says_what_the_whole_file_would_do_and_where_it_is_wrong() {
    let lines = "hand_over = 'proxy.sock'\ncode = 'p-1'\naccess_log = 'json'\naccess_log_file = 'access.log'\ntrusted = '10.0.0.0/8'\n\
                 services.ress = { check = '/health', max_in_flight = 9, ejection = { failures = 3 } }";
    let right = text("zookeeper://h/p", 7481, lines);
    let file = File::new(&right);
    let path = file.path.to_str().unwrap();
    let output = run(&["check", path]).await;
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), String::new()));
    for words in ["is in order", "http://127.0.0.1:7481/", "http-balancer", "-> ress, round-robin"] {
        assert!(stdout(&output).contains(words), "{words}: {}", stdout(&output));
    }
    file.replace(&right.replace("'/health'", "'health'"));
    let output = run(&["check", path]).await;
    assert_eq!(output.status.code(), Some(1), "{}", stdout(&output));
    assert!(stderr(&output).contains(":11:") && stderr(&output).contains("check"), "{}", stderr(&output));
}
