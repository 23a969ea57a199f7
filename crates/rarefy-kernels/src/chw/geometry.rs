//! Where the window of a convolution lies.

use crate::KernelError;

/// Sizes of a convolution with a square window over one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    height: usize,
    width: usize,
    kernel: usize,
    stride: usize,
    pad_top: usize,
    pad_left: usize,
    out_height: usize,
    out_width: usize,
}

/// Largest side of an image and of a window: their products then fit any index.
const LARGEST: usize = 1 << 14;

impl Geometry {
    /// As TensorFlow's `SAME`: `ceil(size / stride)` outputs; of an odd number of padded pixels the extra one is at the bottom and at the right.
    ///
    /// # Errors
    /// [`KernelError::Setting`] for sizes outside 1 to 16384 (window and stride: 1 to 64).
    pub fn same(height: usize, width: usize, kernel: usize, stride: usize) -> Result<Self, KernelError> {
        check(height, width, kernel, stride)?;
        let along = |size: usize| {
            let out = size.div_ceil(stride);
            (out, ((out - 1) * stride + kernel).saturating_sub(size) / 2)
        };
        let ((out_height, pad_top), (out_width, pad_left)) = (along(height), along(width));
        Ok(Self { height, width, kernel, stride, pad_top, pad_left, out_height, out_width })
    }

    /// `pad` pixels on all four sides, as PyTorch does.
    ///
    /// # Errors
    /// [`KernelError::Setting`] for sizes outside 1 to 16384 (window and stride: 1 to 64), padding as wide as the window, and a window that does not fit.
    pub fn padded(
        height: usize,
        width: usize,
        kernel: usize,
        stride: usize,
        pad: usize,
    ) -> Result<Self, KernelError> {
        check(height, width, kernel, stride)?;
        let setting = |field, value: usize, allowed| {
            Err(KernelError::Setting { field, value: value.to_string(), allowed })
        };
        if pad >= kernel {
            return setting("pad", pad, "less than the window");
        }
        if height.min(width) + 2 * pad < kernel {
            return setting("kernel", kernel, "at most the padded image");
        }
        let along = |size: usize| (size + 2 * pad - kernel) / stride + 1;
        let (out_height, out_width) = (along(height), along(width));
        Ok(Self { height, width, kernel, stride, pad_top: pad, pad_left: pad, out_height, out_width })
    }

    /// Rows of the image.
    pub fn height(&self) -> usize {
        self.height
    }
    /// Columns of the image.
    pub fn width(&self) -> usize {
        self.width
    }
    /// Side of the window.
    pub fn kernel(&self) -> usize {
        self.kernel
    }
    /// Step of the window.
    pub fn stride(&self) -> usize {
        self.stride
    }
    /// Padded rows above the image.
    pub fn pad_top(&self) -> usize {
        self.pad_top
    }
    /// Padded columns left of the image.
    pub fn pad_left(&self) -> usize {
        self.pad_left
    }
    /// Rows of the output.
    pub fn out_height(&self) -> usize {
        self.out_height
    }
    /// Columns of the output.
    pub fn out_width(&self) -> usize {
        self.out_width
    }
    /// Pixels of the image.
    pub fn pixels(&self) -> usize {
        self.height * self.width
    }
    /// Pixels of the output.
    pub fn out_pixels(&self) -> usize {
        self.out_height * self.out_width
    }

    /// The outputs along a side of `out` for which tap `tap` lies in the image, given its `size` and padding.
    pub(super) fn inside(&self, tap: usize, size: usize, pad: usize, out: usize) -> std::ops::Range<usize> {
        // o * stride + tap - pad in 0..size.
        let begin = pad.saturating_sub(tap).div_ceil(self.stride).min(out);
        let end = (size + pad).saturating_sub(tap).div_ceil(self.stride).min(out);
        begin..end.max(begin)
    }
}

fn check(height: usize, width: usize, kernel: usize, stride: usize) -> Result<(), KernelError> {
    let sizes = [
        ("height", height, LARGEST),
        ("width", width, LARGEST),
        ("kernel", kernel, 64),
        ("stride", stride, 64),
    ];
    for (field, value, largest) in sizes {
        if !(1..=largest).contains(&value) {
            let allowed = if largest == 64 { "1 to 64" } else { "1 to 16384" };
            return Err(KernelError::Setting { field, value: value.to_string(), allowed });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn same_pads_the_far_side_more() {
        // 224 / 2: 112 outputs reach 111 * 2 + 3 = 225 pixels, one more than there are: at the bottom.
        let g = Geometry::same(224, 160, 3, 2).unwrap();
        assert_eq!((g.out_height(), g.out_width(), g.pad_top(), g.pad_left()), (112, 80, 0, 0));
        let g = Geometry::same(7, 8, 3, 2).unwrap();
        assert_eq!((g.out_height(), g.pad_top(), g.out_width(), g.pad_left()), (4, 1, 4, 0));
        let g = Geometry::same(5, 5, 5, 1).unwrap();
        assert_eq!((g.out_pixels(), g.pad_top(), g.pad_left()), (25, 2, 2));
        assert_eq!(Geometry::same(1, 1, 3, 2).unwrap().out_pixels(), 1);
    }

    #[test]
    fn padded_as_in_pytorch() {
        let g = Geometry::padded(224, 224, 3, 2, 1).unwrap();
        assert_eq!((g.out_height(), g.out_width(), g.pad_top()), (112, 112, 1));
        assert_eq!(Geometry::padded(5, 9, 3, 1, 0).unwrap().out_pixels(), 21);
        for (h, k, s, p) in
            [(0, 3, 1, 1), (5, 0, 1, 0), (5, 3, 0, 1), (5, 3, 1, 3), (2, 5, 1, 1), (1 << 20, 3, 1, 1)]
        {
            assert!(Geometry::padded(h, 9, k, s, p).is_err(), "{h} {k} {s} {p}");
        }
    }

    #[test]
    fn inside_is_what_the_definition_says() {
        for size in 1..12 {
            for (kernel, stride) in [(3, 1), (3, 2), (5, 1), (5, 2), (2, 3), (1, 1)] {
                let g = Geometry::same(size, size, kernel, stride).unwrap();
                for tap in 0..kernel {
                    let lies = |o: &usize| (g.pad_top..g.pad_top + size).contains(&(o * stride + tap));
                    let wanted: Vec<usize> = (0..g.out_height).filter(lies).collect();
                    let found: Vec<usize> = g.inside(tap, size, g.pad_top, g.out_height).collect();
                    assert_eq!(found, wanted, "{size} {kernel} {stride} {tap}");
                }
            }
        }
    }
}
