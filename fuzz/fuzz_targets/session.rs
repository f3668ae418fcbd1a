//! Bytes as a script: for two sessions over a connection that breaks, or for one whose peer sends anything.

#![no_main]

use pointsman_mqtt::fuzzing::sessions::{endure, play};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| match bytes.split_first() {
    Some((0..128, script)) => play(script),
    Some((128.., script)) => endure(script),
    None => {}
});
