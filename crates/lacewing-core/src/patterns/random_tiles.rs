//! Random tiles: elongated tiles of W, `window` along its smaller size, drawn at random.
//!
//! Cost of a row: `density` of dense; as block-sparse where the tiles divide the layer, else as unstructured.

use serde_json::json;

use crate::canvas::{Canvas, SHARE, Tiles, WINDOW};
use crate::config::Options;
use crate::mask::choices;
use crate::masked::{FanIn, Masked};
use crate::registry::{MAX_SIZE, first_within};
use crate::{Built, Problem, Structure, StructureKind};

const NAME: &str = "random_tiles";

/// The row of the table.
pub(super) static KIND: StructureKind = StructureKind {
    name: NAME,
    about: "tiles as elongated as the layer, at random places",
    keys: &[WINDOW, SHARE],
    build,
    samples,
    sized: |n_in, n_out, density| {
        let steps = [1.0, 0.97, 0.9, 0.8, 0.6]
            .map(|share| json!({"structure": NAME, "window": 4, "density": density.min(1.0) * share}));
        first_within((n_in, n_out), density, steps)
    },
};

/// `y = W x` with W stored on random tiles of a canvas `[min, max]` of the layer sizes, transposed where
/// `n_in ≤ n_out`.
///
/// With w the window and `d = ⌈max/min⌉`, tiles are w by w·d; of the `⌈min/w⌉ · ⌈⌊max/d⌋/w⌉` there are,
/// `⌈density · tiles⌉` are kept, each clipped at the edges. Where d does not divide max, the last columns of the
/// canvas may belong to no tile.
///
/// Parameter `weight [nnz]`, or `[nnz, rows, cols]` where tiles divide the layer; the tile as it stands in W.
fn build(options: &Options, problem: &Problem<'_>) -> Built {
    let window = options.size("window", 1, MAX_SIZE)?;
    let density = options.number("density", 0.0, 1.0)?;
    let (n_out, n_in) = problem.shape();
    let canvas = Canvas { n_out, n_in };
    let n_across = (canvas.max() / canvas.ratio()).div_ceil(window);
    let tiles = Tiles::new(canvas, window, Some(n_across));
    let kept = tiles.kept(NAME, density)?;
    let pattern = tiles.pattern(NAME, problem, kept, || {
        let numbers = choices(problem).sample(tiles.count() as u64, kept);
        numbers.into_iter().map(|number| tiles.at(number as usize)).collect()
    })?;
    let config = json!({"structure": NAME, "window": window, "density": density});
    Ok(Box::new(Masked { name: NAME, pattern, fan_in: FanIn::Mean, free: false, config }))
}

fn samples() -> Vec<Box<dyn Structure>> {
    let whole = json!({"structure": NAME, "window": 2, "density": 0.4});
    let ragged = json!({"structure": NAME, "window": 2, "density": 0.3});
    let single = json!({"structure": NAME, "window": 1, "density": 0.2});
    [(&whole, 12, 6), (&ragged, 5, 11), (&ragged, 17, 7), (&single, 7, 7), (&single, 1, 1)]
        .map(|(config, n_in, n_out)| crate::build(config, n_in, n_out, 1, None).expect("valid sample"))
        .into()
}
