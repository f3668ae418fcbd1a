//! What is running: the agent, the embedded broker, the relay.

use std::fmt::Write as _;
use std::time::Duration;

use pointsman::Registry;
use pointsman::agent::{self, Agent};
use pointsman::mqtt::broker::{Broker, Figures, Options, Tls};
use pointsman::mqtt::{self, Relay};

use super::plan::Plan;
use super::questions::{Asking, Which};
use crate::config::{Config, Listen, Mqtt};
use crate::failure::{Failure, chain};

/// Between two attempts to start something while the registry is away.
const RETRY: Duration = Duration::from_secs(1);

/// What a configuration file has brought to life.
#[derive(Debug)]
pub(super) struct Served {
    /// What is in force.
    config: Config,
    agent: Option<Agent>,
    broker: Option<Broker>,
    relay: Option<Relay>,
    ready: bool,
    reloads: Reloads,
}

#[derive(Debug, Default)]
struct Reloads {
    applied: u64,
    failed: u64,
    /// Whether the file, as it was read last, could not be applied.
    failing: bool,
}

impl Served {
    /// Starts everything. The agent comes first, so that there is somebody to ask whatever the others wait for; the broker comes
    /// before the relay, which sits in it. Cancelled, nothing stays.
    pub(super) async fn start(registry: &Registry, config: Config, asking: Asking) -> Result<Self, Failure> {
        let (mut agent, mut broker, mut relay) = (None, None, None);
        if let Some(settings) = &config.agent {
            agent = Some(start_agent(registry, settings, asking).await?);
        }
        if let Some(mqtt) = &config.mqtt {
            if let Some(listen) = &mqtt.listen {
                broker = Some(start_broker(listen, mqtt).await?);
            }
            relay = Some(start_relay(registry, mqtt, broker.as_ref()).await?);
        }
        Ok(Self { config, agent, broker, relay, ready: false, reloads: Reloads::default() })
    }

    /// Whether everything has been connected and registered once.
    pub(super) fn is_ready(&self) -> bool {
        self.ready
    }

    /// Waits until it is. Cancellation loses nothing.
    pub(super) async fn ready(&mut self) -> Result<(), Failure> {
        if let Some(relay) = &mut self.relay {
            relay.ready().await?;
        }
        self.ready = true;
        let register_as = self.config.mqtt.as_ref().and_then(|mqtt| mqtt.register_as.as_deref());
        tracing::info!(register_as, "ready");
        Ok(())
    }

    /// Makes sure that what is to run does.
    pub(super) async fn look(&self) -> Result<(), Failure> {
        match &self.relay {
            Some(relay) => Ok(relay.figures().await.map(drop)?),
            None => Ok(()),
        }
    }

    /// Applies what can be applied of a new configuration, and says what cannot.
    pub(super) async fn reload(&mut self, new: Config) {
        let Plan { config, restart } = Plan::new(&self.config, &new);
        if let Err(error) = self.apply(&config).await {
            tracing::error!(error, "the configuration cannot be applied: everything stays as it is");
            self.reload_failed();
            return;
        }
        self.config = config;
        self.reloads.applied += 1;
        self.reloads.failing = false;
        tracing::info!("configuration reloaded");
        for key in restart {
            tracing::warn!(key, "takes effect after a restart");
        }
    }

    async fn apply(&mut self, config: &Config) -> Result<(), String> {
        if let (Some(agent), Some(settings)) = (&mut self.agent, &config.agent) {
            agent.reload(settings.clone()).map_err(|error| chain(&error))?;
        }
        if let (Some(relay), Some(mqtt)) = (&self.relay, &config.mqtt)
            && let Err(error) = relay.reload(&mqtt.settings).await
        {
            if let (Some(agent), Some(settings)) = (&mut self.agent, &self.config.agent)
                && let Err(error) = agent.reload(settings.clone())
            {
                tracing::error!(error = %chain(&error), "the agent cannot go back to what it was told before");
            }
            return Err(chain(&error));
        }
        Ok(())
    }

    /// Counts a configuration that could not be used.
    pub(super) fn reload_failed(&mut self) {
        self.reloads.failed += 1;
        self.reloads.failing = true;
    }

