//! Waits for a registry that has not answered yet, and classifies the obstacles.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::{Error, Result};

/// Prospect of an obstacle passing by itself, the most hopeful first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outlook {
    /// Nothing has been tried yet.
    Untried,
    /// It may pass by itself within moments.
    MayPass,
    /// There is no such server. It is not there until somebody starts it.
    NoServer,
    /// A server is there and refuses this client. Somebody has to change a setting.
    Refused,
}

/// Why an attempt to reach a registry has failed.
#[derive(Debug, Clone)]
pub(crate) struct Obstacle {
    pub(crate) reason: Arc<str>,
    pub(crate) outlook: Outlook,
}

impl Obstacle {
    pub(crate) fn new(outlook: Outlook, reason: impl Into<Arc<str>>) -> Self {
        Self { reason: reason.into(), outlook }
    }

    /// No attempt has come to its end.
    pub(crate) fn untried() -> Self {
        Self::new(Outlook::Untried, "is a registry there?")
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

/// Classifies an I/O error of `address`, a `host:port`. A port of this machine that refuses connections is known at once to have no
/// server. Elsewhere a machine may be starting, or an address may be about to move.
pub(crate) fn outlook(error: &io::Error, address: &str) -> Outlook {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
    let is_here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if is_here && error.kind() == io::ErrorKind::ConnectionRefused { Outlook::NoServer } else { Outlook::MayPass }
}

/// Limits of the wait for the first answer.
pub(crate) struct Wait<'a> {
    /// `None`: without end.
    pub(crate) limit: Option<Duration>,
    /// The obstacle that ends the wait at once, and each that is more hopeless; `None`: no obstacle does.
    pub(crate) ends_at: Option<Outlook>,
    /// Is told why each attempt has failed.
    pub(crate) note: Option<&'a (dyn Fn(&str) + Send + Sync)>,
}

impl Wait<'_> {
    /// Waits whatever happens.
    pub(crate) fn without_end() -> Self {
        Self { limit: None, ends_at: None, note: None }
    }

    /// Tells of an attempt that has failed. `tried` says what it was.
    ///
    /// # Errors
    ///
    /// If the obstacle ends the wait.
    pub(crate) fn failed(&self, obstacle: &Obstacle, tried: impl FnOnce() -> String) -> Result<()> {
        let Obstacle { reason, outlook } = obstacle;
        if *outlook == Outlook::Untried {
            return Ok(());
        }
        if self.ends_at.is_some_and(|ends_at| *outlook >= ends_at) {
            return Err(match outlook {
                Outlook::Refused => Error::refused(tried(), &**reason),
                _ => Error::Unreachable { tried: tried(), waited: Duration::ZERO, reason: reason.to_string() },
            });
        }
        if let Some(note) = self.note {
            note(reason);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_closed_port_of_this_machine_is_known_to_have_no_server() {
        let outlook = |kind: io::ErrorKind, address| outlook(&kind.into(), address);
        for here in ["127.0.0.1:1", "127.8.0.1:1", "[::1]:1", "localhost:1"] {
            assert_eq!(outlook(io::ErrorKind::ConnectionRefused, here), Outlook::NoServer, "{here}");
            assert_eq!(outlook(io::ErrorKind::TimedOut, here), Outlook::MayPass, "{here}");
        }
        for there in ["10.0.0.1:1", "zk-1.example:1", "[2001:db8::1]:1"] {
            assert_eq!(outlook(io::ErrorKind::ConnectionRefused, there), Outlook::MayPass, "{there}");
        }
    }
}
