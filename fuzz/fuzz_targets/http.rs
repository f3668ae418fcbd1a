//! Any bytes, as a client or an instance might send them.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    pointsman_http::fuzzing::request(bytes);
    pointsman_http::fuzzing::answer(bytes);
});
