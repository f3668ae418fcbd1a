//! Who is there, and what operators do about it.

use serde_json::{Value, json};

use crate::support::{Server, codes, registry_with, until};

#[tokio::test]
async fn services_and_instances_are_listed() {
    let server = Server::start().await;
    assert_eq!(server.json("/v1/services").await, json!([]));
    let none = server.get("/v1/services/nobody/instances").await;
    assert_eq!((none.status, none.text()), (200, "[]"));
    assert_eq!(none.header("x-pointsman-revision"), Some("0"));
    assert_eq!(none.header("etag"), Some("W/\"0\""));
    let master = server.put("b", "1").await;
    server.put("b", "2").await;
    server.put("a", "1").await;
    server.until_codes("b", &["1", "2"]).await;
    server.until_codes("a", &["1"]).await;
    let services = server.json("/v1/services").await;
    assert_eq!((&services[0]["service"], &services[1]["service"]), (&json!("a"), &json!("b")));
    let b = &services[1];
    assert_eq!((&b["instances"], &b["master"], &b["term"]), (&json!(2), &json!("1"), &master["term"]));
    assert_eq!((&b["problems"], &b["guarded"]), (&json!(0), &json!(false)));
    let found = server.get("/v1/services/b/master").await;
    assert_eq!((found.status, &found.json()["code"]), (200, &json!("1")));
    assert_eq!(found.header("x-pointsman-freshness"), Some("fresh"));
    assert_eq!(found.header("x-pointsman-revision"), Some(&*b["revision"].to_string()));
    server.get("/v1/services/nobody/master").await.is_problem(404, "no-master");
}

#[tokio::test]
async fn who_has_a_list_already_is_told_that_nothing_has_changed() {
    let server = Server::start().await;
    server.put("s", "a").await;
    server.until_codes("s", &["a"]).await;
    let mut client = server.client().await;
    for path in ["/v1/services/s/instances", "/v1/services/s/instances?all"] {
        let answer = client.ask("GET", path, "").await;
        let etag = answer.header("etag").unwrap().to_owned();
        let revision = answer.header("x-pointsman-revision").unwrap();
        let strong = etag.trim_start_matches("W/").to_owned();
        for known in [etag.clone(), strong, format!("\"x\", {etag}"), "*".to_owned()] {
            let same = client.ask_with("GET", path, &[("if-none-match", &known)], "").await;
            assert_eq!((same.status, same.header("etag")), (304, Some(&*etag)), "{known}");
            assert_eq!(same.header("x-pointsman-revision"), Some(revision));
            assert!(same.body.is_empty());
        }
        let other = client.ask_with("GET", path, &[("if-none-match", "\"other\"")], "").await;
        assert_eq!(other.status, 200);
    }
    let etag = client.ask("GET", "/v1/services/s/instances", "").await.header("etag").unwrap().to_owned();
    server.put("s", "b").await;
    server.until_codes("s", &["a", "b"]).await;
    let changed = client.ask_with("GET", "/v1/services/s/instances", &[("if-none-match", &etag)], "").await;
    assert_eq!((changed.status, codes(&changed.json())), (200, vec!["a".to_owned(), "b".to_owned()]));
}

