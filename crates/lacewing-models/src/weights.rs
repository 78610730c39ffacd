//! Where the parameters of our models are in other tools' checkpoints: one row a layout.
//!
//! Our names follow timm's, and T2T-ViT's own for that model, so their layout is the identity up to dimensions of one and
//! flattened kernels (a convolution's are reordered by who reads them: its layer knows its channels). A layout answers for one of our names which tensors of the file make it up, and with what shape other tools expect it.

/// One way of naming a model's parameters.
#[derive(Debug)]
pub struct Layout {
    /// Its name.
    pub name: &'static str,
    /// One line on who writes it.
    pub about: &'static str,
    /// The tensors, stacked along the rows, that make up the parameter of our name.
    pub pieces: fn(&str) -> Vec<Piece>,
}

/// A tensor of a file, or an equal part of its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Name in the file.
    pub name: String,
    /// Which part of how many equal ones along the first dimension.
    pub part: (usize, usize),
}

impl Piece {
    /// A tensor as a whole.
    pub fn whole(name: impl Into<String>) -> Self {
        Self { name: name.into(), part: (0, 1) }
    }
}

/// Every layout. The first that accounts for the most tensors of a file is taken.
pub static LAYOUTS: &[&Layout] = &[
    &Layout {
        name: "timm",
        about: "timm, torchvision's ResNets, T2T-ViT, and this program",
        pieces: |ours| vec![Piece::whole(ours)],
    },
    &Layout {
        name: "timm-split",
        about: "timm's fused q, k and v for a model with three layers (split_qkv)",
        pieces: fused,
    },
    &Layout {
        name: "fly",
        about: "T2T-ViT as fly renames it; q, k and v fused",
        pieces: |ours| match ours.strip_prefix("tokens_to_token.") {
            Some(rest) => fused(&format!("patch_embed.{rest}")),
            None if ours == "pos_embed" => vec![Piece::whole("pos_embed.pe")],
            None => fused(ours),
        },
    },
    &Layout {
        name: "swin",
        about: "Microsoft's Swin Transformer V2, where a stage ends with its merging; q, k and v fused",
        pieces: |ours| match ours.strip_prefix("head.fc.") {
            Some(rest) => vec![Piece::whole(format!("head.{rest}"))],
            None => fused(&merging_of_the_stage_before(ours).unwrap_or_else(|| ours.to_owned())),
        },
    },
    &Layout { name: "transformers", about: "Hugging Face's ViTForImageClassification", pieces: transformers },
];

/// Thirds of `attn.qkv` for `attn.q`, `attn.k` and `attn.v`; everything else is whole.
fn fused(ours: &str) -> Vec<Piece> {
    let part = |letter: &str| ["q", "k", "v"].iter().position(|known| *known == letter);
    let Some((before, rest)) = ours.split_once(".attn.") else { return vec![Piece::whole(ours)] };
    match rest.split_once('.').and_then(|(letter, rest)| Some((part(letter)?, rest))) {
        Some((at, rest)) => vec![Piece { name: format!("{before}.attn.qkv.{rest}"), part: (at, 3) }],
        None => vec![Piece::whole(ours)],
    }
}

/// `layers.1.downsample.…` is `layers.0.downsample.…` where a stage ends with what ours begins with.
fn merging_of_the_stage_before(ours: &str) -> Option<String> {
    let (stage, rest) = ours.strip_prefix("layers.")?.split_once(".downsample.")?;
    let before = stage.parse::<usize>().ok()?.checked_sub(1)?;
    Some(format!("layers.{before}.downsample.{rest}"))
}

fn transformers(ours: &str) -> Vec<Piece> {
    let whole = |name: String| vec![Piece::whole(name)];
    let renamed = |from: &str, to: &str| ours.strip_prefix(from).map(|rest| format!("{to}{rest}"));
    for (from, to) in [
        ("cls_token", "vit.embeddings.cls_token"),
        ("pos_embed", "vit.embeddings.position_embeddings"),
        ("patch_embed.proj.", "vit.embeddings.patch_embeddings.projection."),
        ("norm.", "vit.layernorm."),
        ("head.", "classifier."),
    ] {
        if let Some(name) = renamed(from, to) {
            return whole(name);
        }
    }
    let inside = ours.strip_prefix("blocks.").and_then(|rest| rest.split_once('.'));
    let Some((block, rest)) = inside else { return whole(ours.to_owned()) };
    let place = |name: &str| format!("vit.encoder.layer.{block}.{name}");
    for (from, to) in [
        ("norm1.", "layernorm_before."),
        ("norm2.", "layernorm_after."),
        ("attn.proj.", "attention.output.dense."),
        ("attn.q.", "attention.attention.query."),
        ("attn.k.", "attention.attention.key."),
        ("attn.v.", "attention.attention.value."),
        ("mlp.fc1.", "intermediate.dense."),
        ("mlp.fc2.", "output.dense."),
    ] {
        if let Some(rest) = rest.strip_prefix(from) {
            return whole(place(&format!("{to}{rest}")));
        }
    }
    match rest.strip_prefix("attn.qkv.") {
        Some(rest) => ["query", "key", "value"]
            .map(|name| Piece::whole(place(&format!("attention.attention.{name}.{rest}"))))
            .into(),
        None => whole(ours.to_owned()),
    }
}

