//! Schedules: how the structure of a layer changes with the global optimizer step. One file a schedule, one row here.
//!
//! A schedule is of one of three kinds. With *masks* all weights are stored, and at each step n of every m count, or
//! the largest of the layer ([`MaskSchedule`]). With *learned masks* all are stored too, and fewer and fewer places count, those of the highest scores
//! ([`LearnSchedule`]). With *moves* only kept weights are stored, and now and then some change their places; where they do so
//! between layers, all are stored and those that are not kept are zeros ([`MoveSchedule`]). All are pure functions of the step, of weights and scores, and of the seed.

use serde_json::{Map, Value};

use crate::config::nearest;
use crate::{
    Form, Key, LearnSchedule, MaskSchedule, MoveSchedule, Options, PatternKind, Selection, Stages, Structure,
    StructureError,
};

mod block_moves;
mod magnitude;
mod mask_decay;
mod movement;
mod rigl;
mod set;
mod snfs;
mod soft_movement;
mod sr_ste;
mod straight_through;
mod structure_decay;

/// Every schedule.
pub static TABLE: &[&ScheduleKind] = &[
    &straight_through::KIND,
    &sr_ste::KIND,
    &mask_decay::KIND,
    &structure_decay::KIND,
    &rigl::KIND,
    &set::KIND,
    &snfs::KIND,
    &block_moves::KIND,
    &movement::KIND,
    &magnitude::KIND,
    &soft_movement::KIND,
];

/// Structures that masks take.
const MASKED: &str = "`nm`, `unstructured` or `small_world`";

/// One row of the table of schedules.
#[derive(Debug)]
pub struct ScheduleKind {
    /// The name in configs.
    pub name: &'static str,
    /// One line on what it is.
    pub about: &'static str,
    /// The keys of its config, without `name`.
    pub keys: &'static [Key],
    build: fn(&Options) -> Result<Schedule, StructureError>,
}

/// How a structure changes.
#[derive(Clone, Debug, PartialEq)]
pub enum Schedule {
    /// All weights are stored, a mask is chosen at each step.
    Masks(MaskSchedule),
    /// Kept weights are stored, or all between layers; some move now and then.
    Moves(MoveSchedule),
    /// All weights are stored, fewer and fewer places count.
    Learns(LearnSchedule),
}

impl Schedule {
    /// Reads a name (`"rigl"`) or a map (`{"name": "rigl", "every": "50 steps"}`).
    ///
    /// # Errors
    ///
    /// [`StructureError::NotASchedule`], [`StructureError::UnknownSchedule`]; unknown keys, values of a wrong type or
    /// outside their range.
    pub fn from_json(config: &Value) -> Result<Self, StructureError> {
        let empty = Map::new();
        let (name, map) = match config {
            Value::String(name) => (name.as_str(), &empty),
            Value::Object(map) => match map.get("name") {
                Some(Value::String(name)) => (name.as_str(), map),
                _ => return Err(StructureError::NotASchedule { got: config.to_string() }),
            },
            _ => return Err(StructureError::NotASchedule { got: config.to_string() }),
        };
        let kind = TABLE.iter().find(|kind| kind.name == name).ok_or_else(|| {
            let nearest = nearest(name, TABLE.iter().map(|kind| kind.name));
            StructureError::UnknownSchedule { name: name.to_owned(), nearest }
        })?;
        let mut map = map.clone();
        map.shift_remove("name");
        (kind.build)(&Options::new(kind.name, kind.keys, &map)?)
    }

    /// The name of its row.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Masks(masks) => masks.name,
            Self::Moves(moves) => moves.name,
            Self::Learns(learns) => learns.name,
        }
    }

    /// The config it was read from, every default filled in.
    pub fn config(&self) -> Value {
        match self {
            Self::Masks(masks) => masks.config(),
            Self::Moves(moves) => moves.config(),
            Self::Learns(learns) => learns.config(),
        }
    }

    /// Whether a layer stores all of its weights, and is packed when it is written.
    pub fn stores_all(&self) -> bool {
        match self {
            Self::Masks(_) | Self::Learns(_) => true,
            Self::Moves(moves) => moves.stores_all(),
        }
    }

    /// Whether the number of places that count is what comes of training, whatever density the structure has.
    pub fn decides_density(&self) -> bool {
        matches!(self, Self::Learns(LearnSchedule { selection: Selection::Threshold(_), .. }))
    }

    /// Checks that a structure can change so: masks need N:M or single weights whose places are free, moves and learned masks a
    /// pattern whose places are free.
    ///
    /// # Errors
    ///
    /// [`StructureError::Unscheduled`].
    pub fn check(&self, structure: &dyn Structure) -> Result<(), StructureError> {
        let refused = |needs| {
            let (schedule, structure) = (self.name(), structure.name());
            Err(StructureError::Unscheduled { schedule, structure, needs })
        };
        match (self, structure.form()) {
            (Self::Masks(masks), Form::Pattern(pattern)) => match pattern.kind {
                PatternKind::Nm { .. } => Ok(()),
                PatternKind::Unstructured if structure.with_positions(Vec::new()).is_none() => {
                    refused(MASKED)
                }
                // Groups of another size would be larger than the layer, or say nothing of it.
                PatternKind::Unstructured if !matches!(masks.stages, Stages::Target | Stages::Sparsify) => {
                    refused("`nm`, or the stages `target` or `sparsify`")
                }
                PatternKind::Unstructured => Ok(()),
                PatternKind::Block => refused(MASKED),
            },
            (Self::Masks(_), _) => refused(MASKED),
            (Self::Moves(_) | Self::Learns(_), Form::Pattern(pattern))
                if structure.with_positions(pattern.positions.clone()).is_some() =>
            {
                Ok(())
            }
            (Self::Moves(_) | Self::Learns(_), _) => {
                refused("`unstructured`, `small_world` or `block_sparse`")
            }
        }
    }
}
