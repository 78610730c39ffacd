//! Dense products through cuBLASLt.

use super::*;

/// A product with room between rows and matrices, compared with the oracle, everything around it with what it was.
fn check_matmul(device: &Device, base: Matmul, seed: u64) {
    let gap = 8;
    let (a_rows, a_cols) = if base.trans_a { (base.k, base.m) } else { (base.m, base.k) };
    let (b_rows, b_cols) = if base.trans_b { (base.n, base.k) } else { (base.k, base.n) };
    let problem = Matmul {
        lda: a_cols + gap,
        ldb: b_cols + gap,
        ldd: base.n + gap,
        stride_a: a_rows * (a_cols + gap) + 16,
        stride_b: b_rows * (b_cols + gap) + 16,
        stride_d: base.m * (base.n + gap) + 16,
        ..base
    };
    let p = &problem;
    let a = values(p.a_type, seed, p.batch * p.stride_a);
    let b = values(p.b_type, seed + 1, p.batch * p.stride_b);
    let start = values(p.d_type, seed + 2, p.batch * p.stride_d);
    let gelu = p.epilogue == Epilogue::BiasGeluTanh;
    let bias = (gelu || p.epilogue == Epilogue::Bias).then(|| values(p.d_type, seed + 3, p.n));
    // Overwritten outputs start as NaN, which a forgotten element keeps.
    let is_element = |i: usize| i % p.stride_d / p.ldd < p.m && i % p.stride_d % p.ldd < p.n;
    let before: Vec<f32> =
        (0..start.len()).map(|i| if is_element(i) && !p.accumulate { f32::NAN } else { start[i] }).collect();
    let (a_on, b_on) = (upload(device, p.a_type, &a), upload(device, p.b_type, &b));
    let d_on = upload(device, p.d_type, &before);
    let bias_on = bias.as_ref().map(|bias| upload(device, p.d_type, bias));
    matmul::run(device, p, &a_on, &b_on, &d_on, bias_on.as_ref()).unwrap_or_else(|error| panic!("{error}"));
    let got = download(device, p.d_type, &d_on);

    let gather =
        |from: &[f32], at: usize, ld: usize, rows: usize, cols: usize, transpose: bool| -> Vec<f64> {
            let element =
                |i: usize, j: usize| f64::from(from[at + if transpose { j * ld + i } else { i * ld + j }]);
            (0..rows).flat_map(|i| (0..cols).map(move |j| (i, j))).map(|(i, j)| element(i, j)).collect()
        };
    for matrix in 0..p.batch {
        let op_a = gather(&a, matrix * p.stride_a, p.lda, p.m, p.k, p.trans_a);
        let op_b = gather(&b, matrix * p.stride_b, p.ldb, p.k, p.n, p.trans_b);
        let mut oracle = matmul_oracle(&op_a, &op_b, p.m, p.k, p.n);
        let mut k = p.k + 1;
        oracle.value.iter_mut().for_each(|v| *v *= f64::from(p.alpha));
        oracle.magnitude.iter_mut().for_each(|v| *v *= f64::from(p.alpha.abs()));
        if let Some(bias) = &bias {
            oracle = oracle.plus_bias(&widen(bias));
            k += 1;
        }
        if p.accumulate {
            let d = gather(&start, matrix * p.stride_d, p.ldd, p.m, p.n, false);
            oracle.value.iter_mut().zip(&d).for_each(|(v, d)| *v += d);
            oracle.magnitude.iter_mut().zip(&d).for_each(|(v, d)| *v += d.abs());
            k += 1;
        }
        let got: Vec<f32> =
            gather(&got, matrix * p.stride_d, p.ldd, p.m, p.n, false).into_iter().map(|v| v as f32).collect();
        // An algorithm may round the sum to the output's type once more before it adds bias or D.
        let mut bound = bounds(&oracle, k, p.d_type);
        if p.d_type != Type::F32 {
            bound.iter_mut().zip(&oracle.magnitude).for_each(|(b, m)| *b += unit(p.d_type) * m);
        }
        if gelu {
            for (value, bound) in oracle.value.iter_mut().zip(&mut bound) {
                // The library's tanh is no better than ours.
                (*value, *bound) = end(Activation::GeluTanh, *value, *bound, p.d_type);
            }
        }
        assert_within(&got, &oracle.value, &bound, &format!("{p:?}"));
    }
    for i in (0..got.len()).filter(|&i| !is_element(i)) {
        assert_eq!(got[i], before[i], "element {i} beside the result of {p:?}");
    }
}

