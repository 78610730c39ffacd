//! Butterflies, block butterflies, their gadget and the einsum Monarch over random sizes, primes and 1 among them.

use lacewing_core::chains::{Butterfly, ButterflyConfig, ButterflyInit};
use lacewing_core::{Chain, Form, Init, Rng, Structure, Target, build, project, restore};
use lacewing_testkit::{UNIT_F64, assert_near, gamma_of, uniform_f64, widen};
use proptest::prelude::*;
use serde_json::{Value, json};

/// A config that fits a layer, and the layer `(n_in, n_out)`.
fn layers() -> impl Strategy<Value = (Value, usize, usize)> {
    let sizes = (1usize..40, 1usize..40, any::<bool>(), 0usize..4);
    (sizes, 1usize..7, 1usize..7, 1usize..5, 1usize..5).prop_map(|((n_in, n_out, flag, kind), a, b, c, d)| {
        let config = match kind {
            0 => {
                let init = ["randn", "ortho"][usize::from(c > 2)];
                json!({"structure": "butterfly", "blocks": d, "increasing": flag, "init": init})
            }
            1 => json!({
                "structure": "block_butterfly", "block": a.min(n_in), "blocks": d.min(2), "increasing": flag,
            }),
            2 => {
                let (blocks1, blocks2) = (a.min(n_in), b.min(n_out));
                let b2 = if flag { 1 } else { d.min(n_out.div_ceil(blocks2)) };
                let rows = n_out.div_ceil(blocks2 * b2) * b2;
                let rank = c.min(n_in.div_ceil(blocks1)).min(rows);
                let mut config = json!({
                    "structure": "monarch_einsum", "blocks1": blocks1, "blocks2": blocks2, "pad": true,
                });
                if flag {
                    config["rank"] = json!(rank);
                } else {
                    config["b1"] = json!(rank);
                    config["b2"] = json!(b2);
                }
                config
            }
            _ if flag => json!("bf_gadget"),
            _ => json!({"structure": "bf_gadget", "k1": (a * d).min(n_in), "k2": (b * c).min(n_out)}),
        };
        (config, n_in, n_out)
    })
}

fn is_einsum((config, ..): &(Value, usize, usize)) -> bool {
    config["structure"] == "monarch_einsum"
}

fn chain(structure: &dyn Structure) -> &Chain {
    let Form::Chain(chain) = structure.form() else { panic!("{structure:?} is not a chain") };
    chain
}

fn run(chain: &Chain, params: &[&[f64]], x: &[f64]) -> Vec<f64> {
    let mut x = x.to_vec();
    x.resize(chain.n_in_ext, 0.0);
    let mut y = chain.links.iter().fold(x, |x, link| link.apply(params, &x));
    y.truncate(chain.n_out);
    y
}

fn random(structure: &dyn Structure, seed: u64) -> Vec<Vec<f64>> {
    let specs = structure.params();
    specs.iter().enumerate().map(|(i, spec)| uniform_f64(seed ^ (i as u64) << 32, spec.count())).collect()
}

fn magnitudes(values: &[Vec<f64>]) -> Vec<Vec<f64>> {
    values.iter().map(|values| values.iter().map(|v| v.abs()).collect()).collect()
}

