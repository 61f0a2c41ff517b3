//! Writing SVG.

use std::fmt::Write;

/// A picture that grows.
#[derive(Debug)]
pub struct Svg {
    width: f64,
    height: f64,
    body: String,
}

/// A rectangle.
#[derive(Clone, Copy, Debug)]
pub struct Area {
    pub x: f64,
    pub y: f64,
    pub width: f64,
    pub height: f64,
}

/// Where a text is, seen from its point.
#[derive(Clone, Copy, Debug)]
pub enum Anchor {
    Start,
    Middle,
    End,
}

impl Svg {
    /// An empty one.
    pub fn new(width: f64, height: f64) -> Svg {
        Svg {
            width,
            height,
            body: String::new(),
        }
    }

    fn add(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.body, "{element}");
    }

    /// A filled rectangle that says something when it is pointed at.
    pub fn area(&mut self, area: Area, class: &str, says: &str) {
        let Area { x, y, width, height } = area;
        let says = escaped(says);
        self.add(format_args!(
            r#"<rect class="{class}" x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}"><title>{says}</title></rect>"#
        ));
    }

    /// A line through points.
    pub fn line(&mut self, points: &[(f64, f64)], class: &str) {
        let points: Vec<_> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let points = points.join(" ");
        self.add(format_args!(r#"<polyline class="{class}" points="{points}"/>"#));
    }

    /// A text.
    pub fn text(&mut self, (x, y): (f64, f64), anchor: Anchor, text: &str) {
        let (text, anchor) = (
            escaped(text),
            match anchor {
                Anchor::Start => "start",
                Anchor::Middle => "middle",
                Anchor::End => "end",
            },
        );
        self.add(format_args!(
            r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{text}</text>"#
        ));
    }

    /// All of it.
    pub fn finish(self) -> String {
        let Svg { width, height, body } = self;
        format!(
            r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">
<style>
text {{ font: 12px sans-serif; fill: #333 }}
polyline {{ fill: none; stroke-width: 1.5 }}
.axis {{ stroke: #999; stroke-width: 1 }}
.level0 {{ fill: #e69f00; fill-opacity: .6; stroke: #8a5f00; stroke-width: .5 }}
.current {{ fill: #009e73; fill-opacity: .6; stroke: #005f45; stroke-width: .5 }}
.history {{ fill: #56b4e9; fill-opacity: .5; stroke: #1f6f9f; stroke-width: .5 }}
.s0 {{ stroke: #0072b2; fill: #0072b2 }}
.s1 {{ stroke: #d55e00; fill: #d55e00 }}
.s2 {{ stroke: #009e73; fill: #009e73 }}
polyline.s0, polyline.s1, polyline.s2 {{ fill: none }}
</style>
<rect width="100%" height="100%" fill="#fff"/>
{body}</svg>"##
        )
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
