//! One request: from its head to the end of its answer.

mod attempt;
mod choice;
mod mirror;
mod own;
mod record;
mod tunnel;

use std::borrow::Cow;
use std::sync::Arc;

use pointsman_balance::{Algorithm, Outcome};
use pointsman_net::percent;
use tokio::time::Instant;

use crate::alarm::Alarm;
use crate::client::{Answer, Client, From};
use crate::flow::Flow;
use crate::forward::{self, Hop, Ids, Peer};
use crate::gate::{Crowded, Place};
use crate::head::{RequestHead, ResponseHead};
use crate::instance::Connection;
use crate::metrics::{RouteMetrics, RouteShard, count};
use crate::problem::{Kind, Problem};
use crate::settings::Key;
use crate::spare::Heads;
use crate::table::{Endpoint, LineAction, Passing, Table, Target};
use crate::worker::Worker;

use self::attempt::{Again, Replay, Unfit};
use self::choice::{Choice, Chosen};
use self::record::Record;

/// A request under way.
struct Exchange<'a, C> {
    worker: &'a Arc<Worker>,
    table: Arc<Table>,
    client: &'a mut C,
    request: &'a RequestHead,
    response: &'a mut ResponseHead,
    peer: &'a Peer,
    alarm: &'a mut Alarm,
    ids: Ids,
    record: Record,
    /// How far the request's body has come.
    flow: Flow,
    /// What of it would have to be sent again.
    replay: Replay,
    /// A copy of it is to be sent, and has not been.
    owes_copy: bool,
}

/// Why a request is not answered by an instance.
enum Ended {
    /// The proxy has something to say instead.
    Problem(Problem),
    /// Nobody waits for an answer.
    Gone,
}

impl std::convert::From<Problem> for Ended {
    fn from(problem: Problem) -> Self {
        Ended::Problem(problem)
    }
}

/// Answers the request in `heads`. What becomes of the connection is for the client to know.
pub(crate) async fn serve<C: Client>(
    worker: &Arc<Worker>,
    client: &mut C,
    heads: &mut Heads,
    peer: &Peer,
    alarm: &mut Alarm,
) {
    let table = worker.table();
    let found = table.matchers[worker.number].find(&heads.request);
    let line = found.map(|index| &table.lines[index]);
    let metrics = line.map_or(&worker.shared.metrics.unrouted, |line| &line.metrics);
    let shard = metrics.of(worker.number);
    shard.begin();
    let mut exchange = Exchange::new(worker, &table, client, heads, peer, alarm, metrics.clone());
    let ended = match line {
        _ if forward::goes_in_circles(exchange.request) => {
            Err(Problem::new(Kind::Loop, "it has been through this or other proxies too often").into())
        }
        None => Err(Problem::new(Kind::NoRoute, "no route matches host, path, method and headers").into()),
        Some(line) => match &line.action {
            LineAction::Answer(answer) => exchange.say(answer).await,
            LineAction::Pass(passing) => {
                let ended = exchange.pass(passing, shard).await;
                exchange.end_mirroring(passing);
                ended
            }
        },
    };
    exchange.end(ended).await;
}

/// Answers what is no request.
pub(crate) async fn refuse<C: Client>(
    worker: &Arc<Worker>,
    client: &mut C,
    heads: &mut Heads,
    peer: &Peer,
    alarm: &mut Alarm,
    problem: &Problem,
) {
    let metrics = worker.shared.metrics.unrouted.clone();
    metrics.of(worker.number).begin();
    let exchange = Exchange::new(worker, &worker.table(), client, heads, peer, alarm, metrics);
    exchange.end(Err(problem.clone().into())).await;
}

