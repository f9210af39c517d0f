//! QR codes of links: for a terminal, and as a picture.

use qrcodegen::{QrCode, QrCodeEcc, QrSegment};
use save_backend::Link;
use zeroize::Zeroizing;

use crate::error::{Error, Result};

/// The light border that the standard asks for, in modules.
const QUIET_ZONE: i32 = 4;
/// How many pixels of a picture a module is wide.
const MODULE_PIXELS: usize = 8;
/// Black on white in the fixed part of the 256 colours, which no theme changes: the code is the same in dark and light terminals.
const COLOURS: &str = "\x1b[38;5;16;48;5;231m";
const NO_COLOURS: &str = "\x1b[0m";

/// The QR code of a link, secret included.
pub struct Picture(QrCode);

impl Picture {
    /// Encodes the upper-case form in alphanumeric mode, with error correction M or as much more as the same size holds.
    ///
    /// # Errors
    /// [`Error::TooLongForQr`] for a link of more than 3,391 characters, which only one with many extensions of a newer version has.
    pub fn of(link: &Link) -> Result<Self> {
        let text = link.expose_qr();
        // The upper-case form is in that alphabet, which is what it is for.
        let segments = [QrSegment::make_alphanumeric(&text)];
        QrCode::encode_segments(&segments, QrCodeEcc::Medium)
            .map(Self)
            .map_err(|_| Error::TooLongForQr {
                characters: text.len(),
            })
    }

    /// How many columns of a terminal it takes, border included.
    pub fn columns(&self) -> usize {
        self.span().len()
    }

