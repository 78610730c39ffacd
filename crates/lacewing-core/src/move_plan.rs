//! Schedules of patterns that move: now and then the least useful stored weights give their places up, and as many new
//! places are taken. How many are stored never changes.
//!
//! Which and where is decided on the host in f64 from values and gradients that are the same everywhere, with one rule for
//! ties, so every device and every rank of a data-parallel run decides the same.

use std::ops::Range;

use serde_json::{Value, json};

use crate::config::{Key, Options};
use crate::mask::keep_largest;
use crate::move_across::{DropScope, Redistribution};
use crate::{Horizon, Pattern, Rng, Span, StructureError};

/// How the share that moves falls.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Anneal {
    /// It stays α.
    Constant,
    /// α/2 (1 + cos(π min(t, D) / D)), D the time from begin to end and t the global step.
    Cosine,
    /// α (1 − (t − begin) / D)^p.
    Exponential(f64),
}

/// Where new places are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Growth {
    /// Where the gradient of the dense weight is largest (RigL); such an update takes the place of the optimizer's step.
    Gradient,
    /// Anywhere (SET); after the optimizer's step.
    Random,
    /// Where the exponential moving average of the dense weight's gradient is largest, `M ← α M + (1 − α) g` at each step with
    /// this α (SNFS); after the optimizer's step.
    Momentum(f64),
}

/// What a new weight starts with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FirstValue {
    /// 0.
    Zero,
    /// U(±scale · σ), σ the deviation of the layer's stored weights.
    Uniform(f64),
    /// N(scale · mean, (scale · σ)²).
    Normal(f64),
}

/// What the optimizer's moments of a new weight start with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FirstMoment {
    /// 0.
    Zero,
    /// Those of the weight that gave its place up, in order.
    Keep,
    /// The gradient times this in the first moment, its square in the second.
    Gradient(f64),
}

/// A schedule of moves, as a config says it.
#[derive(Clone, Debug, PartialEq)]
pub struct MoveSchedule {
    /// The name of its row in the table.
    pub name: &'static str,
    /// The first update.
    pub begin: Span,
    /// No update after it.
    pub end: Span,
    /// From one update to the next.
    pub every: Span,
    /// α: the share of stored weights, or blocks, that move.
    pub fraction: f64,
    /// How it falls.
    pub anneal: Anneal,
    /// Where new places are.
    pub growth: Growth,
    /// Whether a place just given up may be taken again at once; then the weight stays as it was.
    pub regrow: bool,
    /// Among which weights the smallest give their places up.
    pub drop: DropScope,
    /// How the places given up are spread over the layers.
    pub redistribution: Redistribution,
    /// What new weights start with.
    pub value: FirstValue,
    /// What their moments start with.
    pub moment: FirstMoment,
}

/// A schedule of moves for one run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MovePlan {
    begin: u64,
    end: u64,
    every: u64,
    fraction: f64,
    anneal: Anneal,
}

pub(crate) const BEGIN: Key = Key::new("begin", "the first update", "0");
pub(crate) const END: Key = Key::new("end", "no update after it", "0.75");
pub(crate) const EVERY: Key = Key::new("every", "time from one update to the next", "\"100 steps\"");
pub(crate) const FRACTION: &str = "share of the stored weights or blocks that move, 0 to 1";
pub(crate) const ANNEAL: &str = "how the share falls: cosine | constant | exponential";
pub(crate) const POWER: Key = Key::new("power", "p of the exponential fall", "3");
pub(crate) const VALUE: &str = "of new weights: zero | uniform | normal, as the layer's are spread";
pub(crate) const SCALE: Key = Key::new("scale", "of new weights that are drawn", "0.1");
pub(crate) const MOMENTS: Key =
    Key::new("moments", "of new weights: zero | keep: of the weight replaced | gradient", "\"zero\"");
pub(crate) const MOMENT_SCALE: Key = Key::new("moment_scale", "of the gradient as a first moment", "1");
pub(crate) const DROP: Key = Key::new(
    "drop",
    "the smallest are those of each layer | global: of all layers with this schedule",
    "\"layer\"",
);
pub(crate) const REDISTRIBUTION: &str =
    "of places between layers: none | nonzeros: by those that each has left | momentum: by its mean (snfs)";

