//! What can be wrong with a config, a shape or a checkpoint of a structure.

/// Why a structure could not be built or restored. Every variant names the place and the numbers.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum StructureError {
    /// A config is a name, or a map with the name under `structure`.
    #[error("a structure is a name or a map with the key `structure`, got {got}")]
    NotAConfig {
        /// The value found.
        got: String,
    },
    /// No table row has this name.
    #[error("there is no structure `{name}`{}", did_you_mean(.nearest))]
    UnknownStructure {
        /// The name asked for.
        name: String,
        /// The known name nearest to it.
        nearest: Option<&'static str>,
    },
    /// A schedule's config is a name, or a map with it under `name`.
    #[error("a schedule is a name or a map with the key `name`, got {got}")]
    NotASchedule {
        /// The config as JSON.
        got: String,
    },
    /// No schedule has this name.
    #[error("there is no schedule `{name}`{}", did_you_mean(.nearest))]
    UnknownSchedule {
        /// The name asked for.
        name: String,
        /// The most similar known name.
        nearest: Option<&'static str>,
    },
    /// The structure cannot change as the schedule would have it.
    #[error("the schedule `{schedule}` needs {needs}, the layer is `{structure}`")]
    Unscheduled {
        /// The schedule.
        schedule: &'static str,
        /// The structure.
        structure: &'static str,
        /// Structures it takes.
        needs: &'static str,
    },
    /// Phases of a schedule that do not fit the run or each other.
    #[error("`{schedule}`: {what}: step {got}, at most {most}")]
    Phases {
        /// The schedule.
        schedule: &'static str,
        /// Which phases.
        what: &'static str,
        /// Steps they take, or the step they begin at.
        got: u64,
        /// The most it could be.
        most: u64,
    },
    /// Listed stages that end elsewhere than at the layer's pattern.
    #[error("`{schedule}.stages` must end with {}:{}, the layer's n:m, got {got:?}", expected.0, expected.1)]
    LastStage {
        /// The schedule.
        schedule: &'static str,
        /// n and m of the layer.
        expected: (usize, usize),
        /// n and m of the last stage.
        got: Option<(usize, usize)>,
    },
    /// The structure, or the schedule, has no such key.
    #[error("`{structure}` has no key `{key}`{}", did_you_mean(.nearest))]
    UnknownKey {
        /// The structure.
        structure: &'static str,
        /// The key found.
        key: String,
        /// The known key nearest to it.
        nearest: Option<&'static str>,
    },
    /// A key that must be given is not.
    #[error("`{structure}.{key}` must be given")]
    MissingKey {
        /// The structure.
        structure: &'static str,
        /// The key.
        key: &'static str,
    },
    /// A value of another kind than the key takes.
    #[error("`{structure}.{key}` must be {expected}, got {got}")]
    WrongType {
        /// The structure.
        structure: &'static str,
        /// The key.
        key: String,
        /// What the key takes.
        expected: &'static str,
        /// The value found.
        got: String,
    },
    /// A number outside its range.
    #[error("`{structure}.{key}` must be between {low} and {high}, got {got}")]
    OutOfRange {
        /// The structure.
        structure: &'static str,
        /// The key.
        key: &'static str,
        /// The value found.
        got: f64,
        /// The least value allowed.
        low: f64,
        /// The greatest value allowed.
        high: f64,
    },
    /// A number that must be a power of two is not.
    #[error("`{structure}.{key}` must be a power of two, got {got}")]
    NotAPowerOfTwo {
        /// The structure.
        structure: &'static str,
        /// The key.
        key: &'static str,
        /// The value found.
        got: usize,
    },
    /// Two keys that exclude each other.
    #[error("`{structure}.{key}` cannot be combined with `{other}`")]
    Conflict {
        /// The structure.
        structure: &'static str,
        /// One key.
        key: &'static str,
        /// The other key.
        other: &'static str,
    },
    /// A size that does not divide, and padding was not asked for or cannot help.
    #[error(
        "`{structure}`: {size_name} = {size} is not a multiple of {divisor} ({divisor_name}); \
         choose sizes that divide{}", or_pad(*.size, *.padded)
    )]
    Indivisible {
        /// The structure.
        structure: &'static str,
        /// `n_in` or `n_out`.
        size_name: &'static str,
        /// Its value.
        size: usize,
        /// Where the divisor comes from.
        divisor_name: &'static str,
        /// What it must divide by.
        divisor: usize,
        /// The size that padding would give; `size` itself where padding cannot help.
        padded: usize,
    },
    /// A size that does not divide, of a structure that cannot be padded.
    #[error(
        "`{structure}`: {size_name} = {size} is not a multiple of {divisor} ({divisor_name}), and this structure \
         has no padding; the next size that fits is {next}"
    )]
    NotAMultiple {
        /// The structure.
        structure: &'static str,
        /// `n_in` or `n_out`.
        size_name: &'static str,
        /// Its value.
        size: usize,
        /// Where the divisor comes from.
        divisor_name: &'static str,
        /// What it must divide by.
        divisor: usize,
        /// The next multiple.
        next: usize,
    },
    /// A layer size of zero, or beyond what indices are made for.
    #[error("`{structure}`: {size_name} must be between 1 and {max}, got {got}")]
    Size {
        /// The structure.
        structure: &'static str,
        /// `n_in` or `n_out`.
        size_name: &'static str,
        /// The value found.
        got: usize,
        /// The greatest size supported.
        max: usize,
    },
    /// The factors of a chain do not fit each other.
    #[error("`{structure}`: {what} must be {expected}, got {got}")]
    FactorShape {
        /// The structure.
        structure: &'static str,
        /// Which product of sizes.
        what: &'static str,
        /// What the other factor or the layer needs.
        expected: usize,
        /// What the factor gives.
        got: usize,
    },
    /// A number of parameters that is too small for the parts of a structure.
    #[error(
        "`{structure}.budget`: {budget} parameters are too few; the least that can be met is {least}, \
         with rank {rank}, butterfly_size {butterfly_size} and n_factors {n_factors}"
    )]
    Budget {
        /// The structure.
        structure: &'static str,
        /// Parameters asked for.
        budget: usize,
        /// The fewest that can be met, the other keys as they are.
        least: usize,
        /// The rank that they buy.
        rank: usize,
        /// The side of the butterfly that they buy.
        butterfly_size: usize,
        /// The factors that they buy.
        n_factors: usize,
    },
    /// A factor of a longer chain does not fit itself, the factor before it or the layer.
    #[error("`{structure}`: factor {factor}: {what} must be {expected}, got {got}")]
    ChainFactor {
        /// The structure.
        structure: &'static str,
        /// Which factor, counted from 0 at the input.
        factor: usize,
        /// Which of its sizes.
        what: &'static str,
        /// What the sizes before it need.
        expected: usize,
        /// What the factor gives.
        got: usize,
    },
    /// A pattern without a single place.
    #[error("`{structure}` would keep none of its {places} places at density {density}")]
    EmptyPattern {
        /// The structure.
        structure: &'static str,
        /// How many places there are.
        places: usize,
        /// The density asked for.
        density: f64,
    },
    /// A listed place outside the grid.
    #[error("`{structure}`: place [{row}, {col}] is outside the {rows} by {cols} grid")]
    OutsideGrid {
        /// The structure.
        structure: &'static str,
        /// Its row.
        row: u64,
        /// Its column.
        col: u64,
        /// Rows of the grid.
        rows: usize,
        /// Columns of the grid.
        cols: usize,
    },
    /// A place listed twice.
    #[error("`{structure}`: place [{row}, {col}] is listed twice")]
    Repeated {
        /// The structure.
        structure: &'static str,
        /// Its row.
        row: u32,
        /// Its column.
        col: u32,
    },
    /// The dense matrix to take magnitudes from has another size.
    #[error("`{structure}`: the dense weight has {got} values, [{n_out}, {n_in}] needs {expected}")]
    DenseLength {
        /// The structure.
        structure: &'static str,
        /// Output size.
        n_out: usize,
        /// Input size.
        n_in: usize,
        /// `n_out · n_in`.
        expected: usize,
        /// The length found.
        got: usize,
    },
    /// The dense matrix to take magnitudes from holds a NaN.
    #[error("`{structure}`: the dense weight is NaN at [{row}, {col}], so magnitudes cannot be ranked")]
    DenseNan {
        /// The structure.
        structure: &'static str,
        /// Its row.
        row: usize,
        /// Its column.
        col: usize,
    },
    /// A checkpoint lacks an index buffer.
    #[error("`{structure}`: index buffer `{buffer}` is missing")]
    MissingBuffer {
        /// The structure.
        structure: &'static str,
        /// The buffer.
        buffer: String,
    },
    /// A checkpoint holds an index buffer the structure does not know, or one twice.
    #[error("`{structure}`: index buffer `{buffer}` is unknown or repeated")]
    UnknownBuffer {
        /// The structure.
        structure: &'static str,
        /// The buffer.
        buffer: String,
    },
    /// An index buffer of another shape.
    #[error(
        "`{structure}`: index buffer `{buffer}` must have shape {expected:?}, got {got:?} with {len} values"
    )]
    BufferShape {
        /// The structure.
        structure: &'static str,
        /// The buffer.
        buffer: String,
        /// The shape the config asks for.
        expected: Vec<usize>,
        /// The shape found.
        got: Vec<usize>,
        /// How many values were found.
        len: usize,
    },
    /// A saved pattern that is not the one its config defines.
    #[error("`{structure}`: saved place {at} is {got:?}, the config gives {expected:?}")]
    PatternDiffers {
        /// The structure.
        structure: &'static str,
        /// Which place, row-major.
        at: usize,
        /// The place by the config; none when the saved pattern goes on too long.
        expected: Option<(u32, u32)>,
        /// The place saved; none when the saved pattern ends too early.
        got: Option<(u32, u32)>,
    },
    /// An index buffer with a value that cannot be.
    #[error("`{structure}`: index buffer `{buffer}`[{at}] = {got}, expected {low} to {high}")]
    BufferValue {
        /// The structure.
        structure: &'static str,
        /// The buffer.
        buffer: String,
        /// Position in the buffer.
        at: usize,
        /// The value found.
        got: u32,
        /// The least value allowed there.
        low: u64,
        /// The greatest value allowed there.
        high: u64,
    },
}

fn or_pad(size: usize, padded: usize) -> String {
    if size == padded {
        return String::new();
    }
    format!(", or set `pad: true` to pad with zeros to {padded}")
}

fn did_you_mean(nearest: &Option<&'static str>) -> String {
    nearest.map(|name| format!("; did you mean `{name}`?")).unwrap_or_default()
}
