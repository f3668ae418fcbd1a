//! HTTP/1: what both sides of the proxy have in common.

pub(crate) mod body;
pub(crate) mod parse;
pub(crate) mod reader;
pub(crate) mod writer;
