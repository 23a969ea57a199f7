//! Small labelled images in the two classic binary formats: IDX (MNIST, Fashion-MNIST) and the records of CIFAR-10.
//!
//! IDX: big-endian u32 head (0x803, images, rows, columns; for labels 0x801, count), then a byte per pixel or label. CIFAR-10: records of one label byte and
//! 3072 bytes, the red, green and blue plane of 32 × 32 pixels. Either may be gzip-compressed, whatever its name.

use std::fs::File;
use std::io::{Chain, Read};
use std::path::Path;

use crate::DataError;
use crate::text::read_capped;

/// Largest file after decompression: 1 GiB. CIFAR-10 whole has 184 MB.
const CAP: u64 = 1 << 30;
/// Largest side of an IDX image.
const MAX_SIDE: u32 = 4096;
/// Side of a CIFAR-10 image.
const CIFAR_SIDE: usize = 32;
/// Bytes of a CIFAR-10 record.
const CIFAR_RECORD: usize = 1 + 3 * CIFAR_SIDE * CIFAR_SIDE;
/// Classes of CIFAR-10.
const CIFAR_CLASSES: u8 = 10;

/// Square images of one size with a class each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelledImages {
    /// Rows and columns.
    pub side: usize,
    /// 1 for grey images, 3 for red, green and blue.
    pub planes: usize,
    /// `[images, planes, side, side]`.
    pixels: Vec<u8>,
    labels: Vec<u8>,
}

impl LabelledImages {
    /// Images from their bytes `[images, planes, side, side]`.
    ///
    /// # Errors
    /// [`DataError::Zero`] for a size of 0, [`DataError::Array`] when the number of bytes is not that of the labels.
    pub fn new(side: usize, planes: usize, pixels: Vec<u8>, labels: Vec<u8>) -> Result<Self, DataError> {
        for (field, value) in [("side", side), ("planes", planes), ("labels", labels.len())] {
            if value == 0 {
                return Err(DataError::Zero { field });
            }
        }
        let each = side.checked_mul(side).and_then(|n| n.checked_mul(planes));
        if each.and_then(|n| n.checked_mul(labels.len())) != Some(pixels.len()) {
            return Err(DataError::Array {
                file: "images".into(),
                place: format!("{} labels, {planes} planes, side {side}", labels.len()),
                expected: "a byte per pixel of every image",
                found: format!("{} bytes", pixels.len()),
            });
        }
        Ok(Self { side, planes, pixels, labels })
    }

    /// Number of images.
    #[must_use]
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The bytes of an image, `[planes, side, side]`.
    ///
    /// # Panics
    /// When there is no such image.
    #[must_use]
    pub fn image(&self, index: usize) -> &[u8] {
        let each = self.planes * self.side * self.side;
        &self.pixels[index * each..][..each]
    }

    /// The class of an image.
    ///
    /// # Panics
    /// When there is no such image.
    #[must_use]
    pub fn label(&self, index: usize) -> usize {
        usize::from(self.labels[index])
    }

    /// One more than the highest class.
    #[must_use]
    pub fn classes(&self) -> usize {
        self.labels.iter().max().map_or(0, |l| usize::from(*l) + 1)
    }

    /// The images of a range, clipped to those there are.
    #[must_use]
    pub fn slice(&self, range: std::ops::Range<usize>) -> Self {
        let each = self.planes * self.side * self.side;
        let (start, end) = (range.start.min(self.len()), range.end.min(self.len()));
        let end = end.max(start);
        Self {
            side: self.side,
            planes: self.planes,
            pixels: self.pixels[start * each..end * each].to_vec(),
            labels: self.labels[start..end].to_vec(),
        }
    }

    /// An image as `side × side` RGB bytes, pixel by pixel; a grey one gives three equal bytes.
    ///
    /// # Panics
    /// When there is no such image.
    #[must_use]
    pub fn rgb(&self, index: usize) -> Vec<u8> {
        let (image, n) = (self.image(index), self.side * self.side);
        (0..n).flat_map(|p| (0..3).map(move |c| image[(c % self.planes) * n + p])).collect()
    }
}

