//! Why a TLS handshake has failed, in plain English.

use std::error::Error as StdError;
use std::io;

use rustls::{AlertDescription, CertificateError, Error};

/// Says why a handshake has failed, and what would be right. Of the two ends, "the other side" is the one at the far end of the
/// connection.
#[must_use]
pub fn describe(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(reason) => {
            format!("the other side's certificate is refused: {}", certificate(reason))
        }
        Error::NoCertificatesPresented => "the other side has presented no certificate, and must".to_owned(),
        Error::InvalidMessage(_) => "the other side does not speak TLS there: use another port, or no TLS".to_owned(),
        Error::PeerIncompatible(reason) => {
            format!("the other side speaks no version or cipher of TLS 1.2 or 1.3 that is known here: {reason:?}")
        }
        Error::NoApplicationProtocol => {
            "the other side speaks none of the application protocols that are offered here (ALPN)".to_owned()
        }
        Error::AlertReceived(reason) => alert(*reason),
        error => format!("TLS: {error}"),
    }
}

/// Says why a connection has failed during its handshake.
#[must_use]
pub fn describe_io(error: &io::Error) -> String {
    match find(error) {
        Some(error) => describe(error),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            "the other side has closed the connection during the TLS handshake".to_owned()
        }
        None => error.to_string(),
    }
}

/// The TLS error among an error and its sources.
#[must_use]
pub fn find<'e>(error: &'e (dyn StdError + 'static)) -> Option<&'e Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        // The error within an I/O error is not its source.
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let inner = inner.map(|inner| inner as &(dyn StdError + 'static));
        if let Some(found) = [Some(error), inner].into_iter().flatten().find_map(<dyn StdError>::downcast_ref) {
            return Some(found);
        }
        next = inner.or_else(|| error.source());
    }
    None
}

/// Describes the fault of a certificate.
pub(super) fn certificate(error: &CertificateError) -> String {
    match error {
        CertificateError::BadEncoding => "it is damaged, or not a certificate".to_owned(),
        CertificateError::Expired => "it has expired".to_owned(),
        CertificateError::ExpiredContext { time, not_after } => {
            format!("it has expired {} ago, by the clock of this machine", span(time.as_secs(), not_after.as_secs()))
        }
        CertificateError::NotValidYet => "it is not valid yet, by the clock of this machine".to_owned(),
        CertificateError::NotValidYetContext { time, not_before } => {
            let span = span(not_before.as_secs(), time.as_secs());
            format!("it is not valid before another {span} have passed, by the clock of this machine")
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "no authority that is trusted here has signed it; the file of trusted authorities must have the one that did"
                .to_owned()
        }
        CertificateError::NotValidForName => "it is not for the name that is called".to_owned(),
        CertificateError::NotValidForNameContext { expected, presented } => {
            format!("it is not for {}, but for {}", expected.to_str(), presented.join(", "))
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "its extended key usage does not allow this use; a server needs serverAuth, a client clientAuth".to_owned()
        }
        CertificateError::Revoked => "it has been revoked".to_owned(),
        CertificateError::Other(other) => of_webpki(&other.to_string()),
        error => error.to_string(),
    }
}

/// The errors of rustls-webpki that rustls has no name for: their text is their name.
fn of_webpki(name: &str) -> String {
    match name {
        "CaUsedAsEndEntity" => {
            "it is the certificate of an authority (CA:TRUE), which cannot be that of a server or a client; make one with CA:FALSE"
        }
        "EndEntityUsedAsCa" => {
            "the certificate that has signed it is not that of an authority (CA:FALSE); sign it with one that has CA:TRUE"
        }
        "UnsupportedCertVersion" => "it is not an X.509 certificate of version 3; make one of version 3",
        name => name,
    }
    .to_owned()
}

/// Describes an alert of the other side.
fn alert(reason: AlertDescription) -> String {
    let text = match reason {
        AlertDescription::CertificateRequired => "requires a certificate of this side, which has presented none",
        AlertDescription::UnknownCA => "does not trust the authority that has signed this side's certificate",
        AlertDescription::CertificateExpired => "says that this side's certificate has expired",
        AlertDescription::CertificateRevoked => "says that this side's certificate has been revoked",
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::NoCertificate
        | AlertDescription::AccessDenied => "refuses this side's certificate, or misses one",
        AlertDescription::ProtocolVersion => "speaks no version of TLS that this side does (1.2 and 1.3)",
        AlertDescription::UnrecognisedName => "has no certificate for the name that is called",
        AlertDescription::NoApplicationProtocol => "speaks none of the application protocols that are offered (ALPN)",
        AlertDescription::HandshakeFailure => {
            "refuses the handshake: it wants a certificate, or knows none of the ciphers"
        }
        _ => "refuses the handshake",
    };
    format!("the other side {text} ({reason:?})")
}

/// A time between two, in the largest unit that fits.
fn span(later: u64, earlier: u64) -> String {
    let seconds = later.saturating_sub(earlier);
    match seconds {
        172_800.. => format!("{} days", seconds / 86_400),
        7_200.. => format!("{} hours", seconds / 3_600),
        120.. => format!("{} minutes", seconds / 60),
        _ => format!("{seconds} seconds"),
    }
}
