//! Text files: plain or gzip, UTF-8 with or without a byte order mark, any line ending.

use crate::DataError;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Default cap on a text, in bytes after decompression: 1 GiB.
pub const DEFAULT_TEXT_CAP: u64 = 1 << 30;

/// Reads the text file `path`; a file that begins with the gzip magic is decompressed, whatever its name.
///
/// A byte order mark is dropped and `\r\n` becomes `\n`. At most `cap` decompressed bytes are ever held.
///
/// # Errors
/// [`DataError::Io`], [`DataError::TooLarge`] when more than `cap` bytes come out, [`DataError::NotUtf8`],
/// [`DataError::Empty`] when nothing but white space is left.
pub fn read_text(path: &Path, cap: u64) -> Result<String, DataError> {
    let io = |source| DataError::Io { file: path.to_path_buf(), source };
    let mut file = File::open(path).map_err(io)?;
    let mut magic = [0u8; 2];
    let mut got = 0;
    while got < 2 {
        match file.read(&mut magic[got..]).map_err(io)? {
            0 => break,
            n => got += n,
        }
    }
    let whole = magic[..got].chain(file);
    let bytes = if magic == [0x1f, 0x8b] {
        read_capped(flate2::read::MultiGzDecoder::new(whole), path, cap)?
    } else {
        read_capped(whole, path, cap)?
    };
    text_from_bytes(bytes, path)
}

/// All bytes of `reader`, or an error beyond `cap`.
pub(crate) fn read_capped(reader: impl Read, path: &Path, cap: u64) -> Result<Vec<u8>, DataError> {
    let mut bytes = Vec::new();
    reader
        .take(cap.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|source| DataError::Io { file: path.to_path_buf(), source })?;
    if bytes.len() as u64 > cap {
        return Err(DataError::TooLarge { file: path.to_path_buf(), cap });
    }
    Ok(bytes)
}

/// Turns bytes into a text as [`read_text`] does; `file` is only named in errors.
///
/// # Errors
/// [`DataError::NotUtf8`] or [`DataError::Empty`].
pub fn text_from_bytes(bytes: Vec<u8>, file: &Path) -> Result<String, DataError> {
    let text = String::from_utf8(bytes)
        .map_err(|e| DataError::NotUtf8 { file: file.to_path_buf(), offset: e.utf8_error().valid_up_to() })?;
    let text = match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_owned(),
        None => text,
    };
    let text = if text.contains("\r\n") { text.replace("\r\n", "\n") } else { text };
    if text.trim().is_empty() {
        return Err(DataError::Empty { file: file.to_path_buf() });
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Write;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut f = tempfile::NamedTempFile::new().unwrap();
        f.write_all(bytes).unwrap();
        f
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut z = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        z.write_all(bytes).unwrap();
        z.finish().unwrap()
    }

    #[test]
    fn mark_and_line_endings_are_normalised() {
        let f = file(b"\xef\xbb\xbfone\r\ntwo\nthree\r");
        assert_eq!(read_text(f.path(), 100).unwrap(), "one\ntwo\nthree\r");
    }

    #[test]
    fn gzip_is_found_by_its_magic() {
        let mut bytes = gzip(b"first ");
        bytes.extend(gzip(b"second"));
        assert_eq!(read_text(file(&bytes).path(), 100).unwrap(), "first second");
    }

    #[test]
    fn cap_counts_decompressed_bytes() {
        let bomb = gzip(&vec![b'a'; 1 << 20]);
        assert!(bomb.len() < 1 << 14);
        assert!(matches!(
            read_text(file(&bomb).path(), 1 << 16),
            Err(DataError::TooLarge { cap: 65536, .. })
        ));
        assert_eq!(read_text(file(&[b'a'; 100]).path(), 100).unwrap().len(), 100);
        assert!(matches!(read_text(file(&[b'a'; 101]).path(), 100), Err(DataError::TooLarge { .. })));
    }

    #[test]
    fn empty_blank_missing_and_broken_files_are_refused() {
        for bytes in [&b""[..], b"\n \r\n", b"\xef\xbb\xbf", b"x"] {
            let got = read_text(file(bytes).path(), 100);
            assert_eq!(matches!(got, Err(DataError::Empty { .. })), bytes != b"x", "{bytes:?}: {got:?}");
        }
        assert!(matches!(read_text(Path::new("/nonexistent/x.txt"), 10), Err(DataError::Io { .. })));
        assert!(matches!(
            read_text(file(b"ab\xff\xfe").path(), 10),
            Err(DataError::NotUtf8 { offset: 2, .. })
        ));
        let mut cut =
            gzip(&(0..20_000u32).flat_map(|i| i.to_le_bytes()).map(|b| b'a' + b % 26).collect::<Vec<_>>());
        cut.truncate(cut.len() / 2);
        assert!(matches!(read_text(file(&cut).path(), 1 << 20), Err(DataError::Io { .. })));
    }
}
