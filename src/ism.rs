//! The software loopback-ism device: shared memory and its wake-ups.
