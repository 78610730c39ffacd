//! A plot of speed-up over density as SVG: both axes logarithmic, a colour a structure, a marker a number of rows.

use std::fmt::Write;

/// Size of the picture, and the corners of the plot in it.
const SIZE: (f64, f64) = (980.0, 600.0);
const LEFT_TOP: (f64, f64) = (86.0, 70.0);
const RIGHT_BOTTOM: (f64, f64) = (720.0, 535.0);

/// Okabe and Ito's colours, which most people can tell apart, and three more.
const COLOURS: [&str; 10] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#7f3fbf", "#8c6d31",
    "#7f7f7f",
];

/// Letters of a name in the legend.
const LONGEST: usize = 30;

/// A structure at a number of rows.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Series {
    pub(super) structure: String,
    pub(super) rows: String,
    pub(super) points: Vec<Point>,
}

/// One measurement.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Point {
    pub(super) density: f64,
    pub(super) speedup: f64,
    /// What the machine's limits would allow.
    pub(super) limit: f64,
    /// Shown when one points at it.
    pub(super) note: String,
}

/// Where values lie in the picture.
struct Axes {
    /// Logarithms of the ends of both axes.
    x: (f64, f64),
    y: (f64, f64),
}

impl Axes {
    /// Around all points, 1 (as fast as dense) among them.
    fn around(series: &[Series]) -> Self {
        let points = || series.iter().flat_map(|series| &series.points);
        let range = |values: &mut dyn Iterator<Item = f64>| {
            let logs = values.filter(|value| *value > 0.0).map(f64::log2);
            logs.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
        };
        let (low, high) = range(&mut points().map(|point| point.density));
        let x = if low <= high { (low - 0.3, high + 0.3) } else { (-4.0, 0.0) };
        let (low, high) = range(&mut points().flat_map(|point| [point.speedup, point.limit]).chain([1.0]));
        Self { x, y: ((low - 0.2).floor(), (high + 0.2).ceil()) }
    }

    fn place(&self, density: f64, speedup: f64) -> (f64, f64) {
        let share = |value: f64, (low, high): (f64, f64)| (value.log2() - low) / (high - low);
        let ((left, top), (right, bottom)) = (LEFT_TOP, RIGHT_BOTTOM);
        (left + share(density, self.x) * (right - left), bottom - share(speedup, self.y) * (bottom - top))
    }
}

/// The picture: a line for each of `series`, what the limits would allow of it dotted beside, and a line at 1.
pub(super) fn svg(title: &str, subtitle: &str, series: &[Series]) -> String {
    let axes = Axes::around(series);
    let structures = distinct(series.iter().map(|series| &series.structure));
    let rows = distinct(series.iter().map(|series| &series.rows));
    let index = |all: &[&String], one: &String| all.iter().position(|known| *known == one).unwrap_or(0);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" viewBox=\"0 0 {0} {1}\" \
         role=\"img\" font-family=\"sans-serif\" font-size=\"13\">\n<title>{2}</title>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n",
        SIZE.0,
        SIZE.1,
        escaped(title)
    );
    text(&mut out, (LEFT_TOP.0, 28.0), "start", title, "font-size=\"18\"");
    text(&mut out, (LEFT_TOP.0, 50.0), "start", subtitle, "fill=\"#555555\" font-size=\"12\"");
    frame(&mut out, &axes);
    for one in series {
        let colour = COLOURS[index(&structures, &one.structure) % COLOURS.len()];
        line(
            &mut out,
            &axes,
            one,
            |point| point.limit,
            &format!("{colour}\" stroke-dasharray=\"2 3\" opacity=\"0.8"),
        );
        line(&mut out, &axes, one, |point| point.speedup, &format!("{colour}\" stroke-width=\"2"));
        for point in &one.points {
            let at = axes.place(point.density, point.speedup);
            let note = format!("{} at {} rows: {}", one.structure, one.rows, point.note);
            marker(&mut out, index(&rows, &one.rows), at, colour, &note);
        }
    }
    let (left, mut y) = (RIGHT_BOTTOM.0 + 20.0, LEFT_TOP.1 + 5.0);
    for (at, structure) in structures.iter().enumerate() {
        key(&mut out, (left, y), &format!("{}\" stroke-width=\"2", COLOURS[at % COLOURS.len()]));
        text(&mut out, (left + 34.0, y + 4.0), "start", &shortened(structure), "");
        y += 20.0;
    }
    for (at, rows) in rows.iter().enumerate() {
        marker(&mut out, at, (left + 13.0, y), "#555555", "");
        let label = if *rows == "1" { "1 row".to_owned() } else { format!("{rows} rows") };
        text(&mut out, (left + 34.0, y + 4.0), "start", &label, "");
        y += 20.0;
    }
    key(&mut out, (left, y), "#333333\" stroke-dasharray=\"7 4");
    text(&mut out, (left + 34.0, y + 4.0), "start", "dense", "");
    key(&mut out, (left, y + 20.0), "#555555\" stroke-dasharray=\"2 3");
    text(&mut out, (left + 34.0, y + 24.0), "start", "bound of the machine", "");
    out + "</svg>\n"
}

