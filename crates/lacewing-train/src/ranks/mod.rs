//! Data-parallel training: processes that each take a share of every batch and make every step together.
//!
//! All processes hold the whole model and run the same recipe. Gradients are summed before anything is decided by them: the
//! optimizer's step, clipping, scores, and the gradient of the dense weight that growth goes by. Every process gets the same
//! bits of a sum, and everything else of a step is a function of the weights, the seed and the step, so all choose the same
//! masks and moves. [`Ranks::agree`] checks that at each checkpoint.
//!
//! Numbers and lists go around a ring of TCP connections; sums on GPUs go through NCCL.

mod ring;

use lacewing_engine::ops::SumOver;
use lacewing_engine::{Collective, Device, EngineError, Tensor};
use ring::Ring;
use std::env;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Why processes cannot train together.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RanksError {
    /// The environment names no place in a group.
    #[error(
        "{name} is {got}, expected {expected} (processes of one run are told apart by RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT)"
    )]
    Environment {
        /// The variable.
        name: &'static str,
        /// What would fit.
        expected: String,
        /// Its value, or that there is none.
        got: String,
    },
    /// The others do not come together.
    #[error("rank {rank} of {size} cannot meet the others at {address}: {source}")]
    Meet {
        /// This process.
        rank: usize,
        /// How many there are.
        size: usize,
        /// Where rank 0 listens.
        address: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Another process has ended, or its machine cannot be reached.
    #[error("rank {rank} has lost rank {from}, which has ended or cannot be reached: {source}")]
    Lost {
        /// This process.
        rank: usize,
        /// The other one.
        from: usize,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A message that does not fit this run.
    #[error("rank {rank} says what rank 0 does not understand: {what}")]
    Message {
        /// The other process.
        rank: usize,
        /// What was expected.
        what: &'static str,
    },
    /// The processes hold different states where they must hold the same.
    #[error(
        "after step {step} of {model} rank {rank} holds other weights or patterns than rank 0; checkpoints before that step are whole"
    )]
    Differ {
        /// The model.
        model: String,
        /// Steps done.
        step: u64,
        /// The first process that differs.
        rank: usize,
    },
    /// A batch that is too small to be shared.
    #[error("data.batch_size is {batch_size}, but {ranks} processes share each batch")]
    Batch {
        /// Pictures a batch.
        batch_size: usize,
        /// Processes.
        ranks: usize,
    },
}

/// A process's place in a group, and the way to the others.
#[derive(Debug)]
pub struct Ranks {
    rank: usize,
    size: usize,
    local_rank: usize,
    ring: Option<Arc<Connection>>,
}

#[derive(Debug)]
struct Connection(Mutex<Ring>);

impl Connection {
    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SumOver for Connection {
    fn sum(&self, values: &mut [f32]) -> Result<(), EngineError> {
        self.ring().sum(values).map_err(|error| EngineError::Processes(Box::new(error)))
    }
}

impl Ranks {
    /// A run of one process.
    pub fn alone() -> Self {
        Self { rank: 0, size: 1, local_rank: 0, ring: None }
    }

    /// The place that the environment names: `RANK` of `WORLD_SIZE` processes, which meet at `MASTER_ADDR:MASTER_PORT`, and
    /// `LOCAL_RANK` on this machine (default: `RANK`), the variables that PyTorch's launchers set. Without `WORLD_SIZE` a run
    /// of one process. Waits for the others.
    ///
    /// # Errors
    ///
    /// [`RanksError::Environment`] for what is missing or no such number, [`RanksError::Meet`] when the others do not come.
    pub fn from_environment() -> Result<Self, RanksError> {
        let size = match env::var_os("WORLD_SIZE") {
            None => return Ok(Self::alone()),
            Some(_) => read::<usize>("WORLD_SIZE", |&size| size > 0, "a number of processes")?,
        };
        if size == 1 {
            return Ok(Self::alone());
        }
        let rank = read("RANK", |&rank| rank < size, &format!("a number below {size}"))?;
        let local_rank = match env::var_os("LOCAL_RANK") {
            None => rank,
            Some(_) => read("LOCAL_RANK", |&local: &usize| local < size, &format!("a number below {size}"))?,
        };
        let host: String = read("MASTER_ADDR", |host: &String| !host.is_empty(), "the machine of rank 0")?;
        let port: u16 =
            read("MASTER_PORT", |&port| port > 0, "a port that is free on the machine of rank 0")?;
        let mut ranks = Self::join(rank, size, &format!("{host}:{port}"))?;
        ranks.local_rank = local_rank;
        Ok(ranks)
    }

    /// Joins `size` processes that meet at `address`, where rank 0 listens, as `rank`. Waits for the others.
    ///
    /// # Errors
    ///
    /// [`RanksError::Meet`] when the others do not come.
    pub fn join(rank: usize, size: usize, address: &str) -> Result<Self, RanksError> {
        let ring = Ring::join(rank, size, address)?;
        Ok(Self { rank, size, local_rank: rank, ring: Some(Arc::new(Connection(Mutex::new(ring)))) })
    }

