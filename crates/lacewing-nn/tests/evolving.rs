//! Layers whose structure changes: masks against the rule in f64, published gradients and traces, moves against what must
//! not change. `LACEWING_TEST_CUDA=1` adds a GPU.

use lacewing_core::{Choice, Form, Growth, MaskPhase, Penalty, Rng, Schedule};
use lacewing_engine::ops::Activation;
use lacewing_engine::optim::{AdamW, AdamWConfig, Optimizer, Sgd, SgdConfig};
use lacewing_engine::{Cx, DType, Device, StepRng, Tensor, Var};
use lacewing_nn::{
    Built, Evolving, First, Follower, Linear, LinearOptions, ModelBuilder, NnError, Rules, ScoreRate,
};
use serde_json::{Value, json};

fn devices() -> Vec<Device> {
    let gpu = std::env::var("LACEWING_TEST_CUDA").is_ok_and(|value| value == "1");
    let gpu = gpu.then(|| Device::open("cuda:0").expect("LACEWING_TEST_CUDA=1 asks for a GPU"));
    [Device::Cpu].into_iter().chain(gpu).collect()
}

/// A layer `layer` of `config`, on its own.
fn try_layer(
    device: &Device,
    config: &Value,
    n_in: usize,
    n_out: usize,
    options: LinearOptions,
) -> Result<(Linear, Built), NnError> {
    let mut rule = config.clone();
    rule["match"] = json!("layer");
    let rules = Rules::from_json(&json!([rule]))?;
    let mut builder = ModelBuilder::new(device.clone(), DType::F32, 11)?.with_rules(rules);
    let linear = builder.root().linear("layer", n_in, n_out, options)?;
    Ok((linear, builder.finish()?))
}

fn layer(device: &Device, config: &Value, n_in: usize, n_out: usize) -> (Linear, Built) {
    try_layer(device, config, n_in, n_out, LinearOptions::default()).unwrap()
}

fn tensor(device: &Device, values: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_f32(device, values, shape).unwrap()
}

/// One training pass over `x`, the gradient of whose output is `dy`; the output, and the gradient of `x`.
fn pass(linear: &Linear, built: &Built, x: &Tensor, dy: &Tensor) -> (Vec<f32>, Vec<f32>) {
    let cx = Cx::training(built.params.clone(), StepRng::new(0, 0));
    let x = cx.leaf(x.clone());
    let y: Var = linear.forward(&cx, &x).unwrap();
    let value = y.value().to_f32().unwrap();
    let dx = cx.backward(&y, dy.clone()).unwrap().take(&x).unwrap();
    (value, dx.to_f32().unwrap())
}

const ROW: [f32; 8] = [1., -3., 2., 0.5, -0.1, 0.2, 0.3, -0.4];

/// The gradient that reaches `ROW` when that of the effective weight is 0, 1, …, 7.
fn gradient_of_row(device: &Device, schedule: Value, rest: f64) -> (Vec<f32>, Vec<f32>) {
    let config = json!({"structure": "nm", "schedule": schedule});
    let options = LinearOptions { bias: false, ..LinearOptions::default() };
    let (linear, built) = try_layer(device, &config, 8, 1, options).unwrap();
    let layer = &built.evolving[0];
    built.params.set(layer.weight, &ROW).unwrap();
    let phase = MaskPhase::Masked { n: 2, m: 4, rest };
    layer.mask(&built.params, phase, built.params.flat_master()).unwrap();
    // With the unit vectors as rows the output is the effective weight.
    let mut unit = [0.0f32; 64];
    (0..8).for_each(|i| unit[i * 9] = 1.0);
    let dy: Vec<f32> = (0..8).map(|i| i as f32).collect();
    let (y, _) = pass(&linear, &built, &tensor(device, &unit, &[8, 8]), &tensor(device, &dy, &[8, 1]));
    layer.edit_gradient(&built.params, phase, 0.1).unwrap();
    (y, built.params.gradient(layer.weight).unwrap().to_f32().unwrap())
}

#[test]
fn effective_weights_and_gradients_are_those_published() {
    let plain: Vec<f32> = (0..8).map(|i| i as f32).collect();
    for device in devices() {
        let (y, dw) = gradient_of_row(&device, json!("straight_through"), 0.0);
        assert_eq!(y, [0., -3., 2., 0., 0., 0., 0.3, -0.4]);
        assert_eq!(dw, plain);
        let (_, dw) = gradient_of_row(&device, json!("sr_ste"), 0.0);
        let lambda = 2e-4f32;
        let published: Vec<f32> = [0, 1, 2, 3, 4, 5, 6, 7]
            .iter()
            .zip(ROW)
            .map(|(&g, w)| if [0, 3, 4, 5].contains(&g) { g as f32 + w * lambda } else { g as f32 })
            .collect();
        assert_eq!(dw, published);
        let (y, dw) = gradient_of_row(&device, json!({"name": "mask_decay", "decay": "linear"}), 0.7);
        assert_eq!(y, ROW.iter().enumerate().map(faded(0.7)).collect::<Vec<_>>());
        assert_eq!(dw, plain);
        let d = (-0.3f64).exp();
        let (y, dw) = gradient_of_row(&device, json!({"name": "mask_decay", "gradient": "masked"}), d);
        assert_eq!(y, ROW.iter().enumerate().map(faded(d as f32)).collect::<Vec<_>>());
        // What the product with the mask, held fixed, would give.
        let ones: Vec<f32> = plain.clone();
        assert_eq!(dw, ones.iter().enumerate().map(faded(d as f32)).collect::<Vec<_>>());
    }
}

