//! DNS in the node: what is answered, what is forwarded and how often, and what happens when somebody is away.

pub mod ask;
mod cluster;
mod outside;
mod resolver;
