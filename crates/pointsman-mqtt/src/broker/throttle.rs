//! How fast passwords may be guessed. Pure: the time is an argument.
//!
//! After a few failures each further attempt waits, longer with each failure and bounded. What is counted is the pair of address and user,
//! whose attempts queue up behind one another; the address alone, for one that goes through users; and the user alone, for many
//! addresses that try one. The last only waits, and queues behind nothing, so that strangers do not keep a user out. A success ends
//! the count of the pair, and everything is forgotten in time.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Failures that cost nothing.
const FREE: u32 = 3;
const FREE_OF_ADDRESS: u32 = 20;
/// What the first failure beyond these costs; it doubles with each further one, up to the bounds.
const FIRST: Duration = Duration::from_millis(100);
const MOST: Duration = Duration::from_secs(5);
const MOST_OF_ADDRESS: Duration = Duration::from_millis(250);
const MOST_OF_USER: Duration = Duration::from_millis(500);
/// After so long without a failure nothing is known of it.
const FORGOTTEN: Duration = Duration::from_secs(600);
/// Maximum number of counts; beyond it the oldest is forgotten.
const COUNTS: usize = 30_000;

/// Failures by address and user.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    counts: HashMap<Key, Count>,
    /// All of them, in the order in which they were last looked at.
    ages: VecDeque<Key>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Pair(IpAddr, Arc<str>),
    Address(IpAddr),
    User(Arc<str>),
}

#[derive(Debug, Clone, Copy)]
struct Count {
    failures: u32,
    last: Instant,
    /// Before that no further attempt is made.
    next: Instant,
}

impl Throttle {
    /// Returns how long an attempt has to wait; `None` where so many wait already that it is refused.
    pub(super) fn wait(&mut self, address: IpAddr, user: &Arc<str>, now: Instant) -> Option<Duration> {
        let address = network(address);
        let queue =
            [(Key::Pair(address, user.clone()), FREE, MOST), (Key::Address(address), FREE_OF_ADDRESS, MOST_OF_ADDRESS)];
        let mut wait = Duration::ZERO;
        for (key, free, most) in &queue {
            if let Some(count) = self.counts.get(key).filter(|count| !count.is_forgotten(now)) {
                let before = count.next.saturating_duration_since(now);
                if before > MOST {
                    return None;
                }
                wait = wait.max(before.max(count.delay(*free, *most)));
            }
        }
        for (key, free, most) in &queue {
            if let Some(count) = self.counts.get_mut(key) {
                let delay = count.delay(*free, *most);
                count.next = count.next.max(now) + delay;
                if matches!(key, Key::Pair(..)) && !delay.is_zero() {
                    // Taken for a failure before it is one: those that come at the same time do not wait for each other.
                    count.failures = count.failures.saturating_add(1);
                }
            }
        }
        let of_user = self.counts.get(&Key::User(user.clone())).filter(|count| !count.is_forgotten(now));
        Some(wait.max(of_user.map_or(Duration::ZERO, |count| count.delay(FREE, MOST_OF_USER))))
    }

    /// A password was wrong.
    pub(super) fn failed(&mut self, address: IpAddr, user: &Arc<str>, now: Instant) {
        let address = network(address);
        self.tidy(now);
        for key in [Key::Pair(address, user.clone()), Key::Address(address), Key::User(user.clone())] {
            let fresh = Count { failures: 0, last: now, next: now };
            let ages = &mut self.ages;
            let count = self.counts.entry(key.clone()).or_insert_with_key(|key| {
                ages.push_back(key.clone());
                fresh
            });
            if count.is_forgotten(now) {
                *count = fresh;
            }
            count.last = now;
            if count.failures < FREE || !matches!(key, Key::Pair(..)) {
                count.failures = count.failures.saturating_add(1);
            }
        }
    }

    /// A password was right. That of one user says nothing of the others at the address, but that it is not only guesses that come from there.
    pub(super) fn succeeded(&mut self, address: IpAddr, user: &Arc<str>) {
        let address = network(address);
        self.counts.remove(&Key::Pair(address, user.clone()));
        if let Some(count) = self.counts.get_mut(&Key::Address(address)) {
            count.failures /= 2;
        }
    }

