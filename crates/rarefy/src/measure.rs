//! Measurements that several verbs make the same way.

use std::time::Instant;

pub use rarefy_kernels::bandwidth::median;
use rarefy_models::{CausalLm, ModelError};

/// Time to decode one token, in milliseconds, for each model.
///
/// Every model first reads `prompt`, then decodes `tokens` more, one at a time. This is repeated
/// `rounds` times; the models take turns, so that a change of the machine's speed meets all of
/// them. The result is the median over all tokens of a model. The tokens are always the same ones.
///
/// # Errors
/// A token outside the vocabulary, or more positions than a model has learned.
pub fn decode_ms(
    models: &[&CausalLm],
    prompt: &[u32],
    tokens: usize,
    rounds: usize,
) -> Result<Vec<f64>, ModelError> {
    let mut times = vec![Vec::with_capacity(tokens * rounds); models.len()];
    for round in 0..=rounds {
        for (model, times) in models.iter().zip(&mut times) {
            let mut cache = model.new_cache();
            model.decode(&mut cache, prompt)?;
            for i in 0..tokens {
                let token = prompt[i % prompt.len()];
                let start = Instant::now();
                std::hint::black_box(model.decode(&mut cache, &[token])?);
                // The first round only warms up.
                if round > 0 {
                    times.push(start.elapsed().as_secs_f64() * 1e3);
                }
            }
        }
    }
    Ok(times.iter_mut().map(|t| median(t)).collect())
}

/// The processor's name as the system gives it.
#[must_use]
pub fn cpu_name() -> String {
    #[cfg(target_arch = "x86_64")]
    if let Some(brand) = raw_cpuid::CpuId::new().get_processor_brand_string() {
        return brand.as_str().trim().to_owned();
    }
    format!("unknown {} processor", std::env::consts::ARCH)
}

/// Bytes of memory that a measurement may take: three quarters of what the system says is available, 4 GiB where it says nothing.
#[must_use]
pub fn spare_memory() -> usize {
    let available = |text: String| {
        let line = text.lines().find(|l| l.starts_with("MemAvailable:"))?.to_owned();
        line.split_whitespace().nth(1)?.parse::<usize>().ok()
    };
    let kib = std::fs::read_to_string("/proc/meminfo").ok().and_then(available);
    kib.map_or(4 << 30, |kib| kib.saturating_mul(1024) / 4 * 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_memory_can_be_spared() {
        assert!(spare_memory() > 1 << 20);
    }
}
