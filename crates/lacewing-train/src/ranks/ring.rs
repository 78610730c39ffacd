//! Processes in a ring of TCP connections: each sends to the next and receives from the one before.

use super::RanksError;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

/// Longest wait for all processes to come.
const PATIENCE: Duration = Duration::from_secs(300);

/// Time between two tries to reach a process that does not listen yet.
const PAUSE: Duration = Duration::from_millis(50);

/// Bytes that no message of ours begins with by chance: what connects to the port may be anything.
const GREETING: u64 = u64::from_le_bytes(*b"lacering");

/// One process's place in the ring.
#[derive(Debug)]
pub(super) struct Ring {
    rank: usize,
    size: usize,
    next: TcpStream,
    before: TcpStream,
}

impl Ring {
    /// Meets the others at `address`, where rank 0 listens, and closes the ring.
    pub(super) fn join(rank: usize, size: usize, address: &str) -> Result<Self, RanksError> {
        let unreachable = |source| RanksError::Meet { rank, size, address: address.to_owned(), source };
        let deadline = Instant::now() + PATIENCE;
        // Where the one before shall connect: for rank 0 the meeting place itself.
        let (listener, own) = if rank == 0 {
            (TcpListener::bind(address).map_err(unreachable)?, None)
        } else {
            let at = resolve(address).map_err(unreachable)?;
            // Processes of one machine need not be reached from others.
            let own = match at.ip() {
                ip if ip.is_loopback() => ip,
                IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let listener = TcpListener::bind((own, 0)).map_err(unreachable)?;
            let port = listener.local_addr().map_err(unreachable)?.port();
            (listener, Some((at, port)))
        };
        let Some((meeting_place, port)) = own else {
            return Self::gather_all(size, &listener, deadline).map_err(unreachable);
        };
        // Rank 0 hears of everybody and tells each whom to connect to; the last connects to rank 0 once more.
        let mut first = connect(meeting_place, deadline).map_err(unreachable)?;
        say(&mut first, &[GREETING, rank as u64, size as u64, u64::from(port)]).map_err(unreachable)?;
        let mut answer = [0u8; 256];
        let length = hear(&mut first).map_err(unreachable)? as usize;
        let text = answer.get_mut(..length).ok_or_else(|| unreachable(odd("an address of that length")))?;
        first.read_exact(text).map_err(unreachable)?;
        let text = String::from_utf8_lossy(text).into_owned();
        let next = if rank + 1 == size {
            first
        } else {
            let at = text.parse().map_err(|_| unreachable(odd("no address")))?;
            let mut next = connect(at, deadline).map_err(unreachable)?;
            say(&mut next, &[GREETING, rank as u64]).map_err(unreachable)?;
            next
        };
        let before = accept_from(&listener, rank - 1, deadline).map_err(unreachable)?;
        Self::of(rank, size, next, before).map_err(unreachable)
    }

    /// Rank 0: hears of the others, tells each whom to connect to, connects to rank 1.
    fn gather_all(size: usize, listener: &TcpListener, deadline: Instant) -> std::io::Result<Self> {
        let mut peers: Vec<Option<(TcpStream, SocketAddr)>> = (1..size).map(|_| None).collect();
        while peers.iter().any(Option::is_none) {
            let (mut stream, from) = accept(listener, deadline)?;
            let mut words = [0u64; 4];
            // Whoever is not of this run is let go.
            if (0..4).try_for_each(|i| hear(&mut stream).map(|word| words[i] = word)).is_err()
                || words[0] != GREETING
            {
                continue;
            }
            let (rank, its_size, port) = (words[1] as usize, words[2] as usize, words[3] as u16);
            if its_size != size {
                return Err(odd(&format!("rank {rank} counts {its_size} processes, rank 0 {size}")));
            }
            match peers.get_mut(rank.wrapping_sub(1)) {
                Some(place @ None) => *place = Some((stream, SocketAddr::new(from.ip(), port))),
                _ => return Err(odd(&format!("a second process came as rank {rank}"))),
            }
        }
        let mut peers: Vec<(TcpStream, SocketAddr)> = peers.into_iter().flatten().collect();
        let addresses: Vec<String> = peers.iter().map(|(_, at)| at.to_string()).collect();
        for (i, (stream, _)) in peers.iter_mut().enumerate() {
            let text = addresses.get(i + 1).map_or("", String::as_str);
            say(stream, &[text.len() as u64])?;
            stream.write_all(text.as_bytes())?;
        }
        let first = peers.first().map(|(_, at)| *at).ok_or_else(|| odd("no other process"))?;
        let mut next = connect(first, deadline)?;
        say(&mut next, &[GREETING, 0])?;
        let (before, _) = peers.pop().ok_or_else(|| odd("no other process"))?;
        Self::of(0, size, next, before)
    }

    fn of(rank: usize, size: usize, next: TcpStream, before: TcpStream) -> std::io::Result<Self> {
        for stream in [&next, &before] {
            stream.set_nodelay(true)?;
            stream.set_nonblocking(false)?;
            stream.set_read_timeout(None)?;
        }
        Ok(Self { rank, size, next, before })
    }

    /// What each process has, in the order of their ranks.
    pub(super) fn gather(&mut self, own: Vec<u8>) -> Result<Vec<Vec<u8>>, RanksError> {
        let mut all = vec![Vec::new(); self.size];
        let mut at = self.rank;
        all[at] = own;
        for _ in 1..self.size {
            let before = (at + self.size - 1) % self.size;
            let mut length = [0u8; 8];
            self.exchange(&(all[at].len() as u64).to_le_bytes(), &mut length)?;
            let mut received = vec![0; u64::from_le_bytes(length) as usize];
            self.exchange(&all[at], &mut received)?;
            (all[before], at) = (received, before);
        }
        Ok(all)
    }

    /// Each value becomes the sum of those at its place in all processes, the same to the bit in all.
    ///
    /// In as many parts as there are processes: part p starts at rank p and is added up on its way around, then the sums
    /// go around. Each process sends 2 (n − 1)/n of the values.
    pub(super) fn sum(&mut self, values: &mut [f32]) -> Result<(), RanksError> {
        let n = self.size;
        let part = |p: usize| {
            let p = p % n;
            values.len() * p / n..values.len() * (p + 1) / n
        };
        let parts: Vec<_> = (0..n).map(part).collect();
        let mut received = vec![0f32; values.len().div_ceil(n)];
        for step in 0..2 * (n - 1) {
            let is_sum = step < n - 1;
            // After n − 1 steps this process holds the whole sum of the part after its own.
            let sent = &parts[(self.rank + 2 * n - step) % n];
            let taken = &parts[(self.rank + 2 * n - step - 1) % n];
            let received = &mut received[..taken.len()];
            self.exchange(bytemuck::cast_slice(&values[sent.clone()]), bytemuck::cast_slice_mut(received))?;
            let own = &mut values[taken.clone()];
            if is_sum {
                own.iter_mut().zip(received.iter()).for_each(|(own, other)| *own += other);
            } else {
                own.copy_from_slice(received);
            }
        }
        Ok(())
    }

    /// Sends to the next while it receives from the one before: in turns, large messages would wait for each other.
    fn exchange(&mut self, send: &[u8], receive: &mut [u8]) -> Result<(), RanksError> {
        let (mut next, mut before) = (&self.next, &self.before);
        let lost = |from: usize, source| RanksError::Lost { rank: self.rank, from, source };
        // What fits the system's buffers needs no thread.
        const AT_ONCE: usize = 16 << 10;
        let (sent, got) = if send.len() <= AT_ONCE {
            let sent = next.write_all(send);
            (sent, before.read_exact(receive))
        } else {
            thread::scope(|scope| {
                let sender = scope.spawn(move || next.write_all(send));
                let got = before.read_exact(receive);
                if got.is_err() {
                    // Whoever is sent to may wait for the lost one as well and never read.
                    let _ = self.next.shutdown(Shutdown::Both);
                }
                (sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), got)
            })
        };
        sent.map_err(|source| lost((self.rank + 1) % self.size, source))?;
        got.map_err(|source| lost((self.rank + self.size - 1) % self.size, source))
    }
}

