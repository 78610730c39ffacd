//! Whole models against timm's: the same weights give the same logits and the same gradients.

use lacewing_engine::ops::{Target, softmax_cross_entropy};
use lacewing_engine::{Cx, DType, Device, StepRng, Tensor};
use lacewing_models::weights::{LAYOUTS, Piece};
use lacewing_models::{BuiltModel, ModelConfig};
use lacewing_nn::{ModelBuilder, unfold_weight};
use safetensors::SafeTensors;
use serde_json::{Value, json};

static VIT: &[u8] = include_bytes!("fixtures/vit.safetensors");
static SWIN_V2: &[u8] = include_bytes!("fixtures/swin_v2.safetensors");
static RESNET: &[u8] = include_bytes!("fixtures/resnet.safetensors");

fn words<T>(file: &SafeTensors<'_>, name: &str, read: fn([u8; 4]) -> T) -> Vec<T> {
    let data = file.tensor(name).unwrap_or_else(|_| panic!("no {name}")).data().to_vec();
    data.chunks_exact(4).map(|bytes| read(bytes.try_into().unwrap())).collect()
}

/// The values of a parameter, or of its gradient, in our order: a convolution's `[out, in, kh, kw]` unfolded, where the
/// model unfolds it.
fn ours(built: &BuiltModel, name: &str, shape: &[usize], values: Vec<f32>) -> Vec<f32> {
    let layer = built.summary.layers.iter().find(|layer| name.strip_suffix(".weight") == Some(&layer.name));
    match (layer.and_then(|layer| layer.window), shape) {
        (Some([kh, kw, channels]), &[out, ..]) => {
            assert_eq!(shape, [out, channels, kh, kw], "{name}");
            unfold_weight(&values, [out, channels, kh, kw])
        }
        _ => values,
    }
}

/// Twice the error of PyTorch's own float32, and what storing the answer in float32 loses.
fn compare(file: &SafeTensors<'_>, (prefix, key): (&str, &str), want: &[f32], got: &[f32]) {
    assert_eq!(got.len(), want.len(), "{key}");
    let error = file.tensor(&format!("{prefix}err/{key}")).unwrap().data();
    let error = f64::from_le_bytes(error.try_into().unwrap());
    let largest = want.iter().fold(0f32, |m, v| m.max(v.abs()));
    let bound = 2.0 * error + f64::from(largest * f32::EPSILON);
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let off = (f64::from(*got) - f64::from(*want)).abs();
        assert!(off <= bound, "{prefix}{key}[{i}] = {got}, expected {want} ± {bound:e}");
    }
}

/// Logits and gradients of the model `config` with the weights under `prefix`; the model after the step.
fn check(bytes: &[u8], prefix: &str, config: &Value) -> BuiltModel {
    let file = SafeTensors::deserialize(bytes).unwrap();
    let builder = ModelBuilder::new(Device::Cpu, DType::F32, 0).unwrap();
    let built = ModelConfig::from_json(config).unwrap().build(builder).unwrap();
    let tensor = |key: &str, name: &str| {
        let key = format!("{prefix}{key}");
        let shape = file.tensor(&key).unwrap_or_else(|_| panic!("no {key}")).shape().to_vec();
        ours(&built, name, &shape, words(&file, &key, f32::from_le_bytes))
    };
    for id in built.params.ids() {
        let name = &built.params.info(id).name;
        built.params.set(id, &tensor(&format!("in/{name}"), name)).unwrap();
    }
    let inputs = format!("{prefix}in/");
    let n_tensors = file.names().into_iter().filter(|name| name.starts_with(&inputs)).count();
    assert_eq!(n_tensors, built.params.infos().len(), "every tensor of timm's has its parameter");

    let images = images(&file, &built);
    let labels = Tensor::from_u32(&Device::Cpu, &words(&file, "labels", u32::from_le_bytes), &[3]).unwrap();
    let cx = Cx::training(built.params.clone(), StepRng::new(0, 0));
    let logits = built.model.forward(&cx, &images).unwrap();
    let against = |key: &str, name: &str, got: &[f32]| compare(&file, (prefix, key), &tensor(key, name), got);
    against("logits", "", &logits.value().to_f32().unwrap());
    let target = Target::Classes { labels: &labels, smoothing: 0.1 };
    let (_, dlogits) = softmax_cross_entropy(logits.value(), target, 1.0 / 3.0).unwrap();
    cx.backward(&logits, dlogits).unwrap();
    for id in built.params.ids() {
        let info = built.params.info(id);
        let name = &info.name;
        if info.trained {
            against(&format!("grad/{name}"), name, &built.params.gradient(id).unwrap().to_f32().unwrap());
        } else {
            against(&format!("after/{name}"), name, &built.params.master(id).to_f32().unwrap());
        }
    }
    built
}

