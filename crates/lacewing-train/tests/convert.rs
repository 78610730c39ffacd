//! Conversion: converted models are what their rows say, budgets hold, round trips are exact, mistakes are named.

use lacewing_core::{StructureKind, structures};
use lacewing_engine::{Cx, DType, Device, Tensor};
use lacewing_models::ModelConfig;
use lacewing_nn::{ModelBuilder, Rules, fold_weight};
use lacewing_train::checkpoint::file::Entry;
use lacewing_train::checkpoint::{MODEL_FILE, ModelCard, ModelInput, SavedModel, file, save_model};
use lacewing_train::convert::{
    Calibration, ConvertError, Converted, Metric, Plan, Source, SourceOptions, convert, write, write_dense,
};
use lacewing_train::evaluate::rebuild;
use lacewing_train::recipe::{ComputeType, Override, parse};
use lacewing_train::run::{Start, calibration_loader, open_data, train};
use lacewing_weights::WeightFile;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;

fn config() -> Value {
    json!({"name": "vit_digits", "dim": 32, "depth": 2, "heads": 2, "mlp_ratio": 2.0})
}

/// A dense model with drawn values, in `folder`.
fn dense(folder: &Path) -> Source {
    let read = ModelConfig::from_json(&config()).expect("a valid config");
    let builder = ModelBuilder::new(Device::Cpu, DType::F32, 5).expect("the host");
    let built = read.build(builder).expect("a model");
    let input = ModelInput { image: built.model.image_shape(), n_classes: 10 };
    let recipe = parse("tiny", "data: {name: digits, batch_size: 100}", &[]).expect("a recipe");
    let card = ModelCard::new("dense", read.to_json(), input, Default::default(), recipe);
    fs::create_dir_all(folder).expect("a folder");
    save_model(&folder.join(MODEL_FILE), &card, &built.params, &built.buffers).expect("a writable folder");
    Source::read(folder, &SourceOptions::default()).expect("what was written")
}

fn plan(to: &[Value]) -> Plan {
    let layers = vec!["blocks.*.mlp.*".to_owned()];
    Plan { to: to.to_vec(), rules: None, layers, budget: None, uniform: false, seed: 3 }
}

fn calibration(source: &Source) -> Calibration {
    let recipe = source.card.as_ref().expect("a card").recipe.clone();
    let data = open_data(&recipe).expect("the digits");
    let loader = calibration_loader(&recipe, &data).expect("a loader");
    Calibration::collect(source, &loader, 150).expect("digits fit the model")
}

fn logits(source: &Source) -> Vec<f32> {
    let pixels: Vec<f32> = (0..3 * 64).map(|at| (at * 7 % 23) as f32 / 11.0 - 1.0).collect();
    let images = Tensor::from_f32(&Device::Cpu, &pixels, &[3, 1, 8, 8]).expect("a tensor");
    let cx = Cx::evaluation(source.built.params.clone());
    source.built.model.forward(&cx, &images).expect("logits").value().to_f32().expect("on the host")
}

fn reread(folder: &Path) -> Source {
    Source::read(folder, &SourceOptions::default()).expect("what was written")
}

/// The families with a size for the layers of the test model at half density.
fn families() -> impl Iterator<Item = (&'static StructureKind, Value)> {
    structures().filter_map(|kind| {
        let sizes = [(32, 64), (64, 32)].map(|(n_in, n_out)| (kind.sized)(n_in, n_out, 0.5));
        let [Some(first), Some(second)] = sizes else { return None };
        // One config for both shapes, where the family's sizes allow it.
        let both = lacewing_core::build(&first, 64, 32, 0, None).is_ok();
        Some((kind, if both { first } else { second }))
    })
}

