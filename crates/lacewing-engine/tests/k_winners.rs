//! K-winners against the published numbers and an oracle in f64, on every device there is: choices and duty cycles are
//! the same bits everywhere.
//!
//! `LACEWING_TEST_CUDA=1` adds the GPU, in f32 and bf16; a GPU that cannot be had is then a failure.

use lacewing_engine::ops::{self, Competition, DutyCycles, DutyRate};
use lacewing_engine::{
    Cx, DType, Device, EngineError, ParamId, Params, ParamsBuilder, Result, StepRng, Tensor, Var,
};
use lacewing_testkit::{UNIT_F32, gamma, slope, uniform};
use std::sync::{Arc, LazyLock};

static GPU: LazyLock<Option<Device>> = LazyLock::new(|| {
    let wanted = std::env::var("LACEWING_TEST_CUDA").is_ok_and(|v| v == "1");
    wanted.then(|| Device::open("cuda:0").expect("LACEWING_TEST_CUDA=1 asks for a GPU"))
});

fn places() -> Vec<(Device, DType)> {
    let mut places = vec![(Device::Cpu, DType::F32)];
    if let Some(gpu) = &*GPU {
        places.extend([(gpu.clone(), DType::F32), (gpu.clone(), DType::Bf16)]);
    }
    places
}

/// Duty cycles of a model of nothing else.
struct Model {
    params: Arc<Params>,
    dtype: DType,
    duty: ParamId,
    clock: ParamId,
}

impl Model {
    fn new((device, dtype): (Device, DType), duty: &[f32], clock: [f32; 2]) -> Self {
        let mut builder = ParamsBuilder::new(device, dtype).unwrap();
        let duty = builder.add_constant("duty", &[duty.len()], duty.to_vec()).unwrap();
        let clock = builder.add_constant("clock", &[2], clock.to_vec()).unwrap();
        Self { params: builder.build().unwrap(), dtype, duty, clock }
    }

    fn training(&self) -> Cx {
        Cx::training(self.params.clone(), StepRng::new(0, 0))
    }

    fn tensor(&self, values: &[f32], shape: &[usize]) -> Tensor {
        let tensor = Tensor::from_f32(&self.params.device(), values, shape).unwrap();
        ops::cast(&tensor, self.dtype).unwrap()
    }

    fn forward(&self, cx: &Cx, x: &Var, who: Competition, boost: f32, rate: DutyRate) -> Result<Var> {
        let (duty, clock) = (self.params.master(self.duty), self.params.master(self.clock));
        ops::k_winners(cx, x, who, DutyCycles { duty: &duty, clock: &clock, boost, rate })
    }

    /// A training step: the output, and the gradient of its sum.
    fn step(
        &self,
        x: (&[f32], &[usize]),
        who: Competition,
        boost: f32,
        rate: DutyRate,
    ) -> (Vec<f32>, Vec<f32>) {
        let cx = self.training();
        let x = cx.leaf(self.tensor(x.0, x.1));
        let y = self.forward(&cx, &x, who, boost, rate).unwrap();
        assert_eq!(y.shape(), x.shape());
        let ones = self.tensor(&vec![1.0; y.value().len()], y.shape());
        let dx = cx.backward(&y, ones).unwrap().take(&x).unwrap();
        (y.value().to_f32().unwrap(), dx.to_f32().unwrap())
    }

    fn values(&self, id: ParamId) -> Vec<f32> {
        self.params.master(id).to_f32().unwrap()
    }

    /// The duty cycles, each within the rounding of what it is stored in.
    #[track_caller]
    fn expect_duty(&self, expected: &[f64]) {
        for (at, (&got, &expected)) in self.values(self.duty).iter().zip(expected).enumerate() {
            // The old cycle and the weight were rounded to f32 before, the new one is after.
            let bound = gamma(3) * expected.abs().max(1.0 / 8.0);
            assert!((f64::from(got) - expected).abs() <= bound, "duty[{at}] = {got}, expected {expected}");
        }
    }
}

fn plain(dims: usize, k: usize) -> Competition {
    Competition { dims, k, relu: false }
}

