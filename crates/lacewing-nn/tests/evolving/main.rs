//! Layers whose structure changes: masks against the rule in f64, published gradients and traces, moves against what must
//! not change. `LACEWING_TEST_CUDA=1` adds a GPU.

mod learned;
mod moves;

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
