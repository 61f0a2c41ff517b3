//! Percentiles.

/// Samples in any order.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Adds one.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// Adds many.
    pub fn extend(&mut self, values: impl IntoIterator<Item = f64>) {
        self.0.extend(values);
    }

    /// These and others.
    pub fn with(mut self, others: Samples) -> Samples {
        self.0.extend(others.0);
        self
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The smallest sample that this percentage of all does not exceed, to three digits after the point; `None`
    /// without samples.
    pub fn percentile(&self, percent: f64) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
        let value = sorted.get(rank.clamp(1, sorted.len().max(1)) - 1)?;
        Some(round(*value))
    }
}

/// Three digits after the point: more would be noise.
pub fn round(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let mut samples = Samples::default();
        assert_eq!(samples.percentile(50.0), None);
        samples.extend([4.0, 1.0, 3.0, 2.0]);
        let table = [
            (0.0, 1.0),
            (25.0, 1.0),
            (50.0, 2.0),
            (51.0, 3.0),
            (99.0, 4.0),
            (100.0, 4.0),
        ];
        for (percent, expected) in table {
            assert_eq!(samples.percentile(percent), Some(expected), "{percent}");
        }
    }
}