fn slices(params: &[Vec<f64>]) -> Vec<&[f64]> {
    params.iter().map(Vec::as_slice).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn the_links_compute_the_definition((config, n_in, n_out) in layers(), seed: u64) {
        let built = build(&config, n_in, n_out, 0, None).unwrap();
        let params = random(&*built, seed);
        let x = uniform_f64(!seed, n_in);
        let expected = built.apply(&slices(&params), &x);
        // None of these chains subtracts, so the sums of magnitudes are the same map of magnitudes.
        let positive: Vec<f64> = x.iter().map(|x| x.abs()).collect();
        let sums = built.apply(&slices(&magnitudes(&params)), &positive);
        // A weight takes a product and a sum in each of its roles, the dense row once more.
        let k = 2 * chain(&*built).macs() + n_in + 16;
        let bound: Vec<f64> = sums.iter().map(|sum| 2.0 * gamma_of(k, UNIT_F64) * sum).collect();
        assert_near(&run(chain(&*built), &slices(&params), &x), &expected, &bound, &config.to_string());
    }

    #[test]
    fn counts_configs_and_first_values_fit((config, n_in, n_out) in layers(), seed: u64) {
        let built = build(&config, n_in, n_out, seed, None).unwrap();
        prop_assert_eq!((built.n_in(), built.n_out()), (n_in, n_out));
        let (counts, specs) = (built.counts(), built.params());
        prop_assert_eq!(counts.parameters, specs.iter().map(|spec| spec.count()).sum::<usize>());
        prop_assert_eq!(counts.macs, chain(&*built).macs());
        let again = restore(&built.config(), n_in, n_out, &built.buffers()).unwrap();
        prop_assert_eq!(format!("{again:?}"), format!("{built:?}"));
        prop_assert_eq!(again.config(), built.config());
        let values = built.init(Init::Default, &mut Rng::new(seed));
        prop_assert_eq!(values.len(), specs.len());
        prop_assert!(values.iter().zip(&specs).all(|(values, spec)| values.len() == spec.count()));
        let values: Vec<Vec<f64>> =
            built.init(Init::Zeros, &mut Rng::new(seed)).iter().map(|values| widen(values)).collect();
        prop_assert!(built.to_dense(&slices(&values)).unwrap().iter().all(|&w| w == 0.0));
    }

    #[test]
    fn transposing_a_butterfly_transposes_its_matrix(
        n_in in 1usize..33, n_out in 1usize..33, blocks in 1usize..5, increasing: bool, seed: u64,
    ) {
        let config = ButterflyConfig { blocks, increasing, init: ButterflyInit::Randn };
        let butterfly = Butterfly::new(config, n_out, n_in).unwrap();
        let params = random(&butterfly, seed);
        let fits = n_in.max(2).next_power_of_two() == n_out.max(2).next_power_of_two();
        let Ok((transposed, flipped)) = butterfly.transposed(&slices(&params)) else {
            prop_assert!(!fits);
            return Ok(());
        };
        prop_assert!(fits);
        let across = |w: Vec<f64>| (0..w.len()).map(|at| w[at % n_out * n_in + at / n_out]).collect::<Vec<f64>>();
        let expected = across(butterfly.to_dense(&slices(&params)).unwrap());
        let sums = across(butterfly.to_dense(&slices(&magnitudes(&params))).unwrap());
        let bound: Vec<f64> = sums.iter().map(|sum| 2.0 * gamma_of(3 * params.len(), UNIT_F64) * sum).collect();
        assert_near(&transposed.to_dense(&slices(&flipped)).unwrap(), &expected, &bound, "transpose");
    }

    #[test]
    fn projection_onto_the_einsum_recovers_members_and_no_member_is_nearer(
        (config, n_in, n_out) in layers().prop_filter("einsum", is_einsum),
        seed: u64,
    ) {
        let built = build(&config, n_in, n_out, 0, None).unwrap();
        let member = built.to_dense(&slices(&random(&*built, seed))).unwrap();
        let error = project(&*built, &Target::new(n_out, n_in, &member)).error;
        prop_assert!(error < 1e-12, "{} {}", config, error);
        let w = uniform_f64(seed, n_in * n_out);
        let target = Target::new(n_out, n_in, &w);
        let projection = project(&*built, &target);
        let moved: Vec<Vec<f64>> = projection
            .params
            .iter()
            .map(|values| values.iter().zip(uniform_f64(seed, values.len())).map(|(v, r)| v + 0.01 * r).collect())
            .collect();
        let other = built.to_dense(&slices(&moved)).unwrap();
        prop_assert!(projection.error <= target.error(&other) + 1e-12);
    }

    #[test]
    fn numbers_from_a_file_are_counted_or_refused(
        name in prop_oneof![Just("butterfly"), Just("block_butterfly"), Just("monarch_einsum"), Just("bf_gadget")],
        sizes in [hostile(), hostile()],
        keys in proptest::collection::vec((0usize..9, hostile()), 0..6),
        flag: bool,
    ) {
        let names = ["block", "blocks", "blocks1", "blocks2", "b1", "b2", "rank", "k1", "k2"];
        let own = lacewing_core::structures().find(|kind| kind.name == name).unwrap().keys;
        let mut config = json!({"structure": name});
        for (key, value) in keys {
            if own.iter().any(|own| own.name == names[key]) {
                config[names[key]] = json!(value);
            }
        }
        for (key, value) in [("pad", json!(true)), ("increasing", json!(flag))] {
            if own.iter().any(|own| own.name == key) {
                config[key] = value;
            }
        }
        let (n_in, n_out) = (sizes[0] as usize, sizes[1] as usize);
        if let Ok(restored) = restore(&config, n_in, n_out, &[]) {
            // Counted without overflow, and nothing as large as the weights was made.
            let counted = restored.params().iter().map(|spec| spec.count()).sum::<usize>();
            prop_assert_eq!(restored.counts().parameters, counted);
            prop_assert_eq!(restored.counts().macs, chain(&*restored).macs());
            for link in &chain(&*restored).links {
                if let lacewing_core::Link::Gather(gather) = link {
                    prop_assert!(gather.codes().len() <= 1 << 22);
                }
            }
        }
    }
}

/// Sizes that a file may hold: small, around the limits, and beyond all of them.
fn hostile() -> impl Strategy<Value = u64> {
    let limits = prop::sample::select(vec![4096u64, 65536, 1 << 22, 1 << 24, u64::from(u32::MAX), u64::MAX]);
    prop_oneof![0u64..100, 0u64..=1 << 24, (limits, 0u64..3).prop_map(|(limit, less)| limit - less)]
}
