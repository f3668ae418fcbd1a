//! Health checks of an instance: is somebody listening, does it answer.

use std::fmt;
use std::pin::Pin;
use std::str::FromStr;
use std::time::Duration;

use httparse::{EMPTY_HEADER, Response, Status};
use pointsman_core::{InvalidInstance, Streak, check_address};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// How an instance's health is found out, how often, and how many results in a row count.
///
/// # Examples
///
/// ```
/// # use std::time::Duration;
/// # use pointsman_registry::check::Check;
/// // A slow service: probed every 10 s, and unhealthy after two failures in a row.
/// let check = Check { interval: Duration::from_secs(10), fall: 2, ..Check::new("tcp://10.0.0.1:80".parse()?) };
/// assert_eq!((check.rise, check.timeout), (1, Duration::from_secs(1)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
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
///
/// # Examples
///
/// ```
/// # use pointsman_registry::check::Probe;
/// let probe: Probe = "http://10.0.0.1:8080/health".parse()?;
/// assert_eq!(probe, Probe::Http { address: "10.0.0.1:8080".to_owned(), path: "/health".to_owned() });
/// assert_eq!(probe.to_string(), "http://10.0.0.1:8080/health");
/// assert!("https://10.0.0.1/".parse::<Probe>().is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
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
    /// [`InvalidProbe`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_registry::check::{InvalidProbe, Probe};
    /// assert_eq!(Probe::parse("tcp", Some("10.0.0.1:80"))?, Probe::Tcp("10.0.0.1:80".to_owned()));
    /// assert_eq!(Probe::parse("tcp", None), Err(InvalidProbe::NoAddress));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn parse(text: &str, address: Option<&str>) -> Result<Self, InvalidProbe> {
        match (text, address) {
            ("tcp", Some(address)) => format!("tcp://{address}").parse(),
            ("tcp", None) => Err(InvalidProbe::NoAddress),
            _ => text.parse(),
        }
    }
}

/// Why a text is not a probe.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidProbe {
    /// It is `tcp`, and there is no address.
    #[error("the check tcp needs an address to check; write tcp://host:port")]
    NoAddress,
    /// The scheme is unknown.
    #[error("{0:?} is not a check; write tcp, tcp://host:port or http://host:port/path")]
    Scheme(String),
    /// The address is invalid.
    #[error(transparent)]
    Address(#[from] InvalidInstance),
    /// The path is invalid.
    #[error("{0:?} is not a path of a url")]
    Path(String),
}

impl FromStr for Probe {
    type Err = InvalidProbe;

