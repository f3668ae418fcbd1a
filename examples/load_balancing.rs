//! Load balancing: the second example of the go-micro-service README, here. The master, and twenty picks.
//!
//! ```sh
//! cargo run -p pointsman --example load_balancing -- zookeeper://127.0.0.1:2181/micro-service least-connections
//! ```
//!
//! Without a URL it uses a registry within this process, and registers four instances of `testserver` in it first.

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use pointsman::{Algorithm, Instance, Registry};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().unwrap_or_else(|| "memory://example".to_owned());
    // One of round-robin, weighted-round-robin, random, weighted-random, ip-hash, url-hash, least-connections, peak-ewma.
    let algorithm: Algorithm = arguments.next().as_deref().unwrap_or("least-connections").parse()?;
    let registry = Registry::connect(&url).await?;
    let mut samples = Vec::new();
    if url.starts_with("memory://") {
        for number in 0..4 {
            let address = format!("127.0.0.1:{}", 50000 + number);
            samples.push(registry.register(Instance::new("testserver").address(address).weight(number + 1)).await?);
        }
    }

    let service = registry.discover("testserver").await?;
    println!("------------master------------");
    match service.master() {
        Ok(master) => println!("{:?} {} {}", master.address, master.code, master.weight),
        Err(error) => println!("{error}"),
    }
    println!("------------normal------------");
    let balancer = service.balancer(algorithm);
    for _ in 0..20 {
        // The key counts for the hashes only. The claim counts as in flight until it is dropped.
        match balancer.pick("/data/video") {
            Ok(claim) => println!("{:?} {} {}", claim.address(), claim.code(), claim.instance().weight),
            Err(error) => println!("{error}"),
        }
    }
    drop(samples);
    registry.close().await;
    Ok(())
}
