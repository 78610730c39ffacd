//! Attention: one layer for q, k and v gives what three give.

use lacewing_core::Rng;
use lacewing_engine::{Cx, DType, Device, Tensor};
use lacewing_nn::{AttentionOptions, Built, LinearOptions, ModelBuilder, MultiHeadAttention, NnError};

const DIM: usize = 12;
const HEADS: usize = 3;
const TOKENS: usize = 5;

fn attention(split_qkv: bool, heads: usize) -> Result<(MultiHeadAttention, Built), NnError> {
    let linear = LinearOptions::default();
    let options = AttentionOptions { dim: DIM, heads, split_qkv, qkv_bias: true, dropout: 0.0, linear };
    let mut builder = ModelBuilder::new(Device::Cpu, DType::F32, 2)?;
    let layer = MultiHeadAttention::new(&mut builder.scope("attn").with_rows(TOKENS), options)?;
    Ok((layer, builder.finish()?))
}

fn values(built: &Built, name: &str) -> Vec<f32> {
    let id = built.params.find(&format!("attn.{name}")).unwrap();
    built.params.master(id).to_f32().unwrap()
}

/// `[rows, n_out]`: sums of |w x| + |b| for `x [rows, DIM]`.
fn sums(x: &[f64], w: &[f32], b: &[f32]) -> Vec<f64> {
    let row = |x: &[f64]| -> Vec<f64> {
        let one = |(w, b): (&[f32], &f32)| {
            w.iter().zip(x).map(|(&w, x)| f64::from(w).abs() * x).sum::<f64>() + f64::from(*b).abs()
        };
        w.chunks(x.len()).zip(b).map(one).collect()
    };
    x.chunks(DIM).flat_map(row).collect()
}

#[test]
fn one_layer_for_q_k_and_v_gives_what_three_give() {
    let (fused, fused_built) = attention(false, HEADS).unwrap();
    let (split, split_built) = attention(true, HEADS).unwrap();
    for kind in ["weight", "bias"] {
        let all = values(&fused_built, &format!("qkv.{kind}"));
        let parts = all.chunks(all.len() / 3);
        for (name, part) in ["q", "k", "v"].into_iter().zip(parts) {
            let id = split_built.params.find(&format!("attn.{name}.{kind}")).unwrap();
            split_built.params.set(id, part).unwrap();
        }
        let id = split_built.params.find(&format!("attn.proj.{kind}")).unwrap();
        split_built.params.set(id, &values(&fused_built, &format!("proj.{kind}"))).unwrap();
    }
    assert_eq!(fused_built.summary.parameters, split_built.summary.parameters);
    assert_eq!(fused_built.summary.macs(), split_built.summary.macs());

    let mut rng = Rng::new(4);
    let x: Vec<f32> = (0..2 * TOKENS * DIM).map(|_| rng.uniform(-1.0, 1.0) as f32).collect();
    let run = |layer: &MultiHeadAttention, built: &Built| {
        let cx = Cx::evaluation(built.params.clone());
        let x = cx.constant(Tensor::from_f32(&Device::Cpu, &x, &[2, TOKENS, DIM]).unwrap());
        let y = layer.forward(&cx, &x).unwrap();
        assert_eq!(y.shape(), [2, TOKENS, DIM]);
        y.value().to_f32().unwrap()
    };
    let (a, b) = (run(&fused, &fused_built), run(&split, &split_built));

    // Scores err by γ times their sums, probabilities by twice the worst score's error, values by γ times theirs.
    let x_abs: Vec<f64> = x.iter().map(|&v| f64::from(v).abs()).collect();
    let qkv = sums(&x_abs, &values(&fused_built, "qkv.weight"), &values(&fused_built, "qkv.bias"));
    let most =
        |from: usize| qkv.chunks(3 * DIM).flat_map(|row| &row[from..from + DIM]).fold(0f64, |m, &v| m.max(v));
    let (q, k, v) = (most(0), most(DIM), most(2 * DIM));
    let head = (DIM / HEADS) as f64;
    let mixed = vec![v * (2.0 + 2.0 * q * k * head / head.sqrt()); DIM];
    let bounds = sums(&mixed, &values(&fused_built, "proj.weight"), &values(&fused_built, "proj.bias"));
    let roundings = (3 * DIM + 2 * TOKENS + 16) as f64 * f64::from(f32::EPSILON);
    for (at, (a, b)) in a.iter().zip(&b).enumerate() {
        let bound = roundings * bounds[at % DIM];
        assert!(
            (f64::from(*a) - f64::from(*b)).abs() <= bound,
            "element {at}: {a} and {b} differ by more than {bound}"
        );
    }
}

#[test]
fn heads_that_do_not_divide_the_width_are_an_error() {
    let error = attention(false, 5).unwrap_err().to_string();
    assert!(error.contains("`attn`: dim = 12 is not a multiple of heads = 5"), "{error}");
}