    /// What is counted, as Prometheus reads it, without the end.
    pub(super) async fn metrics(&self, which: Which) -> Result<String, String> {
        let mut text = String::new();
        if let (Some(agent), Which::All) = (&self.agent, which) {
            text = agent.metrics();
        }
        if let Some(relay) = &self.relay {
            text.push_str(&relay.metrics().await.map_err(|error| chain(&error))?);
        }
        if let Some(broker) = &self.broker {
            write_broker(&mut text, &broker.handle().figures());
        }
        let Reloads { applied, failed, failing } = self.reloads;
        let version = env!("CARGO_PKG_VERSION");
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "# HELP pointsman_ready Whether everything has been connected and registered once\n\
             # TYPE pointsman_ready gauge\n\
             pointsman_ready {}\n\
             # HELP pointsman_config_reloads Configuration files read again\n\
             # TYPE pointsman_config_reloads counter\n\
             pointsman_config_reloads_total{{result=\"applied\"}} {applied}\n\
             pointsman_config_reloads_total{{result=\"failed\"}} {failed}\n\
             # HELP pointsman_config_stale Whether the file, as it is now, could not be applied\n\
             # TYPE pointsman_config_stale gauge\n\
             pointsman_config_stale {}\n\
             # HELP pointsman_build_info The version\n\
             # TYPE pointsman_build_info gauge\n\
             pointsman_build_info{{version=\"{version}\"}} 1\n",
            u8::from(self.ready),
            u8::from(failing),
        );
        Ok(text)
    }

    /// Deregisters, sees through what is under way, and ends. The relay goes before the broker, which it needs for that; the agent
    /// goes last, so that whoever watches sees the others go. What is returned is how many registrations it leaves to the registry.
    pub(super) async fn close(self) -> usize {
        if let Some(relay) = self.relay {
            relay.close().await;
        }
        if let Some(broker) = self.broker {
            broker.close().await;
        }
        let left = match self.agent {
            Some(agent) => agent.close().await,
            None => 0,
        };
        tracing::info!(left, "ended");
        left
    }
}

/// Tries again while the registry is away.
async fn start_agent(registry: &Registry, settings: &agent::Settings, asking: Asking) -> Result<Agent, Failure> {
    let agent = loop {
        match Agent::start(registry, settings.clone()).await {
            Ok(agent) => break agent,
            Err(agent::Error::Registry(error)) if error.is_retryable() => {
                tracing::warn!(error = %chain(&error), "the agent waits for the registry");
                tokio::time::sleep(RETRY).await;
            }
            Err(error) => return Err(Failure::new(chain(&error))),
        }
    };
    agent.add_metrics(move || {
        let asking = asking.clone();
        // While the others start or end there is nothing to add.
        async move { asking.metrics(Which::BesideAgent).await.unwrap_or_default() }
    });
    Ok(agent)
}

async fn start_broker(listen: &Listen, mqtt: &Mqtt) -> Result<Broker, Failure> {
    let mut options = Options::new(listen.address);
    options.users = listen.users.as_ref().map(|file| file.users.clone());
    options.tls = listen.tls.clone().map(|(cert, key)| Tls { cert, key });
    options.max_packet = mqtt.settings.max_packet;
    Broker::start(options).await.map_err(|error| Failure::new(format!("embedded broker: {}", chain(&error))))
}

/// Tries again while the registry is away.
async fn start_relay(registry: &Registry, mqtt: &Mqtt, broker: Option<&Broker>) -> Result<Relay, Failure> {
    loop {
        match Relay::start(registry, mqtt.settings.clone(), mqtt.register_as.as_deref(), broker).await {
            Ok(relay) => return Ok(relay),
            Err(mqtt::Error::Registry(error)) if error.is_retryable() => {
                tracing::warn!(error = %chain(&error), "the relay waits for the registry");
                tokio::time::sleep(RETRY).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn write_broker(text: &mut String, figures: &Figures) {
    let mut gauge = |name: &str, help: &str, value: usize| {
        let name = format!("pointsman_broker_{name}");
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n");
    };
    gauge("connections", "Connections now", figures.connections);
    gauge("sessions", "Sessions now, of clients that are connected or away", figures.sessions);
    gauge("subscriptions", "Subscriptions now", figures.subscriptions);
    gauge("retained", "Retained messages now", figures.retained);
    let mut counter = |name: &str, help: &str, values: &[(&str, u64)]| {
        let name = format!("pointsman_broker_{name}");
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} counter\n");
        for (labels, value) in values {
            let _ = writeln!(text, "{name}_total{labels} {value}");
        }
    };
    counter("messages_received", "Messages that clients have published", &[("", figures.messages_in)]);
    counter("messages_sent", "Messages given out to subscribers", &[("", figures.messages_out)]);
    counter("connections_refused", "Connections that were refused", &[("", figures.refused)]);
    counter("pauses", "How often a publisher had to wait for the relay", &[("", figures.paused)]);
    counter(
        "messages_dropped",
        "Messages lost to a subscriber",
        &[
            ("{reason=\"slow\"}", figures.dropped_slow),
            ("{reason=\"queue-full\"}", figures.dropped_queue_full),
            ("{reason=\"too-large\"}", figures.dropped_too_large),
            ("{reason=\"expired\"}", figures.dropped_expired),
            ("{reason=\"retained\"}", figures.dropped_retained),
        ],
    );
}
