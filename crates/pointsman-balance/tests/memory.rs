//! The memory that a balancer holds.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use allocation_counter::measure;
use pointsman_balance::{Algorithm, Balancer};
use pointsman_core::{Instance, ObservedInstance, Snapshot, View};

/// Bytes that a balancer over a service of `count` instances holds once it has picked.
fn held(algorithm: Algorithm, count: usize, weight: impl Fn(usize) -> u32) -> i64 {
    let instance = |index| {
        let instance = Instance::with_code("s", format!("10.0.0.{index}:8080"));
        Arc::new(ObservedInstance::from(instance.address("10.0.0.1:8080").weight(weight(index))))
    };
    let view = View::fixed(Snapshot::new("s", 1, (0..count).map(instance).collect()));
    // Another thread, as a thread keeps the tables that it has used last.
    let measured = std::thread::spawn(move || {
        let mut balancer = None;
        let allocated = measure(|| {
            let new = Balancer::new(view, algorithm);
            drop(new.pick("192.168.9.2").unwrap());
            balancer = Some(new);
        });
        allocated.bytes_current
    });
    measured.join().unwrap()
}

#[test]
fn a_balancer_of_ten_instances_by_hash_takes_16_kib_at_most() {
    for algorithm in [Algorithm::IpHash, Algorithm::UrlHash] {
        for (weights, weight) in [
            ("equal", (|_| 1) as fn(usize) -> u32),
            ("1 to 5", |index| 1 + index as u32 % 5),
            ("1 and 100", |index| [1, 100][index % 2]),
            ("rising", |index| 1 << index),
        ] {
            for count in [1, 2, 3, 10] {
                let bytes = held(algorithm, count, weight);
                assert!(bytes <= 16 * 1024, "{algorithm}, {count} instances, weights {weights}: {bytes} bytes");
            }
        }
    }
}
