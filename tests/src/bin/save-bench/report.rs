//! Figures as they are printed.

use serde_json::{Map, Value, json};

/// What was measured, and the baseline of the same round beside each value.
#[derive(Debug, Default)]
pub(crate) struct Figure {
    pub(crate) values: Vec<f64>,
    pub(crate) baselines: Vec<f64>,
    /// What else was counted, by name; the median is told.
    pub(crate) more: Vec<(&'static str, Vec<f64>)>,
}

/// What a figure has to keep to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Limit {
    /// The ratio of value to baseline is at least this.
    RatioFrom(f64),
    /// The ratio of value to baseline is at most this.
    RatioTo(f64),
    /// The value is at most this.
    ValueTo(f64),
    /// What else was counted under this name is at most this.
    MoreTo(&'static str, f64),
}

impl Figure {
    /// Takes a round.
    pub(crate) fn push(&mut self, value: f64, baseline: f64) {
        self.values.push(value);
        self.baselines.push(baseline);
    }

    /// Takes what else was counted in a round.
    pub(crate) fn push_more(&mut self, name: &'static str, value: f64) {
        match self.more.iter_mut().find(|(known, _)| *known == name) {
            Some((_, values)) => values.push(value),
            None => self.more.push((name, vec![value])),
        }
    }

    /// Medians, the median ratio of value to baseline, how far the ratios of single rounds lie apart, and whether the limits are
    /// kept.
    pub(crate) fn print(&self, json: bool, bench: &str, unit: &str, limits: &[Limit]) {
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
        let more: Vec<(&str, f64)> = self
            .more
            .iter()
            .map(|(name, values)| (*name, median(values)))
            .collect();
        let kept = |limit: &Limit| match *limit {
            Limit::RatioFrom(least) => ratio >= least,
            Limit::RatioTo(most) => ratio <= most,
            Limit::ValueTo(most) => value <= most,
            Limit::MoreTo(name, most) => more
                .iter()
                .any(|(found, value)| *found == name && *value <= most),
        };
        let met = limits.iter().all(kept);
        let text: Vec<String> = limits.iter().map(Limit::text).collect();
        let text = text.join(", ");
        if json {
            let mut object = Map::new();
            for (name, value) in [
                ("bench", json!(bench)),
                ("value", json!(value)),
                ("baseline", json!(baseline)),
                ("ratio", json!(ratio)),
                ("spread", json!(spread)),
                ("unit", json!(unit)),
                ("rounds", json!(rounds)),
                ("limit", (!limits.is_empty()).then_some(text).into()),
                ("met", (!limits.is_empty()).then_some(met).into()),
            ] {
                object.insert(name.to_owned(), value);
            }
            for (name, value) in more {
                object.insert(name.to_owned(), json!(value));
            }
            println!("{}", Value::Object(object));
            return;
        }
        let more: String = more
            .iter()
            .map(|(name, value)| format!(", {name} {value:.2}"))
            .collect();
        let verdict = match (limits.is_empty(), met) {
            (true, _) => String::new(),
            (false, true) => format!(", met: {text}"),
            (false, false) => format!(", NOT met: {text}"),
        };
        println!(
            "{bench}: {value:.2} {unit}, baseline {baseline:.2} {unit}, ratio {ratio:.2} \
             (spread {spread:.2}, {rounds} rounds){more}{verdict}"
        );
    }
}

impl Limit {
    fn text(&self) -> String {
        match self {
            Self::RatioFrom(least) => format!("ratio >= {least}"),
            Self::RatioTo(most) => format!("ratio <= {most}"),
            Self::ValueTo(most) => format!("value <= {most}"),
            Self::MoreTo(name, most) => format!("{name} <= {most}"),
        }
    }
}

/// The middle value; that of the two middle ones where their number is even.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match (sorted.get(middle), sorted.len() % 2) {
        (None, _) => f64::NAN,
        (Some(value), 1) => *value,
        (Some(value), _) => (value + sorted[middle - 1]) / 2.0,
    }
}
