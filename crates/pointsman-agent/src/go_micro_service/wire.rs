//! What go-micro-service's agent is told, and what it says.

use pointsman_balance::Algorithm;
use pointsman_core::{Instance, ObservedInstance, check_address, check_name};
use serde::{Deserialize, Serialize};

/// Why a call has failed, in its numbers. Those that it has not itself follow its own: 103, 104, 113 and 123.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("decode start request error")]
    Unreadable(String),
    #[error("method not allow")]
    Method(u16),
    #[error("please send start first")]
    NotStarted,
    /// The request can be read, but not done.
    #[error("{0}")]
    Wrong(String),
    #[error("{0}")]
    Cannot(String),
    #[error(transparent)]
    Registry(#[from] pointsman_registry::Error),
    #[error(transparent)]
    NotRegistered(pointsman_registry::Error),
    #[error("{0}")]
    NoBalancer(String),
}

impl Failure {
    fn number(&self) -> u16 {
        match self {
            Failure::Unreadable(_) => 101,
            Failure::Method(number) => *number,
            Failure::NotStarted => 120,
            Failure::Wrong(_) => 103,
            Failure::Cannot(_) | Failure::Registry(_) => 104,
            Failure::NotRegistered(_) => 113,
            Failure::NoBalancer(_) => 123,
        }
    }
}

/// An answer.
#[derive(Debug, Serialize)]
pub(super) struct Said {
    #[serde(rename = "load-balance-info", skip_serializing_if = "Option::is_none")]
    picked: Option<Picked>,
    error: u16,
    #[serde(rename = "error-string")]
    text: String,
}

impl Said {
    pub(super) fn ok(picked: Option<Picked>) -> Self {
        Self { picked, error: 0, text: "ok".to_owned() }
    }

    pub(super) fn failed(failure: &Failure) -> Self {
        Self { picked: None, error: failure.number(), text: failure.to_string() }
    }
}

/// A balancer to go through.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Picked {
    host: String,
    port: u16,
    user_name: &'static str,
    user_pwd: &'static str,
    server_uniquecode: String,
}

impl Picked {
    pub(super) fn new(instance: &ObservedInstance) -> Result<Self, Failure> {
        let split = instance.address.as_deref().and_then(|address| address.rsplit_once(':'));
        let Some((host, port)) = split.and_then(|(host, port)| Some((host, port.parse().ok()?))) else {
            return Err(Failure::NoBalancer(format!("{}/{} has no address", instance.service, instance.code)));
        };
        let host = host.trim_matches(['[', ']']).to_owned();
        Ok(Self { host, port, user_name: "", user_pwd: "", server_uniquecode: instance.code.to_string() })
    }
}

/// What `init` says, as it is written: what is left out is empty, what is not known is ignored.
#[derive(Debug, Deserialize)]
struct Request {
    #[serde(rename = "dispersed-info", default)]
    info: Info,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Info {
    http_loadbalance_info: LoadBalance,
    service_info: Caller,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct LoadBalance {
    path_prefix: String,
    server_mode: String,
    normal_node_algorithm: String,
    mqtt_loadbalance_servername: String,
    conns: Vec<Server>,
}

/// Its user name and password are not even read: they would stand in the registry for everybody to see.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Caller {
    path_prefix: String,
    server_mode: String,
    server_name: String,
    server_uniquecode: String,
    weight: i64,
    host: String,
    port: i64,
    service_discovery_conns: Vec<Server>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Server {
    server_host: String,
    server_port: u16,
}

/// A registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    servers: Vec<String>,
    prefix: String,
}

/// What `init` says, checked.
#[derive(Debug)]
pub(super) struct Init {
    pub(super) balancers: (Place, Algorithm, String),
    pub(super) own: (Place, Instance),
}

impl Init {
    pub(super) fn read(body: &[u8]) -> Result<Self, Failure> {
        let is_object = body.trim_ascii_start().starts_with(b"{");
        let request = serde_json::from_slice::<Request>(body).map_err(|error| Failure::Unreadable(error.to_string()));
        let Info { http_loadbalance_info: balancers, service_info: caller } = match request {
            Ok(request) if is_object => request.info,
            Ok(_) => return Err(Failure::Unreadable("not an object".to_owned())),
            Err(failure) => return Err(failure),
        };
        let place = |name: &str, mode: &str, prefix: &str, servers: &[Server]| {
            Place::new(mode, prefix, servers).map_err(|reason| Failure::Wrong(format!("{name}: {reason}")))
        };
        let LoadBalance { path_prefix, server_mode, normal_node_algorithm, mqtt_loadbalance_servername, conns } =
            balancers;
        let at = place("http-loadbalance-info", &server_mode, &path_prefix, &conns)?;
        let algorithm = normal_node_algorithm
            .parse()
            .map_err(|error| Failure::Wrong(format!("http-loadbalance-info: normal-node-algorithm: {error}")))?;
        check_name("mqtt-loadbalance-servername", &mqtt_loadbalance_servername).map_err(wrong)?;
        let instance = caller.instance()?;
        let home = place("service-info", &caller.server_mode, &caller.path_prefix, &caller.service_discovery_conns)?;
        Ok(Self { balancers: (at, algorithm, mqtt_loadbalance_servername), own: (home, instance) })
    }
}

fn wrong(error: impl std::fmt::Display) -> Failure {
    Failure::Wrong(error.to_string())
}

impl Caller {
    fn instance(&self) -> Result<Instance, Failure> {
        let mut instance = Instance::new(&*self.server_name);
        if !self.server_uniquecode.is_empty() {
            instance = instance.code(&*self.server_uniquecode);
        }
        let weight = self.weight.try_into().map_err(|_| wrong(format!("service-info: weight {}", self.weight)))?;
        instance = instance.weight(weight);
        if !self.host.is_empty() {
            let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
            instance = instance.address(format!("{host}:{}", self.port));
        }
        instance.check().map_err(|error| wrong(format!("service-info: {error}")))?;
        Ok(instance)
    }
}

impl Place {
    fn new(mode: &str, prefix: &str, servers: &[Server]) -> Result<Self, String> {
        if mode != "zookeeper" {
            return Err(format!("server-mode {mode:?} is not known; known: zookeeper"));
        }
        if servers.is_empty() {
            return Err("names no server".to_owned());
        }
        // It becomes a part of a URL, in which it is to be nothing else.
        let prefix = prefix.trim_matches('/');
        if prefix.contains('?') {
            return Err(format!("path-prefix {prefix:?} has '?' in it"));
        }
        prefix.split('/').try_for_each(|name| check_name("path-prefix", name)).map_err(|error| error.to_string())?;
        let mut checked = Vec::new();
        for Server { server_host: host, server_port: port } in servers {
            let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
            let server = format!("{host}:{port}");
            check_address(&server).map_err(|error| error.to_string())?;
            checked.push(server);
        }
        Ok(Self { servers: checked, prefix: prefix.to_owned() })
    }

