//! Where a broker of one's own is, and how to connect to it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use pointsman_core::parse_duration;
use pointsman_net::percent::percent_decode_str;
use pointsman_net::tls::{ClientTls, Identity};

use crate::packet::Version;

/// The URL of a broker: `mqtt://HOST:PORT` or, with TLS, `mqtts://HOST:PORT?ca=PATH`.
///
/// Options: `version` (`5` or `3.1.1`; default 5), `keep_alive` (30s), `auth_file=PATH` (a file that holds `user:password`),
/// and for `mqtts` `ca=PATH` (trusted certificates, PEM; required), `cert=PATH` and `key=PATH` (the own certificate). User name and password may also stand
/// before the host, percent-encoded; whoever shows a URL shows it without them.
///
/// ```
/// use pointsman_mqtt::BrokerUrl;
///
/// let url: BrokerUrl = "mqtt://user:secret@127.0.0.1:1883?version=3.1.1".parse()?;
/// assert_eq!(url.address(), "127.0.0.1:1883");
/// assert_eq!(url.to_string(), "mqtt://127.0.0.1:1883");
/// # Ok::<(), pointsman_mqtt::InvalidUrl>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct BrokerUrl {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) tls: Option<ClientTls>,
    pub(crate) version: Version,
    pub(crate) keep_alive: Duration,
    credentials: Option<Credentials>,
    auth_file: Option<PathBuf>,
}

/// A user name and a password. Shown by nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub(crate) user: String,
    pub(crate) password: String,
}

impl Credentials {
    /// These.
    #[must_use]
    pub fn new(user: impl Into<String>, password: impl Into<String>) -> Self {
        Self { user: user.into(), password: password.into() }
    }

    /// Reads `user:password`, as a file has it; white space at the end does not count.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (user, password) = text.trim_end().split_once(':')?;
        Some(Self::new(user, password))
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(***)")
    }
}

/// A URL that is no broker's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("broker {url} {reason}; a broker's url is for example mqtt://127.0.0.1:1883")]
pub struct InvalidUrl {
    /// The URL, without user name, password and options.
    pub url: String,
    /// What is wrong with it.
    pub reason: String,
}

const KEEP_ALIVE: Duration = Duration::from_secs(30);

impl BrokerUrl {
    /// `host:port`.
    #[must_use]
    pub fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// User name and password for a URL that has none itself.
    #[must_use]
    pub fn or_credentials(mut self, credentials: Option<Credentials>) -> Self {
        if self.credentials.is_none() && self.auth_file.is_none() {
            self.credentials = credentials;
        }
        self
    }

    /// Another user name and password than the URL says.
    #[must_use]
    pub fn with_credentials(mut self, credentials: Credentials) -> Self {
        (self.credentials, self.auth_file) = (Some(credentials), None);
        self
    }

    /// The same place with TLS: `ca` is a PEM file of trusted certificates, `identity` the own certificate and its key.
    #[must_use]
    pub fn with_tls(mut self, ca: impl Into<PathBuf>, identity: Option<(PathBuf, PathBuf)>) -> Self {
        let identity = identity.map(|(cert, key)| Identity { cert, key });
        self.tls = Some(ClientTls { ca: ca.into(), identity });
        self
    }

    /// Another keep-alive than the URL says; from 1 s to 65,535 s, in whole seconds.
    #[must_use]
    pub fn with_keep_alive(mut self, keep_alive: Duration) -> Self {
        self.keep_alive = Duration::from_secs(keep_alive.as_secs().clamp(1, 65_535));
        self
    }

    /// The version that is spoken with it.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// Another version than the URL says.
    #[must_use]
    pub fn with_version(mut self, version: Version) -> Self {
        self.version = version;
        self
    }

    /// Whether both are one broker, as far as their URLs tell.
    #[must_use]
    pub fn is_same_broker(&self, other: &Self) -> bool {
        let name = |host: &str| if host == "localhost" { "127.0.0.1".to_owned() } else { host.to_ascii_lowercase() };
        (name(&self.host), self.port) == (name(&other.host), other.port)
    }

    /// Reads the file that has them anew each time, so that a changed password is taken up with the next connection.
    /// Reads the files that it names, if there are any: certificates, and that of user name and password. Each connection reads
    /// them again.
    ///
    /// # Errors
    ///
    /// What is wrong with a file, and what would be right.
    pub fn check_files(&self) -> Result<(), String> {
        self.credentials().map_err(|error| error.to_string())?;
        self.tls.as_ref().map_or(Ok(()), |tls| tls.load(&[]).map(drop).map_err(|error| error.to_string()))
    }

