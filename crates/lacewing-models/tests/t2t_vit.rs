//! A small T2T-ViT against its definition in f64, and its gradient against differences of that definition.
//!
//! Every number of the definition carries the size of the error that an f32 computation of it has: each rounding is a
//! unit roundoff of its result, and errors are taken as independent, so that they add in squares. (Bounds that hold for
//! any errors grow by √n a sum, and say nothing after the sums of a whole model.) A logit may be off by [`MARGIN`] times
//! that size.

use lacewing_engine::optim::{AdamW, AdamWConfig, Optimizer, Sgd, SgdConfig};
use lacewing_engine::{Cx, DType, Device, StepRng, Tensor};
use lacewing_models::{BuiltModel, ModelConfig};
use lacewing_nn::ModelBuilder;
use lacewing_testkit::{Slope, UNIT_F32, assert_within, slope, uniform, widen};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const BATCH: usize = 2;
const SIZE: usize = 24;
const CHANNELS: usize = 3;
const TOKEN_DIM: usize = 8;
const DIM: usize = 12;
const HEADS: usize = 3;
const CLASSES: usize = 5;
const EPS: f32 = 1e-5;

fn config() -> Value {
    json!({"name": "t2t_vit_14_t", "image_size": SIZE, "token_dim": TOKEN_DIM, "dim": DIM, "depth": 1, "heads": HEADS,
        "mlp_ratio": 2.0, "n_classes": CLASSES, "activation": "gelu_tanh", "drop_path": 0.0})
}

/// A value, and the size of its error in f32.
#[derive(Clone, Copy)]
struct Near {
    value: f64,
    error: f64,
}

/// What a sum of independent errors stays within for any practical purpose.
const MARGIN: f64 = 8.0;

impl Near {
    fn exact(value: f64) -> Self {
        Self { value, error: 0.0 }
    }

    /// A result of one rounded operation whose inputs alone put it off by `error`.
    fn rounded(value: f64, error: f64) -> Self {
        Self { value, error: error.hypot(UNIT_F32 * value) }
    }

    fn plus(self, other: Self) -> Self {
        Self::rounded(self.value + other.value, self.error.hypot(other.error))
    }

    fn minus(self, other: Self) -> Self {
        Self::rounded(self.value - other.value, self.error.hypot(other.error))
    }

    fn times(self, other: Self) -> Self {
        let error = (self.value * other.error).hypot(self.error * other.value);
        Self::rounded(self.value * other.value, error)
    }
}

/// `Σ a b` in any order.
fn dot<'a>(terms: impl Iterator<Item = (&'a Near, &'a Near)>) -> Near {
    let (mut value, mut square, mut size) = (0.0, 0.0, 0.0);
    for (a, b) in terms {
        value += a.value * b.value;
        square += (a.value * b.error).powi(2) + (a.error * b.value).powi(2);
        size += (a.value * b.value).abs();
    }
    Near { value, error: f64::hypot(square.sqrt(), UNIT_F32 * size) }
}

type Rows = Vec<Vec<Near>>;

/// What a model could be that is not this one.
#[derive(Clone, Copy, PartialEq)]
enum Twist {
    None,
    /// Scores of the token module over √head instead of √input.
    HeadScale,
    /// No v beside the projection.
    NoSkip,
    /// A window's channels fastest.
    ChannelsFastest,
    /// No position table.
    NoPositions,
}

struct Definition<'a> {
    params: &'a BTreeMap<String, Vec<f64>>,
    twist: Twist,
}