#[test]
fn every_family_converts_and_the_dense_export_computes_the_same() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = dense(&folder.path().join("dense"));
    let mut converted_families = 0;
    for (kind, config) in families() {
        let Ok(converted) = convert(&source, &plan(std::slice::from_ref(&config)), None) else { continue };
        assert_eq!(converted.rows.len(), 4, "{config}");
        assert!(converted.rows.iter().all(|row| row.error.is_finite() && row.error < 1.01), "{config}");
        let out = folder.path().join(kind.name);
        write(&out, &source, &converted, None).expect("a writable folder");
        let packed = reread(&out);
        assert!(packed.built.summary.layers.iter().any(|layer| layer.structure == kind.name), "{config}");
        // Written dense for other tools and read back, it is the same function.
        let export = folder.path().join(format!("{}-dense", kind.name));
        write_dense(&export, &packed).expect("no learned gate");
        let options = SourceOptions { model: Some(self::config()), ..SourceOptions::default() };
        let twin = Source::read(&export, &options).expect("a dense checkpoint");
        assert!(twin.built.summary.layers.iter().all(|layer| layer.structure == "dense"));
        let (a, b) = (logits(&packed), logits(&twin));
        let largest = b.iter().fold(0f32, |most, v| most.max(v.abs()));
        for (a, b) in a.iter().zip(&b) {
            // Two orders of sums of at most a few hundred terms in a few layers.
            assert!((a - b).abs() <= 2000.0 * f32::EPSILON * largest, "{config}: {a} is not {b}");
        }
        converted_families += 1;
    }
    assert!(converted_families >= 8, "{converted_families} families");
}

#[test]
fn round_trips_are_exact() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = dense(&folder.path().join("dense"));
    for config in [
        json!({"structure": "unstructured", "density": 0.4}),
        json!({"structure": "nm", "n": 1, "m": 4}),
        json!({"structure": "block_sparse", "block": 4, "density": 0.5}),
    ] {
        let name = config["structure"].as_str().expect("a name");
        let first = folder.path().join(name);
        let converted = convert(&source, &plan(std::slice::from_ref(&config)), None).expect("it fits");
        write(&first, &source, &converted, None).expect("a writable folder");
        let packed = reread(&first);
        let (dense, again) =
            (folder.path().join(format!("{name}-d")), folder.path().join(format!("{name}-a")));
        write_dense(&dense, &packed).expect("a pattern is one matrix");
        let options = SourceOptions { model: Some(self::config()), ..SourceOptions::default() };
        let twin = Source::read(&dense, &options).expect("a dense checkpoint");
        let back = convert(&twin, &plan(&[config]), None).expect("it fits");
        assert!(back.rows.iter().all(|row| row.error == 0.0), "{:?}", back.rows);
        write(&again, &twin, &back, None).expect("a writable folder");
        let again = reread(&again);
        assert_eq!(again.built.buffers, packed.built.buffers);
        let values = |source: &Source| source.built.params.flat_master().to_f32().expect("on the host");
        assert_eq!(values(&again), values(&packed));
    }
}

#[test]
fn a_calibrated_projection_keeps_outputs_better() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = dense(&folder.path().join("dense"));
    let calibration = calibration(&source);
    for config in
        [json!({"structure": "unstructured", "density": 0.3}), json!({"structure": "low_rank", "rank": 8})]
    {
        let plan = plan(&[config]);
        let with = convert(&source, &plan, Some(&calibration)).expect("it fits");
        let without = convert(&source, &plan, None).expect("it fits");
        for (with, without) in with.rows.iter().zip(&without.rows) {
            let layer = source.built.summary.layers.iter().find(|layer| layer.name == with.layer);
            assert!(layer.is_some() && with.error >= without.error * (1.0 - 1e-9), "{with:?} {without:?}");
        }
        let plain = calibration.logit_error(&without.built).expect("the host");
        assert!(with.logit_error.expect("calibrated") < plain, "{:?} is not below {plain}", with.logit_error);
    }
}

fn spent(converted: &Converted) -> f64 {
    let sum = |of: fn(&lacewing_train::convert::Row) -> usize| converted.rows.iter().map(of).sum::<usize>();
    sum(|row| row.parameters) as f64 / sum(|row| row.dense_parameters) as f64
}