#[test]
fn masks_over_the_whole_layer_keep_the_largest_of_all() {
    // The 8 largest of 32; of the three 3s that tie for the last place the highest index.
    let w = [
        [1., -3., 2., 0.5, -0.1, 0.2, 0.3, -0.4],
        [5., 5., 5., 5., -1., 1., 0., 0.],
        [0., 0., 0., 0., 2., -2., 1., 4.],
        [1., 2., 3., 4., 4., 3., 2., 1.],
    ];
    let w = w.as_flattened();
    let kept = |i: usize| "00000000111100000000000100011100".as_bytes()[i] == b'1';
    let lambda = 2e-4f32;
    for device in devices() {
        for (schedule, rest, drop) in [
            (json!("straight_through"), 0.0, [0.0, 1.0, 0.0]),
            (json!({"name": "sr_ste"}), 0.0, [0.0, 1.0, lambda]),
            (json!({"name": "mask_decay", "decay": "linear"}), 0.7, [0.7, 1.0, 0.0]),
            (json!({"name": "mask_decay", "gradient": "masked"}), 0.25, [0.25, 0.25, 0.0]),
            (json!({"name": "structure_decay"}), 0.0, [0.0, 1.0, 0.0]),
        ] {
            let config = json!({"structure": "unstructured", "sparsity": 0.75, "schedule": schedule});
            let options = LinearOptions { bias: false, ..LinearOptions::default() };
            let (linear, built) = try_layer(&device, &config, 8, 4, options).unwrap();
            let (layer, params) = (&built.evolving[0], &built.params);
            params.set(layer.weight, w).unwrap();
            let Some(MaskPhase::Masked { n, m, .. }) = layer.final_phase() else { panic!("no mask") };
            assert_eq!((n, m), (8, 32));
            let phase = MaskPhase::Masked { n, m, rest };
            layer.mask(params, phase, params.flat_master()).unwrap();
            let mut unit = [0.0f32; 64];
            (0..8).for_each(|i| unit[i * 9] = 1.0);
            let dy: Vec<f32> = (0..32).map(|i| i as f32 / 4.0 - 3.0).collect();
            let (y, _) =
                pass(&linear, &built, &tensor(&device, &unit, &[8, 8]), &tensor(&device, &dy, &[8, 4]));
            // What dropped weights count, what of the gradient reaches them, and what of themselves.
            let [count, reach, decay] = drop;
            let effective = |i: usize| if kept(i) { w[i] } else { w[i] * count };
            assert_eq!(y, (0..32).map(|i| effective(i % 4 * 8 + i / 4)).collect::<Vec<_>>(), "{schedule}");
            layer.edit_gradient(params, phase, 0.1).unwrap();
            let g = |i: usize| dy[i % 8 * 4 + i / 8];
            let wanted: Vec<f32> =
                (0..32).map(|i| if kept(i) { g(i) } else { g(i) * reach + w[i] * decay }).collect();
            assert_eq!(params.gradient(layer.weight).unwrap().to_f32().unwrap(), wanted, "{schedule}");
        }
        // The decay itself, of dropped weights alone.
        let schedule = json!({"name": "sr_ste", "decoupled": true, "lambda": 0.5});
        let config = json!({"structure": "unstructured", "sparsity": 0.75, "schedule": schedule});
        let options = LinearOptions { bias: false, ..LinearOptions::default() };
        let (_, built) = try_layer(&device, &config, 8, 4, options).unwrap();
        let layer = &built.evolving[0];
        built.params.set(layer.weight, w).unwrap();
        layer.edit_gradient(&built.params, layer.final_phase().unwrap(), 0.5).unwrap();
        let wanted: Vec<f32> = (0..32).map(|i| if kept(i) { w[i] } else { w[i] * 0.75 }).collect();
        assert_eq!(built.params.master(layer.weight).to_f32().unwrap(), wanted);
    }
}

/// Multiplies what 2:4 drops of `ROW`.
fn faded(rest: f32) -> impl Fn((usize, &f32)) -> f32 {
    move |(i, &value)| if [0, 3, 4, 5].contains(&i) { value * rest } else { value }
}

