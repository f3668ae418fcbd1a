//! The registry's URL, and the settings in it.

#[cfg(feature = "agent-client")]
mod agent;
#[cfg(feature = "zookeeper")]
mod zookeeper;

use std::path::PathBuf;
use std::time::Duration;

use pointsman_core::parse_duration;
use pointsman_net::percent;

#[cfg(feature = "agent-client")]
pub(crate) use self::agent::AgentUrl;
#[cfg(feature = "zookeeper")]
pub(crate) use self::zookeeper::{Acl, Folders, ROOT, ZooKeeperUrl};
#[cfg(any(feature = "agent-client", feature = "zookeeper"))]
use crate::tls::Tls;
use crate::{Error, Result};

/// What a registry's URL says.
#[derive(Clone)]
pub(crate) enum Url {
    /// `memory://` or `memory://name`: within this process. Whoever connects with the same name shares it.
    Memory(String),
    /// `zookeeper://host:port,host:port/prefix?options`.
    #[cfg(feature = "zookeeper")]
    ZooKeeper(Box<ZooKeeperUrl>),
    /// `http://host:port,host:port?options`, or `https://`: agents.
    #[cfg(feature = "agent-client")]
    Agent(Box<AgentUrl>),
}

/// Options that concern every backend.
#[derive(Debug, Clone, Default)]
pub(crate) struct Common {
    pub(crate) connect_timeout: Option<Duration>,
    pub(crate) snapshots: Option<PathBuf>,
    pub(crate) guard: Option<bool>,
}

/// What every scheme knows.
const COMMON: &str = "connect_timeout, snapshots, guard";

impl Url {
    /// Reads a URL.
    pub(crate) fn parse(text: &str) -> Result<(Self, Common)> {
        let fail = |reason: String| Error::Url { url: redacted(text), reason };
        let Some((scheme, rest)) = text.split_once("://") else {
            let example = "zookeeper://127.0.0.1:2181/micro-service";
            return Err(fail(format!("has no scheme; a registry's url is memory:// or for example {example}")));
        };
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut options = Options::parse(query).map_err(fail)?;
        let url = match scheme {
            "memory" => Url::Memory(place.trim_end_matches('/').to_owned()),
            #[cfg(feature = "zookeeper")]
            "zookeeper" => Url::ZooKeeper(Box::new(ZooKeeperUrl::parse(place, &mut options).map_err(fail)?)),
            #[cfg(not(feature = "zookeeper"))]
            "zookeeper" => return Err(fail(unsupported("zookeeper://", &["zookeeper"]))),
            #[cfg(feature = "agent-client")]
            "http" | "https" => Url::Agent(Box::new(AgentUrl::parse(scheme, place, &mut options).map_err(fail)?)),
            #[cfg(not(feature = "agent-client"))]
            "http" => return Err(fail(unsupported("http://", &["agent-client"]))),
            #[cfg(not(feature = "agent-client"))]
            "https" => return Err(fail(unsupported("https://", &["agent-client", "tls"]))),
            _ => return Err(fail(format!("unknown scheme {scheme:?}; known are memory, zookeeper, http and https"))),
        };
        let common = options.common().map_err(fail)?;
        options.finish(scheme).map_err(fail)?;
        Ok((url, common))
    }

    /// Reads the files of TLS that it names, if there are any.
    ///
    /// # Errors
    ///
    /// [`Error::File`].
    pub(crate) fn check_files(&self) -> Result<()> {
        match self {
            Url::Memory(_) => Ok(()),
            #[cfg(feature = "zookeeper")]
            Url::ZooKeeper(url) => url.tls.as_ref().map_or(Ok(()), crate::tls::check),
            #[cfg(feature = "agent-client")]
            Url::Agent(url) => url.tls.as_ref().map_or(Ok(()), crate::tls::check),
        }
    }

    /// Whether what the registry tells is guarded against a mass loss already: an agent does that itself.
    pub(crate) fn is_guarded(&self) -> bool {
        match self {
            #[cfg(feature = "agent-client")]
            Url::Agent(_) => true,
            _ => false,
        }
    }
}

/// The error for a URL that needs a feature which this build does not have.
#[cfg(not(all(feature = "agent-client", feature = "tls", feature = "zookeeper")))]
fn unsupported(what: &str, features: &[&str]) -> String {
    let (features, s) = (features.join("` and `"), if features.len() == 1 { "" } else { "s" });
    format!("this build has no support for {what}: turn on the feature{s} `{features}` of the crate `pointsman`")
}

#[cfg(any(feature = "agent-client", feature = "zookeeper"))]
fn server(text: &str, port: u16) -> Result<String, String> {
    if text.contains('@') {
        return Err("has user information before the host; give it as auth=digest:user:password".to_owned());
    }
    let with_port = if text.ends_with(']') || !text.contains(':') { format!("{text}:{port}") } else { text.to_owned() };
    pointsman_core::check_address(&with_port).map_err(|error| format!("server {error}"))?;
    Ok(with_port)
}

/// The part after `?`, decoded; what has been asked for is taken out, what remains is unknown.
struct Options(Vec<(String, String)>);

