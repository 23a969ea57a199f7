//! Progress, cancellation and the time limit of a running solver.

use std::fmt;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::{Status, TracePoint};

type Progress<'a> = &'a mut dyn FnMut(&TracePoint) -> ControlFlow<()>;

/// Watches a running solver: tells the caller about progress, and stops the solver when the
/// caller or the clock says so.
///
/// ```
/// use rarefy_solve::{Monitor, Status, TracePoint};
/// use std::ops::ControlFlow;
/// let mut stop_after_two = |p: &TracePoint| {
///     if p.iteration < 2 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
/// };
/// let mut monitor = Monitor::silent().with_progress(&mut stop_after_two);
/// assert!(monitor.observe(1, 0.5, 0.1).is_continue());
/// assert_eq!(monitor.observe(2, 0.4, 0.1), ControlFlow::Break(Status::Stopped));
/// ```
pub struct Monitor<'a> {
    progress: Option<Progress<'a>>,
    limit: Option<Duration>,
    started: Instant,
}

impl fmt::Debug for Monitor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitor")
            .field("progress", &self.progress.is_some())
            .field("limit", &self.limit)
            .field("started", &self.started)
            .finish()
    }
}

impl Default for Monitor<'_> {
    fn default() -> Self {
        Self::silent()
    }
}

impl<'a> Monitor<'a> {
    /// Tells nobody and never stops. The clock starts now.
    #[must_use]
    pub fn silent() -> Self {
        Self { progress: None, limit: None, started: Instant::now() }
    }

    /// Calls `progress` at each observed point; `Break` stops the solver with [`Status::Stopped`].
    #[must_use]
    pub fn with_progress(mut self, progress: Progress<'a>) -> Self {
        self.progress = Some(progress);
        self
    }

    /// Stops the solver with [`Status::TimeLimit`] once that much time has passed since the clock
    /// started. A solver looks at the clock between iterations.
    #[must_use]
    pub fn with_time_limit(mut self, limit: Duration) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Starts the clock again.
    pub fn restart(&mut self) {
        self.started = Instant::now();
    }

    /// Seconds since the clock started.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// Whether the time limit has passed.
    #[must_use]
    pub fn is_out_of_time(&self) -> bool {
        self.limit.is_some_and(|limit| self.started.elapsed() >= limit)
    }

    /// Reports a point of progress. `Break` carries the status with which to end.
    pub fn observe(&mut self, iteration: usize, objective: f64, residual: f64) -> ControlFlow<Status> {
        self.observe_point(&TracePoint { iteration, objective, residual, seconds: self.seconds() })
    }

    /// As [`Monitor::observe`], and appends the point to `trace`.
    pub fn record(
        &mut self,
        trace: &mut Vec<TracePoint>,
        iteration: usize,
        objective: f64,
        residual: f64,
    ) -> ControlFlow<Status> {
        let point = TracePoint { iteration, objective, residual, seconds: self.seconds() };
        trace.push(point);
        self.observe_point(&point)
    }

    /// As [`Monitor::observe`] for a point already made.
    pub fn observe_point(&mut self, point: &TracePoint) -> ControlFlow<Status> {
        if let Some(progress) = &mut self.progress
            && progress(point).is_break()
        {
            return ControlFlow::Break(Status::Stopped);
        }
        if self.is_out_of_time() {
            return ControlFlow::Break(Status::TimeLimit);
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silent_never_stops_and_a_passed_limit_does() {
        assert!(Monitor::silent().observe(1, 0.0, 0.0).is_continue());
        let mut m = Monitor::silent().with_time_limit(Duration::ZERO);
        assert_eq!(m.observe(1, 0.0, 0.0), ControlFlow::Break(Status::TimeLimit));
        let mut m = Monitor::silent().with_time_limit(Duration::from_secs(3600));
        let mut trace = vec![];
        assert!(m.record(&mut trace, 3, 1.0, 2.0).is_continue());
        assert_eq!((trace[0].iteration, trace[0].objective, trace[0].residual), (3, 1.0, 2.0));
    }
}
