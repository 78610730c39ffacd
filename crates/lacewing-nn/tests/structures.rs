//! Every structure as a layer: the definition in f64 is the oracle of outputs and gradients; a masked dense twin that of
//! training. Tolerances are γ_K times the sum of absolute products. `LACEWING_TEST_CUDA=1` adds a GPU, in f32.

mod chains;

use lacewing_core::{Form, Rng, Structure, rounding, structures};
use lacewing_engine::optim::{Optimizer, Sgd, SgdConfig};
use lacewing_engine::{Cx, DType, Device, StepRng, Tensor, ops};
use lacewing_nn::linear::{DeviceKind, KERNELS, Problem};
use lacewing_nn::{Built, Linear, LinearOptions, ModelBuilder, NnError};
use serde_json::json;

/// The samples of every table row, and blocks large enough for the block-sparse kernel.
fn samples() -> Vec<Box<dyn Structure>> {
    let mut samples: Vec<_> = structures().flat_map(|kind| (kind.samples)()).collect();
    for (config, n_in, n_out) in [
        (json!({"structure": "block_sparse", "block": 8, "density": 0.5}), 32, 24),
        (json!({"structure": "block_sparse", "block": [8, 16], "density": 0.5, "pad": true}), 35, 21),
        (
            json!({"structure": "pixelfly", "butterfly_size": 4, "n_factors": 1, "block": 8, "rank": 3}),
            32,
            32,
        ),
    ] {
        samples.push(lacewing_core::build(&config, n_in, n_out, 1, None).unwrap());
    }
    samples.extend((0..).map_while(chains::sample));
    samples
}

/// The same structure again, since a layer takes its own.
fn copy(structure: &dyn Structure) -> Box<dyn Structure> {
    if structure.name() == chains::NAME {
        return chains::sample(structure.config()["index"].as_u64().unwrap() as usize).unwrap();
    }
    lacewing_core::restore(&structure.config(), structure.n_in(), structure.n_out(), &structure.buffers())
        .unwrap()
}

fn devices() -> Vec<Device> {
    let gpu = std::env::var("LACEWING_TEST_CUDA").is_ok_and(|value| value == "1");
    let gpu = gpu.then(|| Device::open("cuda:0").expect("LACEWING_TEST_CUDA=1 asks for a GPU"));
    [Device::Cpu].into_iter().chain(gpu).collect()
}

fn layer(structure: &dyn Structure, kernel: Option<&str>) -> Result<(Linear, Built), NnError> {
    layer_on(&Device::Cpu, structure, kernel)
}

fn layer_on(
    device: &Device,
    structure: &dyn Structure,
    kernel: Option<&str>,
) -> Result<(Linear, Built), NnError> {
    let mut builder = ModelBuilder::new(device.clone(), DType::F32, 11)?;
    let linear = builder.root().linear_of("layer", copy(structure), kernel, LinearOptions::default())?;
    Ok((linear, builder.finish()?))
}

/// Calls `check` for every device, every sample and every kernel that takes it.
fn for_each_layer(mut check: impl FnMut(&str, &dyn Structure, &Linear, &Built)) {
    for (device, structure) in devices().iter().flat_map(|d| samples().into_iter().map(move |s| (d, s))) {
        let mut ran = 0;
        for kernel in KERNELS {
            let (linear, built) = match layer_on(device, structure.as_ref(), Some(kernel.name)) {
                Ok(built) => built,
                Err(NnError::Refused { .. }) => continue,
                Err(error) => panic!("{error}"),
            };
            let (config, n_out, n_in) = (structure.config(), structure.n_out(), structure.n_in());
            let context = format!("{config} [{n_out}, {n_in}] through {} on {device}", linear.kernel());
            check(&context, structure.as_ref(), &linear, &built);
            ran += 1;
        }
        assert!(ran > 0, "{structure:?} has no kernel");
    }
}

/// Whether factors are multiplied out before they meet the activations.
fn composes(linear: &Linear) -> bool {
    linear.kernel().contains("composed")
}

/// [`rounding::depth`], and what a kernel adds: composing a dense product, merging a product for each weight and longer sums.
fn depth_of(structure: &dyn Structure, linear: &Linear) -> usize {
    let dense = if composes(linear) { structure.n_in() + structure.n_out() } else { 0 };
    let longer = if linear.kernel().contains("merged") { 4 } else { 1 };
    longer * rounding::depth(structure) + dense
}

