//! The engine thread: there when it is needed, gone when it is not.