#[test]
fn sr_ste_takes_the_published_path() {
    for (decoupled, device) in
        [false, true].into_iter().flat_map(|d| devices().into_iter().map(move |v| (d, v)))
    {
        let schedule = json!({"name": "sr_ste", "decoupled": decoupled});
        let config = json!({"structure": "nm", "schedule": schedule});
        let options = LinearOptions { bias: false, ..LinearOptions::default() };
        let (linear, built) = try_layer(&device, &config, 4, 1, options).unwrap();
        let (layer, params) = (&built.evolving[0], &built.params);
        params.set(layer.weight, &[1., -3., 2., 0.5]).unwrap();
        let mut sgd = Sgd::new(params, SgdConfig { momentum: 0.0, ..SgdConfig::default() }).unwrap();
        let phase = MaskPhase::Masked { n: 2, m: 4, rest: 0.0 };
        let ones = tensor(&device, &[1.0; 4], &[1, 4]);
        // The decay of 1 − 0.1 · 2e-4 before the step, or the same as a part of the gradient: one step agrees.
        let published = [[0.89998, -3.1, 1.9, 0.39999], [0.799_962_000_4, -3.2, 1.8, 0.299_982_000_2]];
        for wanted in published {
            layer.mask(params, phase, params.flat_master()).unwrap();
            pass(&linear, &built, &ones, &tensor(&device, &[1.0], &[1, 1]));
            layer.edit_gradient(params, phase, 0.1).unwrap();
            sgd.step(params, 0.1, None).unwrap();
            for (got, wanted) in params.master(layer.weight).to_f32().unwrap().into_iter().zip(wanted) {
                // Three roundings a step of values up to 3.2, over two steps.
                assert!(
                    (f64::from(got) - wanted).abs() <= 6.0 * 3.2 * f64::from(f32::EPSILON),
                    "{got} {wanted}"
                );
            }
        }
    }
}

#[test]
fn a_dense_phase_is_a_dense_layer_to_the_bit() {
    for device in devices() {
        let options = LinearOptions { activation: Activation::Gelu, ..LinearOptions::default() };
        let config = json!({"structure": "nm", "m": 8, "schedule": "sr_ste"});
        let (linear, built) = try_layer(&device, &config, 24, 10, options).unwrap();
        let (dense, twin) = try_layer(&device, &json!({"structure": "dense"}), 24, 10, options).unwrap();
        built.evolving[0].mask(&built.params, MaskPhase::Dense, built.params.flat_master()).unwrap();
        let draw = |n: usize| (0..n).map(|i| ((i * 29 % 31) as f32 - 15.0) / 16.0).collect::<Vec<f32>>();
        let (x, dy) = (tensor(&device, &draw(72), &[3, 24]), tensor(&device, &draw(30), &[3, 10]));
        assert_eq!(pass(&linear, &built, &x, &dy), pass(&dense, &twin, &x, &dy));
        built.evolving[0].edit_gradient(&built.params, MaskPhase::Dense, 0.1).unwrap();
        for info in built.params.infos() {
            let gradient = |built: &Built| {
                built.params.gradient(built.params.find(&info.name).unwrap()).unwrap().to_f32().unwrap()
            };
            assert_eq!(gradient(&built), gradient(&twin), "{}", info.name);
        }
    }
}

#[test]
fn recomputed_layers_see_the_same_mask() {
    for structure in
        [json!({"structure": "nm", "m": 8, "n": 1}), json!({"structure": "unstructured", "density": 0.2})]
    {
        let mut config = structure;
        config["schedule"] = json!("sr_ste");
        recomputed_equals_kept(config);
    }
    // Where places move between layers there is no other weight than the one stored.
    recomputed_equals_kept(json!({"structure": "unstructured", "density": 0.2, "schedule": "snfs"}));
    for scores in ["places", "rows", "columns", "rows_and_columns"] {
        let schedule = json!({"name": "soft_movement", "scores": scores, "mask_bias": true});
        recomputed_equals_kept(json!({"structure": "block_sparse", "block": 4, "schedule": schedule}));
    }
}

fn recomputed_equals_kept(config: Value) {
    let (linear, built) = layer(&Device::Cpu, &config, 16, 8);
    let (evolving, params) = (&built.evolving[0], &built.params);
    for name in ["layer.scores", "layer.row_scores"] {
        let Some(id) = params.find(name) else { continue };
        let scores: Vec<f32> = (0..params.info(id).len()).map(|i| (i as f32 * 1.7).sin()).collect();
        params.set(id, &scores).unwrap();
        let above = Choice::Above { threshold: 0.5, sigmoid: true, min_share: 0.0 };
        evolving.choose_mask(params, above).unwrap();
        let mask = evolving.learned_mask(params, params.flat_master()).unwrap().unwrap();
        assert!(mask.contains(&true) && mask.contains(&false), "{config}: {mask:?}");
        evolving.let_through(params, params.flat_master()).unwrap();
    }
    let x = tensor(&Device::Cpu, &(0..32).map(|i| (i as f32).sin()).collect::<Vec<_>>(), &[2, 16]);
    let dy = tensor(&Device::Cpu, &(0..16).map(|i| (i as f32).cos()).collect::<Vec<_>>(), &[2, 8]);
    let plain = pass(&linear, &built, &x, &dy);
    let gradient = built.params.flat_gradient().unwrap().to_f32().unwrap();
    built.params.zero_gradients().unwrap();
    let linear = std::sync::Arc::new(linear);
    let cx = Cx::training(built.params.clone(), StepRng::new(0, 0));
    let leaf = cx.leaf(x);
    let inner = linear.clone();
    let y = cx.recompute(&[&leaf], move |cx, vars| inner.forward(cx, &vars[0])).unwrap();
    let value = y.value().to_f32().unwrap();
    let dx = cx.backward(&y, dy).unwrap().take(&leaf).unwrap().to_f32().unwrap();
    assert_eq!((value, dx), plain);
    assert_eq!(built.params.flat_gradient().unwrap().to_f32().unwrap(), gradient);
}

