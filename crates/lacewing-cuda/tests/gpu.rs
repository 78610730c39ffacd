//! What only a GPU can show. Runs when `LACEWING_TEST_CUDA=1`, and then fails, not skips, if anything is wrong.

use half::{bf16, f16};
use lacewing_core::Activation;
use lacewing_core::chains::MonarchFactors;
use lacewing_cuda::dsd::{self, BlockPattern, Problem, Product};
use lacewing_cuda::matmul::{self, Epilogue, Matmul};
use lacewing_cuda::monarch::{self, Operands, Plan};
use lacewing_cuda::{CudaError, Device, Finish, Region, Source, Type};
use lacewing_testkit::{
    Oracle, UNIT_BF16, UNIT_F16, UNIT_F32, assert_within, gamma_of, gelu_tanh, linear,
    matmul as matmul_oracle, normal_cdf, uniform, widen,
};
use std::sync::Arc;

/// The first GPU, or `None` if this machine is not said to have one.
fn device() -> Option<Arc<Device>> {
    if std::env::var_os("LACEWING_TEST_CUDA").is_some_and(|value| value == "1") {
        Some(Device::new(0).expect("LACEWING_TEST_CUDA=1 says there is a GPU"))
    } else {
        eprintln!("skipped: set LACEWING_TEST_CUDA=1 on a machine with a GPU");
        None
    }
}

/// Relative error of rounding to the type.
fn unit(of: Type) -> f64 {
    match of {
        Type::F32 => UNIT_F32,
        Type::Bf16 => UNIT_BF16,
        Type::F16 => UNIT_F16,
    }
}

fn encode(of: Type, values: &[f32]) -> Vec<u8> {
    match of {
        Type::F32 => bytemuck::cast_slice(values).to_vec(),
        Type::Bf16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        Type::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
    }
}

fn decode(of: Type, bytes: &[u8]) -> Vec<f32> {
    match of {
        Type::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        Type::Bf16 => bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        Type::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
    }
}

/// Seeded values that the type holds exactly.
fn values(of: Type, seed: u64, len: usize) -> Vec<f32> {
    decode(of, &encode(of, &uniform(seed, len)))
}

fn upload(device: &Device, of: Type, values: &[f32]) -> Region {
    let bytes = encode(of, values);
    let region = device.region(bytes.len()).expect("memory");
    device.upload(&region, &bytes).expect("upload");
    region
}

fn download(device: &Device, of: Type, region: &Region) -> Vec<f32> {
    let mut bytes = vec![0; region.len_bytes()];
    device.download(region, &mut bytes).expect("download");
    decode(of, &bytes)
}

/// Bound of `k` products summed in f32 and rounded to `of` once. Tensor cores cut off where f32 rounds: twice its unit.
fn bounds(oracle: &Oracle, k: usize, of: Type) -> Vec<f64> {
    let sums = oracle.bound_of(k, 2.0 * UNIT_F32);
    let rounding = if of == Type::F32 { 0.0 } else { unit(of) };
    sums.iter().zip(&oracle.value).map(|(sum, value)| sum + rounding * (value.abs() + sum)).collect()
}

#[test]
fn memory_is_reused_counted_and_refused_with_numbers() {
    let Some(device) = device() else { return };
    let before = device.memory_in_use();
    let first = device.alloc(100_000).expect("memory");
    let at = first.ptr();
    assert_eq!(at % 256, 0);
    let with_one = device.memory_in_use();
    assert!((100_000..=112_640).contains(&(with_one - before)), "{with_one} - {before}");
    drop(first);
    assert_eq!(device.memory_in_use(), before);
    assert_eq!(
        device.alloc(99_000).expect("memory").ptr(),
        at,
        "a block of the same class is handed out again"
    );
    assert!(device.peak() >= with_one);
    device.reset_peak();
    assert_eq!(device.peak(), before);

    let total = device.properties().total_bytes;
    match device.alloc(2 * total) {
        Err(CudaError::OutOfMemory { ordinal: 0, asked_bytes, in_use_bytes, .. }) => {
            assert_eq!((asked_bytes, in_use_bytes), (2 * total, before));
        }
        other => panic!("{other:?}"),
    }
    device.alloc(1 << 20).expect("memory is still there for who asks for less");
}

