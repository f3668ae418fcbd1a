//! Calls to the agent, as a program without a library or an operator makes them.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Response;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::instance::{host, note_role};
use crate::load::{Connection, at, connect};
use crate::origin::Order;
use crate::recorder::Recorder;
use crate::support::DEADLINE;
use crate::truth::LifeId;

/// The path of all instances.
pub(crate) const INSTANCES: &str = "/v1/services/ress/instances";

/// Calls the agent at a port, and returns the status and the body.
pub(crate) async fn call(agent: u16, method: &str, path: &str, body: &str) -> Result<(u16, Value), String> {
    let calling = async {
        let (_connection, answer) = open(agent, method, path, body).await?;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
        Ok((status, serde_json::from_slice(&body).unwrap_or_default()))
    };
    timeout(DEADLINE, calling).await.unwrap_or_else(|_| Err(format!("no answer within {DEADLINE:?}")))
}

/// Has the agent register an instance as soon as its origin listens, and records its role as long as it is registered.
pub(crate) fn lease(registry: &str, order: &Order, life: LifeId, recorder: &Recorder) {
    let (agent, order, recorder) = (port(registry), order.clone(), recorder.clone());
    tokio::spawn(async move {
        let path = format!("{INSTANCES}/{}", order.code);
        let check = json!({"probe": "tcp", "interval": "200ms"});
        let address = format!("{}:{}", host(std::process::id().cast_signed()), order.port);
        let body = json!({"address": address, "ttl": "10m", "check": check}).to_string();
        match call(agent, "PUT", &path, &body).await {
            Ok((200 | 201, _)) => {}
            other => return recorder.note(format!("{}: the agent does not register it: {other:?}", order.code)),
        }
        let Ok((_connection, answer)) = open(agent, "GET", &format!("{path}/role"), "").await else { return };
        follow_roles(answer.into_body(), life, &recorder).await;
    });
}

/// Ends the lease of an instance.
///
/// # Panics
/// If the agent does not say that it has.
pub(crate) async fn deregister(registry: &str, code: &str) {
    let answer = call(port(registry), "DELETE", &format!("{INSTANCES}/{code}"), "").await;
    assert!(matches!(answer, Ok((204, _))), "DELETE of {code}: {answer:?}");
}

/// Reads the data of each event until the stream ends.
async fn follow_roles(mut stream: Incoming, life: LifeId, recorder: &Recorder) {
    let mut text = Vec::new();
    while let Some(Ok(frame)) = stream.frame().await {
        text.extend(frame.into_data().unwrap_or_default());
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            if let Some(data) = String::from_utf8_lossy(&line).strip_prefix("data: ") {
                note_role(data, life, recorder);
            }
        }
    }
}

/// The answer lasts as long as the connection is kept.
async fn open(agent: u16, method: &str, path: &str, body: &str) -> Result<(Connection, Response<Incoming>), String> {
    let mut connection = connect(at(agent)).await?;
    let request = hyper::Request::builder().method(method).uri(path).header("host", "127.0.0.1");
    let request = request.header("content-type", "application/json");
    let request = request.body(Full::new(Bytes::from(body.to_owned()))).unwrap();
    let answer = connection.send_request(request).await.map_err(|error| error.to_string())?;
    Ok((connection, answer))
}

/// The port in the URL of an agent as a registry.
fn port(registry: &str) -> u16 {
    let port = registry.strip_prefix("http://127.0.0.1:").and_then(|rest| rest.split('?').next()?.parse().ok());
    port.expect("the URL of an agent on this machine")
}
