//! Names of hosts: how they are written in rules and in requests, and when they are the same.

use std::io::Write as _;
use std::net::Ipv6Addr;

/// The longest that a name can have, and then some.
pub(crate) const LONGEST: usize = 256;

/// A host of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Host {
    /// The host itself, in the form of [`canonical`].
    Exact(Box<[u8]>),
    /// All names below one: `.example.org`.
    Below(Box<[u8]>),
}

impl Host {
    /// Reads what a configuration says. The error goes on after the key.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let fail = |why: &str| {
            Err(format!(
                "{text:?} {why}; write for example \"a.example\", \"*.example.org\" for all below it, or \"[::1]\""
            ))
        };
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        let mut buffer = [0; LONGEST];
        if let Ok(address) = bare.parse::<Ipv6Addr>() {
            return Ok(Self::Exact(write_address(address, &mut buffer).into()));
        }
        let (below, name) = match text.strip_prefix("*.") {
            Some(name) => (true, name),
            None => (false, text),
        };
        if text == "*" {
            return fail("is every host, which needs no host to be given");
        }
        if name.contains('*') {
            return fail("has a * that does not stand for the first part");
        }
        if name.contains("://") || name.contains('/') {
            return fail("is a URL");
        }
        if name.contains(':') {
            return fail("has a port, which does not count");
        }
        if !name.is_ascii() {
            return fail("is not in the form that clients send; write it as xn--…");
        }
        let name = name.strip_suffix('.').unwrap_or(name);
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        if name.len() > 253 || !name.split('.').all(is_label) {
            return fail("is not a host");
        }
        let name = name.to_ascii_lowercase();
        Ok(if below {
            Self::Below(format!(".{name}").into_bytes().into())
        } else {
            Self::Exact(name.into_bytes().into())
        })
    }
}

/// The host of a request, without its port: in lower case, without the dot at its end, addresses of IPv6 in their shortest form and
/// without brackets. Empty where it cannot be one.
pub(crate) fn canonical<'b>(host: &[u8], buffer: &'b mut [u8; LONGEST]) -> &'b [u8] {
    let inner = match host.strip_prefix(b"[") {
        Some(rest) => memchr::memchr(b']', rest).map_or(&[][..], |end| &rest[..end]),
        None => memchr::memchr(b':', host).map_or(host, |end| &host[..end]),
    };
    if host.first() == Some(&b'[') {
        let address = std::str::from_utf8(inner).ok().and_then(|text| text.parse().ok());
        return address.map_or(&[], |address| write_address(address, buffer));
    }
    let name = inner.strip_suffix(b".").unwrap_or(inner);
    let Some(place) = buffer.get_mut(..name.len()) else { return &[] };
    place.copy_from_slice(name);
    place.make_ascii_lowercase();
    place
}

fn write_address(address: Ipv6Addr, buffer: &mut [u8; LONGEST]) -> &[u8] {
    let mut rest = &mut buffer[..];
    // No address is as long as the buffer.
    let _ = write!(rest, "{address}");
    let written = LONGEST - rest.len();
    &buffer[..written]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(host: &str) -> String {
        let mut buffer = [0; LONGEST];
        String::from_utf8(canonical(host.as_bytes(), &mut buffer).to_vec()).unwrap()
    }

    #[test]
    fn the_same_host_however_it_is_written() {
        for (written, expected) in [
            ("A.Example", "a.example"),
            ("a.example:8080", "a.example"),
            ("a.example.", "a.example"),
            ("a.example.:80", "a.example"),
            ("10.0.0.1:80", "10.0.0.1"),
            ("[::1]", "::1"),
            ("[0:0:0:0:0:0:0:1]:80", "::1"),
            ("[FD00::A]", "fd00::a"),
            ("[fe80::1%25eth0]", ""),
            ("[::1", ""),
            ("", ""),
            (":80", ""),
        ] {
            assert_eq!(of(written), expected, "{written}");
        }
        assert_eq!(of(&"a".repeat(256)).len(), 256);
        assert_eq!(of(&"a".repeat(257)), "");
    }

    #[test]
    fn hosts_of_rules() {
        let exact = |text: &str| Ok(Host::Exact(text.as_bytes().into()));
        assert_eq!(Host::parse("A.example."), exact("a.example"));
        assert_eq!(Host::parse("localhost"), exact("localhost"));
        assert_eq!(Host::parse("10.0.0.1"), exact("10.0.0.1"));
        assert_eq!(Host::parse("[0::1]"), exact("::1"));
        assert_eq!(Host::parse("::1"), exact("::1"));
        assert_eq!(Host::parse("*.Example.org"), Ok(Host::Below(b".example.org"[..].into())));
        for (text, expected) in [
            ("", "is not a host"),
            ("*", "needs no host"),
            ("a.*.example", "has a *"),
            ("*a.example", "has a *"),
            ("a.example:80", "has a port"),
            ("http://a.example", "is a URL"),
            ("bücher.example", "xn--"),
            ("a..example", "is not a host"),
            ("a b", "is not a host"),
        ] {
            let reason = Host::parse(text).unwrap_err();
            assert!(reason.contains(expected) && reason.contains("*.example.org"), "{text}: {reason}");
        }
    }
}
