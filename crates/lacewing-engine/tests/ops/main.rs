//! Every op, forward and gradient, against PyTorch's float64 answers (themselves checked against finite differences
//! when the fixtures were made), on every device there is. A device may stray at most twice as far as PyTorch's plain
//! computation in the same type, and by what storing the answer in that type loses.
//!
//! `LACEWING_TEST_CUDA=1` adds the GPU, in f32 and bf16; a GPU that cannot be had is then a failure.

mod convolutions;
mod losses;
mod optimizers;
mod window_attention;

use lacewing_engine::ops::{self, Activation, BlockIndex, RunningStats, Target, Window};
use lacewing_engine::optim::{AdamW, AdamWConfig, Ema, Optimizer, Sgd, SgdConfig};
use lacewing_engine::{Cx, DType, Device, Params, ParamsBuilder, Result, StepRng, Tensor, Var};
use lacewing_testkit::{gamma, uniform};
use safetensors::SafeTensors;
use std::sync::{Arc, LazyLock};

static BYTES: &[u8] = include_bytes!("../fixtures/ops.safetensors");
static FIXTURES: LazyLock<SafeTensors<'static>> = LazyLock::new(|| SafeTensors::deserialize(BYTES).unwrap());

fn shape(key: &str) -> Vec<usize> {
    FIXTURES.tensor(key).unwrap_or_else(|_| panic!("fixture {key}")).shape().to_vec()
}

