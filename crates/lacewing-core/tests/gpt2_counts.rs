//! GPT-2's parameters, summed over its layers as structures: the published totals, and those with other MLPs.

use serde_json::{Value, json};

/// Weights of one layer.
fn weights(config: &Value, n_in: usize, n_out: usize) -> usize {
    lacewing_core::build(config, n_in, n_out, 0, None).unwrap().counts().parameters
}

/// Embeddings, blocks with `mlp` for both linear layers, last norm; the head is the embedding.
fn total(dim: usize, blocks: usize, mlp: &Value) -> usize {
    let (dense, hidden) = (json!("dense"), 4 * dim);
    let attention = weights(&dense, dim, 3 * dim) + 3 * dim + weights(&dense, dim, dim) + dim;
    let mlp = weights(mlp, dim, hidden) + hidden + weights(mlp, hidden, dim) + dim;
    (50_257 + 1024) * dim + blocks * (attention + mlp + 4 * dim) + 2 * dim
}

#[test]
fn totals_are_those_that_were_published() {
    let sizes = [(768, 12, 124_439_808), (1024, 24, 354_823_168), (1280, 36, 774_030_080)];
    for (dim, blocks, expected) in sizes {
        assert_eq!(total(dim, blocks, &json!("dense")), expected);
    }
}

#[test]
fn monarch_mlps_leave_what_their_factors_have() {
    // 768 to 3072 in k blocks: k squares of 768/k and k factors of 3072/k by 768/k; the same transposed.
    for (blocks, expected) in [(4, 85_511_424), (8, 76_664_064)] {
        assert_eq!(total(768, 12, &json!({"structure": "monarch", "blocks": blocks})), expected);
    }
}
