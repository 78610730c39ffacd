//! The models of a recipe: its own, those beside it, and the dense twin.

use crate::augment::ImageShape;
use crate::data::Dataset;
use crate::error::TrainError;
use crate::recipe::{Recipe, RecipeError, merge};
use lacewing_models::ModelConfig;
use serde_json::Value;

/// One model of a run.
#[derive(Clone, Debug)]
pub struct Contender {
    /// Its name in tables and events.
    pub label: String,
    /// Its folder in the run's; `None` for the recipe's own model, whose files lie in the run's folder itself.
    pub folder: Option<String>,
    /// What it is.
    pub config: ModelConfig,
    /// The keys that the recipe itself gives.
    given: Value,
}

/// The recipe's own model under the names of its structures, then those of `compare`, then with `twin` the dense one.
/// A recipe without any structure has no twin: it is its own.
///
/// # Errors
///
/// [`TrainError::Model`] for a config that is wrong, [`TrainError::Label`] for a name that makes no folder.
pub fn contenders(recipe: &Recipe) -> Result<Vec<Contender>, TrainError> {
    let own = Value::Object(recipe.model.clone());
    if !recipe.model.contains_key("name") {
        let expected = "given: a name of `lacewing list models`";
        return Err(RecipeError::OutOfRange {
            path: "model.name".to_owned(),
            got: "nothing".to_owned(),
            expected,
        }
        .into());
    }
    let config = ModelConfig::from_json(&own)?;
    let structures = structures(&config);
    let label = if structures.is_empty() { DENSE.to_owned() } else { structures.join("+") };
    let mut list = vec![Contender { label, folder: None, config, given: own.clone() }];
    for (label, changes) in &recipe.compare {
        let mut given = own.clone();
        merge(&mut given, changes);
        let config = ModelConfig::from_json(&given)?;
        list.push(Contender { label: label.clone(), folder: Some(label.clone()), config, given });
    }
    if recipe.twin && !structures.is_empty() {
        let config = list[0].config.clone().dense_twin();
        list.push(Contender { label: DENSE.to_owned(), folder: Some(DENSE.to_owned()), config, given: own });
    }
    for (at, contender) in list.iter().enumerate() {
        let label = &contender.label;
        let fail = |reason| TrainError::Label { label: label.clone(), reason };
        if list[..at].iter().any(|other| other.label == *label) {
            return Err(fail("another model of this run has the name"));
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_+".contains(c);
        if contender.folder.is_some()
            && (label.is_empty() || label == "checkpoint" || !label.chars().all(plain))
        {
            return Err(fail("a name is made of letters, digits, `-`, `_` and `+`, and is not `checkpoint`"));
        }
    }
    Ok(list)
}

/// Names of the structures other than dense that a config asks for, each once.
fn structures(config: &ModelConfig) -> Vec<String> {
    let full = config.to_json();
    let rules = full.get("rules").and_then(Value::as_array).into_iter().flatten();
    let groups = config.family().groups.iter().filter_map(|group| full.get(group.name));
    let mut names: Vec<String> = Vec::new();
    for structure in rules.chain(groups) {
        let name = structure.as_str().or_else(|| structure.get("structure")?.as_str());
        if let Some(name) = name.filter(|name| *name != DENSE && !names.iter().any(|known| known == name)) {
            names.push(name.to_owned());
        }
    }
    names
}

/// The name of a model without structures.
const DENSE: &str = "dense";

/// The models fitted to the data: keys that the recipe leaves open (`image_size`, `channels`, `n_classes`) are taken from
/// it, those it gives must agree. The recipe's model is written out in full.
///
/// # Errors
///
/// [`TrainError::Data`] for another number of classes, [`TrainError::Image`] for another shape of pictures.
pub(super) fn fit(
    recipe: &mut Recipe,
    shape: ImageShape,
    data: &Dataset,
) -> Result<Vec<Contender>, TrainError> {
    let mut list = contenders(recipe)?;
    for contender in &mut list {
        let found =
            [("channels", shape.channels), ("n_classes", data.n_classes()), ("image_size", shape.height)];
        for (key, size) in found {
            let open = contender.given.get(key).is_none() && contender.config.get(key).is_some();
            if open {
                contender.config = contender.config.clone().with(key, &Value::from(size))?;
            }
        }
        let size = |key: &str| contender.config.get(key).and_then(Value::as_u64).map(|size| size as usize);
        if let Some(expected) = size("n_classes") {
            data.require_classes(expected)?;
        }
        if let (Some(channels), Some(side)) = (size("channels"), size("image_size")) {
            let expected = ImageShape::new(channels, side, side);
            if expected != shape {
                let model = contender.label.clone();
                return Err(TrainError::Image { model, expected, got: shape });
            }
        }
    }
    if let Value::Object(resolved) = list[0].config.to_json() {
        recipe.model = resolved;
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::parse;

    fn labels(text: &str) -> Result<Vec<(String, Option<String>)>, String> {
        let recipe = parse("test", text, &[]).map_err(|error| error.to_string())?;
        let list = contenders(&recipe).map_err(|error| error.to_string())?;
        Ok(list.into_iter().map(|contender| (contender.label, contender.folder)).collect())
    }

    #[test]
    fn a_recipe_names_its_models() {
        let own = |label: &str| (label.to_owned(), None);
        let beside = |label: &str| (label.to_owned(), Some(label.to_owned()));
        let monarch = "model: {name: vit_digits, mlp: {structure: monarch, blocks: 4}}";
        assert_eq!(labels(monarch), Ok(vec![own("monarch")]));
        assert_eq!(labels(&format!("{monarch}\ntwin: true")), Ok(vec![own("monarch"), beside("dense")]));
        assert_eq!(labels("model: {name: vit_digits}\ntwin: true"), Ok(vec![own("dense")]));
        let compare = "compare: {low: {mlp: {structure: low_rank, rank: 4}}}\ntwin: true";
        let expected = vec![own("monarch"), beside("low"), beside("dense")];
        assert_eq!(labels(&format!("{monarch}\n{compare}")), Ok(expected));
    }

    #[test]
    fn bad_models_are_named() {
        let own = "model: {name: vit_digits}";
        for (text, part) in [
            ("model: {depth: 3}".to_owned(), "`model.name`"),
            ("model: {name: vit_digit}".to_owned(), "vit_digits"),
            ("model: {name: vit_digits, dpeth: 3}".to_owned(), "depth"),
            (format!("{own}\ncompare: {{dense: {{depth: 2}}}}"), "compare.dense"),
            (format!("{own}\ncompare: {{../x: {{depth: 2}}}}"), "compare.../x"),
            (format!("{own}\ncompare: {{x: {{dpeth: 2}}}}"), "depth"),
        ] {
            let error = labels(&text).expect_err("a bad model");
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
