//! Consistent hashing by a prepared table.

mod computed;

use computed::Computed;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The seeds are part of the contract: every process and every version must build the same table. Never change them.
const OFFSET_SEED: u64 = 0x706f_696e_7473_6d61;
const SKIP_SEED: u64 = 0x6e5f_6d61_676c_6576;

/// The table sizes of the paper, both prime. Up to 1,024 instances the small one leaves each at least 64 places; the step
/// to the large one moves keys once.
const SMALL: usize = 65_537;
const LARGE: usize = 655_373;
pub(crate) const SMALL_UP_TO: usize = 1_024;

/// A Maglev table (Eisenbud et al.: "Maglev: A fast and reliable software network load balancer", NSDI 2016, section 3.4).
///
/// Each member prefers the table's places in an order of its own, made from the hash of its code; members take turns in
/// choosing the next free place, heavier ones more often (as in Envoy: a member has a turn whenever its accumulated
/// weight, relative to the heaviest, reaches 1). A look-up is one hash and one array access. When one of n members leaves,
/// its keys move, 1/n of all, and few others.
#[derive(Debug)]
pub(crate) struct Maglev {
    /// The index of a member for each place.
    places: Places,
}

/// Up to [`computed::MAX_MEMBERS`] members they take 3 to 13 KiB. Of more, each place takes as many bytes as the members need: 64 KiB up to
/// 256 members, 128 KiB up to [`SMALL_UP_TO`]. How a table is held does not change what is in it, so no key moves because of that.
#[derive(Debug)]
enum Places {
    Computed(Computed),
    Tiny(Box<[u8]>),
    Small(Box<[u16]>),
    Large(Box<[u32]>),
}

/// The hash of a key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeyHash(u64);

impl KeyHash {
    pub(crate) fn of(key: &[u8]) -> Self {
        Self(xxh3_64_with_seed(key, 0))
    }

    /// The hash itself.
    pub(crate) fn bits(self) -> u64 {
        self.0
    }
}

impl Maglev {
    /// A table of members given as (code, weight), each weight above 0, in the order of their codes.
    pub(crate) fn new(members: &[(&str, u32)]) -> Self {
        if members.len() > SMALL_UP_TO {
            return Self { places: Places::Large(populate::<LARGE>(members).into()) };
        }
        let places = populate::<SMALL>(members);
        if (1..=computed::MAX_MEMBERS).contains(&members.len())
            && let Some(computed) = Computed::of(members, &places)
        {
            return Self { places: Places::Computed(computed) };
        }
        let places = if members.len() <= 256 {
            Places::Tiny(places.into_iter().map(|member| member as u8).collect())
        } else {
            Places::Small(places.into_iter().map(|member| member as u16).collect())
        };
        Self { places }
    }

    /// The member at the key's place.
    #[inline]
    pub(crate) fn get(&self, key: KeyHash) -> usize {
        self.places.at(place(key, self.places.count()))
    }

    /// The members at the key's place and at those after it, round the table: where to go when the first cannot be had.
    /// Neighbouring places belong to unrelated members, so the keys of one that is missing spread over all others.
    pub(crate) fn probe(&self, key: KeyHash) -> impl Iterator<Item = usize> + '_ {
        let size = self.places.count();
        let start = place(key, size);
        (start..size).chain(0..start).map(|place| self.places.at(place))
    }
}

impl Places {
    #[inline]
    fn count(&self) -> usize {
        match self {
            Places::Computed(_) | Places::Tiny(_) | Places::Small(_) => SMALL,
            Places::Large(_) => LARGE,
        }
    }

    /// The index of the member at this place.
    #[inline]
    fn at(&self, place: usize) -> usize {
        match self {
            Places::Computed(computed) => computed.at(place),
            Places::Tiny(places) => usize::from(places[place]),
            Places::Small(places) => usize::from(places[place]),
            Places::Large(places) => places[place] as usize,
        }
    }
}

/// Scales the upper 32 bits to the table by multiplication, which is cheaper than a division.
#[inline]
fn place(key: KeyHash, size: usize) -> usize {
    crate::rng::below(key.0, size)
}