    /// This process's number.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many there are.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Whether this is the process that speaks, writes and decides when to stop.
    pub fn is_first(&self) -> bool {
        self.rank == 0
    }

    /// The device of this process where the recipe names `device`: on a machine with several processes each takes the GPU
    /// as many places further as its number there.
    pub fn device_name(&self, device: &str) -> String {
        let number = device.strip_prefix("cuda:").map_or((device == "cuda").then_some(0), |n| n.parse().ok());
        match number {
            Some(number) if self.size > 1 => format!("cuda:{}", number + self.local_rank),
            _ => device.to_owned(),
        }
    }

    /// What is needed to sum what lies on `device`.
    ///
    /// # Errors
    ///
    /// [`EngineError::Processes`] when another process is lost, [`EngineError::Cuda`] without NCCL.
    pub fn sums(&self, device: &Device) -> Result<Sums, EngineError> {
        let Some(ring) = &self.ring else { return Ok(Sums(Over::Nothing)) };
        if matches!(device, Device::Cpu) {
            return Ok(Sums(Over::Host(ring.clone(), self.size)));
        }
        // An empty id tells the others that rank 0 has failed, so that all end with a reason.
        let made = if self.is_first() { Collective::id().map(|id| id.to_vec()) } else { Ok(Vec::new()) };
        let own = made.as_ref().map_or_else(|_| Vec::new(), Clone::clone);
        let gathered = ring.ring().gather(own).map_err(|error| EngineError::Processes(Box::new(error)))?;
        made?;
        let id = gathered[0].as_slice().try_into().map_err(|_| {
            let what = "an id of NCCL, which rank 0 could not make";
            EngineError::Processes(Box::new(RanksError::Message { rank: 0, what }))
        })?;
        Ok(Sums(Over::Gpus(Collective::join(device, self.rank, self.size, id)?)))
    }

    /// What sums values on the host, for a layer's dense gradient; `None` in a run of one process.
    pub(crate) fn host_sums(&self) -> Option<Arc<dyn SumOver>> {
        self.ring.clone().map(|ring| ring as Arc<dyn SumOver>)
    }

    /// What rank 0 says, whatever the others say.
    ///
    /// # Errors
    ///
    /// [`RanksError::Lost`].
    pub fn first_says(&self, own: Vec<u8>) -> Result<Vec<u8>, RanksError> {
        Ok(self.gather(own)?.swap_remove(0))
    }

    /// Each value summed over the processes, in the order of their ranks.
    ///
    /// # Errors
    ///
    /// [`RanksError::Lost`]; [`RanksError::Message`] when another process has another number of them.
    pub fn sum_values<const N: usize>(&self, own: [f64; N]) -> Result<[f64; N], RanksError> {
        let mut sums = [0.0; N];
        for (rank, bytes) in self.gather(bytes_of(&own))?.into_iter().enumerate() {
            let values = values_of(&bytes).filter(|values| values.len() == N);
            let values = values.ok_or(RanksError::Message { rank, what: "numbers to be summed" })?;
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        }
        Ok(sums)
    }

    /// The smallest of a value over the processes.
    ///
    /// # Errors
    ///
    /// As [`Ranks::sum_values`].
    pub fn min_value(&self, own: f64) -> Result<f64, RanksError> {
        let mut least = f64::INFINITY;
        for (rank, bytes) in self.gather(bytes_of(&[own]))?.into_iter().enumerate() {
            let values = values_of(&bytes).filter(|values| values.len() == 1);
            least = least.min(values.ok_or(RanksError::Message { rank, what: "a number" })?[0]);
        }
        Ok(least)
    }

    /// Checks that all hold the same state, of which `digest` was made.
    ///
    /// # Errors
    ///
    /// [`RanksError::Differ`] in all processes when one does not.
    pub fn agree(&self, model: &str, step: u64, digest: u64) -> Result<(), RanksError> {
        let all = self.gather(digest.to_le_bytes().to_vec())?;
        match all.iter().position(|other| *other != all[0]) {
            Some(rank) => Err(RanksError::Differ { model: model.to_owned(), step, rank }),
            None => Ok(()),
        }
    }

    fn gather(&self, own: Vec<u8>) -> Result<Vec<Vec<u8>>, RanksError> {
        match &self.ring {
            Some(ring) => ring.ring().gather(own),
            None => Ok(vec![own]),
        }
    }
}

/// Sums of tensors over the processes of a run.
#[derive(Debug)]
pub struct Sums(Over);

#[derive(Debug)]
enum Over {
    /// One process: a sum is the value itself.
    Nothing,
    /// On the host, by how many processes.
    Host(Arc<Connection>, usize),
    /// On GPUs.
    Gpus(Collective),
}

impl Sums {
    /// Each element of the f32 `tensor` becomes the sum of those at its place.
    ///
    /// # Errors
    ///
    /// [`EngineError::Processes`] when another process is lost; what the device reports.
    pub fn sum(&self, tensor: &Tensor) -> Result<(), EngineError> {
        match &self.0 {
            Over::Nothing => Ok(()),
            Over::Host(ring, _) => ring.sum(&mut tensor.write()),
            Over::Gpus(gpus) => gpus.sum(tensor),
        }
    }

