//! Places with keys that never stand for a second value.

/// Stands for one value in [`Slots`]; after its removal for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    index: u32,
    epoch: u32,
}

#[derive(Debug)]
pub(super) struct Slots<T> {
    slots: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slots<T> {
    pub(super) fn insert(&mut self, value: T) -> Key {
        if let Some(index) = self.free.pop() {
            let (epoch, place) = &mut self.slots[index as usize];
            *place = Some(value);
            return Key { index, epoch: *epoch };
        }
        // There are far fewer than 2^32: each takes memory, and all are bounded.
        let index = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
        self.slots.push((0, Some(value)));
        Key { index, epoch: 0 }
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<T> {
        let (epoch, place) = self.slots.get_mut(key.index as usize)?;
        if *epoch != key.epoch {
            return None;
        }
        let value = place.take()?;
        *epoch = epoch.wrapping_add(1);
        self.free.push(key.index);
        Some(value)
    }

    pub(super) fn get(&self, key: Key) -> Option<&T> {
        let (epoch, place) = self.slots.get(key.index as usize)?;
        if *epoch == key.epoch { place.as_ref() } else { None }
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let (epoch, place) = self.slots.get_mut(key.index as usize)?;
        if *epoch == key.epoch { place.as_mut() } else { None }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn keys(&self) -> Vec<Key> {
        let key =
            |(index, (epoch, place)): (u32, &(u32, Option<T>))| place.as_ref().map(|_| Key { index, epoch: *epoch });
        (0..).zip(&self.slots).filter_map(key).collect()
    }
}
