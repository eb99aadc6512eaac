//! Tests of the library together with the built binary.

mod process;