    fn from_str(text: &str) -> Result<Self, InvalidProbe> {
        let checked = |address: &str| check_address(address).map(|()| address.to_owned());
        if let Some(address) = text.strip_prefix("tcp://") {
            return Ok(Probe::Tcp(checked(address)?));
        }
        let Some(rest) = text.strip_prefix("http://") else {
            return Err(InvalidProbe::Scheme(text.to_owned()));
        };
        let (authority, path) = rest.find('/').map_or((rest, "/"), |slash| rest.split_at(slash));
        let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'));
        let address = if has_port { checked(authority)? } else { checked(&format!("{authority}:80"))? };
        // It goes into the first line of a request as it is. A fragment is never sent.
        if path.bytes().any(|byte| byte <= b' ' || byte == b'#' || byte == 0x7f) {
            return Err(InvalidProbe::Path(path.to_owned()));
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

/// Why an instance has not passed a probe.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// No connection, or it broke off.
    #[error(transparent)]
    Connection(#[from] std::io::Error),
    /// It has not answered in this time.
    #[error("no answer in {0:?}")]
    Timeout(Duration),
    /// It has answered with this status.
    #[error("answered {0}")]
    Status(u16),
    /// It has closed the connection without an answer.
    #[error("closed the connection without an answer")]
    NoAnswer,
    /// It has answered in something else than HTTP/1.
    #[error("did not answer in HTTP/1: {0}")]
    Answer(httparse::Error),
    /// The head of its answer has no end.
    #[error("answered with a head of more than {LARGEST_HEAD} bytes")]
    LargeHead,
}

impl Check {
    /// A check with the default interval, timeout and thresholds.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use pointsman_registry::check::{Check, Probe};
    /// let check = Check::new(Probe::Tcp("10.0.0.1:80".to_owned()));
    /// assert_eq!((check.interval, check.rise, check.fall), (Duration::from_secs(2), 1, 3));
    /// ```
    #[must_use]
    pub fn new(probe: Probe) -> Self {
        Self { probe, interval: Duration::from_secs(2), timeout: Duration::from_secs(1), rise: 1, fall: 3 }
    }

    /// Probes once.
    ///
    /// # Errors
    ///
    /// [`ProbeError`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_registry::check::{Check, Probe};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    /// Check::new(Probe::Tcp(listener.local_addr()?.to_string())).probe().await?;
    /// assert!(Check::new("tcp://127.0.0.1:1".parse()?).probe().await.is_err()); // nothing listens there
    /// # Ok(())
    /// # }
    /// ```
    pub async fn probe(&self) -> Result<(), ProbeError> {
        let probing = async {
            match &self.probe {
                Probe::Tcp(address) => TcpStream::connect(address).await.map(drop).map_err(ProbeError::from),
                Probe::Http { address, path } => get(address, path).await,
            }
        };
        tokio::time::timeout(self.timeout, probing).await.unwrap_or(Err(ProbeError::Timeout(self.timeout)))
    }

    /// Starts checking. Nothing is known of the instance until `rise` probes have succeeded, or one has failed. Until one has
    /// succeeded, it is probed more often than `interval` says: a service that has just been started is soon up.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_registry::check::{Check, Probe};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    /// let mut checking = Check::new(Probe::Tcp(listener.local_addr()?.to_string())).start();
    /// checking.changed().await?; // healthy
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn start(self) -> Checking {
        Checking {
            check: self,
            streak: Streak::default(),
            next: Instant::now(),
            pause: FIRST_PAUSE,
            told: None,
            probing: None,
        }
    }
}

/// The first interval between two probes of an instance that has never passed; doubled after each.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Bounds of the interval, whatever is set: a check never takes a whole core, and the time of the next probe can be represented.
const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Maximum number of bytes of an answer before its head has ended.
const LARGEST_HEAD: usize = 64 << 10;

/// Asks for a path. Only the head of the answer is read, so the smallest build needs no HTTP client for it.
async fn get(address: &str, path: &str) -> Result<(), ProbeError> {
    let mut stream = TcpStream::connect(address).await?;
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nuser-agent: pointsman-check\r\nconnection: close\r\n\r\n");
    // One that answers before it has read everything may have closed its side: the answer counts.
    let written = stream.write_all(request.as_bytes()).await;
    let mut head = Vec::new();
    loop {
        if let Some(status) = final_status(&mut head)? {
            return if (200..400).contains(&status) { Ok(()) } else { Err(ProbeError::Status(status)) };
        }
        if head.len() >= LARGEST_HEAD {
            return Err(ProbeError::LargeHead);
        }
        if stream.read_buf(&mut head).await? == 0 {
            written?;
            return Err(ProbeError::NoAnswer);
        }
    }
}

/// The status of the answer that `received` begins with, or `None` if more of it is needed. What is said before the final answer (RFC 9110,
/// section 15.2) is taken out.
fn final_status(received: &mut Vec<u8>) -> Result<Option<u16>, ProbeError> {
    loop {
        let mut headers = [EMPTY_HEADER; 100];
        let mut response = Response::new(&mut headers);
        let parsed = response.parse(received).map_err(ProbeError::Answer)?;
        match (parsed, response.code) {
            (Status::Complete(length), Some(100 | 102..=199)) => drop(received.drain(..length)),
            (Status::Complete(_), Some(status)) => return Ok(Some(status)),
            _ => return Ok(None),
        }
    }
}

/// A check under way.
pub struct Checking {
    check: Check,
    streak: Streak,
    /// When the next probe starts.
    next: Instant,
    /// How long after the last one that is, while none has succeeded.
    pause: Duration,
    /// Why the instance is not healthy, as it was told last.
    told: Option<String>,
    /// The probe under way: it goes on where whoever waits for it does not.
    probing: Option<Probing>,
}

type Probing = Pin<Box<dyn Future<Output = Result<(), ProbeError>> + Send>>;

impl fmt::Debug for Checking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checking").field("check", &self.check).finish_non_exhaustive()
    }
}

impl Checking {
    /// Probes until the health changes, and tells the new one: `Ok` is healthy. While the instance is not, tells each other reason as well.
    /// Cancellation loses nothing: the next call goes on with the probe under way.
    ///
    /// # Errors
    ///
    /// [`ProbeError`]: the instance is not healthy any more.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_registry::check::Check;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let mut checking = Check::new("tcp://127.0.0.1:1".parse()?).start(); // nothing listens there
    /// match checking.changed().await {
    ///     Ok(()) => println!("healthy from now on"),
    ///     Err(error) => println!("not healthy from now on: {error}"),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn changed(&mut self) -> Result<(), ProbeError> {
        loop {
            if self.probing.is_none() {
                tokio::time::sleep_until(self.next).await;
                self.next = Instant::now() + self.pause.min(self.check.interval).clamp(SHORTEST, LONGEST);
            }
            let check = &self.check;
            let probing = self.probing.get_or_insert_with(|| {
                let check = check.clone();
                Box::pin(async move { check.probe().await })
            });
            let result = probing.await;
            self.probing = None;
            self.pause = if result.is_ok() { self.check.interval } else { self.pause.saturating_mul(2) };
            let has_changed = self.note(result.is_ok());
            let reason = result.as_ref().err().map(ToString::to_string);
            let is_unhealthy = self.streak.passes() == Some(false);
            if has_changed || (is_unhealthy && reason.is_some() && reason != self.told) {
                self.told = reason;
                return result;
            }
        }
    }

