//! Metrics as a proxy has them, by a script.

use std::fmt::Write as _;

/// A route: name, service, requests a second, and how long the most of them take.
type Route = (&'static str, &'static str, f64, f64);

const ROUTES: [Route; 8] = [
    ("checkout", "checkout", 38.0, 0.028),
    ("orders", "orders", 64.0, 0.009),
    ("search", "search", 120.0, 0.014),
    ("pictures", "media-transcoder", 21.0, 0.06),
    ("login", "sessions", 9.0, 0.021),
    ("recommendations", "recommendations", 47.0, 0.035),
    ("old-shop", "", 2.4, 0.0003),
    ("", "", 0.8, 0.0003),
];
const BOUNDS: [f64; 16] =
    [0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];

/// What a counter is at.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn whole(value: f64) -> u64 {
    value.max(0.0) as u64
}

/// One route, `r`, of service `s`: each unit is 20 requests, 16 of them 2xx, 3 4xx and one 5xx; 10 take at most 0.1 s, 18 0.2 s,
/// all 0.4 s. One of them is tried again.
pub(crate) fn units(route: &str, units: u64, connections: usize) -> String {
    let of = format!("route=\"{route}\",service=\"s\"");
    let mut text = format!("pointsman_http_connections {connections}\n");
    for (class, count) in [("2xx", 16), ("4xx", 3), ("5xx", 1)] {
        let _ = writeln!(text, "pointsman_http_requests_total{{{of},code=\"{class}\"}} {}", count * units);
    }
    for (bound, count) in [("0.1", 10), ("0.2", 18), ("0.4", 20), ("+Inf", 20)] {
        let of = format!("{of},le=\"{bound}\"");
        let _ = writeln!(text, "pointsman_http_request_duration_seconds_bucket{{{of}}} {}", count * units);
    }
    let _ = writeln!(text, "pointsman_http_in_flight{{{of}}} 7");
    let _ = writeln!(text, "pointsman_http_retries_total{{{of}}} {units}");
    let _ = writeln!(text, "pointsman_http_received_bytes_total{{{of}}} {}", units * 2048);
    let _ = writeln!(text, "pointsman_http_sent_bytes_total{{{of}}} {}", units * (2 << 20));
    let outcomes = [("answered", 19), ("unreachable", 0), ("timeout", 2), ("broken", 0)];
    for (outcome, count) in outcomes {
        let of = format!("service=\"s\",outcome=\"{outcome}\"");
        let _ = writeln!(text, "pointsman_http_attempts_total{{{of}}} {}", count * units);
    }
    let _ = writeln!(text, "pointsman_http_connects_total{{service=\"s\"}} {units}");
    let _ = writeln!(text, "pointsman_http_problems_total{{type=\"gateway-timeout\"}} {units}");
    let _ = writeln!(text, "pointsman_http_problems_total{{type=\"loop\"}} 0");
    text
}

/// How it stands with the instances of `s`.
pub(crate) const INSTANCES: &str = "pointsman_http_instances{service=\"s\",state=\"passing\"} 5\n\
    pointsman_http_instances{service=\"s\",state=\"failing\"} 2\n\
    pointsman_http_instances_ejected{service=\"s\"} 1\n\
    pointsman_http_instance_in_flight{service=\"s\",code=\"a\"} 3\n\
    pointsman_http_instance_in_flight{service=\"s\",code=\"b\"} 4\n";

/// A small company's proxy, so many seconds after somebody has begun to look.
pub(crate) fn company(seconds: f64) -> String {
    let seconds = seconds + 1000.0;
    let connections = whole(190.0 + 40.0 * (seconds / 45.0).sin());
    let mut text = format!("pointsman_http_connections {connections}\n");
    for (number, route) in (0_u8..).zip(ROUTES) {
        write_route(&mut text, f64::from(number), route, seconds);
    }
    for (kind, count) in [("no-route", 0.8 * seconds), ("unreachable", seconds / 30.0), ("overloaded", late(seconds))] {
        let _ = writeln!(text, "pointsman_http_problems_total{{type=\"{kind}\"}} {}", whole(count));
    }
    text
}

