//! What becomes of packets that are not simply part of a flow. All others are judged like the first packet of their flow,
//! whichever way they go: by who began it and who answers it. So an answer passes with its flow (NP-10), and a flow that a
//! policy no longer allows ends both ways with the packet after (NP-41), whoever is running.

/// What conntrack says of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// An error about a flow, or a flow that another one announced.
    Related,
    /// Of no flow, and none can begin with it.
    Invalid,
    /// Somebody keeps it from conntrack.
    Untracked,
}

impl State {
    pub const ALL: [Self; 3] = [Self::Related, Self::Invalid, Self::Untracked];
}

/// A packet that is asked for its state. The first stance that it meets decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stance {
    /// An error that a pod of this node sends about its own flow, in one of these states: it passes.
    OwnError(Vec<State>),
    /// Any other error of a pod of this node, in one of these: dropped. It would pass all policies, and the kernel would
    /// believe it. Other pods' errors are judged on their own nodes; what routers say passes.
    OthersError(Vec<State>),
    /// Passes.
    Passes(State),
    /// Dropped: without a connection no NAT applies, and a bare ClusterIP would leave the node (V-07).
    Dropped(State),
    /// It is no flow, so policies judge it by its own addresses; only a rule for everybody on every port lets it pass. Before
    /// that none may deny, or leave to others, what some send: whether this is such a packet cannot be told.
    Alone(State),
}

/// What the node forwards, in the order in which it is asked.
pub fn forwarded() -> Vec<Stance> {
    let errors = vec![State::Related];
    vec![
        Stance::OwnError(errors.clone()),
        Stance::OthersError(errors),
        Stance::Passes(State::Related),
        Stance::Dropped(State::Invalid),
        Stance::Alone(State::Untracked),
    ]
}

/// What is for the node itself. Conntrack calls errors about flows that it does not know invalid, and the kernel believes
/// them, too. `served`: pods have addresses of the family, and may tell of their own flows.
pub fn to_the_node(served: bool) -> Vec<Stance> {
    let errors = vec![State::Related, State::Invalid];
    let own = served.then(|| Stance::OwnError(errors.clone()));
    own.into_iter().chain([Stance::OthersError(errors)]).collect()
}
