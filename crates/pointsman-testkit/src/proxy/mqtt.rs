//! Where MQTT's packets begin in a stream of bytes.

/// Follows one direction of a connection, whatever pieces it comes in.
#[derive(Debug)]
pub(super) struct Framing(State);

#[derive(Debug, Clone, Copy)]
enum State {
    /// The next byte begins a packet.
    Between,
    /// Within the remaining length: what is known of it, and how far the next seven bits are shifted.
    Length(usize, u32),
    /// So many bytes of the packet are still to come.
    Body(usize),
    /// This is not MQTT, or is no longer.
    Lost,
}

impl Framing {
    /// MQTT is known by its first byte, which is that of CONNECT or of CONNACK.
    pub(super) fn beginning_with(byte: u8) -> Framing {
        Framing(if matches!(byte, 0x10 | 0x20) { State::Between } else { State::Lost })
    }

    /// The packets that begin in the next `bytes`: where, and of which type.
    pub(super) fn packets(&mut self, bytes: &[u8]) -> Vec<(usize, u8)> {
        let mut packets = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            self.0 = match self.0 {
                State::Between => {
                    packets.push((at, bytes[at] >> 4));
                    at += 1;
                    State::Length(0, 0)
                }
                State::Length(length, shift) => {
                    let (more, bits) = (bytes[at] & 0x80 != 0, usize::from(bytes[at] & 0x7f));
                    at += 1;
                    match length | bits << shift {
                        _ if more && shift == 21 => State::Lost,
                        length if more => State::Length(length, shift + 7),
                        0 => State::Between,
                        length => State::Body(length),
                    }
                }
                State::Body(left) => {
                    let here = left.min(bytes.len() - at);
                    at += here;
                    if here == left { State::Between } else { State::Body(left - here) }
                }
                State::Lost => break,
            };
        }
        packets
    }
}

#[cfg(test)]
mod tests {
    use super::Framing;

    /// CONNECT with 200 bytes, PINGREQ, PUBACK, PINGREQ.
    fn stream() -> Vec<u8> {
        [&[0x10, 0xc8, 1][..], &[0x30; 200], &[0xc0, 0], &[0x40, 2, 0, 1], &[0xc0, 0]].concat()
    }

    #[test]
    fn packets_are_found_in_pieces_of_any_size() {
        for size in [1, 2, 3, 7, 150, 203, 204, 500] {
            let mut framing = Framing::beginning_with(0x10);
            let mut found = Vec::new();
            for (index, piece) in stream().chunks(size).enumerate() {
                found.extend(framing.packets(piece).into_iter().map(|(at, kind)| (index * size + at, kind)));
            }
            assert_eq!(found, [(0, 1), (203, 12), (205, 4), (209, 12)], "pieces of {size}");
        }
    }

    #[test]
    fn what_is_not_mqtt_has_no_packets() {
        assert_eq!(Framing::beginning_with(0x16).packets(&[0x16, 3, 1, 0]), []);
        let mut framing = Framing::beginning_with(0x20);
        assert_eq!(framing.packets(&[0x20, 0, 0x30, 0x80, 0x80, 0x80, 0x80, 0x30, 0]), [(0, 2), (2, 3)]);
        assert_eq!(framing.packets(&[0x20, 0]), []);
    }
}
