//! Chains at every level against f64, and what is refused.

use super::*;
use crate::activation::tests::{ALL, exact};
use crate::simd::{Level, with_level};
use lacewing_core::{Chain, Gather, Link, Weights};
use lacewing_testkit::{assert_within, gamma, uniform, widen};

/// Chains that take every path: names them, their links and sizes.
fn chains() -> Vec<(&'static str, Chain)> {
    let chain = |n_in, n_in_ext, n_out_ext, n_out, links| Chain { n_in, n_in_ext, n_out_ext, n_out, links };
    let butterfly = |n: usize, rising: bool| {
        let levels = n.ilog2() as usize;
        let stride = |k: usize| 1 << if rising { k } else { levels - 1 - k };
        (0..levels).map(|k| Link::strided(k, n / 2 / stride(k), stride(k), 2, 2)).collect::<Vec<_>>()
    };
    let turn = |batch, rows, cols| Link::Transpose { batch, rows, cols };
    vec![
        ("butterfly", chain(64, 64, 64, 64, butterfly(64, true))),
        ("padded butterfly", chain(50, 64, 64, 37, butterfly(64, false))),
        ("of fours", chain(16, 16, 16, 16, vec![Link::strided(0, 4, 1, 4, 4), Link::strided(1, 1, 4, 4, 4)])),
        (
            "monarch",
            chain(
                96,
                96,
                80,
                80,
                vec![Link::blocks(0, 4, 20, 24), turn(1, 4, 20), Link::blocks(1, 8, 10, 10)],
            ),
        ),
        ("wide blocks", chain(70, 70, 66, 66, vec![Link::blocks(0, 2, 33, 35)])),
        ("low rank", chain(301, 301, 77, 77, vec![Link::blocks(0, 1, 5, 301), Link::blocks(1, 1, 77, 5)])),
        ("strided", chain(60, 60, 90, 83, vec![Link::strided(0, 2, 5, 9, 6)])),
        ("one", chain(1, 1, 1, 1, vec![Link::blocks(0, 1, 1, 1)])),
        (
            "selected",
            chain(
                10,
                10,
                6,
                6,
                vec![
                    Link::Gather(Gather::new(10, 12, 1, |o, _| (o < 9).then_some((9 - o, false)))),
                    Link::blocks(0, 3, 2, 4),
                    Link::Gather(Gather::select(6, &[5, 3, 1, 0, 2, 4])),
                ],
            ),
        ),
        (
            "stacked",
            chain(
                20,
                20,
                36,
                36,
                vec![
                    Link::Gather(Gather::new(20, 60, 1, |o, _| Some((o % 20, false)))),
                    Link::strided(0, 3, 2, 6, 10),
                ],
            ),
        ),
        (
            "large blocks",
            chain(
                512,
                512,
                512,
                512,
                vec![Link::blocks(0, 4, 128, 128), turn(1, 4, 128), Link::blocks(1, 4, 128, 128)],
            ),
        ),
    ]
}

/// y, and beside each sum the sum of its terms' sizes, as `links` make it of `x`, back where `turned`.
fn oracle(chain: &Chain, params: &[Vec<f64>], x: &[f64], turned: bool) -> Vec<Vec<f64>> {
    let params: Vec<&[f64]> = params.iter().map(Vec::as_slice).collect();
    let (n_in, n_out, ext) = match turned {
        false => (chain.n_in, chain.n_out, chain.n_in_ext),
        true => (chain.n_out, chain.n_in, chain.n_out_ext),
    };
    let one = |x: &[f64]| {
        let mut steps = vec![x.to_vec()];
        steps[0].resize(ext, 0.0);
        let mut links: Vec<&Link> = chain.links.iter().collect();
        if turned {
            links.reverse();
        }
        for link in links {
            let last = steps.last().unwrap();
            let next = if turned { link.apply_transposed(&params, last) } else { link.apply(&params, last) };
            steps.push(next);
        }
        steps
    };
    let mut rows: Vec<Vec<f64>> = vec![Vec::new(); chain.links.len() + 1];
    for x in x.chunks(n_in) {
        for (all, step) in rows.iter_mut().zip(one(x)) {
            all.extend(step);
        }
    }
    let last = rows.last_mut().unwrap();
    let width = last.len() / (x.len() / n_in).max(1);
    *last = last.chunks(width.max(1)).flat_map(|row| row[..n_out].to_vec()).collect();
    rows
}

