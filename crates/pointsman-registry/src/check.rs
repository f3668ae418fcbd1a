//! Health checks of an instance: is somebody listening, does it answer.

use std::fmt;
use std::pin::Pin;
use std::str::FromStr;
use std::time::Duration;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use pointsman_core::check_address;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// How an instance's health is found out, how often, and how many results in a row count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What is asked.
    pub probe: Probe,
    /// From the start of one probe to the start of the next. Default 2 s.
    pub interval: Duration,
    /// How long a probe may take. Default 1 s.
    pub timeout: Duration,
    /// So many successes in a row make an instance healthy. Default 1.
    pub rise: u32,
    /// So many failures in a row make it unhealthy. Default 3.
    pub fall: u32,
}

/// What is asked of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Probe {
    /// Healthy if a TCP connection to `host:port` is accepted.
    Tcp(String),
    /// Healthy if `GET` of an `http://` URL is answered with a status of 200 to 399.
    Http {
        /// `host:port`.
        address: String,
        /// Path and query.
        path: String,
    },
}

impl Probe {
    /// Reads `tcp`, `tcp://HOST:PORT`, or `http://HOST:PORT/PATH`; with `tcp` alone it is `address` that is asked.
    ///
    /// # Errors
    ///
    /// A sentence that says what would be right.
    pub fn parse(text: &str, address: Option<&str>) -> Result<Self, String> {
        match (text, address) {
            ("tcp", Some(address)) => format!("tcp://{address}").parse(),
            ("tcp", None) => Err("the check tcp needs an address to check; write tcp://host:port".to_owned()),
            _ => text.parse(),
        }
    }
}

impl FromStr for Probe {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let checked = |address: &str| check_address(address).map(|()| address.to_owned()).map_err(|e| e.to_string());
        if let Some(address) = text.strip_prefix("tcp://") {
            return Ok(Probe::Tcp(checked(address)?));
        }
        let Some(rest) = text.strip_prefix("http://") else {
            return Err(format!("{text:?} is not a check; write tcp, tcp://host:port or http://host:port/path"));
        };
        let (authority, path) = rest.find('/').map_or((rest, "/"), |slash| rest.split_at(slash));
        let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'));
        let address = if has_port { checked(authority)? } else { checked(&format!("{authority}:80"))? };
        if path.parse::<hyper::http::uri::PathAndQuery>().is_err() {
            return Err(format!("{path:?} is not a path of a url"));
        }
        Ok(Probe::Http { address, path: path.to_owned() })
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Probe::Tcp(address) => write!(f, "tcp://{address}"),
            Probe::Http { address, path } => write!(f, "http://{address}{path}"),
        }
    }
}

impl Check {
    /// A check with the default interval, timeout and thresholds.
    #[must_use]
    pub fn new(probe: Probe) -> Self {
        Self { probe, interval: Duration::from_secs(2), timeout: Duration::from_secs(1), rise: 1, fall: 3 }
    }

    /// Probes once.
    ///
    /// # Errors
    ///
    /// Why the instance is not healthy.
    pub async fn probe(&self) -> Result<(), String> {
        let probing = async {
            match &self.probe {
                Probe::Tcp(address) => TcpStream::connect(address).await.map(|_| ()).map_err(|error| error.to_string()),
                Probe::Http { address, path } => get(address, path).await,
            }
        };
        tokio::time::timeout(self.timeout, probing)
            .await
            .unwrap_or_else(|_| Err(format!("no answer in {:?}", self.timeout)))
    }

    /// Starts checking. The instance counts as unhealthy until `rise` probes have succeeded.
    #[must_use]
    pub fn start(self) -> Checking {
        let mut ticks = tokio::time::interval(self.interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        Checking { thresholds: Thresholds::new(self.rise, self.fall), check: self, ticks, probing: None }
    }
}

async fn get(address: &str, path: &str) -> Result<(), String> {
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let failed = |error: hyper::Error| error.to_string();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let request = hyper::Request::get(path)
        .header("host", address)
        .header("user-agent", "pointsman-check")
        .header("connection", "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    // On a task of its own, which ends with this set.
    let mut driving = JoinSet::new();
    driving.spawn(connection);
    let response = sender.send_request(request).await.map_err(failed)?;
    match response.status() {
        status if status.is_success() || status.is_redirection() => Ok(()),
        status => Err(format!("answered {status}")),
    }
}

/// A check under way.
pub struct Checking {
    check: Check,
    thresholds: Thresholds,
    ticks: tokio::time::Interval,
    /// The probe under way: it goes on where whoever waits for it does not.
    probing: Option<Probing>,
}

type Probing = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

impl fmt::Debug for Checking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checking").field("check", &self.check).finish_non_exhaustive()
    }
}