#[test]
fn a_budget_is_kept_and_the_mixture_is_at_least_as_near_as_any_family_at_even_shares() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = dense(&folder.path().join("dense"));
    let calibration = calibration(&source);
    let names = ["monarch", "low_rank", "unstructured", "block_diagonal"];
    let within = |names: &[&str], fraction| {
        let to: Vec<Value> = names.iter().map(|name| json!(name)).collect();
        let uniform = names.len() == 1;
        let plan = Plan { budget: Some((Metric::Params, fraction)), uniform, ..plan(&to) };
        convert(&source, &plan, Some(&calibration)).expect("a budget that can be met")
    };
    for fraction in [0.5, 0.25] {
        let mixture = within(&names, fraction);
        assert!(spent(&mixture) <= fraction, "{} of {fraction}", spent(&mixture));
        for name in names {
            let single = within(&[name], fraction);
            assert!(spent(&single) <= fraction);
            assert!(mixture.logit_error <= single.logit_error, "{name} is nearer at {fraction}");
        }
    }
    // The choice can be given back as rules.
    let mixture = within(&names, 0.5);
    let out = folder.path().join("mixture");
    write(&out, &source, &mixture, None).expect("a writable folder");
    let rules = fs::read_to_string(out.join("rules.yaml")).expect("a file");
    let rules = Rules::from_json(&lacewing_train::recipe::parse_value("rules", &rules).expect("YAML"));
    let plan = Plan { rules: Some(rules.expect("rules")), ..plan(&[]) };
    let again = convert(&source, &plan, Some(&calibration)).expect("the same choice");
    assert_eq!(again.rows, mixture.rows);

    let plan = Plan { budget: Some((Metric::Params, 1e-4)), ..self::plan(&[json!("low_rank")]) };
    match convert(&source, &plan, None) {
        Err(ConvertError::Budget { least, layers: 4, .. }) => assert!(least > 1e-4 && least < 0.1, "{least}"),
        other => panic!("{other:?}"),
    }
    // The same share everywhere, and no more.
    let even =
        Plan { budget: Some((Metric::Params, 0.3)), uniform: true, ..self::plan(&[json!("low_rank")]) };
    for row in convert(&source, &even, None).expect("low rank has such a size").rows {
        let share = row.parameters as f64 / row.dense_parameters as f64;
        assert!(share <= 0.3 && share > 0.25, "{row:?}");
    }
    let two = Plan { to: vec![json!("low_rank"), json!("nm")], ..even.clone() };
    assert!(matches!(convert(&source, &two, None), Err(ConvertError::Uniform { families: 2, .. })));
    let small = Plan { budget: Some((Metric::Params, 0.01)), ..even };
    assert!(matches!(convert(&source, &small, None), Err(ConvertError::TooLarge { .. })));

    for metric in [Metric::Bytes, Metric::Macs, Metric::Latency] {
        let plan = Plan { budget: Some((metric, 0.9)), ..self::plan(&[json!("low_rank")]) };
        match convert(&source, &plan, None) {
            Ok(converted) => assert_eq!(converted.rows.len(), 4),
            // A machine on which low rank saves no time has no such choice, and says so.
            Err(ConvertError::Budget { .. }) if metric == Metric::Latency => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// Name, shape and values of every tensor of a checkpoint.
type Tensors = Vec<(String, Vec<usize>, Vec<f32>)>;

#[test]
fn mistakes_are_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = dense(&folder.path().join("dense"));
    let fail = |plan: &Plan| convert(&source, plan, None).expect_err("a mistake").to_string();
    let typo = Plan { layers: vec!["blocks.*.mpl.*".to_owned()], ..plan(&[json!("monarch")]) };
    assert!(fail(&typo).contains("`blocks.*.mpl.*` matches none"), "{}", fail(&typo));
    let rules = Rules::from_json(&json!([{"match": "block.0.*", "structure": "monarch"}])).expect("rules");
    assert!(fail(&Plan { rules: Some(rules), ..plan(&[]) }).contains("matches none"));
    assert!(fail(&plan(&[json!("monarch"), json!("nm")])).contains("2 structures"));
    let error = fail(&plan(&[json!({"structure": "monarch", "blocks": 7})]));
    assert!(error.contains("blocks.0.mlp.fc1") && error.contains("7"), "{error}");
    let sized = Plan { budget: Some((Metric::Params, 0.5)), ..plan(&[json!({"structure": "nm", "n": 2})]) };
    assert!(fail(&sized).contains("names only"));
    // No flat butterfly divides 10 outputs.
    let head = Plan { layers: vec!["head".to_owned()], ..plan(&[json!("flat_butterfly")]) };
    let none = convert(&source, &Plan { budget: Some((Metric::Params, 0.5)), ..head }, None);
    let none = none.expect_err("no size");
    assert!(
        matches!(&none, ConvertError::NoSize { layer, n_in: 32, n_out: 10 } if layer == "head"),
        "{none}"
    );

    // A dense checkpoint of another tool, damaged in several ways.
    let path = folder.path().join("theirs.safetensors");
    let options = SourceOptions { model: Some(config()), ..SourceOptions::default() };
    let params = &source.built.params;
    let damaged = |damage: &dyn Fn(&mut Tensors), options: &SourceOptions| {
        let mut tensors: Tensors = params
            .ids()
            .zip(params.infos())
            .map(|(id, info)| {
                let values = params.master(id).to_f32().expect("on the host");
                (info.name.clone(), info.shape.clone(), values)
            })
            .collect();
        damage(&mut tensors);
        let entries: Vec<Entry> =
            tensors.into_iter().map(|(name, shape, values)| Entry::f32(name, &shape, &values)).collect();
        file::write(&path, &entries, "dense").expect("a writable folder");
        Source::read(&path, options)
    };
    assert!(damaged(&|_| {}, &options).is_ok());
    let message = |damage: &dyn Fn(&mut Tensors)| damaged(damage, &options).expect_err("damaged").to_string();
    let nan = message(&|tensors| tensors[3].2[2] = f32::NAN);
    assert!(nan.contains("NaN at position 2"), "{nan}");
    let unknown = message(&|tensors| tensors.push(("extra.weight".to_owned(), vec![1], vec![0.0])));
    assert!(unknown.contains("`extra.weight`") && unknown.contains("--allow-missing"), "{unknown}");
    let missing = message(&|tensors| tensors.retain(|tensor| tensor.0 != "head.bias"));
    assert!(missing.contains("`head.bias`"), "{missing}");
    let shape = message(&|tensors| {
        let head = tensors.iter_mut().find(|tensor| tensor.0 == "head.weight").expect("a head");
        head.1 = vec![20, 16];
    });
    assert!(
        shape.contains("`head.weight`") && shape.contains("[10, 32]") && shape.contains("[20, 16]"),
        "{shape}"
    );
    let lenient = SourceOptions { allow_missing: true, ..options.clone() };
    let read = damaged(&|tensors| tensors.retain(|tensor| tensor.0 != "head.bias"), &lenient);
    assert!(read.is_ok());
    assert!(matches!(Source::read(&path, &SourceOptions::default()), Err(ConvertError::NoModel { .. })));
    assert!(matches!(
        Source::read(&folder.path().join("dense"), &options),
        Err(ConvertError::KnownModel { .. })
    ));
}

#[test]
fn a_t2t_vit_is_read_under_its_authors_names_and_under_flys() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("theirs.safetensors");
    let model = |split_qkv: bool| {
        json!({"name": "t2t_vit_14_t", "image_size": 16, "token_dim": 4, "dim": 8, "depth": 2, "heads": 2,
            "n_classes": 3, "split_qkv": split_qkv})
    };
    let builder = ModelBuilder::new(Device::Cpu, DType::F32, 5).expect("the host");
    let read = ModelConfig::from_json(&model(false)).expect("a valid config");
    let params = read.build(builder).expect("a model").params;
    let values = |name: &str| {
        let id = params.find(name).expect("a parameter");
        params.master(id).to_f32().expect("on the host")
    };
    // A table that no formula gives.
    let table: Vec<f32> = (0..2 * 8).map(|i| i as f32 / 16.0).collect();
    for fly in [false, true] {
        let entries = params.infos().iter().map(|info| {
            let shape = match info.name.as_str() {
                "pos_embed" => vec![1, 2, 8],
                "cls_token" => vec![1, 1, 8],
                _ => info.shape.clone(),
            };
            let own = if info.name == "pos_embed" { table.clone() } else { values(&info.name) };
            let name = match info.name.strip_prefix("tokens_to_token.") {
                Some(rest) if fly => format!("patch_embed.{rest}"),
                _ if fly && info.name == "pos_embed" => "pos_embed.pe".to_owned(),
                _ => info.name.clone(),
            };
            Entry::f32(name, &shape, &own)
        });
        file::write(&path, &entries.collect::<Vec<Entry>>(), "dense").expect("a writable folder");
        for split_qkv in [false, true] {
            let options = SourceOptions { model: Some(model(split_qkv)), ..SourceOptions::default() };
            let source = Source::read(&path, &options).expect("every tensor has a place");
            let expected = if fly { "fly" } else { ["timm", "timm-split"][usize::from(split_qkv)] };
            assert_eq!(source.layout.expect("another tool's").name, expected);
            for (id, info) in source.built.params.ids().zip(source.built.params.infos()) {
                let got = source.built.params.master(id).to_f32().expect("on the host");
                let third = ["q", "k", "v"].iter().enumerate().find_map(|(at, letter)| {
                    let (before, rest) = info.name.split_once(&format!(".attn.{letter}."))?;
                    let fused = values(&format!("{before}.attn.qkv.{rest}"));
                    Some(fused[at * fused.len() / 3..][..fused.len() / 3].to_vec())
                });
                let wanted = match info.name.as_str() {
                    "pos_embed" => table.clone(),
                    name => third.unwrap_or_else(|| values(name)),
                };
                assert_eq!(got, wanted, "{}", info.name);
            }
        }
    }
}

