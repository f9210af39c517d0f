//! Figures as they are printed.

/// What was measured, and the baseline of the same round beside each value.
#[derive(Debug, Default)]
pub(crate) struct Figure {
    pub(crate) values: Vec<f64>,
    pub(crate) baselines: Vec<f64>,
}

impl Figure {
    /// Medians, the median ratio of value to baseline, and how far the ratios of single rounds lie apart.
    pub(crate) fn print(&self, json: bool, bench: &str, unit: &str) {
        let ratios: Vec<f64> = self
            .values
            .iter()
            .zip(&self.baselines)
            .map(|(value, baseline)| value / baseline)
            .collect();
        let (value, baseline, ratio) = (
            median(&self.values),
            median(&self.baselines),
            median(&ratios),
        );
        let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
        let most = ratios.iter().copied().fold(0.0, f64::max);
        let spread = most - least;
        let rounds = self.values.len();
        if json {
            println!(
                "{}",
                serde_json::json!({
                    "bench": bench, "value": value, "baseline": baseline, "ratio": ratio, "spread": spread, "unit": unit,
                    "rounds": rounds,
                })
            );
        } else {
            println!(
                "{bench}: {value:.2} {unit}, baseline {baseline:.2} {unit}, ratio {ratio:.2} (spread {spread:.2}, {rounds} rounds)"
            );
        }
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match (sorted.get(middle), sorted.len() % 2) {
        (None, _) => f64::NAN,
        (Some(value), 1) => *value,
        (Some(value), _) => (value + sorted[middle - 1]) / 2.0,
    }
}
