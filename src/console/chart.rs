//! Charts of the last hour as inline SVG.

use maud::{Markup, html};

use super::sampler::POINTS_MAX;

/// Width and height of the drawing, in units of the SVG.
const WIDTH: f64 = 600.0;
const HEIGHT: f64 = 100.0;

/// A chart of one value over the last hour.
pub(super) struct Chart<'c> {
    pub(super) title: &'c str,
    /// Values by the number of their interval.
    pub(super) values: &'c [(i64, f64)],
    /// The number of the newest interval.
    pub(super) last: i64,
    /// Formats a value.
    pub(super) format: fn(f64) -> String,
}

impl Chart<'_> {
    /// Draws the chart with its title, the newest and the largest value.
    pub(super) fn draw(&self) -> Markup {
        let largest = self
            .values
            .iter()
            .map(|(_, value)| *value)
            .fold(0.0, f64::max);
        let now = self.values.last().map(|(_, value)| *value);
        let text = |value: Option<f64>| value.map_or("–".to_owned(), self.format);
        let top = if largest > 0.0 { largest } else { 1.0 };
        let (line, area) = (self.line(top), self.area(top));
        html! {
            figure class="chart" {
                figcaption {
                    span class="chart-title" { (self.title) }
                    span class="chart-now" { (text(now)) }
                    span class="soft" { "max " (text(now.map(|_| largest))) }
                }
                svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } preserveAspectRatio="none" role="img"
                    aria-label={
                        (self.title) ", last hour: now " (text(now)) ", at most "
                        (text(now.map(|_| largest)))
                    }
                {
                    @for quarter in 1..4 {
                        @let x = WIDTH * f64::from(quarter) / 4.0;
                        line class="grid" x1=(x) x2=(x) y1="0" y2=(HEIGHT) {}
                    }
                    line class="grid" x1="0" x2=(WIDTH) y1=(HEIGHT) y2=(HEIGHT) {}
                    path class="area" d=(area) {}
                    path class="line" d=(line) {}
                }
                div class="chart-axis soft" aria-hidden="true" {
                    span { "1 h ago" } span { "30 min" } span { "now" }
                }
            }
        }
    }

    fn place(&self, (slot, value): (i64, f64), top: f64) -> (f64, f64) {
        let age = (self.last - slot) as f64;
        let x = WIDTH - age * WIDTH / (POINTS_MAX as f64 - 1.0);
        // Leaves room for the width of the line.
        let y = HEIGHT - 2.0 - (value / top).clamp(0.0, 1.0) * (HEIGHT - 6.0);
        (x.max(0.0), y)
    }

    /// Returns the path of the line, with a gap wherever intervals are missing.
    fn line(&self, top: f64) -> String {
        let mut path = String::new();
        let mut previous = None;
        for (slot, value) in self.values {
            let (x, y) = self.place((*slot, *value), top);
            // The sampler reads every ten seconds, so a slow read may skip one interval.
            let is_next = previous.is_some_and(|previous| slot - previous <= 2);
            let command = if is_next { 'L' } else { 'M' };
            // The round ends of a line of no length show a single value as a dot.
            let dot = if is_next { "" } else { "h0" };
            path.push_str(&format!("{command}{x:.1} {y:.1}{dot}"));
            previous = Some(*slot);
        }
        path
    }

    /// Returns the path of the area below the line.
    fn area(&self, top: f64) -> String {
        let (Some(first), Some(last)) = (self.values.first(), self.values.last()) else {
            return String::new();
        };
        let (from, to) = (self.place(*first, top).0, self.place(*last, top).0);
        let line = self.line(top).replace('M', "L");
        format!("M{from:.1} {HEIGHT:.1}{line}L{to:.1} {HEIGHT:.1}Z")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(values: &[(i64, f64)]) -> Chart<'_> {
        Chart {
            title: "Lag",
            values,
            last: 360,
            format: |value| format!("{value:.0}"),
        }
    }

    #[test]
    fn the_newest_value_is_at_the_right_and_a_gap_stays_a_gap() {
        let values = [(1, 0.0), (2, 5.0), (200, 10.0), (360, 10.0)];
        let line = chart(&values).line(10.0);
        assert!(line.starts_with("M0.0 98.0h0L1.7 51.0M"), "{line}");
        assert!(line.ends_with("M600.0 4.0h0"), "{line}");
    }

    #[test]
    fn a_chart_without_values_says_so_in_words() {
        let text = chart(&[]).draw().into_string();
        assert!(text.contains("Lag, last hour: now –, at most –"), "{text}");
    }
}
