//! Schedules against published figures: stages, decays, drop fractions, moves and budgets.

use std::collections::BTreeSet;

use lacewing_core::schedules::TABLE;
use lacewing_core::{
    Budget, Choice, DropScope, Horizon, MaskPhase, MaskPlan, MovePlan, Pattern, PatternKind, Penalty, Rng,
    Schedule, Search, StructureError, build, choose_places, keep_across, move_places, redistribute,
};
use serde_json::{Value, json};

fn masks(config: &Value, horizon: Horizon, n: usize, m: usize) -> Result<MaskPlan, StructureError> {
    match Schedule::from_json(config)? {
        Schedule::Masks(masks) => masks.plan(horizon, n, m),
        other => panic!("{} is no schedule of masks", other.name()),
    }
}

fn moves(config: &Value, total_steps: u64) -> MovePlan {
    match Schedule::from_json(config).unwrap() {
        Schedule::Moves(moves) => moves.plan(Horizon { total_steps, steps_per_epoch: 100 }).unwrap(),
        other => panic!("{} is no schedule of moves", other.name()),
    }
}

fn steps(total_steps: u64) -> Horizon {
    Horizon { total_steps, steps_per_epoch: 1 }
}

#[test]
fn stages_are_those_published() {
    let plain = |stages: &str| json!({"name": "structure_decay", "stages": stages});
    let phased =
        json!({"name": "structure_decay", "dense": "10 epochs", "fine_tune": "20 epochs", "align": "epoch"});
    for (config, total, (n, m), expected) in [
        (plain("sparsify"), 100, (1, 8), vec![(0, 7, 8), (25, 4, 8), (50, 2, 8), (75, 1, 8)]),
        (phased, 100, (1, 8), vec![(10, 7, 8), (27, 4, 8), (45, 2, 8), (62, 1, 8)]),
        (
            plain("sparsify"),
            100,
            (1, 16),
            vec![(0, 15, 16), (20, 8, 16), (40, 4, 16), (60, 2, 16), (80, 1, 16)],
        ),
        (plain("sparsify"), 100, (2, 8), vec![(0, 7, 8), (33, 4, 8), (66, 2, 8)]),
        // The published code ends at 4:8 here.
        (plain("sparsify"), 100, (3, 8), vec![(0, 7, 8), (33, 4, 8), (66, 3, 8)]),
        (plain("sparsify"), 100, (1, 6), vec![(0, 5, 6), (33, 3, 6), (66, 1, 6)]),
        (plain("sparsify"), 100, (4, 4), vec![(0, 4, 4)]),
        (plain("sparsify"), 100, (1, 2), vec![(0, 1, 2)]),
        (plain("fine"), 100, (1, 8), vec![(0, 8, 64), (25, 4, 32), (50, 2, 16), (75, 1, 8)]),
        (plain("fine"), 100, (2, 4), vec![(0, 16, 32), (25, 8, 16), (50, 4, 8), (75, 2, 4)]),
        (plain("fine"), 350, (1, 32), vec![(0, 8, 256), (87, 4, 128), (175, 2, 64), (262, 1, 32)]),
        (plain("densify"), 100, (1, 8), vec![(0, 1, 64), (25, 1, 32), (50, 1, 16), (75, 1, 8)]),
        (plain("densify"), 100, (2, 8), vec![(0, 2, 64), (25, 2, 32), (50, 2, 16), (75, 2, 8)]),
    ] {
        let plan = masks(&config, steps(total), n, m).unwrap();
        assert_eq!(plan.stages(), expected, "{config} to {n}:{m}");
        assert_eq!(plan.at(total), MaskPhase::Masked { n, m, rest: 0.0 });
        // What a step gets is a function of the step alone: inside a stage as at its beginning.
        for pair in expected.windows(2) {
            let (n, m) = (pair[0].1, pair[0].2);
            assert_eq!(plan.at(pair[1].0 - 1), MaskPhase::Masked { n, m, rest: 0.0 });
        }
    }
    // Short runs have colliding stages: the latest counts, and the end is the target.
    let short = masks(&plain("sparsify"), steps(3), 1, 8).unwrap();
    let at = [0, 1, 2, 3].map(|step| match short.at(step) {
        MaskPhase::Masked { n, .. } => n,
        MaskPhase::Dense => 8,
    });
    assert_eq!(at, [4, 2, 1, 1]);
}

