//! Why there is no session: found out by connections of our own, as the client crate does not say it.

use std::io;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use zookeeper_client::Error as ZkError;

use crate::tls::Connector;
use crate::url::ZooKeeperUrl;

/// Why no server could be connected to, one by one: the client itself says only that there was none.
pub(super) async fn explain(settings: &ZooKeeperUrl, error: &ZkError) -> String {
    let secure = settings.tls.as_ref().and_then(|files| Connector::new(files).ok());
    let reasons = join_all(settings.servers.iter().map(|server| {
        let secure = secure.as_ref();
        async move {
            let reason = match within_limit(TcpStream::connect(server)).await {
                Ok(stream) => match secure {
                    Some(connector) => explain_tls(connector, server, stream).await,
                    None => "accepts connections, but no session could be made (is it ZooKeeper, and has it a quorum?)"
                        .to_owned(),
                },
                Err(error) => error.to_string(),
            };
            format!("{server}: {reason}")
        }
    }));
    let reasons = reasons.await;
    match error {
        ZkError::NoHosts | ZkError::Timeout => reasons.join("; "),
        error => format!("{error} ({})", reasons.join("; ")),
    }
}

/// Why there is no session with a server that speaks TLS: how far a handshake of our own comes.
async fn explain_tls(connector: &Connector, server: &str, stream: TcpStream) -> String {
    let talking = async {
        let mut stream = within_limit(connector.connect(server, stream)).await?;
        // A client certificate is refused only after the handshake, which is over for us by then. Otherwise the server says nothing.
        within_limit(stream.read_u8()).await
    };
    match talking.await {
        Err(error) => connector.explain(&error, server).unwrap_or_else(|| match error.kind() {
            io::ErrorKind::TimedOut => {
                "speaks TLS, but no session could be made (is it ZooKeeper, and has it a quorum?)".to_owned()
            }
            _ => format!("accepts connections, but TLS fails: {error}"),
        }),
        Ok(_) => "speaks TLS, but is not ZooKeeper".to_owned(),
    }
}

/// Waits for one step of what explains a failure.
async fn within_limit<T>(step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let limit = Duration::from_millis(500);
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no answer");
    tokio::time::timeout(limit, step).await.map_err(late)?
}
