//! Percent coding (RFC 3986, 2.1): which characters stay as they are, and a decoder that refuses what is not encoded.

use std::str::Utf8Error;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode};
pub use percent_encoding::{PercentEncode, percent_decode_str, utf8_percent_encode};

/// For a segment of a path, or a value of a query: the unreserved characters (RFC 3986, 2.3) stay.
pub const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// For a path, or the value of a cookie: the unreserved characters and `/` stay.
pub const PATH: &AsciiSet = &SEGMENT.remove(b'/');
/// For a name that every file system takes: letters, digits, `-` and `_` stay.
pub const FILE_NAME: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_');
/// For a character that is to be shown as clients send it: letters and digits stay.
pub const SHOWN: &AsciiSet = NON_ALPHANUMERIC;

/// Error of a text that is not percent-encoded UTF-8.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// A `%` is not the beginning of an encoded byte.
    #[error("% must be followed by two hexadecimal digits")]
    Digits,
    /// The bytes that are encoded are not UTF-8.
    #[error("it is not UTF-8")]
    Utf8(#[from] Utf8Error),
}

/// Decodes a whole text.
///
/// # Errors
///
/// [`DecodeError`] if the text is not percent-encoded UTF-8.
pub fn decode(text: &[u8]) -> Result<String, DecodeError> {
    let is_encoded =
        |at: usize| text.get(at + 1..at + 3).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit));
    if !text.iter().enumerate().filter(|(_, byte)| **byte == b'%').all(|(at, _)| is_encoded(at)) {
        return Err(DecodeError::Digits);
    }
    Ok(percent_decode(text).decode_utf8()?.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_goes_through_every_set() {
        for text in ["cacd3aa4-4eb8", "a/b", "a;b=c, \"d\"", "%41", "~._", "码"] {
            for set in [SEGMENT, PATH, FILE_NAME, SHOWN] {
                assert_eq!(decode(utf8_percent_encode(text, set).to_string().as_bytes()).unwrap(), text);
            }
        }
        // A cookie's value must not have these (RFC 6265, 4.1.1).
        let cookie = utf8_percent_encode("a;b=c, \"d\\\u{7528}", PATH).to_string();
        assert!(cookie.bytes().all(|byte| byte.is_ascii_graphic() && !b";,\"\\".contains(&byte)), "{cookie}");
        assert_eq!(utf8_percent_encode("a b/~.-", PATH).to_string(), "a%20b/~.-");
        assert_eq!(utf8_percent_encode("a/b~.-", FILE_NAME).to_string(), "a%2Fb%7E%2E-");
    }

    #[test]
    fn only_what_is_encoded_is_decoded() {
        for text in ["%", "%4", "%zz", "%+4", "%2%41"] {
            assert!(matches!(decode(text.as_bytes()), Err(DecodeError::Digits)), "{text}");
        }
        assert!(matches!(decode(b"%ff"), Err(DecodeError::Utf8(_))));
    }
}
