//! Batch norm as a layer: what belongs to the model, what training changes, what evaluation reads.

use lacewing_engine::{Cx, DType, Device, StepRng, Tensor};
use lacewing_nn::{BatchNorm, BatchNormOptions, Built, ModelBuilder};
use lacewing_testkit::{assert_within, gamma, uniform, widen};

const DIM: usize = 3;
const ROWS: usize = 40;

fn norm(builder: ModelBuilder, zero: bool) -> (BatchNorm, Built) {
    let mut builder = builder;
    let options = BatchNormOptions { dim: DIM, eps: 1e-5, momentum: 0.25, zero };
    let norm = BatchNorm::new(&mut builder.scope("layer"), "bn", options).unwrap();
    (norm, builder.finish().unwrap())
}

fn values(built: &Built, name: &str) -> Vec<f32> {
    built.params.master(built.params.find(&format!("layer.bn.{name}")).unwrap()).to_f32().unwrap()
}

#[test]
fn running_statistics_are_the_models_and_neither_trained_nor_counted_as_parameters() {
    for zero in [false, true] {
        let fresh = ModelBuilder::new(Device::Cpu, DType::F32, 0).unwrap();
        let restoring = ModelBuilder::restoring(Device::Cpu, DType::F32, Vec::new()).unwrap();
        for (builder, restored) in [(fresh, false), (restoring, true)] {
            let (_, built) = norm(builder, zero);
            assert_eq!((built.summary.parameters, built.summary.bytes), (2 * DIM, 4 * 4 * DIM));
            let start = if zero || restored { 0.0 } else { 1.0 };
            assert_eq!(values(&built, "weight"), [start; DIM]);
            assert_eq!(values(&built, "running_mean"), [0.0; DIM]);
            assert_eq!(values(&built, "running_var"), [1.0; DIM]);
            let trained: Vec<bool> = built.params.infos().iter().map(|info| info.trained).collect();
            assert_eq!(trained, [true, true, false, false]);
            assert!(built.params.infos().iter().all(|info| !info.decay));
        }
    }
}

#[test]
fn training_moves_the_running_statistics_and_evaluation_reads_them() {
    let (norm, built) = norm(ModelBuilder::new(Device::Cpu, DType::F32, 0).unwrap(), false);
    let x: Vec<f32> = uniform(1, ROWS * DIM).iter().map(|x| 2.0 * x + 1.0).collect();
    let input = Tensor::from_f32(&Device::Cpu, &x, &[2, 4, 5, DIM]).unwrap();
    let run = |cx: &Cx| norm.forward(cx, &cx.constant(input.clone())).unwrap();
    let evaluated = || run(&Cx::evaluation(built.params.clone())).value().to_f32().unwrap();
    let before = evaluated();
    assert_eq!(evaluated(), before, "evaluation changes nothing");

    let cx = Cx::training(built.params.clone(), StepRng::new(0, 0));
    let y = run(&cx);
    assert_eq!(evaluated(), before, "a pass is over when its gradient is");
    cx.backward(&y, y.value().clone()).unwrap();

    let x = widen(&x);
    let column = |c: usize| x.iter().skip(c).step_by(DIM);
    let means: Vec<f64> = (0..DIM).map(|c| column(c).sum::<f64>() / ROWS as f64).collect();
    let wanted: Vec<f64> = means.iter().map(|mean| 0.25 * mean).collect();
    // Values are below 3, their squares below 9.
    assert_within(&values(&built, "running_mean"), &wanted, &[gamma(ROWS + 4) * 3.0; DIM], "mean");
    let var = |c: usize| column(c).map(|x| (x - means[c]).powi(2)).sum::<f64>() / (ROWS - 1) as f64;
    let wanted: Vec<f64> = (0..DIM).map(|c| 0.75 + 0.25 * var(c)).collect();
    assert_within(&values(&built, "running_var"), &wanted, &[gamma(2 * ROWS + 8) * 9.0; DIM], "variance");

    let [mean, var] = ["running_mean", "running_var"].map(|name| widen(&values(&built, name)));
    let normal = |i: usize| (x[i] - mean[i % DIM]) / (var[i % DIM] + f64::from(1e-5f32)).sqrt();
    let wanted: Vec<f64> = (0..x.len()).map(normal).collect();
    let bound: Vec<f64> = wanted.iter().map(|y| gamma(8) * y.abs()).collect();
    assert_within(&evaluated(), &wanted, &bound, "y");
}
