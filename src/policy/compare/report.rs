//! The report of a comparison window, for people and programs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Difference;

/// Comparison of live and shadow answers over the mirrored requests.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ComparisonReport {
    /// The number of mirrored requests in the report.
    pub pairs: u64,
    /// How long ago the first of them ended, in seconds.
    pub span_seconds: u64,
    /// The number of pairs with each result.
    pub results: BTreeMap<String, u64>,
    /// Of the pairs that were not compared, the number with each reason.
    pub not_compared: BTreeMap<String, u64>,
    /// The share of compared pairs that agree, equal or within tolerance. `None` if there are none, or if bodies are
    /// not compared.
    pub agreement: Option<ShareEstimate>,
    /// The live deployments.
    pub live: SideReport,
    /// The shadow deployment.
    pub shadow: SideReport,
    /// Where answers differ, the most frequent place first.
    pub places: Vec<PlaceReport>,
    /// The last differing answers, the latest last.
    pub samples: Vec<DifferenceSample>,
}

/// The comparison of an endpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointReport {
    /// The name of the endpoint.
    pub endpoint: String,
    /// Deployments with live traffic, with their weights in percent.
    pub live: BTreeMap<String, u8>,
    /// The name of the shadow deployment.
    pub shadow: String,
    /// The mirrored share in percent.
    pub mirrored_percent: u8,
    /// The report so far.
    pub report: ComparisonReport,
}

/// One side of the comparison.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SideReport {
    /// The number of answers by the class of their status, such as `2xx`; `none` if it is unknown.
    pub statuses: BTreeMap<String, u64>,
    /// The share of answers with a status of 500 or more.
    pub errors: Option<ShareEstimate>,
    /// Milliseconds from the dispatch to the response head, at the quantiles `p50`, `p90` and `p99`; empty without
    /// answers.
    pub latency_ms: BTreeMap<String, f64>,
    /// Bytes of the bodies.
    pub bytes: u64,
}

/// A share with its 95 % confidence interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ShareEstimate {
    /// The share, 0 to 1.
    pub share: f64,
    /// The lower bound.
    pub low: f64,
    /// The upper bound.
    pub high: f64,
    /// The number of pairs that it is a share of.
    pub of: u64,
}

/// A place where answers differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaceReport {
    /// The JSON path, such as `$.predictions[*].score`.
    pub place: String,
    /// The number of pairs that differ there.
    pub pairs: u64,
}

/// A pair of answers that differ, without their content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DifferenceSample {
    /// When the pair ended, as RFC 3339.
    pub time: String,
    /// The request id, to find the request in logs.
    pub request_id: String,
    /// The status of the live answer.
    pub live_status: Option<u16>,
    /// The status of the shadow's answer.
    pub shadow_status: Option<u16>,
    /// Whether the live answer was truncated.
    pub live_broke_off: bool,
    /// Whether the shadow's answer was truncated.
    pub shadow_broke_off: bool,
    /// Where and how the answers differ.
    pub differences: Vec<Difference>,
}

impl ShareEstimate {
    /// Returns the share `count` of `of` with Wilson's interval, which is also right for small counts and for shares
    /// near 0 and 1. Returns `None` if `of` is 0.
    pub fn new(count: u64, of: u64) -> Option<Self> {
        /// The quantile of the normal distribution for 95 %.
        const Z: f64 = 1.959_963_984_540_054;
        if of == 0 {
            return None;
        }
        let (share, n) = (count as f64 / of as f64, of as f64);
        let z2 = Z * Z;
        let middle = (share + z2 / (2.0 * n)) / (1.0 + z2 / n);
        let half = Z / (1.0 + z2 / n) * (share * (1.0 - share) / n + z2 / (4.0 * n * n)).sqrt();
        let (low, high) = ((middle - half).max(0.0), (middle + half).min(1.0));
        // Rounding must not move the share out of its interval.
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
            let rate = ShareEstimate::new(count, of).unwrap();
            assert!((rate.low - low).abs() < 5e-5 && (rate.high - high).abs() < 5e-5, "{rate:?}");
        }
        assert_eq!(ShareEstimate::new(0, 0), None);
        assert!(ShareEstimate::new(20, 20).is_some_and(|all| all.share == 1.0 && all.high == 1.0 && all.low < 1.0));
    }
}