/// A place, and what each array has there.
type Stored = ((u32, u32), Vec<Vec<f32>>);

/// What a moved layer is compared with: its places, with the values and those of each follower.
fn stored(layer: &Evolving, built: &Built, arrays: &[&Tensor]) -> Vec<Stored> {
    let structure = layer.structure();
    let Form::Pattern(pattern) = structure.form() else { panic!("no pattern") };
    let per_block = pattern.block.0 * pattern.block.1;
    let arrays: Vec<Vec<f32>> =
        arrays.iter().map(|array| built.params.view(array, layer.weight).to_f32().unwrap()).collect();
    let of =
        |slot: usize| arrays.iter().map(|array| array[slot * per_block..][..per_block].to_vec()).collect();
    pattern.positions.iter().enumerate().map(|(slot, &place)| (place, of(slot))).collect()
}

#[test]
fn what_moves_takes_its_values_and_moments_along() {
    for device in devices() {
        for (structure, schedule) in [
            (json!({"structure": "unstructured", "density": 0.2}), json!({"name": "rigl", "value": "zero"})),
            (json!({"structure": "unstructured", "density": 0.2}), json!({"name": "set", "moments": "keep"})),
            (
                json!({"structure": "block_sparse", "block": 8, "density": 0.25}),
                json!({"name": "rigl", "moments": "gradient", "moment_scale": 0.5}),
            ),
            (json!({"structure": "block_sparse", "block": 8, "density": 0.25}), json!("block_moves")),
        ] {
            let mut config = structure.clone();
            config["schedule"] = schedule.clone();
            let (linear, built) = layer(&device, &config, 64, 48);
            let (layer, params) = (&built.evolving[0], &built.params);
            let Schedule::Moves(moves) = &layer.schedule else { panic!("not moves") };
            let mut adamw = AdamW::new(params, AdamWConfig::default()).unwrap();
            let mut rng = Rng::new(3);
            let mut draw = |n: usize| (0..n).map(|_| rng.normal() as f32).collect::<Vec<f32>>();
            let (x, dy) = (draw(5 * 64), draw(5 * 48));
            let (x, dy) = (tensor(&device, &x, &[5, 64]), tensor(&device, &dy, &[5, 48]));
            // Moments that are not zero.
            pass(&linear, &built, &x, &dy);
            adamw.step(params, 1e-2, None).unwrap();

            layer.watch(moves.growth == Growth::Gradient);
            let before = pass(&linear, &built, &x, &dy).0;
            let id = layer.weight;
            let flats: Vec<Tensor> = adamw.state().into_iter().map(|(_, flat)| flat.clone()).collect();
            let arrays = [params.flat_master(), &flats[0], &flats[1]];
            let old = stored(layer, &built, &arrays);
            let mut rng = Rng::new(7);
            let moved = layer.choose(params, 0.3, &mut rng).unwrap();
            let followers = [1, 2]
                .map(|power| Follower { flat: &flats[power as usize - 1], first: First::Moment { power } });
            layer.relocate(params, &moved, &followers, &mut rng).unwrap();
            let new = stored(layer, &built, &arrays);

            assert_eq!(new.len(), old.len(), "as many are stored");
            assert_eq!(linear.weights(), [id], "the parameter is the same one");
            let grown: Vec<_> = new.iter().filter(|(place, _)| old.iter().all(|(p, _)| p != place)).collect();
            assert!(!grown.is_empty(), "{config}");
            let changed: Vec<_> = new
                .iter()
                .filter(|(place, values)| old.iter().any(|(p, v)| p == place && v != values))
                .collect();
            // A random place may be one just given up; then it is as it was.
            assert!(changed.is_empty(), "{config}: {changed:?}");
            // The gradient of the dense weight decides, and is what a gradient's moment starts from.
            let (x, dy) = (x.to_f32().unwrap(), dy.to_f32().unwrap());
            let g = |row: usize, col: usize| {
                (0..5).map(|r| f64::from(dy[r * 48 + row]) * f64::from(x[r * 64 + col])).sum::<f64>()
            };
            let block = if structure["structure"] == "unstructured" { 1 } else { 8 };
            let norm = |&(row, col): &(u32, u32)| {
                let (row, col) = (row as usize * block, col as usize * block);
                let all = (row..row + block).flat_map(|r| (col..col + block).map(move |c| (r, c)));
                all.map(|(r, c)| g(r, c) * g(r, c)).sum::<f64>().sqrt()
            };
            if moves.growth == Growth::Gradient {
                let least = grown.iter().map(|(place, _)| norm(place)).fold(f64::INFINITY, f64::min);
                let (rows, cols) = (48 / block as u32, 64 / block as u32);
                let free = (0..rows).flat_map(|r| (0..cols).map(move |c| (r, c)));
                let free = free.filter(|place| new.iter().all(|(p, _)| p != place));
                let most = free.map(|place| norm(&place)).fold(0.0, f64::max);
                // Sums of five products in f32.
                assert!(least >= most * (1.0 - 8.0 * f64::from(f32::EPSILON)), "{config}: {least} {most}");
            }
            if schedule["moments"] == "gradient" {
                for (place, values) in &grown {
                    let at = (place.0 as usize * 8, place.1 as usize * 8);
                    for i in 0..64 {
                        let wanted = 0.5 * g(at.0 + i / 8, at.1 + i % 8);
                        let terms: f64 = (0..5)
                            .map(|r| {
                                (f64::from(dy[r * 48 + at.0 + i / 8]) * f64::from(x[r * 64 + at.1 + i % 8]))
                                    .abs()
                            })
                            .sum();
                        let bound = 6.0 * f64::from(f32::EPSILON) * terms;
                        assert!(
                            (f64::from(values[1][i]) - wanted).abs() <= bound,
                            "{wanted} {}",
                            values[1][i]
                        );
                        assert_eq!(values[2][i], values[1][i] * values[1][i]);
                    }
                }
            } else if schedule["moments"] != "keep" {
                assert!(
                    grown.iter().all(|(_, values)| values[1..].concat().iter().all(|&m| m == 0.0)),
                    "{config}"
                );
            }
            // What runs now is the new pattern: the definition in f64 of the structure as it is.
            layer.watch(false);
            let after =
                pass(&linear, &built, &tensor(&device, &x, &[5, 64]), &tensor(&device, &dy, &[5, 48])).0;
            assert_ne!(after, before);
            let values: Vec<f64> = params.master(id).to_f32().unwrap().into_iter().map(f64::from).collect();
            let w = linear.structure().to_dense(&[&values]).unwrap();
            let bias = params.master(linear.bias().unwrap()).to_f32().unwrap();
            for (at, got) in after.iter().enumerate() {
                let (row, out) = (at / 48, at % 48);
                let terms = (0..64).map(|i| w[out * 64 + i] * f64::from(x[row * 64 + i]));
                let wanted = terms.clone().sum::<f64>() + f64::from(bias[out]);
                let bound = lacewing_testkit::gamma(66)
                    * (terms.map(f64::abs).sum::<f64>() + f64::from(bias[out].abs()));
                assert!((f64::from(*got) - wanted).abs() <= bound, "{config} [{at}]: {got} {wanted}");
            }
        }
    }
}

