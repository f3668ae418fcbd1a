//! From the configuration that is in force and a new one to what can be done about it (pure).

use pointsman::agent;
use pointsman::mqtt::Settings;

use crate::config::{Config, Http, Mqtt, SectionRegistries};

/// What to do about a new configuration.
#[derive(Debug)]
pub(super) struct Plan {
    /// What is in force afterwards: the new configuration, but for what needs a restart.
    pub(super) config: Config,
    /// The keys of what is different and needs a restart.
    pub(super) restart: Vec<&'static str>,
}

impl Plan {
    /// Compares them.
    pub(super) fn new(old: &Config, new: &Config) -> Self {
        let mut restart = Vec::new();
        if old.agent.is_some() && new.agent.is_some() && old.agent_registry != new.agent_registry {
            restart.push("agent.registry");
        }
        if old.metrics != new.metrics {
            restart.push("metrics.listen");
        }
        let agent = match (&old.agent, &new.agent) {
            (Some(old), Some(new)) => Some(agent(old, new, &mut restart)),
            (None, None) => None,
            (old, _) => {
                restart.push("agent");
                old.clone()
            }
        };
        let http = match (&old.http, &new.http) {
            (Some(old), Some(new)) => Some(http(old, new, &mut restart)),
            (None, None) => None,
            (old, _) => {
                restart.push("http");
                old.clone()
            }
        };
        let mqtt = match (&old.mqtt, &new.mqtt) {
            (Some(old), Some(new)) => Some(mqtt(old, new, &mut restart)),
            (None, None) => None,
            (old, _) => {
                restart.push("mqtt");
                old.clone()
            }
        };
        let agent_registry = if agent.is_some() { old.agent_registry.clone() } else { None };
        let (registry, metrics) = (new.registry.clone(), old.metrics);
        Self { config: Config { registry, agent, agent_registry, http, mqtt, metrics }, restart }
    }
}

/// Tokens, names and certificates change at once.
fn agent(before: &agent::Settings, after: &agent::Settings, restart: &mut Vec<&'static str>) -> agent::Settings {
    let (limits, new_limits) = (before.limits, after.limits);
    for (differs, key) in [
        (before.listen != after.listen, "agent.listen"),
        (before.tls.is_some() != after.tls.is_some(), "agent.tls_cert"),
        (limits.connections != new_limits.connections, "agent.max_connections"),
        (limits.watchers != new_limits.watchers, "agent.max_watchers"),
        (limits.registrations != new_limits.registrations, "agent.max_registrations"),
        (limits.claims != new_limits.claims, "agent.max_claims"),
        (limits.write_time != new_limits.write_time, "agent.write_timeout"),
        (before.go_micro_service != after.go_micro_service, "agent.go_micro_service"),
    ] {
        if differs {
            restart.push(key);
        }
    }
    let mut settings = after.clone();
    (settings.listen, settings.limits, settings.go_micro_service) = (before.listen, limits, before.go_micro_service);
    if before.tls.is_some() != after.tls.is_some() {
        settings.tls.clone_from(&before.tls);
    }
    settings
}

/// Whether whoever registers would have to do it in another registry.
fn is_moved(old: &SectionRegistries, new: &SectionRegistries) -> bool {
    old.register_in.is_some() && new.register_in.is_some() && old.register_in != new.register_in
}

/// Where services are found changes at once; where the section itself is registered does not.
fn registries(old: &SectionRegistries, new: &SectionRegistries) -> SectionRegistries {
    SectionRegistries { register_in: old.register_in.clone(), ..new.clone() }
}

/// Routes, services, their registries, limits and certificates change at once.
fn http(old: &Http, new: &Http, restart: &mut Vec<&'static str>) -> Http {
    let (before, after) = (&old.settings, &new.settings);
    for (differs, key) in [
        (before.listen != after.listen, "http.listen"),
        (before.workers != after.workers, "http.workers"),
        (before.tls.is_some() != after.tls.is_some(), "http.tls_cert"),
        (before.limits.connections != after.limits.connections, "http.max_connections"),
        (old.code != new.code, "http.code"),
        (old.register_as != new.register_as, "http.register_as"),
        (is_moved(&old.registries, &new.registries), "http.register_in"),
        (old.advertise != new.advertise, "http.advertise"),
        (old.access_log_file != new.access_log_file, "http.access_log_file"),
        (old.hand_over != new.hand_over, "http.hand_over"),
    ] {
        if differs {
            restart.push(key);
        }
    }
    let mut settings = after.clone();
    (settings.listen, settings.workers) = (before.listen, before.workers);
    settings.limits.connections = before.limits.connections;
    if before.tls.is_some() != after.tls.is_some() {
        settings.tls.clone_from(&before.tls);
    }
    Http { settings, registries: registries(&old.registries, &new.registries), ..old.clone() }
}

