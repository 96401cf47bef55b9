//! Axes: from the numbers to be shown to a range, its ticks, and their labels.

/// What numbers are, for their labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Micros,
    Bytes,
    BytesPerSecond,
    Kib,
    /// A number of things, or of things in a second.
    Count,
}

impl Unit {
    /// A number with its unit, short enough for a tick.
    pub(crate) fn label(self, value: f64) -> String {
        match self {
            Self::Micros => match value {
                0.0 => "0".to_owned(),
                1e6.. => format!("{} s", short(value / 1e6)),
                1e3.. => format!("{} ms", short(value / 1e3)),
                1.0.. => format!("{} µs", short(value)),
                _ => format!("{} ns", short(value * 1e3)),
            },
            Self::Bytes => match value {
                1_048_576.0.. => format!("{} MiB", short(value / 1_048_576.0)),
                1024.0.. => format!("{} KiB", short(value / 1024.0)),
                _ => format!("{} B", short(value)),
            },
            Self::BytesPerSecond => match value {
                0.0 => "0".to_owned(),
                1e9.. => format!("{} GB/s", short(value / 1e9)),
                1e6.. => format!("{} MB/s", short(value / 1e6)),
                1e3.. => format!("{} kB/s", short(value / 1e3)),
                _ => format!("{} B/s", short(value)),
            },
            Self::Kib => match value {
                1024.0.. => format!("{} MiB", short(value / 1024.0)),
                _ => format!("{} KiB", short(value)),
            },
            Self::Count => match value {
                1e6.. => format!("{} M", short(value / 1e6)),
                1e3.. => format!("{} k", short(value / 1e3)),
                _ => short(value),
            },
        }
    }

    /// A number as it stands on a bar, where there is little room: it is of GB/s where the axis is.
    pub(crate) fn number(self, value: f64) -> String {
        match self {
            Self::BytesPerSecond if value >= 1e9 => short(value / 1e9),
            _ => self.label(value),
        }
    }
}

