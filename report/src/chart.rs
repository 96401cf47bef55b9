//! A chart as SVG: panels side by side, of lines or of bars, under one title and legend.

use std::ops::Range;

use anyhow::{Context, Result, anyhow};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::axis::{Axis, Spacing, Unit};

const WIDTH: u32 = 960;
const HEIGHT: u32 = 430;
/// Height of title and legend.
const HEAD: u32 = 64;

const INK: RGBColor = RGBColor(34, 34, 34);
const GRID: RGBColor = RGBColor(228, 228, 228);
const LIMIT: RGBColor = RGBColor(110, 110, 110);

/// What is compared, with its name in legends and a colour that people who see fewer colours can
/// tell from the others, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Subject {
    pub(crate) name: &'static str,
    colour: RGBColor,
}

pub(crate) const TCP: Subject = Subject { name: "TCP", colour: RGBColor(0, 114, 178) };
pub(crate) const UDS: Subject = Subject { name: "unix socket", colour: RGBColor(230, 159, 0) };
pub(crate) const SMC: Subject = Subject { name: "tokio-smc", colour: RGBColor(0, 158, 115) };
pub(crate) const SMC_UPGRADED: Subject =
    Subject { name: "tokio-smc, waiting for the upgrade", colour: RGBColor(130, 205, 180) };
pub(crate) const DUPLEX: Subject = Subject { name: "tokio::io::duplex", colour: RGBColor(204, 121, 167) };
pub(crate) const SHMIPC: Subject = Subject { name: "shmipc", colour: RGBColor(213, 94, 0) };
pub(crate) const ICEORYX2: Subject = Subject { name: "iceoryx2, looking", colour: RGBColor(86, 180, 233) };
pub(crate) const ICEORYX2_EVENTS: Subject =
    Subject { name: "iceoryx2, events", colour: RGBColor(90, 90, 160) };

pub(crate) struct Chart {
    pub(crate) title: String,
    pub(crate) panels: Vec<Panel>,
}

pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) kind: Kind,
}

pub(crate) enum Kind {
    Lines(Lines),
    Bars(Bars),
}

pub(crate) struct Lines {
    pub(crate) x: (&'static str, Unit),
    pub(crate) y: (Spacing, Unit),
    pub(crate) lines: Vec<(Subject, Vec<(f64, f64)>)>,
    /// What the machine could do at best, with a name.
    pub(crate) limit: Option<(String, f64)>,
}

pub(crate) struct Bars {
    pub(crate) unit: Unit,
    /// Groups with their names, and a bar for each subject in them.
    pub(crate) groups: Vec<(String, Vec<(Subject, f64)>)>,
}

impl Panel {
    fn subjects(&self) -> Vec<Subject> {
        match &self.kind {
            Kind::Lines(lines) => lines.lines.iter().map(|(subject, _)| *subject).collect(),
            Kind::Bars(bars) => {
                bars.groups.iter().flat_map(|(_, bars)| bars.iter().map(|(subject, _)| *subject)).collect()
            }
        }
    }
}

impl Chart {
    /// The chart as the text of an SVG file.
    ///
    /// # Errors
    ///
    /// There is nothing to be drawn, or something that can not be: its panel is named.
    pub(crate) fn svg(&self) -> Result<String> {
        let mut text = String::new();
        {
            let root = SVGBackend::with_string(&mut text, (WIDTH, HEIGHT)).into_drawing_area();
            self.draw(&root).with_context(|| format!("drawing the chart \"{}\"", self.title))?;
            root.present().map_err(|error| anyhow!("{error}"))?;
        }
        Ok(text)
    }

