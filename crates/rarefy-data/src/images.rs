//! Folders of labelled JPEG images.
//!
//! `labels.tsv` has a line per image, without a heading: file name, class number, name of the class, separated by tabs. Files lie beside it.

use std::fs::File;
use std::path::{Path, PathBuf};

use image::imageops::{self, FilterType};
use image::{ImageFormat, ImageReader, Limits};

use crate::DataError;
use crate::text::read_capped;

/// Largest `labels.tsv` in bytes.
const MAX_LABELS: u64 = 64 << 20;
/// Largest image file in bytes.
const MAX_FILE: u64 = 64 << 20;
/// Largest side of an image.
const MAX_SIDE: u32 = 16384;
/// Most memory for decoding one image.
const MAX_MEMORY: u64 = 1 << 30;

/// One image of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelledImage {
    /// Its file name.
    pub file: String,
    /// Its class.
    pub class: usize,
    /// The name of the class; may be empty.
    pub name: String,
}

/// A folder of labelled images.
#[derive(Debug, Clone)]
pub struct ImageFolder {
    dir: PathBuf,
    images: Vec<LabelledImage>,
}

impl ImageFolder {
    /// Reads `labels.tsv`; the images are read one by one with [`ImageFolder::load`].
    ///
    /// # Errors
    /// [`DataError::Io`], [`DataError::TooLarge`], [`DataError::NotUtf8`], [`DataError::Empty`]; [`DataError::Label`] for a line that is not understood or names a file
    /// outside the folder.
    pub fn open(dir: &Path) -> Result<Self, DataError> {
        let text = crate::read_text(&dir.join("labels.tsv"), MAX_LABELS)?;
        let mut images = Vec::new();
        for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
            let bad = |expected| DataError::Label {
                file: dir.join("labels.tsv"),
                line: i + 1,
                expected,
                found: line.chars().take(80).collect(),
            };
            let mut fields = line.split('\t');
            let (file, class) = (fields.next().unwrap_or_default(), fields.next());
            // A plain name: neither a path nor `..`.
            if Path::new(file).file_name().is_none_or(|n| n != file) {
                return Err(bad("the name of a file in this folder"));
            }
            let class = class.and_then(|c| c.trim().parse::<u32>().ok());
            let Some(class) = class.filter(|c| *c < 1 << 24) else {
                return Err(bad("a tab and the number of the class behind the file name"));
            };
            let name = fields.next().unwrap_or_default().to_owned();
            images.push(LabelledImage { file: file.to_owned(), class: class as usize, name });
        }
        Ok(Self { dir: dir.to_path_buf(), images })
    }

    /// The images, in the order of the file.
    #[must_use]
    pub fn images(&self) -> &[LabelledImage] {
        &self.images
    }

    /// One image as `side × side` RGB bytes, pixel by pixel: the largest square around the centre, resampled with a triangle filter
    /// that is widened by the factor of reduction. That is what Pillow calls bilinear; OpenCV's and PyTorch's unwidened one would skip
    /// pixels.
    ///
    /// # Errors
    /// [`DataError::Io`]; [`DataError::TooLarge`] for a file above 64 MiB; [`DataError::Image`] when it is no JPEG image, or one above 16384 pixels a side.
    pub fn load(&self, image: &LabelledImage, side: u32) -> Result<Vec<u8>, DataError> {
        let path = self.dir.join(&image.file);
        let io = |source| DataError::Io { file: path.clone(), source };
        // Asked before opening: a pipe would wait for its writer.
        if !std::fs::metadata(&path).map_err(io)?.is_file() {
            return Err(io(std::io::Error::other("it is not a regular file")));
        }
        let bytes = read_capped(File::open(&path).map_err(io)?, &path, MAX_FILE)?;
        square(&bytes, side).map_err(|source| DataError::Image { file: path, source: Box::new(source) })
    }
}

