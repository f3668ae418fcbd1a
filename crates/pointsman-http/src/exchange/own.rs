//! What the proxy itself answers.

use std::future::poll_fn;
use std::task::Poll;

use tokio::time::Instant;

use crate::client::{Answer, Client, From};
use crate::head::Verb;
use crate::problem::Problem;
use crate::settings;

use super::{Ended, Exchange};

impl<C: Client> Exchange<'_, C> {
    /// Answers as a route says.
    pub(super) async fn say(&mut self, answer: &settings::Answer) -> Result<(), Ended> {
        let fields: Vec<(&str, &str)> =
            answer.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        self.send(answer.status, &fields, answer.body.as_bytes()).await;
        Ok(())
    }

    /// Tells a problem.
    pub(super) async fn tell(&mut self, problem: &Problem) {
        let kind = self.request.fields.named("content-type").next().unwrap_or_default();
        if kind.starts_with(b"application/grpc") {
            return self.tell_grpc(problem).await;
        }
        let body = problem.json();
        let mut fields = vec![("content-type", "application/problem+json"), ("cache-control", "no-store")];
        if problem.retry_after() {
            fields.push(("retry-after", "1"));
        }
        if problem.status == 405 {
            fields.push(("allow", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
        }
        if self.table.reasons {
            fields.push(("pointsman-reason", problem.kind.name()));
        }
        self.send(problem.status, &fields, body.as_bytes()).await;
    }

    /// Clients of gRPC look at nothing but its own status: an answer that has only trailers
    /// (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>; which status for which: doc/http-grpc-status-mapping.md).
    async fn tell_grpc(&mut self, problem: &Problem) {
        let status = match problem.status {
            502..=504 => "14",
            404 => "12",
            408 => "4",
            400 | 431 => "13",
            _ => "2",
        };
        let detail: String =
            problem.detail.chars().map(|c| if matches!(c, ' '..='~') && c != '%' { c } else { '?' }).collect();
        let mut fields =
            vec![("content-type", "application/grpc"), ("grpc-status", status), ("grpc-message", detail.as_str())];
        if self.table.reasons {
            fields.push(("pointsman-reason", problem.kind.name()));
        }
        self.send(200, &fields, b"").await;
    }

    async fn send(&mut self, status: u16, fields: &[(&str, &str)], body: &[u8]) {
        self.record.status = status;
        let date = httpdate::fmt_http_date(std::time::SystemTime::now());
        let fields = [fields, &[("date", date.as_str())]].concat();
        let follows = self.request.verb != Verb::Head && !matches!(status, 204 | 304);
        let from = From::Proxy { status, fields: &fields, len: body.len(), follows };
        self.client.answer(&Answer { from, id: self.ids.request(self.request), cookie: None });
        let mut left = if follows { body } else { b"" };
        self.alarm.set(Some(Instant::now() + settings::Timeouts::default().idle));
        let (mut is_ended, alarm, client) = (false, &mut *self.alarm, &mut *self.client);
        let sent = poll_fn(|cx| {
            loop {
                let moved = if !left.is_empty() {
                    client.poll_push(cx, left).map_ok(|count| left = &left[count..])
                } else if !std::mem::replace(&mut is_ended, true) {
                    client.finish(None);
                    continue;
                } else {
                    match client.poll_flush(cx) {
                        Poll::Ready(Ok(())) => return Poll::Ready(true),
                        other => other,
                    }
                };
                match moved {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(_)) => return Poll::Ready(false),
                    Poll::Pending => return alarm.poll(cx).map(|()| false),
                }
            }
        });
        if sent.await {
            self.record.sent += body.len() as u64;
        } else {
            self.client.fail();
            self.record.broken = true;
        }
    }
}
