//! Parameter counts, multiply-adds and names against published numbers.

use lacewing_models::{MODELS, ModelConfig};
use lacewing_nn::{ModelBuilder, Summary};
use serde_json::{Value, json};

fn summary(config: Value) -> Summary {
    ModelConfig::from_json(&config).unwrap().summary().unwrap()
}

#[test]
fn dense_models_have_the_published_parameter_counts() {
    for (name, parameters) in [
        ("vit_tiny_patch16_224", 5_717_416),
        ("vit_small_patch16_224", 22_050_664),
        ("vit_base_patch16_224", 86_567_656),
        ("vit_large_patch16_224", 304_326_632),
        ("mixer_s16_224", 18_528_264),
        ("mixer_b16_224", 59_880_472),
    ] {
        assert_eq!(summary(json!(name)).parameters, parameters, "{name}");
    }
}

#[test]
fn pixelfly_channel_mlps_give_the_published_parameter_count() {
    let pixelfly =
        json!({"structure": "pixelfly", "butterfly_size": 8, "n_factors": 2, "block": 32, "rank": 32});
    let sparse = summary(json!({"name": "mixer_b16_224", "channel_mlp": pixelfly}));
    assert_eq!(sparse.parameters, 27_486_256);
    let replaced: Vec<_> = sparse.layers.iter().filter(|layer| layer.structure == "pixelfly").collect();
    assert_eq!(replaced.len(), 24);
    assert!(
        replaced.iter().all(|layer| layer.name.contains("mlp_channels") && layer.parameters == 1_011_457)
    );
}

#[test]
fn multiply_adds_are_those_of_linear_layers_and_attention() {
    let (tokens, dim) = (197u64, 768u64);
    let blocks = 12 * (tokens * 12 * dim * dim + 2 * tokens * tokens * dim);
    let expected = 196 * dim * dim + blocks + dim * 1000;
    assert_eq!(summary(json!("vit_base_patch16_224")).macs(), expected);
    // A token MLP sees one row a channel, a channel MLP one row a token.
    let (tokens, dim) = (196u64, 512u64);
    let blocks = 8 * (2 * dim * tokens * 256 + 2 * tokens * dim * 2048);
    assert_eq!(summary(json!("mixer_s16_224")).macs(), 196 * 768 * dim + blocks + dim * 1000);
}

#[test]
fn names_and_shapes_follow_timm() {
    let config = json!({"name": "vit_tiny_patch4_32", "depth": 1, "dim": 24, "heads": 3});
    let built = ModelConfig::from_json(&config)
        .unwrap()
        .build(ModelBuilder::new(lacewing_engine::Device::Cpu, lacewing_engine::DType::F32, 0).unwrap())
        .unwrap();
    let mut found: Vec<(String, Vec<usize>)> = built
        .params
        .ids()
        .map(|id| built.params.info(id))
        .map(|i| (i.name.clone(), i.shape.clone()))
        .collect();
    let mut expected: Vec<(String, Vec<usize>)> = [
        ("cls_token", vec![24]),
        ("pos_embed", vec![65, 24]),
        ("patch_embed.proj.weight", vec![24, 48]),
        ("patch_embed.proj.bias", vec![24]),
        ("blocks.0.norm1.weight", vec![24]),
        ("blocks.0.norm1.bias", vec![24]),
        ("blocks.0.attn.qkv.weight", vec![72, 24]),
        ("blocks.0.attn.qkv.bias", vec![72]),
        ("blocks.0.attn.proj.weight", vec![24, 24]),
        ("blocks.0.attn.proj.bias", vec![24]),
        ("blocks.0.norm2.weight", vec![24]),
        ("blocks.0.norm2.bias", vec![24]),
        ("blocks.0.mlp.fc1.weight", vec![96, 24]),
        ("blocks.0.mlp.fc1.bias", vec![96]),
        ("blocks.0.mlp.fc2.weight", vec![24, 96]),
        ("blocks.0.mlp.fc2.bias", vec![24]),
        ("norm.weight", vec![24]),
        ("norm.bias", vec![24]),
        ("head.weight", vec![10, 24]),
        ("head.bias", vec![10]),
    ]
    .map(|(name, shape)| (name.to_owned(), shape))
    .into();
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
    assert_eq!(built.summary.parameters, built.params.n_values());
}

#[test]
fn every_group_reaches_a_layer_and_the_narrower_group_decides() {
    for family in MODELS {
        let config = |name: &str| {
            let mut config = json!({"name": family.variants[0].name});
            config[name] = json!({"structure": "low_rank", "rank": 1});
            config
        };
        for group in family.groups {
            let layers = summary(config(group.name)).layers;
            assert!(
                layers.iter().any(|layer| layer.structure == "low_rank"),
                "{} {}",
                family.name,
                group.name
            );
            assert!(layers.iter().any(|layer| layer.structure == "dense"), "{} {}", family.name, group.name);
        }
    }
    let both = json!({
        "name": "vit_digits", "split_qkv": true, "attn": {"structure": "low_rank", "rank": 2}, "qkv": "dense",
    });
    let low_rank: Vec<String> = summary(both)
        .layers
        .into_iter()
        .filter(|layer| layer.structure == "low_rank")
        .map(|layer| layer.name)
        .collect();
    assert_eq!(low_rank.len(), 4);
    assert!(low_rank.iter().all(|name| name.ends_with("attn.proj")), "{low_rank:?}");
}

#[test]
fn sizes_that_do_not_fit_are_errors_with_numbers() {
    for (config, words) in [
        (json!({"name": "vit_digits", "patch_size": 3}), ["image_size = 8", "got 3"]),
        (json!({"name": "vit_digits", "heads": 7}), ["dim = 128", "heads = 7"]),
        (json!({"name": "vit_digits", "activation": "swish"}), ["gelu", "got swish"]),
        (json!({"name": "vit_digits", "drop_path": 1.0}), ["`drop_path`", "got 1"]),
        (json!({"name": "vit_digits", "depth": 0}), ["`depth`", "at least 1"]),
        (json!({"name": "vit_digits", "mlp_ratio": 0.001}), ["`mlp_ratio`", "dim = 128"]),
        (json!({"name": "mlp_digits", "hidden": [3, 0]}), ["`hidden`", "got 0"]),
        (
            json!({"name": "vit_digits", "mlp": {"structure": "monarch", "blocks": 7}}),
            ["`blocks.0.mlp.fc1` [512, 128]", "pad: true"],
        ),
        (
            json!({"name": "vit_digits", "rules": [{"match": "block.*.mlp.*", "structure": "monarch"}]}),
            ["`block.*.mlp.*` matches none", "nearest"],
        ),
        (
            json!({"name": "vit_digits", "mlp": {"structure": "monarch", "blocks": 4, "kernel": "scatter_dense"}}),
            ["scatter_dense", "monarch"],
        ),
        (
            json!({"name": "vit_digits", "mlp": {"structure": "monarch", "blocks": 4, "kernel": "fast"}}),
            ["no kernel `fast`", "block_sparse"],
        ),
    ] {
        let error = ModelConfig::from_json(&config).unwrap().summary().unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
}
