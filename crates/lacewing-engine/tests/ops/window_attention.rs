//! Attention within windows against PyTorch's float64 answers, and what windows and operands must be.

use super::{check, places};
use lacewing_engine::ops::{self, WindowIndex};
use lacewing_engine::{Cx, Device, StepRng, Tensor};
use lacewing_testkit::uniform;

#[test]
fn window_attention_meets_the_oracle() {
    for (case, side, window, shift) in
        [("window_attention_shifted", 4, 2, 1), ("window_attention_heads", 8, 4, 2)]
    {
        check(case, &["qkv", "log_scale", "bias"], |place, cx, v| {
            let windows = WindowIndex::new(&place.device(), side, window, shift)?;
            ops::window_attention(cx, &v[0], &v[1], &v[2], &windows)
        });
    }
    check("window_attention_whole", &["q", "k", "v", "log_scale", "bias"], |place, cx, v| {
        let windows = WindowIndex::new(&place.device(), 6, 6, 0)?;
        ops::window_attention_separate(cx, [&v[0], &v[1], &v[2]], &v[3], &v[4], &windows)
    });
}

#[test]
fn a_token_hears_its_window_and_its_region_alone() {
    // Of the 4 x 4 map shifted by 1, the last window has four regions of one token, the others of two or four.
    for place in places() {
        let windows = WindowIndex::new(&place.device(), 4, 2, 1).unwrap();
        let cx = Cx::training(place.params.clone(), StepRng::new(0, 0));
        let tensor =
            |values: &[f32], shape: &[usize]| Tensor::from_f32(&place.device(), values, shape).unwrap();
        let run = |v: &[f32]| {
            let qkv: Vec<f32> = (0..16).flat_map(|t| [1.0, 1.0, v[t]]).collect();
            let qkv = ops::cast(&tensor(&qkv, &[1, 16, 3]), place.dtype).unwrap();
            let (log_scale, bias) = (tensor(&[0.0], &[1]), tensor(&[0.0; 16], &[1, 4, 4]));
            let [qkv, log_scale, bias] = [qkv, log_scale, bias].map(|tensor| cx.constant(tensor));
            let y = ops::window_attention(&cx, &qkv, &log_scale, &bias, &windows).unwrap();
            y.value().to_f32().unwrap()
        };
        let heard: Vec<Vec<usize>> = (0..16)
            .map(|token| {
                let mut v = [0.0; 16];
                v[token] = 1.0;
                let y = run(&v);
                (0..16).filter(|&other| y[other] > 1e-3).collect()
            })
            .collect();
        // Rows and columns 0 and 3 are alone in their bands, 1 and 2 together.
        let band = |at: usize| if at == 1 || at == 2 { vec![1, 2] } else { vec![at] };
        for (token, heard) in heard.iter().enumerate() {
            let rows = band(token / 4);
            let wanted: Vec<usize> = rows
                .iter()
                .flat_map(|row| band(token % 4).into_iter().map(move |col| 4 * row + col))
                .collect();
            assert_eq!(*heard, wanted, "token {token}, {}", place.name());
        }
    }
}

#[test]
fn windows_and_operands_that_do_not_fit_are_errors_with_numbers() {
    for ((side, window, shift), words) in [
        ((8, 3, 0), ["window", "divisor of 8", "is 3"]),
        ((8, 0, 0), ["window", "divisor of 8", "is 0"]),
        ((8, 4, 4), ["shift", "below 4", "is 4"]),
        ((0, 1, 0), ["side", "from 1", "is 0"]),
    ] {
        let error = WindowIndex::new(&Device::Cpu, side, window, shift).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
    let place = places().swap_remove(0);
    let cx = Cx::evaluation(place.params.clone());
    let windows = WindowIndex::new(&Device::Cpu, 4, 2, 0).unwrap();
    let var = |shape: &[usize]| {
        let values = uniform(1, shape.iter().product());
        cx.constant(Tensor::from_f32(&Device::Cpu, &values, shape).unwrap())
    };
    for (qkv, log_scale, bias, word) in [
        (&[1, 15, 12][..], &[2][..], &[2, 4, 4][..], "[batch, 16, 3 · 2 heads · dim]"),
        (&[1, 16, 10], &[2], &[2, 4, 4], "[batch, 16, 3 · 2 heads · dim]"),
        (&[1, 16, 12], &[2, 1], &[2, 4, 4], "log_scale"),
        (&[1, 16, 12], &[2], &[2, 4, 5], "bias"),
    ] {
        let error = ops::window_attention(&cx, &var(qkv), &var(log_scale), &var(bias), &windows);
        let error = error.unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    let [q, k] = [var(&[1, 16, 8]), var(&[1, 16, 4])];
    let error = ops::window_attention_separate(&cx, [&q, &k, &q], &var(&[2]), &var(&[2, 4, 4]), &windows);
    let error = error.unwrap_err().to_string();
    assert!(error.contains(" k "), "{error}");
}
