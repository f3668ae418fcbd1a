//! The registry's URL, and the settings in it.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use pointsman_core::parse_duration;

use crate::{Error, Result};

/// What a registry's URL says.
#[derive(Clone)]
pub(crate) enum Url {
    /// `memory://` or `memory://name`: within this process. Whoever connects with the same name shares it.
    Memory(String),
    /// `zookeeper://host:port,host:port/prefix?options`.
    ZooKeeper(Box<ZooKeeperUrl>),
    /// `http://host:port,host:port?options`, or `https://`: agents.
    Agent(Box<AgentUrl>),
}

/// Agents, and how to connect.
#[derive(Clone)]
pub(crate) struct AgentUrl {
    /// `host:port` each.
    pub(crate) servers: Vec<String>,
    pub(crate) https: bool,
    pub(crate) token: Option<String>,
    pub(crate) tls: Tls,
    /// The lease of registrations.
    pub(crate) ttl: Duration,
}

/// A ZooKeeper ensemble, the prefix under which services live there, and how to connect.
#[derive(Clone)]
pub(crate) struct ZooKeeperUrl {
    /// `host:port` each.
    pub(crate) servers: Vec<String>,
    /// With a leading slash, without a trailing one, never empty.
    pub(crate) prefix: String,
    /// Where what is not a service or an instance is stored; as the prefix is written. The same for the whole fleet.
    pub(crate) root: String,
    pub(crate) session_timeout: Duration,
    pub(crate) acl: Acl,
    /// What the folder of a service is.
    pub(crate) folders: Folders,
    /// `user:password` for digest authentication.
    pub(crate) digest: Option<String>,
    pub(crate) tls: Option<Tls>,
}

/// Who may read and write what Pointsman puts into ZooKeeper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Acl {
    /// Everybody may do everything (`world:anyone:cdrwa`), as go-micro-service has it. The default, for its sake.
    #[default]
    Open,
    /// Everybody may read; only who has authenticated as the same user may write. Needs digest authentication. A
    /// go-micro-service process cannot become master of a service whose nodes are protected.
    Protected,
}

/// What the folders of services are that this process makes. Whatever is there already stays what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Folders {
    /// They stay when the service has no instance any more. The default, for go-micro-service's sake: its balancer asks without a pause for the
    /// first of the folders that it knows when that is gone.
    #[default]
    Persistent,
    /// They go by themselves, some time after the last instance.
    Container,
}

/// TLS towards the registry.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tls {
    pub(crate) ca: Option<PathBuf>,
    pub(crate) cert: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
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
const OF_ZOOKEEPER: &str = "session_timeout, auth, auth_file, acl, folders, tls, ca, cert, key, root";
const OF_AGENTS: &str = "token, token_file, ttl";
const OF_AGENTS_TLS: &str = "token, token_file, ttl, ca, cert, key";
const AGENT_PORT: u16 = 7480;
const ZOOKEEPER_PORT: u16 = 2181;
/// Where Pointsman stores in ZooKeeper what is not a service or an instance, unless told otherwise.
pub(crate) const ROOT: &str = "/pointsman";
/// What agents take.
const TTLS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
const TTL: Duration = Duration::from_secs(10);
const SESSION_TIMEOUT: Duration = Duration::from_secs(10);
/// Shorter, and no heartbeat is in time; longer, and a dead master is never replaced. ZooKeeper, which counts it in
/// milliseconds of 31 bits, keeps to narrower bounds of its own.
const SESSION_TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);

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
            "zookeeper" => Url::ZooKeeper(Box::new(ZooKeeperUrl::parse(place, &mut options).map_err(fail)?)),
            "http" | "https" => Url::Agent(Box::new(AgentUrl::parse(scheme, place, &mut options).map_err(fail)?)),
            _ => return Err(fail(format!("unknown scheme {scheme:?}; known are memory, zookeeper, http and https"))),
        };
        let common = options.common().map_err(fail)?;
        options.finish(scheme).map_err(fail)?;
        Ok((url, common))
    }
}

