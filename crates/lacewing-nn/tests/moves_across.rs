//! Places that move between layers: against the same moves within a layer, by hand, and what must not change.
//! `LACEWING_TEST_CUDA=1` adds a GPU.

use lacewing_core::{Form, Pattern, Rng, Schedule};
use lacewing_engine::optim::{AdamW, AdamWConfig, Ema, Optimizer};
use lacewing_engine::{Cx, DType, Device, StepRng, Tensor};
use lacewing_nn::{
    Built, Evolving, First, Follower, Linear, LinearOptions, ModelBuilder, Rules, choose_across,
};
use serde_json::{Value, json};

fn devices() -> Vec<Device> {
    let gpu = std::env::var("LACEWING_TEST_CUDA").is_ok_and(|value| value == "1");
    let gpu = gpu.then(|| Device::open("cuda:0").expect("LACEWING_TEST_CUDA=1 asks for a GPU"));
    [Device::Cpu].into_iter().chain(gpu).collect()
}

/// Layers `a`, `b`, … of these inputs and outputs, without biases, all of `config`.
fn layers(device: &Device, config: &Value, sizes: &[(usize, usize)]) -> (Vec<Linear>, Built) {
    let mut rule = config.clone();
    rule["match"] = json!("*");
    let rules = Rules::from_json(&json!([rule])).unwrap();
    let mut builder = ModelBuilder::new(device.clone(), DType::F32, 11).unwrap().with_rules(rules);
    let options = LinearOptions { bias: false, ..LinearOptions::default() };
    let names = ["a", "b", "c"].iter().zip(sizes);
    let linears = names
        .map(|(name, &(n_in, n_out))| builder.root().linear(name, n_in, n_out, options).unwrap())
        .collect();
    (linears, builder.finish().unwrap())
}

fn pattern(layer: &Evolving) -> Pattern {
    match layer.structure().form() {
        Form::Pattern(pattern) => pattern.clone(),
        _ => panic!("no pattern"),
    }
}

/// Takes the gradient `g [n_out, n_in]` of the dense weight in, by a pass over the unit vectors.
fn give_gradient(linear: &Linear, built: &Built, g: &[f32]) {
    let (n_in, n_out) = (linear.structure().n_in(), linear.structure().n_out());
    let device = built.params.device();
    let mut unit = vec![0.0f32; n_in * n_in];
    (0..n_in).for_each(|i| unit[i * (n_in + 1)] = 1.0);
    let dy: Vec<f32> = (0..n_in * n_out).map(|i| g[i % n_out * n_in + i / n_out]).collect();
    let cx = Cx::training(built.params.clone(), StepRng::new(0, 0));
    let x = cx.leaf(Tensor::from_f32(&device, &unit, &[n_in, n_in]).unwrap());
    let y = linear.forward(&cx, &x).unwrap();
    cx.backward(&y, Tensor::from_f32(&device, &dy, &[n_in, n_out]).unwrap()).unwrap();
}

/// Eighths of small integers, of which products and sums are exact.
fn eighths(n: usize, salt: u64) -> Vec<f32> {
    let mut rng = Rng::new(salt);
    (0..n).map(|_| (rng.below(41) as f32 - 20.0) / 8.0).collect()
}

