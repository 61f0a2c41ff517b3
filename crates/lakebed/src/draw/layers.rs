//! The layers of a timeline: pages from left to right, LSNs from bottom to top.
//!
//! Pages are not to scale: the ends of layers follow each other at equal distances, since a relation's pages have nothing to
//! do with the next one's.

use anyhow::{Context, bail};
use lakebed_layer::{LayerDesc, LayerKind, LayerMap};
use lakebed_types::{Lsn, PageKey};
use serde::Deserialize;

use super::LayersArgs;
use super::svg::{Anchor, Area, Svg};

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 540.0;
const LEFT: f64 = 110.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;
const RIGHT: f64 = 20.0;

#[derive(Debug, Deserialize)]
struct Told {
    timelines: Vec<OneTimeline>,
}

#[derive(Debug, Deserialize)]
struct OneTimeline {
    timeline: String,
    shard: String,
    map: LayerMap,
}

/// The picture of what `/v1/layers` says.
///
/// # Errors
/// It is not that, or the timeline is not there or not the only one.
pub fn draw(json: &str, args: &LayersArgs) -> anyhow::Result<String> {
    let told: Told = serde_json::from_str(json).context("this is not what /v1/layers says")?;
    let timeline = args.timeline.map(|id| id.to_string());
    let wanted = |one: &&OneTimeline| {
        timeline.as_ref().is_none_or(|id| *id == one.timeline)
            && args.shard.as_ref().is_none_or(|shard| *shard == one.shard)
    };
    let found: Vec<_> = told.timelines.iter().filter(wanted).collect();
    match found[..] {
        [one] => picture(one),
        [] => bail!("there is no such timeline here"),
        _ => {
            let names = found
                .iter()
                .map(|one| format!("--timeline {} --shard {}", one.timeline, one.shard));
            bail!(
                "there are several, choose one:\n{}",
                names.collect::<Vec<_>>().join("\n")
            )
        }
    }
}

/// From pages and LSNs to places.
struct Scale {
    ends: Vec<PageKey>,
    lsns: (Lsn, Lsn),
}

impl Scale {
    fn of(map: &LayerMap) -> anyhow::Result<Scale> {
        let spans = map.layers().filter_map(|desc| desc.pages_span);
        let mut ends: Vec<PageKey> = spans.flat_map(|(low, high)| [low, high]).collect();
        ends.sort_unstable();
        ends.dedup();
        let first = map.layers().map(|desc| desc.first).min();
        let last = map.layers().map(|desc| desc.last).max();
        let lsns = first.zip(last).context("the timeline has no layers")?;
        Ok(Scale { ends, lsns })
    }

    /// The left or right end of a layer.
    fn x(&self, key: &PageKey, right: bool) -> f64 {
        let at = self.ends.partition_point(|end| end < key) + usize::from(right);
        LEFT + at as f64 * (WIDTH - LEFT - RIGHT) / self.ends.len().max(1) as f64
    }

    fn y(&self, lsn: Lsn) -> f64 {
        let span = (self.lsns.1.0 - self.lsns.0.0).max(1) as f64;
        let part = lsn.0.saturating_sub(self.lsns.0.0) as f64 / span;
        HEIGHT - BOTTOM - part * (HEIGHT - BOTTOM - TOP)
    }

    fn area(&self, desc: &LayerDesc) -> Option<Area> {
        let (low, high) = desc.pages_span?;
        let (left, right) = (self.x(&low, false), self.x(&high, true));
        let (top, bottom) = (self.y(desc.last), self.y(desc.first));
        Some(Area {
            x: left,
            y: top.min(bottom - 3.0),
            width: right - left,
            height: (bottom - top).max(3.0),
        })
    }
}

