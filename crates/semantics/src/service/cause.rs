//! Why a Service turns a caller away, as a value: whatever carries the Service out counts by it and logs it.

/// What a Service does not have for its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lack {
    /// Nobody anywhere could take it: the caller is told at once (V-01, V-02).
    Endpoint,
    /// Somebody could, but not under the Service's local policy: the caller is told nothing (V-03, V-05).
    LocalEndpoint,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    Lack(Lack),
    /// The caller is in none of the `loadBalancerSourceRanges`, and is told nothing (L-02).
    SourceRange,
}
