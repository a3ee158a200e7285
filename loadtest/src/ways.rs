//! What the bench `ways` found: a request's costs by the way it comes in. Kept for a report.

use serde::{Deserialize, Serialize};

/// The file in a result's directory.
pub const FILE: &str = "ways.json";

/// A run of the bench.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ways {
    /// The command that makes it again.
    pub command: String,
    /// Of one way against another.
    pub ratios: Vec<WayRatio>,
}

/// One figure of one way against the same of another, over rounds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WayRatio {
    /// Spans in a request.
    pub spans: u64,
    /// The ways and the figure.
    pub what: String,
    /// The median of the rounds.
    pub median: f64,
    /// The lowest.
    pub lowest: f64,
    /// The highest.
    pub highest: f64,
}

impl WayRatio {
    /// From the ratios of the rounds; `None` without any.
    pub fn of(spans: u64, what: &str, mut ratios: Vec<f64>) -> Option<Self> {
        ratios.sort_unstable_by(f64::total_cmp);
        let (lowest, highest) = (*ratios.first()?, *ratios.last()?);
        Some(Self { spans, what: what.to_owned(), median: ratios[ratios.len() / 2], lowest, highest })
    }

    /// What includes 1.0 is not told apart from it.
    pub fn verdict(&self) -> &'static str {
        match (self.lowest > 1.0, self.highest < 1.0) {
            (true, _) => "more",
            (_, true) => "less",
            _ => "no difference seen",
        }
    }
}
