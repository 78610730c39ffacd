//! Vision transformer (Dosovitskiy et al., 2021): patches as tokens, pre-norm blocks of attention and MLP.
//!
//! Names and shapes follow timm. First values: linear weights truncated normal 0.02, biases zero; the patch embedding
//! uniform ±1/√fan_in.

use super::{below_one, checked, hidden, json, patches, positive, read};
use crate::{ActivationConfig, Family, Group, Model, Result, Variant};
use lacewing_core::Init;
use lacewing_engine::ops;
use lacewing_engine::{Cx, EngineError, ParamId, Tensor, Var};
use lacewing_nn::{
    AttentionOptions, BiasInit, Dropout, LayerNorm, Linear, LinearOptions, ModelBuilder, PatchEmbed,
    ResidualBlock, TransformerBlock, TransformerBlockOptions, run_blocks,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::Arc;

/// The row of the table.
pub(super) static FAMILY: Family = Family {
    name: "vit",
    about: "vision transformer: pre-norm attention and MLP on patches",
    variants: &[
        Variant {
            name: "vit_tiny_patch16_224",
            about: "192 wide, 12 deep, 3 heads",
            config: || json(imagenet(192, 12, 3)),
        },
        Variant {
            name: "vit_small_patch16_224",
            about: "384 wide, 12 deep, 6 heads",
            config: || json(imagenet(384, 12, 6)),
        },
        Variant {
            name: "vit_base_patch16_224",
            about: "768 wide, 12 deep, 12 heads",
            config: || json(imagenet(768, 12, 12)),
        },
        Variant {
            name: "vit_large_patch16_224",
            about: "1024 wide, 24 deep, 16 heads",
            config: || json(imagenet(1024, 24, 16)),
        },
        Variant {
            name: "vit_tiny_patch4_32",
            about: "192 wide, 12 deep, 3 heads, 32×32 images",
            config: || json(small(192, 3)),
        },
        Variant {
            name: "vit_small_patch4_32",
            about: "384 wide, 12 deep, 6 heads, 32×32 images",
            config: || json(small(384, 6)),
        },
        Variant {
            name: "vit_digits",
            about: "128 wide, 4 deep, 4 heads, 8×8 gray images",
            config: || json(digits()),
        },
    ],
    groups: &[
        Group { name: "qkv", pattern: "blocks.*.attn.{qkv,q,k,v}" },
        Group { name: "proj", pattern: "blocks.*.attn.proj" },
        Group { name: "fc1", pattern: "blocks.*.mlp.fc1" },
        Group { name: "fc2", pattern: "blocks.*.mlp.fc2" },
        Group { name: "attn", pattern: "blocks.*.attn.*" },
        Group { name: "mlp", pattern: "blocks.*.mlp.*" },
        Group { name: "head", pattern: "head" },
        Group { name: "patch_embed", pattern: "patch_embed.proj" },
    ],
    build,
    check: |values| read::<VitConfig>(values).map(drop),
};

/// Every key of the family.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VitConfig {
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
    /// Attention heads.
    pub heads: usize,
    /// Hidden width of the MLPs over `dim`.
    pub mlp_ratio: f64,
    /// Whether q, k and v have a bias.
    pub qkv_bias: bool,
    /// Whether q, k and v are three layers.
    pub split_qkv: bool,
    /// What the head reads.
    pub pool: Pool,
    /// Added to the variance in norms.
    pub norm_eps: f64,
    /// Between the layers of the MLPs.
    pub activation: ActivationConfig,
    /// Probability of zero after the position embedding, the attention's projection and each layer of the MLPs.
    pub dropout: f64,
    /// Probability of dropping a branch of the last block; it grows linearly from 0 in the first.
    pub drop_path: f64,
    /// Whether blocks are run again in the backward pass instead of keeping their activations.
    pub recompute: bool,
}

/// What the head reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pool {
    /// The class token, a trained token before the patches.
    Class,
    /// The mean of all patches after the norm; there is no class token.
    Mean,
}

fn imagenet(dim: usize, depth: usize, heads: usize) -> VitConfig {
    VitConfig {
        image_size: 224,
        patch_size: 16,
        channels: 3,
        n_classes: 1000,
        dim,
        depth,
        heads,
        mlp_ratio: 4.0,
        qkv_bias: true,
        split_qkv: false,
        pool: Pool::Class,
        norm_eps: 1e-6,
        activation: "gelu".into(),
        dropout: 0.0,
        drop_path: 0.0,
        recompute: false,
    }
}