#[test]
fn epochs_have_their_steps() {
    let config = json!({"name": "structure_decay", "dense": 0.1, "fine_tune": 0.2, "align": "epoch"});
    let plan = masks(&config, Horizon { total_steps: 4000, steps_per_epoch: 40 }, 1, 8).unwrap();
    assert_eq!(plan.stages(), [(400, 7, 8), (1080, 4, 8), (1800, 2, 8), (2480, 1, 8)]);
    assert_eq!(plan.at(399), MaskPhase::Dense);
    let fading = json!({"name": "mask_decay", "coef": 0.0, "dense": 0.1, "fine_tune": 0.2});
    let plan = masks(&fading, Horizon { total_steps: 4000, steps_per_epoch: 40 }, 1, 8).unwrap();
    let rest = |step| match plan.at(step) {
        MaskPhase::Masked { rest, .. } => rest,
        MaskPhase::Dense => f64::NAN,
    };
    // The first step of fine-tuning has the final mask.
    assert_eq!((rest(400), rest(3199), rest(3200), rest(4000)), (1.0, 1.0, 0.0, 0.0));
}

#[test]
fn dropped_weights_fade_as_published() {
    let rest = |config: &Value, step: u64| match masks(config, steps(1 << 20), 2, 4).unwrap().at(step) {
        MaskPhase::Masked { rest, .. } => rest,
        MaskPhase::Dense => panic!("dense at {step}"),
    };
    let exp = json!({"name": "mask_decay", "coef": 1e-4});
    for (step, expected) in [(1000, 0.904_837_418_0), (10_000, 0.367_879_441_2), (50_000, 0.006_737_947_0)] {
        assert!((rest(&exp, step) - expected).abs() < 0.5e-10, "{step}");
    }
    let linear = json!({"name": "mask_decay", "decay": "linear", "coef": 2e-4});
    // 1 − 2e-4 · 1000, to the rounding of both operations.
    assert!((rest(&linear, 1000) - 0.8).abs() <= f64::EPSILON);
    assert_eq!((rest(&linear, 5000), rest(&linear, 6000)), (0.0, 0.0));
    // A dense phase delays the fading by all of its steps.
    let later = json!({"name": "mask_decay", "coef": 1e-4, "dense": "200 steps"});
    assert_eq!(rest(&later, 1200), rest(&exp, 1000));
    // By a part of the run: none left at half of it, and one per cent.
    let half = json!({"name": "mask_decay", "decay": "linear"});
    assert_eq!((rest(&half, 0), rest(&half, 1 << 18), rest(&half, 1 << 19)), (1.0, 0.5, 0.0));
    assert!((rest(&json!("mask_decay"), 1 << 19) - 0.01).abs() <= 16.0 * f64::EPSILON);
}

