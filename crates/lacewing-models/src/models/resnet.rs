//! ResNet (He et al., 2016): stages of residual blocks of convolutions, each behind a batch norm.
//!
//! Names and shapes follow torchvision and timm, a convolution's weight unfolded to `[out, kh · kw · in]`; the stride of a
//! bottleneck is in its 3×3, as theirs is. Activations are channels last. First values: convolutions normal
//! √(2 / (out · kh · kw)) (He, by outputs), norms 1 and 0, with `zero_init_last` a block's last norm 0, so that the block
//! starts as its shortcut; the head uniform ±1/√in.

use super::{below_one, checked, json, positive, read, value_error};
use crate::{Family, Group, Model, Result, Variant};
use lacewing_core::Init;
use lacewing_engine::ops::{self, Activation, Window};
use lacewing_engine::{Cx, EngineError, Tensor, Var};
use lacewing_nn::{
    BatchNorm, BatchNormOptions, Conv2d, Conv2dOptions, DropPath, Dropout, Linear, LinearOptions,
    ModelBuilder, NnError, Scope, channels_last,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::Arc;

/// The row of the table.
pub(super) static FAMILY: Family = Family {
    name: "resnet",
    about: "residual network of convolutions and batch norms",
    variants: &[
        Variant {
            name: "resnet18",
            about: "2, 2, 2, 2 basic blocks, 64 to 512 wide",
            config: || json(imagenet(Block::Basic, [2, 2, 2, 2])),
        },
        Variant {
            name: "resnet34",
            about: "3, 4, 6, 3 basic blocks, 64 to 512 wide",
            config: || json(imagenet(Block::Basic, [3, 4, 6, 3])),
        },
        Variant {
            name: "resnet50",
            about: "3, 4, 6, 3 bottlenecks, 256 to 2048 wide",
            config: || json(imagenet(Block::Bottleneck, [3, 4, 6, 3])),
        },
        Variant {
            name: "resnet18_cifar",
            about: "resnet18 with a 3×3 stem for 32×32 images",
            config: || json(cifar(Block::Basic, [2, 2, 2, 2])),
        },
        Variant {
            name: "resnet50_cifar",
            about: "resnet50 with a 3×3 stem for 32×32 images",
            config: || json(cifar(Block::Bottleneck, [3, 4, 6, 3])),
        },
    ],
    groups: &[
        Group { name: "conv", pattern: "layer*.conv?" },
        Group { name: "downsample", pattern: "layer*.downsample.0" },
        Group { name: "stem", pattern: "conv1" },
        Group { name: "head", pattern: "fc" },
    ],
    build,
    check: |values| read::<ResNetConfig>(values).map(drop),
};

/// Every key of the family.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResNetConfig {
    /// Height and width of an image.
    pub image_size: usize,
    /// Channels of an image.
    pub channels: usize,
    /// Classes.
    pub n_classes: usize,
    /// What comes before the stages.
    pub stem_type: Stem,
    /// What the stages are made of.
    pub block: Block,
    /// Blocks of each stage; each stage after the first halves height and width.
    pub layers: Vec<usize>,
    /// Channels inside the blocks of the first stage; each stage doubles them.
    pub width: usize,
    /// Added to the variance in norms.
    pub norm_eps: f64,
    /// Share of a norm's running statistic that one training pass replaces.
    pub norm_momentum: f64,
    /// Whether the last norm of a block starts at 0.
    pub zero_init_last: bool,
    /// Probability of zero before the head.
    pub dropout: f64,
    /// Probability of dropping the branch of the last block; it grows linearly from 0 in the first.
    pub drop_path: f64,
    /// Whether blocks are run again in the backward pass instead of keeping their activations.
    pub recompute: bool,
}

/// What comes before the stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stem {
    /// A 7×7 convolution and a 3×3 max pool, of stride 2 each.
    Imagenet,
    /// A 3×3 convolution of stride 1: small images stay as large as they are.
    Cifar,
}

/// What the stages are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Block {
    /// Two 3×3 convolutions.
    Basic,
    /// A 1×1, a 3×3 and a 1×1 convolution, the last four times as wide.
    Bottleneck,
}

impl Block {
    /// Channels out over channels inside.
    fn expansion(self) -> usize {
        match self {
            Self::Basic => 1,
            Self::Bottleneck => 4,
        }
    }
}

fn imagenet(block: Block, layers: [usize; 4]) -> ResNetConfig {
    ResNetConfig {
        image_size: 224,
        channels: 3,
        n_classes: 1000,
        stem_type: Stem::Imagenet,
        block,
        layers: layers.into(),
        width: 64,
        norm_eps: 1e-5,
        norm_momentum: 0.1,
        zero_init_last: true,
        dropout: 0.0,
        drop_path: 0.0,
        recompute: false,
    }
}

