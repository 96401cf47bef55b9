//! The engine thread by itself.
