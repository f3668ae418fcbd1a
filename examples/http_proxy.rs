//! A proxy before two services: requests find an instance of the right one, over HTTP and from within the program.
//!
//! ```sh
//! cargo run -p pointsman --features http --example http_proxy
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use http::Request;
use http_body_util::{BodyExt as _, Empty};
use pointsman::proxy::{Action, Proxy, Route, RouteRole, Settings};
use pointsman::{Instance, Registration, Registry};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tower::ServiceExt as _;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[tokio::main]
async fn main() -> Result<()> {
    // `memory://` is a registry within this process; a fleet uses `zookeeper://host1,host2,host3/micro-service`.
    let registry = Registry::connect("memory://example").await?;
    let mut registrations = Vec::new();
    for (service, code) in [("ress", "ress-1"), ("ress", "ress-2"), ("ress", "ress-3"), ("cfgs", "cfgs-1")] {
        registrations.push(serve(&registry, service, code).await?);
    }

    // Usually a process of its own: `pointsman serve`.
    let mut settings = Settings::new();
    settings.listen = "127.0.0.1:0".parse()?;
    let mut writes = Route::new("^/picture", "ress");
    writes.name = "writes".to_owned();
    writes.when.methods = vec!["POST".to_owned(), "PUT".to_owned()];
    if let Action::Pass(pass) = &mut writes.action {
        pass.role = RouteRole::Master;
    }
    // The first that matches wins.
    settings.routes = vec![writes, Route::new("^/picture", "ress"), Route::new("^/login(/|$)", "cfgs")];
    let mut proxy = Proxy::builder(&registry, settings).register_as("http-balancer").start().await?;
    proxy.ready().await?;

    // Clients find the proxy as they find any service, or know where it is.
    let found = registry.discover("http-balancer").await?.master()?;
    let address = found.address.as_deref().unwrap_or_default();
    println!("GET /picture/cat.png: {}", ask(address, "GET", "/picture/cat.png").await?);
    println!("GET /picture/cat.png: {}", ask(address, "GET", "/picture/cat.png").await?);
    println!("PUT /picture/cat.png: {}", ask(address, "PUT", "/picture/cat.png").await?);
    println!("GET /login/user:      {}", ask(address, "GET", "/login/user").await?);
    println!("GET /nowhere:         {}", ask(address, "GET", "/nowhere").await?);

    // The same routes for requests from within the program, as a `tower::Service`.
    let request = Request::get("http://localhost/picture/cat.png").body(Empty::<bytes::Bytes>::new())?;
    let answer = proxy.requests().oneshot(request).await?;
    let body = answer.into_body().collect().await?.to_bytes();
    println!("from within:          {}", String::from_utf8_lossy(&body));

    // What is under way is finished first.
    proxy.close().await;
    for registration in registrations {
        registration.close().await?;
    }
    Ok(())
}

/// A tiny server, and its registration.
async fn serve(registry: &Registry, service: &str, code: &'static str) -> Result<Registration> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let instance = Instance::new(service).code(code).address(listener.local_addr()?.to_string());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer =
                format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{code}", code.len());
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") && stream.read_buf(&mut head).await? > 0 {}
                stream.write_all(answer.as_bytes()).await
            });
        }
    });
    Ok(registry.register(instance).await?)
}

/// Asks as any client would; status and body of the answer.
async fn ask(address: &str, method: &str, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request =
        format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no answer")?;
    Ok(format!("{} {body}", head.split(' ').nth(1).unwrap_or("?")))
}
