//! The losses and their gradients.

use super::*;

/// Labels, logits and soft targets of the losses' fixtures at `place`.
fn loss_inputs(place: &Place) -> (Tensor, Tensor, Tensor) {
    let labels = FIXTURES.tensor("loss/labels").unwrap();
    let labels = labels.data().chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap()));
    let labels = Tensor::from_u32(&place.device(), &labels.collect::<Vec<_>>(), &[6]).unwrap();
    let logits = ops::cast(&place.tensor("loss/logits"), place.dtype).unwrap();
    (labels, logits, place.tensor("loss/soft"))
}

/// Loss and gradient, scaled by `1 / rows`, against those of the fixture `name`.
#[track_caller]
fn compare_loss(place: &Place, name: &str, (loss, dlogits): (Tensor, Tensor)) {
    // Ten terms, an exponential of a few ulp each; what is stored in bf16 is rounded once.
    let relative = 32.0 * f32::EPSILON;
    let stored = if place.dtype == DType::Bf16 { 1.0 / 256.0 } else { 0.0 };
    for (what, got, slack) in [("loss", loss, relative), ("dlogits", dlogits, relative + stored)] {
        let want = f32s(&format!("{name}/{what}"));
        let largest = want.iter().fold(1f32 / 6.0, |m, v| m.max(v.abs()));
        for (got, want) in got.to_f32().unwrap().iter().zip(&want) {
            let error = (got - want).abs();
            assert!(error <= slack * largest, "{name} {what}: {got}, expected {want}, {}", place.name());
        }
    }
}

#[test]
fn the_loss_and_its_gradient_meet_the_oracle() {
    for place in places() {
        let (labels, logits, soft) = loss_inputs(&place);
        let labels = &labels;
        for (name, target) in [
            ("loss_plain", Target::Classes { labels, smoothing: 0.0 }),
            ("loss_smooth", Target::Classes { labels, smoothing: 0.1 }),
            ("loss_soft", Target::Soft(&soft)),
        ] {
            let got = ops::softmax_cross_entropy(&logits, target, 1.0 / 6.0).unwrap();
            compare_loss(&place, name, got);
        }
        let logits = Tensor::from_f32(&place.device(), &[1.0, 3.0, 3.0, 0.0], &[1, 4]).unwrap();
        let ranks = |label: u32| {
            let label = Tensor::from_u32(&place.device(), &[label], &[1]).unwrap();
            ops::ranks(&logits, &label).unwrap().to_u32().unwrap()[0]
        };
        assert_eq!([0, 1, 2, 3].map(ranks), [2, 0, 1, 3], "ties go to the lower index, {}", place.name());
    }
}

#[test]
fn the_binary_loss_and_its_gradient_meet_the_oracle() {
    for place in places() {
        let (labels, logits, soft) = loss_inputs(&place);
        let labels = &labels;
        for (name, target, threshold) in [
            ("binary_plain", Target::Classes { labels, smoothing: 0.0 }, None),
            ("binary_smooth", Target::Classes { labels, smoothing: 0.1 }, None),
            ("binary_smooth_threshold", Target::Classes { labels, smoothing: 0.1 }, Some(0.5)),
            ("binary_soft", Target::Soft(&soft), None),
            ("binary_soft_threshold", Target::Soft(&soft), Some(0.1)),
        ] {
            let got = ops::binary_cross_entropy(&logits, target, threshold, 1.0 / 6.0).unwrap();
            compare_loss(&place, name, got);
        }
        // So many classes that a block of several warps takes a row, and not a multiple of eight; a label that is none.
        let classes = 1003;
        let values: Vec<f32> = uniform(1, 2 * classes).iter().map(|x| (x * 16.0).round()).collect();
        let logits = Tensor::from_f32(&place.device(), &values, &[2, classes]).unwrap();
        let logits = ops::cast(&logits, place.dtype).unwrap();
        let labels = Tensor::from_u32(&place.device(), &[1002, 1003], &[2]).unwrap();
        let target = Target::Classes { labels: &labels, smoothing: 0.0 };
        let (loss, _) = ops::binary_cross_entropy(&logits, target, None, 1.0).unwrap();
        let loss = loss.to_f32().unwrap();
        let terms = values[..classes].iter().enumerate().map(|(c, &x)| {
            let x = f64::from(x) * if c == 1002 { -1.0 } else { 1.0 };
            x.exp().ln_1p()
        });
        let want = terms.sum::<f64>() / classes as f64;
        assert!((f64::from(loss[0]) - want).abs() <= gamma(classes) * want, "{} {want}", loss[0]);
        assert!(loss[1].is_nan(), "{}", place.name());
    }
}
