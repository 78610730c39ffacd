//! Every op against PIL's pictures and timm's arguments (`tests/fixtures/make_rand_augment.py`), and the policy.

use super::*;
use crate::augment::picture::{ImageShape, Picture};
use crate::augment::random::Purpose;
use safetensors::SafeTensors;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

static BYTES: &[u8] = include_bytes!("../../../tests/fixtures/rand_augment.safetensors");

fn fixtures() -> SafeTensors<'static> {
    SafeTensors::deserialize(BYTES).expect("the committed file")
}

fn picture(key: &str) -> Picture {
    let view = fixtures().tensor(key).unwrap_or_else(|_| panic!("fixture {key}"));
    let [channels, height, width] = *view.shape() else { panic!("{key} is no picture") };
    Picture { shape: ImageShape::new(channels, height, width), pixels: view.data().to_vec() }
}

fn f64s(key: &str) -> Vec<f64> {
    let view = fixtures().tensor(key).unwrap_or_else(|_| panic!("fixture {key}"));
    view.data().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().expect("eight bytes"))).collect()
}

fn op(name: &str) -> &'static ops::Op {
    OPS.iter().find(|op| op.name == name).unwrap_or_else(|| panic!("op {name}"))
}

fn draws(index: u64) -> Draws {
    Draws::new(Purpose::Sample, 11, 0, index)
}

#[test]
fn every_op_makes_pils_picture_to_the_bit() {
    let mut checked = BTreeMap::new();
    for key in fixtures().names() {
        let parts: Vec<&str> = key.split('/').collect();
        let [name, argument, filter, input] = parts[..] else { continue };
        let filter = if filter == "bicubic" { RandomFilter::Bicubic } else { RandomFilter::Bilinear };
        let mut canvas = Canvas::new();
        canvas.picture = picture(&format!("in/{input}"));
        let mut stage = Stage { canvas: &mut canvas, draws: &mut draws(0), fill: &[124, 116, 104], filter };
        (op(name).apply)(&mut stage, argument.parse().expect("a number"));
        let (got, want) = (&canvas.picture, picture(key));
        assert_eq!(got.shape, want.shape, "{key}");
        let wrong = got.pixels.iter().zip(&want.pixels).enumerate().find(|(_, (a, b))| a != b);
        assert_eq!(wrong, None, "{key}: (place, (got, expected))");
        *checked.entry(name.to_owned()).or_insert(0) += 1;
    }
    let names: BTreeSet<&str> = OPS.iter().map(|op| op.name).filter(|name| *name != ops::CUTOUT).collect();
    assert_eq!(
        checked.keys().map(String::as_str).collect::<BTreeSet<_>>(),
        names,
        "every op has its pictures"
    );
}

#[test]
fn magnitudes_mean_what_timm_makes_of_them() {
    let magnitudes = f64s("level");
    let mut listed = BTreeSet::new();
    for (list, increasing) in [("plain", false), ("increasing", true)] {
        for key in fixtures().names() {
            let Some(name) = key.strip_prefix(list).and_then(|rest| rest.strip_prefix('/')) else { continue };
            let want = f64s(key);
            for (row, want) in want.chunks_exact(magnitudes.len()).enumerate() {
                for (magnitude, want) in magnitudes.iter().zip(want) {
                    let mut sign = |x: f64| if row == 1 { -x } else { x };
                    let got = (op(name).argument)(magnitude / FULL, increasing, &mut sign);
                    assert_eq!(got, *want, "{key} of {magnitude}, sign {row}");
                }
            }
            listed.insert((increasing, name.to_owned()));
        }
    }
    assert_eq!(listed.len(), 2 * 12, "twelve ops of each list have an argument");
}

#[test]
fn cutout_blackens_a_square_cut_at_the_borders() {
    let shape = ImageShape::new(3, 6, 8);
    let black = |half: usize, row: usize, column: usize| {
        let mut picture = Picture { shape, pixels: vec![9; shape.len()] };
        ops::cutout(&mut picture, half, row, column);
        let planes: Vec<Vec<usize>> = (picture.pixels.chunks(shape.plane()))
            .map(|plane| (0..shape.plane()).filter(|&i| plane[i] == 0).collect())
            .collect();
        assert!(planes.iter().all(|plane| *plane == planes[0]));
        planes[0].iter().map(|i| (i / shape.width, i % shape.width)).collect::<Vec<_>>()
    };
    assert_eq!(black(1, 2, 3), [(1, 2), (1, 3), (2, 2), (2, 3)]);
    assert_eq!(black(2, 0, 7), [(0, 5), (0, 6), (0, 7), (1, 5), (1, 6), (1, 7)]);
    assert_eq!(black(0, 3, 3), []);
    assert_eq!(black(100, 5, 0).len(), shape.plane());
    let mut sign = |x| x;
    let half = [0.0, 3.33, 10.0, 15.0].map(|m| (op(ops::CUTOUT).argument)(m / FULL, false, &mut sign));
    assert_eq!(half, [0.0, 13.0, 40.0, 60.0]);
}