#[test]
fn bytes_go_up_across_the_device_and_down_unchanged() {
    let Some(device) = device() else { return };
    let bytes: Vec<u8> =
        (0..(9 << 20) + 3).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let from = device.region(bytes.len()).expect("memory");
    device.upload(&from, &bytes).expect("upload");
    let to = device.region(bytes.len()).expect("memory");
    device.copy(&to, &from).expect("copy");
    device.zero(&to.slice(5, 11)).expect("zero");
    let mut back = vec![1; bytes.len()];
    device.download(&to, &mut back).expect("download");
    let mut expected = bytes.clone();
    expected[5..16].fill(0);
    assert!(
        back == expected,
        "first difference at {:?}",
        back.iter().zip(&expected).position(|(a, b)| a != b)
    );

    // Many small ones, all on their way at once, and more than the ring holds.
    let parts: Vec<Region> = (0..40).map(|_| device.region(bytes.len() / 4).expect("memory")).collect();
    for (i, part) in parts.iter().enumerate() {
        device.upload(&part.slice(0, 1000), &bytes[i..i + 1000]).expect("upload");
        device.upload(part, &bytes[i * 1000..i * 1000 + part.len_bytes()]).expect("upload");
        device.upload(&part.slice(7, 13), &bytes[i..i + 13]).expect("upload");
    }
    for (i, part) in parts.iter().enumerate() {
        let mut back = vec![0; part.len_bytes()];
        device.download(part, &mut back).expect("download");
        let mut expected = bytes[i * 1000..i * 1000 + part.len_bytes()].to_vec();
        expected[7..20].copy_from_slice(&bytes[i..i + 13]);
        assert!(back == expected, "part {i}");
    }

    match device.upload(&to, &bytes[1..]) {
        Err(CudaError::OperandBytes { expected, got, .. }) => assert_eq!(expected, got + 1),
        other => panic!("{other:?}"),
    }
    let empty = device.region(0).expect("memory");
    device.upload(&empty, &[]).expect("nothing to do");
}

static KERNELS: Source = Source {
    name: "test_kernels",
    code: r#"
extern "C" __global__ void scale(const lw::bf16* x, float* y, float factor, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = factor * lw::to_f32(x[i]);
}
extern "C" __global__ void reverse(float* x, unsigned n) {
    extern __shared__ float held[];
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x) held[i] = x[i];
    __syncthreads();
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x) x[i] = held[n - 1 - i];
}
"#,
};

#[test]
fn a_kernel_gets_its_arguments_and_more_shared_memory_than_is_free() {
    let Some(device) = device() else { return };
    let x = values(Type::Bf16, 1, 1000);
    let (on_device, y) = (upload(&device, Type::Bf16, &x), device.region(4000).expect("memory"));
    let scale = device.function(&KERNELS, "scale").expect("the kernel");
    // SAFETY: the kernel's parameters; both regions hold 1000 numbers.
    unsafe {
        scale.launch([4, 1, 1], [256, 1, 1], 0, &[(&on_device).into(), (&y).into(), 2.0.into(), 1000.into()])
    }
    .expect("launch");
    let doubled: Vec<f32> = x.iter().map(|x| 2.0 * x).collect();
    assert_eq!(download(&device, Type::F32, &y), doubled);
    let took = device.milliseconds(|| device.zero(&y)).expect("a time");
    assert!(took > 0.0 && took.is_finite(), "{took}");

    let n: u32 = 24_000;
    let long = uniform(2, n as usize);
    let region = upload(&device, Type::F32, &long);
    let reverse = device.function(&KERNELS, "reverse").expect("the kernel");
    // SAFETY: the kernel's parameters; the region and the shared memory hold n numbers.
    unsafe { reverse.launch([1, 1, 1], [1024, 1, 1], n * 4, &[(&region).into(), n.into()]) }.expect("launch");
    assert_eq!(download(&device, Type::F32, &region), long.into_iter().rev().collect::<Vec<_>>());

    match device.function(&KERNELS, "absent") {
        Err(CudaError::NoEntry { source_name: "test_kernels", entry: "absent" }) => {}
        other => panic!("{other:?}"),
    }
}

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

