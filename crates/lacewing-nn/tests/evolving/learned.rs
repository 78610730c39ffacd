//! Learned masks: scores of places, rows and columns, thresholds and penalties.

use super::*;

/// A first step at the peak of the learning rate.
const RATE: ScoreRate = ScoreRate { share: 1.0, steps: 1, penalty: (Penalty::None, 0.0) };

#[test]
fn learned_masks_follow_their_scores() {
    for (device, schedule) in
        devices().into_iter().flat_map(|d| ["movement", "magnitude"].map(|s| (d.clone(), s)))
    {
        let config =
            json!({"structure": "block_sparse", "block": [2, 4], "density": 0.25, "schedule": schedule});
        let options = LinearOptions { bias: false, ..LinearOptions::default() };
        let (linear, built) = try_layer(&device, &config, 8, 4, options).unwrap();
        let (layer, params) = (&built.evolving[0], &built.params);
        let value = |i: usize| ((i * 37 % 19) as f32 - 9.0) / 8.0;
        let w: Vec<f32> = (0..32).map(value).collect();
        params.set(layer.weight, &w).unwrap();
        layer.let_through(params, params.flat_master()).unwrap();
        let mut unit = [0.0f32; 64];
        (0..8).for_each(|i| unit[i * 9] = 1.0);
        let unit = tensor(&device, &unit, &[8, 8]);
        // What the gradient of the effective weight is: the transposed gradient of the output.
        let dy: Vec<f32> = (0..32).map(|i| value(i * 5 + 2)).collect();
        let g: Vec<f32> = (0..32).map(|i| dy[i % 8 * 4 + i / 8]).collect();
        let dy = tensor(&device, &dy, &[8, 4]);
        let block_of = |i: usize| i / 8 / 2 * 2 + i % 8 / 4;
        // All weights count at first, and get their gradient.
        let (y, _) = pass(&linear, &built, &unit, &dy);
        assert_eq!(y, (0..32).map(|i| w[i % 4 * 8 + i / 4]).collect::<Vec<_>>());
        layer.learn(params, RATE).unwrap();
        let gradient = || params.gradient(layer.weight).unwrap().to_f32().unwrap();
        assert_eq!(gradient(), g);
        params.zero_gradients().unwrap();

        let mut scores = [0.0f64; 4];
        for i in 0..32 {
            let (w, g) = (f64::from(w[i]), f64::from(g[i]));
            scores[block_of(i)] += if schedule == "movement" { -g * w } else { w * w };
        }
        layer.choose_mask(params, Choice::Share(0.5)).unwrap();
        let mask = layer.learned_mask(params, params.flat_master()).unwrap().unwrap();
        let mut ranked: Vec<usize> = (0..4).collect();
        ranked.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        let wanted: Vec<bool> = (0..4).map(|b| ranked[..2].contains(&b)).collect();
        assert_eq!(mask, wanted, "{schedule}: {scores:?}");
        // Weights that do not count are not multiplied and get no gradient, but stay as they are.
        layer.let_through(params, params.flat_master()).unwrap();
        let (y, _) = pass(&linear, &built, &unit, &dy);
        let through = |i: usize| if mask[block_of(i)] { w[i] } else { 0.0 };
        assert_eq!(y, (0..32).map(|i| through(i % 4 * 8 + i / 4)).collect::<Vec<_>>());
        layer.learn(params, RATE).unwrap();
        let masked: Vec<f32> = (0..32).map(|i| if mask[block_of(i)] { g[i] } else { 0.0 }).collect();
        assert_eq!(gradient(), masked);
        assert_eq!(params.master(layer.weight).to_f32().unwrap(), w);
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The values of the layer's parameter `name`.
fn values_of(built: &Built, name: &str) -> Vec<f64> {
    let id = built.params.find(&format!("layer.{name}")).unwrap_or_else(|| panic!("no {name}"));
    built.params.master(id).to_f32().unwrap().into_iter().map(f64::from).collect()
}

#[test]
fn trained_scores_follow_the_gradient_of_loss_and_penalty() {
    for (device, penalty) in
        devices().into_iter().flat_map(|d| [Penalty::None, Penalty::L1, Penalty::L0].map(|p| (d.clone(), p)))
    {
        let config = json!({"structure": "block_sparse", "block": [2, 4], "schedule": "soft_movement"});
        let options = LinearOptions { bias: false, ..LinearOptions::default() };
        let (linear, built) = try_layer(&device, &config, 8, 4, options).unwrap();
        let (layer, params) = (&built.evolving[0], &built.params);
        // All places until some are chosen.
        assert_eq!(built.summary.layers[0].density, 1.0);
        let value = |i: usize| ((i * 37 % 19) as f32 - 9.0) / 8.0;
        let w: Vec<f32> = (0..32).map(value).collect();
        params.set(layer.weight, &w).unwrap();
        let mut unit = [0.0f32; 64];
        (0..8).for_each(|i| unit[i * 9] = 1.0);
        let unit = tensor(&device, &unit, &[8, 8]);
        let dy: Vec<f32> = (0..32).map(|i| value(i * 5 + 2)).collect();
        let g: Vec<f64> = (0..32).map(|i| f64::from(dy[i % 8 * 4 + i / 8])).collect();
        let dy = tensor(&device, &dy, &[8, 4]);
        let block_of = |i: usize| i / 8 / 2 * 2 + i % 8 / 4;
        // One place is masked: its score gets its gradient all the same, straight through.
        params.set(params.find("layer.scores").unwrap(), &[0.5, -3.0, 0.1, 0.0]).unwrap();
        let above = Choice::Above { threshold: 0.1, sigmoid: true, min_share: 0.0 };
        layer.choose_mask(params, above).unwrap();
        let mask = layer.learned_mask(params, params.flat_master()).unwrap().unwrap();
        assert_eq!(mask, [true, false, true, true], "σ(−3) < 0.1");
        let (mut scores, mut m, mut v) =
            ([0.5, f64::from(-3.0f32), f64::from(0.1f32), 0.0], [0.0; 4], [0.0; 4]);
        let lambda = 0.7;
        let term = |s: f64| match penalty {
            Penalty::None => 0.0,
            Penalty::L1 => lambda * sigmoid(s) / 4.0,
            Penalty::L0 => lambda * sigmoid(s - 2.0 / 3.0 * (0.1f64 / 1.1).ln()) / 4.0,
        };
        for steps in 1..=3 {
            layer.let_through(params, params.flat_master()).unwrap();
            pass(&linear, &built, &unit, &dy);
            layer.learn(params, ScoreRate { share: 0.5, steps, penalty: (penalty, lambda) }).unwrap();
            params.zero_gradients().unwrap();
            for b in 0..4 {
                let data: f64 = (0..32).filter(|&i| block_of(i) == b).map(|i| g[i] * f64::from(w[i])).sum();
                let h = 1e-5;
                let gradient = data + (term(scores[b] + h) - term(scores[b] - h)) / (2.0 * h);
                (m[b], v[b]) = (0.9 * m[b] + 0.1 * gradient, 0.999 * v[b] + 0.001 * gradient * gradient);
                let corrected =
                    [m[b] / (1.0 - 0.9f64.powi(steps as i32)), v[b] / (1.0 - 0.999f64.powi(steps as i32))];
                // Half of the schedule's learning rate, as the share says.
                scores[b] -= 0.5 * 1e-2 * corrected[0] / (corrected[1].sqrt() + 1e-8);
            }
            for (got, wanted) in values_of(&built, "scores").into_iter().zip(scores) {
                // Roundings of scores up to 3 a step, and of the change, which is at most 5e-3.
                let bound = steps as f64 * 4.0 * f64::from(f32::EPSILON);
                assert!((got - wanted).abs() <= bound, "{penalty:?}, step {steps}: {got} {wanted}");
            }
        }
    }
}

/// What a layer of 4 × 8 weights in blocks of 2 × 4 has, and the gradients that reach it.
struct Blocks {
    w: Vec<f32>,
    /// Of the effective weight.
    g: Vec<f64>,
    x: Tensor,
    dy: Tensor,
}

impl Blocks {
    fn new(device: &Device) -> Self {
        let value = |i: usize| ((i * 37 % 19) as f32 - 9.0) / 8.0;
        let mut unit = [0.0f32; 64];
        (0..8).for_each(|i| unit[i * 9] = 1.0);
        let dy: Vec<f32> = (0..32).map(|i| value(i * 5 + 2)).collect();
        Self {
            w: (0..32).map(value).collect(),
            g: (0..32).map(|i| f64::from(dy[i % 8 * 4 + i / 8])).collect(),
            x: tensor(device, &unit, &[8, 8]),
            dy: tensor(device, &dy, &[8, 4]),
        }
    }

    /// Σ g w over each of the four blocks, row by row.
    fn sums(&self) -> [f64; 4] {
        let mut sums = [0.0; 4];
        (0..32).for_each(|i| sums[i / 16 * 2 + i % 8 / 4] += self.g[i] * f64::from(self.w[i]));
        sums
    }
}

#[test]
fn rows_and_columns_have_scores_of_their_own() {
    for (device, (scores, name)) in devices().into_iter().flat_map(|d| {
        [("rows", "movement"), ("columns", "movement"), ("rows", "magnitude"), ("columns", "magnitude")]
            .map(|case| (d.clone(), case))
    }) {
        let schedule = json!({"name": name, "scores": scores});
        let config = json!({"structure": "block_sparse", "block": [2, 4], "schedule": schedule});
        let (linear, built) = layer(&device, &config, 8, 4);
        let (layer, params, blocks) = (&built.evolving[0], &built.params, Blocks::new(&device));
        params.set(layer.weight, &blocks.w).unwrap();
        layer.let_through(params, params.flat_master()).unwrap();
        pass(&linear, &built, &blocks.x, &blocks.dy);
        layer.learn(params, RATE).unwrap();
        let of = |i: usize| if scores == "rows" { i / 16 } else { i % 8 / 4 };
        let mut wanted = [0.0f64; 2];
        for i in 0..32 {
            let (g, w) = (blocks.g[i], f64::from(blocks.w[i]));
            wanted[of(i)] += if name == "movement" { -g * w } else { w * w };
        }
        if name == "movement" {
            // Products of eighths are exact, and so are their sums.
            assert_eq!(values_of(&built, "scores"), wanted);
        }
        layer.choose_mask(params, Choice::Share(0.5)).unwrap();
        let mask = layer.learned_mask(params, params.flat_master()).unwrap().unwrap();
        let best = usize::from(wanted[1] > wanted[0]);
        let counts = |place: usize| best == if scores == "rows" { place / 2 } else { place % 2 };
        assert_eq!(mask, (0..4).map(counts).collect::<Vec<_>>(), "{name} of {scores}: {wanted:?}");
    }
}

#[test]
fn scores_of_rows_and_columns_multiply() {
    for device in devices() {
        let schedule = json!({"name": "soft_movement", "scores": "rows_and_columns", "lr": 0.5});
        let config = json!({"structure": "block_sparse", "block": [2, 4], "schedule": schedule});
        let (linear, built) = layer(&device, &config, 8, 4);
        let (layer, params, blocks) = (&built.evolving[0], &built.params, Blocks::new(&device));
        params.set(layer.weight, &blocks.w).unwrap();
        assert_eq!([values_of(&built, "row_scores"), values_of(&built, "column_scores")], [[1.0; 2]; 2]);
        let (rows, columns) = ([0.5f32, -1.5], [2.0f32, 0.25]);
        params.set(params.find("layer.row_scores").unwrap(), &rows).unwrap();
        params.set(params.find("layer.column_scores").unwrap(), &columns).unwrap();
        let above = |threshold| Choice::Above { threshold, sigmoid: false, min_share: 0.0 };
        let chosen = |choice| {
            layer.choose_mask(params, choice).unwrap();
            layer.learned_mask(params, params.flat_master()).unwrap().unwrap()
        };
        // The products are 1, 0.125, −3, −0.375.
        assert_eq!(chosen(above(0.1)), [true, true, false, false]);
        assert_eq!(chosen(above(-0.4)), [true, true, false, true]);
        layer.let_through(params, params.flat_master()).unwrap();
        pass(&linear, &built, &blocks.x, &blocks.dy);
        let lambda = 3.0;
        layer.learn(params, ScoreRate { share: 1.0, steps: 1, penalty: (Penalty::L1, lambda) }).unwrap();
        // The gradient of Σ_ij dS_ij r_i c_j and of each vector's penalty, by central differences. Adam's first step has the length
        // of the learning rate, so the first moment, a tenth of the gradient, says what it was.
        let sums = blocks.sums();
        let loss = |r: [f64; 2], c: [f64; 2]| {
            let data: f64 = (0..4).map(|b| sums[b] * r[b / 2] * c[b % 2]).sum();
            let penalty: f64 = r.iter().chain(&c).map(|&s| lambda * sigmoid(s) / 2.0).sum();
            data + penalty
        };
        let (r, c, h) = (rows.map(f64::from), columns.map(f64::from), 1e-5);
        for at in 0..4 {
            let moved = |by: f64| {
                let (mut r, mut c) = (r, c);
                if at < 2 {
                    r[at] += by
                } else {
                    c[at - 2] += by
                }
                loss(r, c)
            };
            let wanted = (moved(h) - moved(-h)) / (2.0 * h);
            let vector = if at < 2 { "row_scores" } else { "column_scores" };
            let got = 10.0 * values_of(&built, &format!("{vector}_first_moment"))[at % 2];
            // Sums of 16 products below 4 in f32, and what the difference costs.
            let bound = 1e-5 + 32.0 * 4.0 * f64::from(f32::EPSILON);
            assert!((got - wanted).abs() <= bound, "{vector} {}: {got} {wanted}", at % 2);
            let stepped = values_of(&built, vector)[at % 2];
            let from = if at < 2 { r[at] } else { c[at - 2] };
            assert!((stepped - (from - 0.5 * wanted.signum())).abs() <= 1e-5, "{stepped} from {from}");
        }
    }
}

#[test]
fn biases_of_rows_that_count_nowhere_do_not_count() {
    for (device, mask_bias) in devices().into_iter().flat_map(|d| [false, true].map(|m| (d.clone(), m))) {
        let schedule = json!({"name": "movement", "scores": "rows", "mask_bias": mask_bias});
        let config = json!({"structure": "block_sparse", "block": [2, 4], "schedule": schedule});
        let (linear, built) = layer(&device, &config, 8, 4);
        let (layer, params, blocks) = (&built.evolving[0], &built.params, Blocks::new(&device));
        let bias = linear.bias().unwrap();
        params.set(layer.weight, &blocks.w).unwrap();
        params.set(bias, &[1.0, 2.0, 3.0, 4.0]).unwrap();
        params.set(params.find("layer.scores").unwrap(), &[-1.0, 1.0]).unwrap();
        layer.choose_mask(params, Choice::Share(0.5)).unwrap();
        layer.let_through(params, params.flat_master()).unwrap();
        let zeros = tensor(&device, &[0.0; 8], &[1, 8]);
        let dy = tensor(&device, &[5.0, 6.0, 7.0, 8.0], &[1, 4]);
        let (y, _) = pass(&linear, &built, &zeros, &dy);
        layer.learn(params, RATE).unwrap();
        let gradient = params.gradient(bias).unwrap().to_f32().unwrap();
        let packed = layer.learned_bias(params, params.flat_master()).unwrap();
        if mask_bias {
            assert_eq!((y, gradient), (vec![0.0, 0.0, 3.0, 4.0], vec![0.0, 0.0, 7.0, 8.0]));
            assert_eq!(packed.unwrap(), [0.0, 0.0, 3.0, 4.0]);
        } else {
            assert_eq!((y, gradient), (vec![1.0, 2.0, 3.0, 4.0], vec![5.0, 6.0, 7.0, 8.0]));
            assert_eq!(packed, None);
        }
        assert_eq!(params.master(bias).to_f32().unwrap(), [1.0, 2.0, 3.0, 4.0], "it stays as it was");
    }
}