fn f32s(key: &str) -> Vec<f32> {
    let view = FIXTURES.tensor(key).unwrap_or_else(|_| panic!("fixture {key}"));
    view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn errors(key: &str) -> [f64; 2] {
    let view = FIXTURES.tensor(key).unwrap_or_else(|_| panic!("fixture {key}"));
    let values: Vec<f64> =
        view.data().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect();
    [values[0], values[1]]
}

/// Where to run: a device and a compute type.
#[derive(Clone)]
struct Place {
    params: Arc<Params>,
    dtype: DType,
}

impl Place {
    fn name(&self) -> String {
        format!("{:?} on {}", self.dtype, self.params.device())
    }

    fn device(&self) -> Device {
        self.params.device()
    }

    fn tensor(&self, key: &str) -> Tensor {
        Tensor::from_f32(&self.device(), &f32s(key), &shape(key)).unwrap()
    }
}

static GPU: LazyLock<Option<Device>> = LazyLock::new(|| {
    let wanted = std::env::var("LACEWING_TEST_CUDA").is_ok_and(|v| v == "1");
    wanted.then(|| Device::open("cuda:0").expect("LACEWING_TEST_CUDA=1 asks for a GPU"))
});

fn places() -> Vec<Place> {
    let mut places = vec![(Device::Cpu, DType::F32)];
    if let Some(gpu) = &*GPU {
        places.extend([(gpu.clone(), DType::F32), (gpu.clone(), DType::Bf16)]);
    }
    let place = |(device, dtype)| {
        let mut builder = ParamsBuilder::new(device, dtype).unwrap();
        builder.add("unused", &[1], true, vec![0.0]).unwrap();
        Place { params: builder.build().unwrap(), dtype }
    };
    places.into_iter().map(place).collect()
}

/// Inputs that stay f32 whatever the compute type: parameters of norms and token embeddings.
const F32_INPUTS: &[(&str, &[&str])] = &[
    ("layer_norm", &["g", "b"]),
    ("layer_norm_wide", &["g", "b"]),
    ("add_layer_norm", &["g", "b"]),
    ("batch_norm", &["g", "b"]),
    ("batch_norm_wide", &["g", "b"]),
    ("embed_cls", &["cls", "pos"]),
    ("embed_plain", &["pos"]),
    ("window_attention_shifted", &["log_scale", "bias"]),
    ("window_attention_heads", &["log_scale", "bias"]),
    ("window_attention_whole", &["log_scale", "bias"]),
];

/// Runs `f` on the case's inputs everywhere and compares its value and all gradients.
#[track_caller]
fn check(case: &str, inputs: &[&str], f: impl Fn(&Place, &Cx, &[Var]) -> Result<Var>) {
    for place in places() {
        let cx = Cx::training(place.params.clone(), StepRng::new(0, 0));
        let stays = F32_INPUTS.iter().find(|(name, _)| *name == case).map_or(&[][..], |(_, names)| names);
        let vars: Vec<Var> = inputs
            .iter()
            .map(|name| {
                let tensor = place.tensor(&format!("{case}/in/{name}"));
                let dtype = if stays.contains(name) { DType::F32 } else { place.dtype };
                cx.leaf(ops::cast(&tensor, dtype).unwrap())
            })
            .collect();
        let y = f(&place, &cx, &vars).unwrap();
        compare(case, "", &place, y.value());
        let dy = ops::cast(&place.tensor(&format!("{case}/dy")), place.dtype).unwrap();
        let mut gradients = cx.backward(&y, dy).unwrap();
        for (name, var) in inputs.iter().zip(&vars) {
            let gradient = gradients.take(var).unwrap_or_else(|| panic!("{case}: no gradient of {name}"));
            compare(case, name, &place, &gradient);
        }
    }
}

#[track_caller]
fn compare(case: &str, of: &str, place: &Place, got: &Tensor) {
    let (key, err) = if of.is_empty() {
        (format!("{case}/y"), format!("{case}/err"))
    } else {
        (format!("{case}/grad/{of}"), format!("{case}/err/{of}"))
    };
    let (want, got_shape) = (f32s(&key), got.shape().to_vec());
    assert_eq!(got_shape, shape(&key), "{key}: shape, {}", place.name());
    let largest = want.iter().fold(0f32, |m, v| m.max(v.abs()));
    let unit = if place.dtype == DType::Bf16 { 1.0 / 256.0 } else { f32::EPSILON };
    let bound = 2.0 * errors(&err)[usize::from(place.dtype == DType::Bf16)] + f64::from(largest * unit);
    for (i, (&got, &want)) in got.to_f32().unwrap().iter().zip(&want).enumerate() {
        let error = (f64::from(got) - f64::from(want)).abs();
        assert!(error <= bound, "{key}[{i}] = {got}, expected {want} ± {bound:e}, {}", place.name());
    }
}

#[test]
fn linear_meets_the_oracle() {
    for (name, act) in ops::ACTIVATIONS {
        check(&format!("linear_{name}"), &["x", "w", "b"], |_, cx, v| {
            ops::linear(cx, &v[0], &v[1], Some(&v[2]), *act)
        });
    }
    check("linear_wide", &["x", "w", "b"], |_, cx, v| {
        ops::linear(cx, &v[0], &v[1], Some(&v[2]), Activation::Gelu)
    });
    check("linear_no_bias", &["x", "w"], |_, cx, v| {
        ops::linear(cx, &v[0], &v[1], None, Activation::Identity)
    });
}

#[test]
fn activations_meet_the_oracle() {
    for (name, act) in &ops::ACTIVATIONS[1..] {
        check(&format!("activation_{name}"), &["x"], |_, cx, v| ops::activation(cx, &v[0], *act));
    }
    check("bias_activation_gelu", &["x", "b"], |_, cx, v| {
        ops::bias_activation(cx, v[0].clone(), Some(&v[1]), Activation::Gelu)
    });
}

#[test]
fn products_meet_the_oracle() {
    check("block_linear", &["x", "w"], |_, cx, v| ops::block_linear(cx, &v[0], &v[1]));
    check("matmul", &["a", "b"], |_, cx, v| ops::matmul(cx, &v[0], &v[1]));
}

#[test]
fn norms_meet_the_oracle() {
    check("layer_norm", &["x", "g", "b"], |_, cx, v| ops::layer_norm(cx, &v[0], &v[1], &v[2], 1e-6));
    check("layer_norm_wide", &["x", "g", "b"], |_, cx, v| ops::layer_norm(cx, &v[0], &v[1], &v[2], 1e-5));
    check("add_layer_norm", &["x", "r", "g", "b"], |place, cx, v| {
        let scale = Tensor::from_f32(&place.device(), &[0.0, 1.25], &[2])?;
        let (sum, y) = ops::add_layer_norm(cx, &v[0], &v[1], Some(&scale), &v[2], &v[3], 1e-6)?;
        ops::add(cx, &sum, &y)
    });
}

#[test]
fn elementwise_ops_meet_the_oracle() {
    check("residual", &["x", "r"], |place, cx, v| {
        let scale = Tensor::from_f32(&place.device(), &[0.5, 2.0], &[2])?;
        ops::residual(cx, &v[0], &v[1], Some(&scale))
    });
    check("sigmoid", &["x"], |_, cx, v| ops::sigmoid(cx, &v[0], 16.0));
    check("scale", &["x"], |_, cx, v| ops::scale(cx, &v[0], 0.75));
    check("gated_sum", &["a", "b", "g"], |_, cx, v| ops::gated_sum(cx, &v[0], &v[1], &v[2]));
}

#[test]
fn shape_ops_meet_the_oracle() {
    check("transpose", &["x"], |_, cx, v| ops::transpose(cx, &v[0]));
    check("resize_wider", &["x"], |_, cx, v| ops::resize_cols(cx, &v[0], 16));
    check("resize_narrower", &["x"], |_, cx, v| ops::resize_cols(cx, &v[0], 6));
    check("embed_cls", &["x", "cls", "pos"], |_, cx, v| ops::embed_tokens(cx, &v[0], Some(&v[1]), &v[2]));
    check("embed_plain", &["x", "pos"], |_, cx, v| ops::embed_tokens(cx, &v[0], None, &v[1]));
    check("mean_tokens", &["x"], |_, cx, v| ops::mean_tokens(cx, &v[0]));
    check("select_token", &["x"], |_, cx, v| ops::select_token(cx, &v[0], 2));
}

#[test]
fn attention_meets_the_oracle() {
    check("attention_small", &["qkv"], |_, cx, v| ops::attention(cx, &v[0], 2, None));
    check("attention_d32", &["qkv"], |_, cx, v| ops::attention(cx, &v[0], 2, None));
    check("attention_d64", &["qkv"], |_, cx, v| ops::attention(cx, &v[0], 1, None));
    check("attention_separate", &["q", "k", "v"], |_, cx, v| {
        ops::attention_separate(cx, &v[0], &v[1], &v[2], 2, None)
    });
}

#[test]
fn the_scale_of_attention_multiplies_the_scores() {
    // Half the default scale and half of q are the same products, and halving rounds nothing.
    for place in places() {
        let (qkv, dy) = (f32s("attention_d64/in/qkv"), f32s("attention_d64/dy"));
        let (shape, dim) = (shape("attention_d64/in/qkv"), 64);
        let part = |x: &[f32], at: usize| -> Vec<f32> {
            x.chunks(3 * dim).flat_map(|row| row[at * dim..][..dim].to_vec()).collect()
        };
        let tensor = |values: &[f32], shape: &[usize]| {
            ops::cast(&Tensor::from_f32(&place.device(), values, shape).unwrap(), place.dtype).unwrap()
        };
        let one = [shape[0], shape[1], dim];
        let run = |halve_q: f32, scale: Option<f32>, packed: bool| -> Vec<Vec<f32>> {
            let cx = Cx::training(place.params.clone(), StepRng::new(0, 0));
            let halved = |i: usize, x: &f32| if i % (3 * dim) < dim { x * halve_q } else { *x };
            let qkv: Vec<f32> = qkv.iter().enumerate().map(|(i, x)| halved(i, x)).collect();
            let vars = if packed {
                vec![cx.leaf(tensor(&qkv, &shape))]
            } else {
                [0, 1, 2].map(|at| cx.leaf(tensor(&part(&qkv, at), &one))).into()
            };
            let y = match &vars[..] {
                [q, k, v] => ops::attention_separate(&cx, q, k, v, 1, scale).unwrap(),
                vars => ops::attention(&cx, &vars[0], 1, scale).unwrap(),
            };
            let mut gradients = cx.backward(&y, tensor(&dy, y.shape())).unwrap();
            let mut grads: Vec<Vec<f32>> =
                vars.iter().map(|var| gradients.take(var).unwrap().to_f32().unwrap()).collect();
            if packed {
                grads = [0, 1, 2].map(|at| part(&grads[0], at)).into();
            }
            grads[0].iter_mut().for_each(|dq| *dq *= halve_q);
            [vec![y.value().to_f32().unwrap()], grads].concat()
        };
        for packed in [true, false] {
            let scaled = run(1.0, Some(0.0625), packed);
            assert!(scaled == run(0.5, None, packed), "packed: {packed}, {}", place.name());
            assert!(scaled != run(1.0, None, packed));
        }
    }
    let place = &places()[0];
    let cx = Cx::evaluation(place.params.clone());
    let qkv = cx.constant(place.tensor("attention_d64/in/qkv"));
    for scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let error = ops::attention(&cx, &qkv, 1, Some(scale)).unwrap_err().to_string();
        assert!(error.contains("scale") && error.contains("above 0"), "{error}");
    }
}

