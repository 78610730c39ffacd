//! Swin Transformer V2 (Liu et al., 2022): attention within windows of a map, every other block's shifted by half a window;
//! between stages four neighbouring tokens become one of twice the width.
//!
//! Names and shapes follow timm. Norms come last in a branch and start at zero. Other first values: linear weights truncated
//! normal 0.02, biases zero; the patch embedding uniform ±1/√fan_in; scales of cosines 10. Cost of attention: `2 · window²` per
//! token and channel, of a block's linear layers `12 · dim`.

use super::{below_one, checked, hidden, json, patches, positive, read, value_error};
use crate::{ActivationConfig, Family, Group, Model, Result, Variant};
use lacewing_core::Init;
use lacewing_engine::ops;
use lacewing_engine::{Cx, EngineError, Tensor, Var};
use lacewing_nn::{
    AttentionOptions, BiasInit, DropPath, LayerNorm, Linear, LinearOptions, Mlp, MlpOptions, ModelBuilder,
    PatchEmbed, PatchMerging, RelativePositions, ResidualBlock, ResidualStream, Scope, WindowAttention,
    WindowAttentionOptions, run_blocks,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::Arc;

/// The row of the table.
pub(super) static FAMILY: Family = Family {
    name: "swin_v2",
    about: "Swin Transformer V2: attention within shifted windows, four stages",
    variants: &[
        Variant {
            name: "swinv2_tiny_window8_256",
            about: "96 wide at first, 12 deep, windows of 8×8",
            config: || json(tiny(8)),
        },
        Variant {
            name: "swinv2_small_window8_256",
            about: "96 wide at first, 24 deep, windows of 8×8",
            config: || json(small(8)),
        },
        Variant {
            name: "swinv2_base_window8_256",
            about: "128 wide at first, 24 deep, windows of 8×8",
            config: || json(base(8)),
        },
        Variant {
            name: "swinv2_tiny_window16_256",
            about: "96 wide at first, 12 deep, windows of 16×16",
            config: || json(tiny(16)),
        },
        Variant {
            name: "swinv2_small_window16_256",
            about: "96 wide at first, 24 deep, windows of 16×16",
            config: || json(small(16)),
        },
        Variant {
            name: "swinv2_base_window16_256",
            about: "128 wide at first, 24 deep, windows of 16×16",
            config: || json(base(16)),
        },
    ],
    groups: &[
        Group { name: "qkv", pattern: "layers.*.blocks.*.attn.{qkv,q,k,v}" },
        Group { name: "proj", pattern: "layers.*.blocks.*.attn.proj" },
        Group { name: "fc1", pattern: "layers.*.blocks.*.mlp.fc1" },
        Group { name: "fc2", pattern: "layers.*.blocks.*.mlp.fc2" },
        Group { name: "attn", pattern: "layers.*.blocks.*.attn.*" },
        Group { name: "mlp", pattern: "layers.*.blocks.*.mlp.*" },
        Group { name: "downsample", pattern: "layers.*.downsample.reduction" },
        Group { name: "head", pattern: "head.fc" },
        Group { name: "patch_embed", pattern: "patch_embed.proj" },
    ],
    build,
    check: |values| read::<SwinV2Config>(values).map(drop),
};

/// Every key of the family.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwinV2Config {
    /// Height and width of an image.
    pub image_size: usize,
    /// Height and width of a patch.
    pub patch_size: usize,
    /// Channels of an image.
    pub channels: usize,
    /// Classes.
    pub n_classes: usize,
    /// Width of the first stage; each further one is twice as wide.
    pub dim: usize,
    /// Blocks of each stage.
    pub depths: Vec<usize>,
    /// Attention heads in each stage.
    pub heads: Vec<usize>,
    /// Height and width of a window in tokens; a smaller map is one window.
    pub window_size: usize,
    /// Hidden width of the MLPs over that of their stage.
    pub mlp_ratio: f64,
    /// Whether q and v have a bias; k has none.
    pub qkv_bias: bool,
    /// Whether q, k and v are three layers.
    pub split_qkv: bool,
    /// Added to the variance in norms.
    pub norm_eps: f64,
    /// Between the layers of the MLPs.
    pub activation: ActivationConfig,
    /// Probability of zero after the attention's projection and each layer of the MLPs.
    pub dropout: f64,
    /// Probability of dropping a branch of the last block; it grows linearly from 0 in the first.
    pub drop_path: f64,
    /// Whether blocks are run again in the backward pass instead of keeping their activations.
    pub recompute: bool,
}

