//! Pixelfly: a flat block butterfly plus a low-rank map, weighed by a gate.
//!
//! Cost of a row: the two branches, and `n_in` multiply-adds for a learned gate. The butterfly alone mixes only
//! inside its groups; the low-rank map connects them.

use serde_json::{Value, json};

use crate::chains::LowRank;
use crate::config::{Key, Options, PAD};
use crate::patterns::FlatButterfly;
use crate::structure::check_params;
use crate::{
    Built, Counts, Form, Gate, IndexBuffer, Init, Origin, ParamSpec, Problem, Rng, Structure, StructureError,
    StructureKind, Sum,
};

const NAME: &str = "pixelfly";

/// The row of the table.
pub(super) static KIND: StructureKind = StructureKind {
    name: NAME,
    about: "flat block butterfly plus low rank, weighed by a gate",
    keys: &[
        crate::patterns::BUTTERFLY_SIZE,
        crate::patterns::N_FACTORS,
        crate::patterns::BLOCK,
        crate::patterns::GLOBAL_SIZE,
        crate::patterns::SHUFFLE,
        crate::chains::RANK,
        Key::new("gate", "learned: a scalar a row | fixed: a half each | plain: no weights", "\"learned\""),
        PAD,
    ],
    build,
    samples,
};

/// `y = (1 − g) S x + g L x` with S a flat butterfly, L of low rank and `g = sigmoid(w·x + c)`, ½, or for a plain gate
/// `y = S x + L x`.
///
/// Parameters: `sparse.weight`, `low_rank.a`, `low_rank.b` and, learned, `gate.weight [n_in]`, `gate.bias [1]`.
#[derive(Debug)]
pub struct Pixelfly {
    sum: Sum,
    rank: usize,
}

fn build(options: &Options, problem: &Problem<'_>) -> Built {
    let gates = [
        ("learned", Gate::Learned { weight: 3, bias: 4 }),
        ("fixed", Gate::Fixed(0.5)),
        ("plain", Gate::Plain),
    ];
    let gate = options.choice("gate", &gates, "`learned`, `fixed` or `plain`")?;
    let mut saved = Vec::new();
    let mut origin = problem.origin;
    if let Origin::Saved(buffers) = problem.origin {
        for IndexBuffer { name, data, shape } in buffers {
            let Some(inner) = name.strip_prefix("sparse.") else {
                return Err(StructureError::UnknownBuffer { structure: NAME, buffer: name.clone() });
            };
            saved.push(IndexBuffer { name: inner.to_owned(), data: data.clone(), shape: shape.clone() });
        }
        origin = Origin::Saved(&saved);
    }
    let sparse = FlatButterfly::read(options, &Problem { origin, ..*problem })?;
    let low_rank = LowRank::read(options, problem)?;
    let rank = low_rank.rank();
    let (a, b) = (Box::new(sparse), Box::new(low_rank));
    Ok(Box::new(Pixelfly { sum: Sum { a, b, a_params: 0..1, b_params: 1..3, gate }, rank }))
}

fn samples() -> Vec<Box<dyn Structure>> {
    let config = |gate: &str| {
        json!({
            "structure": NAME, "butterfly_size": 4, "n_factors": 1, "block": 2, "rank": 2, "gate": gate, "pad": true,
        })
    };
    [(config("learned"), 8, 16), (config("learned"), 7, 5), (config("fixed"), 9, 8), (config("plain"), 6, 11)]
        .map(|(config, n_in, n_out)| crate::build(&config, n_in, n_out, 0, None).expect("valid sample"))
        .into()
}

