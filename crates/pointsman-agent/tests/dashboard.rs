//! The dashboard in a real browser, against a real agent.

mod fleet;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use fleet::{Fleet, get, instance, traffic};
use pointsman_agent::Token;
use pointsman_testkit::http::Nginx;
use serde_json::{Value, json};

const ESCAPE: &str = "\u{e00c}";
const ENTER: &str = "\u{e007}";

/// What is registered is there at once, and what happens is seen, without a reload.
#[tokio::test]
async fn what_registers_appears_and_who_was_master_stays_to_be_seen() {
    let fleet = Fleet::start().await;
    fleet.show("").await;
    fleet.says("main", "No services yet").await;
    fleet.says("main pre", &format!("http://{}/v1/services/hello", fleet.address())).await;
    let first = fleet.register(instance("orders", "first").tag("zone", "eu-1")).await;
    fleet.keep(instance("orders", "second")).await;
    fleet.says(".services td.c-name", "orders").await;
    fleet.says(".services td.c-board", "2").await;
    fleet.says(".services td.c-master", "first").await;
    fleet.browser.click(".services td.c-name a").await;
    fleet.says(".service .facts", "Master first").await;
    fleet.says(".instances td.c-tags", "eu-1").await;
    fleet.browser.wait_for("document.querySelectorAll('.track .held').length === 1").await;
    first.close().await.unwrap();
    fleet.says(".service .facts", "Master second").await;
    fleet.browser.wait_for("document.querySelector('.track .lane.now').textContent === 'second'").await;
    fleet.browser.click(".more summary").await;
    fleet.says(".masters tbody tr:nth-child(1)", "second").await;
    fleet.says(".masters tbody tr:nth-child(2)", "first").await;
    fleet.says("#rail-list", "is master").await;
    fleet.browser.wait_for("document.getElementById('said').textContent.includes('orders: second is master')").await;
    fleet.browser.press("2").await;
    fleet.says(".events tbody", "first left; it was master").await;
    fleet.complains_of_nothing().await;
}

/// Names come from strangers. They are shown as they are, and are nothing else.
#[tokio::test]
async fn what_looks_like_markup_is_only_a_name() {
    let fleet = Fleet::start().await;
    let (service, code) = ("<svg>&amp;\"'`用户", "<script>window.hit=1<\\script>%2e%2e?a=b");
    let tag = "<img src=x onerror=window.hit=1>";
    fleet.keep(instance(service, code).tag("a", tag)).await;
    fleet.show("").await;
    fleet.says(".services td.c-name", service).await;
    fleet.browser.click(".services td.c-name a").await;
    fleet.says(".instances td.c-name", code).await;
    fleet.says(".instances .tag", tag).await;
    fleet.says("h1", service).await;
    fleet.browser.click(".instances td.c-do button").await;
    fleet.says("dialog", code).await;
    fleet.browser.click("dialog button[type=submit]").await;
    fleet.says(".toast", &format!("drained {code} of {service}")).await;
    fleet.says(".instances td.c-role", "drained").await;
    let made = "return [window.hit ?? null, document.querySelectorAll('main img, main script').length]";
    assert_eq!(fleet.browser.run(made).await, json!([null, 0]));
    fleet.complains_of_nothing().await;
}

#[tokio::test]
async fn an_observer_is_shown_as_one() {
    let fleet = Fleet::start().await;
    let observer = fleet.registry.registration(instance("orders", "o")).observer().register().await.unwrap();
    fleet.show("#/services/orders").await;
    fleet.says(".instances td.c-role", "observer").await;
    observer.close().await.unwrap();
    fleet.complains_of_nothing().await;
}

/// What cannot be seen, and what turns the rest of a line round, is shown as what it is.
#[tokio::test]
async fn nothing_hides_in_a_name() {
    let fleet = Fleet::start().await;
    fleet.show("#/services/or%E2%80%AEders%E2%80%8B").await;
    fleet.says("h1", r"or\u{202e}ders\u{200b}").await;
    fleet.complains_of_nothing().await;
}

