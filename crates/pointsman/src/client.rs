//! Adapters to [tower]: a layer that sends each request to an instance, and the instances for tower's own balancers.

mod discover;
mod layer;

pub use discover::{DiscoverStream, discover};
pub use layer::{BalanceLayer, Balanced, CallFuture, NoAddress};

pub use crate::held_body::HeldBody;
