//! TLS: who has no certificate of ours is not served, and new certificates cut nobody off.

use std::path::Path;
use std::sync::Arc;

use pointsman_agent::{Agent, Error, Settings, Tls};
use pointsman_testkit::TlsFiles;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

use crate::support::{Client, Server, registry, settings, soon};

/// A connection to the agent, if it is let in: with TLS 1.3 a client learns only from the first answer that it is not.
async fn connect(server: &Server, files: &TlsFiles, certified: bool) -> Result<Client, String> {
    let mut client = Client::over(handshake(server, files, certified, &[]).await?);
    client.send(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    let answer = soon("an answer", client.rest_or(b"ok\n")).await;
    if answer.ends_with(b"ok\n") { Ok(client) } else { Err("closed".to_owned()) }
}

/// Shakes hands, offering these protocols (ALPN).
pub(crate) async fn handshake(
    server: &Server,
    files: &TlsFiles,
    certified: bool,
    protocols: &[&[u8]],
) -> Result<TlsStream<TcpStream>, String> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&files.ca).unwrap()).unwrap();
    let provider = Arc::new(crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let builder = builder.with_root_certificates(roots);
    let mut config = if certified {
        let certificate = CertificateDer::from_pem_file(&files.client_certificate).unwrap();
        let key = PrivateKeyDer::from_pem_file(&files.client_key).unwrap();
        builder.with_client_auth_cert(vec![certificate], key).unwrap()
    } else {
        builder.with_no_client_auth()
    };
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let stream = TcpStream::connect(server.address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream);
    soon("a handshake", connecting).await.map_err(|error| error.to_string())
}

fn tls(files: &TlsFiles) -> Tls {
    Tls { cert: files.server.clone(), key: files.server.clone(), client_ca: Some(files.ca.clone()) }
}

fn with_tls(tls: Tls) -> Settings {
    let mut settings = settings();
    settings.tls = Some(tls);
    settings
}

fn folder(in_: &Path, name: &str) -> TlsFiles {
    let folder = in_.join(name);
    std::fs::create_dir(&folder).unwrap();
    TlsFiles::create(&folder)
}

#[tokio::test]
async fn only_those_with_a_certificate_are_served() {
    let place = tempfile::tempdir().unwrap();
    let (ours, others) = (folder(place.path(), "ours"), folder(place.path(), "others"));
    let server = Server::start_with(|settings| settings.tls = Some(tls(&ours))).await;
    let mut client = connect(&server, &ours, true).await.unwrap();
    assert_eq!(client.ask("PUT", "/v1/services/s/instances/a", "{}").await.status, 201);
    assert_eq!(client.ask("POST", "/v1/services/s/instances/a/drain", "").await.status, 204);
    let actor = client.ask("GET", "/v1/audit", "").await.json()[0]["actor"].clone();
    assert_eq!(actor, "client certificate from 127.0.0.1");
    assert!(connect(&server, &ours, false).await.is_err());
    // A certificate of another authority; with a root of ours, or the client would not go on.
    let mixed = TlsFiles { ca: ours.ca.clone(), ..others };
    assert!(connect(&server, &mixed, true).await.is_err());
    let mut plain = server.client().await;
    plain.send(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert!(!plain.rest().await.ends_with(b"ok\n"));
    server.until_metric("pointsman_agent_tls_failures_total", 3).await;
}

#[tokio::test]
async fn new_certificates_count_for_new_connections() {
    let place = tempfile::tempdir().unwrap();
    let (files, new) = (folder(place.path(), "files"), folder(place.path(), "new"));
    let mut server = Server::start_with(|settings| settings.tls = Some(tls(&files))).await;
    let before = folder(place.path(), "before");
    let copy = |from: &TlsFiles, to: &TlsFiles| {
        for (from, to) in [
            (&from.ca, &to.ca),
            (&from.server, &to.server),
            (&from.client_certificate, &to.client_certificate),
            (&from.client_key, &to.client_key),
        ] {
            std::fs::copy(from, to).unwrap();
        }
    };
    copy(&files, &before);
    let mut open = connect(&server, &files, true).await.unwrap();
    let mut stream = connect(&server, &files, true).await.unwrap();
    stream.open("GET", "/v1/watch", &[], "").await;
    stream.event_named("reset").await;
    // Files that cannot be used change nothing.
    std::fs::write(&files.server, "no certificate").unwrap();
    let error = server.agent.reload(with_tls(tls(&files))).unwrap_err();
    assert!(matches!(&error, Error::Tls(error) if error.path == files.server), "{error}");
    assert!(connect(&server, &before, true).await.is_ok());
    // The same names, with something else in them.
    copy(&new, &files);
    assert_eq!(server.agent.reload(with_tls(tls(&files))).unwrap(), [""; 0]);
    assert!(connect(&server, &new, true).await.is_ok());
    assert!(connect(&server, &before, true).await.is_err());
    assert_eq!(open.ask("PUT", "/v1/services/s/instances/a", "{}").await.status, 201);
    assert_eq!(stream.until_event("put").await.data["service"], "s");
    // Without TLS it would be another listener.
    assert_eq!(server.agent.reload(settings()).unwrap(), ["tls_cert"]);
    assert!(connect(&server, &new, true).await.is_ok());
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named() {
    let place = tempfile::tempdir().unwrap();
    let files = folder(place.path(), "files");
    let missing = place.path().join("missing.pem");
    for (wrong, named) in [
        (Tls { cert: missing.clone(), ..tls(&files) }, &missing),
        (Tls { key: files.ca.clone(), ..tls(&files) }, &files.ca),
        (Tls { key: files.client_key.clone(), ..tls(&files) }, &files.server),
        (Tls { client_ca: Some(files.client_key.clone()), ..tls(&files) }, &files.client_key),
    ] {
        let error = Agent::start(&registry().await, with_tls(wrong)).await.unwrap_err();
        assert!(error.to_string().contains(&named.display().to_string()), "{error}");
    }
}
