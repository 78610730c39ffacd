//! Published golden numbers of layers, forward and backward, through every kernel that takes them.

use lacewing_core::Rng;
use lacewing_engine::{Cx, DType, Device, StepRng, Tensor};
use lacewing_nn::linear::KERNELS;
use lacewing_nn::{Built, Linear, LinearOptions, ModelBuilder, NnError};
use serde_json::{Value, json};

/// The layer through each kernel that takes it.
fn layers(config: &Value, n_in: usize, n_out: usize) -> Vec<(Linear, Built)> {
    let layer = |kernel: &str| {
        let structure = lacewing_core::build(config, n_in, n_out, 0, None).unwrap();
        let mut builder = ModelBuilder::new(Device::Cpu, DType::F32, 0).unwrap();
        let options = LinearOptions::default();
        match builder.root().linear_of("layer", structure, Some(kernel), options) {
            Err(NnError::Refused { .. }) => None,
            linear => Some((linear.unwrap(), builder.finish().unwrap())),
        }
    };
    KERNELS.iter().filter_map(|kernel| layer(kernel.name)).collect()
}

/// Output, and the gradients of x, weights and bias for the output's gradient `dy`.
fn run(
    linear: &Linear,
    built: &Built,
    x: &[f32],
    dy: &[f32],
    n_in: usize,
) -> (Vec<f32>, Vec<f32>, Vec<Vec<f32>>, Vec<f32>) {
    built.params.zero_gradients().unwrap();
    let cx = Cx::training(built.params.clone(), StepRng::new(0, 0));
    let rows = x.len() / n_in;
    let input = cx.leaf(Tensor::from_f32(&Device::Cpu, x, &[rows, n_in]).unwrap());
    let y = linear.forward(&cx, &input).unwrap();
    let seed = Tensor::from_f32(&Device::Cpu, dy, y.shape()).unwrap();
    let dx = cx.backward(&y, seed).unwrap().take(&input).unwrap().to_f32().unwrap();
    let gradient = |id| built.params.gradient(id).unwrap().to_f32().unwrap();
    let dw = linear.weights().iter().map(|&id| gradient(id)).collect();
    (y.value().to_f32().unwrap(), dx, dw, gradient(linear.bias().unwrap()))
}

#[test]
fn block_sparse_of_four_by_six() {
    let config = json!({"structure": "block_sparse", "block": 2, "mask": [[0, 1], [1, 0], [1, 2]]});
    let layers = layers(&config, 6, 4);
    assert!(!layers.is_empty());
    for (linear, built) in layers {
        let values = [1.0, 2.0, 3.0, 4.0, -1.0, 0.0, 2.0, 1.0, 0.5, 0.0, 0.0, -2.0];
        built.params.set(linear.weights()[0], &values).unwrap();
        built.params.set(linear.bias().unwrap(), &[0.1, 0.2, 0.3, 0.4]).unwrap();
        let x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.0, 1.0, 0.0, -1.0, 2.0, 1.0];
        let dy = [1.0, 0.0, -1.0, 2.0, 0.5, 1.0, 0.0, 1.0];
        let (y, dx, dw, db) = run(&linear, &built, &x, &dy, 6);
        let expected = [11.1, 25.2, 1.8, -7.6, -1.9, -3.8, 1.3, -0.6];
        for (y, expected) in y.iter().zip(expected) {
            // Integers and halves are exact; adding the bias rounds once, and the bias itself was rounded.
            assert!((y - expected).abs() <= 2.0 * f32::EPSILON * expected.abs(), "{y}, expected {expected}");
        }
        assert_eq!(
            dx,
            [5.0, 2.0, 1.0, 2.0, -0.5, -4.0, 2.0, 1.0, 3.5, 5.0, 0.0, -2.0],
            "{}",
            linear.kernel()
        );
        assert_eq!(dw[0], [3.0, 3.5, 0.0, -1.0, -1.0, -2.0, 2.0, 5.0, -5.0, -6.0, 12.0, 13.0]);
        assert_eq!(db, [1.5, 1.0, -1.0, 3.0]);
    }
}

/// `((i · step) mod modulus) − shift` for i = 0, 1, ….
fn pattern(len: usize, step: usize, modulus: usize, shift: f32) -> Vec<f32> {
    (0..len).map(|i| (i * step % modulus) as f32 - shift).collect()
}

