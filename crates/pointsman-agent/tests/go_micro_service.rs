//! go-micro-service's agent, to the letter of what its programs send and expect, without its defects.
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use pointsman_core::Instance;
use pointsman_registry::Registry;
use pointsman_testkit::{Foreign, ForeignRole, ForeignView, ZooKeeper, read_as_foreign, unique_prefix};
use serde_json::{Value, json};
use support::{SOON, Server, until};

const OK: &str = r#"{"error":0,"error-string":"ok"}"#;

struct Fixture {
    server: Server,
    zookeeper: &'static ZooKeeper,
    /// Where balancers are, and where services register.
    prefixes: (String, String),
}

impl Fixture {
    async fn start() -> Self {
        let server = Server::start_with(|settings| settings.go_micro_service = true).await;
        Self { server, zookeeper: ZooKeeper::shared().await, prefixes: (unique_prefix(), unique_prefix()) }
    }

    /// The request of its documentation.
    fn init(&self) -> Value {
        let address = self.zookeeper.socket_address();
        let server = json!([{"server-host":"127.0.0.1","server-port":address.port(),"service-id":"server_1"}]);
        let prefix = |prefix: &str| prefix.trim_matches('/').to_owned();
        json!({"dispersed-info":{"http-loadbalance-info":{"path-prefix":prefix(&self.prefixes.0),"server-mode":"zookeeper",
            "normal-node-algorithm":"roundrobin","mqtt-loadbalance-servername":"http-nginx","conns":server},
            "service-info":{"path-prefix":prefix(&self.prefixes.1),"server-mode":"zookeeper","server-name":"ress",
            "server-version":"1.0","server-uniquecode":"agent-uuid","weight":1,"host":"127.0.0.1","port":20100,
            "username":"geheim-user","userpwd":"geheim-pwd","service-discovery-conns":server}}})
    }

    /// Asks as its programs do: whatever happens, the answer is 200 and text.
    async fn ask(&self, method: &str, path: &str, body: &str) -> String {
        let answer = self.server.ask(method, path, body).await;
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("text/plain; charset=utf-8")));
        answer.text().to_owned()
    }

    async fn error(&self, method: &str, path: &str, body: &str) -> (u64, String) {
        let answer: Value = serde_json::from_str(&self.ask(method, path, body).await).unwrap();
        assert_eq!(answer.as_object().unwrap().len(), 2, "{answer}");
        (answer["error"].as_u64().unwrap(), answer["error-string"].as_str().unwrap().to_owned())
    }

    async fn started(&self) {
        assert_eq!(self.ask("POST", "/server/init", &self.init().to_string()).await, OK);
    }

    /// The service as go-micro-service's balancer sees it.
    async fn ress(&self) -> ForeignView {
        let client = self.zookeeper.client().await;
        read_as_foreign(&client, &self.prefixes.1).await.remove("ress").unwrap_or_default()
    }
}

