//! The key `activation`: the name of a function, or `{k_winners: {…}}`.

use crate::{ModelError, Result};
use lacewing_engine::ops::ACTIVATIONS;
use lacewing_nn::{KWinnersConfig, Nonlinearity};
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// What stands between two linear layers, as a config says it.
#[derive(Clone, Debug, PartialEq)]
pub enum ActivationConfig {
    /// A function by its name.
    Function(String),
    /// K-winners with their settings.
    KWinners(KWinnersConfig),
}

impl From<&str> for ActivationConfig {
    fn from(name: &str) -> Self {
        Self::Function(name.to_owned())
    }
}

impl ActivationConfig {
    /// The function of that name, or the competition.
    ///
    /// # Errors
    ///
    /// [`ModelError::Value`] with all names, for one that is none of them.
    pub(crate) fn nonlinearity(&self) -> Result<Nonlinearity> {
        let name = match self {
            Self::Function(name) => name,
            Self::KWinners(config) => return Ok(Nonlinearity::KWinners(*config)),
        };
        let found = ACTIVATIONS.iter().find(|(known, _)| known == name);
        found.map(|&(_, activation)| activation.into()).ok_or_else(|| {
            let names: Vec<&str> = ACTIVATIONS.iter().map(|(name, _)| *name).collect();
            let expected = format!("one of {}, or a map with the key `k_winners`", names.join(", "));
            ModelError::Value { key: "activation", expected, got: name.clone() }
        })
    }
}

impl Serialize for ActivationConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Function(name) => serializer.serialize_str(name),
            Self::KWinners(config) => {
                serializer.serialize_newtype_variant("ActivationConfig", 1, "k_winners", config)
            }
        }
    }
}

/// The form with settings.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum WithSettings {
    KWinners(KWinnersConfig),
}

impl<'de> Deserialize<'de> for ActivationConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Forms)
    }
}

/// Reads either form.
struct Forms;

impl<'de> Visitor<'de> for Forms {
    type Value = ActivationConfig;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a function, or a map with the key `k_winners`")
    }

    fn visit_str<E>(self, name: &str) -> Result<ActivationConfig, E> {
        Ok(name.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ActivationConfig, A::Error> {
        let WithSettings::KWinners(config) = WithSettings::deserialize(MapAccessDeserializer::new(map))?;
        Ok(ActivationConfig::KWinners(config))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(value: &Value) -> Result<ActivationConfig, String> {
        ActivationConfig::deserialize(value).map_err(|error| error.to_string())
    }

    #[test]
    fn both_forms_are_read_and_written() {
        assert_eq!(read(&json!("gelu")), Ok("gelu".into()));
        let config = KWinnersConfig { percent_on: Some(0.25), relu: true, ..KWinnersConfig::default() };
        let full = ActivationConfig::KWinners(config);
        assert_eq!(read(&json!({"k_winners": {"percent_on": 0.25, "relu": true}})), Ok(full.clone()));
        for config in [full, "relu".into()] {
            assert_eq!(read(&serde_json::to_value(&config).unwrap()), Ok(config));
        }
    }

    #[test]
    fn other_forms_are_errors_that_say_what_is_known() {
        for (value, part) in [
            (json!(3), "`k_winners`"),
            (json!({"k_winner": {}}), "`k_winners`"),
            (json!({"k_winners": {"percent": 0.1}}), "`percent_on`"),
            (json!({"k_winners": {"k": -1}}), "usize"),
            (json!({"k_winners": {"k": 1}, "relu": {}}), ""),
        ] {
            let error = read(&value).unwrap_err();
            assert!(error.contains(part), "{value}: {error}");
        }
    }
}
