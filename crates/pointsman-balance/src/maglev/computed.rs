//! The table of a few members, computed instead of stored.

use super::{SMALL, Walk, inverse};

/// Maximum number of members whose table is computed: as many 16-bit numbers as two vectors hold.
pub(super) const MAX_MEMBERS: usize = 16;

/// Maximum number of places of which the member is stored: 10 KiB. A table with more exceptions is stored as a whole.
const MAX_EXCEPTIONS: usize = 2560;

/// Number of neighbouring places that share one bit of [`Computed::has_exception`].
const GROUP: usize = 4;

/// A table of `SMALL` places, the same as a stored one place by place, in 3 to 13 KiB instead of 64.
///
/// How a member walks through the table is known from the hash of its code: it comes to `place` after `(place - offset) ÷ skip` steps, modulo
/// `SMALL`. A place belongs to the member that comes there first. As a member passes over the places that are taken, it is the faster the
/// fuller the table is: while `dt` of the places are filled, a member that has `x` of its walk behind it gets on by
/// `dx = share × (1 - x) ÷ (1 - t) × dt`, where `share` is its part of all weights. Solved, `-ln(1 - x) ÷ weight` is the same for all members at
/// any time; so a place belongs to the member for which that is the lowest. It is weighted rendezvous hashing (Schindelhauer, Schomaker:
/// "Weighted distributed hash tables", SPAA 2005).
///
/// That is how members get on in the mean. Chance, and rounding, leave some places to another member: 6 in 1,000 among ten members of equal
/// weight. These exceptions are found when the table is built, by comparing each place, and stored. So the computation may be rough, which makes
/// it cheap: all numbers have 16 bits, and the compiler computes eight members at a time.
#[derive(Debug)]
pub(super) struct Computed {
    lanes: Lanes,
    /// One bit for each `GROUP` places: whether one of them is an exception.
    has_exception: Box<[u64]>,
    /// `place × MAX_MEMBERS + member`, in ascending order.
    exceptions: Box<[u32]>,
}

impl Computed {
    /// The table that is stored in `places`; `None` if too many of its places are exceptions. There are at most [`MAX_MEMBERS`] members.
    pub(super) fn of(members: &[(&str, u32)], places: &[u32]) -> Option<Self> {
        let lanes = Lanes::of(members);
        let mut has_exception = vec![0; SMALL.div_ceil(GROUP * 64)].into_boxed_slice();
        let mut exceptions = Vec::new();
        for (place, member) in places.iter().enumerate() {
            if lanes.first(place) == *member as usize {
                continue;
            }
            if exceptions.len() == MAX_EXCEPTIONS {
                return None;
            }
            exceptions.push((place * MAX_MEMBERS) as u32 + member);
            has_exception[place / GROUP / 64] |= 1 << (place / GROUP % 64);
        }
        Some(Self { lanes, has_exception, exceptions: exceptions.into() })
    }

    /// The member at this place.
    #[inline]
    pub(super) fn at(&self, place: usize) -> usize {
        if self.has_exception[place / GROUP / 64] >> (place / GROUP % 64) & 1 == 1
            && let Some(member) = self.exception(place)
        {
            return member;
        }
        self.lanes.first(place)
    }

    fn exception(&self, place: usize) -> Option<usize> {
        let index = self.exceptions.partition_point(|exception| (*exception as usize) < place * MAX_MEMBERS);
        let exception = *self.exceptions.get(index)? as usize;
        (exception / MAX_MEMBERS == place).then_some(exception % MAX_MEMBERS)
    }
}

/// What the computation needs of each member, side by side.
#[derive(Debug)]
struct Lanes {
    /// All weights are equal: then the steps can be compared as they are.
    is_even: bool,
    /// 1 ÷ skip, modulo `SMALL`.
    inverse: [u16; MAX_MEMBERS],
    /// Number of steps to place 0.
    to_zero: [u16; MAX_MEMBERS],
    /// By what a member's progress is multiplied: the sum of all weights ÷ its own weight, to scale.
    pace: [u16; MAX_MEMBERS],
    /// The lowest four bits of a member's score: its index. Where there is no member, all the others are set too, so that it is not chosen.
    tag: [u16; MAX_MEMBERS],
}

/// Scores have 15 bits, as the smallest of signed numbers is found fastest.
const SCORE_BITS: u32 = 15;
/// The highest score stands for a time at which e^-7 of the table is still free: 60 places.
const LATEST: f64 = 7.0;
/// Bits by which the product of progress and pace is wider than the score. The lightest members that are told apart have 1 in 448 of all weights.
const EXCESS: u32 = 9;
/// The upper half of the product in the highest score.
const HIGHEST: u16 = (1 << (SCORE_BITS + EXCESS - 16)) - 1;
/// The bits of a score that are not a member's index.
const SCORE: u16 = !(MAX_MEMBERS as u16 - 1);

impl Lanes {
    fn of(members: &[(&str, u32)]) -> Self {
        let tag = |index| if index < members.len() { index as u16 } else { (1 << SCORE_BITS) - 1 };
        let mut lanes = Self {
            is_even: members.iter().all(|(_, weight)| *weight == members[0].1),
            inverse: [0; MAX_MEMBERS],
            to_zero: [0; MAX_MEMBERS],
            pace: [0; MAX_MEMBERS],
            tag: std::array::from_fn(tag),
        };
        let total: f64 = members.iter().map(|(_, weight)| f64::from(*weight)).sum();
        for (index, (code, weight)) in members.iter().enumerate() {
            let walk = Walk::<SMALL>::of(code);
            let inverse = inverse(u64::from(walk.skip), SMALL as u64);
            lanes.inverse[index] = inverse as u16;
            lanes.to_zero[index] = ((SMALL as u64 - u64::from(walk.at)) * inverse % SMALL as u64) as u16;
            // Progress has 14 bits for the whole of a walk. A conversion from a float saturates.
            let scale = f64::from(1 << SCORE_BITS) / f64::from(1 << 14) / LATEST * f64::from(1 << EXCESS);
            lanes.pace[index] = (total / f64::from(*weight) * scale).round() as u16;
        }
        lanes
    }

