//! What a training step of sparse layers holds: weights, gradients and the optimizer's state in proportion to density.
//! Index tables, which the count leaves out, are up to 36 bytes a value for single values and a few a block.
//! A process of its own, since the count of bytes is the process's.

use lacewing_engine::optim::{AdamW, AdamWConfig, Optimizer};
use lacewing_engine::{Cx, DType, Device, StepRng, Tensor, cpu_bytes_in_use};
use lacewing_nn::{LinearOptions, ModelBuilder};
use serde_json::{Value, json};

const WIDTH: usize = 1024;
const LAYERS: usize = 3;
const ROWS: usize = 8;

/// The most bytes of tensors at once in a step of three layers.
fn peak(config: &Value) -> usize {
    let device = Device::Cpu;
    assert_eq!(cpu_bytes_in_use(), 0, "nothing is left of the case before");
    let mut builder = ModelBuilder::new(device.clone(), DType::F32, 3).unwrap();
    let layers: Vec<_> = (0..LAYERS)
        .map(|at| {
            let structure = lacewing_core::build(config, WIDTH, WIDTH, at as u64, None).unwrap();
            let name = format!("layer{at}");
            builder.root().linear_of(&name, structure, None, LinearOptions::default()).unwrap()
        })
        .collect();
    let built = builder.finish().unwrap();
    let mut optimizer = AdamW::new(&built.params, AdamWConfig::default()).unwrap();
    device.reset_peak();
    for step in 0..2 {
        let cx = Cx::training(built.params.clone(), StepRng::new(1, step));
        let x = Tensor::from_f32(&device, &vec![0.5; ROWS * WIDTH], &[ROWS, WIDTH]).unwrap();
        let mut y = cx.leaf(x);
        for layer in &layers {
            y = layer.forward(&cx, &y).unwrap();
        }
        let seed = Tensor::from_f32(&device, &vec![0.1; ROWS * WIDTH], &[ROWS, WIDTH]).unwrap();
        drop(cx.backward(&y, seed).unwrap());
        optimizer.step(&built.params, 1e-3, None).unwrap();
    }
    device.peak_bytes()
}

#[test]
fn a_training_step_holds_memory_in_proportion_to_density() {
    let dense = peak(&json!({"structure": "dense"}));
    // Masters, gradients and two moments of every weight, and one layer's gradient on its way.
    let weights = 4 * (4 * LAYERS + 1) * WIDTH * WIDTH;
    // Inputs, outputs and their gradients; biases.
    let rest = 4 * (4 * LAYERS * ROWS * WIDTH + 5 * LAYERS * WIDTH);
    assert!((weights..weights + rest).contains(&dense), "{dense} bytes dense, {weights} of them weights");
    for density in [0.5, 0.25, 0.125, 0.0625] {
        for config in [
            json!({"structure": "block_sparse", "block": 32, "density": density}),
            json!({"structure": "unstructured", "density": density}),
            json!({"structure": "nm", "n": 1, "m": (1.0 / density) as usize}),
        ] {
            let got = peak(&config);
            let expected = (density * weights as f64) as usize + rest;
            println!("{config}: {got} bytes, {:.3} of dense", got as f64 / dense as f64);
            // Buffers are handed out in steps of an eighth at most.
            assert!(got <= expected + expected / 8, "{config}: {got} bytes, {expected} in proportion");
        }
    }
}
