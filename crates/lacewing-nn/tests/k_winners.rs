//! K-winners as a layer: how many win, on what shapes, from which epoch's boost, and what settings are refused.

use lacewing_engine::{Cx, DType, Device, Params, StepRng, Tensor};
use lacewing_nn::{KWinners, KWinnersConfig, ModelBuilder, Units};
use lacewing_testkit::uniform;
use std::sync::Arc;

fn share(percent_on: f64) -> KWinnersConfig {
    KWinnersConfig { percent_on: Some(percent_on), ..KWinnersConfig::default() }
}

fn build(units: Units, config: KWinnersConfig) -> Result<(KWinners, Arc<Params>), String> {
    let mut builder = ModelBuilder::new(Device::Cpu, DType::F32, 0).unwrap();
    let layer = KWinners::new(&mut builder.scope("blocks.0"), units, config);
    let layer = layer.map_err(|error| error.to_string())?;
    Ok((layer, builder.finish().unwrap().params))
}

fn map(height: usize, width: usize, channels: usize) -> Units {
    Units::Map { height, width, channels }
}

#[test]
fn the_number_of_winners_is_rounded_as_published() {
    let count = |units, config| build(units, config).unwrap().0.winners();
    assert_eq!(count(Units::Row(1000), share(0.1)), (100, 150));
    // Halves go to even numbers in training, and are cut off in evaluation.
    assert_eq!(count(Units::Row(25), share(0.1)), (2, 3));
    assert_eq!(count(Units::Row(35), share(0.1)), (4, 6));
    assert_eq!(count(Units::Row(50), share(0.1)), (5, 7));
    // 100 · 1.15 is 114.99999999999999 in f64.
    assert_eq!(
        count(Units::Row(1000), KWinnersConfig { k_inference_factor: 1.15, ..share(0.1) }),
        (100, 115)
    );
    // Of whole maps evaluation's winners are a share of the units themselves.
    assert_eq!(count(map(5, 2, 5), share(0.1)), (5, 8));
    let k = KWinnersConfig { k: Some(3), k_inference_factor: 1.0, ..KWinnersConfig::default() };
    assert_eq!(count(Units::Row(4), k), (3, 3));
}

#[test]
fn settings_out_of_range_are_errors_with_key_and_value() {
    let row = Units::Row(10);
    let k = |k: usize| KWinnersConfig { k: Some(k), ..KWinnersConfig::default() };
    for (units, config, words) in [
        (row, KWinnersConfig::default(), ["percent_on is neither", "`k` in its place"]),
        (row, KWinnersConfig { k: Some(2), ..share(0.2) }, ["k is 2", "percent_on is given"]),
        (row, share(0.0), ["percent_on is 0", "above 0"]),
        (row, share(1.0), ["percent_on is 1", "below 1"]),
        (row, share(f64::NAN), ["percent_on is NaN", "above 0"]),
        // Rounds to no winners at all.
        (row, share(0.04), ["percent_on is 0.04", "1 to 10 winners of 10"]),
        (map(1, 2, 5), share(0.04), ["percent_on is 0.04", "1 to 10 winners of 10"]),
        (row, k(0), ["k is 0", "1 to 10"]),
        (row, k(11), ["k is 11", "1 to 10"]),
        (row, share(0.7), ["k_inference_factor is 1.5", "below 1 / percent_on"]),
        (row, k(8), ["k_inference_factor is 1.5", "1 to 10 winners in evaluation of the 8"]),
        (row, KWinnersConfig { k_inference_factor: 0.1, ..k(2) }, ["k_inference_factor is 0.1", "of the 2"]),
        (row, KWinnersConfig { k_inference_factor: -1.0, ..k(2) }, ["k_inference_factor is -1", "above 0"]),
        (row, KWinnersConfig { boost_strength: -1.0, ..k(2) }, ["boost_strength is -1", "0 or more"]),
        (row, KWinnersConfig { boost_strength: f64::INFINITY, ..k(2) }, ["boost_strength is inf", "finite"]),
        (row, KWinnersConfig { boost_strength_factor: 1.1, ..k(2) }, ["factor is 1.1", "0 to 1"]),
        (row, KWinnersConfig { duty_cycle_period: 0, ..k(2) }, ["duty_cycle_period is 0", "1 to"]),
        (row, KWinnersConfig { duty_cycle_alpha: Some(0.0), ..k(2) }, ["duty_cycle_alpha is 0", "above 0"]),
    ] {
        let error = build(units, config).map(|_| ()).unwrap_err();
        assert!(error.starts_with("`blocks.0`: "), "{error}");
        assert!(words.iter().all(|word| error.contains(word)), "{config:?}: {error}");
    }
}

