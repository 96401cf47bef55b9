//! Events through `tracing`, or nothing without that feature.

#[cfg(feature = "tracing")]
macro_rules! debug {
    ($($argument:tt)*) => { ::tracing::debug!(target: "tokio_smc", $($argument)*) };
}

#[cfg(feature = "tracing")]
macro_rules! warning {
    ($($argument:tt)*) => { ::tracing::warn!(target: "tokio_smc", $($argument)*) };
}

/// Uses its arguments and does nothing, so that both builds see the same code.
#[cfg(not(feature = "tracing"))]
macro_rules! debug {
    ($($argument:tt)*) => { if false { let _ = ::std::format_args!($($argument)*); } };
}

#[cfg(not(feature = "tracing"))]
pub(crate) use debug as warning;

pub(crate) use debug;
#[cfg(feature = "tracing")]
pub(crate) use warning;
