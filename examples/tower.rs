//! A service's instances as they come and go, for anything built on tower: here its power-of-two-choices balancer.
//!
//! ```sh
//! cargo run -p pointsman --features tower --example tower
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::convert::Infallible;
use std::sync::Arc;

use pointsman::{Instance, Registry};
use tower::balance::p2c::Balance;
use tower::load::{CompleteOnResponse, PendingRequests};
use tower::{Service as _, ServiceExt as _, service_fn};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let registry = Registry::connect("memory://example").await?;
    let mut registrations = Vec::new();
    for port in 50000..50003 {
        registrations.push(registry.register(Instance::new("ress").address(format!("127.0.0.1:{port}"))).await?);
    }
    let service = registry.discover("ress").await?;
    let discover = pointsman::client::discover(&service, |instance| {
        // A real caller makes a client for the address here.
        let address: Arc<str> = instance.address.clone().unwrap_or_default();
        let call = move |request: u32| {
            let address = address.clone();
            async move { Ok::<_, Infallible>(format!("request {request} answered by {address}")) }
        };
        PendingRequests::new(service_fn(call), CompleteOnResponse::default())
    });
    let mut balance = Balance::new(discover);
    for request in 0..6 {
        println!("{}", balance.ready().await?.call(request).await?);
    }
    registry.close().await;
    Ok(())
}
