//! The demos as a user runs them: real programs in processes of their own, beside curl, redis-cli
//! and plain sockets.

#[path = "demos/axum.rs"]
mod axum;
#[path = "demos/blocking.rs"]
mod blocking;
#[path = "demos/chat.rs"]
mod chat;
#[path = "demos/demo.rs"]
mod demo;
#[path = "demos/in_place.rs"]
mod in_place;
#[path = "demos/kv.rs"]
mod kv;
#[path = "demos/kv_protocol.rs"]
mod kv_protocol;
#[path = "support/program.rs"]
mod program;
#[path = "demos/proxy.rs"]
mod proxy;
