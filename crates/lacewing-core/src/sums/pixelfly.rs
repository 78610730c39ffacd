//! Pixelfly: a flat block butterfly plus a low-rank map, weighed by a gate.
//!
//! Cost of a row: the two branches, and `n_in` multiply-adds for a learned gate. The butterfly alone mixes only
//! inside its groups; the low-rank map connects them.

use serde_json::{Value, json};

use crate::chains::LowRank;
use crate::config::{Key, Options, PAD};
use crate::patterns::{Butterfly, DIVISOR, MAX_BLOCK, MAX_BUTTERFLY, flat_butterfly};
use crate::registry::first_within;
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
        Key::new(
            "budget",
            "instead of butterfly_size, n_factors and rank: parameters in all, or a fraction of dense up to 1",
            "",
        ),
        Key::new("low_rank_share", "of the budget, for the low-rank map, 0.01 to 0.99", "0.25"),
        Key::new("gate", "learned: a scalar a row | fixed: a half each | plain: no weights", "\"learned\""),
        PAD,
    ],
    build,
    samples,
    sized: |n_in, n_out, density| {
        let blocks = [16, 8, 4, 2].into_iter().filter(|b| n_in % b == 0 && n_out % b == 0);
        let configs = blocks.map(|block| {
            json!({
                "structure": NAME, "budget": density.min(0.999), "block": block, "gate": "plain", "pad": true,
            })
        });
        first_within((n_in, n_out), density, configs)
    },
};

/// `y = (1 − g) S x + g L x` with S a flat butterfly, L of low rank and `g = sigmoid(w·x + c)`, ½, or for a plain gate
/// `y = S x + L x`.
///
/// A `budget` of parameters in place of `butterfly_size`, `n_factors` and `rank` chooses them; the config of the
/// built structure says what they are.
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
    let learned = matches!(gate, Gate::Learned { .. });
    let resolved = if options.given("budget") {
        let Split { rank, butterfly_size, n_factors, .. } = split(options, problem, learned)?;
        options
            .clone()
            .with("butterfly_size", json!(butterfly_size))
            .with("n_factors", json!(n_factors))
            .with("rank", json!(rank))
    } else if options.given("low_rank_share") {
        return Err(StructureError::MissingKey { structure: NAME, key: "budget" });
    } else {
        options.clone()
    };
    let options = &resolved;
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
    let sparse = flat_butterfly(options, &Problem { origin, ..*problem })?;
    let low_rank = LowRank::read(options, problem)?;
    let rank = low_rank.rank();
    let (a, b) = (Box::new(sparse), Box::new(low_rank));
    Ok(Box::new(Pixelfly { sum: Sum { a, b, a_params: 0..1, b_params: 1..3, gate }, rank }))
}

/// What a budget buys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Split {
    rank: usize,
    butterfly_size: usize,
    n_factors: usize,
    /// Values in the tiles.
    tile_values: usize,
}

/// Splits `budget` parameters, after those of a learned gate, by the share α = `low_rank_share`.
///
/// The low-rank map gets α of them: its rank is the greatest multiple of `block` (or of the smaller layer size,
/// where that is less) that they pay for, up to the smaller layer size. The butterfly gets 1 − α: of all butterfly
/// sizes and numbers of factors, the one of most values in tiles that they pay for, padding included; among equals
/// that with the most factors, which mixes widest, then the smallest size. What rounding leaves of one share is not
/// spent on the other.
///
/// A budget that does not pay for both is [`StructureError::Budget`], with the least that does.
fn split(options: &Options, problem: &Problem<'_>, learned: bool) -> Result<Split, StructureError> {
    for key in ["butterfly_size", "n_factors", "rank"] {
        if options.given(key) {
            return Err(StructureError::Conflict { structure: NAME, key, other: "budget" });
        }
    }
    let (n_out, n_in) = problem.shape();
    let budget = read_budget(options, n_out as f64 * n_in as f64)?;
    let share = options.number("low_rank_share", 0.01, 0.99)?;
    let block = options.size("block", 1, MAX_BLOCK)?;
    let n_gate = if learned { n_in + 1 } else { 0 };
    let (most, thin) = (n_in.min(n_out), n_in + n_out);
    let unit = block.min(most);
    let rank = |weights: f64| ((share * weights / thin as f64) as usize / unit * unit).min(most);
    let candidates = candidates(options, problem, block)?;
    let bought = |budget: usize| {
        let weights = budget.saturating_sub(n_gate) as f64;
        let paid = candidates.iter().filter(|split| split.tile_values as f64 <= (1.0 - share) * weights);
        let order =
            |split: &&Split| (split.tile_values, split.n_factors, std::cmp::Reverse(split.butterfly_size));
        let split = Split { rank: rank(weights), ..*paid.max_by_key(order)? };
        (split.rank > 0).then_some(split)
    };
    if let Some(split) = bought(budget) {
        return Ok(split);
    }
    let fewest = candidates.iter().map(|split| split.tile_values).min().unwrap_or(0) as f64;
    let weights = (unit as f64 * thin as f64 / share).max(fewest / (1.0 - share));
    // Products of the share are rounded, so the bound may be one off on either side.
    let mut least = (weights as usize).saturating_add(n_gate).saturating_sub(1);
    loop {
        if let Some(Split { rank, butterfly_size, n_factors, .. }) = bought(least) {
            return Err(StructureError::Budget {
                structure: NAME,
                budget,
                least,
                rank,
                butterfly_size,
                n_factors,
            });
        }
        least += 1;
    }
}

