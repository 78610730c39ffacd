//! What only a GPU can show. Runs when `LACEWING_TEST_CUDA=1`, and then fails, not skips, if anything is wrong.

mod block_sparse_products;
mod dense_products;
mod monarch_maps;
mod two_four_products;

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