#[test]
fn the_share_that_moves_falls_as_published() {
    let rigl = moves(&json!({"name": "rigl", "end": "25000 steps", "fraction": 0.3}), 32_000);
    for (step, expected) in [
        (0, 0.3),
        (100, 0.299_988_156_6),
        (6000, 0.259_345_294_1),
        (12_500, 0.15),
        (24_900, 1.184_336_9e-5),
        (25_000, 0.0),
    ] {
        assert!((rigl.fraction(step) - expected).abs() < 0.5e-10, "{step}: {}", rigl.fraction(step));
    }
    let seed = moves(&json!({"name": "rigl", "end": "150000 steps", "fraction": 0.1}), 200_000);
    for (step, expected) in [(6000, 0.099_605_735_1), (75_000, 0.05), (144_000, 3.942_649_6e-4)] {
        assert!((seed.fraction(step) - expected).abs() < 0.5e-10, "{step}");
    }
    let due: Vec<u64> = (0..1000).filter(|&step| rigl.is_due(step)).collect();
    assert_eq!(due, (0..1000).step_by(100).collect::<Vec<_>>());
    assert!(rigl.is_due(25_000) && !rigl.is_due(25_100));
    let late = moves(&json!({"name": "set", "begin": "30 steps", "every": "7 steps", "end": 0.5}), 100);
    assert_eq!((0..100).filter(|&step| late.is_due(step)).collect::<Vec<_>>(), [30, 37, 44]);
    let falling = json!({"name": "rigl", "anneal": "exponential", "power": 2, "begin": 0.2, "end": 0.7});
    assert!((moves(&falling, 100).fraction(45) - 0.3 * 0.25).abs() <= f64::EPSILON);
}

fn elements(n_out: usize, n_in: usize, positions: &[(u32, u32)]) -> Pattern {
    Pattern {
        n_out,
        n_in,
        n_out_ext: n_out,
        n_in_ext: n_in,
        block: (1, 1),
        positions: positions.to_vec(),
        kind: PatternKind::Unstructured,
    }
}

#[test]
fn one_update_is_that_published() {
    let pattern = elements(3, 3, &[(0, 0), (0, 2), (1, 1), (2, 0), (2, 2)]);
    let values = [0.5, -0.1, 0.3, 0.02, -0.4];
    let update = |gradient: [f64; 9]| {
        let mut scores = |rows: std::ops::Range<usize>, to: &mut [f64]| {
            to.copy_from_slice(&gradient[rows.start * 3..rows.end * 3]);
        };
        move_places(&pattern, &values, 2, true, Search::Largest(&mut scores))
    };
    let moved = update([0.1, 0.9, 0.2, 0.8, 0.05, 0.3, 0.7, 0.6, 0.01]);
    assert_eq!(moved.positions, [(0, 0), (0, 1), (1, 0), (1, 1), (2, 2)]);
    assert_eq!(moved.from, [Some(0), None, None, Some(2), Some(4)]);
    assert_eq!(moved.dropped, [1, 3]);
    // One that is dropped and grown again at once never left.
    let moved = update([0.1, 0.9, 0.2, 0.8, 0.05, 0.3, 0.95, 0.6, 0.01]);
    assert_eq!(moved.positions, [(0, 0), (0, 1), (1, 1), (2, 0), (2, 2)]);
    assert_eq!(moved.from, [Some(0), None, Some(2), Some(3), Some(4)]);
    assert_eq!(moved.dropped, [1]);
    // The first place of all can be grown, and among equals the lowest is.
    let pattern = elements(2, 2, &[(1, 1)]);
    let moved = move_places(&pattern, &[0.0], 1, false, Search::Largest(&mut |_, to| to.fill(0.0)));
    assert_eq!((moved.positions, moved.dropped), (vec![(0, 0)], vec![0]));
}

