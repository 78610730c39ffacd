//! A whole vision transformer against timm's: the same weights give the same logits and the same gradients.

use lacewing_engine::ops::{Target, softmax_cross_entropy};
use lacewing_engine::{Cx, DType, Device, StepRng, Tensor};
use lacewing_models::ModelConfig;
use lacewing_nn::ModelBuilder;
use safetensors::SafeTensors;
use serde_json::json;

static BYTES: &[u8] = include_bytes!("fixtures/vit.safetensors");

fn words<T>(file: &SafeTensors<'_>, name: &str, read: fn([u8; 4]) -> T) -> Vec<T> {
    let data = file.tensor(name).unwrap_or_else(|_| panic!("no {name}")).data().to_vec();
    data.chunks_exact(4).map(|bytes| read(bytes.try_into().unwrap())).collect()
}

/// Twice the error of PyTorch's own float32, and what storing the answer in float32 loses.
fn compare(file: &SafeTensors<'_>, key: &str, got: &[f32]) {
    let want = words(file, key, f32::from_le_bytes);
    assert_eq!(got.len(), want.len(), "{key}");
    let error =
        file.tensor(&format!("err/{key}")).unwrap().data().try_into().map(f64::from_le_bytes).unwrap();
    let largest = want.iter().fold(0f32, |m, v| m.max(v.abs()));
    let bound = 2.0 * error + f64::from(largest * f32::EPSILON);
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        let off = (f64::from(*got) - f64::from(*want)).abs();
        assert!(off <= bound, "{key}[{i}] = {got}, expected {want} ± {bound:e}");
    }
}

#[test]
fn a_vit_has_the_logits_and_gradients_of_timm() {
    let file = SafeTensors::deserialize(BYTES).unwrap();
    let config = json!({"name": "vit_tiny_patch16_224", "image_size": 8, "patch_size": 2, "n_classes": 5,
        "dim": 32, "depth": 2, "heads": 4});
    let builder = ModelBuilder::new(Device::Cpu, DType::F32, 0).unwrap();
    let built = ModelConfig::from_json(&config).unwrap().build(builder).unwrap();
    for id in built.params.ids() {
        let name = &built.params.info(id).name;
        built.params.set(id, &words(&file, &format!("in/{name}"), f32::from_le_bytes)).unwrap();
    }
    let n_tensors = file.names().into_iter().filter(|name| name.starts_with("in/")).count();
    assert_eq!(n_tensors, built.params.infos().len(), "every tensor of timm's has its parameter");

    let images =
        Tensor::from_f32(&Device::Cpu, &words(&file, "images", f32::from_le_bytes), &[3, 3, 8, 8]).unwrap();
    let labels = Tensor::from_u32(&Device::Cpu, &words(&file, "labels", u32::from_le_bytes), &[3]).unwrap();
    let cx = Cx::training(built.params.clone(), StepRng::new(0, 0));
    let logits = built.model.forward(&cx, &images).unwrap();
    compare(&file, "logits", &logits.value().to_f32().unwrap());
    let target = Target::Classes { labels: &labels, smoothing: 0.1 };
    let (_, dlogits) = softmax_cross_entropy(logits.value(), target, 1.0 / 3.0).unwrap();
    cx.backward(&logits, dlogits).unwrap();
    for id in built.params.ids() {
        let gradient = built.params.gradient(id).unwrap().to_f32().unwrap();
        compare(&file, &format!("grad/{}", built.params.info(id).name), &gradient);
    }
}
