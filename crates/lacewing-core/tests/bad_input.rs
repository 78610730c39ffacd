//! Bad configs: each a typed error with the names and numbers in its message.

use lacewing_core::{IndexBuffer, StructureError, build, restore, structures};
use serde_json::{Value, json};

fn message(config: &Value, n_in: usize, n_out: usize) -> String {
    build(config, n_in, n_out, 0, None).unwrap_err().to_string()
}

#[test]
fn names_and_keys_that_are_unknown_name_the_nearest() {
    for (config, expected) in [
        (json!("monarhc"), "there is no structure `monarhc`; did you mean `monarch`?"),
        (json!("quantum entanglement"), "there is no structure `quantum entanglement`"),
        (json!({"structure": "monarch", "block": 8}), "`monarch` has no key `block`; did you mean `blocks`?"),
        (json!({"structure": "dense", "temperature": 1}), "`dense` has no key `temperature`"),
        (json!(7), "a structure is a name or a map with the key `structure`, got 7"),
        (json!({"blocks": 7}), "a structure is a name or a map with the key `structure`, got {\"blocks\":7}"),
    ] {
        assert_eq!(message(&config, 64, 64), expected);
    }
}

#[test]
fn values_that_cannot_be_name_the_key_the_value_and_the_range() {
    for (config, expected) in [
        (
            json!({"structure": "monarch", "blocks": "many"}),
            "`monarch.blocks` must be a whole number, got \"many\"",
        ),
        (json!({"structure": "monarch", "blocks": 0}), "`monarch.blocks` must be between 1 and 64, got 0"),
        (json!({"structure": "monarch", "blocks": -1}), "`monarch.blocks` must be a whole number, got -1"),
        (json!({"structure": "monarch", "pad": 1}), "`monarch.pad` must be true or false, got 1"),
        (json!({"structure": "nm", "n": 5}), "`nm.n` must be between 1 and 4, got 5"),
        (
            json!({"structure": "nm", "axis": "diagonal"}),
            "`nm.axis` must be `row` or `col`, got \"diagonal\"",
        ),
        (
            json!({"structure": "nm", "m": 6}),
            "`nm`: n_in = 64 is not a multiple of 6 (the group size m); choose sizes that divide, or set \
             `pad: true` to pad with zeros to 66",
        ),
        (
            json!({"structure": "flat_butterfly", "butterfly_size": 6}),
            "`flat_butterfly.butterfly_size` must be a power of two, got 6",
        ),
        (
            json!({"structure": "flat_butterfly", "n_factors": 4}),
            "`flat_butterfly.n_factors` must be between 1 and 3, got 4",
        ),
        (
            json!({"structure": "block_sparse", "density": 1.5}),
            "`block_sparse.density` must be between 0 and 1, got 1.5",
        ),
        (
            json!({"structure": "block_sparse", "density": 0.1}),
            "`block_sparse` would keep none of its 4 places at density 0.1",
        ),
        (
            json!({"structure": "block_sparse", "block": [32]}),
            "`block_sparse.block` must be a whole number or [rows, cols], got [32]",
        ),
        (
            json!({"structure": "block_sparse", "mask": [[0, 0], [2, 1]]}),
            "`block_sparse`: place [2, 1] is outside the 2 by 2 grid",
        ),
        (
            json!({"structure": "block_sparse", "mask": [[1, 0], [0, 1], [1, 0]]}),
            "`block_sparse`: place [1, 0] is listed twice",
        ),
        (
            json!({"structure": "block_sparse", "mask": [[1, 0, 3]]}),
            "`block_sparse.mask` must be `random`, `magnitude`, `diagonal` or a list of [row, col], got [1,0,3]",
        ),
        (
            json!({"structure": "block_sparse", "mask": "user"}),
            "`block_sparse.mask` must be `random`, `magnitude`, `diagonal` or a list of [row, col], got \"user\"",
        ),
        (
            json!({"structure": "unstructured", "mask": []}),
            "`unstructured` would keep none of its 4096 places at density 0",
        ),
        (
            json!({"structure": "unstructured", "mask": [[0, 0], [3, 64]]}),
            "`unstructured`: place [3, 64] is outside the 64 by 64 grid",
        ),
        (
            json!({"structure": "unstructured", "mask": [[7, 1], [0, 1], [7, 1]]}),
            "`unstructured`: place [7, 1] is listed twice",
        ),
    ] {
        assert_eq!(message(&config, 64, 64), expected, "{config}");
    }
}

