//! `check`: what is wrong with a configuration file, or what it would run.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use pointsman::mqtt::{RouteRole, Settings};
use pointsman::{agent, proxy};
use serde::Serialize;

use crate::args::{Check, Global, Output};
use crate::config::http::conditions;
use crate::config::problem::NO_FILE;
use crate::config::{self, Checked, Config, Http, Mqtt, Problem, SectionRegistries, Surroundings, problem};
use crate::failure::Failure;
use crate::output::shown;
use crate::{Outcome, output};

/// `pointsman check FILE`.
pub(crate) fn run(args: &Check, global: &Global) -> Outcome {
    let file = args.file.as_deref();
    let read =
        |file: &Path| std::fs::read(file).map_err(|error| Failure::new(format!("read {}: {error}", file.display())));
    let bytes = file.map_or(Ok(Vec::new()), read)?;
    let around = Surroundings::new(&args.set, global);
    let Checked { config, problems, .. } = around.check(file, &bytes);
    let config = config.map(|config| around.complete(config)).transpose().map_err(Failure::new)?;
    let summary = config.as_ref().map(Summary::new);
    match global.output {
        Output::Json | Output::Yaml => {
            output::show(global.output, &Report::new(summary.as_ref(), &problems), [], |_| String::new())?;
        }
        Output::Table | Output::Wide | Output::Name => {
            problem::tell(&problems, file, global);
            if let Some(summary) = &summary {
                let name = file.map_or_else(|| NO_FILE.to_owned(), |file| shown(&file.display().to_string()));
                output::line(&format!("{name} is in order\n{}", summary.text()))?;
            }
        }
    }
    Ok(if config.is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What `-o json` writes.
#[derive(Debug, Serialize)]
struct Report<'a> {
    ok: bool,
    /// What makes the file unfit for use.
    problems: Vec<&'a Problem>,
    warnings: Vec<&'a Problem>,
    #[serde(flatten)]
    summary: Option<&'a Summary<'a>>,
}

impl<'a> Report<'a> {
    fn new(summary: Option<&'a Summary<'a>>, problems: &'a [Problem]) -> Self {
        let (problems, warnings) = problems.iter().partition(|problem| problem.is_error());
        Self { ok: summary.is_some(), problems, warnings, summary }
    }
}

/// What a file would run.
#[derive(Debug, Serialize)]
struct Summary<'a> {
    /// Of the sections that have none of their own. Here and below without its secrets.
    registry: Option<String>,
    agent: Option<AgentJson<'a>>,
    http: Option<Proxy<'a>>,
    mqtt: Option<Relay<'a>>,
    metrics: Option<String>,
}

#[derive(Debug, Serialize)]
struct AgentJson<'a> {
    listen: String,
    /// By which clients may reach it besides loopback names.
    hosts: &'a [String],
    tls: bool,
    /// Whether clients need a certificate.
    mutual_tls: bool,
    read_token: bool,
    write_token: bool,
    go_micro_service: bool,
    /// Null: the file's.
    registry: Option<String>,
    /// Whether it is itself the registry: what is registered is in its memory.
    is_registry: bool,
}

#[derive(Debug, Serialize)]
struct Proxy<'a> {
    listen: String,
    tls: bool,
    /// Whether clients need a certificate.
    mutual_tls: bool,
    workers: usize,
    /// Where its services are found; null: in the file's registry.
    registry: Option<String>,
    register_as: Option<&'a str>,
    /// Where it registers; null: where its services are found.
    register_in: Option<String>,
    /// Null: generated with each start.
    code: Option<&'a str>,
    /// Null: where it listens.
    advertise: Option<&'a str>,
    routes: Vec<ProxyRoute<'a>>,
}

#[derive(Debug, Serialize)]
struct ProxyRoute<'a> {
    name: &'a str,
    /// Everything that it matches, in a line.
    when: String,
    /// What is done with what matches.
    #[serde(flatten)]
    action: ProxyAction<'a>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum ProxyAction<'a> {
    Pass {
        service: &'a str,
        /// Null: the section's.
        registry: Option<&'a str>,
        algorithm: &'static str,
        role: &'static str,
        /// Shares in percent.
        split: BTreeMap<&'a str, u8>,
        mirror: Option<Mirror<'a>>,
    },
    Answer {
        /// The status.
        answer: u16,
    },
}

#[derive(Debug, Serialize)]
struct Mirror<'a> {
    service: &'a str,
    percent: u8,
}

