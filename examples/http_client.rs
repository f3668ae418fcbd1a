//! A client of HTTP that is balanced over a service's instances: a whole call by hand, and a layer for tower's clients.
//!
//! ```sh
//! cargo run -p pointsman --features tower --example http_client
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use pointsman::client::BalanceLayer;
use pointsman::{Algorithm, CallPolicy, Instance, Outcome, Registry};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tower::{Layer as _, ServiceExt as _};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let registry = Registry::connect("memory://example").await?;
    let mut registrations = Vec::new();
    for name in ["the master", "one", "two"] {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let instance = Instance::new("ress").address(listener.local_addr()?.to_string());
        registrations.push(registry.register(instance).await?);
        tokio::spawn(serve(listener, name));
    }
    let service = registry.discover("ress").await?;
    let http = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();

    // A whole call: half a second for each of up to three instances. It may arrive twice, as a GET may.
    let balancer = service.balancer(Algorithm::LeastConnections);
    let policy = CallPolicy::new().timeout(Duration::from_millis(500)).retries(2);
    let judge = |answer: &Result<(StatusCode, Bytes), _>| {
        answer.as_ref().map_or(Outcome::Failure, |(status, _)| (*status).into())
    };
    for _ in 0..4 {
        let (status, body) = balancer
            .call_judged(policy, judge, async |instance| {
                let address = instance.address.as_deref().unwrap_or_default();
                let response = http.get(format!("http://{address}/").parse()?).await?;
                // Within the call: a body that hangs is the instance's fault, too.
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>((
                    response.status(),
                    response.into_body().collect().await?.to_bytes(),
                ))
            })
            .await
            .map_err(|error| error.to_string())?;
        println!("{status} from {}", String::from_utf8_lossy(&body));
    }

    // The same client under a layer, which fills in the address of each request.
    let client = BalanceLayer::new(balancer).layer(http);
    for _ in 0..4 {
        let response = client.clone().oneshot(Request::get("/data/video").body(Empty::new())?).await?;
        println!(
            "{} from {}",
            response.status(),
            String::from_utf8_lossy(&response.into_body().collect().await?.to_bytes())
        );
    }
    registry.close().await;
    Ok(())
}

/// Answers every request with its name.
async fn serve(listener: TcpListener, name: &'static str) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut request = [0; 4096];
            while stream.read(&mut request).await.is_ok_and(|count| count > 0) {
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len());
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        });
    }
}