#[test]
fn one_layer_alone_moves_as_where_only_kept_weights_are_stored() {
    for device in devices() {
        for (structure, name, more) in [
            (json!({"structure": "unstructured", "density": 0.2}), "rigl", json!({})),
            (
                json!({"structure": "unstructured", "density": 0.2}),
                "rigl",
                json!({"moments": "gradient", "value": "normal"}),
            ),
            (json!({"structure": "unstructured", "density": 0.7}), "set", json!({"moments": "keep"})),
            (
                json!({"structure": "block_sparse", "block": 4, "density": 0.25}),
                "rigl",
                json!({"value": "uniform"}),
            ),
            (json!({"structure": "block_sparse", "block": 4, "density": 0.25}), "block_moves", json!({})),
        ] {
            let with = |drop: &str| {
                let mut config = structure.clone();
                config["schedule"] = json!({"name": name, "drop": drop});
                more.as_object().unwrap().iter().for_each(|(k, v)| config["schedule"][k] = v.clone());
                layers(&device, &config, &[(24, 16)])
            };
            let ((alone, sparse), (linear, dense)) = (with("layer"), with("global"));
            let (own, all) = (&sparse.evolving[0], &dense.evolving[0]);
            let before = pattern(own);
            assert_eq!(before, pattern(all));
            // They start with the same weights.
            let values = sparse.params.master(own.weight).to_f32().unwrap();
            assert_eq!(dense.params.master(all.weight).to_f32().unwrap(), before.scatter(&values));
            let values = eighths(before.values_len(), 5);
            sparse.params.set(own.weight, &values).unwrap();
            dense.params.set(all.weight, &before.scatter(&values)).unwrap();

            let mut optimizers =
                [&sparse, &dense].map(|built| AdamW::new(&built.params, AdamWConfig::default()).unwrap());
            let g = eighths(24 * 16, 9);
            // Moments that are not zero.
            own.watch(false);
            for ((linear, built), optimizer) in
                [(&alone[0], &sparse), (&linear[0], &dense)].into_iter().zip(&mut optimizers)
            {
                give_gradient(linear, built, &g);
                built.evolving[0].mask_gradient(&built.params).unwrap();
                optimizer.step(&built.params, 0.0, None).unwrap();
            }
            let g = eighths(24 * 16, 13);
            own.watch(true);
            give_gradient(&alone[0], &sparse, &g);
            give_gradient(&linear[0], &dense, &g);
            assert_eq!(dense.params.gradient(all.weight).unwrap().to_f32().unwrap(), g);
            let mut rngs = [Rng::new(7), Rng::new(7)];
            let moved = own.choose(&sparse.params, 0.3, &mut rngs[0]).unwrap();
            let across = choose_across(&[all], &dense.params, 0.3, &mut rngs[1..]).unwrap();
            assert_eq!(across, std::slice::from_ref(&moved), "{structure} {name}");
            assert!(moved.from.contains(&None) || name == "set", "{structure} {name}");
            for ((built, optimizer), rng) in [&sparse, &dense].into_iter().zip(&optimizers).zip(&mut rngs) {
                let followers: Vec<Follower<'_>> = optimizer
                    .state()
                    .into_iter()
                    .zip([1, 2])
                    .map(|((_, flat), power)| Follower { flat, first: First::Moment { power } })
                    .collect();
                built.evolving[0].relocate(&built.params, &moved, &followers, rng).unwrap();
            }
            let after = pattern(own);
            assert_eq!(pattern(all), before, "what is executed is as it was");
            let flat = |optimizer: &AdamW, at: usize| optimizer.state()[at].1.clone();
            let arrays = |built: &Built, at: usize| match at {
                0 => built.params.flat_master().clone(),
                _ => flat(&optimizers[usize::from(std::ptr::eq(built, &dense))], at - 1),
            };
            for at in 0..3 {
                let few = sparse.params.view(&arrays(&sparse, at), own.weight).to_f32().unwrap();
                let many = dense.params.view(&arrays(&dense, at), all.weight).to_f32().unwrap();
                assert_eq!(many, after.scatter(&few), "{structure} {name}: array {at}");
            }
            let kept = all.kept_places(&dense.params, dense.params.flat_master()).unwrap().unwrap();
            let cols = after.grid().1;
            let places: Vec<usize> =
                after.positions.iter().map(|&(r, c)| r as usize * cols + c as usize).collect();
            assert!((0..kept.len()).filter(|&at| kept[at]).eq(places));
        }
    }
}