impl<'a, C: Client> Exchange<'a, C> {
    fn new(
        worker: &'a Arc<Worker>,
        table: &Arc<Table>,
        client: &'a mut C,
        heads: &'a mut Heads,
        peer: &'a Peer,
        alarm: &'a mut Alarm,
        metrics: Arc<RouteMetrics>,
    ) -> Self {
        let Heads { request, response } = heads;
        Self {
            worker,
            table: table.clone(),
            client,
            ids: Ids::of(request),
            request,
            response,
            peer,
            alarm,
            record: Record::new(metrics, worker, table),
            flow: Flow::default(),
            replay: Replay::default(),
            owes_copy: false,
        }
    }

    /// Says what there is to say, and writes down how it went.
    async fn end(mut self, ended: Result<(), Ended>) {
        if let Err(Ended::Problem(problem)) = &ended {
            self.worker.shared.metrics.problem(problem.kind);
            self.record.reason = Some(problem.kind);
            self.tell(problem).await;
        }
        if matches!(ended, Err(Ended::Gone)) {
            self.client.fail();
            self.record.gone = true;
        }
        self.record.end(self.worker, &self.table, self.request, self.peer, &self.ids);
    }

    async fn pass(&mut self, passing: &Passing, shard: &RouteShard) -> Result<(), Ended> {
        let _place = enter(passing, shard).await?;
        let whole = passing.pass.timeouts.whole.map(|whole| self.record.started + whole);
        let key = self.key(passing);
        let sticky = self.sticky(passing);
        // Who stays with an instance stays with its service.
        let stays = sticky.as_deref().and_then(|code| passing.home(code));
        let mut target = stays.unwrap_or_else(|| passing.target(draw(&passing.split, key.as_deref())));
        if passing.pass.retries > 0 {
            passing.budget.deposit();
            self.replay.keep();
        }
        self.begin_mirroring(passing);
        let path = self.path(passing);
        let (mut tried, mut refused, mut fresh, mut attempts) = (Vec::new(), None, false, Attempts::default());
        loop {
            let (key, sticky, tried_now) = (key.as_deref(), sticky.as_deref(), &tried);
            let choice = Choice { passing, target, key, sticky, tried: tried_now, whole };
            let Chosen { endpoint, permit, keeps_cookie } = match choice.choose(shard).await {
                Ok(chosen) => chosen,
                // Nobody can serve its share there: it goes home.
                Err(why) if why.is_final() && passing.goes_astray(target, true) => {
                    count(&shard.split_home);
                    (target, tried) = (&passing.target, Vec::new());
                    continue;
                }
                Err(why) => return Err(why.problem(refused.as_ref()).into()),
            };
            passing.goes_astray(target, false);
            self.record.goes_to(&endpoint);
            let unfit = match self.attempt(passing, target, &endpoint, &path, fresh, whole).await {
                Ok(connection) => {
                    self.mirror(passing);
                    let cookie = if keeps_cookie { None } else { self.cookie(passing, &endpoint, sticky) };
                    let result = self.answer(passing, target, &endpoint, connection, cookie.as_deref(), whole).await;
                    drop(permit);
                    return result;
                }
                Err(Unfit::Gone) => return Err(Ended::Gone),
                Err(Unfit::Nonsense(reason)) => return Err(Problem::bad(reason).into()),
                Err(Unfit::Slow) => {
                    return Err(
                        Problem::new(Kind::RequestTimeout, "the body of the request did not go on in time").into()
                    );
                }
                // It had served others, and ended when this one came: nothing is wrong with the instance.
                Err(Unfit::Stale { again: Again::InBudget | Again::Free, .. }) if !fresh => {
                    fresh = true;
                    self.rewind();
                    continue;
                }
                Err(Unfit::Stale { problem, again } | Unfit::Failed { problem, again }) => (problem, again),
            };
            endpoint.report(Outcome::Failure);
            let (problem, again) = unfit;
            tracing::debug!(service = %target.service.id, code = %endpoint.code(), reason = %problem.detail, "no answer");
            if !may_try_again(passing, again, &mut attempts) {
                return Err(problem.into());
            }
            count(&shard.retries);
            self.record.retries += 1;
            tried.push(endpoint.code().clone());
            refused = Some(problem);
            fresh = false;
            self.rewind();
        }
    }

