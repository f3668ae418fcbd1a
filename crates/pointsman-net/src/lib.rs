//! What every server and client of Pointsman does on a network, said once. The crate is a detail of the workspace: nothing
//! outside of it should depend on it.
//!
//! | question | file |
//! |---|---|
//! | how are certificates and keys read from files, and what is wrong with a file? | `tls.rs`, `tls/pem.rs`, `tls/error.rs` |
//! | why has a TLS handshake failed? | `tls/handshake.rs` |

#[cfg(feature = "tls")]
pub mod tls;
