//! Kernels of a GPU against cuBLASLt in one run, bf16, with a cold L2 cache: `cargo bench -p lacewing-cuda --bench cold`.
//!
//! Prints CSV. Each product is measured by itself: three passes to warm up, three to estimate by, then [`LASTS_MS`] of passes, each
//! after 256 MiB were written four times, or once before products that take longer than [`SHORT_MS`]; medians.
//! Arguments choose the cases whose names contain one of them. Products are checked in `tests/gpu/`.

use half::bf16;
use lacewing_core::Activation;
use lacewing_core::chains::MonarchFactors;
use lacewing_cuda::dsd::{self, BlockPattern, KERNELS, Problem, Product};
use lacewing_cuda::matmul::{self, Epilogue, Matmul};
use lacewing_cuda::monarch::{Gradients, Operands, Plan};
use lacewing_cuda::two_four::{self, TwoFourPattern};
use lacewing_cuda::{CudaError, Device, Finish, Region, Type};
use lacewing_testkit::uniform;

/// How long a product is measured, in how many passes at least and at most, and what is a short one.
const LASTS_MS: f32 = 40.0;
const PASSES: (usize, usize) = (7, 120);
const SHORT_MS: f32 = 0.6;
const FLUSH_BYTES: usize = 256 << 20;
/// Values drawn once and repeated: a tensor core's power, and so its clock, depends on what it multiplies.
const DRAWN: usize = 1 << 20;

struct Bench {
    device: std::sync::Arc<Device>,
    flush: Region,
    drawn: Region,
    wanted: Vec<String>,
}

type Work<'a> = dyn Fn() -> Result<(), CudaError> + 'a;
/// Queues layer 0 or 1: input, output, end.
type Layer<'a> = dyn Fn(usize, &Region, &Region, Finish<'_>) -> Result<(), CudaError> + 'a;

impl Bench {
    fn drawn(&self, len: usize) -> Result<Region, CudaError> {
        let region = self.device.region(len * 2)?;
        for at in (0..len).step_by(DRAWN) {
            let bytes = DRAWN.min(len - at) * 2;
            self.device.copy(&region.slice(at * 2, bytes), &self.drawn.slice(0, bytes))?;
        }
        Ok(region)
    }

    fn wants(&self, name: &str) -> bool {
        self.wanted.is_empty() || self.wanted.iter().any(|part| name.contains(part.as_str()))
    }

    /// Median milliseconds of each, one after the other: what a product does to the clock, itself meets alone.
    fn time(&self, works: &[&Work<'_>]) -> Result<Vec<f64>, CudaError> {
        let time = |work: &&Work<'_>| {
            let thrice = || (0..3).try_for_each(|_| work());
            thrice()?;
            let estimate = self.device.milliseconds(thrice)? / 3.0;
            // Writing keeps the GPU busy while the host queues the pass, and lets it cool after a product that draws all power.
            let writes = if estimate < SHORT_MS { 4 } else { 1 };
            let pass = |_| {
                (0..writes).try_for_each(|_| self.device.zero(&self.flush))?;
                self.device.milliseconds(work)
            };
            let passes = ((LASTS_MS / estimate) as usize).clamp(PASSES.0, PASSES.1);
            let mut samples = (0..passes).map(pass).collect::<Result<Vec<f32>, CudaError>>()?;
            samples.sort_by(f32::total_cmp);
            Ok(f64::from(samples[passes / 2]))
        };
        works.iter().map(time).collect()
    }

    /// A random choice of exactly so many blocks.
    fn pattern(
        &self,
        (n_in, n_out): (usize, usize),
        block: usize,
        density: f64,
    ) -> Result<BlockPattern, CudaError> {
        let (down, across) = (n_out / block, n_in / block);
        let draws = uniform(7, down * across);
        let mut order: Vec<usize> = (0..down * across).collect();
        order.sort_by(|a, b| draws[*a].total_cmp(&draws[*b]));
        order.truncate(((down * across) as f64 * density).round() as usize);
        order.sort_unstable();
        let positions: Vec<(u32, u32)> =
            order.iter().map(|at| ((at / across) as u32, (at % across) as u32)).collect();
        BlockPattern::new(&self.device, (n_out, n_in), (block, block), &positions)
    }