/// How many values of each group are not 0.
fn active(cx: &Cx, layer: &KWinners, shape: &[usize], units: usize) -> Vec<usize> {
    let values = uniform(5, shape.iter().product());
    let x = cx.constant(Tensor::from_f32(&Device::Cpu, &values, shape).unwrap());
    let y = layer.forward(cx, &x).unwrap();
    assert_eq!(y.shape(), shape);
    let y = y.value().to_f32().unwrap();
    y.chunks(units).map(|group| group.iter().filter(|&&y| y != 0.0).count()).collect()
}

#[test]
fn rows_pixels_and_maps_have_their_winners_in_training_and_evaluation() {
    for (units, shape, n) in [
        (Units::Row(20), &[3, 20][..], 20),
        (Units::Row(20), &[2, 3, 20], 20),
        (Units::Row(20), &[2, 3, 4, 20], 20),
        (map(3, 4, 5), &[2, 3, 4, 5], 60),
    ] {
        let (layer, params) = build(units, share(0.2)).unwrap();
        let (k, k_inference) = layer.winners();
        let groups = shape.iter().product::<usize>() / n;
        let training = Cx::training(params.clone(), StepRng::new(0, 0));
        assert_eq!(active(&training, &layer, shape, n), vec![k; groups]);
        assert_eq!(active(&Cx::evaluation(params), &layer, shape, n), vec![k_inference; groups]);
        assert!(k_inference > k);
    }
    let (layer, params) = build(map(3, 4, 5), share(0.2)).unwrap();
    let cx = Cx::evaluation(params);
    let x = cx.constant(Tensor::zeros(&Device::Cpu, DType::F32, &[2, 4, 3, 5]).unwrap());
    let error = layer.forward(&cx, &x).unwrap_err().to_string();
    assert!(error.contains("[2, 4, 3, 5]") && error.contains("[3, 4, 5]"), "{error}");
}

#[test]
fn the_boost_falls_from_epoch_to_epoch_and_stays_for_evaluation() {
    let config = KWinnersConfig { boost_strength: 2.0, boost_strength_factor: 0.5, ..share(0.25) };
    let (layer, params) = build(Units::Row(8), config).unwrap();
    assert_eq!(params.master(layer.clock()).to_f32().unwrap(), [0.0, 2.0]);
    let info = params.info(layer.duty());
    assert_eq!((info.name.as_str(), info.trained, info.decay), ("blocks.0.duty", false, false));
    let mut seen = 0.0;
    for (epoch, boost) in [(0, 2.0), (0, 2.0), (1, 1.0), (3, 0.25), (u64::MAX, 0.0)] {
        let cx = Cx::training(params.clone(), StepRng::new(0, epoch)).at_epoch(epoch);
        assert_eq!(cx.epoch(), epoch);
        let x = cx.leaf(Tensor::from_f32(&Device::Cpu, &uniform(epoch, 40), &[5, 8]).unwrap());
        let y = layer.forward(&cx, &x).unwrap();
        cx.backward(&y, y.value().clone()).unwrap();
        seen += 5.0;
        assert_eq!(params.master(layer.clock()).to_f32().unwrap(), [seen, boost]);
    }
}
