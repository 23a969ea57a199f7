//! Which instruction sets this CPU has, found once at run time.

use std::fmt;
use std::sync::OnceLock;

use crate::KernelError;

/// The three code paths of every kernel, slowest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Plain Rust, any CPU.
    Portable,
    /// x86-64 with AVX2 and FMA.
    Avx2,
    /// x86-64 with AVX-512 F, BW, VL and VBMI2 (`vpexpandw`).
    Avx512,
}

impl Isa {
    /// The best path of this CPU.
    pub fn detect() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| {
            let f = cpu_features();
            if f.avx512f && f.avx512bw && f.avx512vl && f.avx512vbmi2 && f.fma && f.avx2 && f.popcnt {
                Isa::Avx512
            } else if f.avx2 && f.fma && f.popcnt {
                Isa::Avx2
            } else {
                Isa::Portable
            }
        })
    }

    /// True when this CPU can run the path.
    pub fn is_available(self) -> bool {
        self <= Self::detect()
    }

    /// An error unless this CPU can run the path.
    pub(crate) fn require(self) -> Result<(), KernelError> {
        if self.is_available() { Ok(()) } else { Err(KernelError::Isa { isa: self, best: Self::detect() }) }
    }

    /// The paths this CPU can run, slowest first.
    pub fn available() -> impl Iterator<Item = Isa> {
        [Isa::Portable, Isa::Avx2, Isa::Avx512].into_iter().filter(|i| i.is_available())
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "AVX2",
            Isa::Avx512 => "AVX-512",
        })
    }
}

/// CPU features that matter here; all false on other architectures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "each field is the name of the feature")]
pub struct CpuFeatures {
    pub popcnt: bool,
    pub avx2: bool,
    pub fma: bool,
    pub avx512f: bool,
    pub avx512bw: bool,
    pub avx512vl: bool,
    pub avx512vbmi2: bool,
    pub avx512vnni: bool,
    pub avx512bf16: bool,
    pub avx512fp16: bool,
}

/// What this CPU and operating system offer.
pub fn cpu_features() -> CpuFeatures {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        CpuFeatures {
            popcnt: has!("popcnt"),
            avx2: has!("avx2"),
            fma: has!("fma"),
            avx512f: has!("avx512f"),
            avx512bw: has!("avx512bw"),
            avx512vl: has!("avx512vl"),
            avx512vbmi2: has!("avx512vbmi2"),
            avx512vnni: has!("avx512vnni"),
            avx512bf16: has!("avx512bf16"),
            avx512fp16: has!("avx512fp16"),
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    CpuFeatures::default()
}

impl fmt::Display for CpuFeatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [
            (self.popcnt, "popcnt"),
            (self.avx2, "avx2"),
            (self.fma, "fma"),
            (self.avx512f, "avx512f"),
            (self.avx512bw, "avx512bw"),
            (self.avx512vl, "avx512vl"),
            (self.avx512vbmi2, "avx512vbmi2"),
            (self.avx512vnni, "avx512vnni"),
            (self.avx512bf16, "avx512bf16"),
            (self.avx512fp16, "avx512fp16"),
        ];
        let found: Vec<&str> = all.iter().filter(|(has, _)| *has).map(|(_, name)| *name).collect();
        write!(f, "{} path", Isa::detect())?;
        if found.is_empty() { Ok(()) } else { write!(f, " ({})", found.join(" ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portable_is_always_there_and_the_order_is_by_speed() {
        assert!(Isa::Portable.is_available());
        assert!(Isa::Portable < Isa::Avx2 && Isa::Avx2 < Isa::Avx512);
        assert_eq!(Isa::available().last(), Some(Isa::detect()));
        assert!(cpu_features().to_string().starts_with(&Isa::detect().to_string()));
    }
}