#[test]
fn a_swin_transformer_is_read_under_timms_names_and_under_microsofts() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("theirs.safetensors");
    let model = |split_qkv: bool| {
        json!({"name": "swinv2_tiny_window8_256", "image_size": 16, "dim": 8, "depths": [1, 1, 1],
            "heads": [2, 2, 4], "window_size": 2, "n_classes": 3, "split_qkv": split_qkv})
    };
    let builder = ModelBuilder::new(Device::Cpu, DType::F32, 5).expect("the host");
    let params = ModelConfig::from_json(&model(false)).expect("a valid config").build(builder);
    let params = params.expect("a model").params;
    // No two alike, that a wrong place is seen.
    let values = |name: &str| -> Vec<f32> {
        let at = params.infos().iter().position(|info| info.name == name).expect("a parameter");
        (0..params.infos()[at].len()).map(|i| (1000 * at + i) as f32).collect()
    };
    for microsoft in [false, true] {
        let mut entries: Vec<Entry> = Vec::new();
        for info in params.infos() {
            let shape = match &info.shape[..] {
                &[heads] if info.name.ends_with("logit_scale") => vec![heads, 1, 1],
                &[dim, _] if info.name == "patch_embed.proj.weight" => vec![dim, 3, 4, 4],
                shape => shape.to_vec(),
            };
            let name = match microsoft {
                false => info.name.clone(),
                true => info
                    .name
                    .replace("head.fc", "head")
                    .replace("layers.1.downsample", "layers.0.downsample")
                    .replace("layers.2.downsample", "layers.1.downsample"),
            };
            entries.push(Entry::f32(name, &shape, &values(&info.name)));
        }
        if microsoft {
            for (name, shape) in
                [("attn.relative_coords_table", &[1, 3, 3, 2][..]), ("attn_mask", &[4, 4, 4])]
            {
                let values = vec![0.5; shape.iter().product()];
                entries.push(Entry::f32(format!("layers.0.blocks.0.{name}"), shape, &values));
            }
        }
        file::write(&path, &entries, "dense").expect("a writable folder");
        let shapes = |path: &Path| -> Vec<(String, Vec<usize>)> {
            let file = WeightFile::read(path).expect("a file of tensors");
            let tensors = file.tensors().iter();
            let mut shapes: Vec<_> =
                tensors.map(|tensor| (tensor.name.clone(), tensor.shape.clone())).collect();
            shapes.sort();
            shapes
        };
        for split_qkv in [false, true] {
            let options = SourceOptions { model: Some(model(split_qkv)), ..SourceOptions::default() };
            let source = Source::read(&path, &options).expect("every tensor has a place");
            if !microsoft && !split_qkv {
                let back = folder.path().join("back");
                write_dense(&back, &source).expect("a writable folder");
                assert_eq!(shapes(&back.join(MODEL_FILE)), shapes(&path), "what timm reads");
            }
            let expected = if microsoft { "swin" } else { ["timm", "timm-split"][usize::from(split_qkv)] };
            assert_eq!(source.layout.expect("another tool's").name, expected);
            for (id, info) in source.built.params.ids().zip(source.built.params.infos()) {
                let got = source.built.params.master(id).to_f32().expect("on the host");
                let third = ["q", "k", "v"].iter().enumerate().find_map(|(at, letter)| {
                    let (before, rest) = info.name.split_once(&format!(".attn.{letter}."))?;
                    let fused = values(&format!("{before}.attn.qkv.{rest}"));
                    Some(fused[at * fused.len() / 3..][..fused.len() / 3].to_vec())
                });
                assert_eq!(got, third.unwrap_or_else(|| values(&info.name)), "{}", info.name);
            }
        }
    }
}