const ACTIVATIONS: [Activation; 4] =
    [Activation::Identity, Activation::Relu, Activation::Gelu, Activation::GeluTanh];

/// What `value ± error` becomes, and how far off it may be: as [`Finish`] says, then rounded.
fn end(activation: Activation, value: f64, error: f64, of: Type) -> (f64, f64) {
    let (exact, curve) = match activation {
        Activation::Identity => (value, 0.0),
        Activation::Relu => (value.max(0.0), 0.0),
        Activation::Gelu => (value * normal_cdf(value), 2f64.powf(-11.7)),
        Activation::GeluTanh => (gelu_tanh(value), 2f64.powf(-11.7)),
    };
    // No slope is above 1.13.
    let error = 1.13 * error + curve * (value.abs() + error);
    (exact, error + unit(of) * (exact.abs() + error))
}

/// All three products of one pattern with one kernel, the forward one with every end as well.
fn check_block_sparse(
    device: &Device,
    kernel: &str,
    of: Type,
    rows: usize,
    (n_out, n_in): (usize, usize),
    (block_rows, block_cols): (usize, usize),
) {
    let what = format!("{kernel} {of:?} {rows} x [{n_out}, {n_in}] in {block_rows}x{block_cols}");
    // Every third block, so that rows and columns differ in their number of blocks; block row 1 is empty.
    let positions: Vec<(u32, u32)> = (0..(n_out / block_rows) as u32)
        .flat_map(|row| (0..(n_in / block_cols) as u32).map(move |col| (row, col)))
        .filter(|(row, col)| *row != 1 && (row * 7 + col * 5) % 3 == 0)
        .collect();
    let pattern =
        BlockPattern::new(device, (n_out, n_in), (block_rows, block_cols), &positions).expect(&what);
    let stored = values(of, 1, pattern.n_values());
    let mut dense = vec![0.0; n_out * n_in];
    let place = |slot: usize, i: usize, j: usize| {
        let (row, col) = positions[slot];
        (row as usize * block_rows + i) * n_in + col as usize * block_cols + j
    };
    let each = |f: &mut dyn FnMut(usize, usize)| {
        for (at, (slot, i, j)) in (0..positions.len())
            .flat_map(|slot| (0..block_rows).flat_map(move |i| (0..block_cols).map(move |j| (slot, i, j))))
            .enumerate()
        {
            f(at, place(slot, i, j));
        }
    };
    each(&mut |at, in_dense| dense[in_dense] = f64::from(stored[at]));

    let (x, d_y) = (values(of, 2, rows * n_in), values(of, 3, rows * n_out));
    let start = uniform(4, pattern.n_values());
    let [x_on, d_y_on, values_on] = [&x, &d_y, &stored].map(|v| upload(device, of, v));
    let d_values = upload(device, Type::F32, &start);
    let nan = |len: usize| upload(device, of, &vec![f32::NAN; len]);
    let (y, d_x) = (nan(rows * n_out), nan(rows * n_in));
    let problem = Problem { pattern: &pattern, rows, of };
    let plain = Finish::default();
    for product in [
        Product::Forward { x: &x_on, values: &values_on, y: &y, finish: plain },
        Product::InputGradient { d_y: &d_y_on, values: &values_on, d_x: &d_x },
        Product::WeightGradient { d_y: &d_y_on, x: &x_on, d_values: &d_values },
    ] {
        assert_eq!(dsd::run_with(device, &problem, &product, kernel).expect(&what).kernel, kernel);
    }

    let forward = linear(&widen(&x), &dense, n_in);
    let got = download(device, of, &y);
    assert_within(&got, &forward.value, &bounds(&forward, n_in, of), &format!("{what}: y"));
    let bias = values(of, 5, n_out);
    let bias_on = upload(device, of, &bias);
    let biased: Vec<(f64, f64)> = forward
        .value
        .iter()
        .zip(&forward.magnitude)
        .enumerate()
        .map(|(at, (value, magnitude))| {
            let bias = f64::from(bias[at % n_out]);
            (value + bias, gamma_of(n_in + 1, 2.0 * UNIT_F32) * (magnitude + bias.abs()))
        })
        .collect();
    for activation in ACTIVATIONS {
        let (y, finish) = (nan(rows * n_out), Finish { bias: Some(&bias_on), activation });
        let product = Product::Forward { x: &x_on, values: &values_on, y: &y, finish };
        if !dsd::run_with(device, &problem, &product, kernel).expect(&what).finished {
            assert_eq!(download(device, of, &y), got, "{what}: left as it is");
            continue;
        }
        let ends = biased.iter().map(|&(value, error)| end(activation, value, error, of));
        let (expected, bound): (Vec<f64>, Vec<f64>) = ends.unzip();
        let got = download(device, of, &y);
        assert_within(&got, &expected, &bound, &format!("{what}: {activation:?}"));
    }
    let backward = matmul_oracle(&widen(&d_y), &dense, rows, n_out, n_in);
    let got = download(device, of, &d_x);
    assert_within(&got, &backward.value, &bounds(&backward, n_out, of), &format!("{what}: d_x"));
    let transposed: Vec<f64> = (0..n_out)
        .flat_map(|i| (0..rows).map(move |r| (r, i)))
        .map(|(r, i)| f64::from(d_y[r * n_out + i]))
        .collect();
    let full = matmul_oracle(&transposed, &widen(&x), n_out, rows, n_in);
    let mut kept = Oracle { value: Vec::new(), magnitude: Vec::new() };
    each(&mut |at, in_dense| {
        kept.value.push(full.value[in_dense] + f64::from(start[at]));
        kept.magnitude.push(full.magnitude[in_dense] + f64::from(start[at].abs()));
    });
    let got = download(device, Type::F32, &d_values);
    assert_within(&got, &kept.value, &bounds(&kept, rows + 1, Type::F32), &format!("{what}: d_values"));
}