    /// Forward, input gradient, weight gradient and all of them, by the best two kernels.
    fn blocks(
        &self,
        (n_in, n_out): (usize, usize),
        rows: usize,
        block: usize,
        density: f64,
    ) -> Result<(), CudaError> {
        let name = format!("block {block} {:.0} % {n_in}->{n_out} {rows}", density * 100.0);
        if !self.wants(&name) {
            return Ok(());
        }
        let device = &self.device;
        let pattern = self.pattern((n_in, n_out), block, density)?;
        let problem = Problem { pattern: &pattern, rows, of: Type::Bf16 };
        let [x, d_y, y, d_x] = [n_in, n_out, n_out, n_in].map(|n| self.drawn(rows * n));
        let (x, d_y, y, d_x) = (x?, d_y?, y?, d_x?);
        let values = self.drawn(pattern.n_values())?;
        let weight = self.drawn(n_in * n_out)?;
        let d_values = device.region(pattern.n_values() * 4)?;
        let d_weight = device.region(n_in * n_out * 4)?;
        let products = [
            Product::Forward { x: &x, values: &values, y: &y, finish: Finish::default() },
            Product::InputGradient { d_y: &d_y, values: &values, d_x: &d_x },
            Product::WeightGradient { d_y: &d_y, x: &x, d_values: &d_values },
        ];
        let [forward, backward, gradient] = dense_step((n_in, n_out), rows);
        let dense: [&Work<'_>; 3] = [
            &|| matmul::run(device, &forward, &x, &weight, &y, None),
            &|| matmul::run(device, &backward, &d_y, &weight, &d_x, None),
            &|| matmul::run(device, &gradient, &d_y, &x, &d_weight, None),
        ];
        let run = |product, name| dsd::run_with(device, &problem, product, name);
        // The one that is taken, and the next best.
        let kernels = KERNELS.iter().map(|kernel| kernel.name).filter(|name| run(&products[0], name).is_ok());
        for kernel in kernels.take(2) {
            let takes = |product| run(product, kernel);
            let mut all = (0.0, 0.0);
            print!("{name},{kernel}");
            for (product, dense) in products.iter().zip(dense) {
                let ms = self.time(&[dense, &|| takes(product).map(|_| ())])?;
                all = (all.0 + ms[0], all.1 + ms[1]);
                print!(",{:.1},{:.2}", ms[1] * 1e3, ms[0] / ms[1]);
            }
            println!(",{:.1},{:.2}", all.1 * 1e3, all.0 / all.1);
        }
        Ok(())
    }

    fn monarch(&self, (n_in, n_out): (usize, usize), rows: usize, blocks: usize) -> Result<(), CudaError> {
        let name = format!("monarch {blocks} {n_in}->{n_out} {rows}");
        let factors = factors(n_in, n_out, blocks);
        let Some(plan) = Plan::new(factors).filter(|_| self.wants(&name)) else { return Ok(()) };
        let MonarchFactors { k, q, p, l, s, r } = factors;
        let (x, y) = (self.drawn(rows * n_in)?, self.drawn(rows * n_out)?);
        let (first, second, weight) =
            (self.drawn(k * q * p)?, self.drawn(l * s * r)?, self.drawn(n_in * n_out)?);
        let forward = Matmul::new(rows, n_out, n_in, 1, false, true, Type::Bf16);
        let operands = Operands { x: &x, first: &first, second: &second, y: &y, finish: Finish::default() };
        let ms = self.time(&[&|| matmul::run(&self.device, &forward, &x, &weight, &y, None), &|| {
            plan.run(&self.device, rows, &operands)
        }])?;
        let kernel = plan.resident().map_or("monarch_fused", |resident| resident.source().0.name);
        println!("{name},{kernel},{:.1},{:.2},,,,,,", ms[1] * 1e3, ms[0] / ms[1]);
        Ok(())
    }
}

