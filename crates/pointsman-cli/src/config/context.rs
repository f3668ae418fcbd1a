//! Inputs and results of reading a file, beside the file itself.

use super::credentials::Tokens;
use super::document::Document;
use super::paths::{Folder, NamedFile};

/// The surroundings of a file that is read.
pub(super) struct Context<'c> {
    pub(super) document: &'c Document<'c>,
    /// Folder to which relative paths refer.
    pub(super) folder: &'c Folder,
    /// The agent's tokens of the environment.
    pub(super) tokens: &'c Tokens,
    /// The files that it names and whose changes are applied.
    pub(super) files: Vec<NamedFile>,
    /// The URLs of registries, each with the path of its key.
    pub(super) urls: Vec<(String, String)>,
}

impl<'c> Context<'c> {
    pub(super) fn new(document: &'c Document<'c>, folder: &'c Folder, tokens: &'c Tokens) -> Self {
        Self { document, folder, tokens, files: Vec::new(), urls: Vec::new() }
    }
}