/// Three digits, and no zeros behind the point.
fn short(value: f64) -> String {
    let digits = match value.abs() {
        100.0.. => 0,
        10.0.. => 1,
        _ => 2,
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spacing {
    /// Equal factors have equal distances.
    Log,
    /// From zero.
    Linear,
}

/// An axis: what it shows lies on a line from `low` to `high` after [`Axis::place`].
#[derive(Clone, Debug)]
pub(crate) struct Axis {
    spacing: Spacing,
    pub(crate) unit: Unit,
    pub(crate) low: f64,
    pub(crate) high: f64,
    /// Places of ticks.
    pub(crate) ticks: Vec<f64>,
}

impl Axis {
    /// One on which all `values` have a place, and its ticks are round numbers; none when there is
    /// nothing to be shown, or nothing that can be.
    pub(crate) fn around(values: &[f64], spacing: Spacing, unit: Unit) -> Option<Self> {
        let (least, most) = ends(values, spacing)?;
        let ticks = match spacing {
            Spacing::Log => log_ticks(least, most),
            Spacing::Linear => linear_ticks(most),
        };
        let mut axis = Self { spacing, unit, low: 0.0, high: 1.0, ticks: Vec::new() };
        axis.ticks = ticks.iter().map(|&tick| axis.place(tick)).collect();
        axis.low = *axis.ticks.first()?;
        axis.high = *axis.ticks.last()?;
        Some(axis)
    }

    /// One whose ticks are the values themselves.
    pub(crate) fn of(values: &[f64], unit: Unit) -> Option<Self> {
        let (least, most) = ends(values, Spacing::Log)?;
        let mut axis = Self { spacing: Spacing::Log, unit, low: 0.0, high: 1.0, ticks: Vec::new() };
        // Room for the marks of the outermost ones.
        let room = ((most / least).log10() * 0.04).max(0.05);
        (axis.low, axis.high) = (least.log10() - room, most.log10() + room);
        axis.ticks = values.iter().map(|&value| axis.place(value)).collect();
        axis.ticks.sort_by(f64::total_cmp);
        axis.ticks.dedup();
        Some(axis)
    }

    pub(crate) fn place(&self, value: f64) -> f64 {
        if self.spacing == Spacing::Log { value.log10() } else { value }
    }

    /// The label of a place.
    pub(crate) fn label(&self, place: f64) -> String {
        self.unit.label(if self.spacing == Spacing::Log { 10_f64.powf(place) } else { place })
    }
}

fn ends(values: &[f64], spacing: Spacing) -> Option<(f64, f64)> {
    let shown =
        |value: &f64| value.is_finite() && (*value > 0.0 || (spacing == Spacing::Linear && *value == 0.0));
    if values.is_empty() || !values.iter().all(shown) {
        return None;
    }
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(0.0, f64::max);
    Some((least, most))
}

/// Powers of ten around `least` and `most`; where they are few, 2 and 5 of each, too.
fn log_ticks(least: f64, most: f64) -> Vec<f64> {
    let steps: &[f64] = if most / least < 50.0 { &[1.0, 2.0, 5.0] } else { &[1.0] };
    let decades = (least.log10().floor() as i32 - 1)..=(most.log10().ceil() as i32 + 1);
    let all: Vec<f64> =
        decades.flat_map(|decade| steps.iter().map(move |step| step * 10_f64.powi(decade))).collect();
    // Rounding must not cost a tick: what is a hair beyond one counts as on it.
    let first = all.iter().rposition(|&tick| tick <= least * 1.000_001).unwrap_or(0);
    let last = all.iter().position(|&tick| tick >= most * 0.999_999).unwrap_or(all.len() - 1);
    // Never a range without an extent.
    all[first..=last.max(first + 1).min(all.len() - 1)].to_vec()
}

/// From zero to at least `most`, in four to seven steps of a round size.
fn linear_ticks(most: f64) -> Vec<f64> {
    let most = if most > 0.0 { most } else { 1.0 };
    let rough = most / 5.0;
    let decade = 10_f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 2.5, 5.0, 10.0].map(|factor| factor * decade).into_iter().find(|&step| step >= rough);
    let step = step.unwrap_or(10.0 * decade);
    let steps = (most / step - 1e-9).ceil() as u32;
    (0..=steps.max(1)).map(|number| f64::from(number) * step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(axis: &Axis) -> Vec<String> {
        axis.ticks.iter().map(|&tick| axis.label(tick)).collect()
    }

    #[test]
    fn labels_are_short_and_have_their_units() {
        for (unit, value, label) in [
            (Unit::Micros, 0.0, "0"),
            (Unit::Micros, 0.5, "500 ns"),
            (Unit::Micros, 1.0, "1 µs"),
            (Unit::Micros, 2500.0, "2.5 ms"),
            (Unit::Micros, 1e6, "1 s"),
            (Unit::Bytes, 1.0, "1 B"),
            (Unit::Bytes, 4096.0, "4 KiB"),
            (Unit::Bytes, 16_777_216.0, "16 MiB"),
            (Unit::BytesPerSecond, 35.49e9, "35.5 GB/s"),
            (Unit::BytesPerSecond, 1e5, "100 kB/s"),
            (Unit::Kib, 10.25, "10.2 KiB"),
            (Unit::Kib, 2048.0, "2 MiB"),
            (Unit::Count, 10_000.0, "10 k"),
            (Unit::Count, 8.0, "8"),
            (Unit::Count, 123_456_789.0, "123 M"),
        ] {
            assert_eq!(unit.label(value), label);
        }
        assert_eq!(Unit::BytesPerSecond.number(4.85e9), "4.85");
        assert_eq!(Unit::BytesPerSecond.number(4.85e6), "4.85 MB/s");
        assert_eq!(Unit::Micros.number(0.7), "700 ns");
    }

    #[test]
    fn round_numbers_lie_around_what_is_shown() {
        let axis = |values: &[f64], spacing| Axis::around(values, spacing, Unit::Count).unwrap();
        assert_eq!(shown(&axis(&[3.0, 900.0], Spacing::Log)), ["1", "10", "100", "1 k"]);
        assert_eq!(shown(&axis(&[3.0, 9.0], Spacing::Log)), ["2", "5", "10"]);
        assert_eq!(shown(&axis(&[10.0, 1000.0], Spacing::Log)), ["10", "100", "1 k"]);
        assert_eq!(shown(&axis(&[10.0], Spacing::Log)), ["10", "20"]);
        assert_eq!(shown(&axis(&[0.0, 9.0], Spacing::Linear)), ["0", "2", "4", "6", "8", "10"]);
        assert_eq!(shown(&axis(&[10.0], Spacing::Linear)), ["0", "2", "4", "6", "8", "10"]);
        assert_eq!(shown(&axis(&[0.0], Spacing::Linear)).first().unwrap(), "0");
        for most in [0.013, 0.9, 1.0, 7.3, 99.0, 123_456.0] {
            let ticks = axis(&[most], Spacing::Linear).ticks;
            assert!(
                (4..=8).contains(&ticks.len()) && *ticks.last().unwrap() >= most * 0.999,
                "{most}: {ticks:?}"
            );
        }
    }

    #[test]
    fn ticks_can_be_the_values() {
        let axis = Axis::of(&[4096.0, 1.0, 4096.0, 64.0], Unit::Bytes).unwrap();
        assert_eq!(shown(&axis), ["1 B", "64 B", "4 KiB"]);
        assert!(axis.low < 0.0 && axis.high > axis.place(4096.0));
        let one = Axis::of(&[7.0], Unit::Count).unwrap();
        assert!(one.low < one.high);
    }

    #[test]
    fn what_can_not_be_shown_gives_no_axis() {
        for values in [&[][..], &[f64::NAN], &[1.0, f64::INFINITY], &[-1.0], &[0.0]] {
            assert!(Axis::around(values, Spacing::Log, Unit::Count).is_none(), "{values:?}");
            assert!(Axis::of(values, Unit::Count).is_none(), "{values:?}");
        }
        assert!(Axis::around(&[-1.0], Spacing::Linear, Unit::Count).is_none());
    }
}