#[tokio::test]
async fn a_drain_is_asked_about_done_and_on_record() {
    let fleet = Fleet::start().await;
    for code in ["a", "b", "c"] {
        fleet.keep(instance("orders", code)).await;
    }
    fleet.show("#/services/orders").await;
    fleet.browser.click("button[aria-label='Drain b']").await;
    fleet.says("dialog", "b at 10.0.0.1:8080 of service orders").await;
    fleet.says("dialog", "no new claims").await;
    // Who only wanted to look changes nothing.
    fleet.browser.press(ENTER).await;
    fleet.is_gone("dialog").await;
    assert!(fleet.picks("orders", 6, 30).await.contains(&"b".to_owned()));

    fleet.browser.click("button[aria-label='Drain b']").await;
    fleet.browser.click("dialog button[type=submit]").await;
    fleet.says(".toast", "drained b of orders").await;
    fleet.is_there("button[aria-label='Undrain b']").await;
    assert!(!fleet.picks("orders", 12, 30).await.contains(&"b".to_owned()));
    fleet.says("#totals .drained", "1").await;

    fleet.browser.click("button[aria-label='Weight of c']").await;
    fleet.browser.run("document.getElementById('weight').value = '7'").await;
    fleet.browser.click("dialog button[type=submit]").await;
    fleet.says(".toasts", "weight 7").await;
    fleet.says(".instances tbody tr:nth-child(4) .c-weight", "7").await;

    // Whoever presses a number sees what has been counted.
    fleet.browser.click("#totals .drained").await;
    fleet.browser.wait_for("location.hash === '#/services/orders?q=status%3Adrained'").await;
    fleet.says("#instances-title + .count", "1 of 3 instances").await;

    fleet.browser.run("location.hash = '#/audit'").await;
    fleet.says(".audit tbody", "set the weight of c of orders: weight 7").await;
    fleet.says(".audit tbody", "drained b of orders").await;
    fleet.says(".audit tbody", "anybody from 127.0.0.1").await;
    fleet.show("#/audit").await;
    fleet.says(".audit tbody", "drained b of orders").await;
    fleet.complains_of_nothing().await;
}

/// The proxy is that of the documentation, and has the page beside others.
#[tokio::test]
async fn behind_a_proxy_it_may_have_any_path() {
    let fleet = Fleet::start().await;
    let documented = include_str!("../../../docs/agent.md").split("```nginx\n").nth(1).unwrap();
    let location = documented.split("```").next().unwrap().replace("127.0.0.1:7480", &fleet.address().to_string());
    let nginx = Nginx::start(&format!("{location}location / {{ return 404; }}")).await;
    let (service, code) = ("50%&?ü", "a?b=%2e%2e");
    fleet.set_metrics(|| traffic::units("r", 1, 1));
    // Who forgets the slash is told where it is.
    fleet.browser.open(&format!("http://{}/pointsman", nginx.address())).await;
    fleet.browser.wait_for("location.pathname === '/pointsman/'").await;
    fleet.browser.wait_for("document.body.dataset.trust === 'fresh'").await;
    fleet.says("main pre", &format!("http://{}/pointsman/v1/services/hello", nginx.address())).await;
    fleet.keep(instance(service, code)).await;
    fleet.browser.click(".services td.c-name a").await;
    fleet.says("h1", service).await;
    fleet.browser.click(".instances td.c-do button").await;
    fleet.browser.click("dialog button[type=submit]").await;
    fleet.says(".toast", &format!("drained {code} of {service}")).await;
    fleet.says(".instances td.c-role", "drained").await;
    fleet.browser.click(".more summary").await;
    fleet.says(".masters tbody tr:nth-child(1)", code).await;
    fleet.browser.run("location.hash = '#/audit'").await;
    fleet.says(".audit tbody", &format!("drained {code} of {service}")).await;
    fleet.browser.run("location.hash = '#/traffic'").await;
    fleet.says("#routes-title + .count", "1 route").await;
    // Everything has come from under the path, and nothing was missing.
    let elsewhere = "return performance.getEntriesByType('resource').filter((one) => \
                     !new URL(one.name).pathname.startsWith('/pointsman/') || one.responseStatus >= 400).map((one) => one.name)";
    assert_eq!(fleet.browser.run(elsewhere).await, json!([]));
    let console = fleet.browser.console().await;
    assert!(console.is_empty(), "{console:?}");
}

