//! Routes by what a path begins with.

use std::collections::BTreeMap;

/// Finds, of many texts, all that a path begins with.
///
/// The texts are sorted, and each knows the longest other one that it begins with. All that a path begins with are then one chain: a
/// text that a path begins with, and everything that is sorted between the two, begins with that text too; so it is the text right
/// before the path, or one of those that this one begins with.
#[derive(Debug, Clone, Default)]
pub(super) struct Beginnings(Vec<Beginning>);

#[derive(Debug, Clone)]
struct Beginning {
    text: Box<[u8]>,
    /// The place of the longest other one that this one begins with.
    parent: Option<usize>,
    /// In their order.
    routes: Box<[usize]>,
}

/// Collects them.
#[derive(Debug, Default)]
pub(super) struct Collector(BTreeMap<Box<[u8]>, Vec<usize>>);

impl Collector {
    /// Adds a route, the last of those that have been added.
    pub(super) fn add(&mut self, texts: &[Vec<u8>], route: usize) {
        for text in texts {
            let routes = self.0.entry(text.as_slice().into()).or_default();
            if routes.last() != Some(&route) {
                routes.push(route);
            }
        }
    }

    pub(super) fn finish(self) -> Beginnings {
        let mut all: Vec<Beginning> = Vec::with_capacity(self.0.len());
        for (text, routes) in self.0 {
            // The one before it, or one of its own.
            let mut parent = all.len().checked_sub(1);
            while let Some(place) = parent
                && !text.starts_with(&all[place].text)
            {
                parent = all[place].parent;
            }
            all.push(Beginning { text, parent, routes: routes.into() });
        }
        Beginnings(all)
    }
}

impl Beginnings {
    /// Tells the routes of each text that the path begins with.
    pub(super) fn each<'s>(&'s self, path: &[u8], mut tell: impl FnMut(&'s [usize])) {
        let mut next = self.0.partition_point(|beginning| *beginning.text <= *path).checked_sub(1);
        while let Some(Beginning { text, parent, routes }) = next.map(|place| &self.0[place]) {
            if path.starts_with(text) {
                tell(routes);
            }
            next = *parent;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn all_that_it_begins_with_are_found(texts in prop::collection::vec("[ab]{0,5}", 0..30), path in "[ab]{0,7}") {
            let mut collector = Collector::default();
            for (route, text) in texts.iter().enumerate() {
                collector.add(&[text.as_bytes().to_vec()], route);
            }
            let mut found = Vec::new();
            collector.finish().each(path.as_bytes(), |routes| found.extend_from_slice(routes));
            found.sort_unstable();
            let expected: Vec<_> = (0..texts.len()).filter(|route| path.starts_with(&texts[*route])).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
