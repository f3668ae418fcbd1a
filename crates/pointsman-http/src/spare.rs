//! Memory that is used again: each thread keeps what one request has had for the next one, while it is still in the cache.

use std::cell::RefCell;

use crate::head::{RequestHead, ResponseHead};

/// The size of what is read into.
pub(crate) const BUFFER: usize = 64 << 10;
/// How many of each a thread keeps.
const KEPT: usize = 64;
/// What has grown larger than this is not kept.
const LARGE: usize = 16 << 10;

thread_local! {
    static BUFFERS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
    static TEXTS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
    // In boxes, because they are handed out in them.
    #[expect(clippy::vec_box)]
    static HEADS: RefCell<Vec<Box<Heads>>> = const { RefCell::new(Vec::new()) };
}

/// The heads of one request and its answer.
#[derive(Debug, Default)]
pub(crate) struct Heads {
    pub(crate) request: RequestHead,
    pub(crate) response: ResponseHead,
}

/// [`BUFFER`] bytes.
pub(crate) fn buffer() -> Vec<u8> {
    BUFFERS.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; BUFFER])
}

pub(crate) fn return_buffer(buffer: Vec<u8>) {
    BUFFERS.with_borrow_mut(|spare| {
        if spare.len() < KEPT {
            spare.push(buffer);
        }
    });
}

/// An empty text.
pub(crate) fn text() -> Vec<u8> {
    TEXTS.with_borrow_mut(Vec::pop).unwrap_or_else(|| Vec::with_capacity(2 << 10))
}

pub(crate) fn return_text(mut text: Vec<u8>) {
    if text.capacity() == 0 || text.capacity() > LARGE {
        return;
    }
    text.clear();
    TEXTS.with_borrow_mut(|spare| {
        if spare.len() < KEPT {
            spare.push(text);
        }
    });
}

pub(crate) fn heads() -> Box<Heads> {
    HEADS.with_borrow_mut(Vec::pop).unwrap_or_default()
}

pub(crate) fn return_heads(mut heads: Box<Heads>) {
    heads.request.fields.shrink();
    heads.response.fields.shrink();
    heads.request.clear();
    heads.response.clear();
    HEADS.with_borrow_mut(|spare| {
        if spare.len() < KEPT {
            spare.push(heads);
        }
    });
}
