//! Where chance comes from: a seed, or each thread's own generator.

use std::sync::atomic::{AtomicU64, Ordering};

/// The increment of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014).
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// A source of random numbers that threads may share.
#[derive(Debug)]
pub(crate) enum Rng {
    /// Each thread's own generator: nothing is shared, so nothing is contended.
    PerThread,
    /// SplitMix64 over a shared counter: replayable where one thread picks.
    Seeded(AtomicU64),
}

impl Rng {
    pub(crate) fn new(seed: Option<u64>) -> Self {
        seed.map_or(Rng::PerThread, |seed| Rng::Seeded(AtomicU64::new(seed)))
    }

    /// 64 random bits.
    pub(crate) fn next(&self) -> u64 {
        match self {
            Rng::PerThread => fastrand::u64(..),
            Rng::Seeded(state) => mix(state.fetch_add(GOLDEN, Ordering::Relaxed)),
        }
    }

    /// A copy that, where there is a seed, will give the same numbers, and disturbs nobody.
    pub(crate) fn peek(&self) -> Self {
        match self {
            Rng::PerThread => Rng::PerThread,
            Rng::Seeded(state) => Rng::Seeded(AtomicU64::new(state.load(Ordering::Relaxed))),
        }
    }
}

/// Maps 64 (or the upper 32) random bits to `0..bound` by multiplication (Lemire 2019); the bias is below bound ÷ 2^32.
pub(crate) fn below(bits: u64, bound: usize) -> usize {
    (((bits >> 32) * bound as u64) >> 32) as usize
}

fn mix(state: u64) -> u64 {
    let mut z = state.wrapping_add(GOLDEN);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_replayed_and_peeking_does_not_disturb() {
        let (a, b) = (Rng::new(Some(7)), Rng::new(Some(7)));
        for _ in 0..10 {
            let ahead = a.peek().next();
            assert_eq!(a.next(), ahead);
            assert_eq!(b.next(), ahead);
        }
        assert_ne!(Rng::new(Some(8)).next(), Rng::new(Some(7)).next());
    }
}
