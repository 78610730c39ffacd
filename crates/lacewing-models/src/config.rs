//! A model's config: a variant, the keys that differ from it, structures for groups of layers, and rules.

use crate::{BuiltModel, Family, MODELS, ModelError, Result, Variant};
use lacewing_nn::{ModelBuilder, Rules, Summary};
use serde_json::{Map, Value};

/// A checked config.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    family: &'static Family,
    variant: &'static Variant,
    /// Every key of the family.
    values: Value,
    /// `rules` and groups, as given.
    structures: Map<String, Value>,
    rules: Rules,
}

impl ModelConfig {
    /// Reads a variant's name, or a map with the name under `name`, any key of the family, a structure for any group of the
    /// family, and `rules`.
    ///
    /// # Errors
    ///
    /// [`ModelError::NotAConfig`], [`ModelError::UnknownModel`], [`ModelError::UnknownKey`], [`ModelError::WrongType`], and
    /// [`ModelError::Nn`] for rules that cannot be read.
    pub fn from_json(config: &Value) -> Result<Self> {
        let not_a_config = || ModelError::NotAConfig { got: config.to_string() };
        let empty = Map::new();
        let (name, map) = match config {
            Value::String(name) => (name, &empty),
            Value::Object(map) => match map.get("name") {
                Some(Value::String(name)) => (name, map),
                _ => return Err(not_a_config()),
            },
            _ => return Err(not_a_config()),
        };
        let (family, variant) = find(name)?;
        let mut read = Self {
            family,
            variant,
            values: (variant.config)(),
            structures: Map::new(),
            rules: Rules::default(),
        };
        for (key, value) in map.iter().filter(|(key, _)| *key != "name") {
            read.set(key, value)?;
        }
        read.rules = read.read_rules()?;
        Ok(read)
    }

    fn set(&mut self, key: &str, value: &Value) -> Result<()> {
        let model = self.variant.name.to_owned();
        if key == "rules" || self.family.groups.iter().any(|group| group.name == key) {
            if !value.is_null() {
                self.structures.insert(key.to_owned(), value.clone());
            }
            return Ok(());
        }
        let Some(slot) = self.values.get_mut(key) else {
            let own = self.values.as_object().into_iter().flat_map(Map::keys).map(String::as_str);
            let groups = self.family.groups.iter().map(|group| group.name);
            let nearest = nearest(key, own.chain(groups).chain(["name", "rules"]));
            return Err(ModelError::UnknownKey { model, key: key.to_owned(), nearest });
        };
        *slot = value.clone();
        // All other keys are right, so an error is about this one.
        (self.family.check)(&self.values).map_err(|source| {
            let (key, got) = (key.to_owned(), value.to_string());
            ModelError::WrongType { model, key, got, source }
        })
    }

    /// The rules as given, then the groups in the family's order.
    fn read_rules(&self) -> Result<Rules> {
        let mut rules = match self.structures.get("rules") {
            Some(list) => Rules::from_json(list)?,
            None => Rules::default(),
        };
        for group in self.family.groups {
            if let Some(config) = self.structures.get(group.name) {
                rules.push(group.pattern, config)?;
            }
        }
        Ok(rules)
    }