#[test]
fn patterns_meet_the_oracle() {
    type Pattern = (&'static str, (usize, usize), (usize, usize), &'static [(u32, u32)]);
    let patterns: [Pattern; 3] = [
        ("blocks_4x8", (12, 24), (4, 8), &[(0, 1), (1, 0), (1, 2), (2, 2)]),
        ("blocks_16", (48, 64), (16, 16), &[(0, 0), (0, 3), (1, 1), (2, 0), (2, 2)]),
        ("blocks_1", (5, 7), (1, 1), &[(0, 6), (1, 1), (1, 2), (3, 0), (4, 4)]),
    ];
    for (name, shape, block, at) in patterns {
        check(&format!("scatter_{name}"), &["v"], |place, cx, v| {
            ops::scatter_blocks(cx, &v[0], &BlockIndex::new(&place.device(), shape, block, at)?)
        });
        check(&format!("product_{name}"), &["x", "v"], |place, cx, v| {
            let index = BlockIndex::new(&place.device(), shape, block, at)?;
            ops::block_sparse_linear(cx, &v[0], &v[1], &index, None, Activation::Identity)
        });
    }
}

#[test]
fn a_block_sparse_product_sees_what_was_written_to_its_values() {
    let index = || BlockIndex::new(&Device::Cpu, (32, 48), (16, 16), &[(0, 2), (1, 0)]).unwrap();
    let mut builder = ParamsBuilder::new(Device::Cpu, DType::F32).unwrap();
    builder.add("unused", &[1], true, vec![0.0]).unwrap();
    let params = builder.build().unwrap();
    let numbers =
        |len: usize, step: usize| -> Vec<f32> { (0..len).map(|i| (i * step % 23) as f32 - 11.0).collect() };
    let x = Tensor::from_f32(&Device::Cpu, &numbers(7 * 48, 5), &[7, 48]).unwrap();
    let product = |index: &BlockIndex, values: &Tensor| {
        let cx = Cx::evaluation(params.clone());
        let (x, values) = (cx.constant(x.clone()), cx.constant(values.clone()));
        let y = ops::block_sparse_linear(&cx, &x, &values, index, None, Activation::Identity).unwrap();
        y.value().to_f32().unwrap()
    };
    let values =
        [3, 7].map(|step| Tensor::from_f32(&Device::Cpu, &numbers(512, step), &[2, 16, 16]).unwrap());
    let shared = index();
    for (round, step) in [2, 4, 8].into_iter().enumerate() {
        // Two weights of one pattern, in turns and twice each, then other values in the same place.
        for values in [&values[0], &values[1], &values[1], &values[0]] {
            assert_eq!(product(&shared, values), product(&index(), values), "round {round}");
        }
        values[0].set_f32(&numbers(512, step)).unwrap();
    }
    assert_ne!(product(&shared, &values[0]), product(&shared, &values[1]));
}

