//! Plots as SVG text, drawn by plotters. Colours of text and lines are replaced by the page's style sheet.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::ReportError;

/// Width of a plot in user units; the page scales it to its column.
const WIDTH: i32 = 420;
const TOP: i32 = 12;
const BOTTOM: i32 = 34;
const LEFT: i32 = 134;
const RIGHT: i32 = 62;
const ROW: i32 = 24;
const GROUP_GAP: i32 = 10;
/// Text, replaced by `currentColor` of the page.
const INK: RGBColor = RGBColor(0x1A, 0x1A, 0x1A);
/// Grid lines.
const GRID: RGBColor = RGBColor(0xDD, 0xDD, 0xDD);
/// Reference lines.
const REFERENCE: RGBColor = RGBColor(0x66, 0x66, 0x66);

/// Which of the page's colours a bar has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hue {
    /// The dense original.
    Dense,
    /// First series.
    First,
    /// Second series.
    Second,
    /// Third series.
    Third,
}

impl Hue {
    fn color(self) -> RGBColor {
        match self {
            Hue::Dense => RGBColor(0x80, 0x80, 0x80),
            Hue::First => RGBColor(0xC7, 0x6B, 0x29),
            Hue::Second => RGBColor(0x2F, 0x7F, 0xC1),
            Hue::Third => RGBColor(0x2E, 0x9B, 0x6B),
        }
    }
}

/// One bar.
#[derive(Debug, Clone)]
pub struct Bar {
    /// Text left of the bar.
    pub label: String,
    /// Length of the bar.
    pub value: f64,
    /// Text right of the bar.
    pub text: String,
    /// Colour.
    pub hue: Hue,
    /// True for the first bar of a group: a gap is left above it.
    pub starts_group: bool,
}

/// Horizontal bars with reference lines.
#[derive(Debug, Clone)]
pub struct Bars {
    /// Title, used in errors and as the description for screen readers.
    pub title: String,
    /// What the horizontal axis measures, with its unit.
    pub axis: String,
    /// The bars, top to bottom.
    pub bars: Vec<Bar>,
    /// Vertical lines: name and value.
    pub references: Vec<(String, f64)>,
    /// Logarithmic axis; bars then are dots on a stem, because a length would mean nothing.
    pub is_log: bool,
}

impl Bars {
    /// Draws the plot.
    ///
    /// # Errors
    /// [`ReportError::Value`] for a value that is not finite (or not above zero),
    /// [`ReportError::Chart`] when drawing fails.
    pub fn svg(&self) -> Result<String, ReportError> {
        for bar in &self.bars {
            if !(bar.value.is_finite() && bar.value > 0.0) {
                return Err(ReportError::Value {
                    title: self.title.clone(),
                    label: bar.label.clone(),
                    value: bar.value,
                });
            }
        }
        let references = i32::try_from(self.references.len()).unwrap_or(0);
        let gaps = self.bars.iter().skip(1).filter(|b| b.starts_group).count();
        let inner =
            ROW * i32::try_from(self.bars.len()).unwrap_or(0) + GROUP_GAP * i32::try_from(gaps).unwrap_or(0);
        let top = TOP + 16 * references;
        let height = top + inner + BOTTOM;
        let mut text = String::new();
        {
            let size = (WIDTH as u32, height.max(1) as u32);
            let area = SVGBackend::with_string(&mut text, size).into_drawing_area();
            self.draw(&area, top, top + inner)
                .map_err(|reason| ReportError::Chart { title: self.title.clone(), reason })?;
            area.present()
                .map_err(|e| ReportError::Chart { title: self.title.clone(), reason: e.to_string() })?;
        }
        let label = super::html::escape(&self.title);
        Ok(text.replacen("<svg ", &format!("<svg class=\"chart\" role=\"img\" aria-label=\"{label}\" "), 1))
    }

    fn draw(&self, area: &DrawingArea<SVGBackend<'_>, Shift>, top: i32, bottom: i32) -> Result<(), String> {
        let values = self.bars.iter().map(|b| b.value);
        let all: Vec<f64> = values.chain(self.references.iter().map(|r| r.1)).collect();
        let scale = Scale::new(&all, self.is_log);
        let put = |x: i32, y: i32, text: &str, h: HPos, size: u32| {
            let style = ("sans-serif", size).into_text_style(area).color(&INK);
            area.draw_text(text, &style.pos(Pos::new(h, VPos::Center)), (x, y)).map_err(|e| e.to_string())
        };
        let line = |points: [(i32, i32); 2], color: &RGBColor, width: u32| {
            area.draw(&PathElement::new(points.to_vec(), color.stroke_width(width)))
                .map_err(|e| e.to_string())
        };
        for tick in scale.ticks() {
            let x = scale.x(tick);
            line([(x, top), (x, bottom)], &GRID, 1)?;
            put(x, bottom + 9, &short(tick), HPos::Center, 16)?;
        }
        put((LEFT + WIDTH - RIGHT) / 2, bottom + 25, &self.axis, HPos::Center, 16)?;
        let mut y = top;
        for (i, bar) in self.bars.iter().enumerate() {
            if bar.starts_group && i > 0 {
                y += GROUP_GAP;
            }
            let middle = y + ROW / 2;
            let end = scale.x(bar.value);
            put(LEFT - 8, middle, &bar.label, HPos::Right, 17)?;
            let color = bar.hue.color();
            if self.is_log {
                line([(scale.left, middle), (end, middle)], &color, 2)?;
                area.draw(&Circle::new((end, middle), 5, color.filled())).map_err(|e| e.to_string())?;
            } else {
                let corners = [(scale.left, y + 4), (end.max(scale.left + 1), y + ROW - 4)];
                area.draw(&Rectangle::new(corners, color.filled())).map_err(|e| e.to_string())?;
            }
            put(end + 9, middle, &bar.text, HPos::Left, 17)?;
            y += ROW;
        }
        for (i, (name, value)) in self.references.iter().enumerate() {
            let x = scale.x(*value);
            let label_y = TOP + 16 * i32::try_from(i).unwrap_or(0);
            let mut dash = label_y + 8;
            while dash < bottom {
                line([(x, dash), (x, (dash + 5).min(bottom))], &REFERENCE, 1)?;
                dash += 9;
            }
            let text = format!("{name} {}", short(*value));
            // The label stays inside the plot whichever side the line is on.
            if x > (LEFT + WIDTH) / 2 {
                put(x - 2, label_y, &text, HPos::Right, 16)?;
            } else {
                put(x + 2, label_y, &text, HPos::Left, 16)?;
            }
        }
        Ok(())
    }
}