    /// Begins with the body anew, which counts once however often it is sent.
    fn rewind(&mut self) {
        self.flow = Flow::default();
        self.replay.rewind();
        self.record.received = 0;
    }

    fn hop(&self) -> Hop<'_> {
        let trusted = &self.table.trusted;
        Hop {
            peer: self.peer,
            trusted: !trusted.is_empty() && trusted.iter().any(|network| network.contains(self.peer.address)),
            forwarded: self.table.forwarded,
            ids: &self.ids,
        }
    }

    /// What the hashes go by; `None` where there is nothing, or nothing is asked for.
    fn key(&self, passing: &Passing) -> Option<Vec<u8>> {
        let pass = &passing.pass;
        let address = || forward::client_address(self.request, self.peer, &self.table.trusted).to_string().into_bytes();
        let key = match (&pass.key, pass.algorithm) {
            (Some(key), _) => key,
            (None, Algorithm::IpHash) => &Key::ClientAddress,
            (None, Algorithm::UrlHash) => &Key::Path,
            (None, _) => return None,
        };
        match key {
            Key::ClientAddress => Some(address()),
            Key::Path => Some(self.request.target().to_vec()),
            Key::Header(name) => self.request.fields.named(name).next().map(<[u8]>::to_vec),
            Key::Cookie(name) => self.request.cookie(name).map(<[u8]>::to_vec),
        }
    }

    /// The code of the instance that the client has had before.
    fn sticky(&self, passing: &Passing) -> Option<String> {
        let sticky = passing.pass.sticky.as_ref()?;
        percent::decode(self.request.cookie(&sticky.cookie)?).ok()
    }

    /// A cookie, if the client is to have another.
    fn cookie(&self, passing: &Passing, endpoint: &Endpoint, had: Option<&str>) -> Option<String> {
        let sticky = passing.pass.sticky.as_ref()?;
        if had == Some(&**endpoint.code()) {
            return None;
        }
        let code = percent::utf8_percent_encode(endpoint.code(), percent::PATH);
        let mut cookie = format!("{}={code}; Path=/; HttpOnly; SameSite=Lax", sticky.cookie);
        if self.peer.secure {
            cookie.push_str("; Secure");
        }
        if let Some(age) = sticky.max_age {
            cookie.push_str(&format!("; Max-Age={}", age.as_secs()));
        }
        Some(cookie)
    }

    /// The target as the instance is to see it.
    fn path(&self, passing: &Passing) -> Cow<'static, [u8]> {
        let target = self.request.target();
        let (Some(rewrite), Some(prefix)) = (&passing.pass.rewrite_prefix, &passing.path_prefix) else {
            return Cow::Borrowed(b"");
        };
        let Some(rest) = target.strip_prefix(prefix.as_bytes()) else { return Cow::Borrowed(b"") };
        let rest = if rewrite.ends_with('/') { rest.strip_prefix(b"/").unwrap_or(rest) } else { rest };
        let mut path = rewrite.as_bytes().to_vec();
        if !rest.is_empty() && !path.ends_with(b"/") && !rest.starts_with(b"/") && !rest.starts_with(b"?") {
            path.push(b'/');
        }
        path.extend_from_slice(rest);
        Cow::Owned(path)
    }

    /// Passes the answer on.
    async fn answer(
        &mut self,
        passing: &Passing,
        target: &Target,
        endpoint: &Endpoint,
        mut connection: Connection,
        cookie: Option<&str>,
        whole: Option<Instant>,
    ) -> Result<(), Ended> {
        let (status, metrics) = (self.response.status, target.service.metrics.of(self.worker.number));
        count(&metrics.answered);
        if status >= 500 {
            endpoint.report(Outcome::Failure);
        } else if passing.pass.algorithm == Algorithm::PeakEwma || status == 101 {
            // What is measured is how long an answer takes to begin, not how long it is.
            endpoint.report(Outcome::Success);
        }
        self.record.status = status;
        let id = self.ids.request(self.request);
        self.client.answer(&Answer { from: From::Instance(self.response), id, cookie });
        if status == 101 {
            return self.tunnel(&mut connection).await;
        }
        let result = self.flow_back(passing, &mut connection, whole).await;
        match &result {
            Ok(()) => {
                endpoint.report(Outcome::Success);
                self.give_back(target, endpoint, connection);
            }
            Err(Ended::Gone) => endpoint.report(Outcome::Success),
            Err(Ended::Problem(_)) => {
                endpoint.report(Outcome::Failure);
                count(&self.record.metrics.of(self.worker.number).broken);
            }
        }
        // An answer has begun: nothing else can be said.
        if result.is_err() {
            self.client.fail();
            self.record.broken = true;
        }
        Ok(())
    }

    fn give_back(&mut self, target: &Target, endpoint: &Endpoint, connection: Connection) {
        let now = Instant::now();
        self.record.ended = Some(now);
        if !self.flow.is_done() {
            return;
        }
        target.service.give_back(self.worker.number, &endpoint.address, connection, now);
        self.worker.waiting.notify_one();
    }
}