#[derive(Debug, Serialize)]
struct Relay<'a> {
    /// Where the embedded broker listens.
    listen: Option<String>,
    ingress: Option<String>,
    /// Where services subscribe; empty: where senders publish.
    egress: Vec<String>,
    topics: &'static str,
    /// Where its services are found; null: in the file's registry.
    registry: Option<String>,
    register_as: Option<&'a str>,
    /// Where it registers; null: where its services are found.
    register_in: Option<String>,
    /// Null: generated with each start.
    code: Option<&'a str>,
    group: &'a str,
    routes: Vec<RouteJson<'a>>,
    /// The topic filters on the ingress broker.
    subscriptions: Vec<String>,
}

#[derive(Debug, Serialize)]
struct RouteJson<'a> {
    r#match: &'a str,
    service: &'a str,
    /// Null: the section's.
    registry: Option<&'a str>,
    algorithm: &'static str,
    role: &'static str,
}

impl<'a> Summary<'a> {
    /// Of a configuration whose sections know their registries.
    fn new(config: &'a Config) -> Self {
        let registry = config.registry.as_deref();
        Self {
            registry: registry.map(config::shown),
            agent: config.agent.as_ref().map(|settings| AgentJson::new(settings, config)),
            http: config.http.as_ref().map(|http| Proxy::new(http, registry)),
            mqtt: config.mqtt.as_ref().map(|mqtt| Relay::new(mqtt, registry)),
            metrics: config.metrics.map(|address| address.to_string()),
        }
    }

    fn text(&self) -> String {
        let mut lines = Vec::new();
        if let Some(registry) = &self.registry {
            let of_agent = self.agent.as_ref().is_some_and(|agent| agent.is_registry && agent.registry.is_none());
            let of_agent = if of_agent { " (the agent itself: it forgets with its end)" } else { "" };
            lines.push(format!("registry  {registry}{of_agent}"));
        }
        if let Some(agent) = &self.agent {
            lines.push(agent.line());
        }
        if let Some(proxy) = &self.http {
            lines.extend(proxy.lines());
        }
        if let Some(relay) = &self.mqtt {
            lines.extend(relay.lines());
        }
        if let Some(metrics) = &self.metrics {
            lines.push(format!("metrics   http://{metrics}/metrics"));
        }
        lines.iter().map(|line| shown(line)).collect::<Vec<_>>().join("\n")
    }
}

impl<'a> AgentJson<'a> {
    fn new(settings: &'a agent::Settings, config: &Config) -> Self {
        let own = config.agent_registry.as_deref();
        Self {
            listen: settings.listen.to_string(),
            hosts: &settings.hosts,
            tls: settings.tls.is_some(),
            mutual_tls: settings.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some()),
            read_token: settings.read_token.is_some(),
            write_token: settings.write_token.is_some(),
            go_micro_service: settings.go_micro_service,
            registry: other_than(own, config.registry.as_deref()),
            is_registry: own.is_some_and(|url| url.starts_with("memory:")),
        }
    }

    fn line(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        let mut line = format!("agent     {scheme}://{}/", self.listen);
        let who = match (self.mutual_tls, self.read_token, self.write_token) {
            (true, false, false) => ", for clients with a certificate",
            (true, ..) => ", for clients with a certificate and a token",
            (false, true, true) => ", for clients with the read token or the write token",
            (false, false, true) => ", for clients with the write token",
            (false, ..) => ", for everybody on this machine",
        };
        line += who;
        if !self.hosts.is_empty() {
            line += &format!(", as {}", self.hosts.join(", "));
        }
        if self.go_micro_service {
            line += ", with go-micro-service's three URLs";
        }
        if let Some(registry) = &self.registry {
            line += &format!(", of {registry}");
        }
        line
    }
}

impl<'a> Proxy<'a> {
    fn new(http: &'a Http, default: Option<&str>) -> Self {
        let Http { settings, registries, code, register_as, advertise, .. } = http;
        let tls = settings.tls.as_ref();
        Self {
            listen: settings.listen.to_string(),
            tls: tls.is_some(),
            mutual_tls: tls.is_some_and(|tls| tls.client_ca.is_some()),
            workers: settings.workers,
            registry: other_than(registries.own.as_deref(), default),
            register_as: register_as.as_deref(),
            register_in: elsewhere(registries),
            code: code.as_deref(),
            advertise: advertise.as_deref(),
            routes: settings.routes.iter().filter_map(ProxyRoute::new).collect(),
        }
    }

    fn lines(&self) -> Vec<String> {
        let scheme = if self.tls { "https" } else { "http" };
        let mut first = format!("http      {scheme}://{}/", self.listen);
        if self.mutual_tls {
            first += ", for clients with a certificate";
        }
        first += &places(self.registry.as_deref(), self.register_as, self.register_in.as_deref());
        if let Some(address) = self.advertise {
            first += &format!(" at {address}");
        }
        std::iter::once(first).chain(self.routes.iter().map(ProxyRoute::line)).collect()
    }
}

