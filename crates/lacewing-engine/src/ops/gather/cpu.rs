//! Signed sums of columns on the CPU.

use lacewing_core::Gather;
use lacewing_cpu::parallel::rows_per_task;
use rayon::prelude::*;

/// `y[r, o] = Σ ± x[r, index]` over the list of `o`; without `starts` each list is one code.
///
/// Shapes: `x [rows, n_in]`, `y [rows, n_out]`, `starts [n_out + 1]`.
pub(super) fn gather(
    x: &[f32],
    starts: Option<&[u32]>,
    codes: &[u32],
    y: &mut [f32],
    n_in: usize,
    n_out: usize,
) {
    if y.is_empty() {
        return;
    }
    if n_in == 0 {
        return y.fill(0.0);
    }
    assert_eq!(x.len() / n_in, y.len() / n_out, "rows");
    // A row may be a weight of millions of values: it is cut as well.
    let step = rows_per_task(n_out, codes.len().div_ceil(n_out));
    let rows = rows_per_task(y.len() / n_out, n_out.max(codes.len()));
    y.par_chunks_mut(rows * n_out).zip(x.par_chunks(rows * n_in)).for_each(|(y, x)| {
        for (y, x) in y.chunks_exact_mut(n_out).zip(x.chunks_exact(n_in)) {
            y.par_chunks_mut(step).enumerate().for_each(|(part, y)| match starts {
                None => y.iter_mut().zip(&codes[part * step..]).for_each(|(y, &code)| *y = term(x, code)),
                Some(starts) => {
                    for (y, ends) in y.iter_mut().zip(starts[part * step..].windows(2)) {
                        let codes = &codes[ends[0] as usize..ends[1] as usize];
                        *y = codes.iter().fold(0.0, |sum, &code| sum + term(x, code));
                    }
                }
            });
        }
    });
}

/// `± x[index]`: the sign of a code lies where that of an f32 does.
fn term(x: &[f32], code: u32) -> f32 {
    f32::from_bits(x[(code & !Gather::MINUS) as usize].to_bits() ^ (code & Gather::MINUS))
}
