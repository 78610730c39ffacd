//! Sketches over random sizes: the form, the definition, the projection and the config agree.

use lacewing_core::{Form, Structure, Target, build, project, restore};
use lacewing_testkit::{UNIT_F64, assert_near, gamma_of, uniform_f64};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use serde_json::{Value, json};

/// A config and layer sizes it fits.
fn layers() -> impl Strategy<Value = (Value, usize, usize)> {
    let size = || 1usize..24;
    let integers = [any::<u32>(), any::<u32>(), any::<u32>(), any::<u32>()];
    prop_oneof![
        (size(), size()).prop_map(|(n_in, n_out)| (json!("toeplitz"), n_in, n_out)),
        (size(), size()).prop_map(|(n_in, n_out)| (json!("circulant"), n_in, n_out)),
        (size(), size(), 1usize..9).prop_map(|(n_in, n_out, block)| {
            (json!({"structure": "circulant", "block": block, "pad": true}), n_in, n_out)
        }),
        (0u32..3, integers, 1usize..9, 1usize..9, 1usize..9, (1usize..4, size())).prop_map(
            |(log, hash, block_k, block_n, vec, (blocks, n_out))| {
                let config = json!({
                    "structure": "ssl", "reduction": 1 << log, "hash": hash,
                    "block_k": block_k, "block_n": block_n, "vec": vec,
                });
                (config, (blocks * block_k) << log, n_out)
            }
        ),
        (1usize..6, any::<u32>(), 1usize..9, 1usize..9, any::<bool>(), (size(), size())).prop_map(
            |(reduction, seed, block_k, block_n, signs, (n_in, n_out))| {
                let config = json!({
                    "structure": "ssl_hashed", "reduction": reduction, "seed": seed,
                    "block_k": block_k, "block_n": block_n, "signs": signs, "pad": true,
                });
                (config, n_in, n_out)
            }
        ),
    ]
}

fn apply_form(structure: &dyn Structure, values: &[f64], x: &[f64]) -> Vec<f64> {
    match structure.form() {
        Form::Dense => {
            values.chunks(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
        }
        Form::Chain(chain) => chain.links.iter().fold(x.to_vec(), |x, link| link.apply(&[values], &x)),
        form => panic!("{form:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(1),
        ..ProptestConfig::with_cases(512)
    })]

    #[test]
    fn the_form_is_the_definition_and_the_config_alone_restores_it((config, n_in, n_out) in layers(), seed: u64) {
        let built = build(&config, n_in, n_out, seed, None).unwrap();
        let values = uniform_f64(seed, built.counts().parameters);
        let x = uniform_f64(seed ^ 1, n_in);
        // Every |value| and |x| is at most 1.
        let bound = vec![2.0 * gamma_of(2 * n_in + 2, UNIT_F64) * n_in as f64; n_out];
        assert_near(&apply_form(&*built, &values, &x), &built.apply(&[&values], &x), &bound, "form");
        prop_assert!(built.buffers().is_empty());
        let saved: Value = serde_json::from_str(&built.config().to_string()).unwrap();
        let again = restore(&saved, n_in, n_out, &[]).unwrap();
        prop_assert_eq!(again.to_dense(&[&values]), built.to_dense(&[&values]));
        prop_assert_eq!(again.config(), saved);
    }

    #[test]
    fn the_residual_of_a_projection_sums_to_zero_over_the_places_of_each_value(
        (config, n_in, n_out) in layers(), seed: u64,
    ) {
        let built = build(&config, n_in, n_out, seed, None).unwrap();
        let weight = uniform_f64(seed, n_out * n_in);
        let found = project(&*built, &Target::new(n_out, n_in, &weight));
        let values = &found.params[0];
        let dense = built.to_dense(&[values]).unwrap();
        // Which value stands where, with its sign: what the matrix is at 1, 2, 3, ….
        let index: Vec<f64> = (1..=values.len()).map(|i| i as f64).collect();
        let (mut sums, mut uses) = (vec![0.0; values.len()], vec![0usize; values.len()]);
        for ((place, w), approximation) in built.to_dense(&[&index]).unwrap().iter().zip(&weight).zip(&dense) {
            let value = place.abs() as usize - 1;
            sums[value] += place.signum() * (w - approximation);
            uses[value] += 1;
        }
        let bound: Vec<f64> =
            uses.iter().map(|&uses| gamma_of(2 * uses + 4, UNIT_F64) * 3.0 * uses as f64).collect();
        assert_near(&sums, &vec![0.0; sums.len()], &bound, "residual");
        for (value, &uses) in values.iter().zip(&uses) {
            prop_assert!(uses > 0 || *value == 0.0, "{value} stands nowhere");
        }
        // A matrix of the structure is found again.
        let again = project(&*built, &Target::new(n_out, n_in, &dense));
        let largest = n_in.max(n_out).pow(2);
        prop_assert!(again.error <= gamma_of(largest + 4, UNIT_F64), "{}", again.error);
    }
}
