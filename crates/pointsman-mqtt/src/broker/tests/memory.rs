//! What messages take that wait: payloads once for all, within one budget, and nothing once they are gone.

use super::super::limits::OUTPUT;
use super::*;

const PAYLOAD: &str = match std::str::from_utf8(&[b'x'; 10_000]) {
    Ok(text) => text,
    Err(_) => unreachable!(),
};

impl Bench {
    /// So many clients that are away, and subscribe to `t`.
    fn away(&mut self, count: usize) -> Vec<&'static str> {
        let ids: Vec<&str> = (0..count).map(|number| &*format!("away{number}").leak()).collect();
        for id in &ids {
            let (link, _) = self.connect_as(staying(id, 100));
            self.subscribe(link, "t", QOS2);
            self.lose(link);
        }
        ids
    }

    fn memory(&self) -> usize {
        self.core.figures().memory
    }
}

#[test]
fn a_payload_is_kept_once_however_many_wait_for_it() {
    for qos in [QOS1, QOS2] {
        let mut bench = Bench::new();
        let ids = bench.away(50);
        let (from, here) = (bench.client("from"), bench.client("here"));
        bench.subscribe(here, "t", QOS1);
        bench.subscribe(from, "$share/g/t", QOS1);
        for id in 1..=10 {
            bench.publish(from, "t", PAYLOAD, qos, id);
        }
        let payloads = 10 * PAYLOAD.len();
        assert!((payloads..2 * payloads + 52 * 10 * 300).contains(&bench.memory()), "{}", bench.memory());
        let back = bench.open(false);
        bench.give(back, Packet::Connect(Box::new(staying(ids[0], 100))));
        assert_eq!(bench.payloads(back), vec![PAYLOAD; 10]);
        assert_eq!(bench.payloads(here), vec![PAYLOAD; 10]);
        bench.lose(here);
        bench.lose(from);
        bench.lose(back);
        assert!(bench.memory() > payloads);
        bench.pass(100);
        assert_eq!(bench.memory(), 0);
    }
}

#[test]
fn there_is_one_budget_for_all() {
    let mut options = options();
    options.max_memory = 10 * PAYLOAD.len();
    let mut bench = Bench::with(&options);
    let ids = bench.away(2);
    let (from, relay) = (bench.client("from"), bench.local("relay"));
    let mut reasons = Vec::new();
    for id in 1..=12 {
        bench.publish(from, "t", PAYLOAD, QOS1, id);
        reasons.extend(bench.acks(from).into_iter().map(|(_, _, reason)| reason));
    }
    let refused = reasons.iter().filter(|reason| **reason == Reason::QUOTA_EXCEEDED).count();
    assert!((2..=4).contains(&refused) && reasons.is_sorted_by_key(|reason| reason.0), "{reasons:?}");
    // Nothing for a client in this process is dropped, nor anything of QoS 0 for whoever reads.
    bench.subscribe(relay, "u", QOS1);
    let reader = bench.client("reader");
    bench.subscribe(reader, "u", QOS0);
    bench.publish(from, "u", PAYLOAD, QOS1, 20);
    assert_eq!((bench.payloads(relay).len(), bench.payloads(reader).len()), (1, 1));
    bench.publish(from, "u", PAYLOAD, QOS0, 0);
    bench.publish(from, "u", PAYLOAD, QOS0, 0);
    assert_eq!((bench.payloads(relay).len(), bench.payloads(reader).len()), (2, 1));
    assert_eq!(bench.core.figures().dropped_slow, 1);
    // With the sessions their messages go, and there is room again.
    for id in ids {
        let (link, _) = bench.connect_as(hello(id));
        bench.lose(link);
    }
    bench.away(1);
    bench.publish(from, "t", PAYLOAD, QOS1, 21);
    assert_eq!(bench.acks(from).last(), Some(&(AckKind::Puback, 21, Reason::SUCCESS)));
}

/// What it has not read stays where it is shared, and comes in its order when it reads.
#[test]
fn little_is_put_out_for_a_client_that_does_not_read() {
    let mut bench = Bench::new();
    let (from, to) = (bench.client("from"), bench.client("to"));
    bench.subscribe(to, "t", QOS1);
    for id in 1..=100 {
        let payload = format!("{id:03}{PAYLOAD}").leak();
        bench.publish(from, "t", payload, QOS1, id);
    }
    let client = bench.core.connections.get(to).unwrap().client.unwrap();
    let session = &bench.core.clients.get(client).unwrap().session;
    assert!((OUTPUT..OUTPUT + 2 * PAYLOAD.len()).contains(&session.output_len()), "{}", session.output_len());
    let numbers: Vec<String> = bench.payloads(to).iter().map(|payload| payload[..3].to_owned()).collect();
    assert_eq!(numbers, (1..=100).map(|id| format!("{id:03}")).collect::<Vec<_>>());
}
