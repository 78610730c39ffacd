//! Products with block-sparse weights, kernel by kernel.

use super::*;

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
    if !device.properties().is_hopper() {
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
    if !device.properties().is_hopper() {
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
    if !device.properties().is_hopper() {
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
