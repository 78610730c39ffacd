//! Other libraries' linear layers beside ours.
//!
//! They are asked before we go on to the next case, so that their times and ours are of the same minutes of the machine.
//! Dense products are asked for once for all structures of a shape and number of rows, which are timed directly after.

use super::{PeerTimes, Peers, Program};
use crate::commands::bench::SEED;
use crate::commands::bench::error::BenchError;
use crate::commands::bench::measure::Direction;
use lacewing_core::{Form, Structure};
use serde_json::json;
use std::path::Path;

/// What goes in and comes out is in the headers.
const LAYERS: Program = Program {
    text: concat!(
        include_str!("../../../../../../benches/peers/protocol.py"),
        include_str!("../../../../../../benches/peers/linear.py")
    ),
    recipe: "python3 -m venv .venv && .venv/bin/pip install numpy torch scipy onnx onnxruntime openvino, then lacewing \
             bench --peers .venv",
};

impl Peers {
    /// Starts the program that measures linear layers.
    pub(in crate::commands::bench) fn layers(
        venv: Option<&Path>,
        direction: Direction,
    ) -> Result<Self, BenchError> {
        Self::start(&LAYERS, venv, json!({ "direction": direction.name() }))
    }

    /// Times every library's dense products of a shape `(n_in, n_out)` at `rows` rows.
    pub(in crate::commands::bench) fn dense(
        &mut self,
        (n_in, n_out): (usize, usize),
        rows: usize,
    ) -> Result<Vec<PeerTimes>, BenchError> {
        let case = json!({
            "structure": "dense",
            "density": 1.0,
            "n_in": n_in,
            "n_out": n_out,
            "rows": rows,
            "dense": true,
            "mask": null,
            "block": null,
            "seed": SEED,
        });
        self.ask(&case, true)
    }

    /// Times every library's products by the stored places of `structure`, which the report calls `label`, at `rows` rows.
    pub(in crate::commands::bench) fn sparse(
        &mut self,
        label: &str,
        structure: &dyn Structure,
        rows: usize,
    ) -> Result<Vec<PeerTimes>, BenchError> {
        let (mask, block) = places(structure);
        let case = json!({
            "structure": label,
            "density": structure.density(),
            "n_in": structure.n_in(),
            "n_out": structure.n_out(),
            "rows": rows,
            "dense": false,
            "mask": mask,
            "block": block,
            "seed": SEED,
        });
        self.ask(&case, false)
    }
}

/// The stored places of a pattern, packed bits `[n_out, n_in]` in hexadecimal, and its block where there is no padding.
fn places(structure: &dyn Structure) -> (Option<String>, Option<[usize; 2]>) {
    let Form::Pattern(pattern) = structure.form() else { return (None, None) };
    let bytes = pattern
        .mask()
        .chunks(8)
        .map(|bits| {
            let byte =
                bits.iter().enumerate().fold(0u8, |byte, (at, &bit)| byte | (u8::from(bit) << (7 - at)));
            format!("{byte:02x}")
        })
        .collect();
    let whole = (pattern.n_in, pattern.n_out) == (pattern.n_in_ext, pattern.n_out_ext);
    (Some(bytes), whole.then_some([pattern.block.0, pattern.block.1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bits_from_the_left() {
        let config = json!({"structure": "block_sparse", "block": [1, 4], "density": 1.0});
        let whole = lacewing_core::build(&config, 12, 1, 0, None).unwrap();
        assert_eq!(places(whole.as_ref()), (Some("fff0".to_owned()), Some([1, 4])));
        let dense = lacewing_core::build(&"dense".into(), 12, 1, 0, None).unwrap();
        assert_eq!(places(dense.as_ref()), (None, None));
    }
}
