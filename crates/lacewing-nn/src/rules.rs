//! Which layer gets which structure: ordered rules on dotted names.
//!
//! A rule is a map: `match` is a glob, or a regular expression between slashes; the rest is a structure's config, and
//! `kernel` forces a row of the kernel table, `schedule` says how the structure changes in training, and `budget` how the
//! `density` (or `sparsity`) of all layers the rule decides for is spread over them: `uniform`, `er` or `erk`. **The first rule that matches a layer decides**; a layer that none matches is
//! dense. In a glob `*` matches anything, dots included (`*.mlp.*` matches `blocks.3.mlp.fc1`), `?` one character,
//! `[0-3]` a range and `{a,b}` either; it must match the whole name. A regular expression may match any part.

use crate::{LayerInfo, NnError, Result};
use globset::{GlobBuilder, GlobMatcher};
use lacewing_core::{Budget, Schedule};
use regex::Regex;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// An ordered list of rules.
#[derive(Clone, Debug, Default)]
pub struct Rules(Vec<Rule>);

#[derive(Clone, Debug)]
struct Rule {
    pattern: String,
    matcher: Matcher,
    choice: Choice,
    budget: Option<Share>,
    /// What each layer keeps, once the budget was spread.
    densities: BTreeMap<String, f64>,
}

/// A density over all layers of a rule.
#[derive(Clone, Copy, Debug)]
struct Share {
    budget: Budget,
    density: f64,
}

#[derive(Clone, Debug)]
enum Matcher {
    Glob(GlobMatcher),
    Regex(Regex),
}

/// What a rule decides for the layers it matches.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The structure's config, as [`lacewing_core::build`] takes it.
    pub structure: Value,
    /// The kernel forced by name.
    pub kernel: Option<String>,
    /// How the structure changes in training.
    pub schedule: Option<Schedule>,
}

impl Choice {
    /// Dense, any kernel: what a layer gets when no rule matches it.
    pub fn dense() -> Self {
        Self { structure: Value::from("dense"), kernel: None, schedule: None }
    }

    /// Reads `"monarch"` or `{"structure": "monarch", "blocks": 8, "kernel": "chain"}` for the rule `pattern`.
    fn from_json(pattern: &str, config: &Value) -> Result<Self> {
        let wrong = |key| NnError::RuleConfig { pattern: pattern.to_owned(), key, got: config.to_string() };
        let mut map = match config {
            Value::String(_) => return Ok(Self { structure: config.clone(), kernel: None, schedule: None }),
            Value::Object(map) => map.clone(),
            _ => return Err(wrong("structure")),
        };
        if !map.get("structure").is_some_and(Value::is_string) {
            return Err(wrong("structure"));
        }
        let kernel = match map.shift_remove("kernel") {
            None | Some(Value::Null) => None,
            Some(Value::String(name)) => Some(name),
            Some(_) => return Err(wrong("kernel")),
        };
        let schedule = match map.shift_remove("schedule") {
            None | Some(Value::Null) => None,
            Some(schedule) => {
                let pattern = pattern.to_owned();
                let wrong = |source| NnError::Schedule { pattern, source: Box::new(source) };
                Some(Schedule::from_json(&schedule).map_err(wrong)?)
            }
        };
        Ok(Self { structure: Value::Object(map), kernel, schedule })
    }
}

impl Rules {
    /// Reads a list of maps, each with `match` and a structure's config.
    ///
    /// # Errors
    ///
    /// [`NnError::NotRules`], [`NnError::RuleKey`], [`NnError::RuleConfig`], [`NnError::Glob`], [`NnError::Regex`].
    pub fn from_json(rules: &Value) -> Result<Self> {
        let list = rules.as_array().ok_or_else(|| NnError::NotRules { got: rules.to_string() })?;
        let mut read = Self::default();
        for (at, rule) in list.iter().enumerate() {
            let map = rule.as_object().ok_or_else(|| NnError::NotRules { got: rule.to_string() })?;
            let Some(Value::String(pattern)) = map.get("match") else {
                return Err(NnError::RuleKey { at, key: "match", got: rule.to_string() });
            };
            let config: Map<String, Value> =
                map.iter().filter(|(key, _)| *key != "match").map(|(k, v)| (k.clone(), v.clone())).collect();
            read.push(pattern, &Value::Object(config))?;
        }
        Ok(read)
    }

    /// Adds a rule after the others: layers whose name matches `pattern` get `config` unless an earlier rule decides.
    ///
    /// # Errors
    ///
    /// [`NnError::RuleConfig`], [`NnError::Glob`], [`NnError::Regex`].
    pub fn push(&mut self, pattern: &str, config: &Value) -> Result<()> {
        let (config, budget) = Share::take(pattern, config)?;
        let choice = Choice::from_json(pattern, &config)?;
        let inner = pattern.strip_prefix('/').and_then(|rest| rest.strip_suffix('/'));
        let matcher = match inner {
            Some(regex) => Matcher::Regex(
                Regex::new(regex).map_err(|source| NnError::Regex { pattern: pattern.to_owned(), source })?,
            ),
            None => Matcher::Glob(
                GlobBuilder::new(pattern)
                    .literal_separator(false)
                    .build()
                    .map_err(|source| NnError::Glob { pattern: pattern.to_owned(), source })?
                    .compile_matcher(),
            ),
        };
        self.0.push(Rule {
            pattern: pattern.to_owned(),
            matcher,
            choice,
            budget,
            densities: BTreeMap::new(),
        });
        Ok(())
    }

