//! MLP-Mixer (Tolstikhin et al., 2021): one MLP mixes tokens, one mixes channels.
//!
//! Names and shapes follow timm. First values: linear weights Xavier uniform, MLP biases normal 1e-6, the stem normal
//! 1/√fan_in (LeCun) with a zero bias, the head zero.

use super::{below_one, checked, hidden, json, patches, positive, read};
use crate::{ActivationConfig, Family, Group, Model, Result, Variant};
use lacewing_core::Init;
use lacewing_engine::{Cx, EngineError, Tensor, Var, ops};
use lacewing_nn::{
    BiasInit, DropPath, LayerNorm, Linear, LinearOptions, Mlp, MlpOptions, ModelBuilder, PatchEmbed,
    ResidualBlock, ResidualStream, run_blocks,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::Arc;

/// The row of the table.
pub(super) static FAMILY: Family = Family {
    name: "mlp_mixer",
    about: "MLP-Mixer: pre-norm MLPs over tokens and over channels of patches",
    variants: &[
        Variant { name: "mixer_s16_224", about: "512 wide, 8 deep", config: || json(imagenet(512, 8)) },
        Variant { name: "mixer_b16_224", about: "768 wide, 12 deep", config: || json(imagenet(768, 12)) },
        Variant { name: "mixer_l16_224", about: "1024 wide, 24 deep", config: || json(imagenet(1024, 24)) },
        Variant {
            name: "mixer_s4_32",
            about: "512 wide, 8 deep, 32×32 images",
            config: || json(small(512, 8)),
        },
    ],
    groups: &[
        Group { name: "token_mlp", pattern: "blocks.*.mlp_tokens.*" },
        Group { name: "channel_mlp", pattern: "blocks.*.mlp_channels.*" },
        Group { name: "mlp", pattern: "blocks.*.mlp_*" },
        Group { name: "head", pattern: "head" },
        Group { name: "stem", pattern: "stem.proj" },
    ],
    build,
    check: |values| read::<MixerConfig>(values).map(drop),
};

/// Every key of the family.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MixerConfig {
    /// Height and width of an image.
    pub image_size: usize,
    /// Height and width of a patch.
    pub patch_size: usize,
    /// Channels of an image.
    pub channels: usize,
    /// Classes.
    pub n_classes: usize,
    /// Width.
    pub dim: usize,
    /// Blocks.
    pub depth: usize,
    /// Hidden width of the token MLPs over `dim`.
    pub token_ratio: f64,
    /// Hidden width of the channel MLPs over `dim`.
    pub channel_ratio: f64,
    /// Added to the variance in norms.
    pub norm_eps: f64,
    /// Between the layers of the MLPs.
    pub activation: ActivationConfig,
    /// Probability of zero after each layer of the MLPs.
    pub dropout: f64,
    /// Probability of dropping a branch, the same in every block.
    pub drop_path: f64,
    /// Whether blocks are run again in the backward pass instead of keeping their activations.
    pub recompute: bool,
}

fn imagenet(dim: usize, depth: usize) -> MixerConfig {
    MixerConfig {
        image_size: 224,
        patch_size: 16,
        channels: 3,
        n_classes: 1000,
        dim,
        depth,
        token_ratio: 0.5,
        channel_ratio: 4.0,
        norm_eps: 1e-6,
        activation: "gelu".into(),
        dropout: 0.0,
        drop_path: 0.0,
        recompute: false,
    }
}

fn small(dim: usize, depth: usize) -> MixerConfig {
    MixerConfig { image_size: 32, patch_size: 4, n_classes: 10, ..imagenet(dim, depth) }
}

#[derive(Debug)]
struct Mixer {
    config: MixerConfig,
    stem: PatchEmbed,
    blocks: Vec<Arc<dyn ResidualBlock>>,
    norm: LayerNorm,
    head: Linear,
}

#[derive(Debug)]
struct Block {
    norm1: LayerNorm,
    mlp_tokens: Mlp,
    norm2: LayerNorm,
    mlp_channels: Mlp,
    drop_path: DropPath,
}