    /// Lets go what is forgotten: a few with each failure, so that none costs more than another.
    fn tidy(&mut self, now: Instant) {
        for _ in 0..6 {
            let Some(key) = self.ages.pop_front() else { return };
            match self.counts.get(&key) {
                Some(count) if !count.is_forgotten(now) && self.counts.len() < COUNTS => self.ages.push_back(key),
                _ => drop(self.counts.remove(&key)),
            }
        }
    }
}

impl Count {
    fn is_forgotten(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last) > FORGOTTEN
    }

    /// What one attempt costs.
    fn delay(&self, free: u32, most: Duration) -> Duration {
        match self.failures.checked_sub(free) {
            None => Duration::ZERO,
            Some(more) => FIRST.saturating_mul(1 << more.min(16)).min(most),
        }
    }
}

/// Whoever has an address of IPv6 has at least 64 bits of it.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn other(last: u8) -> IpAddr {
        IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, last))
    }

    /// How many guesses are made within `time` by somebody who always has some attempts waiting.
    fn guesses(throttle: &mut Throttle, time: Duration, user: impl Fn(usize) -> Arc<str>) -> usize {
        let (start, mut made) = (Instant::now(), 0);
        let mut waiting: Vec<(Instant, Arc<str>)> = Vec::new();
        let mut now = start;
        while now < start + time {
            for attempt in 0..20 {
                let user = user(made + attempt);
                if let Some(wait) = throttle.wait(ADDRESS, &user, now) {
                    waiting.push((now + wait, user));
                }
            }
            now += Duration::from_millis(10);
            let due: Vec<_> = waiting.extract_if(.., |(at, _)| *at <= now).collect();
            for (_, user) in due {
                made += 1;
                throttle.failed(ADDRESS, &user, now);
            }
        }
        made
    }

    #[test]
    fn guesses_become_slow() {
        let anna: Arc<str> = "anna".into();
        let of_one = guesses(&mut Throttle::default(), Duration::from_secs(60), |_| anna.clone());
        assert!(of_one < 45, "{of_one} guesses at one user in a minute");
        let of_many = guesses(&mut Throttle::default(), Duration::from_secs(60), |number| number.to_string().into());
        assert!(of_many < 330, "{of_many} guesses at many users in a minute");
    }

    #[test]
    fn nobody_is_kept_out() {
        let (mut throttle, anna, now) = (Throttle::default(), Arc::<str>::from("anna"), Instant::now());
        for _ in 0..1000 {
            throttle.failed(ADDRESS, &anna, now);
            let _ = throttle.wait(ADDRESS, &anna, now);
        }
        assert_eq!(throttle.wait(ADDRESS, &anna, now), None, "too many wait at that address");
        let elsewhere = throttle.wait(other(1), &anna, now).unwrap();
        assert!(elsewhere <= MOST_OF_USER, "{elsewhere:?}");
        assert!(throttle.wait(other(1), &"bert".into(), now).unwrap().is_zero());
        assert!(throttle.wait(ADDRESS, &anna, now + FORGOTTEN * 2).unwrap().is_zero());
        throttle.failed(other(2), &anna, now);
        throttle.succeeded(other(2), &anna);
        assert!(throttle.wait(other(2), &anna, now).unwrap() <= MOST_OF_USER);
    }

    #[test]
    fn a_failing_client_does_not_hold_up_the_others_at_its_address() {
        let (mut throttle, wrong, mut now) = (Throttle::default(), Arc::<str>::from("wrong"), Instant::now());
        for number in 0..1000 {
            now += Duration::from_millis(10);
            if number % 100 == 0 {
                throttle.failed(ADDRESS, &wrong, now);
            }
            let user: Arc<str> = format!("user-{number}").into();
            assert!(throttle.wait(ADDRESS, &user, now).unwrap().is_zero(), "{number}");
            throttle.succeeded(ADDRESS, &user);
        }
    }

    #[test]
    fn it_stays_small() {
        let (mut throttle, now) = (Throttle::default(), Instant::now());
        for number in 0..COUNTS as u32 {
            throttle.failed(IpAddr::V4(number.into()), &number.to_string().into(), now);
        }
        assert!(throttle.counts.len() <= COUNTS + 3 && throttle.ages.len() <= COUNTS + 3);
        for number in 0..COUNTS as u32 {
            throttle.failed(ADDRESS, &number.to_string().into(), now + FORGOTTEN * 2);
        }
        assert!(throttle.counts.len() <= COUNTS + 3);
    }
}