/// A first step at the peak of the learning rate.
const RATE: ScoreRate = ScoreRate { share: 1.0, steps: 1, penalty: (Penalty::None, 0.0) };

#[test]
fn learned_masks_follow_their_scores() {
    for (device, schedule) in
        devices().into_iter().flat_map(|d| ["movement", "magnitude"].map(|s| (d.clone(), s)))
    {
        let config =
            json!({"structure": "block_sparse", "block": [2, 4], "density": 0.25, "schedule": schedule});
        let options = LinearOptions { bias: false, ..LinearOptions::default() };
        let (linear, built) = try_layer(&device, &config, 8, 4, options).unwrap();
        let (layer, params) = (&built.evolving[0], &built.params);
        let value = |i: usize| ((i * 37 % 19) as f32 - 9.0) / 8.0;
        let w: Vec<f32> = (0..32).map(value).collect();
        params.set(layer.weight, &w).unwrap();
        layer.let_through(params, params.flat_master()).unwrap();
        let mut unit = [0.0f32; 64];
        (0..8).for_each(|i| unit[i * 9] = 1.0);
        let unit = tensor(&device, &unit, &[8, 8]);
        // What the gradient of the effective weight is: the transposed gradient of the output.
        let dy: Vec<f32> = (0..32).map(|i| value(i * 5 + 2)).collect();
        let g: Vec<f32> = (0..32).map(|i| dy[i % 8 * 4 + i / 8]).collect();
        let dy = tensor(&device, &dy, &[8, 4]);
        let block_of = |i: usize| i / 8 / 2 * 2 + i % 8 / 4;
        // All weights count at first, and get their gradient.
        let (y, _) = pass(&linear, &built, &unit, &dy);
        assert_eq!(y, (0..32).map(|i| w[i % 4 * 8 + i / 4]).collect::<Vec<_>>());
        layer.learn(params, RATE).unwrap();
        let gradient = || params.gradient(layer.weight).unwrap().to_f32().unwrap();
        assert_eq!(gradient(), g);
        params.zero_gradients().unwrap();

        let mut scores = [0.0f64; 4];
        for i in 0..32 {
            let (w, g) = (f64::from(w[i]), f64::from(g[i]));
            scores[block_of(i)] += if schedule == "movement" { -g * w } else { w * w };
        }
        layer.choose_mask(params, Choice::Share(0.5)).unwrap();
        let mask = layer.learned_mask(params, params.flat_master()).unwrap().unwrap();
        let mut ranked: Vec<usize> = (0..4).collect();
        ranked.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        let wanted: Vec<bool> = (0..4).map(|b| ranked[..2].contains(&b)).collect();
        assert_eq!(mask, wanted, "{schedule}: {scores:?}");
        // Weights that do not count are not multiplied and get no gradient, but stay as they are.
        layer.let_through(params, params.flat_master()).unwrap();
        let (y, _) = pass(&linear, &built, &unit, &dy);
        let through = |i: usize| if mask[block_of(i)] { w[i] } else { 0.0 };
        assert_eq!(y, (0..32).map(|i| through(i % 4 * 8 + i / 4)).collect::<Vec<_>>());
        layer.learn(params, RATE).unwrap();
        let masked: Vec<f32> = (0..32).map(|i| if mask[block_of(i)] { g[i] } else { 0.0 }).collect();
        assert_eq!(gradient(), masked);
        assert_eq!(params.master(layer.weight).to_f32().unwrap(), w);
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The values of the layer's parameter `name`.
fn values_of(built: &Built, name: &str) -> Vec<f64> {
    let id = built.params.find(&format!("layer.{name}")).unwrap_or_else(|| panic!("no {name}"));
    built.params.master(id).to_f32().unwrap().into_iter().map(f64::from).collect()
}

#[test]
fn trained_scores_follow_the_gradient_of_loss_and_penalty() {
    for (device, penalty) in
        devices().into_iter().flat_map(|d| [Penalty::None, Penalty::L1, Penalty::L0].map(|p| (d.clone(), p)))
    {
        let config = json!({"structure": "block_sparse", "block": [2, 4], "schedule": "soft_movement"});
        let options = LinearOptions { bias: false, ..LinearOptions::default() };
        let (linear, built) = try_layer(&device, &config, 8, 4, options).unwrap();
        let (layer, params) = (&built.evolving[0], &built.params);
        // All places until some are chosen.
        assert_eq!(built.summary.layers[0].density, 1.0);
        let value = |i: usize| ((i * 37 % 19) as f32 - 9.0) / 8.0;
        let w: Vec<f32> = (0..32).map(value).collect();
        params.set(layer.weight, &w).unwrap();
        let mut unit = [0.0f32; 64];
        (0..8).for_each(|i| unit[i * 9] = 1.0);
        let unit = tensor(&device, &unit, &[8, 8]);
        let dy: Vec<f32> = (0..32).map(|i| value(i * 5 + 2)).collect();
        let g: Vec<f64> = (0..32).map(|i| f64::from(dy[i % 8 * 4 + i / 8])).collect();
        let dy = tensor(&device, &dy, &[8, 4]);
        let block_of = |i: usize| i / 8 / 2 * 2 + i % 8 / 4;
        // One place is masked: its score gets its gradient all the same, straight through.
        params.set(params.find("layer.scores").unwrap(), &[0.5, -3.0, 0.1, 0.0]).unwrap();
        let above = Choice::Above { threshold: 0.1, sigmoid: true, min_share: 0.0 };
        layer.choose_mask(params, above).unwrap();
        let mask = layer.learned_mask(params, params.flat_master()).unwrap().unwrap();
        assert_eq!(mask, [true, false, true, true], "σ(−3) < 0.1");
        let (mut scores, mut m, mut v) =
            ([0.5, f64::from(-3.0f32), f64::from(0.1f32), 0.0], [0.0; 4], [0.0; 4]);
        let lambda = 0.7;
        let term = |s: f64| match penalty {
            Penalty::None => 0.0,
            Penalty::L1 => lambda * sigmoid(s) / 4.0,
            Penalty::L0 => lambda * sigmoid(s - 2.0 / 3.0 * (0.1f64 / 1.1).ln()) / 4.0,
        };
        for steps in 1..=3 {
            layer.let_through(params, params.flat_master()).unwrap();
            pass(&linear, &built, &unit, &dy);
            layer.learn(params, ScoreRate { share: 0.5, steps, penalty: (penalty, lambda) }).unwrap();
            params.zero_gradients().unwrap();
            for b in 0..4 {
                let data: f64 = (0..32).filter(|&i| block_of(i) == b).map(|i| g[i] * f64::from(w[i])).sum();
                let h = 1e-5;
                let gradient = data + (term(scores[b] + h) - term(scores[b] - h)) / (2.0 * h);
                (m[b], v[b]) = (0.9 * m[b] + 0.1 * gradient, 0.999 * v[b] + 0.001 * gradient * gradient);
                let corrected =
                    [m[b] / (1.0 - 0.9f64.powi(steps as i32)), v[b] / (1.0 - 0.999f64.powi(steps as i32))];
                // Half of the schedule's learning rate, as the share says.
                scores[b] -= 0.5 * 1e-2 * corrected[0] / (corrected[1].sqrt() + 1e-8);
            }
            for (got, wanted) in values_of(&built, "scores").into_iter().zip(scores) {
                // Roundings of scores up to 3 a step, and of the change, which is at most 5e-3.
                let bound = steps as f64 * 4.0 * f64::from(f32::EPSILON);
                assert!((got - wanted).abs() <= bound, "{penalty:?}, step {steps}: {got} {wanted}");
            }
        }
    }
}

/// What a layer of 4 × 8 weights in blocks of 2 × 4 has, and the gradients that reach it.
struct Blocks {
    w: Vec<f32>,
    /// Of the effective weight.
    g: Vec<f64>,
    x: Tensor,
    dy: Tensor,
}

impl Blocks {
    fn new(device: &Device) -> Self {
        let value = |i: usize| ((i * 37 % 19) as f32 - 9.0) / 8.0;
        let mut unit = [0.0f32; 64];
        (0..8).for_each(|i| unit[i * 9] = 1.0);
        let dy: Vec<f32> = (0..32).map(|i| value(i * 5 + 2)).collect();
        Self {
            w: (0..32).map(value).collect(),
            g: (0..32).map(|i| f64::from(dy[i % 8 * 4 + i / 8])).collect(),
            x: tensor(device, &unit, &[8, 8]),
            dy: tensor(device, &dy, &[8, 4]),
        }
    }

    /// Σ g w over each of the four blocks, row by row.
    fn sums(&self) -> [f64; 4] {
        let mut sums = [0.0; 4];
        (0..32).for_each(|i| sums[i / 16 * 2 + i % 8 / 4] += self.g[i] * f64::from(self.w[i]));
        sums
    }
}

#[test]
fn rows_and_columns_have_scores_of_their_own() {
    for (device, (scores, name)) in devices().into_iter().flat_map(|d| {
        [("rows", "movement"), ("columns", "movement"), ("rows", "magnitude"), ("columns", "magnitude")]
            .map(|case| (d.clone(), case))
    }) {
        let schedule = json!({"name": name, "scores": scores});
        let config = json!({"structure": "block_sparse", "block": [2, 4], "schedule": schedule});
        let (linear, built) = layer(&device, &config, 8, 4);
        let (layer, params, blocks) = (&built.evolving[0], &built.params, Blocks::new(&device));
        params.set(layer.weight, &blocks.w).unwrap();
        layer.let_through(params, params.flat_master()).unwrap();
        pass(&linear, &built, &blocks.x, &blocks.dy);
        layer.learn(params, RATE).unwrap();
        let of = |i: usize| if scores == "rows" { i / 16 } else { i % 8 / 4 };
        let mut wanted = [0.0f64; 2];
        for i in 0..32 {
            let (g, w) = (blocks.g[i], f64::from(blocks.w[i]));
            wanted[of(i)] += if name == "movement" { -g * w } else { w * w };
        }
        if name == "movement" {
            // Products of eighths are exact, and so are their sums.
            assert_eq!(values_of(&built, "scores"), wanted);
        }
        layer.choose_mask(params, Choice::Share(0.5)).unwrap();
        let mask = layer.learned_mask(params, params.flat_master()).unwrap().unwrap();
        let best = usize::from(wanted[1] > wanted[0]);
        let counts = |place: usize| best == if scores == "rows" { place / 2 } else { place % 2 };
        assert_eq!(mask, (0..4).map(counts).collect::<Vec<_>>(), "{name} of {scores}: {wanted:?}");
    }
}

#[test]
fn scores_of_rows_and_columns_multiply() {
    for device in devices() {
        let schedule = json!({"name": "soft_movement", "scores": "rows_and_columns", "lr": 0.5});
        let config = json!({"structure": "block_sparse", "block": [2, 4], "schedule": schedule});
        let (linear, built) = layer(&device, &config, 8, 4);
        let (layer, params, blocks) = (&built.evolving[0], &built.params, Blocks::new(&device));
        params.set(layer.weight, &blocks.w).unwrap();
        assert_eq!([values_of(&built, "row_scores"), values_of(&built, "column_scores")], [[1.0; 2]; 2]);
        let (rows, columns) = ([0.5f32, -1.5], [2.0f32, 0.25]);
        params.set(params.find("layer.row_scores").unwrap(), &rows).unwrap();
        params.set(params.find("layer.column_scores").unwrap(), &columns).unwrap();
        let above = |threshold| Choice::Above { threshold, sigmoid: false, min_share: 0.0 };
        let chosen = |choice| {
            layer.choose_mask(params, choice).unwrap();
            layer.learned_mask(params, params.flat_master()).unwrap().unwrap()
        };
        // The products are 1, 0.125, −3, −0.375.
        assert_eq!(chosen(above(0.1)), [true, true, false, false]);
        assert_eq!(chosen(above(-0.4)), [true, true, false, true]);
        layer.let_through(params, params.flat_master()).unwrap();
        pass(&linear, &built, &blocks.x, &blocks.dy);
        let lambda = 3.0;
        layer.learn(params, ScoreRate { share: 1.0, steps: 1, penalty: (Penalty::L1, lambda) }).unwrap();
        // The gradient of Σ_ij dS_ij r_i c_j and of each vector's penalty, by central differences. Adam's first step has the length
        // of the learning rate, so the first moment, a tenth of the gradient, says what it was.
        let sums = blocks.sums();
        let loss = |r: [f64; 2], c: [f64; 2]| {
            let data: f64 = (0..4).map(|b| sums[b] * r[b / 2] * c[b % 2]).sum();
            let penalty: f64 = r.iter().chain(&c).map(|&s| lambda * sigmoid(s) / 2.0).sum();
            data + penalty
        };
        let (r, c, h) = (rows.map(f64::from), columns.map(f64::from), 1e-5);
        for at in 0..4 {
            let moved = |by: f64| {
                let (mut r, mut c) = (r, c);
                if at < 2 {
                    r[at] += by
                } else {
                    c[at - 2] += by
                }
                loss(r, c)
            };
            let wanted = (moved(h) - moved(-h)) / (2.0 * h);
            let vector = if at < 2 { "row_scores" } else { "column_scores" };
            let got = 10.0 * values_of(&built, &format!("{vector}_first_moment"))[at % 2];
            // Sums of 16 products below 4 in f32, and what the difference costs.
            let bound = 1e-5 + 32.0 * 4.0 * f64::from(f32::EPSILON);
            assert!((got - wanted).abs() <= bound, "{vector} {}: {got} {wanted}", at % 2);
            let stepped = values_of(&built, vector)[at % 2];
            let from = if at < 2 { r[at] } else { c[at - 2] };
            assert!((stepped - (from - 0.5 * wanted.signum())).abs() <= 1e-5, "{stepped} from {from}");
        }
    }
}

#[test]
fn biases_of_rows_that_count_nowhere_do_not_count() {
    for (device, mask_bias) in devices().into_iter().flat_map(|d| [false, true].map(|m| (d.clone(), m))) {
        let schedule = json!({"name": "movement", "scores": "rows", "mask_bias": mask_bias});
        let config = json!({"structure": "block_sparse", "block": [2, 4], "schedule": schedule});
        let (linear, built) = layer(&device, &config, 8, 4);
        let (layer, params, blocks) = (&built.evolving[0], &built.params, Blocks::new(&device));
        let bias = linear.bias().unwrap();
        params.set(layer.weight, &blocks.w).unwrap();
        params.set(bias, &[1.0, 2.0, 3.0, 4.0]).unwrap();
        params.set(params.find("layer.scores").unwrap(), &[-1.0, 1.0]).unwrap();
        layer.choose_mask(params, Choice::Share(0.5)).unwrap();
        layer.let_through(params, params.flat_master()).unwrap();
        let zeros = tensor(&device, &[0.0; 8], &[1, 8]);
        let dy = tensor(&device, &[5.0, 6.0, 7.0, 8.0], &[1, 4]);
        let (y, _) = pass(&linear, &built, &zeros, &dy);
        layer.learn(params, RATE).unwrap();
        let gradient = params.gradient(bias).unwrap().to_f32().unwrap();
        let packed = layer.learned_bias(params, params.flat_master()).unwrap();
        if mask_bias {
            assert_eq!((y, gradient), (vec![0.0, 0.0, 3.0, 4.0], vec![0.0, 0.0, 7.0, 8.0]));
            assert_eq!(packed.unwrap(), [0.0, 0.0, 3.0, 4.0]);
        } else {
            assert_eq!((y, gradient), (vec![1.0, 2.0, 3.0, 4.0], vec![5.0, 6.0, 7.0, 8.0]));
            assert_eq!(packed, None);
        }
        assert_eq!(params.master(bias).to_f32().unwrap(), [1.0, 2.0, 3.0, 4.0], "it stays as it was");
    }
}

#[test]
fn misfits_are_named() {
    let error = |config: Value| {
        try_layer(&Device::Cpu, &config, 16, 16, LinearOptions::default())
            .map(|_| ())
            .unwrap_err()
            .to_string()
    };
    let wrong = error(json!({"structure": "monarch", "schedule": "sr_ste"}));
    assert_eq!(
        wrong,
        "layer `layer` [16, 16]: the schedule `sr_ste` needs `nm`, `unstructured` or `small_world`, \
         the layer is `monarch`"
    );
    let wrong = error(json!({"structure": "nm", "schedule": {"name": "rigl"}}));
    assert!(
        wrong.contains("needs `unstructured`, `small_world` or `block_sparse`, the layer is `nm`"),
        "{wrong}"
    );
    let wrong = error(
        json!({"structure": "unstructured", "schedule": {"name": "structure_decay", "stages": "fine"}}),
    );
    assert!(
        wrong.contains("needs `nm`, or the stages `target` or `sparsify`, the layer is `unstructured`"),
        "{wrong}"
    );
    let wrong = error(json!({"structure": "block_sparse", "block": 4, "schedule": "sr_ste"}));
    assert!(wrong.contains("the layer is `block_sparse`"), "{wrong}");
    // A kernel is that of the structure, under masks too.
    let wrong = error(json!({"structure": "nm", "schedule": "sr_ste", "kernel": "dense"}));
    assert!(wrong.contains("kernel `dense` does not take `nm` [16, 16]"), "{wrong}");
    let options = LinearOptions::default();
    let asked = json!({"structure": "nm", "schedule": "sr_ste", "kernel": "scatter_dense"});
    let (_, built) = try_layer(&Device::Cpu, &asked, 16, 16, options).unwrap();
    assert_eq!(built.evolving[0].kernel(), Some("scatter_dense"));
    let wrong = error(json!({"structure": "nm", "schedule": "sr_set"}));
    assert_eq!(wrong, "rule `layer`: there is no schedule `sr_set`; did you mean `sr_ste`?");
}
