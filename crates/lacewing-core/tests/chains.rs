//! Chains over random sizes, 1, primes and ragged ones among them: the links compute the definition.

use lacewing_core::{Form, build, rounding};
use lacewing_testkit::{UNIT_F64, assert_near, gamma_of, uniform_f64};
use proptest::prelude::*;
use serde_json::{Value, json};

fn configs() -> impl Strategy<Value = Value> {
    let kinds = ["fft", "ifft", "dct2", "dct3", "dct4", "dst2", "dst4", "hadamard"];
    prop_oneof![
        any::<bool>().prop_map(|pad| json!({"structure": "debut", "pad": pad})),
        Just(json!({"structure": "debut", "factors": 1})),
        (0..kinds.len()).prop_map(move |kind| json!({"structure": "transform", "kind": kinds[kind]})),
        (-2.0..2.0f64).prop_map(|k| json!({"structure": "transform", "kind": "convolution", "kernel": [k]})),
        Just(json!("fastfood")),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn the_links_compute_the_definition(config in configs(), n_in in 1usize..48, n_out in 1usize..48, seed: u64) {
        let built = build(&config, n_in, n_out, seed, None).unwrap();
        let seeds = (0..).map(|i| seed.wrapping_add(i));
        let params: Vec<Vec<f64>> =
            built.params().iter().zip(seeds).map(|(spec, seed)| uniform_f64(seed, spec.count())).collect();
        let params: Vec<&[f64]> = params.iter().map(Vec::as_slice).collect();
        let x = uniform_f64(!seed, n_in);
        let Form::Chain(chain) = built.form() else { panic!("{built:?}") };
        let gamma = 2.0 * gamma_of(built.counts().macs + 16, UNIT_F64);
        let sums = rounding::magnitude(built.as_ref(), &params, &x);
        let bound: Vec<f64> = sums.iter().map(|sum| gamma * sum).collect();
        let what = format!("{config} [{n_out}, {n_in}]");
        assert_near(&chain.apply(&params, &x), &built.apply(&params, &x), &bound, &what);
        let dense = built.to_dense(&params).unwrap();
        let product: Vec<f64> =
            dense.chunks(n_in).map(|row| row.iter().zip(&x).map(|(w, x)| w * x).sum()).collect();
        assert_near(&product, &built.apply(&params, &x), &bound, &what);
    }
}