fn images(file: &SafeTensors<'_>, built: &BuiltModel) -> Tensor {
    let shape = [&[3][..], &built.model.image_shape()].concat();
    Tensor::from_f32(&Device::Cpu, &words(file, "images", f32::from_le_bytes), &shape).unwrap()
}

#[test]
fn a_vit_has_the_logits_and_gradients_of_timm() {
    let config = json!({"name": "vit_tiny_patch16_224", "image_size": 8, "patch_size": 2, "n_classes": 5,
        "dim": 32, "depth": 2, "heads": 4});
    check(VIT, "", &config);
}

fn swin_v2() -> Value {
    json!({"name": "swinv2_tiny_window8_256", "image_size": 16, "patch_size": 2, "n_classes": 5, "dim": 8,
        "depths": [2, 1], "heads": [2, 4], "window_size": 4, "mlp_ratio": 2.0, "drop_path": 0.0})
}

#[test]
fn a_swin_transformer_has_the_logits_and_gradients_of_timm() {
    check(SWIN_V2, "", &swin_v2());
}

#[test]
fn a_swin_transformer_with_q_k_and_v_of_their_own_is_the_same() {
    let file = SafeTensors::deserialize(SWIN_V2).unwrap();
    let mut config = swin_v2();
    config["split_qkv"] = json!(true);
    let builder = ModelBuilder::new(Device::Cpu, DType::F32, 0).unwrap();
    let built = ModelConfig::from_json(&config).unwrap().build(builder).unwrap();
    let layout = LAYOUTS.iter().find(|layout| layout.name == "timm-split").unwrap();
    let part = |kind: &str, name: &str| -> (String, Vec<f32>, [usize; 2]) {
        let [Piece { name, part: (at, parts) }] = &(layout.pieces)(name)[..] else { panic!("{name}") };
        let key = format!("{kind}/{name}");
        let values = words(&file, &key, f32::from_le_bytes);
        let share = values.len() / parts;
        (key, values, [at * share, share])
    };
    for id in built.params.ids() {
        let (_, values, [from, len]) = part("in", &built.params.info(id).name);
        built.params.set(id, &values[from..][..len]).unwrap();
    }
    let cx = Cx::training(built.params.clone(), StepRng::new(0, 0));
    let logits = built.model.forward(&cx, &images(&file, &built)).unwrap();
    let want = words(&file, "logits", f32::from_le_bytes);
    compare(&file, ("", "logits"), &want, &logits.value().to_f32().unwrap());
    let labels = Tensor::from_u32(&Device::Cpu, &words(&file, "labels", u32::from_le_bytes), &[3]).unwrap();
    let target = Target::Classes { labels: &labels, smoothing: 0.1 };
    let (_, dlogits) = softmax_cross_entropy(logits.value(), target, 1.0 / 3.0).unwrap();
    cx.backward(&logits, dlogits).unwrap();
    for id in built.params.ids() {
        let (key, mut values, [from, len]) = part("grad", &built.params.info(id).name);
        let want = values.clone();
        values[from..][..len].copy_from_slice(&built.params.gradient(id).unwrap().to_f32().unwrap());
        compare(&file, ("", &key), &want, &values);
    }
}

/// And the running statistics after a step, and the logits by them.
#[test]
fn resnets_have_the_logits_gradients_and_statistics_of_timm() {
    for (name, prefix, layers) in [("resnet18", "basic/", [1, 2]), ("resnet50", "bottleneck/", [2, 1])] {
        let config = json!({"name": name, "image_size": 20, "n_classes": 5, "width": 4, "layers": layers});
        let built = check(RESNET, prefix, &config);
        let file = SafeTensors::deserialize(RESNET).unwrap();
        let cx = Cx::evaluation(built.params.clone());
        let logits = built.model.forward(&cx, &images(&file, &built)).unwrap();
        let want = words(&file, &format!("{prefix}eval_logits"), f32::from_le_bytes);
        compare(&file, (prefix, "eval_logits"), &want, &logits.value().to_f32().unwrap());
    }
}
