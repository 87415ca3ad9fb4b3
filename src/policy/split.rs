//! Chooses the deployment of a live request by weight.

use rand::{Rng, RngExt};

/// The traffic split of an endpoint, prepared for draws.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// The upper bounds of the deployments' ranges in `0..100`, ascending, with the index of the deployment. There are
    /// no empty ranges.
    bounds: Vec<(u8, usize)>,
}

impl Split {
    /// Creates a split from weights by deployment index, which sum to 0 or 100.
    pub fn new(percents: &[u8]) -> Self {
        let mut sum = 0;
        let shares = percents.iter().enumerate().filter(|(_, percent)| **percent > 0);
        let bounds = shares.map(|(index, percent)| {
            sum += percent;
            (sum, index)
        });
        Self { bounds: bounds.collect() }
    }

    /// Draws the index of a deployment; `None` if no deployment has weight.
    pub fn choose(&self, rng: &mut impl Rng) -> Option<usize> {
        match self.bounds.as_slice() {
            [] => None,
            [(_, only)] => Some(*only),
            bounds => {
                let drawn = rng.random_range(0..100);
                bounds.iter().find(|(bound, _)| drawn < *bound).map(|(_, index)| *index)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    fn counts(percents: &[u8], draws: usize) -> Vec<usize> {
        let (split, mut rng) = (Split::new(percents), SmallRng::seed_from_u64(7));
        let mut counts = vec![0; percents.len()];
        for _ in 0..draws {
            counts[split.choose(&mut rng).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn shares_follow_the_weights() {
        let counts = counts(&[90, 0, 10], 100_000);
        assert_eq!(counts[1], 0);
        // Four standard deviations of a binomial distribution with p = 0.1 and n = 100,000 are 380.
        assert!(counts[2].abs_diff(10_000) < 380, "{counts:?}");
    }

    #[test]
    fn a_single_deployment_gets_everything() {
        assert_eq!(counts(&[0, 100], 1_000), [0, 1_000]);
    }

    #[test]
    fn no_weight_chooses_none() {
        assert_eq!(Split::new(&[0, 0]).choose(&mut SmallRng::seed_from_u64(7)), None);
    }
}
