//! Top-k tiles: elongated tiles of W, `window` along its smaller size, those of greatest mean magnitude.
//!
//! Cost of a row: `density` of dense; as block-sparse where the tiles divide the layer, else as unstructured.
//!
//! The tiles are chosen once, when the layer is built, and saved. The layer that this descends from ranks a dense
//! weight again in every forward pass, which costs a dense layer and lets the mask change during training.

use serde_json::json;

use crate::canvas::{Canvas, SHARE, Tiles, WINDOW};
use crate::config::Options;
use crate::mask::{choices, keep_largest, weight_to_rank};
use crate::masked::{FanIn, Masked};
use crate::registry::{MAX_SIZE, first_within};
use crate::{Built, Problem, Structure, StructureKind};

const NAME: &str = "top_k_tiles";

/// The row of the table.
pub(super) static KIND: StructureKind = StructureKind {
    name: NAME,
    about: "tiles as elongated as the layer, those of greatest mean magnitude",
    keys: &[WINDOW, SHARE],
    build,
    samples,
    sized: |n_in, n_out, density| {
        let steps = [1.0, 0.97, 0.9, 0.8, 0.6]
            .map(|share| json!({"structure": NAME, "window": 4, "density": density.min(1.0) * share}));
        first_within((n_in, n_out), density, steps)
    },
};

/// `y = W x` with W stored on tiles of a canvas `[min, max]` of the layer sizes, transposed where `n_in ≤ n_out`.
///
/// With w the window and `d = ⌈max/min⌉`, tiles are w by w·d, those at the far edges clipped. Of them
/// `⌈density · tiles⌉` are kept, those of greatest mean `|W|`, W the dense weight given or else a default draw;
/// among equals the lowest, row-major in W, is pruned first.
///
/// Parameter `weight [nnz]`, or `[nnz, rows, cols]` where tiles divide the layer; the tile as it stands in W.
fn build(options: &Options, problem: &Problem<'_>) -> Built {
    let window = options.size("window", 1, MAX_SIZE)?;
    let density = options.number("density", 0.0, 1.0)?;
    let (n_out, n_in) = problem.shape();
    let canvas = Canvas { n_out, n_in };
    let tiles = Tiles::new(canvas, window, None);
    let kept = tiles.kept(NAME, density)?;
    let pattern = tiles.pattern(NAME, problem, kept, || {
        let weight = weight_to_rank(problem, &mut choices(problem));
        let means = mean_magnitudes(&tiles, &weight);
        keep_largest(&means, kept).into_iter().map(|number| tiles.at(number)).collect()
    })?;
    let config = json!({"structure": NAME, "window": window, "density": density});
    Ok(Box::new(Masked { name: NAME, pattern, fan_in: FanIn::Mean, free: false, config }))
}

/// Mean magnitude of each tile over the weights it has, row-major in W.
fn mean_magnitudes(tiles: &Tiles, weight: &[f32]) -> Vec<f64> {
    let n_in = tiles.canvas.n_in;
    let (mut sums, mut sizes) = (vec![0.0; tiles.count()], vec![0u64; tiles.count()]);
    for (at, &w) in weight.iter().enumerate() {
        let tile = at / n_in / tiles.side.0 * tiles.grid.1 + at % n_in / tiles.side.1;
        sums[tile] += f64::from(w.abs());
        sizes[tile] += 1;
    }
    sums.iter().zip(sizes).map(|(sum, size)| sum / size as f64).collect()
}

fn samples() -> Vec<Box<dyn Structure>> {
    let whole = json!({"structure": NAME, "window": 2, "density": 0.4});
    let ragged = json!({"structure": NAME, "window": 2, "density": 0.3});
    let single = json!({"structure": NAME, "window": 1, "density": 0.2});
    [(&whole, 12, 6), (&ragged, 5, 11), (&ragged, 17, 7), (&single, 7, 7), (&single, 1, 1)]
        .map(|(config, n_in, n_out)| crate::build(config, n_in, n_out, 1, None).expect("valid sample"))
        .into()
}
