//! Who is let in: the token, the `Host`, the `Origin`.

use hyper::header::{AUTHORIZATION, HOST, HeaderName, ORIGIN};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method, Uri};

use crate::problem::{Kind, Problem};
use crate::settings::Settings;

/// Who may do what, as it is in force.
#[derive(Debug)]
pub(crate) struct Gate {
    settings: Settings,
}

/// Who asks, for the audit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Actor {
    /// Somebody on this machine, where no token is needed.
    Anybody,
    /// Somebody with the read token.
    Reader,
    /// Somebody with the write token.
    Writer,
    /// Somebody whose certificate is enough.
    Certified,
}

impl Actor {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Actor::Anybody => "anybody",
            Actor::Reader => "read token",
            Actor::Writer => "write token",
            Actor::Certified => "client certificate",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Need {
    Nothing,
    Reading,
    Writing,
}

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

impl Gate {
    pub(crate) fn new(settings: Settings) -> Self {
        Self { settings }
    }

    /// Lets a request pass, and says whose it is.
    pub(crate) fn admit(&self, request: &Parts) -> Result<Actor, Problem> {
        self.check_host(request)?;
        check_origin(request)?;
        self.check_token(request)
    }

    fn check_token(&self, request: &Parts) -> Result<Actor, Problem> {
        let need = need(&request.method, &request.uri);
        let Some(write) = &self.settings.write_token else {
            let certified = self.settings.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
            return Ok(if certified { Actor::Certified } else { Actor::Anybody });
        };
        let given = bearer(&request.headers);
        let actor = match given {
            Some(token) if write.is(token) => Some(Actor::Writer),
            Some(token) if self.settings.read_token.as_ref().is_some_and(|read| read.is(token)) => Some(Actor::Reader),
            _ => None,
        };
        match (need, actor) {
            (Need::Nothing, actor) => Ok(actor.unwrap_or(Actor::Anybody)),
            (Need::Reading, Some(actor)) | (Need::Writing, Some(actor @ Actor::Writer)) => Ok(actor),
            (Need::Writing, Some(_)) => {
                Err(Problem::new(Kind::Forbidden, "the read token does not allow this; use the write token"))
            }
            (_, None) if given.is_some() => {
                Err(Problem::new(Kind::Unauthorized, "the token is not one of this agent's"))
            }
            (_, None) => {
                Err(Problem::new(Kind::Unauthorized, "this agent requires a token: send Authorization: Bearer TOKEN"))
            }
        }
    }

    /// Against DNS rebinding: a page of a stranger's name, whose address is now this machine's, still says that name.
    fn check_host(&self, request: &Parts) -> Result<(), Problem> {
        let settings = &self.settings;
        if settings.hosts.is_empty() && !settings.is_on_loopback() {
            return Ok(());
        }
        let host = host_of(request);
        let name = host.map(|host| without_port(host).trim_end_matches('.'));
        let known = name.is_some_and(|name| {
            is_loopback_name(name)
                || settings.hosts.iter().any(|host| host.eq_ignore_ascii_case(name))
                || name.trim_matches(['[', ']']).parse() == Ok(settings.listen.ip())
        });
        if known {
            return Ok(());
        }
        let name = name.unwrap_or_default().chars().take(64).collect::<String>();
        let detail = format!("the host {name:?} is not one of this agent's; use 127.0.0.1, or name it in agent.hosts");
        Err(Problem::new(Kind::Misdirected, detail))
    }
}

/// A browser says where the page comes from that makes it ask: only the agent's own pages may.
fn check_origin(request: &Parts) -> Result<(), Problem> {
    let foreign = || Err(Problem::new(Kind::Forbidden, "pages of other origins may not use this agent"));
    if let Some(site) = request.headers.get(SEC_FETCH_SITE)
        && !matches!(site.as_bytes(), b"same-origin" | b"none")
    {
        // A link that is followed to the dashboard is fine: it shows nothing to the page that has it.
        let follows = request.method == Method::GET
            && request.uri.path() == "/"
            && request.headers.get("sec-fetch-mode").is_some_and(|mode| mode == "navigate");
        return if follows { Ok(()) } else { foreign() };
    }
    match request.headers.get(ORIGIN) {
        None => Ok(()),
        Some(origin) => {
            let of_origin = origin.to_str().ok().and_then(|origin| origin.split_once("://")).map(|(_, host)| host);
            if of_origin.is_some() && of_origin == host_of(request) { Ok(()) } else { foreign() }
        }
    }
}

/// In HTTP/1.1 the `Host`; an absolute target's comes first (RFC 9112, 3.2.2).
fn host_of(request: &Parts) -> Option<&str> {
    match request.uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => {
            let mut hosts = request.headers.get_all(HOST).iter();
            // Of two, a proxy in front of us might have believed the other.
            let host = hosts.next().filter(|_| hosts.next().is_none())?;
            host.to_str().ok()
        }
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => host,
    }
}