    /// Takes in a result; whether the health is another now.
    fn note(&mut self, passed: bool) -> bool {
        let needed = match self.streak.passes() {
            None if !passed => 1,
            None | Some(false) => self.check.rise,
            Some(true) => self.check.fall,
        };
        self.streak.note(passed, needed)
    }
}

#[cfg(test)]
mod tests {
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
        for text in [
            "tcp",
            "https://h/",
            "tcp://h",
            "http://:1/",
            "http://h:0/",
            "udp://h:1",
            "http://h:1/a b",
            "http://h:1/\r",
        ] {
            assert!(Probe::parse(text, None).is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn results_in_a_row_count_and_the_first_failure_is_told() {
        let check = Check { rise: 2, fall: 3, ..Check::new(Probe::Tcp("h:1".to_owned())) };
        let mut checking = check.start();
        let results = [false, true, false, true, true, false, false, true, false, false, false, true, true];
        let changes: Vec<_> = results.into_iter().map(|passed| checking.note(passed)).collect();
        let told = [0, 4, 10, 12];
        assert_eq!(changes, Vec::from_iter((0..results.len()).map(|place| told.contains(&place))));
    }

    #[tokio::test(start_paused = true)]
    async fn an_instance_that_comes_up_soon_is_found_soon() {
        // A port that is free at first.
        let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let mut checking = Check::new(Probe::Tcp(address.to_string())).start();
        let started = Instant::now();
        assert!(checking.changed().await.is_err(), "it is told that the check fails, and why");
        let _listener = TcpListener::bind(address).await.unwrap();
        checking.changed().await.unwrap();
        assert!(started.elapsed() < Duration::from_millis(500), "{:?}", started.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn no_interval_is_too_short_or_too_long() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        for interval in [Duration::ZERO, Duration::MAX] {
            let probe = Probe::Tcp(listener.local_addr().unwrap().to_string());
            let mut checking = Check { interval, rise: 3, ..Check::new(probe) }.start();
            let started = Instant::now();
            checking.changed().await.unwrap();
            assert!(started.elapsed() >= SHORTEST * 2, "{:?}", started.elapsed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn another_reason_is_told_as_well() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut checking = Check::new(format!("http://{address}/").parse().unwrap()).start();
        let answering = tokio::spawn(async move {
            for answer in ["503 Away", "503 Away", "500 Broken", "200 OK"] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.read(&mut [0; 1024]).await;
                stream.write_all(format!("HTTP/1.1 {answer}\r\n\r\n").as_bytes()).await.unwrap();
            }
        });
        assert!(matches!(checking.changed().await, Err(ProbeError::Status(503))));
        assert!(matches!(checking.changed().await, Err(ProbeError::Status(500))), "the same reason is told once");
        checking.changed().await.unwrap();
        answering.await.unwrap();
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
        assert!(matches!(why, ProbeError::Status(503)), "{why}");
        let early = answering("HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 200 OK\r\n\r\n").await;
        Check::new(format!("http://{early}/x").parse().unwrap()).probe().await.unwrap();
        let odd = answering("hello\r\n\r\n").await;
        assert!(Check::new(format!("http://{odd}/x").parse().unwrap()).probe().await.is_err());
        assert!(Check::new("tcp://127.0.0.1:1".parse().unwrap()).probe().await.is_err());
    }
}