/// A whole number of parameters, or a fraction of those of a dense layer, up to 1.
fn read_budget(options: &Options, dense: f64) -> Result<usize, StructureError> {
    let value = options.required("budget")?;
    let expected = "a whole number of parameters, or a fraction up to 1";
    match (value.as_u64(), value.as_f64()) {
        (Some(count), _) => Ok(usize::try_from(count).unwrap_or(usize::MAX)),
        (None, Some(fraction)) if (0.0..=1.0).contains(&fraction) => Ok((fraction * dense) as usize),
        (None, Some(count)) if count > 1.0 && count.fract() == 0.0 => Ok(count as usize),
        _ => Err(options.wrong("budget", expected, &value)),
    }
}

/// Every butterfly that the layer takes, without a rank. Butterflies wider than the layer would be padding.
fn candidates(options: &Options, problem: &Problem<'_>, block: usize) -> Result<Vec<Split>, StructureError> {
    let (n_out, n_in) = problem.shape();
    let most = n_in.min(n_out);
    let global_size = options.size("global_size", 0, most)?;
    let shuffle = options.flag("shuffle")?;
    let mut found = Vec::new();
    for log in 1..=MAX_BUTTERFLY.trailing_zeros() as usize {
        let butterfly_size = 1 << log;
        let divisor = Butterfly::divisor(block, butterfly_size);
        let (n_out_ext, n_in_ext) = match options.padded((n_out, n_in), (divisor, divisor), DIVISOR) {
            // What the smallest does not divide none does.
            Err(error) if log == 1 => return Err(error),
            Ok(sizes) if log == 1 || butterfly_size <= most => sizes,
            _ => break,
        };
        for n_factors in 1..=log {
            let butterfly = Butterfly { butterfly_size, n_factors, block, global_size, shuffle };
            let tile_values = butterfly.n_tiles(n_out_ext, n_in_ext) * block * block;
            found.push(Split { rank: 0, butterfly_size, n_factors, tile_values });
        }
    }
    Ok(found)
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

    #[test]
    fn a_budget_becomes_sizes() {
        // A quarter of dense, 589,824: of it the gate takes 769, the rank a quarter of the rest. 147,263 / 3840 = 38.3,
        // so rank 32; 441,791 values are 431 tiles of 32 by 32.
        let config = json!({"structure": NAME, "budget": 0.25});
        let built = crate::build(&config, 768, 3072, 0, None).unwrap();
        let resolved = built.config();
        assert_eq!(resolved["rank"], 32);
        assert!(resolved.get("budget").is_none() && resolved.get("low_rank_share").is_none(), "{resolved}");
        let again = crate::build(&resolved, 768, 3072, 0, None).unwrap();
        assert_eq!((again.config(), again.buffers()), (resolved.clone(), built.buffers()));
        assert_eq!(crate::restore(&resolved, 768, 3072, &built.buffers()).unwrap().config(), resolved);
        // Whole numbers count parameters, written as a float too.
        for budget in [json!(589_824), json!(589_824.0)] {
            let config = json!({"structure": NAME, "budget": budget});
            assert_eq!(crate::build(&config, 768, 3072, 0, None).unwrap().config(), resolved);
        }
    }

    #[test]
    fn a_budget_excludes_what_it_chooses() {
        for key in ["butterfly_size", "n_factors", "rank"] {
            let mut config = json!({"structure": NAME, "budget": 0.5});
            config[key] = json!(2);
            let error = crate::build(&config, 256, 256, 0, None).unwrap_err();
            assert_eq!(error, StructureError::Conflict { structure: NAME, key, other: "budget" });
        }
        let config = json!({"structure": NAME, "low_rank_share": 0.5});
        let error = crate::build(&config, 256, 256, 0, None).unwrap_err();
        assert_eq!(error, StructureError::MissingKey { structure: NAME, key: "budget" });
        for budget in [json!("half"), json!(-1), json!(1.5), json!(-0.5)] {
            let config = json!({"structure": NAME, "budget": budget});
            let error = crate::build(&config, 256, 256, 0, None).unwrap_err();
            assert!(matches!(error, StructureError::WrongType { .. }), "{error}");
        }
        let config = json!({"structure": NAME, "budget": 0.5, "block": 3});
        let error = crate::build(&config, 256, 256, 0, None).unwrap_err();
        assert!(matches!(error, StructureError::Indivisible { .. }), "{error}");
    }

    #[test]
    fn a_budget_that_buys_nothing_names_the_least_that_does() {
        for (n_in, n_out, block, gate, share) in [
            (256, 512, 32, "learned", 0.25),
            (64, 64, 4, "plain", 0.1),
            (13, 7, 16, "fixed", 0.9),
            (1, 1, 1, "plain", 0.5),
        ] {
            let built = |budget: usize| {
                let config = json!({
                    "structure": NAME, "budget": budget, "block": block, "gate": gate, "low_rank_share": share,
                    "pad": true,
                });
                crate::build(&config, n_in, n_out, 0, None)
            };
            let error = built(0).unwrap_err();
            let StructureError::Budget { least, rank, butterfly_size, n_factors, .. } = error else {
                panic!("{error}")
            };
            let config = built(least).unwrap().config();
            assert_eq!(config["rank"], rank);
            assert_eq!(
                (&config["butterfly_size"], &config["n_factors"]),
                (&json!(butterfly_size), &json!(n_factors))
            );
            let below = built(least - 1).unwrap_err();
            assert!(matches!(below, StructureError::Budget { least: same, .. } if same == least), "{below}");
        }
    }
}