impl ZooKeeperUrl {
    fn parse(place: &str, options: &mut Options) -> Result<Self, String> {
        let (servers, prefix) = place.split_once('/').unwrap_or((place, ""));
        let servers = servers.split(',').map(|text| server(text, ZOOKEEPER_PORT)).collect::<Result<Vec<_>, _>>()?;
        let tls = options.tls()?;
        if tls.is_some() {
            check_certifiable(&servers)?;
        }
        let prefix = check_prefix(prefix)?;
        Ok(Self {
            servers,
            root: check_root(options.take("root").as_deref().unwrap_or(ROOT), &prefix)?,
            prefix,
            session_timeout: options.session_timeout()?,
            acl: options.acl()?,
            folders: options.folders()?,
            digest: options.digest()?,
            tls,
        })
    }
}

impl AgentUrl {
    fn parse(scheme: &str, place: &str, options: &mut Options) -> Result<Self, String> {
        let place = place.strip_suffix('/').unwrap_or(place);
        if let Some((_, path)) = place.split_once('/') {
            return Err(format!("has a path, /{path}; an agent's url has none"));
        }
        if place.contains('@') {
            return Err("has user information before the host; give a token as token_file=PATH".to_owned());
        }
        let servers = place.split(',').map(|text| server(text, AGENT_PORT)).collect::<Result<Vec<_>, _>>()?;
        let https = scheme == "https";
        let tls = if https { options.files()? } else { Tls::default() };
        if https {
            check_certifiable(&servers)?;
        }
        if https && tls.ca.is_none() {
            return Err("https needs ca, a PEM file of trusted certificates".to_owned());
        }
        let ttl = match options.duration("ttl")? {
            Some(ttl) if !TTLS.contains(&ttl) => {
                return Err(format!("option ttl is {ttl:?}; it must be from 1s to 1h"));
            }
            ttl => ttl.unwrap_or(TTL),
        };
        Ok(Self { servers, https, token: options.token()?, tls, ttl })
    }
}

fn server(text: &str, port: u16) -> Result<String, String> {
    if text.contains('@') {
        return Err("has user information before the host; give it as auth=digest:user:password".to_owned());
    }
    let with_port = if text.ends_with(']') || !text.contains(':') { format!("{text}:{port}") } else { text.to_owned() };
    pointsman_core::check_address(&with_port).map_err(|error| format!("server {error}"))?;
    Ok(with_port)
}

/// Checks that the servers can have certificates.
fn check_certifiable(servers: &[String]) -> Result<(), String> {
    match servers.iter().find(|server| crate::tls::server_name(server).is_none()) {
        Some(server) => Err(format!(
            "server {server:?} has no name that a certificate can have; write it in ASCII (IDNA), or as an IP address"
        )),
        None => Ok(()),
    }
}

/// Checks the root of what is not a service: go-micro-service takes all under the prefix for services, so neither lies in the other.
fn check_root(root: &str, prefix: &str) -> Result<String, String> {
    let example = format!("for example root=/apps{ROOT}");
    let Some(names) = root.strip_prefix('/').map(|names| names.trim_end_matches('/')).filter(|names| !names.is_empty())
    else {
        return Err(format!("option root is {root:?}; it is a path that begins with a slash, {example}"));
    };
    for name in names.split('/') {
        pointsman_core::check_name("root", name).map_err(|error| error.to_string())?;
    }
    let root = format!("/{names}");
    let lies_in = |path: &str, folder: &str| {
        path == folder || path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
    };
    if lies_in(&root, "/zookeeper") {
        return Err(format!("option root is {root}, which is ZooKeeper's own; choose another, {example}"));
    }
    if lies_in(&root, prefix) || lies_in(prefix, &root) {
        return Err(format!(
            "option root is {root}, but the services are in {prefix}: neither may lie in the other, {example}"
        ));
    }
    Ok(root)
}

fn check_prefix(prefix: &str) -> Result<String, String> {
    let prefix = prefix.trim_matches('/');
    if prefix.is_empty() {
        return Err("has no prefix; name the folder of the services, for example /micro-service".to_owned());
    }
    for (depth, name) in prefix.split('/').enumerate() {
        pointsman_core::check_name("prefix", name).map_err(|error| error.to_string())?;
        if depth == 0 && (name == "zookeeper" || name == "pointsman") {
            return Err(format!("the prefix /{name} is reserved; choose another, for example /micro-service"));
        }
    }
    Ok(format!("/{prefix}"))
}