fn magnitudes(values: &[Vec<f64>]) -> Vec<Vec<f64>> {
    values.iter().map(|values| values.iter().map(|value| value.abs()).collect()).collect()
}

/// The sum over rows of what a link's outputs' gradients and its inputs make of each weight.
fn weight_gradient(link: &Link, x: &[f64], dy: &[f64]) -> Vec<f64> {
    let &Link::Blocks { groups, stride, q, p, .. } = link else { panic!("{link:?} has no weights") };
    let mut dw = vec![0.0; groups * stride * q * p];
    let (reads, writes) = link.sizes();
    for (x, dy) in x.chunks(reads).zip(dy.chunks(writes)) {
        for (at, dw) in dw.iter_mut().enumerate() {
            let (block, j, i) = (at / (q * p), at / p % q, at % p);
            let (g, s) = (block / stride, block % stride);
            *dw += dy[(g * q + j) * stride + s] * x[(g * p + i) * stride + s];
        }
    }
    dw
}

#[test]
fn chains_and_their_gradients_meet_the_oracle_at_every_level() {
    for (name, chain) in chains() {
        let plan = Plan::new(&chain).expect(name);
        let weights: Vec<Vec<f32>> = plan
            .shapes()
            .enumerate()
            .map(|(at, shape)| uniform(10 + at as u64, shape.iter().product()))
            .collect();
        let params: Vec<Vec<f64>> = weights.iter().map(|w| widen(w)).collect();
        let w: Vec<&[f32]> = weights.iter().map(Vec::as_slice).collect();
        let terms: usize =
            chain.links.iter().map(|link| link.sizes().0.min(1 + link.macs()) + 2).sum::<usize>();
        let bias = uniform(3, chain.n_out);
        for rows in [1, 16, 33, 70] {
            let (x, dy) = (uniform(1, rows * chain.n_in), uniform(2, rows * chain.n_out));
            let steps = oracle(&chain, &params, &widen(&x), false);
            let back = oracle(&chain, &params, &widen(&dy), true);
            let (sizes, sizes_back) = (
                oracle(&chain, &magnitudes(&params), &magnitudes(&[widen(&x)])[0], false),
                oracle(&chain, &magnitudes(&params), &magnitudes(&[widen(&dy)])[0], true),
            );
            let bound = |sizes: &[f64], terms: usize| {
                sizes.iter().map(|size| gamma(terms) * size).collect::<Vec<_>>()
            };
            for level in Level::available() {
                let what = format!("{name}, {rows} rows at {level:?}");
                let mut y = vec![f32::NAN; dy.len()];
                let mut dx = vec![f32::NAN; x.len()];
                let start: Vec<Vec<f32>> = w.iter().map(|w| vec![0.5; w.len()]).collect();
                let mut dw = start.clone();
                with_level(level, || {
                    plan.forward(&w, &x, Target::row_major(&mut y, rows, chain.n_out)).unwrap();
                    let (packed, mut same) = (plan.pack(&w, None).unwrap(), vec![f32::NAN; dy.len()]);
                    let to = Target::row_major(&mut same, rows, chain.n_out);
                    plan.forward_packed(&w, &packed, &x, to).unwrap();
                    assert_eq!(same, y, "{what}, packed");
                    let mut wanted: Vec<Option<&mut [f32]>> =
                        dw.iter_mut().map(|dw| Some(dw.as_mut_slice())).collect();
                    plan.gradients(&w, &x, &dy, Some(&mut dx), &mut wanted).unwrap();
                });
                assert_within(&y, steps.last().unwrap(), &bound(sizes.last().unwrap(), terms), &what);
                for (at, act) in ALL.into_iter().enumerate() {
                    let what = format!("{what}, {act:?}");
                    let (want, size) = (steps.last().unwrap(), sizes.last().unwrap());
                    let (sums, y): (Vec<_>, Vec<_>) = (0..y.len())
                        .map(|i| {
                            let bias = f64::from(bias[i % chain.n_out]);
                            let sum = (want[i] + bias, gamma(terms + 1) * (size[i] + bias.abs()));
                            (sum, exact(act, sum.0, sum.1))
                        })
                        .unzip();
                    let check = |got: &[f32], (want, bound): (Vec<f64>, Vec<f64>)| {
                        assert_within(got, &want, &bound, &what);
                    };
                    let [mut pre, mut got] = [(); 2].map(|()| vec![f32::NAN; dy.len()]);
                    let kept = (rows + at).is_multiple_of(2);
                    let activated = kept.then(|| MatMut::row_major(&mut got, rows, chain.n_out));
                    let to =
                        Target::row_major(&mut pre, rows, chain.n_out).ending(Some(&bias), act, activated);
                    with_level(level, || match at / 2 {
                        0 => plan.forward(&w, &x, to).unwrap(),
                        _ => plan.forward_packed(&w, &plan.pack(&w, None).unwrap(), &x, to).unwrap(),
                    });
                    if kept {
                        check(&pre, sums.into_iter().unzip());
                        check(&got, y.into_iter().unzip());
                    } else {
                        check(&pre, y.into_iter().unzip());
                    }
                }
                assert_within(&dx, back.last().unwrap(), &bound(sizes_back.last().unwrap(), terms), &what);
                let links = chain.links.iter().enumerate().filter(|(_, link)| link.macs() > 0);
                for ((at, link), dw) in links.zip(&dw) {
                    let from_end = chain.links.len() - 1 - at;
                    let sum = |x: &[Vec<f64>], dy: &[Vec<f64>]| weight_gradient(link, &x[at], &dy[from_end]);
                    let (want, size) = (sum(&steps, &back), sum(&sizes, &sizes_back));
                    let want: Vec<f64> = want.iter().map(|dw| dw + 0.5).collect();
                    let size: Vec<f64> = size.iter().map(|dw| dw + 0.5).collect();
                    assert_within(dw, &want, &bound(&size, terms + rows + 3), &format!("{what}, dw of {at}"));
                }
            }
        }
    }
}