#[test]
fn moves_keep_the_number_of_places_and_their_order() {
    let mut rng = Rng::new(5);
    for (config, n_in, n_out) in [
        (json!({"structure": "unstructured", "density": 0.1}), 70, 50),
        (json!({"structure": "unstructured", "density": 0.9}), 20, 30),
        (json!({"structure": "block_sparse", "block": 8, "density": 0.25}), 96, 64),
    ] {
        let structure = build(&config, n_in, n_out, 3, None).unwrap();
        let lacewing_core::Form::Pattern(pattern) = structure.form() else { panic!("no pattern") };
        let values: Vec<f32> = (0..pattern.values_len()).map(|_| rng.normal() as f32).collect();
        for (count, regrow) in [(0, true), (5, true), (5, false), (pattern.nnz(), true), (usize::MAX, false)]
        {
            for random in [true, false] {
                let cols = pattern.grid().1;
                let mut score = |rows: std::ops::Range<usize>, to: &mut [f64]| {
                    to.iter_mut()
                        .enumerate()
                        .for_each(|(i, to)| *to = ((rows.start * cols + i) * 7919 % 101) as f64);
                };
                let mut draws = rng.fork("draws");
                let search = if random { Search::Random(&mut draws) } else { Search::Largest(&mut score) };
                let moved = move_places(pattern, &values, count, regrow, search);
                assert_eq!(moved.positions.len(), pattern.nnz());
                assert!(moved.positions.windows(2).all(|pair| pair[0] < pair[1]), "sorted, none twice");
                let stayed: BTreeSet<u32> = moved.from.iter().flatten().copied().collect();
                let dropped: BTreeSet<u32> = moved.dropped.iter().copied().collect();
                assert_eq!(stayed.len() + dropped.len(), pattern.nnz());
                assert!(stayed.is_disjoint(&dropped));
                for (place, from) in moved.positions.iter().zip(&moved.from) {
                    if let Some(from) = from {
                        assert_eq!(*place, pattern.positions[*from as usize]);
                    } else {
                        assert!(regrow || pattern.positions.binary_search(place).is_err());
                    }
                }
                if count == 5 && !regrow {
                    assert_eq!(moved.dropped.len(), 5);
                }
                let (rows, cols) = pattern.grid();
                assert!(moved.positions.iter().all(|&(r, c)| (r as usize) < rows && (c as usize) < cols));
                // The same places again make the same structure.
                let again = structure.with_positions(moved.positions.clone()).unwrap();
                let restored =
                    lacewing_core::restore(&again.config(), n_in, n_out, &again.buffers()).unwrap();
                let lacewing_core::Form::Pattern(restored) = restored.form() else { panic!("no pattern") };
                assert_eq!(restored.positions, moved.positions);
            }
        }
    }
}

#[test]
fn random_places_are_equally_likely() {
    let pattern = elements(4, 5, &[(0, 1), (1, 0), (2, 2), (3, 4)]);
    let mut counts = [0usize; 20];
    let draws = 4000;
    for seed in 0..draws {
        let search = &mut Rng::new(seed);
        let moved = move_places(&pattern, &[4.0, 3.0, 2.0, 1.0], 2, false, Search::Random(search));
        let new = moved.positions.iter().zip(&moved.from).filter(|(_, from)| from.is_none());
        new.for_each(|(&(r, c), _)| counts[r as usize * 5 + c as usize] += 1);
    }
    let (expected, share) = (draws as f64 * 2.0 / 16.0, 2.0 / 16.0);
    let deviation = (draws as f64 * share * (1.0 - share)).sqrt();
    for (at, &count) in counts.iter().enumerate() {
        if [1, 5, 12, 19].contains(&at) {
            assert_eq!(count, 0, "place {at} was stored");
        } else {
            assert!((count as f64 - expected).abs() < 4.5 * deviation, "place {at}: {count}");
        }
    }
}

/// Groups of layers of random sizes, and what each has: norms of few different values, so that there are ties.
fn layers_of(rng: &mut Rng) -> (Vec<Vec<f64>>, Vec<usize>) {
    let n = 1 + rng.below(5) as usize;
    let norms: Vec<Vec<f64>> =
        (0..n).map(|_| (0..1 + rng.below(40)).map(|_| rng.below(7) as f64).collect()).collect();
    let free = norms.iter().map(|_| rng.below(60) as usize).collect();
    (norms, free)
}