impl Definition<'_> {
    fn get(&self, name: &str) -> Vec<Near> {
        self.params
            .get(name)
            .unwrap_or_else(|| panic!("no {name}"))
            .iter()
            .copied()
            .map(Near::exact)
            .collect()
    }

    fn linear(&self, name: &str, x: &Rows) -> Rows {
        let w = self.get(&format!("{name}.weight"));
        let bias =
            self.params.contains_key(&format!("{name}.bias")).then(|| self.get(&format!("{name}.bias")));
        let row = |x: &Vec<Near>| {
            let sums = w.chunks(x.len()).map(|w| dot(x.iter().zip(w)));
            match &bias {
                Some(bias) => sums.zip(bias).map(|(sum, bias)| sum.plus(*bias)).collect(),
                None => sums.collect(),
            }
        };
        x.iter().map(row).collect()
    }

    fn norm(&self, name: &str, x: &Rows) -> Rows {
        let (weight, bias) = (self.get(&format!("{name}.weight")), self.get(&format!("{name}.bias")));
        let row = |x: &Vec<Near>| {
            let n = x.len();
            let ones = vec![Near::exact(1.0); n];
            let over = |sum: Near| Near::rounded(sum.value / n as f64, sum.error / n as f64);
            let mean = over(dot(x.iter().zip(&ones)));
            let centered: Vec<Near> = x.iter().map(|x| x.minus(mean)).collect();
            let var = over(dot(centered.iter().zip(&centered))).plus(Near::exact(f64::from(EPS)));
            // A root and a quotient, each rounded; the slope of 1 / √t is half its cube.
            let root = 1.0 / var.value.sqrt();
            let root = Near::rounded(root, (0.5 * var.error * root.powi(3)).hypot(UNIT_F32 * root));
            let normal = centered.iter().map(|x| x.times(root));
            normal.zip(weight.iter().zip(&bias)).map(|(x, (w, b))| x.times(*w).plus(*b)).collect()
        };
        x.iter().map(row).collect()
    }

    fn mlp(&self, name: &str, x: &Rows) -> Rows {
        let gelu = |x: &Near| {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x.value + 0.044_715 * x.value.powi(3));
            // Its slope is below 1.2; what it adds is a few roundings of factors of at most |x|.
            let error = (1.2 * x.error).hypot(4.0 * UNIT_F32 * x.value);
            Near { value: 0.5 * x.value * (1.0 + inner.tanh()), error }
        };
        let hidden = self.linear(&format!("{name}.fc1"), x);
        let hidden: Rows = hidden.iter().map(|row| row.iter().map(gelu).collect()).collect();
        self.linear(&format!("{name}.fc2"), &hidden)
    }

    /// `softmax(scale · q kᵀ) v` of one head.
    fn attention(&self, q: &Rows, k: &Rows, v: &Rows, scale: f64) -> Rows {
        let row = |q: &Vec<Near>| -> Vec<Near> {
            let scores: Vec<Near> = k.iter().map(|k| dot(q.iter().zip(k))).collect();
            let top = scores.iter().map(|s| s.value).fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (scale * (s.value - top)).exp()).collect();
            let sum: f64 = weights.iter().sum();
            // The exponential is off by as much as its argument, which is rounded three times, and by two units.
            let off = |s: &Near| (scale * s.error).hypot(UNIT_F32 * (4.0 + 3.0 * scale * (top - s.value)));
            let mean = |d: usize| {
                let shares = || weights.iter().zip(v).map(|(w, v)| (w / sum, v[d]));
                let value: f64 = shares().map(|(p, v)| p * v.value).sum();
                let size: f64 = shares().map(|(p, v)| p * v.value.abs()).sum();
                let moved = shares().zip(&scores).map(|((p, v), s)| p * off(s) * (v.value - value));
                let own = shares().map(|(p, v)| p * v.error);
                let square: f64 = moved.chain(own).map(|error| error * error).sum();
                Near { value, error: square.sqrt().hypot(4.0 * UNIT_F32 * size) }
            };
            (0..v[0].len()).map(mean).collect()
        };
        q.iter().map(row).collect()
    }

    /// q, k and v of a fused layer.
    fn qkv(&self, name: &str, x: &Rows) -> [Rows; 3] {
        let all = self.linear(&format!("{name}.qkv"), x);
        let width = all[0].len() / 3;
        [0, 1, 2].map(|at| all.iter().map(|row| row[at * width..][..width].to_vec()).collect())
    }

    /// Windows of `map [side · side, channels]`, their channels slowest.
    fn split(&self, map: &Rows, (kernel, stride, padding): (usize, usize, usize)) -> Rows {
        let side = map.len().isqrt();
        let places = (side + 2 * padding - kernel) / stride + 1;
        let (channels, taps) = (map[0].len(), kernel * kernel);
        let value = |place: usize, at: usize| {
            let (channel, tap) = match self.twist {
                Twist::ChannelsFastest => (at % channels, at / channels),
                _ => (at / taps, at % taps),
            };
            let row = (place / places * stride + tap / kernel).checked_sub(padding).filter(|&row| row < side);
            let col = (place % places * stride + tap % kernel).checked_sub(padding).filter(|&col| col < side);
            row.zip(col).map_or(Near::exact(0.0), |(row, col)| map[row * side + col][channel])
        };
        (0..places * places).map(|place| (0..channels * taps).map(|at| value(place, at)).collect()).collect()
    }

    fn step(&self, name: &str, x: &Rows) -> Rows {
        let n_in = x[0].len();
        let [q, k, v] = self.qkv(&format!("{name}.attn"), &self.norm(&format!("{name}.norm1"), x));
        let width = if self.twist == Twist::HeadScale { TOKEN_DIM } else { n_in };
        let mixed = self.attention(&q, &k, &v, 1.0 / (width as f64).sqrt());
        let projected = self.linear(&format!("{name}.attn.proj"), &mixed);
        let x = if self.twist == Twist::NoSkip { projected } else { sum(&v, &projected) };
        sum(&x, &self.mlp(&format!("{name}.mlp"), &self.norm(&format!("{name}.norm2"), &x)))
    }

    fn block(&self, name: &str, x: &Rows) -> Rows {
        let [q, k, v] = self.qkv(&format!("{name}.attn"), &self.norm(&format!("{name}.norm1"), x));
        let width = DIM / HEADS;
        let mut mixed: Rows = vec![Vec::new(); x.len()];
        for head in 0..HEADS {
            let part =
                |x: &Rows| -> Rows { x.iter().map(|row| row[head * width..][..width].to_vec()).collect() };
            let own = self.attention(&part(&q), &part(&k), &part(&v), 1.0 / (width as f64).sqrt());
            mixed.iter_mut().zip(own).for_each(|(all, own)| all.extend(own));
        }
        let x = sum(x, &self.linear(&format!("{name}.attn.proj"), &mixed));
        sum(&x, &self.mlp(&format!("{name}.mlp"), &self.norm(&format!("{name}.norm2"), &x)))
    }

    /// Logits of one image `[channels, size, size]`.
    fn logits(&self, image: &[f32]) -> Vec<Near> {
        let pixels = SIZE * SIZE;
        let pixel =
            |at: usize| (0..CHANNELS).map(|c| Near::exact(f64::from(image[c * pixels + at]))).collect();
        let mut map: Rows = (0..pixels).map(pixel).collect();
        for (at, window) in [(1, (7, 4, 2)), (2, (3, 2, 1))] {
            map = self.step(&format!("tokens_to_token.attention{at}"), &self.split(&map, window));
        }
        let tokens = self.linear("tokens_to_token.project", &self.split(&map, (3, 2, 1)));
        let mut x = vec![self.get("cls_token")];
        x.extend(tokens);
        let pos = self.get("pos_embed");
        if self.twist != Twist::NoPositions {
            x = sum(&x, &pos.chunks(DIM).map(<[Near]>::to_vec).collect());
        }
        let x = self.block("blocks.0", &x);
        self.linear("head", &self.norm("norm", &x[..1].to_vec())).remove(0)
    }

    /// Logits of a batch, and their bounds.
    fn all(&self, images: &[f32]) -> (Vec<f64>, Vec<f64>) {
        let logits = images.chunks(images.len() / BATCH).flat_map(|image| self.logits(image));
        logits.map(|logit| (logit.value, MARGIN * logit.error)).unzip()
    }
}

