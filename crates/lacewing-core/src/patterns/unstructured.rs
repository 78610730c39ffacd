//! Unstructured: single elements of W, chosen at random, by magnitude or by the user.
//!
//! Cost of a row: nnz multiply-adds; nnz values and column indices and n_out + 1 row starts are stored.

use serde_json::json;

use crate::config::{Key, Options};
use crate::mask::{Mask, choices, keep_largest, places_kept, weight_to_rank};
use crate::masked::{FanIn, Masked};
use crate::{Built, Pattern, PatternKind, Problem, Structure, StructureError, StructureKind};

const NAME: &str = "unstructured";

/// The row of the table.
pub(super) static KIND: StructureKind = StructureKind {
    name: NAME,
    about: "single weights anywhere",
    keys: &[
        Key::new("density", "share of weights kept, above 0 to 1", "0.1"),
        Key::new("sparsity", "1 - density, instead of it", ""),
        Key::new("mask", "random | magnitude | list of [row, col]", "\"random\""),
    ],
    build,
    samples,
    sized: |_, _, density| Some(json!({"structure": NAME, "density": density.min(1.0), "mask": "magnitude"})),
};

/// `y = W x` with W stored at chosen elements; parameter `weight [nnz]` in row-major order.
fn build(options: &Options, problem: &Problem<'_>) -> Built {
    let (n_out, n_in) = problem.shape();
    let mask = Mask::read(options, problem, (n_out, n_in))?;
    let listed = matches!(mask, Mask::User(_));
    for (key, other) in [("density", "sparsity"), ("density", "mask"), ("sparsity", "mask")] {
        if options.given(key) && options.given(other) && (other != "mask" || listed) {
            return Err(StructureError::Conflict { structure: NAME, key, other });
        }
    }
    let density = if options.given("sparsity") {
        1.0 - options.number("sparsity", 0.0, 1.0)?
    } else {
        options.number("density", 0.0, 1.0)?
    };
    let config = if listed {
        json!({"structure": NAME, "mask": mask.name()})
    } else {
        json!({"structure": NAME, "density": density, "mask": mask.name()})
    };
    let positions = match Pattern::saved_positions(NAME, problem, (n_out, n_in))? {
        Some(positions) => positions,
        None => choose(mask, density, problem)?,
    };
    let pattern = Pattern {
        n_out,
        n_in,
        n_out_ext: n_out,
        n_in_ext: n_in,
        block: (1, 1),
        positions,
        kind: PatternKind::Unstructured,
    };
    Ok(Box::new(Masked { name: NAME, pattern, fan_in: FanIn::Row, free: true, config }))
}

fn samples() -> Vec<Box<dyn Structure>> {
    let user = json!({"structure": NAME, "mask": [[4, 0], [0, 2], [0, 1]]});
    let random = json!({"structure": NAME, "density": 0.3});
    let full = json!({"structure": NAME, "sparsity": 0});
    [(&user, 3, 5), (&random, 7, 9), (&full, 1, 2)]
        .map(|(config, n_in, n_out)| crate::build(config, n_in, n_out, 1, None).expect("valid sample"))
        .into()
}

fn choose(mask: Mask, density: f64, problem: &Problem<'_>) -> Result<Vec<(u32, u32)>, StructureError> {
    let (n_out, n_in) = problem.shape();
    let mut rng = choices(problem);
    let at = |flat: usize| ((flat / n_in) as u32, (flat % n_in) as u32);
    Ok(match mask {
        Mask::User(places) => places,
        Mask::Random => {
            let kept = places_kept(NAME, density, n_out * n_in)?;
            rng.sample((n_out * n_in) as u64, kept).into_iter().map(|flat| at(flat as usize)).collect()
        }
        Mask::Magnitude => {
            let kept = places_kept(NAME, density, n_out * n_in)?;
            let weight = weight_to_rank(problem, &mut rng);
            let scores: Vec<f64> = weight.iter().map(|w| f64::from(w.abs())).collect();
            keep_largest(&scores, kept).into_iter().map(at).collect()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Form;

    #[test]
    fn magnitude_keeps_the_largest_and_prunes_the_lowest_index_among_equals() {
        let w = [
            [1., -3., 2., 0.5, -0.1, 0.2, 0.3, -0.4],
            [5., 5., 5., 5., -1., 1., 0., 0.],
            [0., 0., 0., 0., 2., -2., 1., 4.],
            [1., 2., 3., 4., 4., 3., 2., 1.],
        ];
        let config = json!({"structure": NAME, "sparsity": 0.75, "mask": "magnitude"});
        let built = crate::build(&config, 8, 4, 0, Some(w.as_flattened())).unwrap();
        let Form::Pattern(pattern) = built.form() else { panic!("not a pattern") };
        let rows: Vec<String> = pattern
            .mask()
            .chunks(8)
            .map(|row| row.iter().map(|&kept| if kept { '1' } else { '0' }).collect())
            .collect();
        assert_eq!(rows, ["00000000", "11110000", "00000001", "00011100"]);
    }

    #[test]
    fn density_and_sparsity_exclude_each_other_and_a_list() {
        for config in [
            json!({"structure": NAME, "density": 0.5, "sparsity": 0.5}),
            json!({"structure": NAME, "density": 0.5, "mask": [[0, 0]]}),
        ] {
            let error = crate::build(&config, 4, 4, 0, None).unwrap_err();
            assert!(matches!(error, StructureError::Conflict { key: "density", .. }), "{error}");
        }
    }

    #[test]
    fn nothing_kept_is_an_error() {
        let config = json!({"structure": NAME, "density": 0.01});
        let error = crate::build(&config, 4, 4, 0, None).unwrap_err();
        assert_eq!(error, StructureError::EmptyPattern { structure: NAME, places: 16, density: 0.01 });
    }
}
