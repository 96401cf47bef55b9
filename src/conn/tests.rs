//! Tests of one connection without a runtime.