#[test]
fn logits_that_are_not_numbers_are_an_error() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = dense(&folder.path().join("dense"));
    let recipe = source.card.as_ref().expect("a card").recipe.clone();
    let loader = calibration_loader(&recipe, &open_data(&recipe).expect("the digits")).expect("a loader");
    let calibration = Calibration::collect(&source, &loader, 50).expect("digits fit the model");
    let params = &source.built.params;
    let id = params.find("blocks.1.mlp.fc2.bias").expect("a parameter");
    params.set(id, &vec![f32::MAX; params.info(id).len()]).expect("as many values");
    params.refresh_copy().expect("the host");
    let plan = plan(&[json!({"structure": "low_rank", "rank": 2})]);
    for (error, model) in [
        (Calibration::collect(&source, &loader, 50).expect_err("no numbers"), "to be converted"),
        (convert(&source, &plan, Some(&calibration)).expect_err("no numbers"), "converted into low_rank"),
    ] {
        assert!(
            matches!(error, ConvertError::NotFiniteLogits { .. }) && error.to_string().contains(model),
            "{error}"
        );
    }
}

#[test]
fn tied_layers_stay_tied() {
    let model = json!({"name": "mlp", "image_size": 8, "channels": 1, "hidden": [64, 64], "n_classes": 10});
    let options = SourceOptions { model: Some(model), ..SourceOptions::default() };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tied.pt");
    let source = Source::read(&path, &options).expect("every tensor has a place");
    assert_eq!(source.tied_to("layers.1"), Some("layers.0"));
    let recipe = parse("tiny", "data: {name: digits, batch_size: 100}", &[]).expect("a recipe");
    let data = open_data(&recipe).expect("the digits");
    let loader = calibration_loader(&recipe, &data).expect("a loader");
    // Other inputs reach the second layer.
    let calibration = Calibration::collect(&source, &loader, 150).expect("digits fit the model");
    assert_ne!(calibration.moment("layers.0"), calibration.moment("layers.1"));

    let layers = vec!["layers.*".to_owned()];
    let by_rule = Plan { layers, ..plan(&[json!({"structure": "low_rank", "rank": 8})]) };
    let to = vec![json!("low_rank"), json!("unstructured")];
    let within = Plan { to, budget: Some((Metric::Params, 0.4)), ..by_rule.clone() };
    for plan in [by_rule, within] {
        let converted = convert(&source, &plan, Some(&calibration)).expect("it fits");
        assert!(spent(&converted) <= plan.budget.map_or(1.0, |(_, fraction)| fraction));
        let params = &converted.built.params;
        let of = |layer: &str| -> Vec<Vec<f32>> {
            let own = params
                .ids()
                .zip(params.infos())
                .filter(|(_, info)| info.name.starts_with(layer) && !info.name.ends_with("bias"));
            own.map(|(id, _)| params.master(id).to_f32().expect("on the host")).collect()
        };
        assert!(!of("layers.0.").is_empty());
        assert_eq!(of("layers.0."), of("layers.1."));
        let buffers = |layer: &str| -> Vec<Vec<u32>> {
            let own = converted.built.buffers.iter().filter(|buffer| buffer.name.starts_with(layer));
            own.map(|buffer| buffer.data.clone()).collect()
        };
        assert_eq!(buffers("layers.0."), buffers("layers.1."));
    }
}

