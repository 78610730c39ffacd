//! Ninja turtle: windows along the diagonal of W and along stripes whose distance from it doubles.
//!
//! Cost of a row: as unstructured, or as block-sparse where `block` divides the layer. `repeat` lays the mask
//! several times below itself, for queries, keys and values in one layer.

use serde_json::json;

use crate::canvas::{Canvas, ROUND, STEP, STRIPES, StripeOptions, Stripes, WINDOW};
use crate::config::{Key, Options};
use crate::masked::{FanIn, Masked};
use crate::registry::first_within;
use crate::{Built, Pattern, Problem, Structure, StructureError, StructureKind};

const NAME: &str = "ninja_turtle";

/// The row of the table.
pub(super) static KIND: StructureKind = StructureKind {
    name: NAME,
    about: "windows along the diagonal and along stripes at doubling distances",
    keys: &[
        WINDOW,
        STRIPES,
        STEP,
        Key::new("global_size", "first outputs and inputs that are connected to everything", "1"),
        ROUND,
        Key::new("repeat", "equal masks below each other, such as 3 for a fused qkv", "1"),
    ],
    build,
    samples,
    sized: |n_in, n_out, density| {
        let stripes = (1..=24).rev().map(|stripes| json!({"structure": NAME, "stripes": stripes}));
        first_within((n_in, n_out), density, stripes)
    },
};

/// `y = W x` with W stored on windows of a canvas `[min, max]` of the layer sizes, transposed where `n_in ≤ n_out`.
///
/// With w the window, `P = ⌊√min⌋·(2^k − 1)` for k = 0, …, stripes − 1 and `d = max/min`, rounded where a whole
/// number is nearer than 0.1, for every i = 0, w, 2w, … below min: rows `[P + i, P + i + step·w)` by columns
/// `[⌊i·d⌋, ⌊i·d + step·d·w⌋)`, and rows `[i, i + step·w)` by columns `[⌊(i + P)·d⌋, ⌊(i + P)·d + step·d·w⌋)`,
/// clipped. Then parts of `block` that hold a weight are filled, and the first `global_size` rows and columns. With
/// `repeat` the outputs are cut in that many parts, each with the same mask.
///
/// Parameter `weight [nnz]`, or `[nnz, rows, cols]` where filled blocks make up the mask, as they stand in W.
fn build(options: &Options, problem: &Problem<'_>) -> Built {
    let StripeOptions { window, stripes: n_stripes, step, block } = StripeOptions::read(options)?;
    let (size, n_in) = problem.shape();
    let repeat = options.size("repeat", 1, size)?;
    if !size.is_multiple_of(repeat) {
        // No padding could help: the parts would have other sizes than those of the layer.
        return Err(StructureError::Indivisible {
            structure: NAME,
            size_name: "n_out",
            size,
            divisor_name: "repeat",
            divisor: repeat,
            padded: size,
        });
    }
    let canvas = Canvas { n_out: size / repeat, n_in };
    let n_global = options.size("global_size", 0, canvas.min())?;
    let d = canvas.max() as f64 / canvas.min() as f64;
    let d = if d.ceil() - d < 0.1 {
        d.ceil()
    } else if d - d.floor() < 0.1 {
        d.floor()
    } else {
        d
    };
    let stride = canvas.min().isqrt();
    let stripes = Stripes {
        canvas,
        window,
        height: window.saturating_mul(step),
        step,
        d,
        // With d rounded down a stripe below the last row may still be short of the last column.
        offsets: (0..n_stripes)
            .map_while(|k| 1usize.checked_shl(k as u32)?.checked_sub(1)?.checked_mul(stride))
            .take_while(|&offset| offset < canvas.max())
            .collect(),
        block,
        n_global,
    };
    let pattern = Pattern::of_rows(NAME, problem, problem.shape(), stripes.tile(), |row| stripes.row(row))?;
    let config = json!({
        "structure": NAME,
        "window": window,
        "stripes": n_stripes,
        "step": step,
        "global_size": n_global,
        "block": [block.0, block.1],
        "repeat": repeat,
    });
    Ok(Box::new(Masked { name: NAME, pattern, fan_in: FanIn::Mean, free: false, config }))
}

fn samples() -> Vec<Box<dyn Structure>> {
    let small = json!({"structure": NAME, "window": 2, "stripes": 2});
    let wide = json!({"structure": NAME, "window": 1, "stripes": 3, "step": 2, "global_size": 0});
    let whole = json!({"structure": NAME, "window": 2, "block": 2, "global_size": 2, "repeat": 3});
    let ragged = json!({"structure": NAME, "window": 2, "block": [2, 3], "repeat": 2});
    [(&small, 7, 5), (&wide, 9, 13), (&whole, 8, 18), (&ragged, 7, 10), (&small, 1, 1)]
        .map(|(config, n_in, n_out)| crate::build(config, n_in, n_out, 0, None).expect("valid sample"))
        .into()
}
