//! A service behind an MQTT broker, and a sender that knows neither the service nor its address.
//!
//! The relay in between finds the service in the registry, and the sender finds the relay there.
//!
//! ```sh
//! mosquitto -p 1883 &
//! cargo run -p pointsman --features mqtt --example mqtt_service -- mqtt://127.0.0.1:1883
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::time::Duration;

use pointsman::mqtt::{BrokerUrl, Client, Error, Qos, Relay, Reply, Request, Route, Service, Settings};
use pointsman::{Instance, Registry};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let broker = std::env::args().nth(1).unwrap_or_else(|| "mqtt://127.0.0.1:1883".to_owned());
    let broker: BrokerUrl = broker.parse()?;
    // `memory://` is a registry within this process; a fleet uses `zookeeper://host1,host2,host3/micro-service`.
    let registry = Registry::connect("memory://example").await?;

    let service = Service::builder(&registry, Instance::new("cfgs"))
        .broker(broker.clone())
        .on("/login/user", |request: Request| async move {
            let name = std::str::from_utf8(request.payload())?;
            if name == "nobody" {
                return Err("no such user".into());
            }
            Ok(Reply::new(format!("hello {name}")).content_type("text/plain"))
        })
        .on("/login/seen/#", |request: Request| async move {
            println!("{} was seen", request.topic());
            Ok(())
        })
        .start()
        .await?;
    println!("service {} is {}", service.code(), service.role());

    // Usually a process of its own: `pointsman serve`.
    let mut settings = Settings::new();
    settings.ingress = Some(broker);
    settings.routes = vec![Route::new("^/login(/|$)", "cfgs")];
    let mut relay = Relay::start(&registry, settings, Some("mqtt-balancer"), None).await?;
    relay.ready().await?;

    let client = Client::builder(&registry, "mqtt-balancer").name("cgws").start().await?;
    let reply = client.request("/login/user", "ann", Duration::from_secs(5)).await?;
    println!("{}", String::from_utf8_lossy(&reply.payload));
    match client.request("/login/user", "nobody", Duration::from_secs(5)).await {
        Err(Error::NotDelivered { reason, detail }) => println!("{reason}: {detail}"),
        other => return Err(format!("an error was expected, not {other:?}").into()),
    }
    client.publish("/login/seen/ann", "", Qos::ExactlyOnce).await?;

    client.close().await;
    // What is under way is finished first.
    service.close().await?;
    relay.close().await;
    Ok(())
}