    pub(crate) fn credentials(&self) -> std::io::Result<Option<Credentials>> {
        let Some(path) = &self.auth_file else { return Ok(self.credentials.clone()) };
        let text = std::fs::read_to_string(path)
            .map_err(|error| std::io::Error::new(error.kind(), format!("auth_file {}: {error}", path.display())))?;
        let wrong = || std::io::Error::other(format!("auth_file {} does not hold user:password", path.display()));
        Credentials::parse(&text).map(Some).ok_or_else(wrong)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let url = url::Url::parse(text).map_err(|error| match error {
            url::ParseError::RelativeUrlWithoutBase => "has no scheme".to_owned(),
            error => format!("is not a url: {error}"),
        })?;
        let tls = match url.scheme() {
            "mqtt" => false,
            "mqtts" => true,
            other => return Err(format!("has the unknown scheme {other:?}; known are mqtt and mqtts")),
        };
        if !matches!(url.path(), "" | "/") || url.fragment().is_some() {
            return Err("has a path; it ends with the port, or with options after a ?".to_owned());
        }
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or("has no host")?.to_owned();
        let port = url.port().unwrap_or(if tls { 8883 } else { 1883 });
        if port == 0 {
            return Err("has the port 0".to_owned());
        }
        let mut it = Self {
            host,
            port,
            tls: None,
            version: Version::V5,
            keep_alive: KEEP_ALIVE,
            credentials: credentials_of(&url),
            auth_file: None,
        };
        let (mut ca, mut cert, mut key) = (None, None, None);
        for (name, value) in url.query_pairs() {
            let path = || Some(PathBuf::from(&*value));
            match &*name {
                "version" => it.version = version(&value)?,
                "keep_alive" => it.keep_alive = keep_alive(&value)?,
                "auth_file" => it.auth_file = path(),
                "ca" if tls => ca = path(),
                "cert" if tls => cert = path(),
                "key" if tls => key = path(),
                "ca" | "cert" | "key" => return Err(format!("has the option {name}, which needs mqtts://")),
                _ => {
                    let known = "version, keep_alive, auth_file, and with mqtts ca, cert, key";
                    return Err(format!("has the unknown option {name:?}; known are {known}"));
                }
            }
        }
        if it.auth_file.is_some() && it.credentials.is_some() {
            return Err("has both a user name and auth_file".to_owned());
        }
        if tls {
            let identity = match (cert, key) {
                (Some(cert), Some(key)) => Some(Identity { cert, key }),
                (None, None) => None,
                _ => return Err("has only one of cert and key, which go together".to_owned()),
            };
            let ca = ca.ok_or("needs ca=PATH, a PEM file of trusted certificates")?;
            it.tls = Some(ClientTls { ca, identity });
        }
        Ok(it)
    }
}

fn credentials_of(url: &url::Url) -> Option<Credentials> {
    if url.username().is_empty() && url.password().is_none() {
        return None;
    }
    let decoded = |text| percent_decode_str(text).decode_utf8_lossy().into_owned();
    Some(Credentials::new(decoded(url.username()), decoded(url.password().unwrap_or_default())))
}

fn version(text: &str) -> Result<Version, String> {
    match text {
        "5" | "5.0" => Ok(Version::V5),
        "3.1.1" | "4" => Ok(Version::V311),
        _ => Err(format!("has the version {text:?}; known are 5 and 3.1.1")),
    }
}

fn keep_alive(text: &str) -> Result<Duration, String> {
    let keep_alive = parse_duration(text).map_err(|error| format!("has a wrong keep_alive: {error}"))?;
    if (Duration::from_secs(1)..=Duration::from_secs(65_535)).contains(&keep_alive) {
        Ok(keep_alive)
    } else {
        Err("has a keep_alive that is not from 1s to 65535s".to_owned())
    }
}

impl FromStr for BrokerUrl {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Self, InvalidUrl> {
        Self::parse(text).map_err(|reason| InvalidUrl { url: redacted(text), reason })
    }
}

/// What can be shown of a text that may be no URL at all.
fn redacted(text: &str) -> String {
    let place = text.split(['?', '#']).next().unwrap_or_default();
    let shown = match (place.split_once("://"), place.rfind('@')) {
        (Some((scheme, _)), Some(at)) => format!("{scheme}://***{}", &place[at..]),
        (None, Some(at)) => format!("***{}", &place[at..]),
        _ => place.to_owned(),
    };
    shown.chars().take(200).collect()
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}:{}", if self.tls.is_some() { "mqtts" } else { "mqtt" }, self.host, self.port)
    }
}

impl fmt::Debug for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_url_can_say() {
        let url: BrokerUrl =
            "mqtts://u%40x:p%3Aw+1@broker.example?ca=/ca.pem&version=3.1.1&keep_alive=5s".parse().unwrap();
        assert_eq!((url.address(), url.version), ("broker.example:8883".to_owned(), Version::V311));
        assert_eq!(url.credentials().unwrap(), Some(Credentials::new("u@x", "p:w+1")));
        assert_eq!(format!("{url} {url:?}"), "mqtts://broker.example:8883 mqtts://broker.example:8883");
        assert_eq!("mqtt://[::1]:5".parse::<BrokerUrl>().unwrap().address(), "[::1]:5");
        let other = Some(Credentials::new("a", "b"));
        assert_eq!(url.clone().or_credentials(other), url);
    }

    #[test]
    fn what_is_wrong_is_named_and_no_secret_is() {
        for (text, word) in [
            ("127.0.0.1:1883", "url"),
            ("tcp://h", "mqtts"),
            ("mqtt://", "host"),
            ("mqtt://h/x", "path"),
            ("mqtt://h:0", "port"),
            ("mqtt://h:70000", "port"),
            ("mqtt://h?versoin=5", "versoin"),
            ("mqtt://h?version=6", "3.1.1"),
            ("mqtt://h?keep_alive=0s", "1s"),
            ("mqtt://h?ca=x", "mqtts"),
            ("mqtts://h", "ca="),
            ("mqtts://h?ca=x&cert=y", "together"),
            ("mqtt://u:secret@h?auth_file=x", "both"),
            ("mqtt://u:secret@h:x", "port"),
        ] {
            let error = text.parse::<BrokerUrl>().unwrap_err().to_string();
            assert!(error.contains(word) && !error.contains("secret"), "{text}: {error}");
        }
    }

    #[test]
    fn one_broker_by_two_names() {
        let url = |text: &str| text.parse::<BrokerUrl>().unwrap();
        assert!(url("mqtt://localhost:1").is_same_broker(&url("mqtt://127.0.0.1:1")));
        assert!(!url("mqtt://localhost:1").is_same_broker(&url("mqtt://127.0.0.1:2")));
    }
}