fn tiny(window_size: usize) -> SwinV2Config {
    SwinV2Config {
        image_size: 256,
        patch_size: 4,
        channels: 3,
        n_classes: 1000,
        dim: 96,
        depths: vec![2, 2, 6, 2],
        heads: vec![3, 6, 12, 24],
        window_size,
        mlp_ratio: 4.0,
        qkv_bias: true,
        split_qkv: false,
        norm_eps: 1e-5,
        activation: "gelu".into(),
        dropout: 0.0,
        drop_path: 0.1,
        recompute: false,
    }
}

fn small(window_size: usize) -> SwinV2Config {
    SwinV2Config { depths: vec![2, 2, 18, 2], ..tiny(window_size) }
}

fn base(window_size: usize) -> SwinV2Config {
    SwinV2Config { dim: 128, heads: vec![4, 8, 16, 32], ..small(window_size) }
}

/// The last stage is then 128 times as wide as the first.
const MAX_STAGES: usize = 8;
const STD: f64 = 0.02;

#[derive(Debug)]
struct SwinV2 {
    config: SwinV2Config,
    patch_embed: PatchEmbed,
    patch_norm: LayerNorm,
    stages: Vec<Stage>,
    norm: LayerNorm,
    head: Linear,
}

#[derive(Debug)]
struct Stage {
    downsample: Option<PatchMerging>,
    blocks: Vec<Arc<dyn ResidualBlock>>,
}

/// Attention and MLP, each with a norm behind it, added to the residual stream.
#[derive(Debug)]
struct SwinBlock {
    attn: WindowAttention,
    norm1: LayerNorm,
    mlp: Mlp,
    norm2: LayerNorm,
    drop_path: DropPath,
}

fn build(values: &Value, builder: &mut ModelBuilder) -> Result<Box<dyn Model>> {
    let config: SwinV2Config = checked(values);
    let SwinV2Config { image_size, patch_size, channels, n_classes, dim, norm_eps, .. } = config;
    positive(&[("channels", channels), ("n_classes", n_classes), ("dim", dim)])?;
    positive(&[("window_size", config.window_size)])?;
    below_one(&[("dropout", config.dropout), ("drop_path", config.drop_path)])?;
    let n_stages = config.depths.len();
    if !(1..=MAX_STAGES).contains(&n_stages) || config.depths.contains(&0) {
        let expected = format!("1 to {MAX_STAGES} stages of at least one block");
        return Err(value_error("depths", expected, format!("{:?}", config.depths)));
    }
    if config.heads.len() != n_stages {
        let expected = format!("a number for each of {n_stages} stages");
        return Err(value_error("heads", expected, format!("{:?}", config.heads)));
    }
    let n_patches = patches(image_size, patch_size)?;
    let linear = LinearOptions {
        init: Init::TruncNormal { std: STD },
        bias_init: BiasInit::Zeros,
        ..LinearOptions::default()
    };

    let mut root = builder.root();
    let patch = (channels, patch_size, dim);
    let patch_embed = PatchEmbed::new(&mut root, "patch_embed", patch, n_patches, LinearOptions::default())?;
    let patch_norm = LayerNorm::new(&mut root.scope("patch_embed"), "norm", dim, norm_eps)?;
    let (mut side, mut first, mut stages) = (image_size / patch_size, 0, Vec::with_capacity(n_stages));
    for stage in 0..n_stages {
        let mut scope = root.scope(&format!("layers.{stage}"));
        let downsample = if stage == 0 {
            None
        } else {
            if !side.is_multiple_of(2) {
                let expected = format!("a size whose map is even before stage {stage}, where it is {side}");
                return Err(value_error("image_size", expected, image_size));
            }
            let mut scope = scope.scope("downsample");
            let merging = PatchMerging::new(&mut scope, side, dim << (stage - 1), norm_eps, linear)?;
            side /= 2;
            Some(merging)
        };
        let blocks = blocks(&mut scope.with_rows(side * side), &config, (stage, first), side, linear)?;
        first += config.depths[stage];
        stages.push(Stage { downsample, blocks });
    }
    let width = dim << (n_stages - 1);
    let norm = LayerNorm::new(&mut root, "norm", width, norm_eps)?;
    let head = root.scope("head").linear("fc", width, n_classes, linear)?;
    Ok(Box::new(SwinV2 { config, patch_embed, patch_norm, stages, norm, head }))
}