#[test]
fn between_layers_the_smallest_of_all_go_and_every_layer_keeps_one() {
    // By hand: 3 of 8 go, the 1s of both layers, of the equal 2s that of the first layer.
    let norms = [vec![1.0, 2.0, 5.0], vec![2.0, 1.0, 9.0, 8.0, 2.0]];
    let kept = keep_across(&norms, 0.4, DropScope::Global, None);
    assert_eq!(kept, [vec![false, false, true], vec![true, false, true, true, true]]);
    // Each of its own: 1 of 3, 2 of 5.
    let kept = keep_across(&norms, 0.4, DropScope::Layer, None);
    assert_eq!(kept, [vec![false, true, true], vec![false, false, true, true, true]]);
    let mut rng = Rng::new(3);
    for _ in 0..300 {
        let (norms, free) = layers_of(&mut rng);
        let fraction = rng.below(101) as f64 / 100.0;
        for free in [None, Some(&free[..])] {
            let kept = keep_across(&norms, fraction, DropScope::Global, free);
            let all: Vec<(f64, usize, usize)> = norms
                .iter()
                .enumerate()
                .flat_map(|(l, norms)| norms.iter().enumerate().map(move |(i, &norm)| (norm, l, i)))
                .collect();
            // The rule by sorting everything.
            let mut order = all.clone();
            order.sort_by(|a, b| a.partial_cmp(b).unwrap());
            let last = |l: usize| order.iter().rfind(|&&(_, layer, _)| layer == l).unwrap();
            let most = free.map_or(usize::MAX, |free| free.iter().sum());
            let count = ((fraction * all.len() as f64) as usize).min(all.len() - norms.len()).min(most);
            let gone: BTreeSet<(usize, usize)> = order
                .iter()
                .filter(|place| *place != last(place.1))
                .take(count)
                .map(|&(_, l, i)| (l, i))
                .collect();
            assert_eq!(gone.len(), count);
            for (_, l, i) in all {
                assert_eq!(kept[l][i], !gone.contains(&(l, i)), "{norms:?} {fraction}");
            }
            assert!(kept.iter().all(|kept| kept.contains(&true)));
        }
        let kept = keep_across(&norms, fraction, DropScope::Layer, Some(&free));
        for ((kept, norms), free) in kept.iter().zip(&norms).zip(free) {
            let gone = kept.iter().filter(|kept| !**kept).count();
            assert_eq!(gone, ((fraction * norms.len() as f64) as usize).min(norms.len() - 1).min(free));
        }
    }
}

#[test]
fn what_is_grown_is_in_proportion_and_fits() {
    assert_eq!(redistribute(0, &[1.0, 1.0], &[0, 0]), [0, 0]);
    assert_eq!(redistribute(7, &[0.0, f64::NAN, 0.0], &[2, 4, 8]), [1, 2, 4], "no share: by room");
    assert_eq!(redistribute(3, &[1.0, 1.0], &[5, 5]), [2, 1], "the first among equals");
    assert_eq!(redistribute(9, &[1.0, 0.0, 0.0], &[4, 5, 5]), [4, 3, 2], "what is beyond the room");
    let mut rng = Rng::new(11);
    for _ in 0..500 {
        let n = 1 + rng.below(6) as usize;
        let rooms: Vec<usize> = (0..n).map(|_| rng.below(50) as usize).collect();
        let shares: Vec<f64> = (0..n).map(|_| rng.below(4) as f64 * rng.uniform(0.0, 1.0)).collect();
        let count = rng.below(rooms.iter().sum::<usize>() as u64 + 1) as usize;
        let given = redistribute(count, &shares, &rooms);
        assert_eq!(given.iter().sum::<usize>(), count, "{shares:?} {rooms:?}");
        assert!(given.iter().zip(&rooms).all(|(given, room)| given <= room));
        // Those that are not full share what the full ones leave: each within one of its part of it.
        let open: Vec<usize> = (0..n).filter(|&l| given[l] < rooms[l]).collect();
        let (left, sum) = open.iter().fold((0, 0.0), |(left, sum), &l| (left + given[l], sum + shares[l]));
        for &l in open.iter().filter(|_| sum > 0.0) {
            let part = left as f64 * shares[l] / sum;
            // A layer that is full by its part as well as by rounding up may take one more from the others.
            assert!((given[l] as f64 - part).abs() <= n as f64, "{shares:?} {rooms:?} {count}: {given:?}");
        }
    }
    // Without full ones, the parts themselves.
    for _ in 0..100 {
        let shares: Vec<f64> = (0..5).map(|_| rng.uniform(0.1, 1.0)).collect();
        let sum: f64 = shares.iter().sum();
        let given = redistribute(1000, &shares, &[1000; 5]);
        for (given, share) in given.iter().zip(&shares) {
            assert!((*given as f64 - 1000.0 * share / sum).abs() < 1.0);
        }
        assert_eq!(given.iter().sum::<usize>(), 1000);
    }
}