/// What has gone wrong since the end began to.
fn late(seconds: f64) -> f64 {
    (seconds - 1460.0).clamp(0.0, 300.0) * 9.0
}

fn write_route(text: &mut String, number: f64, (name, service, rate, time): Route, seconds: f64) {
    let pace = 40.0 + 9.0 * number;
    let all = rate * (seconds - 0.35 * pace * (seconds / pace).cos());
    let bad = if name == "checkout" { late(seconds) } else { all * 0.0004 };
    let unknown = match name {
        "" => all,
        "login" => all * 0.07,
        _ => all * 0.006,
    };
    let moved = if name == "old-shop" { all * 0.994 } else { 0.0 };
    let of = format!("route=\"{name}\",service=\"{service}\"");
    let classes =
        [("gone", all * 0.001), ("2xx", all - bad - unknown - moved), ("3xx", moved), ("4xx", unknown), ("5xx", bad)];
    for (class, count) in classes {
        let _ = writeln!(text, "pointsman_http_requests_total{{{of},code=\"{class}\"}} {}", whole(count));
    }
    // Most are quick; some wait, and now and then more of them.
    let slow = all * 0.1 + rate * 0.8 * (seconds / 50.0 + number).sin() + 3.0 * late(seconds) * time;
    let within = |bound: f64, time: f64| 1.0 / (1.0 + (time / bound).powf(2.8));
    for bound in BOUNDS {
        let count = (all - slow) * within(bound, time) + slow * within(bound, time * 5.0);
        let _ =
            writeln!(text, "pointsman_http_request_duration_seconds_bucket{{{of},le=\"{bound}\"}} {}", whole(count));
    }
    let _ = writeln!(text, "pointsman_http_request_duration_seconds_bucket{{{of},le=\"+Inf\"}} {}", whole(all));
    let busy = rate * time * 14.0 * (1.4 - (seconds / pace).cos() * 0.5) + (seconds * (number + 0.3)).sin();
    let _ = writeln!(text, "pointsman_http_in_flight{{{of}}} {}", whole(busy));
    let _ = writeln!(text, "pointsman_http_received_bytes_total{{{of}}} {}", whole(all * 310.0));
    let _ = writeln!(
        text,
        "pointsman_http_sent_bytes_total{{{of}}} {}",
        whole(all * if number == 3.0 { 2e6 } else { 2e4 })
    );
    let retries = if name == "checkout" { late(seconds) * 0.3 } else { 0.0 };
    let _ = writeln!(text, "pointsman_http_retries_total{{{of}}} {}", whole(retries));
    if service.is_empty() {
        return;
    }
    for (outcome, count) in [("answered", all), ("unreachable", retries), ("timeout", 0.0), ("broken", 0.0)] {
        let of = format!("service=\"{service}\",outcome=\"{outcome}\"");
        let _ = writeln!(text, "pointsman_http_attempts_total{{{of}}} {}", whole(count));
    }
    let _ = writeln!(text, "pointsman_http_connects_total{{service=\"{service}\"}} {}", whole(all * 0.02));
    let failing = u8::from(name == "checkout");
    let _ = writeln!(text, "pointsman_http_instances{{service=\"{service}\",state=\"passing\"}} {}", 4.0 + number);
    let _ = writeln!(text, "pointsman_http_instances{{service=\"{service}\",state=\"failing\"}} {failing}");
    let _ = writeln!(text, "pointsman_http_instances_ejected{{service=\"{service}\"}} {failing}");
    for code in 0..4_u8 {
        let load = whole(busy / 4.0 + f64::from(code % 3));
        let _ = writeln!(text, "pointsman_http_instance_in_flight{{service=\"{service}\",code=\"{code}\"}} {load}");
    }
}
