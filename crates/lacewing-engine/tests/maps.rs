//! Ops that structures are run with (gathers, small strided blocks, windows) against their definitions in f64 and finite
//! differences, on every device there is. `LACEWING_TEST_CUDA=1` adds the GPU, in f32 and bf16.

use lacewing_core::{Chain, Gather, Link};
use lacewing_cpu::finish::Target;
use lacewing_engine::ops::{self, ACTIVATIONS, Activation, BlockIndex, ChainPlan, GatherIndex, Window};
use lacewing_engine::{Cx, DType, Device, Params, ParamsBuilder, Result, StepRng, Tensor, Var};
use lacewing_testkit::{
    UNIT_BF16, UNIT_F32, assert_gradient, assert_within, gamma_of, slopes, uniform, widen,
};
use std::sync::Arc;

/// Where to run: a device and a compute type.
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
}

fn places() -> Vec<Place> {
    let mut places = vec![(Device::Cpu, DType::F32)];
    if std::env::var("LACEWING_TEST_CUDA").is_ok_and(|v| v == "1") {
        let gpu = Device::open("cuda:0").expect("LACEWING_TEST_CUDA=1 asks for a GPU");
        places.extend([(gpu.clone(), DType::F32), (gpu, DType::Bf16)]);
    }
    let place = |(device, dtype)| {
        let mut builder = ParamsBuilder::new(device, dtype).unwrap();
        builder.add("unused", &[1], true, vec![0.0]).unwrap();
        Place { params: builder.build().unwrap(), dtype }
    };
    places.into_iter().map(place).collect()
}

/// Compares value and gradients of `op` with a definition in f64, which is linear in each input, and its finite
/// differences. Given `true` the definition takes every sign as plus: the bounds are γ_k times what it gives then.
fn check_definition(
    case: &str,
    shapes: &[&[usize]],
    k: usize,
    op: impl Fn(&Place, &Cx, &[Var]) -> Result<Var>,
    definition: impl Fn(&[Vec<f64>], bool) -> Vec<f64>,
) {
    for place in places() {
        let (case, unit) = (format!("{case}, {}", place.name()), [UNIT_F32, UNIT_BF16]);
        let bf16 = usize::from(place.dtype == DType::Bf16);
        let tensor = |seed: u64, shape: &[usize]| {
            let values = uniform(seed, shape.iter().product());
            ops::cast(&Tensor::from_f32(&place.device(), &values, shape).unwrap(), place.dtype).unwrap()
        };
        let cx = Cx::training(place.params.clone(), StepRng::new(0, 0));
        let vars: Vec<Var> = (0..).zip(shapes).map(|(seed, shape)| cx.leaf(tensor(seed, shape))).collect();
        let y = op(&place, &cx, &vars).unwrap();
        let inputs: Vec<Vec<f64>> = vars.iter().map(|var| widen(&var.value().to_f32().unwrap())).collect();
        let abs = |values: &[f64]| -> Vec<f64> { values.iter().map(|v| v.abs()).collect() };
        let absolute: Vec<Vec<f64>> = inputs.iter().map(|values| abs(values)).collect();
        let gamma = gamma_of(k, unit[bf16]);
        let bound: Vec<f64> = definition(&absolute, true).iter().map(|m| gamma * m).collect();
        assert_within(&y.value().to_f32().unwrap(), &definition(&inputs, false), &bound, &case);

        let seed = tensor(9, y.shape());
        let dy = widen(&seed.to_f32().unwrap());
        let mut gradients = cx.backward(&y, seed).unwrap();
        for (which, var) in vars.iter().enumerate() {
            let loss = |x: &[f64], inputs: &[Vec<f64>], dy: &[f64], plus: bool| -> f64 {
                let mut inputs = inputs.to_vec();
                inputs[which] = x.to_vec();
                definition(&inputs, plus).iter().zip(dy).map(|(y, dy)| y * dy).sum()
            };
            let magnitudes = slopes(|x| loss(x, &absolute, &abs(&dy), true), &absolute[which]);
            let allowed: Vec<f64> = magnitudes.iter().map(|slope| gamma * slope.value.abs()).collect();
            let got = widen(&gradients.take(var).unwrap().to_f32().unwrap());
            let case = format!("{case}, gradient {which}");
            assert_gradient(|x| loss(x, &inputs, &dy, false), &inputs[which], &got, &allowed, &case);
        }
    }
}