#[test]
fn growth_follows_the_momentum_between_layers() {
    for device in devices() {
        let config = json!({"structure": "unstructured", "density": 0.5, "schedule": {"name": "snfs", "momentum": 0.5}});
        let (linears, built) = layers(&device, &config, &[(4, 4), (4, 4)]);
        let params = &built.params;
        // Weights 1, 2, …: the first places of each layer are the smallest.
        for layer in &built.evolving {
            let values: Vec<f32> = (1..=8).map(|v| v as f32).collect();
            params.set(layer.weight, &pattern(layer).scatter(&values)).unwrap();
        }
        // Two gradients: M = 0.5 (0.5 · 0 + 0.5 g₁) + 0.5 g₂. The second layer's weights have three times the first's in the mean,
        // which those that are to go, the first half, have no part in there.
        let masks: Vec<Vec<bool>> = built.evolving.iter().map(|layer| pattern(layer).mask()).collect();
        let free = |layer: usize| (0..16).filter(|&i| !masks[layer][i]).collect::<Vec<_>>();
        let gradient = |layer: usize, scale: f32| -> Vec<f32> {
            let at_slot = |slot: usize| [if slot < 4 { 0.0 } else { 2.0 }, 3.0][layer] * scale;
            let values: Vec<f32> = (0..8).map(at_slot).collect();
            let mut g = pattern(&built.evolving[layer]).scatter(&values);
            // Free places grow from the last on.
            free(layer)
                .iter()
                .enumerate()
                .for_each(|(i, &at)| g[at] = scale * (-1.0f32).powi(i as i32) * (i + 10) as f32);
            g
        };
        for scale in [4.0, 8.0] {
            for (at, (linear, layer)) in linears.iter().zip(&built.evolving).enumerate() {
                give_gradient(linear, &built, &gradient(at, scale));
                layer.take_gradient(params).unwrap();
                layer.mask_gradient(params).unwrap();
                let masked: Vec<f32> = gradient(at, scale)
                    .iter()
                    .zip(&masks[at])
                    .map(|(g, kept)| if *kept { *g } else { 0.0 })
                    .collect();
                assert_eq!(params.gradient(layer.weight).unwrap().to_f32().unwrap(), masked);
            }
            params.zero_gradients().unwrap();
        }
        for (at, name) in ["a", "b"].iter().enumerate() {
            let momentum = params.master(params.find(&format!("{name}.momentum")).unwrap()).to_f32().unwrap();
            // 4 / 4 + 8 / 2 = 5.
            assert_eq!(momentum, gradient(at, 5.0));
        }
        // ⌊0.5 · 8⌋ go in each layer; of the 8 a quarter comes back to the first and three quarters to the second.
        let layers: Vec<&Evolving> = built.evolving.iter().collect();
        let mut rngs = [Rng::new(0), Rng::new(1)];
        let moved = choose_across(&layers, params, 0.5, &mut rngs).unwrap();
        for (at, grown) in [2usize, 6].into_iter().enumerate() {
            assert_eq!(moved[at].dropped, [0, 1, 2, 3], "the smallest");
            let new: Vec<usize> = moved[at]
                .positions
                .iter()
                .zip(&moved[at].from)
                .filter(|(_, from)| from.is_none())
                .map(|(&(r, c), _)| r as usize * 4 + c as usize)
                .collect();
            assert_eq!(new, free(at)[8 - grown..], "the largest averages");
            layers[at].relocate(params, &moved[at], &[], &mut rngs[at]).unwrap();
            let weights = params.master(layers[at].weight).to_f32().unwrap();
            // New weights start from zero.
            assert_eq!(weights.iter().filter(|w| **w != 0.0).count(), 4);
            let kept = layers[at].kept_places(params, params.flat_master()).unwrap().unwrap();
            assert_eq!(kept.iter().filter(|kept| **kept).count(), 4 + grown);
        }
    }
}

