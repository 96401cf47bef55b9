//! Readiness sets under a real epoll.