#[test]
fn schedules_between_layers_store_all_weights() {
    let read = |config: Value| Schedule::from_json(&config);
    for (config, all) in [
        (json!("rigl"), false),
        (json!("set"), false),
        (json!({"name": "set", "redistribution": "nonzeros"}), true),
        (json!({"name": "block_moves", "drop": "global"}), true),
        (json!("snfs"), true),
        (json!({"name": "snfs", "redistribution": "none"}), true),
    ] {
        assert_eq!(read(config.clone()).unwrap().stores_all(), all, "{config}");
    }
    let error = |config: Value| read(config).unwrap_err().to_string();
    assert!(error(json!({"name": "rigl", "redistribution": "momentum"})).contains("only `snfs`"));
    assert!(error(json!({"name": "snfs", "moments": "gradient"})).contains("after the optimizer's step"));
    assert!(error(json!({"name": "snfs", "momentum": 1})).contains("below 1"));
    assert!(error(json!({"name": "set", "drop": "all"})).contains("`layer` or `global`"));
    // Its defaults are the paper's: an update each epoch, one weight in five at first, momentum 0.9.
    let Ok(Schedule::Moves(snfs)) = read(json!("snfs")) else { panic!("not moves") };
    assert_eq!((snfs.fraction, snfs.growth), (0.2, lacewing_core::Growth::Momentum(0.9)));
    let plan = snfs.plan(Horizon { total_steps: 500, steps_per_epoch: 100 }).unwrap();
    assert_eq!((0..500).filter(|&step| plan.is_due(step)).collect::<Vec<_>>(), [100, 200, 300, 400]);
}

#[test]
fn learned_masks_thin_out_along_the_cubic() {
    let config =
        json!({"name": "movement", "dense": "100 steps", "fine_tune": "200 steps", "every": "50 steps"});
    let Schedule::Learns(learns) = Schedule::from_json(&config).unwrap() else { panic!("not learned") };
    let plan = learns.plan(steps(1000)).unwrap();
    for (step, expected) in
        [(0, 1.0), (100, 1.0), (450, 0.1 + 0.9 / 8.0), (800, 0.1), (1000, 0.1), (1200, 0.1)]
    {
        assert!((plan.density(step, 0.1) - expected).abs() <= f64::EPSILON, "{step}");
    }
    let due: Vec<u64> = (0..=1010).filter(|&step| plan.is_due(step)).collect();
    assert_eq!(due, (150..=1000).step_by(50).collect::<Vec<_>>());
    // The target's density is reached on its day, and the end has a mask of its own.
    let odd = json!({"name": "magnitude", "dense": 0, "fine_tune": "10 steps", "every": "30 steps"});
    let Schedule::Learns(learns) = Schedule::from_json(&odd).unwrap() else { panic!("not learned") };
    let plan = learns.plan(steps(100)).unwrap();
    assert_eq!((0..=100).filter(|&step| plan.is_due(step)).collect::<Vec<_>>(), [30, 60, 90, 100]);
    assert_eq!(choose_places(&[0.5, -1.0, 0.5, 3.0], Choice::Share(0.5)), [false, false, true, true]);
    assert_eq!(choose_places(&[1.0, 2.0, 3.0], Choice::Share(0.01)), [false, false, true]);
}

