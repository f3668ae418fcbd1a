//! Who may listen, and who may connect.

use std::process::Stdio;
use std::sync::Arc;

use pointsman_mqtt::broker::{Broker, Error, Options, Tls, Users};
use pointsman_mqtt::packet::{Connect, Packet, Version};
use pointsman_mqtt::reason::Reason;
use pointsman_testkit::TlsFiles;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsConnector, rustls};

use super::client::{Client, PATIENCE, hello, until};
use super::{QOS0, QOS1, options, start};

#[tokio::test]
async fn without_users_it_listens_on_loopback_only() {
    let everywhere = Options::new("0.0.0.0:0".parse().unwrap());
    let error = Broker::start(everywhere.clone()).await.unwrap_err();
    assert!(matches!(error, Error::Unprotected { .. }));
    assert!(error.to_string().contains("give the broker users, or let it listen on loopback"), "{error}");
    let mut with_users = everywhere;
    with_users.users = Some(Users::default().with("anna", "secret"));
    Broker::start(with_users).await.unwrap().close().await;
    let broker = start().await;
    let error = Broker::start(Options::new(broker.address())).await.unwrap_err();
    assert!(matches!(error, Error::Listen { .. }), "{error}");
}

#[tokio::test]
async fn a_wrong_password_is_refused_at_once() {
    let mut options = options();
    options.users = Some(Users::default().with("anna", "secret"));
    let broker = Broker::start(options).await.unwrap();
    for version in [Version::V311, Version::V5] {
        for (user, password, reason) in [
            (Some("anna"), Some("secret"), Reason::SUCCESS),
            (Some("anna"), Some("wrong"), Reason::BAD_CREDENTIALS),
            (Some("anna"), None, Reason::BAD_CREDENTIALS),
            (Some("nobody"), Some("secret"), Reason::BAD_CREDENTIALS),
            (None, None, Reason::BAD_CREDENTIALS),
        ] {
            let mut client = Client::tcp(broker.address(), version).await;
            let password = password.map(Into::into);
            let connack = client.greet(Connect { version, user: user.map(Into::into), password, ..hello("a") }).await;
            assert_eq!(connack.reason, reason, "{user:?}");
            if reason.is_error() {
                assert_eq!(client.next().await, None);
            }
        }
    }
    // Within the process nobody is asked.
    Client::local(broker.handle().connect(), "relay").await;
}

#[tokio::test]
async fn tls() {
    let folder = tempfile::tempdir().unwrap();
    let files = TlsFiles::create(folder.path());
    let tls = Tls { cert: files.server.clone(), key: files.server, client_ca: None };
    let mut options = options();
    options.tls = Some(tls.clone());
    let broker = Broker::start(options.clone()).await.unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&files.ca).unwrap()).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let socket = TcpStream::connect(broker.address()).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, socket).await.unwrap();
    let mut client = Client::over(stream, Version::V5);
    assert_eq!(client.greet(hello("a")).await.reason, Reason::SUCCESS);
    client.subscribe("t", QOS1).await;
    client.publish("t", &"x".repeat(100_000), QOS0, 0).await;
    assert_eq!(client.message().await.payload.len(), 100_000);
    // Who speaks no TLS is shown out.
    let mut plain = Client::tcp(broker.address(), Version::V5).await;
    plain.send(&Packet::Connect(Box::new(hello("b")))).await;
    let mut rest = Vec::new();
    let _ = timeout(PATIENCE, tokio::io::AsyncReadExt::read_to_end(&mut plain.stream, &mut rest)).await.unwrap();
    broker.close().await;
    assert_eq!(client.farewell().await, Some(Reason::SERVER_SHUTTING_DOWN));

    options.tls = Some(Tls { key: folder.path().join("none.pem"), ..tls });
    let error = Broker::start(options).await.unwrap_err();
    assert!(error.to_string().contains("none.pem"), "{error}");
}

/// Connects with the client's certificate of `files`, or without one.
async fn connect_tls(broker: &Broker, files: &TlsFiles, certificate: bool) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&files.ca).unwrap()).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = if certificate {
        let chain = vec![CertificateDer::from_pem_file(&files.client_certificate).unwrap()];
        config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(&files.client_key).unwrap()).unwrap()
    } else {
        config.with_no_client_auth()
    };
    let socket = TcpStream::connect(broker.address()).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), socket).await
}