/// Fills a table of `SIZE` places, which is prime.
///
/// Most of the work are the last places: the fewer are free, the longer each walk is until it meets one. So the last few are not walked to:
/// of each it is calculated after how many steps the walk would come there, and the nearest is taken. It is the same table.
fn populate<const SIZE: usize>(members: &[(&str, u32)]) -> Vec<u32> {
    let mut places = vec![u32::MAX; SIZE];
    let Some(heaviest) = members.iter().map(|member| u64::from(member.1)).max() else { return places };
    let mut walks: Vec<Walk<SIZE>> = members.iter().map(|(code, _)| Walk::of(code)).collect();
    let mut credit = vec![0u64; members.len()];
    let mut free = Free::<SIZE>::new();
    loop {
        for (index, (_, weight)) in members.iter().enumerate() {
            credit[index] += u64::from(*weight);
            if credit[index] < heaviest {
                continue;
            }
            credit[index] -= heaviest;
            let place = free.take(&mut walks[index]);
            places[place] = index as u32;
            if free.count == 0 {
                return places;
            }
        }
    }
}

/// The places that nobody has chosen yet. One bit for each: that stays in the processor's caches, where the table does not.
struct Free<const SIZE: usize> {
    taken: Vec<u64>,
    count: usize,
    /// The last ones, in no order.
    last: Vec<u32>,
}

impl<const SIZE: usize> Free<SIZE> {
    /// With no more than these it is quicker to calculate than to walk: the one takes as many steps as there are free places, the other
    /// `SIZE` divided by that.
    const LAST: usize = SIZE.isqrt() * 3 / 4;

    fn new() -> Self {
        Self { taken: vec![0; SIZE.div_ceil(64)], count: SIZE, last: Vec::new() }
    }

    fn is_taken(&self, place: usize) -> bool {
        self.taken[place / 64] >> (place % 64) & 1 == 1
    }

    /// Takes the next free place on a member's walk.
    fn take(&mut self, walk: &mut Walk<SIZE>) -> usize {
        if self.count > Self::LAST {
            while self.is_taken(walk.at as usize) {
                walk.step();
            }
        } else {
            if self.last.is_empty() {
                self.last = (0..SIZE).filter(|place| !self.is_taken(*place)).map(|place| place as u32).collect();
            }
            let inverse = inverse(u64::from(walk.skip), SIZE as u64);
            let steps = |place: u32| (u64::from(place) + SIZE as u64 - u64::from(walk.at)) * inverse % SIZE as u64;
            let nearest = (0..self.last.len()).min_by_key(|index| steps(self.last[*index])).unwrap_or_default();
            walk.at = self.last.swap_remove(nearest);
        }
        let place = walk.at as usize;
        self.taken[place / 64] |= 1 << (place % 64);
        self.count -= 1;
        place
    }
}

/// The number by which `number` must be multiplied to give 1 modulo a prime: by the extended Euclidean algorithm.
fn inverse(number: u64, prime: u64) -> u64 {
    let modulus = prime.cast_signed();
    let (mut rest, mut next) = (modulus, number.cast_signed());
    let (mut factor, mut next_factor) = (0, 1);
    while next != 0 {
        let quotient = rest / next;
        (rest, next) = (next, rest - quotient * next);
        (factor, next_factor) = (next_factor, factor - quotient * next_factor);
    }
    factor.rem_euclid(modulus).cast_unsigned()
}

/// Where a member stands in its order of preference: `(offset + k × skip) mod SIZE`.
struct Walk<const SIZE: usize> {
    at: u32,
    skip: u32,
}

impl<const SIZE: usize> Walk<SIZE> {
    fn of(code: &str) -> Self {
        let hash = |seed, modulus: usize| (xxh3_64_with_seed(code.as_bytes(), seed) % modulus as u64) as u32;
        Self { at: hash(OFFSET_SEED, SIZE), skip: 1 + hash(SKIP_SEED, SIZE - 1) }
    }