#[test]
fn the_number_of_weights_stays_whatever_moves() {
    let sizes = [(12, 8), (40, 24), (8, 4)];
    for device in devices() {
        for (structure, schedule) in [
            (
                "unstructured",
                json!({"name": "set", "drop": "global", "redistribution": "nonzeros", "moments": "keep"}),
            ),
            ("unstructured", json!({"name": "rigl", "redistribution": "nonzeros", "moments": "gradient"})),
            ("unstructured", json!({"name": "rigl", "drop": "global", "value": "normal"})),
            ("unstructured", json!({"name": "snfs", "drop": "global"})),
            ("unstructured", json!("snfs")),
            ("block_sparse", json!({"name": "snfs", "value": "uniform"})),
            ("block_sparse", json!({"name": "block_moves", "drop": "global", "redistribution": "nonzeros"})),
        ] {
            let mut config = json!({"structure": structure, "density": 0.4, "schedule": schedule});
            if structure == "block_sparse" {
                config["block"] = json!(4);
            }
            let (linears, built) = layers(&device, &config, &sizes);
            let params = &built.params;
            let Schedule::Moves(moves) = &built.evolving[0].schedule else { panic!("not moves") };
            let by_gradient = moves.growth == lacewing_core::Growth::Gradient;
            let mut adamw = AdamW::new(params, AdamWConfig::default()).unwrap();
            let mut average = Ema::new(params, 0.5, false).unwrap();
            let evolving: Vec<&Evolving> = built.evolving.iter().collect();
            let counts = || -> Vec<usize> {
                let kept =
                    |layer: &Evolving| layer.kept_places(params, params.flat_master()).unwrap().unwrap();
                evolving.iter().map(|layer| kept(layer).iter().filter(|kept| **kept).count()).collect()
            };
            let start = counts();
            let mut seen = vec![start.clone()];
            for step in 0..12u64 {
                for (at, linear) in linears.iter().enumerate() {
                    let (n_in, n_out) = sizes[at];
                    // The second layer's gradients are much larger than the others'.
                    let scale = if at == 1 { 50.0 } else { 1.0 };
                    let g: Vec<f32> =
                        eighths(n_in * n_out, 31 * step + at as u64).iter().map(|g| g * scale).collect();
                    give_gradient(linear, &built, &g);
                    evolving[at].take_gradient(params).unwrap();
                    if !by_gradient {
                        evolving[at].mask_gradient(params).unwrap();
                    }
                }
                if !by_gradient {
                    adamw.step(params, 0.1, None).unwrap();
                }
                let mut rngs = [0, 1, 2].map(|at| Rng::new(100 * step + at));
                let fraction = [0.3, 0.9, 1.0][step as usize % 3];
                let moved = choose_across(&evolving, params, fraction, &mut rngs).unwrap();
                let mut followers: Vec<Follower<'_>> = adamw
                    .state()
                    .into_iter()
                    .zip([1, 2])
                    .map(|((_, flat), power)| Follower { flat, first: First::Moment { power } })
                    .collect();
                followers.push(Follower { flat: average.flat(), first: First::Weight });
                for ((layer, moved), rng) in evolving.iter().zip(&moved).zip(&mut rngs) {
                    layer.relocate(params, moved, &followers, rng).unwrap();
                }
                if by_gradient {
                    params.zero_gradients().unwrap();
                    for (at, linear) in linears.iter().enumerate() {
                        give_gradient(linear, &built, &eighths(sizes[at].0 * sizes[at].1, 77 + step));
                        evolving[at].mask_gradient(params).unwrap();
                    }
                    adamw.step(params, 0.1, None).unwrap();
                }
                average.update(params, step + 1).unwrap();
                let now = counts();
                assert_eq!(
                    now.iter().sum::<usize>(),
                    start.iter().sum::<usize>(),
                    "{config} at {step}: {now:?}"
                );
                for (layer, count) in evolving.iter().zip(&now) {
                    let pattern = pattern(layer);
                    assert!((1..=pattern.grid().0 * pattern.grid().1).contains(count), "{config}: {now:?}");
                    // What is not kept is zero, in all that follows the weights too.
                    let kept = layer.kept_places(params, params.flat_master()).unwrap().unwrap();
                    let ((rows, cols), across) = (pattern.block, pattern.grid().1);
                    let arrays =
                        [params.flat_master(), adamw.state()[0].1, adamw.state()[1].1, average.flat()];
                    for array in arrays {
                        let values = params.view(array, layer.weight).to_f32().unwrap();
                        let place = |i: usize| i / pattern.n_in / rows * across + i % pattern.n_in / cols;
                        assert!((0..values.len()).all(|i| kept[place(i)] || values[i] == 0.0), "{config}");
                    }
                }
                seen.push(now);
            }
            seen.dedup();
            let stays = moves.redistribution == lacewing_core::Redistribution::None;
            assert_eq!(seen.len() == 1, stays, "{config}: {seen:?}");
        }
    }
}
