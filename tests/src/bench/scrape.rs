//! Metrics in Prometheus text form, and what they grew by.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};

use crate::Client;

/// Samples by name with labels, as they stand in the text.
#[derive(Debug, Clone, Default)]
pub(super) struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    pub(super) async fn of(client: &mut Client) -> Result<Self> {
        let answer = client.get("/metrics").await?;
        anyhow::ensure!(answer.status == 200, "/metrics was answered with {}", answer.status);
        Ok(Self::parse(&answer.text()))
    }

    fn parse(text: &str) -> Self {
        let sample = |line: &str| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        Self(text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect())
    }

    /// A sample; a name that is missing is an error, never 0.
    pub(super) fn get(&self, name: &str) -> Result<f64> {
        self.0.get(name).copied().with_context(|| format!("/metrics has no {name}"))
    }

    /// A sample that appears with its first event.
    pub(super) fn get_or_zero(&self, name: &str) -> f64 {
        self.0.get(name).copied().unwrap_or(0.0)
    }

    pub(super) fn since(&self, before: &Self) -> Self {
        Self(self.0.iter().map(|(name, value)| (name.clone(), value - before.get_or_zero(name))).collect())
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (name, value) in &other.0 {
            *self.0.entry(name.clone()).or_default() += value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Metrics;

    #[test]
    fn differences_by_name_and_labels() {
        let before = Metrics::parse("# HELP x y\na_total 3\nb_total{stage=\"rows\"} 1.5\n");
        let after = Metrics::parse("a_total 10\nb_total{stage=\"rows\"} 2\nc_total 1\n# EOF\n");
        let grown = after.since(&before);
        assert!((grown.get("a_total").unwrap() - 7.0).abs() < 1e-9);
        assert!((grown.get("b_total{stage=\"rows\"}").unwrap() - 0.5).abs() < 1e-9);
        assert!(grown.get("d_total").is_err(), "a metric that is missing must not read as 0");
    }
}