#[test]
fn training_starts_from_a_converted_model() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = dense(&folder.path().join("dense"));
    let config = json!({"structure": "unstructured", "density": 0.3});
    let converted = convert(&source, &plan(&[config]), None).expect("it fits");
    let out = folder.path().join("converted");
    write(&out, &source, &converted, None).expect("a writable folder");

    // The recipe's own model is another; the weights bring theirs.
    let changes = [
        Override::new("init", out.display().to_string()),
        Override::new("out", folder.path().join("run").display().to_string()),
    ];
    let text = "data: {name: digits, batch_size: 100}\nmodel: {name: vit_digits, mlp: monarch, dropout: 0.1}\n\
                twin: true\ntrain: {max_steps: 2, epochs: 1, lr: 1e-6, weight_decay: 0, warmup_epochs: 0}";
    let recipe = parse("tune", text, &changes).expect("a recipe");
    let finished =
        train(recipe, Start::New, &AtomicBool::new(false), &mut |_| {}).expect("it trains two steps");
    assert_eq!(finished.rows.len(), 1);
    let tuned = SavedModel::read(&folder.path().join("run")).expect("weights");
    assert_eq!(tuned.buffers().expect("indices"), converted.built.buffers);
    let built = rebuild(&tuned, &Device::Cpu, ComputeType::F32).expect("it is whole");
    let read =
        |built: &lacewing_models::BuiltModel| built.params.flat_master().to_f32().expect("on the host");
    let (before, after) = (read(&converted.built), read(&built));
    assert_ne!(before, after);
    // Two steps of AdamW at 1e-6 move no value by more than that each.
    let moved = before.iter().zip(&after).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(moved < 1e-5, "{moved}");
}