    /// The member that comes to this place first, but for exceptions.
    ///
    /// It is computed for each place when a table is built, so it is written for builds without optimisation, too: without closures, iterators
    /// and other calls, each of which takes its time there.
    #[inline]
    fn first(&self, place: usize) -> usize {
        if self.is_even { self.first_of_even(place) } else { self.first_of_weighted(place) }
    }

    #[inline]
    fn first_of_even(&self, place: usize) -> usize {
        let (place, mut lowest, mut index) = (place as u16 as u32, i16::MAX, 0);
        while index < MAX_MEMBERS {
            // 2^16 is -1 modulo `SMALL`, so a product is its lower half less its upper half (one step too few where that is negative).
            let product = place * self.inverse[index] as u32;
            let steps = (product - (product >> 16) + self.to_zero[index] as u32) as u16;
            let score = (steps >> 1 & SCORE | self.tag[index]) as i16;
            if score < lowest {
                lowest = score;
            }
            index += 1;
        }
        lowest as usize % MAX_MEMBERS
    }

    #[inline]
    fn first_of_weighted(&self, place: usize) -> usize {
        let (place, mut lowest, mut index) = (place as u16 as u32, i16::MAX, 0);
        while index < MAX_MEMBERS {
            let product = place * self.inverse[index] as u32;
            let steps = (product - (product >> 16) + self.to_zero[index] as u32) as u16;
            // -ln(1 - x) of the share of the walk, of which the whole is 2^16 in `steps` and 2^14 here: roughly, as x + 2 x⁴.
            let square = ((steps as u32 * steps as u32) >> 16) as u16;
            let progress = (steps >> 2) + (((square as u32 * square as u32) >> 16) as u16 >> 1);
            // Where that is too much for a score, it is the highest score.
            let product = progress as u32 * self.pace[index] as u32;
            let (low, high) = (product as u16, (product >> 16) as u16);
            let high = if high < HIGHEST { high } else { HIGHEST };
            let score = ((high << (16 - EXCESS) | low >> EXCESS) & SCORE | self.tag[index]) as i16;
            if score < lowest {
                lowest = score;
            }
            index += 1;
        }
        lowest as usize % MAX_MEMBERS
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::populate;
    use super::*;

    /// The stored table, and the computed one.
    fn tables(members: &[(String, u32)]) -> (Vec<u32>, Option<Computed>) {
        let members: Vec<_> = members.iter().map(|(code, weight)| (&**code, *weight)).collect();
        let places = populate::<SMALL>(&members);
        let computed = Computed::of(&members, &places);
        (places, computed)
    }

    fn members(count: usize, weight: impl Fn(usize) -> u32) -> Vec<(String, u32)> {
        (0..count).map(|index| (format!("10.0.0.{index}:8080"), weight(index))).collect()
    }

    fn first_difference(places: &[u32], computed: &Computed) -> Option<usize> {
        (0..SMALL).find(|place| computed.at(*place) != places[*place] as usize)
    }

    #[test]
    fn it_is_the_stored_table_place_by_place() {
        let weights: [&dyn Fn(usize) -> u32; 6] = [
            &|_| 1,
            &|index| 1 + index as u32 % 5,
            &|index| 1 + index as u32 % 2,
            &|index| [100, 1][index % 2],
            &|index| [1, 1_000_000][index % 2],
            &|index| 1 << index,
        ];
        for (row, weight) in weights.into_iter().enumerate() {
            for count in [1, 2, 3, 4, 7, 10, 16] {
                let (places, computed) = tables(&members(count, weight));
                let Some(computed) = computed else { panic!("row {row}, {count} members: too many exceptions") };
                assert_eq!(first_difference(&places, &computed), None, "row {row}, {count} members");
            }
        }
    }

    #[test]
    fn few_places_are_exceptions() {
        for (weight, share) in [(1, 0.01), (5, 0.02)] {
            let (_, computed) = tables(&members(10, |index| 1 + index as u32 % weight));
            let exceptions = computed.unwrap().exceptions.len();
            assert!((exceptions as f64) < share * SMALL as f64, "weights up to {weight}: {exceptions}");
        }
    }

    #[test]
    fn a_table_that_has_too_many_exceptions_is_stored() {
        let members = members(10, |_| 1);
        let (mut places, _) = tables(&members);
        places.iter_mut().step_by(8).for_each(|member| *member = (*member + 1) % 10);
        let members: Vec<_> = members.iter().map(|(code, weight)| (&**code, *weight)).collect();
        assert!(Computed::of(&members, &places).is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]

        #[test]
        fn whatever_the_codes_and_weights(
            codes in prop::collection::btree_set("[a-z0-9:.-]{1,40}", 1..=MAX_MEMBERS),
            weights in prop::collection::vec(prop_oneof![Just(1), 1..10u32, 1..=1_000_000u32], MAX_MEMBERS),
        ) {
            let (places, computed) = tables(&codes.into_iter().zip(weights).collect::<Vec<_>>());
            if let Some(computed) = computed {
                prop_assert_eq!(first_difference(&places, &computed), None);
            }
        }
    }
}
