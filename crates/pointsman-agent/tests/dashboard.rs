// DRAFT by a colleague, for another page than yours: adapt it (selectors, words) and use the Browser of the testkit, which is
// committed in your branch (crates/pointsman-testkit/src/browser.rs). Remove these lines then.
//! The dashboard in a real browser, against a real agent.

mod fleet;

use fleet::{Fleet, instance, settings};
use pointsman_agent::{Agent, Token};
use pointsman_registry::Registry;
use serde_json::{Value, json};

/// What is registered is there at once, and what happens is seen, without a reload.
#[tokio::test]
async fn what_registers_appears_and_who_was_master_stays_to_be_seen() {
    let fleet = Fleet::start().await;
    let browser = fleet.browser().await;
    browser.wait_for("document.body.innerText.includes('No services yet')").await;
    assert!(fleet.text("main pre").await.contains(&format!("{}/v1/services/hello", fleet.url(""))), "how to register");
    let first = fleet.register(instance("orders", "first").tag("zone", "eu-1")).await;
    fleet.register_for_good(instance("orders", "second")).await;
    browser.wait_for("document.querySelector('.svc .name')?.textContent === 'orders'").await;
    browser.wait_for("document.querySelector('.svc .num')?.innerText.startsWith('2')").await;
    browser.click(".svc .name").await;
    browser.wait_for("location.hash === '#/services/orders'").await;
    browser.wait_for("document.querySelector('.master-card .big')?.textContent === 'first'").await;
    browser.wait_for("document.querySelectorAll('.timeline i').length === 1").await;
    first.close().await.unwrap();
    browser.wait_for("document.querySelector('.master-card .big')?.textContent === 'second'").await;
    browser.wait_for("document.querySelectorAll('.timeline i.now, .timeline i.past').length === 2").await;
    let masters = fleet.text(".masters").await;
    assert!(masters.contains("second") && masters.contains("first"), "{masters}");
    browser.wait_for("document.querySelector('.feed').innerText.includes('second is master after first')").await;
    browser.wait_for("document.getElementById('say').textContent.includes('second is master')").await;
    fleet.complains_of_nothing().await;
}

/// Names come from strangers. They are shown as they are, and are nothing else.
#[tokio::test]
async fn what_looks_like_markup_is_only_a_name() {
    let fleet = Fleet::start().await;
    let (service, code) = ("<svg>&amp;\"'`用户", "<script>window.hit=1<\\script>%2e%2e?a=b");
    let hostile = instance(service, code).tag("a", "<img src=x onerror=window.hit=1>");
    fleet.register_for_good(hostile).await;
    let browser = fleet.browser().await;
    browser.wait_for("document.querySelector('.svc .name')").await;
    assert_eq!(fleet.text(".svc .name").await, service);
    browser.click(".svc .name").await;
    browser.wait_for("document.querySelector('.rows .inst .code')").await;
    assert_eq!(fleet.text(".rows .inst .code").await, code);
    assert_eq!(fleet.text(".rows .inst .tag").await, "a=<img src=x onerror=window.hit=1>");
    assert_eq!(fleet.text("h1").await, service);
    fleet.confirm("d", code).await;
    browser.wait_for("document.querySelector('.rows .inst .status').innerText === 'drained'").await;
    let made = browser
        .run("return [window.hit ?? null, document.querySelectorAll('main img, main svg, main script').length];");
    assert_eq!(made.await, json!([null, 0]));
    fleet.complains_of_nothing().await;
}

#[tokio::test]
async fn a_drain_is_asked_about_done_and_on_record() {
    let fleet = Fleet::start().await;
    for code in ["a", "b", "c"] {
        fleet.register_for_good(instance("orders", code)).await;
    }
    let browser = fleet.browser_at("#/services/orders").await;
    browser.wait_for("document.querySelectorAll('.rows .inst').length === 3").await;
    browser.click("button[aria-label='Drain b']").await;
    let asked = fleet.text("dialog").await;
    assert!(asked.contains("b of orders gets no new claims from now on"), "{asked}");
    assert!(asked.contains("1 other normal instance takes the work"), "{asked}");
    browser.press("\u{e00c}").await;
    browser.wait_for("!document.querySelector('dialog')").await;
    assert_eq!(browser.run("return document.activeElement.ariaLabel;").await, "Drain b");
    assert!(fleet.picks("orders").await.contains(&"b".to_owned()), "nothing was done");

    browser.click("button[aria-label='Drain b']").await;
    browser.click("dialog button[type=submit]").await;
    browser.wait_for("document.querySelector('.toast')?.innerText.includes('drain b of orders')").await;
    browser.wait_for("document.querySelector(\"button[aria-label='Undrain b']\")").await;
    assert_eq!(fleet.picks("orders").await, ["c"; 6]);
    browser.click("button[aria-label='Set the weight of c']").await;
    browser.run("document.getElementById('weight').value = '7';").await;
    browser.click("dialog button[type=submit]").await;
    browser.wait_for("document.querySelector('.rows').innerText.includes('7')").await;
    browser.click("button[aria-label='Drain c']").await;
    let asked = fleet.text("dialog").await;
    assert!(asked.contains("No other normal instance takes work: the master stands in."), "{asked}");
    browser.press("\u{e00c}").await;
    browser.wait_for("!document.querySelector('dialog')").await;

    browser.run("location.hash = '#/audit';").await;
    browser.wait_for("document.querySelectorAll('.audit').length === 2").await;
    let audit = fleet.text("main").await;
    assert!(audit.contains("drained b of orders") && audit.contains("anybody from 127.0.0.1"), "{audit}");
    assert!(audit.contains("weighed c of orders weight 7"), "{audit}");
    fleet.complains_of_nothing().await;
}