fn cifar(block: Block, layers: [usize; 4]) -> ResNetConfig {
    ResNetConfig { image_size: 32, n_classes: 10, stem_type: Stem::Cifar, ..imagenet(block, layers) }
}

const POOL: Window = Window { kernel: (3, 3), stride: 2, padding: 1 };
/// The last stage is then 128 times as wide as the first.
const MAX_STAGES: usize = 8;
const MAX_WIDTH: usize = 1 << 16;

#[derive(Debug)]
struct ResNet {
    config: ResNetConfig,
    stem: Convolution,
    blocks: Vec<Arc<ResidualConvolutions>>,
    dropout: Dropout,
    head: Linear,
}

/// A convolution without a bias, and the norm behind it.
#[derive(Debug)]
struct Convolution {
    conv: Conv2d,
    norm: BatchNorm,
}

/// `relu(shortcut(x) + branch(x))`.
#[derive(Debug)]
struct ResidualConvolutions {
    branch: Vec<Convolution>,
    downsample: Option<Convolution>,
    drop_path: DropPath,
}

/// Sizes of a convolution.
#[derive(Clone, Copy)]
struct Sizes {
    image: (usize, usize),
    channels: usize,
    n_out: usize,
    kernel: usize,
    stride: usize,
}

fn build(values: &Value, builder: &mut ModelBuilder) -> Result<Box<dyn Model>> {
    let config: ResNetConfig = checked(values);
    let ResNetConfig { image_size, channels, n_classes, block, width, .. } = config;
    positive(&[("image_size", image_size), ("channels", channels), ("n_classes", n_classes)])?;
    below_one(&[("dropout", config.dropout), ("drop_path", config.drop_path)])?;
    if !(1..=MAX_WIDTH).contains(&width) {
        return Err(value_error("width", format!("from 1 to {MAX_WIDTH}"), width));
    }
    if !(1..=MAX_STAGES).contains(&config.layers.len()) || config.layers.contains(&0) {
        let expected = format!("1 to {MAX_STAGES} stages of at least one block");
        return Err(value_error("layers", expected, format!("{:?}", config.layers)));
    }
    if !(0.0..=1.0).contains(&config.norm_momentum) {
        return Err(value_error("norm_momentum", "from 0 to 1", config.norm_momentum));
    }

    let mut root = builder.root();
    let (kernel, stride) = match config.stem_type {
        Stem::Imagenet => (7, 2),
        Stem::Cifar => (3, 1),
    };
    let image = (image_size, image_size);
    let sizes = Sizes { image, channels, n_out: width, kernel, stride };
    let stem = Convolution::new(&mut root, ["conv1", "bn1"], sizes, &config, false)?;
    let mut image = stem.out_size(image)?;
    if config.stem_type == Stem::Imagenet {
        image = POOL.places(image).expect("padding makes room for a window");
    }
    let (mut channels, depth) = (width, config.layers.iter().sum());
    let mut blocks = Vec::with_capacity(depth);
    for (stage, &len) in config.layers.iter().enumerate() {
        let mut scope = root.scope(&format!("layer{}", stage + 1));
        for at in 0..len {
            let stride = if stage > 0 && at == 0 { 2 } else { 1 };
            let drop_path = DropPath::linear(config.drop_path, blocks.len(), depth);
            let mut scope = scope.scope(&at.to_string());
            let sizes = Sizes { image, channels, n_out: width << stage, kernel: 3, stride };
            let new = ResidualConvolutions::new(&mut scope, sizes, &config, drop_path)?;
            image = new.branch.iter().try_fold(image, |image, layer| layer.out_size(image))?;
            channels = (width << stage) * block.expansion();
            blocks.push(Arc::new(new));
        }
    }
    let head = root.linear("fc", channels, n_classes, LinearOptions::default())?;
    let dropout = Dropout::new(config.dropout);
    Ok(Box::new(ResNet { config, stem, blocks, dropout, head }))
}

impl Convolution {
    fn new(
        scope: &mut Scope<'_>,
        [conv, norm]: [&str; 2],
        sizes: Sizes,
        config: &ResNetConfig,
        zero: bool,
    ) -> Result<Self> {
        let Sizes { image: size, channels, n_out, kernel, stride } = sizes;
        let std = (2.0 / (n_out * kernel * kernel) as f64).sqrt();
        let linear =
            LinearOptions { bias: false, init: Init::TruncNormal { std }, ..LinearOptions::default() };
        let (kernel, padding) = ((kernel, kernel), kernel / 2);
        let options = Conv2dOptions { size, channels, n_out, kernel, stride, padding, linear };
        let conv = Conv2d::new(scope, conv, options)?;
        let (eps, momentum) = (config.norm_eps, config.norm_momentum);
        let norm = BatchNorm::new(scope, norm, BatchNormOptions { dim: n_out, eps, momentum, zero })?;
        Ok(Self { conv, norm })
    }

