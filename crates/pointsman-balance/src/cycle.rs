//! Weighted turns, prepared as one sequence.

/// Up to this much work (instances × length) the sequence is nginx's own. Beyond, its O(instances) per turn would make a
/// change of a large service slow.
const EXACT_WORK: u64 = 1 << 20;

/// The longest sequence, unless there are more than a sixteenth of it of instances: 256 KiB.
const MAX_LENGTH: usize = 1 << 16;

/// The golden ratio's fraction: its multiples spread evenly over 0..1, however many there are.
const GOLDEN: f64 = 0.618_033_988_749_894_9;

/// Turns that repeat.
#[derive(Debug)]
pub(crate) struct Cycle {
    sequence: Box<[u32]>,
    /// 2^64 ÷ length, rounded up: for the remainder by two multiplications in place of a division (Lemire, Kaser, Kurz:
    /// "Faster remainder by direct computation", 2019).
    reciprocal: u64,
}

impl Cycle {
    /// Each index as often as its weight says, see [`smooth`]. There is at least one weight, and each is at least 1.
    pub(crate) fn smooth(weights: &[u64]) -> Self {
        let sequence = smooth(weights);
        let reciprocal = (u64::MAX / sequence.len().max(1) as u64).wrapping_add(1);
        Self { sequence, reciprocal }
    }

    /// Whose turn it is. Turns are counted modulo 2^32: once in so many the cycle starts early.
    #[inline]
    pub(crate) fn at(&self, turn: u64) -> usize {
        self.sequence[self.place(turn)] as usize
    }

    /// Whose turn it is, and whose are those after it, for one cycle.
    pub(crate) fn from(&self, turn: u64) -> impl Iterator<Item = usize> + '_ {
        let (before, after) = self.sequence.split_at(self.place(turn));
        after.iter().chain(before).map(|index| *index as usize)
    }

    #[inline]
    fn place(&self, turn: u64) -> usize {
        let fraction = self.reciprocal.wrapping_mul(u64::from(turn as u32));
        ((u128::from(fraction) * self.sequence.len() as u128) >> 64) as usize
    }
}

/// The turns of one cycle: index `i` appears as often as its weight says, and spread out evenly.
///
/// Small cycles are exactly those of nginx's smooth weighted round robin (`ngx_http_upstream_get_peer`): at each turn every
/// instance gains its weight, the richest is taken and pays the sum of all. For weights 5, 1, 1 that is a a b a c a a.
/// Large ones place the k-th turn of an instance at (k + phase) ÷ weight, with phases spread by the golden ratio.
///
/// The cycle's length is the sum of the weights over their greatest common divisor, where that is at most [`MAX_LENGTH`]
/// (or 16 turns per instance, if that is more). Otherwise the weights are scaled down to that length and rounded, but at
/// least to one turn: each share is then off by at most 1 ÷ length, 0.0015 %, plus what the lightest are rounded up by.
fn smooth(weights: &[u64]) -> Box<[u32]> {
    let divisor = weights.iter().copied().fold(0, gcd).max(1);
    let mut turns: Vec<u64> = weights.iter().map(|weight| weight / divisor).collect();
    let limit = MAX_LENGTH.max(16 * weights.len()) as u64;
    let total: u64 = turns.iter().sum();
    if total > limit {
        let scale = limit as f64 / total as f64;
        for count in &mut turns {
            *count = ((*count as f64 * scale).round() as u64).max(1);
        }
    }
    let total: u64 = turns.iter().sum();
    if turns.iter().all(|&count| count == 1) {
        (0..turns.len() as u32).collect()
    } else if total * turns.len() as u64 <= EXACT_WORK {
        as_nginx(&turns, total)
    } else {
        spread(&turns)
    }
}

fn as_nginx(turns: &[u64], total: u64) -> Box<[u32]> {
    let mut credit = vec![0i64; turns.len()];
    let turn = |_| {
        let mut best = 0;
        for (index, &weight) in turns.iter().enumerate() {
            credit[index] += weight as i64;
            if credit[index] > credit[best] {
                best = index;
            }
        }
        credit[best] -= total as i64;
        best as u32
    };
    (0..total).map(turn).collect()
}

fn spread(turns: &[u64]) -> Box<[u32]> {
    let mut placed: Vec<(f64, u32)> = Vec::with_capacity(turns.iter().sum::<u64>() as usize);
    for (index, &count) in turns.iter().enumerate() {
        let phase = (index as f64 * GOLDEN).fract();
        placed.extend((0..count).map(|k| ((k as f64 + phase) / count as f64, index as u32)));
    }
    placed.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    placed.into_iter().map(|(_, index)| index).collect()
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(sequence: &[u32], n: usize) -> Vec<u64> {
        let mut counts = vec![0; n];
        for &index in sequence {
            counts[index as usize] += 1;
        }
        counts
    }

    #[test]
    fn small_cycles_are_those_of_nginx() {
        assert_eq!(*smooth(&[5, 1, 1]), [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(*smooth(&[50, 10, 10]), [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(*smooth(&[7, 7, 7]), [0, 1, 2]);
        assert_eq!(*smooth(&[9]), [0]);
    }

    #[test]
    fn cycles_repeat() {
        for n in [1, 2, 3, 7, 10, 641, 5500] {
            let cycle = Cycle::smooth(&vec![1; n]);
            for turn in (0..20_000).chain(u64::from(u32::MAX) - 10..=u64::from(u32::MAX)) {
                assert_eq!(cycle.at(turn), turn as usize % n, "{turn} of {n}");
            }
            assert_eq!(cycle.from(n as u64 + 1).count(), n);
            assert_eq!(cycle.from(n as u64 + 1).next(), Some(1 % n));
        }
    }

    #[test]
    fn large_cycles_are_exact_and_even() {
        let weights: Vec<u64> = (0..1000).map(|i| i % 10 + 1).collect();
        let sequence = smooth(&weights);
        assert_eq!(counts(&sequence, 1000), weights);
        let gaps_of = |index: u32| {
            let places: Vec<_> = (0..sequence.len()).filter(|&i| sequence[i] == index).collect();
            places.windows(2).map(|w| w[1] - w[0]).max().unwrap()
        };
        // A weight of 10 in 5500 turns: every 550th, give or take.
        assert!(gaps_of(9) < 600, "{}", gaps_of(9));
    }

    #[test]
    fn unbounded_cycles_are_bounded() {
        let sequence = smooth(&[1_000_000, 999_999, 1]);
        assert!(sequence.len() <= MAX_LENGTH + 3);
        let counts = counts(&sequence, 3);
        assert_eq!(counts[2], 1);
        assert!(counts[0].abs_diff(counts[1]) <= 1);
        let many: Vec<u64> = (0..5000).map(|i| 999_983 - i).collect();
        assert!(smooth(&many).len() <= 16 * 5000 + 5000);
    }
}
