//! Measurements that several verbs make the same way.

use std::time::Instant;

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

/// The middle value; the mean of the two middle ones for an even count; NaN for none.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    match (values.len(), values.len() / 2) {
        (0, _) => f64::NAN,
        (n, half) if n % 2 == 1 => values[half],
        (_, half) => f64::midpoint(values[half - 1], values[half]),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert!(median(&mut []).is_nan());
        assert!((median(&mut [3.0, 1.0, 2.0]) - 2.0).abs() < 1e-12);
        assert!((median(&mut [4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-12);
    }
}
