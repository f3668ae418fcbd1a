//! Reason codes of MQTT 5 (section 2.4), which stand for those of 3.1.1 too.

use std::fmt;

/// Why, or how well: below 0x80 it went well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Reason(pub u8);

macro_rules! reasons {
    ($($name:ident = $code:literal, $words:literal;)*) => {
        #[allow(missing_docs)] // The names are the specification's.
        impl Reason {
            $(pub const $name: Reason = Reason($code);)*
        }

        impl fmt::Display for Reason {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.0 {
                    $($code => f.write_str($words),)*
                    code => write!(f, "reason {code:#04x}"),
                }
            }
        }
    };
}

reasons! {
    SUCCESS = 0x00, "success";
    GRANTED_QOS_1 = 0x01, "granted QoS 1";
    GRANTED_QOS_2 = 0x02, "granted QoS 2";
    DISCONNECT_WITH_WILL = 0x04, "disconnect with will";
    NO_MATCHING_SUBSCRIBERS = 0x10, "no matching subscribers";
    NO_SUBSCRIPTION_EXISTED = 0x11, "no subscription existed";
    UNSPECIFIED_ERROR = 0x80, "unspecified error";
    MALFORMED_PACKET = 0x81, "malformed packet";
    PROTOCOL_ERROR = 0x82, "protocol error";
    IMPLEMENTATION_ERROR = 0x83, "implementation-specific error";
    UNSUPPORTED_VERSION = 0x84, "unsupported protocol version";
    CLIENT_ID_NOT_VALID = 0x85, "client identifier not valid";
    BAD_CREDENTIALS = 0x86, "bad user name or password";
    NOT_AUTHORIZED = 0x87, "not authorized";
    SERVER_UNAVAILABLE = 0x88, "server unavailable";
    SERVER_BUSY = 0x89, "server busy";
    BANNED = 0x8a, "banned";
    SERVER_SHUTTING_DOWN = 0x8b, "server shutting down";
    BAD_AUTHENTICATION_METHOD = 0x8c, "bad authentication method";
    KEEP_ALIVE_TIMEOUT = 0x8d, "keep alive timeout";
    SESSION_TAKEN_OVER = 0x8e, "session taken over";
    TOPIC_FILTER_INVALID = 0x8f, "topic filter invalid";
    TOPIC_NAME_INVALID = 0x90, "topic name invalid";
    PACKET_IDENTIFIER_IN_USE = 0x91, "packet identifier in use";
    PACKET_IDENTIFIER_NOT_FOUND = 0x92, "packet identifier not found";
    RECEIVE_MAXIMUM_EXCEEDED = 0x93, "receive maximum exceeded";
    TOPIC_ALIAS_INVALID = 0x94, "topic alias invalid";
    PACKET_TOO_LARGE = 0x95, "packet too large";
    MESSAGE_RATE_TOO_HIGH = 0x96, "message rate too high";
    QUOTA_EXCEEDED = 0x97, "quota exceeded";
    ADMINISTRATIVE_ACTION = 0x98, "administrative action";
    PAYLOAD_FORMAT_INVALID = 0x99, "payload format invalid";
    RETAIN_NOT_SUPPORTED = 0x9a, "retain not supported";
    QOS_NOT_SUPPORTED = 0x9b, "QoS not supported";
    USE_ANOTHER_SERVER = 0x9c, "use another server";
    SERVER_MOVED = 0x9d, "server moved";
    SHARED_NOT_SUPPORTED = 0x9e, "shared subscriptions not supported";
    CONNECTION_RATE_EXCEEDED = 0x9f, "connection rate exceeded";
    SUBSCRIPTION_IDS_NOT_SUPPORTED = 0xa1, "subscription identifiers not supported";
    WILDCARDS_NOT_SUPPORTED = 0xa2, "wildcard subscriptions not supported";
}

impl Reason {
    /// Whether it says that something has failed.
    #[must_use]
    pub const fn is_error(self) -> bool {
        self.0 >= 0x80
    }

    /// What the return code of a CONNACK of 3.1.1 means.
    #[must_use]
    pub const fn of_return_code(code: u8) -> Reason {
        match code {
            0 => Reason::SUCCESS,
            1 => Reason::UNSUPPORTED_VERSION,
            2 => Reason::CLIENT_ID_NOT_VALID,
            3 => Reason::SERVER_UNAVAILABLE,
            4 => Reason::BAD_CREDENTIALS,
            5 => Reason::NOT_AUTHORIZED,
            _ => Reason::UNSPECIFIED_ERROR,
        }
    }

    /// The return code that says it in a CONNACK of 3.1.1.
    #[must_use]
    pub const fn return_code(self) -> u8 {
        match self {
            Reason::SUCCESS => 0,
            Reason::UNSUPPORTED_VERSION => 1,
            Reason::CLIENT_ID_NOT_VALID => 2,
            Reason::BAD_CREDENTIALS => 4,
            Reason::NOT_AUTHORIZED | Reason::BANNED => 5,
            _ => 3,
        }
    }
}