fn values(built: &Built, linear: &Linear) -> (Vec<Vec<f64>>, Vec<f64>) {
    let read = |id| {
        let values = built.params.master(id).to_f32().unwrap();
        values.into_iter().map(f64::from).collect::<Vec<_>>()
    };
    (linear.weights().iter().map(|&id| read(id)).collect(), read(linear.bias().unwrap()))
}

/// `(structure, weights, x) → [n_out]`.
type Map = fn(&dyn Structure, &[Vec<f64>], &[f64]) -> Vec<f64>;

fn draw(len: usize, rng: &mut Rng) -> Vec<f32> {
    (0..len).map(|_| rng.uniform(-1.0, 1.0) as f32).collect()
}

fn apply(structure: &dyn Structure, weights: &[Vec<f64>], x: &[f64]) -> Vec<f64> {
    structure.apply(&weights.iter().map(Vec::as_slice).collect::<Vec<_>>(), x)
}

/// [`rounding::magnitude`] as a [`Map`].
fn magnitude(structure: &dyn Structure, weights: &[Vec<f64>], x: &[f64]) -> Vec<f64> {
    rounding::magnitude(structure, &weights.iter().map(Vec::as_slice).collect::<Vec<_>>(), x)
}

/// γ_k = k u / (1 − k u) with f32's unit roundoff u.
fn gamma(k: usize) -> f64 {
    let ku = k as f64 * f64::from(f32::EPSILON) / 2.0;
    ku / (1.0 - ku)
}