#[test]
fn gathers_are_those_of_the_definition() {
    // A fold with signs and gaps, a permutation, a few values at many places, many values in one.
    let fold = |o: usize, t: usize| ((o + t) % 4 != 3).then_some(((o * 5 + t * 3) % 7, (o + t) % 2 == 1));
    for (n_in, n_out, terms) in [(7, 11, 3), (7, 7, 1), (7, 300, 1), (7, 1, 90)] {
        let (signed, plain) = match (n_out, terms) {
            (7, 1) => <[Gather; 2]>::into([(); 2].map(|()| Gather::select(7, &[3, 0, 6, 1, 5, 2, 4]))),
            _ => (
                Gather::new(n_in, n_out, terms, fold),
                Gather::new(n_in, n_out, terms, |o, t| fold(o, t).map(|(i, _)| (i, false))),
            ),
        };
        let on = |gather: &Gather, x: &[f64]| x.chunks(n_in).flat_map(|x| gather.apply(x)).collect();
        check_definition(
            &format!("gather {n_in} to {n_out} of {terms}"),
            &[&[2, 2, n_in]],
            100,
            |place, cx, v| {
                let index = GatherIndex::new(&place.device(), n_in, terms, signed.codes())?;
                ops::gather(cx, &v[0], &index)
            },
            |v, plus| on(if plus { &plain } else { &signed }, &v[0]),
        );
    }
    for (terms, codes) in [(2, &[0, 1, 2][..]), (0, &[]), (1, &[7]), (1, &[7 | Gather::MINUS])] {
        GatherIndex::new(&Device::Cpu, 7, terms, codes).unwrap_err();
    }
}

#[test]
fn strided_blocks_are_those_of_the_definition() {
    for (groups, stride, q, p, rows) in [
        (3, 1, 2, 2, 5),
        (2, 4, 2, 2, 3),
        (1, 17, 4, 4, 2),
        (2, 9, 3, 5, 2),
        (5, 3, 1, 1, 4),
        (1, 3, 8, 7, 40),
    ] {
        let (blocks, link) = (groups * stride, Link::strided(0, groups, stride, q, p));
        check_definition(
            &format!("{groups} groups of {q}x{p}, {stride} apart"),
            &[&[rows, blocks * p], &[blocks, q, p]],
            50,
            |_, cx, v| ops::strided_blocks(cx, &v[0], &v[1], stride),
            |v, _| v[0].chunks(blocks * p).flat_map(|x| link.apply(&[&v[1]], x)).collect(),
        );
    }
}

#[test]
fn windows_are_those_of_the_definition() {
    for (kernel, stride, padding, size, channels) in [
        ((1, 1), 1, 0, (2, 3), 2),
        ((1, 1), 2, 0, (5, 4), 8),
        ((3, 3), 1, 1, (5, 7), 2),
        ((3, 2), 2, 1, (5, 6), 1),
        ((2, 2), 3, 0, (5, 5), 3),
    ] {
        let window = Window { kernel, stride, padding };
        let ((height, width), (down, across)) = (size, window.places(size).unwrap());
        let definition = |x: &[f64]| {
            let mut y = Vec::new();
            for (b, i, j) in
                (0..2).flat_map(|b| (0..down * across).map(move |at| (b, at / across, at % across)))
            {
                for (ky, kx) in (0..kernel.0).flat_map(|ky| (0..kernel.1).map(move |kx| (ky, kx))) {
                    let (row, col) = (i * stride + ky, j * stride + kx);
                    let inside = (padding..padding + height).contains(&row)
                        && (padding..padding + width).contains(&col);
                    let at = |c| ((b * height + row - padding) * width + col - padding) * channels + c;
                    y.extend((0..channels).map(|c| if inside { x[at(c)] } else { 0.0 }));
                }
            }
            y
        };
        check_definition(
            &format!("{window:?}"),
            &[&[2, height, width, channels]],
            9,
            |_, cx, v| ops::unfold(cx, &v[0], window),
            |v, _| definition(&v[0]),
        );
    }
    assert_eq!(Window { kernel: (3, 3), stride: 1, padding: 0 }.places((2, 9)), None);
}

#[test]
fn packed_weights_of_a_chain_are_those_of_now() {
    let links = vec![Link::blocks(0, 2, 16, 16), Link::blocks(1, 2, 16, 16)];
    let chain = Chain { n_in: 32, n_in_ext: 32, n_out_ext: 32, n_out: 32, links };
    let plan = Arc::new(ChainPlan::new(&chain).unwrap());
    let tensor = |seed, shape: &[usize]| {
        Tensor::from_f32(&Device::Cpu, &uniform(seed, shape.iter().product()), shape).unwrap()
    };
    let weights = [tensor(1, &[512]), tensor(2, &[512])];
    let place = places().swap_remove(0);
    // Few rows are packed when the weights come again, many at once.
    for rows in [2, 70] {
        let x = tensor(3, &[rows, 32]);
        for _ in 0..3 {
            for again in 0..3 {
                let cx = Cx::evaluation(place.params.clone());
                let vars = weights.each_ref().map(|w| cx.leaf(w.clone()));
                let y =
                    ops::chain(&cx, &cx.leaf(x.clone()), &vars, &plan, None, Activation::Identity).unwrap();
                let w: Vec<Vec<f32>> = weights.iter().map(|w| w.to_f32().unwrap()).collect();
                let w: Vec<&[f32]> = w.iter().map(Vec::as_slice).collect();
                let mut want = vec![0.0; rows * 32];
                lacewing_cpu::chain::Plan::new(&chain)
                    .unwrap()
                    .forward(&w, &x.to_f32().unwrap(), Target::row_major(&mut want, rows, 32))
                    .unwrap();
                assert_eq!(y.value().to_f32().unwrap(), want, "{rows} rows, time {again}");
            }
            weights[1].write().iter_mut().for_each(|w| *w = 0.5 - *w);
        }
    }
}

