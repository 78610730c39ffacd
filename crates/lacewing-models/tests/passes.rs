//! Every model of the table, small: forward, backward, restoring, recomputation.

use lacewing_engine::ops::{Target, softmax_cross_entropy};
use lacewing_engine::{Cx, DType, Device, StepRng, Tensor};
use lacewing_models::{BuiltModel, MODELS, ModelConfig};
use lacewing_nn::ModelBuilder;
use serde_json::{Value, json};

const BATCH: usize = 3;

/// A variant made small by whichever of these keys its family has.
fn small(name: &str) -> ModelConfig {
    let mut config = ModelConfig::from_json(&json!(name)).unwrap();
    for (key, value) in [
        ("image_size", json!(8)),
        ("patch_size", json!(4)),
        ("dim", json!(16)),
        ("depth", json!(2)),
        ("heads", json!(2)),
        ("depths", json!([2, 2])),
        ("window_size", json!(2)),
        ("n_classes", json!(5)),
        ("hidden", json!([16, 12])),
        ("width", json!(4)),
        ("layers", json!([1, 2])),
    ] {
        if let Some(own) = config.get(key) {
            // Stages have a number each.
            let value = if own.is_array() && !value.is_array() { json!([value, value]) } else { value };
            config = config.with(key, &value).unwrap();
        }
    }
    // Maps of 8 × 8 and 4 × 4 tokens, so that there are windows to be shifted.
    if config.get("window_size").is_some() {
        config = config.with("image_size", &json!(32)).unwrap();
    }
    config
}

fn build(config: &ModelConfig) -> BuiltModel {
    config.build(ModelBuilder::new(Device::Cpu, DType::F32, 7).unwrap()).unwrap()
}

fn images(model: &BuiltModel) -> Tensor {
    let shape = [&[BATCH][..], &model.model.image_shape()].concat();
    let values: Vec<f32> =
        (0..shape.iter().product()).map(|i: usize| ((i * 37 % 101) as f32) / 50.0 - 1.0).collect();
    Tensor::from_f32(&Device::Cpu, &values, &shape).unwrap()
}

/// Loss, and the gradient of every parameter.
fn pass(built: &BuiltModel, step: u64) -> (f32, Vec<Vec<f32>>) {
    built.params.zero_gradients().unwrap();
    let cx = Cx::training(built.params.clone(), StepRng::new(3, step));
    let logits = built.model.forward(&cx, &images(built)).unwrap();
    assert_eq!(logits.shape(), [BATCH, built.model.n_classes()]);
    let labels = Tensor::from_u32(&Device::Cpu, &[0, 3, 1], &[BATCH]).unwrap();
    let target = Target::Classes { labels: &labels, smoothing: 0.1 };
    let (loss, seed) = softmax_cross_entropy(logits.value(), target, 1.0 / BATCH as f32).unwrap();
    cx.backward(&logits, seed).unwrap();
    let gradient = |id| built.params.gradient(id).unwrap().to_f32().unwrap();
    (loss.to_f32().unwrap().iter().sum::<f32>() / BATCH as f32, built.params.ids().map(gradient).collect())
}

/// A head of zeros lets no gradient through: give every parameter a value.
fn stir(built: &BuiltModel) {
    for id in built.params.ids() {
        let mut values = built.params.master(id).to_f32().unwrap();
        for (at, value) in values.iter_mut().enumerate() {
            *value += ((at * 29 % 31) as f32 / 31.0 - 0.5) * 0.2;
        }
        built.params.set(id, &values).unwrap();
    }
}

#[test]
fn every_variant_runs_forward_and_backward_to_every_parameter() {
    for variant in MODELS.iter().flat_map(|family| family.variants) {
        let built = build(&small(variant.name));
        stir(&built);
        let (loss, gradients) = pass(&built, 0);
        assert!(loss.is_finite(), "{}", variant.name);
        for (id, gradient) in built.params.ids().zip(gradients) {
            let info = built.params.info(id);
            let name = &info.name;
            assert!(gradient.iter().all(|g| g.is_finite()), "{}: {name}", variant.name);
            if !info.trained {
                assert!(gradient.iter().all(|&g| g == 0.0), "{}: {name} is a constant", variant.name);
                continue;
            }
            assert!(gradient.iter().any(|&g| g != 0.0), "{}: no gradient reaches {name}", variant.name);
        }
    }
}