#[test]
fn block_sparse_products_agree_with_f64_at_tile_edges() {
    let Some(device) = device() else { return };
    for rows in [1, 63, 128, 129, 300] {
        for (shape, block) in [
            ((64, 96), (16, 16)),
            ((96, 64), (32, 16)),
            ((192, 256), (32, 64)),
            ((256, 192), (64, 32)),
            ((192, 384), (64, 64)),
            ((144, 256), (48, 128)),
        ] {
            check_block_sparse(&device, "block_sparse", Type::Bf16, rows, shape, block);
        }
        for of in [Type::F32, Type::Bf16, Type::F16] {
            check_block_sparse(&device, "plain", of, rows, (24, 40), (8, 8));
            check_block_sparse(&device, "plain", of, rows, (21, 45), (3, 5));
            check_block_sparse(&device, "plain", of, rows, (80, 120), (40, 60));
        }
    }
}

#[test]
fn warpgroup_products_agree_with_f64_at_tile_edges() {
    let Some(device) = device() else { return };
    if device.properties().capability != (9, 0) {
        return eprintln!("skipped: not a Hopper GPU");
    }
    for rows in [128, 200, 256, 513] {
        for (shape, block) in [
            ((96, 160), (32, 32)),
            ((96, 256), (32, 64)),
            ((192, 160), (64, 32)),
            ((192, 320), (64, 64)),
            ((384, 512), (128, 128)),
            ((384, 384), (64, 192)),
            ((384, 384), (192, 128)),
            ((768, 256), (256, 64)),
        ] {
            check_block_sparse(&device, "warpgroup", Type::Bf16, rows, shape, block);
        }
    }
    // Weight gradients in parts of the rows.
    check_block_sparse(&device, "warpgroup", Type::Bf16, 2100, (192, 320), (64, 64));
    check_block_sparse(&device, "warpgroup", Type::Bf16, 1100, (256, 384), (128, 128));
}

