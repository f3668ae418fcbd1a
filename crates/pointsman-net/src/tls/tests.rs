use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, date_time_ymd,
};
use rustls::{ClientConnection, Connection, ServerConnection};

use super::*;

type Authority = CertifiedIssuer<'static, KeyPair>;

/// A folder with an authority, and certificates that it has signed.
struct Files {
    folder: tempfile::TempDir,
    authority: Authority,
}

impl Files {
    fn new(authority_name: &str) -> Self {
        let files = Self {
            folder: tempfile::tempdir().unwrap(),
            authority: authority(authority_name, IsCa::Ca(BasicConstraints::Unconstrained)),
        };
        files.write("ca.pem", files.authority.pem());
        files.sign("server", &files.authority, |_| {});
        files.sign("client", &files.authority, |_| {});
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.path(name), text).unwrap();
    }

    /// Makes `NAME.pem` and `NAME.key` for localhost.
    fn sign(&self, name: &str, by: &Authority, change: impl FnOnce(&mut CertificateParams)) {
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        self.write(&format!("{name}.pem"), params.signed_by(&key, by).unwrap().pem());
        self.write(&format!("{name}.key"), key.serialize_pem());
    }

    fn server(&self, cert: &str, key: &str) -> ServerTls {
        ServerTls { cert: self.path(cert), key: self.path(key), client_ca: None }
    }

    fn client(&self, ca: &str, identity: Option<&str>) -> ClientTls {
        let file = |name: &str, kind| self.path(&format!("{name}.{kind}"));
        let identity = identity.map(|name| Identity { cert: file(name, "pem"), key: file(name, "key") });
        ClientTls { ca: self.path(ca), identity }
    }
}

