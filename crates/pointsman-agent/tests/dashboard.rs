//! The dashboard in a real browser, against a real agent.

mod fleet;

use fleet::{Fleet, get, instance};
use pointsman_agent::Token;
use serde_json::json;

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