#[test]
fn outputs_that_threads_share_meet_the_oracle() {
    // The first is shared where rows are few, the second always; of both the last tile and block are not full.
    for (n, blocks, all_rows) in [(1038, 3, &[1, 15, 16, 17, 63][..]), (2060, 2, &[16, 131])] {
        let size = n / blocks;
        let links = vec![Link::blocks(0, blocks, size, size), Link::strided(1, 1, blocks, size, size)];
        let chain = Chain { n_in: n, n_in_ext: n, n_out_ext: n, n_out: n, links };
        let plan = Plan::new(&chain).unwrap();
        let weights = [0, 1].map(|at| uniform(5 + at, n * size));
        let w = weights.each_ref().map(Vec::as_slice);
        let params = weights.each_ref().map(|w| widen(w)).to_vec();
        for &rows in all_rows {
            assert!(plan.shares(rows), "{n}, {rows} rows");
            let x = uniform(7, rows * n);
            for level in Level::available() {
                let mut y = vec![f32::NAN; rows * n];
                with_level(level, || {
                    let packed = plan.pack(&w, None).unwrap();
                    plan.forward_packed(&w, &packed, &x, Target::row_major(&mut y, rows, n)).unwrap();
                    let mut same = vec![f32::NAN; rows * n];
                    plan.forward(&w, &x, Target::row_major(&mut same, rows, n)).unwrap();
                    assert_eq!(same, y, "{n}, {rows} rows, not packed");
                });
                for row in [0, 15, 16, 127, 128, 130].into_iter().filter(|&row| row < rows).chain([rows - 1])
                {
                    let (x, y) = (widen(&x[row * n..][..n]), &y[row * n..][..n]);
                    let want = oracle(&chain, &params, &x, false);
                    let sizes = oracle(&chain, &magnitudes(&params), &magnitudes(&[x])[0], false);
                    let bound: Vec<f64> =
                        sizes.last().unwrap().iter().map(|at| gamma(2 * size + 4) * at).collect();
                    let what = format!("{n}, row {row} of {rows} at {level:?}");
                    assert_within(y, want.last().unwrap(), &bound, &what);
                }
            }
        }
    }
}

