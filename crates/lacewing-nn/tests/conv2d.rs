//! Convolutions of several structures against the sum that defines one, in f64, and its finite differences.

use lacewing_core::Rng;
use lacewing_engine::{Cx, DType, Device, StepRng, Tensor};
use lacewing_nn::{
    Built, Conv2d, Conv2dOptions, LinearOptions, ModelBuilder, NnError, Rules, channels_first, channels_last,
    fold_weight, unfold_weight,
};
use lacewing_testkit::{assert_gradient, assert_within, gamma, slopes, uniform, widen};
use serde_json::{Value, json};

const BATCH: usize = 2;

fn build(options: Conv2dOptions, config: &Value) -> Result<(Conv2d, Built), NnError> {
    let mut rule = config.clone();
    rule["match"] = json!("stage.conv");
    let mut builder =
        ModelBuilder::new(Device::Cpu, DType::F32, 3)?.with_rules(Rules::from_json(&json!([rule]))?);
    let conv = Conv2d::new(&mut builder.scope("stage"), "conv", options)?;
    Ok((conv, builder.finish()?))
}

/// `y[b, o, i, j] = bias[o] + Σ_{c, ky, kx} weight[o, c, ky, kx] x[b, c, i·s + ky − p, j·s + kx − p]`: channels first.
fn convolution(options: Conv2dOptions, weight: &[f64], bias: &[f64], x: &[f64]) -> Vec<f64> {
    let Conv2dOptions { size: (height, width), channels, kernel: (kh, kw), stride, padding, .. } = options;
    let (down, across) = ((height + 2 * padding - kh) / stride + 1, (width + 2 * padding - kw) / stride + 1);
    let mut y = Vec::new();
    for (b, o) in (0..BATCH).flat_map(|b| (0..options.n_out).map(move |o| (b, o))) {
        for (i, j) in (0..down).flat_map(|i| (0..across).map(move |j| (i, j))) {
            let mut sum = bias[o];
            for (c, tap) in (0..channels).flat_map(|c| (0..kh * kw).map(move |tap| (c, tap))) {
                let (row, col) = (i * stride + tap / kw, j * stride + tap % kw);
                if (padding..padding + height).contains(&row) && (padding..padding + width).contains(&col) {
                    let at = ((b * channels + c) * height + row - padding) * width + col - padding;
                    sum += weight[(o * channels + c) * kh * kw + tap] * x[at];
                }
            }
            y.push(sum);
        }
    }
    y
}

/// `[out, kh, kw, in]` to `[out, in, kh, kw]`.
fn torch_order(options: Conv2dOptions, w: &[f64]) -> Vec<f64> {
    let (taps, channels) = (options.kernel.0 * options.kernel.1, options.channels);
    let mut weight = vec![0.0; w.len()];
    for (at, &value) in w.iter().enumerate() {
        let (o, tap, c) = (at / (taps * channels), at / channels % taps, at % channels);
        weight[(o * channels + c) * taps + tap] = value;
    }
    weight
}

