//! What convolutional networks have besides products: batch norm and pooling.

use super::*;

fn running(place: &Place, case: &str) -> RunningStats {
    let [mean, var] = ["mean", "var"].map(|which| place.tensor(&format!("{case}/running_{which}")));
    RunningStats { mean, var }
}

#[test]
fn batch_norms_meet_the_oracle() {
    for case in ["batch_norm", "batch_norm_wide"] {
        check(case, &["x", "g", "b"], |place, cx, v| {
            ops::batch_norm(cx, &v[0], &v[1], &v[2], &running(place, case), 0.1, 1e-5)
        });
        for place in places() {
            let x = ops::cast(&place.tensor(&format!("{case}/in/x")), place.dtype).unwrap();
            let one = |value| {
                let values = vec![value; *x.shape().last().unwrap()];
                Tensor::from_f32(&place.device(), &values, &[values.len()]).unwrap()
            };
            let norm = |cx: &Cx, running: &RunningStats| {
                let [x, gamma, beta] = [x.clone(), one(1.0), one(0.0)].map(|value| cx.leaf(value));
                ops::batch_norm(cx, &x, &gamma, &beta, running, 0.1, 1e-5).unwrap()
            };
            let running = running(&place, case);
            let y = norm(&Cx::evaluation(place.params.clone()), &running);
            compare(&format!("{case}_eval"), "", &place, y.value());
            let cx = Cx::training(place.params.clone(), StepRng::new(0, 0));
            let y = norm(&cx, &running);
            cx.backward(&y, y.value().clone()).unwrap();
            compare(&format!("{case}_mean"), "", &place, &running.mean);
            compare(&format!("{case}_var"), "", &place, &running.var);
        }
    }
}

#[test]
fn running_statistics_move_once_a_step_and_at_its_end() {
    for place in places() {
        let mut runs = Vec::new();
        for recompute in [false, true] {
            let stats = running(&place, "batch_norm_wide");
            let cx = Cx::training(place.params.clone(), StepRng::new(0, 0));
            let leaf = |key: &str, dtype| {
                let tensor = place.tensor(&format!("batch_norm_wide/in/{key}"));
                cx.leaf(ops::cast(&tensor, dtype).unwrap())
            };
            let inputs = [leaf("x", place.dtype), leaf("g", DType::F32), leaf("b", DType::F32)];
            let own = stats.clone();
            let block = move |cx: &Cx, v: &[Var]| {
                let y = ops::batch_norm(cx, &v[0], &v[1], &v[2], &own, 0.1, 1e-5)?;
                // Nested, as a model could have it.
                let (own, affine) = (own.clone(), [v[1].clone(), v[2].clone()]);
                cx.recompute(&[&y, &affine[0], &affine[1]], move |cx, v| {
                    ops::batch_norm(cx, &v[0], &v[1], &v[2], &own, 0.5, 1e-5)
                })
            };
            let before = stats.mean.to_f32().unwrap();
            let y = if recompute {
                cx.recompute(&inputs.each_ref(), block).unwrap()
            } else {
                block(&cx, &inputs).unwrap()
            };
            assert_eq!(stats.mean.to_f32().unwrap(), before, "not during the forward pass");
            let dy = ops::cast(&place.tensor("batch_norm_wide/dy"), place.dtype).unwrap();
            let mut gradients = cx.backward(&y, dy).unwrap();
            let mut all = vec![y.value().to_f32().unwrap()];
            all.extend(inputs.iter().map(|var| gradients.take(var).unwrap().to_f32().unwrap()));
            all.extend([&stats.mean, &stats.var].map(|stats| stats.to_f32().unwrap()));
            assert_ne!(all[4], before);
            runs.push(all);
        }
        assert_eq!(runs[0], runs[1], "{}", place.name());
    }
}

#[test]
fn max_pools_meet_the_oracle() {
    for (case, size, stride, padding) in
        [("max_pool", 3, 2, 1), ("max_pool_ties", 3, 2, 1), ("max_pool_ragged", 2, 3, 0)]
    {
        let window = Window { kernel: (size, size), stride, padding };
        check(case, &["x"], |_, cx, v| ops::max_pool(cx, &v[0], window));
    }
    for place in places() {
        let cx = Cx::training(place.params.clone(), StepRng::new(0, 0));
        let x = Tensor::from_f32(&place.device(), &[1.0, f32::NAN, 2.0, -1.0], &[1, 4, 1, 1]).unwrap();
        let x = cx.leaf(ops::cast(&x, place.dtype).unwrap());
        let y = ops::max_pool(&cx, &x, Window { kernel: (2, 1), stride: 2, padding: 0 }).unwrap();
        let values = y.value().to_f32().unwrap();
        assert!(values[0].is_nan() && values[1] == 2.0, "{values:?}, {}", place.name());
    }
}