/// Nobody must take an old picture for a new one.
#[tokio::test]
async fn an_agent_that_is_gone_is_said_to_be_and_its_return_is_seen() {
    let mut fleet = Fleet::start().await;
    fleet.keep(instance("orders", "a")).await;
    fleet.show("").await;
    fleet.stop_agent().await;
    fleet.browser.wait_for("document.body.dataset.trust === 'lost'").await;
    fleet.says("#banner", "The agent cannot be reached").await;
    fleet.says("#pill", "Agent unreachable").await;
    fleet.browser.wait_for("document.getElementById('said').textContent.includes('cannot be reached')").await;
    // The old picture stays, for what it is worth.
    fleet.says("main", "orders").await;
    fleet.keep(instance("orders", "b")).await;
    fleet.start_agent().await;
    fleet.browser.wait_for("document.body.dataset.trust === 'fresh'").await;
    fleet.says(".services td.c-board", "2").await;
    assert_eq!(fleet.browser.run("return document.getElementById('banner').hidden").await, true);
    fleet.complains_of_nothing().await;
}

#[tokio::test]
async fn a_registry_that_is_away_makes_the_picture_stale() {
    let fleet = Fleet::start().await;
    fleet.keep(instance("orders", "a")).await;
    fleet.show("").await;
    fleet.says("main", "orders").await;
    fleet.registry.clone().close().await;
    fleet.browser.wait_for("document.body.dataset.trust === 'stale'").await;
    fleet.says("#banner", "The agent has lost the registry").await;
    fleet.browser.wait_for("/Stale, \\d+ s/.test(document.getElementById('pill').innerText)").await;
    fleet.complains_of_nothing().await;
}

#[tokio::test]
async fn with_tokens_the_page_asks_for_one_and_keeps_it_to_itself() {
    let (read, write) = ("read-read-read-read", "write-write-write-write");
    let fleet = Fleet::start_with(|settings| {
        settings.read_token = Token::new(read).ok();
        settings.write_token = Token::new(write).ok();
    });
    let fleet = fleet.await;
    fleet.keep(instance("orders", "a")).await;
    fleet.load("#/services/orders").await;
    fleet.says("dialog", "This agent wants a token").await;
    fleet.browser.type_into("#token", &format!("not-the-right-token{ENTER}")).await;
    fleet.says("dialog", "does not know this token").await;
    fleet.browser.type_into("#token", &format!("{read}{ENTER}")).await;
    fleet.browser.click("button[aria-label='Drain a']").await;
    fleet.browser.click("dialog button[type=submit]").await;
    fleet.says("dialog [role=alert]", "This token may only read").await;
    let kept =
        "return [location.href.includes('read-'), document.cookie, JSON.stringify(localStorage).includes('read-')]";
    assert_eq!(fleet.browser.run(kept).await, json!([false, "", false]));
    fleet.browser.click("dialog .ghost:not([hidden])").await;
    fleet.browser.type_into("#token", &format!("{write}{ENTER}")).await;
    fleet.browser.click("button[aria-label='Drain a']").await;
    fleet.browser.click("dialog button[type=submit]").await;
    fleet.says(".toast", "write token from 127.0.0.1").await;
    fleet.browser.click("#sign-out").await;
    fleet.says("dialog", "This agent wants a token").await;
    fleet.complains_of_nothing().await;
}