#[test]
fn patches_are_those_of_unfold() {
    for place in places() {
        let cx = Cx::evaluation(place.params.clone());
        let got = ops::patchify(&cx, &place.tensor("patchify/images"), 4).unwrap();
        assert_eq!(got.shape(), shape("patchify/y"));
        assert_eq!(got.value().to_f32().unwrap(), f32s("patchify/y"), "{}", place.name());
    }
}

#[test]
fn dropout_keeps_the_expected_share_and_repeats_in_the_backward_pass() {
    let mut first: Option<Vec<f32>> = None;
    for place in places() {
        let cx = Cx::training(place.params.clone(), StepRng::new(7, 3));
        let ones = Tensor::from_f32(&place.device(), &vec![1.0; 4001], &[4001]).unwrap();
        let x = cx.leaf(ops::cast(&ones, place.dtype).unwrap());
        let y = ops::dropout(&cx, &x, 0.25).unwrap();
        let values = y.value().to_f32().unwrap();
        let n_kept = values.iter().filter(|&&v| v != 0.0).count() as f64;
        // Five standard deviations of a binomial.
        assert!((n_kept - 3000.75).abs() < 5.0 * (4001.0f64 * 0.25 * 0.75).sqrt(), "{n_kept} of 4001 kept");
        let mut gradients = cx.backward(&y, x.value().clone()).unwrap();
        assert_eq!(gradients.take(&x).unwrap().to_f32().unwrap(), values, "the same elements");
        let mask: Vec<f32> = values.iter().map(|&v| f32::from(u8::from(v != 0.0))).collect();
        assert_eq!(*first.get_or_insert(mask.clone()), mask, "the same elements on {}", place.name());
    }
}