/// The keys of schedules whose new weights start from zero and whose share that moves falls.
pub(crate) static KEYS: &[Key] = &[
    BEGIN,
    END,
    EVERY,
    Key::new("fraction", FRACTION, "0.3"),
    Key::new("anneal", ANNEAL, "\"cosine\""),
    POWER,
    Key::new("value", VALUE, "\"zero\""),
    SCALE,
    MOMENTS,
    MOMENT_SCALE,
    DROP,
    Key::new("redistribution", REDISTRIBUTION, "\"none\""),
];

impl MoveSchedule {
    /// Reads the keys that all schedules of moves share.
    pub(crate) fn read(options: &Options, growth: Growth, regrow: bool) -> Result<Self, StructureError> {
        let name = options.structure();
        let power = options.number("power", 0.0, f64::MAX)?;
        let anneals = [
            ("cosine", Anneal::Cosine),
            ("constant", Anneal::Constant),
            ("exponential", Anneal::Exponential(power)),
        ];
        let anneal = options.choice("anneal", &anneals, "`cosine`, `constant` or `exponential`")?;
        let scale = options.number("scale", 0.0, f64::MAX)?;
        let values = [
            ("zero", FirstValue::Zero),
            ("uniform", FirstValue::Uniform(scale)),
            ("normal", FirstValue::Normal(scale)),
        ];
        let value = options.choice("value", &values, "`zero`, `uniform` or `normal`")?;
        let gradient = FirstMoment::Gradient(options.number("moment_scale", 0.0, f64::MAX)?);
        let moments = [("zero", FirstMoment::Zero), ("keep", FirstMoment::Keep), ("gradient", gradient)];
        let moment = options.choice("moments", &moments, "`zero`, `keep` or `gradient`")?;
        let known = match growth {
            Growth::Gradient => None,
            // No gradient is known outside the pattern, or it is gone with the optimizer's step.
            Growth::Random => Some("`zero` or `keep`, as places are random"),
            Growth::Momentum(_) => Some("`zero` or `keep`, as places are found after the optimizer's step"),
        };
        if let Some(known) = known.filter(|_| moment == gradient) {
            return Err(options.wrong("moments", known, &json!("gradient")));
        }
        let scopes = [("layer", DropScope::Layer), ("global", DropScope::Global)];
        let drop = options.choice("drop", &scopes, "`layer` or `global`")?;
        let redistributions = [
            ("none", Redistribution::None),
            ("nonzeros", Redistribution::Nonzeros),
            ("momentum", Redistribution::Momentum),
        ];
        let expected = "`none`, `nonzeros` or `momentum`";
        let redistribution = options.choice("redistribution", &redistributions, expected)?;
        if redistribution == Redistribution::Momentum && !matches!(growth, Growth::Momentum(_)) {
            let expected = "`none` or `nonzeros`, as only `snfs` keeps a momentum";
            return Err(options.wrong("redistribution", expected, &json!("momentum")));
        }
        Ok(Self {
            name,
            begin: options.span("begin")?,
            end: options.span("end")?,
            every: options.span("every")?,
            fraction: options.number("fraction", 0.0, 1.0)?,
            anneal,
            growth,
            regrow,
            value,
            moment,
            drop,
            redistribution,
        })
    }

    /// The plan for a run.
    ///
    /// # Errors
    ///
    /// [`StructureError::Phases`] when it would end before it begins.
    pub fn plan(&self, horizon: Horizon) -> Result<MovePlan, StructureError> {
        let (begin, end) = (self.begin.steps(horizon), self.end.steps(horizon));
        if begin > end {
            return Err(StructureError::Phases { schedule: self.name, what: "begin", got: begin, most: end });
        }
        let every = self.every.steps(horizon).max(1);
        Ok(MovePlan { begin, end, every, fraction: self.fraction, anneal: self.anneal })
    }

    /// Whether the layers store all of their weights, those that do not count as zeros: where their number changes, or the
    /// average of the dense gradient is as large anyway.
    pub fn stores_all(&self) -> bool {
        self.drop == DropScope::Global
            || self.redistribution != Redistribution::None
            || matches!(self.growth, Growth::Momentum(_))
    }