#[test]
fn text_and_map_say_the_same() {
    let read = |value| RandAugment::read(value).expect("valid settings");
    let map = json!({"magnitude": 9, "num_ops": 3, "prob": 0.7, "std": 0.5, "increasing": true});
    assert_eq!(read(json!("rand-m9-n3-p0.7-mstd0.5-inc1")), read(map));
    let recipe = json!({"magnitude": 15, "prob": 1, "cutout": true});
    assert_eq!(read(json!("rand-m15-n2-p1-mstd0-cutout1")), read(recipe));
    assert_eq!(read(json!("rand-mmax30-inc0")), read(json!({"max_magnitude": 30})));
    assert_eq!(read(json!("rand")), RandAugment::default());
    for text in ["rand-m", "rand-m9-n2.5", "rand-inc2", "rand-9", "rand-", "rand-tweights"] {
        let error = text.parse::<RandAugment>().expect_err("a bad text").to_string();
        assert!(error.contains(text), "{error}");
    }
}

#[test]
fn levels_are_cut_and_spread_as_the_settings_say() {
    let painter = |text: &str| Painter { settings: text.parse().expect("valid"), fill: vec![0; 3] };
    let levels = |text| (0..4000).map(|i| painter(text).level(&mut draws(i))).collect::<Vec<f64>>();
    assert!(levels("rand-m15").iter().all(|&level| level == 1.0), "cut at 10");
    assert!(levels("rand-m15-mmax20").iter().all(|&level| level == 1.5));
    let n = 4000.0_f64;
    let mean = |values: &[f64]| values.iter().sum::<f64>() / n;
    let normal = levels("rand-m5-mstd1");
    assert!((mean(&normal) - 0.5).abs() < 5.0 * 0.1 / n.sqrt());
    let uniform = levels("rand-m8-mstd101");
    assert!(uniform.iter().all(|level| (0.0..0.8).contains(level)));
    assert!((mean(&uniform) - 0.4).abs() < 5.0 * 0.8 / (12.0 * n).sqrt());
    assert!(levels("rand-m0-mstd1").iter().all(|&level| level >= 0.0));
}

#[test]
fn a_policy_is_a_function_of_the_draws_and_applies_all_ops() {
    let source = picture("in/waves");
    let paint = |text: &str, index: u64| {
        let mut painter = Painter { settings: text.parse().expect("valid"), fill: Vec::new() };
        painter.set_mean(&[0.485, 0.456, 0.406]);
        assert_eq!(painter.fill, [124, 116, 104]);
        let mut canvas = Canvas::new();
        canvas.picture.clone_from(&source);
        painter.apply(&mut canvas, &mut draws(index));
        assert_eq!(canvas.picture.shape, source.shape);
        canvas.picture.pixels
    };
    let all = "rand-m15-n2-p1-mstd0.5-cutout1";
    let pictures: Vec<Vec<u8>> = (0..300).map(|index| paint(all, index)).collect();
    assert!(pictures.iter().enumerate().all(|(index, pixels)| *pixels == paint(all, index as u64)));
    assert!(pictures.iter().collect::<BTreeSet<_>>().len() > 150, "pictures differ");
    assert!((0..50).all(|index| paint("rand-p0", index) == source.pixels));
    // At magnitude 0 nothing moves, so that only AutoContrast, Equalize, Invert, Posterize, Solarize and the four enhancing
    // ops show; one op in ten pictures at a chance of one half.
    let n = 4000;
    let changed = (0..n).filter(|&index| paint("rand-m0-n1", index) != source.pixels).count() as f64;
    let visible = OPS.iter().filter(|op| op.name != ops::CUTOUT).filter(|op| {
        let mut canvas = Canvas::new();
        canvas.picture.clone_from(&source);
        let argument = (op.argument)(0.0, false, &mut |x| x);
        let mut draws = draws(0);
        let filter = RandomFilter::Bilinear;
        (op.apply)(&mut Stage { canvas: &mut canvas, draws: &mut draws, fill: &[0; 3], filter }, argument);
        canvas.picture != source
    });
    let share = 0.5 * visible.count() as f64 / 15.0;
    let deviation = (f64::from(n as u32) * share * (1.0 - share)).sqrt();
    assert!((changed - f64::from(n as u32) * share).abs() < 5.0 * deviation, "{changed} of {n}, not {share}");
}