fn sum(a: &Rows, b: &Rows) -> Rows {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a.iter().zip(b).map(|(a, b)| a.plus(*b)).collect()).collect()
}

#[test]
fn images_of_another_size_are_an_error_even_where_they_give_as_many_tokens() {
    let (built, _) = model(&config());
    let cx = Cx::evaluation(built.params.clone());
    for shape in [&[1, CHANNELS, SIZE - 1, SIZE][..], &[1, 1, SIZE, SIZE], &[CHANNELS, SIZE, SIZE]] {
        let images = Tensor::zeros(&Device::Cpu, DType::F32, shape).unwrap();
        let error = built.model.forward(&cx, &images).unwrap_err().to_string();
        assert!(error.contains("images") && error.contains("[batch, 3, 24, 24]"), "{error}");
    }
}

/// A model with values that make every part matter, and those values.
fn model(config: &Value) -> (BuiltModel, BTreeMap<String, Vec<f64>>) {
    let builder = ModelBuilder::new(Device::Cpu, DType::F32, 0).unwrap();
    let built = ModelConfig::from_json(config).unwrap().build(builder).unwrap();
    let mut values = BTreeMap::new();
    for (seed, id) in built.params.ids().enumerate() {
        let info = built.params.info(id);
        if info.trained {
            let around = if info.name.contains("norm") && info.name.ends_with("weight") { 1.0 } else { 0.0 };
            // Large scores, so that their scale is seen.
            let size = if info.name.contains("qkv") { 0.5 } else { 0.3 };
            let own: Vec<f32> =
                uniform(seed as u64, info.len()).iter().map(|value| around + size * value).collect();
            built.params.set(id, &own).unwrap();
        }
        values.insert(info.name.clone(), widen(&built.params.master(id).to_f32().unwrap()));
    }
    (built, values)
}

