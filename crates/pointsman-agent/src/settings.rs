//! What an agent is told.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pointsman_net::tls::ServerTls;
use subtle::ConstantTimeEq as _;

/// The settings of an agent. Make them with [`Settings::new`], and change what is to be different.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settings {
    /// Where to listen. With port 0 the system chooses.
    pub listen: SocketAddr,
    /// Names by which clients reach the agent, besides the loopback ones: a `Host` that is neither is refused. Where the
    /// agent listens off loopback, an empty list admits every name.
    pub hosts: Vec<String>,
    /// Who has it may read.
    pub read_token: Option<Token>,
    /// Who has it may read and write.
    pub write_token: Option<Token>,
    /// TLS; `None` for plain HTTP.
    pub tls: Option<ServerTls>,
    /// How much of everything.
    pub limits: Limits,
    /// Whether to serve go-micro-service's three URLs too.
    pub go_micro_service: bool,
}

/// What an agent takes at most. Beyond, it refuses, and says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Connections at a time; others wait to be accepted. As many requests are worked on at a time over HTTP/2, where others wait as well. Default
    /// 20,000.
    pub connections: usize,
    /// Streams of events at a time (`watch`, `role`, `hold`). Default 15,000.
    pub watchers: usize,
    /// Registrations held. Default 100,000.
    pub registrations: usize,
    /// Claims that are neither released nor expired. Default 100,000.
    pub claims: usize,
    /// Bytes of a request's body. Default 256 KiB.
    pub body: usize,
    /// The head of a request has to be there within this time; and a connection on which nothing is asked is closed after it.
    /// Default 30 s.
    pub head_time: Duration,
    /// The body of a request has to be there within this time. Default 10 s.
    pub body_time: Duration,
    /// Deadline of each write to the registry; a write that misses it is not carried out later. Default 3 s.
    pub write_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 20_000,
            watchers: 15_000,
            registrations: 100_000,
            claims: 100_000,
            body: 256 << 10,
            head_time: Duration::from_secs(30),
            body_time: Duration::from_secs(10),
            write_time: Duration::from_secs(3),
        }
    }
}

impl Settings {
    /// An agent that listens at `listen`, without tokens, TLS, or names of its own.
    #[must_use]
    pub fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            hosts: Vec::new(),
            read_token: None,
            write_token: None,
            tls: None,
            limits: Limits::default(),
            go_micro_service: false,
        }
    }

    /// Whether only this machine can reach the agent.
    #[must_use]
    pub fn is_on_loopback(&self) -> bool {
        self.listen.ip().to_canonical().is_loopback()
    }

    /// What is wrong with them, each with the setting's name; none if they can be used.
    #[must_use]
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        let has_clients = self.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
        if !self.is_on_loopback() && !has_clients && self.write_token.is_none() {
            let reason = "is not on loopback, so that every client of the network could write: name a read_token_file and a write_token_file, or \
                          tls_cert, tls_key and client_ca (mutual TLS); or use 127.0.0.1";
            problems.push(("listen", reason.to_owned()));
        }
        if self.read_token.is_some() && self.write_token.is_none() {
            problems.push(("read_token_file", "goes together with write_token_file: nobody could write".to_owned()));
        }
        if self.read_token.is_some() && self.read_token == self.write_token {
            problems.push(("read_token_file", "has the same token as write_token_file".to_owned()));
        }
        problems.extend(self.limits.problems());
        problems
    }
}

impl Limits {
    /// Returns the limits that are outside their bounds, of those that a configuration file can set.
    fn problems(&self) -> impl Iterator<Item = (&'static str, String)> {
        let counts = [
            ("max_connections", self.connections),
            ("max_watchers", self.watchers),
            ("max_registrations", self.registrations),
            ("max_claims", self.claims),
        ];
        let bounds = 1..=MOST;
        let counts = counts.into_iter().filter(move |(_, count)| !bounds.contains(count));
        let counts = counts.map(|(key, count)| (key, format!("is {count}; it can be 1 to {MOST}")));
        let write_timeout = match self.write_time {
            time if time.is_zero() => Some("is 0: no write is that fast; write for example \"3s\""),
            time if time > LONGEST_TIME => Some("is longer than 365 days"),
            _ => None,
        };
        counts.chain(write_timeout.map(|reason| ("write_timeout", reason.to_owned())))
    }
}

/// A secret. Shown nowhere, and compared in a time that does not depend on how much of it is right.
#[derive(Clone)]
pub struct Token(Arc<str>);

/// Why a text is not a token. Never shows the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidToken {
    /// It is too short or too long: the number of its characters.
    #[error("a token has {SHORTEST} to {LONGEST} characters; this one has {0}")]
    Length(usize),
    /// It has spaces, control characters, or characters beyond ASCII.
    #[error("a token is made of visible ASCII characters, without spaces")]
    Characters,
}

/// Maximum of each limit: more than any machine has connections or memory for.
const MOST: usize = 10_000_000;
/// Maximum of a length of time: what is longer is a slip, and would not fit on every clock.
const LONGEST_TIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// The shortest token: 16 bytes are 128 bits at best.
const SHORTEST: usize = 16;
const LONGEST: usize = 1024;

impl Token {
    /// A token of 16 to 1024 visible ASCII characters, as fit a header.
    ///
    /// # Errors
    ///
    /// [`InvalidToken`].
    pub fn new(text: &str) -> Result<Self, InvalidToken> {
        let text = text.trim();
        if !(SHORTEST..=LONGEST).contains(&text.len()) {
            return Err(InvalidToken::Length(text.len()));
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(InvalidToken::Characters);
        }
        Ok(Self(text.into()))
    }

    /// Whether `text` is it.
    pub(crate) fn is(&self, text: &str) -> bool {
        self.0.as_bytes().ct_eq(text.as_bytes()).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(***)")
    }
}

impl PartialEq for Token {
    fn eq(&self, other: &Self) -> bool {
        self.is(&other.0)
    }
}

impl Eq for Token {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_never_shown() {
        let mut settings = Settings::new(([127, 0, 0, 1], 0).into());
        settings.write_token = Some(Token::new("geheim-geheim-geheim").unwrap());
        assert!(!format!("{settings:?}").contains("geheim"));
        for bad in ["", "short", "with a space in the middle", "mit-ümlaut-im-token", &"x".repeat(1025)] {
            let error = Token::new(bad).unwrap_err();
            let said = error.to_string();
            assert!(bad.is_empty() || !said.contains(bad), "{said}");
        }
    }

    #[test]
    fn off_loopback_nobody_listens_without_a_lock() {
        let mut settings = Settings::new(([0, 0, 0, 0], 1).into());
        let names = |settings: &Settings| settings.problems().into_iter().map(|(key, _)| key).collect::<Vec<_>>();
        assert_eq!(names(&settings), ["listen"]);
        let token = |text: &str| Some(Token::new(text).unwrap());
        settings.read_token = token("0123456789abcdef");
        assert_eq!(names(&settings), ["listen", "read_token_file"]);
        settings.write_token = token("0123456789abcdef");
        assert_eq!(names(&settings), ["read_token_file"]);
        settings.write_token = token("0123456789abcdefg");
        assert_eq!(names(&settings), [""; 0]);
        (settings.read_token, settings.write_token) = (None, None);
        settings.tls = Some(ServerTls { cert: "c".into(), key: "k".into(), client_ca: Some("a".into()) });
        assert_eq!(names(&settings), [""; 0]);
    }
}