#[tokio::test]
async fn the_keyboard_is_enough() {
    let fleet = Fleet::start().await;
    for service in ["billing", "orders", "search"] {
        for code in ["a", "b"] {
            fleet.keep(instance(service, &format!("{service}-{code}")).tag("zone", format!("zone-{code}"))).await;
        }
    }
    fleet.show("").await;
    fleet.browser.wait_for("document.querySelectorAll('.services td.c-name').length === 3").await;
    fleet.browser.press("/").await;
    fleet.browser.wait_for("document.activeElement.id === 'query'").await;
    fleet.browser.press("zone=zone-b order").await;
    fleet.says(".count", "1 of 3 services, 1 instance").await;
    fleet.browser.wait_for("location.hash === '#/?q=zone%3Dzone-b%20order'").await;
    fleet.show("#/?q=zone%3Dzone-b%20order").await;
    fleet.says(".count", "1 of 3 services, 1 instance").await;
    fleet.browser.press(ESCAPE).await;
    fleet.says(".count", "3 services").await;
    fleet.browser.press("jj").await;
    fleet.browser.wait_for("document.activeElement.textContent === 'orders'").await;
    fleet.browser.press(&format!("k\u{e015}{ENTER}")).await;
    fleet.browser.wait_for("location.hash === '#/services/orders'").await;
    fleet.browser.wait_for("document.querySelectorAll('.instances .code').length === 2").await;
    fleet.browser.press("jjw").await;
    fleet.browser.wait_for("document.activeElement.id === 'weight'").await;
    fleet.says("dialog", "orders-b").await;
    fleet.browser.press(ESCAPE).await;
    fleet.is_gone("dialog").await;
    fleet.browser.press("?").await;
    fleet.says("dialog", "Keys and search").await;
    fleet.browser.press(ESCAPE).await;
    fleet.is_gone("dialog").await;
    fleet.browser.press(ESCAPE).await;
    fleet.browser.wait_for("location.hash === '#/'").await;
    fleet.complains_of_nothing().await;
}

/// What the page makes of texts, each of a moment (in milliseconds); `then` of the module's `traffic` and `P`, after each.
async fn taken(fleet: &Fleet, texts: &[(u64, String)], then: &str) -> Vec<Value> {
    let script = format!(
        "return import('/assets/metrics.js').then(({{ take, traffic, P }}) => {}.map(([at, text]) => {{ \
         take(1e12 + at, text); return {then}; }}))",
        json!(texts)
    );
    match fleet.browser.run(&script).await {
        Value::Array(all) => all,
        other => panic!("{other} of {texts:?}"),
    }
}

