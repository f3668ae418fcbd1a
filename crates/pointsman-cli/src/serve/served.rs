//! What is running: the agent, the embedded broker, the relay, the proxy.

use pointsman::Registry;
use pointsman::agent::{self, Agent};
use pointsman::mqtt::Relay;
use pointsman::mqtt::broker::{Broker, Figures, Options, Tls};
use pointsman::proxy::Proxy;
use pointsman_net::metrics::{Kind, MetricsText};
use tokio::task::JoinSet;

use super::access_log::LogFile;
use super::hand_over::{self, HandOver};
use super::questions::{Asking, Which};
use super::registries::Registries;
use crate::config::{Config, Http, Listen, Mqtt, Plan};
use crate::failure::{Failure, chain};

/// What a configuration file has brought to life.
#[derive(Debug)]
pub(super) struct Served {
    /// What is in force.
    config: Config,
    agent: Option<Agent>,
    /// The agent, while it waits for its registry: the others do not wait for that.
    starting: JoinSet<Result<Agent, Failure>>,
    broker: Option<Broker>,
    relay: Option<Relay>,
    proxy: Option<Proxy>,
    hand_over: Option<HandOver>,
    /// Who is to leave once this process serves.
    predecessor: Option<hand_over::Predecessor>,
    ready: bool,
    reloads: Reloads,
}

/// What has come to pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// Everything has been connected and registered once.
    Ready,
    /// Another process serves in this one's place.
    HandedOver,
}

#[derive(Debug, Default)]
struct Reloads {
    applied: u64,
    failed: u64,
    /// Whether the file, as it was read last, could not be applied.
    failing: bool,
}

impl Served {
    /// Starts everything. The agent comes first, so that there is somebody to ask whatever the others wait for, unless its registry does
    /// not answer; the broker comes before the relay, which sits in it. Cancelled, nothing stays.
    pub(super) async fn start(registries: &Registries, config: Config, asking: Asking) -> Result<Self, Failure> {
        let (mut agent, mut broker, mut relay, mut proxy) = (None, None, None, None);
        let (mut predecessor, mut starting) = (None, JoinSet::new());
        if let Some(settings) = &config.agent {
            let (registry, settings) = (registries.at(config.agent_registry.as_ref())?.clone(), settings.clone());
            let has_answered = registry.has_answered();
            starting.spawn(async move { start_agent(&registry, &settings, asking).await });
            if has_answered {
                agent = started(&mut starting).await?;
            }
        }
        if let Some(mqtt) = &config.mqtt {
            if let Some(listen) = &mqtt.listen {
                broker = Some(start_broker(listen, mqtt).await?);
            }
            relay = Some(start_relay(&registries.of(&mqtt.registries)?, mqtt, broker.as_ref()).await?);
        }
        if let Some(http) = &config.http {
            let (started, before) = start_proxy(&registries.of(&http.registries)?, http).await?;
            (proxy, predecessor) = (Some(started), before);
        }
        let reloads = Reloads::default();
        let hand_over = None;
        Ok(Self { config, agent, starting, broker, relay, proxy, hand_over, predecessor, ready: false, reloads })
    }

    /// Waits for what comes next. Cancellation loses nothing.
    pub(super) async fn next(&mut self) -> Result<Progress, Failure> {
        if !self.ready {
            self.ready().await?;
            return Ok(Progress::Ready);
        }
        match (&mut self.hand_over, &self.proxy) {
            (Some(hand_over), Some(proxy)) => hand_over.taken(|| proxy.listeners()).await,
            _ => std::future::pending().await,
        }
        Ok(Progress::HandedOver)
    }

    /// Waits until it is.
    async fn ready(&mut self) -> Result<(), Failure> {
        let Self { config, agent, starting, relay, proxy, .. } = self;
        let of_agent = async {
            if let Some(mut one) = started(starting).await? {
                // It was started with what the file said then.
                if let Some(settings) = &config.agent {
                    one.reload(settings.clone()).map_err(|error| Failure::new(chain(&error)))?;
                }
                *agent = Some(one);
            }
            Ok::<_, Failure>(())
        };
        let of_others = async {
            if let Some(relay) = relay {
                relay.ready().await?;
            }
            if let Some(proxy) = proxy {
                proxy.ready().await?;
            }
            Ok(())
        };
        tokio::try_join!(of_agent, of_others)?;
        self.ready = true;
        if let Some(path) = self.config.http.as_ref().and_then(|http| http.hand_over.as_deref()) {
            let fail = |error| Failure::new(format!("http.hand_over: listen on {}: {error}", path.display()));
            self.hand_over = Some(HandOver::listen(path).map_err(fail)?);
        }
        if let Some(predecessor) = &mut self.predecessor {
            predecessor.dismiss().await;
        }
        let register_as = self.config.mqtt.as_ref().and_then(|mqtt| mqtt.register_as.as_deref());
        tracing::info!(register_as, "ready");
        Ok(())
    }

    /// What is in force.
    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    /// Makes sure that what is to run does.
    pub(super) async fn look(&self) -> Result<(), Failure> {
        match &self.relay {
            Some(relay) => Ok(relay.figures().await.map(drop)?),
            None => Ok(()),
        }
    }