#[tokio::test]
async fn drained_instances_take_no_work_and_the_audit_tells_who_did_it() {
    let server = Server::start().await;
    server.put("s", "a").await;
    server.put("s", "b").await;
    let mut watcher = server.watch("/v1/watch").await;
    watcher.event_named("reset").await;
    let path = "/v1/services/s/instances/b";
    assert_eq!(server.ask("POST", &format!("{path}/drain"), "").await.status, 204);
    until("b is drained", async || (codes(&server.json("/v1/services/s/instances").await) == ["a"]).then_some(()))
        .await;
    let all = server.json("/v1/services/s/instances?all").await;
    assert_eq!((&all[1]["code"], &all[1]["status"]), (&json!("b"), &json!("drained")));
    // It survives that the instance registers again.
    assert_eq!(server.ask("DELETE", path, "").await.status, 204);
    server.put("s", "b").await;
    server.until_codes("s", &["a", "b"]).await;
    assert_eq!(codes(&server.json("/v1/services/s/instances?all=false").await), ["a"]);
    assert_eq!(server.ask("POST", &format!("{path}/undrain"), "").await.status, 204);
    assert_eq!(server.ask("PUT", &format!("{path}/weight"), r#"{"weight":5}"#).await.status, 204);
    let weight = async |wanted: u64| {
        until("the weight counts", async || {
            let all = server.json("/v1/services/s/instances").await;
            all.as_array().unwrap().iter().any(|i| i["code"] == "b" && i["weight"] == wanted).then_some(())
        })
        .await;
    };
    weight(5).await;
    assert_eq!(server.ask("PUT", &format!("{path}/weight"), r#"{"weight":null}"#).await.status, 204);
    weight(1).await;
    let audit = server.json("/v1/audit").await;
    let told: Vec<_> = audit.as_array().unwrap().iter().map(|line| (&line["action"], &line["detail"])).collect();
    assert_eq!(
        json!(told),
        json!([
            ["weight", "the registered weight counts again"],
            ["weight", "weight 5"],
            ["undrain", "takes work again"],
            ["drain", "no new claims"]
        ])
    );
    assert_eq!((&audit[0]["actor"], &audit[0]["code"]), (&json!("anybody from 127.0.0.1"), &json!("b")));
    assert_eq!(watcher.until_event("audit").await.data["action"], "drain");
    assert_eq!(server.metric("pointsman_agent_operations_total"), 4);
}

#[tokio::test]
async fn history_and_events_tell_what_happened() {
    let server = Server::start().await;
    assert_eq!(server.json("/v1/services/s/history").await, json!([]));
    let first = server.put("s", "a").await["term"].clone();
    server.put("s", "b").await;
    server.until_codes("s", &["a", "b"]).await;
    assert_eq!(server.ask("DELETE", "/v1/services/s/instances/a", "").await.status, 204);
    let history = until("b is master", async || {
        Some(server.json("/v1/services/s/history").await).filter(|history| history[0]["code"] == "b")
    })
    .await;
    assert_eq!((history[0]["until_ms"].clone(), &history[1]["term"]), (Value::Null, &first));
    assert!(history[0]["term"].as_u64() > history[1]["term"].as_u64());
    assert!(history[1]["until_ms"].as_u64().is_some());
    let events = server.json("/v1/events").await;
    let told: Vec<_> = events.as_array().unwrap().iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(told[0], "put");
    assert!(told.contains(&"delete") && told.contains(&"master"), "{told:?}");
    let revisions: Vec<_> =
        events.as_array().unwrap().iter().map(|e| e["data"]["revision"].as_u64().unwrap()).collect();
    assert!(revisions.is_sorted(), "{revisions:?}");
}

#[tokio::test]
async fn a_term_passes_until_a_higher_one_is_seen() {
    let server = Server::start().await;
    let check = async |service: &str, term: u64| {
        server.ask("POST", &format!("/v1/services/{service}/check-term"), &json!({ "term": term }).to_string()).await
    };
    let passed = check("other", 5).await;
    assert_eq!((passed.status, passed.json()), (200, json!({"term":5,"highest":5})));
    assert_eq!(check("other", 5).await.status, 200);
    let detail = check("other", 4).await.is_problem(409, "stale-term");
    assert!(detail.contains('5') && detail.contains('4'), "{detail}");
    // That of a master counts as seen.
    let term = server.put("s", "a").await["term"].as_u64().unwrap();
    server.until_codes("s", &["a"]).await;
    check("s", term - 1).await.is_problem(409, "stale-term");
    assert_eq!(check("s", term).await.status, 200);
    assert_eq!(check("s", u64::MAX).await.status, 200);
    check("s", term).await.is_problem(409, "stale-term");
}

#[tokio::test]
async fn terms_rise_above_what_an_operator_says() {
    let server = Server::start().await;
    let before = server.put("s", "a").await["term"].as_u64().unwrap();
    let base = server.json("/v1/term-base").await["term_base"].as_u64().unwrap();
    assert!(base < before, "{base} {before}");
    let raise = async |above: u64| {
        let answer = server.ask("PUT", "/v1/term-base", &json!({ "above": above }).to_string()).await;
        (answer.status, answer.json()["term_base"].as_u64().unwrap())
    };
    let high = 1 << 52;
    assert_eq!((raise(1).await, raise(high).await, raise(2).await), ((200, base), (200, high), (200, high)));
    assert_eq!(server.json("/v1/term-base").await, json!({ "term_base": high }));
    assert!(server.put("t", "a").await["term"].as_u64().unwrap() > high);
    let audit = server.json("/v1/audit").await;
    let line = &audit.as_array().unwrap()[1];
    assert_eq!((&line["action"], &line["service"]), (&json!("term-base"), &json!("")));
    assert!(line["detail"].as_str().unwrap().contains(&high.to_string()), "{audit}");
}

#[tokio::test]
async fn the_agent_tells_how_it_is_and_what_it_can_do() {
    let server = Server::start().await;
    assert_eq!(server.get("/livez").await.text(), "ok\n");
    assert_eq!(server.json("/readyz").await, json!({"ready":true,"registry":"fresh","age_ms":0}));
    let metrics = server.get("/metrics").await;
    assert!(metrics.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    assert!(metrics.text().ends_with("# EOF\n"));
    let mut client = server.client().await;
    let open = client.ask_with("GET", "/metrics", &[("accept", "application/openmetrics-text")], "").await;
    assert!(open.header("content-type").unwrap().starts_with("application/openmetrics-text"));
    server.agent.add_metrics(|| async { "more_metrics 7\n".to_owned() });
    assert!(server.get("/metrics").await.text().ends_with("more_metrics 7\n# EOF\n"));
    let document = client.ask("GET", "/openapi.json", "").await;
    assert_eq!((document.status, &document.json()["openapi"]), (200, &json!("3.1.0")));
    let etag = document.header("etag").unwrap();
    let same = client.ask_with("GET", "/openapi.json", &[("if-none-match", etag)], "").await;
    assert_eq!((same.status, same.header("etag")), (304, Some(etag)));
}

#[tokio::test]
async fn other_methods_and_other_paths_are_told_apart() {
    let server = Server::start().await;
    let mut client = server.client().await;
    for (path, allow) in [
        ("/v1/services", "GET, HEAD"),
        ("/v1/watch", "GET"),
        ("/v1/services/s/pick", "GET"),
        ("/v1/claims/0", "DELETE"),
        ("/v1/services/s/instances/a", "GET, HEAD, PUT, DELETE"),
        ("/v1/services/s/instances/a/hold", "POST"),
        ("/v1/services/s/instances/a/weight", "PUT"),
        ("/openapi.json", "GET, HEAD"),
    ] {
        for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"] {
            if allow.split(", ").any(|allowed| allowed == method) {
                continue;
            }
            let answer = client.ask(method, path, "").await;
            assert_eq!((answer.status, answer.header("allow")), (405, Some(allow)), "{method} {path}");
            if method != "HEAD" {
                answer.is_problem(405, "method-not-allowed");
            }
        }
    }
    for path in ["/v1", "/v2/services", "/v1/services/", "/v1/services/s", "/v1/services/s/", "/%2e%2e/etc"] {
        let detail = client.ask("GET", path, "").await.is_problem(404, "not-found");
        assert!(detail.contains("/openapi.json"), "{detail}");
    }
    for path in ["/v1/services", "/v1/services/s/instances", "/livez", "/openapi.json", "/metrics"] {
        let (head, get) = (client.ask("HEAD", path, "").await, client.ask("GET", path, "").await);
        assert_eq!(head.status, 200, "{path}");
        assert!(path == "/metrics" || head.header("content-length") == get.header("content-length"), "{path}");
    }
}

#[tokio::test]
async fn a_mass_loss_is_not_believed_at_once_and_every_answer_says_so() {
    let server = Server::start_over(registry_with("guard=on").await, |_| {}).await;
    let names: Vec<String> = (0..9).map(|number| number.to_string()).collect();
    let mut held = Vec::new();
    for name in &names {
        held.push(server.stream("POST", &format!("/v1/services/s/instances/{name}/hold"), "").await);
    }
    server.until_codes("s", &names.iter().map(|name| &**name).collect::<Vec<_>>()).await;
    let mut watcher = server.watch("/v1/services/s/watch").await;
    assert_eq!(watcher.event_named("snapshot").await.data["guarded"], false);
    drop(held);
    until("it is guarded", async || {
        let answer = server.get("/v1/services/s/instances").await;
        let freshness = answer.header("x-pointsman-freshness").unwrap();
        freshness.starts_with("guarded;age_ms=").then_some(())
    })
    .await;
    assert!(!server.codes("s").await.is_empty());
    assert_eq!(watcher.until_event("service").await.data["guarded"], true);
    assert_eq!(server.json("/v1/services").await[0]["guarded"], true);
    assert_eq!(server.metric("pointsman_services_guarded"), 1);
}

#[tokio::test]
async fn one_instance_and_those_with_certain_tags() {
    let server = Server::start().await;
    let mut client = server.client().await;
    for (code, zone, size) in [("a", "eu", "1"), ("b", "eu", "2"), ("c", "us", "1")] {
        let body = json!({"ttl": "1h", "tags": {"zone": zone, "size": size}}).to_string();
        assert_eq!(client.ask("PUT", &format!("/v1/services/s/instances/{code}"), &body).await.status, 201);
    }
    server.until_codes("s", &["a", "b", "c"]).await;
    let one = client.ask("GET", "/v1/services/s/instances/b", "").await;
    assert_eq!((one.status, &one.json()["code"], &one.json()["tags"]["size"]), (200, &json!("b"), &json!("2")));
    assert!(one.header("x-pointsman-revision").is_some());
    client.ask("GET", "/v1/services/s/instances/d", "").await.is_problem(404, "unknown-instance");
    client.ask("GET", "/v1/services/t/instances/a", "").await.is_problem(404, "unknown-instance");
    for (query, expected) in [
        ("tag=zone=eu", vec!["a", "b"]),
        ("tag=zone%3Deu&tag=size=1", vec!["a"]),
        ("tag=zone=asia", vec![]),
        ("tag=zone=", vec![]),
        ("all&tag=size=1", vec!["a", "c"]),
    ] {
        assert_eq!(codes(&server.json(&format!("/v1/services/s/instances?{query}")).await), expected, "{query}");
    }
    client.ask("GET", "/v1/services/s/instances?tag=zone", "").await.is_problem(400, "bad-request");
}

#[tokio::test]
async fn what_is_set_is_listed_and_only_for_what_there_is() {
    let server = Server::start().await;
    server.put("s", "a").await;
    server.until_codes("s", &["a"]).await;
    let mut client = server.client().await;
    assert_eq!(server.json("/v1/overrides").await, json!([]));
    let path = |code: &str, what: &str| format!("/v1/services/s/instances/{code}/{what}");
    for (method, what, body) in [("POST", "drain", ""), ("PUT", "weight", r#"{"weight":3}"#)] {
        client.ask(method, &path("b", what), body).await.is_problem(404, "unknown-instance");
        assert_eq!(client.ask(method, &path("a", what), body).await.status, 204);
    }
    for code in ["a", "c"] {
        assert_eq!(client.ask("POST", &path(code, "undrain"), "").await.status, 204, "nothing is drained afterwards");
    }
    let a = json!({"service":"s","code":"a","drained":false,"weight":3,"registered":true});
    until("it is listed", async || (server.json("/v1/overrides").await == json!([a])).then_some(())).await;
    // Whoever remembers a drain that was lost sets it where nothing is set, before the instance is there.
    assert_eq!(client.ask("POST", &path("a", "drain?if_unset"), "").await.status, 204);
    assert_eq!(client.ask("POST", &path("b", "drain?if_unset"), "").await.status, 204);
    let b = json!({"service":"s","code":"b","drained":true,"weight":null,"registered":false});
    until("both are listed", async || (server.json("/v1/overrides").await == json!([a, b])).then_some(())).await;
    // And it can be cleared also when the instance never comes.
    assert_eq!(client.ask("POST", &path("b", "undrain"), "").await.status, 204);
    assert_eq!(client.ask("PUT", &path("a", "weight"), r#"{"weight":null}"#).await.status, 204);
    until("nothing is set", async || (server.json("/v1/overrides").await == json!([])).then_some(())).await;
}

#[tokio::test]
async fn what_is_set_for_codes_that_are_gone_is_cleared_at_once() {
    let server = Server::start().await;
    server.put("s", "a").await;
    server.until_codes("s", &["a"]).await;
    let mut client = server.client().await;
    for (service, code) in [("s", "a"), ("s", "gone"), ("t", "gone")] {
        let path = format!("/v1/services/{service}/instances/{code}/drain?if_unset");
        assert_eq!(client.ask("POST", &path, "").await.status, 204);
    }
    let set = |service: &str, code: &str, registered: bool| json!({"service":service,"code":code,"drained":true,"weight":null,"registered":registered});
    let all = json!([set("s", "a", true), set("s", "gone", false), set("t", "gone", false)]);
    until("they are listed", async || (server.json("/v1/overrides").await == all).then_some(())).await;
    let detail = client.ask("DELETE", "/v1/overrides", "").await.is_problem(400, "bad-request");
    assert!(detail.contains("?gone"), "{detail}");
    client.ask("DELETE", "/v1/overrides?gone&service=a%2Fb", "").await.is_problem(400, "bad-request");
    let cleared = client.ask("DELETE", "/v1/overrides?gone&service=t", "").await;
    assert_eq!((cleared.status, cleared.json()), (200, json!({"cleared":[set("t", "gone", false)],"remaining":0})));
    let cleared = client.ask("DELETE", "/v1/overrides?gone", "").await;
    assert_eq!(cleared.json(), json!({"cleared":[set("s", "gone", false)],"remaining":0}));
    let left = json!([set("s", "a", true)]);
    until("one is left", async || (server.json("/v1/overrides").await == left).then_some(())).await;
    let audit = server.json("/v1/audit").await;
    assert_eq!(
        (&audit[0]["action"], &audit[0]["service"], &audit[0]["code"]),
        (&json!("clear-gone"), &json!("s"), &json!("*"))
    );
    assert_eq!(audit[0]["detail"], "1 codes that are gone: gone");
}

#[tokio::test]
async fn a_list_that_is_kept_by_put_and_delete_alone_has_the_roles_right() {
    let server = Server::start().await;
    for code in ["a", "b"] {
        server.put("s", code).await;
    }
    server.until_codes("s", &["a", "b"]).await;
    let mut watcher = server.watch("/v1/services/s/watch").await;
    watcher.event_named("snapshot").await;
    assert_eq!(server.ask("POST", "/v1/services/s/instances/a/resign", "").await.status, 204);
    let mut roles = std::collections::BTreeMap::new();
    until("both are told", async || {
        let put = watcher.until_event("put").await.data;
        roles.insert(put["instance"]["code"].to_string(), put["instance"]["role"].to_string());
        (roles.len() == 2).then_some(())
    })
    .await;
    assert_eq!((&*roles["\"a\""], &*roles["\"b\""]), ("\"normal\"", "\"master\""));
}

#[tokio::test]
async fn answers_that_change_are_not_kept_by_those_in_between() {
    let server = Server::start().await;
    server.put("s", "a").await;
    server.until_codes("s", &["a"]).await;
    for path in ["/v1/services", "/v1/services/s/master", "/v1/services/s/pick", "/readyz", "/metrics", "/v1/none"] {
        assert_eq!(server.get(path).await.header("cache-control"), Some("no-store"), "{path}");
    }
    assert_eq!(server.get("/v1/services/s/instances").await.header("cache-control"), Some("no-cache"));
}