#[tokio::test]
async fn before_init_it_says_so_and_lives() {
    let fixture = Fixture::start().await;
    let first = r#"{"error":120,"error-string":"please send start first"}"#;
    for _ in 0..2 {
        assert_eq!(fixture.ask("POST", "/service/register", "").await, first);
        assert_eq!(fixture.ask("GET", "/connect/loadbalance", "").await, first);
    }
    for (method, path, number) in [
        ("GET", "/server/init", 102),
        ("PUT", "/server/init", 102),
        ("GET", "/service/register", 112),
        ("DELETE", "/service/register", 112),
        ("POST", "/connect/loadbalance", 122),
    ] {
        let wanted = format!(r#"{{"error":{number},"error-string":"method not allow"}}"#);
        assert_eq!(fixture.ask(method, path, "").await, wanted, "{method} {path}");
    }
    let large = format!(r#"{{"x":"{}"}}"#, "x".repeat(300_000));
    for body in ["", "{", "[]", "null", r#"{"dispersed-info":7}"#, &large] {
        let wanted = r#"{"error":101,"error-string":"decode start request error"}"#;
        assert_eq!(fixture.ask("POST", "/server/init", body).await, wanted);
    }
    assert_eq!(fixture.server.get("/livez").await.status, 200);
}

#[tokio::test]
async fn it_registers_once_and_without_secrets() {
    let fixture = Fixture::start().await;
    fixture.started().await;
    assert_eq!(fixture.ress().await, ForeignView::default(), "not yet");
    for _ in 0..3 {
        assert_eq!(fixture.ask("POST", "/service/register", "").await, OK);
        let seen = fixture.ress().await;
        let master = seen.master.as_ref().unwrap();
        assert_eq!((&*master.ip, master.port, &*master.code, master.weight), ("127.0.0.1", 20100, "agent-uuid", 1));
        assert_eq!((seen.normals.len(), seen.skipped.len()), (0, 0));
    }
    let client = fixture.zookeeper.client().await;
    let (data, _) = client.get_data(&format!("{}/ress/master", fixture.prefixes.1)).await.unwrap();
    let data = String::from_utf8(data).unwrap();
    assert!(data.contains(r#""username":"","userpwd":"""#) && !data.contains("geheim"), "{data}");
    // Deleted by hand, it comes back.
    client.delete(&format!("{}/ress/master", fixture.prefixes.1), None).await.unwrap();
    until("it is there again", async || fixture.ress().await.master).await;
    let address = fixture.server.address;
    fixture.server.agent.close().await;
    let left = read_as_foreign(&client, &fixture.prefixes.1).await.remove("ress").unwrap_or_default();
    assert_eq!(left, ForeignView::default(), "it lasts as long as the agent");
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn beside_a_go_process_there_is_one_master() {
    let fixture = Fixture::start().await;
    let servers = fixture.zookeeper.address();
    let foreign = Foreign::start(&servers, &fixture.prefixes.1, "ress", "theirs").await;
    foreign.becomes(ForeignRole::Master, SOON).await;
    fixture.started().await;
    assert_eq!(fixture.ask("POST", "/service/register", "").await, OK);
    let seen = fixture.ress().await;
    assert_eq!((seen.master_code(), seen.normal_codes()), (Some("theirs"), vec!["agent-uuid"]));
    foreign.stop().await;
    until("ours is master", async || (fixture.ress().await.master_code() == Some("agent-uuid")).then_some(())).await;
}

#[tokio::test]
async fn it_names_a_balancer_in_turn_or_says_that_there_is_none() {
    let fixture = Fixture::start().await;
    fixture.started().await;
    let (number, text) = fixture.error("GET", "/connect/loadbalance", "").await;
    assert!(number == 123 && text.contains("http-nginx"), "{number} {text}");
    let url = format!("zookeeper://{}{}", fixture.zookeeper.address(), fixture.prefixes.0);
    let balancers = Registry::connect(&url).await.unwrap();
    let balancer = |code: &str, port: u16| Instance::new("http-nginx").code(code).address(format!("127.0.0.1:{port}"));
    let _master = balancers.register(balancer("c19d3467", 30000)).await.unwrap();
    // Where there is no normal instance it is the master.
    let only = r#"{"load-balance-info":{"host":"127.0.0.1","port":30000,"user-name":"","user-pwd":"","server-uniquecode":"c19d3467"},"error":0,"error-string":"ok"}"#;
    until("the balancer is seen", async || {
        (fixture.ask("GET", "/connect/loadbalance", "").await == only).then_some(())
    })
    .await;
    let first = balancers.register(balancer("a", 30001)).await.unwrap();
    let _second = balancers.register(balancer("b", 30002)).await.unwrap();
    let code = async || {
        let answer = fixture.ask("GET", "/connect/loadbalance", "").await;
        serde_json::from_str::<Value>(&answer).unwrap()["load-balance-info"]["server-uniquecode"].clone()
    };
    until("both are seen", async || {
        let (one, other) = (code().await, code().await);
        ((one == "a" && other == "b") || (one == "b" && other == "a")).then_some(())
    })
    .await;
    first.close().await.unwrap();
    until("one is left", async || (code().await == "b" && code().await == "b").then_some(())).await;
}

#[tokio::test]
async fn an_algorithm_that_is_not_known_is_an_error_not_an_end() {
    let fixture = Fixture::start().await;
    let mut init = fixture.init();
    let algorithm = "/dispersed-info/http-loadbalance-info/normal-node-algorithm";
    for unknown in ["fastest", ""] {
        *init.pointer_mut(algorithm).unwrap() = json!(unknown);
        let (number, text) = fixture.error("POST", "/server/init", &init.to_string()).await;
        assert!(number == 103 && text.contains("round-robin") && text.contains("least-connections"), "{number} {text}");
    }
    for known in ["roundrobin", "weightroundrobin", "random", "weightrandom", "iphash", "urlhash", "leastconnect"] {
        *init.pointer_mut(algorithm).unwrap() = json!(known);
        assert_eq!(fixture.ask("POST", "/server/init", &init.to_string()).await, OK, "{known}");
    }
}

#[tokio::test]
async fn init_again_replaces_what_was_there() {
    let fixture = Fixture::start().await;
    fixture.started().await;
    assert_eq!(fixture.ask("POST", "/service/register", "").await, OK);
    // The same again changes nothing: it stays registered.
    fixture.started().await;
    assert_eq!(fixture.ress().await.master_code(), Some("agent-uuid"));
    // What fails changes nothing either.
    let mut init = fixture.init();
    let nowhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    *init.pointer_mut("/dispersed-info/service-info/service-discovery-conns/0/server-port").unwrap() = json!(nowhere);
    let (number, text) = fixture.error("POST", "/server/init", &init.to_string()).await;
    assert!(number == 104 && text.contains(&nowhere.to_string()), "{number} {text}");
    assert_eq!(fixture.ress().await.master_code(), Some("agent-uuid"));
    // Somebody else: the one before is gone, and the new one registers when it says so.
    let mut init = fixture.init();
    *init.pointer_mut("/dispersed-info/service-info/server-uniquecode").unwrap() = json!("another");
    assert_eq!(fixture.ask("POST", "/server/init", &init.to_string()).await, OK);
    assert_eq!(fixture.ress().await, ForeignView::default());
    assert_eq!(fixture.ask("POST", "/service/register", "").await, OK);
    assert_eq!(fixture.ress().await.master_code(), Some("another"));
}

#[tokio::test]
async fn a_code_that_another_process_has_is_an_error() {
    let fixture = Fixture::start().await;
    let url = format!("zookeeper://{}{}?session_timeout=2s", fixture.zookeeper.address(), fixture.prefixes.1);
    let other = Registry::connect(&url).await.unwrap();
    let _there = other.register(Instance::new("ress").code("agent-uuid")).await.unwrap();
    fixture.started().await;
    let (number, text) = fixture.error("POST", "/service/register", "").await;
    assert!(number == 113 && text.contains("agent-uuid"), "{number} {text}");
}

#[tokio::test]
async fn the_gate_is_before_it_and_it_is_there_only_when_asked_for() {
    let locked = Server::start_with(|settings| {
        settings.go_micro_service = true;
        settings.read_token = Some(pointsman_agent::Token::new("read-0123456789abcdef").unwrap());
        settings.write_token = Some(pointsman_agent::Token::new("write-0123456789abcdef").unwrap());
    })
    .await;
    let with = async |token: &str, method: &str, path: &str| {
        let bearer = format!("Bearer {token}");
        locked.client().await.ask_with(method, path, &[("authorization", &bearer)], "").await
    };
    for (method, path) in [("POST", "/server/init"), ("POST", "/service/register"), ("GET", "/connect/loadbalance")] {
        locked.ask(method, path, "").await.is_problem(401, "unauthorized");
        assert_eq!(with("write-0123456789abcdef", method, path).await.status, 200);
    }
    with("read-0123456789abcdef", "POST", "/service/register").await.is_problem(403, "forbidden");
    assert_eq!(with("read-0123456789abcdef", "GET", "/connect/loadbalance").await.status, 200);
    let evil = locked.client().await.ask_with("POST", "/server/init", &[("host", "evil.test")], "{}").await;
    evil.is_problem(421, "misdirected");
    let without = Server::start().await;
    for path in ["/server/init", "/service/register", "/connect/loadbalance"] {
        without.ask("POST", path, "").await.is_problem(404, "not-found");
    }
}