impl Bench {
    /// A training step of a layer: forward as it keeps what the gradients need, then all gradients, each with a cold cache.
    fn monarch_training(
        &self,
        (n_in, n_out): (usize, usize),
        rows: usize,
        blocks: usize,
    ) -> Result<(), CudaError> {
        let name = format!("monarch {blocks} {n_in}->{n_out} {rows} training");
        let factors = factors(n_in, n_out, blocks);
        let Some(plan) = Plan::new(factors).filter(|_| self.wants(&name)) else { return Ok(()) };
        let device = &self.device;
        let Some(training) = plan.training() else { return Ok(()) };
        if !training.runs_on(device)? {
            return Ok(());
        }
        let MonarchFactors { k, q, p, l, s, r } = factors;
        let [x, d_y, y, d_x] = [n_in, n_out, n_out, n_in].map(|n| self.drawn(rows * n));
        let (x, d_y, y, d_x) = (x?, d_y?, y?, d_x?);
        let (first, second, weight) =
            (self.drawn(k * q * p)?, self.drawn(l * s * r)?, self.drawn(n_in * n_out)?);
        let [d_first, d_second, d_weight] =
            [k * q * p, l * s * r, n_in * n_out].map(|len| device.region(len * 4));
        let (d_first, d_second, d_weight) = (d_first?, d_second?, d_weight?);
        let kept = device.region(training.kept_bytes(rows))?;
        for region in [&d_first, &d_second, &d_weight] {
            device.zero(region)?;
        }
        let [forward, backward, gradient] = dense_step((n_in, n_out), rows);
        let operands = Operands { x: &x, first: &first, second: &second, y: &y, finish: Finish::default() };
        let gradients = Gradients {
            d_y: &d_y,
            x: &x,
            first: &first,
            second: &second,
            kept: &kept,
            d_x: &d_x,
            d_first: Some((&d_first, true)),
            d_second: Some((&d_second, true)),
        };
        let dense = self.time(&[
            &|| matmul::run(device, &forward, &x, &weight, &y, None),
            &|| matmul::run(device, &backward, &d_y, &weight, &d_x, None),
            &|| matmul::run(device, &gradient, &d_y, &x, &d_weight, None),
        ])?;
        let ours = self.time(&[&|| training.forward(device, rows, &operands, &kept), &|| {
            training.backward(device, rows, &gradients)
        }])?;
        let (dense_all, all) = (dense.iter().sum::<f64>(), ours.iter().sum::<f64>());
        let (us, x) = (ours[0] * 1e3, dense[0] / ours[0]);
        println!("{name},monarch_cluster,{us:.1},{x:.2},,,,,{:.1},{:.2}", all * 1e3, dense_all / all);
        Ok(())
    }

