//! From the configuration that is in force and a new one to what of it can be in force now (pure).
//!
//! What takes a restart stays as the old file has it: both files are merged as TOML, key by key as the settings say, and the merged file is read
//! as any other. So whatever is checked in a file is checked in what comes of two.

use pointsman::parse_duration;
use toml::{Table, Value as Toml};

use super::credentials::Tokens;
use super::section::bytes;
use super::setting::{About, Change, Value};
use super::{Checked, Config, NamedFile, SectionRegistries, settings_of_file};

/// Steps from the configuration in force to a new one.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Configuration in force afterwards: the new one, except for values that take a restart.
    pub(crate) config: Config,
    /// The keys of what is different and takes a restart.
    pub(crate) restart: Vec<String>,
    /// The files that are in force, and are to be read again when they change.
    pub(crate) files: Vec<NamedFile>,
}

impl Plan {
    /// Compares them. `complete` adds to what was read what comes from elsewhere.
    ///
    /// # Errors
    ///
    /// If what takes a restart, as it is, and what is new do not go together.
    pub(crate) fn new(
        old: &Config,
        new: &Config,
        tokens: &Tokens,
        complete: impl FnOnce(Config) -> Result<Config, String>,
    ) -> Result<Self, String> {
        let Merged { table, restart } = Merged::new(&old.source.table, &new.source.table);
        let path = new.source.path.as_deref();
        let Checked { config, problems, files } = Checked::read(path, table.to_string().as_bytes(), &[], tokens);
        let config = config.ok_or_else(|| {
            let errors = problems.iter().filter(|problem| problem.is_error()).map(|problem| &*problem.message);
            let errors: Vec<_> = errors.collect();
            format!("{} cannot change without a restart, and as it is: {}", restart.join(", "), errors.join("; "))
        })?;
        let mut plan = Self { config: complete(config)?, restart, files };
        plan.keep_inherited(old, new);
        Ok(plan)
    }

    /// Keeps the registries in which something is registered, and the generated code of the relay.
    fn keep_inherited(&mut self, old: &Config, new: &Config) {
        let Self { config, restart, .. } = self;
        if config.agent.is_some() {
            if new.agent.is_some() && old.agent_registry != new.agent_registry {
                restart.push("agent.registry".to_owned());
            }
            config.agent_registry.clone_from(&old.agent_registry);
        }
        let mut keep =
            |key: &str, old: &SectionRegistries, new: Option<&SectionRegistries>, kept: &mut SectionRegistries| {
                if new.is_some_and(|new| is_moved(old, new)) {
                    restart.push(format!("{key}.register_in"));
                }
                kept.register_in.clone_from(&old.register_in);
            };
        if let (Some(old), Some(kept)) = (&old.http, &mut config.http) {
            keep("http", &old.registries, new.http.as_ref().map(|new| &new.registries), &mut kept.registries);
        }
        if let (Some(old), Some(kept)) = (&old.mqtt, &mut config.mqtt) {
            keep("mqtt", &old.registries, new.mqtt.as_ref().map(|new| &new.registries), &mut kept.registries);
        }
    }
}

/// Whether a section would have to register itself in another registry.
fn is_moved(old: &SectionRegistries, new: &SectionRegistries) -> bool {
    old.register_in.is_some() && new.register_in.is_some() && old.register_in != new.register_in
}

/// Two files in one.
#[derive(Debug)]
struct Merged {
    table: Table,
    /// The paths of the keys that differ and take a restart.
    restart: Vec<String>,
}

impl Merged {
    /// Takes the new file, but for what takes a restart.
    fn new(old: &Table, new: &Table) -> Self {
        let (mut table, mut merged) = (new.clone(), Self { table: Table::new(), restart: Vec::new() });
        merged.keep(&settings_of_file(), "", old, &mut table);
        merged.table = table;
        merged
    }

    fn keep(&mut self, settings: &[About], under: &str, old: &Table, new: &mut Table) {
        let mut kept = Vec::new();
        for about in settings {
            let key = about.key;
            let (before, after) = (old.get(key), new.get(key));
            let is_kept = match about.change {
                // What is inherited is compared once all of the file is known.
                Change::AtOnce | Change::RestartOfInherited => false,
                Change::Restart => !are_alike(about, before, after),
                Change::RestartIfAdded => before.is_some() != after.is_some(),
                Change::With(other) => kept.contains(&other),
            };
            if is_kept {
                kept.push(key);
                if matches!(about.change, Change::Restart | Change::RestartIfAdded) {
                    self.restart.push(format!("{under}{key}"));
                }
                match before {
                    Some(value) => drop(new.insert(key.to_owned(), value.clone())),
                    None => drop(new.remove(key)),
                }
            } else if let (Value::Table(inner), Some(Toml::Table(old)), Some(Toml::Table(new))) =
                (&about.value, before, new.get_mut(key))
            {
                self.keep(inner, &format!("{under}{key}."), old, new);
            }
        }
    }
}

