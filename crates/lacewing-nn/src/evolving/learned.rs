//! Learned masks: scores of places, and the mask they choose.

use super::{Effective, Evolving, Kind, block_norms, effective_of, pattern_of};
use crate::Result;
use crate::module::Scope;
use lacewing_core::{
    Choice, Granularity, LearnSchedule, PRODUCT_START, Pattern, Penalty, Schedule, Score, choose_places,
};
use lacewing_engine::ops::{ScoreStep, mask_blocks, score_blocks, score_step};
use lacewing_engine::{DType, EngineError, ParamId, Params, Tensor};

/// A learned mask: values of the model that the optimizer does not train.
#[derive(Debug)]
pub(crate) struct Learned {
    pub(crate) effective: Effective,
    /// Of places, of rows or of columns; of rows and of columns where a place's score is the product.
    scores: Vec<Scores>,
    /// `[grid rows, grid columns]`: 1 for each place that counts, 0 for the others.
    mask: ParamId,
    bias: Option<BiasMask>,
    /// How many values the model has for all of it.
    pub(crate) values: usize,
}

/// Scores of equal blocks of the weight: places, or whole rows or columns of them.
#[derive(Debug)]
struct Scores {
    id: ParamId,
    /// Rows and columns of the weight that one score is for.
    block: (usize, usize),
    /// Adam's moments of them, where they are trained.
    moments: Option<[ParamId; 2]>,
}

/// Which biases count.
#[derive(Debug)]
struct BiasMask {
    /// `[grid rows, 1]`: 1 for each row of places with one that counts.
    mask: ParamId,
    effective: Effective,
}

/// What scores are trained with at a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScoreRate {
    /// The recipe's learning rate as a share of its peak.
    pub share: f64,
    /// Optimizer steps, with this one.
    pub steps: u64,
    /// The penalty on scores, and its weight.
    pub penalty: (Penalty, f64),
}

impl Learned {
    /// Adds scores and a mask of all places to `scope`, for a layer with a bias or without.
    pub(crate) fn build(
        scope: &mut Scope<'_>,
        schedule: &LearnSchedule,
        pattern: &Pattern,
        has_bias: bool,
    ) -> Result<Self> {
        let ((rows, cols), block) = (pattern.grid(), pattern.block);
        let mut values = 0;
        let mut constant = |name: &str, [rows, cols]: [usize; 2], value: f32| {
            values += rows * cols;
            scope.constant(name, &[rows, cols], || vec![value; rows * cols])
        };
        let mut scores =
            |name: &str, shape: [usize; 2], block: (usize, usize), start: f64| -> Result<Scores> {
                let id = constant(name, shape, start as f32)?;
                let mut moment = |which: &str| constant(&format!("{name}_{which}_moment"), shape, 0.0);
                let moments = match schedule.score {
                    Score::Trained { .. } => Some([moment("first")?, moment("second")?]),
                    Score::Movement | Score::Magnitude => None,
                };
                Ok(Scores { id, block, moments })
            };
        let (row, column) = ((block.0, pattern.n_in), (pattern.n_out, block.1));
        let scores = match schedule.granularity {
            Granularity::Places => vec![scores("scores", [rows, cols], block, 0.0)?],
            Granularity::Rows => vec![scores("scores", [rows, 1], row, 0.0)?],
            Granularity::Columns => vec![scores("scores", [1, cols], column, 0.0)?],
            Granularity::RowsAndColumns => vec![
                scores("row_scores", [rows, 1], row, PRODUCT_START)?,
                scores("column_scores", [1, cols], column, PRODUCT_START)?,
            ],
        };
        let mask = constant("mask", [rows, cols], 1.0)?;
        let bias = match schedule.mask_bias && has_bias {
            true => {
                let mask = constant("bias_mask", [rows, 1], 1.0)?;
                Some(BiasMask { mask, effective: Effective::new() })
            }
            false => None,
        };
        Ok(Self { effective: Effective::new(), scores, mask, bias, values })
    }