    /// The config it was read from, every default filled in.
    pub fn config(&self) -> Value {
        let mut config = json!({
            "name": self.name, "begin": self.begin.config(), "end": self.end.config(),
            "every": self.every.config(), "fraction": self.fraction,
        });
        config["anneal"] = match self.anneal {
            Anneal::Constant => json!("constant"),
            Anneal::Cosine => json!("cosine"),
            Anneal::Exponential(power) => {
                config["power"] = json!(power);
                json!("exponential")
            }
        };
        let mut drawn = |name: &str, scale: f64| {
            config["scale"] = json!(scale);
            json!(name)
        };
        config["value"] = match self.value {
            FirstValue::Zero => json!("zero"),
            FirstValue::Uniform(scale) => drawn("uniform", scale),
            FirstValue::Normal(scale) => drawn("normal", scale),
        };
        config["moments"] = match self.moment {
            FirstMoment::Zero => json!("zero"),
            FirstMoment::Keep => json!("keep"),
            FirstMoment::Gradient(scale) => {
                config["moment_scale"] = json!(scale);
                json!("gradient")
            }
        };
        if let Growth::Momentum(decay) = self.growth {
            config["momentum"] = json!(decay);
        }
        config["drop"] = json!(match self.drop {
            DropScope::Layer => "layer",
            DropScope::Global => "global",
        });
        config["redistribution"] = json!(match self.redistribution {
            Redistribution::None => "none",
            Redistribution::Nonzeros => "nonzeros",
            Redistribution::Momentum => "momentum",
        });
        config
    }
}

impl MovePlan {
    /// Whether the pattern moves at step `step`, from 0: first at begin, then every so many steps, last at end.
    pub fn is_due(&self, step: u64) -> bool {
        (self.begin..=self.end).contains(&step) && (step - self.begin).is_multiple_of(self.every)
    }

    /// Whether there is no update at step `step` or after it.
    pub fn is_over(&self, step: u64) -> bool {
        step > self.end
    }

    /// The share of stored weights that move at step `step`.
    pub fn fraction(&self, step: u64) -> f64 {
        let length = (self.end - self.begin) as f64;
        match self.anneal {
            Anneal::Constant => self.fraction,
            _ if length == 0.0 => self.fraction,
            Anneal::Cosine => {
                let t = (step as f64).min(length);
                self.fraction / 2.0 * (1.0 + (std::f64::consts::PI * t / length).cos())
            }
            Anneal::Exponential(power) => {
                let left = 1.0 - step.saturating_sub(self.begin) as f64 / length;
                self.fraction * left.max(0.0).powf(power)
            }
        }
    }
}

/// Which places of a pattern change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// The places afterwards, sorted row-major.
    pub positions: Vec<(u32, u32)>,
    /// For each of them, the place's index before; none for a new one.
    pub from: Vec<Option<u32>>,
    /// Indices of the places given up, ascending; as many as are new, unless places move between layers.
    pub dropped: Vec<u32>,
}