/// Ten units a second, from a million on: what is counted anew, and taken for the old count, would not be overlooked.
fn ten_a_second(route: &'static str) -> impl Fn() -> String + Send + Sync + 'static {
    let start = Instant::now();
    move || {
        let units = u64::try_from(start.elapsed().as_millis() / 100).unwrap_or_default();
        traffic::units(route, 1_000_000 + units, 41) + traffic::INSTANCES
    }
}

#[tokio::test]
async fn traffic_is_shown_by_route_and_by_service() {
    let fleet = Fleet::start().await;
    fleet.set_metrics(ten_a_second("r"));
    fleet.show("").await;
    fleet.browser.press("4").await;
    fleet.says("nav a[aria-current]", "Traffic").await;
    let cell = |table: &str, name: &str| format!(".{table} td[data-name='{name}']");
    for (name, words) in
        [("4xx", "15 %"), ("5xx", "5.0 %"), ("Gone", "·"), ("p50", "100 ms"), ("p95", "300 ms"), ("p99", "380 ms")]
    {
        fleet.says(&cell("routes", name), words).await;
    }
    fleet.says(&cell("routes", "In flight"), "7").await;
    fleet.says(&cell("routes", "Out/s"), " MiB").await;
    fleet.says(&cell("attempts", "Passing"), "5").await;
    fleet.says(&cell("attempts", "Failing"), "2").await;
    fleet.says(&cell("attempts", "Ejected"), "1").await;
    fleet.says(&cell("attempts", "In flight"), "3 to 4").await;
    fleet.says(&cell("attempts", "Unreachable"), "·").await;
    fleet.says(".problems tbody", "gateway-timeout").await;
    fleet.says(".service-head .facts", "connections 41 · in/s").await;
    // By the clock: as exact as a busy machine is.
    let number = |selector: String, least: u32, most: u32| {
        format!(
            "(() => {{ const number = Number.parseFloat(document.querySelector({}).innerText); return number > {least} && number < {most}; }})()",
            json!(selector)
        )
    };
    fleet.browser.wait_for(&number(cell("routes", "Requests/s"), 150, 260)).await;
    fleet.browser.wait_for(&number(cell("routes", "Retries/s"), 7, 14)).await;
    fleet.browser.wait_for(&number(cell("routes", "In/s"), 15, 26)).await;
    fleet.browser.wait_for(&number(cell("attempts", "Answered"), 140, 250)).await;
    fleet.browser.wait_for(&number(cell("attempts", "Timeout"), 14, 28)).await;
    // For those who do not see a chart; and a moment can be looked at without a mouse.
    let charts = "[...document.querySelectorAll('.chart [role=img]')].map((one) => one.ariaLabel).join('\\n')";
    fleet.browser.wait_for(&format!("{charts}.includes('Now: p50 100 ms, p95 300 ms, p99 380 ms.')")).await;
    fleet.browser.wait_for(&format!("{charts}.includes('In flight, the last 10 minutes. Now: requests 7.')")).await;
    fleet.browser.wait_for("document.querySelectorAll('.routes .spark path[d*=L]').length === 1").await;
    fleet.browser.run("document.querySelector('.chart [role=img]').focus()").await;
    fleet.browser.press("\u{e012}").await;
    fleet.says(".service-head .count", "At ").await;
    fleet.browser.run("document.activeElement.blur()").await;
    fleet.says(".service-head .count", "the last 10 s").await;
    fleet.complains_of_nothing().await;
}

/// Names come from the configuration, and are only names here, too.
#[tokio::test]
async fn one_route_can_be_looked_at() {
    let fleet = Fleet::start().await;
    let marked = "<img src=x onerror=window.hit=1> /?#%";
    fleet.set_metrics(move || {
        let units = |name: &str, units: u64| traffic::units(name, units, 1);
        units("", 1) + &units(marked, 1) + "pointsman_http_in_flight{route=\"quiet\",service=\"t\"} 3\n"
    });
    fleet.show("#/traffic").await;
    fleet.says("#routes-title + .count", "3 routes").await;
    fleet.browser.press("jj").await;
    fleet.browser.wait_for(&format!("document.activeElement.textContent === {}", json!(marked))).await;
    fleet.browser.press(ENTER).await;
    fleet.says("h1", marked).await;
    fleet.says(".service-head .facts", "service s").await;
    let hash = "decodeURIComponent(location.hash)";
    fleet.browser.wait_for(&format!("{hash} === {}", json!(format!("#/traffic/route/{marked}")))).await;
    fleet.browser.press(ESCAPE).await;
    fleet.says("h1", "Traffic").await;
    fleet.browser.click(".routes tbody tr:nth-child(4) a").await;
    fleet.says("h1", "quiet").await;
    fleet.browser.click(".back").await;
    fleet.says("h1", "Traffic").await;
    fleet.browser.click(".routes td a[href='#/traffic/unrouted']").await;
    fleet.says("h1", "without a route").await;
    fleet.browser.press("/quiet").await;
    fleet.says("#routes-title + .count", "1 route").await;
    fleet.show("#/traffic/route/nobody").await;
    fleet.says(".service-head", "There is no such route now").await;
    fleet.browser.click(".attempts td a").await;
    fleet.browser.wait_for("location.hash === '#/services/s'").await;
    assert_eq!(fleet.browser.run("return window.hit ?? null").await, Value::Null);
    fleet.complains_of_nothing().await;
}

#[tokio::test]
async fn without_a_proxy_the_page_says_so_and_how_to_get_one() {
    let fleet = Fleet::start().await;
    fleet.show("#/traffic").await;
    fleet.says("main", "There is no HTTP proxy in this process").await;
    fleet.says("main", "[http]").await;
    // Once there is one, it is seen.
    fleet.set_metrics(ten_a_second("r"));
    fleet.says(".routes tbody", "300 ms").await;
    fleet.complains_of_nothing().await;
}

/// Rates are of what has been counted, whatever has been counted anew since, and of time without a gap.
#[tokio::test]
async fn figures_are_what_was_between_two_samples() {
    let fleet = Fleet::start().await;
    fleet.show("").await;
    let at = |at: u64, units: u64| (at, traffic::units("a\\\"b\\\\c\\nd{} 1", units, 1));
    let all = "[traffic.all.point?.[P.total] ?? null, ...(traffic.all.point?.slice(P.p50) ?? [])]";
    let texts = [
        at(0, 1_000_000),
        at(2_000, 1_000_010),
        at(4_000, 1_000_020),
        // A restart: one unit has been counted since, after the 20 until then.
        at(6_000, 1),
        at(8_000, 11),
        at(10_000, 21),
        // Of the last ten seconds: 51 units less 10.
        at(12_000, 31),
        // A sample is missing; then everything was quiet.
        at(18_000, 900_000),
        at(20_000, 900_000),
        at(22_000, 900_001),
        // The clock has been set back.
        at(5_000, 900_002),
        at(7_000, 900_004),
    ];
    let figures = taken(&fleet, &texts, all).await;
    let rate = |rate: f64| json!([rate, 0.1, 0.3, 0.38]);
    let close = |is: &Value, wanted: &Value| {
        is.as_array().unwrap().len() == wanted.as_array().unwrap().len()
            && is.as_array().unwrap().iter().zip(wanted.as_array().unwrap()).all(|(is, wanted)| match wanted.as_f64() {
                Some(wanted) => is.as_f64().is_some_and(|is| (is - wanted).abs() < 1e-6),
                None => is.is_null(),
            })
    };
    let wanted = [
        json!([null]),
        rate(100.0),
        rate(100.0),
        rate(70.0),
        rate(77.5),
        rate(82.0),
        rate(82.0),
        json!([null]),
        json!([0.0, null, null, null]),
        rate(5.0),
        json!([null]),
        rate(20.0),
    ];
    for (number, (is, wanted)) in figures.iter().zip(&wanted).enumerate() {
        assert!(close(is, wanted), "sample {number}: {is} is not {wanted}; all: {figures:?}");
    }
    let name = taken(&fleet, &[at(9_000, 900_004)], "[...traffic.routes.keys()]").await;
    assert_eq!(name, [json!(["a\"b\\c\nd{} 1"])]);
    // A route that comes back after a reload goes on from nothing; beyond the last bound nobody knows how long it was.
    let bucket = |count: u64| {
        format!(
            "pointsman_http_request_duration_seconds_bucket{{route=\"x\",service=\"\",le=\"60\"}} 1\n\
                 pointsman_http_request_duration_seconds_bucket{{route=\"x\",service=\"\",le=\"+Inf\"}} {count}\n"
        )
    };
    let texts = [
        (11_000, bucket(500)),
        (13_000, bucket(501)),
        (15_000, at(0, 7).1),
        (17_000, bucket(900)),
        (19_000, bucket(901)),
    ];
    let beyond = "[traffic.routes.get('x')?.point?.[P.p50] === Infinity, traffic.longest]";
    let beyond: Vec<Value> = taken(&fleet, &texts, beyond).await.into_iter().map(|mut one| one[0].take()).collect();
    assert_eq!(beyond, [json!(false), json!(true), json!(false), json!(false), json!(true)]);
    fleet.complains_of_nothing().await;
}

/// Neither a restart nor an agent that was away makes a peak.
#[tokio::test]
async fn a_restart_makes_no_peak_and_an_absence_makes_a_gap() {
    let mut fleet = Fleet::start().await;
    fleet.set_metrics(ten_a_second("r"));
    fleet.show("#/traffic").await;
    fleet.says(".routes td[data-name=p95]", "300 ms").await;
    let asked = AtomicU64::new(0);
    fleet.set_metrics(move || traffic::units("r", 20 * asked.fetch_add(1, Ordering::Relaxed), 42));
    fleet.says(".service-head .facts", "connections 42").await;
    // Counted on, since.
    fleet
        .browser
        .wait_for("Number(document.querySelector('.problems td[data-name=\"In all\"]')?.innerText) >= 40")
        .await;
    let most = "return import('/assets/metrics.js').then(({ traffic, P }) => { \
                const rates = traffic.all.past.map((point) => point[P.total]); \
                return [Math.min(...rates) >= 0, Math.max(...rates)]; })";
    let rates = fleet.browser.run(most).await;
    assert_eq!(rates[0], true, "{rates}");
    assert!(rates[1].as_f64().unwrap() < 1000.0, "{rates}");
    let gaps = "(document.querySelector('.routes .spark path').getAttribute('d').match(/M/g) ?? []).length";
    let before = fleet.browser.run(&format!("return {gaps}")).await;

    fleet.stop_agent().await;
    fleet.browser.wait_for("document.body.dataset.trust === 'lost'").await;
    fleet.says(".service-head .count", "Figures of").await;
    fleet.says(".service-head .count", "ago").await;
    fleet.start_agent().await;
    fleet.set_metrics(ten_a_second("r"));
    fleet.says(".service-head .facts", "connections 41").await;
    fleet.browser.wait_for(&format!("{gaps} > {before}")).await;
    fleet.says(".service-head .count", "the last 10 s").await;
    let rates = fleet.browser.run(most).await;
    assert!(rates[1].as_f64().unwrap() < 1000.0, "{rates}");
    fleet.complains_of_nothing().await;
}

/// 360 pixels are the narrowest phone's.
#[tokio::test]
async fn nothing_is_wider_than_a_phone() {
    let fleet = Fleet::start().await;
    let long = "a-very-long-name-".repeat(12);
    for code in ["a", &long] {
        let tagged = instance(&long, code).tag("description", "of a length that nobody has foreseen ".repeat(5));
        fleet.keep(tagged).await;
    }
    fleet.registry.drain(&long, "a").await.unwrap();
    fleet.browser.resize(360, 740).await;
    let service = format!("#/services/{long}");
    for page in ["#/", "#/?q=zzz", "#/?q=a", &service, "#/events", "#/audit"] {
        fleet.show(page).await;
        fleet.is_there("main tbody tr:not(.spacer), main .nothing:not([hidden])").await;
        let width = "return [document.documentElement.scrollWidth, innerWidth]";
        assert_eq!(fleet.browser.run(width).await, json!([360, 360]), "{page}");
    }
    fleet.browser.click("#help").await;
    let width = "const dialog = document.querySelector('dialog'); return dialog.scrollWidth > dialog.clientWidth";
    assert_eq!(fleet.browser.run(width).await, false);
    fleet.complains_of_nothing().await;
}

#[tokio::test]
async fn traffic_is_not_wider_either() {
    let fleet = Fleet::start().await;
    let long = "a-very-long-name-".repeat(12);
    let name = long.clone();
    fleet.set_metrics(move || traffic::units(&name, 1 << 40, 41) + traffic::INSTANCES);
    fleet.browser.resize(360, 740).await;
    for page in ["#/traffic", &format!("#/traffic/route/{long}")] {
        fleet.show(page).await;
        fleet.says(".service-head .facts", "connections 41").await;
        fleet.browser.run("scrollTo(0, document.documentElement.scrollHeight)").await;
        fleet.says(".attempts tbody", "3 to 4").await;
        let width = "return [document.documentElement.scrollWidth, innerWidth]";
        assert_eq!(fleet.browser.run(width).await, json!([360, 360]), "{page}");
    }
    fleet.complains_of_nothing().await;
}

/// How fast it is is printed; that depends on the machine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_instances_are_shown_and_searched() {
    let fleet = Fleet::start().await;
    for service in 0..1000 {
        for number in 0..10 {
            let code = format!("code-{service:03}-{number}");
            let tagged = instance(&format!("service-{service:03}"), &code).tag("zone", format!("z{number}"));
            fleet.keep(tagged).await;
        }
    }
    fleet.show("").await;
    fleet.browser.wait_for("document.querySelector('#totals .instances').innerText.startsWith('10\u{202f}000')").await;
    let measured = "const at = (name) => performance.getEntriesByName(name)[0]?.startTime ?? null; \
                    const files = performance.getEntriesByType('resource').filter(({name}) => name.includes('/assets/')); \
                    return {firstPaint: at('first-contentful-paint'), fleetShown: at('fleet-shown'), \
                    files: files.length, bytes: files.reduce((sum, one) => sum + one.transferSize, 0) + \
                    performance.getEntriesByType('navigation')[0].transferSize, \
                    elements: document.getElementsByTagName('*').length}";
    let measured = fleet.browser.run(measured).await;
    println!("1,000 services of 10 instances: {measured}");
    let elements = measured["elements"].as_u64().unwrap();
    assert!(elements < 3000, "only what can be seen is in the page: {elements} elements");
    for (query, found) in [
        ("code-777-3", "1 of 1\u{202f}000 services, 1 instance"),
        ("zone=z7", "1\u{202f}000 of 1\u{202f}000 services, 1\u{202f}000 instances"),
        ("role:master service:service-12", "10 of 1\u{202f}000 services, 10 instances"),
        ("service-99", "10 of 1\u{202f}000 services, 100 instances"),
        ("nobody", "0 of 1\u{202f}000 services, 0 instances"),
    ] {
        let search = format!(
            "const query = document.getElementById('query'); const start = performance.now(); query.value = {}; \
             query.dispatchEvent(new Event('input')); \
             return [document.querySelector('.count').textContent, performance.now() - start]",
            json!(query)
        );
        let answer = fleet.browser.run(&search).await;
        assert_eq!(answer[0], found, "{query}");
        println!("search {query:?}: {} ms", answer[1]);
    }
    fleet.browser.press(ESCAPE).await;
    fleet.says(".count", "1\u{202f}000 services").await;
    fleet.browser.run("scrollTo(0, document.documentElement.scrollHeight)").await;
    fleet.says(".services tbody", "service-999").await;
    fleet.complains_of_nothing().await;
}