fn is_loopback_name(name: &str) -> bool {
    let ip = name.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    name.eq_ignore_ascii_case("localhost") || ip.is_ok_and(|ip| ip.to_canonical().is_loopback())
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn need(method: &Method, uri: &Uri) -> Need {
    let path = uri.path();
    match *method {
        Method::GET | Method::HEAD => {
            let is_open = matches!(path, "/" | "/livez" | "/readyz" | "/openapi.json" | "/favicon.ico")
                || path.starts_with("/assets/");
            if is_open { Need::Nothing } else { Need::Reading }
        }
        // Who may pick may also give back.
        Method::DELETE if path.starts_with("/v1/claims/") => Need::Reading,
        _ => Need::Writing,
    }
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;
    use crate::settings::Token;

    fn loopback() -> Settings {
        Settings::new(([127, 0, 0, 1], 7480).into())
    }

    fn admit(settings: &Settings, method: &str, path: &str, headers: &[(&str, &str)]) -> Result<Actor, Kind> {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        Gate::new(settings.clone()).admit(&parts).map_err(|problem| problem.kind)
    }

    #[test]
    fn on_loopback_only_loopback_names_are_answered() {
        let mut settings = loopback();
        settings.hosts = vec!["agent.test".to_owned()];
        for host in
            ["127.0.0.1", "127.0.0.1:7480", "localhost:1", "LOCALHOST", "[::1]:7480", "agent.test:7", "127.9.9.9"]
        {
            assert_eq!(admit(&settings, "GET", "/v1/services", &[("host", host)]), Ok(Actor::Anybody), "{host}");
        }
        for host in ["evil.test", "10.0.0.1:7480", "127.0.0.1.evil.test", "localhost.evil.test", "", "[::2]", "::1:x"] {
            assert_eq!(admit(&settings, "GET", "/v1/services", &[("host", host)]), Err(Kind::Misdirected), "{host}");
        }
        assert_eq!(admit(&settings, "GET", "/", &[]), Err(Kind::Misdirected));
        assert_eq!(admit(&settings, "GET", "http://evil.test/", &[("host", "localhost")]), Err(Kind::Misdirected));
    }

    #[test]
    fn other_origins_are_refused() {
        let settings = loopback();
        let with = |method, path, more: &[(&str, &str)]| {
            admit(&settings, method, path, &[&[("host", "127.0.0.1:7480")], more].concat())
        };
        assert!(with("PUT", "/v1/x", &[("origin", "http://127.0.0.1:7480")]).is_ok());
        assert!(with("GET", "/v1/x", &[("sec-fetch-site", "same-origin")]).is_ok());
        assert!(with("GET", "/", &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")]).is_ok());
        for (method, path, headers) in [
            ("PUT", "/v1/x", &[("origin", "http://evil.test")][..]),
            ("GET", "/v1/x", &[("origin", "http://127.0.0.1:80")]),
            ("GET", "/v1/x", &[("origin", "null")]),
            ("POST", "/v1/x", &[("sec-fetch-site", "cross-site")]),
            ("GET", "/v1/x", &[("sec-fetch-site", "same-site")]),
            ("GET", "/v1/x", &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")]),
        ] {
            assert_eq!(with(method, path, headers), Err(Kind::Forbidden), "{method} {path} {headers:?}");
        }
    }

    #[test]
    fn tokens_are_apart() {
        let mut settings = Settings::new(([10, 0, 0, 1], 7480).into());
        settings.read_token = Some(Token::new("read-read-read-read").unwrap());
        settings.write_token = Some(Token::new("write-write-write-write").unwrap());
        let with = |method, path, token: &str| admit(&settings, method, path, &[("authorization", token)]);
        let (read, write) = ("Bearer read-read-read-read", "bearer write-write-write-write");
        assert_eq!(with("GET", "/v1/services", read), Ok(Actor::Reader));
        assert_eq!(with("GET", "/metrics", write), Ok(Actor::Writer));
        assert_eq!(with("PUT", "/v1/x", write), Ok(Actor::Writer));
        assert_eq!(with("DELETE", "/v1/claims/x", read), Ok(Actor::Reader));
        assert_eq!(with("PUT", "/v1/x", read), Err(Kind::Forbidden));
        for token in ["", "Bearer", "Bearer ", "Basic cmVhZA==", "Bearer read-read-read-rea", "read-read-read-read"] {
            assert_eq!(with("GET", "/v1/services", token), Err(Kind::Unauthorized), "{token}");
        }
        for open in ["/livez", "/readyz", "/", "/assets/app.js"] {
            assert_eq!(admit(&settings, "GET", open, &[]), Ok(Actor::Anybody), "{open}");
        }
        assert_eq!(admit(&settings, "GET", "/metrics", &[]), Err(Kind::Unauthorized));
    }
}