    /// Applies what can be applied of a new configuration, and says what cannot.
    /// Registries that it names for the first time are connected, and closed again if nothing comes of it; those that nobody uses
    /// any more are closed.
    pub(super) async fn reload(&mut self, plan: Plan, registries: &mut Registries) {
        let Plan { config, restart, .. } = plan;
        let applied = match registries.add(&config.registries()).await {
            Ok(()) => self.apply(&config, registries).await,
            Err(error) => Err(error),
        };
        if let Err(error) = applied {
            tracing::error!(error, "the configuration cannot be applied: everything stays as it is");
            registries.keep_only(&self.config.registries());
            self.reload_failed();
            return;
        }
        registries.keep_only(&config.registries());
        self.config = config;
        self.reloads.applied += 1;
        self.reloads.failing = false;
        tracing::info!("configuration reloaded");
        for key in restart {
            tracing::warn!(key, "takes effect after a restart");
        }
    }

    async fn apply(&mut self, config: &Config, registries: &Registries) -> Result<(), String> {
        let result = self.tell(config, registries).await;
        if result.is_err() {
            let before = self.config.clone();
            if let Err(error) = self.tell(&before, registries).await {
                tracing::error!(error, "not everything can go back to what it was told before");
            }
        }
        result
    }

    /// Tells each what is new; the first that cannot ends it.
    async fn tell(&mut self, config: &Config, registries: &Registries) -> Result<(), String> {
        let of = |section| registries.of(section).map_err(|failure| failure.message().to_owned());
        if let (Some(agent), Some(settings)) = (&mut self.agent, &config.agent) {
            agent.reload(settings.clone()).map_err(|error| chain(&error))?;
        }
        if let (Some(proxy), Some(http)) = (&self.proxy, &config.http) {
            let registries = of(&http.registries)?;
            proxy.reload_with(&http.settings, registries).await.map_err(|error| chain(&error))?;
        }
        if let (Some(broker), Some(mqtt)) = (&self.broker, &config.mqtt)
            && let Some(listen) = &mqtt.listen
        {
            broker
                .reload(&broker_options(listen, mqtt))
                .map_err(|error| format!("embedded broker: {}", chain(&error)))?;
        }
        if let (Some(relay), Some(mqtt)) = (&self.relay, &config.mqtt) {
            let registries = of(&mqtt.registries)?;
            relay.reload_with(&mqtt.settings, registries).await.map_err(|error| chain(&error))?;
        }
        Ok(())
    }

    /// Counts a configuration that could not be used.
    pub(super) fn reload_failed(&mut self) {
        self.reloads.failed += 1;
        self.reloads.failing = true;
    }

    /// What is counted, as Prometheus reads it, without the end.
    pub(super) async fn metrics(&self, which: Which, registries: &Registries) -> Result<String, String> {
        let mut text = String::new();
        if let (Some(agent), Which::All) = (&self.agent, which) {
            text = agent.metrics();
        }
        if let Some(relay) = &self.relay {
            text.push_str(&relay.metrics().await.map_err(|error| chain(&error))?);
        }
        if let Some(proxy) = &self.proxy {
            text.push_str(&proxy.metrics());
        }
        if let Some(broker) = &self.broker {
            write_broker(&mut text, &broker.handle().figures());
        }
        registries.write_metrics(&mut text);
        let Reloads { applied, failed, failing } = self.reloads;
        let mut metrics = MetricsText::new(&mut text, "pointsman");
        let help = "Whether everything has been connected and registered once";
        metrics.gauge("ready", help, u8::from(self.ready));
        let mut family = metrics.family("config_reloads", Kind::Counter, "Configuration files read again");
        family.sample([("result", "applied")], applied);
        family.sample([("result", "failed")], failed);
        let help = "Whether the file, as it is now, could not be applied";
        metrics.gauge("config_stale", help, u8::from(failing));
        metrics.family("build_info", Kind::Gauge, "The version").sample([("version", env!("CARGO_PKG_VERSION"))], 1);
        Ok(text)
    }

    /// Deregisters, sees through what is under way, and ends. The relay goes before the broker, which it needs for that; the agent
    /// goes last, so that whoever watches sees the others go. What is returned is how many registrations it leaves to the registry.
    pub(super) async fn close(self) -> usize {
        let mut hand_over = self.hand_over;
        if let Some(mut proxy) = self.proxy {
            proxy.deregister().await;
            // The next process may register with the same code now, however long the rest takes.
            if let Some(hand_over) = &mut hand_over {
                hand_over.left();
            }
            proxy.close().await;
        }
        if let Some(relay) = self.relay {
            relay.close().await;
        }
        if let Some(broker) = self.broker {
            broker.close().await;
        }
        drop(hand_over);
        let left = match self.agent {
            Some(agent) => agent.close().await,
            None => 0,
        };
        tracing::info!(left, "ended");
        left
    }
}

/// Waits for the agent that is being started, if there is one.
async fn started(starting: &mut JoinSet<Result<Agent, Failure>>) -> Result<Option<Agent>, Failure> {
    match starting.join_next().await {
        None => Ok(None),
        Some(started) => started.map_err(|error| Failure::new(format!("agent: {error}")))?.map(Some),
    }
}

