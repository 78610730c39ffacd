//! Learning-rate schedules: pure functions of the optimizer step, so a resumed run needs no state.
//!
//! One file a shape and one row in [`SHAPES`]. With peak p, floor f, w warm-up steps and T steps in all,
//! `lr(t) = p (t + 1) / w` for `t < w`, then `f + (p - f) · weight((t - w) / (T - w))`.

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

/// The learning rate of a whole run.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// How it falls.
    pub shape: Shape,
    /// The learning rate after warm-up.
    pub peak: f64,
    /// The learning rate it falls to.
    pub floor: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// Steps of the whole run, warm-up included.
    pub total_steps: u64,
}

impl Schedule {
    /// The learning rate of step `step`, the first being 0.
    pub fn lr(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.peak * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let (done, span) = (step - self.warmup_steps, self.total_steps.saturating_sub(self.warmup_steps));
        let progress = (done as f64 / span.max(1) as f64).min(1.0);
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
        Schedule { shape, peak: 1.0, floor: 0.25, warmup_steps: 4, total_steps: 12 }
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
        let shape = shape("cosine").expect("a row of the table");
        let schedule = Schedule { shape, peak: 1.0, floor: 0.0, warmup_steps: 10, total_steps: 5 };
        assert_eq!((schedule.lr(4), schedule.lr(10)), (0.5, 1.0));
        assert_eq!(Schedule { warmup_steps: 0, total_steps: 0, ..schedule }.lr(0), 1.0);
    }
}
