//! Which tokens of a square map stand in which window.

use crate::tape::value_error;
use crate::{Device, Result, Tensor};
use std::sync::Arc;

/// A square map cut into square windows, after a cyclic shift towards its first row and column. Cloning shares it.
///
/// A shift brings tokens from opposite edges of the map into one window; those are of different regions, and attend to
/// their own region only.
#[derive(Debug, Clone)]
pub struct WindowIndex(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    windows: usize,
    places: usize,
    /// `[windows · places]` u32: the token at each place.
    token_of: Tensor,
    /// `[tokens]` u32, the inverse.
    place_of: Tensor,
    /// `[windows · places]` u32: the region of each place; absent without a shift, where there is only one.
    regions: Option<Tensor>,
}

impl WindowIndex {
    /// Windows of `window × window` of a map of `side × side` tokens, row by row: place (i, j) of window (r, c) holds the
    /// token of row `(r · window + i + shift) mod side` and of the column alike.
    ///
    /// # Errors
    ///
    /// [`EngineError::Value`](crate::EngineError::Value) when `window` does not divide `side`, `shift` is not below
    /// `window`, or a map has 2³² tokens; what the device reports.
    pub fn new(device: &Device, side: usize, window: usize, shift: usize) -> Result<Self> {
        let wrong = |what, expected, got| Err(value_error(super::OP, what, expected, got));
        if side == 0 || side >= 1 << 16 {
            return wrong("side of the map", format!("from 1 to {}", (1 << 16) - 1), side);
        }
        if window == 0 || !side.is_multiple_of(window) {
            return wrong("window", format!("a divisor of {side}, the side of the map"), window);
        }
        if shift >= window {
            return wrong("shift", format!("below {window}, the side of a window"), shift);
        }
        let (across, places) = (side / window, window * window);
        let tokens = side * side;
        // By its place in the shifted map: before the last window, in it, and what came around.
        let region = |at: usize| u32::from(at >= side - window) + u32::from(at >= side - shift);
        let (mut token_of, mut regions, mut place_of) = (vec![0; tokens], vec![0; tokens], vec![0; tokens]);
        for at in 0..tokens {
            let (in_map, in_window) = (at / places, at % places);
            let row = in_map / across * window + in_window / window;
            let col = in_map % across * window + in_window % window;
            let token = (row + shift) % side * side + (col + shift) % side;
            token_of[at] = token as u32;
            place_of[token] = at as u32;
            regions[at] = 3 * region(row) + region(col);
        }
        let tensor = |values: &[u32]| Tensor::from_u32(device, values, &[tokens]);
        let regions = (shift > 0).then(|| tensor(&regions)).transpose()?;
        let (token_of, place_of) = (tensor(&token_of)?, tensor(&place_of)?);
        Ok(Self(Arc::new(Inner { windows: across * across, places, token_of, place_of, regions })))
    }

    /// Windows of the map.
    pub fn windows(&self) -> usize {
        self.0.windows
    }

    /// Tokens of a window.
    pub fn places(&self) -> usize {
        self.0.places
    }

    /// Tokens of the map.
    pub fn tokens(&self) -> usize {
        self.0.windows * self.0.places
    }

    pub(super) fn token_of(&self) -> &Tensor {
        &self.0.token_of
    }

    pub(super) fn place_of(&self) -> &Tensor {
        &self.0.place_of
    }

    pub(super) fn regions(&self) -> Option<&Tensor> {
        self.0.regions.as_ref()
    }
}
