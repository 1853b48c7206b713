"""Training under Ray Train and DeepSpeed: one loss-agnostic loop, and the reference pass on the same code path.

Read in this order: `settings` (what people say), `encode` (rows to token ids, once), `batches` (which rows at
which step, stateless), `logps` (model to log-probabilities), `worker` (the loop), `run` (the driver's side).
"""