#[test]
fn persistent_products_agree_with_f64_at_tile_edges() {
    let Some(device) = device() else { return };
    if device.properties().capability != (9, 0) {
        return eprintln!("skipped: not a Hopper GPU");
    }
    // Low tiles, high ones, and more than 32 steps; the last row tile is cut, a panel is empty, lines are not paired up.
    for (rows, shape, block) in [
        (4150, (96, 160), (32, 32)),
        (4150, (96, 192), (32, 96)),
        (2100, (192, 160), (64, 32)),
        (2100, (192, 320), (64, 64)),
        (2100, (384, 576), (64, 192)),
        (2100, (768, 256), (256, 64)),
        (3000, (768, 256), (32, 32)),
        (3000, (256, 768), (32, 32)),
        (5800, (384, 512), (128, 128)),
        (4150, (128, 3072), (32, 32)),
    ] {
        check_block_sparse(&device, "persistent", Type::Bf16, rows, shape, block);
    }
}

#[test]
fn a_persistent_product_has_the_same_bits_every_time() {
    let Some(device) = device() else { return };
    if device.properties().capability != (9, 0) {
        return eprintln!("skipped: not a Hopper GPU");
    }
    let (n, rows) = (2048, 4096);
    let positions: Vec<(u32, u32)> = (0..64 * 64)
        .map(|at| (at / 64, at % 64))
        .filter(|(row, col)| (row * row + 3 * col) % 7 == 0 || *row == 5)
        .collect();
    let pattern = BlockPattern::new(&device, (n, n), (32, 32), &positions).expect("a pattern");
    let problem = Problem { pattern: &pattern, rows, of: Type::Bf16 };
    let stored = upload(&device, Type::Bf16, &values(Type::Bf16, 1, pattern.n_values()));
    let x = upload(&device, Type::Bf16, &values(Type::Bf16, 2, rows * n));
    let y = device.region(rows * n * 2).expect("memory");
    let mut first: Option<Vec<u8>> = None;
    for _ in 0..50 {
        device.zero(&y).expect("zeros");
        let product = Product::Forward { x: &x, values: &stored, y: &y, finish: Finish::default() };
        let ran = dsd::run_with(&device, &problem, &product, "persistent").expect("taken");
        assert!(ran.finished, "{ran:?}");
        let mut bytes = vec![0; y.len_bytes()];
        device.download(&y, &mut bytes).expect("download");
        assert!(first.get_or_insert_with(|| bytes.clone()) == &bytes, "other bits");
    }
}

/// The map in f64 and how far it may be missed: sums in f32 by tensor cores, what lies between and the result rounded.
fn monarch_oracle(
    factors: MonarchFactors,
    x: &[f64],
    [first, second]: [&[f64]; 2],
    bias: Option<&[f64]>,
    activation: Activation,
) -> (Vec<f64>, Vec<f64>) {
    let MonarchFactors { k, q, p, l, s, r } = factors;
    let (sum, unit) = (2.0 * UNIT_F32, UNIT_BF16);
    let (mut values, mut bounds) = (Vec::new(), Vec::new());
    for x in x.chunks(k * p) {
        let mid: Vec<(f64, f64)> = (0..k * q)
            .map(|at| {
                let terms = first[at * p..][..p].iter().zip(&x[at / q * p..]).map(|(w, x)| w * x);
                let (value, magnitude) = terms.fold((0.0, 0.0), |(v, m), term| (v + term, m + term.abs()));
                let error = gamma_of(p, sum) * magnitude;
                (value, error + unit * (value.abs() + error))
            })
            .collect();
        for at in 0..l * s {
            let (sigma, lambda) = (at / l, at % l);
            let bias = bias.map_or(0.0, |bias| bias[at]);
            let (mut value, mut magnitude, mut error) = (bias, bias.abs(), 0.0);
            for (rho, w) in second[(lambda * s + sigma) * r..][..r].iter().enumerate() {
                let (u, off) = mid[rho * l + lambda];
                value += w * u;
                magnitude += (w * u).abs() + w.abs() * off;
                error += w.abs() * off;
            }
            error += gamma_of(r + 1, sum) * magnitude;
            let (value, bound) = end(activation, value, error, Type::Bf16);
            values.push(value);
            bounds.push(bound);
        }
    }
    (values, bounds)
}

