//! Requests by MQTT 5's response topic and correlation data, and a service that does nothing but answer.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use pointsman_mqtt::packet::{Decoder, MessageProperties, Packet, Publish, Qos, Version, encode_publish};

use super::client::{Client, PAYLOAD, Template};
use super::flow::Round;

/// How long an answer may take before it counts as lost.
const LOST: Duration = Duration::from_secs(10);
/// So many requests are sent without an acknowledgement where no answer is awaited.
const WINDOW: u64 = 500;

/// One who asks, and one who answers.
#[derive(Debug)]
pub struct Requests {
    requester: Client,
    service: Client,
    template: Template,
    qos: Qos,
}

impl Requests {
    /// Asks on `topic`, and answers what comes on `filter`; both at one broker.
    ///
    /// # Errors
    ///
    /// The broker cannot be reached.
    pub fn new(broker: SocketAddr, topic: &str, filter: &str, qos: Qos) -> io::Result<Self> {
        let mut requester = Client::connect(broker, "requester")?;
        requester.subscribe("inbox/bench", qos)?;
        let mut service = Client::connect(broker, "service")?;
        service.subscribe(filter, qos)?;
        let template = Template::new(&request(topic, qos));
        Ok(Self { requester, service, template, qos })
    }

    /// So many requests at a time, for that long.
    ///
    /// # Errors
    ///
    /// A connection is gone, or an answer is.
    pub fn round(&mut self, in_flight: usize, time: Duration) -> io::Result<Round> {
        let over = AtomicBool::new(false);
        let (requester, template, service, qos) =
            (&mut self.requester, &mut self.template, &mut self.service, self.qos);
        thread::scope(|scope| {
            let answering = scope.spawn(|| answer(service, qos, &over));
            let round = ask(requester, template, in_flight, time);
            over.store(true, Ordering::Release);
            answering.join().map_err(|_| io::Error::other("the service panicked"))??;
            round
        })
    }

    /// Sends so many requests, to none of which the service says anything; how many it has got when no more come.
    ///
    /// # Errors
    ///
    /// A connection is gone.
    pub fn leave_unanswered(&mut self, count: u64) -> io::Result<u64> {
        let (mut sent, mut unacknowledged, mut got) = (0, 0, 0);
        let mut last = Instant::now();
        while last.elapsed() < Duration::from_secs(2) {
            let batch = (count - sent).min(WINDOW - unacknowledged);
            self.template.put(usize::try_from(batch).unwrap_or_default(), &mut self.requester.out);
            self.requester.flush()?;
            (sent, unacknowledged) = (sent + batch, unacknowledged + batch);
            if unacknowledged > 0 {
                self.requester.read(|frame, _| unacknowledged -= u64::from(frame.kind() == 4))?;
            }
            let before = got;
            self.service.read(|frame, out| {
                got += u64::from(frame.kind() == 3);
                frame.acknowledge(out);
            })?;
            if got > before || sent < count {
                last = Instant::now();
            }
        }
        Ok(got)
    }
}

/// A request with its answer to `inbox/bench`.
pub(super) fn request(topic: &str, qos: Qos) -> Publish {
    let properties = MessageProperties {
        response_topic: Some("inbox/bench".into()),
        correlation: Some(bytes::Bytes::from_static(b"12345678")),
        ..MessageProperties::default()
    };
    let payload = vec![b'x'; PAYLOAD].into();
    Publish { qos, topic: topic.into(), properties, payload, ..Publish::default() }
}

/// Each answer lets the next request go.
fn ask(client: &mut Client, template: &mut Template, in_flight: usize, time: Duration) -> io::Result<Round> {
    let start = Instant::now();
    let mut last = start;
    let (mut waiting, mut answered) = (in_flight, 0);
    template.put(in_flight, &mut client.out);
    client.flush()?;
    while waiting > 0 {
        let going_on = start.elapsed() < time;
        let mut answers = 0;
        client.read(|frame, out| {
            if frame.kind() == 3 {
                answers += 1;
                frame.acknowledge(out);
                if going_on {
                    template.put(1, out);
                }
            }
        })?;
        if answers > 0 {
            last = Instant::now();
            answered += answers;
        } else if last.elapsed() > LOST {
            return Err(io::Error::other(format!("{waiting} answers are missing")));
        }
        if !going_on {
            waiting -= usize::try_from(answers).unwrap_or_default();
        }
    }
    Ok(Round { messages: answered, elapsed: last - start })
}

fn answer(client: &mut Client, qos: Qos, over: &AtomicBool) -> io::Result<()> {
    let mut decoder = Decoder::new(Version::V5, usize::MAX);
    while !over.load(Ordering::Acquire) {
        let mut wrong = None;
        client.read(|frame, out| {
            if frame.kind() != 3 {
                return;
            }
            frame.acknowledge(out);
            match decoder.decode(&mut BytesMut::from(frame.bytes)) {
                Ok(Some(Packet::Publish(request))) => {
                    let Some(topic) = request.properties.response_topic else { return };
                    let correlation = request.properties.correlation;
                    let properties = MessageProperties { correlation, ..MessageProperties::default() };
                    // One identifier at a time would be wrong with 64 of them under way; the request's is as good as any.
                    let id = if request.id == 0 { u16::from(qos != Qos::AtMostOnce) } else { request.id };
                    let answer = Publish { qos, id, topic, properties, payload: request.payload, ..Publish::default() };
                    wrong = encode_publish(&answer, Version::V5, out).err().map(io::Error::other);
                }
                other => wrong = Some(io::Error::other(format!("no message: {other:?}"))),
            }
        })?;
        wrong.map_or(Ok(()), Err)?;
    }
    Ok(())
}