impl Options {
    fn parse(query: &str) -> Result<Self, String> {
        let mut options = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value =
                percent::decode(value.as_bytes()).map_err(|_| format!("option {name} is not percent-encoded UTF-8"))?;
            if options.iter().any(|(other, _)| other == name) {
                return Err(format!("option {name} is given twice"));
            }
            options.push((name.to_owned(), value));
        }
        Ok(Self(options))
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let index = self.0.iter().position(|(other, _)| other == name)?;
        Some(self.0.swap_remove(index).1)
    }

    fn duration(&mut self, name: &str) -> Result<Option<Duration>, String> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match parse_duration(&value) {
            Ok(duration) if duration.is_zero() => Err(format!("option {name} must be above zero")),
            Ok(duration) => Ok(Some(duration)),
            Err(error) => Err(format!("option {name}: {error}")),
        }
    }

    fn switch(&mut self, name: &str) -> Result<Option<bool>, String> {
        match self.take(name).as_deref() {
            None => Ok(None),
            Some("on" | "true" | "") => Ok(Some(true)),
            Some("off" | "false") => Ok(Some(false)),
            Some(_) => Err(format!("option {name} must be on or off")),
        }
    }

    /// The files for TLS towards `servers`, which `asked` asks for.
    #[cfg(all(feature = "tls", any(feature = "agent-client", feature = "zookeeper")))]
    fn tls_files(&mut self, asked: &str, servers: &[String]) -> Result<Tls, String> {
        let mut path = |name| self.take(name).map(PathBuf::from);
        let (ca, cert, key) = (path("ca"), path("cert"), path("key"));
        if cert.is_some() != key.is_some() {
            return Err("cert and key go together".to_owned());
        }
        if let Some(server) = servers.iter().find(|server| !crate::tls::is_certifiable(server)) {
            let right = "write it in ASCII (IDNA), or as an IP address";
            return Err(format!("server {server:?} has no name that a certificate can have; {right}"));
        }
        let ca = ca.ok_or_else(|| format!("{asked} needs ca, a PEM file of trusted certificates"))?;
        Ok(Tls { ca, cert, key })
    }

    #[cfg(all(not(feature = "tls"), any(feature = "agent-client", feature = "zookeeper")))]
    fn tls_files(&mut self, asked: &str, _servers: &[String]) -> Result<Tls, String> {
        Err(unsupported(asked, &["tls"]))
    }

    fn common(&mut self) -> Result<Common, String> {
        Ok(Common {
            connect_timeout: self.duration("connect_timeout")?,
            snapshots: self.take("snapshots").map(PathBuf::from),
            guard: self.switch("guard")?,
        })
    }

    fn finish(self, scheme: &str) -> Result<(), String> {
        let Some((name, _)) = self.0.first() else { return Ok(()) };
        let known = match scheme {
            #[cfg(feature = "zookeeper")]
            "zookeeper" => format!("{}, {COMMON}", zookeeper::OPTIONS),
            #[cfg(feature = "agent-client")]
            "http" => format!("{}, {COMMON}", agent::OPTIONS),
            #[cfg(feature = "agent-client")]
            "https" => format!("{}, {COMMON}", agent::OPTIONS_HTTPS),
            _ => COMMON.to_owned(),
        };
        Err(format!("unknown option {name:?}; known for {scheme}:// are {known}"))
    }
}

/// The URL without what follows `auth=`, and without user information, for messages and logs.
pub(crate) fn redacted(url: &str) -> String {
    let (place, query) = match url.split_once('?') {
        Some((place, query)) => (place, Some(query)),
        None => (url, None),
    };
    let place = match (place.split_once("://"), place.rfind('@')) {
        (Some((scheme, _)), Some(at)) => format!("{scheme}://***{}", &place[at..]),
        (None, Some(at)) => format!("***{}", &place[at..]),
        _ => place.to_owned(),
    };
    let Some(query) = query else { return place };
    let hide = |pair: &str| match pair.split_once('=') {
        Some((name @ ("auth" | "token"), _)) => format!("{name}=***"),
        _ => pair.to_owned(),
    };
    format!("{place}?{}", query.split('&').map(hide).collect::<Vec<_>>().join("&"))
}

#[cfg(test)]
#[cfg(all(feature = "agent-client", feature = "tls", feature = "zookeeper"))]
mod tests {
    use super::agent::TTL;
    use super::*;

    fn zookeeper(text: &str) -> ZooKeeperUrl {
        match Url::parse(text).unwrap().0 {
            Url::ZooKeeper(url) => *url,
            _ => panic!("{text} is a zookeeper url"),
        }
    }

    fn error(text: &str) -> String {
        Url::parse(text).map(|_| ()).unwrap_err().to_string()
    }

    #[test]
    fn a_full_url() {
        let url =
            zookeeper("zookeeper://h1,h2:2182,[::1]:3/a/b/?session_timeout=1500ms&auth=digest:u:p%26w&acl=protected");
        assert_eq!(url.servers, ["h1:2181", "h2:2182", "[::1]:3"]);
        assert_eq!(url.prefix, "/a/b");
        assert_eq!(url.session_timeout, Duration::from_millis(1500));
        assert_eq!(url.digest.as_deref(), Some("u:p&w"));
        assert_eq!(url.acl, Acl::Protected);
    }