#[test]
fn a_recomputed_block_has_the_gradients_of_a_plain_one() {
    for place in places() {
        let mut runs = Vec::new();
        for recompute in [false, true] {
            let mut builder = ParamsBuilder::new(place.device(), place.dtype).unwrap();
            let weight = builder.add("w", &[17, 24], true, f32s("linear_gelu/in/w")).unwrap();
            let params = builder.build().unwrap();
            let cx = Cx::training(params.clone(), StepRng::new(1, 1));
            let x = cx.leaf(ops::cast(&place.tensor("linear_gelu/in/x"), place.dtype).unwrap());
            let block = move |cx: &Cx, v: &[Var]| {
                let hidden = ops::linear(cx, &v[0], &cx.param(weight), None, Activation::Gelu)?;
                ops::dropout(cx, &hidden, 0.5)
            };
            let y = if recompute {
                cx.recompute(&[&x], block).unwrap()
            } else {
                block(&cx, std::slice::from_ref(&x)).unwrap()
            };
            let dy = ops::cast(&place.tensor("linear_gelu/dy"), place.dtype).unwrap();
            let mut gradients = cx.backward(&y, dy).unwrap();
            let dx = gradients.take(&x).unwrap().to_f32().unwrap();
            let dw = params.gradient(weight).unwrap().to_f32().unwrap();
            runs.push((y.value().to_f32().unwrap(), dx, dw));
        }
        assert!(runs[0].2.iter().any(|&g| g != 0.0));
        assert_eq!(runs[0], runs[1], "{}", place.name());
    }
}

#[test]
fn two_gradients_of_one_op_reach_their_places_in_the_flat_array() {
    for place in places() {
        let mut builder = ParamsBuilder::new(place.device(), place.dtype).unwrap();
        let gamma = builder.add("gamma", &[40], false, f32s("layer_norm/in/g")).unwrap();
        let beta = builder.add("beta", &[40], false, f32s("layer_norm/in/b")).unwrap();
        let params = builder.build().unwrap();
        let cx = Cx::training(params.clone(), StepRng::new(0, 0));
        let x = cx.leaf(ops::cast(&place.tensor("layer_norm/in/x"), place.dtype).unwrap());
        let y = ops::layer_norm(&cx, &x, &cx.param_f32(gamma), &cx.param_f32(beta), 1e-6).unwrap();
        cx.backward(&y, ops::cast(&place.tensor("layer_norm/dy"), place.dtype).unwrap()).unwrap();
        compare("layer_norm", "g", &place, &params.gradient(gamma).unwrap());
        compare("layer_norm", "b", &place, &params.gradient(beta).unwrap());
    }
}

/// `y = x aᵀ + (a + b)`: the sum hands one gradient tensor to `a`, `b` and the product, and the product then adds its own
/// to that of `a`. The others must not see it.
#[test]
fn a_gradient_that_is_passed_on_is_not_written_over() {
    for place in places() {
        let cx = Cx::training(place.params.clone(), StepRng::new(0, 0));
        let leaf = |values: &[f32]| {
            let tensor = Tensor::from_f32(&place.device(), values, &[2, 2]).unwrap();
            cx.leaf(ops::cast(&tensor, place.dtype).unwrap())
        };
        let (x, a, b) = (leaf(&[1.0, 2.0, 3.0, 4.0]), leaf(&[1.0, 0.0, 0.0, 1.0]), leaf(&[0.0; 4]));
        let product = ops::linear(&cx, &x, &a, None, Activation::Identity).unwrap();
        let sum = ops::add(&cx, &a, &b).unwrap();
        let y = ops::add(&cx, &product, &sum).unwrap();
        let dy = Tensor::from_f32(&place.device(), &[1.0, 0.0, 0.0, 2.0], &[2, 2]).unwrap();
        let mut gradients = cx.backward(&y, ops::cast(&dy, place.dtype).unwrap()).unwrap();
        let mut take = |var: &Var| gradients.take(var).unwrap().to_f32().unwrap();
        assert_eq!(take(&b), [1.0, 0.0, 0.0, 2.0], "{}", place.name());
        assert_eq!(take(&a), [2.0, 2.0, 6.0, 10.0], "{}", place.name());
        assert_eq!(take(&x), [1.0, 0.0, 0.0, 2.0], "{}", place.name());
    }
}

