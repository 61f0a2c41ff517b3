//! Lines over a logarithmic axis, one panel below the other.

use super::svg::{Anchor, Area, Svg};

const WIDTH: f64 = 720.0;
const PANEL: f64 = 210.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 150.0;
const ABOVE: f64 = 34.0;
const BELOW: f64 = 36.0;
const CLASSES: [&str; 3] = ["s0", "s1", "s2"];

/// A line.
#[derive(Clone, Debug)]
pub struct Series {
    pub name: String,
    /// Ascending by the first, which is above 0.
    pub points: Vec<(f64, f64)>,
}

/// Lines with one axis. At most three.
#[derive(Clone, Debug)]
pub struct Panel {
    pub title: String,
    pub series: Vec<Series>,
}

/// Draws the panels; `below` names what goes from left to right.
pub fn draw(panels: &[Panel], below: &str) -> String {
    let mut svg = Svg::new(WIDTH, PANEL * panels.len() as f64 + 10.0);
    for (number, panel) in panels.iter().enumerate() {
        draw_one(&mut svg, panel, PANEL * number as f64, below);
    }
    svg.finish()
}

fn draw_one(svg: &mut Svg, panel: &Panel, top: f64, below: &str) {
    let points = || panel.series.iter().flat_map(|series| &series.points);
    let (least, most) = points().fold((f64::INFINITY, 1.0_f64), |(least, most), (x, _)| {
        (least.min(*x), most.max(*x))
    });
    let highest = points()
        .fold(0.0_f64, |highest, (_, y)| highest.max(*y))
        .max(1e-9);
    let (bottom, upper) = (top + PANEL - BELOW, top + ABOVE);
    let span = (most / least).ln().max(1e-9);
    let x = |value: f64| LEFT + (value / least).ln() / span * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| bottom - value / highest * (bottom - upper);
    svg.text((LEFT, top + 20.0), Anchor::Start, &panel.title);
    svg.line(&[(LEFT, upper), (LEFT, bottom), (WIDTH - RIGHT, bottom)], "axis");
    for part in [0.0, 0.5, 1.0] {
        let value = highest * part;
        svg.text((LEFT - 6.0, y(value) + 4.0), Anchor::End, &number(value));
    }
    let mut ticks: Vec<f64> = points().map(|(x, _)| *x).collect();
    ticks.sort_unstable_by(f64::total_cmp);
    ticks.dedup();
    for tick in ticks {
        svg.text((x(tick), bottom + 15.0), Anchor::Middle, &number(tick));
    }
    svg.text((WIDTH - RIGHT, bottom + 30.0), Anchor::End, below);
    for (at, (series, class)) in panel.series.iter().zip(CLASSES).enumerate() {
        let places: Vec<_> = series.points.iter().map(|(px, py)| (x(*px), y(*py))).collect();
        svg.line(&places, class);
        for ((px, py), (_, value)) in places.iter().zip(&series.points) {
            let dot = Area {
                x: px - 2.0,
                y: py - 2.0,
                width: 4.0,
                height: 4.0,
            };
            svg.area(dot, class, &format!("{}: {}", series.name, number(*value)));
        }
        let line = upper + 10.0 + 18.0 * at as f64;
        svg.line(
            &[(WIDTH - RIGHT + 10.0, line), (WIDTH - RIGHT + 30.0, line)],
            class,
        );
        svg.text((WIDTH - RIGHT + 36.0, line + 4.0), Anchor::Start, &series.name);
    }
}

fn number(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{:.3}M", value / 1e6),
        value if value >= 100.0 || value == value.trunc() => format!("{value:.0}"),
        value => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_is_there_and_says_its_value() {
        let series = Series {
            name: "p99 <us>".to_owned(),
            points: vec![(1.0, 5.0), (8.0, 20.5), (64.0, 100.0)],
        };
        let panel = Panel {
            title: "reads".to_owned(),
            series: vec![series],
        };
        let svg = draw(&[panel.clone(), panel], "deltas");
        for expected in ["p99 &lt;us&gt;: 5<", "p99 &lt;us&gt;: 20.50<", ">64<"] {
            assert_eq!(svg.matches(expected).count(), 2, "{expected}: {svg}");
        }
    }
}