#[test]
fn a_fused_monarch_map_agrees_with_f64_at_tile_edges_and_has_the_same_bits_every_time() {
    let Some(device) = device() else { return };
    if !monarch::supported(&device) {
        return eprintln!("skipped: not a Hopper GPU");
    }
    let of = Type::Bf16;
    let equal = |n_in: usize, n_out: usize, blocks: usize| {
        let (p, s) = (n_in / blocks, n_out / blocks);
        MonarchFactors { k: blocks, q: p.min(s), p, l: blocks, s, r: p.min(s) }
    };
    let uneven = MonarchFactors { k: 4, q: 64, p: 96, l: 8, s: 64, r: 32 };
    for (factors, rows) in [
        (equal(1024, 1024, 32), 1),
        (equal(1024, 1024, 32), 257),
        (equal(768, 3072, 8), 300),
        (equal(3072, 768, 8), 64),
        (equal(2048, 2048, 16), 511),
        (equal(2048, 1024, 8), 130),
        (equal(4096, 4096, 32), 256),
        // As many row tiles as the ring turns round more than once.
        (equal(512, 512, 8), 40_000),
        (uneven, 1000),
    ] {
        let MonarchFactors { k, q, p, l, s, r } = factors;
        let plan = Plan::new(factors).expect("sizes that the kernel takes");
        let x = values(of, 1, rows * k * p);
        let [first, second, bias] =
            [(2, k * q * p), (3, l * s * r), (4, l * s)].map(|(n, len)| values(of, n, len));
        let [x_here, first_here, second_here, bias_here] =
            [&x, &first, &second, &bias].map(|values| upload(&device, of, values));
        for (bias_here, activation) in [
            (None, Activation::Identity),
            (Some(&bias_here), Activation::Identity),
            (None, Activation::Relu),
            (Some(&bias_here), Activation::Gelu),
            (Some(&bias_here), Activation::GeluTanh),
        ] {
            let finish = Finish { bias: bias_here, activation };
            // Not a number where nothing was written.
            let y = upload(&device, of, &vec![f32::NAN; rows * l * s]);
            let operands = Operands { x: &x_here, first: &first_here, second: &second_here, y: &y, finish };
            plan.run(&device, rows, &operands).expect("the map");
            let got = download(&device, of, &y);
            assert!(got.iter().all(|v| v.is_finite()), "{factors:?} of {rows} rows leaves gaps");
            let again = upload(&device, of, &vec![f32::NAN; rows * l * s]);
            plan.run(&device, rows, &Operands { y: &again, ..operands }).expect("the map");
            assert_eq!(download(&device, of, &again), got, "{factors:?} of {rows} rows");
            // The first and the last rows: the oracle is slow.
            let ends = 0..rows.min(140);
            let shown = ends.clone().chain(rows.saturating_sub(140).max(ends.end)..rows);
            let bias = widen(&bias);
            for row in shown {
                let (expected, bound) = monarch_oracle(
                    factors,
                    &widen(&x[row * k * p..][..k * p]),
                    [&widen(&first), &widen(&second)],
                    bias_here.map(|_| &bias[..]),
                    activation,
                );
                let what = format!("{factors:?}, {activation:?}, row {row} of {rows}");
                assert_within(&got[row * l * s..][..l * s], &expected, &bound, &what);
            }
        }
    }
}

