//! TCP streams for tokio that move onto shared memory when both ends are on one host.
#![cfg_attr(docsrs, feature(doc_cfg))]

pub(crate) mod sync;

pub mod clc;
pub(crate) mod ism;