    fn draw(&self, root: &Area<'_>) -> Result<()> {
        root.fill(&WHITE).map_err(wrong)?;
        root.draw(&Text::new(self.title.clone(), (16, 12), font(20))).map_err(wrong)?;
        let mut subjects: Vec<Subject> = Vec::new();
        for subject in self.panels.iter().flat_map(Panel::subjects) {
            if !subjects.contains(&subject) {
                subjects.push(subject);
            }
        }
        let mut left = 16;
        for subject in subjects {
            root.draw(&Rectangle::new([(left, 45), (left + 18, 51)], subject.colour.filled()))
                .map_err(wrong)?;
            root.draw(&Text::new(subject.name, (left + 25, 41), font(14))).map_err(wrong)?;
            left += 25 + 7 * subject.name.len() as i32 + 26;
        }
        let (_, body) = root.split_vertically(HEAD);
        for (panel, area) in self.panels.iter().zip(body.split_evenly((1, self.panels.len()))) {
            let drawn = match &panel.kind {
                Kind::Lines(lines) => lines.draw(&area),
                Kind::Bars(bars) => bars.draw(&area),
            };
            drawn.with_context(|| format!("the panel \"{}\"", panel.title))?;
            let middle = area.dim_in_pixel().0 as i32 / 2 + 30;
            let centre = font(15).pos(Pos::new(HPos::Center, VPos::Top));
            area.draw(&Text::new(panel.title.clone(), (middle, 2), centre)).map_err(wrong)?;
        }
        Ok(())
    }
}

/// A range with ticks at given places.
struct Ticks {
    range: Range<f64>,
    at: Vec<f64>,
}

impl Ranged for Ticks {
    type ValueType = f64;
    type FormatOption = DefaultFormatting;

