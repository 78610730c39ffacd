//! Budgets: how a share of weights kept overall is spread over layers.

use std::str::FromStr;

/// How densities follow from the layers' shapes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    /// The same density everywhere.
    Uniform,
    /// In proportion to (n_out + n_in) / (n_out · n_in) (Erdős–Rényi; Mocanu et al. 2018).
    ErdosRenyi,
    /// In proportion to the sum over the product of all dimensions, a convolution kernel's included (Evci et al. 2020).
    ErdosRenyiKernel,
}

impl FromStr for Budget {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        match name {
            "uniform" => Ok(Self::Uniform),
            "er" => Ok(Self::ErdosRenyi),
            "erk" => Ok(Self::ErdosRenyiKernel),
            _ => Err(()),
        }
    }
}

impl Budget {
    /// The name in configs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::ErdosRenyi => "er",
            Self::ErdosRenyiKernel => "erk",
        }
    }

    /// The density of each layer, so that `density` of all weights are kept.
    ///
    /// `shapes` are the layers' dimensions, such as `[n_out, n_in]` or `[kh, kw, channels, n_out]`, the last two being
    /// those of the product. p_l = ε s_l, with s_l the layer's share and ε such that the totals agree; layers that would
    /// exceed 1, all that tie for the greatest s at once, become dense and ε is solved again for the rest.
    ///
    /// ```
    /// use lacewing_core::Budget;
    /// let shapes = [vec![784, 300], vec![300, 100], vec![100, 10]];
    /// let densities = Budget::ErdosRenyiKernel.densities(&shapes, 0.1);
    /// assert!((densities[0] - (1.0 - 0.920_432_229_5)).abs() < 1e-9 && densities[2] == 1.0);
    /// ```
    ///
    /// # Panics
    ///
    /// When a shape has fewer than two dimensions.
    pub fn densities(self, shapes: &[Vec<usize>], density: f64) -> Vec<f64> {
        let size = |shape: &Vec<usize>| shape.iter().map(|&n| n as f64).product::<f64>();
        let share = |shape: &Vec<usize>| {
            let dims = match self {
                Self::ErdosRenyi => &shape[shape.len() - 2..],
                _ => &shape[..],
            };
            let sum: f64 = dims.iter().map(|&n| n as f64).sum();
            sum / dims.iter().map(|&n| n as f64).product::<f64>()
        };
        if self == Self::Uniform {
            return vec![density; shapes.len()];
        }
        let shares: Vec<f64> = shapes.iter().map(share).collect();
        // Whole weights of each layer, as if it had the density itself; the millionth is for the rounding of the product.
        let wanted: f64 = shapes.iter().map(|shape| (density * size(shape) - 1e-6).ceil()).sum();
        let mut dense = vec![false; shapes.len()];
        loop {
            let rest = |of: &dyn Fn(usize) -> f64, dense: &[bool], is: bool| -> f64 {
                (0..shapes.len()).filter(|&l| dense[l] == is).map(of).sum()
            };
            let left = wanted - rest(&|l| size(&shapes[l]), &dense, true);
            let spread = rest(&|l| shares[l] * size(&shapes[l]), &dense, false);
            let epsilon = if spread > 0.0 { (left / spread).max(0.0) } else { 0.0 };
            let most = (0..shapes.len()).filter(|&l| !dense[l]).map(|l| shares[l]).fold(0.0, f64::max);
            if epsilon * most <= 1.0 {
                let of = |l: usize| if dense[l] { 1.0 } else { epsilon * shares[l] };
                return (0..shapes.len()).map(of).collect();
            }
            (0..shapes.len()).filter(|&l| shares[l] == most).for_each(|l| dense[l] = true);
        }
    }
}
