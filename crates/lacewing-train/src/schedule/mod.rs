//! Learning-rate schedules: pure functions of the optimizer step, so a resumed run needs no state.
//!
//! One file a shape and one row in [`SHAPES`]. Time `t` is counted in steps or in whole epochs. With peak p, floor f, warm-up
//! w and length T in that unit, `lr(t) = p (t + 1) / w` for `t < w`, or `s + (p - s) t / w` where a first rate s is given;
//! then `f + (p - f) · weight((t - w) / (T - w))`, or `weight(t / T)` where warm-up hides the start of the curve. From T on
//! the rate stays where it is.

mod constant;
mod cosine;
mod linear;

/// Every shape, in the order they are listed.
pub const SHAPES: &[Shape] = &[cosine::SHAPE, linear::SHAPE, constant::SHAPE];

/// How a learning rate falls after its warm-up: a row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// The name in recipes.
    pub name: &'static str,
    /// One line for lists.
    pub about: &'static str,
    /// Progress 0 to 1 → weight of the peak against the floor, 1 at the start.
    pub weight: fn(f64) -> f64,
}

/// When the learning rate changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tick {
    /// With every optimizer step.
    Step,
    /// At the first step that begins in an epoch.
    Epoch {
        /// Batches an epoch.
        batches: u64,
        /// Batches a step.
        accumulate: u64,
    },
}

impl Tick {
    /// The time at which step `step`, from 0, is taken.
    fn of(self, step: u64) -> u64 {
        match self {
            Self::Step => step,
            Self::Epoch { batches, accumulate } => step * accumulate / batches,
        }
    }
}

/// The learning rate of a whole run.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// How it falls.
    pub shape: Shape,
    /// The learning rate after warm-up.
    pub peak: f64,
    /// The learning rate it falls to.
    pub floor: f64,
    /// The learning rate of the first tick; without it warm-up rises from 0, which no step gets to see.
    pub warmup_start: Option<f64>,
    /// Ticks of linear warm-up.
    pub warmup: f64,
    /// Whether the curve begins after warm-up; else warm-up hides its start.
    pub warmup_prefix: bool,
    /// Ticks to the end of the curve, warm-up included.
    pub total: f64,
    /// The unit of all this.
    pub tick: Tick,
}

impl Schedule {
    /// The learning rate of step `step`, the first being 0.
    pub fn lr(&self, step: u64) -> f64 {
        let t = self.tick.of(step) as f64;
        if t < self.warmup {
            return match self.warmup_start {
                None => self.peak * (t + 1.0).min(self.warmup) / self.warmup,
                Some(start) => start + (self.peak - start) * t / self.warmup,
            };
        }
        let hidden = if self.warmup_prefix { self.warmup } else { 0.0 };
        let progress = ((t - hidden) / (self.total - hidden).max(1.0)).min(1.0);
        self.floor + (self.peak - self.floor) * (self.shape.weight)(progress)
    }
}

/// The shape called `name`.
pub fn shape(name: &str) -> Option<Shape> {
    SHAPES.iter().find(|shape| shape.name == name).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(name: &str) -> Schedule {
        let shape = shape(name).expect("a row of the table");
        Schedule {
            shape,
            peak: 1.0,
            floor: 0.25,
            warmup_start: None,
            warmup: 4.0,
            warmup_prefix: true,
            total: 12.0,
            tick: Tick::Step,
        }
    }

    #[test]
    fn folder_and_table_agree() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/schedule");
        let files = std::fs::read_dir(folder).expect("the folder of this file");
        let mut files: Vec<String> = files
            .map(|entry| {
                entry.expect("a readable folder").path().file_stem().expect("a name").display().to_string()
            })
            .filter(|name| name != "mod")
            .collect();
        files.sort();
        let mut names: Vec<&str> = SHAPES.iter().map(|shape| shape.name).collect();
        names.sort_unstable();
        assert_eq!(files, names);
    }

    #[test]
    fn every_shape_warms_up_and_stays_between_floor_and_peak() {
        for row in SHAPES {
            let schedule = schedule(row.name);
            let rates: Vec<f64> = (0..12).map(|step| schedule.lr(step)).collect();
            assert_eq!(rates[..5], [0.25, 0.5, 0.75, 1.0, 1.0], "{}", row.name);
            assert!(rates[4..].windows(2).all(|pair| pair[1] <= pair[0]), "{}: {rates:?}", row.name);
            assert!(rates[4..].iter().all(|lr| (0.25..=1.0).contains(lr)), "{}: {rates:?}", row.name);
            assert_eq!(schedule.lr(1000), schedule.lr(12), "{}: past the end", row.name);
        }
    }

    #[test]
    fn golden_rates() {
        // Steps 4, 6, 8, 10, 12 are progress 0, 1/4, 1/2, 3/4, 1; cos(π/4) = 1/√2.
        let half = 0.5f64.sqrt() / 2.0;
        let weights = [
            ("cosine", [1.0, 0.5 + half, 0.5, 0.5 - half, 0.0]),
            ("linear", [1.0, 0.75, 0.5, 0.25, 0.0]),
            ("constant", [1.0; 5]),
        ];
        for (name, weights) in weights {
            for (i, weight) in weights.into_iter().enumerate() {
                let got = schedule(name).lr(4 + 2 * i as u64);
                // A handful of roundings of numbers up to 1.
                assert!((got - (0.25 + 0.75 * weight)).abs() <= 8.0 * f64::EPSILON, "{name}: {got}");
            }
        }
    }

    #[test]
    fn a_run_that_is_all_warm_up_or_empty_has_a_rate() {
        let schedule = Schedule { floor: 0.0, warmup: 10.0, total: 5.0, ..schedule("cosine") };
        assert_eq!((schedule.lr(4), schedule.lr(10)), (0.5, 1.0));
        assert_eq!(Schedule { warmup: 0.0, total: 0.0, ..schedule }.lr(0), 1.0);
    }

    #[test]
    fn a_warm_up_from_a_given_rate_begins_with_it() {
        let from = Schedule { warmup_start: Some(0.2), ..schedule("linear") };
        let rates: Vec<f64> = (0..5).map(|step| from.lr(step)).collect();
        for (got, wanted) in rates.into_iter().zip([0.2, 0.4, 0.6, 0.8, 1.0]) {
            assert!((got - wanted).abs() <= 4.0 * f64::EPSILON, "{got} for {wanted}");
        }
        // The start of the curve is hidden: step 4 of 12 is a third of the way down.
        let hidden = Schedule { warmup_prefix: false, ..from };
        assert!((hidden.lr(4) - (1.0 - 0.75 / 3.0)).abs() <= 4.0 * f64::EPSILON);
        assert_eq!((hidden.lr(3), hidden.lr(12)), (from.lr(3), 0.25));
    }

    #[test]
    fn by_epochs_the_rate_changes_where_an_epoch_begins() {
        // Epochs of 5 batches, steps of 2: steps 0 to 2 begin in epoch 0, 3 and 4 in epoch 1, 5 to 7 in epoch 2.
        let tick = Tick::Epoch { batches: 5, accumulate: 2 };
        let by_epochs = Schedule { tick, warmup: 2.5, total: 6.0, ..schedule("linear") };
        let rates: Vec<f64> = (0..8).map(|step| by_epochs.lr(step)).collect();
        assert_eq!(rates, [0.4, 0.4, 0.4, 0.8, 0.8, 1.0, 1.0, 1.0]);
    }
}