/// Maps values to horizontal positions.
struct Scale {
    left: i32,
    low: f64,
    high: f64,
    is_log: bool,
}

impl Scale {
    fn new(values: &[f64], is_log: bool) -> Self {
        let largest = values.iter().copied().fold(0.0_f64, f64::max);
        let smallest = values.iter().copied().fold(f64::INFINITY, f64::min);
        let (low, high) = if is_log {
            (smallest / 1.15, largest * 1.05)
        } else {
            (0.0, if largest > 0.0 { largest * 1.02 } else { 1.0 })
        };
        Self { left: LEFT, low, high, is_log }
    }

    fn x(&self, value: f64) -> i32 {
        let fraction = if self.is_log {
            (value / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        self.left + (fraction * f64::from(WIDTH - RIGHT - self.left)).round() as i32
    }

    /// Round values inside the range: at most seven evenly spaced ones, or on a logarithmic axis that
    /// spans more than a factor of five 1, 2, 5 × 10^k.
    fn ticks(&self) -> Vec<f64> {
        let mut ticks = Vec::new();
        if self.is_log && self.high / self.low > 5.0 {
            let wide = self.high / self.low > 60.0;
            let steps: &[f64] = if wide { &[1.0] } else { &[1.0, 2.0, 5.0] };
            for exponent in -9..=15 {
                for step in steps {
                    let value = step * 10f64.powi(exponent);
                    if value >= self.low && value <= self.high {
                        ticks.push(value);
                    }
                }
            }
        } else {
            let raw = (self.high - self.low) / 6.0;
            let power = 10f64.powf(raw.log10().floor());
            let step = power * [1.0, 2.0, 5.0].into_iter().find(|s| s * power >= raw).unwrap_or(10.0);
            let first = (self.low / step).ceil();
            for i in 0..=6 {
                let value = (first + f64::from(i)) * step;
                if value <= self.high {
                    ticks.push(value);
                }
            }
        }
        ticks
    }
}

/// A number with about three significant digits.
#[must_use]
pub fn short(value: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let size = value.abs();
    let text = if size >= 1e6 {
        return format!("{value:.1e}");
    } else if size >= 100.0 {
        format!("{value:.0}")
    } else if size >= 10.0 {
        format!("{value:.1}")
    } else if size >= 0.1 {
        format!("{value:.2}")
    } else {
        format!("{value:.3}")
    };
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn bars(values: &[f64], is_log: bool) -> Bars {
        let bar = |(i, v): (usize, &f64)| Bar {
            label: format!("a<b {i}"),
            value: *v,
            text: short(*v),
            hue: Hue::First,
            starts_group: i % 3 == 0,
        };
        Bars {
            title: "t & \"q\"".into(),
            axis: "ms".into(),
            bars: values.iter().enumerate().map(bar).collect(),
            references: vec![("dense".into(), 2.0)],
            is_log,
        }
    }

    #[test]
    fn text_is_escaped_and_one_mark_per_value() {
        let svg = bars(&[1.0, 2.0, 3.0, 4.0], false).svg().unwrap();
        assert!(svg.contains("aria-label=\"t &amp; &quot;q&quot;\""));
        assert!(svg.contains("a&lt;b 0"));
        assert_eq!(svg.matches("<rect").count(), 4);
        let svg = bars(&[1.0, 20.0, 300.0], true).svg().unwrap();
        assert_eq!(svg.matches("<circle").count(), 3);
    }

    #[test]
    fn bars_are_proportional() {
        let scale = Scale::new(&[10.0], false);
        let length = |v: f64| f64::from(scale.x(v) - LEFT);
        assert!((length(10.0) / length(5.0) - 2.0).abs() < 0.02);
        assert_eq!(scale.ticks(), vec![0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        // 3.1 to 6.9 on a logarithmic axis is too little for powers of ten.
        let narrow = Scale { left: 0, low: 3.1, high: 6.9, is_log: true };
        assert_eq!(narrow.ticks(), vec![4.0, 5.0, 6.0]);
        let wide = Scale { left: 0, low: 3.1, high: 69.0, is_log: true };
        assert_eq!(wide.ticks(), vec![5.0, 10.0, 20.0, 50.0]);
    }

    #[test]
    fn values_that_cannot_be_drawn_are_refused() {
        for bad in [f64::NAN, f64::INFINITY, 0.0, -1.0] {
            assert!(matches!(bars(&[1.0, bad], true).svg(), Err(ReportError::Value { .. })));
        }
    }

    #[test]
    fn short_numbers() {
        for (value, text) in
            [(0.0, "0"), (0.05, "0.05"), (1.5, "1.5"), (12.34, "12.3"), (200.0, "200"), (100.0, "100")]
        {
            assert_eq!(short(value), text);
        }
    }
}