/// Reads a pair of IDX files.
///
/// # Errors
/// [`DataError::Io`], [`DataError::TooLarge`]; [`DataError::Array`] for a wrong head, images that are not square, sizes that do not fit the file
/// or unequal numbers of images and labels.
pub fn read_idx(images: &Path, labels: &Path) -> Result<LabelledImages, DataError> {
    let (pixels, head) = idx::<4>(images, 0x803, "an IDX file of images: 00 00 08 03")?;
    let [_, count, rows, columns] = head;
    if rows != columns || rows == 0 || rows > MAX_SIDE {
        let found = format!("{rows} x {columns}");
        return Err(bad(images, "head", "square images of 1 to 4096 pixels a side", found));
    }
    let side = rows as usize;
    check_count(images, u64::from(count) * u64::from(rows) * u64::from(columns), pixels.len())?;
    let (classes, [_, named]) = idx::<2>(labels, 0x801, "an IDX file of labels: 00 00 08 01")?;
    check_count(labels, u64::from(named), classes.len())?;
    if named != count {
        let found = format!("{named} labels for {count} images");
        return Err(bad(labels, "head", "as many labels as the file of images has images", found));
    }
    if count == 0 {
        return Err(bad(images, "head", "at least one image", "0 images".into()));
    }
    LabelledImages::new(side, 1, pixels, classes)
}

/// Reads a file of CIFAR-10 records.
///
/// # Errors
/// [`DataError::Io`], [`DataError::TooLarge`]; [`DataError::Array`] for a file that is empty, ends within a record or has a class above 9.
pub fn read_cifar10(file: &Path) -> Result<LabelledImages, DataError> {
    let bytes = read(file)?;
    let records = bytes.chunks_exact(CIFAR_RECORD);
    if bytes.is_empty() || !records.remainder().is_empty() {
        let found = format!("{} bytes", bytes.len());
        return Err(bad(file, "end of the file", "whole records of 3073 bytes, at least one", found));
    }
    let (mut pixels, mut labels) = (Vec::with_capacity(bytes.len()), Vec::new());
    for (i, record) in records.enumerate() {
        if record[0] >= CIFAR_CLASSES {
            let place = format!("record {i}");
            return Err(bad(file, &place, "a class from 0 to 9", format!("class {}", record[0])));
        }
        labels.push(record[0]);
        pixels.extend_from_slice(&record[1..]);
    }
    LabelledImages::new(CIFAR_SIDE, 3, pixels, labels)
}

fn bad(file: &Path, place: &str, expected: &'static str, found: String) -> DataError {
    DataError::Array { file: file.to_path_buf(), place: place.to_owned(), expected, found }
}

fn check_count(file: &Path, expected: u64, found: usize) -> Result<(), DataError> {
    if expected == found as u64 {
        return Ok(());
    }
    let found = format!("{found} bytes behind a head that promises {expected}");
    Err(bad(file, "data", "as many bytes as the head says", found))
}

/// The data of an IDX file, and its head of `N` numbers.
fn idx<const N: usize>(
    file: &Path,
    magic: u32,
    expected: &'static str,
) -> Result<(Vec<u8>, [u32; N]), DataError> {
    let mut bytes = read(file)?;
    let mut head = [0; N];
    for (value, at) in head.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *value = u32::from_be_bytes(*at);
    }
    if bytes.len() < 4 * N || head[0] != magic {
        let found = format!("{} bytes that begin with {:02x?}", bytes.len(), &bytes[..bytes.len().min(4)]);
        return Err(bad(file, "head", expected, found));
    }
    bytes.drain(..4 * N);
    Ok((bytes, head))
}