    /// The biases that count, where that is not all of them.
    pub(crate) fn effective_bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()?.effective.get()
    }

    /// Takes the gradient of the effective weights into what the scores are trained by: −Σ g w over a score's block, each product
    /// times the score of the other vector where a place's is the product of two.
    fn gather(&self, params: &Params, gradient: &Tensor, weight: &Tensor) -> Result<(), EngineError> {
        for (at, own) in self.scores.iter().enumerate() {
            // Constants have a gradient that nothing else writes: zeros, as a step leaves it.
            let movement = params.gradient(own.id)?;
            let other = self.scores.iter().enumerate().find(|(other, _)| *other != at);
            let Some((_, other)) = other else {
                score_blocks(gradient, weight, own.block, &movement)?;
                continue;
            };
            let scaled = Tensor::empty(&params.device(), DType::F32, weight.shape())?;
            mask_blocks(gradient, &params.master(other.id), other.block, &scaled)?;
            score_blocks(&scaled, weight, own.block, &movement)?;
        }
        Ok(())
    }
}

impl Evolving {
    /// Makes the effective weights under the learned mask in `by`, shaped as the masters, and the biases that count.
    ///
    /// # Errors
    ///
    /// What the device reports. Nothing is done to a layer without a learned mask.
    pub fn let_through(&self, params: &Params, by: &Tensor) -> Result<(), EngineError> {
        let Kind::Learned(learned) = &self.kind else { return Ok(()) };
        let out = self.effective(&learned.effective, params)?;
        mask_blocks(&params.master(self.weight), &params.view(by, learned.mask), self.block(), out)?;
        let (Some(bias), Some(masked)) = (self.bias, &learned.bias) else { return Ok(()) };
        let out = effective_of(&masked.effective, params, bias)?;
        self.mask_biases(&params.master(bias), &params.view(by, masked.mask), out)
    }

    /// `out = values` of rows that count, `[n_out]` each.
    fn mask_biases(&self, values: &Tensor, mask: &Tensor, out: &Tensor) -> Result<(), EngineError> {
        let column = [values.len(), 1];
        mask_blocks(&values.reshape(&column)?, mask, (self.block().0, 1), &out.reshape(&column)?)
    }

    /// Takes the gradient of the effective weights into the scores, and makes it that of the stored ones: none for weights and
    /// biases that do not count. Before clipping.
    ///
    /// # Errors
    ///
    /// What the device reports. Nothing is done to a layer without a learned mask.
    pub fn learn(&self, params: &Params, rate: ScoreRate) -> Result<(), EngineError> {
        let (Kind::Learned(learned), Schedule::Learns(schedule)) = (&self.kind, &self.schedule) else {
            return Ok(());
        };
        let (weight, gradient) = (params.master(self.weight), params.gradient(self.weight)?);
        match schedule.score {
            Score::Movement => {
                for scores in &learned.scores {
                    score_blocks(&gradient, &weight, scores.block, &params.master(scores.id))?;
                }
            }
            Score::Trained { lr } => {
                learned.gather(params, &gradient, &weight)?;
                for scores in &learned.scores {
                    train(params, scores, lr, rate)?;
                }
            }
            Score::Magnitude => {}
        }
        mask_blocks(&gradient, &params.master(learned.mask), self.block(), &gradient)?;
        let (Some(bias), Some(masked)) = (self.bias, &learned.bias) else { return Ok(()) };
        let gradient = params.gradient(bias)?;
        self.mask_biases(&gradient, &params.master(masked.mask), &gradient)
    }