#[test]
fn impossible_sizes_are_errors_for_every_structure() {
    for kind in structures() {
        for (n_in, n_out) in [(0, 4), (4, 0), (usize::MAX, 4), (4, usize::MAX), (usize::MAX, usize::MAX)] {
            for built in
                [build(&json!(kind.name), n_in, n_out, 0, None), restore(&json!(kind.name), n_in, n_out, &[])]
            {
                assert!(matches!(built, Err(StructureError::Size { .. })), "{} {n_in} {n_out}", kind.name);
            }
        }
    }
}

#[test]
fn a_hostile_checkpoint_cannot_make_us_build_what_it_does_not_hold() {
    // 2²⁴ by 2²⁴ elements: anything that allocated by size would not come back.
    let n = 1 << 24;
    let empty = |name: &str| IndexBuffer { name: name.to_owned(), data: vec![0], shape: vec![1] };
    let rows = [empty("cols"), empty("row_starts")];
    let sparse = [empty("sparse.cols"), empty("sparse.row_starts")];
    for (config, buffers) in [
        (json!("unstructured"), &rows[..]),
        (json!("small_world"), &rows),
        (json!({"structure": "block_sparse", "block": 1}), &rows),
        (json!({"structure": "flat_butterfly", "block": 1}), &rows),
        (json!({"structure": "pixelfly", "block": 1}), &sparse),
        (json!("nm"), &[empty("offsets")]),
        (json!("stripe_butterfly"), &rows),
        (
            json!({"structure": "stripe_butterfly", "window": 1, "stripes": 4096, "step": 4096, "block": 4096}),
            &rows,
        ),
        (json!({"structure": "ninja_turtle", "window": 1, "stripes": 4096, "step": 4096}), &rows),
        (json!("random_tiles"), &rows),
        (json!("top_k_tiles"), &rows),
    ] {
        let error = restore(&config, n, n, buffers).unwrap_err();
        assert!(matches!(error, StructureError::BufferShape { .. }), "{config}: {error}");
    }
    // Links that would be far larger than the layer's buffers are refused by size.
    for config in [
        json!("fastfood"),
        json!("transform"),
        json!({"structure": "transform", "kind": "fft"}),
        json!({"structure": "transform", "kind": "convolution"}),
    ] {
        for (n_in, n_out) in [(n, n), (n, 1), (1, n)] {
            let error = restore(&config, n_in, n_out, &[empty("permutation")]);
            let size =
                matches!(error, Err(StructureError::Size { .. } | StructureError::UnknownBuffer { .. }));
            assert!(size, "{config} {n_in} {n_out}: {error:?}");
            let error = build(&config, n_in, n_out, 0, None).unwrap_err();
            assert!(matches!(error, StructureError::Size { .. }), "{config} {n_in} {n_out}: {error}");
        }
    }
    for config in [
        json!({"structure": "debut", "chain": [[n, n, n, n, 1], [1, n, 1, 1, n]]}),
        json!({"structure": "debut", "chain": [[64, 64, 1, 1, 1], [64, 64, 64, 1, 33554432]]}),
        json!({"structure": "debut", "chain": [[u64::MAX, 64, 1, 1, 1]]}),
        json!({"structure": "debut", "factors": u64::MAX}),
        json!({"structure": "debut", "chain": "monotonic", "speed": u64::MAX, "pad": true}),
        json!({"structure": "transform", "kind": "convolution", "kernel": [1e300]}),
        json!({"structure": "monarch", "factors": [[16777216, 16777216, 16777216], [16777216, 16777216, 16777216]]}),
        json!({"structure": "monarch", "factors": [[1, 1, u64::MAX], [1, 1, 1]]}),
        json!({"structure": "monarch", "blocks": u64::MAX, "pad": true}),
        json!({"structure": "block_sparse", "block": u64::MAX, "pad": true}),
        json!({"structure": "flat_butterfly", "butterfly_size": u64::MAX, "pad": true}),
        json!({"structure": "nm", "m": u64::MAX, "pad": true}),
        json!({"structure": "nm", "channels": u64::MAX}),
        json!({"structure": "block_sparse", "blocks": u64::MAX}),
        json!({"structure": "stripe_butterfly", "window": u64::MAX}),
        json!({"structure": "stripe_butterfly", "stripes": u64::MAX}),
        json!({"structure": "stripe_butterfly", "block": [1, u64::MAX]}),
        json!({"structure": "ninja_turtle", "step": u64::MAX}),
        json!({"structure": "ninja_turtle", "repeat": u64::MAX}),
        json!({"structure": "ninja_turtle", "global_size": 65}),
        json!({"structure": "random_tiles", "window": u64::MAX}),
        json!({"structure": "top_k_tiles", "density": 1.5}),
        json!({"structure": "pixelfly", "budget": 10, "block": u64::MAX}),
    ] {
        assert!(restore(&config, 64, 64, &[]).is_err(), "{config}");
        assert!(build(&config, 64, 64, 0, None).is_err(), "{config}");
    }
}

