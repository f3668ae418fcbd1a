//! The section `[agent]`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use pointsman::agent::{Settings, Token};

use super::context::Context;
use super::credentials::{READ_TOKEN, Tokens, WRITE_TOKEN};
use super::paths::NamedFile;
use super::section::Section;
use super::setting::{About, Change, Draft, Setting, Value};
use super::tls::{self, TlsFiles};
use super::values::{self, MOST, address, count, flag, list, positive_duration, registry};

const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7480);

/// The section, while it is read.
#[derive(Debug)]
struct Agent {
    settings: Settings,
    /// The URL of its registry, if it has one of its own.
    registry: Option<String>,
    tls: TlsFiles,
}

fn settings() -> Vec<Setting<Agent>> {
    let mut settings = vec![
        address("listen")
            .default("\"127.0.0.1:7480\"")
            .restart()
            .help("Address and port to listen on. Off loopback it needs a `write_token_file` or a `client_ca`.")
            .to(|agent: &mut Agent, it| agent.settings.listen = it),
        registry("registry")
            .default("the file's, or `\"memory://\"`")
            .changes(Change::RestartOfInherited)
            .help(
                "URL of the agent's registry. Where the file names none, it is that of the other sections too \
                 ([several registries](http.md#several-registries)).",
            )
            .to(|agent: &mut Agent, it| agent.registry = Some(it)),
        list("hosts", "a name by which clients reach the agent", |_, text| host(text))
            .example("\"agent.example\"")
            .help(
                "Names by which clients reach the agent, besides loopback names. Off loopback, none admits every name.",
            )
            .to(|agent: &mut Agent, it| agent.settings.hosts = it.into_iter().flatten().collect()),
        token("read_token_file", READ_TOKEN, |tokens| tokens.read.as_deref())
            .help(
                "File with the token of clients that may only read: 16 to 1024 visible ASCII characters. Without it, \
                 `POINTSMAN_AGENT_READ_TOKEN` counts.",
            )
            .to(|agent: &mut Agent, it| agent.settings.read_token = Some(it)),
        token("write_token_file", WRITE_TOKEN, |tokens| tokens.write.as_deref())
            .help(
                "File with the token of clients that may read and write. Without it, `POINTSMAN_AGENT_WRITE_TOKEN` \
                 counts.",
            )
            .to(|agent: &mut Agent, it| agent.settings.write_token = Some(it)),
    ];
    settings.extend(tls::settings(|agent: &mut Agent| &mut agent.tls));
    settings.extend(limits());
    settings.push(
        flag("go_micro_service")
            .default("false")
            .restart()
            .help("Whether go-micro-service's three URLs are served as well.")
            .to(|agent: &mut Agent, it| agent.settings.go_micro_service = it),
    );
    settings
}

fn limits() -> [Setting<Agent>; 5] {
    [
        count("max_connections", 1, MOST)
            .default("20000")
            .restart()
            .help("Maximum number of connections; further ones wait to be accepted. Over HTTP/2 as many requests are served at a time.")
            .to(|agent: &mut Agent, it| agent.settings.limits.connections = it),
        count("max_watchers", 1, MOST)
            .default("15000, or three quarters of a lower `max_connections`")
            .example("15000")
            .restart()
            .help("Maximum number of streams of events.")
            .to(|agent: &mut Agent, it| agent.settings.limits.watchers = it),
        count("max_registrations", 1, MOST)
            .default("100000")
            .restart()
            .help("Maximum number of registrations that the agent holds.")
            .to(|agent: &mut Agent, it| agent.settings.limits.registrations = it),
        count("max_claims", 1, MOST)
            .default("100000")
            .restart()
            .help("Maximum number of claims that are neither released nor expired.")
            .to(|agent: &mut Agent, it| agent.settings.limits.claims = it),
        positive_duration("write_timeout")
            .default("\"3s\"")
            .restart()
            .help(
                "Deadline of each write to the registry. A write that misses it is not carried out later, and is \
                 answered with 503.",
            )
            .to(|agent: &mut Agent, it| agent.settings.limits.write_time = it),
    ]
}

/// The section: its settings, and the URL of the agent's registry, if it has one of its own.
pub(super) fn section() -> Draft<(Settings, Option<String>)> {
    let new = || Agent { settings: Settings::new(LISTEN), registry: None, tls: TlsFiles::default() };
    values::section("agent", settings(), new, |section, agent, _| finish(section, agent))
        .example("[agent]")
        .help("The agent: HTTP API, dashboard, registrations of other processes.")
}

fn finish(section: &mut Section<'_>, agent: Agent) -> (Settings, Option<String>) {
    let Agent { mut settings, registry, tls } = agent;
    settings.tls = tls.checked(section);
    check_watchers(section, &mut settings);
    for (key, reason) in settings.problems() {
        section.wrong(key, reason);
    }
    if !settings.is_on_loopback() && settings.write_token.is_some() && settings.tls.is_none() {
        section
            .warn("listen", "is not on loopback: without tls_cert and tls_key tokens go over the network as they are");
    }
    (settings, registry)
}

/// Streams must leave connections for everything else.
fn check_watchers(section: &mut Section<'_>, settings: &mut Settings) {
    let limits = &mut settings.limits;
    if !section.has("max_watchers") {
        limits.watchers = limits.watchers.min((limits.connections / 4 * 3).max(1));
    } else if limits.watchers >= limits.connections {
        section.warn(
            "max_watchers",
            "lets streams take every connection that max_connections allows: then no other request is answered",
        );
    }
}

/// A name or an IP address.
fn host(text: &str) -> Result<String, String> {
    let is_name = !text.is_empty()
        && text.len() <= 253
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    if is_name || text.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
        return Ok(text.trim_matches(['[', ']']).to_owned());
    }
    Err(format!("{text:?} is not a host; write for example \"agent.example\", without a scheme and without a port"))
}

/// The token of the file that the key names, or else of the environment.
fn token(key: &'static str, variable: &'static str, value: fn(&Tokens) -> Option<&str>) -> Draft<Token> {
    let read = move |section: &mut Section<'_>, context: &mut Context<'_>, about: &About| {
        if section.has(key) {
            return token_of_file(section, context, about);
        }
        section.known(key);
        match Token::new(value(context.tokens)?) {
            Ok(token) => Some(token),
            Err(reason) => {
                section.wrong(key, format!("is not named, and {variable} cannot be used instead: {reason}"));
                None
            }
        }
    };
    Draft::new(key, Value::File("a file with a token in it"), read).followed()
}

fn token_of_file(section: &mut Section<'_>, context: &mut Context<'_>, about: &About) -> Option<Token> {
    let read = section.text(about, |text| {
        context.files.push(NamedFile::new(context.folder.path(text)));
        let fail =
            |error: std::io::Error| format!("the file that it names, not the token itself, cannot be read: {error}");
        let token = std::fs::read_to_string(context.folder.path(text)).map_err(fail)?;
        Token::new(&token).map_err(|error| format!("the file cannot be used: {error}"))
    });
    if read.is_none() {
        // It may be the token itself.
        section.hide(about.key);
    }
    // A value without a problem takes its place, so that the other settings are checked too.
    read.or_else(|| Token::new(&format!("{:032x}", fastrand::u128(..))).ok())
}
