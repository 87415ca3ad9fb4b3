//! What a window of comparisons comes to, for people and programs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Difference;

/// Live against shadow, over the requests that were copied.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Copied requests that it is about.
    pub pairs: u64,
    /// How long ago the first of them ended, in seconds.
    pub span_seconds: u64,
    /// How many there are of each result.
    pub results: BTreeMap<String, u64>,
    /// Of those not compared, how many for which reason.
    pub not_compared: BTreeMap<String, u64>,
    /// Which share of those compared agrees, equal or within tolerance. `None`: there are none, or bodies are not compared.
    pub agreement: Option<Rate>,
    /// The live deployments.
    pub live: SideReport,
    /// Their shadow.
    pub shadow: SideReport,
    /// Where answers differ, the most frequent place first.
    pub places: Vec<PlaceReport>,
    /// The last answers that differ, the latest last.
    pub samples: Vec<Sample>,
}

/// What the comparison of an endpoint has shown, and of what with what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointReport {
    /// Its name.
    pub endpoint: String,
    /// Deployments with live traffic, and percent of it.
    pub live: BTreeMap<String, u8>,
    /// Who gets the copies.
    pub shadow: String,
    /// Percent of the live requests.
    pub mirrored_percent: u8,
    /// What there is by now.
    pub report: Report,
}

/// One side.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SideReport {
    /// Answers by the class of their status, as `2xx`; `none`: not known.
    pub statuses: BTreeMap<String, u64>,
    /// Which share has a status of 500 or more.
    pub errors: Option<Rate>,
    /// Milliseconds from dispatch to the answer's head, at the quantiles `p50`, `p90`, `p99`; empty without answers.
    pub latency_ms: BTreeMap<String, f64>,
    /// Of bodies.
    pub bytes: u64,
}

/// A share, and between what it is with a probability of 95 %.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// 0 to 1.
    pub share: f64,
    /// At least.
    pub low: f64,
    /// At most.
    pub high: f64,
    /// How many it is a share of.
    pub of: u64,
}

/// A place where answers differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaceReport {
    /// As `$.predictions[*].score`.
    pub place: String,
    /// How many pairs of answers differ there.
    pub pairs: u64,
}

/// Two answers that differ; nothing of what was in them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sample {
    /// When, as RFC 3339.
    pub time: String,
    /// To look it up in logs.
    pub request_id: String,
    /// Of the live answer.
    pub live_status: Option<u16>,
    /// Of the shadow's.
    pub shadow_status: Option<u16>,
    /// Whether the live answer ended in the middle of its body.
    pub live_broke_off: bool,
    /// Whether the shadow's did.
    pub shadow_broke_off: bool,
    /// Where and how.
    pub differences: Vec<Difference>,
}

impl Rate {
    /// `count` of `of`, with Wilson's interval, which is right for small counts and shares near 0 and 1 too.
    /// `None` where there is nothing.
    pub fn new(count: u64, of: u64) -> Option<Self> {
        /// Of the normal distribution, for 95 %.
        const Z: f64 = 1.959_963_984_540_054;
        if of == 0 {
            return None;
        }
        let (share, n) = (count as f64 / of as f64, of as f64);
        let z2 = Z * Z;
        let middle = (share + z2 / (2.0 * n)) / (1.0 + z2 / n);
        let half = Z / (1.0 + z2 / n) * (share * (1.0 - share) / n + z2 / (4.0 * n * n)).sqrt();
        let (low, high) = ((middle - half).max(0.0), (middle + half).min(1.0));
        // What is rounded must not lie outside.
        Some(Self { share, low: low.min(share), high: high.max(share), of })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_wilsons() {
        // Newcombe 1998, table I, method 3: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
        for (count, of, low, high) in
            [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)]
        {
            let rate = Rate::new(count, of).unwrap();
            assert!((rate.low - low).abs() < 5e-5 && (rate.high - high).abs() < 5e-5, "{rate:?}");
        }
        assert_eq!(Rate::new(0, 0), None);
        assert!(Rate::new(20, 20).is_some_and(|all| all.share == 1.0 && all.high == 1.0 && all.low < 1.0));
    }
}