    #[test]
    fn the_root_of_what_is_no_service() {
        let root = |query: &str| zookeeper(&format!("zookeeper://h/apps/micro-service{query}")).root;
        assert_eq!(root(""), "/pointsman");
        assert_eq!(root("?root=/apps/pointsman/"), "/apps/pointsman");
        assert_eq!(root("?root=%2Fapps%2Fmicro-services"), "/apps/micro-services");
    }

    #[test]
    fn agents() {
        let Url::Agent(url) = Url::parse("http://h1,h2:80,[::1]/?ttl=3s&token=geheim-geheim").unwrap().0 else {
            panic!()
        };
        assert_eq!(url.servers, ["h1:7480", "h2:80", "[::1]:7480"]);
        assert_eq!((url.tls.is_some(), url.ttl.as_secs(), url.token.as_deref()), (false, 3, Some("geheim-geheim")));
        let Url::Agent(url) = Url::parse("https://h?ca=/x").unwrap().0 else { panic!() };
        assert!(url.ttl == TTL && url.tls.is_some_and(|tls| tls.ca.as_os_str() == "/x"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (url, word) in [
            ("127.0.0.1:2181", "no scheme"),
            ("consul://h/p", "unknown scheme"),
            ("zookeeper://h", "no prefix"),
            ("zookeeper://h/", "no prefix"),
            ("zookeeper://h:99999/p", "65535"),
            ("zookeeper://h,,i/p", "no proper host"),
            ("zookeeper://h/a//b", "empty"),
            ("zookeeper://h/zookeeper", "reserved"),
            ("zookeeper://h/pointsman/x", "reserved"),
            ("zookeeper://h/p?root=x", "begins with a slash"),
            ("zookeeper://h/p?root=/", "root=/apps/pointsman"),
            ("zookeeper://h/p?root=/a//b", "empty"),
            ("zookeeper://h/p?root=/zookeeper/x", "ZooKeeper's own"),
            ("zookeeper://h/p?root=/p", "neither may lie in the other"),
            ("zookeeper://h/p?root=/p/x", "neither may lie in the other"),
            ("zookeeper://h/a/p?root=/a", "neither may lie in the other"),
            ("memory://?root=/x", "unknown option \"root\""),
            ("zookeeper://0.0.0.0/p", "listens"),
            ("zookeeper://a..b/p", "no proper host"),
            ("zookeeper://名.example/p?tls=on&ca=/x", "no name that a certificate can have"),
            ("https://名.example?ca=/x", "no name that a certificate can have"),
            ("zookeeper://h/p?sesion_timeout=1s", "unknown option \"sesion_timeout\""),
            ("zookeeper://h/p?session_timeout=1", "10s"),
            ("zookeeper://h/p?session_timeout=0s", "above zero"),
            ("zookeeper://h/p?session_timeout=99ms", "from 100ms to 1h"),
            ("zookeeper://h/p?session_timeout=61m", "from 100ms to 1h"),
            ("zookeeper://h/p?session_timeout=1s&session_timeout=1s", "twice"),
            ("zookeeper://h/p?acl=none", "open or protected"),
            ("zookeeper://h/p?folders=gone", "persistent or container"),
            ("zookeeper://h/p?tls=on", "needs ca"),
            ("zookeeper://h/p?ca=/x", "tls=on"),
            ("zookeeper://h/p?auth=digest", "user:password"),
            ("zookeeper://h/p?auth_file=/does/not/exist", "/does/not/exist"),
            ("http://h/x", "has a path"),
            ("http://u:p@h", "token_file"),
            ("http://h:0", "65535"),
            ("http://h?ttl=10ms", "from 1s to 1h"),
            ("http://h?ca=/x", "unknown option \"ca\"; known for http:// are token"),
            ("http://h?session_timeout=1s", "unknown option"),
            ("http://h?token=a%20b", "visible ASCII"),
            ("http://h?token=a&token_file=b", "either"),
            ("https://h", "needs ca"),
            ("https://h?ca=/x&cert=/y", "go together"),
            ("memory://?ttl=1s", "unknown option \"ttl\""),
        ] {
            assert!(error(url).contains(word), "{url}: {}", error(url));
        }
    }

    #[test]
    fn secrets_are_never_shown() {
        for url in [
            "http://h?token=geheim&x=1",
            "http://u:geheim@h",
            "zookeeper://h/p?auth=digest:u:geheim&x=1",
            "zookeeper://u:geheim@h/p",
            "u:geheim@h",
        ] {
            assert!(!error(url).contains("geheim"), "{}", error(url));
        }
        let url = zookeeper("zookeeper://h/p?auth=digest:u:geheim");
        assert!(!format!("{url:?}").contains("geheim"));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".*", tail in "[a-z:/,?&=%0-9@]*") {
            let _ = Url::parse(&text);
            let _ = Url::parse(&format!("zookeeper://{tail}"));
        }
    }
}