/// Nobody must take an old picture for a new one.
#[tokio::test]
async fn an_agent_that_is_gone_is_said_to_be_and_its_return_is_seen() {
    let mut fleet = Fleet::start().await;
    fleet.register_for_good(instance("orders", "a")).await;
    let browser = fleet.browser().await;
    browser.wait_for("document.documentElement.dataset.view === 'fresh'").await;
    fleet.stop_agent().await;
    browser.wait_for("document.documentElement.dataset.view === 'lost'").await;
    browser.wait_for("document.getElementById('banner').innerText.includes('The agent cannot be reached')").await;
    browser.wait_for("document.getElementById('say-now').textContent.includes('cannot be reached')").await;
    assert!(fleet.text("main").await.contains("orders"), "the old picture stays");
    fleet.register_for_good(instance("orders", "b")).await;
    fleet.start_agent().await;
    browser.wait_for("document.documentElement.dataset.view === 'fresh'").await;
    browser.wait_for("document.querySelector('.svc .num').innerText.startsWith('2')").await;
    assert_eq!(browser.run("return document.getElementById('banner').hidden;").await, true);
}

#[tokio::test]
async fn a_registry_that_is_away_makes_the_view_stale() {
    let fleet = Fleet::start().await;
    fleet.register_for_good(instance("orders", "a")).await;
    let browser = fleet.browser().await;
    browser.wait_for("document.querySelector('.svc')").await;
    fleet.registry.clone().close().await;
    browser.wait_for("document.documentElement.dataset.view === 'stale'").await;
    browser.wait_for("document.getElementById('state').innerText.match(/stale \\d+ s/)").await;
    browser.wait_for("document.getElementById('banner').innerText.includes('The registry is away')").await;
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
    fleet.register_for_good(instance("orders", "a")).await;
    let browser = fleet.browser_at("#/services/orders").await;
    browser.wait_for("document.activeElement?.id === 'token'").await;
    browser.type_into("#token", "not-the-right-token\u{e007}").await;
    browser.wait_for("document.querySelector('.error')?.textContent.includes('not one of this agent')").await;
    // What was refused until here is in the browser's log.
    browser.complaints().await;
    browser.type_into("#token", &format!("{read}\u{e007}")).await;
    browser.wait_for("document.querySelector('.rows .inst')").await;
    browser.click("button[aria-label='Drain a']").await;
    browser.click("dialog button[type=submit]").await;
    browser
        .wait_for("document.querySelector('dialog .error').textContent.includes('You may look, but not change')")
        .await;
    browser.press("\u{e00c}").await;
    let kept = browser.run("return [location.href.includes('read-'), document.cookie, localStorage.length];").await;
    assert_eq!(kept, json!([false, "", 0]));
    browser.complaints().await;
    browser.run("sessionStorage.clear();").await;
    browser.go(&fleet.url("/#/")).await;
    browser.run("location.reload();").await;
    browser.wait_for("document.querySelector('#token')").await;
    browser.complaints().await;
    browser.type_into("#token", &format!("{write}\u{e007}")).await;
    browser.wait_for("document.querySelector('.svc')").await;
    browser.run("location.hash = '#/services/orders';").await;
    browser.wait_for("document.querySelector('.rows .inst')").await;
    fleet.confirm("d", "a").await;
    browser.wait_for("document.querySelector('.toast')?.innerText.includes('write token from 127.0.0.1')").await;
    fleet.complains_of_nothing().await;
}