#[test]
fn a_kept_weight_follows_what_is_written() {
    let (n_in, n_out) = (70, 50);
    let params = places().remove(0).params;
    let (evaluation, training) = (Cx::evaluation(params.clone()), Cx::training(params, StepRng::new(0, 0)));
    let tensor = |seed, shape: &[usize]| {
        Tensor::from_f32(&Device::Cpu, &uniform(seed, shape.iter().product()), shape).unwrap()
    };
    let (w, bias) = (tensor(1, &[n_out, n_in]), tensor(2, &[n_out]));
    let kept = ops::PackedWeight::default();
    let tolerance = (2.0 * gamma(n_in + 1) * (n_in + 1) as f64) as f32;
    for (seed, rows) in [(3, 1), (4, 8), (4, 64), (5, 64), (6, 600)] {
        w.set_f32(&uniform(seed, n_out * n_in)).unwrap();
        let x = tensor(7, &[rows, n_in]);
        for cx in [&evaluation, &training] {
            let (x, w, bias) = (cx.constant(x.clone()), cx.leaf(w.clone()), cx.constant(bias.clone()));
            let product = |packed| {
                let y = ops::linear_packed(cx, &x, &w, Some(&bias), Activation::Relu, packed).unwrap();
                y.value().to_f32().unwrap()
            };
            for (at, (y, plain)) in product(Some(&kept)).iter().zip(product(None)).enumerate() {
                assert!((y - plain).abs() <= tolerance, "{rows} rows, {at}: {y}, not {plain}");
            }
        }
    }
}

#[test]
fn a_misfit_is_named() {
    let place = &places()[0];
    let cx = Cx::training(place.params.clone(), StepRng::new(0, 0));
    let x = cx.leaf(Tensor::zeros(&Device::Cpu, DType::F32, &[2, 5]).unwrap());
    let w = cx.leaf(Tensor::zeros(&Device::Cpu, DType::F32, &[3, 4]).unwrap());
    let error = ops::linear(&cx, &x, &w, None, Activation::Identity).unwrap_err();
    assert_eq!(error.to_string(), "linear: x has shape [2, 5], expected [..., 4], as w is [3, 4]");
    let error = ops::dropout(&cx, &x, 1.0).unwrap_err();
    assert_eq!(error.to_string(), "dropout: p is 1, expected 0 ≤ p < 1");
    let image = cx.leaf(Tensor::zeros(&Device::Cpu, DType::F32, &[1, 1, 1, 5]).unwrap());
    let [gamma, beta] = [(); 2].map(|()| cx.leaf(Tensor::zeros(&Device::Cpu, DType::F32, &[5]).unwrap()));
    let stats = |len| RunningStats {
        mean: Tensor::zeros(&Device::Cpu, DType::F32, &[len]).unwrap(),
        var: Tensor::zeros(&Device::Cpu, DType::F32, &[len]).unwrap(),
    };
    let norm = |x, running, momentum, eps| {
        ops::batch_norm(&cx, x, &gamma, &beta, &stats(running), momentum, eps).unwrap_err().to_string()
    };
    let error = norm(&image, 5, 0.1, 1e-5);
    assert!(error.contains("[1, 1, 1, 5]") && error.contains("two rows"), "{error}");
    let error = norm(&x, 4, 0.1, 1e-5);
    assert_eq!(error, "batch_norm: running mean has shape [4], expected [5]");
    assert_eq!(norm(&x, 5, 1.5, 1e-5), "batch_norm: momentum is 1.5, expected from 0 to 1");
    assert_eq!(norm(&x, 5, 0.1, 0.0), "batch_norm: eps is 0, expected a positive number");
    let window = Window { kernel: (3, 2), stride: 2, padding: 2 };
    let error = ops::max_pool(&cx, &image, window).unwrap_err();
    assert_eq!(error.to_string(), "max_pool: padding is 2, expected less than the window 3×2");
    let error = ops::max_pool(&cx, &x, window).unwrap_err().to_string();
    assert!(error.contains("max_pool: x") && error.contains("[2, 5]"), "{error}");
    let error = Device::open("tpu").unwrap_err();
    assert_eq!(error.to_string(), "unknown device `tpu`: expected `cpu` or `cuda:N`, as in `cuda:0`");
}