#[test]
fn matmul_agrees_with_f64_for_all_transposes_types_and_batches() {
    let Some(device) = device() else { return };
    let mut seed = 10;
    for (of, d_type) in [
        (Type::F32, Type::F32),
        (Type::Bf16, Type::Bf16),
        (Type::Bf16, Type::F32),
        (Type::F16, Type::F16),
        (Type::F16, Type::F32),
    ] {
        for (trans_a, trans_b) in [(false, false), (false, true), (true, false), (true, true)] {
            for accumulate in [false, true] {
                for (m, n, k, batch) in [(40, 24, 56, 1), (72, 136, 200, 3), (1, 8, 8, 1)] {
                    let base = Matmul::new(m, n, k, batch, trans_a, trans_b, of);
                    seed += 10;
                    check_matmul(&device, Matmul { d_type, accumulate, alpha: 0.5, ..base }, seed);
                }
            }
        }
    }
    for of in [Type::F32, Type::Bf16] {
        check_matmul(&device, Matmul::new(37, 29, 53, 1, false, true, of), 5);
    }
}

#[test]
fn matmul_adds_a_bias_to_every_row_and_applies_gelu() {
    let Some(device) = device() else { return };
    for of in [Type::F32, Type::Bf16, Type::F16] {
        let base = Matmul::new(64, 96, 128, 1, false, true, of);
        check_matmul(&device, Matmul { epilogue: Epilogue::Bias, ..base }, 3);
        check_matmul(&device, Matmul { epilogue: Epilogue::BiasGeluTanh, ..base }, 3);
    }
}

#[test]
fn a_bias_gradient_beside_its_weight_gradient_is_right_where_the_library_has_it() {
    let Some(device) = device() else { return };
    let (rows, n_out, n_in) = (200, 64, 96);
    let (d_y, x) = (values(Type::Bf16, 1, rows * n_out), values(Type::Bf16, 2, rows * n_in));
    let (d_y_on, x_on) = (upload(&device, Type::Bf16, &d_y), upload(&device, Type::Bf16, &x));
    for d_type in [Type::F32, Type::Bf16] {
        let base = Matmul::new(n_out, n_in, rows, 1, true, false, Type::Bf16);
        let problem = Matmul { d_type, epilogue: Epilogue::SumA, ..base };
        let (d_w, d_b) = (
            device.region(n_out * n_in * d_type.size_bytes()).expect("memory"),
            device.region(n_out * d_type.size_bytes()).expect("memory"),
        );
        match matmul::run(&device, &problem, &d_y_on, &x_on, &d_w, Some(&d_b)) {
            Ok(()) => {
                let oracle = matmul_oracle(&vec![1.0; rows], &widen(&d_y), 1, rows, n_out);
                let bound = bounds(&oracle, rows, d_type);
                assert_within(&download(&device, d_type, &d_b), &oracle.value, &bound, "bias gradient");
            }
            Err(CudaError::NoAlgorithm { .. }) => eprintln!("cuBLASLt has no sum of A into {d_type:?}"),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_product_has_the_same_bits_every_time_and_on_a_new_device() {
    let Some(device) = device() else { return };
    for (m, n, k) in [(64, 64, 16_384), (256, 768, 3072)] {
        let problem = Matmul { d_type: Type::F32, ..Matmul::new(m, n, k, 1, true, false, Type::Bf16) };
        let (a, b) = (values(Type::Bf16, 1, m * k), values(Type::Bf16, 2, k * n));
        let compute = |device: &Device| {
            let (a, b) = (upload(device, Type::Bf16, &a), upload(device, Type::Bf16, &b));
            let d = device.region(4 * m * n).expect("memory");
            matmul::run(device, &problem, &a, &b, &d, None).expect("matmul");
            download(device, Type::F32, &d)
        };
        let first = compute(&device);
        for _ in 0..3 {
            assert!(compute(&device) == first, "{m} {n} {k}");
        }
        if lacewing_cuda::cache::folder().is_some() {
            assert!(compute(&Device::new(0).expect("a device")) == first, "{m} {n} {k} on a new device");
        }
    }
}

#[test]
fn operands_that_do_not_fit_a_product_are_refused_by_name() {
    let Some(device) = device() else { return };
    let region = device.region(4 * 100).expect("memory");
    let problem = Matmul::new(10, 10, 10, 1, false, false, Type::F32);
    let run = |problem: &Matmul, d: &Region| matmul::run(&device, problem, &region, &region, d, None);
    let message = |result: Result<(), CudaError>| result.expect_err("must be refused").to_string();
    let short = region.slice(0, 396);
    assert_eq!(message(run(&problem, &short)), "matmul: operand d needs 400 bytes, got 396");
    let narrow = Matmul { lda: 9, ..problem };
    assert_eq!(message(run(&narrow, &region)), "matmul: lda must be at least 10, got 9");
    let with_bias = Matmul { epilogue: Epilogue::Bias, ..problem };
    assert_eq!(message(run(&with_bias, &region)), "matmul: epilogue bias takes 1 bias operands, got 0");
}