    /// Any two of each four inputs.
    fn two_of_four(&self, (n_in, n_out): (usize, usize)) -> Result<TwoFourPattern, CudaError> {
        const PAIRS: [[u32; 2]; 6] = [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]];
        let draws = uniform(9, 4099);
        let fours = (0..n_out).flat_map(|out| (0..n_in / 4).map(move |four| (out, four)));
        let positions: Vec<(u32, u32)> = fours
            .flat_map(|(out, four)| {
                let draw = draws[(out * n_in / 4 + four) % draws.len()];
                PAIRS[((draw + 1.0) * 3.0) as usize % 6].map(|at| (out as u32, four as u32 * 4 + at))
            })
            .collect();
        TwoFourPattern::new(&self.device, (n_out, n_in), &positions)
    }

    fn two_four(&self, (n_in, n_out): (usize, usize), rows: usize) -> Result<(), CudaError> {
        let name = format!("2:4 {n_in}->{n_out} {rows}");
        if !self.wants(&name) || !two_four::supported(&self.device) {
            return Ok(());
        }
        let pattern = self.two_of_four((n_in, n_out))?;
        let (x, y) = (self.drawn(rows * n_in)?, self.drawn(rows * n_out)?);
        let (values, weight) = (self.drawn(pattern.n_packed())?, self.drawn(n_in * n_out)?);
        let forward = Matmul::new(rows, n_out, n_in, 1, false, true, Type::Bf16);
        let operands = two_four::Operands { x: &x, packed: &values, y: &y, finish: Finish::default() };
        let ms = self.time(&[&|| matmul::run(&self.device, &forward, &x, &weight, &y, None), &|| {
            two_four::multiply(&self.device, &pattern, rows, &operands)
        }])?;
        println!("{name},two_four,{:.1},{:.2},,,,,,", ms[1] * 1e3, ms[0] / ms[1]);
        Ok(())
    }

    fn two_four_mlp(&self, sizes: (usize, usize), rows: usize) -> Result<(), CudaError> {
        let (dim, hidden) = sizes;
        let name = format!("mlp of 2:4 {dim}->{hidden}->{dim} {rows}");
        if !self.wants(&name) || !two_four::supported(&self.device) {
            return Ok(());
        }
        let patterns = [self.two_of_four((dim, hidden))?, self.two_of_four((hidden, dim))?];
        let values = self.drawn(patterns[0].n_packed())?;
        self.mlp(&name, sizes, rows, &|at, x, y, finish| {
            let operands = two_four::Operands { x, packed: &values, y, finish };
            two_four::multiply(&self.device, &patterns[at], rows, &operands)
        })
    }

    /// `dim -> hidden`, GELU, `-> dim` over the dense pair, whose GELU is at the end of cuBLASLt's product: `layer` queues
    /// one of the two layers by blocks or factors, `y = f(x W' + b)`.
    fn mlp(
        &self,
        name: &str,
        (dim, hidden): (usize, usize),
        rows: usize,
        layer: &Layer<'_>,
    ) -> Result<(), CudaError> {
        let (x, inner, y) = (self.drawn(rows * dim)?, self.drawn(rows * hidden)?, self.drawn(rows * dim)?);
        let (first, second) = (self.drawn(hidden * dim)?, self.drawn(dim * hidden)?);
        let (bias, last) = (self.drawn(hidden)?, self.drawn(dim)?);
        let up = Matmul {
            epilogue: Epilogue::BiasGeluTanh,
            ..Matmul::new(rows, hidden, dim, 1, false, true, Type::Bf16)
        };
        let down =
            Matmul { epilogue: Epilogue::Bias, ..Matmul::new(rows, dim, hidden, 1, false, true, Type::Bf16) };
        let dense = || {
            matmul::run(&self.device, &up, &x, &first, &inner, Some(&bias))?;
            matmul::run(&self.device, &down, &inner, &second, &y, Some(&last))
        };
        let sparse = || {
            layer(0, &x, &inner, Finish { bias: Some(&bias), activation: Activation::Gelu })?;
            layer(1, &inner, &y, Finish { bias: Some(&last), activation: Activation::Identity })
        };
        let ms = self.time(&[&dense, &sparse])?;
        println!("{name},pair,{:.1},{:.2},,,,,,", ms[1] * 1e3, ms[0] / ms[1]);
        Ok(())
    }

    fn block_mlp(&self, sizes: (usize, usize), rows: usize, density: f64) -> Result<(), CudaError> {
        let (dim, hidden) = sizes;
        let name = format!("mlp of block 64 {:.0} % {dim}->{hidden}->{dim} {rows}", density * 100.0);
        if !self.wants(&name) {
            return Ok(());
        }
        let patterns = [self.pattern((dim, hidden), 64, density)?, self.pattern((hidden, dim), 64, density)?];
        let values = self.drawn(patterns[0].n_values())?;
        self.mlp(&name, sizes, rows, &|at, x, y, finish| {
            let problem = Problem { pattern: &patterns[at], rows, of: Type::Bf16 };
            let ran = dsd::run(&self.device, &problem, &Product::Forward { x, values: &values, y, finish })?;
            assert!(ran.finished, "a kernel that finishes: {ran:?}");
            Ok(())
        })
    }

    fn monarch_mlp(&self, sizes: (usize, usize), rows: usize, blocks: usize) -> Result<(), CudaError> {
        let (dim, hidden) = sizes;
        let name = format!("mlp of monarch {blocks} {dim}->{hidden}->{dim} {rows}");
        let plans =
            [(dim, hidden), (hidden, dim)].map(|(n_in, n_out)| Plan::new(factors(n_in, n_out, blocks)));
        let [Some(up), Some(down)] = plans else { return Ok(()) };
        if !self.wants(&name) {
            return Ok(());
        }
        let weights = self.drawn(dim * hidden)?;
        self.mlp(&name, sizes, rows, &|at, x, y, finish| {
            let plan = [&up, &down][at];
            let MonarchFactors { k, q, p, l, s, r } = plan.factors();
            let (first, second) = (weights.slice(0, 2 * k * q * p), weights.slice(0, 2 * l * s * r));
            plan.run(&self.device, rows, &Operands { x, first: &first, second: &second, y, finish })
        })
    }
}

