//! A layer 20,000 wide each way of which one weight in a hundred is kept: trained, and its pattern moved by gradients, in less
//! memory than the dense weight alone would take. A process of its own, since the peak is the process's.
//!
//! It takes half a minute, so it is run by hand: `LACEWING_TEST_LONG=1 cargo test --release -p lacewing-nn --test extreme_width --
//! --nocapture`.

use lacewing_core::{Form, Rng};
use lacewing_engine::optim::{AdamW, AdamWConfig, Optimizer};
use lacewing_engine::{Cx, DType, Device, StepRng, Tensor};
use lacewing_nn::{First, Follower, LinearOptions, ModelBuilder, Rules};
use serde_json::json;
use std::time::Instant;

const WIDTH: usize = 20_000;

/// The most memory this process has had resident, in bytes; `None` where the system does not say.
fn peak_resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib << 10)
}

#[test]
fn an_extremely_wide_layer_trains_and_moves_within_two_gib() {
    if std::env::var_os("LACEWING_TEST_LONG").is_none_or(|value| value != "1") {
        return eprintln!("skipped: set LACEWING_TEST_LONG=1 for a test of half a minute");
    }
    let device = Device::Cpu;
    let rules = json!([{"match": "wide", "structure": "unstructured", "sparsity": 0.99, "schedule": "rigl"}]);
    let rules = Rules::from_json(&rules).unwrap();
    let mut builder = ModelBuilder::new(device.clone(), DType::F32, 1).unwrap().with_rules(rules);
    let linear = builder.root().linear("wide", WIDTH, WIDTH, LinearOptions::default()).unwrap();
    let built = builder.finish().unwrap();
    let (layer, params) = (&built.evolving[0], &built.params);
    let mut adamw = AdamW::new(params, AdamWConfig::default()).unwrap();
    let mut rng = Rng::new(2);
    let mut step = |rows: usize, number: u64| {
        let mut draw = || (0..rows * WIDTH).map(|_| rng.unit() as f32 - 0.5).collect::<Vec<f32>>();
        let (x, dy) = (draw(), draw());
        let start = Instant::now();
        let cx = Cx::training(params.clone(), StepRng::new(0, number));
        let x = cx.leaf(Tensor::from_f32(&device, &x, &[rows, WIDTH]).unwrap());
        let y = linear.forward(&cx, &x).unwrap();
        let forward = start.elapsed();
        cx.backward(&y, Tensor::from_f32(&device, &dy, &[rows, WIDTH]).unwrap()).unwrap();
        (forward, start.elapsed())
    };
    for rows in [1, 64] {
        // The first is cold.
        for number in 0..4 {
            let (forward, both) = step(rows, number);
            adamw.step(params, 1e-3, None).unwrap();
            println!("{rows} rows: forward {forward:.1?}, with backward {both:.1?}");
        }
        layer.watch(true);
        step(rows, 4);
        let start = Instant::now();
        let moved = layer.choose(params, 0.3, &mut Rng::new(3)).unwrap();
        let state = adamw.state();
        let followers: Vec<Follower<'_>> =
            state.iter().map(|&(_, flat)| Follower { flat, first: First::Moment { power: 1 } }).collect();
        layer.relocate(params, &moved, &followers, &mut Rng::new(4)).unwrap();
        params.zero_gradients().unwrap();
        layer.watch(false);
        println!("{rows} rows: {} of its places moved in {:.1?}", moved.dropped.len(), start.elapsed());
        let structure = linear.structure();
        let Form::Pattern(pattern) = structure.form() else { panic!("no pattern") };
        assert_eq!(pattern.nnz(), WIDTH * WIDTH / 100);
        step(rows, 5);
    }
    let Some(peak) = peak_resident() else {
        return eprintln!("the system does not say how much memory was used");
    };
    println!(
        "{:.2} GiB resident at most; the dense weight alone would take 1.49",
        peak as f64 / (1u64 << 30) as f64
    );
    assert!(peak < 2 << 30, "{peak} bytes");
}