/// Grid, ticks, names of the axes, and the line at 1.
fn frame(out: &mut String, axes: &Axes) {
    let ((left, top), (right, bottom)) = (LEFT_TOP, RIGHT_BOTTOM);
    let mut grid = |from: (f64, f64), to: (f64, f64), stroke: &str| segment(out, from, to, stroke);
    let densities: Vec<f64> = (0..9)
        .flat_map(|decade| [1.0, 0.5, 0.2].map(|step| step * 10f64.powi(-decade)))
        .filter(|density| (axes.x.0..=axes.x.1).contains(&density.log2()))
        .collect();
    let speedups: Vec<f64> = (axes.y.0 as i32..=axes.y.1 as i32).map(|power| 2f64.powi(power)).collect();
    for &density in &densities {
        let x = axes.place(density, 1.0).0;
        grid((x, top), (x, bottom), "#e4e4e4");
    }
    for &speedup in &speedups {
        let y = axes.place(1.0, speedup).1;
        grid((left, y), (right, y), "#e4e4e4");
    }
    let one = axes.place(1.0, 1.0).1;
    grid((left, one), (right, one), "#333333\" stroke-dasharray=\"7 4");
    for &density in &densities {
        text(out, (axes.place(density, 1.0).0, bottom + 20.0), "middle", &percent(density), "");
    }
    for &speedup in &speedups {
        text(out, (left - 8.0, axes.place(1.0, speedup).1 + 4.0), "end", &format!("{speedup}x"), "");
    }
    text(
        out,
        ((left + right) / 2.0, bottom + 45.0),
        "middle",
        "density: share of the dense weights stored",
        "",
    );
    let middle = (top + bottom) / 2.0;
    let turned = format!("transform=\"rotate(-90 18 {middle:.1})\"");
    text(out, (18.0, middle), "middle", "speed-up over dense", &turned);
}

fn percent(density: f64) -> String {
    // Nine digits: a share such as 0.07 times 100 is not 7 to the last bit.
    let rounded = (1e9 * 100.0 * density).round() / 1e9;
    format!("{rounded} %")
}

fn line(out: &mut String, axes: &Axes, series: &Series, of: impl Fn(&Point) -> f64, stroke: &str) {
    let mut points: Vec<(f64, f64)> = series.points.iter().map(|point| (point.density, of(point))).collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    let points = points.into_iter().map(|(density, value)| axes.place(density, value));
    // A point alone is a dash.
    let half = if series.points.len() == 1 { 9.0 } else { 0.0 };
    let ends = points.flat_map(|(x, y)| [(x - half, y), (x + half, y)]);
    let mut points: Vec<String> = ends.map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    points.dedup();
    let _ = writeln!(out, "<polyline points=\"{}\" fill=\"none\" stroke=\"{stroke}\"/>", points.join(" "));
}

fn segment(out: &mut String, from: (f64, f64), to: (f64, f64), stroke: &str) {
    let ((x1, y1), (x2, y2)) = (from, to);
    let _ = writeln!(
        out,
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{stroke}\"/>"
    );
}

/// A piece of a line beside its name.
fn key(out: &mut String, (x, y): (f64, f64), stroke: &str) {
    segment(out, (x, y), (x + 26.0, y), stroke);
}

