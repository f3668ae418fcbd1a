//! What the documents say of the code.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::Path;

#[test]
fn every_test_that_the_table_of_defects_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let table = fs::read_to_string(root.join("docs/defects.md")).unwrap();
    let mut named = 0;
    for name in table.split('`').filter(|word| word.contains(".rs::")) {
        let (file, test) = name.split_once("::").unwrap();
        let file = match file.split_once('/').unwrap() {
            ("T", file) => format!("crates/pointsman-registry/tests/{file}"),
            ("B", file) => format!("crates/pointsman-balance/tests/{file}"),
            ("M", file) => format!("crates/pointsman-mqtt/tests/{file}"),
            ("C", file) => format!("crates/pointsman-cli/tests/{file}"),
            _ => file.to_owned(),
        };
        let text = fs::read_to_string(root.join(&file)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(text.contains(&format!("fn {test}(")), "{name}");
        named += 1;
    }
    assert!(named > 40, "{named}");
}