/// Where new places are, with what it takes to find them.
pub enum Search<'a> {
    /// Anywhere.
    Random(&'a mut Rng),
    /// Where the score is greatest. The function fills in the scores of the grid rows asked for, `[rows, grid columns]`: the
    /// magnitude of the gradient of a weight, or the norm of a block's.
    Largest(&'a mut dyn FnMut(Range<usize>, &mut [f64])),
}

/// Grid places whose scores are asked for at a time: 32 MiB of them.
const CHUNK: usize = 1 << 22;

/// Moves `count` of the places of `pattern`, whose stored weights are `values`: those of the smallest magnitude, or of the
/// smallest norm of a block, give theirs up.
///
/// Among equals the lowest index is pruned first, and the lowest is grown first. With `regrow` a place just given up may be
/// taken again, and then counts as never moved. Where fewer places are free than are asked for, as many move. Memory: a few
/// words for each stored place; no array of the size of the grid.
///
/// # Panics
///
/// When `values` does not fit the pattern.
pub fn move_places(
    pattern: &Pattern,
    values: &[f32],
    count: usize,
    regrow: bool,
    search: Search<'_>,
) -> Move {
    assert_eq!(values.len(), pattern.values_len(), "length of the values");
    let nnz = pattern.nnz();
    let (grid_rows, grid_cols) = pattern.grid();
    let free = grid_rows * grid_cols - nnz;
    let count = if regrow { count.min(nnz) } else { count.min(nnz).min(free) };
    let per_block = pattern.block.0 * pattern.block.1;
    let norms: Vec<f64> = values.chunks_exact(per_block).map(norm).collect();
    let mut is_kept = vec![false; nnz];
    keep_largest(&norms, nnz - count).into_iter().for_each(|slot| is_kept[slot] = true);
    regrow_places(pattern, is_kept, count, regrow, search)
}

/// The move of a pattern whose stored places stay where `is_kept` says so, and that takes `count` new ones: among equals the
/// lowest index first.
///
/// # Panics
///
/// When `is_kept` does not fit the pattern, or fewer than `count` places are free.
pub fn regrow_places(
    pattern: &Pattern,
    mut is_kept: Vec<bool>,
    count: usize,
    regrow: bool,
    search: Search<'_>,
) -> Move {
    let nnz = pattern.nnz();
    assert_eq!(is_kept.len(), nnz, "a flag for each stored place");
    let (grid_rows, grid_cols) = pattern.grid();
    let flat = |slot: usize| {
        let (row, col) = pattern.positions[slot];
        row as usize * grid_cols + col as usize
    };
    // The places that cannot be taken, ascending.
    let taken: Vec<usize> = (0..nnz).filter(|&slot| !regrow || is_kept[slot]).map(flat).collect();
    let grown = match search {
        Search::Random(rng) => {
            let free = grid_rows * grid_cols - taken.len();
            let ranks = rng.sample(free as u64, count);
            nth_free(&taken, ranks.into_iter().map(|rank| rank as usize))
        }
        Search::Largest(scores) => largest_free(&taken, (grid_rows, grid_cols), count, scores),
    };

    assert_eq!(grown.len(), count, "new places");
    let kept = (0..nnz).filter(|&slot| is_kept[slot]);
    let mut places: Vec<(usize, Option<u32>)> = kept.map(|slot| (flat(slot), Some(slot as u32))).collect();
    let slot_of = |at: usize| {
        let place = ((at / grid_cols) as u32, (at % grid_cols) as u32);
        pattern.positions.binary_search(&place).ok()
    };
    for at in grown {
        let back = slot_of(at);
        back.iter().for_each(|&slot| is_kept[slot] = true);
        places.push((at, back.map(|slot| slot as u32)));
    }
    places.sort_unstable();
    Move {
        positions: places.iter().map(|&(at, _)| ((at / grid_cols) as u32, (at % grid_cols) as u32)).collect(),
        from: places.iter().map(|&(_, from)| from).collect(),
        dropped: (0..nnz).filter(|&slot| !is_kept[slot]).map(|slot| slot as u32).collect(),
    }
}

fn norm(block: &[f32]) -> f64 {
    match block {
        [one] => f64::from(one.abs()),
        _ => block.iter().map(|&w| f64::from(w) * f64::from(w)).sum::<f64>().sqrt(),
    }
}

/// The places of the given ranks, ascending, among those not in `taken`, ascending.
fn nth_free(taken: &[usize], ranks: impl Iterator<Item = usize>) -> Vec<usize> {
    let mut passed = 0;
    ranks
        .map(|rank| {
            while passed < taken.len() && taken[passed] <= rank + passed {
                passed += 1;
            }
            rank + passed
        })
        .collect()
}

/// The `count` places of the greatest scores that are not in `taken`.
fn largest_free(
    taken: &[usize],
    (rows, cols): (usize, usize),
    count: usize,
    scores: &mut dyn FnMut(Range<usize>, &mut [f64]),
) -> Vec<usize> {
    if count == 0 {
        return Vec::new();
    }
    // Greatest score first, then the lowest index: a total order, so that no algorithm shows in the result.
    let before = |a: &(f64, usize), b: &(f64, usize)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    let mut best: Vec<(f64, usize)> = Vec::new();
    let step = (CHUNK / cols).max(1);
    let mut chunk = vec![0.0; step.min(rows) * cols];
    let mut next = 0;
    for start in (0..rows).step_by(step) {
        let range = start..(start + step).min(rows);
        let chunk = &mut chunk[..range.len() * cols];
        scores(range, chunk);
        for (i, &score) in chunk.iter().enumerate() {
            let at = start * cols + i;
            if next < taken.len() && taken[next] == at {
                next += 1;
                continue;
            }
            best.push((score, at));
        }
        if best.len() > count {
            best.select_nth_unstable_by(count - 1, before);
            best.truncate(count);
        }
    }
    best.into_iter().map(|(_, at)| at).collect()
}
