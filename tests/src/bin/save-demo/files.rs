//! The files that the demo archives, and comparing what comes back.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write as _};
use std::path::{Path, PathBuf};

/// A text that somebody might archive.
pub fn text(path: &Path) -> io::Result<()> {
    std::fs::write(
        path,
        "Friday, 14:30. Some four hundred people on the square; no police in sight.\n\
         Tomás has the photographs of the morning. — Ana\n",
    )
}

/// A picture: rings of colour around a bright point.
pub fn picture(path: &Path) -> io::Result<()> {
    const WIDTH: u32 = 480;
    const HEIGHT: u32 = 320;
    let mut pixels = Vec::new();
    for y in 0..HEIGHT {
        for x in 0..WIDTH {
            let (dx, dy) = (f64::from(x) - 300.0, f64::from(y) - 120.0);
            let distance = dx.hypot(dy);
            let ring = (distance / 14.0).sin() * 0.5 + 0.5;
            let fade = (-distance / 260.0).exp();
            // Each channel lies between 0 and 1, so that the cast keeps its value.
            for channel in [fade, ring * fade, 0.25 + 0.5 * (1.0 - fade) * ring] {
                pixels.push((channel.clamp(0.0, 1.0) * 255.0) as u8);
            }
        }
    }
    let mut encoder = png::Encoder::new(BufWriter::new(File::create(path)?), WIDTH, HEIGHT);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&pixels)?;
    writer.finish()?;
    Ok(())
}

/// A file that nothing can compress or guess: the output of a keyed hash under a random key.
pub fn noise(path: &Path, size: u64) -> io::Result<()> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(io::Error::other)?;
    let mut stream = blake3::Hasher::new_keyed(&seed).finalize_xof();
    let mut file = BufWriter::new(File::create(path)?);
    let mut block = [0; 64 * 1024];
    let mut left = size;
    while left > 0 {
        let length = usize::try_from(left).map_or(block.len(), |left| left.min(block.len()));
        let Some(part) = block.get_mut(..length) else {
            break;
        };
        stream.fill(part);
        file.write_all(part)?;
        left -= part.len() as u64;
    }
    file.flush()
}

/// Compares two files byte by byte; gives their length, or the first place where they differ.
pub fn compare(a: &Path, b: &Path) -> io::Result<Result<u64, u64>> {
    let open =
        |path: &Path| Ok::<_, io::Error>(io::BufReader::with_capacity(1 << 16, File::open(path)?));
    let (mut a, mut b) = (open(a)?, open(b)?);
    let (mut x, mut y) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut at = 0;
    loop {
        let (m, n) = (fill(&mut a, &mut x)?, fill(&mut b, &mut y)?);
        let (left, right) = (x.get(..m).unwrap_or(&x), y.get(..n).unwrap_or(&y));
        if left != right {
            let equal = left.iter().zip(right).take_while(|(p, q)| p == q).count();
            return Ok(Err(at + equal as u64));
        }
        if m == 0 {
            return Ok(Ok(at));
        }
        at += m as u64;
    }
}

/// Reads until the buffer is full or the end is reached.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match from.read(rest)? {
            0 => break,
            read => done += read,
        }
    }
    Ok(done)
}

/// The name under which a file of the user is archived, next to the demo's own.
pub fn archive_path(index: usize, file: &Path) -> String {
    let name = file
        .file_name()
        .map_or_else(|| "file".into(), |name| name.to_string_lossy());
    format!("yours/{}/{name}", index + 1)
}

/// A file to archive.
#[derive(Clone)]
pub struct Source {
    /// Where it is.
    pub file: PathBuf,
    /// Its path in the archive.
    pub path: String,
    /// What the story calls it.
    pub title: String,
}
