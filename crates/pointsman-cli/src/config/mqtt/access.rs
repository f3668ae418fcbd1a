//! The embedded broker in the section `[mqtt]`: where it listens, who may connect to it, and what users may do.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use pointsman::mqtt::broker::{AccessRule, Users};
use pointsman::proxy::Tls as ServerTls;

use super::super::is_loopback;
use super::super::paths::NamedFile;
use super::super::section::Section;
use super::super::setting::{Change, Draft, Setting, Value};
use super::super::values::{address, list, tables, text};
use super::{LISTEN, Reading, broker};

/// The embedded broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listen {
    pub(crate) address: SocketAddr,
    pub(crate) users: Option<UsersFile>,
    pub(crate) rules: Vec<AccessRule>,
    pub(crate) tls: Option<ServerTls>,
}

/// Who may connect to the embedded broker, by the file that says so.
#[derive(Debug, Clone)]
pub(crate) struct UsersFile {
    path: PathBuf,
    pub(crate) users: Users,
}

/// Only by their files: what is in them is read again when they change.
impl PartialEq for UsersFile {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path
    }
}

impl Eq for UsersFile {}

/// The embedded broker.
pub(super) fn settings() -> [Setting<Reading>; 2] {
    [
        address("listen")
            .default("\"127.0.0.1:7482\"")
            .restart()
            .help("Address and port of the embedded broker. Off loopback it needs a `users_file` or a `client_ca`.")
            .to(|it: &mut Reading, address| it.address = Some(address)),
        Draft::new("users_file", Value::File("a file of lines USER:HASH"), |section, context, about| {
            let folder = context.folder;
            section.text(about, |text| {
                context.files.push(NamedFile::new(folder.path(text)));
                users(&folder.readable(text)?)
            })
        })
        .followed()
        .changes(Change::RestartIfAdded)
        .example("\"users\"")
        .help("File with the users of the embedded broker and the hashes of their passwords, as `pointsman mqtt passwd` writes it.")
        .to(|it: &mut Reading, users| it.users = Some(users)),
    ]
}

/// What users may do besides what goes without saying.
pub(super) fn rules() -> Setting<Reading> {
    let filters = |key| list(key, "a topic filter", |_, text| Ok(text.to_owned()));
    let read = |filters: Vec<Option<String>>| filters.into_iter().flatten().collect();
    let settings = vec![
        text("user", "a user's name")
            .default("every user")
            .example("\"anna\"")
            .help("User that the rule is for.")
            .to(|rule: &mut AccessRule, user| rule.user = Some(user)),
        filters("publish")
            .example("\"lamp/{user}/#\"")
            .help("Filters of the topics to which the user may publish. `{user}` and `{client_id}`, as levels, stand for the client's own.")
            .to(move |rule: &mut AccessRule, filters| rule.publish = read(filters)),
        filters("subscribe")
            .example("\"reply/{client_id}/#\"")
            .help("Filters to which the user may subscribe, and to all that they cover.")
            .to(move |rule: &mut AccessRule, filters| rule.subscribe = read(filters)),
    ];
    let check = |section: &mut Section<'_>, rule: &mut AccessRule, _: &[AccessRule]| {
        for (key, reason) in rule.problems() {
            section.wrong(key, reason);
        }
    };
    tables("allow", settings, AccessRule::default, |_| AccessRule::default(), check)
        .example("[[mqtt.allow]]")
        .help("A rule: what a user of the embedded broker may do besides what goes without saying.")
        .to(|it: &mut Reading, rules| it.rules = rules)
}

/// The embedded broker, if there is to be one.
pub(super) fn listen(section: &mut Section<'_>, reading: &mut Reading) -> Option<Listen> {
    if section.has("ingress") {
        for key in broker::KEYS {
            if section.has(key) {
                section
                    .wrong(key, "is about the embedded broker, but ingress names a broker of your own; leave out one");
            }
        }
        return None;
    }
    let tls = std::mem::take(&mut reading.tls).checked(section);
    let Reading { address, users, rules, .. } = reading;
    if section.has("allow") && !section.has("users_file") && !section.has("client_ca") {
        section.warn("allow", "has no effect: without a users_file or a client_ca everything is allowed");
    }
    if address.is_some_and(|address| !is_loopback(address.ip())) {
        if !section.has("users_file") && !section.has("client_ca") {
            section.wrong(
                "listen",
                "is not on loopback, where every client could publish; name a users_file or a client_ca, or use 127.0.0.1",
            );
        } else if !section.has("tls_cert") {
            section.warn(
                "listen",
                "is not on loopback: without tls_cert and tls_key passwords go over the network as they are",
            );
        }
    }
    Some(Listen { address: address.unwrap_or(LISTEN), users: users.take(), rules: std::mem::take(rules), tls })
}

/// Who may connect to the embedded broker.
fn users(path: &Path) -> Result<UsersFile, String> {
    let fail = |error: &dyn std::fmt::Display| format!("{} cannot be used: {error}", path.display());
    let text = std::fs::read_to_string(path).map_err(|error| fail(&error))?;
    let users = Users::parse(&text).map_err(|error| fail(&error))?;
    Ok(UsersFile { path: path.to_owned(), users })
}