    /// How many rules there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What the layer called `name` gets.
    pub fn choose(&self, name: &str) -> Choice {
        let Some(rule) = self.0.iter().find(|rule| rule.matches(name)) else { return Choice::dense() };
        let mut choice = rule.choice.clone();
        if let (Some(&density), Value::Object(map)) = (rule.densities.get(name), &mut choice.structure) {
            map.shift_remove("sparsity");
            map.insert("density".to_owned(), Value::from(density));
        }
        choice
    }

    /// Whether a budget is to be spread over layers before a model is built.
    pub fn has_budgets(&self) -> bool {
        self.0.iter().any(|rule| rule.budget.is_some())
    }

    /// The same rules with every budget spread over those of `layers` that the rule decides for; see [`Budget::densities`].
    pub fn spread(mut self, layers: &[LayerInfo]) -> Self {
        let decides = |name: &str| self.0.iter().position(|rule| rule.matches(name));
        let owners: Vec<Option<usize>> = layers.iter().map(|layer| decides(&layer.name)).collect();
        for (at, rule) in self.0.iter_mut().enumerate() {
            let Some(Share { budget, density }) = rule.budget else { continue };
            let own = layers.iter().zip(&owners).filter(|(_, owner)| **owner == Some(at));
            let own: Vec<&LayerInfo> = own.map(|(layer, _)| layer).collect();
            let shape = |layer: &&LayerInfo| match layer.window {
                Some([height, width, channels]) => vec![height, width, channels, layer.n_out],
                None => vec![layer.n_in, layer.n_out],
            };
            let shapes: Vec<Vec<usize>> = own.iter().map(shape).collect();
            let densities = budget.densities(&shapes, density);
            rule.densities = own.iter().map(|layer| layer.name.clone()).zip(densities).collect();
        }
        self
    }

    /// Whether any rule matches the layer called `name`.
    pub fn matches(&self, name: &str) -> bool {
        self.0.iter().any(|rule| rule.matches(name))
    }

    /// Checks that every rule matches a layer, whether or not an earlier rule decides for it.
    ///
    /// # Errors
    ///
    /// [`NnError::Unmatched`] for the first that does not.
    pub fn check(&self, names: &[&str]) -> Result<()> {
        let Some(rule) = self.0.iter().find(|rule| !names.iter().any(|name| rule.matches(name))) else {
            return Ok(());
        };
        let mut nearest = names.to_vec();
        // Stable, so that of equally near names the first ones are shown.
        nearest.sort_by_cached_key(|name| strsim::damerau_levenshtein(&rule.pattern, name));
        let nearest = nearest.iter().take(3).map(|name| format!("`{name}`")).collect();
        Err(NnError::Unmatched { pattern: rule.pattern.clone(), layers: names.len(), nearest })
    }
}

impl Share {
    /// Takes the key `budget` out of a rule's config; the density stays in it for each layer.
    fn take(pattern: &str, config: &Value) -> Result<(Value, Option<Self>)> {
        let mut config = config.clone();
        let wrong = |key| NnError::RuleConfig { pattern: pattern.to_owned(), key, got: config.to_string() };
        let number = |key| config.get(key).map(|value| value.as_f64().ok_or_else(|| wrong(key))).transpose();
        let budget = match config.get("budget") {
            None | Some(Value::Null) => None,
            Some(name) => {
                let name = name.as_str().and_then(|name| name.parse().ok());
                let budget = name.ok_or_else(|| wrong("budget"))?;
                let density = match (number("density")?, number("sparsity")?) {
                    (Some(density), None) => density,
                    (None, Some(sparsity)) => 1.0 - sparsity,
                    _ => return Err(wrong("density")),
                };
                Some(Self { budget, density })
            }
        };
        if let Value::Object(map) = &mut config {
            map.shift_remove("budget");
        }
        Ok((config, budget))
    }
}