fn picture(one: &OneTimeline) -> anyhow::Result<String> {
    let scale = Scale::of(&one.map)?;
    let mut svg = Svg::new(WIDTH, HEIGHT);
    let heading = format!("timeline {}, shard {}", one.timeline, one.shard);
    svg.text((LEFT, 20.0), Anchor::Start, &heading);
    let (first, last) = scale.lsns;
    let middle = Lsn(first.0 + (last.0 - first.0) / 2);
    for lsn in [first, middle, last] {
        svg.text((LEFT - 8.0, scale.y(lsn) + 4.0), Anchor::End, &lsn.to_string());
    }
    let mut legend = LEFT;
    // The newest are on top.
    for (kind, class) in [
        (LayerKind::History, "history"),
        (LayerKind::Current, "current"),
        (LayerKind::Level0, "level0"),
    ] {
        let (mut layers, mut bytes) = (0, 0);
        for desc in one.map.layers().filter(|desc| desc.kind == kind) {
            let Some(area) = scale.area(desc) else { continue };
            (layers, bytes) = (layers + 1, bytes + desc.bytes);
            svg.area(area, class, &says(desc));
        }
        let square = Area {
            x: legend,
            y: HEIGHT - 28.0,
            width: 12.0,
            height: 12.0,
        };
        svg.area(square, class, class);
        let text = format!("{class}: {layers} layers, {:.1} MB", bytes as f64 / 1e6);
        svg.text((legend + 18.0, HEIGHT - 18.0), Anchor::Start, &text);
        legend += 250.0;
    }
    Ok(svg.finish())
}

fn says(desc: &LayerDesc) -> String {
    let (low, high) = desc.pages_span.unzip();
    let page = |key: Option<PageKey>| key.map(|key| key.to_string()).unwrap_or_default();
    format!(
        "{}: {} to {}, {} to {}, {} pages, {} values, {} bytes",
        desc.id,
        page(low),
        page(high),
        desc.first,
        desc.last,
        desc.pages,
        desc.values,
        desc.bytes
    )
}

#[cfg(test)]
mod tests {
    use lakebed_layer::{Edit, LayerId};
    use lakebed_types::{ForkNumber, Generation, RelTag, TimelineId};

    use super::*;

    fn key(block: u32) -> PageKey {
        let rel = RelTag {
            spcnode: 1663,
            dbnode: 5,
            relnode: 16384,
            fork: ForkNumber::Main,
        };
        PageKey::Rel { rel, block }
    }

    fn level0(number: u64, first: u64, last: u64, span: (u32, u32)) -> LayerDesc {
        LayerDesc {
            id: LayerId {
                generation: Generation(1),
                number,
            },
            kind: LayerKind::Level0,
            first: Lsn(first),
            last: Lsn(last),
            pages_span: Some((key(span.0), key(span.1))),
            pages: 2,
            values: 3,
            bytes: 1_000_000,
        }
    }

    fn json() -> String {
        let layers = vec![level0(1, 100, 200, (0, 5)), level0(2, 200, 300, (3, 9))];
        let (map, _) = LayerMap::default().apply(&Edit::Flush(layers)).unwrap();
        let one = |timeline| serde_json::json!({ "timeline": timeline, "shard": "0/1", "map": map });
        let ids = [TimelineId([1; 16]), TimelineId([2; 16])];
        serde_json::json!({ "timelines": ids.map(one) }).to_string()
    }

    #[test]
    fn each_layer_is_an_area_that_says_which_it_is() {
        let args = LayersArgs {
            file: None,
            timeline: Some(TimelineId([2; 16])),
            shard: None,
        };
        let svg = draw(&json(), &args).unwrap();
        let areas: Vec<_> = svg.lines().filter(|line| line.contains("pages, ")).collect();
        assert_eq!(areas.len(), 2, "{svg}");
        // The later one is above the earlier one and to the right.
        let number = |line: &str, name: &str| -> f64 {
            let (_, rest) = line.split_once(&format!(" {name}=\"")).unwrap();
            rest.split('"').next().unwrap().parse().unwrap()
        };
        assert!(
            areas[0].contains("1-1: ") && areas[1].contains("1-2: "),
            "{areas:?}"
        );
        assert!(number(areas[0], "x") < number(areas[1], "x"));
        assert_eq!(
            number(areas[1], "y") + number(areas[1], "height"),
            number(areas[0], "y")
        );
        assert!(svg.contains("level0: 2 layers, 2.0 MB") && svg.contains("0/C8"));
    }

    #[test]
    fn one_of_several_has_to_be_chosen() {
        let mut args = LayersArgs {
            file: None,
            timeline: None,
            shard: Some("0/1".to_owned()),
        };
        let error = draw(&json(), &args).unwrap_err().to_string();
        assert!(
            error.contains(&format!("--timeline {}", TimelineId([1; 16]))),
            "{error}"
        );
        args.shard = Some("1/2".to_owned());
        assert!(draw(&json(), &args).is_err());
        assert!(draw("{}", &args).is_err());
    }
}