/// The four rows of the published example, whose winners are the two largest values of each.
const ROWS: [f32; 16] = [1., 4., 2., 3., 4., 1., 3., 2., 4., 3., 2., 1., -1., -2., -3., -4.];

#[test]
fn the_published_example_with_a_constant_weight() {
    for place in places() {
        let exact = place.1 == DType::F32;
        let model = Model::new(place.clone(), &[0.0; 4], [0.0, 1.5]);
        let (y, dx) = model.step((&ROWS, &[4, 4]), plain(1, 2), 1.5, DutyRate::Constant(0.1));
        assert_eq!(y, [0., 4., 0., 3., 4., 0., 3., 0., 4., 3., 0., 0., -1., -2., 0., 0.]);
        assert_eq!(dx, [0., 1., 0., 1., 1., 0., 1., 0., 1., 1., 0., 0., 1., 1., 0., 0.]);
        // The mean over the batch; winners below 0 do not count.
        model.expect_duty(&[0.05, 0.05, 0.025, 0.025]);
        assert_eq!(model.values(model.clock), [0.0, 1.5], "a constant weight counts no samples");

        let model = Model::new(place, &[0.2, 0.2, 0.1, 0.1], [0.0, 1.5]);
        let x = [1.0, 1.05, 0.2, 0.9];
        let (y, _) = model.step((&x, &[1, 4]), plain(1, 2), 1.5, DutyRate::Constant(0.1));
        let wins: Vec<bool> = y.iter().map(|&y| y != 0.0).collect();
        assert_eq!(wins, [false, true, false, true]);
        assert!(!exact || y == [0.0, 1.05, 0.0, 0.9]);
        model.expect_duty(&[0.18, 0.28, 0.09, 0.19]);
    }
}

#[test]
fn the_published_example_with_a_period() {
    let x = [1.0, 0.9, 0.2, 0.8, 0.1, 0.5, 0.6, 0.4];
    for place in places() {
        for (seen, duty) in [(0.0, [0.5, 0.0, 0.5, 1.0]), (98.0, [0.5, 0.49, 0.01, 0.265])] {
            let model = Model::new(place.clone(), &[0.5, 0.5, 0.0, 0.25], [seen, 1.0]);
            let (y, _) = model.step((&x, &[2, 4]), plain(1, 2), 1.0, DutyRate::Period(1000));
            let expected = model.tensor(&[1., 0., 0., 0.8, 0., 0., 0.6, 0.4], &[8]).to_f32().unwrap();
            assert_eq!(y, expected, "{seen} seen");
            model.expect_duty(&duty);
            assert_eq!(model.values(model.clock), [seen + 2.0, 1.0]);
        }
        // At the period the count stays, and a batch longer than it is all that there is.
        let model = Model::new(place, &[0.5; 4], [3.0, 0.0]);
        model.step((&x, &[2, 4]), plain(1, 2), 0.25, DutyRate::Period(4));
        assert_eq!(model.values(model.clock), [4.0, 0.25]);
        model.step((&ROWS, &[4, 4]), plain(1, 2), 0.25, DutyRate::Period(2));
        assert_eq!(model.values(model.clock), [2.0, 0.25]);
        model.expect_duty(&[0.5, 0.5, 0.25, 0.25]);
    }
}

#[test]
fn of_equal_values_the_lower_index_wins() {
    for place in places() {
        let model = Model::new(place, &[0.0; 5], [0.0, 0.0]);
        let winners = |x: [f32; 5], k: usize| {
            let (_, dx) = model.step((&x, &[1, 5]), plain(1, k), 0.0, DutyRate::Constant(0.1));
            dx.iter().enumerate().filter(|(_, dx)| **dx == 1.0).map(|(at, _)| at).collect::<Vec<_>>()
        };
        assert_eq!(winners([1.0; 5], 2), [0, 1]);
        assert_eq!(winners([0.0, 2.0, 1.0, 1.0, 1.0], 3), [1, 2, 3]);
        assert_eq!(winners([0.0, -0.0, 0.0, -1.0, 0.0], 3), [0, 1, 2], "both zeros are one number");
        assert_eq!(winners([f32::NEG_INFINITY, -1.0, f32::NAN, f32::INFINITY, 5.0], 2), [2, 3]);
        assert_eq!(winners([3.0, 1.0, 2.0, 0.0, -1.0], 5), [0, 1, 2, 3, 4]);
    }
}