/// Whether two values mean the same, however they are written; an absent one is the default.
fn are_alike(about: &About, one: Option<&Toml>, other: Option<&Toml>) -> bool {
    let default = format!("it = {}", about.default).parse::<Table>().ok().and_then(|mut table| table.remove("it"));
    let meaning = |value: Option<&Toml>| value.or(default.as_ref()).map(|value| meaning(about, value));
    meaning(one) == meaning(other)
}

/// A value in the one form that all its forms have in common.
fn meaning(about: &About, value: &Toml) -> Toml {
    let number = |number: Option<u128>| number.and_then(|number| i64::try_from(number).ok()).map(Toml::Integer);
    let same = match (&about.value, value) {
        (Value::Duration(..), Toml::String(text)) => number(parse_duration(text).ok().map(|time| time.as_nanos())),
        (Value::Size(..), Toml::String(text)) => number(bytes(text).ok().map(|size| size as u128)),
        (Value::List(_), Toml::String(_)) => Some(Toml::Array(vec![value.clone()])),
        _ => None,
    };
    same.unwrap_or_else(|| value.clone())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use pointsman::mqtt::Settings;
    use pointsman_testkit::TlsFiles;

    fn config(lines: &str) -> Config {
        let text = format!("{lines}\n[[mqtt.route]]\nmatch = '^/login(/|$)'\nservice = 'cfgs'");
        let Checked { config, problems, .. } =
            Checked::read(Some(Path::new("/tmp/p.toml")), text.as_bytes(), &[], &Tokens::default());
        config.unwrap_or_else(|| panic!("{text}: {problems:#?}")).resolved(None).unwrap()
    }

    fn planned(old: &Config, new: &Config) -> Plan {
        Plan::new(old, new, &Tokens::default(), |config| config.resolved(None)).unwrap()
    }

    fn settings(config: &Config) -> &Settings {
        &config.mqtt.as_ref().unwrap().settings
    }

    #[test]
    fn of_the_agent_tokens_and_names_change_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            format!("'{}'", path.display())
        };
        let (read, write) = (file("r", "0123456789abcdef"), file("w", "fedcba9876543210"));
        let server = TlsFiles::create(folder.path()).server.display().to_string();
        let old = config("[agent]\n[mqtt]");
        let new = config(&format!(
            "[agent]\nhosts = 'a.example'\nread_token_file = {read}\nwrite_token_file = {write}\n[mqtt]"
        ));
        let plan = planned(&old, &new);
        assert_eq!((plan.restart, plan.config.agent), (vec![], new.agent));
        let other = config(&format!(
            "[agent]\nlisten = '127.0.0.1:1'\ntls_cert = '{server}'\ntls_key = '{server}'\nmax_connections = 9\nmax_watchers = 3\n\
             max_registrations = 4\nmax_claims = 5\nwrite_timeout = '5s'\ngo_micro_service = true\n[mqtt]"
        ));
        let plan = planned(&old, &other);
        let keys = [
            "listen",
            "tls_cert",
            "max_connections",
            "max_watchers",
            "max_registrations",
            "max_claims",
            "write_timeout",
            "go_micro_service",
        ];
        assert_eq!(plan.restart, keys.map(|key| format!("agent.{key}")));
        assert_eq!(plan.config.agent, old.agent);
        assert_eq!(planned(&old, &config("[mqtt]")).restart, ["agent"]);
    }

    #[test]
    fn of_the_proxy_what_it_serves_changes_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let server = TlsFiles::create(folder.path()).server;
        let file = |name: &str| {
            let path = folder.path().join(name);
            std::fs::copy(&server, &path).unwrap();
            format!("'{}'", path.display())
        };
        let (one, two) = (file("1"), file("2"));
        let http = |lines: &str| {
            config(&format!(
                "registry = 'zookeeper://h/p'\n[http]\n{lines}\n[[http.route]]\nmatch = '^/a'\nservice = 's'\n[mqtt]"
            ))
        };
        let keys = format!("tls_cert = {one}\ntls_key = {one}\nworkers = 2\nregister_as = 'x'\ncode = 'c'");
        let old = http(&keys);
        let other_files = keys.replace(&one, &two);
        let new = http(&format!(
            "{other_files}\ntrusted = '10.0.0.0/8'\nforwarded = 'both'\nreasons = true\naccess_log = 'json'\ndrain_timeout = '1s'\n\
             allow_addresses = '169.254.0.0/16'\nmax_head = '8KiB'\nkeep_alive = '1s'\nservices.s.protocol = 'http2'\n\
             [[http.route]]\nmatch = '^/b'\nanswer.status = 404"
        ));
        let plan = planned(&old, &new);
        assert_eq!((plan.restart, plan.config.http), (vec![], new.http));
        for (lines, key) in [
            (format!("{keys}\nlisten = '127.0.0.1:1'"), "listen"),
            (keys.replace("workers = 2", "workers = 3"), "workers"),
            ("workers = 2\nregister_as = 'x'\ncode = 'c'".to_owned(), "tls_cert"),
            (format!("{keys}\nmax_connections = 9"), "max_connections"),
            (keys.replace("'c'", "'d'"), "code"),
            (keys.replace("'x'", "'y'"), "register_as"),
            (format!("{keys}\nadvertise = 'h:1'"), "advertise"),
            (format!("{keys}\naccess_log = 'text'\naccess_log_file = 'access.log'"), "access_log_file"),
            (format!("{keys}\nhand_over = 'proxy.sock'"), "hand_over"),
        ] {
            let new = http(&format!("{lines}\ndrain_timeout = '1s'"));
            let plan = planned(&old, &new);
            assert_eq!(plan.restart, [format!("http.{key}")]);
            let applied = plan.config.http.clone().unwrap();
            assert_eq!(applied.settings.drain_timeout.as_secs(), 1, "{key}: the rest is applied");
            assert_eq!(planned(&plan.config, &old).restart, [""; 0], "{key}: and back again there is nothing to say");
        }
        assert_eq!(planned(&old, &config("registry = 'zookeeper://h/p'\n[mqtt]")).restart, ["http"]);
    }

    #[test]
    fn routes_limits_and_timeouts_change_at_once() {
        let old = config("[mqtt]");
        let new = config(
            "[mqtt]\nmax_in_flight = 7\nresponse_timeout = '1s'\ndrain_timeout = '2s'\ngroup = 'g'\nfilters = '/login/#'\n\
             [[mqtt.route]]\nmatch = '^/x/'\nservice = 'x'",
        );
        let plan = planned(&old, &new);
        assert_eq!(plan.restart, [""; 0]);
        let applied = settings(&plan.config);
        assert_eq!((applied.routes.len(), applied.max_in_flight, &*applied.group), (2, 7, "g"));
        assert_eq!((applied.response_timeout.as_secs(), applied.drain_timeout.as_secs()), (1, 2));
        assert_eq!(applied.filters, ["/login/#"]);
        assert_eq!(applied.code, settings(&old).code, "a generated code stays");
    }

    #[test]
    fn what_needs_a_restart_stays_and_is_named() {
        let old = config("registry = 'zookeeper://h/p'\n[mqtt]\ncode = 'a'\nregister_as = 'x'");
        for (line, key) in [
            ("listen = '127.0.0.1:1'", "mqtt.listen"),
            ("egress = 'mqtt://h'", "mqtt.egress"),
            ("topics = 'go-envelope'", "mqtt.topics"),
            ("advertise = 'h:1'", "mqtt.advertise"),
            ("max_packet = '2MiB'", "mqtt.max_packet"),
            ("session_expiry = '1s'", "mqtt.session_expiry"),
            ("state = 's'", "mqtt.state"),
        ] {
            let new = config(&format!(
                "registry = 'zookeeper://h/p'\n[mqtt]\ncode = 'a'\nregister_as = 'x'\nmax_in_flight = 7\n{line}"
            ));
            let plan = planned(&old, &new);
            assert_eq!(plan.restart, [key]);
            assert_eq!(settings(&plan.config).max_in_flight, 7, "{line}: the rest is applied");
            // And back again there is nothing to say.
            assert_eq!(planned(&plan.config, &old).restart, [""; 0], "{line}");
        }
        let other = config(
            "registry = 'zookeeper://h/q'\nmetrics.listen = '127.0.0.1:1'\n[mqtt]\ningress = 'mqtt://h'\nregister_as = 'y'",
        );
        let plan = planned(&old, &other);
        let keys = ["mqtt.ingress", "mqtt.register_as", "mqtt.code", "metrics", "mqtt.register_in"];
        assert_eq!(plan.restart, keys);
        let mqtt = plan.config.mqtt.as_ref().unwrap();
        assert_eq!(
            (mqtt.register_as.as_deref(), &*mqtt.settings.group, mqtt.settings.code.as_deref()),
            (Some("x"), "x", Some("a"))
        );
        assert_eq!(plan.config.metrics, None);
        let SectionRegistries { own, register_in, .. } = &mqtt.registries;
        assert_eq!((own.as_deref(), register_in.as_deref()), (Some("zookeeper://h/q"), Some("zookeeper://h/p")));
    }

    #[test]
    fn registries_of_services_change_at_once_and_others_with_a_restart() {
        let text = |agent: &str, http: &str, route: &str| {
            config(&format!(
                "registry = 'zookeeper://h/p'\n[agent]\n{agent}\n[http]\nregister_as = 'x'\n{http}\n[[http.route]]\nmatch = '^/'\n\
                 service = 's'\n{route}\n[mqtt]"
            ))
        };
        let old = text("", "", "");
        let new =
            text("", "registry = 'zookeeper://h/q'\nregister_in = 'zookeeper://h/p'", "registry = 'zookeeper://h/r'");
        let plan = planned(&old, &new);
        assert_eq!((plan.restart, plan.config.http), (vec![], new.http.clone()));
        let urls = |config: &Config| config.registries().into_iter().collect::<Vec<_>>();
        assert_eq!(urls(&new), ["zookeeper://h/p", "zookeeper://h/q", "zookeeper://h/r"]);
        // A route that names its section's registry names none.
        assert_eq!(text("", "", "registry = 'zookeeper://h/p'").http, old.http);
        let moved = text("registry = 'zookeeper://h/a'", "register_in = 'zookeeper://h/b'", "");
        let plan = planned(&old, &moved);
        assert_eq!(plan.restart, ["agent.registry", "http.register_in"]);
        assert_eq!(urls(&plan.config), ["zookeeper://h/p"], "what is not in force is not connected");
    }

    #[test]
    fn what_is_only_written_in_another_way_needs_no_restart() {
        let text = |lines: &str| config(&format!("registry = 'zookeeper://h/p'\n[mqtt]\ncode = 'a'\n{lines}"));
        let old = text("session_expiry = '60m'\nmax_packet = 268435456\negress = 'mqtt://h'");
        for same in [
            "session_expiry = '1h'\nmax_packet = '256MiB'\negress = ['mqtt://h']",
            "max_packet = '262144KiB'\negress = 'mqtt://h'\n# a comment",
        ] {
            assert_eq!(planned(&old, &text(same)).restart, [""; 0], "{same}");
        }
        assert_eq!(
            planned(&old, &text("session_expiry = '61m'\negress = 'mqtt://h'")).restart,
            ["mqtt.session_expiry"]
        );
    }

    #[test]
    fn files_that_stay_in_force_are_followed() {
        let folder = tempfile::tempdir().unwrap();
        let server = TlsFiles::create(folder.path()).server;
        let tls = format!("tls_cert = '{0}'\ntls_key = '{0}'", server.display());
        let old = config(&format!("[agent]\n{tls}\n[mqtt]"));
        // Its end takes a restart: until then the certificate is renewed.
        let plan = planned(&old, &config("[agent]\n[mqtt]"));
        assert_eq!(plan.restart, ["agent.tls_cert"]);
        assert_eq!(plan.files.iter().map(|file| &file.path).collect::<Vec<_>>(), [&server, &server]);
    }

    #[test]
    fn what_stays_and_what_is_new_must_go_together() {
        let token = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(token.path(), "0123456789abcdef").unwrap();
        let old =
            config(&format!("[agent]\nlisten = '0.0.0.0:1'\nwrite_token_file = '{}'\n[mqtt]", token.path().display()));
        // On loopback an agent needs no token; where it still listens it does.
        let plan = Plan::new(&old, &config("[agent]\nlisten = '127.0.0.1:1'\n[mqtt]"), &Tokens::default(), Ok);
        let reason = plan.unwrap_err();
        assert!(
            reason.starts_with("agent.listen cannot change without a restart") && reason.contains("is not on loopback"),
            "{reason}"
        );
    }
}
