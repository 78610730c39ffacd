//! Pixels moved by an affine map, as PIL's `Image.transform` moves them: interpolated in f64, truncated to a byte.

use super::super::picture::Picture;
use super::super::resize::Filter;

/// The matrix that turns a picture by `degrees` counterclockwise about its center, its cosine and sine rounded to 15 digits
/// as PIL's are.
pub(super) fn rotation(degrees: f64, height: usize, width: usize) -> [f64; 6] {
    let angle = -degrees.rem_euclid(360.0).to_radians();
    let (cos, sin, minus_sin) =
        (to_15_digits(angle.cos()), to_15_digits(angle.sin()), to_15_digits(-angle.sin()));
    let (x, y) = (width as f64 / 2.0, height as f64 / 2.0);
    [cos, sin, cos * -x + sin * -y + x, minus_sin, cos, minus_sin * -x + cos * -y + y]
}

/// The number nearest to `x` that 15 decimals write.
fn to_15_digits(x: f64) -> f64 {
    format!("{x:.15}").parse().expect("a printed number is a number")
}

/// `to(x, y) = from(a·x + b·y + c, d·x + e·y + f)` for `matrix = [a, b, c, d, e, f]`, coordinates being those of pixel
/// centers; where that is outside of the picture, `fill`, a byte a channel.
///
/// # Panics
/// When `fill` has fewer bytes than the picture channels.
pub(super) fn warp(from: &Picture, matrix: [f64; 6], filter: Filter, fill: &[u8], to: &mut Picture) {
    let (shape, [a, b, c, d, e, f]) = (from.shape, matrix);
    assert!(fill.len() >= shape.channels, "a fill byte for each of {} channels", shape.channels);
    let (height, width) = (shape.height as f64, shape.width as f64);
    to.shape = shape;
    to.pixels.resize(shape.len(), 0);
    for y in 0..shape.height {
        for x in 0..shape.width {
            let (right, down) = (x as f64 + 0.5, y as f64 + 0.5);
            let (right, down) = (a * right + b * down + c, d * right + e * down + f);
            let inside = (0.0..width).contains(&right) && (0.0..height).contains(&down);
            let place = inside.then(|| Place::new(right - 0.5, down - 0.5, shape.width, shape.height));
            for channel in 0..shape.channels {
                let plane = &from.pixels[channel * shape.plane()..][..shape.plane()];
                to.pixels[(channel * shape.height + y) * shape.width + x] = match (&place, filter) {
                    (None, _) => fill[channel],
                    (Some(place), Filter::Bilinear) => place.bilinear(plane),
                    (Some(place), Filter::Bicubic) => place.bicubic(plane),
                };
            }
        }
    }
}

/// A point between pixels: the four columns and four rows about it, and how far it is from the second of each.
struct Place {
    columns: [usize; 4],
    /// Where the rows start.
    rows: [usize; 4],
    right: f64,
    down: f64,
}

impl Place {
    /// Columns and rows beyond the border are those at the border.
    fn new(x: f64, y: f64, width: usize, height: usize) -> Self {
        // Half a pixel before the first is the least; and without SSE4.1 `floor` is a call.
        let floor = |x: f64| if x < 0.0 { -1 } else { x as isize };
        let (left, top) = (floor(x), floor(y));
        let around = |first: isize, size: usize| {
            [-1, 0, 1, 2].map(|i| (first + i).clamp(0, size as isize - 1) as usize)
        };
        Self {
            columns: around(left, width),
            rows: around(top, height).map(|row| row * width),
            right: x - left as f64,
            down: y - top as f64,
        }
    }

    /// The four values of row `row` of the neighborhood.
    fn values(&self, plane: &[u8], row: usize) -> [f64; 4] {
        let row = &plane[self.rows[row]..];
        self.columns.map(|column| f64::from(row[column]))
    }

    fn bilinear(&self, plane: &[u8]) -> u8 {
        let line = |row| {
            let [_, left, right, _] = self.values(plane, row);
            left + (right - left) * self.right
        };
        let (upper, lower) = (line(1), line(2));
        (upper + (lower - upper) * self.down) as u8
    }

    fn bicubic(&self, plane: &[u8]) -> u8 {
        // On a row or a column the other three have no weight.
        let line = |row| match self.right {
            0.0 => f64::from(plane[self.rows[row] + self.columns[1]]),
            right => cubic(self.values(plane, row), right),
        };
        let value = match self.down {
            0.0 => line(1),
            down => cubic([line(0), line(1), line(2), line(3)], down),
        };
        // `as` truncates, then saturates.
        value as u8
    }
}

/// The cubic with `a = -1` through four values, at `t` from the second to the third.
fn cubic([v0, v1, v2, v3]: [f64; 4], t: f64) -> f64 {
    let linear = -v0 + v2;
    let square = 2.0 * (v0 - v1) + v2 - v3;
    let cube = -v0 + v1 - v2 + v3;
    v1 + t * (linear + t * (square + t * cube))
}
