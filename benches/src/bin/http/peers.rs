//! The proxies that are this program itself: ours, and pingora.

use std::collections::HashMap;
use std::io::Read;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use pingora_core::server::Server;
use pingora_core::server::configuration::ServerConf;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_http::RequestHeader;
use pingora_proxy::{ProxyHttp, Session};
use pointsman_bench::mqtt::Result;
use pointsman_core::{Instance, ObservedInstance, Role, Snapshot, View};
use pointsman_http::{Options, Proxy, Route, Settings, Views};

/// Our proxy with one worker, as an embedding program has it; until standard input ends. Each route has a service of its own.
pub(crate) fn pointsman(address: SocketAddr, backend: SocketAddr, routes: usize) -> Result<()> {
    let mut settings = Settings::new();
    settings.listen = address;
    settings.workers = 1;
    let mut views: Views = HashMap::new();
    for number in 0..routes {
        let service: Arc<str> = format!("service-{number}").into();
        settings.routes.push(Route::new(format!("^/r{number}(/|$)"), Arc::clone(&service)));
        let mut instance =
            ObservedInstance::from(Instance::new(Arc::clone(&service)).address(backend.to_string()).code("backend"));
        instance.role = Role::Normal;
        let snapshot = Snapshot::new(Arc::clone(&service), 1, vec![Arc::new(instance)]);
        views.insert(service.into(), View::fixed(snapshot));
    }
    let _proxy = Proxy::start(settings, &views, Options::default())?;
    until_standard_input_ends();
    Ok(())
}

/// A pingora proxy with one thread and no modules; until standard input ends.
pub(crate) fn pingora(address: SocketAddr, backend: SocketAddr) -> Result<()> {
    let settings = ServerConf { threads: 1, upstream_keepalive_pool_size: 512, ..ServerConf::default() };
    let mut server = Server::new_with_opt_and_conf(None, settings);
    server.bootstrap();
    let mut service = pingora_proxy::http_proxy_service(&server.configuration, To(backend));
    service.add_tcp(&address.to_string());
    server.add_service(service);
    std::thread::spawn(|| {
        until_standard_input_ends();
        std::process::exit(0);
    });
    server.run_forever()
}

fn until_standard_input_ends() {
    let _ = std::io::stdin().read(&mut [0]);
}

struct To(SocketAddr);

#[async_trait]
impl ProxyHttp for To {
    type CTX = ();

    fn new_ctx(&self) {}

    /// It would look at each answer whether to compress it.
    fn init_downstream_modules(&self, _: &mut pingora_core::modules::http::HttpModules) {}

    async fn upstream_peer(&self, _: &mut Session, (): &mut ()) -> pingora_core::Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.0, false, String::new())))
    }

    /// The fields that all the proxies here add.
    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        (): &mut (),
    ) -> pingora_core::Result<()> {
        if let Some(client) = session.client_addr().and_then(|client| client.as_inet()) {
            request.append_header("x-forwarded-for", client.ip().to_string())?;
        }
        request.insert_header("x-forwarded-proto", "http")?;
        if let Some(host) = request.headers.get("host").cloned() {
            request.insert_header("x-forwarded-host", host)?;
        }
        request.insert_header("x-request-id", format!("{:032x}", fastrand::u128(..)))
    }
}