    /// As [`Sums::sum`] with the mean.
    ///
    /// # Errors
    ///
    /// As [`Sums::sum`].
    pub fn mean(&self, tensor: &Tensor) -> Result<(), EngineError> {
        match &self.0 {
            Over::Nothing => Ok(()),
            Over::Gpus(gpus) => gpus.mean(tensor),
            Over::Host(ring, size) => {
                let mut values = tensor.write();
                ring.sum(&mut values)?;
                values.iter_mut().for_each(|value| *value /= *size as f32);
                Ok(())
            }
        }
    }
}

/// The value of an environment variable.
fn read<T: FromStr>(
    name: &'static str,
    fits: impl FnOnce(&T) -> bool,
    expected: &str,
) -> Result<T, RanksError> {
    let text = env::var(name).ok();
    let value = text.as_deref().and_then(|text| text.parse().ok()).filter(fits);
    value.ok_or_else(|| RanksError::Environment {
        name,
        expected: expected.to_owned(),
        got: text.map_or("not set".to_owned(), |text| format!("`{text}`")),
    })
}

fn bytes_of(values: &[f64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn values_of(bytes: &[u8]) -> Option<Vec<f64>> {
    let (words, rest) = bytes.as_chunks::<8>();
    rest.is_empty().then(|| words.iter().map(|word| f64::from_le_bytes(*word)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread;

    /// Runs `f` as each of `size` ranks.
    fn each<T: Send>(size: usize, f: impl Fn(Ranks) -> T + Sync) -> Vec<T> {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        thread::scope(|scope| {
            let (f, free) = (&f, &free);
            // Rank 0 comes last: the others wait for it.
            let started = |rank| scope.spawn(move || f(Ranks::join(rank, size, free).unwrap()));
            let mut threads: Vec<_> = (0..size).rev().map(started).collect();
            threads.reverse();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn every_rank_gets_the_same_sums() {
        for (size, len) in [(2, 5), (3, 100_003), (4, 2), (5, 40_000)] {
            let value = |rank: usize, i: usize| ((rank * 7919 + i * 104_729) % 1000) as f32 / 7.0 - 70.0;
            let sums = each(size, |ranks| {
                let mut values: Vec<f32> = (0..len).map(|i| value(ranks.rank(), i)).collect();
                ranks.host_sums().unwrap().sum(&mut values).unwrap();
                let listed = ranks.sum_values([ranks.rank() as f64, 1.0]).unwrap();
                let least = ranks.min_value(5.0 - ranks.rank() as f64).unwrap();
                let said = ranks.first_says(vec![ranks.rank() as u8; ranks.rank() + 1]).unwrap();
                (values, listed, least, said)
            });
            for (values, listed, least, said) in &sums {
                let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(values), bits(&sums[0].0), "{size} ranks, {len} values");
                assert_eq!(*listed, [(size * (size - 1) / 2) as f64, size as f64]);
                assert_eq!((*least, said.as_slice()), (6.0 - size as f64, &[0u8][..]));
            }
            for (i, &sum) in sums[0].0.iter().enumerate() {
                let exact: f64 = (0..size).map(|rank| f64::from(value(rank, i))).sum();
                let bound: f64 = (0..size).map(|rank| f64::from(value(rank, i).abs())).sum();
                let tolerance = bound * f64::from(f32::EPSILON) * size as f64;
                assert!((f64::from(sum) - exact).abs() <= tolerance, "{sum} for {exact}");
            }
        }
    }

    #[test]
    fn ranks_that_differ_are_found() {
        let found = each(3, |ranks| {
            assert!(ranks.agree("m", 4, 17).is_ok());
            ranks.agree("m", 5, if ranks.rank() == 1 { 3 } else { 17 }).map_err(|error| error.to_string())
        });
        for error in found {
            let error = error.expect_err("rank 1 differs");
            assert!(error.contains("rank 1") && error.contains("step 5"), "{error}");
        }
    }

    #[test]
    fn a_lost_rank_is_an_error() {
        let found = each(2, |ranks| match ranks.rank() {
            0 => Ok([0.0]),
            _ => ranks.sum_values([1.0]).map_err(|error| error.to_string()),
        });
        assert!(found[1].as_ref().is_err_and(|error| error.contains("has lost rank 0")), "{found:?}");
    }

    #[test]
    fn each_rank_of_a_machine_takes_its_own_gpu() {
        let ranks = |size, local_rank| Ranks { rank: local_rank, size, local_rank, ring: None };
        for (size, local, name, device) in [
            (1, 0, "cuda:2", "cuda:2"),
            (2, 1, "cuda:2", "cuda:3"),
            (2, 1, "cuda", "cuda:1"),
            (2, 1, "cpu", "cpu"),
        ] {
            assert_eq!(ranks(size, local).device_name(name), device);
        }
    }
}
