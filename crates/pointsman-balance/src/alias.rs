//! Weighted chance in constant time.

use crate::rng::below;

/// Walker's alias table, built as Vose does (M. D. Vose: "A linear algorithm for generating random numbers with a given
/// distribution", IEEE TSE 1991): each column holds at most two indices, so that one random number decides. Probabilities
/// are exact to 2^-32.
#[derive(Debug)]
pub(crate) struct Alias {
    columns: Box<[Column]>,
}

#[derive(Debug, Clone, Copy)]
struct Column {
    /// The column's own index is taken when the lower 32 random bits are below this; `u64`, because 2^32 means always.
    keep_below: u64,
    other: u32,
}

impl Alias {
    /// A table over indices with these weights, of which each is above 0.
    pub(crate) fn new(weights: &[f64]) -> Self {
        let mean = weights.iter().sum::<f64>() / weights.len() as f64;
        let mut scaled: Vec<f64> = weights.iter().map(|weight| weight / mean).collect();
        let (mut small, mut large): (Vec<usize>, Vec<usize>) = (0..weights.len()).partition(|&i| scaled[i] < 1.0);
        let always = |index: usize| Column { keep_below: 1 << 32, other: index as u32 };
        let mut columns: Vec<Column> = (0..weights.len()).map(always).collect();
        while let (Some(&under), Some(&over)) = (small.last(), large.last()) {
            small.pop();
            columns[under] = Column { keep_below: (scaled[under] * f64::from(u32::MAX)) as u64, other: over as u32 };
            scaled[over] -= 1.0 - scaled[under];
            if scaled[over] < 1.0 {
                large.pop();
                small.push(over);
            }
        }
        Self { columns: columns.into() }
    }

    /// The index that these random bits stand for.
    pub(crate) fn at(&self, bits: u64) -> usize {
        let index = below(bits, self.columns.len());
        let column = self.columns[index];
        if bits & 0xffff_ffff < column.keep_below { index } else { column.other as usize }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn weights_are_honoured() {
        let weights = [1.0, 2.0, 3.0, 1000.0, 0.5];
        let alias = Alias::new(&weights);
        let rng = Rng::new(Some(1));
        let mut counts = [0u32; 5];
        for _ in 0..1_000_000 {
            counts[alias.at(rng.next())] += 1;
        }
        for (count, weight) in counts.iter().zip(weights) {
            let expected = weight / 1006.5 * 1e6;
            assert!((f64::from(*count) - expected).abs() < 5.0 * expected.sqrt(), "{counts:?}");
        }
    }
}