#[tokio::test]
async fn the_keyboard_is_enough() {
    let fleet = Fleet::start().await;
    for service in ["billing", "orders", "search"] {
        for code in ["a", "b"] {
            fleet
                .register_for_good(instance(service, &format!("{service}-{code}")).tag("zone", &format!("zone-{code}")))
                .await;
        }
    }
    let browser = fleet.browser().await;
    browser.wait_for("document.querySelectorAll('.svc').length === 3").await;
    browser.press("/").await;
    browser.wait_for("document.activeElement.id === 'search'").await;
    browser.press("zone=zone-b").await;
    browser.wait_for("document.querySelectorAll('.inst').length === 3").await;
    assert_eq!(fleet.text("#found").await, "3 services, 3 instances found");
    browser.wait_for("location.hash === '#/?q=zone%3Dzone-b'").await;
    browser.press("\u{e00c}").await;
    browser.wait_for("document.querySelectorAll('.inst').length === 0 && location.hash === '#/'").await;
    browser.press("\u{e00c}jj").await;
    browser.wait_for("document.activeElement.textContent === 'orders'").await;
    browser.press("k\u{e015}\u{e007}").await;
    browser.wait_for("location.hash === '#/services/orders'").await;
    browser.wait_for("document.querySelectorAll('.rows .inst').length === 2").await;
    browser.press("jj").await;
    browser.wait_for("document.activeElement.ariaLabel === 'Drain orders-b'").await;
    browser.press("w").await;
    browser.wait_for("document.activeElement.id === 'weight'").await;
    browser.press("\u{e00c}?").await;
    browser.wait_for("document.querySelector('dialog')?.innerText.includes('Keys and filters')").await;
    browser.press("\u{e00c}ge").await;
    browser.wait_for("location.hash === '#/events' && document.querySelector('h1').textContent === 'Events'").await;
    browser.press("\u{e00c}").await;
    browser.wait_for("location.hash === '#/'").await;
    fleet.complains_of_nothing().await;
}

/// 360 pixels are the narrowest phone's.
#[tokio::test]
async fn nothing_is_wider_than_a_phone() {
    let fleet = Fleet::start().await;
    let long = "a-very-long-name-".repeat(14);
    for code in ["a", &long] {
        let tagged = instance(&long, code).tag("description", "of a length that nobody has foreseen ".repeat(5));
        fleet.register_for_good(tagged).await;
    }
    fleet.registry.drain(&long, "a").await.unwrap();
    let browser = fleet.browser().await;
    browser.resize(360, 740).await;
    let service = format!("#/services/{long}");
    for page in ["#/", "#/?q=zzz", "#/?q=a", &service, "#/events", "#/audit"] {
        browser.go(&fleet.url(&format!("/{page}"))).await;
        browser
            .wait_for("document.documentElement.dataset.view === 'fresh' && document.querySelector('.row, .empty')")
            .await;
        let wide = "return [...document.querySelectorAll('body *')].filter((el) => !el.closest('.chips, .sr, pre') && \
                    el.getBoundingClientRect().right > innerWidth + 1 && getComputedStyle(el.parentNode).overflowX === 'visible')\
                    .map((el) => el.outerHTML.slice(0, 200));";
        assert_eq!(browser.run(wide).await, json!([]), "{page}");
        let wider = browser.run("return document.documentElement.scrollWidth > innerWidth;").await;
        assert_eq!(wider, false, "{page}");
    }
    browser.click("#help").await;
    assert_eq!(
        browser.run("const d = document.querySelector('dialog'); return d.scrollWidth > d.clientWidth;").await,
        false
    );
    fleet.complains_of_nothing().await;
}

#[tokio::test]
async fn everything_has_a_name_for_who_does_not_see_it() {
    let fleet = Fleet::start().await;
    for code in ["a", "b"] {
        fleet.register_for_good(instance("orders", code)).await;
    }
    let browser = fleet.browser().await;
    for page in ["#/", "#/?q=b", "#/services/orders", "#/events", "#/audit"] {
        browser.go(&fleet.url(&format!("/{page}"))).await;
        browser
            .wait_for("document.documentElement.dataset.view === 'fresh' && document.querySelector('.row, .empty')")
            .await;
        for (role, name) in browser.accessible("a, button, input, nav, section, aside, [role=table], [role=list]").await
        {
            assert!(!name.is_empty() || role == "none" || role == "generic", "{page}: a {role} without a name");
        }
        assert_eq!(browser.run("return document.querySelectorAll('h1').length;").await, 1, "{page}");
        let landmarks = browser
            .run("return ['header', 'nav', 'main', 'footer'].map((tag) => document.querySelectorAll(tag).length);");
        assert_eq!(landmarks.await, json!([1, 1, 1, 1]), "{page}");
    }
    browser.go(&fleet.url("/#/services/orders")).await;
    browser.wait_for("document.querySelector('.rows .inst')").await;
    let roles: Vec<String> = browser
        .accessible("[role=table], [role=columnheader], .rows [role=cell]")
        .await
        .into_iter()
        .map(|(role, _)| role)
        .collect();
    assert_eq!(
        (roles[0].as_str(), roles[1].as_str(), roles.last().map(String::as_str)),
        ("table", "columnheader", Some("cell"))
    );
    browser.click("button[aria-label='Drain a']").await;
    assert_eq!(browser.accessible("dialog").await, [("dialog".to_owned(), "Drain this instance?".to_owned())]);
}