fn images() -> Vec<f32> {
    uniform(99, BATCH * CHANNELS * SIZE * SIZE)
}

fn tensor(images: &[f32]) -> Tensor {
    Tensor::from_f32(&Device::Cpu, images, &[BATCH, CHANNELS, SIZE, SIZE]).unwrap()
}

#[test]
fn the_logits_are_those_of_the_definition_and_of_no_other() {
    let (built, params) = model(&config());
    let images = images();
    let cx = Cx::evaluation(built.params.clone());
    let logits = built.model.forward(&cx, &tensor(&images)).unwrap().value().to_f32().unwrap();
    let split = |twist| Definition { params: &params, twist }.all(&images);
    let (expected, bound) = split(Twist::None);
    assert_within(&logits, &expected, &bound, "logits");
    for (twist, what) in [
        (Twist::HeadScale, "the scale of a head's width"),
        (Twist::NoSkip, "no v beside the projection"),
        (Twist::ChannelsFastest, "windows with channels fastest"),
        (Twist::NoPositions, "no positions"),
    ] {
        let (other, other_bound) = split(twist);
        let told_apart = (0..logits.len())
            .any(|i| (f64::from(logits[i]) - other[i]).abs() > 10.0 * (bound[i] + other_bound[i]));
        assert!(told_apart, "the logits would allow {what}");
    }
}

#[test]
fn three_layers_for_q_k_and_v_give_the_same_logits() {
    let (_, params) = model(&config());
    let mut config = config();
    config["split_qkv"] = Value::from(true);
    let (built, _) = model(&config);
    for id in built.params.ids() {
        let name = &built.params.info(id).name;
        let thirds = ["q", "k", "v"].iter().enumerate().find_map(|(at, letter)| {
            let (before, rest) = name.split_once(&format!(".attn.{letter}."))?;
            let fused = &params[&format!("{before}.attn.qkv.{rest}")];
            Some(fused[at * fused.len() / 3..][..fused.len() / 3].to_vec())
        });
        let values = thirds.unwrap_or_else(|| params[name].clone());
        built.params.set(id, &values.iter().map(|&value| value as f32).collect::<Vec<f32>>()).unwrap();
    }
    let images = images();
    let cx = Cx::evaluation(built.params.clone());
    let logits = built.model.forward(&cx, &tensor(&images)).unwrap().value().to_f32().unwrap();
    let (expected, bound) = Definition { params: &params, twist: Twist::None }.all(&images);
    assert_within(&logits, &expected, &bound, "logits");
}

