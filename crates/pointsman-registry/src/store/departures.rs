//! Who has left a service cleanly, for those who compare snapshots later.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// The codes that left last and have not come back.
#[derive(Debug, Default)]
pub(super) struct Departures {
    /// By code: the number of its departure.
    by_code: HashMap<Arc<str>, u64>,
    /// The oldest first; one whose number is not the code's has been taken back.
    order: VecDeque<(u64, Arc<str>)>,
    last: u64,
}

/// Maximum number of codes that are remembered of one service.
pub(super) const LEFT: usize = 1024;

impl Departures {
    pub(super) fn contains(&self, code: &str) -> bool {
        self.by_code.contains_key(code)
    }

    pub(super) fn len(&self) -> usize {
        self.by_code.len()
    }

    pub(super) fn add(&mut self, code: Arc<str>) {
        self.last += 1;
        self.by_code.insert(code.clone(), self.last);
        self.order.push_back((self.last, code));
        while self.by_code.len() > LEFT {
            let Some((number, code)) = self.order.pop_front() else { break };
            if self.by_code.get(&code) == Some(&number) {
                self.by_code.remove(&code);
            }
        }
        if self.order.len() > 2 * LEFT {
            self.order.retain(|(number, code)| self.by_code.get(code) == Some(number));
        }
    }

    /// Forgets a code that is there again, or was lost.
    pub(super) fn remove(&mut self, code: &str) {
        self.by_code.remove(code);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_thousand_are_remembered_however_often_they_come_and_go() {
        let mut left = Departures::default();
        for number in 0..10 * LEFT {
            left.add(number.to_string().into());
            left.add("often".into());
            left.remove("often");
        }
        let newest = 10 * LEFT - 1;
        assert_eq!((left.len(), left.contains("often")), (LEFT - 1, false));
        assert!(left.contains(&newest.to_string()) && left.contains(&(newest - LEFT + 2).to_string()));
        assert!(!left.contains(&(newest - LEFT).to_string()) && left.order.len() <= 2 * LEFT);
    }
}
