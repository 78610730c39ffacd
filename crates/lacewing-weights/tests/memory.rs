//! The most memory that a pickle can make the reader take, a byte of the file. In a process of its own, since it reads
//! the process's peak.

use std::fs;

use lacewing_weights::WeightFile;

/// The most bytes this process has held, where the system tells.
fn peak() -> Option<usize> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<usize>().ok()? * 1024)
}

#[test]
fn no_instruction_takes_more_than_a_hundred_bytes_a_byte() {
    const SIZE: usize = 1 << 20;
    // The first three pickles of a legacy file, then one of a single instruction or two again and again.
    let head = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.\x80\x02";
    let Some(before) = peak() else { return };
    for program in [
        &b"]"[..],
        b"}",
        b")",
        b"N",
        b"(",
        b"N\x85",
        b"N\x94",
        b"]2a",
        b"}NNs",
        b"c\n\n",
        b"\x8c\x01a",
        b"](NNe",
        b"NNR",
        b"N)R",
        b"(t",
        b"i\n\n",
        b"NQ",
        b"N2\x86",
    ] {
        let bytes = [&head[..], &program.repeat(SIZE / program.len())].concat();
        assert!(WeightFile::from_bytes("hostile", bytes).is_err());
        let taken = peak().unwrap() - before;
        assert!(taken < 100 * SIZE, "{:?}: {} MiB", String::from_utf8_lossy(program), taken >> 20);
    }
}