/// The bytes of a file, decompressed when it is gzip.
fn read(path: &Path) -> Result<Vec<u8>, DataError> {
    let io = |source| DataError::Io { file: path.to_path_buf(), source };
    // Asked before opening: a pipe would wait for its writer.
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(io(std::io::Error::other("it is not a regular file")));
    }
    let mut file = File::open(path).map_err(io)?;
    let mut magic = Vec::new();
    file.by_ref().take(2).read_to_end(&mut magic).map_err(io)?;
    let is_gzip = magic == [0x1f, 0x8b];
    let whole: Chain<std::io::Cursor<Vec<u8>>, File> = std::io::Cursor::new(magic).chain(file);
    match is_gzip {
        true => read_capped(flate2::read::MultiGzDecoder::new(whole), path, CAP),
        false => read_capped(whole, path, CAP),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::io::Write as _;
    use std::path::PathBuf;

    fn head(numbers: &[u32], data: &[u8]) -> Vec<u8> {
        numbers.iter().flat_map(|n| n.to_be_bytes()).chain(data.iter().copied()).collect()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut out = GzEncoder::new(Vec::new(), Compression::fast());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    }

    struct Files(tempfile::TempDir);

    impl Files {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
            let path = self.0.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        }
    }

    #[test]
    fn idx_plain_and_compressed() {
        let files = Files::new();
        let images = head(&[0x803, 2, 2, 2], &[1, 2, 3, 4, 5, 6, 7, 8]);
        let labels = head(&[0x801, 2], &[7, 3]);
        for (images, labels) in [(images.clone(), labels.clone()), (gzip(&images), gzip(&labels))] {
            let read = read_idx(&files.put("i", &images), &files.put("l", &labels)).unwrap();
            assert_eq!((read.len(), read.side, read.planes, read.classes()), (2, 2, 1, 8));
            assert_eq!((read.image(1), read.label(1)), (&[5u8, 6, 7, 8][..], 3));
            assert_eq!(read.rgb(0), [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]);
            assert_eq!(read.slice(1..9).image(0), [5, 6, 7, 8]);
            assert!(read.slice(5..9).is_empty());
        }
    }

    #[test]
    fn cifar_by_hand() {
        let files = Files::new();
        let mut record = vec![9u8];
        record.extend((0..3072).map(|i| (i / 1024 * 50 + i % 7) as u8));
        let mut two = record.clone();
        two.extend(&record);
        two[CIFAR_RECORD] = 0;
        let read = read_cifar10(&files.put("c", &gzip(&two))).unwrap();
        assert_eq!((read.len(), read.side, read.planes), (2, 32, 3));
        assert_eq!((read.label(0), read.label(1)), (9, 0));
        // Pixel 8: planes start at 0, 1024 and 2048, whose remainders by 7 are 0, 2 and 4.
        assert_eq!(read.rgb(0)[24..27], [1, 50 + 3, 100 + 5]);
    }

    #[test]
    fn hostile_files() {
        let files = Files::new();
        let good = (head(&[0x803, 2, 2, 2], &[0; 8]), head(&[0x801, 2], &[0; 2]));
        let u = u32::MAX;
        let pairs = [
            (vec![], good.1.clone()),
            (vec![0, 0, 8], good.1.clone()),
            (head(&[0x801, 2, 2, 2], &[0; 8]), good.1.clone()),
            (head(&[0x803, 2, 2, 2], &[0; 7]), good.1.clone()),
            (head(&[0x803, 2, 2, 2], &[0; 9]), good.1.clone()),
            (head(&[0x803, u, u, u], &[0; 8]), good.1.clone()),
            (head(&[0x803, u, 4096, 4096], &[0; 8]), good.1.clone()),
            (head(&[0x803, 2, 2, 3], &[0; 12]), good.1.clone()),
            (head(&[0x803, 0, 2, 2], &[]), head(&[0x801, 0], &[])),
            (head(&[0x803, 2, 0, 0], &[]), good.1.clone()),
            (good.0.clone(), head(&[0x801, 3], &[0; 3])),
            (good.0.clone(), head(&[0x801, u], &[0; 2])),
            (good.0.clone(), good.0.clone()),
        ];
        for (images, labels) in pairs {
            let error = read_idx(&files.put("i", &images), &files.put("l", &labels)).unwrap_err();
            assert!(matches!(error, DataError::Array { .. }), "{error}");
        }
        let mut record = vec![0u8; CIFAR_RECORD];
        for bytes in [vec![], vec![0; CIFAR_RECORD - 1], vec![0; CIFAR_RECORD + 1]] {
            let error = read_cifar10(&files.put("c", &bytes)).unwrap_err();
            assert!(matches!(error, DataError::Array { .. }), "{error}");
        }
        record[0] = 10;
        let error = read_cifar10(&files.put("c", &record)).unwrap_err();
        assert!(error.to_string().contains("record 0") && error.to_string().contains("class 10"), "{error}");
        // Cut compression, a folder, nothing.
        let mut cut = gzip(&vec![0; CIFAR_RECORD]);
        cut.truncate(cut.len() / 2);
        assert!(matches!(read_cifar10(&files.put("c", &cut)), Err(DataError::Io { .. })));
        assert!(matches!(read_cifar10(files.0.path()), Err(DataError::Io { .. })));
        assert!(matches!(read_cifar10(&files.0.path().join("none")), Err(DataError::Io { .. })));
    }

    #[test]
    fn made_of_bytes() {
        assert!(LabelledImages::new(2, 1, vec![0; 8], vec![0, 1]).is_ok());
        assert!(matches!(LabelledImages::new(2, 1, vec![0; 7], vec![0, 1]), Err(DataError::Array { .. })));
        assert!(matches!(
            LabelledImages::new(usize::MAX, 3, vec![0; 8], vec![0]),
            Err(DataError::Array { .. })
        ));
        assert!(matches!(LabelledImages::new(0, 1, vec![], vec![0]), Err(DataError::Zero { .. })));
        assert!(matches!(LabelledImages::new(2, 1, vec![], vec![]), Err(DataError::Zero { .. })));
    }
}