/// The marker of the number of rows with this index.
fn marker(out: &mut String, index: usize, (x, y): (f64, f64), colour: &str, note: &str) {
    let at = |dx: f64, dy: f64| format!("{:.1},{:.1}", x + dx, y + dy);
    let corners = match index % 4 {
        0 => None,
        1 => Some(vec![at(-4.0, -4.0), at(4.0, -4.0), at(4.0, 4.0), at(-4.0, 4.0)]),
        2 => Some(vec![at(0.0, -5.5), at(5.0, 4.0), at(-5.0, 4.0)]),
        _ => Some(vec![at(0.0, -6.0), at(6.0, 0.0), at(0.0, 6.0), at(-6.0, 0.0)]),
    };
    let title = if note.is_empty() { String::new() } else { format!("<title>{}</title>", escaped(note)) };
    let _ = match corners {
        None => {
            writeln!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.5\" fill=\"{colour}\">{title}</circle>")
        }
        Some(corners) => {
            writeln!(out, "<polygon points=\"{}\" fill=\"{colour}\">{title}</polygon>", corners.join(" "))
        }
    };
}

fn text(out: &mut String, (x, y): (f64, f64), anchor: &str, text: &str, more: &str) {
    let text = escaped(text);
    let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" {more}>{text}</text>");
}

/// What XML does not take as it is.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            // XML has no way to write these.
            letter if letter.is_control() => escaped.push(' '),
            letter => escaped.push(letter),
        }
    }
    escaped
}

fn shortened(name: &str) -> String {
    if name.chars().count() <= LONGEST {
        return name.to_owned();
    }
    name.chars().take(LONGEST - 3).chain("...".chars()).collect()
}

fn distinct<'a>(names: impl Iterator<Item = &'a String>) -> Vec<&'a String> {
    let mut distinct = Vec::new();
    for name in names {
        if !distinct.contains(&name) {
            distinct.push(name);
        }
    }
    distinct
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(structure: &str, rows: &str, points: &[(f64, f64, f64)]) -> Series {
        let point =
            |&(density, speedup, limit)| Point { density, speedup, limit, note: "a <note>".to_owned() };
        Series {
            structure: structure.to_owned(),
            rows: rows.to_owned(),
            points: points.iter().map(point).collect(),
        }
    }

    #[test]
    fn every_series_has_its_line_and_its_bound_inside_the_frame() {
        let all = [
            series("nm {\"n\" & 2}", "1", &[(0.5, 0.9, 2.0), (0.1, 3.0, 9.0)]),
            series("monarch", "1", &[(0.25, 0.01, 0.5)]),
            series("monarch", "16", &[(0.25, 100.0, 400.0)]),
        ];
        let picture = svg("768x3072", "a machine", &all);
        assert_eq!(picture.matches("<polyline").count(), 2 * all.len());
        // Four points with their notes, and a marker for each number of rows in the legend.
        let markers = picture.matches("<circle").count() + picture.matches("<polygon").count();
        assert_eq!((markers, picture.matches("a &lt;note&gt;").count()), (4 + 2, 4));
        assert!(picture.contains("nm {&quot;n&quot; &amp; 2}") && !picture.contains("& "), "{picture}");
        assert!(picture.contains(">dense<") && picture.contains(">bound of the machine<"), "{picture}");
        for points in picture.split("points=\"").skip(1).map(|rest| rest.split('"').next().unwrap()) {
            for point in points.split(' ') {
                let (x, y) = point.split_once(',').unwrap();
                let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
                assert!((0.0..SIZE.0).contains(&x) && (LEFT_TOP.1..=RIGHT_BOTTOM.1).contains(&y), "{point}");
            }
        }
        // Every tag is closed.
        let (open, close) = (picture.matches('<').count(), picture.matches('>').count());
        assert_eq!(open, close);
        assert_eq!(
            picture.matches("</").count() + picture.matches("/>").count(),
            picture.matches('<').count() - picture.matches("</").count()
        );
    }

    #[test]
    fn nothing_measured_is_an_empty_frame() {
        let picture = svg("1x1", "", &[]);
        assert!(
            picture.contains(">1x<") && !picture.contains("NaN") && !picture.contains("inf"),
            "{picture}"
        );
    }
}
