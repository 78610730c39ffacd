//! Dense baselines beside PyTorch: `cargo bench -p lacewing-models --bench vit -- block | gpu [model] [batch] [key=value…]`.
//!
//! `block` is one ViT-S encoder block, forward and backward, f32 on the host's threads; `gpu` is training and inference of
//! a whole model in bf16 on `cuda:0`. A JSON row each, as `benches/peers/vit.py` prints them: run both in one go, since
//! only their ratio counts.

use lacewing_core::Init;
use lacewing_engine::ops::{self, Activation, Target};
use lacewing_engine::optim::{AdamW, AdamWConfig, Optimizer};
use lacewing_engine::{Cx, DType, Device, StepRng, Tensor};
use lacewing_models::ModelConfig;
use lacewing_nn::{
    AttentionOptions, LayerNorm, LinearOptions, Mlp, MlpOptions, ModelBuilder, MultiHeadAttention,
};
use serde_json::{Value, json};
use std::time::Instant;

type AnyResult<T = ()> = Result<T, Box<dyn std::error::Error>>;

fn main() -> AnyResult {
    // Cargo passes `--bench`; the tests of this workspace never run a bench.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    match args.first().map(String::as_str) {
        None => Ok(()),
        Some("block") => block(args.get(1).map_or(Ok(8), |n| n.parse())?),
        Some("gpu") => {
            let name = args.get(1).map_or("vit_base_patch16_224", String::as_str);
            gpu(name, args.get(2).map_or(Ok(256), |n| n.parse())?, args.get(3..).unwrap_or_default())
        }
        Some(other) => Err(format!("unknown problem `{other}`: expected `block` or `gpu`").into()),
    }
}

fn uniform(len: usize, seed: u64) -> Vec<f32> {
    StepRng::new(seed, 0).uniforms(len).into_iter().map(|u| 2.0 * u - 1.0).collect()
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Pages of this process that ever were in memory at once, in MiB; 0 where the system does not say.
fn peak_rss_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

fn block(batch: usize) -> AnyResult {
    let (tokens, dim, heads) = (197, 384, 6);
    let linear = LinearOptions { init: Init::TruncNormal { std: 0.02 }, ..LinearOptions::default() };
    let mut builder = ModelBuilder::new(Device::Cpu, DType::F32, 0)?;
    let mut root = builder.root();
    let norm1 = LayerNorm::new(&mut root, "norm1", dim, 1e-6)?;
    let attention = AttentionOptions { dim, heads, split_qkv: false, qkv_bias: true, dropout: 0.0, linear };
    let attn = MultiHeadAttention::new(&mut root.scope("attn"), attention)?;
    let norm2 = LayerNorm::new(&mut root, "norm2", dim, 1e-6)?;
    let mlp = MlpOptions { dim, hidden: 4 * dim, activation: Activation::Gelu.into(), dropout: 0.0, linear };
    let mlp = Mlp::new(&mut root.scope("mlp"), mlp)?;
    let params = builder.finish()?.params;

    let shape = [batch, tokens, dim];
    let x = Tensor::from_f32(&Device::Cpu, &uniform(batch * tokens * dim, 1), &shape)?;
    let dy = Tensor::from_f32(&Device::Cpu, &uniform(batch * tokens * dim, 2), &shape)?;
    let step = || -> AnyResult {
        params.zero_gradients()?;
        let cx = Cx::training(params.clone(), StepRng::new(0, 0));
        let x = cx.leaf(x.clone());
        let branch = attn.forward(&cx, &norm1.forward(&cx, &x)?)?;
        let (sum, normed) = norm2.add(&cx, &x, &branch, None)?;
        let y = ops::residual(&cx, &sum, &mlp.forward(&cx, &normed)?, None)?;
        cx.backward(&y, dy.clone())?;
        Ok(())
    };
    let before = peak_rss_mib();
    for _ in 0..5 {
        step()?;
    }
    let mut times = Vec::new();
    for _ in 0..30 {
        let start = Instant::now();
        step()?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let ms_min = times.iter().copied().fold(f64::INFINITY, f64::min);
    let row = json!({"peer": "lacewing", "problem": "vit_small block", "batch": batch, "ms": median(times),
        "ms_min": ms_min, "rss_grown_mib": peak_rss_mib() - before});
    println!("{row}");
    Ok(())
}

fn gpu(name: &str, batch: usize, overrides: &[String]) -> AnyResult {
    let device = Device::open("cuda:0")?;
    let mut config = json!({"name": name});
    for pair in overrides {
        let (path, value) = pair.split_once('=').ok_or("expected key.path=value")?;
        let mut at = &mut config;
        for key in path.split('.') {
            at = &mut at[key];
        }
        *at = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
    }
    let config = ModelConfig::from_json(&config)?;
    let built = config.build(ModelBuilder::new(device.clone(), DType::Bf16, 0)?)?;
    let [channels, height, width] = built.model.image_shape();
    let n_classes = built.model.n_classes();
    let images = uniform(batch * channels * height * width, 1);
    let images = Tensor::from_f32(&device, &images, &[batch, channels, height, width])?;
    let labels: Vec<u32> = (0..batch).map(|i| (i * 7919 % n_classes) as u32).collect();
    let labels = Tensor::from_u32(&device, &labels, &[batch])?;
    let mut optimizer = AdamW::new(&built.params, AdamWConfig::default())?;
    let mut at = 0;
    let mut step = || -> AnyResult {
        let cx = Cx::training(built.params.clone(), StepRng::new(0, at));
        let logits = built.model.forward(&cx, &images)?;
        let target = Target::Classes { labels: &labels, smoothing: 0.0 };
        let (_, dlogits) = ops::softmax_cross_entropy(logits.value(), target, 1.0 / batch as f32)?;
        cx.backward(&logits, dlogits)?;
        optimizer.step(&built.params, 1e-3, None)?;
        at += 1;
        Ok(())
    };
    device.reset_peak();
    let ms = timed(&device, 5, 12, &mut step)?;
    let peak_gib = device.peak_bytes() as f64 / f64::from(1 << 30);
    let name = format!("{name} {}", overrides.join(" "));
    let row = json!({"peer": "lacewing", "problem": format!("{} train", name.trim()), "batch": batch, "ms": ms,
        "images_per_s": batch as f64 / ms * 1e3, "peak_gib": peak_gib});
    println!("{row}");
    let mut infer = || -> AnyResult {
        built.model.forward(&Cx::evaluation(built.params.clone()), &images)?;
        Ok(())
    };
    let ms = timed(&device, 5, 12, &mut infer)?;
    let row = json!({"peer": "lacewing", "problem": format!("{} infer", name.trim()), "batch": batch, "ms": ms,
        "images_per_s": batch as f64 / ms * 1e3});
    println!("{row}");
    Ok(())
}

/// Median milliseconds of one run, the device waited for before and after it.
fn timed(device: &Device, warm: usize, n: usize, step: &mut dyn FnMut() -> AnyResult) -> AnyResult<f64> {
    for _ in 0..warm {
        step()?;
    }
    let mut times = Vec::with_capacity(n);
    for _ in 0..n {
        device.synchronize()?;
        let start = Instant::now();
        step()?;
        device.synchronize()?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    Ok(median(times))
}