fn authority(name: &str, is_ca: IsCa) -> Authority {
    let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    params.is_ca = is_ca;
    params.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

#[track_caller]
fn is_at_fault<T>(result: Result<T, TlsError>, file: TlsFile, path: &Path, words: &str) {
    let error = result.err().expect("the files cannot be used");
    assert_eq!((error.file, &*error.path), (file, path), "{error}");
    assert!(error.to_string().contains(words), "{error}");
}

#[test]
fn each_fault_of_a_certificate_or_key_is_told_apart() {
    let files = Files::new("ours");
    files.write("empty.pem", "");
    files.write("damaged.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n");
    files.write("garbage.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    files.write("garbage.key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
    files.write("der.pem", files.authority.der());
    files.write("pkcs8.key", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n");
    let old = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,0A\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
    files.write("rfc1421.key", old);
    fs::create_dir(files.path("folder")).unwrap();
    for (cert, key, file, words) in [
        ("server.pem", "client.key", TlsFile::Key, "is not the private key of the certificate in"),
        ("server.key", "server.pem", TlsFile::Cert, "exchange cert and key"),
        ("server.key", "server.key", TlsFile::Cert, "has a private key in it and no certificate"),
        ("server.pem", "server.pem", TlsFile::Key, "has a certificate in it and no private key"),
        ("empty.pem", "server.key", TlsFile::Cert, "has no certificate in it; it must be a PEM file"),
        ("server.pem", "empty.pem", TlsFile::Key, "has no private key in it; it must be a PEM file"),
        ("damaged.pem", "server.key", TlsFile::Cert, "is a damaged PEM file"),
        ("garbage.pem", "server.key", TlsFile::Cert, "cannot be used, and must be made anew"),
        ("server.pem", "garbage.key", TlsFile::Key, "cannot be used, and must be made anew"),
        ("der.pem", "server.key", TlsFile::Cert, "looks like DER"),
        ("server.pem", "pkcs8.key", TlsFile::Key, "is an encrypted private key"),
        ("server.pem", "rfc1421.key", TlsFile::Key, "is an encrypted private key"),
        ("missing.pem", "server.key", TlsFile::Cert, "does not exist"),
        ("server.pem", "folder", TlsFile::Key, "is a folder"),
    ] {
        let path = files.path(if file == TlsFile::Cert { cert } else { key });
        is_at_fault(files.server(cert, key).load(&[]), file, &path, words);
    }
    files.server("server.pem", "server.key").load(&[]).unwrap();
}

#[test]
fn each_fault_of_an_authority_is_told_apart() {
    let files = Files::new("ours");
    files.write("empty.pem", "");
    files.write("garbage.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    for (name, words) in [
        ("empty.pem", "has no certificate in it"),
        ("server.key", "has a private key in it and no certificate"),
        ("garbage.pem", "cannot be used, and must be made anew"),
        ("missing.pem", "does not exist"),
    ] {
        let path = files.path(name);
        let server = ServerTls { client_ca: Some(path.clone()), ..files.server("server.pem", "server.key") };
        is_at_fault(server.load(&[]), TlsFile::ClientCa, &path, words);
        is_at_fault(files.client(name, None).load(&[]), TlsFile::Ca, &path, words);
    }
}

/// Shakes hands in memory. Returns the error of the client and that of the server.
fn shake_hands(client: &ClientTls, server: &ServerTls, name: &'static str) -> [Option<String>; 2] {
    let client = ClientConnection::new(Arc::new(client.load(&[HTTP_2]).unwrap()), name.try_into().unwrap());
    let server = ServerConnection::new(server.load(&[HTTP_2]).unwrap());
    let mut sides = [Connection::from(client.unwrap()), Connection::from(server.unwrap())];
    let mut errors = [None, None];
    // A handshake takes two round trips at most, and each side says last why it gives up.
    for turn in 0..8 {
        let mut sent = Vec::new();
        let from = turn % 2;
        while sides[from].wants_write() {
            sides[from].write_tls(&mut sent).unwrap();
        }
        let to = 1 - from;
        let mut sent = &*sent;
        while errors[to].is_none() && !sent.is_empty() {
            sides[to].read_tls(&mut sent).unwrap();
            errors[to] = sides[to].process_new_packets().err().as_ref().map(describe);
        }
    }
    errors
}

#[test]
fn each_certificate_that_a_client_refuses_is_told_apart() {
    let files = Files::new("ours");
    let other = Files::new("others");
    files.sign("expired", &files.authority, |params| params.not_after = date_time_ymd(2020, 1, 1));
    files.sign("future", &files.authority, |params| params.not_before = date_time_ymd(3000, 1, 1));
    files.sign("elsewhere", &files.authority, |params| {
        *params = CertificateParams::new(["elsewhere.example".to_owned()]).unwrap();
    });
    files.sign("for_clients", &files.authority, |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    });
    files.write("authority.key", files.authority.key().serialize_pem());
    files.write("authority.pem", files.authority.pem());
    // An authority that is none, and says so.
    let none = authority("none", IsCa::ExplicitNoCa);
    files.sign("by_none", &none, |_| {});
    let chain = fs::read_to_string(files.path("by_none.pem")).unwrap() + &none.pem();
    files.write("by_none.pem", chain);
    for (name, words) in [
        ("expired", "it has expired"),
        ("future", "it is not valid before another"),
        ("elsewhere", "it is not for localhost, but for"),
        ("for_clients", "its extended key usage does not allow this use"),
        ("authority", "it is the certificate of an authority (CA:TRUE)"),
        ("by_none", "the certificate that has signed it is not that of an authority (CA:FALSE)"),
    ] {
        let server = files.server(&format!("{name}.pem"), &format!("{name}.key"));
        let [client, _] = shake_hands(&files.client("ca.pem", None), &server, "localhost");
        let text = client.expect(name);
        assert!(
            text.starts_with("the other side's certificate is refused: ") && text.contains(words),
            "{name}: {text}"
        );
    }
    let good = files.server("server.pem", "server.key");
    assert_eq!(shake_hands(&files.client("ca.pem", None), &good, "localhost"), [None, None]);
    let trusting_others = ClientTls { ca: other.path("ca.pem"), identity: None };
    let [client, server] = shake_hands(&trusting_others, &good, "localhost");
    assert!(client.unwrap().contains("no authority that is trusted here has signed it"));
    assert!(server.unwrap().contains("does not trust the authority that has signed this side's certificate"));
}

#[test]
fn clients_without_the_right_certificate_are_told_apart() {
    let files = Files::new("ours");
    let other = Files::new("others");
    let server = ServerTls { client_ca: Some(files.path("ca.pem")), ..files.server("server.pem", "server.key") };
    assert_eq!(shake_hands(&files.client("ca.pem", Some("client")), &server, "localhost"), [None, None]);
    let [client, told] = shake_hands(&files.client("ca.pem", None), &server, "localhost");
    assert_eq!(told.unwrap(), "the other side has presented no certificate, and must");
    assert!(client.unwrap().contains("requires a certificate of this side"));
    let identity = other.client("ca.pem", Some("client")).identity;
    let [_, told] = shake_hands(&ClientTls { ca: files.path("ca.pem"), identity }, &server, "localhost");
    assert!(told.unwrap().contains("no authority that is trusted here has signed it"));
}

#[test]
fn a_server_without_tls_is_recognised_through_an_io_error() {
    let files = Files::new("ours");
    let config = Arc::new(files.client("ca.pem", None).load(&[]).unwrap());
    let mut client = ClientConnection::new(config, "localhost".try_into().unwrap()).unwrap();
    client.read_tls(&mut &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..]).unwrap();
    let error = client.process_new_packets().unwrap_err();
    let error = std::io::Error::other(std::io::Error::new(std::io::ErrorKind::InvalidData, error));
    assert!(describe_io(&error).starts_with("the other side does not speak TLS there"));
}
