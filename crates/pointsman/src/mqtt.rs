//! MQTT: the relay that balances messages over instances, and what services and senders use.

mod relay;

pub use pointsman_mqtt::relay::{Figures, Invalid, Route, RouteRole, Settings, Topics};
pub use pointsman_mqtt::{BrokerUrl, Credentials, InvalidUrl, broker};
pub use relay::Relay;

/// Why something of MQTT cannot be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The registry says no.
    #[error(transparent)]
    Registry(#[from] crate::Error),
    /// The relay cannot run as it is told to.
    #[error(transparent)]
    Relay(#[from] pointsman_mqtt::relay::Error),
    /// The relay's code or the name it registers under cannot be.
    #[error(transparent)]
    Instance(#[from] crate::InvalidInstance),
}