/// Whether a tensor of another tool is no weight: PyTorch's batch norms count batches, which no output depends on, and Swin
/// Transformers keep tables that follow from their sizes.
pub fn is_no_weight(theirs: &str) -> bool {
    let last = theirs.rsplit('.').next().unwrap_or_default();
    ["num_batches_tracked", "relative_coords_table", "relative_position_index", "attn_mask"].contains(&last)
}

/// Whether a tensor of shape `theirs` holds what we keep as `ours`: equal up to dimensions of one, or with the trailing
/// dimensions of a kernel flattened.
pub fn same_values(ours: &[usize], theirs: &[usize]) -> bool {
    let without_ones = |shape: &[usize]| shape.iter().copied().filter(|&size| size != 1).collect::<Vec<_>>();
    let flattened = |shape: &[usize]| match shape {
        [first, rest @ ..] if !rest.is_empty() => vec![*first, rest.iter().product()],
        shape => shape.to_vec(),
    };
    without_ones(ours) == without_ones(theirs) || (theirs.len() > 2 && flattened(theirs) == ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_transformers() {
        let names =
            |ours| -> Vec<String> { transformers(ours).into_iter().map(|piece| piece.name).collect() };
        assert_eq!(names("norm.bias"), ["vit.layernorm.bias"]);
        assert_eq!(names("blocks.11.norm1.weight"), ["vit.encoder.layer.11.layernorm_before.weight"]);
        assert_eq!(
            names("blocks.0.attn.qkv.bias"),
            ["query", "key", "value"].map(|n| format!("vit.encoder.layer.0.attention.attention.{n}.bias"))
        );
        assert_eq!(names("blocks.3.mlp.fc2.weight"), ["vit.encoder.layer.3.output.dense.weight"]);
    }

    #[test]
    fn split_layers_take_thirds() {
        let pieces = (LAYOUTS[1].pieces)("blocks.2.attn.k.weight");
        assert_eq!(pieces, [Piece { name: "blocks.2.attn.qkv.weight".to_owned(), part: (1, 3) }]);
        assert_eq!((LAYOUTS[1].pieces)("blocks.2.attn.proj.bias"), [Piece::whole("blocks.2.attn.proj.bias")]);
    }

    #[test]
    fn names_of_fly() {
        let fly = LAYOUTS.iter().find(|layout| layout.name == "fly").unwrap();
        for (ours, theirs) in [
            ("pos_embed", "pos_embed.pe"),
            ("cls_token", "cls_token"),
            ("tokens_to_token.attention1.attn.qkv.weight", "patch_embed.attention1.attn.qkv.weight"),
            ("tokens_to_token.project.bias", "patch_embed.project.bias"),
            ("blocks.13.attn.qkv.weight", "blocks.13.attn.qkv.weight"),
        ] {
            assert_eq!((fly.pieces)(ours), [Piece::whole(theirs)]);
        }
        let pieces = (fly.pieces)("tokens_to_token.attention2.attn.v.weight");
        let name = "patch_embed.attention2.attn.qkv.weight".to_owned();
        assert_eq!(pieces, [Piece { name, part: (2, 3) }]);
    }

    #[test]
    fn names_of_microsofts_swin() {
        let swin = LAYOUTS.iter().find(|layout| layout.name == "swin").unwrap();
        for (ours, theirs) in [
            ("layers.1.downsample.reduction.weight", "layers.0.downsample.reduction.weight"),
            ("layers.3.downsample.norm.bias", "layers.2.downsample.norm.bias"),
            ("layers.2.blocks.17.attn.q_bias", "layers.2.blocks.17.attn.q_bias"),
            ("layers.0.blocks.0.attn.cpb_mlp.2.weight", "layers.0.blocks.0.attn.cpb_mlp.2.weight"),
            ("head.fc.weight", "head.weight"),
        ] {
            assert_eq!((swin.pieces)(ours), [Piece::whole(theirs)]);
        }
        let name = "layers.2.blocks.0.attn.qkv.weight".to_owned();
        assert_eq!((swin.pieces)("layers.2.blocks.0.attn.v.weight"), [Piece { name, part: (2, 3) }]);
        assert!(is_no_weight("layers.0.blocks.1.attn_mask"));
        assert!(is_no_weight("layers.0.blocks.1.attn.relative_coords_table"));
        assert!(!is_no_weight("layers.0.blocks.1.attn.logit_scale"));
    }

    #[test]
    fn shapes_that_hold_the_same_values() {
        assert!(same_values(&[197, 768], &[1, 197, 768]));
        assert!(same_values(&[768, 768], &[768, 3, 16, 16]));
        assert!(same_values(&[768], &[1, 1, 768]));
        assert!(!same_values(&[768, 3072], &[3072, 768]));
        assert!(!same_values(&[768], &[384, 2]));
    }
}