    pub(super) fn url(&self) -> String {
        format!("zookeeper://{}/{}", self.servers.join(","), self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// As go-micro-service's programs send it.
    pub(crate) fn request() -> serde_json::Value {
        let server = json!([{"server-host":"127.0.0.1","server-port":2182,"service-id":"server_1"}]);
        json!({"dispersed-info":{"http-loadbalance-info":{"path-prefix":"micro-service","server-mode":"zookeeper",
            "normal-node-algorithm":"roundrobin","mqtt-loadbalance-servername":"http-nginx","conns":server},
            "service-info":{"path-prefix":"/web-service/","server-mode":"zookeeper","server-name":"ress","server-version":"1.0",
            "server-uniquecode":"agent-uuid","weight":1,"host":"127.0.0.1","port":20100,"username":"u","userpwd":"p",
            "service-discovery-conns":server}}})
    }

    #[test]
    fn what_its_programs_send_is_understood() {
        let init = Init::read(request().to_string().as_bytes()).unwrap();
        let (place, algorithm, name) = init.balancers;
        assert_eq!((&*place.url(), algorithm), ("zookeeper://127.0.0.1:2182/micro-service", Algorithm::RoundRobin));
        assert_eq!(name, "http-nginx");
        assert_eq!(init.own.0.url(), "zookeeper://127.0.0.1:2182/web-service");
        let wanted = Instance::new("ress").code("agent-uuid").address("127.0.0.1:20100");
        assert_eq!(init.own.1, wanted);
    }

    #[test]
    fn what_cannot_be_done_is_said() {
        let read = |pointer: &str, value: serde_json::Value| {
            let mut request = request();
            *request["dispersed-info"].pointer_mut(pointer).unwrap() = value;
            let failure = Init::read(request.to_string().as_bytes()).unwrap_err();
            (failure.number(), failure.to_string())
        };
        let (balancers, caller) = ("/http-loadbalance-info", "/service-info");
        for (pointer, value, part) in [
            (format!("{balancers}/normal-node-algorithm"), json!("best"), "round-robin"),
            (format!("{balancers}/normal-node-algorithm"), json!(""), "round-robin"),
            (format!("{balancers}/server-mode"), json!("consul"), "known: zookeeper"),
            (format!("{balancers}/path-prefix"), json!("a?snapshots=x"), "'?'"),
            (format!("{balancers}/path-prefix"), json!(""), "empty"),
            (format!("{balancers}/path-prefix"), json!("a/../b"), "relative path"),
            (format!("{balancers}/mqtt-loadbalance-servername"), json!("a/b"), "'/'"),
            (format!("{balancers}/conns"), json!([]), "names no server"),
            (format!("{balancers}/conns/0/server-host"), json!("h/x?"), "no proper host"),
            (format!("{balancers}/conns/0/server-port"), json!(0), "1 to 65535"),
            (format!("{caller}/server-name"), json!(""), "empty"),
            (format!("{caller}/weight"), json!(-1), "weight -1"),
            (format!("{caller}/port"), json!(-1), "1 to 65535"),
            (format!("{caller}/host"), json!("a b"), "no proper host"),
        ] {
            let (number, text) = read(&pointer, value);
            assert!(number == 103 && text.contains(part), "{pointer}: {number} {text}");
        }
        for (pointer, value) in [(caller, json!(7)), ("/service-info/weight", json!("1"))] {
            assert_eq!(read(pointer, value), (101, "decode start request error".to_owned()));
        }
        for text in ["", "{", "[]", "null", "{}x", "7"] {
            assert_eq!(Init::read(text.as_bytes()).unwrap_err().number(), 101, "{text}");
        }
        assert_eq!(Init::read(b"{}").unwrap_err().number(), 103);
    }
}