impl<'a> ProxyRoute<'a> {
    fn new(route: &'a proxy::Route) -> Option<Self> {
        let action = match &route.action {
            proxy::Action::Pass(pass) => ProxyAction::Pass {
                service: &pass.service,
                registry: pass.registry.as_deref(),
                algorithm: pass.algorithm.name(),
                role: pass.role.name(),
                split: pass.split.iter().map(|(service, share)| (&**service, *share)).collect(),
                mirror: pass.mirror.as_ref().map(|(service, percent)| Mirror { service, percent: *percent }),
            },
            proxy::Action::Answer(answer) => ProxyAction::Answer { answer: answer.status },
            _ => return None,
        };
        Some(Self { name: &route.name, when: conditions(&route.when), action })
    }

    fn line(&self) -> String {
        let mut line = format!("          {} -> ", self.when);
        match &self.action {
            ProxyAction::Pass { service, registry, algorithm, role, split, mirror } => {
                line += &format!("{service}{}, {algorithm}", in_registry(*registry));
                if *role == "master" {
                    line += ", master";
                }
                for (service, share) in split {
                    line += &format!(", {share}% to {service}");
                }
                if let Some(Mirror { service, percent }) = mirror {
                    line += &format!(", {percent}% mirrored to {service}");
                }
            }
            ProxyAction::Answer { answer } => line += &format!("answered with {answer}"),
        }
        line
    }
}

impl<'a> Relay<'a> {
    fn new(mqtt: &'a Mqtt, default: Option<&str>) -> Self {
        let Mqtt { settings, registries, code, register_as, listen, .. } = mqtt;
        let routes = settings.routes.iter().map(|route| RouteJson {
            r#match: &route.pattern,
            service: &route.service,
            registry: route.registry.as_deref(),
            algorithm: route.algorithm.name(),
            role: match route.role {
                RouteRole::Normal => "normal",
                RouteRole::Master => "master",
            },
        });
        Self {
            listen: listen.as_ref().map(|listen| listen.address.to_string()),
            ingress: settings.ingress.as_ref().map(ToString::to_string),
            egress: settings.egress.iter().map(ToString::to_string).collect(),
            topics: settings.topics.name(),
            registry: other_than(registries.own.as_deref(), default),
            register_as: register_as.as_deref(),
            register_in: elsewhere(registries),
            code: code.as_deref(),
            group: &settings.group,
            routes: routes.collect(),
            subscriptions: subscriptions(settings, code.is_some()),
        }
    }

    fn lines(&self) -> Vec<String> {
        let broker = match (&self.listen, &self.ingress) {
            (Some(listen), _) => format!("embedded broker at {listen}"),
            (None, Some(ingress)) => format!("broker {ingress}"),
            (None, None) => "no broker".to_owned(),
        };
        let mut first = format!("mqtt      {broker}");
        if !self.egress.is_empty() {
            first += &format!(", services at {}", self.egress.join(", "));
        }
        first += &format!(", topics {}", self.topics);
        first += &places(self.registry.as_deref(), self.register_as, self.register_in.as_deref());
        let mut lines = vec![first];
        for RouteJson { r#match, service, registry, algorithm, role } in &self.routes {
            let role = if *role == "master" { ", master" } else { "" };
            lines.push(format!("          {match} -> {service}{}, {algorithm}{role}", in_registry(*registry)));
        }
        lines.push(format!("          subscribes to {}", self.subscriptions.join(", ")));
        lines
    }
}

/// A registry without its secrets, if it is another than the one of whatever names none.
fn other_than(url: Option<&str>, default: Option<&str>) -> Option<String> {
    url.filter(|url| Some(*url) != default).map(config::shown)
}

/// Where a section registers, if not where its services are found.
fn elsewhere(registries: &SectionRegistries) -> Option<String> {
    other_than(registries.register_in.as_deref(), registries.own.as_deref())
}

/// Describes the registries of a section, as part of its line.
fn places(registry: Option<&str>, register_as: Option<&str>, register_in: Option<&str>) -> String {
    let mut text = registry.map(|registry| format!(", services in {registry}")).unwrap_or_default();
    if let Some(name) = register_as {
        text += &format!(", registers as {name}{}", in_registry(register_in));
    }
    text
}

fn in_registry(registry: Option<&str>) -> String {
    registry.map(|registry| format!(" in {registry}")).unwrap_or_default()
}

/// With a word in the place of a code that is generated with each start.
fn subscriptions(settings: &Settings, has_code: bool) -> Vec<String> {
    let filters = settings.subscriptions();
    if has_code {
        return filters;
    }
    filters.into_iter().map(|filter| filter.replace(&*settings.code(), "CODE")).collect()
}
