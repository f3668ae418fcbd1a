//! The words of configuration files.

use std::fmt;
use std::str::FromStr;

use super::{AccessLog, Forwarded, Key, Protocol, RouteRole};

/// Gives a closed set of values their names, both ways.
macro_rules! words {
    ($type:ident, $what:literal, $known:literal: $($value:ident = $name:literal),+) => {
        impl $type {
            /// The word of configuration files.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $($type::$value => $name),+
                }
            }
        }

        impl FromStr for $type {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($name => Ok($type::$value),)+
                    _ => Err(format!(concat!("{:?} is not a ", $what, "; known are ", $known), text)),
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }
    };
}

words!(Forwarded, "way to tell where a request comes from", "x-forwarded, rfc7239, both and off":
    XForwarded = "x-forwarded", Rfc7239 = "rfc7239", Both = "both", Off = "off");
words!(AccessLog, "form of an access log", "off, text and json": Off = "off", Text = "text", Json = "json");
words!(RouteRole, "role of a route", "normal and master": Normal = "normal", Master = "master");
words!(Protocol, "protocol of instances", "http1 and http2": Http1 = "http1", Http2 = "http2");

impl FromStr for Key {
    type Err = String;

    /// The name of a header is put into lower case; whether it can be one is not checked here.
    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.split_once(':')) {
            ("client-address", _) => Ok(Key::ClientAddress),
            ("path", _) => Ok(Key::Path),
            (_, Some(("header", name))) => Ok(Key::Header(name.to_ascii_lowercase())),
            (_, Some(("cookie", name))) => Ok(Key::Cookie(name.to_owned())),
            _ => Err(format!("{text:?} is not a key; known are client-address, path, header:NAME and cookie:NAME")),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::ClientAddress => f.write_str("client-address"),
            Key::Path => f.write_str("path"),
            Key::Header(name) => write!(f, "header:{name}"),
            Key::Cookie(name) => write!(f, "cookie:{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_as_they_are_written() {
        for word in ["x-forwarded", "rfc7239", "both", "off"] {
            assert_eq!(word.parse::<Forwarded>().unwrap().to_string(), word);
        }
        for word in ["off", "text", "json"] {
            assert_eq!(word.parse::<AccessLog>().unwrap().to_string(), word);
        }
        for word in ["client-address", "path", "header:x-user", "cookie:User"] {
            assert_eq!(word.parse::<Key>().unwrap().to_string(), word);
        }
        assert_eq!("header:X-User".parse::<Key>(), Ok(Key::Header("x-user".to_owned())));
        assert_eq!("".parse::<RouteRole>().unwrap_err(), "\"\" is not a role of a route; known are normal and master");
        assert!("http3".parse::<Protocol>().unwrap_err().ends_with("known are http1 and http2"));
        assert!("ip".parse::<Key>().unwrap_err().contains("header:NAME"));
    }
}
