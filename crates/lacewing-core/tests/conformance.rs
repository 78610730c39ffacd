//! What every row of the table must hold, on all of its samples.

use std::collections::BTreeSet;

use lacewing_core::{
    Chain, Form, Gate, Gather, IndexBuffer, Init, Link, Pattern, Rng, Structure, StructureError, Sum,
    Weights, build, restore, structures,
};
use lacewing_testkit::{UNIT_F64, assert_near, gamma_of, uniform_f64};
use serde_json::{Value, json};

fn samples() -> impl Iterator<Item = Box<dyn Structure>> {
    structures().flat_map(|kind| {
        let samples = (kind.samples)();
        assert!(!samples.is_empty(), "{} has no sample", kind.name);
        assert!(samples.iter().all(|sample| sample.name() == kind.name), "{} samples others", kind.name);
        samples
    })
}

fn seeded_params(structure: &dyn Structure) -> Vec<Vec<f64>> {
    let specs = structure.params();
    specs.iter().enumerate().map(|(i, spec)| uniform_f64(100 + i as u64, spec.count())).collect()
}

fn slices(params: &[Vec<f64>]) -> Vec<&[f64]> {
    params.iter().map(Vec::as_slice).collect()
}

/// Runs a form as its documentation says, naively. Also used on magnitudes, for the error bound.
fn execute(structure: &dyn Structure, params: &[&[f64]], x: &[f64]) -> Vec<f64> {
    match structure.form() {
        Form::Dense => {
            params[0].chunks(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
        }
        Form::Pattern(pattern) => execute_pattern(pattern, params[0], x),
        Form::Chain(chain) => execute_chain(chain, params, x),
        Form::Sum(sum) => {
            let g = gate(sum, params, x);
            let (keep, give) = g.map_or((1.0, 1.0), |g| (1.0 - g, g));
            let a = execute(&*sum.a, &params[sum.a_params.clone()], x);
            let b = execute(&*sum.b, &params[sum.b_params.clone()], x);
            a.iter().zip(b).map(|(a, b)| keep * a + give * b).collect()
        }
    }
}

fn gate(sum: &Sum, params: &[&[f64]], x: &[f64]) -> Option<f64> {
    match sum.gate {
        Gate::Learned { weight, bias } => {
            let logit = params[weight].iter().zip(x).map(|(w, x)| w * x).sum::<f64>() + params[bias][0];
            Some(1.0 / (1.0 + (-logit).exp()))
        }
        Gate::Fixed(g) => Some(g),
        Gate::Plain => None,
    }
}

fn execute_pattern(pattern: &Pattern, values: &[f64], x: &[f64]) -> Vec<f64> {
    let (rows, cols) = pattern.block;
    let mut padded = x.to_vec();
    padded.resize(pattern.n_in_ext, 0.0);
    let mut y = vec![0.0; pattern.n_out_ext];
    for (&(row, col), values) in pattern.positions.iter().zip(values.chunks(rows * cols)) {
        for i in 0..rows {
            for j in 0..cols {
                y[row as usize * rows + i] += values[i * cols + j] * padded[col as usize * cols + j];
            }
        }
    }
    y.truncate(pattern.n_out);
    y
}

fn execute_chain(chain: &Chain, params: &[&[f64]], x: &[f64]) -> Vec<f64> {
    let mut x = x.to_vec();
    x.resize(chain.n_in_ext, 0.0);
    for link in &chain.links {
        x = execute_link(link, params, &x);
    }
    assert_eq!(x.len(), chain.n_out_ext, "width after the last link");
    x.truncate(chain.n_out);
    x
}

/// A link as its documentation says, index by index.
fn execute_link(link: &Link, params: &[&[f64]], x: &[f64]) -> Vec<f64> {
    match *link {
        Link::Blocks { ref weights, groups, stride, q, p } => {
            let w = match weights {
                Weights::Param(param) => params[*param].to_vec(),
                Weights::Tied { param, gather } => execute_gather(gather, params[*param]),
                Weights::Constant(values) => values.clone(),
            };
            assert_eq!((x.len(), w.len()), (groups * p * stride, groups * stride * q * p), "{link:?}");
            let mut y = vec![0.0; groups * q * stride];
            for (at, w) in w.iter().enumerate() {
                let (g, s, j, i) = (at / (p * q * stride), at / (p * q) % stride, at / p % q, at % p);
                y[g * q * stride + j * stride + s] += w * x[g * p * stride + i * stride + s];
            }
            y
        }
        Link::Transpose { batch, rows, cols } => {
            assert_eq!(x.len(), batch * rows * cols, "{link:?}");
            let at = |b, r, c| x[(b * rows + r) * cols + c];
            (0..batch)
                .flat_map(|b| (0..cols).flat_map(move |c| (0..rows).map(move |r| at(b, r, c))))
                .collect()
        }
        Link::Gather(ref gather) => execute_gather(gather, x),
    }
}

fn execute_gather(gather: &Gather, x: &[f64]) -> Vec<f64> {
    assert_eq!(x.len(), gather.n_in(), "{gather:?}");
    let value = |code: u32| match code {
        Gather::NONE => 0.0,
        code if code & Gather::MINUS != 0 => -x[(code ^ Gather::MINUS) as usize],
        code => x[code as usize],
    };
    gather.codes().chunks(gather.terms()).map(|codes| codes.iter().map(|&code| value(code)).sum()).collect()
}

/// Magnitudes in place of values: constants and signs too, for error bounds.
fn magnitudes(structure: &dyn Structure, params: &[&[f64]], x: &[f64]) -> Vec<f64> {
    let Form::Chain(chain) = structure.form() else { return execute(structure, params, x) };
    let positive = |gather: &Gather| {
        Gather::new(gather.n_in(), gather.n_out(), gather.terms(), |o, t| {
            let code = gather.codes()[o * gather.terms() + t];
            (code != Gather::NONE).then_some(((code & !Gather::MINUS) as usize, false))
        })
    };
    let links = chain.links.iter().map(|link| match link.clone() {
        Link::Blocks { weights: Weights::Tied { param, gather }, groups, stride, q, p } => {
            let weights = Weights::Tied { param, gather: positive(&gather) };
            Link::Blocks { weights, groups, stride, q, p }
        }
        Link::Blocks { weights: Weights::Constant(values), groups, stride, q, p } => {
            let weights = Weights::Constant(values.iter().map(|v| v.abs()).collect());
            Link::Blocks { weights, groups, stride, q, p }
        }
        Link::Gather(gather) => Link::Gather(positive(&gather)),
        link => link,
    });
    execute_chain(&Chain { links: links.collect(), ..chain.clone() }, params, x)
}

/// The error that two orders of the same sums may differ by: `γ · Σ|terms|`, and through the gate by its slope (≤ 1)
/// times the error of the logit.
fn bound(structure: &dyn Structure, params: &[&[f64]], x: &[f64]) -> Vec<f64> {
    let values: Vec<Vec<f64>> = params.iter().map(|p| p.iter().map(|v| v.abs()).collect()).collect();
    let x: Vec<f64> = x.iter().map(|x| x.abs()).collect();
    let values = slices(&values);
    let k = structure.counts().macs + 16;
    let (sums, logit) = match structure.form() {
        Form::Sum(sum) => {
            let a = self::magnitudes(&*sum.a, &values[sum.a_params.clone()], &x);
            let b = self::magnitudes(&*sum.b, &values[sum.b_params.clone()], &x);
            (a.iter().zip(b).map(|(a, b)| a + b).collect(), x.iter().sum::<f64>() + 1.0)
        }
        _ => (magnitudes(structure, &values, &x), 0.0),
    };
    sums.iter().map(|sum| 2.0 * gamma_of(k, UNIT_F64) * sum * (1.0 + logit)).collect()
}

#[test]
fn the_form_computes_the_definition() {
    for structure in samples() {
        let params = seeded_params(&*structure);
        let params = slices(&params);
        let what = format!("{}", structure.config());
        for seed in 0..3 {
            let x = uniform_f64(seed, structure.n_in());
            let expected = structure.apply(&params, &x);
            assert_eq!(expected.len(), structure.n_out(), "{what}");
            let bound = bound(&*structure, &params, &x);
            assert_near(&execute(&*structure, &params, &x), &expected, &bound, &what);
        }
        // Column by column: applied to the identity, the form gives the dense matrix.
        let Some(dense) = structure.to_dense(&params) else { continue };
        let (n_in, n_out) = (structure.n_in(), structure.n_out());
        assert_eq!(dense.len(), n_in * n_out, "{what}");
        for col in 0..n_in {
            let mut x = vec![0.0; n_in];
            x[col] = 1.0;
            let expected: Vec<f64> = (0..n_out).map(|row| dense[row * n_in + col]).collect();
            assert_near(
                &execute(&*structure, &params, &x),
                &expected,
                &bound(&*structure, &params, &x),
                &what,
            );
        }
    }
}

#[test]
fn counts_are_those_of_the_parameters() {
    for structure in samples() {
        let counts = structure.counts();
        let specs = structure.params();
        assert_eq!(counts.parameters, specs.iter().map(|spec| spec.count()).sum::<usize>(), "{structure:?}");
        assert!(counts.bytes >= 4 * counts.parameters, "{structure:?}");
        // A chain's factors say what they multiply; elsewhere it is one multiply-add a stored weight and row, and none
        // for a gate's bias.
        let macs = match structure.form() {
            Form::Chain(chain) => chain.macs(),
            _ => counts.parameters - specs.iter().filter(|spec| spec.name == "gate.bias").count(),
        };
        assert_eq!(counts.macs, macs, "{structure:?}");
        // The released SSL layer starts with biases of zero.
        let biased =
            structure.bias_bound() > 0.0 || structure.name() == "ssl" && structure.bias_bound() == 0.0;
        assert!(structure.density() > 0.0 && biased, "{structure:?}");
        let names: BTreeSet<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
        assert_eq!(names.len(), specs.len(), "{structure:?} repeats a parameter name");
    }
}

#[test]
fn a_restored_structure_is_the_same() {
    for structure in samples() {
        let (n_in, n_out) = (structure.n_in(), structure.n_out());
        let config: Value = serde_json::from_str(&structure.config().to_string()).unwrap();
        let again = restore(&config, n_in, n_out, &structure.buffers()).unwrap();
        assert_eq!(format!("{again:?}"), format!("{structure:?}"));
        assert_eq!(again.config(), structure.config());
        assert_eq!(again.buffers(), structure.buffers());
        let params = seeded_params(&*structure);
        assert_eq!(again.to_dense(&slices(&params)), structure.to_dense(&slices(&params)));
    }
}

#[test]
fn a_damaged_checkpoint_is_an_error() {
    for structure in samples() {
        let (config, n_in, n_out) = (structure.config(), structure.n_in(), structure.n_out());
        let restored = |buffers: &[IndexBuffer]| restore(&config, n_in, n_out, buffers).map(|_| ());
        let saved = structure.buffers();
        let stranger = IndexBuffer { name: "stranger".to_owned(), data: vec![], shape: vec![0] };
        let more: Vec<IndexBuffer> = saved.iter().cloned().chain([stranger]).collect();
        assert!(matches!(restored(&more), Err(StructureError::UnknownBuffer { .. })), "{structure:?}");
        for at in 0..saved.len() {
            let damaged = |damage: &dyn Fn(&mut IndexBuffer)| {
                let mut buffers = saved.clone();
                damage(&mut buffers[at]);
                restored(&buffers)
            };
            let mut missing = saved.clone();
            missing.remove(at);
            assert!(matches!(restored(&missing), Err(StructureError::MissingBuffer { .. })), "{structure:?}");
            let mut twice = saved.clone();
            twice.push(saved[at].clone());
            assert!(matches!(restored(&twice), Err(StructureError::UnknownBuffer { .. })), "{structure:?}");
            assert!(damaged(&|b| b.data.truncate(b.data.len() - 1)).is_err(), "{structure:?}");
            assert!(damaged(&|b| b.shape.push(2)).is_err(), "{structure:?}");
            assert!(damaged(&|b| b.shape = vec![usize::MAX; 3]).is_err(), "{structure:?}");
            assert!(damaged(&|b| b.data.iter_mut().for_each(|v| *v = u32::MAX)).is_err(), "{structure:?}");
            for value in 0..saved[at].data.len() {
                assert!(damaged(&|b| b.data[value] = u32::MAX).is_err(), "{structure:?} {value}");
                // Any other value: an error or another valid pattern, never a panic.
                let _ = damaged(&|b| b.data[value] = b.data[value].wrapping_sub(1));
                let _ = damaged(&|b| b.data[value] += 1);
            }
        }
    }
}

#[test]
fn initial_values_fit_are_seeded_and_finite() {
    let rules = [Init::Default, Init::TruncNormal { std: 0.02 }, Init::XavierUniform, Init::Zeros];
    for structure in samples() {
        for init in rules {
            let values = structure.init(init, &mut Rng::new(5));
            assert_eq!(values, structure.init(init, &mut Rng::new(5)), "{structure:?}");
            let lengths: Vec<usize> = values.iter().map(Vec::len).collect();
            let specs = structure.params();
            assert_eq!(lengths, specs.iter().map(|spec| spec.count()).collect::<Vec<_>>(), "{structure:?}");
            assert!(values.iter().flatten().all(|v| v.is_finite()), "{structure:?} {init:?}");
            if init != Init::Zeros {
                // One that starts as a known map, such as an exact transform, draws nothing and ignores the seed.
                let mut rng = Rng::new(6);
                let other = structure.init(init, &mut rng);
                assert_eq!(values != other, rng.position() > 0, "{structure:?} {init:?}");
                continue;
            }
            let values: Vec<Vec<f64>> =
                values.iter().map(|values| values.iter().map(|&v| f64::from(v)).collect()).collect();
            let y = structure.apply(&slices(&values), &uniform_f64(1, structure.n_in()));
            assert!(y.iter().all(|&y| y == 0.0), "{structure:?}");
        }
    }
}

#[test]
fn a_model_init_reaches_those_that_say_so() {
    for structure in samples() {
        let own = structure.init(Init::Default, &mut Rng::new(1));
        let models = structure.init(Init::TruncNormal { std: 0.02 }, &mut Rng::new(1));
        assert_eq!(own != models, structure.takes_model_init(), "{structure:?}");
    }
}

#[test]
fn the_defaults_in_the_table_build_and_the_config_is_resolved() {
    for kind in structures() {
        for key in kind.keys {
            assert!(key.default.is_empty() || serde_json::from_str::<Value>(key.default).is_ok(), "{key:?}");
            assert!(!key.about.is_empty());
        }
        let built = build(&json!(kind.name), 256, 512, 3, None).unwrap();
        let config = built.config();
        assert_eq!(config["structure"], json!(kind.name));
        let known = |key: &str| key == "structure" || kind.keys.iter().any(|known| known.name == key);
        assert!(config.as_object().unwrap().keys().all(|key| known(key)), "{config}");
        let again = build(&config, 256, 512, 3, None).unwrap();
        assert_eq!(again.config(), config);
        assert_eq!(again.buffers(), built.buffers());
        if kind.keys.iter().any(|key| key.name == "mask") {
            let other = build(&config, 256, 512, 4, None).unwrap();
            assert_ne!(other.buffers(), built.buffers(), "{} ignores the seed", kind.name);
        }
    }
}

#[test]
fn each_folder_is_its_table() {
    for (folder, table) in [
        ("patterns", lacewing_core::patterns::TABLE),
        ("chains", lacewing_core::chains::TABLE),
        ("sums", lacewing_core::sums::TABLE),
        ("sketch", lacewing_core::sketch::TABLE),
    ] {
        let path = format!("{}/src/{folder}", env!("CARGO_MANIFEST_DIR"));
        let files = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path());
        let stems = files.map(|file| file.file_stem().unwrap().to_str().unwrap().to_owned());
        let files: BTreeSet<String> = stems.filter(|stem| stem != "mod").collect();
        let rows: BTreeSet<String> = table.iter().map(|kind| kind.name.to_owned()).collect();
        assert_eq!(files, rows, "{folder}");
        assert_eq!(rows.len(), table.len(), "{folder} repeats a row");
    }
    let names: BTreeSet<&str> = structures().map(|kind| kind.name).collect();
    assert_eq!(names.len(), structures().count(), "two structures with one name");
}
