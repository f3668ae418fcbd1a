//! The section `[http]`.
//!
//! | question | file |
//! |---|---|
//! | what it says of the whole | here |
//! | what a `[[http.route]]` may say | `config/http/route.rs` |
//! | what a `[http.services.NAME]` may say | `config/http/service.rs` |

mod route;
mod service;

use std::path::PathBuf;
use std::sync::Arc;

use pointsman::proxy::{AccessLog, Network, Settings, Tls};
use pointsman::{check_address, check_name};

use super::document::Document;
use super::paths::{Folder, NamedFile};
use super::problem::Fault;
use super::registries::{SectionRegistries, Urls};
use super::section::Section;
use super::tls::{self, TlsFiles};

pub(crate) use self::route::conditions;

/// What the file says of HTTP.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Http {
    pub(crate) settings: Settings,
    /// Where its services are found, and where it registers.
    pub(crate) registries: SectionRegistries,
    /// The code that the proxy registers with; `None`: one is generated with each start.
    pub(crate) code: Option<Arc<str>>,
    /// The service that the proxy itself registers as.
    pub(crate) register_as: Option<String>,
    /// `HOST:PORT` at which clients reach it, as it registers it; `None`: where it listens.
    pub(crate) advertise: Option<String>,
    /// Where the access log goes; `None`: to the standard output.
    pub(crate) access_log_file: Option<PathBuf>,
    /// The Unix socket by which the next process takes over the listeners.
    pub(crate) hand_over: Option<PathBuf>,
}

/// What the address of a Unix socket can hold on Linux, with the zero at its end (`unix(7)`).
const SOCKET_PATH_BYTES: usize = 108;

/// Reads the section. What is wrong with it goes to `faults`; then what is returned is not fit for use. Certificates, which are to be
/// read again when they change, are added to `files`.
pub(super) fn read(
    mut section: Section<'_>,
    document: &Document<'_>,
    (folder, urls): (&Folder, &mut Urls<'_>),
    faults: &mut Vec<Fault>,
    files: &mut Vec<NamedFile>,
) -> Http {
    let mut settings = Settings::new();
    set(&mut settings.listen, section.address("listen", "127.0.0.1:7481"));
    set(&mut settings.workers, section.count("workers"));
    let tls = tls::read(&mut section, folder, files);
    settings.tls = tls.map(|TlsFiles { cert, key, client_ca }| Tls { cert, key, client_ca });
    settings.trusted = networks(&mut section, "trusted");
    set(
        &mut settings.forwarded,
        section.text("forwarded", "\"x-forwarded\", \"rfc7239\", \"both\" or \"off\"", str::parse),
    );
    set(&mut settings.reasons, section.flag("reasons"));
    set(&mut settings.access_log, section.text("access_log", "\"off\", \"text\" or \"json\"", str::parse));
    settings.allow_addresses = networks(&mut section, "allow_addresses");
    limits(&mut section, &mut settings);
    let access_log_file = section.text("access_log_file", "a file", |text| in_a_folder(folder, text));
    if section.has("access_log_file") && settings.access_log == AccessLog::Off {
        section.warn("access_log_file", "has no effect: access_log is off; say \"text\" or \"json\"");
    }
    let hand_over = section.text("hand_over", "the path of a socket", |text| {
        let path = in_a_folder(folder, text)?;
        let len = path.as_os_str().len();
        if len < SOCKET_PATH_BYTES {
            Ok(path)
        } else {
            Err(format!("{} has {len} bytes; a socket's path has less than {SOCKET_PATH_BYTES}", path.display()))
        }
    });
    let (code, register_as, advertise) = registration(&mut section, &settings);
    let mut registries = urls.of_section(&mut section);
    route::read(&mut section, &mut settings, urls, &mut registries);
    service::read(&mut section, &mut settings, folder, files);
    check(&mut section, document, &settings);
    faults.extend(section.finish());
    Http { settings, registries, code, register_as, advertise, access_log_file, hand_over }
}

/// Puts a value in the place of a default, if there is one.
fn set<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}

/// A path to something that is, or will be, in a folder that is there.
fn in_a_folder(folder: &Folder, text: &str) -> Result<PathBuf, String> {
    let path = folder.path(text);
    if path.is_dir() {
        return Err(format!("{} is a folder", path.display()));
    }
    match path.parent() {
        Some(parent) if parent.is_dir() => Ok(path),
        _ => Err(format!("{} cannot be: its folder is not there", path.display())),
    }
}

fn networks(section: &mut Section<'_>, key: &'static str) -> Vec<Network> {
    let networks = section.texts(key, "a network, such as \"10.0.0.0/8\"", str::parse);
    networks.unwrap_or_default().into_iter().flatten().collect()
}

fn limits(section: &mut Section<'_>, settings: &mut Settings) {
    let limits = &mut settings.limits;
    set(&mut limits.connections, section.count("max_connections"));
    set(&mut limits.head, section.size("max_head", "32KiB"));
    set(&mut limits.fields, section.count("max_headers"));
    set(&mut limits.head_time, section.duration("head_timeout", "10s"));
    set(&mut limits.keep_alive, section.duration("keep_alive", "60s"));
    set(&mut limits.streams, section.number("max_streams"));
    set(&mut settings.drain_timeout, section.duration("drain_timeout", "30s"));
}

type Registration = (Option<Arc<str>>, Option<String>, Option<String>);

/// As what the proxy itself registers.
fn registration(section: &mut Section<'_>, settings: &Settings) -> Registration {
    let name =
        |what| move |text: &str| check_name(what, text).map_err(|error| error.to_string()).map(|()| text.to_owned());
    let code = section.text("code", "a name, such as a UUID", name("code")).map(Arc::from);
    let register_as = section.text("register_as", "a service's name", name("service"));
    let advertise = section.text("advertise", "HOST:PORT, where clients reach the proxy", |text| {
        check_address(text).map_err(|error| error.to_string()).map(|()| text.to_owned())
    });
    if !section.has("register_as") {
        for key in ["code", "advertise"] {
            if section.has(key) {
                section.warn(key, "has no effect: without register_as the proxy does not register");
            }
        }
    } else if settings.listen.ip().is_unspecified() && !section.has("advertise") {
        section.warn(
            "register_as",
            "registers an address that nobody can call, since listen names none; say advertise = \"HOST:PORT\"",
        );
    }
    (code, register_as, advertise)
}

/// What the proxy has to say of its settings.
fn check(section: &mut Section<'_>, document: &Document<'_>, settings: &Settings) {
    let sound = section.is_sound();
    let mut faults = Vec::new();
    for problem in settings.problems() {
        let key = problem.key.as_str();
        // Routes that are misspelt, or of the wrong type, are told as that.
        let unfounded = key == "route" && (section.is_misspelt(key) || (section.has(key) && !sound));
        if !unfounded {
            let path = format!("http.{key}");
            faults.push(Fault::error(&*path, document.span(&path), format!("{path}: {}", problem.reason)));
        }
    }
    section.absorb(faults);
}

#[cfg(test)]
mod tests;