/// How fast it is is printed; that depends on the machine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_instances_are_shown_and_searched() {
    let fleet = Fleet::start().await;
    for service in 0..1000 {
        for number in 0..10 {
            let code = format!("code-{service:03}-{number}");
            fleet
                .register_for_good(instance(&format!("service-{service:03}"), &code).tag("zone", format!("z{number}")))
                .await;
        }
    }
    let browser = fleet.browser().await;
    browser.wait_for("performance.getEntriesByName('fleet-shown').length === 1").await;
    browser.wait_for("document.querySelector('.tiles').innerText.includes('10,000')").await;
    let shown = browser.run("return performance.getEntriesByName('fleet-shown')[0].startTime;").await;
    let elements = browser.run("return document.getElementsByTagName('*').length;").await;
    println!("10,000 instances of 1,000 services: shown after {shown} ms, as {elements} elements");
    assert!(
        elements.as_u64().is_some_and(|elements| elements < 3000),
        "only what can be seen is in the page: {elements}"
    );
    let search = "const [search, start] = [document.getElementById('search'), performance.now()]; search.value = arguments[0]; \
                  search.dispatchEvent(new Event('input')); return [document.getElementById('found').textContent, performance.now() - start];";
    for (query, found) in [
        ("code-777-3", "1 service, 1 instance found"),
        ("zone=z7", "1,000 services, 1,000 instances found"),
        ("role:master service:service-12", "10 services, 10 instances found"),
        ("service-99", "10 services, 100 instances found"),
        ("nobody", "0 services, 0 instances found"),
    ] {
        let answer = browser.run_with(search, json!([query])).await;
        assert_eq!(answer[0], found, "{query}");
        println!("search {query:?}: {} ms", answer[1]);
    }
    browser.run_with(search, json!([""])).await;
    browser.run("scrollTo(0, document.documentElement.scrollHeight);").await;
    browser
        .wait_for("[...document.querySelectorAll('.svc .name')].some((name) => name.textContent === 'service-999')")
        .await;
    fleet.complains_of_nothing().await;
}

/// An agent that is asked again for a file that has not changed does not send it again; and says what a page may do.
#[tokio::test]
async fn files_are_sent_once_with_a_policy() {
    let registry = Registry::connect("memory://").await.unwrap();
    let agent = Agent::start(registry, settings()).await.unwrap();
    let (status, head) = fleet::head(agent.address(), "/", "").await;
    assert_eq!(status, 200);
    for part in [
        "content-security-policy: default-src 'none'; script-src 'self'",
        "x-content-type-options: nosniff",
        "cross-origin-opener-policy: same-origin",
        "referrer-policy: no-referrer",
        "content-type: text/html; charset=utf-8",
    ] {
        assert!(head.contains(part), "{part}\n{head}");
    }
    let etag = head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap();
    assert_eq!(fleet::head(agent.address(), "/", &format!("if-none-match: {etag}\r\n")).await.0, 304);
    assert_eq!(fleet::head(agent.address(), "/favicon.ico", "").await.0, 200);
    assert_eq!(fleet::head(agent.address(), "/assets/nothing.js", "").await.0, 404);
}

/// For the front page. They are written there only when asked for: `UPDATE_SCREENSHOTS=1`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pictures_for_the_front_page() {
    let fleet = Fleet::start().await;
    fleet.populate().await;
    let browser = fleet.browser().await;
    browser.resize(1280, 800).await;
    browser.prefer("dark").await;
    browser.wait_for("document.querySelectorAll('.svc').length > 6").await;
    fleet.live().await;
    fleet.picture("dashboard-dark.png").await;
    browser.prefer("light").await;
    browser.run("location.hash = '#/services/orders';").await;
    browser.wait_for("document.querySelectorAll('.timeline i').length > 2").await;
    fleet.picture("dashboard-light.png").await;
    browser.prefer("dark").await;
    browser.resize(390, 844).await;
    browser.run("location.hash = '#/';").await;
    browser.wait_for("document.querySelectorAll('.svc').length > 4").await;
    fleet.picture("dashboard-phone.png").await;
    assert_eq!(browser.run("return document.querySelector('.svc') !== null;").await, Value::Bool(true));
}