impl Rule {
    fn matches(&self, name: &str) -> bool {
        match &self.matcher {
            Matcher::Glob(glob) => glob.is_match(name),
            Matcher::Regex(regex) => regex.is_match(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn name_of(rules: &Rules, layer: &str) -> Value {
        match rules.choose(layer).structure {
            Value::Object(map) => map["structure"].clone(),
            name => name,
        }
    }

    #[test]
    fn the_first_rule_that_matches_decides_and_the_rest_is_dense() {
        let rules = json!([
            {"match": "blocks.0.*", "structure": "dense"},
            {"match": "*.mlp.*", "structure": "monarch", "blocks": 8},
            {"match": r"/attn\.(q|k|v|qkv)$/", "structure": "low_rank", "rank": 4},
        ]);
        let rules = Rules::from_json(&rules).unwrap();
        assert_eq!(name_of(&rules, "blocks.0.mlp.fc1"), "dense");
        assert_eq!(name_of(&rules, "blocks.13.mlp.fc1"), "monarch");
        assert_eq!(name_of(&rules, "blocks.1.attn.qkv"), "low_rank");
        assert_eq!(name_of(&rules, "blocks.1.attn.proj"), "dense");
        assert_eq!(name_of(&rules, "head"), "dense");
    }

    #[test]
    fn a_kernel_is_taken_out_of_the_config() {
        let rules =
            Rules::from_json(&json!([{"match": "a", "structure": "nm", "n": 2, "kernel": "scatter_dense"}]))
                .unwrap();
        let choice = rules.choose("a");
        assert_eq!(choice.kernel.as_deref(), Some("scatter_dense"));
        assert_eq!(choice.structure, json!({"structure": "nm", "n": 2}));
    }

    #[test]
    fn a_budget_is_spread_over_the_layers_a_rule_decides_for() {
        let rules = json!([
            {"match": "fc1", "structure": "unstructured", "density": 0.3},
            {"match": "fc*", "structure": "unstructured", "sparsity": 0.9, "budget": "erk", "schedule": "rigl"},
        ]);
        let layer = |name: &str, n_in, n_out, window| {
            let mut builder = crate::ModelBuilder::counting().unwrap();
            builder
                .root()
                .linear(name, n_in, n_out, crate::LinearOptions { window, ..Default::default() })
                .unwrap();
            builder.summary().layers[0].clone()
        };
        let layers = [
            layer("fc0", 784, 300, None),
            layer("fc1", 50, 50, None),
            layer("fc2", 300, 100, None),
            layer("fc3", 100, 10, None),
            layer("head", 10, 10, None),
        ];
        let rules = Rules::from_json(&rules).unwrap();
        assert!(rules.has_budgets());
        let rules = rules.spread(&layers);
        let density = |name: &str| rules.choose(name).structure["density"].as_f64().unwrap();
        // Those of a network of these three layers alone.
        let published = [("fc0", 0.920_432_229_5), ("fc2", 0.769_811_320_8), ("fc3", 0.0)];
        published
            .iter()
            .for_each(|(name, sparsity)| assert!((1.0 - density(name) - sparsity).abs() < 0.6e-10));
        assert_eq!(density("fc1"), 0.3);
        assert!(rules.choose("fc0").structure.get("sparsity").is_none());
        // A kernel's size counts.
        let convolutions =
            json!([{"match": "c*", "structure": "unstructured", "sparsity": 0.8, "budget": "erk"}]);
        let layers = [
            layer("c0", 27, 16, Some([3, 3, 3])),
            layer("c1", 144, 32, Some([3, 3, 16])),
            layer("c2", 32, 10, None),
        ];
        let rules = Rules::from_json(&convolutions).unwrap().spread(&layers);
        let published = [("c0", 0.448_400_140_6), ("c1", 0.888_301_028_5), ("c2", 0.0)];
        for (name, sparsity) in published {
            let density = rules.choose(name).structure["density"].as_f64().unwrap();
            assert!((1.0 - density - sparsity).abs() < 0.6e-10, "{name}: {density}");
        }
    }

    #[test]
    fn a_rule_that_matches_nothing_names_the_nearest_layers() {
        let rules = Rules::from_json(&json!([{"match": "blocks.0.mpl.fc1", "structure": "dense"}])).unwrap();
        let names = ["patch_embed.proj", "blocks.0.attn.qkv", "blocks.0.mlp.fc1", "blocks.0.mlp.fc2", "head"];
        let error = rules.check(&names).unwrap_err().to_string();
        assert!(error.contains("`blocks.0.mpl.fc1` matches none of the 5"), "{error}");
        assert!(error.contains("nearest are `blocks.0.mlp.fc1`, `blocks.0.mlp.fc2`"), "{error}");
        // A rule in the shade of an earlier one has matched all the same.
        let shaded = json!([{"match": "*", "structure": "dense"}, {"match": "head", "structure": "dense"}]);
        Rules::from_json(&shaded).unwrap().check(&names).unwrap();
    }

    #[test]
    fn rules_of_a_wrong_shape_are_errors() {
        for wrong in [
            json!({"match": "a"}),
            json!([1]),
            json!([{"structure": "dense"}]),
            json!([{"match": "a"}]),
            json!([{"match": "a", "structure": 3}]),
            json!([{"match": "[", "structure": "dense"}]),
            json!([{"match": "/(/", "structure": "dense"}]),
            json!([{"match": "a", "structure": "dense", "kernel": 1}]),
            json!([{"match": "a", "structure": "unstructured", "density": 0.1, "budget": "erq"}]),
            json!([{"match": "a", "structure": "unstructured", "budget": "erk"}]),
            json!([{"match": "a", "structure": "nm", "schedule": 3}]),
        ] {
            assert!(Rules::from_json(&wrong).is_err(), "{wrong}");
        }
    }
}