impl Structure for Pixelfly {
    fn name(&self) -> &'static str {
        NAME
    }

    fn n_in(&self) -> usize {
        self.sum.a.n_in()
    }

    fn n_out(&self) -> usize {
        self.sum.a.n_out()
    }

    fn params(&self) -> Vec<ParamSpec> {
        let named = |prefix: &str, specs: Vec<ParamSpec>| {
            let rename = |spec: ParamSpec| ParamSpec { name: format!("{prefix}.{}", spec.name), ..spec };
            specs.into_iter().map(rename).collect::<Vec<_>>()
        };
        let mut specs = named("sparse", self.sum.a.params());
        specs.extend(named("low_rank", self.sum.b.params()));
        if let Gate::Learned { .. } = self.sum.gate {
            specs.push(ParamSpec::new("gate.weight", &[self.n_in()]));
            specs.push(ParamSpec { decay: false, ..ParamSpec::new("gate.bias", &[1]) });
        }
        specs
    }

    fn form(&self) -> Form<'_> {
        Form::Sum(&self.sum)
    }

    /// Each branch by its own rule; the gate as a dense layer with one output, whose bias a model's rule makes zero.
    fn init(&self, init: Init, rng: &mut Rng) -> Vec<Vec<f32>> {
        let mut values = self.sum.a.init(init, rng);
        values.extend(self.sum.b.init(init, rng));
        if let Gate::Learned { .. } = self.sum.gate {
            let n_in = self.n_in();
            values.push(init.draw(1, n_in, n_in, rng));
            let bias = Init::Default.draw(1, n_in, 1, rng);
            values.push(if init == Init::Default { bias } else { vec![0.0] });
        }
        values
    }

    fn bias_bound(&self) -> f64 {
        1.0 / (self.n_out() as f64).sqrt()
    }

    /// `(1 − g) S + g L` for a fixed gate, `S + L` for a plain one, `None` for a learned one.
    fn to_dense(&self, params: &[&[f64]]) -> Option<Vec<f64>> {
        check_params(&self.params(), params);
        let (keep, give) = match self.sum.gate {
            Gate::Learned { .. } => return None,
            Gate::Fixed(g) => (1.0 - g, g),
            Gate::Plain => (1.0, 1.0),
        };
        let a = self.sum.a.to_dense(&params[..1])?;
        let b = self.sum.b.to_dense(&params[1..3])?;
        Some(a.iter().zip(&b).map(|(a, b)| keep * a + give * b).collect())
    }

    fn apply(&self, params: &[&[f64]], x: &[f64]) -> Vec<f64> {
        check_params(&self.params(), params);
        let a = self.sum.a.apply(&params[..1], x);
        let b = self.sum.b.apply(&params[1..3], x);
        let (keep, give) = match self.sum.gate {
            Gate::Learned { .. } => {
                let logit = params[4][0] + params[3].iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
                let g = 1.0 / (1.0 + (-logit).exp());
                (1.0 - g, g)
            }
            Gate::Fixed(g) => (1.0 - g, g),
            Gate::Plain => (1.0, 1.0),
        };
        a.iter().zip(&b).map(|(a, b)| keep * a + give * b).collect()
    }

    fn counts(&self) -> Counts {
        let (a, b) = (self.sum.a.counts(), self.sum.b.counts());
        let (gate, gate_macs) = match self.sum.gate {
            Gate::Learned { .. } => (self.n_in() + 1, self.n_in()),
            _ => (0, 0),
        };
        Counts {
            parameters: a.parameters + b.parameters + gate,
            bytes: a.bytes + b.bytes + 4 * gate,
            macs: a.macs + b.macs + gate_macs,
        }
    }

    /// Of the two branches; the gate holds no weight of the map.
    fn density(&self) -> f64 {
        self.sum.a.density() + self.sum.b.density()
    }

    fn config(&self) -> Value {
        let mut config = self.sum.a.config();
        let pad = config["pad"].take();
        config["structure"] = json!(NAME);
        config["rank"] = json!(self.rank);
        config["gate"] = json!(match self.sum.gate {
            Gate::Learned { .. } => "learned",
            Gate::Fixed(_) => "fixed",
            Gate::Plain => "plain",
        });
        config["pad"] = pad;
        config
    }

    fn buffers(&self) -> Vec<IndexBuffer> {
        let prefixed =
            |buffer: IndexBuffer| IndexBuffer { name: format!("sparse.{}", buffer.name), ..buffer };
        self.sum.a.buffers().into_iter().map(prefixed).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_match_the_reference() {
        let config = json!({"structure": NAME, "butterfly_size": 8, "n_factors": 2, "block": 32, "rank": 32});
        let built = crate::build(&config, 768, 3072, 0, None).unwrap();
        let counts: Vec<usize> = built.params().iter().map(ParamSpec::count).collect();
        assert_eq!(counts, [884_736, 32 * 768, 32 * 3072, 768, 1]);
        assert_eq!(counts[1] + counts[2], 122_880);
        assert_eq!(built.counts().parameters + built.n_out(), 1_011_457);
    }

    #[test]
    fn a_closed_gate_is_the_sparse_branch_and_an_open_one_the_low_rank_branch() {
        let built = samples().remove(0);
        let Form::Sum(sum) = built.form() else { panic!("not a sum") };
        let values = built.init(Init::Default, &mut Rng::new(2));
        let values: Vec<Vec<f64>> =
            values.iter().map(|values| values.iter().map(|&v| f64::from(v)).collect()).collect();
        let x: Vec<f64> = (0..built.n_in()).map(|i| i as f64 - 3.0).collect();
        let with_bias = |bias: f64| {
            let bias = [bias];
            let params = [&values[0][..], &values[1], &values[2], &values[3], &bias];
            built.apply(&params, &x)
        };
        // At ±1000 the sigmoid is 0 or 1 to the last bit.
        assert_eq!(with_bias(-1000.0), sum.a.apply(&[&values[0]], &x));
        assert_eq!(with_bias(1000.0), sum.b.apply(&[&values[1], &values[2]], &x));
    }

    #[test]
    fn a_saved_mask_must_be_the_butterfly() {
        let built = samples().remove(0);
        let mut buffers = built.buffers();
        buffers[0].data[1] += 1;
        let error = crate::restore(&built.config(), built.n_in(), built.n_out(), &buffers).unwrap_err();
        assert!(matches!(error, StructureError::PatternDiffers { at: 1, .. }), "{error}");
    }
}
