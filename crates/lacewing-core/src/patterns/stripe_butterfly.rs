//! Stripe butterfly: windows along the diagonal of W and along equally spaced stripes beside it.
//!
//! Cost of a row: as unstructured, or as block-sparse where `block` divides the layer. About
//! `(2 · stripes − 1) · window · step / min(n_in, n_out)` of dense.

use serde_json::json;

use crate::canvas::{Canvas, ROUND, STEP, STRIPES, StripeOptions, Stripes, WINDOW};
use crate::config::{Key, Options};
use crate::masked::{FanIn, Masked};
use crate::registry::first_within;
use crate::{Built, Pattern, Problem, Structure, StructureKind};

const NAME: &str = "stripe_butterfly";

/// The row of the table.
pub(super) static KIND: StructureKind = StructureKind {
    name: NAME,
    about: "windows along the diagonal and along stripes at equal distances",
    keys: &[
        WINDOW,
        STRIPES,
        STEP,
        Key::new("global_size", "first outputs and inputs that are connected to everything", "0"),
        ROUND,
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
/// With w the window, `d = ⌈max/min⌉` and `P = ⌊√min⌋·k` for k = 0, …, stripes − 1, for every i = 0, w, 2w, … below
/// min: rows `[P + i, P + i + w)` by columns `[i·d, (i + step·w)·d)`, and rows `[i, i + w)` by columns
/// `[(i + P)·d, (i + P + step·w)·d)`, clipped. Then parts of `block` that hold a weight are filled, and the first
/// `global_size` rows and columns. Rows may stay empty where d is rounded up far.
///
/// Parameter `weight [nnz]`, or `[nnz, rows, cols]` where filled blocks make up the mask, as they stand in W.
fn build(options: &Options, problem: &Problem<'_>) -> Built {
    let StripeOptions { window, stripes: n_stripes, step, block } = StripeOptions::read(options)?;
    let (n_out, n_in) = problem.shape();
    let canvas = Canvas { n_out, n_in };
    let n_global = options.size("global_size", 0, canvas.min())?;
    let stride = canvas.min().isqrt();
    let stripes = Stripes {
        canvas,
        window,
        height: window,
        step,
        d: canvas.ratio() as f64,
        // d is at least max/min, so a stripe that starts below the last row is beyond the last column too.
        offsets: (0..n_stripes).map(|k| stride * k).take_while(|&offset| offset < canvas.min()).collect(),
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
    });
    Ok(Box::new(Masked { name: NAME, pattern, fan_in: FanIn::Mean, free: false, config }))
}

fn samples() -> Vec<Box<dyn Structure>> {
    let small = json!({"structure": NAME, "window": 2, "stripes": 2});
    let global = json!({"structure": NAME, "window": 1, "stripes": 2, "step": 2, "global_size": 1});
    let whole = json!({"structure": NAME, "window": 2, "stripes": 2, "block": [2, 3], "global_size": 0});
    let ragged = json!({"structure": NAME, "window": 1, "stripes": 2, "block": 2, "global_size": 1});
    [(&small, 7, 5), (&global, 5, 11), (&whole, 6, 12), (&ragged, 13, 5), (&small, 1, 1)]
        .map(|(config, n_in, n_out)| crate::build(config, n_in, n_out, 0, None).expect("valid sample"))
        .into()
}
