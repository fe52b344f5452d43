//! The signals that an agent can run, in order. Adding one is a folder here and a line in the list.

pub mod network;