    fn map(&self, value: &f64, (first, last): (i32, i32)) -> i32 {
        let share = (value - self.range.start) / (self.range.end - self.range.start);
        first + (f64::from(last - first) * share).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() { Vec::new() } else { self.at.clone() }
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn font(size: u32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&INK)
}

fn wrong(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("{error}")
}

impl Lines {
    fn draw(&self, area: &Area<'_>) -> Result<()> {
        let all = || self.lines.iter().flat_map(|(_, points)| points);
        if let Some((subject, _)) = self.lines.iter().find(|(_, points)| points.is_empty()) {
            return Err(anyhow!("{} has no points", subject.name));
        }
        let xs: Vec<f64> = all().map(|point| point.0).collect();
        let ys: Vec<f64> = all().map(|point| point.1).chain(self.limit.iter().map(|limit| limit.1)).collect();
        let x = Axis::of(&xs, self.x.1).context("its x axis has no numbers, or one that has no place")?;
        let y =
            Axis::around(&ys, self.y.0, self.y.1).context("its y axis has none, or one that has no place")?;
        let mut chart = ChartBuilder::on(area)
            .margin_top(24)
            .margin_right(18)
            .margin_bottom(6)
            .x_label_area_size(44)
            .y_label_area_size(72)
            .build_cartesian_2d(
                Ticks { range: x.low..x.high, at: x.ticks.clone() },
                Ticks { range: y.low..y.high, at: y.ticks.clone() },
            )
            .map_err(wrong)?;
        chart
            .configure_mesh()
            .bold_line_style(GRID)
            .light_line_style(TRANSPARENT)
            .axis_style(INK)
            .label_style(font(13))
            .axis_desc_style(font(13))
            .x_desc(self.x.0)
            .x_label_formatter(&|place| x.label(*place))
            .y_label_formatter(&|place| y.label(*place))
            .draw()
            .map_err(wrong)?;
        if let Some((name, value)) = &self.limit {
            let place = y.place(*value);
            let dashes =
                DashedLineSeries::new([(x.low, place), (x.high, place)], 6, 4, LIMIT.stroke_width(1));
            chart.draw_series(dashes).map_err(wrong)?;
            let style = font(12).color(&LIMIT).pos(Pos::new(HPos::Left, VPos::Bottom));
            let text = EmptyElement::at((x.low, place)) + Text::new(name.clone(), (6, -2), style);
            chart.draw_series([text]).map_err(wrong)?;
        }
        for (subject, points) in &self.lines {
            let places: Vec<(f64, f64)> =
                points.iter().map(|point| (x.place(point.0), y.place(point.1))).collect();
            let width = if *subject == SMC { 3 } else { 2 };
            chart
                .draw_series(LineSeries::new(places.clone(), subject.colour.stroke_width(width)))
                .map_err(wrong)?;
            let marks = places.iter().map(|&place| Circle::new(place, 4, subject.colour.filled()));
            chart.draw_series(marks).map_err(wrong)?;
        }
        Ok(())
    }
}

impl Bars {
    fn draw(&self, area: &Area<'_>) -> Result<()> {
        let values: Vec<f64> =
            self.groups.iter().flat_map(|(_, bars)| bars).map(|(_, value)| *value).collect();
        let y = Axis::around(&values, Spacing::Linear, self.unit)
            .context("it has no bars, or one that has no place")?;
        let groups = self.groups.len() as f64;
        let middles: Vec<f64> = (0..self.groups.len()).map(|group| group as f64 + 0.5).collect();
        let mut chart = ChartBuilder::on(area)
            .margin_top(24)
            .margin_right(18)
            .margin_bottom(6)
            .x_label_area_size(32)
            .y_label_area_size(72)
            .build_cartesian_2d(
                Ticks { range: 0.0..groups, at: middles },
                // Room for the number above the highest.
                Ticks { range: 0.0..y.high * 1.06, at: y.ticks.clone() },
            )
            .map_err(wrong)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .bold_line_style(GRID)
            .light_line_style(TRANSPARENT)
            .axis_style(INK)
            .label_style(font(13))
            .x_label_formatter(&|place| {
                self.groups.get(*place as usize).map_or_else(String::new, |(name, _)| name.clone())
            })
            .y_label_formatter(&|place| y.label(*place))
            .draw()
            .map_err(wrong)?;
        for (group, (_, bars)) in self.groups.iter().enumerate() {
            let width = 0.84 / bars.len().max(1) as f64;
            for (number, (subject, value)) in bars.iter().enumerate() {
                let left = group as f64 + 0.08 + number as f64 * width;
                let bar = Rectangle::new(
                    [(left + width * 0.06, 0.0), (left + width * 0.94, *value)],
                    subject.colour.filled(),
                );
                chart.draw_series([bar]).map_err(wrong)?;
                let style = font(12).pos(Pos::new(HPos::Center, VPos::Bottom));
                let label = EmptyElement::at((left + width / 2.0, *value))
                    + Text::new(self.unit.number(*value), (0, -2), style);
                chart.draw_series([label]).map_err(wrong)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(points: Vec<(f64, f64)>) -> Chart {
        let lines = Lines {
            x: ("size", Unit::Bytes),
            y: (Spacing::Log, Unit::Micros),
            lines: vec![(TCP, vec![(1.0, 10.0), (4096.0, 20.0)]), (SMC, points)],
            limit: Some(("at best".to_owned(), 0.5)),
        };
        Chart {
            title: "a chart".to_owned(),
            panels: vec![Panel { title: "a panel".to_owned(), kind: Kind::Lines(lines) }],
        }
    }

    #[test]
    fn a_chart_of_lines_has_all_that_belongs_to_it() {
        let svg = lines(vec![(1.0, 1.0), (4096.0, 2.0)]).svg().unwrap();
        for part in ["a chart", "a panel", "TCP", "tokio-smc", "at best", "4 KiB", "10 µs", "</svg>"] {
            assert!(svg.contains(part), "{part}");
        }
    }

    #[test]
    fn a_chart_of_bars_has_a_number_on_each() {
        let bars =
            Bars { unit: Unit::Count, groups: vec![("one".to_owned(), vec![(TCP, 1500.0), (SMC, 12.0)])] };
        let panel = Panel { title: String::new(), kind: Kind::Bars(bars) };
        let svg = Chart { title: String::new(), panels: vec![panel] }.svg().unwrap();
        for part in ["1.5 k", "12", "one"] {
            assert!(svg.contains(part), "{part}");
        }
    }

    #[test]
    fn what_can_not_be_drawn_is_named() {
        for points in [vec![], vec![(0.0, 1.0)], vec![(1.0, 0.0)], vec![(1.0, f64::NAN)]] {
            let error = format!("{:#}", lines(points).svg().unwrap_err());
            assert!(error.contains("a chart") && error.contains("a panel"), "{error}");
        }
        let error = format!("{:#}", lines(Vec::new()).svg().unwrap_err());
        assert!(error.contains("tokio-smc has no points"), "{error}");
        let bars = Bars { unit: Unit::Count, groups: Vec::new() };
        let panel = Panel { title: String::new(), kind: Kind::Bars(bars) };
        assert!(Chart { title: String::new(), panels: vec![panel] }.svg().is_err());
    }
}