/// What a browser has is not sent again; and each file says what a page may do.
#[tokio::test]
async fn files_are_sent_once_with_a_policy() {
    let fleet = Fleet::start().await;
    let whole = get(fleet.address(), "/", "").await;
    for part in [
        "HTTP/1.1 200",
        "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; ",
        "x-content-type-options: nosniff",
        "cross-origin-opener-policy: same-origin",
        "referrer-policy: no-referrer",
        "cache-control: no-cache",
        "content-type: text/html; charset=utf-8",
    ] {
        assert!(whole.contains(part), "{part}\n{whole}");
    }
    let etag = whole.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap();
    let again = get(fleet.address(), "/", &format!("if-none-match: {etag}\r\n")).await;
    assert!(again.starts_with("HTTP/1.1 304"), "{again}");
    assert!(get(fleet.address(), "/favicon.ico", "").await.contains("image/svg+xml"));
    assert!(get(fleet.address(), "/assets/nothing.js", "").await.starts_with("HTTP/1.1 404"));
}

/// For the front page. They are written there only when asked for: `UPDATE_SCREENSHOTS=1`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pictures_for_the_front_page() {
    let fleet = Fleet::start().await;
    fleet.populate().await;
    fleet.browser.resize(1360, 860).await;
    fleet.browser.prefer("prefers-color-scheme", "dark").await;
    fleet.show("").await;
    fleet.live().await;
    fleet.picture("dashboard-dark.png").await;
    fleet.browser.prefer("prefers-color-scheme", "light").await;
    fleet.browser.run("location.hash = '#/services/orders'").await;
    fleet.is_there(".track .head").await;
    fleet.picture("dashboard-light.png").await;
    fleet.browser.prefer("prefers-color-scheme", "dark").await;
    fleet.browser.resize(390, 844).await;
    fleet.browser.run("location.hash = '#/'").await;
    fleet.is_there(".services td.c-name a").await;
    fleet.picture("dashboard-phone.png").await;
    fleet.complains_of_nothing().await;
}