impl Checking {
    /// Probes until the health changes, and tells the new one: `Ok` is healthy, `Err` says why not. Cancellation loses
    /// nothing: the next call goes on with the probe under way.
    pub async fn changed(&mut self) -> Result<(), String> {
        loop {
            if self.probing.is_none() {
                self.ticks.tick().await;
            }
            let check = &self.check;
            let probing = self.probing.get_or_insert_with(|| {
                let check = check.clone();
                Box::pin(async move { check.probe().await })
            });
            let result = probing.await;
            self.probing = None;
            if self.thresholds.count(result.is_ok()) {
                return result;
            }
        }
    }
}

/// Counts results in a row: pure.
#[derive(Debug)]
struct Thresholds {
    rise: u32,
    fall: u32,
    healthy: bool,
    against: u32,
}

impl Thresholds {
    fn new(rise: u32, fall: u32) -> Self {
        Self { rise: rise.max(1), fall: fall.max(1), healthy: false, against: 0 }
    }

    /// Takes in a result; whether the health is another now.
    fn count(&mut self, success: bool) -> bool {
        if success == self.healthy {
            self.against = 0;
            return false;
        }
        self.against += 1;
        let needed = if self.healthy { self.fall } else { self.rise };
        if self.against < needed {
            return false;
        }
        (self.healthy, self.against) = (success, 0);
        true
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn probes_are_read_and_written() {
        for text in ["tcp://127.0.0.1:80", "http://h:1/x?y=1", "http://[::1]:1/"] {
            assert_eq!(text.parse::<Probe>().unwrap().to_string(), text);
        }
        assert_eq!("http://h".parse::<Probe>().unwrap().to_string(), "http://h:80/");
        assert_eq!("http://[::1]/x".parse::<Probe>().unwrap().to_string(), "http://[::1]:80/x");
        assert_eq!(Probe::parse("tcp", Some("h:1")).unwrap(), Probe::Tcp("h:1".to_owned()));
        for text in ["tcp", "https://h/", "tcp://h", "http://:1/", "http://h:0/", "udp://h:1", "http://h:1/a b"] {
            assert!(Probe::parse(text, None).is_err(), "{text}");
        }
    }

    #[test]
    fn thresholds_count_results_in_a_row() {
        let mut thresholds = Thresholds::new(2, 3);
        let results = [true, false, true, true, false, false, true, false, false, false, true, true];
        let changes: Vec<_> = results.into_iter().map(|result| thresholds.count(result)).collect();
        let expected = [false, false, false, true, false, false, false, false, false, true, false, true];
        assert_eq!(changes, expected);
    }

    async fn answering(answer: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.read(&mut [0; 1024]).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        address
    }

    #[tokio::test]
    async fn http_is_asked() {
        let ok = answering("HTTP/1.1 204 No Content\r\n\r\n").await;
        Check::new(format!("http://{ok}/x").parse().unwrap()).probe().await.unwrap();
        Check::new(format!("tcp://{ok}").parse().unwrap()).probe().await.unwrap();
        let bad = answering("HTTP/1.1 503 Away\r\ncontent-length: 0\r\n\r\n").await;
        let why = Check::new(format!("http://{bad}/x").parse().unwrap()).probe().await.unwrap_err();
        assert!(why.contains("503"), "{why}");
        let odd = answering("hello\r\n\r\n").await;
        assert!(Check::new(format!("http://{odd}/x").parse().unwrap()).probe().await.is_err());
        assert!(Check::new("tcp://127.0.0.1:1".parse().unwrap()).probe().await.is_err());
    }
}
