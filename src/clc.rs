//! SMC's connection layer control: wire messages and handshake, without I/O.