    /// Chooses the learned mask anew by the scores.
    ///
    /// # Errors
    ///
    /// What the device reports. Nothing is done to a layer without a learned mask.
    pub fn choose_mask(&self, params: &Params, choice: Choice) -> Result<(), EngineError> {
        let (Kind::Learned(learned), Schedule::Learns(schedule)) = (&self.kind, &self.schedule) else {
            return Ok(());
        };
        let structure = self.structure();
        let (rows, cols) = pattern_of(&*structure).grid();
        let mut scores = Vec::new();
        if schedule.score == Score::Magnitude {
            let mut norms = vec![0.0; rows * cols];
            block_norms(pattern_of(&*structure), &params.master(self.weight).to_f32()?, &mut norms);
            scores = norms_of(schedule.granularity, norms, cols);
        } else {
            for vector in &learned.scores {
                scores.push(params.master(vector.id).to_f32()?.into_iter().map(f64::from).collect());
            }
        }
        let counts: Vec<bool> = match (schedule.granularity, &scores[..]) {
            (Granularity::RowsAndColumns, [of_rows, of_columns]) => {
                let products =
                    of_rows.iter().flat_map(|row| of_columns.iter().map(move |column| row * column));
                choose_places(&products.collect::<Vec<f64>>(), choice)
            }
            (granularity, vectors) => {
                let chosen = choose_places(&vectors[0], choice);
                let score_of = |at: usize| match granularity {
                    Granularity::Rows => at / cols,
                    Granularity::Columns => at % cols,
                    _ => at,
                };
                (0..rows * cols).map(|at| chosen[score_of(at)]).collect()
            }
        };
        let factors =
            |counts: &[bool]| counts.iter().map(|&c| if c { 1.0 } else { 0.0 }).collect::<Vec<f32>>();
        params.master(learned.mask).set_f32(&factors(&counts))?;
        let Some(bias) = &learned.bias else { return Ok(()) };
        let used: Vec<bool> = counts.chunks(cols).map(|row| row.contains(&true)).collect();
        params.master(bias.mask).set_f32(&factors(&used))
    }

    /// The biases under the learned mask in `by`, shaped as the masters; none where all of them count.
    ///
    /// # Errors
    ///
    /// What the device reports.
    pub fn learned_bias(&self, params: &Params, by: &Tensor) -> Result<Option<Vec<f32>>, EngineError> {
        let Kind::Learned(learned) = &self.kind else { return Ok(None) };
        let (Some(bias), Some(masked)) = (self.bias, &learned.bias) else { return Ok(None) };
        let (mut biases, mask) = (params.master(bias).to_f32()?, params.view(by, masked.mask).to_f32()?);
        let rows = self.block().0;
        biases.iter_mut().enumerate().for_each(|(row, bias)| *bias *= mask[row / rows]);
        Ok(Some(biases))
    }

    /// Which places of the grid count by the learned mask in `by`, shaped as the masters; none without a learned mask.
    ///
    /// # Errors
    ///
    /// What the device reports.
    pub fn learned_mask(&self, params: &Params, by: &Tensor) -> Result<Option<Vec<bool>>, EngineError> {
        let Kind::Learned(learned) = &self.kind else { return Ok(None) };
        let mask = params.view(by, learned.mask).to_f32()?;
        Ok(Some(mask.into_iter().map(|factor| factor != 0.0).collect()))
    }
}

/// One step of scores by what was gathered for them. The penalty is the mean over a vector of scores.
fn train(params: &Params, scores: &Scores, lr: f64, rate: ScoreRate) -> Result<(), EngineError> {
    let movement = params.gradient(scores.id)?;
    let (penalty, weight) = rate.penalty;
    let step = ScoreStep {
        lr: (lr * rate.share) as f32,
        steps: rate.steps,
        penalty: (weight / movement.len() as f64) as f32,
        shift: penalty.shift() as f32,
    };
    let [first, second] = scores.moments.expect("trained scores have moments").map(|id| params.master(id));
    score_step(&params.master(scores.id), &movement, [&first, &second], step)
}

/// What has a score, of the norms of places `[rows, cols]`: the places, the rows, the columns, or the rows and the columns.
fn norms_of(granularity: Granularity, norms: Vec<f64>, cols: usize) -> Vec<Vec<f64>> {
    let root = |squares: f64| squares.sqrt();
    let of_rows = || norms.chunks(cols).map(|row| root(row.iter().map(|norm| norm * norm).sum())).collect();
    let of_columns = || {
        let column = |at: usize| norms.iter().skip(at).step_by(cols).map(|norm| norm * norm).sum();
        (0..cols).map(|at| root(column(at))).collect()
    };
    match granularity {
        Granularity::Rows => vec![of_rows()],
        Granularity::Columns => vec![of_columns()],
        Granularity::RowsAndColumns => vec![of_rows(), of_columns()],
        Granularity::Places => vec![norms],
    }
}