/// What ends a product in its own pass over the sums, and what does while its tiles are in cache, is the same function.
#[test]
fn bias_and_activation_at_the_end_of_a_product_are_those_of_the_separate_op() {
    type Op<'a> = &'a dyn Fn(&Cx, &[Var], Option<&Var>, Activation) -> Result<Var>;
    let links = vec![Link::blocks(0, 2, 16, 16), Link::blocks(1, 2, 24, 16)];
    let plan = ChainPlan::new(&Chain { n_in: 32, n_in_ext: 32, n_out_ext: 48, n_out: 48, links });
    let plan = Arc::new(plan.unwrap());
    let chain: Op<'_> = &|cx, v, bias, act| ops::chain(cx, &v[0], &v[1..], &plan, bias, act);
    for place in places() {
        let device = place.device();
        let index = BlockIndex::new(&device, (48, 32), (16, 16), &[(0, 1), (2, 0), (2, 1)]).unwrap();
        let blocks: Op<'_> =
            &|cx, v, bias, act| ops::block_sparse_linear(cx, &v[0], &v[1], &index, bias, act);
        let cases = [("blocks", blocks, &[768][..]), ("chain", chain, &[512, 768])];
        let cases = cases.into_iter().filter(|(name, ..)| *name == "blocks" || matches!(device, Device::Cpu));
        for (name, op, weights) in cases {
            for ((act_name, act), biased) in ACTIVATIONS.iter().flat_map(|act| [(act, false), (act, true)]) {
                for rows in [3, 70] {
                    let case = format!("{name}, {act_name}, {rows} rows, bias {biased}, {}", place.name());
                    let tensor = |seed, shape: &[usize]| {
                        let values = uniform(seed, shape.iter().product());
                        let values = Tensor::from_f32(&device, &values, shape).unwrap();
                        ops::cast(&values, place.dtype).unwrap()
                    };
                    let run = |cx: Cx, fused: bool| {
                        let mut vars = vec![cx.leaf(tensor(1, &[2, rows, 32]))];
                        vars.extend(weights.iter().map(|&len| cx.leaf(tensor(len as u64, &[len]))));
                        let bias = biased.then(|| cx.leaf(tensor(3, &[48])));
                        let y = match fused {
                            true => op(&cx, &vars, bias.as_ref(), *act).unwrap(),
                            false => {
                                let y = op(&cx, &vars, None, Activation::Identity).unwrap();
                                ops::bias_activation(&cx, y, bias.as_ref(), *act).unwrap()
                            }
                        };
                        let mut all = vec![y.value().to_f32().unwrap()];
                        if y.is_tracked() {
                            let mut gradients = cx.backward(&y, tensor(4, y.shape())).unwrap();
                            vars.extend(bias);
                            all.extend(vars.iter().map(|v| gradients.take(v).unwrap().to_f32().unwrap()));
                        }
                        all
                    };
                    let training = || Cx::training(place.params.clone(), StepRng::new(0, 0));
                    let want = run(training(), false);
                    assert_eq!(run(training(), true), want, "{case}");
                    assert_eq!(run(Cx::evaluation(place.params.clone()), true), want[..1], "{case}");
                }
            }
        }
    }
}

#[test]
fn a_bias_that_does_not_fit_is_named() {
    let place = places().swap_remove(0);
    let cx = Cx::evaluation(place.params.clone());
    let of = |shape: &[usize]| cx.constant(Tensor::zeros(&Device::Cpu, DType::F32, shape).unwrap());
    let (x, bias) = (of(&[2, 4]), of(&[3]));
    let index = BlockIndex::new(&Device::Cpu, (4, 4), (4, 4), &[(0, 0)]).unwrap();
    let links = vec![Link::blocks(0, 1, 4, 4)];
    let plan = ChainPlan::new(&Chain { n_in: 4, n_in_ext: 4, n_out_ext: 4, n_out: 4, links });
    let plan = Arc::new(plan.unwrap());
    for result in [
        ops::block_sparse_linear(&cx, &x, &of(&[16]), &index, Some(&bias), Activation::Identity),
        ops::chain(&cx, &x, &[of(&[16])], &plan, Some(&bias), Activation::Identity),
    ] {
        let error = result.unwrap_err().to_string();
        assert!(error.contains("bias") && error.contains("[4]"), "{error}");
    }
}
