//! Nothing of its own: the tests are in `tests/`, the demos in the project's `examples/`.
