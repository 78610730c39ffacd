//! Optimizers and averages, step by step.

use super::*;

#[test]
fn an_average_has_a_constant_decay_or_a_warmed_up_one() {
    for place in places() {
        let mut builder = ParamsBuilder::new(place.device(), place.dtype).unwrap();
        builder.add("w", &[64], true, vec![0.0; 64]).unwrap();
        let params = builder.build().unwrap();
        let (decay, steps) = (0.9f32, 5);
        let values: Vec<Vec<f32>> = (0..=steps).map(|t| uniform(t, 64)).collect();
        for warmup in [false, true] {
            params.flat_master().set_f32(&values[0]).unwrap();
            let mut average = Ema::new(&params, decay, warmup).unwrap();
            let mut want: Vec<f64> = values[0].iter().map(|x| f64::from(*x)).collect();
            for t in 1..=steps {
                params.flat_master().set_f32(&values[t as usize]).unwrap();
                average.update(&params, t).unwrap();
                let warm = (1.0 + t as f64) / (10.0 + t as f64);
                let d = if warmup { f64::from(decay).min(warm) } else { f64::from(decay) };
                for (w, x) in want.iter_mut().zip(&values[t as usize]) {
                    *w = d * *w + (1.0 - d) * f64::from(*x);
                }
            }
            // Five steps of a few roundings each, of numbers up to 1.
            let bound = gamma(5 * 8);
            for (got, want) in average.flat().to_f32().unwrap().iter().zip(&want) {
                let what = format!("warm-up {warmup}, {}", place.name());
                assert!((f64::from(*got) - want).abs() <= bound, "{got}, expected {want}, {what}");
            }
        }
    }
}

#[test]
fn optimizers_follow_pytorch() {
    type Make = fn(&Params) -> Box<dyn Optimizer>;
    let cases: [(&str, f32, Option<f32>, Make); 4] = [
        ("adamw", 0.01, None, |p| {
            let config = AdamWConfig { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1 };
            Box::new(AdamW::new(p, config).unwrap())
        }),
        ("adamw_clip", 0.01, Some(1.0), |p| {
            let config = AdamWConfig { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1 };
            Box::new(AdamW::new(p, config).unwrap())
        }),
        ("sgd", 0.1, None, |p| {
            let config = SgdConfig { momentum: 0.9, nesterov: false, weight_decay: 0.1 };
            Box::new(Sgd::new(p, config).unwrap())
        }),
        ("sgd_nesterov", 0.1, None, |p| {
            let config = SgdConfig { momentum: 0.9, nesterov: true, weight_decay: 0.1 };
            Box::new(Sgd::new(p, config).unwrap())
        }),
    ];
    let (start, grads) = (f32s("optimizer/start"), f32s("optimizer/grads"));
    for (name, lr, clip, make) in cases {
        for place in places() {
            let mut builder = ParamsBuilder::new(place.device(), place.dtype).unwrap();
            let decayed = builder.add("a", &[24], true, start[..24].to_vec()).unwrap();
            let plain = builder.add("b", &[16], false, start[24..].to_vec()).unwrap();
            let params = builder.build().unwrap();
            let mut optimizer = make(&params);
            for g in grads.chunks_exact(40) {
                params.gradient(decayed).unwrap().set_f32(&g[..24]).unwrap();
                params.gradient(plain).unwrap().set_f32(&g[24..]).unwrap();
                optimizer.step(&params, lr, clip).unwrap();
                assert!(params.flat_gradient().unwrap().to_f32().unwrap().iter().all(|&g| g == 0.0));
            }
            let got: Vec<f32> =
                [decayed, plain].iter().flat_map(|&id| params.master(id).to_f32().unwrap()).collect();
            // Five steps of about ten f32 operations each, on values no larger than 4.
            let bound = 50.0 * 4.0 * f32::EPSILON;
            for (got, want) in got.iter().zip(f32s(&format!("{name}/end"))) {
                assert!((got - want).abs() <= bound, "{name}: {got}, expected {want}, {}", place.name());
            }
            if place.dtype == DType::Bf16 {
                let rounded: Vec<f32> = got.iter().map(|&v| half_round(v)).collect();
                let copy: Vec<f32> =
                    [decayed, plain].iter().flat_map(|&id| params.compute(id).to_f32().unwrap()).collect();
                assert_eq!(copy, rounded, "{name}: the copy is the master, rounded");
            }
        }
    }
}

/// Rounds to bf16, to nearest even.
fn half_round(v: f32) -> f32 {
    let bits = v.to_bits();
    f32::from_bits((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF_0000)
}