fn build(values: &Value, builder: &mut ModelBuilder) -> Result<Box<dyn Model>> {
    let config: MixerConfig = checked(values);
    let MixerConfig { image_size, patch_size, channels, n_classes, dim, depth, norm_eps, dropout, .. } =
        config;
    positive(&[("channels", channels), ("n_classes", n_classes), ("dim", dim), ("depth", depth)])?;
    below_one(&[("dropout", dropout), ("drop_path", config.drop_path)])?;
    let n_tokens = patches(image_size, patch_size)?;
    let plain = LinearOptions { bias_init: BiasInit::Zeros, ..LinearOptions::default() };
    let linear =
        LinearOptions { init: Init::XavierUniform, bias_init: BiasInit::Normal { std: 1e-6 }, ..plain };
    let activation = config.activation.nonlinearity()?;
    let tokens_hidden = hidden("token_ratio", config.token_ratio, dim)?;
    let channels_hidden = hidden("channel_ratio", config.channel_ratio, dim)?;

    let mut root = builder.root();
    let fan_in = channels * patch_size * patch_size;
    let lecun = LinearOptions { init: Init::TruncNormal { std: 1.0 / (fan_in as f64).sqrt() }, ..plain };
    let stem = PatchEmbed::new(&mut root, "stem", (channels, patch_size, dim), n_tokens, lecun)?;
    let blocks = (0..depth).map(|at| {
        let mut scope = root.scope(&format!("blocks.{at}"));
        let tokens = MlpOptions { dim: n_tokens, hidden: tokens_hidden, activation, dropout, linear };
        let channels = MlpOptions { dim, hidden: channels_hidden, activation, dropout, linear };
        let block = Block {
            norm1: LayerNorm::new(&mut scope, "norm1", dim, norm_eps)?,
            // A row of the token MLP is one channel of all tokens.
            mlp_tokens: Mlp::new(&mut scope.scope("mlp_tokens").with_rows(dim), tokens)?,
            norm2: LayerNorm::new(&mut scope, "norm2", dim, norm_eps)?,
            mlp_channels: Mlp::new(&mut scope.scope("mlp_channels").with_rows(n_tokens), channels)?,
            drop_path: DropPath::new(config.drop_path),
        };
        Ok(Arc::new(block) as Arc<dyn ResidualBlock>)
    });
    let blocks = blocks.collect::<Result<Vec<_>>>()?;
    let norm = LayerNorm::new(&mut root, "norm", dim, norm_eps)?;
    let head = root.linear("head", dim, n_classes, LinearOptions { init: Init::Zeros, ..plain })?;
    Ok(Box::new(Mixer { config, stem, blocks, norm, head }))
}

impl ResidualBlock for Block {
    fn forward(&self, cx: &Cx, stream: &mut ResidualStream) -> Result<(), EngineError> {
        let y = ops::transpose(cx, &stream.norm(cx, &self.norm1)?)?;
        let y = ops::transpose(cx, &self.mlp_tokens.forward(cx, &y)?)?;
        stream.add(cx, y, self.drop_path.scale(cx, stream.batch())?)?;
        let y = stream.norm(cx, &self.norm2)?;
        stream.add(cx, self.mlp_channels.forward(cx, &y)?, self.drop_path.scale(cx, stream.batch())?)
    }
}

impl Model for Mixer {
    fn forward(&self, cx: &Cx, images: &Tensor) -> Result<Var, EngineError> {
        let x = self.stem.forward(cx, images)?;
        let mut stream = run_blocks(cx, x, &self.blocks, self.config.recompute)?;
        let pooled = ops::mean_tokens(cx, &stream.norm(cx, &self.norm)?)?;
        self.head.forward(cx, &pooled)
    }

    fn image_shape(&self) -> [usize; 3] {
        [self.config.channels, self.config.image_size, self.config.image_size]
    }

    fn n_classes(&self) -> usize {
        self.config.n_classes
    }
}
