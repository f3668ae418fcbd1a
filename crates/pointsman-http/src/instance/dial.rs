//! A new connection to an instance, unless its address is one that must not be called.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use pointsman_net::tls;
use rustls_pki_types::ServerName;
use tokio::net::{TcpStream, lookup_host};
use tokio_rustls::TlsConnector;

use crate::io::{Io, prepare};
use crate::settings::Network;

/// How the instances of a service are called.
#[derive(Clone, Default)]
pub(crate) struct Secret {
    pub(crate) connector: Option<TlsConnector>,
    /// The name that certificates must have, if not that of the address.
    pub(crate) name: Option<String>,
}

/// Why there is no connection.
#[derive(Debug)]
pub(crate) enum NoConnection {
    /// It is said what is wrong with the address.
    Refused(String),
    Failed(io::Error),
    /// The TLS handshake failed: it is said why.
    Tls(String),
}

/// Connects to `host:port`. Takes as long as it takes.
pub(crate) async fn dial(address: &str, secret: &Secret, allowed: &[Network]) -> Result<Io, NoConnection> {
    let stream = connect(address, allowed).await?;
    prepare(&stream).map_err(NoConnection::Failed)?;
    let Some(connector) = &secret.connector else { return Ok(Io::Plain(stream)) };
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
    let name = secret.name.as_deref().unwrap_or(host).to_owned();
    let name = ServerName::try_from(name).map_err(|_| NoConnection::Refused("its host is no name".to_owned()))?;
    let failed = |error| NoConnection::Tls(tls::describe_io(&error));
    let stream = connector.connect(name, stream).await.map_err(failed)?;
    Ok(Io::Tls(Box::new(stream.into())))
}

async fn connect(address: &str, allowed: &[Network]) -> Result<TcpStream, NoConnection> {
    if let Ok(address) = address.parse::<SocketAddr>() {
        check(address.ip(), allowed).map_err(NoConnection::Refused)?;
        return TcpStream::connect(address).await.map_err(NoConnection::Failed);
    }
    let mut failure = NoConnection::Failed(io::ErrorKind::NotFound.into());
    for address in lookup_host(address).await.map_err(NoConnection::Failed)? {
        if let Err(reason) = check(address.ip(), allowed) {
            failure = NoConnection::Refused(reason);
            continue;
        }
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = NoConnection::Failed(error),
        }
    }
    Err(failure)
}

/// Whoever may write to the registry must not be able to make the proxy call what is only meant for its own host: a cloud's metadata
/// service above all, which hands out credentials at a link-local address.
pub(crate) fn check(address: IpAddr, allowed: &[Network]) -> Result<(), String> {
    let what = match address.to_canonical() {
        IpAddr::V4(address) if address.is_link_local() => "link-local",
        IpAddr::V4(address) if address.is_unspecified() || address.octets()[0] == 0 => "unspecified",
        IpAddr::V4(address) if address.is_multicast() || address.is_broadcast() => "multicast",
        // Alibaba Cloud's metadata service.
        IpAddr::V4(address) if address.octets() == [100, 100, 100, 200] => "of a metadata service",
        IpAddr::V6(address) if address.is_unicast_link_local() => "link-local",
        IpAddr::V6(address) if address.is_unspecified() => "unspecified",
        IpAddr::V6(address) if address.is_multicast() => "multicast",
        // Amazon's metadata service.
        IpAddr::V6(address) if address.segments() == [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254] => "of a metadata service",
        _ => return Ok(()),
    };
    if allowed.iter().any(|network| network.contains(address)) {
        return Ok(());
    }
    Err(format!("{address} is {what}, and not among allow_addresses"))
}

impl Secret {
    /// The TLS that a service is called with.
    pub(crate) fn new(config: rustls::ClientConfig, name: Option<String>) -> Self {
        Self { connector: Some(Arc::new(config).into()), name }
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secret").field("is_on", &self.connector.is_some()).field("name", &self.name).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_only_for_the_host_itself_is_not_called() {
        for (address, is_refused) in [
            ("169.254.169.254", true),
            ("::ffff:169.254.169.254", true),
            ("fe80::1", true),
            ("fd00:ec2::254", true),
            ("100.100.100.200", true),
            ("0.0.0.0", true),
            ("::", true),
            ("224.0.0.1", true),
            ("255.255.255.255", true),
            ("127.0.0.1", false),
            ("::1", false),
            ("10.0.0.1", false),
            ("fd00::1", false),
            ("8.8.8.8", false),
        ] {
            assert_eq!(check(address.parse().unwrap(), &[]).is_err(), is_refused, "{address}");
        }
        let allowed = ["169.254.0.0/16".parse().unwrap()];
        assert_eq!(check("169.254.1.1".parse().unwrap(), &allowed), Ok(()));
        assert!(check("fe80::1".parse().unwrap(), &allowed).unwrap_err().contains("allow_addresses"));
    }
}