fn mqtt(old: &Mqtt, new: &Mqtt, restart: &mut Vec<&'static str>) -> Mqtt {
    let (before, after) = (&old.settings, &new.settings);
    let mut note = |differs: bool, key| {
        if differs {
            restart.push(key);
        }
    };
    note(old.listen != new.listen, "mqtt.listen");
    note(before.ingress != after.ingress, "mqtt.ingress");
    note(before.egress != after.egress, "mqtt.egress");
    note(before.topics != after.topics, "mqtt.topics");
    // A generated code is another with each reading.
    note(old.code != new.code, "mqtt.code");
    note(old.register_as != new.register_as, "mqtt.register_as");
    note(is_moved(&old.registries, &new.registries), "mqtt.register_in");
    note(before.advertise != after.advertise, "mqtt.advertise");
    note(before.max_packet != after.max_packet, "mqtt.max_packet");
    note(before.session_expiry != after.session_expiry, "mqtt.session_expiry");
    note(before.state != after.state, "mqtt.state");
    let mut settings: Settings = after.clone();
    settings.ingress.clone_from(&before.ingress);
    settings.egress.clone_from(&before.egress);
    settings.topics = before.topics;
    settings.code = before.code.clone();
    settings.advertise.clone_from(&before.advertise);
    settings.max_packet = before.max_packet;
    settings.session_expiry = before.session_expiry;
    settings.state.clone_from(&before.state);
    if old.register_as != new.register_as {
        // It may come from there.
        settings.group.clone_from(&before.group);
    }
    Mqtt { settings, registries: registries(&old.registries, &new.registries), ..old.clone() }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Checked;
    use crate::config::credentials::Tokens;

    fn config(lines: &str) -> Config {
        let text = format!("{lines}\n[[mqtt.route]]\nmatch = '^/login(/|$)'\nservice = 'cfgs'");
        let Checked { config, problems, .. } =
            Checked::read(Path::new("/tmp/p.toml"), text.as_bytes(), &Tokens::default());
        config.unwrap_or_else(|| panic!("{text}: {problems:#?}")).resolved(None).unwrap()
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
        let old = config("[agent]\n[mqtt]");
        let new = config(&format!(
            "[agent]\nhosts = 'a.example'\nread_token_file = {read}\nwrite_token_file = {write}\n[mqtt]"
        ));
        let plan = Plan::new(&old, &new);
        assert_eq!((plan.restart, plan.config.agent), (vec![], new.agent));
        let other = config(&format!(
            "[agent]\nlisten = '127.0.0.1:1'\ntls_cert = {read}\ntls_key = {write}\nmax_connections = 9\nmax_watchers = 3\n\
             max_registrations = 4\nmax_claims = 5\nwrite_timeout = '5s'\ngo_micro_service = true\n[mqtt]"
        ));
        let plan = Plan::new(&old, &other);
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
        assert_eq!(Plan::new(&old, &config("[mqtt]")).restart, ["agent"]);
    }

    #[test]
    fn of_the_proxy_what_it_serves_changes_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, "").unwrap();
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
        let plan = Plan::new(&old, &new);
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
            let plan = Plan::new(&old, &new);
            assert_eq!(plan.restart, [format!("http.{key}")]);
            let applied = plan.config.http.clone().unwrap();
            assert_eq!(applied.settings.drain_timeout.as_secs(), 1, "{key}: the rest is applied");
            assert_eq!(Plan::new(&plan.config, &old).restart, [""; 0], "{key}: and back again there is nothing to say");
        }
        assert_eq!(Plan::new(&old, &config("registry = 'zookeeper://h/p'\n[mqtt]")).restart, ["http"]);
    }

    #[test]
    fn routes_limits_and_timeouts_change_at_once() {
        let old = config("[mqtt]");
        let new = config(
            "[mqtt]\nmax_in_flight = 7\nresponse_timeout = '1s'\ndrain_timeout = '2s'\ngroup = 'g'\nfilters = '/login/#'\n\
             [[mqtt.route]]\nmatch = '^/x/'\nservice = 'x'",
        );
        let plan = Plan::new(&old, &new);
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
            let plan = Plan::new(&old, &new);
            assert_eq!(plan.restart, [key]);
            assert_eq!(settings(&plan.config).max_in_flight, 7, "{line}: the rest is applied");
            // And back again there is nothing to say.
            assert_eq!(Plan::new(&plan.config, &old).restart, [""; 0], "{line}");
        }
        let other = config(
            "registry = 'zookeeper://h/q'\nmetrics.listen = '127.0.0.1:1'\n[mqtt]\ningress = 'mqtt://h'\nregister_as = 'y'",
        );
        let plan = Plan::new(&old, &other);
        let of_mqtt = ["listen", "ingress", "code", "register_as", "register_in"].map(|key| format!("mqtt.{key}"));
        assert_eq!(plan.restart, [&["metrics.listen".to_owned()][..], &of_mqtt].concat());
        let mqtt = plan.config.mqtt.as_ref().unwrap();
        assert_eq!((mqtt.register_as.as_deref(), &*mqtt.settings.group, &*mqtt.settings.code), (Some("x"), "x", "a"));
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
        let plan = Plan::new(&old, &new);
        assert_eq!((plan.restart, plan.config.http), (vec![], new.http.clone()));
        let urls = |config: &Config| config.registries().into_iter().collect::<Vec<_>>();
        assert_eq!(urls(&new), ["zookeeper://h/p", "zookeeper://h/q", "zookeeper://h/r"]);
        // A route that names its section's registry names none.
        assert_eq!(text("", "", "registry = 'zookeeper://h/p'").http, old.http);
        let moved = text("registry = 'zookeeper://h/a'", "register_in = 'zookeeper://h/b'", "");
        let plan = Plan::new(&old, &moved);
        assert_eq!(plan.restart, ["agent.registry", "http.register_in"]);
        assert_eq!(urls(&plan.config), ["zookeeper://h/p"], "what is not in force is not connected");
    }
}
