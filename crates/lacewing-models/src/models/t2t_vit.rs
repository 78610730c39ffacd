//! T2T-ViT (Yuan et al., 2021) with a transformer as its token module: overlapping windows of the image, then of the
//! tokens, become fewer and fewer tokens; the blocks of a vision transformer follow.
//!
//! Names and shapes follow the published checkpoints. A window's values are ordered (channel, row, column) as there.
//! First values: linear weights and the class token truncated normal 0.02, biases zero. The position table is a
//! constant. Cost: most of the token module's is the first attention, `2 · tokens² · token_dim` multiply-adds at a
//! sixteenth as many tokens as pixels.

use super::{below_one, checked, hidden, json, positive, read, value_error};
use crate::{ActivationConfig, Family, Group, Model, Result, Variant};
use lacewing_core::Init;
use lacewing_engine::ops::{self, Window};
use lacewing_engine::{Cx, EngineError, ParamId, Tensor, Var};
use lacewing_nn::{
    AttentionOptions, BiasInit, Dropout, LayerNorm, Linear, LinearOptions, Mlp, MlpOptions, ModelBuilder,
    Nonlinearity, ResidualBlock, ResidualStream, Scope, TransformerBlock, TransformerBlockOptions,
    channels_last, run_blocks,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::Arc;

/// The row of the table.
pub(super) static FAMILY: Family = Family {
    name: "t2t_vit",
    about: "vision transformer on tokens that a transformer gathers from overlapping windows",
    variants: &[
        Variant {
            name: "t2t_vit_14_t",
            about: "384 wide, 14 deep, 6 heads",
            config: || json(imagenet(384, 14, 6)),
        },
        Variant {
            name: "t2t_vit_19_t",
            about: "448 wide, 19 deep, 7 heads",
            config: || json(imagenet(448, 19, 7)),
        },
        Variant {
            name: "t2t_vit_24_t",
            about: "512 wide, 24 deep, 8 heads",
            config: || json(imagenet(512, 24, 8)),
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
        Group { name: "token_module", pattern: "tokens_to_token.*" },
    ],
    build,
    check: |values| read::<T2tVitConfig>(values).map(drop),
};

/// Every key of the family.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct T2tVitConfig {
    /// Height and width of an image.
    pub image_size: usize,
    /// Channels of an image.
    pub channels: usize,
    /// Classes.
    pub n_classes: usize,
    /// Width of the token module.
    pub token_dim: usize,
    /// Width.
    pub dim: usize,
    /// Blocks.
    pub depth: usize,
    /// Attention heads of a block; the token module has one.
    pub heads: usize,
    /// Hidden width of the blocks' MLPs over `dim`; the token module's are as wide as it is.
    pub mlp_ratio: f64,
    /// Whether the blocks' q, k and v have a bias; the token module's have none.
    pub qkv_bias: bool,
    /// Whether q, k and v are three layers.
    pub split_qkv: bool,
    /// Added to the variance in norms.
    pub norm_eps: f64,
    /// Between the layers of the MLPs.
    pub activation: ActivationConfig,
    /// Probability of zero after the position table, and in the blocks after the attention's projection and each
    /// layer of the MLPs.
    pub dropout: f64,
    /// Probability of dropping a branch of the last block; it grows linearly from 0 in the first.
    pub drop_path: f64,
    /// Whether blocks are run again in the backward pass instead of keeping their activations.
    pub recompute: bool,
}

fn imagenet(dim: usize, depth: usize, heads: usize) -> T2tVitConfig {
    T2tVitConfig {
        image_size: 224,
        channels: 3,
        n_classes: 1000,
        token_dim: 64,
        dim,
        depth,
        heads,
        mlp_ratio: 3.0,
        qkv_bias: false,
        split_qkv: false,
        norm_eps: 1e-5,
        activation: "gelu".into(),
        dropout: 0.0,
        drop_path: 0.1,
        recompute: false,
    }
}

/// The windows of the image, of the first tokens and of the second.
const WINDOWS: [Window; 3] = [
    Window { kernel: (7, 7), stride: 4, padding: 2 },
    Window { kernel: (3, 3), stride: 2, padding: 1 },
    Window { kernel: (3, 3), stride: 2, padding: 1 },
];

const STD: f64 = 0.02;

#[derive(Debug)]
struct T2tVit {
    config: T2tVitConfig,
    steps: [Arc<TokenStep>; 2],
    project: Linear,
    cls_token: ParamId,
    pos_embed: ParamId,
    dropout: Dropout,
    blocks: Vec<Arc<dyn ResidualBlock>>,
    norm: LayerNorm,
    head: Linear,
}

/// Windows of a map as tokens, one block of attention and MLP on them, and their map again.
#[derive(Debug)]
struct TokenStep {
    window: Window,
    norm1: LayerNorm,
    attn: TokenAttention,
    norm2: LayerNorm,
    mlp: Mlp,
}

/// Attention of one head that changes the width: `v + proj(softmax(q kᵀ / √n_in) v)`. The scale is by the input's width,
/// not the head's, and v takes the place of the residual stream, which has another width.
#[derive(Debug)]
struct TokenAttention {
    inputs: Inputs,
    proj: Linear,
    scale: f32,
}

#[derive(Debug)]
enum Inputs {
    /// Rows of the output: q, then k, then v.
    Fused(Linear),
    Split {
        q: Linear,
        k: Linear,
        v: Linear,
    },
}

fn build(values: &Value, builder: &mut ModelBuilder) -> Result<Box<dyn Model>> {
    let config: T2tVitConfig = checked(values);
    let T2tVitConfig { channels, n_classes, token_dim, dim, depth, norm_eps, .. } = config;
    positive(&[("channels", channels), ("n_classes", n_classes), ("token_dim", token_dim)])?;
    positive(&[("dim", dim), ("depth", depth)])?;
    below_one(&[("dropout", config.dropout), ("drop_path", config.drop_path)])?;
    let counts = token_counts(config.image_size)?;
    let activation = config.activation.nonlinearity()?;
    let hidden = hidden("mlp_ratio", config.mlp_ratio, dim)?;
    let linear = LinearOptions {
        init: Init::TruncNormal { std: STD },
        bias_init: BiasInit::Zeros,
        ..LinearOptions::default()
    };

    let mut root = builder.root();
    let mut module = root.scope("tokens_to_token");
    let mut step = |name: &str, at: usize, channels: usize| {
        let mut scope = module.scope(name);
        TokenStep::new(&mut scope.with_rows(counts[at]), &config, WINDOWS[at], channels, activation, linear)
    };
    let steps = [step("attention1", 0, channels)?, step("attention2", 1, token_dim)?].map(Arc::new);
    let n_in = window_len(WINDOWS[2], token_dim);
    let project = module.with_rows(counts[2]).linear("project", n_in, dim, linear)?;

    let n_tokens = counts[2] + 1;
    let draw = |mut rng: lacewing_core::Rng| (0..dim).map(|_| rng.trunc_normal(STD) as f32).collect();
    let cls_token = root.parameter("cls_token", &[dim], false, draw)?;
    let pos_embed = root.constant("pos_embed", &[n_tokens, dim], || sinusoids(n_tokens, dim))?;
    let T2tVitConfig { heads, split_qkv, qkv_bias, dropout, drop_path, .. } = config;
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
    Ok(Box::new(T2tVit { config, steps, project, cls_token, pos_embed, dropout, blocks, norm, head }))
}

/// Tokens after each of the windows.
fn token_counts(image_size: usize) -> Result<[usize; 3]> {
    let mut side = image_size;
    let mut counts = [0; 3];
    for (window, count) in WINDOWS.iter().zip(&mut counts) {
        let Some((down, across)) = window.places((side, side)) else {
            return Err(value_error(
                "image_size",
                "at least 3, for a window of 7 with 2 on each side",
                image_size,
            ));
        };
        (side, *count) = (down, down * across);
    }
    Ok(counts)
}

fn window_len(window: Window, channels: usize) -> usize {
    window.kernel.0 * window.kernel.1 * channels
}

/// `sin(t / 10000^(2i / dim))` in column 2i and the cosine of the same in column 2i + 1, for token t.
fn sinusoids(n_tokens: usize, dim: usize) -> Vec<f32> {
    let value = |token: usize, col: usize| {
        let angle = token as f64 / 10000f64.powf((col - col % 2) as f64 / dim as f64);
        (if col.is_multiple_of(2) { angle.sin() } else { angle.cos() }) as f32
    };
    (0..n_tokens * dim).map(|i| value(i / dim, i % dim)).collect()
}

/// Windows as tokens: `map [batch, height, width, channels]` → `[batch, windows, channels · kh · kw]`.
///
/// The op has a window's channels fastest; the checkpoints have them slowest.
fn soft_split(cx: &Cx, map: &Var, window: Window) -> Result<Var, EngineError> {
    let rows = ops::unfold(cx, map, window)?;
    let [batch, tokens, len] = [0, 1, 2].map(|at| rows.shape()[at]);
    let taps = window.kernel.0 * window.kernel.1;
    let rows = cx.reshape(&rows, &[batch * tokens, taps, len / taps])?;
    cx.reshape(&ops::transpose(cx, &rows)?, &[batch, tokens, len])
}

impl TokenStep {
    fn new(
        scope: &mut Scope<'_>,
        config: &T2tVitConfig,
        window: Window,
        channels: usize,
        activation: Nonlinearity,
        linear: LinearOptions,
    ) -> Result<Self> {
        let &T2tVitConfig { token_dim: dim, split_qkv, norm_eps, .. } = config;
        let n_in = window_len(window, channels);
        let mlp = MlpOptions { dim, hidden: dim, activation, dropout: 0.0, linear };
        Ok(Self {
            window,
            norm1: LayerNorm::new(scope, "norm1", n_in, norm_eps)?,
            attn: TokenAttention::new(&mut scope.scope("attn"), n_in, dim, split_qkv, linear)?,
            norm2: LayerNorm::new(scope, "norm2", dim, norm_eps)?,
            mlp: Mlp::new(&mut scope.scope("mlp"), mlp)?,
        })
    }

    /// `map [batch, height, width, channels]` → `[batch, height', width', token_dim]`, a place for each window.
    fn forward(&self, cx: &Cx, map: &Var) -> Result<Var, EngineError> {
        let rows = soft_split(cx, map, self.window)?;
        let (v, mixed) = self.attn.forward(cx, &self.norm1.forward(cx, &rows)?)?;
        let mut stream = ResidualStream::new(v);
        stream.add(cx, mixed, None)?;
        let y = stream.norm(cx, &self.norm2)?;
        stream.add(cx, self.mlp.forward(cx, &y)?, None)?;
        let x = stream.finish(cx)?;
        let [batch, height, width] = [0, 1, 2].map(|at| map.shape()[at]);
        let (down, across) = self.window.places((height, width)).expect("the windows above");
        cx.reshape(&x, &[batch, down, across, x.shape()[2]])
    }

    fn run(this: &Arc<Self>, cx: &Cx, map: &Var, recompute: bool) -> Result<Var, EngineError> {
        if !recompute {
            return this.forward(cx, map);
        }
        let own = this.clone();
        cx.recompute(&[map], move |cx, inputs| own.forward(cx, &inputs[0]))
    }
}

impl TokenAttention {
    fn new(
        scope: &mut Scope<'_>,
        n_in: usize,
        dim: usize,
        split_qkv: bool,
        linear: LinearOptions,
    ) -> Result<Self> {
        let input = LinearOptions { bias: false, ..linear };
        let inputs = if split_qkv {
            let mut one = |name| scope.linear(name, n_in, dim, input);
            Inputs::Split { q: one("q")?, k: one("k")?, v: one("v")? }
        } else {
            Inputs::Fused(scope.linear("qkv", n_in, 3 * dim, input)?)
        };
        let proj = scope.linear("proj", dim, dim, linear)?;
        let tokens = scope.rows() as u64;
        // q kᵀ and a v: tokens² · dim each.
        scope.add_macs(2 * tokens * tokens * dim as u64);
        Ok(Self { inputs, proj, scale: 1.0 / (n_in as f32).sqrt() })
    }

    /// `x [batch, tokens, n_in]` → v and the projection, `[batch, tokens, dim]` each: the result is their sum.
    fn forward(&self, cx: &Cx, x: &Var) -> Result<(Var, Var), EngineError> {
        let (v, mixed) = match &self.inputs {
            Inputs::Fused(qkv) => {
                let y = qkv.forward(cx, x)?;
                let mixed = ops::attention(cx, &y, 1, Some(self.scale))?;
                // A token's q, k and v are three rows; v is the last.
                let [batch, tokens, dim] = [0, 1, 2].map(|at| mixed.shape()[at]);
                let v = ops::select_token(cx, &cx.reshape(&y, &[batch * tokens, 3, dim])?, 2)?;
                (cx.reshape(&v, &[batch, tokens, dim])?, mixed)
            }
            Inputs::Split { q, k, v } => {
                let (q, k, v) = (q.forward(cx, x)?, k.forward(cx, x)?, v.forward(cx, x)?);
                let mixed = ops::attention_separate(cx, &q, &k, &v, 1, Some(self.scale))?;
                (v, mixed)
            }
        };
        Ok((v, self.proj.forward(cx, &mixed)?))
    }
}

impl Model for T2tVit {
    fn forward(&self, cx: &Cx, images: &Tensor) -> Result<Var, EngineError> {
        // Several sizes give as many tokens.
        let [channels, height, width] = self.image_shape();
        if !matches!(images.shape(), [_, rest @ ..] if rest == [channels, height, width]) {
            let expected = format!("[batch, {channels}, {height}, {width}]");
            let got = images.shape().to_vec();
            return Err(EngineError::Shape { op: "t2t_vit", operand: "images", expected, got });
        }
        let recompute = self.config.recompute;
        let mut map = channels_last(cx, &cx.constant(ops::cast(images, cx.compute_dtype())?))?;
        for step in &self.steps {
            map = TokenStep::run(step, cx, &map, recompute)?;
        }
        let x = self.project.forward(cx, &soft_split(cx, &map, WINDOWS[2])?)?;
        let (cls_token, pos_embed) = (cx.param_f32(self.cls_token), cx.param_f32(self.pos_embed));
        let x = ops::embed_tokens(cx, &x, Some(&cls_token), &pos_embed)?;
        let x = self.dropout.forward(cx, &x)?;
        let mut stream = run_blocks(cx, x, &self.blocks, recompute)?;
        // The norm treats each token alone, so the others need not go through it.
        stream.select_token(cx, 0)?;
        self.head.forward(cx, &stream.norm(cx, &self.norm)?)
    }

    fn image_shape(&self) -> [usize; 3] {
        [self.config.channels, self.config.image_size, self.config.image_size]
    }

    fn n_classes(&self) -> usize {
        self.config.n_classes
    }
}