    fn step(&mut self) {
        self.at += self.skip;
        if self.at >= SIZE as u32 {
            self.at -= SIZE as u32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(n: usize) -> Vec<String> {
        (0..n).map(|i| format!("code-{i:04}")).collect()
    }

    fn members(codes: &[String]) -> Vec<(&str, u32)> {
        codes.iter().map(|code| (code.as_str(), 1)).collect()
    }

    /// As the paper has it: each member walks from place to place.
    fn walked(members: &[(&str, u32)], size: usize) -> Vec<u32> {
        let hash = |code: &str, seed, modulus| xxh3_64_with_seed(code.as_bytes(), seed) as usize % modulus;
        let heaviest = members.iter().map(|member| u64::from(member.1)).max().unwrap();
        let mut walks: Vec<_> = members
            .iter()
            .map(|(code, _)| (hash(code, OFFSET_SEED, size), 1 + hash(code, SKIP_SEED, size - 1), 0))
            .collect();
        let (mut places, mut left) = (vec![u32::MAX; size], size);
        loop {
            for (index, (at, skip, credit)) in walks.iter_mut().enumerate() {
                *credit += u64::from(members[index].1);
                if *credit < heaviest {
                    continue;
                }
                *credit -= heaviest;
                while places[*at] != u32::MAX {
                    *at = (*at + *skip) % size;
                }
                places[*at] = index as u32;
                left -= 1;
                if left == 0 {
                    return places;
                }
            }
        }
    }

    #[test]
    fn the_table_is_that_of_the_paper_place_by_place() {
        for count in [1, 2, 3, 10, 700, 1024] {
            let codes = codes(count);
            let weighted: Vec<_> =
                members(&codes).iter().enumerate().map(|(i, (code, _))| (*code, 1 + i as u32 % 4)).collect();
            assert_eq!(populate::<SMALL>(&weighted), walked(&weighted, SMALL), "{count}");
        }
        let codes = codes(1500);
        assert_eq!(populate::<LARGE>(&members(&codes)), walked(&members(&codes), LARGE));
        assert_eq!((1..SMALL as u64).step_by(97).find(|n| n * inverse(*n, SMALL as u64) % SMALL as u64 != 1), None);
    }

    fn moved(before: &[(&str, u32)], after: &[(&str, u32)]) -> f64 {
        let (old, new) = (Maglev::new(before), Maglev::new(after));
        let differs = |i: &u32| {
            let key = KeyHash::of(&i.to_le_bytes());
            before[old.get(key)].0 != after[new.get(key)].0
        };
        (0..20_000u32).filter(differs).count() as f64 / 20_000.0
    }

    #[test]
    fn one_that_leaves_moves_little_more_than_its_own_keys() {
        for n in [2, 10, 100] {
            let codes = codes(n);
            let all = members(&codes);
            let mut rest = all.clone();
            rest.remove(n / 2);
            let share = moved(&all, &rest);
            assert!(share < 1.0 / n as f64 + 0.04, "{n}: {share}");
        }
    }

    #[test]
    fn shares_are_even_and_follow_weights() {
        let codes = codes(10);
        let mut all = members(&codes);
        all[3].1 = 5;
        let maglev = Maglev::new(&all);
        let mut counts = [0u32; 10];
        for i in 0..140_000u32 {
            counts[maglev.get(KeyHash::of(&i.to_le_bytes()))] += 1;
        }
        for (index, count) in counts.into_iter().enumerate() {
            let expected = if index == 3 { 50_000 } else { 10_000 };
            assert!(count.abs_diff(expected) < expected / 20, "{counts:?}");
        }
    }

    #[test]
    fn the_table_is_the_same_in_every_version() {
        let codes = codes(7);
        let maglev = Maglev::new(&members(&codes));
        let chosen: Vec<_> = (0..24u32).map(|i| maglev.get(KeyHash::of(format!("key-{i}").as_bytes()))).collect();
        assert_eq!(chosen, PINNED);
    }

    /// If this has to be changed, then processes of two versions disagree about who serves which key.
    const PINNED: [usize; 24] = [6, 2, 1, 1, 0, 3, 5, 0, 1, 0, 6, 6, 4, 0, 1, 4, 4, 1, 2, 2, 6, 3, 5, 1];

    #[test]
    fn probing_visits_everybody() {
        let codes = codes(1500);
        let maglev = Maglev::new(&members(&codes));
        let seen: std::collections::HashSet<_> = maglev.probe(KeyHash::of(b"x")).collect();
        assert_eq!(seen.len(), 1500);
        assert_eq!(maglev.probe(KeyHash::of(b"x")).next(), Some(maglev.get(KeyHash::of(b"x"))));
    }
}