    /// The variant's name.
    pub fn name(&self) -> &'static str {
        self.variant.name
    }

    /// The family.
    pub fn family(&self) -> &'static Family {
        self.family
    }

    /// The value of one of the family's keys, such as `n_classes`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// The same config with another value under `key`.
    ///
    /// # Errors
    ///
    /// As [`ModelConfig::from_json`].
    pub fn with(mut self, key: &str, value: &Value) -> Result<Self> {
        self.set(key, value)?;
        self.rules = self.read_rules()?;
        Ok(self)
    }

    /// The same model with every layer dense.
    pub fn dense_twin(mut self) -> Self {
        self.structures.clear();
        self.rules = Rules::default();
        self
    }

    /// The same model with structures that stay as they are: schedules are left out, and each of `layers`, by its name, has
    /// the structure given, whatever a rule or a group says.
    ///
    /// # Errors
    ///
    /// As [`ModelConfig::from_json`].
    pub fn without_schedules(&self, layers: &[(String, Value)]) -> Result<Self> {
        let mut config = self.clone();
        let own = layers.iter().map(|(layer, structure)| {
            let mut rule = match structure {
                Value::Object(map) => map.clone(),
                name => Map::from_iter([("structure".to_owned(), name.clone())]),
            };
            rule.insert("match".to_owned(), Value::from(layer.as_str()));
            Value::Object(rule)
        });
        let mut rules: Vec<Value> = own.collect();
        rules.extend(config.structures.get("rules").and_then(Value::as_array).into_iter().flatten().cloned());
        if !rules.is_empty() {
            config.structures.insert("rules".to_owned(), rules.into());
        }
        let lists = config.structures.values_mut().flat_map(|value| match value {
            Value::Array(list) => list.iter_mut().collect(),
            other => vec![other],
        });
        for map in lists.filter_map(Value::as_object_mut) {
            map.shift_remove("schedule");
        }
        config.rules = config.read_rules()?;
        Ok(config)
    }

    /// The config in full: reading it gives this one again.
    pub fn to_json(&self) -> Value {
        let mut map = Map::new();
        map.insert("name".to_owned(), Value::from(self.variant.name));
        map.extend(self.values.as_object().cloned().unwrap_or_default());
        map.extend(self.structures.clone());
        Value::Object(map)
    }

    /// Builds the model into `builder`, which decides on device, first values and whether it is counted only.
    ///
    /// # Errors
    ///
    /// [`ModelError::Value`] for sizes that do not fit each other, [`ModelError::Nn`] for a layer or a rule.
    pub fn build(&self, builder: ModelBuilder) -> Result<BuiltModel> {
        let mut rules = self.rules.clone();
        if rules.has_budgets() {
            // Which layers there are, and of what shapes, does not depend on how much of them is kept.
            let mut counted = ModelBuilder::counting()?.with_rules(rules.clone());
            (self.family.build)(&self.values, &mut counted)?;
            rules = rules.spread(&counted.summary().layers);
        }
        let mut builder = builder.with_rules(rules);
        let model = (self.family.build)(&self.values, &mut builder)?;
        let built = builder.finish()?;
        let lacewing_nn::Built { params, summary, buffers, evolving } = built;
        Ok(BuiltModel { model, params, summary, buffers, evolving })
    }

    /// What the model costs, without making it.
    ///
    /// # Errors
    ///
    /// As [`ModelConfig::build`].
    pub fn summary(&self) -> Result<Summary> {
        Ok(self.build(ModelBuilder::counting()?)?.summary)
    }
}

fn find(name: &str) -> Result<(&'static Family, &'static Variant)> {
    let all =
        || MODELS.iter().flat_map(|family| family.variants.iter().map(move |variant| (*family, variant)));
    all().find(|(_, variant)| variant.name == name).ok_or_else(|| ModelError::UnknownModel {
        name: name.to_owned(),
        nearest: nearest(name, all().map(|(_, variant)| variant.name)),
    })
}

/// The known name with the fewest edits, if they are at most half of `name`'s letters.
fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    let (edits, known) = known
        .map(|known| (strsim::damerau_levenshtein(name, known), known))
        .min_by_key(|&(edits, _)| edits)?;
    (edits <= (name.chars().count() / 2).max(2)).then(|| known.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn error(config: Value) -> String {
        ModelConfig::from_json(&config).unwrap_err().to_string()
    }

    #[test]
    fn wrong_configs_are_errors_that_name_key_value_and_nearest() {
        assert!(error(json!({"depth": 3})).contains("`name`"));
        assert!(error(json!("vit_tiny_patch16_22")).contains("did you mean `vit_tiny_patch16_224`?"));
        assert!(error(json!({"name": "vit_digits", "dpeth": 3})).contains("did you mean `depth`?"));
        assert!(error(json!({"name": "vit_digits", "mpl": "dense"})).contains("did you mean `mlp`?"));
        let wrong = error(json!({"name": "vit_digits", "depth": "three"}));
        assert!(wrong.contains("`depth` = \"three\"") && wrong.contains("usize"), "{wrong}");
        assert!(error(json!({"name": "vit_digits", "mlp": 3})).contains("structure"));
    }

    #[test]
    fn a_full_config_reads_back_as_itself() {
        let config = json!({
            "name": "vit_digits", "depth": 2, "mlp": {"structure": "monarch", "blocks": 4},
            "rules": [{"match": "blocks.0.mlp.fc1", "structure": "dense"}],
        });
        let read = ModelConfig::from_json(&config).unwrap();
        let again = ModelConfig::from_json(&read.to_json()).unwrap();
        assert_eq!(read.to_json(), again.to_json());
        let layers = again.summary().unwrap().layers;
        let structures = |end: &str| -> Vec<&str> {
            layers.iter().filter(|layer| layer.name.ends_with(end)).map(|layer| layer.structure).collect()
        };
        assert_eq!(structures("mlp.fc1"), ["dense", "monarch"]);
        assert_eq!(structures("mlp.fc2"), ["monarch", "monarch"]);
        assert_eq!(structures("attn.qkv"), ["dense", "dense"]);
        let twin = read.dense_twin().summary().unwrap();
        assert!(twin.layers.iter().all(|layer| layer.structure == "dense"));
    }
}