#[test]
fn operands_that_do_not_fit_a_monarch_map_are_refused_by_name() {
    let Some(device) = device() else { return };
    let factors = MonarchFactors { k: 8, q: 64, p: 64, l: 8, s: 64, r: 64 };
    let plan = Plan::new(factors).expect("sizes that the kernel takes");
    let region = |len: usize| device.region(2 * len).expect("memory");
    let (x, factor, y) = (region(32 * 512), region(8 * 64 * 64), region(31 * 512));
    let operands = Operands { x: &x, first: &factor, second: &factor, y: &y, finish: Finish::default() };
    match plan.run(&device, 32, &operands) {
        Err(CudaError::NoKernel { .. }) => assert!(!monarch::supported(&device)),
        Err(CudaError::OperandBytes { operand: "y", expected: 32_768, got: 31_744, .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_table_takes_tensor_cores_where_it_can_and_the_plain_kernel_elsewhere() {
    let Some(device) = device() else { return };
    let chosen = |of: Type, block: usize, offset: usize| {
        let n = 4 * block;
        let pattern =
            BlockPattern::new(&device, (n, n), (block, block), &[(0, 0), (2, 3)]).expect("a pattern");
        let region = device.region(offset + 8 * n * of.size_bytes()).expect("memory");
        let x = region.slice(offset, 8 * n * of.size_bytes());
        let y = device.region(8 * n * of.size_bytes()).expect("memory");
        let values = device.region(pattern.n_values() * of.size_bytes()).expect("memory");
        let problem = Problem { pattern: &pattern, rows: 8, of };
        let product = Product::Forward { x: &x, values: &values, y: &y, finish: Finish::default() };
        dsd::run(&device, &problem, &product).expect("a kernel").kernel
    };
    assert_eq!(chosen(Type::Bf16, 16, 0), "block_sparse");
    assert_eq!(chosen(Type::Bf16, 16, 2), "plain");
    assert_eq!(chosen(Type::F32, 16, 0), "plain");
    assert_eq!(chosen(Type::Bf16, 8, 0), "plain");
}

#[test]
fn a_graph_replays_what_was_captured_on_new_inputs() {
    let Some(device) = device() else { return };
    let (rows, n_in, n_out) = (32, 64, 48);
    let (x, w) = (values(Type::Bf16, 1, rows * n_in), values(Type::Bf16, 2, n_out * n_in));
    let (x_on, w_on) = (upload(&device, Type::Bf16, &x), upload(&device, Type::Bf16, &w));
    let problem = Matmul::new(rows, n_out, n_in, 1, false, true, Type::Bf16);
    let scaled = device.region(rows * n_out * 4).expect("memory");
    let scale = device.function(&KERNELS, "scale").expect("the kernel");
    let step = || {
        // Allocated in the capture, dropped in it: the graph keeps it.
        let y = device.region(rows * n_out * 2).expect("memory");
        matmul::run(&device, &problem, &x_on, &w_on, &y, None).expect("matmul");
        let n = (rows * n_out) as i32;
        // SAFETY: the kernel's parameters; both regions hold n numbers.
        unsafe {
            scale.launch([6, 1, 1], [256, 1, 1], 0, &[(&y).into(), (&scaled).into(), 4.0.into(), n.into()])
        }
        .expect("launch");
    };
    // Libraries load kernels at their first call, which they refuse to do in a capture now and then.
    step();
    device.begin_capture().expect("begin");
    step();
    match device.upload(&x_on, &encode(Type::Bf16, &x)) {
        Err(CudaError::Capturing { call: "upload" }) => {}
        other => panic!("{other:?}"),
    }
    device.zero(&device.region(512).expect("memory")).expect("zero");
    let graph = device.end_capture().expect("end");
    assert!(matches!(device.end_capture(), Err(CudaError::NotCapturing { ordinal: 0 })));

    for seed in [1, 7, 8] {
        let x = values(Type::Bf16, seed, rows * n_in);
        device.upload(&x_on, &encode(Type::Bf16, &x)).expect("upload");
        device.zero(&scaled).expect("zero");
        // Whoever allocates between replays must not get the graph's memory.
        let other = upload(&device, Type::Bf16, &vec![9.0; rows * n_out]);
        graph.launch().expect("launch");
        let mut oracle = linear(&widen(&x), &widen(&w), n_in);
        oracle.value.iter_mut().for_each(|v| *v *= 4.0);
        oracle.magnitude.iter_mut().for_each(|v| *v *= 4.0);
        let got = download(&device, Type::F32, &scaled);
        assert_within(&got, &oracle.value, &bounds(&oracle, n_in, Type::Bf16), "replayed");
        assert!(download(&device, Type::Bf16, &other).iter().all(|&v| v == 9.0));
    }
    drop(graph);
    step();
    device.synchronize().expect("the device is as before the graph");
}