#[test]
fn monarch_of_integers() {
    type Case = (Value, usize, &'static [f32]);
    let cases: [Case; 3] = [
        (json!([[2, 3, 3], [3, 2, 2]]), 6, &[6.0, 38.0, -2.0, 15.0, 26.0, -2.0]),
        (
            json!([[2, 3, 4], [3, 4, 2]]),
            8,
            &[8.0, -20.0, 17.0, -5.0, 37.0, 16.0, 12.0, 44.0, -25.0, -1.0, -34.0, -26.0],
        ),
        (json!([[2, 3, 4], [2, 2, 3]]), 8, &[5.0, -22.0, -48.0, 3.0]),
    ];
    for (factors, n_in, expected) in cases {
        let config = json!({"structure": "monarch", "factors": factors});
        for (linear, built) in layers(&config, n_in, expected.len()) {
            for (&id, (step, modulus, shift)) in linear.weights().iter().zip([(5, 7, 3.0), (3, 5, 2.0)]) {
                built.params.set(id, &pattern(built.params.info(id).len(), step, modulus, shift)).unwrap();
            }
            built.params.set(linear.bias().unwrap(), &vec![0.0; expected.len()]).unwrap();
            let x: Vec<f32> = (1..=n_in).map(|i| i as f32).collect();
            let dy = vec![1.0; expected.len()];
            let (y, ..) = run(&linear, &built, &x, &dy, n_in);
            assert_eq!(y, expected, "{config} through {}", linear.kernel());
        }
    }
}

/// The rectangular 768 → 384 case: factors (8, 192, 96) and (24, 16, 64), tolerance 1e-4 relative to what is summed.
#[test]
fn rectangular_monarch_backward() {
    let (n_in, n_out, rows) = (768, 384, 2);
    let config = json!({"structure": "monarch", "factors": [[8, 192, 96], [24, 16, 64]]});
    for (linear, built) in layers(&config, n_in, n_out) {
        let mut rng = Rng::new(3);
        let mut draw = |len: usize| -> Vec<f32> { (0..len).map(|_| rng.uniform(-1.0, 1.0) as f32).collect() };
        let (x, dy) = (draw(rows * n_in), draw(rows * n_out));
        let (_, dx, dw, _) = run(&linear, &built, &x, &dy, n_in);
        let weights: Vec<Vec<f64>> = linear
            .weights()
            .iter()
            .map(|&id| built.params.master(id).to_f32().unwrap().into_iter().map(f64::from).collect())
            .collect();
        let loss = |weights: &[Vec<f64>], x: &[f64]| -> f64 {
            let weights: Vec<&[f64]> = weights.iter().map(Vec::as_slice).collect();
            let outputs = x.chunks(n_in).flat_map(|x| linear.structure().apply(&weights, x));
            outputs.zip(&dy).map(|(y, &dy)| y * f64::from(dy)).sum()
        };
        let x: Vec<f64> = x.iter().map(|&v| f64::from(v)).collect();
        // The loss is linear in x and in each factor, so a difference of any size is the derivative along it.
        let along = |direction: &[f32]| -> Vec<f64> { direction.iter().map(|&d| f64::from(d)).collect() };
        let check = |what: &str, gradient: &[f32], direction: &[f64], moved: f64, still: f64| {
            let products: Vec<f64> = gradient.iter().zip(direction).map(|(&g, d)| f64::from(g) * d).collect();
            let (got, magnitude): (f64, f64) =
                (products.iter().sum(), products.iter().map(|p| p.abs()).sum());
            let off = (got - (moved - still)).abs();
            assert!(
                off <= 1e-4 * magnitude,
                "{what} through {}: off by {off} of {magnitude}",
                linear.kernel()
            );
        };
        let still = loss(&weights, &x);
        let direction = along(&draw(x.len()));
        let moved: Vec<f64> = x.iter().zip(&direction).map(|(x, d)| x + d).collect();
        check("dx", &dx, &direction, loss(&weights, &moved), still);
        for at in 0..2 {
            let direction = along(&draw(weights[at].len()));
            let mut moved = weights.clone();
            moved[at].iter_mut().zip(&direction).for_each(|(w, d)| *w += d);
            check(&format!("factor {at}"), &dw[at], &direction, loss(&moved, &x), still);
        }
    }
}