/// Ten minutes of a proxy's life, of which all but the end are told at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_picture_of_the_traffic() {
    let fleet = Fleet::start().await;
    fleet.populate().await;
    fleet.browser.resize(1360, 860).await;
    fleet.browser.prefer("prefers-color-scheme", "dark").await;
    fleet.show("").await;
    let told = (0..300).filter(|sample| !(118..125).contains(sample)).map(|sample| f64::from(sample) * 2.0);
    let texts: Vec<(f64, String)> = told.map(|seconds| (seconds - 600.0, traffic::company(seconds))).collect();
    let script = format!(
        "return import('/assets/metrics.js').then(({{ take }}) => {}.forEach(([at, text]) => \
         take(Date.now() + at * 1000, text)))",
        json!(texts)
    );
    fleet.browser.run(&script).await;
    let start = Instant::now();
    fleet.set_metrics(move || traffic::company(600.0 + start.elapsed().as_secs_f64()));
    fleet.browser.run("location.hash = '#/traffic'").await;
    fleet.browser.wait_for("document.querySelectorAll('.routes .spark path[d*=L]').length === 8").await;
    // The last of them is of two seconds ago.
    fleet.browser.wait_for("document.querySelector('.routes .spark path').getAttribute('d').includes('L600.0 ')").await;
    fleet.says(".routes td[data-name=p95]", " ms").await;
    fleet.picture("traffic.png").await;
    fleet.complains_of_nothing().await;
}