#[test]
fn thresholds_follow_the_cubic_and_keep_a_floor() {
    let config = json!({
        "name": "soft_movement", "dense": "100 steps", "fine_tune": "200 steps", "initial": 0.02, "final": 0.1, "lambda": 3,
    });
    let Schedule::Learns(learns) = Schedule::from_json(&config).unwrap() else { panic!("not learned") };
    assert!(Schedule::from_json(&config).unwrap().decides_density());
    let plan = learns.plan(steps(1000)).unwrap();
    for (step, expected) in [(0, 0.02), (100, 0.02), (450, 0.1 - 0.08 / 8.0), (800, 0.1), (1000, 0.1)] {
        let threshold = plan.threshold(step).unwrap();
        assert!((threshold - expected).abs() <= f64::EPSILON, "{step}: {threshold}");
        let (penalty, weight) = plan.penalty(step);
        assert_eq!(penalty, Penalty::L1);
        assert!((weight - 3.0 * expected / 0.1).abs() <= 4.0 * 3.0 * f64::EPSILON, "{step}: {weight}");
        let above = Choice::Above { threshold, sigmoid: true, min_share: 0.005 };
        // The structure's density is not asked for.
        assert_eq!(plan.choice(step, 0.3), above);
    }
    let raw = json!({"name": "soft_movement", "method": "threshold", "initial": -1, "penalty": "none"});
    let Schedule::Learns(learns) = Schedule::from_json(&raw).unwrap() else { panic!("not learned") };
    let plan = learns.plan(steps(100)).unwrap();
    assert_eq!((plan.threshold(0), plan.penalty(50)), (Some(-1.0), (Penalty::None, 0.0)));

    let scores = [0.5, -2.3, -2.1, 3.0, 0.5];
    let above = |threshold, sigmoid, min_share| {
        choose_places(&scores, Choice::Above { threshold, sigmoid, min_share })
    };
    // σ(−2.3) = 0.091, σ(−2.1) = 0.109.
    assert_eq!(above(0.1, true, 0.0), [true, false, true, true, true]);
    assert_eq!(above(0.1, false, 0.0), [true, false, false, true, true]);
    // What equals the threshold does not count; then at least one does, and among equals the lowest index goes first.
    assert_eq!(above(0.5, false, 0.0), [false, false, false, true, false]);
    assert_eq!(above(9.0, false, 0.0), [false, false, false, true, false]);
    assert_eq!(above(9.0, false, 0.2), [false, false, false, true, true]);
    assert_eq!(above(9.0, false, 1.0), [true; 5]);
    assert!(choose_places(&[], Choice::Above { threshold: 0.0, sigmoid: false, min_share: 0.1 }).is_empty());
}

#[test]
fn budgets_are_those_published() {
    let mlp = [vec![784, 300], vec![300, 100], vec![100, 10]];
    let conv = [vec![3, 3, 3, 16], vec![3, 3, 16, 32], vec![32, 10]];
    let (erk, er) = (Budget::ErdosRenyiKernel, Budget::ErdosRenyi);
    for (budget, shapes, sparsity, expected) in [
        (erk, &mlp, 0.9, [0.920_432_229_5, 0.769_811_320_8, 0.0]),
        (erk, &mlp, 0.5, [0.565_901_360_5, 0.0, 0.0]),
        (erk, &conv, 0.8, [0.448_400_140_6, 0.888_301_028_5, 0.0]),
        (er, &conv, 0.8, [0.341_505_168_0, 0.844_040_697_7, 0.781_656_976_7]),
        (Budget::Uniform, &conv, 0.8, [0.8; 3]),
    ] {
        let densities = budget.densities(shapes, 1.0 - sparsity);
        for (density, expected) in densities.iter().zip(expected) {
            assert!((1.0 - density - expected).abs() < 0.6e-10, "{budget:?}: {densities:?}");
        }
    }
}