/// Forward, input gradient and weight gradient of a dense layer.
fn dense_step((n_in, n_out): (usize, usize), rows: usize) -> [Matmul; 3] {
    let gradient = Matmul::new(n_out, n_in, rows, 1, true, false, Type::Bf16);
    [
        Matmul::new(rows, n_out, n_in, 1, false, true, Type::Bf16),
        Matmul::new(rows, n_in, n_out, 1, false, false, Type::Bf16),
        Matmul { d_type: Type::F32, accumulate: true, ..gradient },
    ]
}

/// As many blocks in both factors.
fn factors(n_in: usize, n_out: usize, blocks: usize) -> MonarchFactors {
    let (p, s) = (n_in / blocks, n_out / blocks);
    MonarchFactors { k: blocks, q: p.min(s), p, l: blocks, s, r: p.min(s) }
}

fn main() -> Result<(), CudaError> {
    let device = match Device::new(0) {
        Ok(device) => device,
        Err(error) => {
            eprintln!("skipped: {error}");
            return Ok(());
        }
    };
    let values: Vec<u8> = uniform(1, DRAWN).iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
    let drawn = device.region(values.len())?;
    device.upload(&drawn, &values)?;
    let flush = device.region(FLUSH_BYTES)?;
    let wanted = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let bench = Bench { device, flush, drawn, wanted };
    println!("# {}, bf16, cold L2, microseconds and speed-up over cuBLASLt", bench.device.properties().name);
    let products = ["forward", "input_gradient", "weight_gradient", "all"];
    println!("case,kernel{}", products.map(|name| format!(",{name}_us,{name}_x")).concat());
    for block in [128, 64, 32] {
        for density in [0.5, 0.25, 0.1, 0.05] {
            bench.blocks((4096, 4096), 8192, block, density)?;
        }
    }
    for shape in [(768, 3072), (3072, 768), (768, 768)] {
        for density in [0.25, 0.1] {
            bench.blocks(shape, 8192, 64, density)?;
        }
    }
    for shape in [(768, 3072), (3072, 768)] {
        for density in [0.25, 0.1, 0.05] {
            bench.blocks(shape, 8192, 32, density)?;
        }
    }
    for rows in [128, 256, 512, 1024, 2048] {
        for block in [64, 32] {
            bench.blocks((4096, 4096), rows, block, 0.25)?;
        }
        bench.blocks((768, 3072), rows, 64, 0.25)?;
    }
    for rows in [256, 512, 1024, 2048, 8192, 32768] {
        bench.monarch((4096, 4096), rows, 32)?;
    }
    for rows in [2048, 8192, 32768] {
        bench.monarch_training((4096, 4096), rows, 32)?;
    }
    for rows in [1024, 4096, 32768] {
        bench.monarch((1024, 1024), rows, 32)?;
    }
    for shape in [(768, 3072), (3072, 768), (768, 768)] {
        for rows in [256, 1024, 2048, 8192, 32768] {
            bench.monarch(shape, rows, 8)?;
        }
    }
    for shape in [(4096, 16384), (16384, 4096)] {
        bench.two_four(shape, 8192)?;
    }
    for shape in [(4096, 4096), (1024, 1024), (768, 3072), (3072, 768), (768, 768)] {
        for rows in [16, 64, 128, 256, 512, 1024, 2048, 8192, 32768] {
            bench.two_four(shape, rows)?;
        }
    }
    bench.two_four_mlp((768, 3072), 32768)?;
    for density in [0.25, 0.1] {
        bench.block_mlp((768, 3072), 32768, density)?;
    }
    bench.monarch_mlp((768, 3072), 32768, 8)?;
    Ok(())
}