fn square(bytes: &[u8], side: u32) -> Result<Vec<u8>, image::ImageError> {
    let mut reader = ImageReader::with_format(std::io::Cursor::new(bytes), ImageFormat::Jpeg);
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_MEMORY);
    reader.limits(limits);
    let image = reader.decode()?.into_rgb8();
    let (width, height) = image.dimensions();
    let least = width.min(height);
    let (left, top) = ((width - least) / 2, (height - least) / 2);
    let centre = imageops::crop_imm(&image, left, top, least, least);
    if least == side {
        return Ok(centre.to_image().into_raw());
    }
    Ok(imageops::resize(&*centre, side, side, FilterType::Triangle).into_raw())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use image::codecs::jpeg::JpegEncoder;

    /// Left half dark, right half bright.
    fn jpeg(width: u32, height: u32) -> Vec<u8> {
        let picture = image::RgbImage::from_fn(width, height, |x, _| {
            image::Rgb(if x < width / 2 { [20, 40, 60] } else { [220, 200, 180] })
        });
        let mut bytes = Vec::new();
        JpegEncoder::new_with_quality(&mut bytes, 95).encode_image(&picture).unwrap();
        bytes
    }

    fn folder(labels: &str, files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("labels.tsv"), labels).unwrap();
        for (name, bytes) in files {
            std::fs::write(dir.path().join(name), bytes).unwrap();
        }
        dir
    }

    #[test]
    fn reads_crops_and_resizes() {
        let dir =
            folder("a.jpg\t7\ttench\n\nb.jpg\t0\n", &[("a.jpg", &jpeg(64, 32)), ("b.jpg", &jpeg(16, 16))]);
        let images = ImageFolder::open(dir.path()).unwrap();
        assert_eq!(images.images().len(), 2);
        assert_eq!((images.images()[0].class, &*images.images()[0].name), (7, "tench"));
        let pixels = images.load(&images.images()[0], 8).unwrap();
        assert_eq!(pixels.len(), 8 * 8 * 3);
        // The centre square is 32 wide: half dark, half bright; JPEG moves values by a few steps.
        for row in pixels.chunks(24) {
            assert!(row[0].abs_diff(20) < 8 && row[1].abs_diff(40) < 8 && row[2].abs_diff(60) < 8, "{row:?}");
            assert!(row[21].abs_diff(220) < 8 && row[23].abs_diff(180) < 8, "{row:?}");
        }
        assert_eq!(images.load(&images.images()[1], 16).unwrap().len(), 16 * 16 * 3);
    }

    #[test]
    fn the_filter_covers_all_pixels_of_a_reduction() {
        // One bright column of 16: the mean over each pixel's surroundings must see it.
        let picture =
            image::RgbImage::from_fn(16, 16, |x, _| image::Rgb(if x % 4 == 1 { [255; 3] } else { [0; 3] }));
        let small = imageops::resize(&picture, 4, 4, FilterType::Triangle);
        assert!(small.pixels().all(|p| (40..90).contains(&p.0[0])), "{small:?}");
    }

    #[test]
    fn hostile_labels_and_files() {
        for labels in
            ["../a.jpg\t1\n", "/a\t1\n", "a.jpg\n", "a.jpg\t-1\n", "a.jpg\t99999999999\n", "..\t1\n", "\t1\n"]
        {
            let dir = folder(labels, &[]);
            let error = ImageFolder::open(dir.path()).unwrap_err();
            assert!(matches!(error, DataError::Label { line: 1, .. }), "{labels:?}: {error}");
        }
        assert!(matches!(ImageFolder::open(folder(" \n", &[]).path()), Err(DataError::Empty { .. })));
        let mut cut = jpeg(64, 64);
        cut.truncate(100);
        // A header that claims 65535 × 65535 pixels.
        let mut huge = jpeg(8, 8);
        let frame = huge.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
        huge[frame + 5..frame + 9].fill(0xff);
        let dir = folder(
            "cut\t0\nhuge\t0\ntext\t0\nnone\t0\n",
            &[("cut", &cut), ("huge", &huge), ("text", b"GIF89a")],
        );
        let images = ImageFolder::open(dir.path()).unwrap();
        for image in &images.images()[..3] {
            let error = images.load(image, 8).unwrap_err();
            assert!(matches!(error, DataError::Image { .. }), "{}: {error}", image.file);
        }
        assert!(matches!(images.load(&images.images()[3], 8), Err(DataError::Io { .. })));
    }
}