#[test]
fn gradients_are_the_slopes_of_the_definition() {
    let (built, params) = model(&config());
    let images = images();
    let seed = uniform(7, BATCH * CLASSES);
    let cx = Cx::training(built.params.clone(), StepRng::new(0, 0));
    let logits = built.model.forward(&cx, &tensor(&images)).unwrap();
    cx.backward(&logits, Tensor::from_f32(&Device::Cpu, &seed, &[BATCH, CLASSES]).unwrap()).unwrap();
    let gradients: Vec<(String, Vec<f64>)> = built
        .params
        .ids()
        .filter(|&id| built.params.info(id).trained)
        .map(|id| {
            let gradient = built.params.gradient(id).unwrap().to_f32().unwrap();
            (built.params.info(id).name.clone(), widen(&gradient))
        })
        .collect();
    // Each of the roundings on the way, one a product of a layer or of a pair of tokens, is at most u of the whole.
    let norm = |values: &[f64]| values.iter().map(|v| v * v).sum::<f64>().sqrt();
    let whole = norm(&gradients.iter().flat_map(|(_, gradient)| gradient.clone()).collect::<Vec<f64>>());
    let roundings: usize =
        built.summary.layers.iter().map(|layer| layer.n_in + layer.n_out + layer.rows_per_sample).sum();
    let allowed = roundings as f64 * UNIT_F32 * whole;
    for (at, (name, gradient)) in gradients.iter().enumerate() {
        let direction = widen(&uniform(1000 + at as u64, gradient.len()));
        let length = norm(&direction);
        let along: f64 = gradient.iter().zip(&direction).map(|(g, d)| g * d / length).sum();
        let mut moved = params.clone();
        let loss = |t: f64| {
            let own = params[name].iter().zip(&direction).map(|(value, d)| value + t * d / length);
            moved.insert(name.clone(), own.collect());
            let (logits, _) = Definition { params: &moved, twist: Twist::None }.all(&images);
            logits.iter().zip(&seed).map(|(logit, dy)| logit * f64::from(*dy)).sum()
        };
        let Slope { value, error } = slope(loss, 0.0);
        assert!(error <= allowed, "{name}: differences give only {value} ± {error:e}, {allowed:e} needed");
        let bound = error + allowed;
        assert!((along - value).abs() <= bound, "{name}: {along} along a line, expected {value} ± {bound:e}");
    }
}

#[test]
fn the_position_table_is_sinusoids_and_stays_through_training() {
    let (built, _) = model(&config());
    let id = built.params.find("pos_embed").unwrap();
    let table = built.params.master(id).to_f32().unwrap();
    // 24 pixels a side give 6, 3 and 2 tokens a side, and the class token.
    assert_eq!(built.params.info(id).shape, [5, DIM]);
    for (i, value) in table.iter().enumerate() {
        let (token, col) = (i / DIM, i % DIM);
        let angle = token as f64 * 10000f64.powf(-((col / 2 * 2) as f64) / DIM as f64);
        let expected = if col % 2 == 0 { angle.sin() } else { angle.cos() };
        assert!((f64::from(*value) - expected).abs() <= UNIT_F32 + 8.0 * f64::EPSILON * angle);
    }
    let images = images();
    let adamw = AdamWConfig { weight_decay: 0.5, ..AdamWConfig::default() };
    let sgd = SgdConfig { momentum: 0.9, nesterov: true, weight_decay: 0.5 };
    let optimizers: [Box<dyn Optimizer>; 2] = [
        Box::new(AdamW::new(&built.params, adamw).unwrap()),
        Box::new(Sgd::new(&built.params, sgd).unwrap()),
    ];
    let head = built.params.find("head.weight").unwrap();
    for mut optimizer in optimizers {
        let before = built.params.master(head).to_f32().unwrap();
        for step in 0..3 {
            let cx = Cx::training(built.params.clone(), StepRng::new(0, step));
            let logits = built.model.forward(&cx, &tensor(&images)).unwrap();
            let seed =
                Tensor::from_f32(&Device::Cpu, &uniform(7, BATCH * CLASSES), &[BATCH, CLASSES]).unwrap();
            cx.backward(&logits, seed).unwrap();
            optimizer.step(&built.params, 0.01, Some(1.0)).unwrap();
        }
        assert!(built.params.master(head).to_f32().unwrap() != before);
        assert!(built.params.master(id).to_f32().unwrap() == table);
    }
}
