//! Any bytes, in either version, cut anywhere.

#![no_main]

use pointsman_mqtt::fuzzing::packets::read_write_read;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| read_write_read(bytes));
