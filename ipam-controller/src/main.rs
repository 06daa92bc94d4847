//! Edge: the program.
#![expect(dead_code, reason = "being written")]
mod keys;
mod store;
fn main() {}
