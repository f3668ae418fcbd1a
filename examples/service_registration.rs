//! Service registration: the first example of the go-micro-service README, here.
//!
//! ```sh
//! cargo run -p pointsman --example service_registration -- zookeeper://127.0.0.1:2181/micro-service
//! ```
//!
//! Without a URL it uses a registry within this process. It stays registered until Ctrl-C, reconnects by itself, and
//! prints its role whenever that changes.

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use pointsman::{Instance, Registry, Role};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory://example".to_owned());
    let registry = Registry::connect(&url).await?;
    let instance = Instance::new("testserver")
        .address("127.0.0.1:50000")
        // A service that listens need not have a code of its own; one behind a message broker must.
        .code("cacd3aa4-4eb8-4bf6-b967-fbcee5377992")
        .weight(1);
    let mut registration = registry.register(instance).await?;
    loop {
        tokio::select! {
            role = registration.role_changed() => match role {
                // What must not be done twice at a time starts here, and everything it writes carries the term.
                Some(Role::Master(term)) => println!("master now, term {term}"),
                Some(Role::Normal) => println!("normal now"),
                Some(_) => println!("detached: {}", registration.trouble().map_or_else(String::new, |trouble| trouble.to_string())),
                None => break,
            },
            _ = tokio::signal::ctrl_c() => break,
        }
    }
    // Gone from the registry at once, instead of when the session expires.
    registration.close().await?;
    registry.close().await;
    Ok(())
}
