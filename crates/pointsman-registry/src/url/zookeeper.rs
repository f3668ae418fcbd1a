//! The URL of a registry on ZooKeeper.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::{Options, server};
use crate::tls::Tls;

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
    /// The kind of a service's folder.
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

/// The options that only these URLs know.
pub(super) const OPTIONS: &str = "session_timeout, auth, auth_file, acl, folders, tls, ca, cert, key, root";
const PORT: u16 = 2181;
/// Where Pointsman stores in ZooKeeper what is not a service or an instance, unless told otherwise.
pub(crate) const ROOT: &str = "/pointsman";
const SESSION_TIMEOUT: Duration = Duration::from_secs(10);
/// Shorter, and no heartbeat is in time; longer, and a dead master is never replaced. ZooKeeper, which counts it in
/// milliseconds of 31 bits, keeps to narrower bounds of its own.
const SESSION_TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);

impl ZooKeeperUrl {
    pub(super) fn parse(place: &str, options: &mut Options) -> Result<Self, String> {
        let (servers, prefix) = place.split_once('/').unwrap_or((place, ""));
        let servers = servers.split(',').map(|text| server(text, PORT)).collect::<Result<Vec<_>, _>>()?;
        let tls = options.tls(&servers)?;
        let prefix = check_prefix(prefix)?;
        let (acl, digest) = (options.acl()?, options.digest()?);
        if acl == Acl::Protected && digest.is_none() {
            return Err("acl=protected needs auth=digest:user:password, or auth_file".to_owned());
        }
        Ok(Self {
            servers,
            root: check_root(options.take("root").as_deref().unwrap_or(ROOT), &prefix)?,
            prefix,
            session_timeout: options.session_timeout()?,
            acl,
            folders: options.folders()?,
            digest,
            tls,
        })
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

impl Options {
    fn tls(&mut self, servers: &[String]) -> Result<Option<Tls>, String> {
        match self.switch("tls")? {
            Some(true) => self.tls_files("tls=on", servers).map(Some),
            _ if self.0.iter().any(|(name, _)| ["ca", "cert", "key"].contains(&&**name)) => {
                Err("ca, cert and key need tls=on".to_owned())
            }
            _ => Ok(None),
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
}

impl fmt::Debug for ZooKeeperUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "zookeeper://{}{}", self.servers.join(","), self.prefix)
    }
}