    fn out_size(&self, image: (usize, usize)) -> Result<(usize, usize)> {
        Ok(self.conv.out_size(image).map_err(NnError::from)?)
    }

    fn forward(&self, cx: &Cx, x: &Var) -> Result<Var, EngineError> {
        self.norm.forward(cx, &self.conv.forward(cx, x)?)
    }
}

impl ResidualConvolutions {
    /// Of the 3×3 convolution with stride, given as `sizes`; the 1×1 ones are around it.
    fn new(scope: &mut Scope<'_>, sizes: Sizes, config: &ResNetConfig, drop_path: DropPath) -> Result<Self> {
        let Sizes { image, channels, n_out: inside, stride, .. } = sizes;
        let n_out = inside * config.block.expansion();
        let layers = match config.block {
            Block::Basic => vec![(3, stride, inside), (3, 1, n_out)],
            Block::Bottleneck => vec![(1, 1, inside), (3, stride, inside), (1, 1, n_out)],
        };
        let mut branch: Vec<Convolution> = Vec::with_capacity(layers.len());
        let mut at = (image, channels);
        for (i, &(kernel, stride, n_out)) in layers.iter().enumerate() {
            let names = [format!("conv{}", i + 1), format!("bn{}", i + 1)];
            let sizes = Sizes { image: at.0, channels: at.1, n_out, kernel, stride };
            let zero = config.zero_init_last && i + 1 == layers.len();
            let layer = Convolution::new(scope, names.each_ref().map(String::as_str), sizes, config, zero)?;
            at = (layer.out_size(at.0)?, n_out);
            branch.push(layer);
        }
        let downsample = (stride > 1 || channels != n_out).then(|| {
            let sizes = Sizes { n_out, kernel: 1, ..sizes };
            Convolution::new(&mut scope.scope("downsample"), ["0", "1"], sizes, config, false)
        });
        Ok(Self { branch, downsample: downsample.transpose()?, drop_path })
    }

    fn forward(&self, cx: &Cx, x: &Var) -> Result<Var, EngineError> {
        let mut y = x.clone();
        for (at, layer) in self.branch.iter().enumerate() {
            if at > 0 {
                y = ops::activation(cx, &y, Activation::Relu)?;
            }
            y = layer.forward(cx, &y)?;
        }
        let shortcut = match &self.downsample {
            Some(layer) => layer.forward(cx, x)?,
            None => x.clone(),
        };
        let scale = self.drop_path.scale(cx, x.shape()[0])?;
        ops::activation(cx, &ops::residual(cx, &shortcut, &y, scale.as_ref())?, Activation::Relu)
    }
}

impl Model for ResNet {
    fn forward(&self, cx: &Cx, images: &Tensor) -> Result<Var, EngineError> {
        let [channels, height, width] = self.image_shape();
        if !matches!(images.shape(), [_, rest @ ..] if rest == [channels, height, width]) {
            let expected = format!("[batch, {channels}, {height}, {width}]");
            let got = images.shape().to_vec();
            return Err(EngineError::Shape { op: "resnet", operand: "images", expected, got });
        }
        let x = channels_last(cx, &cx.constant(ops::cast(images, cx.compute_dtype())?))?;
        let mut x = ops::activation(cx, &self.stem.forward(cx, &x)?, Activation::Relu)?;
        if self.config.stem_type == Stem::Imagenet {
            x = ops::max_pool(cx, &x, POOL)?;
        }
        for block in &self.blocks {
            x = match self.config.recompute {
                false => block.forward(cx, &x)?,
                true => {
                    let own = block.clone();
                    cx.recompute(&[&x], move |cx, inputs| own.forward(cx, &inputs[0]))?
                }
            };
        }
        let [batch, down, across, channels] = [0, 1, 2, 3].map(|at| x.shape()[at]);
        let pooled = ops::mean_tokens(cx, &cx.reshape(&x, &[batch, down * across, channels])?)?;
        self.head.forward(cx, &self.dropout.forward(cx, &pooled)?)
    }

    fn image_shape(&self) -> [usize; 3] {
        [self.config.channels, self.config.image_size, self.config.image_size]
    }

    fn n_classes(&self) -> usize {
        self.config.n_classes
    }
}
