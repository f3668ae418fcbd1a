//! Why there is no session: found out by connections of our own, as the client crate does not say it.

use std::io;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use zookeeper_client::Error as ZkError;

use crate::tls::Connector;
use crate::url::ZooKeeperUrl;
use crate::wait::{Obstacle, Outlook, outlook};

/// Why no server could be connected to, one by one: the client itself says only that there was none.
pub(super) async fn explain(settings: &ZooKeeperUrl, error: &ZkError) -> Obstacle {
    if matches!(error, ZkError::AuthFailed) {
        let reason = match settings.digest {
            Some(_) => "the registry refuses the user and the password of auth=digest:",
            None => {
                "the registry wants a user and a password, and none are given: set auth=digest:USER:PASSWORD, or auth_file"
            }
        };
        return Obstacle::new(Outlook::Refused, reason);
    }
    let secure = settings.tls.as_ref().and_then(|files| Connector::new(files).ok());
    let obstacles = join_all(settings.servers.iter().map(|server| {
        let secure = secure.as_ref();
        async move {
            let obstacle = match within_limit(TcpStream::connect(server)).await {
                Ok(stream) => match secure {
                    Some(connector) => explain_tls(connector, server, stream).await,
                    None => explain_plain(stream).await,
                },
                Err(error) => Obstacle::new(outlook(&error, server), error.to_string()),
            };
            Obstacle { reason: format!("{server}: {obstacle}").into(), ..obstacle }
        }
    }));
    let obstacles = obstacles.await;
    // As long as one of them may come, a session may.
    let outlook = obstacles.iter().map(|obstacle| obstacle.outlook).min().unwrap_or(Outlook::MayPass);
    let reasons = obstacles.iter().map(|obstacle| &*obstacle.reason).collect::<Vec<_>>().join("; ");
    match error {
        ZkError::NoHosts | ZkError::Timeout => Obstacle::new(outlook, reasons),
        error => Obstacle::new(Outlook::MayPass, format!("{error} ({reasons})")),
    }
}

/// Why there is no session with a server that accepts connections: what it says to a command that each ZooKeeper has an answer to.
async fn explain_plain(mut stream: TcpStream) -> Obstacle {
    let asking = async {
        stream.write_all(b"srvr").await?;
        let mut answer = vec![0; 256];
        let read = match within_limit(stream.read(&mut answer)).await {
            // One that waits for the end of a line is no ZooKeeper.
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                stream.write_all(b"\r\n\r\n").await?;
                within_limit(stream.read(&mut answer)).await?
            }
            read => read?,
        };
        answer.truncate(read);
        io::Result::Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    match asking.await {
        Ok(answer) if answer.contains("not currently serving") => {
            Obstacle::new(Outlook::MayPass, "ZooKeeper is there and serves nobody now (has it a quorum?)")
        }
        Ok(answer) if !answer.is_empty() && !answer.contains("ookeeper") && !answer.contains("whitelist") => {
            let begins = answer.lines().next().unwrap_or_default();
            Obstacle::new(Outlook::NoServer, format!("another kind of server is there: it answers {begins:?}"))
        }
        _ => Obstacle::new(
            Outlook::MayPass,
            "accepts connections, but no session could be made (is it ZooKeeper, and has it a quorum?)",
        ),
    }
}

/// Why there is no session with a server that speaks TLS: how far a handshake of our own comes.
async fn explain_tls(connector: &Connector, server: &str, stream: TcpStream) -> Obstacle {
    let talking = async {
        let mut stream = within_limit(connector.connect(server, stream)).await?;
        // A client certificate is refused only after the handshake, which is over for us by then. Otherwise the server says nothing.
        within_limit(stream.read_u8()).await
    };
    match talking.await {
        Err(error) => match connector.explain(&error, server) {
            Some(refusal) => Obstacle::new(Outlook::Refused, refusal),
            None if error.kind() == io::ErrorKind::TimedOut => Obstacle::new(
                Outlook::MayPass,
                "speaks TLS, but no session could be made (is it ZooKeeper, and has it a quorum?)",
            ),
            None if error.kind() == io::ErrorKind::UnexpectedEof => Obstacle::new(
                Outlook::MayPass,
                "ends the TLS handshake by closing the connection: it may not speak TLS at this port",
            ),
            None => Obstacle::new(Outlook::MayPass, format!("accepts connections, but TLS fails: {error}")),
        },
        Ok(_) => Obstacle::new(Outlook::NoServer, "speaks TLS, but is not ZooKeeper"),
    }
}

/// Waits for one step of what explains a failure.
async fn within_limit<T>(step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let limit = Duration::from_millis(500);
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no answer");
    tokio::time::timeout(limit, step).await.map_err(late)?
}