#[test]
fn equal_values_are_cut_at_any_place_of_long_groups() {
    for place in places() {
        for n in [31, 32, 33, 257, 1000] {
            let model = Model::new(place.clone(), &vec![0.0; n], [0.0, 0.0]);
            // Every third is above the rest.
            let x: Vec<f32> = (0..n).map(|at| if at % 3 == 2 { 2.0 } else { 1.0 }).collect();
            for k in [1, n / 3, n / 3 + 1, n / 2, n - 1, n] {
                let (_, dx) = model.step((&x, &[1, n]), plain(1, k), 0.0, DutyRate::Constant(0.1));
                let mut order: Vec<usize> = (0..n).collect();
                order.sort_by(|&a, &b| x[b].total_cmp(&x[a]).then(a.cmp(&b)));
                let mut expected = vec![0.0; n];
                order[..k].iter().for_each(|&at| expected[at] = 1.0);
                assert_eq!(dx, expected, "{k} of {n}");
            }
        }
    }
}

#[test]
fn with_relu_winners_are_positive() {
    for place in places() {
        let model = Model::new(place, &[0.0; 4], [0.0, 1.0]);
        let who = Competition { relu: true, ..plain(1, 3) };
        let x = [-1.0, 2.0, 0.0, -3.0, 4.0, 5.0, 6.0, f32::NAN];
        let (y, dx) = model.step((&x, &[2, 4]), who, 1.0, DutyRate::Period(10));
        assert_eq!(y[..7], [0.0, 2.0, 0.0, 0.0, 0.0, 5.0, 6.0]);
        assert!(y[7].is_nan(), "to be seen in the loss");
        assert_eq!(dx, [0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
        model.expect_duty(&[0.0, 1.0, 0.5, 0.0]);
    }
}

/// Checks one step on random values against f64: exactly k winners a group, none with less than a loser but for the
/// rounding of products, values passed on untouched, duty cycles by their definition. Gives the winners.
fn meets_the_oracle(place: (Device, DType), shape: &[usize], dims: usize, k: usize) -> Vec<f32> {
    let channels = *shape.last().unwrap();
    let len: usize = shape.iter().product();
    let duty: Vec<f32> = uniform(1, channels).iter().map(|u| (u + 1.0) / 2.0).collect();
    let (boost, alpha) = (1.5, 0.125);
    let model = Model::new(place, &duty, [0.0, boost]);
    let x = model.tensor(&uniform(2, len), &[len]).to_f32().unwrap();
    let (y, dx) = model.step((&x, shape), plain(dims, k), boost, DutyRate::Constant(alpha));

    let units: usize = shape[shape.len() - dims..].iter().product();
    let boosted = |at: usize| f64::from(x[at]) * (-f64::from(boost) * f64::from(duty[at % channels])).exp();
    for group in 0..len / units {
        let (winners, losers): (Vec<usize>, Vec<usize>) =
            (group * units..(group + 1) * units).partition(|&at| dx[at] == 1.0);
        assert_eq!(winners.len(), k, "group {group} of {shape:?}");
        assert!(losers.iter().all(|&at| dx[at] == 0.0 && y[at] == 0.0));
        assert!(winners.iter().all(|&at| y[at] == x[at]));
        let least = winners.iter().map(|&at| boosted(at)).fold(f64::INFINITY, f64::min);
        let most = losers.iter().map(|&at| boosted(at)).fold(f64::NEG_INFINITY, f64::max);
        // The boost and the product are rounded once each, on both sides.
        assert!(least >= most - 2.0 * gamma(2) * most.abs().max(least.abs()), "{least} won, {most} lost");
    }
    let expected: Vec<f64> = (0..channels)
        .map(|c| {
            let wins = (c..len).step_by(channels).filter(|&at| dx[at] == 1.0 && x[at] > 0.0).count();
            let (share, old) = (wins as f64 / (len / channels) as f64, f64::from(duty[c]));
            (1.0 - f64::from(alpha)) * old + f64::from(alpha) * share
        })
        .collect();
    model.expect_duty(&expected);
    // For a comparison of devices.
    [dx, model.values(model.duty)].concat()
}

#[test]
fn random_values_meet_the_oracle_at_every_shape() {
    // (shape, dimensions of a group, winners)
    let cases: [(&[usize], usize, usize); 12] = [
        (&[4], 1, 1),
        (&[1, 1], 1, 1),
        (&[5, 7], 1, 3),
        (&[64, 100], 1, 10),
        (&[3, 5, 33], 1, 8),
        (&[2, 1024], 1, 102),
        (&[300, 257], 1, 128),
        // Feature maps: the channels of each pixel, then whole maps.
        (&[2, 4, 5, 16], 1, 2),
        (&[2, 4, 5, 16], 3, 32),
        (&[3, 1, 1, 9], 3, 4),
        (&[1, 3, 3, 1], 3, 2),
        (&[2, 12, 12, 64], 3, 900),
    ];
    for (shape, dims, k) in cases {
        let found: Vec<(DType, Vec<f32>)> =
            places().into_iter().map(|place| (place.1, meets_the_oracle(place, shape, dims, k))).collect();
        for (dtype, found_there) in &found[1..] {
            assert!(*dtype == DType::Bf16 || *found_there == found[0].1, "{shape:?}: other bits on the GPU");
        }
    }
}

#[test]
fn the_gradient_is_the_slope_away_from_ties() {
    let (n, k) = (12, 4);
    let model = Model::new((Device::Cpu, DType::F32), &[0.0; 12], [0.0, 0.0]);
    // Far enough apart that a step of the difference, at first 1/16 of the value, changes no order.
    let x: Vec<f32> = (0..n).map(|at| ((at * 5) % n) as f32 - 6.0).collect();
    let g = uniform(7, n);
    let (_, dx) = model.step((&x, &[1, n]), plain(1, k), 0.0, DutyRate::Constant(0.5));
    for at in 0..n {
        // In f64, with the winners of the definition: y differs from x only in who wins.
        let value = |t: f64| {
            let mut moved: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
            moved[at] = t;
            let mut order: Vec<usize> = (0..n).collect();
            order.sort_by(|&a, &b| moved[b].total_cmp(&moved[a]));
            order[..k].iter().map(|&i| f64::from(g[i]) * moved[i]).sum::<f64>()
        };
        let found = slope(value, f64::from(x[at]));
        let own = f64::from(g[at]) * f64::from(dx[at]);
        assert!((own - found.value).abs() <= found.error + UNIT_F32 * own.abs(), "{own}, slope {found:?}");
    }
}

#[test]
fn evaluation_leaves_the_state_and_uses_the_boost_of_the_last_training_pass() {
    for place in places() {
        let model = Model::new(place, &[1.0, 0.0, 0.0], [7.0, 0.0]);
        let x = [2.0, 1.5, 1.0];
        let winner = || {
            let cx = Cx::evaluation(model.params.clone());
            let x = cx.constant(model.tensor(&x, &[1, 3]));
            // The boost given is that of training.
            let y = model.forward(&cx, &x, plain(1, 1), 100.0, DutyRate::Period(9)).unwrap();
            y.value().to_f32().unwrap().iter().position(|&y| y != 0.0).unwrap()
        };
        assert_eq!((winner(), model.values(model.clock)), (0, vec![7.0, 0.0]));
        // In training the boost of 1 takes the first unit e⁻¹ of its value.
        let (y, _) = model.step((&x, &[1, 3]), plain(1, 1), 1.0, DutyRate::Constant(0.0625));
        assert_eq!(y, [0.0, 1.5, 0.0]);
        model.expect_duty(&[0.9375, 0.0625, 0.0]);
        assert_eq!((winner(), model.values(model.clock)), (1, vec![7.0, 1.0]));
        model.expect_duty(&[0.9375, 0.0625, 0.0]);
    }
}

#[test]
fn a_recomputed_pass_has_the_same_winners_and_counts_once() {
    let shape = [8, 3, 40];
    let x = uniform(3, shape.iter().product());
    for place in places() {
        // Plain, recomputed, recomputed inside what is recomputed.
        let runs: Vec<_> = (0..3)
            .map(|depth| {
                let model = Arc::new(Model::new(place.clone(), &[0.0; 40], [0.0, 2.0]));
                let mut found = Vec::new();
                for _ in 0..4 {
                    let cx = model.training();
                    let x = cx.leaf(model.tensor(&x, &shape));
                    // Twice in a row, so that a pass has several updates of one state.
                    let own = model.clone();
                    let block = move |cx: &Cx, v: &[Var]| {
                        let y = own.forward(cx, &v[0], plain(1, 10), 2.0, DutyRate::Period(20))?;
                        own.forward(cx, &y, plain(1, 5), 2.0, DutyRate::Period(20))
                    };
                    let y = match depth {
                        0 => block(&cx, std::slice::from_ref(&x)),
                        1 => cx.recompute(&[&x], block),
                        _ => {
                            let block = Arc::new(block);
                            cx.recompute(&[&x], move |cx, v| {
                                let block = block.clone();
                                cx.recompute(&[&v[0]], move |cx, v| block(cx, v))
                            })
                        }
                    }
                    .unwrap();
                    let before = model.values(model.duty);
                    let dx = cx.backward(&y, y.value().clone()).unwrap().take(&x).unwrap();
                    assert_ne!(model.values(model.duty), before);
                    found.push([y.value().to_f32().unwrap(), dx.to_f32().unwrap()]);
                    found.push([model.values(model.duty), model.values(model.clock)]);
                }
                found
            })
            .collect();
        assert_ne!(runs[0][0], runs[0][2], "the duty cycles change who wins");
        assert!(runs[0] == runs[1] && runs[0] == runs[2]);
    }
}

#[test]
fn a_pass_without_a_backward_pass_changes_nothing() {
    for place in places() {
        let model = Model::new(place, &[0.0; 4], [0.0, 1.0]);
        let cx = model.training();
        let x = cx.leaf(model.tensor(&ROWS, &[4, 4]));
        model.forward(&cx, &x, plain(1, 2), 1.0, DutyRate::Period(5)).unwrap();
        drop(cx);
        assert_eq!(model.values(model.duty), [0.0; 4]);
        assert_eq!(model.values(model.clock), [0.0, 1.0]);
        // No samples are no samples.
        let (y, dx) = model.step((&[], &[0, 4]), plain(1, 2), 1.0, DutyRate::Period(5));
        assert!(y.is_empty() && dx.is_empty());
        assert_eq!(model.values(model.duty), [0.0; 4]);
    }
}

#[test]
fn a_misfit_is_named() {
    let model = Model::new((Device::Cpu, DType::F32), &[0.0; 4], [0.0, 1.0]);
    let error = |shape: &[usize], who: Competition, boost: f32, rate: DutyRate| -> EngineError {
        let cx = model.training();
        let x = cx.leaf(model.tensor(&vec![0.0; shape.iter().product()], shape));
        model.forward(&cx, &x, who, boost, rate).unwrap_err()
    };
    let alpha = DutyRate::Constant(0.5);
    for (shape, who, boost, rate, words) in [
        (&[2, 5][..], plain(1, 2), 1.0, alpha, ["x has shape [2, 5]", "the last 4"]),
        (&[2, 4], plain(3, 2), 1.0, alpha, ["x has shape [2, 4]", "3 dimensions or more"]),
        (&[2, 4], plain(1, 0), 1.0, alpha, ["k is 0", "1 to 4"]),
        (&[2, 4], plain(1, 5), 1.0, alpha, ["k is 5", "1 to 4"]),
        (&[2, 3, 3, 4], plain(3, 37), 1.0, alpha, ["k is 37", "1 to 36"]),
        (&[2, 4], plain(1, 2), -1.0, alpha, ["boost is -1", "0 or more"]),
        (&[2, 4], plain(1, 2), f32::NAN, alpha, ["boost is NaN", "0 or more"]),
        (&[2, 4], plain(1, 2), 1.0, DutyRate::Constant(0.0), ["rate is 0", "above 0"]),
        (&[2, 4], plain(1, 2), 1.0, DutyRate::Period(0), ["period is 0", "1 to 16777216"]),
    ] {
        let error = error(shape, who, boost, rate).to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
}
