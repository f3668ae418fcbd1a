//! Networking that all servers and clients of Pointsman share. The crate is a detail of the workspace: nothing
//! outside of it should depend on it.
//!
//! | question | file |
//! |---|---|
//! | what does a listener do when it cannot accept? | `accept.rs` |
//! | how long is waited after a failure? | `backoff.rs` |
//! | how are metrics written? | `metrics.rs` |
//! | which characters are percent-encoded where? | `percent.rs` |
//! | what does an HTTP answer say of a failure? | `problem.rs` |
//! | how are certificates and keys read from files, and what is wrong with a file? | `tls.rs`, `tls/pem.rs`, `tls/error.rs` |
//! | why has a TLS handshake failed? | `tls/handshake.rs` |

#[cfg(feature = "accept")]
pub mod accept;
pub mod backoff;
pub mod metrics;
pub mod percent;
#[cfg(feature = "problem")]
pub mod problem;
#[cfg(feature = "tls")]
pub mod tls;