/// Waits for the registry, however long that takes: it is connected to for good.
async fn start_agent(registry: &Registry, settings: &agent::Settings, asking: Asking) -> Result<Agent, Failure> {
    let agent = Agent::start(registry, settings.clone()).await.map_err(|error| Failure::new(chain(&error)))?;
    agent.add_metrics(move || {
        let asking = asking.clone();
        // While the others start or end there is nothing to add.
        async move { asking.metrics(Which::BesideAgent).await.unwrap_or_default() }
    });
    Ok(agent)
}

/// If a process serves already that is to hand over, goes on with its listeners.
async fn start_proxy(
    registries: &pointsman::Registries,
    http: &Http,
) -> Result<(Proxy, Option<hand_over::Predecessor>), Failure> {
    let (mut predecessor, listeners) = match &http.hand_over {
        None => (None, Vec::new()),
        Some(path) => {
            let fail = |error| Failure::new(format!("http.hand_over: {}: {error}", path.display()));
            hand_over::take(path)
                .await
                .map_err(fail)?
                .map_or_else(Default::default, |(one, listeners)| (Some(one), listeners))
        }
    };
    if let Some(other) =
        listeners.iter().find_map(|listener| listener.local_addr().ok().filter(|at| *at != http.settings.listen))
    {
        return Err(Failure::new(format!(
            "http.hand_over: the process that serves listens on {other}, and not on {}: end it first",
            http.settings.listen
        )));
    }
    let mut builder = Proxy::builder(registries.clone(), http.settings.clone()).listeners(listeners);
    if let Some(service) = &http.register_as {
        builder = builder.register_as(service);
    }
    if let Some(address) = &http.advertise {
        builder = builder.advertise(address);
    }
    if let Some(code) = &http.code {
        builder = builder.code(code.clone());
        if let Some(predecessor) = &predecessor {
            // Only one can be registered with a code.
            builder = builder.register_after(predecessor.left());
        }
    }
    builder = builder.access_log(match &http.access_log_file {
        None => Box::new(std::io::stdout()),
        Some(path) => {
            let fail = |error| Failure::new(format!("http.access_log_file: {}: {error}", path.display()));
            Box::new(LogFile::open(path).map_err(fail)?)
        }
    });
    let proxy = builder.start().await?;
    if let (Some(_), Some(predecessor)) = (&http.code, &mut predecessor) {
        predecessor.dismiss().await;
    }
    Ok((proxy, predecessor.filter(|_| http.code.is_none())))
}

async fn start_broker(listen: &Listen, mqtt: &Mqtt) -> Result<Broker, Failure> {
    let options = broker_options(listen, mqtt);
    Broker::bind(options).await.map_err(|error| Failure::new(format!("embedded broker: {}", chain(&error))))
}

fn broker_options(listen: &Listen, mqtt: &Mqtt) -> Options {
    let mut options = mqtt.broker_options(listen.address);
    options.users = listen.users.as_ref().map(|file| file.users.clone());
    options.rules.clone_from(&listen.rules);
    options.tls = listen.tls.clone().map(|tls| Tls { cert: tls.cert, key: tls.key, client_ca: tls.client_ca });
    options
}

async fn start_relay(
    registries: &pointsman::Registries,
    mqtt: &Mqtt,
    broker: Option<&Broker>,
) -> Result<Relay, Failure> {
    Ok(Relay::start(registries.clone(), mqtt.settings.clone(), mqtt.register_as.as_deref(), broker).await?)
}

fn write_broker(text: &mut String, figures: &Figures) {
    let mut text = MetricsText::new(text, "pointsman_broker");
    text.gauge("connections", "Connections now", figures.connections);
    text.gauge("sessions", "Sessions now, of clients that are connected or away", figures.sessions);
    text.gauge("subscriptions", "Subscriptions now", figures.subscriptions);
    text.gauge("retained", "Retained messages now", figures.retained);
    text.gauge("memory_bytes", "What messages take that wait or are retained", figures.memory);
    text.counter("messages_received", "Messages that clients have published", figures.messages_in);
    text.counter("messages_sent", "Messages given out to subscribers", figures.messages_out);
    text.counter("connections_refused", "Connections that were refused", figures.refused);
    text.counter("wrong_passwords", "Passwords that were wrong", figures.wrong_passwords);
    text.counter("denied_publishes", "Messages that their publishers might not publish", figures.denied_publishes);
    let denied = figures.denied_subscriptions;
    text.counter("denied_subscriptions", "Subscriptions that clients might not have", denied);
    text.counter("pauses", "How often a publisher had to wait for the relay", figures.paused);
    let mut family = text.family("messages_dropped", Kind::Counter, "Messages lost to a subscriber");
    for (reason, count) in [
        ("slow", figures.dropped_slow),
        ("queue-full", figures.dropped_queue_full),
        ("too-large", figures.dropped_too_large),
        ("expired", figures.dropped_expired),
        ("retained", figures.dropped_retained),
    ] {
        family.sample([("reason", reason)], count);
    }
}