/// A file as torchvision and timm write it: convolutions `[out, in, kh, kw]`, and a count beside every batch norm.
#[test]
fn resnets_of_other_tools_are_read_converted_along_channels_and_written_back() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config =
        json!({"name": "resnet50_cifar", "channels": 1, "image_size": 8, "width": 4, "layers": [1, 1]});
    let read = ModelConfig::from_json(&config).expect("a valid config");
    let built =
        read.build(ModelBuilder::new(Device::Cpu, DType::F32, 5).expect("the host")).expect("a model");
    let mut entries = Vec::new();
    for (id, info) in built.params.ids().zip(built.params.infos()) {
        let values: Vec<f32> = (0..info.len()).map(|i| (i * 29 % 31) as f32 / 31.0 + 0.1).collect();
        built.params.set(id, &values).expect("as many");
        let layer =
            built.summary.layers.iter().find(|layer| info.name.strip_suffix(".weight") == Some(&layer.name));
        entries.push(match layer.and_then(|layer| Some((layer.n_out, layer.window?))) {
            Some((n_out, [kh, kw, channels])) => {
                let shape = [n_out, channels, kh, kw];
                Entry::f32(info.name.clone(), &shape, &fold_weight(&values, shape))
            }
            None => Entry::f32(info.name.clone(), &info.shape, &values),
        });
        if let Some(norm) = info.name.strip_suffix(".running_var") {
            entries.push(Entry::u32(format!("{norm}.num_batches_tracked"), &[], &[7]));
        }
    }
    let path = folder.path().join("resnet.safetensors");
    file::write(&path, &entries, "dense").expect("a writable folder");
    let options = SourceOptions { model: Some(config), ..SourceOptions::default() };
    let source = Source::read(&path, &options).expect("every tensor has a place");
    assert_eq!(source.layout.expect("another tool's").name, "timm");
    for (id, info) in built.params.ids().zip(built.params.infos()) {
        let [ours, theirs] =
            [&built, &source.built].map(|built| built.params.master(id).to_f32().expect("there"));
        assert_eq!(ours, theirs, "{}", info.name);
    }

    let to = |layers: &str, budget| {
        let (to, layers) = (vec![json!("nm")], vec![layers.to_owned()]);
        convert(&source, &Plan { to, rules: None, layers, budget, uniform: false, seed: 3 }, None)
    };
    let converted = to("layer*.conv?", None).expect("it fits");
    assert_eq!(converted.rows.len(), 6);
    for row in &converted.rows {
        let layer =
            source.built.summary.layers.iter().find(|layer| layer.name == row.layer).expect("a layer");
        assert_eq!(row.to["channels"], layer.window.expect("a convolution")[2], "{}", row.layer);
    }
    // Sizes whose groups are longer than a layer has channels are not tried.
    let within =
        to("layer*.conv?", Some((Metric::Params, 0.4))).expect("a half is too much, a quarter is there");
    assert!(within.rows.iter().map(|row| row.parameters).sum::<usize>() > 0);
    let error = to("conv1", None).expect_err("one channel").to_string();
    assert!(error.contains("`conv1`") && error.contains("channels = 1"), "{error}");

    let packed = folder.path().join("packed");
    write(&packed, &source, &converted, None).expect("a writable folder");
    let packed = reread(&packed);
    let export = folder.path().join("export");
    write_dense(&export, &packed).expect("a pattern is one matrix");
    let twin = Source::read(&export, &options).expect("a dense checkpoint");
    let of = |source: &Source, name: &str| {
        let info = source.built.params.infos().iter().find(|info| info.name == name).expect("a parameter");
        source
            .built
            .params
            .master(source.built.params.find(&info.name).expect("there"))
            .to_f32()
            .expect("on the host")
    };
    assert_eq!(of(&twin, "layer2.0.downsample.0.weight"), of(&source, "layer2.0.downsample.0.weight"));
    assert_eq!(of(&twin, "bn1.running_var"), of(&source, "bn1.running_var"));
    let (dense, sparse) = (of(&source, "layer2.0.conv2.weight"), of(&twin, "layer2.0.conv2.weight"));
    for (dense, sparse) in dense.chunks(4).zip(sparse.chunks(4)) {
        assert_eq!(sparse.iter().filter(|&&w| w != 0.0).count(), 2, "{sparse:?}");
        assert!(sparse.iter().zip(dense).all(|(sparse, dense)| *sparse == 0.0 || sparse == dense));
    }

    // Channels last, as our own matrix has them, but with four dimensions.
    for entry in &mut entries {
        if let [out, channels, kh, kw] = entry.shape[..] {
            entry.shape = vec![out, kh, kw, channels];
        }
    }
    file::write(&path, &entries, "dense").expect("a writable folder");
    let error = Source::read(&path, &options).expect_err("another order").to_string();
    assert!(error.contains("`conv1.weight`") && error.contains("[4, 1, 3, 3]"), "{error}");
}