#[test]
fn a_step_against_the_gradient_lowers_the_loss() {
    for family in MODELS {
        let built = build(&small(family.variants[0].name));
        stir(&built);
        let (before, gradients) = pass(&built, 0);
        for (id, gradient) in built.params.ids().zip(gradients) {
            let values = built.params.master(id).to_f32().unwrap();
            let stepped: Vec<f32> = values.iter().zip(gradient).map(|(v, g)| v - 0.01 * g).collect();
            built.params.set(id, &stepped).unwrap();
        }
        let (after, _) = pass(&built, 0);
        assert!(after < before, "{}: {before} to {after}", family.name);
    }
}

#[test]
fn recomputed_blocks_give_the_same_loss_and_gradients_that_differ_by_roundings_only() {
    for name in
        ["vit_digits", "mixer_s4_32", "swinv2_tiny_window8_256", "t2t_vit_14_t", "resnet18", "resnet50_cifar"]
    {
        let config =
            small(name).with("dropout", &json!(0.2)).unwrap().with("drop_path", &json!(0.3)).unwrap();
        let kept = build(&config);
        let again = build(&config.with("recompute", &json!(true)).unwrap());
        stir(&kept);
        stir(&again);
        let ((loss, gradients), (loss_again, gradients_again)) = (pass(&kept, 5), pass(&again, 5));
        assert_eq!(loss.to_bits(), loss_again.to_bits(), "{name}");
        // A batch norm's running statistics have moved, and once.
        for id in kept.params.ids().filter(|&id| !kept.params.info(id).trained) {
            let values = [&kept, &again].map(|model| model.params.master(id).to_f32().unwrap());
            assert_eq!(values[0], values[1], "{name}: {}", kept.params.info(id).name);
        }
        // Other masks would change the gradients by as much as they are large. Where a block ends, gradients are added
        // in another order: each of the roundings on the way, one a product of a layer, is at most u of the whole.
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
        let wide = |gradients: &[Vec<f32>]| -> Vec<f64> {
            gradients.iter().flatten().map(|&g| f64::from(g)).collect()
        };
        let (a, b) = (wide(&gradients), wide(&gradients_again));
        let roundings: usize = kept.summary.layers.iter().map(|layer| layer.n_in + layer.n_out).sum();
        let bound = roundings as f64 * f64::from(f32::EPSILON) / 2.0 * norm(&mut a.iter().copied());
        let error = norm(&mut a.iter().zip(&b).map(|(a, b)| a - b));
        assert!(error <= bound, "{name}: gradients differ by {error}, more than {bound}");
    }
}

#[test]
fn k_winners_are_the_same_and_count_once_in_recomputed_blocks() {
    let winners = json!({"k_winners": {"percent_on": 0.2, "boost_strength": 4.0, "duty_cycle_period": 50}});
    for name in ["vit_digits", "swinv2_tiny_window8_256", "mixer_s4_32", "t2t_vit_14_t"] {
        let config = small(name).with("activation", &winners).unwrap().with("dropout", &json!(0.2)).unwrap();
        let kept = build(&config);
        let again = build(&config.with("recompute", &json!(true)).unwrap());
        stir(&kept);
        stir(&again);
        let state = |built: &BuiltModel| -> Vec<f32> {
            let ids = built.params.ids().filter(|id| built.params.info(*id).name.contains("k_winners"));
            ids.flat_map(|id| built.params.master(id).to_f32().unwrap()).collect()
        };
        assert!(!state(&kept).is_empty(), "{name}");
        for step in 0..5 {
            let before = state(&kept);
            let ((loss, _), (loss_again, _)) = (pass(&kept, step), pass(&again, step));
            assert_eq!(loss.to_bits(), loss_again.to_bits(), "{name}, step {step}");
            assert_eq!(state(&kept), state(&again), "{name}, step {step}");
            assert_ne!(state(&kept), before, "{name}, step {step}");
        }
    }
}

