//! The URL of agents.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::{Options, server};
use crate::tls::Tls;

/// Agents, and how to connect.
#[derive(Clone)]
pub(crate) struct AgentUrl {
    /// `host:port` each.
    pub(crate) servers: Vec<String>,
    pub(crate) token: Option<String>,
    /// For `https://`.
    pub(crate) tls: Option<Tls>,
    /// The lease of registrations.
    pub(crate) ttl: Duration,
}

/// The options that only these URLs know.
pub(super) const OPTIONS: &str = "token, token_file, ttl";
pub(super) const OPTIONS_HTTPS: &str = "token, token_file, ttl, ca, cert, key";
const PORT: u16 = 7480;
/// What agents take.
const TTLS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
pub(super) const TTL: Duration = Duration::from_secs(10);

impl AgentUrl {
    pub(super) fn parse(scheme: &str, place: &str, options: &mut Options) -> Result<Self, String> {
        let place = place.strip_suffix('/').unwrap_or(place);
        if let Some((_, path)) = place.split_once('/') {
            return Err(format!("has a path, /{path}; an agent's url has none"));
        }
        if place.contains('@') {
            return Err("has user information before the host; give a token as token_file=PATH".to_owned());
        }
        let servers = place.split(',').map(|text| server(text, PORT)).collect::<Result<Vec<_>, _>>()?;
        let tls = if scheme == "https" { Some(options.tls_files("https://", &servers)?) } else { None };
        let ttl = match options.duration("ttl")? {
            Some(ttl) if !TTLS.contains(&ttl) => {
                return Err(format!("option ttl is {ttl:?}; it must be from 1s to 1h"));
            }
            ttl => ttl.unwrap_or(TTL),
        };
        Ok(Self { servers, token: options.token()?, tls, ttl })
    }
}

impl Options {
    /// An agent's token.
    fn token(&mut self) -> Result<Option<String>, String> {
        let of = |text: &str| match text.trim() {
            token if !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()) => {
                Ok(Some(token.to_owned()))
            }
            _ => Err("a token is made of visible ASCII characters, without spaces".to_owned()),
        };
        match (self.take("token"), self.take("token_file")) {
            (None, None) => Ok(None),
            (Some(_), Some(_)) => Err("give either token or token_file".to_owned()),
            (Some(token), None) => of(&token),
            (None, Some(path)) => {
                of(&std::fs::read_to_string(&path).map_err(|error| format!("token_file {path}: {error}"))?)
            }
        }
    }
}
