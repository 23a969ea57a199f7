//! Corpora and datasets: readers, token windows and the built-in generator.
//!
//! * [`read_text`] reads a plain or gzip text file with a size cap;
//! * [`random_windows`] and [`random_documents`] draw the calibration windows of the SparseGPT and Wanda papers;
//! * [`ImageFolder`] reads labelled JPEG images; [`read_idx`] and [`read_cifar10`] small ones in binary files;
//! * [`arrays`] reads and writes tables and matrices: npy, npz, csv, libsvm, MatrixMarket;
//! * [`corpus`] writes the built-in corpus, whose entropy is known exactly.
//!
//! Everything random here is drawn from ChaCha8 with a seed given by the caller: the same seed gives the same bytes.

pub mod arrays;
pub mod corpus;
mod error;
mod images;
mod labelled;
mod text;
mod windows;

pub use corpus::{Corpus, CorpusFloor, Document, Split};
pub use error::DataError;
pub use images::{ImageFolder, LabelledImage};
pub use labelled::{LabelledImages, read_cifar10, read_idx};
pub use text::{DEFAULT_TEXT_CAP, read_text, text_from_bytes};
pub use windows::{random_documents, random_windows};
