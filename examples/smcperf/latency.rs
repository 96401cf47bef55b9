//! Round-trip times in a histogram that many tasks share.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;

/// Recordings that a task keeps to itself before it takes the lock.
const BATCH: usize = 128;

/// The times of all tasks of one measurement, in nanoseconds.
#[derive(Clone)]
pub(crate) struct Latencies(Arc<Mutex<Histogram<u64>>>);

impl Latencies {
    pub(crate) fn new() -> Self {
        let histogram =
            Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("bounds and digits are valid constants");
        Self(Arc::new(Mutex::new(histogram)))
    }

    /// What one task records into.
    pub(crate) fn recorder(&self) -> Recorder {
        Recorder { all: self.clone(), pending: Vec::with_capacity(BATCH) }
    }

    /// Number of times recorded, the median and the 99th percentile in microseconds (none without
    /// recordings).
    pub(crate) fn summary(&self) -> (u64, Option<f64>, Option<f64>) {
        let histogram = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at =
            |quantile| (!histogram.is_empty()).then(|| histogram.value_at_quantile(quantile) as f64 / 1e3);
        (histogram.len(), at(0.5), at(0.99))
    }
}

/// One task's side of [`Latencies`]; what is pending is handed over when it is dropped.
pub(crate) struct Recorder {
    all: Latencies,
    pending: Vec<u64>,
}

impl Recorder {
    pub(crate) fn record(&mut self, time: Duration) {
        self.pending.push(time.as_nanos() as u64);
        if self.pending.len() == BATCH {
            self.flush();
        }
    }

    fn flush(&mut self) {
        let mut histogram = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        for nanos in self.pending.drain(..) {
            histogram.saturating_record(nanos);
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.flush();
    }
}