fn check(options: Conv2dOptions, config: &Value) {
    let context = format!("{config} {options:?}");
    let (conv, built) = build(options, config).unwrap_or_else(|error| panic!("{context}: {error}"));
    let (linear, structure) = (conv.linear(), conv.linear().structure());
    let (height, width) = options.size;
    let (down, across) = conv.out_size(options.size).unwrap();
    let info = &built.summary.layers[0];
    assert_eq!((info.name.as_str(), info.rows_per_sample), ("stage.conv", down * across));

    let mut rng = Rng::new(7);
    for &id in linear.weights().iter().chain(&linear.bias()) {
        let values: Vec<f32> =
            (0..built.params.info(id).len()).map(|_| rng.uniform(-1.0, 1.0) as f32).collect();
        built.params.set(id, &values).unwrap();
    }
    let ids: Vec<_> = linear.weights().iter().copied().chain(linear.bias()).collect();
    let mut inputs: Vec<Vec<f64>> =
        ids.iter().map(|&id| widen(&built.params.master(id).to_f32().unwrap())).collect();
    let shape = [BATCH, options.channels, height, width];
    let x = uniform(5, shape.iter().product());
    inputs.push(widen(&x));
    let definition = |inputs: &[Vec<f64>]| {
        let [weights @ .., bias, x] = inputs else { unreachable!("weights, bias and x") };
        let w = structure.to_dense(&weights.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap();
        convolution(options, &torch_order(options, &w), bias, x)
    };

    let cx = Cx::training(built.params.clone(), StepRng::new(0, 0));
    let image = cx.leaf(Tensor::from_f32(&Device::Cpu, &x, &shape).unwrap());
    let y = conv.forward(&cx, &channels_last(&cx, &image).unwrap()).unwrap();
    assert_eq!(y.shape(), [BATCH, down, across, options.n_out]);
    let y = channels_first(&cx, &y).unwrap();
    assert_eq!(y.shape(), [BATCH, options.n_out, down, across]);
    let abs = |values: &[f64]| -> Vec<f64> { values.iter().map(|v| v.abs()).collect() };
    let absolute: Vec<_> = inputs.iter().map(|values| abs(values)).collect();
    // No path is longer: the sums of two factors, over the places of all images in a weight's gradient.
    let gamma = gamma(2 * (structure.n_in() + structure.n_out()) + BATCH * down * across);
    let bound: Vec<f64> = definition(&absolute).iter().map(|m| gamma * m).collect();
    assert_within(&y.value().to_f32().unwrap(), &definition(&inputs), &bound, &context);

    let seed = uniform(6, y.value().len());
    let dy = widen(&seed);
    built.params.zero_gradients().unwrap();
    let mut gradients = cx.backward(&y, Tensor::from_f32(&Device::Cpu, &seed, y.shape()).unwrap()).unwrap();
    for which in 0..inputs.len() {
        let got = match ids.get(which) {
            Some(&id) => built.params.gradient(id).unwrap(),
            None => gradients.take(&image).unwrap(),
        };
        let loss = |values: &[f64], inputs: &[Vec<f64>], dy: &[f64]| -> f64 {
            let mut inputs = inputs.to_vec();
            inputs[which] = values.to_vec();
            definition(&inputs).iter().zip(dy).map(|(y, dy)| y * dy).sum()
        };
        let magnitudes = slopes(|values| loss(values, &absolute, &abs(&dy)), &absolute[which]);
        let allowed: Vec<f64> = magnitudes.iter().map(|slope| gamma * slope.value.abs()).collect();
        let (got, context) = (widen(&got.to_f32().unwrap()), format!("{context}, gradient {which}"));
        assert_gradient(|values| loss(values, &inputs, &dy), &inputs[which], &got, &allowed, &context);
    }
}

fn options(size: (usize, usize), channels: usize, n_out: usize, kernel: (usize, usize)) -> Conv2dOptions {
    Conv2dOptions { size, channels, n_out, kernel, stride: 1, padding: 0, linear: LinearOptions::default() }
}

#[test]
fn every_structure_convolves() {
    let dense = json!({"structure": "dense"});
    check(options((3, 2), 3, 2, (1, 1)), &dense);
    check(Conv2dOptions { stride: 2, ..options((3, 4), 2, 3, (1, 1)) }, &dense);
    check(Conv2dOptions { padding: 1, ..options((5, 7), 2, 2, (3, 3)) }, &dense);
    check(Conv2dOptions { padding: 1, stride: 2, ..options((4, 5), 1, 2, (3, 2)) }, &dense);
    // As the stem of a residual network has it.
    check(Conv2dOptions { padding: 3, stride: 2, ..options((5, 4), 1, 2, (7, 7)) }, &dense);
    for config in [
        json!({"structure": "nm"}),
        json!({"structure": "monarch", "blocks": 2}),
        json!({"structure": "block_sparse", "block": 2, "density": 0.5}),
        json!({"structure": "debut", "pad": true}),
    ] {
        check(Conv2dOptions { padding: 1, stride: 2, ..options((5, 5), 4, 4, (3, 3)) }, &config);
        check(options((2, 3), 8, 4, (1, 1)), &config);
    }
}

#[test]
fn a_weight_in_pytorchs_order_is_the_same_convolution() {
    let options = Conv2dOptions { padding: 1, ..options((4, 3), 3, 2, (3, 2)) };
    let (conv, built) = build(options, &json!({"structure": "dense"})).unwrap();
    let (weight, bias) = (uniform(1, 2 * 3 * 3 * 2), uniform(2, 2));
    let unfolded = unfold_weight(&weight, [2, 3, 3, 2]);
    assert_eq!(fold_weight(&unfolded, [2, 3, 3, 2]), weight);
    built.params.set(conv.linear().weights()[0], &unfolded).unwrap();
    built.params.set(conv.linear().bias().unwrap(), &bias).unwrap();
    let x = uniform(3, BATCH * 3 * 4 * 3);
    let cx = Cx::evaluation(built.params);
    let image = cx.constant(Tensor::from_f32(&Device::Cpu, &x, &[BATCH, 3, 4, 3]).unwrap());
    let y = conv.forward(&cx, &channels_last(&cx, &image).unwrap()).unwrap();
    let y = channels_first(&cx, &y).unwrap().value().to_f32().unwrap();
    let abs = |values: &[f32]| -> Vec<f64> { values.iter().map(|&v| f64::from(v).abs()).collect() };
    let magnitude = convolution(options, &abs(&weight), &abs(&bias), &abs(&x));
    let bound: Vec<f64> = magnitude.iter().map(|m| gamma(20) * m).collect();
    assert_within(&y, &convolution(options, &widen(&weight), &widen(&bias), &widen(&x)), &bound, "y");
}

#[test]
fn an_image_without_a_window_is_named() {
    let small = options((2, 9), 1, 1, (3, 3));
    let error = build(small, &json!({"structure": "dense"})).unwrap_err().to_string();
    assert!(error.contains("[2, 9]") && error.contains("(3, 3)"), "{error}");
    let error = build(Conv2dOptions { stride: 0, ..small }, &json!({"structure": "dense"})).unwrap_err();
    assert!(error.to_string().contains("stride: 0"), "{error}");
}
