//! What `use pointsman::*` brings with it takes no name from the crates that its users have beside it.

use pointsman::*;

#[test]
fn nothing_is_shadowed() {
    let status = http::StatusCode::OK;
    assert_eq!(Outcome::from(status), Outcome::Success);
    let _: Option<tower::BoxError> = None;
    let _: Option<tonic::Code> = None;
}