#[test]
fn the_folder_is_its_table() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/schedules");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let stems = files.map(|file| file.file_stem().unwrap().to_str().unwrap().to_owned());
    let files: BTreeSet<String> = stems.filter(|stem| stem != "mod").collect();
    let rows: BTreeSet<String> = TABLE.iter().map(|kind| kind.name.to_owned()).collect();
    assert_eq!(files, rows);
    assert_eq!(rows.len(), TABLE.len(), "a row is repeated");
}

#[test]
fn configs_come_back_and_wrong_ones_are_named() {
    for kind in TABLE {
        let schedule = Schedule::from_json(&json!(kind.name)).unwrap();
        let config = schedule.config();
        let keep =
            |(key, _): &(&String, &Value)| kind.keys.iter().any(|known| known.name == *key) || *key == "name";
        let given: serde_json::Map<String, Value> =
            config.as_object().unwrap().iter().filter(keep).map(|(k, v)| (k.clone(), v.clone())).collect();
        assert_eq!(Schedule::from_json(&given.into()).unwrap(), schedule, "{config}");
    }
    // A product of scores cannot be a sum: it is trained.
    let product = Schedule::from_json(&json!({"name": "movement", "scores": "rows_and_columns"})).unwrap();
    assert_eq!(
        (&product.config()["lr"], &product.config()["scores"]),
        (&json!(0.01), &json!("rows_and_columns"))
    );
    assert_eq!(Schedule::from_json(&product.config()).unwrap(), product);
    let error = |config: Value| Schedule::from_json(&config).unwrap_err().to_string();
    assert!(error(json!("rigil")).contains("did you mean `rigl`"));
    assert_eq!(error(json!(3)), "a schedule is a name or a map with the key `name`, got 3");
    assert!(error(json!({"name": "rigl", "evry": 3})).contains("`every`"));
    let share = "`rigl.end` must be a share of the run from 0 to 1, \"N steps\" or \"N epochs\", got 3";
    assert_eq!(error(json!({"name": "rigl", "end": 3})), share);
    assert!(error(json!({"name": "mask_decay", "coef": 1e-4, "until": 0.5})).contains("cannot be combined"));
    assert!(error(json!({"name": "set", "moments": "gradient"})).contains("places are random"));
    let soft = |key: &str, value: Value| error(json!({"name": "soft_movement", key: value}));
    assert_eq!(soft("final", json!(1.5)), "`soft_movement.final` must be between 0 and 1, got 1.5");
    assert!(soft("final", json!(0.0)).contains("above 0 where there is a penalty"));
    assert!(soft("penalty", json!("l2")).contains("`l1`, `l0` or `none`"));
    assert!(soft("method", json!("top_k")).contains("`sigmoid_threshold` or `threshold`"));
    assert!(soft("scores", json!("row")).contains("`rows`, `columns` or `rows_and_columns`"));
    let vain = error(json!({"name": "soft_movement", "penalty": "none", "lambda": 2}));
    assert_eq!(vain, "`soft_movement.lambda` cannot be combined with `penalty: none`");
    let plan = |config: Value| masks(&config, steps(100), 1, 8).unwrap_err().to_string();
    let phases = json!({"name": "sr_ste", "dense": 0.6, "fine_tune": 0.5});
    assert_eq!(plan(phases), "`sr_ste`: dense + fine_tune: step 110, at most 100");
    let list = json!({"name": "structure_decay", "stages": [[0, 4, 8], ["50 steps", 2, 8]]});
    assert!(plan(list).contains("must end with 1:8"));
    let back = json!({"name": "structure_decay", "stages": [[0.5, 4, 8], [0.2, 1, 8]]});
    assert!(plan(back).contains("step 20, at most 50"));
    let dense = build(&json!("dense"), 8, 8, 0, None).unwrap();
    for name in ["sr_ste", "rigl"] {
        let refused = Schedule::from_json(&json!(name)).unwrap().check(dense.as_ref()).unwrap_err();
        assert!(matches!(refused, StructureError::Unscheduled { structure: "dense", .. }), "{refused}");
    }
}
