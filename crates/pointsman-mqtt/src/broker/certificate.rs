//! The user that a client's certificate names. The certificate has been verified before.

/// What DER begins an element with (X.690, 8.1.2), as far as it is needed.
const OCTETS: u8 = 0x04;
const OID: u8 = 0x06;
const UTF8: u8 = 0x0c;
const PRINTABLE: u8 = 0x13;
const IA5: u8 = 0x16;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
/// Alternative names that are text: of mail, of a host, a URI (RFC 5280, 4.2.1.6).
const TEXT_NAMES: [u8; 3] = [0x81, 0x82, 0x86];
/// 2.5.4.3 and 2.5.29.17.
const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];
const ALTERNATIVE_NAMES: [u8; 3] = [0x55, 0x1d, 0x11];

/// Returns the common name of a certificate's subject (RFC 5280, 4.1), or else its first alternative name.
pub(super) fn user(certificate: &[u8]) -> Option<String> {
    let mut body = Der(Der(certificate).expect(SEQUENCE)?).expect(SEQUENCE).map(Der)?;
    if body.0.first() == Some(&VERSION) {
        body.next()?;
    }
    // Number, algorithm, issuer, validity.
    for _ in 0..4 {
        body.next()?;
    }
    let subject = Der(body.expect(SEQUENCE)?);
    let name = common_name(subject).or_else(|| alternative_name(body))?;
    Some(name).filter(|name| !name.is_empty() && !name.contains(char::is_control))
}

fn common_name(subject: Der<'_>) -> Option<String> {
    let mut parts = subject.filter(|&(tag, _)| tag == SET).flat_map(|(_, set)| Der(set));
    parts.find_map(|(_, part)| {
        let mut part = Der(part);
        if part.expect(OID)? != COMMON_NAME {
            return None;
        }
        match part.next()? {
            (UTF8 | PRINTABLE | IA5, text) => String::from_utf8(text.to_vec()).ok(),
            _ => None,
        }
    })
}

/// `rest` is what follows the subject.
fn alternative_name(mut rest: Der<'_>) -> Option<String> {
    let (_, extensions) = rest.find(|&(tag, _)| tag == EXTENSIONS)?;
    let names = Der(Der(extensions).expect(SEQUENCE)?).find_map(|(_, extension)| {
        let mut extension = Der(extension);
        let is_it = extension.expect(OID)? == ALTERNATIVE_NAMES;
        extension.find(|&(tag, _)| is_it && tag == OCTETS).map(|(_, value)| value)
    })?;
    let (_, name) = Der(Der(names).expect(SEQUENCE)?).find(|(tag, _)| TEXT_NAMES.contains(tag))?;
    String::from_utf8(name.to_vec()).ok()
}

/// Elements one after another: tags and contents.
#[derive(Clone, Copy)]
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The content of the next element, if it has that tag.
    fn expect(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.next().filter(|&(found, _)| found == tag).map(|(_, content)| content)
    }
}

impl<'a> Iterator for Der<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (&[tag, first], rest) = self.0.split_first_chunk()?;
        let (length, rest) = match usize::from(first) {
            short @ 0..0x80 => (short, rest),
            // How many bytes the length takes.
            long => {
                let (bytes, rest) = rest.split_at_checked(long - 0x80).filter(|(bytes, _)| bytes.len() <= 4)?;
                (bytes.iter().fold(0, |length, &byte| (length << 8) | usize::from(byte)), rest)
            }
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_certificate_names_nobody() {
        for bytes in [&b""[..], b"\x30", b"\x30\x80", b"\x30\x84\xff\xff\xff\xff", b"\x30\x02\x30\x00", b"\x30\xff\x00"]
        {
            assert_eq!(user(bytes), None);
        }
    }
}