#[tokio::test]
async fn a_certificate_names_the_user() {
    let folder = tempfile::tempdir().unwrap();
    let files = TlsFiles::create(folder.path());
    // Whoever has a certificate needs no password, so that it may listen everywhere.
    let mut options = Options::new("0.0.0.0:0".parse().unwrap());
    let (cert, key) = (files.server.clone(), files.server.clone());
    options.tls = Some(Tls { cert, key, client_ca: Some(files.ca.clone()) });
    let broker = Broker::start(options.clone()).await.unwrap();
    options.listen = broker.address();
    let connect = async |connect: Connect| {
        let mut client = Client::over(connect_tls(&broker, &files, true).await.unwrap(), Version::V5);
        let reason = client.greet(connect).await.reason;
        (client, reason)
    };
    let (mut client, reason) = connect(hello("a")).await;
    assert_eq!(reason, Reason::SUCCESS);
    // Its name is `client`.
    client.subscribe("client/#", QOS1).await;
    let named = |user: &'static str| Connect { user: Some(user.into()), ..hello("b") };
    assert_eq!(connect(named("client")).await.1, Reason::SUCCESS);
    assert_eq!(connect(named("another")).await.1, Reason::BAD_CREDENTIALS);
    // Without a certificate there is no connection.
    if let Ok(stream) = connect_tls(&broker, &files, false).await {
        let mut client = Client::over(stream, Version::V5);
        client.send(&Packet::Connect(Box::new(hello("c")))).await;
        assert_eq!(client.next().await, None);
    }
    // Nor may everybody in the network come in after a reload.
    options.tls = None;
    assert!(matches!(broker.reload(&options), Err(Error::Unprotected { .. })));
    broker.close().await;
}

#[tokio::test]
async fn a_renewed_certificate_is_taken_up() {
    let (folder, renewed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (files, new) = (TlsFiles::create(folder.path()), TlsFiles::create(renewed.path()));
    let mut options = options();
    let (cert, key) = (files.server.clone(), files.server.clone());
    options.tls = Some(Tls { cert, key, client_ca: None });
    let broker = Broker::start(options.clone()).await.unwrap();
    let mut before = Client::over(connect_tls(&broker, &files, false).await.unwrap(), Version::V5);
    assert_eq!(before.greet(hello("a")).await.reason, Reason::SUCCESS);
    // What cannot be used changes nothing.
    std::fs::write(&files.server, "nothing").unwrap();
    assert!(matches!(broker.reload(&options), Err(Error::Tls(_))));
    assert!(connect_tls(&broker, &files, false).await.is_ok());
    std::fs::copy(&new.server, &files.server).unwrap();
    broker.reload(&options).unwrap();
    assert!(connect_tls(&broker, &files, false).await.is_err(), "by another authority");
    assert!(connect_tls(&broker, &new, false).await.is_ok());
    before.settle().await;
    broker.close().await;
}

/// Debian's clients, which share no code with this crate.
#[tokio::test]
async fn mosquitto_clients() {
    let broker = start().await;
    let port = broker.address().port().to_string();
    for version in ["311", "5"] {
        for qos in ["0", "1", "2"] {
            let mut subscriber = Command::new("mosquitto_sub");
            subscriber.args(["-h", "127.0.0.1", "-p", &port, "-V", version, "-q", qos, "-t", "m/#", "-C", "3", "-v"]);
            let output = subscriber.stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap().wait_with_output();
            let handle = broker.handle();
            until(|| handle.figures().subscriptions == 1).await;
            for payload in ["1", "2", "3"] {
                let mut publisher = Command::new("mosquitto_pub");
                publisher.args(["-h", "127.0.0.1", "-p", &port, "-V", version, "-q", qos, "-t", "m/x", "-m", payload]);
                let status = timeout(PATIENCE, publisher.status()).await.unwrap().unwrap();
                assert!(status.success());
            }
            let output = timeout(PATIENCE, output).await.unwrap().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), "m/x 1\nm/x 2\nm/x 3\n");
            until(|| handle.figures().sessions == 0).await;
        }
    }
    let unheard = {
        let mut publisher = Command::new("mosquitto_pub");
        publisher.args(["-h", "127.0.0.1", "-p", &port, "-V", "5", "-q", "1", "-t", "nobody", "-m", "x", "-i", "a"]);
        timeout(PATIENCE, publisher.output()).await.unwrap().unwrap()
    };
    assert!(unheard.status.success(), "{unheard:?}");
}
