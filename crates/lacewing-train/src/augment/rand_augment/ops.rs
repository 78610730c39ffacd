//! The ops of RandAugment, what a magnitude means to each, and the one that is not PIL's: Cutout.

use super::super::picture::Picture;
use super::super::pipeline::Canvas;
use super::super::random::Draws;
use super::super::resize::RandomFilter;
use super::{affine, enhance, tone};

/// A row of the table.
pub(super) struct Op {
    /// timm's name, without `Increasing`.
    pub(super) name: &'static str,
    /// What a level means to the op: `(level, increasing, sign)`, where `sign` negates every other time.
    pub(super) argument: fn(f64, bool, &mut Sign<'_>) -> f64,
    /// Does it.
    pub(super) apply: fn(&mut Stage<'_>, f64),
}

type Sign<'a> = dyn FnMut(f64) -> f64 + 'a;

/// A picture and what an op may need besides it.
pub(super) struct Stage<'a> {
    pub(super) canvas: &'a mut Canvas,
    pub(super) draws: &'a mut Draws,
    /// The byte a channel that takes the place of what moves in.
    pub(super) fill: &'a [u8],
    pub(super) filter: RandomFilter,
}

/// The op that only some lists hold.
pub(super) const CUTOUT: &str = "Cutout";

/// Every op, [`CUTOUT`] last.
pub(super) const OPS: &[Op] = &[
    Op { name: "AutoContrast", argument: none, apply: |stage, _| tone::auto_contrast(stage.picture()) },
    Op { name: "Equalize", argument: none, apply: |stage, _| tone::equalize(stage.picture()) },
    Op { name: "Invert", argument: none, apply: |stage, _| tone::invert(stage.picture()) },
    Op {
        name: "Rotate",
        argument: |level, _, sign| sign(30.0 * level),
        apply: |stage, degrees| {
            let shape = stage.canvas.picture.shape;
            stage.warp(affine::rotation(degrees, shape.height, shape.width));
        },
    },
    Op {
        name: "Posterize",
        argument: |level, increasing, _| {
            let bits = (4.0 * level).trunc();
            if increasing { 4.0 - bits } else { bits }
        },
        apply: |stage, bits| tone::posterize(stage.picture(), bits),
    },
    Op {
        name: "Solarize",
        argument: |level, increasing, _| {
            let threshold = (256.0 * level).trunc().min(256.0);
            if increasing { 256.0 - threshold } else { threshold }
        },
        apply: |stage, threshold| tone::solarize(stage.picture(), threshold as u16),
    },
    Op {
        name: "SolarizeAdd",
        argument: |level, _, _| (110.0 * level).trunc().min(128.0),
        apply: |stage, add| tone::solarize_add(stage.picture(), add as u8),
    },
    Op {
        name: "Color",
        argument: factor,
        apply: |stage, factor| enhance::color(stage.picture(), factor as f32),
    },
    Op {
        name: "Contrast",
        argument: factor,
        apply: |stage, factor| enhance::contrast(stage.picture(), factor as f32),
    },
    Op {
        name: "Brightness",
        argument: factor,
        apply: |stage, factor| enhance::brightness(stage.picture(), factor as f32),
    },
    Op {
        name: "Sharpness",
        argument: factor,
        apply: |stage, factor| stage.canvas.replace(|from, to| enhance::sharpness(from, factor as f32, to)),
    },
    Op {
        name: "ShearX",
        argument: |level, _, sign| sign(0.3 * level),
        apply: |stage, slope| stage.warp([1.0, slope, 0.0, 0.0, 1.0, 0.0]),
    },
    Op {
        name: "ShearY",
        argument: |level, _, sign| sign(0.3 * level),
        apply: |stage, slope| stage.warp([1.0, 0.0, 0.0, slope, 1.0, 0.0]),
    },
    Op {
        name: "TranslateXRel",
        argument: |level, _, sign| sign(0.45 * level),
        apply: |stage, share| {
            let pixels = share * stage.canvas.picture.shape.width as f64;
            stage.warp([1.0, 0.0, pixels, 0.0, 1.0, 0.0]);
        },
    },
    Op {
        name: "TranslateYRel",
        argument: |level, _, sign| sign(0.45 * level),
        apply: |stage, share| {
            let pixels = share * stage.canvas.picture.shape.height as f64;
            stage.warp([1.0, 0.0, 0.0, 0.0, 1.0, pixels]);
        },
    },
    Op {
        name: CUTOUT,
        argument: |level, _, _| (40.0 * level).floor(),
        apply: |stage, half| {
            let shape = stage.canvas.picture.shape;
            let row = stage.draws.below(shape.height as u32) as usize;
            let column = stage.draws.below(shape.width as u32) as usize;
            cutout(stage.picture(), half as usize, row, column);
        },
    },
];

/// For ops without an argument.
fn none(_: f64, _: bool, _: &mut Sign<'_>) -> f64 {
    0.0
}

/// The factor of an enhancing op: 0.1 to 1.9; increasing, 1 is no change and the level leads away from it, either way.
fn factor(level: f64, increasing: bool, sign: &mut Sign<'_>) -> f64 {
    if increasing { (1.0 + sign(0.9 * level)).max(0.1) } else { 1.8 * level + 0.1 }
}

impl Stage<'_> {
    fn picture(&mut self) -> &mut Picture {
        &mut self.canvas.picture
    }

    /// Moves pixels by [`affine::warp`].
    fn warp(&mut self, matrix: [f64; 6]) {
        let filter = self.filter.draw(self.draws);
        self.canvas.replace(|from, to| affine::warp(from, matrix, filter, self.fill, to));
    }
}

/// Black from `half` pixels before `(row, column)` to `half - 1` behind it each way, as far as there is a picture.
pub(super) fn cutout(picture: &mut Picture, half: usize, row: usize, column: usize) {
    let shape = picture.shape;
    let (rows, end) = (row.saturating_sub(half), (column + half).min(shape.width));
    for plane in picture.pixels.chunks_exact_mut(shape.plane()) {
        for line in plane.chunks_exact_mut(shape.width).take(row + half).skip(rows) {
            line[column.saturating_sub(half)..end].fill(0);
        }
    }
}
