//! The algorithms by name.

use std::fmt;
use std::str::FromStr;

/// How one instance is chosen among those that may be given work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[non_exhaustive]
pub enum Algorithm {
    /// One after the other, whatever their weights. The order is that of all threads together; only a thread that makes
    /// more than a million picks a second takes 32 turns at a time.
    #[default]
    RoundRobin,
    /// In turn, each as often as its weight says, spread out evenly (nginx's smooth weighted round robin).
    WeightedRoundRobin,
    /// By chance, all alike.
    Random,
    /// By chance, in proportion to the weights (Walker's alias method).
    WeightedRandom,
    /// The same instance for the same client address, by consistent hashing (Maglev). Weights are honoured.
    IpHash,
    /// The same instance for the same URL or topic, by consistent hashing (Maglev). Weights are honoured.
    /// As with `IpHash`, the keys follow a change at once up to 1,024 instances, and of more within about a second.
    UrlHash,
    /// The one with the fewest claims in flight in proportion to its weight; ties in turn.
    LeastConnections,
    /// Of two taken by chance the one with the lower cost, which is decaying peak latency × (claims in flight + 1) ÷ weight;
    /// or the last winner, where both are far worse.
    PeakEwma,
}

impl Algorithm {
    /// All of them, in the order in which the documentation lists them.
    pub const ALL: [Algorithm; 8] = [
        Algorithm::RoundRobin,
        Algorithm::WeightedRoundRobin,
        Algorithm::Random,
        Algorithm::WeightedRandom,
        Algorithm::IpHash,
        Algorithm::UrlHash,
        Algorithm::LeastConnections,
        Algorithm::PeakEwma,
    ];

    /// The name used in configuration files, URLs and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Algorithm::RoundRobin => "round-robin",
            Algorithm::WeightedRoundRobin => "weighted-round-robin",
            Algorithm::Random => "random",
            Algorithm::WeightedRandom => "weighted-random",
            Algorithm::IpHash => "ip-hash",
            Algorithm::UrlHash => "url-hash",
            Algorithm::LeastConnections => "least-connections",
            Algorithm::PeakEwma => "peak-ewma",
        }
    }

    /// Whether the choice depends on the key of the pick.
    #[must_use]
    pub const fn uses_key(self) -> bool {
        matches!(self, Algorithm::IpHash | Algorithm::UrlHash)
    }

    /// Whether the choice depends on the weights (beyond weight 0, which means drained to all of them).
    #[must_use]
    pub const fn uses_weights(self) -> bool {
        !matches!(self, Algorithm::RoundRobin | Algorithm::Random)
    }

    /// go-micro-service's spelling, which configurations written for it use.
    const fn old_name(self) -> Option<&'static str> {
        match self {
            Algorithm::RoundRobin => Some("roundrobin"),
            Algorithm::WeightedRoundRobin => Some("weightroundrobin"),
            Algorithm::WeightedRandom => Some("weightrandom"),
            Algorithm::IpHash => Some("iphash"),
            Algorithm::UrlHash => Some("urlhash"),
            Algorithm::LeastConnections => Some("leastconnect"),
            Algorithm::Random | Algorithm::PeakEwma => None,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Algorithm {
    type Err = UnknownAlgorithm;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let known = |algorithm: &Algorithm| name == algorithm.name() || Some(name) == algorithm.old_name();
        Algorithm::ALL.into_iter().find(known).ok_or_else(|| UnknownAlgorithm { name: name.chars().take(64).collect() })
    }
}

/// As its name.
#[cfg(feature = "serde")]
impl serde::Serialize for Algorithm {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// From all that [`FromStr`] reads.
#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for Algorithm {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = std::borrow::Cow::<str>::deserialize(deserializer)?;
        name.parse().map_err(serde::de::Error::custom)
    }
}

/// A name that is no algorithm's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown algorithm {name:?}: it may be {}", known_names())]
#[non_exhaustive]
pub struct UnknownAlgorithm {
    /// The name as it was given, cut after 64 characters.
    pub name: String,
}

fn known_names() -> String {
    let names: Vec<_> = Algorithm::ALL.iter().map(|algorithm| algorithm.name()).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "serde")]
    #[test]
    fn an_algorithm_has_the_same_name_in_json() {
        for algorithm in Algorithm::ALL {
            let json = serde_json::to_string(&algorithm).unwrap();
            assert_eq!(json, format!("\"{algorithm}\""));
            assert_eq!(serde_json::from_str::<Algorithm>(&json).unwrap(), algorithm);
        }
        assert_eq!(serde_json::from_str::<Algorithm>(r#""iphash""#).unwrap(), Algorithm::IpHash);
        let error = serde_json::from_str::<Algorithm>(r#""x""#).unwrap_err().to_string();
        assert!(error.starts_with("unknown algorithm \"x\": it may be round-robin"), "{error}");
    }

    #[test]
    fn every_name_is_read_back_and_the_old_spellings_too() {
        for algorithm in Algorithm::ALL {
            assert_eq!(algorithm.to_string().parse(), Ok(algorithm));
        }
        for (old, algorithm) in [
            ("roundrobin", Algorithm::RoundRobin),
            ("weightroundrobin", Algorithm::WeightedRoundRobin),
            ("random", Algorithm::Random),
            ("weightrandom", Algorithm::WeightedRandom),
            ("iphash", Algorithm::IpHash),
            ("urlhash", Algorithm::UrlHash),
            ("leastconnect", Algorithm::LeastConnections),
        ] {
            assert_eq!(old.parse(), Ok(algorithm));
        }
    }

    #[test]
    fn an_unknown_name_is_an_error_that_lists_the_known_ones() {
        let error = "fastest".parse::<Algorithm>().unwrap_err().to_string();
        for algorithm in Algorithm::ALL {
            assert!(error.contains(algorithm.name()), "{error}");
        }
        assert!("".parse::<Algorithm>().is_err());
        assert!("x".repeat(10_000).parse::<Algorithm>().unwrap_err().to_string().len() < 400);
    }
}