fn odd(reason: &str) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, reason)
}

fn late() -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::TimedOut, "not all processes came in time")
}

fn resolve(address: &str) -> std::io::Result<SocketAddr> {
    address.to_socket_addrs()?.next().ok_or_else(|| odd("a name without an address"))
}

fn connect(at: SocketAddr, deadline: Instant) -> std::io::Result<TcpStream> {
    loop {
        match TcpStream::connect(at) {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => thread::sleep(PAUSE),
        }
    }
}

fn accept(listener: &TcpListener, deadline: Instant) -> std::io::Result<(TcpStream, SocketAddr)> {
    listener.set_nonblocking(true)?;
    loop {
        match listener.accept() {
            Ok((stream, from)) => {
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(Duration::from_secs(10)))?;
                return Ok((stream, from));
            }
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => return Err(error),
            Err(_) if Instant::now() > deadline => return Err(late()),
            Err(_) => thread::sleep(PAUSE),
        }
    }
}

/// The connection of rank `before`; others that come are let go.
fn accept_from(listener: &TcpListener, before: usize, deadline: Instant) -> std::io::Result<TcpStream> {
    loop {
        let (mut stream, _) = accept(listener, deadline)?;
        if let (Ok(GREETING), Ok(rank)) = (hear(&mut stream), hear(&mut stream))
            && rank as usize == before
        {
            return Ok(stream);
        }
    }
}

fn say(stream: &mut TcpStream, words: &[u64]) -> std::io::Result<()> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    stream.write_all(&bytes)
}

fn hear(stream: &mut TcpStream) -> std::io::Result<u64> {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}