#[test]
fn a_perceptron_of_k_winners_lets_k_units_through() {
    let config = json!({"name": "mlp_digits", "activation": {"k_winners": {"k": 9}},
        "layers": {"structure": "unstructured", "density": 0.25}});
    let built = build(&ModelConfig::from_json(&config).unwrap());
    let names: Vec<&str> = built.params.infos().iter().map(|info| info.name.as_str()).collect();
    for name in ["k_winners.0.duty", "k_winners.0.clock", "k_winners.1.duty", "k_winners.1.clock"] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    // What layer 1 reads is what the winners of layer 0 left.
    let mut ids = built.params.ids();
    let first = ids.find(|id| built.params.info(*id).name.starts_with("layers.1.")).unwrap();
    let active = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
    let seen = active.clone();
    let cx = Cx::evaluation(built.params.clone()).observed(move |id, x| {
        if id == first {
            let x = x.to_f32()?;
            seen.borrow_mut().extend(x.chunks(128).map(|row| row.iter().filter(|&&x| x != 0.0).count()));
        }
        Ok(())
    });
    built.model.forward(&cx, &images(&built)).unwrap();
    // 9 in training, half as many again in evaluation.
    assert_eq!(*active.borrow(), [13; BATCH]);
}

#[test]
fn a_model_restored_from_buffers_and_values_gives_the_same_logits() {
    let mut config = json!({
        "name": "vit_digits", "depth": 2, "split_qkv": true,
        "fc1": {"structure": "pixelfly", "butterfly_size": 4, "n_factors": 1, "block": 8, "rank": 4},
        "fc2": {"structure": "block_sparse", "block": 16, "density": 0.25},
        "qkv": {"structure": "unstructured", "density": 0.2},
        "proj": {"structure": "nm"},
    });
    config["head"] = Value::from("low_rank");
    let config = ModelConfig::from_json(&config).unwrap();
    let built = build(&config);
    assert!(!built.buffers.is_empty());
    let builder = ModelBuilder::restoring(Device::Cpu, DType::F32, built.buffers.clone()).unwrap();
    let restored = config.build(builder).unwrap();
    assert_eq!(restored.summary, built.summary);
    assert_eq!(restored.buffers, built.buffers);
    for id in built.params.ids() {
        let other = restored.params.find(&built.params.info(id).name).unwrap();
        restored.params.set(other, &built.params.master(id).to_f32().unwrap()).unwrap();
    }
    let logits = |model: &BuiltModel| {
        let cx = Cx::evaluation(model.params.clone());
        model.model.forward(&cx, &images(model)).unwrap().value().to_f32().unwrap()
    };
    assert_eq!(logits(&built), logits(&restored));

    let mut foreign = built.buffers.clone();
    foreign[0].name = "blocks.9.mlp.fc1.cols".to_owned();
    let builder = ModelBuilder::restoring(Device::Cpu, DType::F32, foreign).unwrap();
    assert!(config.build(builder).is_err());
}

#[test]
fn a_layer_that_becomes_sparse_leaves_the_first_values_of_the_others() {
    let dense = build(&ModelConfig::from_json(&json!("vit_digits")).unwrap());
    let config = json!({"name": "vit_digits", "fc1": {"structure": "monarch", "blocks": 4}});
    let sparse = build(&ModelConfig::from_json(&config).unwrap());
    for name in ["blocks.0.mlp.fc2.weight", "blocks.3.attn.qkv.weight", "pos_embed", "head.weight"] {
        let values =
            |model: &BuiltModel| model.params.master(model.params.find(name).unwrap()).to_f32().unwrap();
        assert_eq!(values(&dense), values(&sparse), "{name}");
        assert!(values(&dense).iter().any(|&v| v != 0.0));
    }
}