fn small(dim: usize, heads: usize) -> VitConfig {
    VitConfig { image_size: 32, patch_size: 4, n_classes: 10, ..imagenet(dim, 12, heads) }
}

fn digits() -> VitConfig {
    let (image_size, patch_size, channels) = (8, 2, 1);
    VitConfig { image_size, patch_size, channels, n_classes: 10, pool: Pool::Mean, ..imagenet(128, 4, 4) }
}

#[derive(Debug)]
struct Vit {
    config: VitConfig,
    patch_embed: PatchEmbed,
    cls_token: Option<ParamId>,
    pos_embed: ParamId,
    dropout: Dropout,
    blocks: Vec<Arc<dyn ResidualBlock>>,
    norm: LayerNorm,
    head: Linear,
}

const STD: f64 = 0.02;

fn build(values: &Value, builder: &mut ModelBuilder) -> Result<Box<dyn Model>> {
    let config: VitConfig = checked(values);
    let VitConfig { image_size, patch_size, channels, n_classes, dim, depth, norm_eps, .. } = config;
    positive(&[("channels", channels), ("n_classes", n_classes), ("dim", dim), ("depth", depth)])?;
    below_one(&[("dropout", config.dropout), ("drop_path", config.drop_path)])?;
    let n_patches = patches(image_size, patch_size)?;
    let n_tokens = n_patches + usize::from(config.pool == Pool::Class);
    let linear = LinearOptions {
        init: Init::TruncNormal { std: STD },
        bias_init: BiasInit::Zeros,
        ..LinearOptions::default()
    };

    let mut root = builder.root();
    let cls_token = match config.pool {
        Pool::Class => {
            Some(root.parameter("cls_token", &[dim], false, |mut rng| normals(dim, || rng.normal() * 1e-6))?)
        }
        Pool::Mean => None,
    };
    let pos_embed = root.parameter("pos_embed", &[n_tokens, dim], false, |mut rng| {
        normals(n_tokens * dim, || rng.trunc_normal(STD))
    })?;
    let patch = (channels, patch_size, dim);
    let patch_embed = PatchEmbed::new(&mut root, "patch_embed", patch, n_patches, LinearOptions::default())?;
    let hidden = hidden("mlp_ratio", config.mlp_ratio, dim)?;
    let activation = config.activation.nonlinearity()?;
    let VitConfig { heads, split_qkv, qkv_bias, dropout, drop_path, .. } = config;
    let attention = AttentionOptions { dim, heads, split_qkv, qkv_bias, dropout, linear };
    let options = TransformerBlockOptions { attention, hidden, activation, norm_eps, depth, drop_path };
    let blocks = (0..depth).map(|at| {
        let mut scope = root.scope(&format!("blocks.{at}"));
        let block = TransformerBlock::new(&mut scope.with_rows(n_tokens), options, at)?;
        Ok(Arc::new(block) as Arc<dyn ResidualBlock>)
    });
    let blocks = blocks.collect::<Result<Vec<_>>>()?;
    let norm = LayerNorm::new(&mut root, "norm", dim, norm_eps)?;
    let head = root.linear("head", dim, n_classes, linear)?;
    let dropout = Dropout::new(dropout);
    Ok(Box::new(Vit { config, patch_embed, cls_token, pos_embed, dropout, blocks, norm, head }))
}

fn normals(len: usize, mut draw: impl FnMut() -> f64) -> Vec<f32> {
    (0..len).map(|_| draw() as f32).collect()
}

impl Model for Vit {
    fn forward(&self, cx: &Cx, images: &Tensor) -> Result<Var, EngineError> {
        let patches = self.patch_embed.forward(cx, images)?;
        let cls_token = self.cls_token.map(|id| cx.param_f32(id));
        let x = ops::embed_tokens(cx, &patches, cls_token.as_ref(), &cx.param_f32(self.pos_embed))?;
        let x = self.dropout.forward(cx, &x)?;
        let mut stream = run_blocks(cx, x, &self.blocks, self.config.recompute)?;
        let pooled = match self.config.pool {
            Pool::Class => {
                // The norm treats each token alone, so the others need not go through it.
                stream.select_token(cx, 0)?;
                stream.norm(cx, &self.norm)?
            }
            Pool::Mean => ops::mean_tokens(cx, &stream.norm(cx, &self.norm)?)?,
        };
        self.head.forward(cx, &pooled)
    }

    fn image_shape(&self) -> [usize; 3] {
        [self.config.channels, self.config.image_size, self.config.image_size]
    }

    fn n_classes(&self) -> usize {
        self.config.n_classes
    }
}