#[test]
fn gradients_that_nobody_wants_are_not_made() {
    let (_, chain) = chains().swap_remove(0);
    let plan = Plan::new(&chain).unwrap();
    let weights: Vec<Vec<f32>> = plan.shapes().map(|shape| uniform(3, shape.iter().product())).collect();
    let w: Vec<&[f32]> = weights.iter().map(Vec::as_slice).collect();
    let (x, dy) = (uniform(1, 40 * 64), uniform(2, 40 * 64));
    let gradient_of = |wanted: &[bool], dx: Option<&mut [f32]>| {
        let mut dw: Vec<Vec<f32>> = w.iter().map(|w| vec![0.0; w.len()]).collect();
        let mut parts: Vec<_> =
            dw.iter_mut().zip(wanted).map(|(dw, wanted)| wanted.then_some(&mut dw[..])).collect();
        plan.gradients(&w, &x, &dy, dx, &mut parts).unwrap();
        dw
    };
    // Held, or another test would change the level between the two.
    let (all, two) = with_level(Level::available()[0], || {
        let all = gradient_of(&[true; 6], Some(&mut vec![0.0; x.len()]));
        (all, gradient_of(&[false, true, false, false, true, false], None))
    });
    for at in 0..6 {
        match at {
            1 | 4 => assert_eq!(two[at], all[at]),
            _ => assert!(two[at].iter().all(|&dw| dw == 0.0)),
        }
    }
}

#[test]
fn what_has_no_plan_or_does_not_fit_is_said() {
    let chain = |links: Vec<Link>| {
        let (n_in, n_out) = (links[0].sizes().0, links.last().unwrap().sizes().1);
        Chain { n_in, n_in_ext: n_in, n_out_ext: n_out, n_out, links }
    };
    let sum = Gather::new(4, 2, 2, |o, t| Some((2 * o + t, false)));
    let minus = Gather::new(4, 4, 1, |o, _| Some((o, true)));
    let twice = Gather::select(4, &[0, 0, 1, 2]);
    for gather in [sum, minus, twice] {
        let n = gather.n_out();
        let links = vec![Link::blocks(0, 1, 4, 3), Link::Gather(gather), Link::blocks(0, 1, 2, n)];
        assert!(Plan::new(&chain(links)).is_none());
    }
    assert!(Plan::new(&chain(vec![Link::Transpose { batch: 1, rows: 2, cols: 3 }])).is_none());
    let tied = Weights::Tied { param: 0, gather: Gather::select(1, &[0, 0]) };
    let plan =
        Plan::new(&chain(vec![Link::Blocks { weights: tied, groups: 1, stride: 2, q: 1, p: 1 }])).unwrap();
    let refused = |w: &[&[f32]], x: usize, y: usize| {
        plan.forward(w, &vec![0.0; x], Target::row_major(&mut vec![0.0; y], y / 2, 2)).unwrap_err()
    };
    let error = |operand: &str, expected, got| ChainError { operand: operand.into(), expected, got };
    assert_eq!(refused(&[], 2, 2), error("weights", 1, 0));
    assert_eq!(refused(&[&[0.0]], 2, 2), error("weight 0", 2, 1));
    assert_eq!(refused(&[&[0.0; 2]], 3, 2), error("x", 2, 3));
    assert_eq!(refused(&[&[0.0; 2]], 4, 2), error("y", 4, 2));
    let narrow = plan.forward(&[&[0.0; 2]], &[0.0; 2], Target::row_major(&mut [0.0; 2], 2, 1));
    assert_eq!(narrow, Err(error("a row of y", 2, 1)));
    assert_eq!(plan.pack(&[], None).unwrap_err(), error("weights", 1, 0));
    let wide = Plan::new(&chain(vec![Link::blocks(0, 1, 16, 16)])).unwrap();
    let packed = wide.pack(&[&[0.0; 256]], None).unwrap();
    let other = plan.forward_packed(&[&[0.0; 2]], &packed, &[0.0; 2], Target::row_major(&mut [0.0; 2], 1, 2));
    assert_eq!(other, Err(error("packed weights", 0, 256)));
    let short = plan.gradients(&[&[0.0; 2]], &[0.0; 2], &[0.0; 2], Some(&mut [0.0]), &mut [None]);
    assert_eq!(short, Err(error("dx", 2, 1)));
    let short = plan.gradients(&[&[0.0; 2]], &[0.0; 2], &[0.0; 2], None, &mut [Some(&mut [0.0])]);
    assert_eq!(short, Err(error("dw 0", 2, 1)));
}
