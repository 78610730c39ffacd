//! Moves: values and moments that go along.

use super::*;

/// A place, and what each array has there.
type Stored = ((u32, u32), Vec<Vec<f32>>);

/// What a moved layer is compared with: its places, with the values and those of each follower.
fn stored(layer: &Evolving, built: &Built, arrays: &[&Tensor]) -> Vec<Stored> {
    let structure = layer.structure();
    let Form::Pattern(pattern) = structure.form() else { panic!("no pattern") };
    let per_block = pattern.block.0 * pattern.block.1;
    let arrays: Vec<Vec<f32>> =
        arrays.iter().map(|array| built.params.view(array, layer.weight).to_f32().unwrap()).collect();
    let of =
        |slot: usize| arrays.iter().map(|array| array[slot * per_block..][..per_block].to_vec()).collect();
    pattern.positions.iter().enumerate().map(|(slot, &place)| (place, of(slot))).collect()
}

#[test]
fn what_moves_takes_its_values_and_moments_along() {
    for device in devices() {
        for (structure, schedule) in [
            (json!({"structure": "unstructured", "density": 0.2}), json!({"name": "rigl", "value": "zero"})),
            (json!({"structure": "unstructured", "density": 0.2}), json!({"name": "set", "moments": "keep"})),
            (
                json!({"structure": "block_sparse", "block": 8, "density": 0.25}),
                json!({"name": "rigl", "moments": "gradient", "moment_scale": 0.5}),
            ),
            (json!({"structure": "block_sparse", "block": 8, "density": 0.25}), json!("block_moves")),
        ] {
            let mut config = structure.clone();
            config["schedule"] = schedule.clone();
            let (linear, built) = layer(&device, &config, 64, 48);
            let (layer, params) = (&built.evolving[0], &built.params);
            let Schedule::Moves(moves) = &layer.schedule else { panic!("not moves") };
            let mut adamw = AdamW::new(params, AdamWConfig::default()).unwrap();
            let mut rng = Rng::new(3);
            let mut draw = |n: usize| (0..n).map(|_| rng.normal() as f32).collect::<Vec<f32>>();
            let (x, dy) = (draw(5 * 64), draw(5 * 48));
            let (x, dy) = (tensor(&device, &x, &[5, 64]), tensor(&device, &dy, &[5, 48]));
            // Moments that are not zero.
            pass(&linear, &built, &x, &dy);
            adamw.step(params, 1e-2, None).unwrap();

            layer.watch(moves.growth == Growth::Gradient);
            let before = pass(&linear, &built, &x, &dy).0;
            let id = layer.weight;
            let flats: Vec<Tensor> = adamw.state().into_iter().map(|(_, flat)| flat.clone()).collect();
            let arrays = [params.flat_master(), &flats[0], &flats[1]];
            let old = stored(layer, &built, &arrays);
            let mut rng = Rng::new(7);
            let moved = layer.choose(params, 0.3, &mut rng).unwrap();
            let followers = [1, 2]
                .map(|power| Follower { flat: &flats[power as usize - 1], first: First::Moment { power } });
            layer.relocate(params, &moved, &followers, &mut rng).unwrap();
            let new = stored(layer, &built, &arrays);

            assert_eq!(new.len(), old.len(), "as many are stored");
            assert_eq!(linear.weights(), [id], "the parameter is the same one");
            let grown: Vec<_> = new.iter().filter(|(place, _)| old.iter().all(|(p, _)| p != place)).collect();
            assert!(!grown.is_empty(), "{config}");
            let changed: Vec<_> = new
                .iter()
                .filter(|(place, values)| old.iter().any(|(p, v)| p == place && v != values))
                .collect();
            // A random place may be one just given up; then it is as it was.
            assert!(changed.is_empty(), "{config}: {changed:?}");
            // The gradient of the dense weight decides, and is what a gradient's moment starts from.
            let (x, dy) = (x.to_f32().unwrap(), dy.to_f32().unwrap());
            let g = |row: usize, col: usize| {
                (0..5).map(|r| f64::from(dy[r * 48 + row]) * f64::from(x[r * 64 + col])).sum::<f64>()
            };
            let block = if structure["structure"] == "unstructured" { 1 } else { 8 };
            let norm = |&(row, col): &(u32, u32)| {
                let (row, col) = (row as usize * block, col as usize * block);
                let all = (row..row + block).flat_map(|r| (col..col + block).map(move |c| (r, c)));
                all.map(|(r, c)| g(r, c) * g(r, c)).sum::<f64>().sqrt()
            };
            if moves.growth == Growth::Gradient {
                let least = grown.iter().map(|(place, _)| norm(place)).fold(f64::INFINITY, f64::min);
                let (rows, cols) = (48 / block as u32, 64 / block as u32);
                let free = (0..rows).flat_map(|r| (0..cols).map(move |c| (r, c)));
                let free = free.filter(|place| new.iter().all(|(p, _)| p != place));
                let most = free.map(|place| norm(&place)).fold(0.0, f64::max);
                // Sums of five products in f32.
                assert!(least >= most * (1.0 - 8.0 * f64::from(f32::EPSILON)), "{config}: {least} {most}");
            }
            if schedule["moments"] == "gradient" {
                for (place, values) in &grown {
                    let at = (place.0 as usize * 8, place.1 as usize * 8);
                    for i in 0..64 {
                        let wanted = 0.5 * g(at.0 + i / 8, at.1 + i % 8);
                        let terms: f64 = (0..5)
                            .map(|r| {
                                (f64::from(dy[r * 48 + at.0 + i / 8]) * f64::from(x[r * 64 + at.1 + i % 8]))
                                    .abs()
                            })
                            .sum();
                        let bound = 6.0 * f64::from(f32::EPSILON) * terms;
                        assert!(
                            (f64::from(values[1][i]) - wanted).abs() <= bound,
                            "{wanted} {}",
                            values[1][i]
                        );
                        assert_eq!(values[2][i], values[1][i] * values[1][i]);
                    }
                }
            } else if schedule["moments"] != "keep" {
                assert!(
                    grown.iter().all(|(_, values)| values[1..].concat().iter().all(|&m| m == 0.0)),
                    "{config}"
                );
            }
            // What runs now is the new pattern: the definition in f64 of the structure as it is.
            layer.watch(false);
            let after =
                pass(&linear, &built, &tensor(&device, &x, &[5, 64]), &tensor(&device, &dy, &[5, 48])).0;
            assert_ne!(after, before);
            let values: Vec<f64> = params.master(id).to_f32().unwrap().into_iter().map(f64::from).collect();
            let w = linear.structure().to_dense(&[&values]).unwrap();
            let bias = params.master(linear.bias().unwrap()).to_f32().unwrap();
            for (at, got) in after.iter().enumerate() {
                let (row, out) = (at / 48, at % 48);
                let terms = (0..64).map(|i| w[out * 64 + i] * f64::from(x[row * 64 + i]));
                let wanted = terms.clone().sum::<f64>() + f64::from(bias[out]);
                let bound = lacewing_testkit::gamma(66)
                    * (terms.map(f64::abs).sum::<f64>() + f64::from(bias[out].abs()));
                assert!((f64::from(*got) - wanted).abs() <= bound, "{config} [{at}]: {got} {wanted}");
            }
        }
    }
}
