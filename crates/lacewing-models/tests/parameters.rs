//! Parameter counts, multiply-adds and names against published numbers.

use lacewing_engine::{DType, Device};
use lacewing_models::weights::LAYOUTS;
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
        ("swinv2_tiny_window8_256", 28_347_154),
        ("swinv2_small_window8_256", 49_728_418),
        ("swinv2_base_window8_256", 87_918_816),
        ("swinv2_tiny_window16_256", 28_347_154),
        ("swinv2_small_window16_256", 49_728_418),
        ("swinv2_base_window16_256", 87_918_816),
        ("t2t_vit_14_t", 21_465_422),
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
    ] {
        assert_eq!(summary(json!(name)).parameters, parameters, "{name}");
    }
}

#[test]
fn t2t_vit_has_the_published_parts_names_and_shapes() {
    let builder = ModelBuilder::restoring(Device::Cpu, DType::F32, Vec::new()).unwrap();
    let built = ModelConfig::from_json(&json!("t2t_vit_14_t")).unwrap().build(builder).unwrap();
    let infos = built.params.infos();
    let sum = |part: &str| -> usize {
        infos.iter().filter(|info| info.trained && info.name.starts_with(part)).map(|info| info.len()).sum()
    };
    assert_eq!(sum("tokens_to_token.attention1."), 41_126);
    assert_eq!(sum("tokens_to_token.attention2."), 124_352);
    assert_eq!(sum("tokens_to_token.project."), 221_568);
    for block in 0..14 {
        assert_eq!(sum(&format!("blocks.{block}.")), 1_478_016);
    }
    assert_eq!((sum(""), built.params.n_values()), (21_465_422, 21_465_422));
    let constants: Vec<_> = infos.iter().filter(|info| !info.trained).collect();
    assert_eq!((constants.len(), constants[0].name.as_str(), constants[0].len()), (1, "pos_embed", 75_648));
    assert_eq!(built.summary.bytes, 4 * (21_465_422 + 75_648));

    let mut expected: Vec<(String, Vec<usize>)> = Vec::new();
    let mut add = |name: String, shape: &[usize]| expected.push((name, shape.to_vec()));
    let mut block = |at: String, n_in: usize, dim: usize, hidden: usize| {
        for (norm, width) in [("norm1", n_in), ("norm2", dim)] {
            add(format!("{at}.{norm}.weight"), &[width]);
            add(format!("{at}.{norm}.bias"), &[width]);
        }
        add(format!("{at}.attn.qkv.weight"), &[3 * dim, n_in]);
        for (layer, n_out, n_in) in
            [("attn.proj", dim, dim), ("mlp.fc1", hidden, dim), ("mlp.fc2", dim, hidden)]
        {
            add(format!("{at}.{layer}.weight"), &[n_out, n_in]);
            add(format!("{at}.{layer}.bias"), &[n_out]);
        }
    };
    block("patch_embed.attention1".to_owned(), 147, 64, 64);
    block("patch_embed.attention2".to_owned(), 576, 64, 64);
    (0..14).for_each(|at| block(format!("blocks.{at}"), 384, 384, 1152));
    for (name, shape) in [
        ("cls_token", &[384][..]),
        ("pos_embed.pe", &[197, 384]),
        ("patch_embed.project.weight", &[384, 576]),
        ("patch_embed.project.bias", &[384]),
        ("norm.weight", &[384]),
        ("norm.bias", &[384]),
        ("head.weight", &[1000, 384]),
        ("head.bias", &[1000]),
    ] {
        add(name.to_owned(), shape);
    }
    let fly = LAYOUTS.iter().find(|layout| layout.name == "fly").unwrap();
    let mut found: Vec<(String, Vec<usize>)> = infos
        .iter()
        .map(|info| match (fly.pieces)(&info.name).as_slice() {
            [piece] => (piece.name.clone(), info.shape.clone()),
            pieces => panic!("{}: {pieces:?}", info.name),
        })
        .collect();
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
}