#[test]
fn a_dense_weight_of_another_size_or_with_nan_is_an_error() {
    let config = json!({"structure": "unstructured", "mask": "magnitude"});
    let error = build(&config, 4, 3, 0, Some(&[0.0; 11])).unwrap_err();
    assert_eq!(error.to_string(), "`unstructured`: the dense weight has 11 values, [3, 4] needs 12");
    let mut dense = [1.0; 12];
    dense[6] = f32::NAN;
    let error = build(&config, 4, 3, 0, Some(&dense)).unwrap_err();
    assert_eq!(error, StructureError::DenseNan { structure: "unstructured", row: 1, col: 2 });
}

#[test]
fn few_rows_of_large_blocks_do_not_make_a_file_expensive() {
    // A file that holds few indices, for the largest layer and the largest blocks: the mask is not built.
    let n = 1 << 24;
    let rows = [
        IndexBuffer { name: "cols".to_owned(), data: vec![7], shape: vec![1] },
        IndexBuffer { name: "row_starts".to_owned(), data: vec![1; 4097], shape: vec![4097] },
    ];
    for kind in ["stripe_butterfly", "ninja_turtle"] {
        let config = json!({
            "structure": kind, "window": 1, "stripes": 24, "step": 4096, "block": 4096, "global_size": 0,
        });
        let mut rows = rows.clone();
        rows[1].data[0] = 0;
        let error = restore(&config, n, n, &rows).unwrap_err();
        assert!(matches!(error, StructureError::PatternDiffers { at: 0, .. }), "{error}");
    }
    // One tile is the whole layer: it is not written out weight by weight, nor counted as one that is whole.
    for kind in ["random_tiles", "top_k_tiles"] {
        let config = json!({"structure": kind, "window": n, "density": 1.0});
        let single = |n_rows: usize| {
            let mut starts = vec![1; n_rows + 1];
            starts[0] = 0;
            let starts =
                IndexBuffer { name: "row_starts".to_owned(), shape: vec![starts.len()], data: starts };
            [IndexBuffer { name: "cols".to_owned(), data: vec![0], shape: vec![1] }, starts]
        };
        let error = restore(&config, n, 1000, &single(1000)).unwrap_err();
        assert!(matches!(error, StructureError::PatternDiffers { at: 1, .. }), "{error}");
        restore(&config, n, n, &single(1)).unwrap();
    }
    // A budget is split without a list of tiles.
    let config = json!({"structure": "pixelfly", "budget": 0.5, "block": 1});
    assert!(restore(&config, n, n, &[]).is_err());
}