    /// For a terminal: each line of text is two rows of modules, as half blocks.
    ///
    /// With `colours`, escape sequences set both colours of each line. Without, the light modules are drawn, which is right where
    /// the text is lighter than what is behind it.
    pub fn text(&self, colours: bool) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(16 * 1024));
        for y in self.span().step_by(2) {
            if colours {
                text.push_str(COLOURS);
            }
            for x in self.span() {
                // What is past the end is light, as the border is.
                let drawn = |y| self.0.get_module(x, y) == colours;
                text.push(match (drawn(y), drawn(y + 1)) {
                    (true, true) => '█',
                    (true, false) => '▀',
                    (false, true) => '▄',
                    (false, false) => ' ',
                });
            }
            if colours {
                text.push_str(NO_COLOURS);
            }
            text.push('\n');
        }
        text
    }

    /// A PNG file: one bit for each pixel, a module 8 pixels wide.
    ///
    /// # Errors
    /// [`Error::Picture`], which writing to memory does not give.
    pub fn png(&self) -> Result<Zeroizing<Vec<u8>>> {
        let width = self.columns() * MODULE_PIXELS;
        let mut rows = Zeroizing::new(Vec::with_capacity(width * width / 8));
        for y in self.span() {
            // A module is one byte wide; a bit that is set is white.
            let light = |x| !self.0.get_module(x, y);
            let row: Zeroizing<Vec<u8>> = Zeroizing::new(
                self.span()
                    .map(|x| if light(x) { 0xff } else { 0 })
                    .collect(),
            );
            for _ in 0..MODULE_PIXELS {
                rows.extend_from_slice(&row);
            }
        }
        let mut file = Zeroizing::new(Vec::new());
        let side = u32::try_from(width).unwrap_or(u32::MAX);
        let mut encoder = png::Encoder::new(&mut *file, side, side);
        encoder.set_color(png::ColorType::Grayscale);
        encoder.set_depth(png::BitDepth::One);
        let written = encoder.write_header().and_then(|mut writer| {
            writer.write_image_data(&rows)?;
            writer.finish()
        });
        written.map_err(|error| Error::Picture {
            reason: error.to_string(),
        })?;
        Ok(file)
    }

    /// The columns and the rows of modules, border included.
    fn span(&self) -> std::ops::Range<i32> {
        -QUIET_ZONE..self.0.size() + QUIET_ZONE
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use rqrr::PreparedImage;

    use super::*;

    /// A link of the documentation.
    pub(crate) fn link(number: usize) -> Link {
        let (_, block) = include_str!("../../../docs/formats/link.md")
            .split_once("```valid\n")
            .unwrap();
        let line = block.lines().nth(number).unwrap();
        Link::parse(line.rsplit(' ').next().unwrap()).unwrap()
    }

    /// What a reader sees in a picture of `side` pixels, where `light` says which of them are light.
    fn read(side: usize, light: impl Fn(usize, usize) -> bool) -> String {
        let mut image =
            PreparedImage::prepare_from_greyscale(
                side,
                side,
                |x, y| {
                    if light(x, y) { 255 } else { 0 }
                },
            );
        let grids = image.detect_grids();
        let [grid] = &grids[..] else {
            panic!("{} codes instead of one", grids.len());
        };
        grid.decode().unwrap().1
    }

    /// What a reader sees in a terminal with this text; `dark` is the colour of the blocks.
    fn read_text(text: &str, dark: bool) -> String {
        let rows: Vec<Vec<bool>> = text
            .lines()
            .flat_map(|line| {
                let line = line.strip_prefix(COLOURS).unwrap_or(line);
                let line = line.strip_suffix(NO_COLOURS).unwrap_or(line);
                let half = |full: [char; 2]| line.chars().map(|c| full.contains(&c)).collect();
                [half(['█', '▀']), half(['█', '▄'])]
            })
            .collect();
        let columns = rows[0].len();
        assert!(rows.iter().all(|row| row.len() == columns));
        // Four pixels a module; the last row may be half a line of text too far.
        read(columns * 4, |x, y| rows[y / 4][x / 4] != dark)
    }

    fn read_png(file: &[u8]) -> String {
        let mut reader = png::Decoder::new(std::io::Cursor::new(file))
            .read_info()
            .unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!(info.width, info.height);
        assert_eq!(
            (info.color_type, info.bit_depth),
            (png::ColorType::Grayscale, png::BitDepth::One)
        );
        read(info.width as usize, |x, y| {
            pixels[y * info.line_size + x / 8] & (0x80 >> (x % 8)) != 0
        })
    }

    fn check(link: &Link) {
        let picture = Picture::of(link).unwrap();
        let wanted = link.expose_qr();
        assert_eq!(read_text(&picture.text(true), true), *wanted);
        assert_eq!(read_text(&picture.text(false), false), *wanted);
        assert_eq!(read_png(&picture.png().unwrap()), *wanted);
    }

    #[test]
    fn what_is_drawn_can_be_read() {
        for number in 0..5 {
            let plain = link(number);
            check(&plain);
            check(&plain.with_expiry(1 << 33).unwrap().with_label("é").unwrap());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn any_link_can_be_read(at in any::<u64>(), label in "[a-z]{1,64}", number in 0_usize..5) {
            let link = link(number).with_expiry(at).unwrap();
            check(&link.with_label(&label).unwrap());
        }
    }

    #[test]
    fn a_member_link_fits_a_terminal() {
        let picture = Picture::of(&link(0)).unwrap();
        // Version 6 with error correction M, and its border.
        assert_eq!(picture.columns(), 41 + 8);
        let text = picture.text(true);
        assert_eq!(text.lines().count(), 25);
        for line in text.lines() {
            let line = line.strip_prefix(COLOURS).unwrap();
            let line = line.strip_suffix(NO_COLOURS).unwrap();
            assert_eq!(line.chars().count(), 49);
            assert!(line.starts_with("    ") && line.ends_with("    "));
        }
        assert!(!picture.text(false).contains('\x1b'));
        // Even the longest kind fits 80 columns with an expiry and the longest label.
        let link = link(3).with_expiry(u64::MAX).unwrap();
        let link = link.with_label(&"a".repeat(64)).unwrap();
        assert!(Picture::of(&link).unwrap().columns() <= 80);
    }
}