/// The blocks of `stage`, of which the first is block `first` of the model, on a map of `side × side` tokens.
fn blocks(
    scope: &mut Scope<'_>,
    config: &SwinV2Config,
    (stage, first): (usize, usize),
    side: usize,
    linear: LinearOptions,
) -> Result<Vec<Arc<dyn ResidualBlock>>> {
    let &SwinV2Config { split_qkv, qkv_bias, dropout, norm_eps, drop_path, .. } = config;
    let (dim, depth) = (config.dim << stage, config.depths.iter().sum());
    let window = config.window_size.min(side);
    if !side.is_multiple_of(window) {
        let expected = format!("a divisor of {side}, the side of the map in stage {stage}");
        return Err(value_error("window_size", expected, config.window_size));
    }
    let hidden = hidden("mlp_ratio", config.mlp_ratio, dim)?;
    let activation = config.activation.nonlinearity()?;
    let attention =
        AttentionOptions { dim, heads: config.heads[stage], split_qkv, qkv_bias, dropout, linear };
    let positions = RelativePositions::new(scope, window)?;
    let block = |at: usize| {
        let mut scope = scope.scope(&format!("blocks.{at}"));
        // A map that is one window has nothing to be shifted to.
        let shift = if at.is_multiple_of(2) || window == side { 0 } else { window / 2 };
        let attn = WindowAttentionOptions { attention, side, window, shift };
        let mlp = MlpOptions { dim, hidden, activation, dropout, linear };
        let block = SwinBlock {
            attn: WindowAttention::new(&mut scope.scope("attn"), attn, &positions)?,
            norm1: LayerNorm::zeros(&mut scope, "norm1", dim, norm_eps)?,
            mlp: Mlp::new(&mut scope.scope("mlp"), mlp)?,
            norm2: LayerNorm::zeros(&mut scope, "norm2", dim, norm_eps)?,
            drop_path: DropPath::linear(drop_path, first + at, depth),
        };
        Ok(Arc::new(block) as Arc<dyn ResidualBlock>)
    };
    (0..config.depths[stage]).map(block).collect()
}

impl ResidualBlock for SwinBlock {
    fn forward(&self, cx: &Cx, stream: &mut ResidualStream) -> Result<(), EngineError> {
        let y = self.attn.forward(cx, &stream.value(cx)?)?;
        stream.add(cx, self.norm1.forward(cx, &y)?, self.drop_path.scale(cx, stream.batch())?)?;
        let y = self.mlp.forward(cx, &stream.value(cx)?)?;
        stream.add(cx, self.norm2.forward(cx, &y)?, self.drop_path.scale(cx, stream.batch())?)
    }
}

impl Model for SwinV2 {
    fn forward(&self, cx: &Cx, images: &Tensor) -> Result<Var, EngineError> {
        // A map of another shape may have as many tokens.
        let [channels, height, width] = self.image_shape();
        if !matches!(images.shape(), [_, rest @ ..] if rest == [channels, height, width]) {
            let expected = format!("[batch, {channels}, {height}, {width}]");
            let got = images.shape().to_vec();
            return Err(EngineError::Shape { op: "swin_v2", operand: "images", expected, got });
        }
        let mut x = self.patch_norm.forward(cx, &self.patch_embed.forward(cx, images)?)?;
        for Stage { downsample, blocks } in &self.stages {
            if let Some(merging) = downsample {
                x = merging.forward(cx, &x)?;
            }
            x = run_blocks(cx, x, blocks, self.config.recompute)?.finish(cx)?;
        }
        let pooled = ops::mean_tokens(cx, &self.norm.forward(cx, &x)?)?;
        self.head.forward(cx, &pooled)
    }

    fn image_shape(&self) -> [usize; 3] {
        [self.config.channels, self.config.image_size, self.config.image_size]
    }

    fn n_classes(&self) -> usize {
        self.config.n_classes
    }
}
