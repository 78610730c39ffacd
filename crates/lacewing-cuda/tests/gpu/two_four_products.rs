//! Products on the sparse tensor cores.

use super::*;
use lacewing_cuda::two_four::{self, TwoFourPattern};

/// Which of four are kept, by output and four.
type Keep = fn(usize, usize) -> &'static [usize];

/// Every pair of four.
fn two(out: usize, four: usize) -> &'static [usize] {
    [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]][(out * 5 + four * 7) % 6].as_slice()
}

fn up_to_two(out: usize, four: usize) -> &'static [usize] {
    [&[][..], &[0], &[1], &[2], &[3], &[0, 3], &[1, 2]][(out * 3 + four) % 7]
}

/// The product of one pattern with every end.
fn check(device: &Device, rows: usize, (n_out, n_in): (usize, usize), keep: Keep) {
    let of = Type::Bf16;
    let what = format!("{rows} x [{n_out}, {n_in}]");
    let positions: Vec<(u32, u32)> = (0..n_out)
        .flat_map(|out| (0..n_in / 4).map(move |four| (out, four)))
        .flat_map(|(out, four)| keep(out, four).iter().map(move |at| (out as u32, (four * 4 + at) as u32)))
        .collect();
    let stored = values(of, 1, positions.len());
    let mut dense = vec![0.0; n_out * n_in];
    for (&(out, input), &value) in positions.iter().zip(&stored) {
        dense[out as usize * n_in + input as usize] = f64::from(value);
    }
    let x = values(of, 2, rows * n_in);
    let bias = values(of, 5, n_out);
    let [x_on, values_on, bias_on] = [&x, &stored, &bias].map(|v| upload(device, of, v));
    let pattern = TwoFourPattern::new(device, (n_out, n_in), &positions).expect(&what);
    let packed = if pattern.is_packed() {
        values_on
    } else {
        let packed = upload(device, of, &vec![f32::NAN; pattern.n_packed()]);
        two_four::pack(device, &pattern, &values_on, &packed).expect(&what);
        packed
    };
    let forward = linear(&widen(&x), &dense, n_in);
    for (activation, bias_region) in ACTIVATIONS
        .map(|activation| (activation, Some(&bias_on)))
        .into_iter()
        .chain([(Activation::Identity, None)])
    {
        let y = upload(device, of, &vec![f32::NAN; rows * n_out]);
        let finish = Finish { bias: bias_region, activation };
        let operands = two_four::Operands { x: &x_on, packed: &packed, y: &y, finish };
        two_four::multiply(device, &pattern, rows, &operands).expect(&what);
        let ends =
            forward.value.iter().zip(&forward.magnitude).enumerate().map(|(at, (value, magnitude))| {
                let bias = bias_region.map_or(0.0, |_| f64::from(bias[at % n_out]));
                let error = gamma_of(n_in + 1, 2.0 * UNIT_F32) * (magnitude + bias.abs());
                end(activation, value + bias, error, of)
            });
        let (expected, bound): (Vec<f64>, Vec<f64>) = ends.unzip();
        let with = if bias_region.is_some() { "bias and " } else { "" };
        assert_within(&download(device, of, &y), &expected, &bound, &format!("{what}: {with}{activation:?}"));
    }
}

#[test]
fn two_four_products_agree_with_f64_at_tile_edges() {
    let Some(device) = device() else { return };
    if !two_four::supported(&device) {
        return eprintln!("skipped: not a Hopper GPU");
    }
    for rows in [1, 63, 64, 129, 256, 700] {
        for shape in [(64, 64), (192, 448), (320, 128), (576, 1088)] {
            check(&device, rows, shape, two);
            check(&device, rows, shape, up_to_two);
        }
    }
}

/// Several rounds of whole items, and lower ones after them; of the last rows there are less than a slice.
#[test]
fn two_four_products_of_many_items_agree_with_f64() {
    let Some(device) = device() else { return };
    if !two_four::supported(&device) {
        return eprintln!("skipped: not a Hopper GPU");
    }
    for rows in [4361, 9001] {
        check(&device, rows, (1024, 128), two);
    }
    check(&device, 2100, (1600, 64), up_to_two);
}

#[test]
fn a_two_four_product_without_its_values_is_refused_by_name() {
    let Some(device) = device() else { return };
    if !two_four::supported(&device) {
        return eprintln!("skipped: not a Hopper GPU");
    }
    let positions: Vec<(u32, u32)> =
        (0..64).flat_map(|out| (0..16).map(move |four| (out, four * 4))).collect();
    let pattern = TwoFourPattern::new(&device, (64, 64), &positions).expect("a pattern");
    let [x, y] = [0, 1].map(|_| device.region(64 * 64 * 2).expect("memory"));
    let values = device.region(positions.len() * 2).expect("memory");
    let operands = two_four::Operands { x: &x, packed: &values, y: &y, finish: Finish::default() };
    match two_four::multiply(&device, &pattern, 64, &operands) {
        Err(CudaError::OperandBytes { operand: "values", expected, got, .. }) => {
            assert_eq!((expected, got), (64 * 32 * 2, positions.len() * 2));
        }
        other => panic!("{other:?}"),
    }
}