/// Lets a request in, if not too many are under way.
async fn enter(passing: &Passing, shard: &RouteShard) -> Result<Option<Place>, Problem> {
    let Some(gate) = &passing.gate else { return Ok(None) };
    if let Some(place) = gate.try_enter() {
        return Ok(Some(place));
    }
    count(&shard.queued);
    let _joined = passing.waiting.join(passing.pass.queue).map_err(crowded)?;
    gate.enter(passing.pass.queue_timeout).await.map(Some).map_err(crowded)
}

fn crowded(crowded: Crowded) -> Problem {
    Problem::new(
        Kind::Overloaded,
        match crowded {
            Crowded::QueueFull => "too many requests are under way, and too many wait",
            Crowded::WaitedTooLong => "too many requests are under way; it has waited too long",
        },
    )
}

/// How often a request has been tried again.
#[derive(Debug, Default)]
struct Attempts {
    /// As counts against `retries`.
    counted: u32,
    free: u32,
}

/// Maximum number of retries of a request whose connections were refused. More dead instances in a row are not expected even while most of a
/// large service is dead, because instances whose last call has failed come last.
const FREE_RETRIES: u32 = 100;

/// Whether a request that an instance has not answered may go to another. What may have arrived counts against the limits of retries;
/// where an instance has refused the connection, each is asked once if need be: while many have died and are registered still, several in a row
/// may be dead. One that has not accepted in time has cost time, and counts.
fn may_try_again(passing: &Passing, again: Again, tried: &mut Attempts) -> bool {
    match again {
        Again::Never => false,
        Again::InBudget => {
            tried.counted += 1;
            tried.counted <= passing.pass.retries && passing.budget.withdraw(Instant::now().into_std())
        }
        Again::Counted => {
            tried.counted += 1;
            tried.counted <= passing.pass.retries
        }
        Again::Free => {
            tried.free += 1;
            passing.pass.retries > 0 && tried.free <= FREE_RETRIES
        }
    }
}

/// 0 to 99: which share a request is in. Requests with the same key are in the same.
fn draw(split: &[(u8, Target)], key: Option<&[u8]>) -> u8 {
    if split.is_empty() {
        return 0;
    }
    // Less than 100.
    match key {
        Some(key) => (xxhash_rust::xxh3::xxh3_64_with_seed(key, 0x5911) % 100) as u8,
        None => fastrand::u8(..100),
    }
}

impl crate::matching::Asked for RequestHead {
    fn method(&self) -> &[u8] {
        self.method()
    }

    fn host(&self) -> &[u8] {
        self.host()
    }

    fn path(&self) -> &[u8] {
        self.path()
    }

    fn any_header(&self, name: &str, is: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        self.fields.named(name).any(is)
    }
}
