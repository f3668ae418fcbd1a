//! A client of gRPC that is balanced over a service's instances: tonic's own health service, three times.
//!
//! ```sh
//! cargo run -p pointsman --features tonic --example grpc_client
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use pointsman::{Instance, Registry};
use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let registry = Registry::connect("memory://example").await?;
    let mut registrations = Vec::new();
    for _ in 0..3 {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let instance = Instance::new("ress").address(listener.local_addr()?.to_string());
        registrations.push(registry.register(instance).await?);
        let (_, health) = tonic_health::server::health_reporter();
        tokio::spawn(Server::builder().add_service(health).serve_with_incoming(TcpIncoming::from(listener)));
    }

    // Everything that a generated client needs: it follows the service, connects, and ejects what fails.
    let channel = pointsman::grpc::channel(&registry.discover("ress").await?);
    let mut client = HealthClient::new(channel);
    for _ in 0..4 {
        let answer = client.check(HealthCheckRequest::default()).await?;
        println!("{:?}", answer.into_inner().status());
    }
    registry.close().await;
    Ok(())
}