fn abs(values: &[f64]) -> Vec<f64> {
    values.iter().map(|v| v.abs()).collect()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

#[test]
fn outputs_are_those_of_the_definition_for_any_leading_dimensions() {
    for_each_layer(|context, structure, linear, built| {
        let (n_in, n_out) = (structure.n_in(), structure.n_out());
        let (weights, bias) = values(built, linear);
        let weights_abs: Vec<_> = weights.iter().map(|w| abs(w)).collect();
        let k = depth_of(structure, linear) + 2;
        // The last is many rows: kernels may take another way there.
        for lead in [&[][..], &[1], &[5], &[2, 3], &[2, 2 * n_in + 1]] {
            let rows: usize = lead.iter().product();
            let x = draw(rows * n_in, &mut Rng::new(5));
            let cx = Cx::evaluation(built.params.clone());
            let shape = [lead, &[n_in]].concat();
            let input = cx.constant(Tensor::from_f32(&built.params.device(), &x, &shape).unwrap());
            let y = linear.forward(&cx, &input).unwrap();
            assert_eq!(y.shape(), [lead, &[n_out]].concat(), "{context}");
            let y = y.value().to_f32().unwrap();
            for (x, y) in wide(&x).chunks(n_in).zip(y.chunks(n_out)) {
                let expected = apply(structure, &weights, x);
                let bound = magnitude(structure, &weights_abs, &abs(x));
                for j in 0..n_out {
                    let (expected, bound) = (expected[j] + bias[j], gamma(k) * (bound[j] + bias[j].abs()));
                    let error = (f64::from(y[j]) - expected).abs();
                    assert!(
                        error <= bound,
                        "{context}: output {j} is {}, not {expected} within {bound}",
                        y[j]
                    );
                }
            }
        }
    });
}

#[test]
fn what_is_kept_of_parameters_is_made_again_when_they_were_written() {
    let evaluate = |linear: &Linear, built: &Built, x: &[f32], rows: usize| {
        let cx = Cx::evaluation(built.params.clone());
        let x = Tensor::from_f32(&built.params.device(), x, &[rows, linear.structure().n_in()]).unwrap();
        linear.forward(&cx, &cx.constant(x)).unwrap().value().to_f32().unwrap()
    };
    for_each_layer(|context, structure, linear, built| {
        let (n_in, most) = (structure.n_in(), 9.max(4 * structure.n_in()));
        let x = draw(most * n_in, &mut Rng::new(5));
        let all = |linear: &Linear, built: &Built| {
            [1, 9, most].map(|rows| evaluate(linear, built, &x[..rows * n_in], rows))
        };
        let before = all(linear, built);
        assert!(all(linear, built) == before, "{context}: again");
        let mut sgd = Sgd::new(&built.params, SgdConfig::default()).unwrap();
        let mut step = || {
            let cx = Cx::training(built.params.clone(), StepRng::new(0, 0));
            let of = |values: &[f32], cols| Tensor::from_f32(&built.params.device(), values, &[9, cols]);
            let x = cx.leaf(of(&x[..9 * n_in], n_in).unwrap());
            let y = linear.forward(&cx, &x).unwrap();
            cx.backward(&y, of(&vec![1.0; y.value().len()], structure.n_out()).unwrap()).unwrap();
            sgd.step(&built.params, 0.1, None).unwrap();
        };
        // By an optimizer, then by hand.
        let writes: [&mut dyn FnMut(); 2] = [&mut step, &mut || {
            for id in built.params.ids() {
                let values = built.params.master(id).to_f32().unwrap();
                built.params.set(id, &values.iter().map(|v| 3.0 * v).collect::<Vec<_>>()).unwrap();
            }
            built.params.refresh_copy().unwrap();
        }];
        for write in writes {
            write();
            // Another layer with the same parameters, which has kept nothing.
            let device = built.params.device();
            let kernel = KERNELS.iter().map(|kernel| Some(kernel.name)).find(|&name| {
                layer_on(&device, structure, name).is_ok_and(|(other, _)| other.kernel() == linear.kernel())
            });
            let (other, fresh) = layer_on(&device, structure, kernel.expect("its kernel")).unwrap();
            for (from, to) in built.params.ids().zip(fresh.params.ids()) {
                fresh.params.set(to, &built.params.master(from).to_f32().unwrap()).unwrap();
            }
            fresh.params.refresh_copy().unwrap();
            let after = all(linear, built);
            assert!(after != before, "{context}: as before");
            assert!(after == all(&other, &fresh), "{context}");
        }
    });
}

#[test]
fn gradients_are_the_finite_differences_of_the_definition() {
    // Products are linear in each value, so any step is exact for them; a gate leaves an error of its square.
    let h = 2f64.powi(-14);
    for_each_layer(|context, structure, linear, built| {
        let (n_in, n_out) = (structure.n_in(), structure.n_out());
        // Enough rows that a composing kernel composes; then not every gradient is compared.
        let (rows, stride) = if composes(linear) { (4 * n_in, 13) } else { (3, 1) };
        let (weights, _) = values(built, linear);
        let mut rng = Rng::new(6);
        let (x, seed) = (draw(rows * n_in, &mut rng), draw(rows * n_out, &mut rng));
        let cx = Cx::training(built.params.clone(), StepRng::new(0, 0));
        built.params.zero_gradients().unwrap();
        let input = cx.leaf(Tensor::from_f32(&built.params.device(), &x, &[rows, n_in]).unwrap());
        let y = linear.forward(&cx, &input).unwrap();
        let root = Tensor::from_f32(&built.params.device(), &seed, &[rows, n_out]).unwrap();
        let dx = cx.backward(&y, root).unwrap().take(&input).unwrap().to_f32().unwrap();

        let (x, seed) = (wide(&x), wide(&seed));
        let loss = |f: Map, w: &[Vec<f64>], x: &[f64], seed: &[f64]| {
            let pairs = x.chunks(n_in).zip(seed.chunks(n_out));
            pairs
                .map(|(x, seed)| f(structure, w, x).iter().zip(seed).map(|(y, s)| y * s).sum::<f64>())
                .sum::<f64>()
        };
        let weights_abs: Vec<_> = weights.iter().map(|w| abs(w)).collect();
        let (x_abs, seed_abs) = (abs(&x), abs(&seed));
        let largest = loss(magnitude, &weights_abs, &x_abs, &seed_abs);
        let k = depth_of(structure, linear) + rows + 2;
        // `shifted` moves one value by a step: of the definition both ways, of the bound upwards.
        let check = |what: &str, got: f32, central: [f64; 2], bound: f64| {
            let expected = (central[1] - central[0]) / (2.0 * h);
            let rounding = f64::EPSILON * k as f64 * largest / h;
            let bound = (gamma(k) + h * h) * (bound - largest) / h + 2.0 * rounding;
            let error = (f64::from(got) - expected).abs();
            assert!(error <= bound, "{context}: gradient of {what} is {got}, not {expected} within {bound}");
        };
        let moved = |values: &[f64], at: usize, by: f64| {
            let mut values = values.to_vec();
            values[at] += by;
            values
        };
        for at in (0..x.len()).step_by(stride * stride) {
            let sides = [-h, h].map(|by| loss(apply, &weights, &moved(&x, at, by), &seed));
            let bound = loss(magnitude, &weights_abs, &moved(&x_abs, at, h), &seed_abs);
            check(&format!("x[{at}]"), dx[at], sides, bound);
        }
        for (which, &id) in linear.weights().iter().enumerate() {
            let got = built.params.gradient(id).unwrap().to_f32().unwrap();
            assert_eq!(got.len(), weights[which].len());
            for at in (0..got.len()).step_by(stride) {
                let with = |weights: &[Vec<f64>], by: f64| {
                    let mut weights = weights.to_vec();
                    weights[which][at] += by;
                    weights
                };
                let sides = [-h, h].map(|by| loss(apply, &with(&weights, by), &x, &seed));
                let bound = loss(magnitude, &with(&weights_abs, h), &x_abs, &seed_abs);
                check(&format!("{}[{at}]", built.params.info(id).name), got[at], sides, bound);
            }
        }
        let got = built.params.gradient(linear.bias().unwrap()).unwrap().to_f32().unwrap();
        for j in 0..n_out {
            let column = || seed.iter().skip(j).step_by(n_out);
            let (expected, bound) =
                (column().sum::<f64>(), gamma(rows) * column().map(|s| s.abs()).sum::<f64>());
            assert!((f64::from(got[j]) - expected).abs() <= bound, "{context}: gradient of bias[{j}]");
        }
    });
}

/// On a GPU in bf16: as far from the definition as rounding every operand and every intermediate to bf16 can take it.
#[test]
fn bf16_strays_no_farther_than_its_roundings() {
    let unit = 2f64.powi(-8);
    for device in devices().into_iter().filter(|device| !matches!(device, Device::Cpu)) {
        for (structure, kernel) in samples().iter().flat_map(|s| KERNELS.iter().map(move |k| (s, k))) {
            let structure = structure.as_ref();
            let (n_in, n_out) = (structure.n_in(), structure.n_out());
            let mut builder = ModelBuilder::new(device.clone(), DType::Bf16, 11).unwrap();
            let options = LinearOptions::default();
            let linear = match builder.root().linear_of("layer", copy(structure), Some(kernel.name), options)
            {
                Err(NnError::Refused { .. }) => continue,
                linear => linear.unwrap(),
            };
            let built = builder.finish().unwrap();
            let (weights, bias) = values(&built, &linear);
            let weights_abs: Vec<_> = weights.iter().map(|w| abs(w)).collect();
            // Input, the sum, bias and output; of each factor its values, their gather, their product and its result.
            let links = if let Form::Chain(chain) = structure.form() { chain.links.len() } else { 1 };
            let roundings = (4 + 4 * links) as f64;
            for rows in [3, 4 * n_in] {
                let (x, seed) = (draw(rows * n_in, &mut Rng::new(5)), draw(rows * n_out, &mut Rng::new(6)));
                let cx = Cx::training(built.params.clone(), StepRng::new(0, 0));
                let tensor = |values: &[f32], cols| {
                    ops::cast(&Tensor::from_f32(&device, values, &[rows, cols]).unwrap(), DType::Bf16)
                        .unwrap()
                };
                let input = cx.leaf(tensor(&x, n_in));
                let y = linear.forward(&cx, &input).unwrap();
                let got = y.value().to_f32().unwrap();
                let dx =
                    cx.backward(&y, tensor(&seed, n_out)).unwrap().take(&input).unwrap().to_f32().unwrap();
                let context = format!("{} [{n_out}, {n_in}] through {}", structure.config(), linear.kernel());
                for (at, (x, y)) in wide(&x).chunks(n_in).zip(got.chunks(n_out)).enumerate() {
                    let (expected, bound) =
                        (apply(structure, &weights, x), magnitude(structure, &weights_abs, &abs(x)));
                    for j in 0..n_out {
                        let bound = roundings * unit * (bound[j] + bias[j].abs());
                        let error = (f64::from(y[j]) - expected[j] - bias[j]).abs();
                        assert!(
                            error <= bound,
                            "{context}: output [{at}, {j}] off by {error}, bound {bound}"
                        );
                    }
                }
                assert!(dx.iter().all(|v| v.is_finite()) && dx.iter().any(|&v| v != 0.0), "{context}: dx");
                let gradient = built.params.gradient(linear.weights()[0]).unwrap().to_f32().unwrap();
                assert!(
                    gradient.iter().all(|v| v.is_finite()) && gradient.iter().any(|&v| v != 0.0),
                    "{context}"
                );
            }
        }
    }
}

/// On a GPU in bf16: as evaluation runs the factors, in one launch, and as training does, for most sizes one after the other.
#[test]
fn a_fused_monarch_layer_evaluates_as_it_trains() {
    for device in devices().into_iter().filter(|device| !matches!(device, Device::Cpu)) {
        for (n_in, n_out, blocks) in [(512, 1024, 16), (768, 768, 8), (1024, 1024, 32), (4096, 4096, 32)] {
            let config = json!({"structure": "monarch", "blocks": blocks});
            let structure = lacewing_core::build(&config, n_in, n_out, 0, None).unwrap();
            let mut builder = ModelBuilder::new(device.clone(), DType::Bf16, 11).unwrap();
            let options = LinearOptions { activation: ops::Activation::Gelu, ..LinearOptions::default() };
            let linear =
                builder.root().linear_of("layer", structure, Some("fused_monarch"), options).unwrap();
            let built = builder.finish().unwrap();
            let rows = 1100;
            let x = Tensor::from_f32(&device, &draw(rows * n_in, &mut Rng::new(5)), &[rows, n_in]).unwrap();
            let x = ops::cast(&x, DType::Bf16).unwrap();
            let training = Cx::training(built.params.clone(), StepRng::new(0, 0));
            let trained = linear.forward(&training, &training.constant(x.clone())).unwrap();
            let evaluation = Cx::evaluation(built.params.clone());
            let evaluated = linear.forward(&evaluation, &evaluation.constant(x)).unwrap();
            let [trained, evaluated] = [trained, evaluated].map(|y| y.value().to_f32().unwrap());
            assert!(linear.kernel().contains("chain") || linear.kernel().contains("composed"));
            // Either way rounds its sums, what lies between, and the result.
            let apart = distance(&evaluated, &trained);
            assert!(apart > 0.0 && apart < 4.0 * 2f64.powi(-8), "{config} [{n_out}, {n_in}]: {apart}");
        }
    }
}

/// On a GPU in bf16: a layer whose training is fused, and one that runs its factors one after the other.
#[test]
fn a_fused_monarch_layer_has_the_gradients_of_its_chain() {
    for device in devices().into_iter().filter(|device| !matches!(device, Device::Cpu)) {
        let (n, rows) = (4096, 1100);
        let config = json!({"structure": "monarch", "blocks": 32});
        let run = |kernel: &str| {
            let structure = lacewing_core::build(&config, n, n, 3, None).unwrap();
            let mut builder = ModelBuilder::new(device.clone(), DType::Bf16, 11).unwrap();
            let options = LinearOptions { activation: ops::Activation::Gelu, ..LinearOptions::default() };
            let linear = builder.root().linear_of("layer", structure, Some(kernel), options).unwrap();
            let built = builder.finish().unwrap();
            let tensor = |seed| {
                let values = draw(rows * n, &mut Rng::new(seed));
                ops::cast(&Tensor::from_f32(&device, &values, &[rows, n]).unwrap(), DType::Bf16).unwrap()
            };
            let pass = || {
                let cx = Cx::training(built.params.clone(), StepRng::new(0, 0));
                let input = cx.leaf(tensor(5));
                let y = linear.forward(&cx, &input).unwrap();
                let dx = cx.backward(&y, tensor(6)).unwrap().take(&input).unwrap();
                let params = built.params.ids().map(|id| built.params.gradient(id).unwrap());
                let all: Vec<Tensor> = [y.value().clone(), dx].into_iter().chain(params).collect();
                all.iter().map(|tensor| tensor.to_f32().unwrap()).collect::<Vec<_>>()
            };
            let once = pass();
            let twice = pass();
            assert_eq!(once[..2], twice[..2], "{kernel}");
            for (once, twice) in once[2..].iter().zip(&twice[2..]) {
                let sum: Vec<f32> = once.iter().map(|v| 2.0 * v).collect();
                let apart = distance(twice, &sum);
                assert!(apart < 1e-6, "{kernel}: gradients are added up, {apart}");
            }
            once
        };
        let (fused, chain) = (run("fused_monarch"), run("chain"));
        assert_eq!(fused.len(), 5, "y, dx, and of two factors and a bias");
        for (at, (fused, chain)) in fused.iter().zip(&chain).enumerate() {
            let apart = distance(fused, chain);
            assert!(apart < 4.0 * 2f64.powi(-8), "result {at}: {apart}");
        }
    }
}

/// How far `got` is from `expected`, in norms of the latter; not a number where both are zero.
fn distance(got: &[f32], expected: &[f32]) -> f64 {
    let (norm, apart) = got.iter().zip(expected).fold((0.0, 0.0), |(norm, apart), (a, b)| {
        (norm + f64::from(*b).powi(2), apart + f64::from(a - b).powi(2))
    });
    (apart / norm).sqrt()
}

/// On a GPU in bf16: sparse tensor cores and a dense product of the weight filled in, forward and backward, and again when the
/// weights were written.
#[test]
fn a_two_four_layer_agrees_with_the_dense_product_of_its_weight() {
    for device in devices().into_iter().filter(|device| !matches!(device, Device::Cpu)) {
        for (n, m) in [(2, 4), (1, 2), (1, 4), (2, 8), (1, 16)] {
            let (n_in, n_out, rows) = (448, 192, 300);
            let config = json!({"structure": "nm", "n": n, "m": m});
            let run = |kernel: &str| {
                let structure = lacewing_core::build(&config, n_in, n_out, 3, None).unwrap();
                let mut builder = ModelBuilder::new(device.clone(), DType::Bf16, 11).unwrap();
                let options = LinearOptions { activation: ops::Activation::Gelu, ..LinearOptions::default() };
                let linear = builder.root().linear_of("layer", structure, Some(kernel), options).unwrap();
                assert!(linear.kernel().starts_with(kernel), "{}", linear.kernel());
                let built = builder.finish().unwrap();
                let tensor = |seed, cols| {
                    let values = draw(rows * cols, &mut Rng::new(seed));
                    ops::cast(&Tensor::from_f32(&device, &values, &[rows, cols]).unwrap(), DType::Bf16)
                        .unwrap()
                };
                let weight = linear.weights()[0];
                let evaluate = || {
                    let cx = Cx::evaluation(built.params.clone());
                    linear.forward(&cx, &cx.constant(tensor(5, n_in))).unwrap().value().to_f32().unwrap()
                };
                let first = [evaluate(), evaluate()];
                let cx = Cx::training(built.params.clone(), StepRng::new(0, 0));
                let input = cx.leaf(tensor(5, n_in));
                let y = linear.forward(&cx, &input).unwrap();
                let trained = y.value().to_f32().unwrap();
                let dx = cx.backward(&y, tensor(6, n_out)).unwrap().take(&input).unwrap().to_f32().unwrap();
                let gradient = built.params.gradient(weight).unwrap().to_f32().unwrap();
                let count = built.params.master(weight).len();
                built.params.set(weight, &draw(count, &mut Rng::new(9))).unwrap();
                built.params.refresh_copy().unwrap();
                let [once, again] = first;
                assert_eq!(once, again);
                ([trained, once, evaluate()], [dx, gradient])
            };
            let (sparse, gradients) = run("two_four");
            let (dense, dense_gradients) = run("scatter_dense");
            assert_ne!(sparse[1], sparse[2], "{config}: new weights");
            for (got, expected) in sparse.iter().zip(&dense).chain(gradients.iter().zip(&dense_gradients)) {
                // Both round sums of another order, the pre-activation where it is kept, and the result.
                let apart = distance(got, expected);
                assert!(apart < 2.0 * 2f64.powi(-8), "{config}: {apart}");
            }
        }
    }
}

/// Adam (Kingma and Ba, 2015) in f64 on the gradient of half the mean squared error.
struct Adam {
    moments: Vec<(f64, f64)>,
    step: i32,
}

impl Adam {
    fn new(len: usize) -> Self {
        Self { moments: vec![(0.0, 0.0); len], step: 0 }
    }

    fn step(&mut self, values: &mut [f64], gradient: &[f64]) {
        self.step += 1;
        for ((value, (m, v)), g) in values.iter_mut().zip(&mut self.moments).zip(gradient) {
            *m = 0.9 * *m + 0.1 * g;
            *v = 0.999 * *v + 0.001 * g * g;
            let (m, v) = (*m / (1.0 - 0.9f64.powi(self.step)), *v / (1.0 - 0.999f64.powi(self.step)));
            *value -= 1e-2 * m / (v.sqrt() + 1e-8);
        }
    }
}

#[test]
fn a_pattern_layer_tracks_its_masked_dense_twin_for_40_adam_steps() {
    const ROWS: usize = 16;
    let mut twins = 0;
    for_each_layer(|context, structure, linear, built| {
        let Form::Pattern(pattern) = structure.form() else { return };
        twins += 1;
        let (n_in, n_out) = (structure.n_in(), structure.n_out());
        let mut rng = Rng::new(8);
        let (x, target) = (draw(ROWS * n_in, &mut rng), draw(ROWS * n_out, &mut rng));
        let (id, bias_id) = (linear.weights()[0], linear.bias().unwrap());

        let (mut weights, mut bias) = values(built, linear);
        let mut sparse = weights.remove(0);
        let mut dense = vec![0.0; n_out * n_in];
        pattern.for_each(|at, row, col| dense[row * n_in + col] = sparse[at]);
        let mask = pattern.mask();
        let mut dense_bias = bias.clone();
        let mut adams = [sparse.len(), n_out, dense.len(), n_out].map(Adam::new);
        let [adam, adam_bias, adam_dense, adam_dense_bias] = &mut adams;

        for step in 0..40 {
            let cx = Cx::training(built.params.clone(), StepRng::new(0, step));
            built.params.zero_gradients().unwrap();
            let input = cx.constant(Tensor::from_f32(&built.params.device(), &x, &[ROWS, n_in]).unwrap());
            let y = linear.forward(&cx, &input).unwrap();
            let y_values = y.value().to_f32().unwrap();
            let seed: Vec<f32> = y_values.iter().zip(&target).map(|(y, t)| (y - t) / ROWS as f32).collect();
            cx.backward(&y, Tensor::from_f32(&built.params.device(), &seed, &[ROWS, n_out]).unwrap())
                .unwrap();
            for (adam, values, id) in [(&mut *adam, &mut sparse, id), (&mut *adam_bias, &mut bias, bias_id)] {
                adam.step(values, &wide(&built.params.gradient(id).unwrap().to_f32().unwrap()));
                built.params.set(id, &values.iter().map(|&v| v as f32).collect::<Vec<_>>()).unwrap();
            }

            let (mut gradient, mut gradient_bias) = (vec![0.0; dense.len()], vec![0.0; n_out]);
            for (x, target) in wide(&x).chunks(n_in).zip(wide(&target).chunks(n_out)) {
                for j in 0..n_out {
                    let row = &dense[j * n_in..][..n_in];
                    let y = dense_bias[j] + row.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
                    let seed = (y - target[j]) / ROWS as f64;
                    gradient_bias[j] += seed;
                    for i in 0..n_in {
                        gradient[j * n_in + i] += seed * x[i] * f64::from(u8::from(mask[j * n_in + i]));
                    }
                }
            }
            adam_dense.step(&mut dense, &gradient);
            adam_dense_bias.step(&mut dense_bias, &gradient_bias);
        }
        // The bound that the masked and the packed model are held to.
        let bound = 1e-5;
        pattern.for_each(|at, row, col| {
            let error = (sparse[at] - dense[row * n_in + col]).abs();
            assert!(error <= bound, "{context}: weight [{row}, {col}] is {error} from its twin");
        });
        for (bias, twin) in bias.iter().zip(&dense_bias) {
            assert!((bias - twin).abs() <= bound, "{context}: a bias is {} from its twin", bias - twin);
        }
    });
    assert!(twins >= 10, "only {twins} pattern layers");
}

#[test]
fn the_kernel_is_the_first_that_takes_the_problem_and_pays() {
    let built = |config: serde_json::Value| lacewing_core::build(&config, 960, 960, 0, None).unwrap();
    let on = |device, structure: &dyn Structure, dtype, forced| {
        Problem { structure, dtype, device, forced }.kernel().name
    };
    let (cpu, gpu) = (DeviceKind::Cpu, DeviceKind::Cuda);
    let blocks = |block: usize, density: f64| {
        built(json!({"structure": "block_sparse", "block": block, "density": density}))
    };
    assert_eq!(on(gpu, blocks(64, 0.2).as_ref(), DType::Bf16, None), "block_sparse");
    assert_eq!(on(gpu, blocks(64, 0.05).as_ref(), DType::F32, None), "scatter_dense", "no tensor cores");
    assert_eq!(on(gpu, blocks(32, 0.5).as_ref(), DType::Bf16, None), "scatter_dense", "too dense to pay");
    assert_eq!(on(gpu, blocks(32, 0.5).as_ref(), DType::Bf16, Some("block_sparse")), "block_sparse");
    assert_eq!(
        on(gpu, blocks(24, 0.05).as_ref(), DType::Bf16, None),
        "scatter_dense",
        "not a multiple of 16"
    );
    assert_eq!(on(cpu, blocks(24, 0.05).as_ref(), DType::F32, None), "block_sparse");
    assert_eq!(on(cpu, blocks(4, 0.05).as_ref(), DType::F32, None), "block_sparse");
    assert_eq!(on(gpu, blocks(4, 0.05).as_ref(), DType::F32, None), "scatter_dense", "blocks too small");
    assert_eq!(on(cpu, built(json!("nm")).as_ref(), DType::F32, None), "block_sparse", "half of the values");
    assert_eq!(on(gpu, built(json!("nm")).as_ref(), DType::Bf16, None), "two_four");
    assert_eq!(on(gpu, built(json!("nm")).as_ref(), DType::F32, None), "scatter_dense", "bf16 only");
    for (n, m, axis, expected) in [
        (1, 2, "row", "two_four"),
        (2, 16, "row", "two_four"),
        (3, 8, "row", "scatter_dense"),
        (2, 4, "col", "scatter_dense"),
    ] {
        let nm = built(json!({"structure": "nm", "n": n, "m": m, "axis": axis}));
        assert_eq!(on(gpu, nm.as_ref(), DType::Bf16, None), expected, "{n}:{m} {axis}");
    }
    let most = built(json!({"structure": "unstructured", "density": 0.75}));
    assert_eq!(on(cpu, most.as_ref(), DType::F32, None), "scatter_dense", "too dense to pay");
    let monarch = built(json!({"structure": "monarch", "blocks": 4}));
    assert_eq!(on(cpu, monarch.as_ref(), DType::F32, None), "fused_chain");
    assert_eq!(on(cpu, monarch.as_ref(), DType::F32, Some("chain")), "chain");
    assert_eq!(on(gpu, monarch.as_ref(), DType::Bf16, None), "composed");
    let [wide, resident] = [16, 32].map(|blocks| {
        let config = json!({"structure": "monarch", "blocks": blocks});
        lacewing_core::build(&config, 4096, 4096, 0, None).unwrap()
    });
    assert_eq!(on(gpu, wide.as_ref(), DType::Bf16, None), "fused_monarch");
    assert_eq!(on(gpu, resident.as_ref(), DType::Bf16, None), "fused_monarch");
    assert_eq!(on(gpu, wide.as_ref(), DType::F32, None), "chain");
    let [few, many_rows, narrow] = [(4096, 4), (768, 8), (256, 8)].map(|(n, blocks)| {
        lacewing_core::build(&json!({"structure": "monarch", "blocks": blocks}), n, n, 0, None).unwrap()
    });
    assert_eq!(on(gpu, few.as_ref(), DType::Bf16, None), "composed", "4 blocks: no fused kernel");
    assert_eq!(on(gpu, many_rows.as_ref(), DType::Bf16, None), "fused_monarch", "from some thousand rows on");
    assert_eq!(on(gpu, narrow.as_ref(), DType::Bf16, None), "composed", "a dense product is as fast");
    for (blocks, expected) in [(4, "chain"), (8, "composed")] {
        let config = json!({"structure": "block_diagonal", "blocks": blocks});
        let diagonal = lacewing_core::build(&config, 768, 3072, 0, None).unwrap();
        assert_eq!(on(gpu, diagonal.as_ref(), DType::Bf16, None), expected, "{blocks} blocks");
    }
    assert_eq!(on(gpu, narrow.as_ref(), DType::Bf16, Some("fused_monarch")), "fused_monarch");

    for sample in [2, 3] {
        let chain = chains::sample(sample).unwrap();
        assert_eq!(on(cpu, chain.as_ref(), DType::F32, None), "fused_chain");
        assert_eq!(on(gpu, chain.as_ref(), DType::F32, None), "composed");
        for kernel in ["composed", "merged"] {
            assert_eq!(on(cpu, chain.as_ref(), DType::F32, Some(kernel)), kernel);
        }
    }

    let pixelfly =
        json!({"structure": "pixelfly", "butterfly_size": 8, "n_factors": 2, "block": 8, "rank": 4});
    let pixelfly = lacewing_core::build(&pixelfly, 64, 64, 0, None).unwrap();
    assert_eq!(layer(pixelfly.as_ref(), None).unwrap().0.kernel(), "sum(block_sparse, fused_chain)");
    let forced = layer(pixelfly.as_ref(), Some("scatter_dense")).unwrap().0;
    assert_eq!(forced.kernel(), "sum(scatter_dense, fused_chain)");
    let refused = layer(pixelfly.as_ref(), Some("dense")).unwrap_err().to_string();
    assert!(refused.contains("`dense` does not take `pixelfly`"), "{refused}");
    let unknown = layer(pixelfly.as_ref(), Some("fast")).unwrap_err().to_string();
    assert!(unknown.contains("no kernel `fast`") && unknown.contains("scatter_dense"), "{unknown}");
}

#[test]
fn an_input_of_another_width_is_an_error_even_where_the_structure_pads() {
    let padded = json!({"structure": "block_sparse", "block": 8, "pad": true});
    let structure = lacewing_core::build(&padded, 30, 20, 0, None).unwrap();
    let (linear, built) = layer(structure.as_ref(), None).unwrap();
    let cx = Cx::evaluation(built.params);
    let x = cx.constant(Tensor::zeros(&Device::Cpu, DType::F32, &[2, 32]).unwrap());
    let error = linear.forward(&cx, &x).unwrap_err().to_string();
    assert!(error.contains("[2, 32]") && error.contains("30"), "{error}");
}
