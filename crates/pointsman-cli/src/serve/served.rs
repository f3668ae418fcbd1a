//! What is running: the embedded broker and the relay.

use std::fmt::Write as _;
use std::time::Duration;

use pointsman::Registry;
use pointsman::mqtt::broker::{Broker, Figures, Options, Tls};
use pointsman::mqtt::{self, Relay};

use super::plan::Plan;
use crate::config::{Config, Listen, Mqtt};
use crate::failure::{Failure, chain};

/// Between two attempts to start the relay while the registry is away.
const RETRY: Duration = Duration::from_secs(1);

/// What a configuration file has brought to life.
#[derive(Debug)]
pub(super) struct Served {
    /// What is in force.
    config: Config,
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
    /// Starts everything. The broker comes first, because the relay sits in it. Cancelled, nothing stays.
    pub(super) async fn start(registry: &Registry, config: Config) -> Result<Self, Failure> {
        let (mut broker, mut relay) = (None, None);
        if let Some(mqtt) = &config.mqtt {
            if let Some(listen) = &mqtt.listen {
                broker = Some(start_broker(listen, mqtt).await?);
            }
            relay = Some(start_relay(registry, mqtt, broker.as_ref()).await?);
        }
        Ok(Self { config, broker, relay, ready: false, reloads: Reloads::default() })
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
        if let (Some(relay), Some(mqtt)) = (&self.relay, &config.mqtt)
            && let Err(error) = relay.reload(&mqtt.settings).await
        {
            tracing::error!(error = %chain(&error), "the configuration cannot be applied: everything stays as it is");
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

    /// Counts a configuration that could not be used.
    pub(super) fn reload_failed(&mut self) {
        self.reloads.failed += 1;
        self.reloads.failing = true;
    }

    /// Everything that is counted, as Prometheus reads it.
    pub(super) async fn metrics(&self) -> Result<String, String> {
        let mut text = String::new();
        if let Some(relay) = &self.relay {
            text = relay.metrics().await.map_err(|error| chain(&error))?;
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
             pointsman_build_info{{version=\"{version}\"}} 1\n\
             # EOF\n",
            u8::from(self.ready),
            u8::from(failing),
        );
        Ok(text)
    }

    /// Deregisters, sees through what is under way, and ends. The broker goes last: the relay needs it for that.
    pub(super) async fn close(self) {
        if let Some(relay) = self.relay {
            relay.close().await;
        }
        if let Some(broker) = self.broker {
            broker.close().await;
        }
        tracing::info!("ended");
    }
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