#[test]
fn multiply_adds_of_t2t_vit_are_those_published() {
    let (first, second, tokens) = (56u64 * 56, 28u64 * 28, 14u64 * 14);
    let step = |n: u64, n_in: u64| n * (3 * 64 * n_in + 3 * 64 * 64) + 2 * n * n * 64;
    let n = tokens + 1;
    let block = n * (4 + 2 * 3) * 384 * 384 + 2 * n * n * 384;
    let expected = step(first, 147) + step(second, 576) + tokens * 576 * 384 + 14 * block + 384 * 1000;
    let counted = summary(json!("t2t_vit_14_t")).macs();
    assert_eq!(counted, expected);
    assert_eq!((counted + 50_000_000) / 100_000_000, 61, "6.1 G in the authors' table");
}

#[test]
fn layers_of_the_token_module_take_rules() {
    let rules = json!([
        {"match": "tokens_to_token.attention1.attn.k", "structure": "low_rank", "rank": 3},
        {"match": "tokens_to_token.*.mlp.fc2", "structure": "monarch", "blocks": 8},
        {"match": "tokens_to_token.project", "structure": "block_sparse", "block": 16, "density": 0.5},
    ]);
    let config = json!({"name": "t2t_vit_14_t", "split_qkv": true, "rules": rules, "attn": "low_rank"});
    let layers = summary(config).layers;
    let of = |structure: &str, part: &str| -> usize {
        layers.iter().filter(|l| l.structure == structure && l.name.starts_with(part)).count()
    };
    let module = "tokens_to_token.";
    assert_eq!((of("low_rank", module), of("monarch", module), of("block_sparse", module)), (1, 2, 1));
    assert_eq!((of("dense", module), of("low_rank", "blocks.")), (9, 4 * 14));
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
fn monarch_perceptrons_have_the_published_parameter_counts() {
    let with = |mut config: Value, key: &str, value: Value| {
        config[key] = value;
        config
    };
    let count = |config: &Value, blocks: usize| {
        let rule = json!([{"match": "*", "structure": "monarch", "blocks": blocks, "pad": true}]);
        summary(with(config.clone(), "rules", rule)).parameters
    };
    let mnist = json!({"name": "mlp_mnist", "hidden": [392, 128, 64]});
    assert_eq!(summary(mnist.clone()).parameters, 366_930);
    assert_eq!(count(&mnist, 15), 38_994);
    let cifar = json!({"name": "mlp", "hidden": [3000, 2000, 1000, 500, 200, 100]});
    // The published network leaves out the 100 biases of its sixth layer alone.
    assert_eq!(summary(cifar.clone()).parameters, 17_843_710 + 100);
    let bare = with(cifar, "bias", json!(false));
    assert_eq!(count(&bare, 4), 8_034_336);
    // Two full factors: one block has more parameters than the dense layer.
    for (blocks, millions) in [(1, 32.1), (2, 16.07), (8, 4.02), (10, 3.22), (16, 2.02), (20, 1.61)] {
        let got = count(&bare, blocks) as f64 / 1e6;
        assert!((got - millions).abs() <= if blocks == 1 { 0.05 } else { 0.005 }, "{blocks} blocks: {got} M");
    }
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
        .build(ModelBuilder::new(Device::Cpu, DType::F32, 0).unwrap())
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
fn multiply_adds_of_swin_transformers_are_those_published() {
    // Linear layers and the two products of attention, to the 0.1 G of their authors' table.
    for (name, tenths) in [
        ("swinv2_tiny_window8_256", 59),
        ("swinv2_small_window8_256", 115),
        ("swinv2_base_window8_256", 203),
        ("swinv2_tiny_window16_256", 66),
        ("swinv2_small_window16_256", 126),
        ("swinv2_base_window16_256", 218),
    ] {
        let counted = summary(json!(name)).macs();
        assert_eq!((counted + 50_000_000) / 100_000_000, tenths, "{name}: {counted}");
    }
}

#[test]
fn swin_transformers_have_timms_names_and_shapes() {
    let config = json!({"name": "swinv2_tiny_window8_256", "image_size": 16, "dim": 12, "depths": [1, 1],
        "heads": [3, 6], "window_size": 2, "n_classes": 5});
    let builder = ModelBuilder::new(Device::Cpu, DType::F32, 0).unwrap();
    let built = ModelConfig::from_json(&config).unwrap().build(builder).unwrap();
    let mut expected: Vec<(String, Vec<usize>)> = Vec::new();
    let mut add = |name: String, shape: &[usize]| expected.push((name, shape.to_vec()));
    let mut norm = |name: &str, dim: usize| {
        add(format!("{name}.weight"), &[dim]);
        add(format!("{name}.bias"), &[dim]);
    };
    norm("patch_embed.norm", 12);
    norm("layers.1.downsample.norm", 24);
    norm("norm", 24);
    (0..2).for_each(|at| norm(&format!("layers.{at}.blocks.0.norm1"), 12 << at));
    (0..2).for_each(|at| norm(&format!("layers.{at}.blocks.0.norm2"), 12 << at));
    add("patch_embed.proj.weight".to_owned(), &[12, 48]);
    add("patch_embed.proj.bias".to_owned(), &[12]);
    add("layers.1.downsample.reduction.weight".to_owned(), &[24, 48]);
    add("head.fc.weight".to_owned(), &[5, 24]);
    add("head.fc.bias".to_owned(), &[5]);
    for (at, dim, heads) in [(0, 12, 3), (1, 24, 6)] {
        for (name, shape) in [
            ("attn.logit_scale", &[heads][..]),
            ("attn.q_bias", &[dim]),
            ("attn.v_bias", &[dim]),
            ("attn.cpb_mlp.0.weight", &[512, 2]),
            ("attn.cpb_mlp.0.bias", &[512]),
            ("attn.cpb_mlp.2.weight", &[heads, 512]),
            ("attn.qkv.weight", &[3 * dim, dim]),
            ("attn.proj.weight", &[dim, dim]),
            ("attn.proj.bias", &[dim]),
            ("mlp.fc1.weight", &[4 * dim, dim]),
            ("mlp.fc1.bias", &[4 * dim]),
            ("mlp.fc2.weight", &[dim, 4 * dim]),
            ("mlp.fc2.bias", &[dim]),
        ] {
            add(format!("layers.{at}.blocks.0.{name}"), shape);
        }
    }
    let infos = built.params.infos();
    let mut found: Vec<_> = infos.iter().map(|info| (info.name.clone(), info.shape.clone())).collect();
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
    // As timm has it: neither vectors nor the position bias decay.
    for info in infos {
        let decays = info.shape.len() > 1 && !info.name.contains("cpb_mlp");
        assert_eq!(info.decay, decays, "{}", info.name);
    }
}

#[test]
fn only_what_is_asked_of_a_swin_transformer_is_sparse() {
    let nm = |n: usize, m: usize| json!({"structure": "nm", "n": n, "m": m, "schedule": "sr_ste"});
    let of = |config: Value| -> Vec<String> {
        let layers = summary(config).layers.into_iter();
        layers.filter(|layer| layer.structure == "nm").map(|layer| layer.name).collect()
    };
    let name = "swinv2_tiny_window8_256";
    let mlp = of(json!({"name": name, "mlp": nm(2, 4)}));
    assert_eq!(mlp.len(), 24);
    assert!(mlp.iter().all(|name| name.contains(".mlp.fc")), "{mlp:?}");
    let rules = json!([
        {"match": "*.attn.q", "structure": "nm", "n": 1, "m": 8, "schedule": "sr_ste"},
        {"match": "*.attn.v", "structure": "nm", "n": 2, "m": 4},
    ]);
    let split = of(json!({"name": name, "split_qkv": true, "rules": rules}));
    assert_eq!(split.len(), 24);
    assert!(split.iter().all(|name| name.ends_with(".q") || name.ends_with(".v")), "{split:?}");
    let everywhere =
        summary(json!({"name": name, "attn": nm(2, 4), "mlp": nm(2, 4), "downsample": nm(2, 4)}));
    let dense = everywhere.layers.iter().filter(|layer| layer.structure == "dense");
    let dense: Vec<&str> = dense.map(|layer| layer.name.as_str()).collect();
    assert_eq!(dense, ["patch_embed.proj", "head.fc"]);
}

#[test]
fn multiply_adds_of_resnets_are_those_published() {
    // Convolutions and the head, as torchvision counts them, in millions.
    for (name, millions) in [("resnet18", 1814), ("resnet34", 3664), ("resnet50", 4089)] {
        assert_eq!((summary(json!(name)).macs() + 500_000) / 1_000_000, millions, "{name}");
    }
}

#[test]
fn groups_of_n_m_run_along_the_channels_of_a_convolution() {
    let config = json!({"name": "resnet50", "conv": {"structure": "nm", "n": 2, "m": 4}});
    let sparse = summary(config);
    let of = |structure: &str| -> Vec<&str> {
        let layers = sparse.layers.iter().filter(|layer| layer.structure == structure);
        layers.map(|layer| layer.name.as_str()).collect()
    };
    assert_eq!(of("nm").len(), 48);
    assert_eq!(
        of("dense"),
        [
            "conv1",
            "layer1.0.downsample.0",
            "layer2.0.downsample.0",
            "layer3.0.downsample.0",
            "layer4.0.downsample.0",
            "fc"
        ]
    );
    for layer in sparse.layers.iter().filter(|layer| layer.structure == "nm") {
        let [kh, kw, channels] = layer.window.expect("a convolution");
        assert_eq!((layer.n_in, kh), (kh * kw * channels, kw), "{}", layer.name);
        assert_eq!(layer.config["channels"], channels, "{}", layer.name);
    }
    // A stem of three channels has no such groups; a structure without the key is left alone; a given value stays.
    let stem = json!({"name": "resnet18", "stem": {"structure": "nm"}});
    let error = ModelConfig::from_json(&stem).unwrap().summary().unwrap_err().to_string();
    assert!(error.contains("`conv1` [64, 147]") && error.contains("channels = 3"), "{error}");
    let rules = json!([
        {"match": "conv1", "structure": "low_rank", "rank": 4},
        {"match": "layer1.0.conv1", "structure": "nm", "channels": 192},
    ]);
    let layers = summary(json!({"name": "resnet18", "rules": rules})).layers;
    assert_eq!((layers[0].structure, layers[0].config.get("channels")), ("low_rank", None));
    assert_eq!(layers[1].config["channels"], 192);
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
        (json!({"name": "t2t_vit_14_t", "image_size": 2}), ["`image_size`", "got 2"]),
        (json!({"name": "t2t_vit_14_t", "token_dim": 0}), ["`token_dim`", "got 0"]),
        (json!({"name": "swinv2_tiny_window8_256", "image_size": 40}), ["`window_size`", "divisor of 10"]),
        (json!({"name": "swinv2_tiny_window8_256", "image_size": 16}), ["even before stage 3", "got 16"]),
        (json!({"name": "swinv2_tiny_window8_256", "window_size": 0}), ["`window_size`", "at least 1"]),
        (json!({"name": "swinv2_tiny_window8_256", "heads": [3, 6]}), ["`heads`", "each of 4 stages"]),
        (json!({"name": "swinv2_tiny_window8_256", "heads": [3, 5, 12, 24]}), ["dim = 192", "heads = 5"]),
        (json!({"name": "swinv2_tiny_window8_256", "depths": [2, 0]}), ["`depths`", "got [2, 0]"]),
        (json!({"name": "vit_digits", "heads": 7}), ["dim = 128", "heads = 7"]),
        (json!({"name": "vit_digits", "activation": "swish"}), ["gelu", "got swish"]),
        (
            json!({"name": "vit_digits", "activation": {"k_winners": {"k": 0}}}),
            ["`blocks.0.mlp.k_winners`: k is 0", "1 to 512"],
        ),
        (
            json!({"name": "mlp_digits", "activation": {"k_winners": {"percent_on": 1}}}),
            ["`k_winners.0`: percent_on is 1", "below 1"],
        ),
        (json!({"name": "vit_digits", "drop_path": 1.0}), ["`drop_path`", "got 1"]),
        (json!({"name": "vit_digits", "depth": 0}), ["`depth`", "at least 1"]),
        (json!({"name": "vit_digits", "mlp_ratio": 0.001}), ["`mlp_ratio`", "dim = 128"]),
        (json!({"name": "mlp_digits", "hidden": [3, 0]}), ["`hidden`", "got 0"]),
        (json!({"name": "resnet18", "image_size": 0}), ["`image_size`", "got 0"]),
        (json!({"name": "resnet18", "width": 0}), ["`width`", "got 0"]),
        (json!({"name": "resnet18", "layers": [2, 0]}), ["`layers`", "got [2, 0]"]),
        (json!({"name": "resnet18", "layers": []}), ["`layers`", "1 to 8 stages"]),
        (json!({"name": "resnet50", "norm_momentum": 1.5}), ["`norm_momentum`", "got 1.5"]),
        (json!({"name": "resnet50", "drop_path": 1.0}), ["`drop_path`", "got 1"]),
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