/// The part after `?`, decoded; what has been asked for is taken out, what remains is unknown.
struct Options(Vec<(String, String)>);

impl Options {
    fn parse(query: &str) -> Result<Self, String> {
        let mut options = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_decoded(value).ok_or_else(|| format!("option {name} is not percent-encoded UTF-8"))?;
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

    fn session_timeout(&mut self) -> Result<Duration, String> {
        match self.duration("session_timeout")? {
            Some(timeout) if !SESSION_TIMEOUTS.contains(&timeout) => {
                Err(format!("option session_timeout is {timeout:?}; it must be from 100ms to 1h"))
            }
            timeout => Ok(timeout.unwrap_or(SESSION_TIMEOUT)),
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

    fn acl(&mut self) -> Result<Acl, String> {
        match self.take("acl").as_deref() {
            None | Some("open") => Ok(Acl::Open),
            Some("protected") => Ok(Acl::Protected),
            Some(_) => Err("option acl must be open or protected".to_owned()),
        }
    }

    fn folders(&mut self) -> Result<Folders, String> {
        match self.take("folders").as_deref() {
            None | Some("persistent") => Ok(Folders::Persistent),
            Some("container") => Ok(Folders::Container),
            Some(_) => Err("option folders must be persistent or container".to_owned()),
        }
    }

    fn digest(&mut self) -> Result<Option<String>, String> {
        let of = |text: &str| match text.trim_end().strip_prefix("digest:").unwrap_or(text.trim_end()) {
            credentials if credentials.contains(':') => Ok(Some(credentials.to_owned())),
            _ => Err("authentication must be digest:user:password".to_owned()),
        };
        match (self.take("auth"), self.take("auth_file")) {
            (None, None) => Ok(None),
            (Some(_), Some(_)) => Err("give either auth or auth_file".to_owned()),
            (Some(auth), None) => of(&auth),
            (None, Some(path)) => {
                of(&std::fs::read_to_string(&path).map_err(|error| format!("auth_file {path}: {error}"))?)
            }
        }
    }

    fn tls(&mut self) -> Result<Option<Tls>, String> {
        let switch = self.switch("tls")?;
        let tls = self.files()?;
        let named = tls.ca.is_some() || tls.cert.is_some() || tls.key.is_some();
        match switch {
            Some(false) | None if named => Err("ca, cert and key need tls=on".to_owned()),
            Some(true) if tls.ca.is_none() => Err("tls=on needs ca, a PEM file of trusted certificates".to_owned()),
            Some(true) => Ok(Some(tls)),
            _ => Ok(None),
        }
    }

    /// The files that TLS is made of.
    fn files(&mut self) -> Result<Tls, String> {
        let mut path = |name| self.take(name).map(PathBuf::from);
        let tls = Tls { ca: path("ca"), cert: path("cert"), key: path("key") };
        if tls.cert.is_some() == tls.key.is_some() { Ok(tls) } else { Err("cert and key go together".to_owned()) }
    }

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
            "zookeeper" => format!("{OF_ZOOKEEPER}, {COMMON}"),
            "http" => format!("{OF_AGENTS}, {COMMON}"),
            "https" => format!("{OF_AGENTS_TLS}, {COMMON}"),
            _ => COMMON.to_owned(),
        };
        Err(format!("unknown option {name:?}; known for {scheme}:// are {known}"))
    }
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
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

impl fmt::Debug for ZooKeeperUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "zookeeper://{}{}", self.servers.join(","), self.prefix)
    }
}

#[cfg(test)]
mod tests {
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
        assert_eq!((url.https, url.ttl.as_secs(), url.token.as_deref()), (false, 3, Some("geheim-geheim")));
        let Url::Agent(url) = Url::parse("https://h?ca=/x").unwrap().0 else { panic!() };
        assert!(url.https && url.ttl == TTL && url.tls.ca.is_some());
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
